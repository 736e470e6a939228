"""Inputs of a run: options, images, given masks."""

import argparse
import contextlib
import dataclasses
import functools
import glob
import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from microplastics.calibration import Calibration, label
from microplastics.calibration.scale_bar import Box, ScaleBar
from microplastics.calibration.sources import (
    check_length,
    read_calibration_csv,
    resolve_calibration,
)
from microplastics.data.coco import check_content, checked_instances, load_instances
from microplastics.data.formats.layout import IMAGE_SUFFIXES, list_files
from microplastics.data.formats.masks import instance_rles, read_label_image
from microplastics.data.large_images import ImageReader, open_reader
from microplastics.data.painting import PaintedRegions, Regions
from microplastics.data.segmentation import usable_masks
from microplastics.measurement.shape import is_fiber_class
from microplastics.roi.region import CIRCLE, Region, RegionSource
from microplastics.structures.crop_masks import CropMasks
from microplastics.structures.particles import Particles
from microplastics.structures.view import View, clip
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json, read_text
from microplastics.writers.registry import ANNOTATIONS_FILE, FORMATS

# What only the summary depends on, and what decides whether an image is read at all: a run may go
# on with others.
_OF_THE_RUN = frozenset(
    ("edge", "group_by", "sampled_volume", "counted_fraction", "filter_area_mm2", "blanks")
    + ("allow_large", "max_pixels")
)
_IMAGE_SUFFIXES = IMAGE_SUFFIXES | {".tf8", ".svs"}  # whole filters, too
_LIST_SUFFIXES = frozenset((".txt", ".lst"))
# Share of a particle that lies on a scale bar or its text from which on it is none.
_ON_BAR = 0.5

# Unsafe in file names of Windows, macOS or a shell.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff<>:"\\|?*%~]')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# File systems take 255 bytes; a suffix and the mark of a temporary file come on top.
_MAX_BYTES, _HASH_DIGITS = 160, 8

logger = logging.getLogger(__name__)

# Gives the particles of an image without the colours of their pixels, and numbers of what was left
# out by name.
Load = Callable[[], tuple[Particles, dict[str, int]]]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How particles become tables and files, whoever found them.

    Attributes:
        output: folder of the run.
        formats: what is written, of ``writers.FORMATS``; summary.csv and run.json always are.
        um_per_px: scale of all images in µm per pixel.
        calibration: CSV with the scale of each image.
        scale_bar_um: length in µm of the bar that is burnt into each image.
        scale_bar: ``auto`` reads that length from each bar's label; ``ignore`` looks for no bar,
            and paints none over.
        ignore_metadata: leave the files' own word on their scale aside.
        fiber_classes: classes that are measured along their centreline; those of the model or the
            annotations if None.
        size_classes: name of a set of size classes, or their bounds in µm.
        min_size: particles of a smaller largest Feret diameter are not counted, in µm, or in px
            without a calibration.
        region: ``circle``, a file or a folder (:class:`microplastics.roi.region.RegionSource`);
            everywhere if None.
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
    scale_bar: str | None = None
    ignore_metadata: bool = False
    fiber_classes: tuple[str, ...] | None = None
    size_classes: str = "default"
    min_size: float | None = None
    region: str | None = None
    edge: str = "count"
    group_by: str | None = None
    sampled_volume: str | None = None
    counted_fraction: float = 1.0
    filter_area_mm2: float | None = None
    blanks: Sequence[str] = ()
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


def run_options(args: argparse.Namespace) -> RunOptions:
    """The options of a parsed command line."""
    names = {field.name for field in dataclasses.fields(RunOptions)}
    given = {name: value for name, value in vars(args).items() if name in names}
    # run.json must lead to them from every folder.
    for name in ("calibration", "region", "group_by", "sampled_volume"):
        if given.get(name) is not None and _is_path(name, given[name]):
            given[name] = os.path.abspath(given[name])
    return RunOptions(**given)


