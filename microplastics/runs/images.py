"""Inputs of a run: options, images, given masks."""

import argparse
import contextlib
import dataclasses
import glob
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from microplastics.calibration import Calibration
from microplastics.calibration.sources import (
    CalibrationTable,
    read_calibration_csv,
    resolve_calibration,
)
from microplastics.data.coco import check_content, checked_instances, load_instances
from microplastics.data.formats.masks import instance_rles, read_label_image
from microplastics.data.large_images import ImageReader, open_reader
from microplastics.roi.region import Region, RegionSource
from microplastics.structures.crop_masks import CropMasks
from microplastics.structures.particles import Particles
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json
from microplastics.writers import ANNOTATIONS_FILE, FORMATS
from microplastics.writers.base import printable

# What only the summary depends on, and what decides whether an image is read at all: a run may go
# on with others.
_OF_THE_RUN = frozenset(
    ("edge", "group_by", "sampled_volume", "counted_fraction", "filter_area_mm2", "blanks")
    + ("allow_large", "max_pixels")
)

IMAGE_ENDINGS = frozenset(
    (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".btf", ".tf8", ".bmp", ".webp", ".jp2", ".gif")
    + (".ppm", ".pgm", ".pnm", ".svs")
)
LIST_ENDINGS = frozenset((".txt", ".lst"))
logger = logging.getLogger(__name__)
Box = tuple[int, int, int, int]
# Pixels around a scale bar whose colour takes its place.
_RIM = 8
# Share of a particle that lies on a scale bar or its text from which on it is none.
_ON_BAR = 0.5


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How particles become tables and files, whoever found them.

    Attributes:
        output: folder of the run.
        formats: what is written, of ``writers.FORMATS``; summary.csv and run.json always are.
        um_per_px: scale of all images in µm per pixel.
        calibration: CSV with the scale of each image.
        scale_bar_um: length in µm of the bar that is burnt into each image.
        ignore_metadata: leave the files' own word on their scale aside.
        size_classes: name of a set of size classes, or their bounds in µm.
        min_size: particles of a smaller largest Feret diameter are not counted, in µm, or in px
            without a calibration.
        region: region of interest: ``circle``, a file or a folder, as
            :class:`microplastics.roi.region.RegionSource` takes it; everywhere if
            None.
        edge: what becomes of particles that touch the image's border: count, exclude or weight.
        group_by: what sums images of one sample: ``folder``, a CSV (image, group) or a regex.
        sampled_volume: that was filtered, as ``2 L`` or ``0.5 m3``, for each sample; or a CSV
            (sample, volume).
        counted_fraction: fraction of the filter that the images of a sample show.
        filter_area_mm2: area of the filter that carries particles; replaces that fraction.
        blanks: images, by name or glob, that are procedural blanks.
        allow_large: lift the limit on the pixels of a file that must be decoded whole.
        max_pixels: that limit.
        resume, overwrite: go on with what the folder holds, or forget it.
    """

    output: str
    formats: tuple[str, ...] = tuple(FORMATS)
    um_per_px: float | None = None
    calibration: str | None = None
    scale_bar_um: float | None = None
    ignore_metadata: bool = False
    size_classes: str = "default"
    min_size: float | None = None
    region: str | None = None
    edge: str = "count"
    group_by: str | None = None
    sampled_volume: str | None = None
    counted_fraction: float = 1.0
    filter_area_mm2: float | None = None
    blanks: tuple[str, ...] = ()
    allow_large: bool = False
    max_pixels: int | None = None
    resume: bool = False
    overwrite: bool = False

    def settings(self) -> dict[str, Any]:
        """The options that the results of an image depend on."""
        return {name: value for name, value in self.as_dict().items() if name not in _OF_THE_RUN}

    def as_dict(self) -> dict[str, Any]:
        """All options that results depend on, the summary's included."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("output", "resume", "overwrite")
        }


def run_options(args: argparse.Namespace, **more: Any) -> RunOptions:
    """The options of a parsed command line."""
    names = {field.name for field in dataclasses.fields(RunOptions)}
    given = {name: value for name, value in vars(args).items() if name in names}
    return RunOptions(**{**given, "blanks": tuple(given["blanks"]), **more})


