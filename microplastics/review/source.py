"""What a review stands on: the particles of a run, or annotations with their images."""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from microplastics.calibration import Calibration
from microplastics.measurement.shape import choose_fiber_classes, is_fiber_class
from microplastics.measurement.table import table_columns
from microplastics.roi.region import Region, RegionSource
from microplastics.runs.finished import checked_record, recorded_options
from microplastics.runs.images import ImageOpener, InputImage, RunOptions, read_masks
from microplastics.runs.store import part_path
from microplastics.runs.summaries import run_class_names
from microplastics.structures.crop_masks import CropMasks
from microplastics.structures.particles import Particles
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json, sha256_of
from microplastics.writers.registry import ANNOTATIONS_FILE
from microplastics.writers.tables import Part, read_part

if TYPE_CHECKING:
    from microplastics.review.comparison import Outcome


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """An image and what was found on it.

    Attributes:
        name: what the outputs call it.
        path: of the photograph; "" without one.
        width, height: in px.
        calibration: its scale; None without one.
        particles: of the model or the annotations.
        rows: their measures, the columns of particles.csv, if they are known.
        region: in which particles count; None is everywhere.
    """

    name: str
    path: str
    width: int
    height: int
    calibration: Calibration | None
    particles: Particles
    rows: pd.DataFrame | None = None
    region: Region | None = None


