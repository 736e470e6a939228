"""Curves of training, of counting and of learning, and points of sweeps.

All raise UserError for files that cannot be used or written.
"""

import json
import logging
import math
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from microplastics.data.anchors import AnchorSearch
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, read_table, read_text

logger = logging.getLogger(__name__)

Curve = tuple[list[int], list[float]]

_VALIDATION = "validation/"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_FORMATS = (".png", ".pdf", ".svg", ".jpg")

_RIGHT_FILE = "give the counting_curves.csv that microplastics evaluate or thresholds wrote"
_NUMBERS = ["threshold", "true", "predicted"]
_SHARES = ["precision", "recall", "f1"]


def read_metrics(metrics_json: str | os.PathLike) -> dict[str, Curve]:
    """Read the JSON lines that Detectron2's ``JSONWriter`` appends during training.

    Where an iteration stands there twice, as after a resume, the later line counts. Values that
    are not finite are left out. A line that is cut off, as the last one of a killed run, is left
    out with a warning.

    Returns:
        For each name its iterations, ascending, and values.
    """
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    broken = 0
    for line in filter(str.strip, read_text(metrics_json).split("\n")):
        record = _record(line)
        broken += record is None
        for name, value in (record or {}).items():
            # False for NaN.
            finite = type(value) in (int, float) and abs(value) <= sys.float_info.max
            if name != "iteration" and finite:
                curves[name][record["iteration"]] = float(value)
    if broken:
        logger.warning("%d lines of %s are cut off or no metrics; left out.", broken, metrics_json)
    return {
        name: tuple(map(list, zip(*sorted(c.items()), strict=True))) for name, c in curves.items()
    }


def plot_training_curves(metrics_json: str | os.PathLike, output: str | os.PathLike) -> None:
    """Plot losses, learning rate and accuracy over the iterations of a training.

    The losses of training (medians of 20 iterations, as Detectron2 writes them) are lines, those
    of validation dotted lines of the same colour. Panels without data are left out.

    Args:
        metrics_json: ``metrics.json`` of a training's OUTPUT_DIR.
        output: ``.png``, ``.jpg``, ``.pdf`` or ``.svg`` file.
    """
    curves = read_metrics(metrics_json)
    total = [n for n in curves if n == "total_loss" or n.endswith(_VALIDATION + "total_loss")]
    ends = ("segm/AP50", "segm/AP", "bbox/AP50", "bbox/AP")
    accuracy = [n for end in ends for n in curves if n == end or n.endswith(f"/{end}")]
    accuracy += [n for n in curves if "semantic/" in n]
    panels = {
        _plot_total: sorted(total, key=len),
        _plot_parts: [n for n in curves if n.startswith("loss_")],
        _plot_accuracy: accuracy,
    }
    panels = {draw: names for draw, names in panels.items() if names}
    if not panels:
        raise UserError(
            f"{os.fspath(metrics_json)} contains no training curves; give metrics.json of a "
            "training's OUTPUT_DIR (not that of its folder inference).",
            code="file_invalid",
        )
    figure = Figure(figsize=(9, 3.4 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (draw, names) in zip(rows, panels.items(), strict=True):
        draw(ax, curves, names)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel("Iteration")
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, output)


def save_figure(figure: Figure, output: str | os.PathLike) -> None:
    """Write a figure whole or not at all, in the format of the ending of its name."""
    suffix = Path(output).suffix.lower()
    if suffix not in _FORMATS:
        raise UserError(
            f"Curves are written as {', '.join(_FORMATS)}, not as {output}; rename it.",
            code="option_invalid",
        )
    FigureCanvasAgg(figure)
    with atomic_write(output, "wb") as file:
        figure.savefig(file, format=suffix[1:], dpi=110)


def _plot_total(ax: Axes, curves: dict[str, Curve], names: list[str]) -> None:
    for color, name in zip(COLORS, names, strict=False):
        evaluated = _VALIDATION in name
        label = name.replace("total_loss", "total loss") if evaluated else "training/total loss"
        style, marker = (":", "o") if evaluated else ("-", "")
        _plot(ax, curves[name], label, color, style, marker)
    ax.set_ylabel("Loss")
    ax.set_ylim(bottom=0)
    handles, labels = ax.get_legend_handles_labels()
    if "lr" in curves:
        rate = ax.twinx()
        (line,) = rate.plot(*curves["lr"], color="#999999", linewidth=1, linestyle="--")
        rate.set_ylabel("Learning rate", color="#666666")
        rate.set_ylim(bottom=0)
        rate.spines["top"].set_visible(False)
        handles, labels = [*handles, line], [*labels, "learning rate"]
    ax.legend(handles, labels, frameon=False)


def _plot_parts(ax: Axes, curves: dict[str, Curve], names: list[str]) -> None:
    for index, name in enumerate(names):
        color = COLORS[index % len(COLORS)]
        # A cascade has more losses than there are colours.
        style = "-" if index < len(COLORS) else "-."
        _plot(ax, curves[name], name.removeprefix("loss_"), color, style)
        for validation in (n for n in curves if n.endswith(_VALIDATION + name)):
            _plot(ax, curves[validation], None, color, ":", "o")
    ax.set_ylabel("Losses (dotted: validation)")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, ncols=min(len(names), 5))


