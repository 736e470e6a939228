"""Masks that are given: annotations, results of any model, label images."""

import dataclasses
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from microplastics.data.coco import class_names, load_instances
from microplastics.data.coco_check import check_content
from microplastics.data.coco_load import read_json
from microplastics.data.formats.label_images import instance_rles, read_label_image
from microplastics.errors import UserError
from microplastics.inference.image_list import InputImage, find_images, is_image
from microplastics.inference.writers import ANNOTATIONS_FILE
from microplastics.inference.writers.names import printable
from microplastics.measurement.particles import Particles
from microplastics.structures.crop_masks import CropMasks

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class GivenImage:
    """One image whose masks are given.

    Attributes:
        image: its name, and its photograph or an empty path.
        masks_file: that holds the masks, for messages.
        load: gives its particles without the colours of their pixels, and what was left out,
            counted by name.
    """

    image: InputImage
    masks_file: str
    load: Callable[[], tuple[Particles, dict[str, int]]]


@dataclasses.dataclass(frozen=True)
class Given:
    """All that ``--masks`` names.

    Attributes:
        images: by the order of the files.
        class_names: in order.
    """

    images: list[GivenImage]
    class_names: list[str]


def read_given(
    masks: Sequence[str],
    images: str | None = None,
    dataset: str | None = None,
    class_name: str = "Particle",
    min_score: float = 0.0,
) -> Given:
    """Read masks of any of the kinds that ``tools/measure.py`` takes.

    Args:
        masks: one COCO JSON, one COCO results JSON, or label images (files, globs, folders).
        images: folder of the photographs.
        dataset: COCO JSON that names the images and classes of results; the annotations.json
            beside them if None.
        class_name: of all labels of label images.
        min_score: least score of a result.

    Raises:
        UserError: the masks cannot be used, or a photograph is missing.
    """
    if images is not None and not os.path.isdir(images):
        raise UserError(f"--images {images} is no folder; give the folder of the photographs.")
    given = _read(masks, images, dataset, class_name, min_score)
    names = Counter(each.image.name for each in given.images)
    for name, times in names.items():
        if times > 1:
            raise UserError(f"{masks[0]} has masks of {name} {times} times; give each image once.")
    return given


def _read(
    masks: Sequence[str], images: str | None, dataset: str | None, class_name: str, min_score: float
) -> Given:
    if not any(path.lower().endswith(".json") for path in masks):
        return _from_label_images(masks, images, class_name)
    if len(masks) > 1:
        raise UserError("--masks takes one JSON at a time; run once for each.")
    (path,) = masks
    if isinstance(read_json(path, (dict, list)), list):
        return _from_results(path, images, dataset, min_score)
    return _from_annotations(path, images)


def _from_annotations(path: str, images: str | None) -> Given:
    names = class_names(path)
    given = []
    for item in load_instances(path, ""):
        image = _photograph(item["file_name"], images, path)
        given.append(GivenImage(image, path, _loader(image.name, item, names)))
    return Given(given, names)


def _loader(name: str, item: dict[str, Any], names: Sequence[str]) -> Callable:
    def load() -> tuple[Particles, dict[str, int]]:
        single = [a for a in item["annotations"] if not a["iscrowd"]]
        size = (item["height"], item["width"])
        masks = CropMasks.from_coco([a["segmentation"] for a in single], size)
        classes = [names[a["category_id"]] for a in single]
        scores = np.full(len(single), np.nan)
        ids = np.array([a["id"] for a in single], dtype=np.int64)
        particles, empty = _particles(name, masks, classes, scores, ids)
        return particles, _counted(crowds=len(item["annotations"]) - len(single), empty_masks=empty)

    return load


def _from_results(path: str, images: str | None, dataset: str | None, min_score: float) -> Given:
    dataset = dataset or os.path.join(os.path.dirname(path), ANNOTATIONS_FILE)
    if not os.path.isfile(dataset):
        raise UserError(
            f"{path} holds results, which name neither images nor classes; give the COCO JSON that "
            "they belong to by --dataset."
        )
    content = read_json(dataset)
    names, entries = _named(content, dataset)
    results: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for index, result in enumerate(read_json(path, list)):
        results[_checked(result, f"{path}, result {index}", entries, names)].append(result)
    given = []
    for image_id, entry in entries.items():
        image = _photograph(entry["file_name"], images, dataset)
        size = (entry["height"], entry["width"])
        load = _result_loader(image.name, size, results[image_id], names, min_score, path)
        given.append(GivenImage(image, path, load))
    return Given(given, list(names.values()))


def _named(
    content: dict[str, Any], dataset: str
) -> tuple[dict[int, str], dict[int, dict[str, Any]]]:
    """Class names by category id, and image entries by id.

    The annotations are not looked at: results may be of a data set that has none.
    """
    checked = check_content(dataset, {**content, "annotations": []})
    names = {each["id"]: each["name"] for each in checked.categories}
    return names, {each["id"]: each for each in checked.images}