@dataclasses.dataclass(frozen=True)
class InputImage:
    """One image of a run.

    Attributes:
        path: of the file.
        name: what every output calls it, with ``/`` between folders; unique within a run.
        masks_path: file of its given masks, if each image has its own.
        region_path: file of its region of interest.
    """

    path: str
    name: str
    masks_path: str = ""
    region_path: str = ""


def find_images(inputs: Sequence[str], exclude: str = "") -> list[InputImage]:
    """List the images that files, folders, globs and lists of paths name, each once.

    A folder means all images in it and below it, a ``.txt`` or ``.lst`` file one path a line
    (relative to its own folder; empty lines and lines that start with ``#`` are skipped). Images
    are named by their path below the folder that holds all of them.

    Args:
        inputs: of the command line; globs that the shell did not expand are expanded.
        exclude: a folder whose images are none: the output of the run.

    Returns:
        The images in the order of the inputs, sorted by name within a folder.

    Raises:
        UserError: an input is missing, or names no image.
    """
    paths: dict[str, None] = {}
    excluded = os.path.realpath(exclude) + os.sep if exclude else None
    for given in inputs:
        for path in _expand(given):
            if excluded is None or not os.path.realpath(path).startswith(excluded):
                paths.setdefault(os.path.abspath(path))
    if not paths:
        raise UserError(
            "--input matches no image; give image files, folders or globs.", code="input_empty"
        )
    root = _common_folder(list(paths))
    images = [
        InputImage(path, printable(Path(os.path.relpath(path, root)).as_posix())) for path in paths
    ]
    repeated = [name for name, times in Counter(each.name for each in images).items() if times > 1]
    if repeated:
        raise UserError(
            f"Two images would be called {repeated[0]}; rename one of them.", code="name_clash"
        )
    return images


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file name has an image's suffix and is not hidden."""
    name = os.path.basename(os.fspath(path))
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS and not name.startswith(".")


def _expand(given: str) -> list[str]:
    if os.path.isdir(given):
        found = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(given)
            for name in names
            if is_image(name) and not _is_hidden(os.path.relpath(folder, given))
        ]
        if not found:
            raise UserError(
                f"{given} contains no image; images end in {', '.join(sorted(IMAGE_ENDINGS))}.",
                code="input_empty",
            )
        return sorted(found)
    if os.path.splitext(given)[1].lower() in LIST_ENDINGS and os.path.isfile(given):
        return _listed(given)
    if os.path.exists(given):
        return [given]
    found = sorted(path for path in glob.glob(given, recursive=True) if is_image(path))
    if not found:
        words = "matches no image" if glob.has_magic(given) else "does not exist"
        raise UserError(f"--input {given} {words}; correct the path.", code="file_missing")
    return found


def _is_hidden(folder: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in Path(folder).parts)


def _listed(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read the list {path} ({error}); save it as UTF-8 text.", code="file_invalid"
        ) from error
    folder = os.path.dirname(os.path.abspath(path))
    found = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        image = os.path.join(folder, line)
        if not os.path.isfile(image):
            raise UserError(
                f"{path}, line {number}: {line} does not exist; correct the line.",
                code="file_missing",
            )
        found.append(image)
    if not found:
        raise UserError(f"{path} is empty; write one path per line.", code="input_empty")
    return found


def _common_folder(paths: list[str]) -> str:
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # several drives
        raise UserError(
            "--input names images on several drives; run once for each.", code="option_conflict"
        ) from None


