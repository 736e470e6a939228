"""Pictures for people: annotations, predictions beside the truth, training curves."""

from microplastics.visualization.curves import plot_training_curves
from microplastics.visualization.draw import (
    Panel,
    ParticleVisualizer,
    class_legend,
    draw_instances,
    resize,
    save_picture,
    side_by_side,
)

__all__ = [
    "Panel",
    "ParticleVisualizer",
    "class_legend",
    "draw_instances",
    "plot_training_curves",
    "resize",
    "save_picture",
    "side_by_side",
]
