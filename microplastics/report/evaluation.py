"""Page of an evaluation, ``evaluation.html``: where a model errs, and what to do about it.

It is made of the files in the folder of the evaluation, and shows photographs of the data set.
"""

import dataclasses
import logging
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from microplastics.counts.intervals import wilson_interval
from microplastics.data.catalog import resolve_datasets
from microplastics.data.colors import class_colors
from microplastics.engine.scoring import ABOUT_FILE
from microplastics.evaluation.coco import IOUS, PR_FILE, RESULTS_FILE
from microplastics.evaluation.counting import CURVES_FILE
from microplastics.evaluation.errors import (
    ERRORS_FILE,
    KINDS,
    MEANINGS,
    PARTICLES_FILE,
    SCORES_FILE,
)
from microplastics.report import advice
from microplastics.report.charts import MAX_CLASSES, draw_charts, iou_colors
from microplastics.report.page import Cell, Column, Table, embed, jpeg, render, write_page
from microplastics.utils.errors import UserError
from microplastics.utils.io import OWN_FILE, of_cell, read_json
from microplastics.visualization.curves import plot_counting_curves
from microplastics.visualization.galleries import (
    OUTCOME_COLORS,
    draw_outcomes,
    read_results,
    read_rgb,
)

logger = logging.getLogger(__name__)

PAGE_FILE = "evaluation.html"
COUNTS_FILE, SIZES_FILE = "counting.csv", "counting_sizes.csv"
CONFUSION_FILE = "counting_confusion.csv"

