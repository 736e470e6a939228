"""Charts of an evaluation: errors, thresholds, scores, lengths, precision and recall."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from bokeh.models import ColumnDataSource, DataRange1d, Range1d, Span
from bokeh.palettes import Viridis256
from bokeh.transform import dodge, log_cmap

from microplastics.evaluation.coco import IOUS
from microplastics.evaluation.errors import KINDS
from microplastics.report.page import add_hover, add_legend, new_figure

if TYPE_CHECKING:
    from microplastics.report.evaluation import Evaluation

_SMALL = {"width": 310, "height": 270}  # three side by side on a screen, two on paper
# More classes than this make charts of classes side by side unreadable, and pages heavy.
MAX_CLASSES = 12
_MAX_BARS = 7
_POINTS = 2000
_GREY = (90, 90, 90)
# Of each class in turn, for those who do not tell its colour.
_DASHES = ("solid", (6, 3), (2, 2), (10, 3, 2, 3))
_MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "star")
# Without the lightest, which is hard to see on white.
_IOU_COLORS = [Viridis256[round(place)] for place in np.linspace(215, 0, len(IOUS))]
_BIN, _MIN_DETECTIONS = 0.05, 5


class Chart(NamedTuple):
    """A Bokeh figure and what it shows."""

    title: str
    figure: Any


def draw_charts(evaluation: "Evaluation") -> dict[str, Chart]:
    """Draw the charts of an evaluation, by their place in the page: ``errors``, ``recall-0``, …"""
    charts = {}
    if evaluation.errors is not None:
        charts["errors"] = _errors(evaluation)
    if evaluation.curves:
        charts["thresholds-0"] = _threshold_curves(evaluation, "count_error_pct", "Count error")
        charts["thresholds-1"] = _threshold_curves(evaluation, "F1", "F1")
    for number, name in enumerate(evaluation.class_names[:MAX_CLASSES]):
        charts[f"recall-{number}"] = _precision_recall(evaluation, name)
        if evaluation.scores is not None:
            charts[f"scores-{number}"] = _scores(evaluation.scores, name)
    lengths = matched_lengths(evaluation)
    if lengths is not None and len(lengths):
        charts["lengths"] = _lengths(evaluation, lengths)
    return charts


def _source(columns: pd.DataFrame | dict[str, Any]) -> ColumnDataSource:
    return ColumnDataSource({name: np.asarray(values) for name, values in columns.items()})


def _colors(evaluation: "Evaluation") -> list[tuple[int, int, int]]:
    return [tuple(color) for color in evaluation.colors]


def _errors(evaluation: "Evaluation") -> Chart:
    """Bars of the AP50 lost to each kind, side by side for the classes."""
    names = evaluation.class_names if len(evaluation.class_names) <= _MAX_BARS else []
    looks = {"x_range": list(KINDS), "x_axis_type": "auto", "tools": "save"}
    made = new_figure("", "AP50 lost, percentage points", **looks)
    bars = [*zip(names, _colors(evaluation), strict=False), ("all", _GREY)]
    bars = bars[-1:] if len(names) == 1 else bars
    width = 0.8 / len(bars)
    top = 0.0
    for place, (name, color) in enumerate(bars):
        number = place if name in names else len(evaluation.class_names)
        lost = [evaluation.lost(kind)[number] for kind in KINDS]
        top = max(top, np.nanmax([0.0, *lost]))
        data = {"kind": list(KINDS), "lost": np.nan_to_num(lost), "class": [name] * len(KINDS)}
        made.vbar(
            dodge("kind", (place + 0.5) * width - 0.4, range=made.x_range),
            top="lost",
            width=0.9 * width,
            source=_source(data),
            color=color,
            legend_label=name,
        )
    made.y_range = Range1d(0, 1.25 * max(top, 1.0))
    add_hover(made, [("class", "@class"), ("error", "@kind"), ("AP50 lost", "@lost{0.0}")])
    add_legend(made)
    return Chart("AP50 lost to each kind of error", made)


def _threshold_curves(evaluation: "Evaluation", column: str, label: str) -> Chart:
    """One figure of each class against its score threshold, with the threshold in use."""
    signed = column == "count_error_pct"
    range_ = Range1d(-100, 100) if signed else Range1d(0, 102)
    made = new_figure("score threshold", f"{label}, %", x_range=Range1d(0, 1), y_range=range_)
    if signed:
        made.add_layout(Span(location=0, dimension="width", line_color="#888888", line_width=1))
    thresholds = evaluation.about["score_thresholds"]
    lines = []
    shown = list(zip(evaluation.class_names, _colors(evaluation), strict=True))[:MAX_CLASSES]
    for place, ((name, color), curve) in enumerate(zip(shown, evaluation.curves, strict=False)):
        source = _source(curve.assign(name=name).drop(columns="class"))
        looks = {"color": color, "legend_label": name}
        dash = {"line_width": 2, "line_dash": _DASHES[place % len(_DASHES)]}
        lines.append(made.line("threshold", column, source=source, **dash, **looks))
        at = thresholds.get(name)
        if at is not None:
            value = np.interp(at, curve["threshold"], curve[column])
            made.scatter([at], [value], size=9, marker=_MARKERS[place % len(_MARKERS)], **looks)
    fields = [("class", "@name"), ("threshold", "@threshold{0.00}"), ("true", "@true")]
    fields += [("counted", "@predicted"), ("precision", "@precision{0.0}")]
    fields += [("recall", "@recall{0.0}"), ("F1", "@F1{0.0}")]
    add_hover(made, fields, renderers=lines)
    add_legend(made, "top_right" if signed else "bottom_left")
    return Chart(
        f"{label} of each class, by score threshold; the mark is the threshold in use", made
    )


def _precision_recall(evaluation: "Evaluation", name: str) -> Chart:
    """Precision against recall of one class, a line for each IoU."""
    rows = evaluation.precision
    rows = rows[(rows["task"] == evaluation.task) & (rows["class"] == name)]
    made = new_figure("recall", "precision", **_SMALL)
    made.x_range, made.y_range = Range1d(0, 1.01), Range1d(0, 1.02)
    for iou, color in zip(IOUS, _IOU_COLORS, strict=True):
        column = f"precision_{iou:.2f}"
        data = {"recall": rows["recall"], "precision": rows[column]}
        data["iou"] = np.full(len(rows), iou)
        source = _source(pd.DataFrame(data).dropna())
        made.line("recall", "precision", source=source, color=color, line_width=1.6)
    add_hover(
        made,
        [("IoU", "@iou{0.00}"), ("recall", "@recall{0.00}"), ("precision", "@precision{0.00}")],
    )
    return Chart(f"{name}, precision and recall", made)


def iou_colors() -> dict[str, tuple[int, ...]]:
    """Name each IoU and its RGB in the charts of precision and recall."""
    rgb = [tuple(bytes.fromhex(color[1:])) for color in _IOU_COLORS]
    return dict(zip((f"IoU {iou:.2f}" for iou in IOUS), rgb, strict=True))


def _scores(scores: pd.DataFrame, name: str) -> Chart:
    """Detections of one class by score and IoU, and the fraction of correct ones by score."""
    rows = scores[scores["class"] == name]
    made = new_figure("score", "IoU", **_SMALL)
    made.x_range, made.y_range = Range1d(0, 1), Range1d(0, 1.02)
    data = {
        "x": rows["score"] + _BIN / 2,
        "y": rows["iou"] + _BIN / 2,
        "detections": rows["detections"],
        "correct": rows["correct"],
    }
    high = max(int(rows["detections"].max()) if len(rows) else 1, 2)
    color = log_cmap("detections", Viridis256[215::-1], 1, high)
    source = _source(data)
    cells = made.rect("x", "y", _BIN, _BIN, source=source, fill_color=color, line_color=None)
    # Wider bins, and none of a few: a fraction of those says nothing.
    wide = rows["score"] // (2 * _BIN) * (2 * _BIN)
    by_score = rows.groupby(wide)[["detections", "correct"]].sum().reset_index()
    by_score = by_score[by_score["detections"] >= _MIN_DETECTIONS]
    line = {
        "x": by_score["score"] + _BIN,
        "y": by_score["correct"] / by_score["detections"],
        "detections": by_score["detections"],
        "correct": by_score["correct"],
    }
    line = _source(line)
    made.line("x", "y", source=line, color="#d55e00", line_width=2)
    dots = made.scatter("x", "y", source=line, color="#d55e00", size=6)
    add_hover(made, [("detections", "@detections"), ("correct", "@correct")], renderers=[cells])
    fields = [("fraction correct", "@y{0.00}"), ("correct", "@correct of @detections")]
    add_hover(made, fields, renderers=[dots])
    return Chart(f"{name}, score and IoU", made)


def matched_lengths(evaluation: "Evaluation") -> pd.DataFrame | None:
    """True length, error and class of the correct particles, in µm if all have a scale.

    None if sizes were not measured.
    """
    particles = evaluation.particles
    if particles is None or evaluation.sizes is None:
        return None
    right = particles[particles["outcome"] == "correct"]
    scale = right["um_per_px"].astype(float)
    scale = 1.0 if scale.isna().any() else scale
    true, found = right["true_length_px"] * scale, right["length_px"] * scale
    frame = {"true": true, "error": found - true, "class": right["class"], "image": right["image"]}
    frame = pd.DataFrame(frame)
    frame.attrs["unit"] = "px" if isinstance(scale, float) else "µm"
    return frame


def _lengths(evaluation: "Evaluation", lengths: pd.DataFrame) -> Chart:
    """Error of the length against the true length."""
    unit, number = lengths.attrs["unit"], len(lengths)
    title = f"Error of the length of {number:,} correct particles, by their true length"
    if number > _POINTS:
        lengths = lengths.sample(_POINTS, random_state=0)
        title += f"; {_POINTS:,} of them drawn"
    made = new_figure(f"true length, {unit}", f"predicted less true, {unit}", log_x=True)
    made.y_range = DataRange1d(range_padding=0.2)  # with room for the legend
    made.add_layout(Span(location=0, dimension="width", line_color="#888888", line_width=1))
    classes = zip(evaluation.class_names, _colors(evaluation), strict=True)
    for place, (name, color) in enumerate(classes):
        rows = lengths[lengths["class"] == name]
        if len(rows):
            source = _source(rows)
            looks = {
                "marker": _MARKERS[place % len(_MARKERS)],
                "size": 6,
                "color": color,
                "alpha": 0.6,
                "legend_label": name,
            }
            made.scatter("true", "error", source=source, **looks)
    fields = [("class", "@class"), ("image", "@image"), ("true", f"@true{{0.0}} {unit}")]
    add_hover(made, [*fields, ("error", f"@error{{+0.0}} {unit}")])
    add_legend(made)
    return Chart(title, made)