def _plot_accuracy(ax: Axes, curves: dict[str, Curve], names: list[str]) -> None:
    for index, name in enumerate(names):
        iterations, values = curves[name]
        best = max(range(len(values)), key=values.__getitem__)
        label = f"{name} (best {values[best]:.1f} at {iterations[best]})"
        _plot(ax, (iterations, values), label, COLORS[index % len(COLORS)], marker="o")
    ax.set_ylabel("Validation, %")
    ax.set_ylim(0, 100)
    ax.legend(frameon=False, fontsize="small", ncols=2)


def _plot(ax: Axes, curve: Curve, label, color, style: str = "-", marker: str = "") -> None:
    ax.plot(*curve, label=label, color=color, linestyle=style, marker=marker, ms=3.5, lw=1.5)


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(record, dict) and type(record.get("iteration")) is int
    return record if valid else None


def read_counting_curves(path: str | os.PathLike) -> dict[str, pd.DataFrame]:
    """Read the columns of ``counting_curves.csv`` that are plotted, of each class and ``all``."""
    table = read_table(path)
    try:
        curves = table[_NUMBERS + _SHARES].replace("", "nan").astype(float)
        numbers = curves[_NUMBERS]
        in_range = ((numbers >= 0) & (numbers <= 1e12)).all(axis=None)
        if table.empty or not table.columns.is_unique or not in_range:
            raise ValueError("a cell is empty or out of range")
        return dict(list(curves.groupby(table["class"], sort=False)))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{os.fspath(path)} contains no threshold curves; {_RIGHT_FILE}.", code="file_invalid"
        ) from error


def plot_counting_curves(
    table: str | os.PathLike,
    output: str | os.PathLike,
    thresholds: Mapping[str, float] | None = None,
) -> None:
    """Plot the curves of every class of ``counting_curves.csv`` in a panel of its own.

    ``thresholds``, by class name, are drawn as vertical lines.
    """
    panels = read_counting_curves(table)
    across = 2 if len(panels) == 4 else min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(4.6 * across, 3.4 * down + 0.5), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax, (name, columns) in zip(axes, panels.items(), strict=False):
        handles = _plot_class(ax, name, columns, (thresholds or {}).get(name))
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    labels = [handle.get_label() for handle in handles]
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    save_figure(figure, output)


def _plot_class(ax: Axes, name: str, columns: pd.DataFrame, threshold: float | None):
    x = columns["threshold"]
    handles = []
    for figure, color in zip(("F1", "precision", "recall"), COLORS, strict=False):
        values = columns[figure.lower()]
        handles += ax.plot(x, values, color=color, lw=1.5, label=f"{figure} (%)")
    ax.set(xlim=(0, 1), ylim=(0, 101), xlabel="score threshold", ylabel="%")
    title = name if threshold is None else f"{name}, threshold {threshold:g}"
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if threshold is not None:
        ax.axvline(threshold, color="#444444", lw=1)
    counts = ax.twinx()
    handles += counts.plot(x, columns["predicted"], color=COLORS[3], lw=1.5, label="predicted")
    handles += counts.plot(x, columns["true"], color=COLORS[3], lw=1.2, ls="--", label="true")
    # Beyond twice the truth it does not matter how many more there are.
    top = 2 * columns["true"].iloc[0] or columns["predicted"].max()
    counts.set_ylim(0, max(top, 1))
    counts.set_ylabel("particles", color=COLORS[3])
    counts.spines["top"].set_visible(False)
    return handles


