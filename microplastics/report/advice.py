"""What the figures of an evaluation say in words, and what to try next."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from microplastics.evaluation.errors import KINDS

if TYPE_CHECKING:
    from microplastics.report.evaluation import Evaluation

# Percentage points of AP50 or F1 below which nothing is worth a change.
_WORTH = 1.0
_MIN_PARTICLES = 50
_MIN_BIAS_PCT = 5.0
_FAR = 5.0  # points of AP50 below the mean
_MUCH = 5.0  # points of F1 that a tolerance brings back


class Step(NamedTuple):
    """One thing to do, most worth it first.

    Attributes:
        title: what is wrong, with its figures.
        text: what it may come from, and what to try.
        worth: points of AP50 or F1.
        place: part of the page to look at, ``worst``, ``thresholds`` or ``lengths``.
    """

    title: str
    text: str
    worth: float
    place: str = "worst"


def verdict(evaluation: "Evaluation") -> str:
    """Summarise an evaluation in a sentence or two."""
    task = evaluation.task
    ap, ap50 = evaluation.ap(task)[-1], evaluation.ap(task, 0.5)[-1]
    kind = "Mask" if task == "segm" else "Box"
    if np.isnan(ap50):
        return f"{kind} AP is not a number: nothing was found, or nothing is annotated."
    text = f"{kind} AP50 {ap50:.1f}, AP {ap:.1f}{_weakest(evaluation)}."
    if evaluation.counts is not None:
        row = evaluation.counts.iloc[-1]
        error = row["count_error_pct"]
        sign = "" if np.isnan(error) else f" ({error:+.1f} %)".replace("-", "−")
        text += (
            f" {row['count_predicted']:.0f} particles counted where {row['count_true']:.0f} are"
            f"{sign}, F1 {row['F1']:.1f} %."
        )
    return text


def _weakest(evaluation: "Evaluation") -> str:
    """Name the class that is far below the mean, if one is."""
    *of_classes, mean = evaluation.ap(evaluation.task, 0.5)
    place = int(np.nanargmin(of_classes))
    if mean - of_classes[place] < _FAR:
        return ""
    return f"; {evaluation.class_names[place]} is the weakest class, AP50 {of_classes[place]:.1f}"


def next_steps(evaluation: "Evaluation") -> list[Step]:
    """List what is worth doing, the most first."""
    if evaluation.errors is None:
        return []
    steps = [*_of_errors(evaluation), *_of_thresholds(evaluation), *_of_lengths(evaluation)]
    steps.sort(key=lambda step: -step.worth)
    return [*steps, *_of_numbers(evaluation)]


def _of_errors(evaluation: "Evaluation") -> Iterator[Step]:
    names = evaluation.class_names
    for kind in KINDS:
        *of_classes, of_all = evaluation.lost(kind)
        if not of_all >= _WORTH:
            continue
        title = f"{kind.capitalize()} errors cost {of_all:.1f} points of AP50"
        title = title.replace("Missed errors", "Missed particles")
        if len(names) > 1:
            worst = int(np.nanargmax(of_classes))
            title += f", most of {names[worst]}: {of_classes[worst]:.1f}"
        yield Step(f"{title}.", _WORDS[kind](evaluation), of_all)


def _missed(evaluation: "Evaluation") -> str:
    row = evaluation.errors.tail(len(KINDS)).set_index("error").loc["missed"]
    missed, never = int(row["counted"]), int(row["detections"])
    text = f"{missed} particles are not counted"
    if missed > never:
        text += (
            f", but {missed - never} of them are found, or nearly, below the score threshold or "
            "under other detections"
        )
    sizes = _missed_sizes(evaluation)
    return (
        f"{text}. {sizes}If they are mostly small or thin, enlarge the images (INPUT.MIN_SIZE_TEST "
        "and MIN_SIZE_TRAIN, smaller tiles) and check the anchors (microplastics anchors); if "
        "they look unlike the others, annotate more of that kind."
    )


def _missed_sizes(evaluation: "Evaluation") -> str:
    particles = evaluation.particles
    if evaluation.sizes is None or particles is None:
        return ""
    median = particles.groupby("outcome")["true_length_px"].median()
    if not {"missed", "correct"} <= set(median.index):
        return ""
    return (
        f"Their median length is {median['missed']:.0f} px, that of the correct ones "
        f"{median['correct']:.0f} px. "
    )


def _background(evaluation: "Evaluation") -> str:
    number = int((evaluation.particles["outcome"] == "background").sum())
    return (
        f"{number} counted particles are none. What is a particle but not annotated belongs into "
        " the annotations; for dust, scratches and the weave of the filter "
        "add photographs of blanks to the training set (DATALOADER.FILTER_EMPTY_ANNOTATIONS "
        "False)."
    )


def _duplicate(evaluation: "Evaluation") -> str:
    number = int((evaluation.particles["outcome"] == "duplicate").sum())
    return (
        f"{number} of them are counted, for what covers another detection by more than "
        f"{evaluation.about['max_overlap']:g} (TEST.COUNTING.MAX_OVERLAP) is left out of counts. "
        "Lower MODEL.ROI_HEADS.NMS_THRESH_TEST or MAX_OVERLAP."
    )


def _class(evaluation: "Evaluation") -> str:
    confusion = evaluation.confusion[:-1, :-1].copy()
    np.fill_diagonal(confusion, 0)
    text = ""
    if confusion.any():
        true, found = np.unravel_index(confusion.argmax(), confusion.shape)
        names = evaluation.class_names
        text = f"Most often {names[true]} is taken for {names[found]}, {confusion.max()} times. "
    return (
        f"{text}Check these annotations first: two people may draw the line differently. Then "
        "annotate more of the rarer class."
    )


def _localisation(evaluation: "Evaluation") -> str:
    worst = int(np.nanargmax(evaluation.lost("localisation")[:-1]))
    row = evaluation.counts.iloc[worst]
    text = (
        f"F1 of {evaluation.class_names[worst]} is {row['F1']:.1f} %, and {row['F1_tol2']:.1f} % "
        "where outlines may be off by 2 px"
    )
    if row["F1_tol2"] - row["F1"] >= _MUCH:
        return (
            f"{text}: many are off by a pixel or two. Annotate more closely, or use a finer mask "
            "head or larger images (docs/heads.md)."
        )
    return (
        f"{text}: most are not off by a pixel or two, but pieces of particles, or several taken "
        "for one. Annotate and train on more of such places, or render them (microplastics render)."
    )


def _both(evaluation: "Evaluation") -> str:
    return "Often these are piles, pieces, or what nobody annotated."


_WORDS = {
    "missed": _missed,
    "background": _background,
    "duplicate": _duplicate,
    "class": _class,
    "localisation": _localisation,
    "both": _both,
}


def _of_thresholds(evaluation: "Evaluation") -> Iterator[Step]:
    """Thresholds that would count better, on these images."""
    thresholds = evaluation.about["score_thresholds"]
    for name, curve in zip(evaluation.class_names, evaluation.curves, strict=False):
        if name not in thresholds or not curve["F1"].notna().any():
            continue
        now = float(np.interp(thresholds[name], curve["threshold"], curve["F1"].fillna(0)))
        best = curve.loc[curve["F1"].idxmax()]
        gain = best["F1"] - now
        if gain >= 2 * _WORTH:
            yield Step(
                f"F1 of {name} would be {best['F1']:.1f} % at the score threshold "
                f"{best['threshold']:.2f}; it is {now:.1f} % at {thresholds[name]:g}.",
                "Choose thresholds on validation images, not on these: microplastics thresholds "
                "(--metric count for counts that are right on average).",
                float(gain),
                "thresholds",
            )


def _of_lengths(evaluation: "Evaluation") -> Iterator[Step]:
    """Lengths that are too long or too short on average, beyond chance."""
    if evaluation.sizes is None or evaluation.particles is None:
        return
    right = evaluation.particles[evaluation.particles["outcome"] == "correct"]
    for name in evaluation.class_names:
        rows = right[right["class"] == name]
        relative = 100 * (rows["length_px"] / rows["true_length_px"] - 1)
        bias = relative.mean()
        beyond = 2 * relative.std() / np.sqrt(max(len(rows), 1))
        if len(rows) > 2 and abs(bias) > max(_MIN_BIAS_PCT, beyond):
            way = "long" if bias > 0 else "short"
            yield Step(
                f"{name} is {abs(bias):.0f} % too {way} on average ({len(rows)} particles).",
                "If long particles are too short, they are found in pieces; if all are off by the "
                "same few pixels, outlines are too wide or too narrow: the annotations or the "
                "model's.",
                _WORTH,
                "lengths",
            )


def _of_numbers(evaluation: "Evaluation") -> Iterator[Step]:
    """Classes with too few particles for firm figures."""
    counts = evaluation.counts["count_true"]
    few = [
        f"{name} ({number:.0f})"
        for name, number in zip(evaluation.class_names, counts, strict=False)
        if number < _MIN_PARTICLES
    ]
    if few:
        yield Step(
            f"Fewer than {_MIN_PARTICLES} true particles: {', '.join(few)}.",
            "Their figures may change by several points on other images of the same kind; the "
            "intervals of recall say by how much.",
            0.0,
            "",
        )
