"""COCO evaluation, ours against pycocotools, at any cap on the detections."""

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.agreement import Check
from benchmarks.setting import machine, require_positive
from benchmarks.timing import Measurement, Report, alternate, timed
from microplastics.evaluation.coco import coco_evaluation

PYCOCOTOOLS, OURS = "pycocotools", "ours"
TARGETS = {"bbox": 1 / 15, "segm": 1 / 6}
_SIZE, _CORNERS, _CLASSES = 512, 24, 3


def benchmark(
    *,
    images: int = 500,
    true: int = 40,
    caps: tuple[int, ...] = (100, 400),
    repeat: int = 2,
    seed: int = 0,
) -> Report:
    """Measure box and mask AP of as many predictions an image as the cap allows.

    "evaluate + accumulate" is the arithmetic; "results to figures" begins at the list of result
    dicts and ends at the summary. Reading and indexing the ground truth is in neither.

    Args:
        images: number of images of 512 px.
        true: annotated particles in each.
        caps: caps on the detections of an image and category.
        repeat: turns of each.
        seed: of the particles.

    Raises:
        UserError: a number is not positive.
    """
    require_positive(images=images, true=true, caps=min(caps), repeat=repeat)
    settings = machine()
    settings["Data"] = f"{images} images, {true} true particles and as many predicted as the cap"
    report = Report(settings)
    for cap in caps:
        dataset, results = make_data(images, true, cap, seed)
        truth = COCO()
        truth.dataset = dataset
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
        for task in TARGETS:
            _one_task(truth, results, task, cap, repeat, report)
    return report


def _one_task(
    truth: COCO, results: list[dict], task: str, cap: int, repeat: int, report: Report
) -> None:
    arrays: dict[str, tuple] = {}

    def pycocotools() -> dict[str, float]:
        fresh = copy.deepcopy(truth)  # its polygons become RLEs for good
        with contextlib.redirect_stdout(io.StringIO()):
            loading, evaluation = timed(lambda: _load(fresh, results, task, cap))
            core, _ = timed(lambda: (evaluation.evaluate(), evaluation.accumulate()))
            # Instead of summarize(), whose AP is -1 at other caps than 100.
            precision, recall = (evaluation.eval[key][..., 0] for key in ("precision", "recall"))
            summary, _ = timed(lambda: _summary(precision))
        arrays[PYCOCOTOOLS] = precision, recall
        return {"core": core, "whole": loading + core + summary}

    def ours() -> dict[str, float]:
        fresh = copy.deepcopy(truth)
        loading, evaluation = timed(lambda: coco_evaluation(fresh, results, task, cap))
        core, _ = timed(lambda: (evaluation.evaluate(), evaluation.accumulate()))
        precision, recall = (
            np.asarray(evaluation.eval[key])[..., 0] for key in ("precision", "recall")
        )
        summary, _ = timed(lambda: _summary(precision))
        arrays[OURS] = precision, recall
        return {"core": core, "whole": loading + core + summary}

    seconds = alternate({PYCOCOTOOLS: pycocotools, OURS: ours}, repeat)
    name = f"{'box' if task == 'bbox' else 'mask'}, {cap} predicted"
    targets = {OURS: TARGETS[task]}
    report.measurements += [
        Measurement(f"{name}: evaluate + accumulate", seconds["core"], PYCOCOTOOLS, targets),
        Measurement(f"{name}: results to figures", seconds["whole"], PYCOCOTOOLS),
    ]
    report.checks.append(_compare(arrays, f"{name}: figures"))


def _load(truth: COCO, results: list[dict], task: str, cap: int) -> COCOeval:
    # With a box in them loadRes takes results for boxes, whatever else they hold.
    drop = "bbox" if task == "segm" else "segmentation"
    kept = [{k: v for k, v in result.items() if k != drop} for result in results]
    evaluation = COCOeval(truth, truth.loadRes(kept), task)
    evaluation.params.maxDets = [cap]
    return evaluation


def _summary(precision: np.ndarray) -> float:
    precision = precision[..., 0]
    return float(precision[precision > -1].mean())


def _compare(arrays: dict[str, tuple], what: str) -> Check:
    """The whole arrays of precision and recall, of which every figure is a mean."""
    difference = max(
        float(np.abs(own - other).max()) if own.shape == other.shape else float("inf")
        for own, other in zip(arrays[OURS], arrays[PYCOCOTOOLS], strict=True)
    )
    precision = arrays[OURS][0][..., 0]
    ap = 100 * precision[precision > -1].mean()
    detail = f"AP {ap:.2f}, precision and recall differ by at most {difference:.1g}"
    return Check(what, difference < 1e-12, detail)


def make_data(
    images: int, true: int, predicted: int, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Particles as blobs of 24 corners in three classes, and predictions of them.

    The predictions are the truths moved and drawn anew, at most twice each, and then noise.

    Returns:
        A COCO data set with polygons, and COCO results with boxes and RLEs.
    """
    rng = np.random.default_rng(seed)
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(_CLASSES)]
    dataset: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    results = []
    for image in range(1, images + 1):
        dataset["images"].append(
            {"id": image, "width": _SIZE, "height": _SIZE, "file_name": f"{image}.png"}
        )
        centers = rng.uniform(20, _SIZE - 20, (true, 2))
        radii = rng.uniform(3, 40, true)
        classes = rng.integers(1, _CLASSES + 1, true)
        for polygon, rle, box, category in _blobs(rng, centers, radii, classes):
            dataset["annotations"].append(
                {
                    "id": len(dataset["annotations"]) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "segmentation": [polygon],
                    "area": float(mask_util.area(rle)),
                    "iscrowd": 0,
                }
            )
        which = np.arange(predicted) % true
        noise = np.arange(predicted) >= 2 * true
        moved = centers[which] + rng.normal(0, 2, (predicted, 2))
        moved[noise] = rng.uniform(20, _SIZE - 20, (noise.sum(), 2))
        guessed = np.where(noise, rng.integers(1, _CLASSES + 1, predicted), classes[which])
        for _, rle, box, category in _blobs(rng, moved, radii[which], guessed):
            results.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "score": float(rng.random()),
                    "bbox": box,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    return dataset, results


def _blobs(rng: np.random.Generator, centers, radii, classes):
    """Polygon, RLE, box and class of each blob."""
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    waves = 1 + 0.25 * rng.standard_normal((len(centers), _CORNERS, 1))
    outlines = (centers[:, None] + radii[:, None, None] * circle * waves).clip(0, _SIZE)
    for outline, category in zip(outlines, classes.tolist(), strict=True):
        polygon = outline.ravel().tolist()
        rle = mask_util.frPyObjects([polygon], _SIZE, _SIZE)[0]
        low, high = outline.min(axis=0), outline.max(axis=0)
        yield polygon, rle, [*low.tolist(), *(high - low).tolist()], category
