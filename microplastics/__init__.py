"""Counting and measuring microplastics with Detectron2.

Importing the package reads neither torch nor Detectron2. As soon as ``detectron2.data`` is
imported, before or after this package, its data sets are registered in ``DatasetCatalog`` and
``MetadataCatalog`` (lazily: no file is read); with ``detectron2.modeling`` its modules.
"""

import importlib
import os
import sys
import warnings
from collections.abc import MutableMapping
from types import ModuleType
from typing import Any

import wrapt

from microplastics.utils.errors import UserError

__version__ = "0.1.0"

# GOMP_SPINCOUNT: how often a waiting thread looks again before it sleeps. libgomp's own 300,000
# are milliseconds, in which it keeps a core from the thread that it waits for.
SPIN_COUNT = "10000"


def _limit_spinning(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP threads wait briefly before they sleep, unless the user has chosen.

    OpenMP reads its settings when it is loaded, with torch.
    """
    if not ("torch" in sys.modules or "OMP_WAIT_POLICY" in environ or "GOMP_SPINCOUNT" in environ):
        environ["GOMP_SPINCOUNT"] = SPIN_COUNT


_limit_spinning()  # here, since importing the package precedes torch in every command

# Raised by Detectron2 and fvcore with today's torch and timm; users cannot fix them.
for _message, _category in (
    (r"`torch\.jit\.script` is deprecated", FutureWarning),
    (r"torch\.meshgrid: in an upcoming release", UserWarning),
    (r"Importing from timm\.models\.layers is deprecated", FutureWarning),
):
    warnings.filterwarnings("ignore", _message, _category)

_HOME = {
    "MaskRCNN": "microplastics.mask_rcnn",
    "Predictions": "microplastics.inference.predictor",
    "Predictor": "microplastics.inference.predictor",
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
    importlib.import_module("microplastics.modeling.roi_heads")
    importlib.import_module("microplastics.modeling.meta_arch")
    importlib.import_module("microplastics.modeling.torchvision")


@wrapt.when_imported("detectron2.projects.point_rend.mask_head")
def _register_point_rend(_: ModuleType) -> None:
    importlib.import_module("microplastics.modeling.roi_heads.point_rend")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
