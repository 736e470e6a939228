"""Images and particles of a review as the plain values that its page shows."""

import math
import threading
from collections import Counter
from collections.abc import Collection
from typing import Any

import cv2
import numpy as np

from microplastics.evaluation.errors import MEANINGS, OUTCOMES
from microplastics.inference.stitching.matching import pieces
from microplastics.review.session import REPLACED, Particle, Review, ReviewImage
from microplastics.structures.view import View
from microplastics.visualization.galleries import OUTCOME_COLORS

# px between an outline along the pixels' edges and the one that is shown: it hides the stairs.
_TOLERANCE = 0.75
_SIZES = ("feret_max", "feret_min", "length", "width", "equivalent_diameter", "perimeter")


class Records:
    """Records of the images and particles of a review; unchanged ones are made once."""

    def __init__(self, review: Review):
        """Begin with none."""
        self._review = review
        self._known: dict[tuple[str, int], tuple[Particle, dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._thresholds = review.source.thresholds
        self._outcomes = review.source.outcomes

    def outcomes(self) -> list[dict[str, str]]:
        """Describe the outcomes of predictions beside annotations; empty for all else."""
        return [
            {
                "name": name,
                "color": "#{:02x}{:02x}{:02x}".format(*OUTCOME_COLORS[name]),
                "meaning": MEANINGS[name],
            }
            for name in (OUTCOMES if self._outcomes else ())
        ]

    def image(self, image: ReviewImage) -> dict[str, Any]:
        """Describe an image, with its particles counted by state."""
        shown = [each.state for each in self._review.particles(image.name)]
        outcomes = [each.outcome for each in self._outcomes.get(image.name, {}).values()]
        return {
            "name": image.name,
            "width": image.width,
            "height": image.height,
            "scale": image.um_per_px,
            "scaleSource": image.calibration.source if image.calibration else "",
            "photograph": bool(image.path),
            "finished": image.finished,
            "counts": Counter(shown),
            "outcomes": Counter(filter(None, outcomes)),
        }

    def particles(self, name: str, ids: Collection[int] | None = None) -> list[dict[str, Any]]:
        """Describe particles of an image, all of them if ``ids`` is None.

        Those that are replaced or gone have only their number and ``"state": "gone"``.
        """
        there = {each.id: each for each in self._review.particles(name)}
        if ids is not None:
            there = {id_: there.get(id_) for id_ in ids}
        shown = {i: each for i, each in there.items() if each and each.state != REPLACED}
        gone = [{"id": id_, "state": "gone"} for id_ in there if id_ not in shown]
        with self._lock:
            new = [
                each
                for id_, each in shown.items()
                if self._known.get((name, id_), (None,))[0] is not each
            ]
            if new:
                rows = self._review.sizes(name, new).to_dict("records")
                for each, row in zip(new, rows, strict=True):
                    outcome = self._outcomes.get(name, {}).get(each.id)
                    record = self._record(each, row) | (vars(outcome) if outcome else {})
                    self._known[name, each.id] = each, record
            records = [self._known[name, id_][1] for id_ in shown]
        return records + ([] if ids is None else gone)

    def _record(self, particle: Particle, row: dict[str, Any]) -> dict[str, Any]:
        unit = "um" if "area_um2" in row and row["area_um2"] == row["area_um2"] else "px"
        score = None if math.isnan(particle.score) else particle.score
        threshold = self._thresholds.get(particle.given_class or particle.class_name, 0.5)
        return {
            "id": particle.id,
            "class": particle.class_name,
            "score": score,
            "state": particle.state,
            "origin": particle.origin,
            "changed": particle.changed,
            "reviewer": particle.reviewer,
            "time": particle.time,
            "comment": particle.comment,
            "box": particle.box,
            "outline": _shown(particle),
            "inside": bool(row["inside"]),
            "edge": bool(row["touches_edge"]),
            "pieces": len(pieces(View(particle.mask, 0, 0), connectivity=8)),
            "doubt": None if score is None else abs(score - threshold),
            "sizeClass": row.get("size_class") or "",
            "area": _number(row["area_um2"] if unit == "um" else row["area_px"]),
            **{name: _number(row[f"{name}_{unit}"]) for name in _SIZES},
        }


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _shown(particle: Particle) -> list[list[list[float]]]:
    """Polygons of rings as flat lists x, y, x, y, …"""
    return [
        [_smooth(np.array(ring, np.float32)).ravel().tolist() for ring in rings]
        for rings in particle.polygons()
    ]


def _smooth(ring: np.ndarray) -> np.ndarray:
    found = cv2.approxPolyDP(ring, _TOLERANCE, True)[:, 0]
    return found if len(found) > 2 else ring
