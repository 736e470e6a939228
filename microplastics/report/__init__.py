"""Pictures for people: annotations, predictions beside the truth, training curves."""

from microplastics.report.curves import plot_training_curves
from microplastics.report.figures import (
    Panel,
    class_legend,
    draw_instances,
    draw_photograph,
    draw_predictions,
    save_picture,
    side_by_side,
)
from microplastics.report.visualizer import ParticleVisualizer

__all__ = [
    "Panel",
    "ParticleVisualizer",
    "class_legend",
    "draw_instances",
    "draw_photograph",
    "draw_predictions",
    "plot_training_curves",
    "save_picture",
    "side_by_side",
]
