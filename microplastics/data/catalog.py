"""Registration of data sets in Detectron2's catalogs, lazy and idempotent."""

import difflib
import functools
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data.catalog import DatasetCatalog, Metadata, MetadataCatalog

from microplastics.data import coco
from microplastics.data.colors import class_colors
from microplastics.measurement.shape import choose_fiber_classes, is_fiber_class
from microplastics.utils.errors import UserError

logger = logging.getLogger(__name__)

DEFAULT_CLASSES = ("Fiber", "Fragment", "Film")
SPLITS = ("train", "val", "test")
_FAMILIES = ("microplastics", "microplastics_synthetic")
_BUILTIN = {f"{family}_{split}": (family, split) for family in _FAMILIES for split in SPLITS}
_LAZY_KEYS = (
    *("thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id"),
    "fiber_classes",
)
_JSON_AND_IMAGES = re.compile(r"(?P<json>.+\.json)(?::(?P<images>.+))?", re.IGNORECASE)


class InstancesMetadata(Metadata):
    """Detectron2 ``Metadata`` whose classes are read from the JSON at first access.

    ``json_file``, ``image_root`` and ``evaluator_type`` are set at registration;
    ``thing_classes``, ``thing_colors``, ``thing_dataset_id_to_contiguous_id`` and
    ``fiber_classes``, those that are measured along their centreline, come from the JSON, even
    before ``DatasetCatalog.get``, and importing the package reads nothing. As long as the JSON of
    a built-in data set does not exist, its classes are Fiber, Fragment and Film.
    """

    def __getattr__(self, key: str) -> Any:
        """Read the class attributes from the JSON (called only for missing attributes)."""
        if key not in _LAZY_KEYS or "json_file" not in self.__dict__:
            return super().__getattr__(key)
        if key == "thing_colors":
            return class_colors(self.thing_classes)
        if self.name in _BUILTIN and not os.path.exists(self.json_file):
            return _class_attributes(DEFAULT_CLASSES, {1: 0, 2: 1, 3: 2}, ["Fiber"])[key]
        self.fill()
        return self.__dict__[key]

    def __setattr__(self, key: str, value: Any) -> None:
        """Set as Detectron2 does; a first value is not compared with the JSON."""
        if key in _LAZY_KEYS:
            self.__dict__.setdefault(key, value)
        super().__setattr__(key, value)

    def fill(self) -> None:
        """Read the classes from the JSON.

        Raises:
            UserError: the JSON is missing or broken, or ``classes_mismatch`` if its classes differ
                from those read or set before.
        """
        checked = coco.checked_instances(self.json_file)
        names, ids = checked.classes, checked.contiguous_ids
        for key, value in _class_attributes(names, ids, checked.fiber_classes).items():
            known = self.__dict__.setdefault(key, value)
            if known != value and key != "fiber_classes":
                raise UserError(
                    f"The classes of {self.json_file} are {names} ({ids}), but {key} of data set "
                    f"{self.name!r} is {known}; restart Python after changing the JSON, and do not "
                    f"set {key} yourself.",
                    code="classes_mismatch",
                )


def register_microplastics_instances(name: str, json_file: str, image_root: str) -> None:
    """Register COCO instances under ``name`` in ``DatasetCatalog`` and ``MetadataCatalog``.

    Nothing is read until ``DatasetCatalog.get(name)`` or a class attribute is accessed.
    Registering the same paths again does nothing.

    Args:
        name: the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        json_file: COCO instance JSON.
        image_root: folder that ``file_name`` of the JSON is relative to.

    Raises:
        UserError: ``dataset_conflict``, the name is registered for other paths or by other code.
    """
    json_file, image_root = (
        os.path.expanduser(os.fspath(path)) for path in (json_file, image_root)
    )
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        paths = known.get("json_file", "data"), known.get("image_root", "other code")
        if list(map(os.path.abspath, paths)) == list(map(os.path.abspath, (json_file, image_root))):
            return
        raise UserError(
            f"The data set name {name!r} is registered for {paths[0]} of {paths[1]}, not for "
            f"{json_file} with images in {image_root}; choose another name.",
            code="dataset_conflict",
        )
    metadata = InstancesMetadata(
        name=name, json_file=json_file, image_root=image_root, evaluator_type="coco"
    )
    if name in MetadataCatalog:  # attributes set before the registration
        try:
            metadata.set(**MetadataCatalog.get(name).as_dict())
        except AssertionError as error:
            raise UserError(
                f"The metadata of {name!r} were set to other values before it was registered "
                f"({' '.join(str(error).split())}); register it first.",
                code="dataset_conflict",
            ) from error
    MetadataCatalog[name] = metadata
    DatasetCatalog.register(name, functools.partial(_load, name))