def _is_path(name: str, value: str) -> bool:
    """Whether an option names a file or folder, and not ``circle``, a regex or a volume."""
    if name in ("group_by", "sampled_volume"):
        return value.lower().endswith(".csv")
    return value != CIRCLE


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


# Images with what loads their masks, and the names of all classes.
GivenMasks = tuple[list[tuple[InputImage, Load]], list[str], list[str]]


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
            "The input matches no image; give image files, folders or globs.", code="input_empty"
        )
    try:
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError as error:
        raise UserError(
            "--input names images on several drives; run once for each.", code="option_conflict"
        ) from error
    images = [InputImage(path, _name_below(root, path)) for path in paths]
    repeated = [name for name, times in Counter(each.name for each in images).items() if times > 1]
    if repeated:
        raise UserError(
            f"Two images would be called {repeated[0]}; rename one of them.", code="name_clash"
        )
    return images


def _name_below(folder: str, path: str) -> str:
    return printable(Path(os.path.relpath(path, folder)).as_posix())


def _expand(given: str) -> list[str]:
    """Paths of the images that one input names."""
    if os.path.isdir(given):
        found = [os.path.join(given, name) for name in list_files(Path(given), _IMAGE_SUFFIXES)]
    elif os.path.splitext(given)[1].lower() in _LIST_SUFFIXES and os.path.isfile(given):
        return _listed(given)
    elif os.path.exists(given):
        return [given]
    else:
        found = [path for path in glob.glob(given, recursive=True) if _is_image(path)]
    if not found and not os.path.isdir(given) and not glob.has_magic(given):
        raise UserError(f"{given} does not exist; correct the path.", code="file_missing")
    if not found:
        raise UserError(
            f"{given} matches no image; correct the path (images end in "
            f"{', '.join(sorted(_IMAGE_SUFFIXES))}).",
            code="input_empty" if os.path.isdir(given) else "file_missing",
        )
    return sorted(found)


def _is_image(path: str) -> bool:
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in _IMAGE_SUFFIXES and not name.startswith(".")


def _listed(path: str) -> list[str]:
    """Paths of the images in a list."""
    folder = os.path.dirname(os.path.abspath(path))
    lines = [line.strip() for line in read_text(path).splitlines()]
    found = [os.path.join(folder, line) for line in lines if line and not line.startswith("#")]
    if not found:
        raise UserError(f"{path} is empty; write one path per line.", code="input_empty")
    missing = [image for image in found if not os.path.isfile(image)]
    if missing:
        raise UserError(
            f"{path} names {missing[0]}, which does not exist; correct the line.",
            code="file_missing",
        )
    return found


def output_names(images: Sequence[str]) -> dict[str, str]:
    """Choose the stem of each image's output files.

    Folders come in front, joined by ``__``: ``a/x.jpg`` gives ``a__x.jpg``. The image's own suffix
    stays, so that ``x.jpg`` and ``x.png`` differ. Unsafe characters become ``_``. Long stems are
    cut. A stem that is cut, or that another image has too (regardless of case and of how accents
    are encoded), gets ``~`` and a part of the name's SHA-256.

    Args:
        images: names of the images, each once; the order does not matter.
    """
    whole = {image: _stem(image) for image in images}
    stems = {
        image: stem.encode()[:_MAX_BYTES].decode(errors="ignore") for image, stem in whole.items()
    }
    times = Counter(map(_fold, stems.values()))
    for image, stem in stems.items():
        if stem != whole[image] or times[_fold(stem)] > 1:
            digest = hashlib.sha256(image.encode("utf-8", "surrogatepass")).hexdigest()
            stems[image] = f"{stem}~{digest[:_HASH_DIGITS]}"
    return stems


