"""Counting and measuring microplastics with Detectron2.

Importing the package reads neither torch nor Detectron2. As soon as ``detectron2.data`` is
imported, before or after this package, its data sets are registered in ``DatasetCatalog`` and
``MetadataCatalog`` (lazily: no file is read); with ``detectron2.modeling`` its backbones.
"""

import importlib
import warnings
from types import ModuleType
from typing import Any

import wrapt

from microplastics.utils.errors import UserError
from microplastics.utils.threads import limit_spinning

limit_spinning()  # here, since importing the package precedes torch in every command

__version__ = "0.1.0"

# Raised by Detectron2 and fvcore with today's torch and timm; users cannot fix them.
for _message, _category in (
    (r"`torch\.jit\.script` is deprecated", FutureWarning),
    (r"torch\.meshgrid: in an upcoming release", UserWarning),
    (r"Importing from timm\.models\.layers is deprecated", FutureWarning),
):
    warnings.filterwarnings("ignore", _message, _category)

_HOME = {
    "Predictions": "microplastics.inference",
    "Predictor": "microplastics.inference",
    "add_microplastics_config": "microplastics.config",
    "get_cfg": "microplastics.config",
    "load_config": "microplastics.config",
    "register_microplastics_instances": "microplastics.data.catalog",
}

__all__ = ["UserError", "__version__", *_HOME]


@wrapt.when_imported("detectron2.data")
def _register_datasets(_: ModuleType) -> None:
    importlib.import_module("microplastics.data.catalog")


@wrapt.when_imported("detectron2.modeling")
def _register_backbones(_: ModuleType) -> None:
    importlib.import_module("microplastics.modeling.backbone")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
