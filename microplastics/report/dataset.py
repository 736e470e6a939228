"""Data set report: ``report.json`` and one self-contained HTML page."""

import base64
import io
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from operator import itemgetter
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image, ImageDraw
from tqdm import tqdm

import microplastics
from microplastics.data.catalog import class_colors
from microplastics.data.doctor.findings import (
    INFO,
    PROBLEM,
    WARNING,
    DatasetSummary,
    Diagnosis,
    Example,
    Finding,
)
from microplastics.data.images import read_image
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, write_json
from microplastics.visualization.draw import resize

Box = Sequence[float]
Color = tuple[int, int, int]

# All pictures of places together, in bytes; they are reduced until they fit.
PLACES_BYTES = 3_000_000
# Side in px and JPEG quality.
_SIZES = ((300, 85), (300, 70), (220, 65), (150, 60), (100, 50))
# Surroundings of a place in box sides, and its least size in px of the photograph.
_MARGIN, _MIN_WINDOW, _MAX_ZOOM = 0.6, 48, 8
_FIRST, _SECOND, _WHITE = (213, 94, 0), (0, 114, 178), (255, 255, 255)
_MAX_CLASSES = 7
_OTHER = "other classes"
_OTHER_COLOR = (150, 150, 150)
_BINS = 36
_RANGE = 1e-9, 1e12  # of plausible sizes
_TEXT_LIMIT = 600
_ROWS_LIMIT = 30
_SIGNS = {PROBLEM: "✕", WARNING: "!", INFO: "i"}


@dataclass
class Place:
    """Pictures of one example, or why there are none.

    Attributes:
        pictures: JPEGs by number, 0 and, for a pair of images, 1.
        why: why a picture is missing, or "".
    """

    pictures: dict[int, bytes] = field(default_factory=dict)
    why: str = ""

    @property
    def jpegs(self) -> list[bytes]:
        """The pictures in order."""
        return [self.pictures[number] for number in sorted(self.pictures)]


@dataclass(frozen=True)
class Histogram:
    """One figure of the report.

    Attributes:
        title: what it shows.
        png: the figure.
        legend: name and RGB of each colour.
        note: median and values left out.
    """

    title: str
    png: bytes
    legend: list[tuple[str, Color]]
    note: str


def write_report(diagnosis: Diagnosis, folder: Path) -> Path:
    """Write a diagnosis as ``report.json`` and ``report.html``.

    The JSON is :meth:`Diagnosis.to_dict`, with ``null`` for values that are not finite. The page
    contains its pictures and style and runs no script.

    Args:
        diagnosis: the findings.
        folder: of the two files; made if missing.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: the files cannot be written.
    """
    folder = Path(folder)
    page = folder / "report.html"
    html = render_report(diagnosis)
    text = json.dumps(diagnosis.to_dict(), default=np.generic.item)
    finite = json.loads(text, parse_constant=lambda constant: None)
    write_json(folder / "report.json", finite, indent=1)
    with atomic_write(page, "wb") as file:
        # JSON may contain half a surrogate pair, which UTF-8 cannot.
        file.write(html.encode("utf-8", "replace"))
    return page


