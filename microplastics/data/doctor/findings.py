"""Findings of the data set doctor; ``codes.csv`` has their words, as docs/doctor.md lists them."""

import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from microplastics.data import coco
from microplastics.data.coco import Findings, Place, is_box, is_safe_name

PROBLEM, WARNING, INFO = SEVERITIES = "problem", "warning", "info"
EXAMPLES = 5

_HEADINGS = {
    PROBLEM: ("problems", "PROBLEMS: training stops or learns wrong things"),
    WARNING: ("warnings", "WARNINGS: training will run, but check that this is intended"),
    INFO: ("notes", "GOOD TO KNOW"),
}
_WRAP = {"width": 100, "break_long_words": False, "break_on_hyphens": False}

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
    """One place where a finding holds; boxes are x, y, width, height in px of the image."""

    text: str  # the place and its detail in words
    json_file: str = ""
    image: str = ""  # path of the image file
    box: tuple[float, float, float, float] | None = None  # None for the whole image
    annotation_id: int | None = None
    other_image: str = ""  # path of the second image of a pair
    other_box: tuple[float, float, float, float] | None = None  # of a second particle


@dataclass
class Finding:
    """One kind of finding."""

    code: str  # a key of CODES
    severity: str  # "problem" (exit code 1), "warning" or "info"
    what: str  # what is wrong, in words that follow a number
    consequence: str  # its effect on training
    fix: str  # what to do about it
    fixable: bool = False  # --fix does it
    convertible: bool = False  # microplastics convert does it
    cause: str = ""  # code of the finding that it follows from
    count: int = 0  # number of places
    examples: list[Example] = field(default_factory=list)  # at most five


@dataclass
class DatasetSummary:
    """Figures of one annotation file; the lists of particles have one entry each."""

    json_file: str
    image_root: str
    num_images: int = 0
    num_annotations: int = 0  # measurable annotations of a class of the file
    classes: dict[str, int] = field(default_factory=dict)  # their number by class name
    blanks: int = 0  # images without annotations
    particles_per_image: list[int] = field(default_factory=list)  # by ascending id
    class_of: list[str] = field(default_factory=list)
    size_px: list[float] = field(default_factory=list)  # square root of the mask area
    long_side_px: list[float] = field(default_factory=list)  # longer side of the box
    # Longer divided by shorter side (at least 1 px) of the mask's minimum-area rectangle.
    aspect_ratio: list[float] = field(default_factory=list)
    um_per_px: list[float | None] = field(default_factory=list)  # of its image, None if unknown
    # file_name of every image that is missing or cannot be read.
    unusable_images: list[str] = field(default_factory=list)


@dataclass
class ModelFit:
    """How well a model of a given config can see the particles; by class name, and ``"all"``."""

    config_file: str
    # Fraction of boxes that no anchor matches at IoU 0.5 after the resize of INPUT.MIN_SIZE_TEST;
    # recall at IoU 0.5 without box regression is at most 1 minus this fraction.
    no_anchor: dict[str, float] = field(default_factory=dict)
    # Fraction of particles whose mask is under 4 px wide after the resize.
    small: dict[str, float] = field(default_factory=dict)
    # Mean IoU of the true masks with themselves after an M x M crop and back, by M.
    mask_iou: dict[str, dict[int, float]] = field(default_factory=dict)
    mask_size: int = 28  # M of the config's mask head
    sampled: int = 0  # particles whose masks were measured; all boxes are compared with anchors


