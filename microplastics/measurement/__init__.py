"""Measuring particles: pure geometry on masks, in pixels."""

from microplastics.measurement.color import NAMED_COLORS
from microplastics.measurement.many import Item, measure_many, nearest_distances
from microplastics.measurement.shape import Kind, Shape, measure

__all__ = [
    "NAMED_COLORS",
    "Item",
    "Kind",
    "Shape",
    "measure",
    "measure_many",
    "nearest_distances",
]
