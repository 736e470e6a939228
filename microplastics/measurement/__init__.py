"""Measurement of particles from masks, in pixels."""

from microplastics.measurement.nearest import nearest_distances
from microplastics.measurement.shape import NAMED_COLORS, Item, Kind, Shape, measure
from microplastics.measurement.table import measure_many

__all__ = [
    "NAMED_COLORS",
    "Item",
    "Kind",
    "Shape",
    "measure",
    "measure_many",
    "nearest_distances",
]
