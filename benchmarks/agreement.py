"""What must be equal on both sides for a comparison of times to mean anything."""

import math
from dataclasses import dataclass
from typing import Any

from microplastics.engine.hooks import flatten_results


@dataclass(frozen=True)
class Check:
    """Something that must be equal on both sides, for a comparison of times to mean anything."""

    name: str
    agrees: bool
    detail: str


def compare_predictions(ours: list[dict], theirs: list[dict], what: str) -> Check:
    """Whether two lists of COCO results hold the same boxes and masks in the same order."""
    if len(ours) != len(theirs):
        return Check(what, False, f"{len(ours)} and {len(theirs)}")
    difference, other_masks = 0.0, 0
    for own, other in zip(ours, theirs, strict=True):
        if own["image_id"] != other["image_id"] or own["category_id"] != other["category_id"]:
            return Check(what, False, f"another class or order in image {own['image_id']}")
        pairs = zip([*own["bbox"], own["score"]], [*other["bbox"], other["score"]], strict=True)
        difference = max([difference, *(abs(a - b) for a, b in pairs)])
        other_masks += own.get("segmentation") != other.get("segmentation")
    return Check(
        what,
        difference < 1e-3 and other_masks <= len(ours) // 1000,
        f"{len(ours)}, boxes and scores differ by at most {difference:.1g}, "
        f"{other_masks} masks differ",
    )


def compare_figures(ours: dict[str, Any], theirs: dict[str, Any], what: str) -> Check:
    """Whether the figures that are in both of two nested results are equal, NaN included."""
    own, other = flatten_results(ours), flatten_results(theirs)
    names = [name for name in other if name in own]
    wrong = [name for name in names if not _same(own[name], other[name])]
    detail = f"{len(names)} figures"
    if wrong:
        detail = ", ".join(f"{name} {own[name]:.6g} and {other[name]:.6g}" for name in wrong)
    return Check(what, not wrong and bool(names), detail)


def _same(own: float, other: float) -> bool:
    return math.isclose(own, other, abs_tol=1e-6) or (math.isnan(own) and math.isnan(other))
