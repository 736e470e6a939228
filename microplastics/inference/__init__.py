"""From images to predictions, and from the windows of a large image to its particles."""

import importlib
from typing import Any

# Read on first use: stitching and the writers need neither torch nor the engine.
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
