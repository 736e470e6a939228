"""A plot of accuracy over the number of training images."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from microplastics.report.curves import COLORS, save_figure


def plot_learning_curve(rows: Sequence[dict[str, Any]], output: str | os.PathLike) -> None:
    """Plot accuracy over the number of training images, one line for each starting point.

    Args:
        rows: of ``engine.learning_curve.summarise``: ``images``, ``start``, metrics and spreads.
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
