"""Precision, recall, F1 and counts over the score threshold, as a picture."""

import csv
import math
import os
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from microplastics.errors import UserError
from microplastics.report.curves import COLORS, save_figure

_RIGHT_FILE = "give the counting_curves.csv that --eval-only or choose_threshold.py wrote"
_COLUMNS = ("threshold", "true", "predicted", "precision", "recall", "F1")
_NUMBERS = ("threshold", "true", "predicted")
_MOST = 1e12
_ACROSS = 3


def read_counting_curves(path: str | os.PathLike) -> dict[str, dict[str, list[float]]]:
    """Read ``counting_curves.csv``.

    Returns:
        For each class, and for ``all``, its columns; NaN where a cell is empty.

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
        raise UserError(f"Cannot read {path}: {error.strerror}; {_RIGHT_FILE}.") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} holds no threshold curves; {_RIGHT_FILE}.") from error
    if not panels:
        raise UserError(f"{path} holds no threshold curves; {_RIGHT_FILE}.")
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
