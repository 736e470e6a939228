"""Counting findings by code, with the first few places of each."""

import os
from collections.abc import Callable
from typing import Any

from microplastics.data.coco_check import is_box
from microplastics.data.coco_entries import is_safe_name
from microplastics.data.coco_findings import Findings, Place, show
from microplastics.data.doctor.codes import CODES
from microplastics.data.doctor.diagnosis import EXAMPLES, INFO, PROBLEM, WARNING, Example, Finding

_RANK = {PROBLEM: 0, WARNING: 1, INFO: 2}


class Collector:
    """Collects findings over all files of a diagnosis."""

    def __init__(self) -> None:
        self._findings: dict[str, Finding] = {}

    def add(self, code: str, example: Callable[[], Example], count: int = 1) -> None:
        """Count a finding.

        Args:
            code: one of ``codes.CODES``.
            example: makes the place; called for the first few alone.
            count: how many this one stands for.
        """
        finding = self._findings.get(code)
        if finding is None:
            kind = CODES[code]
            finding = self._findings[code] = Finding(
                code, kind.severity, kind.what, kind.consequence, kind.mend, fixable=kind.fixable
            )
        finding.count += count
        if len(finding.examples) < EXAMPLES:
            finding.examples.append(example())

    def add_checked(self, findings: Findings, json_file: str, image_root: str) -> None:
        """Take over what the check before training found in the JSON of a file."""
        for code, finding in {**findings.errors, **findings.warnings}.items():
            for place, detail in finding.places:
                self.add(code, lambda p=place, d=detail: at_place(p, d, json_file, image_root))
            if finding.count > len(finding.places):
                self._findings[code].count += finding.count - len(finding.places)

    def describe(self, code: str, words: str) -> None:
        """Add words, such as a share, to what was found; nothing where it was not found."""
        if code in self._findings:
            self._findings[code].what += f" ({words})"

    def findings(self) -> list[Finding]:
        """All findings, worst first, then by how often."""
        return sort_findings(list(self._findings.values()))


def sort_findings(findings: list[Finding]) -> list[Finding]:
    """Sort: problems before warnings before what is merely good to know, then by count."""
    return sorted(findings, key=lambda finding: (_RANK[finding.severity], -finding.count))


def at_place(place: Place, detail: str, json_file: str, image_root: str) -> Example:
    """Make the example of a place in a JSON.

    Args:
        place: where.
        detail: words, or "".
        json_file: the annotation file.
        image_root: its image folder.
    """
    entry = place.entry if isinstance(place.entry, dict) else {}
    image = place.image if place.kind == "annotation" else entry if place.kind == "image" else None
    box = entry.get("bbox")
    id_ = entry.get("id")
    annotation = place.kind == "annotation"
    return Example(
        text=f"{place}{f' ({detail})' if detail else ''}",
        json_file=json_file,
        image=image_path(image, image_root),
        box=tuple(box) if annotation and is_box(box) else None,
        annotation_id=id_ if annotation and type(id_) is int else None,
    )


def at_image(image: dict[str, Any], detail: str, json_file: str, image_root: str) -> Example:
    """Make the example of an image of a JSON, as ``coco_check`` gives it."""
    text = f"image {image['id']} ({show(image['file_name'])}){f' ({detail})' if detail else ''}"
    return Example(text, json_file, image_path(image, image_root))


def image_path(image: dict[str, Any] | None, image_root: str) -> str:
    """Path of an image of a JSON on the disk, or "" for one that must not be opened."""
    if image is None or not is_safe_name(image.get("file_name")):
        return ""
    return os.path.join(image_root, image["file_name"])
