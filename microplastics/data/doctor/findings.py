"""Findings of the data set doctor.

``codes.csv`` beside this module is the single table of their codes and words; after a change,
:func:`update_docs` writes it into docs/doctor.md.
"""

import csv
import os
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from microplastics.data.coco import Findings, Place, is_box, is_safe_name

PROBLEM, WARNING, INFO = SEVERITIES = ("problem", "warning", "info")
EXAMPLES = 5

_HEADINGS = {
    PROBLEM: "PROBLEMS: training stops or learns wrong things",
    WARNING: "WARNINGS: training will run, but check that this is intended",
    INFO: "GOOD TO KNOW",
}
_WIDTH = 100
_TABLE_HEAD = (
    "| code | severity | what is counted | effect on training | what to do | `--fix` |\n"
    "|---|---|---|---|---|---|\n"
)
_TABLE_MARKS = "<!-- generated from microplastics/data/doctor/codes.csv -->\n", "<!-- end -->\n"

# Kinds of change that ``--fix`` makes.
CHANGES = {
    "image_dropped": "images left out",
    "annotation_dropped": "annotations left out",
    "category_dropped": "placeholder categories left out",
    "polygon_dropped": "polygons or parts of them left out",
    "polygon_fixed": "polygons made valid",
    "polygon_clipped": "polygons clipped to the image",
    "points_removed": "polygons with repeated points removed",
    "bbox": "boxes computed from the mask",
    "area": "areas computed from the mask",
    "iscrowd": "missing iscrowd set to 0",
    "id": "annotations given a new id",
}


@dataclass
class Example:
    """One place where a finding holds.

    Attributes:
        text: the place and its detail in words.
        json_file: the annotation file, or "".
        image: path of the image file, or "".
        box: x, y, width, height in px of the place in the image, or None for the whole image.
        annotation_id: of the annotation, or None.
        other_image: path of the second image of a pair, or "".
        other_box: box of a second particle, such as one that overlaps, or None.
    """

    text: str
    json_file: str = ""
    image: str = ""
    box: tuple[float, float, float, float] | None = None
    annotation_id: int | None = None
    other_image: str = ""
    other_box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Finding:
    """One kind of finding.

    Attributes:
        code: its short name, a key of ``CODES``.
        severity: ``"problem"`` (exit code 1), ``"warning"`` or ``"info"``.
        what: what is wrong, in words that follow a number.
        consequence: its effect on training.
        fix: what to do about it.
        fixable: ``--fix`` does it.
        count: number of places.
        examples: at most five places.
    """

    code: str
    severity: str
    what: str
    consequence: str
    fix: str
    fixable: bool = False
    count: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass
class DatasetSummary:
    """Figures of one annotation file.

    Attributes:
        json_file: the annotation file.
        image_root: its image folder.
        num_images: images in the JSON.
        num_annotations: measurable annotations of a class of the file.
        classes: class name -> number of annotations.
        blanks: images without annotations.
        particles_per_image: number of these annotations in each image, by ascending id.
        class_of: class name of each measured annotation.
        size_px: square root of the mask area of each, in px.
        long_side_px: longer side of its box, in px.
        aspect_ratio: longer divided by shorter side of the mask's minimum-area rectangle; a side
            counts as at least 1 px.
        um_per_px: scale of the image of each (``um_per_px`` of its entry), or None if unknown.
        unusable_images: ``file_name`` of every image that is missing or cannot be read.
    """

    json_file: str
    image_root: str
    num_images: int = 0
    num_annotations: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    blanks: int = 0
    particles_per_image: list[int] = field(default_factory=list)
    class_of: list[str] = field(default_factory=list)
    size_px: list[float] = field(default_factory=list)
    long_side_px: list[float] = field(default_factory=list)
    aspect_ratio: list[float] = field(default_factory=list)
    um_per_px: list[float | None] = field(default_factory=list)
    unusable_images: list[str] = field(default_factory=list)


