"""The report of the data set doctor: ``report.json`` and one HTML page that needs nothing else."""

import base64
import io
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

import jinja2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
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
    ModelFit,
)
from microplastics.data.images import read_image
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, write_json
from microplastics.visualization.draw import resize

# All pictures of places together, in bytes; they are made smaller until they fit.
PLACES_BYTES = 3_000_000
# Side in px and JPEG quality.
_SIZES = ((300, 85), (300, 70), (220, 65), (150, 60), (100, 50))
# A place is shown with as much around it, and at least so many px of the photograph.
_MARGIN, _MIN_WINDOW, _MAX_ZOOM = 0.6, 48, 8
_FIRST, _SECOND, _WHITE = (213, 94, 0), (0, 114, 178), (255, 255, 255)
_MAX_CLASSES = 7
_OTHER = "other classes"
_OTHER_COLOR = (150, 150, 150)
_BINS = 36
# What lies outside is no size that anything has.
_RANGE = 1e-9, 1e12

Box = Sequence[float]


@dataclass(frozen=True)
class Place:
    """A picture of one example, or why there is none.

    Attributes:
        jpegs: one or, of a pair of images, two pictures.
        why: words where a picture is missing, or "".
    """

    jpegs: tuple[bytes, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class _View:
    """One picture of an example: an image with boxes as (box, colour)."""

    image: str
    boxes: tuple[tuple[Box, tuple[int, int, int]], ...]


def draw_places(findings: Sequence[Finding], max_bytes: int = PLACES_BYTES) -> list[list[Place]]:
    """Cut every example out of its photograph, with its boxes drawn.

    Each image is read once. An image that cannot be read becomes words.

    Args:
        findings: with their examples.
        max_bytes: for all pictures together.

    Returns:
        For each finding a :class:`Place` for each of its examples.
    """
    views = [[_views(example) for example in finding.examples] for finding in findings]
    every = [view for of_finding in views for of_example in of_finding for view in of_example]
    by_image = defaultdict(list)
    for view in every:
        by_image[view.image].append(view)
    share = max_bytes // max(1, len(every))
    drawn: dict[int, bytes] = {}
    reasons: dict[str, str] = {}
    for path, of_image in tqdm(by_image.items(), "Drawing", unit="image", disable=None):
        try:
            image = np.ascontiguousarray(read_image(path)[:, :, ::-1])
        except UserError as error:
            reasons[path] = str(error)
            continue
        for view in of_image:
            drawn[id(view)] = _within(image, view.boxes, share)
    return [
        [
            Place(
                tuple(drawn[id(view)] for view in of_example if id(view) in drawn),
                " ".join(dict.fromkeys(reasons[v.image] for v in of_example if v.image in reasons)),
            )
            for of_example in of_finding
        ]
        for of_finding in views
    ]


def draw_place(
    image: np.ndarray, boxes: Sequence[tuple[Box, tuple[int, int, int]]], side: int
) -> np.ndarray:
    """Cut a place out of a photograph and draw its boxes, each with a white rim.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: x, y, width, height in px with the RGB of each; without any the whole image.
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
        # Around the box, so that not a pixel of the particle is hidden, but within the picture.
        low = np.clip(corners[:2] - line, 0, np.array(picture.size) - 1)
        high = np.clip(corners[2:] + line - 1, low, np.array(picture.size) - 1)
        rim = [*(low - line // 2).tolist(), *(high + line // 2).tolist()]
        draw.rectangle(rim, outline=_WHITE, width=line // 2 + 1)
        draw.rectangle([*low.tolist(), *high.tolist()], outline=color, width=line)
    return np.asarray(picture)


def _views(example: Example) -> list[_View]:
    first = [(example.box, _FIRST)] if example.box is not None else []
    second = [(example.other_box, _SECOND)] if example.other_box is not None else []
    if example.other_image:
        views = [_View(example.image, tuple(first)), _View(example.other_image, tuple(second))]
    else:
        views = [_View(example.image, (*first, *second))]
    return [view for view in views if view.image]


def _within(image: np.ndarray, boxes: Sequence, max_bytes: int) -> bytes:
    """A JPEG of at most ``max_bytes``, or the smallest there is."""
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
    """Whether some of a stranger's box is on the image."""
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


@dataclass(frozen=True)
class Histogram:
    """One figure of the report.

    Attributes:
        title: what it shows.
        png: the figure.
        legend: name and RGB of each colour.
        note: what was left out of it, or where its figures come from, or "".
    """

    title: str
    png: bytes
    legend: list[tuple[str, tuple[int, int, int]]]
    note: str = ""


def legend_colors(names: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """RGB of each class: those of every picture for the first seven, grey for all others."""
    colors = class_colors(names[:_MAX_CLASSES])
    known = {name: tuple(color) for name, color in zip(names[:_MAX_CLASSES], colors, strict=True)}
    return {name: known.get(name, _OTHER_COLOR) for name in names}


def draw_histograms(
    datasets: Sequence[DatasetSummary], names: Sequence[str], files: Sequence[str]
) -> list[Histogram]:
    """Draw the distributions of a data set, over all its files.

    Args:
        datasets: one for each annotation file.
        names: class names, the most frequent first.
        files: short names of the files.

    Returns:
        Sizes in px, in µm where a scale is known, aspect ratios, particles per image; those
        without a value are left out.
    """
    labels = [name for dataset in datasets for name in dataset.class_of]
    sizes = _joined(datasets, "size_px")
    sides = _joined(datasets, "long_side_px")
    scales = _joined(datasets, "um_per_px")
    drawn = [
        _by_class("Size: square root of the mask's area", "px", sizes, labels, names),
        _by_class("Longer side of the box", "px", sides, labels, names),
        _by_class(
            "Longer side of the box, by um_per_px of the image in the JSON",
            "µm",
            sides * scales,
            labels,
            names,
        ),
        _by_class(
            "Aspect ratio: longer through shorter side of the smallest rectangle around",
            "",
            _joined(datasets, "aspect_ratio"),
            labels,
            names,
        ),
        _particles_per_image(datasets, files),
    ]
    return [histogram for histogram in drawn if histogram is not None]


def _joined(datasets: Sequence[DatasetSummary], field: str) -> np.ndarray:
    values: list[Any] = [value for dataset in datasets for value in getattr(dataset, field)]
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _by_class(
    title: str, unit: str, values: np.ndarray, labels: Sequence[str], names: Sequence[str]
) -> Histogram | None:
    """Stack the classes over a logarithmic axis."""
    usable = (values > _RANGE[0]) & (values < _RANGE[1])  # not NaN either
    if not usable.any():
        return None
    shown = list(names[:_MAX_CLASSES])
    number = {name: index for index, name in enumerate(shown)}
    classes = np.array([number.get(label, len(shown)) for label in labels])[usable]
    values, missing = values[usable], int(np.count_nonzero(~usable))
    low, high = values.min() / 1.1, values.max() * 1.1
    edges = np.geomspace(low, high, _BINS + 1)
    colors = [*legend_colors(shown).values(), _OTHER_COLOR]
    present = [index for index in range(len(shown) + 1) if (classes == index).any()]
    with rc_context({"text.parse_math": False, "font.size": 8}):
        figure, axes = _axes()
        axes.hist(
            [values[classes == index] for index in present],
            edges,
            stacked=True,
            color=[_unit(colors[index]) for index in present],
            edgecolor="white",
            linewidth=0.4,
        )
        axes.set(xscale="log", xlim=(low, high), xlabel=unit, ylabel="particles")
        _decimal_ticks(axes, low, high)
        png = _png(figure)
    median = f"Median {np.median(values):.3g}{' ' if unit else ''}{unit} of {len(values)} particles"
    note = f"{median}; {missing} without a value are left out." if missing else f"{median}."
    legend = [([*shown, _OTHER][index], colors[index]) for index in present]
    return Histogram(title, png, legend, note)


def _particles_per_image(
    datasets: Sequence[DatasetSummary], files: Sequence[str]
) -> Histogram | None:
    counts = [np.array(dataset.particles_per_image, dtype=np.int64) for dataset in datasets]
    used = [index for index, count in enumerate(counts) if len(count)]
    if not used:
        return None
    shown, rest = used[:_MAX_CLASSES], used[_MAX_CLASSES:]
    groups = [counts[index] for index in shown]
    colors = list(legend_colors([str(index) for index in shown]).values())
    legend = [(files[index], color) for index, color in zip(shown, colors, strict=True)]
    if rest:
        groups.append(np.concatenate([counts[index] for index in rest]))
        colors.append(_OTHER_COLOR)
        legend.append((f"{len(rest)} other files", _OTHER_COLOR))
    every = np.concatenate(groups)
    step = max(1, math.ceil((every.max() + 1) / _BINS))
    edges = np.arange(0, every.max() + step + 1, step) - 0.5
    with rc_context({"text.parse_math": False, "font.size": 8}):
        figure, axes = _axes()
        axes.hist(
            groups,
            edges,
            stacked=True,
            color=[_unit(color) for color in colors],
            edgecolor="white",
            linewidth=0.4,
        )
        axes.set(xlabel="particles", ylabel="images", xlim=(edges[0], edges[-1]))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        png = _png(figure)
    blanks = int(np.count_nonzero(every == 0))
    note = f"Median {np.median(every):g}, most {every.max()}, {blanks or 'no'} blank images."
    return Histogram("Particles per image", png, legend, note)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 2.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _decimal_ticks(axes: Axes, low: float, high: float) -> None:
    """Label a logarithmic axis with plain numbers, nine of them at most."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 9:
            break
    if len(ticks) < 3:
        ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    axes.set_xticks(ticks[:: math.ceil(len(ticks) / 9)])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _unit(color: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(channel / 255 for channel in color)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=170)
    return file.getvalue()


_RANK = {PROBLEM: 0, WARNING: 1, INFO: 2}
_TEXT_LIMIT = 600
_ROWS_LIMIT = 30
_SIGNS = {PROBLEM: "✕", WARNING: "!", INFO: "i"}


def write_report(diagnosis: Diagnosis, folder: Path) -> Path:
    """Write what was found as ``report.json`` and ``report.html``.

    The JSON is :meth:`Diagnosis.to_dict`, with ``null`` where a figure is not finite. The page
    holds its pictures and its style in itself and runs no script; a page that is opened years
    later shows the same.

    Args:
        diagnosis: what was found.
        folder: where the two files are written; it is made if need be.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: the files cannot be written.
    """
    folder = Path(folder)
    page = folder / "report.html"
    html = render_report(diagnosis)
    write_json(folder / "report.json", _strict(diagnosis.to_dict()), indent=1)
    with atomic_write(page, "wb") as file:
        # Half a surrogate pair, which JSON may hold, is no text.
        file.write(html.encode("utf-8", "replace"))
    return page


def render_report(diagnosis: Diagnosis) -> str:
    """Make the HTML page of a diagnosis."""
    files = short_names([dataset.json_file for dataset in diagnosis.datasets])
    findings = sorted(
        diagnosis.findings, key=lambda finding: (_RANK.get(finding.severity, 3), -finding.count)
    )
    names = _class_names(diagnosis.datasets)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=_short, data_uri=_data_uri, rgb=_rgb, percent=_percent)
    return environment.get_template("doctor.html.j2").render(
        verdict=verdict(diagnosis),
        worst=findings[0].severity if findings else "clean" if _has_images(diagnosis) else WARNING,
        version=microplastics.__version__,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        datasets=list(zip(files, diagnosis.datasets, strict=True)),
        classes=_class_table(diagnosis.datasets, names),
        findings=list(zip(findings, draw_places(findings), strict=True)),
        histograms=draw_histograms(diagnosis.datasets, names, files),
        fit=_fit_table(diagnosis.model_fit),
        signs=_SIGNS,
        file_names={d.json_file: f for f, d in zip(files, diagnosis.datasets, strict=True)},
    )


def verdict(diagnosis: Diagnosis) -> str:
    """Say in one sentence what was found."""
    kinds: dict[str, list[Finding]] = {PROBLEM: [], WARNING: []}
    for finding in diagnosis.findings:
        kinds.get(finding.severity, []).append(finding)
    problems, warnings = (_counted(kinds[s], s) for s in (PROBLEM, WARNING))
    if kinds[PROBLEM]:
        more = f", and {warnings}" if kinds[WARNING] else ""
        return f"Not ready for training: {problems}{more}."
    if not _has_images(diagnosis):
        return "There is no image to train on."
    if kinds[WARNING]:
        return f"It can be trained on, but look at {warnings} first."
    return "Clean: nothing stands in the way of training."


def short_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of paths that tell them apart.

    Args:
        paths: of files; a path that stands there twice keeps its whole name twice.

    Returns:
        For each path its name, with as many folders before it as are needed.
    """
    parts = [PurePath(path).parts or (path,) for path in paths]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(p[-length:] == own[-length:] for p in parts) > 1:
            length += 1
        names.append(str(PurePath(*own[-length:])))
    return names


def _has_images(diagnosis: Diagnosis) -> bool:
    return any(dataset.num_images for dataset in diagnosis.datasets)


def _counted(findings: Sequence[Finding], word: str) -> str:
    places = sum(finding.count for finding in findings)
    kinds = f"{len(findings)} {word}{'' if len(findings) == 1 else 's'}"
    return f"{kinds} in {places} {'place' if places == 1 else 'places'}"


def _class_names(datasets: Sequence[DatasetSummary]) -> list[str]:
    """All class names, the most frequent first."""
    counts: Counter[str] = Counter()
    for dataset in datasets:
        counts.update(dict.fromkeys(dataset.class_of, 0))
        counts.update(dataset.classes)
    return [name for name, _ in counts.most_common()]


def _class_table(datasets: Sequence[DatasetSummary], names: Sequence[str]) -> dict[str, Any]:
    """Counts of each class in each file, with the share of the file for the bar behind it."""
    colors = legend_colors(names)
    totals = [sum(dataset.classes.values()) for dataset in datasets]
    rows = [
        {
            "name": name,
            "color": colors[name],
            "cells": [
                (count, count / total if total else 0.0)
                for count, total in (
                    (dataset.classes.get(name, 0), total)
                    for dataset, total in zip(datasets, totals, strict=True)
                )
            ],
        }
        for name in names
    ]
    return {"rows": rows[:_ROWS_LIMIT], "more": max(0, len(rows) - _ROWS_LIMIT)}


def _fit_table(fit: ModelFit | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    names = list(dict.fromkeys([*fit.no_anchor, *fit.small, *fit.mask_iou]))
    sizes = sorted({size for by_size in fit.mask_iou.values() for size in by_size})
    rows = [
        {
            "name": name,
            "no_anchor": fit.no_anchor.get(name),
            "small": fit.small.get(name),
            "iou": [fit.mask_iou.get(name, {}).get(size) for size in sizes],
        }
        for name in names
    ]
    return {"fit": fit, "sizes": sizes, "rows": rows}


def _strict(value: Any) -> Any:
    """Plain values with ``None`` for figures that JSON has no number for."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _short(text: Any, limit: int = _TEXT_LIMIT) -> str:
    """Leave out the middle of a text that is too long for a page."""
    text = str(text)
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def _percent(share: float | None) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def _rgb(color: Sequence[int]) -> str:
    return "rgb({}, {}, {})".format(*(int(channel) for channel in color))


def _data_uri(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