def _checked(result: Any, where: str, entries: dict[int, Any], names: dict[int, str]) -> int:
    if not isinstance(result, dict):
        raise UserError(f"{where}: it is no result; each has image_id, category_id and score.")
    image_id, category = result.get("image_id"), result.get("category_id")
    if not isinstance(image_id, int) or image_id not in entries:
        raise UserError(
            f"{where}: image {image_id!r} is not in the data set; give the COCO JSON that the "
            "results belong to by --dataset."
        )
    if not isinstance(category, int) or category not in names:
        raise UserError(
            f"{where}: category {category!r} is not in the data set; give the COCO JSON that the "
            "results belong to by --dataset."
        )
    score = result.get("score")
    if not isinstance(score, (int, float)) or not 0 <= score <= 1:
        raise UserError(f"{where}: its score is {score!r}; scores lie between 0 and 1.")
    if not isinstance(result.get("segmentation"), (dict, list)):
        raise UserError(f"{where}: it has no mask; results of boxes alone cannot be measured.")
    return image_id


def _result_loader(
    name: str,
    size: tuple[int, int],
    results: list[dict[str, Any]],
    names: dict[int, str],
    min_score: float,
    path: str,
) -> Callable:
    def load() -> tuple[Particles, dict[str, int]]:
        kept = [result for result in results if result["score"] >= min_score]
        try:
            masks = CropMasks.from_coco([result["segmentation"] for result in kept], size)
        except ValueError as error:
            raise UserError(f"{path}, image {name}: {error}; export the results again.") from error
        classes = [names[result["category_id"]] for result in kept]
        scores = np.array([result["score"] for result in kept], dtype=np.float64)
        ids = np.arange(1, len(kept) + 1, dtype=np.int64)
        particles, empty = _particles(name, masks, classes, scores, ids)
        return particles, _counted(below_min_score=len(results) - len(kept), empty_masks=empty)

    return load


def _from_label_images(masks: Sequence[str], images: str | None, class_name: str) -> Given:
    given = []
    for file in find_images(masks):
        name, path = file.name, ""
        if images is not None:
            path = _beside(file.name, images)
            name = printable(Path(os.path.relpath(path, images)).as_posix())
        load = _label_loader(name, file.path, class_name)
        given.append(GivenImage(InputImage(path, name, file.path), file.path, load))
    return Given(given, [class_name])


def _label_loader(name: str, path: str, class_name: str) -> Callable:
    def load() -> tuple[Particles, dict[str, int]]:
        labels, _ = read_label_image(path)
        try:
            ids, rles, _ = instance_rles(labels)
        except ValueError as error:
            raise UserError(f"{path} {error}.") from error
        masks = CropMasks.from_rles(rles, labels.shape)
        scores = np.full(len(ids), np.nan)
        classes = [class_name] * len(ids)
        return _particles(name, masks, classes, scores, np.array(ids, dtype=np.int64))[0], {}

    return load


def _particles(
    name: str, masks: CropMasks, classes: Sequence[str], scores: np.ndarray, ids: np.ndarray
) -> tuple[Particles, int]:
    kept = np.flatnonzero(masks.nonempty().numpy())
    particles = Particles(
        name,
        masks.image_size,
        [masks.crops[index] for index in kept],
        masks.offsets[kept],
        [classes[index] for index in kept],
        scores[kept],
        ids[kept],
    )
    return particles, len(masks) - len(kept)


def _counted(**counts: int) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _photograph(file_name: str, images: str | None, source: str) -> InputImage:
    name = printable(file_name)
    if images is None:
        return InputImage("", name)
    path = os.path.join(images, file_name)
    inside = os.path.realpath(path).startswith(os.path.realpath(images) + os.sep)
    if not inside or not os.path.isfile(path):
        raise UserError(
            f"{source} names the image {file_name}, which is not in {images}; correct --images."
        )
    return InputImage(path, name)


def _beside(name: str, images: str) -> str:
    """The photograph of the same name, whatever its ending."""
    exact = os.path.join(images, name)
    if os.path.isfile(exact):
        return exact
    folder, stem = os.path.split(os.path.splitext(exact)[0])
    found = [
        each
        for each in (sorted(os.listdir(folder)) if os.path.isdir(folder) else [])
        # Our own label images are called IMAGE.jpg.tif.
        if is_image(each) and stem in (each, os.path.splitext(each)[0])
    ]
    if len(found) != 1:
        number = "no photograph" if not found else f"{len(found)} photographs"
        raise UserError(f"{images} has {number} of the name of {name}; correct --images.")
    return os.path.join(folder, found[0])