@dataclasses.dataclass(frozen=True)
class ReviewSource:
    """All images of a review.

    Attributes:
        path: run folder or COCO JSON.
        images: in their order.
        classes: names in order.
        options: by which the particles become tables.
        record: run.json, or {} without a run.
        fiber_classes: those of the classes that are measured along their centreline.
        outcomes: what became of each particle, by image and number, if these are predictions
            beside annotations (:mod:`microplastics.review.comparison`).
    """

    path: Path
    images: list[SourceImage]
    classes: list[str]
    options: RunOptions
    record: dict[str, Any]
    fiber_classes: list[str]
    outcomes: Mapping[str, Mapping[int, "Outcome"]] = dataclasses.field(default_factory=dict)

    def is_fiber(self, class_name: str) -> bool:
        """Tell whether a class, which may be a new one, is measured along its centreline."""
        new = class_name not in self.classes
        return class_name in self.fiber_classes or (new and is_fiber_class(class_name))

    @property
    def folder(self) -> Path:
        """The folder in which a review is kept by default."""
        if self.path.is_dir():
            return self.path / "reviewed"
        return self.path.with_name(f"{self.path.stem}_reviewed")

    @property
    def thresholds(self) -> dict[str, float]:
        """Lowest score of each class that the model was asked for, as far as it is known."""
        found = self.record.get("score_thresholds")
        found = found if isinstance(found, dict) else {}
        return {name: value for name, value in found.items() if isinstance(value, (int, float))}

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the particles: their images, numbers, classes and masks."""
        digest = hashlib.sha256()
        for image in self.images:
            found = image.particles
            masks = CropMasks(found.masks, found.offsets, found.image_size).to_rles(as_str=True)
            about = [image.name, image.width, image.height, found.ids.tolist(), found.classes]
            digest.update(json.dumps([*about, [rle["counts"] for rle in masks]]).encode())
        return digest.hexdigest()


def open_source(
    path: str | os.PathLike,
    images: str | None = None,
    options: RunOptions | None = None,
    needs_photographs: bool = True,
) -> ReviewSource:
    """Open the folder of a run, or a COCO JSON with its images.

    Args:
        path: folder of ``microplastics predict`` or ``measure``; or a COCO JSON.
        images: folder of the photographs; of a run, if they are not where they were.
        options: scale and counts of a COCO JSON; a run has its own.
        needs_photographs: refuse a run whose photographs are elsewhere.

    Raises:
        UserError: it is neither, is damaged, or a photograph is missing or another one.
    """
    path = Path(path)
    if path.is_dir():
        return _of_run(path, images, needs_photographs)
    return _of_coco(path, images, options or RunOptions(output=""))


def _of_run(folder: Path, images: str | None, needs_photographs: bool) -> ReviewSource:
    record = checked_record(folder)
    options, classes = recorded_options(folder, record), run_class_names(folder)
    entries = record.get("images")
    if not entries:
        raise UserError(
            f"{folder} was merged of other runs; give one of these, with images of its own.",
            code="run_invalid",
        )
    parts = [part_path(folder, entry["name"]) for entry in entries]
    if all(part.is_file() for part in parts):
        read = [(part, read_part(part)) for part in parts]
        found, heads = [_of_part(*each) for each in read], [part.image for _, part in read]
    else:  # somebody made room
        annotated, *_ = _annotated(folder / ANNOTATIONS_FILE, None)
        by_name, heads = {image.name: image for image in annotated}, entries
        found = [_named(by_name, entry["name"], folder) for entry in entries]
    found = [
        dataclasses.replace(image, path=_photograph(head, images, folder, needs_photographs))
        for image, head in zip(found, heads, strict=True)
    ]
    if options.region is not None:
        regions = RegionSource(options.region)
        regions.check([image.name for image in found], {image.name: image.path for image in found})
        found = [_with_region(image, regions, options) for image in found]
    return ReviewSource(folder, found, classes, options, record, _fibers(record, classes))


def _fibers(record: dict[str, Any], classes: list[str]) -> list[str]:
    """The fibre classes of a run.json, which older ones have not."""
    named = record.get("fiber_classes")
    if isinstance(named, list):
        return [name for name in classes if name in named]
    return list(filter(is_fiber_class, classes))


def _named(images: dict[str, SourceImage], name: str, folder: Path) -> SourceImage:
    if name not in images:
        raise UserError(
            f"{folder} has neither parts nor {ANNOTATIONS_FILE} with {name}; run predict or "
            "measure again.",
            code="run_invalid",
        )
    return images[name]


def _photograph(
    head: dict[str, Any], images: str | None, folder: Path, is_needed: bool = True
) -> str:
    """The photograph of an image, checked to be the one that the run saw; "" if it saw none."""
    path = head.get("path")
    if not path or not isinstance(path, str):
        return ""
    inside = True
    if images is not None:
        path = os.path.join(images, head["name"])
        inside = os.path.realpath(path).startswith(os.path.realpath(images) + os.sep)
    if not is_needed and not os.path.isfile(path):
        return ""
    if not inside or not os.path.isfile(path):
        raise UserError(
            f"{path}, an image of {folder}, is not there; give the folder of the photographs by "
            "--images.",
            code="image_missing",
        )
    status, files = os.stat(path), head.get("files")
    known = files[0] if isinstance(files, list) and files else None
    same = known == [status.st_size, status.st_mtime_ns]
    # The hash of a whole filter takes seconds, and only copies need it.
    if not same and head.get("sha256") not in (None, sha256_of(path)):
        raise UserError(
            f"{path} is not the photograph that {folder} was made from; give that one's folder by "
            "--images.",
            code="run_mismatch",
        )
    return os.path.abspath(path)


def _of_part(path: Path, part: Part) -> SourceImage:
    try:
        return _checked_part(part)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(
            f"{path} is not the part of a run ({error}); run predict or measure again.",
            code="run_invalid",
        ) from error


def _checked_part(part: Part) -> SourceImage:
    head, rows = part.image, part.table.to_pandas()
    name, *size = (head[key] for key in ("image", "height", "width"))
    if not isinstance(name, str) or not all(type(side) is int and side > 0 for side in size):
        raise ValueError("no name or size of the image")
    columns = table_columns(um=head["um_per_px"] is not None, px=head["um_per_px"] is None)
    # An earlier version measured less: all are measured again.
    measures = rows[list(columns)].astype(columns) if set(columns) <= set(rows) else None
    masks = CropMasks.from_rles([{"size": size, "counts": c} for c in part.counts], size)
    ids = rows["particle"].astype("int64").to_numpy()
    if len(np.unique(ids)) != len(ids) or (ids < 1).any() or rows["class"].isna().any():
        raise ValueError("particles without a number or a class of their own")
    if not masks.nonempty().all():
        raise ValueError("a mask without a pixel")
    particles = Particles(
        name,
        masks.image_size,
        masks.crops,
        masks.offsets,
        rows["class"].tolist(),
        rows["score"].to_numpy(np.float64),
        ids,
    )
    return SourceImage(name, "", size[1], size[0], _stated(head), particles, measures)


def _with_region(image: SourceImage, regions: RegionSource, options: RunOptions) -> SourceImage:
    size = image.height, image.width
    if not regions.needs_image:
        return dataclasses.replace(image, region=regions.of_image(image.name, size, None))
    plain = dataclasses.replace(options, um_per_px=1.0, calibration=None)
    plain = dataclasses.replace(plain, scale_bar_um=None, scale_bar="ignore")
    with ImageOpener(plain, regions).open(InputImage(image.path, image.name)) as opened:
        return dataclasses.replace(image, region=opened.region)


def _of_coco(path: Path, images: str | None, options: RunOptions) -> ReviewSource:
    found, classes, fibers = _annotated(path, images)
    opener, scaled = ImageOpener(options), []
    for image in found:
        size = image.height, image.width
        with opener.open(InputImage(image.path, image.name), size) as opened:
            if opened.regions is not None:
                _check_size(image, opened.regions.width, opened.regions.height)
            # What the command line or the photograph says of the scale comes first.
            calibration = opened.calibration or image.calibration
        scaled.append(dataclasses.replace(image, calibration=calibration))
    if options.fiber_classes is not None:
        fibers = choose_fiber_classes(options.fiber_classes, classes)
    return ReviewSource(path, scaled, classes, options, {}, fibers)


def _annotated(path: Path, images: str | None) -> tuple[list[SourceImage], list[str], list[str]]:
    """The images of a COCO JSON, with the scores, numbers and scales of our own annotations.

    Its classes and those of fibres come second and third.
    """
    given, classes, fibers = read_masks([str(path)], images)
    data = read_json(path)
    fields = {each["id"]: each for each in data["annotations"]}
    scales = {each["file_name"]: _stated(each) for each in data["images"]}
    found = []
    for image, load in given:
        particles, _ = load()
        own = [fields[id_] for id_ in particles.ids.tolist()]
        numbers = [each.get("particle") for each in own]
        if all(type(n) is int and n > 0 for n in numbers) and len({*numbers}) == len(numbers):
            particles = dataclasses.replace(particles, ids=np.array(numbers, dtype=np.int64))
        scores = np.array([_score(each.get("score")) for each in own], dtype=np.float64)
        particles = dataclasses.replace(particles, scores=scores)
        height, width = particles.image_size
        scale = scales.get(image.name)
        found.append(SourceImage(image.name, image.path, width, height, scale, particles))
    return found, classes, fibers


def _check_size(image: SourceImage, width: int, height: int) -> None:
    if (width, height) != (image.width, image.height):
        raise UserError(
            f"{image.path} is {width} x {height} px, its masks are {image.width} x {image.height} "
            "px; give the photograph that was annotated.",
            code="image_size",
        )


def _score(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= 1 else math.nan


def _stated(entry: dict[str, Any]) -> Calibration | None:
    """The scale that an image of our own annotations.json names."""
    scale = entry.get("um_per_px")
    if not isinstance(scale, (int, float)) or not (math.isfinite(scale) and scale > 0):
        return None
    return Calibration(float(scale), str(entry.get("calibration_source") or ANNOTATIONS_FILE))