def render_report(diagnosis: Diagnosis) -> str:
    """Render the HTML page of a diagnosis."""
    findings, fit = diagnosis.findings, diagnosis.model_fit
    files = short_names([dataset.json_file for dataset in diagnosis.datasets])
    names = _class_names(diagnosis.datasets)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=_short, data_uri=_data_uri, rgb=_rgb, percent=_percent)
    return environment.get_template("dataset.html.j2").render(
        verdict=verdict(diagnosis),
        worst=findings[0].severity if findings else "clean" if _has_images(diagnosis) else WARNING,
        version=microplastics.__version__,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
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


def draw_places(findings: Sequence[Finding], max_bytes: int = PLACES_BYTES) -> list[list[Place]]:
    """Crop every example from its photograph and draw its boxes.

    Each image is read once. If it cannot be read, the place says why.

    Args:
        findings: with their examples.
        max_bytes: for all pictures together.

    Returns:
        For each finding a :class:`Place` for each of its examples.
    """
    places = [[Place() for _ in finding.examples] for finding in findings]
    jobs = [
        (path, boxes, place, number)
        for finding, row in zip(findings, places, strict=True)
        for example, place in zip(finding.examples, row, strict=True)
        for number, (path, boxes) in enumerate(_views(example))
        if path
    ]
    limit = max_bytes // max(1, len(jobs))
    bar = tqdm(sorted(jobs, key=itemgetter(0)), "Drawing", unit="picture", disable=None)
    for path, of_image in itertools.groupby(bar, itemgetter(0)):
        try:
            image, why = np.ascontiguousarray(read_image(path)[:, :, ::-1]), ""
        except UserError as error:
            image, why = None, str(error)
        for _, boxes, place, number in of_image:
            if image is not None:
                place.pictures[number] = _jpeg(image, boxes, limit)
            elif why not in place.why:
                place.why = f"{place.why} {why}".strip()
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
    usable = [(box, color) for box, color in boxes if _is_on(box, width, height)]
    x0, y0, x1, y1 = _window([box for box, _ in usable], width, height)
    scale = side / max(x1 - x0, y1 - y0)
    scale = float(min(math.floor(scale), _MAX_ZOOM)) if scale >= 1 else scale
    picture = Image.fromarray(resize(image[y0:y1, x0:x1], scale))
    draw, line = ImageDraw.Draw(picture), max(3, max(picture.size) // 60)
    for box, color in usable:
        on_image = np.clip(_corners(box), 0, (width, height, width, height))
        corners = np.round((on_image - (x0, y0, x0, y0)) * scale).astype(int)
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

    Args:
        datasets: one for each annotation file.
        names: class names, the most frequent first.
        files: short names of the files.

    Returns:
        Sizes in px, in µm if a scale is known, aspect ratios, particles per image; those without
        a value are left out.
    """
    labels = [name for dataset in datasets for name in dataset.class_of]
    sides = _joined(datasets, "long_side_px")
    figures = (
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
    drawn = [_by_class(*figure, labels, names) for figure in figures]
    drawn.append(_particles_per_image(datasets, files))
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


def _jpeg(image: np.ndarray, boxes: Sequence[tuple[Box, Color]], max_bytes: int) -> bytes:
    """A JPEG of at most ``max_bytes``, or the smallest possible."""
    data = b""
    for side, quality in _SIZES:
        file = io.BytesIO()
        picture = Image.fromarray(draw_place(image, boxes, side))
        picture.save(file, "JPEG", quality=quality, subsampling=0)
        data = file.getvalue()
        if len(data) <= max_bytes:
            break
    return data


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def _is_on(box: Box, width: int, height: int) -> bool:
    """Whether a part of an untrusted box is on the image."""
    if not all(math.isfinite(number) for number in box):
        return False
    x0, y0, x1, y1 = _corners(box)
    return x1 >= x0 and y1 >= y0 and x0 < width and y0 < height and x1 >= 0 and y1 >= 0


def _window(boxes: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """The part of an image around boxes, as x0, y0, x1, y1 in px."""
    if not boxes:
        return 0, 0, width, height
    corners = np.clip([_corners(box) for box in boxes], 0, [width, height] * 2)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    longer = float((high - low).max())
    margin = max(_MARGIN * longer, (_MIN_WINDOW - longer) / 2)
    x0, y0 = np.floor(low - margin).clip(0).astype(int).tolist()
    x1, y1 = np.minimum(np.ceil(high + margin), (width, height)).astype(int).tolist()
    return min(x0, width - 1), min(y0, height - 1), max(x1, x0 + 1), max(y1, y0 + 1)


def _joined(datasets: Sequence[DatasetSummary], name: str) -> np.ndarray:
    """Values of a field over all files, NaN for None."""
    return np.array([v for dataset in datasets for v in getattr(dataset, name)], np.float64)


def _by_class(
    title: str, unit: str, values: np.ndarray, labels: Sequence[str], names: Sequence[str]
) -> Histogram | None:
    """Stack the classes over a logarithmic axis."""
    usable = (values > _RANGE[0]) & (values < _RANGE[1])  # False for NaN
    if not usable.any():
        return None
    shown = [*names[:_MAX_CLASSES], _OTHER]
    number = {name: index for index, name in enumerate(shown[:-1])}
    classes = np.array([number.get(label, len(shown) - 1) for label in labels])[usable]
    values, missing = values[usable], int(np.count_nonzero(~usable))
    present = np.unique(classes).tolist()
    colors = [*legend_colors(shown[:-1]).values(), _OTHER_COLOR]
    legend = [(shown[index], colors[index]) for index in present]
    low, high = values.min() / 1.1, values.max() * 1.1
    edges = np.geomspace(low, high, _BINS + 1)
    groups = [values[classes == index] for index in present]
    png = _draw(groups, legend, edges, "particles", unit, ticks=_decimal_ticks(low, high))
    note = f"Median {np.median(values):.3g}{' ' if unit else ''}{unit} of {len(values)} particles"
    note += f"; {missing} without a value are left out." if missing else "."
    return Histogram(title, png, legend, note)


def _particles_per_image(
    datasets: Sequence[DatasetSummary], files: Sequence[str]
) -> Histogram | None:
    counts = [
        (file, np.array(dataset.particles_per_image, np.int64))
        for file, dataset in zip(files, datasets, strict=True)
        if dataset.particles_per_image
    ]
    if not counts:
        return None
    shown, rest = counts[:_MAX_CLASSES], counts[_MAX_CLASSES:]
    colors = map(tuple, class_colors([str(index) for index in range(len(shown))]))
    legend = [(file, color) for (file, _), color in zip(shown, colors, strict=True)]
    groups = [count for _, count in shown]
    if rest:
        groups.append(np.concatenate([count for _, count in rest]))
        legend.append((f"{len(rest)} other files", _OTHER_COLOR))
    every = np.concatenate(groups)
    step = max(1, math.ceil((every.max() + 1) / _BINS))
    edges = np.arange(0, every.max() + step + 1, step) - 0.5
    png = _draw(groups, legend, edges, "images", "particles")
    blanks = int(np.count_nonzero(every == 0))
    note = f"Median {np.median(every):g}, most {every.max()}, {blanks or 'no'} blank images."
    return Histogram("Particles per image", png, legend, note)


def _draw(
    groups: list[np.ndarray],
    legend: list[tuple[str, Color]],
    edges: np.ndarray,
    counted: str,
    unit: str,
    ticks: np.ndarray | None = None,
) -> bytes:
    """Draw a stacked histogram as PNG; with ``ticks``, over a logarithmic axis."""
    with rc_context({"text.parse_math": False, "font.size": 8}):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        colors = [np.array(color) / 255 for _, color in legend]
        axes.hist(groups, edges, stacked=True, color=colors, edgecolor="white", linewidth=0.4)
        axes.set(xlabel=unit, ylabel=counted, xlim=(edges[0], edges[-1]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)
        if ticks is None:
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        else:
            axes.set_xscale("log")
            axes.set_xticks(ticks)
            axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        file = io.BytesIO()
        figure.savefig(file, dpi=170)
    return file.getvalue()


def _decimal_ticks(low: float, high: float) -> np.ndarray:
    """At most nine round numbers for a logarithmic axis."""
    decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = np.outer(decades, steps).ravel()
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) <= 9:
            break
    if len(ticks) < 3:
        ticks = MaxNLocator(5).tick_values(low, high)
        ticks = ticks[(ticks >= low) & (ticks <= high)]
    return ticks[:: math.ceil(len(ticks) / 9)]


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
        counts.update(dict.fromkeys(dataset.class_of, 0))
        counts.update(dataset.classes)
    return [name for name, _ in counts.most_common()]


def _short(text: Any, limit: int = _TEXT_LIMIT) -> str:
    """Leave out the middle of a long text."""
    text = str(text)
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.1f} %"


def _rgb(color: Sequence[int]) -> str:
    return "rgb({}, {}, {})".format(*(int(channel) for channel in color))


def _data_uri(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