class ArrayImage:
    """An image in memory, read as :class:`microplastics.data.large_images.ImageReader` is."""

    def __init__(self, pixels: np.ndarray):
        """
        Args:
            pixels: (H, W, 3) uint8 BGR.
        """
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Give a region, (y1 - y0, x1 - x0, 3) uint8 BGR."""
        return self.pixels[y0:y1, x0:x1]

    def overview(self, max_side: int) -> tuple[np.ndarray, float]:
        """Give the image with no side above ``max_side``, and px of the image per px of it."""
        side = max(self.width, self.height)
        if side <= max_side:
            return self.pixels, 1.0
        size = [max(1, round(each * max_side / side)) for each in (self.width, self.height)]
        return cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA), side / max_side


class PaintedRegions:
    """An image whose boxes are painted over in the colour of what surrounds them."""

    def __init__(self, regions: ImageReader | ArrayImage, boxes: Sequence[Box]):
        """
        Args:
            regions: the image.
            boxes: x, y, width and height in px.
        """
        self.width, self.height = regions.width, regions.height
        self._regions, self._boxes = regions, list(boxes)
        self._colors = [self._surrounding(box) for box in boxes]

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Give a region, (y1 - y0, x1 - x0, 3) uint8 BGR."""
        image = self._regions.read(x0, y0, x1, y1)
        if self._boxes:
            image = image.copy()
        for (x, y, width, height), color in zip(self._boxes, self._colors, strict=True):
            rows = slice(max(y - y0, 0), max(y + height - y0, 0))
            image[rows, max(x - x0, 0) : max(x + width - x0, 0)] = color
        return image

    def _surrounding(self, box: Box) -> np.ndarray:
        x, y, width, height = box
        x0, y0 = max(x - _RIM, 0), max(y - _RIM, 0)
        x1, y1 = min(x + width + _RIM, self.width), min(y + height + _RIM, self.height)
        frame = self._regions.read(x0, y0, x1, y1)
        around = np.ones(frame.shape[:2], dtype=bool)
        around[y - y0 : y - y0 + height, x - x0 : x - x0 + width] = False
        return np.median(frame[around] if around.any() else frame.reshape(-1, 3), axis=0)


@dataclasses.dataclass(frozen=True)
class RunImage:
    """What is known of an image before its particles are.

    Attributes:
        image: which one.
        regions: its pixels; None without a photograph (masks only).
        calibration: its scale, or None.
        boxes: x, y, width and height in px of the scale bar and its text.
        notes: what of the file was not used, such as a word on its scale, and why.
        region: region of interest; None is the whole image.
    """

    image: InputImage
    regions: ImageReader | ArrayImage | None
    calibration: Calibration | None
    boxes: list[Box]
    notes: list[str]
    region: Region | None = None


class ImageOpener:
    """Opens images by the options of a run."""

    def __init__(self, options: RunOptions, region_source: RegionSource | None = None):
        """
        Args:
            options: of the run.
            region_source: regions of interest; None is the whole image.

        Raises:
            UserError: the calibration table cannot be read.
        """
        self._options = options
        self._region_source = region_source
        self.table: CalibrationTable | None = None
        if options.calibration is not None:
            self.table = read_calibration_csv(options.calibration)

    @contextlib.contextmanager
    def open(self, image: InputImage) -> Iterator[RunImage]:
        """Open one image; it is closed when the block ends.

        Args:
            image: which one.

        Raises:
            UserError: it cannot be read, or its scale or region cannot be determined.
        """
        options = self._options
        with open_reader(
            image.path, max_pixels=options.max_pixels, allow_large=options.allow_large
        ) as regions:
            calibration, boxes, notes = self.scale(image.path, regions)
            if regions.other_pages:
                logger.warning(
                    "%s: only the first of its %d pages is looked at; save each as a file of its "
                    "own to have all.",
                    image.path,
                    regions.other_pages + 1,
                )
                notes = [*notes, f"{regions.other_pages} more pages were not looked at"]
            region = self.region(image.name, (regions.height, regions.width), regions)
            yield RunImage(image, regions, calibration, boxes, notes, region)

    def scale(
        self, path: str, regions: ImageReader | None = None
    ) -> tuple[Calibration | None, list[Box], list[str]]:
        """The scale of an image, as :func:`resolve_calibration` gives it.

        Args:
            path: of the image; without a photograph its name.
            regions: its pixels; None without a photograph, and so without metadata or a
                scale bar.

        Raises:
            UserError: sources disagree, or one of them is invalid.
        """
        options = self._options
        return resolve_calibration(
            path,
            regions.width if regions else 0,
            regions.height if regions else 0,
            regions.read if regions else None,
            um_per_px=options.um_per_px,
            table=self.table,
            scale_bar_um=options.scale_bar_um if regions else None,
            use_metadata=regions is not None and not options.ignore_metadata,
        )

    def region(
        self, name: str, size: tuple[int, int], regions: ImageReader | None = None
    ) -> Region | None:
        """Where particles of an image count; None is everywhere.

        Args:
            name: of the image.
            size: its height and width in px.
            regions: its pixels; None without a photograph.

        Raises:
            UserError: it cannot be determined.
        """
        if self._region_source is None:
            return None
        return self._region_source.of_image(name, size, regions.overview if regions else None)


