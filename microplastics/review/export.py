"""The corrected files of a review: tables and pictures of a run, and annotations to train on."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from microplastics import __version__
from microplastics.data.large_images import open_reader
from microplastics.data.segmentation import mask_to_polygons
from microplastics.report.run import after_run
from microplastics.review.source import ReviewSource, SourceImage
from microplastics.review.statistics import model_quality
from microplastics.runs.images import InputImage, RunImage, RunOptions
from microplastics.runs.run import Run, measure_image
from microplastics.structures.particles import Particles
from microplastics.utils.io import write_json
from microplastics.writers.coco import categories
from microplastics.writers.registry import ANNOTATIONS_FILE
from microplastics.writers.tables import write_csv

if TYPE_CHECKING:
    from microplastics.review.session import Particle, Review, ReviewImage

DECISIONS_FILE, QUALITY_FILE = "decisions.csv", "model_quality.csv"

# Of run.json, by which runs are told apart when they are merged, and models in reports.
_ABOUT_MODEL = ("checkpoint", "checkpoint_sha256", "score_thresholds", "mask_threshold")
_ABOUT_MODEL += ("precision", "join", "max_overlap", "min_score", "score_thresholds_from")
_ABOUT_MODEL += ("min_size_test", "max_size_test", "tiling", "training")


def export(
    review: "Review",
    every: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> Path:
    """Write the corrected files beside the log, in place of those of an earlier export.

    The tables, and every other file of a run, are made as ``microplastics measure`` makes them, of
    all particles that are not rejected on all images. ``annotations.json`` has the finished images.

    Args:
        review: as it is now; it may go on meanwhile.
        every: unfinished images in annotations.json, too.
        progress: is told as it goes on: how many steps are done, of how many, and which is next.

    Returns:
        the folder.

    Raises:
        UserError: a file cannot be written, or a table that the run's options name is gone.
    """
    images = review.images
    state = {image.name: review.particles(image.name) for image in images}
    version, classes, output = review.version, review.classes, review.output
    steps = len(images) + 3
    progress(0, steps, "sizes")
    decisions, quality = review.table(every=True), model_quality(review)
    about = {
        **{key: review.source.record[key] for key in _ABOUT_MODEL if key in review.source.record},
        "reviewed": str(review.source.path.absolute()),
        "review": {
            "version": version,
            "sha256": review.source.fingerprint,
            "reviewers": sorted({e.reviewer for own in state.values() for e in own} - {""}),
            "finished_images": sum(image.finished for image in images),
            "states": pd.Series([e.state for own in state.values() for e in own], dtype=str)
            .value_counts()
            .to_dict(),
        },
    }
    run = _run(review.source, output, classes, about)
    for number, image in enumerate(tqdm(run.begin(), desc="Images", unit="image", disable=None), 1):
        progress(number, steps, f"image {number} of {len(images)}")
        with run.attempt(image):
            measure_image(image, lambda name=image.name: (_counting(review, name, state), {}), run)
    progress(steps - 2, steps, "tables and annotations")
    run.end()
    write_csv(decisions, output / DECISIONS_FILE)
    write_csv(quality, output / QUALITY_FILE)
    kept = [image for image in images if every or image.finished]
    if kept:
        fibers = list(filter(review.source.is_fiber, classes))
        data = annotations([(image, state[image.name]) for image in kept], classes, fibers)
        write_json(output / ANNOTATIONS_FILE, data)
    progress(steps - 1, steps, "report")
    after_run(output, wanted=True)
    return output


def _run(source: ReviewSource, output: Path, classes: Sequence[str], about: dict[str, Any]) -> Run:
    # Scales are known; annotations.json is the review's own.
    formats = tuple(name for name in source.options.formats if name != "coco")
    options = dataclasses.replace(
        source.options,
        output=str(output),
        formats=formats,
        um_per_px=None,
        calibration=None,
        scale_bar_um=None,
        scale_bar="ignore",
        fiber_classes=None,
        resume=False,
        overwrite=True,
    )
    images = [InputImage(image.path, image.name) for image in source.images]
    fibers = list(filter(source.is_fiber, classes))
    run = Run(images, options, classes, fibers, about, {})
    run.opener = _Opener(source, options)
    return run


class _Opener:
    """Opens images with the scale and the region that the review has."""

    def __init__(self, source: ReviewSource, options: RunOptions):
        self._images = {image.name: image for image in source.images}
        self._options = options

    @contextlib.contextmanager
    def open(self, image: InputImage, size: tuple[int, int]) -> Iterator[RunImage]:
        known, options = self._images[image.name], self._options
        with contextlib.ExitStack() as stack:
            reader = None
            if known.path:
                reader = stack.enter_context(
                    open_reader(
                        known.path, max_pixels=options.max_pixels, allow_large=options.allow_large
                    )
                )
            yield RunImage(image, reader, known.calibration, [], [], known.region)


def _counting(review: "Review", name: str, state: dict[str, list["Particle"]]) -> Particles:
    """The particles of an image that are in the tables."""
    image: SourceImage = next(each for each in review.source.images if each.name == name)
    kept = [each for each in state[name] if each.counts]
    return Particles(
        name,
        (image.height, image.width),
        [each.mask for each in kept],
        np.array([each.offset for each in kept], dtype=np.int64).reshape(-1, 2),
        [each.class_name for each in kept],
        np.array([each.score for each in kept], dtype=np.float64),
        np.array([each.id for each in kept], dtype=np.int64),
    )


def annotations(
    images: Sequence[tuple["ReviewImage", Sequence["Particle"]]],
    classes: Sequence[str],
    fiber_classes: Collection[str] = (),
) -> dict[str, Any]:
    """Make a COCO data set of reviewed images.

    Args:
        images: each with its particles.
        classes: names in the order of their category ids, from 1.
        fiber_classes: those of them that are measured along their centreline.

    Returns:
        COCO with further fields: of images ``finished``, ``reviewer``, ``time``, ``um_per_px`` and
        ``calibration_source``; of annotations ``particle``, ``state``, ``origin``, ``reviewer``,
        ``time``, ``comment`` and ``score``. What is rejected is not in ``annotations``, where a
        training would take it for a particle, but in the list ``rejected``.
    """
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    data: dict[str, Any] = {
        "info": {"description": f"reviewed with microplastics {__version__}"},
        "licenses": [],
        "categories": categories(classes, fiber_classes),
        "images": [],
        "annotations": [],
        "rejected": [],
    }
    for image_id, (image, particles) in enumerate(images, start=1):
        data["images"].append(_image_entry(image, image_id))
        for each in particles:
            if each.state != "replaced":
                entries = data["annotations" if each.counts else "rejected"]
                entry = {"id": len(entries) + 1, "image_id": image_id}
                entries.append({**entry, **_entry(each, numbers[each.class_name])})
    return data


def _image_entry(image: "ReviewImage", image_id: int) -> dict[str, Any]:
    entry = {"id": image_id, "file_name": image.name}
    entry.update(width=image.width, height=image.height, finished=image.finished)
    if image.finished:
        entry.update(reviewer=image.reviewer, time=image.time)
    if image.calibration is not None:
        scale = image.calibration
        entry.update(um_per_px=scale.um_per_px, calibration_source=scale.source)
    return entry


def _entry(particle: "Particle", category: int) -> dict[str, Any]:
    rings = mask_to_polygons(particle.mask, particle.offset)
    entry = {
        "category_id": category,
        "bbox": list(particle.box),
        "area": int(np.count_nonzero(particle.mask)),
        "segmentation": [ring.astype(int).ravel().tolist() for ring in rings],
        "iscrowd": 0,
        "particle": particle.id,
        "state": particle.state,
        "origin": particle.origin,
    }
    for name in ("reviewer", "time", "comment"):
        if getattr(particle, name):
            entry[name] = getattr(particle, name)
    if math.isfinite(particle.score):
        entry["score"] = particle.score
    return entry