def plot_learning_curve(rows: Sequence[dict[str, Any]], output: str | os.PathLike) -> None:
    """Plot accuracy over the number of training images, one line for each starting point.

    ``rows`` are those of ``experiments.learning_curve.summarise``.
    """
    metrics = [m for m in ("segm/AP50", "segm/AP", "bbox/AP") if any(m in row for row in rows)]
    figure = Figure(figsize=(4.2 * len(metrics), 3.6), layout="constrained")
    for metric, axes in zip(metrics, np.atleast_1d(figure.subplots(1, len(metrics))), strict=True):
        for color, start in zip(COLORS, dict.fromkeys(r["start"] for r in rows), strict=False):
            line = sorted(
                (r["images"], r[metric], r[f"{metric} spread"])
                for r in rows
                if r["start"] == start and metric in r
            )
            if line:
                x, y, spread = zip(*line, strict=True)
                axes.errorbar(x, y, spread, color=color, marker="o", capsize=3, label=start)
        axes.set(xlabel="training images", ylabel=f"{metric} (%)", title=metric, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(title="started from")
    save_figure(figure, output)


def plot_anchors(search: AnchorSearch, output: str | os.PathLike) -> None:
    """Plot the shapes of boxes and anchors, and how many boxes have an anchor of which IoU."""
    data, after = search.data, search.fits[search.chosen]
    figure = Figure(figsize=(9, 4), layout="constrained")
    shapes, recall = figure.subplots(1, 2)
    width, height = (data.boxes[:, 2:] - data.boxes[:, :2]).T
    for label, color in zip(np.unique(data.labels), COLORS[2:], strict=False):
        rows = data.labels == label
        name = data.class_names[label]
        shapes.scatter(width[rows], height[rows], s=3, alpha=0.4, color=color, label=name)
    fits = {"before": search.fits["before"], search.chosen: after}
    for (name, fit), color in zip(fits.items(), COLORS, strict=False):
        pairs = [
            (s, r)
            for row in zip(fit.sizes, fit.ratios, strict=True)
            for s in row[0]
            for r in row[1]
        ]
        x, y = [s / r**0.5 for s, r in pairs], [s * r**0.5 for s, r in pairs]
        shapes.scatter(x, y, marker="+", color=color, label=f"anchors: {name}")
        recall.plot(np.sort(fit.best), np.linspace(1, 0, len(data)), color=color, label=name)
    shapes.set(xscale="log", yscale="log", xlabel="width, px", ylabel="height, px")
    recall.set(xlabel="IoU with the best anchor", ylabel="fraction of the boxes", xlim=(0, 1))
    for ax in (shapes, recall):
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize="small", markerscale=2)
        ax.spines[["top", "right"]].set_visible(False)
    save_figure(figure, output)


def plot_sweep(
    rows: Sequence[Mapping[str, Any]],
    points: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    output: str | os.PathLike,
) -> None:
    """Plot the metrics of a sweep above, and below their differences from the first settings.

    Large points are means with their intervals, if there are any, small ones single seeds.

    Args:
        rows: those of ``experiments.sweep.summarise``.
        points: ``run``, ``seed`` and metrics of each run.
        metrics: a column of panels each.
        output: as of :func:`save_figure`.
    """
    names = [row["run"] for row in rows]
    first = {point["seed"]: point for point in points if point["run"] == names[0]}
    size = (3.4 * len(metrics) + 1, 2 * (0.9 + 0.42 * len(names)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(2, len(metrics), sharey=True, squeeze=False)
    for metric, (above, below) in zip(metrics, panels.T, strict=True):
        values = [(p["run"], p.get(metric, math.nan)) for p in points]
        differences = [
            (p["run"], p.get(metric, math.nan) - first[p["seed"]].get(metric, math.nan))
            for p in points
            if p["seed"] in first and p["run"] != names[0]
        ]
        _plot_points(above, rows, metric, values)
        _plot_points(below, rows, f"{metric} difference", differences)
        above.set_xlabel(metric)
        below.set_xlabel(f"{metric}, difference from {names[0]}")
        below.axvline(0, color="#444444", lw=1)
    for ax in panels[:, 0]:
        ax.set_yticks(range(len(names)), names)
    panels[0, 0].set_ylim(len(names) - 0.5, -0.5)  # the first row on top
    save_figure(figure, output)


def _plot_points(
    ax: Axes, rows: Sequence[Mapping[str, Any]], name: str, points: Sequence[tuple[str, float]]
) -> None:
    places = {row["run"]: place for place, row in enumerate(rows)}
    below = [places[run] + 0.2 for run, _ in points]
    ax.plot([value for _, value in points], below, "o", color="#999999", ms=3)
    for place, row in enumerate(rows):
        color, mean = COLORS[place % len(COLORS)], row.get(name, math.nan)
        ax.plot(mean, place, "D", color=color, ms=6)
        ax.plot([row.get(f"{name} low"), row.get(f"{name} high")], [place] * 2, color=color, lw=2)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