def without_boxes(particles: Particles, boxes: Sequence[Box]) -> tuple[Particles, int]:
    """Leave out what lies on a scale bar or its text with at least half of its pixels.

    Args:
        particles: of an image.
        boxes: x, y, width and height in px of the scale bar and its text.

    Returns:
        The other particles, renumbered, and the number left out.
    """
    kept = [
        number
        for number, (mask, (x, y)) in enumerate(
            zip(particles.masks, particles.offsets.tolist(), strict=True)
        )
        if not any(_lies_on(mask, x, y, box) for box in boxes)
    ]
    if len(kept) == len(particles):
        return particles, 0
    ids = np.arange(1, len(kept) + 1, dtype=np.int64)
    return dataclasses.replace(_only(particles, kept), ids=ids), len(particles) - len(kept)


def within(
    particles: Particles, table: pd.DataFrame, region: Region | None
) -> tuple[Particles, pd.DataFrame]:
    """Leave out what has its centroid outside of the region.

    Each particle has one centroid, so that those of several regions add up, and none is more
    likely to count because it is large. Numbers stay, and so do distances to what is left out.

    Args:
        particles: of an image.
        table: their measures, a row each.
        region: region of interest; None is the whole image.

    Returns:
        The other particles and their rows.
    """
    if region is None:
        return particles, table
    inside = region.contains(table[["x", "y"]].to_numpy(np.float64))
    kept = np.flatnonzero(inside).tolist()
    return _only(particles, kept), table[inside].reset_index(drop=True)


def _only(particles: Particles, kept: Sequence[int]) -> Particles:
    pixels = particles.pixels
    return dataclasses.replace(
        particles,
        masks=[particles.masks[number] for number in kept],
        offsets=particles.offsets[kept],
        classes=[particles.classes[number] for number in kept],
        scores=particles.scores[kept],
        ids=particles.ids[kept],
        pixels=None if pixels is None else [pixels[number] for number in kept],
    )


def _lies_on(mask: np.ndarray, x: int, y: int, box: Box) -> bool:
    left, top, width, height = box
    inside = mask[
        max(top - y, 0) : max(top + height - y, 0), max(left - x, 0) : max(left + width - x, 0)
    ]
    return np.count_nonzero(inside) >= _ON_BAR * np.count_nonzero(mask)


@dataclasses.dataclass(frozen=True)
class MaskedImage:
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
class MaskSource:
    """All that ``--masks`` names.

    Attributes:
        images: by the order of the files.
        class_names: in order.
    """

    images: list[MaskedImage]
    class_names: list[str]


