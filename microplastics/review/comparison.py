"""Predictions beside annotations: what became of each particle, the worst images first."""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog

from microplastics.data.catalog import resolve_datasets
from microplastics.data.coco import load_instances
from microplastics.engine.scoring import ABOUT_FILE
from microplastics.evaluation.coco import RESULTS_FILE
from microplastics.evaluation.errors import CORRECT, IGNORED, OUTCOMES, ErrorRecord, error_record
from microplastics.modeling.postprocessing import distinct
from microplastics.report.evaluation import read_about
from microplastics.review.source import ReviewSource, SourceImage, open_source
from microplastics.roi.region import Region
from microplastics.runs.images import printable, read_masks
from microplastics.runs.store import RUN_FILE
from microplastics.structures.crop_masks import CropMasks
from microplastics.structures.particles import Particles
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json

_CORRECT, _IGNORED = OUTCOMES[CORRECT], OUTCOMES[IGNORED]
_MISSED, _LOCALISATION = "missed", "localisation"
_MIN_SCORE, _MAX_OVERLAP = 0.5, 0.5  # of results that nothing is known about, as in evaluation


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a detection or of a true particle.

    Attributes:
        label: what it is called, such as "Detection 3".
        outcome: of :data:`microplastics.evaluation.errors.OUTCOMES`; "" for a true particle that
            a detection is about.
        partner: number, on the page, of the true particle that a detection is about.
        true_class: its class; "" without one.
        iou: with it; None without one.
        disagreement: from 0 to 1: of a missed particle 1; where only the outline differs
            1 - IoU; of all other errors the score, since certainty makes an error worse.
        rank: place on the image from the largest disagreement down; of equals the larger first.
    """

    label: str
    outcome: str = ""
    partner: int | None = None
    true_class: str = ""
    iou: float | None = None
    disagreement: float = 0.0
    rank: int = 0

    @property
    def is_true(self) -> bool:
        """Whether it is of a true particle, not of a detection."""
        return self.outcome in ("", _MISSED)


class _Predictions(NamedTuple):
    """Predicted particles and region of interest of each image by its name; which of them count."""

    images: dict[str, tuple[Particles, Region | None]]
    thresholds: Mapping[str, float]
    min_score: float
    max_overlap: float


def open_comparison(
    dataset: str | None, predictions: str | os.PathLike, min_score: float | None = None
) -> tuple[ReviewSource, list[str]]:
    """Open annotations and predictions of the same images, the images with most errors first.

    Args:
        dataset: registered name, or JSON:IMAGES; None for that of an evaluation.
        predictions: folder of an evaluation, ``coco_instances_results.json``, folder of
            ``microplastics predict``, or a COCO JSON with other annotations.
        min_score: least score of a detection that counts. If None, the thresholds of the
            evaluation; without one 0.5 for results, and 0 for the others.

    Returns:
        A source whose particles are those of both, with ``outcomes``; and a sentence for each
        thing that is left out.

    Raises:
        UserError: one of them cannot be used, or they do not belong together.
    """
    path = Path(predictions)
    folder = path.parent if path.name == RESULTS_FILE else path
    about = read_about(folder) if (folder / ABOUT_FILE).exists() else {}
    if dataset is None:
        if not about:
            raise UserError(
                f"{path} does not say which annotations it belongs to; give them as JSON:IMAGES.",
                code="option_missing",
            )
        dataset = f"{about['annotations']}:{about['images']}"
    data = MetadataCatalog.get(resolve_datasets(dataset)[0])
    truth = open_source(data.json_file, data.image_root)
    found = _read(path, about, data.json_file, min_score)
    pairs, messages = _pairs(truth.images, list(found.images), path)
    crowds = {
        printable(item["file_name"]): [a for a in item["annotations"] if a["iscrowd"]]
        for item in load_instances(data.json_file, "")
    }
    judged = [
        _judged(image, found, name, crowds[image.name], truth.classes) for image, name in pairs
    ]
    judged.sort(key=lambda each: _agreement(each[1]))
    outcomes = {image.name: of_image for image, of_image in judged}
    images = [image for image, _ in judged]
    particles = sum(len(image.particles) for image, _ in pairs)
    compared = sum(each.is_true for own in outcomes.values() for each in own.values())
    if compared < particles:
        left = particles - compared
        messages.append(
            f"{left} annotations are left out: outside of the run's region of interest."
        )
    return dataclasses.replace(truth, images=images, outcomes=outcomes), messages


def _read(
    path: Path, about: dict[str, Any], json_file: str, min_score: float | None
) -> _Predictions:
    if path.is_dir() and not (path / RUN_FILE).exists() and (path / RESULTS_FILE).exists():
        path = path / RESULTS_FILE
    if path.is_dir():
        run = open_source(path, needs_photographs=False)
        found = {image.name: (image.particles, image.region) for image in run.images}
        return _Predictions(found, {}, min_score or 0.0, 1.0)
    is_results = isinstance(read_json(path, (dict, list)), list)
    given, *_ = read_masks([str(path)], dataset=json_file if is_results else None)
    found = {image.name: (load()[0], None) for image, load in given}
    if not is_results:
        return _Predictions(found, {}, min_score or 0.0, 1.0)
    thresholds = about.get("score_thresholds", {}) if min_score is None else {}
    least = _MIN_SCORE if min_score is None else min_score
    return _Predictions(found, thresholds, least, about.get("max_overlap", _MAX_OVERLAP))


def _pairs(
    images: Sequence[SourceImage], found: Sequence[str], path: Path
) -> tuple[list[tuple[SourceImage, str]], list[str]]:
    """The images that predictions are there for, with their name there; what is left out.

    A run names images from the folder that it was given, which may be a deeper one: else the last
    part of the names decides, where it is the only one.
    """
    known, ends = set(found), Counter(map(os.path.basename, found))
    own_ends = Counter(os.path.basename(image.name) for image in images)
    by_end = {end: name for name in found if ends[end := os.path.basename(name)] == 1}
    pairs = []
    for image in images:
        end = os.path.basename(image.name)
        name = image.name if image.name in known else own_ends[end] == 1 and by_end.get(end)
        if name:
            pairs.append((image, name))
    if not pairs:
        raise UserError(
            f"{path} has predictions for none of the {len(images)} annotated images; give "
            "predictions and annotations of the same images.",
            code="input_empty",
        )
    paired, messages = {name for _, name in pairs}, []
    if len(pairs) < len(images):
        left = len(images) - len(pairs)
        messages.append(f"{left} annotated images are left out: {path} does not have them.")
    if without := [name for name in found if name not in paired]:
        words = "images with predictions are left out: they are not annotated, such as"
        messages.append(f"{len(without)} {words} {without[0]}.")
    return pairs, messages


def _judged(
    image: SourceImage,
    predictions: _Predictions,
    name: str,
    crowds: Sequence[dict[str, Any]],
    class_names: Sequence[str],
) -> tuple[SourceImage, dict[int, Outcome]]:
    """An image with its true particles and the detections that count, and their outcomes."""
    found, region = predictions.images[name]
    _check(image, found, class_names, name)
    number = {each: place for place, each in enumerate(class_names)}
    classes = np.array([number[each] for each in found.classes], dtype=np.int64)
    scores = np.nan_to_num(found.scores, nan=1.0)  # annotations have none
    masks = CropMasks(found.masks, found.offsets, found.image_size)
    thresholds = predictions.thresholds
    least = [thresholds.get(each, predictions.min_score) for each in found.classes]
    reached = scores >= np.array(least, dtype=np.float64)
    kept = distinct(masks, classes, scores + reached, predictions.max_overlap)
    true = _inside(image.particles, region)
    truths = CropMasks.cat(
        [
            CropMasks(true.masks, true.offsets, true.image_size),
            CropMasks.from_coco([each["segmentation"] for each in crowds], true.image_size),
        ]
    )
    true_classes = [number[each] for each in true.classes]
    errors = error_record(
        masks,
        classes,
        scores,
        truths,
        np.array([*true_classes, *(each["category_id"] for each in crowds)], dtype=np.int64),
        np.arange(len(truths)) >= len(true),
        kept[reached[kept]],
    )
    joined, outcomes = _joined(found.only(errors.detection), true, errors)
    return dataclasses.replace(image, particles=joined, region=region), outcomes


def _check(image: SourceImage, found: Particles, class_names: Sequence[str], name: str) -> None:
    if found.image_size != (image.height, image.width):
        height, width = found.image_size
        raise UserError(
            f"{name} was predicted on with {width} x {height} px, and is annotated with "
            f"{image.width} x {image.height} px; give predictions on the annotated photographs.",
            code="image_size",
        )
    if unknown := sorted({*found.classes} - {*class_names}):
        raise UserError(
            f"The class {unknown[0]} is predicted, and the annotations have "
            f"{', '.join(class_names)}; give predictions with the same classes.",
            code="classes_mismatch",
        )


def _inside(true: Particles, region: Region | None) -> Particles:
    """The true particles that a run would have counted: with their middle in its region."""
    if region is None or not len(true):
        return true
    middles = [np.argwhere(mask).mean(axis=0)[::-1] + 0.5 for mask in true.masks]
    return true.only(np.flatnonzero(region.contains(middles + true.offsets)))


def _joined(
    found: Particles, true: Particles, errors: ErrorRecord
) -> tuple[Particles, dict[int, Outcome]]:
    """True particles, then detections, numbered from 1, and the outcome of each."""
    judged, outcomes = errors.counted, []
    for number, missed in zip(true.ids.tolist(), judged.missed.tolist(), strict=True):
        outcome = _MISSED if missed else ""
        outcomes.append(Outcome(f"Annotation {number}", outcome, disagreement=float(missed)))
    for place, number in enumerate(found.ids.tolist()):
        outcome, truth = OUTCOMES[judged.outcome[place]], int(errors.truth[place])
        iou, partner = float(judged.iou[place]), {}
        if truth >= 0:
            partner = {"partner": 1 + truth, "true_class": true.classes[truth], "iou": iou}
        score = float(np.nan_to_num(found.scores[place], nan=1.0))
        disagreement = _disagreement(outcome, iou, score)
        outcomes.append(
            Outcome(f"Detection {number}", outcome, disagreement=disagreement, **partner)
        )
    masks = [*true.masks, *found.masks]
    keys = [
        (-each.disagreement, -np.count_nonzero(mask))
        for each, mask in zip(outcomes, masks, strict=True)
    ]
    ranks = np.argsort(sorted(range(len(keys)), key=keys.__getitem__)).tolist()
    joined = Particles(
        true.image,
        true.image_size,
        masks,
        np.concatenate([true.offsets, found.offsets]),
        [*true.classes, *found.classes],
        np.concatenate([true.scores, found.scores]),
        np.arange(1, len(masks) + 1),
    )
    pairs = zip(outcomes, ranks, strict=True)
    return joined, {
        number: dataclasses.replace(each, rank=rank) for number, (each, rank) in enumerate(pairs, 1)
    }


def _disagreement(outcome: str, iou: float, score: float) -> float:
    """Of a detection, as of :class:`Outcome`."""
    if outcome in (_CORRECT, _LOCALISATION):
        return 1 - iou
    return 0.0 if outcome == _IGNORED else score


def _agreement(outcomes: Mapping[int, Outcome]) -> tuple[int, float]:
    """The images with most errors come first, as in evaluation.html; then what disagrees most."""
    right = ("", _CORRECT, _IGNORED)
    errors = sum(each.outcome not in right for each in outcomes.values())
    return -errors, -sum(each.disagreement for each in outcomes.values())
