"""COCO instance JSON: checked, as Detectron2 data set dicts, and as ground truth of evaluation.

A file is parsed and checked once a process and kept until it changes. ``coco_check`` says what
is refused and what is mended with a warning.
"""

import contextlib
import io
import logging
import os
import threading
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any

from detectron2.data.catalog import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools.coco import COCO

from microplastics.data.coco_check import CheckedInstances, check_content, check_files
from microplastics.data.coco_findings import Finding
from microplastics.data.coco_load import read_json
from microplastics.errors import UserError

__all__ = [
    "Report",
    "check_instances",
    "class_names",
    "coco_api",
    "coco_ground_truth",
    "contiguous_ids",
    "load_instances",
    "read_json",
]

logger = logging.getLogger(__name__)

_CACHED_FILES = 8


@dataclass(frozen=True)
class Report:
    """What :func:`check_instances` found in a data set that can be used.

    Attributes:
        json_file: the COCO JSON.
        image_root: its image folder.
        num_images: images in the JSON.
        num_annotations: annotations in the JSON.
        classes: class names by contiguous id.
        instances_per_class: annotations of each class, crowds included.
        warnings: oddities: ``code``, ``count``, ``examples`` of the first few places.
    """

    json_file: str
    image_root: str
    num_images: int
    num_annotations: int
    classes: list[str]
    instances_per_class: dict[str, int]
    warnings: list[Finding]