def register_builtin() -> None:
    """Register ``microplastics_{train,val,test}`` and ``microplastics_synthetic_{…}``.

    With ``$DETECTRON2_DATASETS`` or ``datasets`` as root, the files are in
    ``root/microplastics/{train,val,test}/`` and
    ``root/microplastics/annotations/instances_{train,val,test}.json``, the rendered ones likewise
    in ``root/microplastics_synthetic/``.
    """
    root = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS") or "datasets")
    for name, (family, split) in _BUILTIN.items():
        if name in DatasetCatalog:
            logger.warning("Data set %r is registered by other code; it stays as it is.", name)
            continue
        json_file = os.path.join(root, family, "annotations", f"instances_{split}.json")
        image_root = os.path.join(root, family, split)
        register_microplastics_instances(name, json_file, image_root)


def resolve_datasets(names: Sequence[str]) -> tuple[str, ...]:
    """Register the entries of ``DATASETS.TRAIN`` or ``DATASETS.TEST`` that are paths; return all.

    An entry is a registered name, ``path/to.json:path/to/images``, or ``path/to.json`` with the
    images in its folder; a path is registered under the entry itself.

    Raises:
        UserError: ``dataset_unknown``.
    """
    entries = (names,) if isinstance(names, str) else tuple(names)
    for entry in entries:
        match = _JSON_AND_IMAGES.fullmatch(entry)
        if entry in DatasetCatalog:
            continue
        if match is None:
            close = difflib.get_close_matches(entry, DatasetCatalog.list(), n=3)
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            if os.path.exists(entry):
                hint = f" Convert it first: microplastics convert --input {entry} --output DIR."
            raise UserError(
                f"The data set {entry!r} is unknown; expected a registered name or "
                f"path/to.json:path/to/images.{hint}",
                code="dataset_unknown",
            )
        images = match["images"] or os.path.dirname(match["json"]) or "."
        register_microplastics_instances(entry, match["json"], images)
    return entries


def fiber_classes(cfg: CfgNode, name: str) -> list[str]:
    """Give the classes of a data set that are measured along their centreline.

    ``DATASETS.FIBER_CLASSES``, or if it is empty those whose name or supercategory says fibre.

    Raises:
        UserError: ``classes_mismatch``, one of the config's is not a class of the data set.
    """
    metadata = MetadataCatalog.get(name)
    classes = metadata.get("thing_classes", [])
    if cfg.DATASETS.FIBER_CLASSES:
        return choose_fiber_classes(cfg.DATASETS.FIBER_CLASSES, classes)
    return metadata.get("fiber_classes") or list(filter(is_fiber_class, classes))


def _class_attributes(
    names: Sequence[str], ids: dict[int, int], fibers: Sequence[str]
) -> dict[str, Any]:
    return {
        "thing_classes": list(names),
        "thing_dataset_id_to_contiguous_id": dict(ids),
        "fiber_classes": list(fibers),
    }


def _load(name: str) -> list[dict]:
    """Load a registered data set, for ``DatasetCatalog``."""
    metadata = MetadataCatalog.get(name)
    if name in _BUILTIN and not os.path.exists(metadata.json_file):
        family, split = _BUILTIN[name]
        folder = os.path.dirname(os.path.dirname(metadata.json_file))
        if family == "microplastics_synthetic":
            fix = f"render it with: microplastics render dataset --output {folder}"
        else:
            fix = (
                f"put the images in {metadata.image_root} and the annotations there, or set "
                f"DETECTRON2_DATASETS to the folder of {family}/"
            )
        raise UserError(
            f"Data set {name!r} has no {metadata.json_file}; {fix}.", code="file_missing"
        )
    metadata.fill()
    return coco.load_instances(metadata.json_file, metadata.image_root)


# As Detectron2's own builtin.py does, when detectron2.data is imported (microplastics/__init__.py).
register_builtin()
