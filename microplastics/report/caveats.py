"""Where the result of a run can go wrong: what its files tell a person to look at."""

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Iterator

import pandas as pd

from microplastics.report.page import number
from microplastics.runs.finished import FinishedRun
from microplastics.runs.summaries import counted as count
from microplastics.runs.summaries import differing_bars

PROBLEM, WARNING, INFO = "problem", "warning", "info"
_ORDER = (PROBLEM, WARNING, INFO)
LOW = 0.1
"""A score is low if it is less than this above the least score of its class."""
_MANY = 0.1  # fraction of the particles from which on something weighs
_FEW_PIXELS = 16
_SAME_SCALE = 1.01  # ratio up to which two scales are the same
_MOST_DETAILS = 12
_WORDS = {
    "on_scale_bar": "lie on a scale bar or its text and are left out",
    "outside_region": "lie outside of the region and are left out",
    "label_particles_hidden": "lie wholly under others and are not in the label images",
}


@dataclasses.dataclass(frozen=True)
class Caveat:
    """One thing to look at.

    Attributes:
        severity: problem, warning or info.
        text: a sentence.
        details: what it concerns, at most a dozen.
        more: how many details there are besides.
    """

    severity: str
    text: str
    details: list[str] = dataclasses.field(default_factory=list)
    more: int = 0


def find_caveats(run: FinishedRun, counted: pd.DataFrame) -> list[Caveat]:
    """Look for what makes the result of a run uncertain, the gravest first.

    Args:
        run: the run.
        counted: those of ``run.particles`` that count.
    """
    found = [
        *_failed(run),
        *_unchecked(run),
        *_scales(run),
        *_bars(run),
        *_border(run, counted),
        *_scores(run, counted),
        *_small(run, counted),
        *_sampling(run),
        *_left_out(run),
        *_notes(run),
    ]
    return sorted(found, key=lambda caveat: _ORDER.index(caveat.severity))


def _caveat(severity: str, text: str, details: list[str] | None = None) -> Caveat:
    details = details or []
    return Caveat(severity, text, details[:_MOST_DETAILS], max(0, len(details) - _MOST_DETAILS))


def _failed(run: FinishedRun) -> Iterator[Caveat]:
    failed = len(run.failures)
    if failed:
        total = failed + len(run.images)
        lines = [f"{row['image']}: {row['error']}" for row in run.failures.to_dict("records")]
        yield _caveat(PROBLEM, f"{failed} of {count(total, 'image')} failed: not counted.", lines)
    elif run.record.get("failed"):
        text = f"{count(run.record['failed'], 'image')} of the merged runs failed: not counted."
        yield _caveat(PROBLEM, text)


def _unchecked(run: FinishedRun) -> Iterator[Caveat]:
    left = run.review and len(run.images) - run.review["finished_images"]
    if left:
        unseen = run.review["states"].get("unseen", 0)
        text = (
            f"{left} of {count(len(run.images), 'image')} are not finished in the review: "
            f"{count(unseen, 'particle')} that nobody looked at count, and what is missed is not "
            "known."
        )
        yield _caveat(WARNING, text)


def _scales(run: FinishedRun) -> Iterator[Caveat]:
    unknown = run.images["image"][run.images["um_per_px"].isna()].tolist()
    if unknown:
        which = "No image has" if len(unknown) == len(run.images) else f"{len(unknown)} have"
        text = f"{which} a scale: sizes are in px, without size classes and numbers per area."
        yield _caveat(WARNING, text, unknown)
    known = run.images[run.images["um_per_px"].notna()]
    for folder, own in known.groupby(known["image"].map(posixpath.dirname)):
        if own["um_per_px"].max() > _SAME_SCALE * own["um_per_px"].min():
            scales = Counter(
                f"{row.um_per_px:.4g} µm per px ({row.calibration_source})"
                for row in own.itertuples()
            )
            lines = [f"{scale}: {count(n, 'image')}" for scale, n in scales.most_common()]
            where = f"The folder {folder}" if folder else "The folder of the images"
            text = f"{where} has images of {len(scales)} scales; is one of them wrong?"
            yield _caveat(WARNING, text, lines)


def _bars(run: FinishedRun) -> Iterator[Caveat]:
    records = [each for each in run.record.get("images", []) if _has_bars(each)]
    text = differing_bars(records, run.options)
    if text:
        # With --um-per-px they may just have several numbers.
        yield _caveat(INFO if run.options.scale_bar_um is None else WARNING, text)


