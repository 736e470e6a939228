"""A diagnosis in words, for the terminal."""

import os
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from microplastics.data.coco import (
    ERRORS,
    Findings,
    Place,
    is_box,
    is_safe_name,
    show,
)

CHANGES = {
    "image_dropped": "images left out",
    "annotation_dropped": "annotations left out",
    "category_dropped": "placeholder categories left out",
    "polygon_dropped": "polygons or parts of them left out",
    "polygon_mended": "polygons made valid",
    "polygon_clipped": "polygons cut at the image's border",
    "points_removed": "polygons from which repeated points were taken out",
    "bbox": "boxes computed from the mask",
    "area": "areas computed from the mask",
    "iscrowd": "missing iscrowd set to 0",
    "id": "annotations given a new id",
}


class Changes:
    """Every change, in order."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def add(self, kind: str, index: int, id_: Any, reason: str, **details: Any) -> None:
        """Note one change.

        Args:
            kind: one of ``CHANGES``.
            index: position in its list of the original JSON, from 0.
            id_: the original id, whatever it was.
            reason: why.
            details: what stood there, and what stands there now.
        """
        if kind not in CHANGES:
            raise KeyError(kind)
        self.entries.append(
            {"change": kind, "index": index, "id": id_, "reason": reason, **details}
        )

    def counts(self) -> dict[str, int]:
        """How often each kind occurs, in the order of ``CHANGES``."""
        counts = dict.fromkeys(CHANGES, 0)
        for entry in self.entries:
            counts[entry["change"]] += 1
        return {kind: count for kind, count in counts.items() if count}


PROBLEM, WARNING, INFO = "problem", "warning", "info"
EXAMPLES = 5


@dataclass
class Example:
    """One place where a finding holds.

    Attributes:
        text: the place and its detail in words.
        json_file: the annotation file, or "".
        image: path of the image on the disk, or "".
        box: x, y, width, height in px of what is meant on the image, or None for all of it.
        annotation_id: of the annotation, or None.
        other_image: path of the second image of a pair, or "".
        other_box: box of a second particle, such as the one that it overlaps, or None.
    """

    text: str
    json_file: str = ""
    image: str = ""
    box: tuple[float, float, float, float] | None = None
    annotation_id: int | None = None
    other_image: str = ""
    other_box: tuple[float, float, float, float] | None = None


@dataclass
class Finding:
    """One kind of finding.

    Attributes:
        code: its short name, documented in docs/doctor.md.
        severity: ``"problem"`` (exit code 1), ``"warning"`` or ``"info"``.
        what: what is wrong, in words that follow a number.
        consequence: what training would have done with it.
        mend: what to do about it.
        count: how often.
        examples: at most five places.
        fixable: ``--fix`` mends it.
    """

    code: str
    severity: str
    what: str
    consequence: str
    mend: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)
    fixable: bool = False


@dataclass
class DatasetSummary:
    """One annotation file in numbers.

    Attributes:
        json_file: the annotation file.
        image_root: its image folder.
        num_images: images in the JSON.
        num_annotations: annotations that could be measured and are of a class of the file.
        classes: class name -> number of annotations.
        blanks: images without annotations.
        particles_per_image: number of those annotations of each image, by ascending id.
        class_of: class name of each measured annotation.
        size_px: square root of the mask's area of each, in px.
        long_side_px: longer side of its box, in px.
        aspect_ratio: longer through shorter side of the mask's minimum-area rectangle; a side
            counts as at least 1 px.
        um_per_px: scale of the image of each (``um_per_px`` of its entry), or None where it is
            not known.
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
    """What a model of a given config can see of the particles.

    Attributes:
        config_file: the config.
        no_anchor_share: class name (and ``"all"``) -> share of boxes that no anchor matches at
            IoU 0.5, after the resize of INPUT.MIN_SIZE_TEST.
        small_share: class name (and ``"all"``) -> share of particles whose mask is under 4 px
            wide after the resize.
        mask_iou: class name (and ``"all"``) -> crop size M -> mean IoU of the true masks with
            themselves after an M x M crop and back.
        mask_size: the M that the config's mask head has.
        sampled: particles whose masks were looked at; the anchors are held against all boxes.
    """

    config_file: str
    no_anchor_share: dict[str, float] = field(default_factory=dict)
    small_share: dict[str, float] = field(default_factory=dict)
    mask_iou: dict[str, dict[int, float]] = field(default_factory=dict)
    mask_size: int = 28
    sampled: int = 0