def printable(name: str) -> str:
    """Make a file's name one that tables and pictures can hold.

    Bytes that are not UTF-8 become ``\\udc80``, line feeds ``\\n``, other control characters
    ``\\x07``.
    """
    escaped = _CONTROL.sub(lambda match: repr(match[0])[1:-1], name)
    return escaped.encode("utf-8", "backslashreplace").decode("utf-8")


def _stem(image: str) -> str:
    # Leading dots hide a file; Windows drops dots and blanks at the end.
    return _UNSAFE.sub("_", image.replace("/", "__")).strip(". ") or "_"


def _fold(stem: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", stem).casefold())


@dataclasses.dataclass(frozen=True)
class RunImage:
    """What is known of an image before its particles are.

    Attributes:
        image: which one.
        regions: its pixels; None without a photograph (masks only).
        calibration: its scale, or None.
        bars: all that looks like a scale bar.
        notes: what of the file was not used, such as a word on its scale, and why.
        region: region of interest; None is the whole image.
    """

    image: InputImage
    regions: ImageReader | None
    calibration: Calibration | None
    bars: list[ScaleBar]
    notes: list[str]
    region: Region | None = None

    @property
    def boxes(self) -> list[Box]:
        """Boxes x, y, width and height in px of the scale bars and their labels."""
        return [box for bar in self.bars for box in bar.boxes]

    @property
    def painted(self) -> Regions:
        """The pixels without the scale bars."""
        return PaintedRegions(self.regions, self.boxes) if self.bars else self.regions


class ImageOpener:
    """Opens images by the options of a run."""

    def __init__(self, options: RunOptions, region_source: RegionSource | None = None):
        """Read the calibration table; without ``region_source`` particles count everywhere.

        Raises:
            UserError: the table cannot be read, or an option of the scale bar cannot be met.
        """
        self._options, self._region_source = options, region_source
        self._table = None
        if options.scale_bar == "auto":
            label.check_installed()
        if options.scale_bar_um is not None:
            check_length(options.scale_bar_um)
        if options.calibration is not None:
            self._table = read_calibration_csv(options.calibration)

    @contextlib.contextmanager
    def open(self, image: InputImage, size: tuple[int, int] | None = None) -> Iterator[RunImage]:
        """Open one image; it is closed when the block ends.

        Args:
            image: which one; without a path it has neither pixels nor metadata or a scale bar.
            size: height and width in px of an image without a path.

        Raises:
            UserError: it cannot be read, or its scale or region cannot be determined.
        """
        options, limit = self._options, self._options.max_pixels
        with contextlib.ExitStack() as stack:
            regions = None
            if image.path:
                regions = stack.enter_context(
                    open_reader(image.path, max_pixels=limit, allow_large=options.allow_large)
                )
                size = regions.height, regions.width
            calibration, bars, notes = resolve_calibration(
                image.path or image.name,
                size[1],
                size[0],
                regions and regions.read,
                um_per_px=options.um_per_px,
                table=self._table,
                scale_bar_um=options.scale_bar_um,
                scale_bar=options.scale_bar,
                use_metadata=regions is not None and not options.ignore_metadata,
            )
            if regions and regions.other_pages:
                logger.warning(
                    "%s: only the first of its %d pages is looked at; save each as a file of its "
                    "own to have all.",
                    image.path,
                    regions.other_pages + 1,
                )
                notes = [*notes, f"{regions.other_pages} more pages were not looked at"]
            region = None
            if self._region_source is not None:
                overview = regions and regions.overview
                region = self._region_source.of_image(image.name, size, overview)
            yield RunImage(image, regions, calibration, bars, notes, region)


def without_boxes(particles: Particles, boxes: Sequence[Box]) -> tuple[Particles, int]:
    """Leave out what lies on a scale bar or its text with at least half of its pixels.

    Args:
        particles: of an image.
        boxes: x, y, width and height in px of the scale bar and its text.

    Returns:
        The other particles, renumbered, and the number left out.
    """
    places = zip(particles.masks, *particles.offsets.T.tolist(), strict=True)
    kept = [
        number
        for number, place in enumerate(places)
        if not any(_lies_on(View(*place), box) for box in boxes)
    ]
    if len(kept) == len(particles):
        return particles, 0
    ids = np.arange(1, len(kept) + 1, dtype=np.int64)
    return dataclasses.replace(particles.only(kept), ids=ids), len(particles) - len(kept)


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
    return particles.only(kept), table[inside].reset_index(drop=True)


def _lies_on(view: View, box: Box) -> bool:
    left, top, width, height = box
    inside = clip(view, (left, top, left + width, top + height)).mask
    return np.count_nonzero(inside) >= _ON_BAR * np.count_nonzero(view.mask)


def read_masks(
    masks: Sequence[str],
    images: str | None = None,
    dataset: str | None = None,
    class_name: str = "Particle",
    min_score: float = 0.0,
) -> GivenMasks:
    """Read masks of any of the kinds that ``microplastics measure`` takes.

    Args:
        masks: one COCO JSON, one COCO results JSON, or label images (files, globs, folders).
        images: folder of the photographs.
        dataset: COCO JSON that names the images and classes of results; the annotations.json
            beside them if None.
        class_name: of all labels of label images.
        min_score: least score of a result.

    Returns:
        The images in the order of the files, without a path if there is no photograph, each with
        the function that gives its particles; the class names in order; and those of fibres.

    Raises:
        UserError: the masks cannot be used, or a photograph is missing.
    """
    if images is not None and not os.path.isdir(images):
        raise UserError(
            f"--images {images} is not a folder; give the folder of the photographs.",
            code="file_missing",
        )
    if not any(path.lower().endswith(".json") for path in masks):
        given, names, fibers = _from_label_images(masks, images, class_name)
    elif len(masks) > 1:
        raise UserError(
            "--masks takes one JSON at a time; run once for each.", code="option_conflict"
        )
    elif isinstance(results := read_json(masks[0], (dict, list)), list):
        given, names, fibers = _from_results(masks[0], results, images, dataset, min_score)
    else:
        given, names, fibers = _from_annotations(masks[0], images)
    for name, times in Counter(image.name for image, _ in given).items():
        if times > 1:
            raise UserError(
                f"{masks[0]} has masks of {name} {times} times; give each image once.",
                code="name_clash",
            )
    return given, names, fibers


def _from_annotations(path: str, images: str | None) -> GivenMasks:
    items, checked = load_instances(path, ""), checked_instances(path)
    names = checked.classes
    given = []
    for item in items:
        single = [a for a in item["annotations"] if not a["iscrowd"]]
        left_out = {"crowds": len(item["annotations"]) - len(single)}
        ids, scores = [a["id"] for a in single], [np.nan] * len(single)
        image = _photograph(item["file_name"], images, path)
        load = functools.partial(_load_coco, image, item, single, names, ids, scores, left_out)
        given.append((image, load))
    return given, names, checked.fiber_classes


def _from_results(
    path: str, results: list[Any], images: str | None, dataset: str | None, min_score: float
) -> GivenMasks:
    dataset = dataset or os.path.join(os.path.dirname(path), ANNOTATIONS_FILE)
    if not os.path.isfile(dataset):
        raise UserError(
            f"{path} contains results, which name neither images nor classes; give the COCO JSON "
            "that they belong to by --dataset.",
            code="option_missing",
        )
    # Its annotations are not looked at: results may be of a data set that has none.
    checked = check_content(dataset, {**read_json(dataset), "annotations": []})
    names = {each["id"]: each["name"] for each in checked.categories}
    by_image: dict[int, list[dict[str, Any]]] = {number: [] for number in checked.images}
    for index, result in enumerate(results):
        problem = _problem(result, by_image, names)
        if problem:
            raise UserError(
                f"{path}, result {index}: {problem}; give results with masks, and the COCO JSON "
                "that they belong to.",
                code="annotations_invalid",
            )
        by_image[result["image_id"]].append(result)
    given = []
    for number, entry in sorted(checked.images.items()):
        found = by_image[number]
        kept = [result for result in found if result["score"] >= min_score]
        left_out = {"below_min_score": len(found) - len(kept)}
        ids, scores = range(1, len(kept) + 1), [result["score"] for result in kept]
        image = _photograph(entry["file_name"], images, dataset)
        load = functools.partial(_load_coco, image, entry, kept, names, ids, scores, left_out)
        given.append((image, load))
    return given, list(names.values()), checked.fiber_classes


def _problem(result: Any, images: dict[int, Any], names: dict[int, str]) -> str | None:
    """Why a result cannot be used."""
    fields = result if isinstance(result, dict) else {}
    for thing, known in (("image", images), ("category", names)):
        number = fields.get(f"{thing}_id")
        if not isinstance(number, int) or number not in known:
            return f"{thing} {number!r} is not in the data set"
    score = fields.get("score")
    if not isinstance(score, (int, float)) or not 0 <= score <= 1:
        return f"the score is {score!r}, not 0 to 1"
    if not isinstance(fields.get("segmentation"), (dict, list)):
        return "the result has no mask"
    return None


def _load_coco(
    image: InputImage,
    entry: dict[str, Any],
    annotations: list[dict[str, Any]],
    names: Sequence[str] | dict[int, str],
    ids: Sequence[int],
    scores: Sequence[float],
    left_out: dict[str, int],
) -> tuple[Particles, dict[str, int]]:
    segmentations = [each["segmentation"] for each in annotations]
    with usable_masks(image.name):
        masks = CropMasks.from_coco(segmentations, (entry["height"], entry["width"]))
    classes = [names[each["category_id"]] for each in annotations]
    particles, empty = _particles(image.name, masks, classes, scores, ids)
    return particles, {**left_out, "empty_masks": empty}


def _from_label_images(masks: Sequence[str], images: str | None, class_name: str) -> GivenMasks:
    given = []
    for file in find_images(masks):
        name, path = file.name, ""
        if images is not None:
            path = _beside(file.name, images)
            name = _name_below(images, path)
        given.append(InputImage(path and os.path.abspath(path), name, file.path))
    loads = [functools.partial(_load_labels, image, class_name) for image in given]
    fibers = list(filter(is_fiber_class, [class_name]))
    return list(zip(given, loads, strict=True)), [class_name], fibers


def _load_labels(image: InputImage, class_name: str) -> tuple[Particles, dict[str, int]]:
    labels, _ = read_label_image(image.masks_path)
    try:
        ids, rles, _ = instance_rles(labels)
    except ValueError as error:
        raise UserError(f"{image.masks_path} {error}.", code="file_invalid") from error
    masks, scores = CropMasks.from_rles(rles, labels.shape), [np.nan] * len(ids)
    return _particles(image.name, masks, [class_name] * len(ids), scores, ids)[0], {}


def _particles(
    name: str,
    masks: CropMasks,
    classes: Sequence[str],
    scores: Sequence[float],
    ids: Sequence[int],
) -> tuple[Particles, int]:
    """The particles whose masks have a pixel, and the number of the others."""
    particles = Particles(
        name,
        masks.image_size,
        masks.crops,
        masks.offsets,
        classes,
        np.array(scores, dtype=np.float64),
        np.array(ids, dtype=np.int64),
    )
    kept = np.flatnonzero(masks.nonempty().numpy()).tolist()
    return particles.only(kept), len(masks) - len(kept)


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
    return InputImage(os.path.abspath(path), name)


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
        if _is_image(each) and stem in (each, os.path.splitext(each)[0])
    ]
    if len(found) != 1:
        number = "no photograph" if not found else f"{len(found)} photographs"
        raise UserError(
            f"{images} has {number} files named {name}; correct --images.", code="image_missing"
        )
    return os.path.join(folder, found[0])
