"""Training and scoring of checkpoints."""

import importlib
from typing import Any

# Imported on first use: prediction needs neither the trainer nor evaluation.
_MODULES = {
    "Trainer": "microplastics.engine.trainer",
    "argument_parser": "microplastics.engine.distributed",
    "evaluate": "microplastics.engine.scoring",
    "launch": "microplastics.engine.distributed",
    "setup": "microplastics.engine.defaults",
}

__all__ = ["Trainer", "argument_parser", "evaluate", "launch", "setup"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
