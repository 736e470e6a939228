"""Whether two sides found the same particles, where their arithmetic differs in the last places."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util

from benchmarks.agreement import Check
from microplastics.data.coco import coco_api
from microplastics.evaluation.coco import precisions, summarize

# Least IoU of boxes that are one detection.
_SAME = 0.5
# Least IoU of the masks of one detection, and the share of detections that must reach it and be in
# pairs: ties at the cap, and pixels of a random network's masks whose probability is 0.5, fall
# either way.
_ALIKE, _MOST = 0.95, 0.99


@dataclasses.dataclass(frozen=True)
class Difference:
    """How the detections of one side differ from those of the reference.

    Attributes:
        counts: detections of this side and of the reference.
        matched: pairs of the same image and class whose boxes agree, each detection in one.
        box: largest difference of a pair's box coordinates, in px.
        score: largest difference of a pair's scores.
        alike: pairs whose masks agree.
        mask_iou: smallest IoU of a pair's masks; 1 where there are none.
    """

    counts: tuple[int, int]
    matched: int
    box: float
    score: float
    alike: int
    mask_iou: float

    def __str__(self) -> str:
        return (
            f"{self.counts[0]} and {self.counts[1]} detections, {self.matched} in pairs, boxes "
            f"within {self.box:.2g} px, scores within {self.score:.2g}, mask IoU from "
            f"{self.mask_iou:.4f}"
        )


def difference(ours: Sequence[dict], theirs: Sequence[dict]) -> Difference:
    """Pair COCO results by image, class and box, best score first, and compare the pairs.

    Args:
        ours: results of one side.
        theirs: those of the reference.
    """
    groups: dict[tuple, tuple[list, list]] = defaultdict(lambda: ([], []))
    for side, results in enumerate((ours, theirs)):
        for result in results:
            groups[result["image_id"], result["category_id"]][side].append(result)
    pairs = [pair for group in groups.values() for pair in _pairs(*group)]
    box = [np.abs(np.subtract(own["bbox"], other["bbox"])).max() for own, other in pairs]
    score = [abs(own["score"] - other["score"]) for own, other in pairs]
    masks = [
        float(mask_util.iou([own["segmentation"]], [other["segmentation"]], [0])[0, 0])
        for own, other in pairs
        if "segmentation" in own and own["segmentation"] != other["segmentation"]
    ]
    return Difference(
        (len(ours), len(theirs)),
        len(pairs),
        float(max(box, default=0.0)),
        float(max(score, default=0.0)),
        len(pairs) - sum(iou < _ALIKE for iou in masks),
        min(masks, default=1.0),
    )


def _pairs(ours: list[dict], theirs: list[dict]) -> list[tuple[dict, dict]]:
    if not ours or not theirs:
        return []
    boxes = [np.array([r["bbox"] for r in side], dtype=np.float64) for side in (ours, theirs)]
    ious = np.asarray(mask_util.iou(*boxes, [0] * len(theirs)))
    pairs = []
    for index in np.argsort([-result["score"] for result in ours], kind="stable"):
        best = int(ious[index].argmax())
        if ious[index, best] >= _SAME:
            pairs.append((ours[index], theirs[best]))
            ious[:, best] = -1
    return pairs


def check_same(ours: Sequence[dict], theirs: Sequence[dict], what: str) -> Check:
    """Whether two sides in fp32 found the same: 99 of 100 detections, the rest are ties.

    Args:
        ours: COCO results of one side.
        theirs: those of the reference.
        what: is compared, for the report.
    """
    found = difference(ours, theirs)
    agrees = found.alike >= _MOST * max(found.counts) and found.box <= 0.1 and found.score <= 1e-3
    return Check(what, agrees, str(found))


def average_precision(
    results: Sequence[dict], json_file: str, cap: int, images: Sequence[int]
) -> dict[str, float]:
    """Box and mask AP, in percent, against the truth of a data set."""
    truth = coco_api(json_file)
    found = {}
    for task in ("bbox", "segm"):
        precision = precisions(truth, list(results), task, cap, images)
        found[task] = summarize(precision, sorted(truth.cats))["AP"]
    return found
