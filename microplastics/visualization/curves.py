"""Curves of training, of counting and of learning."""

import csv
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

logger = logging.getLogger(__name__)

Curve = tuple[list[int], list[float]]

_VALIDATION = "validation/"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_FORMATS = (".png", ".pdf", ".svg", ".jpg")
_SEMANTIC = "semantic/"

_RIGHT_FILE = "give the counting_curves.csv that microplastics evaluate or thresholds wrote"
_COLUMNS = ("threshold", "true", "predicted", "precision", "recall", "F1")
_NUMBERS = ("threshold", "true", "predicted")
_MOST = 1e12
_ACROSS = 3


def read_metrics(metrics_json: str | os.PathLike) -> dict[str, Curve]:
    """Read the JSON lines that Detectron2's ``JSONWriter`` appends during training.

    Where an iteration stands there twice, as after a resume, the later line counts. Values that
    are not finite are left out. A line that is cut off, as the last one of a killed run, is left
    out with a warning.

    Args:
        metrics_json: ``metrics.json`` of a training's OUTPUT_DIR.

    Returns:
        For each name its iterations, ascending, and values.

    Raises:
        UserError: the file is missing or holds no such lines.
    """
    path = os.fspath(metrics_json)
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    broken = 0
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in filter(str.strip, file):
                record = _record(line)
                if record is None:
                    broken += 1
                    continue
                for name, value in record.items():
                    if name != "iteration" and _is_finite(value):
                        curves[name][record["iteration"]] = float(value)
    except OSError as error:
        raise UserError(
            f"Cannot read {path}: {error.strerror}; give metrics.json of a training's OUTPUT_DIR.",
            code="file_missing",
        ) from error
    if not curves:
        raise UserError(
            f"{path} contains no training curves; give metrics.json of a training's OUTPUT_DIR "
            "(not that of its folder inference).",
            code="file_invalid",
        )
    if broken:
        logger.warning("%d lines of %s are cut off or no metrics; left out.", broken, path)
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

    Raises:
        UserError: there is nothing to plot, or the file cannot be written.
    """
    figure_format(output)
    curves = read_metrics(metrics_json)
    panels = [
        (draw, names)
        for draw, names in (
            (_plot_total, _total_names(curves)),
            (_plot_parts, _part_names(curves)),
            (_plot_accuracy, _accuracy_names(curves)),
        )
        if names
    ]
    if not panels:
        raise UserError(
            f"{os.fspath(metrics_json)} contains neither losses nor AP; give metrics.json of a "
            "training's OUTPUT_DIR.",
            code="file_invalid",
        )
    figure = Figure(figsize=(9, 3.4 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (draw, names) in zip(rows, panels, strict=True):
        draw(ax, curves, names)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel("Iteration")
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, output)


def figure_format(output: str | os.PathLike) -> str:
    """Return the format that the ending of a file name asks for.

    Raises:
        UserError: it is none that figures are written in.
    """
    suffix = Path(output).suffix.lower()
    if suffix not in _FORMATS:
        raise UserError(
            f"Curves are written as {', '.join(_FORMATS)}, not as {output}; rename it.",
            code="option_invalid",
        )
    return suffix[1:]


def save_figure(figure: Figure, output: str | os.PathLike) -> None:
    """Write a figure whole or not at all, in the format of the ending of its name.

    Raises:
        UserError: the ending is unknown, or the file cannot be written.
    """
    FigureCanvasAgg(figure)
    with atomic_write(output, "wb") as file:
        figure.savefig(file, format=figure_format(output), dpi=110)


def _total_names(curves: dict[str, Curve]) -> list[str]:
    names = [n for n in curves if n == "total_loss" or n.endswith(_VALIDATION + "total_loss")]
    return sorted(names, key=len)


def _part_names(curves: dict[str, Curve]) -> list[str]:
    return [n for n in curves if n.startswith("loss_")]


def _accuracy_names(curves: dict[str, Curve]) -> list[str]:
    wanted = ("segm/AP50", "segm/AP", "bbox/AP50", "bbox/AP")
    names = [n for w in wanted for n in curves if n == w or n.endswith(f"/{w}")]
    return names + [n for n in curves if _SEMANTIC in n]


def _plot_total(ax: Axes, curves: dict[str, Curve], names: list[str]) -> None:
    for color, name in zip(COLORS, names, strict=False):
        evaluated = _VALIDATION in name
        label = name.replace("total_loss", "total loss") if evaluated else "training/total loss"
        _plot(ax, curves[name], label, color, evaluated)
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
        _plot(ax, curves[name], name.removeprefix("loss_"), color, False)
        for validation in (n for n in curves if n.endswith(_VALIDATION + name)):
            _plot(ax, curves[validation], None, color, True)
    ax.set_ylabel("Losses (dotted: validation)")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, ncols=min(len(names), 5))


def _plot_accuracy(ax: Axes, curves: dict[str, Curve], names: list[str]) -> None:
    for index, name in enumerate(names):
        iterations, values = curves[name]
        best = max(range(len(values)), key=values.__getitem__)
        label = f"{name} (best {values[best]:.1f} at {iterations[best]})"
        _plot(ax, (iterations, values), label, COLORS[index % len(COLORS)], False, marker="o")
    ax.set_ylabel("Validation, %")
    ax.set_ylim(0, 100)
    ax.legend(frameon=False, fontsize="small", ncols=2)


def _plot(ax: Axes, curve: Curve, label, color, dotted: bool, marker: str | None = None) -> None:
    marker = "o" if dotted else marker
    style = ":" if dotted else "-"
    ax.plot(*curve, label=label, color=color, linestyle=style, marker=marker, ms=3.5, lw=1.5)


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("iteration")) is not int:
        return None
    return record


def _is_finite(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def read_counting_curves(path: str | os.PathLike) -> dict[str, dict[str, list[float]]]:
    """Read ``counting_curves.csv``.

    Returns:
        Columns of each class and of ``all``; NaN for empty cells.

    Raises:
        UserError: the file is missing or is not such a table.
    """
    path = os.fspath(path)
    panels: dict[str, dict[str, list[float]]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                columns = panels.setdefault(row["class"], {name: [] for name in _COLUMNS})
                for name in _COLUMNS:
                    value = float(row[name] or "nan")
                    if name in _NUMBERS and not 0 <= value <= _MOST:
                        raise ValueError(f"{name} is {value}")
                    columns[name].append(value)
    except OSError as error:
        raise UserError(
            f"Cannot read {path}: {error.strerror}; {_RIGHT_FILE}.", code="file_missing"
        ) from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} contains no threshold curves; {_RIGHT_FILE}.", code="file_invalid"
        ) from error
    if not panels:
        raise UserError(f"{path} contains no threshold curves; {_RIGHT_FILE}.", code="file_invalid")
    return panels


def plot_counting_curves(
    table: str | os.PathLike,
    output: str | os.PathLike,
    thresholds: Mapping[str, float] | None = None,
) -> None:
    """Plot the curves of every class in a panel of its own.

    Args:
        table: ``counting_curves.csv``.
        output: ``.png``, ``.jpg``, ``.pdf`` or ``.svg`` file.
        thresholds: by class name, drawn as a vertical line.

    Raises:
        UserError: the table cannot be used, or the file cannot be written.
    """
    panels = read_counting_curves(table)
    across = min(len(panels), _ACROSS if len(panels) != 4 else 2)
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


def _plot_class(ax: Axes, name: str, columns: dict[str, list[float]], threshold: float | None):
    x = columns["threshold"]
    handles = []
    for figure, color in zip(("F1", "precision", "recall"), COLORS, strict=False):
        handles += ax.plot(x, columns[figure], color=color, lw=1.5, label=f"{figure} (%)")
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
    top = 2 * columns["true"][0] or max(columns["predicted"])
    counts.set_ylim(0, max(top, 1))
    counts.set_ylabel("particles", color=COLORS[3])
    counts.spines["top"].set_visible(False)
    return handles


def plot_learning_curve(rows: Sequence[dict[str, Any]], output: str | os.PathLike) -> None:
    """Plot accuracy over the number of training images, one line for each starting point.

    Args:
        rows: of ``experiments.learning_curve.summarise``: ``images``, ``start``, metrics and
            spreads.
        output: .png, .pdf, .svg or .jpg file.

    Raises:
        UserError: the output's ending is none of these, or it cannot be written.
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