@dataclass
class Diagnosis:
    """All findings, the worst first and then the most frequent, and the figures.

    What follows from another finding stands after it, where the worse of the two belongs.
    """

    datasets: list[DatasetSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    model_fit: ModelFit | None = None

    def __post_init__(self) -> None:
        """Sort the findings."""
        self.findings = [finding for family in families(self.findings) for finding in family]

    @property
    def has_problems(self) -> bool:
        """Whether the exit code is 1."""
        return any(finding.severity == PROBLEM for finding in self.findings)


def families(findings: list[Finding]) -> list[list[Finding]]:
    """Put findings behind what they follow from, and sort these families, the worst first."""
    codes = {finding.code for finding in findings}
    consequences: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.cause in codes:
            consequences.setdefault(finding.cause, []).append(finding)
    roots = [finding for finding in findings if finding.cause not in codes]
    found = [[root, *consequences.get(root.code, [])] for root in roots]
    return sorted(found, key=lambda family: (SEVERITIES.index(worst(family)), -family[0].count))


def worst(findings: list[Finding]) -> str:
    """Return the worst severity of some findings."""
    return min((finding.severity for finding in findings), key=SEVERITIES.index)


_FLAGS = ("fixable", "convertible")
CODES = {
    row["code"]: Finding(**row | {flag: row[flag] == "yes" for flag in _FLAGS})
    for row in coco.CODES
}


@dataclass
class Fixed:
    """Result of ``--fix`` for one annotation file."""

    json_file: str
    output: str = ""  # its fixed copy, or "" if it cannot be fixed
    changes_file: str = ""  # the list of changes
    counts: dict[str, int] = field(default_factory=dict)  # by kind of change (CHANGES)
    reason: str = ""  # why it cannot be fixed


class Collector:
    """Counts findings by code over all files of a diagnosis."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}
        self._causes: dict[str, Counter[str]] = {}

    def add(self, code: str, example: Example, cause: str = "") -> None:
        """Count one place of a finding, with its code in ``CODES`` and that of its cause."""
        finding = self._found.setdefault(code, replace(CODES[code], examples=[]))
        causes = self._causes.setdefault(code, Counter())
        causes[cause] += 1
        finding.cause = causes.most_common(1)[0][0]
        finding.count += 1
        if len(finding.examples) < EXAMPLES:
            finding.examples.append(example)

    def add_checked(self, findings: Findings, data: DatasetSummary) -> None:
        """Add the findings of the check before training."""
        for code, tally in {**findings.errors, **findings.warnings}.items():
            for place, detail in tally.places:
                self.add(code, example_at(place, detail, data))
            self._found[code].count += tally.count - len(tally.places)

    def most_frequent(self, codes: Sequence[str]) -> str:
        """Return the code among ``codes`` with the most places so far, "" if none was found."""
        found = [code for code in codes if code in self._found]
        return max(found, key=lambda code: self._found[code].count, default="")

    def findings(self) -> list[Finding]:
        """Return the findings so far."""
        return list(self._found.values())


def example_at(place: Place, detail: str, data: DatasetSummary) -> Example:
    """Make the example of an image, category or annotation of a file; ``detail`` may be ""."""
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


def describe(diagnosis: Diagnosis) -> str:
    """Describe a diagnosis for the terminal, the worst first."""
    lines, kinds = [], []
    for data in diagnosis.datasets:
        classes = ", ".join(f"{name} {count}" for name, count in data.classes.items())
        lines.append(
            f"{data.json_file}: {data.num_images} images ({data.blanks} blank), "
            f"{data.num_annotations} annotations{f' ({classes})' if classes else ''}"
        )
    grouped = families(diagnosis.findings)
    for severity, (word, heading) in _HEADINGS.items():
        kinds.append(f"{word} {sum(f.severity == severity for f in diagnosis.findings)}")
        found = [family for family in grouped if worst(family) == severity]
        if found:
            lines += ["", heading]
        for finding in (finding for family in found for finding in family):
            lines += _finding_lines(finding)
    if diagnosis.model_fit:
        lines += ["", *_fit_lines(diagnosis.model_fit)]
    fixable = sum(finding.fixable for finding in diagnosis.findings)
    repaired = f" --fix repairs {fixable} of them." if fixable else ""
    return "\n".join([*lines, "", f"Kinds found: {', '.join(kinds)}.{repaired}"])


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


def mended_by(finding: Finding) -> str:
    """Name what mends a finding, "" if nothing does."""
    ways = [("--fix", finding.fixable), ("microplastics convert", finding.convertible)]
    return " or ".join(name for name, mends in ways if mends)


def _finding_lines(finding: Finding) -> list[str]:
    lines = [f"  {finding.count} x {finding.what}  [{finding.code}]"]
    follows = f"Follows from [{finding.cause}]. " if finding.cause else ""
    mended = mended_by(finding)
    effect = f"{follows}{finding.consequence} {finding.fix}{f' ({mended})' if mended else ''}"
    indent = " " * 6
    lines += textwrap.wrap(effect, initial_indent=indent, subsequent_indent=indent, **_WRAP)
    for example in finding.examples:
        text, hanging = f"- {example.text}", " " * 8
        lines += textwrap.wrap(text, initial_indent=indent, subsequent_indent=hanging, **_WRAP)
    if finding.count > len(finding.examples):
        lines.append(f"      - and {finding.count - len(finding.examples)} more")
    return lines


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