@dataclass
class Diagnosis:
    """Everything that was found, worst first."""

    datasets: list[DatasetSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    model_fit: ModelFit | None = None

    @property
    def has_problems(self) -> bool:
        """Whether the exit code is 1."""
        return any(finding.severity == PROBLEM for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for report.json."""
        return asdict(self)


@dataclass
class Fixed:
    """What became of one annotation file.

    Attributes:
        json_file: the annotation file.
        output: its mended copy, or "" where it cannot be mended.
        changes_file: the list of changes.
        counts: kind of change (``changes.CHANGES``) -> how often.
        reason: why it cannot be mended.
    """

    json_file: str
    output: str = ""
    changes_file: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    reason: str = ""


class Kind(NamedTuple):
    """What one code means; the fields are those of ``diagnosis.Finding``."""

    severity: str
    what: str
    consequence: str
    mend: str
    fixable: bool = False


_STOPS = "Training stops before it starts."
_CLIPPED = "Our training cuts them at the border; others learn boxes that leave the image."
_UNION = "Training fills it: the mask is the union of all polygons of the annotation."
_LEAK = "The score on the second split is flattered: the model has seen these particles."


def _stop(code: str, what: str, consequence: str = _STOPS, fixable: bool = False) -> Kind:
    """A kind of error for which training stops; its mend is that of the check before training."""
    return Kind(PROBLEM, what, consequence, _sentence(ERRORS[code][1]), fixable)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


_JSON = {
    "not_json": Kind(
        PROBLEM,
        "files that are not usable JSON",
        _STOPS,
        "Export or copy the file again; nothing else of it could be checked.",
    ),
    "structure": Kind(
        PROBLEM,
        "files without the lists images, annotations and categories of COCO",
        _STOPS,
        "Export as COCO instance segmentation; nothing else of the file could be checked.",
    ),
    "not_an_object": _stop("not_an_object", "entries that are not JSON objects"),
    "image_field": _stop("image_field", "images that lack a field or have one of the wrong type"),
    "image_duplicate": _stop("image_duplicate", "images with an id that another image has"),
    "image_twice": Kind(
        WARNING,
        "images that name a file that another names",
        "Training sees the photograph twice, each time with a part of its particles: the others "
        "are taught to be background.",
        "Join the two entries and their annotations into one.",
    ),
    "file_name": _stop("file_name", "images whose file_name leaves the image folder"),
    "category_field": _stop(
        "category_field", "categories that lack a field or have one of the wrong type"
    ),
    "category_duplicate": _stop("category_duplicate", "categories with an id that another has"),
    "category_same_name": _stop("category_same_name", "categories with the name of another"),
    "category_placeholder": Kind(
        WARNING,
        "unused placeholder categories",
        "Our training leaves them out; Detectron2's own loader adds a class that never occurs.",
        "Delete them, or let --fix do it.",
        True,
    ),
    "category_unused": Kind(
        INFO,
        "categories without annotations",
        "The model has an output for them that it never learns to use.",
        "Annotate some, or take the category out of the file.",
    ),
    "annotation_field": _stop(
        "annotation_field", "annotations that lack a field or have one of the wrong type"
    ),
    "box_field": _stop("box_field", "annotations without a usable bbox", fixable=True),
    "area_field": _stop("area_field", "annotations whose area is not a number", fixable=True),
    "annotation_zero": _stop(
        "annotation_zero",
        "annotations with id 0",
        "Training stops before it starts; pycocotools would never count its match as found.",
        True,
    ),
    "annotation_duplicate": _stop(
        "annotation_duplicate",
        "annotations with an id that another has",
        "Training stops before it starts; evaluation would mistake one for the other.",
        True,
    ),
    "annotation_twice": Kind(
        WARNING,
        "annotations that repeat another's image, category and outline",
        "The particle is counted twice: recall cannot reach 1.",
        "Delete the repeats, or let --fix do it.",
        True,
    ),
    "no_image": _stop("no_image", "annotations of an image that is not in the file", fixable=True),
    "no_category": _stop("no_category", "annotations of a category that is not in the file"),
    "ignore": _stop("ignore", "annotations with ignore set"),
    "area_missing": Kind(
        WARNING,
        "annotations without area",
        "Our training computes it from the mask; Detectron2's evaluator fails.",
        "Fill it in, or let --fix do it.",
        True,
    ),
    "area_of_box": Kind(
        WARNING,
        "annotations whose area is that of the box",
        "Ours takes the mask's; elsewhere AP for small, medium and large comes out wrong.",
        "Let --fix compute it from the mask.",
        True,
    ),
    "area_differs": Kind(
        WARNING,
        "annotations whose area is neither the mask's nor the box's",
        "Ours takes the mask's; elsewhere AP for small, medium and large comes out wrong.",
        "Let --fix compute it from the mask.",
        True,
    ),
    "bbox_differs": Kind(
        WARNING,
        "boxes that differ from their mask by over 2 px",
        "Ours takes the mask's; elsewhere the box head learns these wrong boxes.",
        "Let --fix compute them from the mask.",
        True,
    ),
    "bbox_xyxy": Kind(
        WARNING,
        "boxes written as x0, y0, x1, y1 instead of x, y, width, height",
        "Ours takes the mask's; elsewhere the box head learns boxes that are far too large.",
        "Let --fix compute them from the mask.",
        True,
    ),
    "iscrowd_missing": Kind(
        INFO,
        "annotations without iscrowd",
        "Taken as 0 by ours; Detectron2's evaluator fails.",
        "Fill it in, or let --fix do it.",
        True,
    ),
    "crowd": Kind(
        INFO,
        "annotations with iscrowd 1",
        "Training skips them, evaluation neither rewards nor punishes what is found there.",
        "Nothing, where they are groups that cannot be told apart.",
    ),
    "keypoints": Kind(
        INFO, "annotations with keypoints", "They are not used.", "Nothing needs to be done."
    ),
}

_MASKS = {
    "segmentation_empty": _stop("segmentation_empty", "annotations with an empty segmentation"),
    "segmentation_type": _stop(
        "segmentation_type", "segmentations that are neither polygons nor RLE"
    ),
    "polygon_flat": _stop("polygon_flat", "segmentations of bare numbers"),
    "polygon_points": _stop("polygon_points", "polygons of fewer than 3 points", fixable=True),
    "polygon_odd": _stop("polygon_odd", "polygons with an odd number of coordinates"),
    "polygon_numbers": _stop(
        "polygon_numbers", "polygons with coordinates that are not finite numbers"
    ),
    "polygon_outside": _stop(
        "polygon_outside", "annotations wholly outside their image", fixable=True
    ),
    "polygon_clipped": Kind(
        WARNING,
        "annotations that reach out of their image",
        _CLIPPED,
        "Check that the image has not been cropped since, then let --fix cut them.",
        True,
    ),
    "outline_long": _stop("outline_long", "outlines of impossible length"),
    "zero_area": _stop("zero_area", "segmentations of zero area", fixable=True),
    "subpixel": Kind(
        WARNING,
        "annotations whose mask has no pixel",
        "They can never be found, and lower the recall.",
        "Delete them, or outline the particle at a higher magnification.",
    ),
    "polygon_crossing": Kind(
        WARNING,
        "polygons that cross themselves or enclose nothing",
        "Where an outline runs over itself, inside and outside change places: parts of the "
        "particle are taught to be background.",
        "Outline them again where that matters; --fix makes them valid and keeps their pixels.",
        True,
    ),
    "polygon_touching": Kind(
        INFO,
        "polygons that touch themselves, as at a corner or along a cut that leads to a hole",
        "None: the mask is right. Geometry programs may call them invalid.",
        "Nothing needs to be done.",
    ),
    "points_repeated": Kind(
        INFO,
        "polygons in which a point follows itself",
        "Training is not changed by it.",
        "Let --fix take the repeats out.",
        True,
    ),
    "polygon_repeated": Kind(
        WARNING,
        "annotations in which one polygon occurs twice",
        "Training draws it once; tools that add up areas count it twice.",
        "Delete the repeat, or let --fix do it.",
        True,
    ),
    "polygon_hole": Kind(
        WARNING,
        "annotations with a polygon inside another of its polygons, as a hole would be written",
        _UNION,
        "COCO polygons have no holes: export the mask as RLE, or delete the inner polygon.",
    ),
    "overlap": Kind(
        WARNING,
        "pairs of particles of one image that overlap with an IoU above 0.9",
        "One particle is taught as two: the model learns to report it twice.",
        "Delete one of each pair.",
    ),
    "unchecked": Kind(
        INFO,
        "images or annotations with too many overlapping parts to compare all of them",
        "Repeated particles and holes may remain unseen there.",
        "Look at them; so many outlines at one place are seldom meant.",
    ),
    "rle_size": _stop("rle_size", "RLE masks of another size than their image"),
    "rle_counts": _stop("rle_counts", "malformed RLE masks"),
    "rle_empty": _stop("rle_empty", "RLE masks without a single pixel"),
}

_IMAGES = {
    "image_missing": _stop("image_missing", "images that are not on the disk", fixable=True),
    "image_file": Kind(
        PROBLEM,
        "image files that cannot be read to the end",
        "Training stops when it meets them, maybe hours after its start.",
        "Copy the file again from where it came, or let --fix leave the image out.",
        True,
    ),
    "image_size": _stop("image_size", "images of another size than their file"),
    "image_unlisted": Kind(
        WARNING,
        "image files in the folder that no JSON names",
        "Training never sees them.",
        "Annotate them; a blank needs its entry in images, too.",
    ),
    "image_unlisted_cut": Kind(
        INFO,
        "image folders with too many files to look for those that no JSON names",
        "Photographs may lie there that training never sees.",
        "Give a folder that holds the data set alone.",
    ),
    "image_blank": Kind(
        INFO,
        "images without annotations",
        "Detectron2 leaves them out of training (DATALOADER.FILTER_EMPTY_ANNOTATIONS); evaluation "
        "uses them.",
        "Nothing, where they are blanks; otherwise annotate them.",
    ),
    "image_exif": Kind(
        INFO,
        "images that are turned by their EXIF rotation",
        "Training turns them upright, and the JSON agrees with that; other programs may not.",
        "Save them upright without the EXIF tag.",
    ),
    "image_header": Kind(
        INFO,
        "images with a damaged tag, whose rotation, bit depth or frames could not be looked up",
        "Training takes them as they are stored, upright.",
        "Save them again from the program that made them.",
    ),
    "image_deep": Kind(
        INFO,
        "images of more than 8 bits a channel",
        "They are stretched to 8 bits, each from its own darkest to its brightest pixels.",
        "Nothing; take the brightness of such images with care.",
    ),
    "image_depth_mixed": Kind(
        WARNING,
        "images of another bit depth than most",
        "Deep images are stretched and the others are not: two kinds of contrast are learnt.",
        "Export all images at one bit depth.",
    ),
    "image_channels_mixed": Kind(
        WARNING,
        "grey images among coloured ones, or the other way round (the rarer kind is counted)",
        "The model may tell particles by the kind of image instead of by their look.",
        "Photograph or convert all of them in one way.",
    ),
    "image_frames": Kind(
        WARNING,
        "image files with several frames or pages",
        "Only the first is read.",
        "Save the one that was annotated as a file of its own.",
    ),
    "image_same": Kind(
        WARNING,
        "images whose pixels are those of an earlier one of the same file",
        "They count double, and their annotations may contradict each other.",
        "Keep one of each.",
    ),
    "image_near": Kind(
        INFO,
        "images that are nearly the same as an earlier one of the same file",
        "They count double; harmless where they are copies that were augmented on purpose.",
        "Keep them in one split.",
    ),
}

_SPLITS = {
    "split_same": Kind(
        PROBLEM,
        "images that lie in two files, pixel by pixel the same",
        _LEAK,
        "Take them out of one of the two.",
    ),
    "split_near": Kind(
        WARNING,
        "images that are nearly the same as one of another file",
        _LEAK,
        "Look at the pairs, and take those that show one place of a filter into one split.",
    ),
    "split_original": Kind(
        WARNING,
        "images made by Roboflow from a photograph that another file has, too",
        _LEAK,
        "Split before augmenting, so that all copies of a photograph are in one split.",
    ),
    "split_group": Kind(
        PROBLEM,
        "samples or filters (--group-regex) that lie in two files",
        _LEAK,
        "Split by sample: microplastics split --group-regex.",
    ),
    "group_unmatched": Kind(
        WARNING,
        "images whose name --group-regex does not match",
        "Whether their sample lies in two files has not been looked at.",
        "Correct the regular expression.",
    ),
    "category_names": Kind(
        PROBLEM,
        "files with other classes than the first",
        "Evaluation stops, or counts one class as another.",
        "Give all files the same categories.",
    ),
    "category_order": Kind(
        PROBLEM,
        "files whose classes have another order, by id, than in the first",
        "Class numbers follow the ids: one class is taken for another.",
        "Give all files the same ids.",
    ),
    "category_ids": Kind(
        WARNING,
        "files with other category ids than the first",
        "Training is right, as only their order counts; result files carry other ids.",
        "Give all files the same ids.",
    ),
    "num_classes": Kind(
        PROBLEM,
        "files whose number of classes is not MODEL.ROI_HEADS.NUM_CLASSES",
        _STOPS,
        "Set MODEL.ROI_HEADS.NUM_CLASSES, or correct the categories.",
    ),
    "class_imbalance": Kind(
        INFO,
        "classes with less than a tenth of the annotations of the most frequent one",
        "They are seldom seen, and are found worst.",
        "Annotate more of them, or set DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler.",
    ),
    "nothing_to_train": Kind(
        PROBLEM,
        "data sets without a single annotation to train on",
        "Training stops before it starts.",
        "Annotate some of the images.",
    ),
}

CODES = {**_JSON, **_MASKS, **_IMAGES, **_SPLITS}


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


_WIDTH = 100
_HEADINGS = {
    PROBLEM: "PROBLEMS: training stops or learns wrong things",
    WARNING: "WARNINGS: training runs; look whether it is meant so",
    INFO: "GOOD TO KNOW",
}


def describe(diagnosis: Diagnosis) -> str:
    """Say what was looked at and what was found, worst first."""
    lines = []
    for data in diagnosis.datasets:
        classes = ", ".join(f"{name} {count}" for name, count in data.classes.items())
        lines.append(
            f"{data.json_file}: {data.num_images} images ({data.blanks} blank), "
            f"{data.num_annotations} annotations{f' ({classes})' if classes else ''}"
        )
    for severity, heading in _HEADINGS.items():
        found = [finding for finding in diagnosis.findings if finding.severity == severity]
        if found:
            lines += ["", heading]
        for finding in found:
            lines += _finding(finding)
    if diagnosis.model_fit:
        lines += ["", *_model_fit(diagnosis.model_fit)]
    counts = {
        words: sum(finding.severity == severity for finding in diagnosis.findings)
        for severity, words in ((PROBLEM, "problems"), (WARNING, "warnings"), (INFO, "notes"))
    }
    lines += ["", "Kinds found: " + ", ".join(f"{words} {n}" for words, n in counts.items()) + "."]
    fixable = sum(finding.fixable for finding in diagnosis.findings)
    if fixable:
        lines[-1] += f" --fix mends {fixable} of them."
    return "\n".join(lines)


def _finding(finding: Finding) -> list[str]:
    fixable = " (--fix)" if finding.fixable else ""
    lines = [f"  {finding.count} x {finding.what}  [{finding.code}]"]
    lines += _wrapped(f"{finding.consequence} {finding.mend}{fixable}", "      ")
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


def _model_fit(fit: ModelFit) -> list[str]:
    lines = [f"WHAT THE MODEL OF {fit.config_file} CAN SEE ({fit.sampled} particles looked at)"]
    for name, share in fit.no_anchor_share.items():
        ious = ", ".join(
            f"{size} px: {iou:.2f}" for size, iou in fit.mask_iou.get(name, {}).items()
        )
        lines.append(
            f"  {name}: no anchor for {share:.0%}, under 4 px wide {fit.small_share[name]:.0%}"
            f"{f', mean IoU of masks through a head of {ious}' if ious else ''}"
        )
    return lines


def describe_fixed(fixed: list[Fixed]) -> str:
    """Say what ``--fix`` changed."""
    lines = []
    for one in fixed:
        if one.reason:
            lines.append(f"Not mended: {one.reason}")
            continue
        lines.append(f"Mended copy of {one.json_file}: {one.output}")
        lines += [f"  {count} x {CHANGES[kind]}" for kind, count in one.counts.items()]
        lines.append(f"  every change: {one.changes_file}" if one.counts else "  nothing to change")
    return "\n".join(lines)