def read_masks(
    masks: Sequence[str],
    images: str | None = None,
    dataset: str | None = None,
    class_name: str = "Particle",
    min_score: float = 0.0,
) -> MaskSource:
    """Read masks of any of the kinds that ``microplastics measure`` takes.

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
        raise UserError(
            f"--images {images} is not a folder; give the folder of the photographs.",
            code="file_missing",
        )
    given = _read(masks, images, dataset, class_name, min_score)
    names = Counter(each.image.name for each in given.images)
    for name, times in names.items():
        if times > 1:
            raise UserError(
                f"{masks[0]} has masks of {name} {times} times; give each image once.",
                code="name_clash",
            )
    return given


def _read(
    masks: Sequence[str], images: str | None, dataset: str | None, class_name: str, min_score: float
) -> MaskSource:
    if not any(path.lower().endswith(".json") for path in masks):
        return _from_label_images(masks, images, class_name)
    if len(masks) > 1:
        raise UserError(
            "--masks takes one JSON at a time; run once for each.", code="option_conflict"
        )
    (path,) = masks
    if isinstance(read_json(path, (dict, list)), list):
        return _from_results(path, images, dataset, min_score)
    return _from_annotations(path, images)


def _from_annotations(path: str, images: str | None) -> MaskSource:
    names = checked_instances(path).classes
    given = []
    for item in load_instances(path, ""):
        image = _photograph(item["file_name"], images, path)
        given.append(MaskedImage(image, path, _loader(image.name, item, names)))
    return MaskSource(given, names)


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


def _from_results(
    path: str, images: str | None, dataset: str | None, min_score: float
) -> MaskSource:
    dataset = dataset or os.path.join(os.path.dirname(path), ANNOTATIONS_FILE)
    if not os.path.isfile(dataset):
        raise UserError(
            f"{path} contains results, which name neither images nor classes; give the COCO JSON "
            "that they belong to by --dataset.",
            code="option_missing",
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
        given.append(MaskedImage(image, path, load))
    return MaskSource(given, list(names.values()))


def _named(
    content: dict[str, Any], dataset: str
) -> tuple[dict[int, str], dict[int, dict[str, Any]]]:
    """Class names by category id, and image entries by id.

    The annotations are not looked at: results may be of a data set that has none.
    """
    checked = check_content(dataset, {**content, "annotations": []})
    names = {each["id"]: each["name"] for each in checked.categories}
    return names, dict(sorted(checked.images.items()))


def _checked(result: Any, where: str, entries: dict[int, Any], names: dict[int, str]) -> int:
    if not isinstance(result, dict):
        raise UserError(
            f"{where}: not a result; expected image_id, category_id and score.", code="run_invalid"
        )
    image_id, category = result.get("image_id"), result.get("category_id")
    if not isinstance(image_id, int) or image_id not in entries:
        raise UserError(
            f"{where}: image {image_id!r} is not in the data set; give the COCO JSON that the "
            "results belong to by --dataset.",
            code="annotations_invalid",
        )
    if not isinstance(category, int) or category not in names:
        raise UserError(
            f"{where}: category {category!r} is not in the data set; give the COCO JSON that the "
            "results belong to by --dataset.",
            code="annotations_invalid",
        )
    score = result.get("score")
    if not isinstance(score, (int, float)) or not 0 <= score <= 1:
        raise UserError(f"{where}: the score is {score!r}; expected 0 to 1.", code="run_invalid")
    if not isinstance(result.get("segmentation"), (dict, list)):
        raise UserError(
            f"{where}: the result has no mask; expected masks, not only boxes.", code="run_invalid"
        )
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
            raise UserError(
                f"{path}, image {name}: {error}; export the results again.",
                code="annotations_invalid",
            ) from error
        classes = [names[result["category_id"]] for result in kept]
        scores = np.array([result["score"] for result in kept], dtype=np.float64)
        ids = np.arange(1, len(kept) + 1, dtype=np.int64)
        particles, empty = _particles(name, masks, classes, scores, ids)
        return particles, _counted(below_min_score=len(results) - len(kept), empty_masks=empty)

    return load


def _from_label_images(masks: Sequence[str], images: str | None, class_name: str) -> MaskSource:
    given = []
    for file in find_images(masks):
        name, path = file.name, ""
        if images is not None:
            path = _beside(file.name, images)
            name = printable(Path(os.path.relpath(path, images)).as_posix())
        load = _label_loader(name, file.path, class_name)
        given.append(MaskedImage(InputImage(path, name, file.path), file.path, load))
    return MaskSource(given, [class_name])


def _label_loader(name: str, path: str, class_name: str) -> Callable:
    def load() -> tuple[Particles, dict[str, int]]:
        labels, _ = read_label_image(path)
        try:
            ids, rles, _ = instance_rles(labels)
        except ValueError as error:
            raise UserError(f"{path} {error}.", code="file_invalid") from error
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
            f"{source} names the image {file_name}, which is not in {images}; correct --images.",
            code="image_missing",
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
        raise UserError(
            f"{images} has {number} files named {name}; correct --images.", code="image_missing"
        )
    return os.path.join(folder, found[0])