def _has_bars(record: dict) -> bool:
    bars = record.get("scale_bars")
    return isinstance(bars, list) and all(
        isinstance(bar, dict) and isinstance(bar.get("px"), (int, float)) for bar in bars
    )


def _border(run: FinishedRun, counted: pd.DataFrame) -> Iterator[Caveat]:
    touching = run.particles[run.particles["touches_edge"]]
    if not len(touching):
        return
    rules = {
        "count": "They count, and their sizes are lower bounds",
        "exclude": "They do not count (--edge exclude), so that the counts are too low",
        "weight": "They do not count, and others weigh more in their place (--edge weight)",
    }
    fraction = len(touching) / len(run.particles)
    text = (
        f"{len(touching)} of {count(len(run.particles), 'particle')} ({fraction:.0%}) are cut by "
        f"the border of their image. {rules.get(run.options.edge, '')}."
    )
    heavy = fraction >= _MANY and run.options.edge != "weight"
    yield _caveat(WARNING if heavy else INFO, text, _by_class(touching, run.particles))


def _scores(run: FinishedRun, counted: pd.DataFrame) -> Iterator[Caveat]:
    scored = counted[counted["score"].notna()]
    thresholds = run.found_by.get("score_thresholds")
    if not isinstance(thresholds, dict):
        thresholds = {}
    least = scored["class"].map(
        {k: v for k, v in thresholds.items() if isinstance(v, (int, float))}
    )
    low = scored[scored["score"] < least.fillna(0).astype(float) + LOW]
    if len(low):
        fraction = len(low) / len(scored)
        text = (
            f"{len(low)} of {count(len(scored), 'particle')} ({fraction:.0%}) have a score less "
            f"than {LOW:g} above the least of their class: another threshold would change their "
            "number."
        )
        yield _caveat(WARNING if fraction >= _MANY else INFO, text, _by_class(low, scored))
    if run.found_by.get("score_thresholds_from") == "default":
        yield _caveat(
            WARNING,
            "The least scores are the default, not chosen on validation images "
            "(microplastics thresholds): counts may be off on average.",
        )


def _small(run: FinishedRun, counted: pd.DataFrame) -> Iterator[Caveat]:
    tiny = counted[counted["area_px"] < _FEW_PIXELS]
    if len(tiny):
        text = (
            f"{count(len(tiny), 'particle')} of fewer than {_FEW_PIXELS} px: a row of pixels more "
            "or less changes their sizes by a quarter and more."
        )
        yield _caveat(INFO, text, _by_class(tiny, counted))
    below = int(run.summary["below_min_size"].sum())
    if below:
        scaled = run.images["um_per_px"].notna()
        unit = "µm" if scaled.all() else "µm, or px without a scale," if scaled.any() else "px"
        least = f"{number(run.options.min_size)} {unit}"
        text = f"{count(below, 'particle')} below the smallest size of {least}"
        yield _caveat(INFO, f"{text} are in the table and do not count.")


def _sampling(run: FinishedRun) -> Iterator[Caveat]:
    if not run.blanks:
        yield _caveat(
            WARNING,
            "No image is named as a procedural blank (--blanks): what the laboratory itself added "
            "is counted, too.",
        )
    if run.options.sampled_volume is None:
        yield _caveat(
            INFO, "The sampled volume is not given (--sampled-volume): no numbers per L or m³."
        )


def _left_out(run: FinishedRun) -> Iterator[Caveat]:
    totals: Counter[str] = Counter()
    cut_short = []
    for name, record in run.image_records.items():
        left_out = record.get("left_out")
        for what, value in (left_out.items() if isinstance(left_out, dict) else ()):
            totals[what] += value
        if record.get("windows_cut_short"):
            cut_short.append(f"{name}: {count(record['windows_cut_short'], 'window')}")
    if cut_short:
        text = "Windows had more particles than the model reports at once: some are missing."
        yield _caveat(PROBLEM, text, cut_short)
    for what, words in _WORDS.items():
        if totals[what]:
            yield _caveat(INFO, f"{count(totals[what], 'particle')} {words}.")


def _notes(run: FinishedRun) -> Iterator[Caveat]:
    lines = [
        f"{name}: {note}"
        for name, record in run.image_records.items()
        for note in record.get("calibration_notes") or []
    ]
    if lines:
        yield _caveat(INFO, "What the image files say and was not used:", lines)


def _by_class(some: pd.DataFrame, whole: pd.DataFrame) -> list[str]:
    parts, totals = some["class"].value_counts(), whole["class"].value_counts()
    return [f"{name}: {parts[name]} of {totals[name]}" for name in parts.index]
