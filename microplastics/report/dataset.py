"""Data set report: ``report.json`` and one self-contained HTML page."""

import io
import itertools
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image, ImageDraw
from tqdm import tqdm

from microplastics.data.colors import class_colors
from microplastics.data.doctor.findings import (
    INFO,
    PROBLEM,
    WARNING,
    DatasetSummary,
    Diagnosis,
    Example,
    Finding,
    mended_by,
    worst,
)
from microplastics.data.images import read_image
from microplastics.report.page import render, write_page
from microplastics.utils.errors import UserError
from microplastics.utils.io import write_json
from microplastics.visualization.draw import resize

Box = Sequence[float]
Color = tuple[int, int, int]

_SIDE, _QUALITY = 300, 85  # of the JPEG of a place
# Surroundings of a place in box sides, and its least size in px of the photograph.
_MARGIN, _MIN_WINDOW, _MAX_ZOOM = 0.6, 48, 8
_FIRST, _SECOND, _WHITE = (213, 94, 0), (0, 114, 178), (255, 255, 255)
_MAX_CLASSES = 7
_OTHER_COLOR = (150, 150, 150)
_BINS = 36
_RANGE = 1e-9, 1e12  # of plausible sizes
_ROWS_LIMIT = 30
_SIGNS = {PROBLEM: "✕", WARNING: "!", INFO: "i"}


@dataclass
class Place:
    """Pictures of one example, or why there are none."""

    pictures: dict[int, bytes] = field(default_factory=dict)  # by number, 1 for a second image
    why: str = ""


@dataclass(frozen=True)
class Histogram:
    """One figure of the report."""

    title: str
    png: bytes
    legend: list[tuple[str, Color]]  # name and RGB
    note: str  # median and values left out


def write_report(diagnosis: Diagnosis, folder: Path) -> Path:
    """Write a diagnosis as ``report.json`` and ``report.html``.

    The JSON holds the fields of the diagnosis, with ``null`` for values that are not finite. The
    page contains its pictures and style and runs no script.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: the files cannot be written.
    """
    folder = Path(folder)
    page = folder / "report.html"
    html = render_report(diagnosis)
    text = json.dumps(asdict(diagnosis), default=np.generic.item)
    finite = json.loads(text, parse_constant=lambda constant: None)
    write_json(folder / "report.json", finite, indent=1)
    return write_page(page, html)


def render_report(diagnosis: Diagnosis) -> str:
    """Render the HTML page of a diagnosis."""
    findings, fit = diagnosis.findings, diagnosis.model_fit
    files = short_names([dataset.json_file for dataset in diagnosis.datasets])
    names = _class_names(diagnosis.datasets)
    return render(
        "dataset.html.j2",
        title="Data set report",
        subtitle="microplastics check",
        verdict=verdict(diagnosis),
        mended_by=mended_by,
        worst=worst(findings) if findings else "clean" if _has_images(diagnosis) else WARNING,
        datasets=list(zip(files, diagnosis.datasets, strict=True)),
        classes=names[:_ROWS_LIMIT],
        more_classes=max(0, len(names) - _ROWS_LIMIT),
        colors=legend_colors(names),
        findings=list(zip(findings, draw_places(findings), strict=True)),
        histograms=draw_histograms(diagnosis.datasets, names, files),
        fit=fit,
        sizes=sorted({size for ious in fit.mask_iou.values() for size in ious}) if fit else [],
        signs=_SIGNS,
        file_names={d.json_file: f for f, d in zip(files, diagnosis.datasets, strict=True)},
    )


def verdict(diagnosis: Diagnosis) -> str:
    """Summarise a diagnosis in one sentence."""
    problems, warnings = (_counted(diagnosis.findings, severity) for severity in (PROBLEM, WARNING))
    if problems:
        return f"Not ready for training: {problems}{f', and {warnings}' if warnings else ''}."
    if not _has_images(diagnosis):
        return "The data set has no image to train on."
    if warnings:
        return f"It can be trained on, but look at {warnings} first."
    return "Clean: nothing stands in the way of training."


def short_names(paths: Sequence[str]) -> list[str]:
    """Shorten paths of files to the part below their common folder."""
    full = list(map(os.path.abspath, paths))
    common = os.path.commonpath(map(os.path.dirname, full)) if full else ""
    return [os.path.relpath(path, common) for path in full]