def check_instances(
    json_file: str,
    image_root: str,
    num_classes: int | None = None,
    *,
    training: bool = False,
    max_pixels: int | None = None,
) -> Report:
    """Check a data set before it is used: the JSON, and the header of every image.

    Oddities are logged, one line a kind, once for each state of the file.

    Args:
        json_file: COCO instance JSON.
        image_root: folder that its ``file_name`` are relative to.
        num_classes: ``MODEL.ROI_HEADS.NUM_CLASSES``, or None not to compare it.
        training: also refuse a data set in which no image has an annotation to learn from.
        max_pixels: images of more pixels are refused; Pillow's bound of 178,956,970 if None.

    Raises:
        UserError: naming file, annotation and mend of the first error, and the number of errors
            of each kind.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    checked = _checked(json_file)
    _log_warnings(json_file, checked)
    names = [category["name"] for category in checked.categories]
    if num_classes is not None and len(names) != num_classes:
        raise UserError(
            f"{json_file} has {len(names)} classes ({', '.join(names)}) but "
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}; set MODEL.ROI_HEADS.NUM_CLASSES "
            f"{len(names)} or correct the categories of the JSON."
        )
    if training and all(annotation["iscrowd"] for annotation in checked.annotations):
        raise UserError(
            f"{json_file} has no annotation to train on (none at all, or all with iscrowd 1); "
            "annotate some of its images, or, where they are blanks, name it after a set with "
            "particles and set DATALOADER.FILTER_EMPTY_ANNOTATIONS False."
        )
    check_files(json_file, checked.images, image_root, max_pixels)
    counts = Counter(annotation["category_id"] for annotation in checked.annotations)
    return Report(
        json_file=json_file,
        image_root=image_root,
        num_images=len(checked.images),
        num_annotations=len(checked.annotations),
        classes=names,
        instances_per_class={c["name"]: counts[c["id"]] for c in checked.categories},
        warnings=list(checked.warnings),
    )


def load_instances(
    json_file: str, image_root: str, dataset_name: str | None = None
) -> list[dict[str, Any]]:
    """Load a COCO JSON as Detectron2 data set dicts, as ``load_coco_json`` does.

    Unlike there, ``area`` and ``iscrowd`` may be missing, boxes that differ from their mask by
    more than 2 px are those of the mask, polygons end at the image's border, Roboflow's
    placeholder category is left out, and category ids are always contiguous. Nothing else is
    left out: what cannot be used is an error.

    Args:
        json_file: COCO instance JSON.
        image_root: folder that its ``file_name`` are relative to.
        dataset_name: puts ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` into the
            metadata of this data set, if given.

    Returns:
        For each image, by ascending id: ``file_name``, ``height``, ``width``, ``image_id``,
        ``annotations`` with ``bbox`` (XYWH, px), ``bbox_mode``, ``segmentation`` (polygons in px
        or compressed RLE of the whole image), ``category_id`` (from 0, by ascending id of the
        JSON), ``iscrowd``, ``id``.

    Raises:
        UserError: the JSON cannot be used.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    checked = _checked(json_file)
    _log_warnings(json_file, checked)
    ids = {category["id"]: index for index, category in enumerate(checked.categories)}
    if dataset_name is not None:
        _set_metadata(dataset_name, json_file, [c["name"] for c in checked.categories], ids)
    by_image = defaultdict(list)
    for annotation in checked.annotations:
        by_image[annotation["image_id"]].append(
            {
                "id": annotation["id"],
                "iscrowd": annotation["iscrowd"],
                "bbox": list(annotation["bbox"]),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": ids[annotation["category_id"]],
                "segmentation": _copied(annotation["segmentation"]),
            }
        )
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": by_image[image["id"]],
        }
        for image in checked.images
    ]


def coco_ground_truth(json_file: str) -> dict[str, Any]:
    """Return a COCO dict for evaluation, with nothing that makes an evaluator stumble.

    Categories, boxes and segmentations are those of :func:`load_instances`, with the ids of the
    JSON. ``area`` is the number of pixels of the mask, so that small, medium and large are told
    by mask; ``iscrowd`` is 0 where it was missing.

    Args:
        json_file: COCO instance JSON.

    Returns:
        dict with ``info``, ``images``, ``categories``, ``annotations``; it can be written as
        JSON.

    Raises:
        UserError: the JSON cannot be used.
    """
    checked = _checked(os.fspath(json_file))
    annotations = []
    for annotation in checked.annotations:
        segmentation = _copied(annotation["segmentation"])
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
            segmentation["counts"] = segmentation["counts"].decode("ascii")
        annotations.append(
            {**annotation, "bbox": list(annotation["bbox"]), "segmentation": segmentation}
        )
    return {
        "info": {},
        "images": [dict(image) for image in checked.images],
        "categories": [dict(category) for category in checked.categories],
        "annotations": annotations,
    }


def coco_api(json_file: str) -> COCO:
    """Return :func:`coco_ground_truth` as an indexed ``pycocotools`` object, without its prints.

    Raises:
        UserError: the JSON cannot be used.
    """
    api = COCO()
    api.dataset = coco_ground_truth(json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def class_names(json_file: str) -> list[str]:
    """Return the class names of a COCO JSON by contiguous id.

    Raises:
        UserError: the JSON cannot be used.
    """
    return [category["name"] for category in _checked(os.fspath(json_file)).categories]


def contiguous_ids(json_file: str) -> dict[int, int]:
    """Return the contiguous id (from 0, by ascending id) of each category id of a COCO JSON.

    Raises:
        UserError: the JSON cannot be used.
    """
    categories = _checked(os.fspath(json_file)).categories
    return {category["id"]: index for index, category in enumerate(categories)}


# Path -> (state of the file, content); the latest used last.
_cache: OrderedDict[str, tuple[tuple[int, ...], CheckedInstances]] = OrderedDict()
_cache_lock = threading.Lock()


def _checked(json_file: str) -> CheckedInstances:
    """Parse and check a JSON, or return what was kept of it. The result must not be changed."""
    key = os.path.abspath(json_file)
    state = _file_state(json_file)
    with _cache_lock:
        if key in _cache and _cache[key][0] == state:
            _cache.move_to_end(key)
            return _cache[key][1]
    checked = check_content(json_file, read_json(json_file))
    with _cache_lock:
        # Of two states of one file only the newer is kept; broken files are not kept at all.
        _cache[key] = (state, checked)
        _cache.move_to_end(key)
        while len(_cache) > _CACHED_FILES:
            _cache.popitem(last=False)
    return checked


def _file_state(json_file: str) -> tuple[int, ...]:
    try:
        status = os.stat(json_file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"Cannot read {json_file}: {reason}; correct the path.") from error
    return status.st_mtime_ns, status.st_size, status.st_ino


def _log_warnings(json_file: str, checked: CheckedInstances) -> None:
    if not checked.logged:
        checked.logged = True
        for finding in checked.warnings:
            logger.warning("%s: %s", json_file, finding)


def _copied(segmentation: list | dict) -> list | dict:
    """Copy a segmentation, so that a caller's changes do not reach what is kept."""
    if isinstance(segmentation, dict):
        return dict(segmentation)
    return [list(polygon) for polygon in segmentation]


def _set_metadata(name: str, json_file: str, classes: list[str], ids: dict[int, int]) -> None:
    metadata = MetadataCatalog.get(name)
    try:
        metadata.set(thing_classes=classes, thing_dataset_id_to_contiguous_id=ids)
    except AssertionError as error:
        raise UserError(
            f"The classes of {json_file} are {classes}, but the metadata of data set {name!r} "
            "already says otherwise; choose another name, or start Python anew after changing "
            "the JSON."
        ) from error
