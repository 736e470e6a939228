"""The report of the data set doctor: ``report.json`` and one HTML page that needs nothing else."""

import base64
import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

import jinja2
import numpy as np

import microplastics
from microplastics.data.doctor.diagnosis import (
    INFO,
    PROBLEM,
    WARNING,
    DatasetSummary,
    Diagnosis,
    Finding,
    ModelFit,
)
from microplastics.files import atomic_write, write_json
from microplastics.report.doctor_pictures import draw_histograms, draw_places, legend_colors

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
    names = list(dict.fromkeys([*fit.no_anchor_share, *fit.small_share, *fit.mask_iou]))
    sizes = sorted({size for by_size in fit.mask_iou.values() for size in by_size})
    rows = [
        {
            "name": name,
            "no_anchor": fit.no_anchor_share.get(name),
            "small": fit.small_share.get(name),
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
