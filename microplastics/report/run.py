"""Report of a prediction or measurement run: one page to hand in."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bokeh.models import Span

from microplastics.counts.summary import image_rows, summarize, weigh_particles
from microplastics.data.colors import class_colors
from microplastics.measurement.table import SizeClasses, parse_size_classes
from microplastics.report.caveats import LOW, find_caveats
from microplastics.report.methods import (
    Missing,
    file_table,
    methods_text,
    model_facts,
    validation_table,
)
from microplastics.report.page import (
    Cell,
    Column,
    Plots,
    Table,
    add_hover,
    add_legend,
    embed,
    new_figure,
    number,
    render,
    write_page,
)
from microplastics.report.pictures import draw_pictures
from microplastics.runs.finished import FinishedRun, read_run
from microplastics.runs.store import REPORT_FILE, SAMPLES_FILE, SUMMARY_FILE
from microplastics.runs.summaries import counted as counted_things
from microplastics.utils.errors import UserError, WriteError

logger = logging.getLogger(__name__)

_BINS = 30
_SCORE_BINS = np.linspace(0, 1, 41)
_ALL = "all"
_DIGITS = 4
_SHARE, _PER_AREA = "fraction", "count_per_mm2"
_CONCENTRATIONS = {
    key: [
        (f"particles_per_{key}", f"per {unit}"),
        (f"particles_per_{key}_corrected", f"per {unit}, less blanks"),
    ]
    for key, unit in (("l", "L"), ("m3", "m³"))
}


def write_run_report(folder: str | os.PathLike) -> Path:
    """Write ``report.html`` into the folder of a finished run.

    It is made of the files of the run, and of its photographs as far as they are still there.

    Returns:
        its path.

    Raises:
        UserError: the folder has no finished run, or the file cannot be written.
    """
    run = read_run(folder)
    return write_page(run.folder / REPORT_FILE, render_run(run))


def after_run(folder: str | os.PathLike, wanted: bool) -> None:
    """Write the report of a run that has just ended, or delete one of an earlier state.

    The run stands whether its report can be made or not: what goes wrong is said, and no error
    unless it cannot be written.

    Raises:
        WriteError: of a full disk, or a folder that is not writable.
    """
    with contextlib.suppress(OSError):
        (Path(folder) / REPORT_FILE).unlink(missing_ok=True)
    if not wanted:
        return
    try:
        print(f"Report: {write_run_report(folder)}")
    except WriteError:
        raise
    except UserError as error:
        logger.warning("The report could not be made: %s", error)
    except Exception:
        logger.exception("The report could not be made; all other files of the run are complete.")


def render_run(run: FinishedRun) -> str:
    """Render the page of a run."""
    weighed = _weighed(run)
    counts = ~weighed["small"] & (weighed["weight"] > 0)
    counted = run.particles[counts.to_numpy()]
    totals = _totals(run)
    pictures = draw_pictures(run, counted)
    places = {overlay.name: f"#{overlay.key}" for overlay in pictures.overlays}
    colors = dict(zip(run.class_names, class_colors(run.class_names), strict=True))
    sample_table, detail_table = _sample_tables(run, colors, places)
    caveats = find_caveats(run, counted)
    size_plots, plots = _plots(run, weighed[counts], counted, colors)
    return render(
        "run.html.j2",
        title="Particles counted",
        subtitle=str(run.record.get("command") or f"the run {run.folder.name}"),
        verdict=_verdict(run, totals),
        worst=caveats[0].severity if caveats else "clean",
        total_tables=[_class_table(run, row, colors) for row in totals.to_dict("records")],
        # One sample has a row for each class alone.
        sample_table=sample_table if len(sample_table.rows) > 1 else None,
        detail_table=detail_table,
        image_table=_image_table(run, places) if run.samples is not None else None,
        caveats=caveats,
        size_plots=size_plots,
        size_tables=_size_tables(run, totals, colors),
        plots=plots,
        has_scores=bool(counted["score"].notna().any()),
        low=LOW,
        pictures=pictures,
        colors=colors,
        images=len(run.images),
        facts=model_facts(run),
        validation=validation_table(run),
        methods=methods_text(run, counted),
        is_missing=lambda part: isinstance(part, Missing),
        files=file_table(run),
    )


def _weighed(run: FinishedRun) -> pd.DataFrame:
    rows = image_rows(run.images, None, ())
    return weigh_particles(run.particles, rows, run.options.min_size, run.options.edge)


def _totals(run: FinishedRun) -> pd.DataFrame:
    """Rows of a summary over all images that can be added up: samples with and without a scale."""
    blanks = set(run.blanks)
    scaled = run.images["um_per_px"].notna()
    mixed = scaled.any() and not scaled.all()
    ends = {True: ", with a scale", False: ", without a scale"} if mixed else {True: "", False: ""}
    groups = {
        name: ("Blanks" if name in blanks else "All samples") + ends[has]
        for name, has in zip(run.images["image"], scaled.tolist(), strict=True)
    }
    return summarize(
        run.particles,
        run.images,
        classes=run.class_names,
        groups=groups,
        size_classes=parse_size_classes(run.options.size_classes),
        min_size=run.options.min_size,
        edge=run.options.edge,
        # A correction needs one scale for blanks and samples.
        blanks=() if mixed else run.blanks,
    )


def _verdict(run: FinishedRun, totals: pd.DataFrame) -> str:
    samples = totals[totals["group"].str.startswith("All samples")]
    found, images = (
        f"{number(total)} {thing}{'' if total == 1 else 's'}"
        for total, thing in (
            (int(samples["count"].sum()), "particle"),
            (int(samples["images"].sum()), "image"),
        )
    )
    words = [
        f"{number(int(samples[f'{name}.count'].sum()))} {name}"
        for name in run.class_names
        if f"{name}.count" in samples
    ]
    listed = f": {', '.join(words)}" if len(words) > 1 else ""
    return f"{found} on {images}{listed}."


def _names_of(row: dict[str, Any], run: FinishedRun) -> list[str]:
    """Classes that a row of a summary has columns for."""
    others = [key.removesuffix(".count") for key in row if key.endswith(".count")]
    return list(dict.fromkeys([*run.class_names, *others]))


def _class_table(run: FinishedRun, row: dict[str, Any], colors: dict[str, Any]) -> Table:
    """All images by class."""
    unit = (
        "µm" if not _missing(row.get("feret_max_p50_um")) or not _missing(row["area_mm2"]) else "px"
    )
    key = f"feret_max_{{}}_{'um' if unit == 'µm' else 'px'}"
    figures = [("count", "particles"), (_SHARE, "fraction"), (_PER_AREA, "per mm²")]
    figures += [("count_corrected", "less blanks")] if "count_corrected" in row else []
    if run.options.edge == "weight":
        figures.insert(1, ("weighted_count", "weighted"))
    figures = [(name, title) for name, title in figures if name != _PER_AREA or unit == "µm"]
    columns = [Column("Class")]
    for _, title in figures:
        columns += [Column(title, _DIGITS), Column("95 %")]
    columns += [
        Column(f"median size, {unit}", 3, "largest Feret diameter"),
        Column("95 %"),
        Column("10 to 90 %", None, "percentiles of the size"),
    ]
    rows = []
    for name in ("", *_names_of(row, run)):
        prefix = f"{name}." if name else ""
        cells: list[Any] = [Cell(name, color=colors.get(name)) if name else _ALL]
        for figure, _ in figures:
            cells += _with_interval(row, f"{prefix}{figure}")
        median = f"{prefix}{key.format('p50')}"
        low, high = (row.get(f"{prefix}{key.format(f'p50_{end}')}") for end in ("low", "high"))
        spread = (row.get(f"{prefix}{key.format(part)}") for part in ("p10", "p90"))
        cells += [row.get(median), _interval(low, high), _interval(*spread)]
        rows.append(cells)
    images = counted_things(row["images"], "image")
    return Table(f"{row['group']}: {images}, particles by class", columns, rows)


def _with_interval(row: dict[str, Any], name: str) -> list[Any]:
    value = row.get(name)
    if name.endswith((".count", ".particles")) or name == "count":
        value = None if _missing(value) else int(value)
    return [value, _interval(row.get(f"{name}_low"), row.get(f"{name}_high"))]


def _interval(low: Any, high: Any) -> Cell | None:
    if _missing(low) or _missing(high):
        return None
    return Cell(f"{number(low, 3)} – {number(high, 3)}", float(low))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _sample_tables(
    run: FinishedRun, colors: dict[str, Any], places: dict[str, str]
) -> tuple[Table, Table]:
    """A row for each sample, and one for each of its classes; numbers as in the summary."""
    rows = run.summary if run.samples is None else run.samples
    name_of, file = ("image", SUMMARY_FILE) if run.samples is None else ("group", SAMPLES_FILE)
    sample = "image" if run.samples is None else "sample"
    figures = [("count", "particles")]
    if run.options.edge == "weight":
        figures.append(("weighted_count", "weighted"))
    figures += [("count_corrected", "less blanks"), (_PER_AREA, "per mm²")]
    # Few particles in a litre are counted by the cubic metre.
    few = "particles_per_l" in rows and not rows["particles_per_l"].max() >= 1
    figures += _CONCENTRATIONS["m3" if few else "l"]
    figures = [
        (name, title) for name, title in figures if name in rows and rows[name].notna().any()
    ]
    heads = [part for _, title in figures for part in (Column(title, _DIGITS), Column("95 %"))]
    short, full = [], []
    for row in rows.to_dict("records"):
        label = f"{row[name_of]} (blank)" if row.get("is_blank") is True else row[name_of]
        name = Cell(label, href=places.get(row[name_of], "") if name_of == "image" else "")
        classes = _names_of(row, run)
        for each in ("", *classes):
            prefix = f"{each}." if each else ""
            cells = [part for key, _ in figures for part in _with_interval(row, f"{prefix}{key}")]
            kind = Cell(each, color=colors.get(each)) if each else _ALL
            full.append([name, kind, *cells])
            if not each:
                own = [int(row[f"{one}.count"]) for one in classes]
                short.append([name, *cells[:2], *own, *cells[2:]])
    names = _names_of(dict.fromkeys(rows), run)
    first = Column(sample.capitalize())
    note = f"Intervals of 95 %, docs/counts.md. All columns are in {file}."
    columns = [first, *heads[:2], *map(Column, names), *heads[2:]]
    return (
        Table(f"Particles by {sample}", columns, short, note, file=file),
        Table(
            f"Particles by {sample} and class", [first, Column("Class"), *heads], full, file=file
        ),
    )


def _image_table(run: FinishedRun, places: dict[str, str]) -> Table:
    """The images of the samples."""
    columns = [Column("Image"), Column("particles"), Column("area, mm²", _DIGITS)]
    columns.append(Column("µm per px", _DIGITS))
    rows = [
        [
            Cell(row["image"], href=places.get(row["image"], "")),
            int(row["count"]),
            row["area_mm2"],
            row["um_per_px"],
        ]
        for row in run.summary.to_dict("records")
    ]
    return Table("Particles by image", columns, rows, file=SUMMARY_FILE)


def _size_tables(run: FinishedRun, totals: pd.DataFrame, colors: dict[str, Any]) -> list[Table]:
    """Particles by class and size class, of rows with a scale."""
    classes = parse_size_classes(run.options.size_classes)
    tables = []
    for row in totals[totals["area_mm2"].notna()].to_dict("records"):
        rows = [
            [
                Cell(name, color=colors.get(name)) if name else _ALL,
                *(int(row[f"{name}{'.' if name else ''}size_{each}"]) for each in classes.columns),
            ]
            for name in ("", *_names_of(row, run))
        ]
        columns = [Column("Class"), *(Column(label) for label in _labels(classes))]
        tables.append(Table(f"{row['group']}: particles by size class", columns, rows))
    return tables


def _labels(classes: SizeClasses) -> list[str]:
    return [
        label.replace("um", "µm").replace(">=", "≥ ").replace("<", "< ").replace("-", "–")
        for label in classes.labels
    ]


def _plots(
    run: FinishedRun, weighed: pd.DataFrame, counted: pd.DataFrame, colors: dict[str, Any]
) -> tuple[dict[str, str], Plots | None]:
    """Histograms of sizes by unit, and of scores; captions of those of sizes by their names."""
    figures, captions = {}, {}
    for unit, calibrated in (("µm", True), ("px", False)):
        own = weighed[weighed["calibrated"] == calibrated]
        if len(own):
            name = f"sizes_{'um' if calibrated else 'px'}"
            figures[name] = _size_figure(run, own, unit, colors)
            captions[name] = (
                f"Largest Feret diameter of {number(len(own))} particles that count, in {unit}"
                + (". Dashed lines are the bounds of the size classes." if calibrated else ".")
            )
    scored = counted[counted["score"].notna()]
    if len(scored):
        figures["scores"] = made = new_figure("score", "particles", height=220, x_range=(0, 1))
        _stack(made, _by_class(scored["class"], scored["score"], colors), _SCORE_BINS, colors)
    return captions, embed(figures)


def _size_figure(run: FinishedRun, own: pd.DataFrame, unit: str, colors: dict[str, Any]) -> Any:
    made = new_figure(f"largest Feret diameter, {unit}", "particles", log_x=True)
    sizes = own["size"].to_numpy()
    edges = np.geomspace(sizes.min() / 1.05, sizes.max() * 1.05, _BINS + 1)
    _stack(made, _by_class(own["class"], own["size"], colors), edges, colors)
    if unit == "µm":
        for bound in parse_size_classes(run.options.size_classes).bounds:
            if edges[0] < bound < edges[-1]:
                made.add_layout(
                    Span(location=bound, dimension="height", line_dash="dashed", line_color="#888")
                )
    return made


def _by_class(
    classes: pd.Series, values: pd.Series, colors: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    for name in dict.fromkeys([*colors, *classes]):
        own = values[(classes == name).to_numpy()].to_numpy(np.float64)
        if len(own):
            yield name, own


def _stack(
    made: Any, groups: Iterator[tuple[str, np.ndarray]], edges: np.ndarray, colors: dict[str, Any]
) -> None:
    """Draw a stacked histogram with a legend above its bars."""
    base = np.zeros(len(edges) - 1)
    for name, values in groups:
        heights = np.histogram(values, edges)[0]
        color = "#{:02x}{:02x}{:02x}".format(*colors.get(name, (150, 150, 150)))
        data = {
            "left": edges[:-1],
            "right": edges[1:],
            "bottom": base,
            "top": base + heights,
            "number": heights,
            "class": [name] * len(heights),
        }
        shown = heights > 0
        data = {key: np.asarray(column)[shown].tolist() for key, column in data.items()}
        made.quad(
            left="left",
            right="right",
            bottom="bottom",
            top="top",
            source=data,
            fill_color=color,
            line_color="white",
            legend_label=name,
        )
        base = base + heights
    made.y_range.start, made.y_range.end = 0, float(base.max()) * 1.25
    add_hover(
        made, [("class", "@class"), ("from", "@left"), ("to", "@right"), ("particles", "@number")]
    )
    add_legend(made)
