"""Counting and measuring microplastics with Detectron2.

Importing the package registers its data sets (lazily: nothing is read) in Detectron2's
``DatasetCatalog`` and ``MetadataCatalog``.
"""

import warnings
from typing import Any

__version__ = "0.1.0"

# Raised by Detectron2 and fvcore with today's torch and timm; users cannot fix them.
for _message, _category in (
    (r"`torch\.jit\.script` is deprecated", FutureWarning),
    (r"torch\.meshgrid: in an upcoming release", UserWarning),
    (r"Importing from timm\.models\.layers is deprecated", FutureWarning),
):
    warnings.filterwarnings("ignore", _message, _category)

from microplastics.config import add_microplastics_config, get_cfg, load_config
from microplastics.data.catalog import register_builtin, register_microplastics_instances
from microplastics.utils.errors import UserError

register_builtin()

__all__ = [
    "Predictions",
    "Predictor",
    "UserError",
    "add_microplastics_config",
    "get_cfg",
    "load_config",
    "register_microplastics_instances",
]


def __getattr__(name: str) -> Any:
    # Read on first use: training and the data tools need no predictor.
    if name in ("Predictions", "Predictor"):
        from microplastics import inference

        return getattr(inference, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
