"""Prediction on images and large tiled images."""

import importlib
from typing import Any

# Imported on first use: stitching and the writers do not need the engine.
_HOME = {
    "Predictions": "microplastics.inference.predictor",
    "Predictor": "microplastics.inference.predictor",
    "to_particles": "microplastics.inference.predictor",
}

__all__ = ["Predictions", "Predictor", "to_particles"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
