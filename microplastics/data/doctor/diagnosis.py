"""What the data set doctor found: plain values that a tool prints and a report draws."""

from dataclasses import asdict, dataclass, field
from typing import Any

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