@dataclass
class ModelFit:
    """How well a model of a given config can see the particles.

    Attributes:
        config_file: the config.
        no_anchor: class name (and ``"all"``) -> fraction of boxes that no anchor matches at IoU
            0.5 after the resize of INPUT.MIN_SIZE_TEST; recall at IoU 0.5 without box regression
            is at most 1 minus this fraction.
        small: class name (and ``"all"``) -> fraction of particles whose mask is under 4 px wide
            after the resize.
        mask_iou: class name (and ``"all"``) -> mask side M -> mean IoU of the true masks with
            themselves after an M x M crop and back.
        mask_size: the M of the config's mask head.
        sampled: particles whose masks were measured; all boxes are compared with the anchors.
    """

    config_file: str
    no_anchor: dict[str, float] = field(default_factory=dict)
    small: dict[str, float] = field(default_factory=dict)
    mask_iou: dict[str, dict[int, float]] = field(default_factory=dict)
    mask_size: int = 28
    sampled: int = 0


@dataclass
class Diagnosis:
    """All findings, the worst first and then the most frequent, and the figures."""

    datasets: list[DatasetSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    model_fit: ModelFit | None = None

    def __post_init__(self) -> None:
        """Sort the findings."""
        self.findings = sorted(
            self.findings, key=lambda found: (SEVERITIES.index(found.severity), -found.count)
        )

    @property
    def has_problems(self) -> bool:
        """Whether the exit code is 1."""
        return any(finding.severity == PROBLEM for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for report.json."""
        return asdict(self)


def _read_codes() -> dict[str, list[Finding]]:
    """Read the findings of codes.csv, by heading of docs/doctor.md."""
    sections: dict[str, list[Finding]] = {}
    with open(Path(__file__).with_name("codes.csv"), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            section, fixable = row.pop("section"), row.pop("fixable") == "yes"
            sections.setdefault(section, []).append(Finding(**row, fixable=fixable))
    return sections


SECTIONS = _read_codes()
CODES = {finding.code: finding for section in SECTIONS.values() for finding in section}


@dataclass
class Fixed:
    """Result of ``--fix`` for one annotation file.

    Attributes:
        json_file: the annotation file.
        output: its fixed copy, or "" if it cannot be fixed.
        changes_file: the list of changes.
        counts: kind of change (``CHANGES``) -> number.
        reason: why it cannot be fixed, or "".
    """

    json_file: str
    output: str = ""
    changes_file: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    reason: str = ""


class Collector:
    """Counts findings by code over all files of a diagnosis."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[Example]] = {}
        self._details: dict[str, str] = {}

    def add(self, code: str, make: Callable[..., Example], *args: Any) -> None:
        """Count one place.

        Args:
            code: a key of ``CODES``.
            make: makes the example of the place from ``args``; called for the first few only.
            args: its arguments.
        """
        self._counts[code] += 1
        examples = self._examples.setdefault(code, [])
        if len(examples) < EXAMPLES:
            examples.append(make(*args))

    def add_checked(self, findings: Findings, data: DatasetSummary) -> None:
        """Add the findings of the check before training."""
        for code, finding in {**findings.errors, **findings.warnings}.items():
            for place, detail in finding.places:
                self.add(code, example_at, place, detail, data)
            self._counts[code] += finding.count - len(finding.places)

    def describe(self, code: str, words: str) -> None:
        """Add words to the description of a finding, if it occurs."""
        self._details[code] = f" ({words})"

    def findings(self) -> list[Finding]:
        """Return the findings so far."""
        return [
            replace(
                CODES[code],
                what=CODES[code].what + self._details.get(code, ""),
                count=count,
                examples=self._examples[code],
            )
            for code, count in self._counts.items()
        ]


def example_at(place: Place, detail: str, data: DatasetSummary) -> Example:
    """Make the example of a place in a JSON.

    Args:
        place: the image, category or annotation.
        detail: words, or "".
        data: the annotation file.
    """
    entry = place.entry if isinstance(place.entry, dict) else {}
    annotation = place.kind == "annotation"
    image = place.image if annotation else entry if place.kind == "image" else None
    safe = image is not None and is_safe_name(image.get("file_name"))
    box, id_ = entry.get("bbox"), entry.get("id")
    return Example(
        text=f"{place}{f' ({detail})' if detail else ''}",
        json_file=data.json_file,
        image=os.path.join(data.image_root, image["file_name"]) if safe else "",
        box=tuple(box) if annotation and is_box(box) else None,
        annotation_id=id_ if annotation and type(id_) is int else None,
    )


def example_image(image: dict[str, Any], detail: str, data: DatasetSummary) -> Example:
    """Make the example of a checked image; see :func:`example_at`."""
    return example_at(Place("image", 0, image), detail, data)


def describe(diagnosis: Diagnosis) -> str:
    """Describe a diagnosis for the terminal, the worst first."""
    lines = []
    for data in diagnosis.datasets:
        classes = ", ".join(f"{name} {count}" for name, count in data.classes.items())
        lines.append(
            f"{data.json_file}: {data.num_images} images ({data.blanks} blank), "
            f"{data.num_annotations} annotations{f' ({classes})' if classes else ''}"
        )
    kinds = []
    for severity, word in zip(SEVERITIES, ("problems", "warnings", "notes"), strict=True):
        found = [finding for finding in diagnosis.findings if finding.severity == severity]
        kinds.append(f"{word} {len(found)}")
        if found:
            lines += ["", _HEADINGS[severity]]
        for finding in found:
            lines += _finding_lines(finding)
    if diagnosis.model_fit:
        lines += ["", *_fit_lines(diagnosis.model_fit)]
    lines += ["", f"Kinds found: {', '.join(kinds)}."]
    fixable = sum(finding.fixable for finding in diagnosis.findings)
    if fixable:
        lines[-1] += f" --fix repairs {fixable} of them."
    return "\n".join(lines)


def describe_fixed(fixed: list[Fixed]) -> str:
    """Describe the changes of ``--fix`` for the terminal."""
    lines = []
    for one in fixed:
        if one.reason:
            lines.append(f"Not fixed: {one.reason}")
            continue
        lines.append(f"Fixed copy of {one.json_file}: {one.output}")
        lines += [f"  {count} x {CHANGES[kind]}" for kind, count in one.counts.items()]
        lines.append(f"  every change: {one.changes_file}" if one.counts else "  nothing to change")
    return "\n".join(lines)


def update_docs(page: str | os.PathLike) -> None:
    """Write the table of codes into docs/doctor.md, between its two comments."""
    tables = []
    for heading, findings in SECTIONS.items():
        rows = (
            f"| `{f.code}` | {f.severity} | {f.what} | {f.consequence} | {f.fix} "
            f"| {'yes' if f.fixable else ''} |\n"
            for f in findings
        )
        tables.append(f"\n### {heading}\n\n{_TABLE_HEAD}{''.join(rows)}")
    start, end = _TABLE_MARKS
    before, _, rest = Path(page).read_text(encoding="utf-8").partition(start)
    after = rest.partition(end)[2]
    text = f"{before}{start}{''.join(tables)}\n{end}{after}"
    Path(page).write_text(text, encoding="utf-8")


def _finding_lines(finding: Finding) -> list[str]:
    fixable = " (--fix)" if finding.fixable else ""
    lines = [f"  {finding.count} x {finding.what}  [{finding.code}]"]
    lines += _wrapped(f"{finding.consequence} {finding.fix}{fixable}", "      ")
    for example in finding.examples:
        lines += _wrapped(f"- {example.text}", "      ", "        ")
    if finding.count > len(finding.examples):
        lines.append(f"      - and {finding.count - len(finding.examples)} more")
    return lines


def _wrapped(words: str, indent: str, following: str | None = None) -> list[str]:
    return textwrap.wrap(
        words,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=following or indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _fit_lines(fit: ModelFit) -> list[str]:
    lines = [f"WHAT THE MODEL OF {fit.config_file} CAN SEE ({fit.sampled} particles measured)"]
    for name, fraction in fit.no_anchor.items():
        ious = ", ".join(
            f"{size} px: {iou:.2f}" for size, iou in fit.mask_iou.get(name, {}).items()
        )
        lines.append(
            f"  {name}: no anchor for {fraction:.0%}, under 4 px wide {fit.small[name]:.0%}"
            f"{f', mean IoU of masks through a head of {ious}' if ious else ''}"
        )
    return lines