def draw_places(findings: Sequence[Finding]) -> list[list[Place]]:
    """Crop every example from its photograph and draw its boxes.

    Each image is read once. If it cannot be read, the place says why.

    Returns:
        For each finding a :class:`Place` for each of its examples.
    """
    places = [[Place() for _ in finding.examples] for finding in findings]
    views = defaultdict(list)
    for finding, row in zip(findings, places, strict=True):
        for example, place in zip(finding.examples, row, strict=True):
            for number, (path, boxes) in enumerate(_views(example)):
                views[path].append((place, number, boxes))
    views.pop("", None)
    for path, of_image in tqdm(views.items(), "Drawing", unit="image", disable=None):
        try:
            image, why = np.ascontiguousarray(read_image(path)[:, :, ::-1]), ""
        except UserError as error:
            image, why = None, str(error)
        for place, number, boxes in of_image:
            if image is None:
                place.why = f"{place.why} {why}".strip()
                continue
            file = io.BytesIO()
            picture = Image.fromarray(draw_place(image, boxes, _SIDE))
            picture.save(file, "JPEG", quality=_QUALITY, subsampling=0)
            place.pictures[number] = file.getvalue()
    return places


def draw_place(image: np.ndarray, boxes: Sequence[tuple[Box, Color]], side: int) -> np.ndarray:
    """Crop a place from a photograph and draw its boxes, each with a white rim.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: x, y, width, height in px with the RGB of each; the whole image if empty.
        side: longest side of the picture in px.

    Returns:
        (h, w, 3) uint8 RGB, neither side longer than ``side``.
    """
    height, width = image.shape[:2]
    placed = [(_corners(box, width, height), color) for box, color in boxes]
    placed = [(corners, color) for corners, color in placed if corners is not None]
    x0, y0, x1, y1 = _window([corners for corners, _ in placed], width, height)
    scale = side / max(x1 - x0, y1 - y0)
    scale = float(min(math.floor(scale), _MAX_ZOOM)) if scale >= 1 else scale
    picture = Image.fromarray(resize(image[y0:y1, x0:x1], scale))
    draw, line = ImageDraw.Draw(picture), max(3, max(picture.size) // 60)
    for corners, color in placed:
        corners = np.round((corners - (x0, y0, x0, y0)) * scale).astype(int)
        # Around the box, so that no pixel of the particle is hidden, but within the picture.
        low = np.clip(corners[:2] - line, 0, np.array(picture.size) - 1)
        high = np.clip(corners[2:] + line - 1, low, np.array(picture.size) - 1)
        rim = [*(low - line // 2).tolist(), *(high + line // 2).tolist()]
        draw.rectangle(rim, outline=_WHITE, width=line // 2 + 1)
        draw.rectangle([*low.tolist(), *high.tolist()], outline=color, width=line)
    return np.asarray(picture)


def draw_histograms(
    datasets: Sequence[DatasetSummary], names: Sequence[str], files: Sequence[str]
) -> list[Histogram]:
    """Draw the distributions of a data set over all its files.

    Returns:
        Sizes in px, in µm if a scale is known, aspect ratios, particles per image; those without
        a value are left out.
    """
    labels = [name for dataset in datasets for name in dataset.class_of]
    sides = _joined(datasets, "long_side_px")
    of_classes = (
        ("Size: square root of the mask's area", "px", _joined(datasets, "size_px")),
        ("Longer side of the box", "px", sides),
        (
            "Longer side of the box, by um_per_px of the image in the JSON",
            "µm",
            sides * _joined(datasets, "um_per_px"),
        ),
        (
            "Aspect ratio: longer divided by shorter side of the minimum-area rectangle",
            "",
            _joined(datasets, "aspect_ratio"),
        ),
    )
    drawn = [
        _histogram(title, unit, values, labels, [*names[:_MAX_CLASSES], "other classes"])
        for title, unit, values in of_classes
    ]
    labels = [f for f, d in zip(files, datasets, strict=True) for _ in d.particles_per_image]
    counts, shown = _joined(datasets, "particles_per_image"), [*files[:_MAX_CLASSES], "other files"]
    drawn.append(_histogram("Particles per image", "particles", counts, labels, shown, "images"))
    return [histogram for histogram in drawn if histogram is not None]


def legend_colors(names: Sequence[str]) -> dict[str, Color]:
    """RGB of each class: as in every picture for the first seven, grey for the others."""
    colors = map(tuple, class_colors(names[:_MAX_CLASSES]))
    return dict(itertools.zip_longest(names, colors, fillvalue=_OTHER_COLOR))


def _views(example: Example) -> list[tuple[str, list[tuple[Box, Color]]]]:
    """Images of an example, each with its boxes and their colours."""
    first = [(example.box, _FIRST)] if example.box is not None else []
    second = [(example.other_box, _SECOND)] if example.other_box is not None else []
    if example.other_image:
        return [(example.image, first), (example.other_image, second)]
    return [(example.image, first + second)]


def _corners(box: Box, width: int, height: int) -> np.ndarray | None:
    """x0, y0, x1, y1 in px of an untrusted box within the image, None if it is not on it."""
    corners = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]], np.float64)
    (x0, y0, x1, y1), border = corners, (width, height, width, height)
    on_image = x0 <= x1 and y0 <= y1 and x0 < width and y0 < height and x1 >= 0 and y1 >= 0
    return np.clip(corners, 0, border) if on_image and np.isfinite(corners).all() else None


def _window(corners: list[np.ndarray], width: int, height: int) -> tuple[int, int, int, int]:
    """The part of an image around boxes on it, as x0, y0, x1, y1 in px."""
    if not corners:
        return 0, 0, width, height
    low, high = np.min(corners, axis=0)[:2], np.max(corners, axis=0)[2:]
    longer = float((high - low).max())
    margin = max(_MARGIN * longer, (_MIN_WINDOW - longer) / 2)
    x0, y0 = np.floor(low - margin).clip(0).astype(int).tolist()
    x1, y1 = np.minimum(np.ceil(high + margin), (width, height)).astype(int).tolist()
    return min(x0, width - 1), min(y0, height - 1), max(x1, x0 + 1), max(y1, y0 + 1)


def _joined(datasets: Sequence[DatasetSummary], name: str) -> np.ndarray:
    """Values of a field over all files, NaN for None."""
    return np.array([v for dataset in datasets for v in getattr(dataset, name)], np.float64)


def _histogram(
    title: str,
    unit: str,
    values: np.ndarray,
    labels: Sequence[str],
    shown: Sequence[str],
    counted: str = "particles",
) -> Histogram | None:
    """Stack the values by label: particles over a logarithmic axis, images over a linear one.

    The last of the ``shown`` labels takes those that are not among them.
    """
    log = counted == "particles"
    usable = np.isfinite(values)
    if log:
        usable = (values > _RANGE[0]) & (values < _RANGE[1])  # False for NaN
    if not usable.any():
        return None
    number = {name: index for index, name in enumerate(shown[:-1])}
    places = np.array([number.get(label, len(shown) - 1) for label in labels])[usable]
    values, missing = values[usable], int(np.count_nonzero(~usable))
    present = np.unique(places).tolist()
    colors = [*legend_colors(shown[:-1]).values(), _OTHER_COLOR]
    legend = [(shown[index], colors[index]) for index in present]
    if log:
        edges = np.geomspace(values.min() / 1.1, values.max() * 1.1, _BINS + 1)
    else:
        step = max(1, math.ceil((values.max() + 1) / _BINS))
        edges = np.arange(0, values.max() + step + 1, step) - 0.5
    groups = [values[places == index] for index in present]
    png = _draw(groups, [color for _, color in legend], edges, log, counted, unit)
    note = f"Median {np.median(values):.3g}{' ' if unit else ''}{unit} of {len(values)} {counted}"
    note += f"; {missing} without a value are left out." if missing else "."
    return Histogram(title, png, legend, note)


def _draw(
    groups: list[np.ndarray],
    colors: list[Color],
    edges: np.ndarray,
    log: bool,
    counted: str,
    unit: str,
) -> bytes:
    """Draw a stacked histogram as PNG."""
    with rc_context({"text.parse_math": False, "font.size": 8}):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        colors = [np.array(color) / 255 for color in colors]
        axes.hist(groups, edges, stacked=True, color=colors, edgecolor="white", linewidth=0.4)
        axes.set(xlabel=unit, ylabel=counted, xlim=(edges[0], edges[-1]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if log:
            axes.set_xscale("log")
            steps = (1, 2, 5) if edges[-1] < 1000 * edges[0] else (1,)
            axes.xaxis.set_major_locator(LogLocator(10, steps, numticks=9))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        file = io.BytesIO()
        figure.savefig(file, dpi=170)
    return file.getvalue()


def _has_images(diagnosis: Diagnosis) -> bool:
    return any(dataset.num_images for dataset in diagnosis.datasets)


def _counted(findings: Sequence[Finding], severity: str) -> str:
    """Number of findings of a severity and of their places in words, "" for none."""
    counts = [finding.count for finding in findings if finding.severity == severity]
    if not counts:
        return ""
    kinds = f"{len(counts)} {severity}{'' if len(counts) == 1 else 's'}"
    return f"{kinds} in {sum(counts)} {'place' if sum(counts) == 1 else 'places'}"


def _class_names(datasets: Sequence[DatasetSummary]) -> list[str]:
    """All class names, the most frequent first."""
    counts: Counter[str] = Counter()
    for dataset in datasets:
        counts.update(dataset.classes)
    return [name for name, _ in counts.most_common()]