_WORST, _SIDE = 8, 640
_TEXTS = ("class", "true_class", "image", "outcome", "task", "error", "quantity", "unit")
_TEXTS += ("size_class", "true \\ predicted")
_NUMBER = (int, float)
_ABOUT = {
    **dict.fromkeys(("microplastics", "detectron2", "torch", "checkpoint"), str),
    **dict.fromkeys(("checkpoint_sha256", "dataset", "annotations", "images"), str),
    **dict.fromkeys(("lowest_score", "detections_per_image", "max_overlap"), _NUMBER),
    "class_names": list,
    "fiber_classes": list,
    "score_thresholds": dict,
    "score_thresholds_origin": dict,
    "augmented": bool,
}
_COLUMNS = {
    PR_FILE: ("task", "class", "recall", *(f"precision_{iou:.2f}" for iou in IOUS)),
    COUNTS_FILE: ("size_class", "count_true", "count_predicted", "count_error_pct")
    + ("precision", "recall", "F1", "F1_tol2"),
    "counting_sizes.csv": (
        "quantity",
        "unit",
        "pairs",
        "bias",
        "MAE",
        "loa_low",
        "loa_high",
        "MAPE",
    ),
    CURVES_FILE: ("class", "threshold", "true", "predicted", "count_error_pct")
    + ("precision", "recall", "F1"),
    ERRORS_FILE: ("error", "AP50_lost", "detections", "counted"),
    SCORES_FILE: ("class", "score", "iou", "detections", "correct"),
    PARTICLES_FILE: ("image", "image_id", "outcome", "class", "length_px", "true_length_px")
    + ("um_per_px", "detection", "annotation"),
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The files of an evaluation; tables are None where a model has no masks or counts nothing.

    Attributes:
        folder: where they are.
        about: how the evaluation was made.
        class_names: by class number.
        precision: precision by ``task``, ``class``, ``recall`` and IoU.
        counts: of each class, then of all; any size.
        sizes: agreement of sizes.
        confusion: (K + 1, K + 1), the last row and column are the background.
        curves: of each class, then of all, against the score threshold.
        errors: of each class, then of all, by kind.
        scores: detections by class, score and IoU.
        particles: what counts, and what is missed.
    """

    folder: Path
    about: dict[str, Any]
    class_names: list[str]
    precision: pd.DataFrame
    counts: pd.DataFrame | None
    sizes: pd.DataFrame | None
    confusion: np.ndarray | None
    curves: list[pd.DataFrame]
    errors: pd.DataFrame | None
    scores: pd.DataFrame | None
    particles: pd.DataFrame | None

    @property
    def colors(self) -> list[list[int]]:
        """RGB of each class."""
        return class_colors(self.class_names)

    @property
    def task(self) -> str:
        """``segm``, or ``bbox`` without masks."""
        return "segm" if (self.precision["task"] == "segm").any() else "bbox"

    def ap(self, task: str, iou: float | None = None) -> list[float]:
        """AP in % of each class, then their mean; at one IoU, or averaged over 0.50 to 0.95."""
        of_task = self.precision[self.precision["task"] == task]
        columns = [c for c in of_task if c.startswith("precision_")]
        if iou is not None:
            columns = [f"precision_{iou:.2f}"]
        by_class = of_task.groupby("class", sort=False)[columns].mean().mean(axis=1) * 100
        values = [float(by_class.get(name, np.nan)) for name in self.class_names]
        known = [value for value in values if not np.isnan(value)]
        return [*values, float(np.mean(known)) if known else np.nan]

    def lost(self, kind: str) -> list[float]:
        """AP50 lost to a kind of error, of each class, then of all."""
        return self.errors.loc[self.errors["error"] == kind, "AP50_lost"].tolist()


def finish_evaluation(folder: Path, dataset: str, page: bool = True) -> None:
    """Draw what people look at: the threshold curves and, if wanted, the page.

    The figures stand whether a page can be made or not: what goes wrong is said, and no error.

    Args:
        folder: of an evaluation.
        dataset: registered name of the data set that was evaluated on.
        page: write ``evaluation.html``; else one of an earlier evaluation is deleted.
    """
    thresholds = read_json(folder / ABOUT_FILE)["score_thresholds"]
    if thresholds:
        curves = folder / CURVES_FILE
        plot_counting_curves(curves, curves.with_suffix(".png"), thresholds)
    try:
        (folder / PAGE_FILE).unlink(missing_ok=True)
        if page:
            logger.info("Where the model errs: %s", write_evaluation_report(folder, dataset))
    except (OSError, UserError) as error:
        logger.warning("%s could not be made: %s", folder / PAGE_FILE, error)


def write_evaluation_report(folder: str | os.PathLike, dataset: str = "") -> Path:
    """Write ``evaluation.html`` into the folder of an evaluation.

    Args:
        folder: of the evaluation.
        dataset: registered name of its data set; registered anew if empty.

    Returns:
        The path of the page.

    Raises:
        UserError: a file of the evaluation or its annotations are missing or unusable, or the page
            cannot be written.
    """
    evaluation = read_evaluation(Path(folder))
    about = evaluation.about
    if not dataset:
        (dataset,) = resolve_datasets([f"{about['annotations']}:{about['images']}"])
    charts = draw_charts(evaluation)
    html = render(
        "evaluation.html.j2",
        title=f"Evaluation on {about['dataset']}",
        subtitle=f"microplastics evaluate, {Path(about['checkpoint']).name}",
        verdict=advice.verdict(evaluation),
        advice=advice.next_steps(evaluation),
        summary=_summary(evaluation),
        errors=_errors(evaluation),
        confusion=_confusion(evaluation),
        worst=draw_worst(evaluation, dataset),
        outcome_colors=OUTCOME_COLORS,
        lengths=_lengths(evaluation),
        charts={name: chart.title for name, chart in charts.items()},
        plots=embed({name: chart.figure for name, chart in charts.items()}),
        iou_colors=iou_colors(),
        more_classes=max(0, len(evaluation.class_names) - MAX_CLASSES),
        about=_about(evaluation),
    )
    return write_page(Path(folder) / PAGE_FILE, html)


def read_evaluation(folder: Path) -> Evaluation:
    """Read the files of an evaluation.

    Raises:
        UserError: ``file_missing``, or ``file_invalid`` for what microplastics evaluate does not
            write.
    """
    about = read_about(folder)
    names = list(map(str, about["class_names"]))
    precision = _read(folder / PR_FILE)
    if not about["score_thresholds"]:  # a model without masks, or nothing is counted
        return Evaluation(folder, about, names, precision, *[None] * 3, [], *[None] * 3)
    counts = _read(folder / COUNTS_FILE)
    counts = counts[counts["size_class"] == "all"].reset_index(drop=True)
    confusion = _read(folder / CONFUSION_FILE, len(names) + 1).iloc[:, 1:].to_numpy(dtype=np.int64)
    table = _read(folder / CURVES_FILE)
    # By place: a class may be called all.
    places = np.array_split(np.arange(len(table)), len(names) + 1)
    if len(counts) != len(names) + 1 or confusion.shape != (len(counts),) * 2:
        raise _invalid(folder / COUNTS_FILE, f"has other classes than {ABOUT_FILE}")
    return Evaluation(
        folder,
        about,
        names,
        precision,
        counts,
        _read(folder / SIZES_FILE) if (folder / SIZES_FILE).exists() else None,
        confusion,
        [table.iloc[rows] for rows in places],
        _read(folder / ERRORS_FILE, len(KINDS) * (len(names) + 1)),
        _read(folder / SCORES_FILE),
        _read(folder / PARTICLES_FILE),
    )


def read_about(folder: Path) -> dict[str, Any]:
    """Read and check what an evaluation says of itself; errors as of :func:`read_evaluation`."""
    about = read_json(folder / ABOUT_FILE, meant=OWN_FILE)
    for key, kind in _ABOUT.items():
        if not isinstance(about.get(key), kind):
            raise _invalid(folder / ABOUT_FILE, f"has no usable {key}")
    thresholds = about["score_thresholds"].values()
    if not all(isinstance(t, _NUMBER) for t in thresholds) or not about["class_names"]:
        raise _invalid(folder / ABOUT_FILE, "has no usable class_names and score_thresholds")
    return about


def _read(path: Path, rows: int | None = None) -> pd.DataFrame:
    """Read a table as the evaluators write it, of so many rows; UserError if it is not such."""
    columns = _COLUMNS.get(path.name, ())
    try:
        # A class may be called NA.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
        table = table.map(of_cell, na_action="ignore").rename(columns=of_cell)
        for column in table.columns.difference(_TEXTS):
            table[column] = pd.to_numeric(table[column])
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing; run microplastics evaluate again.", code="file_missing"
        ) from error
    except pd.errors.EmptyDataError:
        return pd.DataFrame(columns=list(columns))
    except ValueError as error:
        raise _invalid(path, f"is not readable ({error})") from error
    missing = set(columns) - set(table)
    if missing or (rows is not None and len(table) != rows):
        raise _invalid(path, f"lacks columns or rows ({', '.join(sorted(missing)) or rows})")
    return table


def _invalid(path: Path, problem: str) -> UserError:
    return UserError(f"{path} {problem}; expected {OWN_FILE}.", code="file_invalid")


def _class_cells(evaluation: Evaluation) -> list[Cell]:
    pairs = zip(evaluation.class_names, evaluation.colors, strict=True)
    return [*(Cell(name, color=color) for name, color in pairs), Cell("all")]


def _fixed(values: Sequence[float], decimals: int = 1, sign: str = "") -> list[Cell]:
    """Write numbers with the same decimals; ``sign`` "+" shows that of all."""
    texts = (f"{v:{sign}.{decimals}f}".replace("-", "−") for v in values)
    pairs = zip(texts, values, strict=True)
    return [Cell("–" if v != v else text, float(v)) for text, v in pairs]


def _summary(evaluation: Evaluation) -> Table:
    """Figures of each class."""
    columns = [Column("Class")]
    cells: list[Sequence[Any]] = [_class_cells(evaluation)]
    for task, name in (("segm", "Mask"), ("bbox", "Box")):
        if (evaluation.precision["task"] == task).any():
            cells += [_fixed(evaluation.ap(task)), _fixed(evaluation.ap(task, 0.5))]
            columns.append(Column(f"{name} AP", about="mean over the IoUs 0.50 to 0.95, in %"))
            columns.append(Column(f"{name} AP50", about="at IoU 0.50, in %"))
    if evaluation.counts is not None:
        counts, thresholds = evaluation.counts, evaluation.about["score_thresholds"]
        least = [thresholds.get(name, np.nan) for name in evaluation.class_names]
        cells += [
            _fixed([*least, np.nan], 2),
            counts["count_true"].tolist(),
            counts["count_predicted"].tolist(),
            _fixed(counts["count_error_pct"], 1, "+"),
            _fixed(counts["precision"]),
            _recalls(counts),
            _fixed(counts["F1"]),
        ]
        columns += [
            Column("Threshold", about="least score of a particle that counts"),
            Column("True", about="particles annotated"),
            Column("Counted", about="particles found, above the threshold"),
            Column("Count error, %", about="counted less true, in % of true"),
            Column("Precision, %", about="of what is counted, how much is right"),
            Column("Recall, %", about="of the true particles, how many are found; 95 % interval"),
            Column("F1, %"),
        ]
    return Table("Figures of each class", columns, list(zip(*cells, strict=True)))


def _recalls(counts: pd.DataFrame) -> list[Cell]:
    """Recall in % with its interval."""
    recall = counts["recall"] / 100
    low, high = wilson_interval(recall, counts["count_true"])
    return [
        Cell("–") if np.isnan(r) else Cell(f"{100 * r:.1f} ({100 * a:.0f}–{100 * b:.0f})", r)
        for r, a, b in zip(recall, low, high, strict=True)
    ]


def _errors(evaluation: Evaluation) -> Table | None:
    """Cost and number of each kind of error."""
    if evaluation.errors is None:
        return None
    names = evaluation.class_names if len(evaluation.class_names) > 1 else []
    of_all = evaluation.errors.tail(len(KINDS)).set_index("error")
    rows = []
    for kind in KINDS:
        *of_classes, lost = _fixed(evaluation.lost(kind))
        numbers = of_all.loc[kind, ["counted", "detections"]].astype(int).tolist()
        name = Cell(kind, color=OUTCOME_COLORS[kind], outlined=True)
        rows.append([name, lost, *of_classes[: len(names)], *numbers, MEANINGS[kind]])
    return Table(
        "AP50 lost to each kind of error, in percentage points",
        [
            Column("Error"),
            Column("All", about="mean over the classes"),
            *(Column(name) for name in names),
            Column("Counted", about="errors among the particles that count"),
            Column("Among all detections", about="at any score"),
            Column("Meaning"),
        ],
        rows,
        note="By so much AP50 would rise without errors of that kind; one error may hide another, "
        "so the points do not add up. Kinds and computation: TIDE (Bolya et al. 2020).",
        file=ERRORS_FILE,
    )


def _confusion(evaluation: Evaluation) -> list[tuple[str, list[tuple[int, float, bool]]]] | None:
    """Rows of the matrix: name, then number, fraction of the row and whether it is right."""
    if evaluation.confusion is None:
        return None
    names = [*evaluation.class_names, "background"]
    rows = []
    for place, (name, row) in enumerate(zip(names, evaluation.confusion, strict=True)):
        fractions = (row / max(row.sum(), 1)).tolist()
        cells = zip(row.tolist(), fractions, (c == place for c in range(len(row))), strict=True)
        rows.append((name, list(cells)))
    return rows


def _lengths(evaluation: Evaluation) -> Table | None:
    """Agreement of the lengths of matched particles."""
    if evaluation.sizes is None:
        return None
    sizes = evaluation.sizes[evaluation.sizes["quantity"] == "length"]
    unit = "um" if (sizes["unit"] == "um").any() else "px"
    sizes = sizes[sizes["unit"] == unit]
    signed = [_fixed(sizes[name], 1, "+") for name in ("bias", "loa_low", "loa_high")]
    absolute = [_fixed(sizes[name]) for name in ("MAE", "MAPE")]
    cells = [sizes["pairs"].tolist(), *signed, *absolute]
    unit = unit.replace("um", "µm")
    fibers = ", ".join(map(str, evaluation.about["fiber_classes"])) or "no class"
    return Table(
        "Length, predicted less true, of correct particles",
        [
            Column("Class"),
            Column("Pairs"),
            Column(f"Bias, {unit}", about="mean"),
            Column(f"From, {unit}", about="95 % of the errors are from here …"),
            Column(f"To, {unit}", about="… to here (Bland and Altman 1986)"),
            Column(f"MAE, {unit}", about="mean absolute error"),
            Column("MAE, %", about="of the true length"),
        ],
        list(zip(_class_cells(evaluation), *cells, strict=True)),
        note=f"Along the centreline: {fibers}; of all other classes the largest Feret diameter.",
        file=SIZES_FILE,
    )


def _about(evaluation: Evaluation) -> dict[str, str]:
    """How the evaluation was made, in words."""
    about = evaluation.about
    thresholds = ", ".join(f"{name} {t:g}" for name, t in about["score_thresholds"].items())
    origin = about["score_thresholds_origin"]
    if origin:
        thresholds += f" (chosen by {origin.get('metric')} on {origin.get('images')} images)"
    lines = {
        "Checkpoint": f"{about['checkpoint']}, SHA-256 {about['checkpoint_sha256']}",
        "Data set": f"{about['dataset']}: {about['annotations']}, images in {about['images']}",
        "Detections": f"scores from {about['lowest_score']:g}, at most "
        f"{about['detections_per_image']} an image"
        + (", with test-time augmentation" if about["augmented"] else ""),
    }
    if thresholds:
        lines["Score thresholds"] = thresholds
        lines["Counted once"] = (
            "a detection that a better-scored one covers by more than "
            f"{about['max_overlap']:g} is left out"
        )
    versions = (f"{name} {about[name]}" for name in ("microplastics", "detectron2", "torch"))
    lines.update({"Software": ", ".join(versions), "Files": str(evaluation.folder)})
    if evaluation.particles is not None:
        command = shlex.join(["microplastics", "view", "--predictions", str(evaluation.folder)])
        lines["All images, the worst first"] = command
    return lines


@dataclasses.dataclass(frozen=True)
class Worst:
    """One image with many errors.

    Attributes:
        name: of the image.
        summary: its errors in words.
        truth, found: JPEG files, of the true particles and of what counts.
        why: why there are no pictures.
    """

    name: str
    summary: str
    truth: bytes = b""
    found: bytes = b""
    why: str = ""


def draw_worst(evaluation: Evaluation, dataset: str, number: int = _WORST) -> list[Worst]:
    """Draw the images with most errors, truth beside what counts, coloured by outcome.

    Args:
        evaluation: the files.
        dataset: registered name.
        number: of images.
    """
    particles = evaluation.particles
    if particles is None:
        return []
    wrong = particles[~particles["outcome"].isin(("correct", "ignored"))]
    ids = list(dict(Counter(wrong["image_id"]).most_common(number)))
    if not ids:
        return []
    results: dict[Any, list[dict[str, Any]]] = {id_: [] for id_ in ids}
    for result in read_results(evaluation.folder / RESULTS_FILE):
        if result["image_id"] in results:
            results[result["image_id"]].append(result)
    dicts = {dic["image_id"]: dic for dic in DatasetCatalog.get(dataset)}
    metadata = MetadataCatalog.get(dataset)
    worst = []
    for id_ in tqdm(ids, "Drawing", unit="image", leave=False, disable=None):
        rows = particles[particles["image_id"] == id_]
        name, summary = rows["image"].iloc[0], _in_words(rows)
        if id_ not in dicts:
            raise _invalid(evaluation.folder / PARTICLES_FILE, f"has the unknown image_id {id_}")
        try:
            image = read_rgb(dicts[id_])
        except UserError as error:
            worst.append(Worst(name, summary, why=str(error)))
            continue
        try:
            pictures = draw_outcomes(image, dicts[id_], results[id_], rows, metadata, _SIDE)
        except (IndexError, ValueError) as error:
            path = evaluation.folder / PARTICLES_FILE
            raise _invalid(path, f"does not fit {RESULTS_FILE} ({error})") from error
        worst.append(Worst(name, summary, *map(jpeg, pictures)))
    return worst


def _in_words(rows: pd.DataFrame) -> str:
    counts = Counter(rows["outcome"])
    kinds = [f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]]
    return f"{counts['correct']} correct, {', '.join(kinds)}"
