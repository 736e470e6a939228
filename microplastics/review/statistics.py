"""What decisions tell: precision and recall of the model, agreement of two reviews."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtri

from microplastics.counts.intervals import Interval, t_interval, wilson_interval
from microplastics.evaluation.matching import candidate_pairs
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError

if TYPE_CHECKING:
    from microplastics.review.session import Particle, Review

ANY = "any particle"
_SCORES = np.arange(11) / 10
_LEVEL = 0.95
_MIN_IOU = 0.5
# Lengths that two reviewers are compared by.
_SIZES = ("feret_max", "length", "equivalent_diameter")


class _Found(NamedTuple):
    """A particle of the model whose case is decided: is it one, and is its class right?"""

    class_name: str
    score: float
    is_particle: bool
    is_class: bool


class _Present(NamedTuple):
    """Particles of a class on a finished image, and how many of them the model found."""

    class_name: str
    present: int
    found: int


def cases(particles: Sequence["Particle"]) -> Iterator[list["Particle"]]:
    """Yield the particles of an image that belong together: what was merged or split, and what of.

    All others are alone.
    """
    head = {each.id: each.id for each in particles}

    def top(id_: int) -> int:
        while head[id_] != id_:
            id_ = head[id_]
        return id_

    for each in particles:
        for parent in each.parents:
            head[top(each.id)] = top(parent)
    groups = defaultdict(list)
    for each in particles:
        groups[top(each.id)].append(each)
    yield from groups.values()


def model_quality(review: "Review") -> pd.DataFrame:
    """Precision and recall of the model as far as decisions tell them.

    Of a case in which the model has m particles and the reviewers n, the min(m, n) of the highest
    scores are right: pieces that were merged count one right, a particle that was split in three
    leaves two missed. For a class the same holds of the particles of the class.

    Returns:
        a row for any particle and for each class, and below them a row for each tenth of the
        score: ``class``, ``score_low``, ``score_high``, ``decided`` (particles of the model),
        ``correct``, ``precision`` with 95 % Wilson bounds; ``present`` (on finished images),
        ``found``, ``recall`` with bounds, missing in the rows of scores.
    """
    found: list[_Found] = []
    present: list[_Present] = []
    for image in review.images:
        for case in cases(review.particles(image.name)):
            if any(each.state == "unseen" for each in case):
                continue
            found += _found(case)
            if image.finished:
                present += _present(case)
    given = (each.class_name for each in present if each.class_name != ANY)
    names = dict.fromkeys([*review.source.classes, *given])
    rows = []
    for name in (ANY, *names):
        own = [each for each in found if name in (ANY, each.class_name)]
        right = [each.is_particle if name == ANY else each.is_class for each in own]
        there = [each for each in present if each.class_name == name]
        total, hits = sum(e.present for e in there), sum(e.found for e in there)
        rows.append(
            {
                **{"class": name, "score_low": np.nan, "score_high": np.nan},
                **_rate("precision", ("decided", "correct"), len(own), sum(right)),
                **_rate("recall", ("present", "found"), total, hits),
            }
        )
        scores = np.array([each.score for each in own], dtype=np.float64)
        bins = np.clip(np.searchsorted(_SCORES, scores, side="right") - 1, 0, len(_SCORES) - 2)
        for number in np.unique(bins[np.isfinite(scores)]).tolist():
            inside = np.flatnonzero((bins == number) & np.isfinite(scores))
            bounds = {"score_low": _SCORES[number], "score_high": _SCORES[number + 1]}
            correct = sum(right[index] for index in inside)
            rate = _rate("precision", ("decided", "correct"), len(inside), correct)
            rows.append({"class": name, **bounds, **rate})
    return pd.DataFrame(rows).astype({"present": "Int64", "found": "Int64"})


def _found(case: Sequence["Particle"]) -> list[_Found]:
    model = [each for each in case if each.origin == "model"]
    model.sort(key=lambda each: -np.nan_to_num(each.score, nan=-1.0))
    final = Counter(each.class_name for each in case if each.counts)
    left, total, found = Counter(final), final.total(), []
    for number, each in enumerate(model):
        is_class = left[each.given_class] > 0
        left[each.given_class] -= 1
        found.append(_Found(each.given_class, each.score, number < total, is_class))
    return found


def _present(case: Sequence["Particle"]) -> list[_Present]:
    model = Counter(each.given_class for each in case if each.origin == "model")
    final = Counter(each.class_name for each in case if each.counts)
    every = _Present(ANY, final.total(), min(model.total(), final.total()))
    return [every, *(_Present(name, n, min(n, model[name])) for name, n in final.items())]


def _rate(name: str, parts: tuple[str, str], total: int, hits: int) -> dict[str, float]:
    rate = hits / total if total else np.nan
    low, high = wilson_interval(np.array(rate), np.array(total))
    bounds = {name: rate, f"{name}_low": float(low), f"{name}_high": float(high)}
    return {parts[0]: total, parts[1]: hits, **bounds}


class Agreement(NamedTuple):
    """How far two reviews agree.

    Attributes:
        decisions: a row for all decisions (each class, or no particle), for any particle, and for
            each class against all else: ``decision``, ``units``, ``agreed``, ``kappa`` of Cohen
            with 95 % bounds.
        sizes: a row for each measure and unit, of the particles that both accepted: ``measure``,
            ``unit``, ``pairs``, ``differing``, ``mean_difference`` (other less one) with 95 %
            bounds, ``sd``, and Bland and Altman's ``limit_low`` and ``limit_high``.
        units: what the two say of each particle: ``image``, ``one`` and ``other`` (numbers),
            ``class_one`` and ``class_other`` ("" is no particle).
    """

    decisions: pd.DataFrame
    sizes: pd.DataFrame
    units: pd.DataFrame


def agreement(one: "Review", other: "Review") -> Agreement:
    """Compare two reviews of the same run.

    Units are the particles of the model that both decided; and on images that both finished what
    is left, such as drawn particles, matched by an IoU of at least 0.5. What has no partner is no
    particle for the other reviewer.

    Raises:
        UserError: they stand on different particles, or have no decision in common.
    """
    if one.source.fingerprint != other.source.fingerprint:
        raise UserError(
            f"{other.output} reviews other particles than {one.output}; expected two reviews of "
            "one run.",
            code="run_mismatch",
        )
    units = []
    for image in one.images:
        both = image.finished and other.image(image.name).finished
        pairs = _units(one.particles(image.name), other.particles(image.name), both)
        units += [(image.name, first, second) for first, second in pairs]
    if not units:
        raise UserError(
            f"{one.output} and {other.output} have no decision in common; review the same images.",
            code="input_empty",
        )
    says = [tuple(_said(each) for each in pair) for _, *pair in units]
    table = pd.DataFrame(
        {
            "image": [image for image, _, _ in units],
            "one": pd.array([pair[0] and pair[0].id for _, *pair in units], "Int64"),
            "other": pd.array([pair[1] and pair[1].id for _, *pair in units], "Int64"),
            "class_one": [first for first, _ in says],
            "class_other": [second for _, second in says],
        }
    )
    return Agreement(_decisions(says), _sizes(one, other, units), table)


def _said(particle: "Particle | None") -> str:
    return particle.class_name if particle is not None and particle.counts else ""


def _units(
    one: Sequence["Particle"], other: Sequence["Particle"], finished: bool
) -> Iterator[tuple["Particle | None", "Particle | None"]]:
    decided = ("accepted", "rejected")
    theirs = {each.id: each for each in other if each.origin == "model"}
    common = {
        each.id
        for each in one
        if each.origin == "model" and each.state in decided and theirs[each.id].state in decided
    }
    yield from ((each, theirs[each.id]) for each in one if each.id in common)
    if not finished:
        return
    # A number above the model's is of each review's own.
    rests = [
        [
            each
            for each in side
            if each.counts and not (each.origin == "model" and each.id in common)
        ]
        for side in (one, other)
    ]
    taken: list[set[int]] = [set(), set()]
    for pair in _matches(*rests):
        if all(number not in used for number, used in zip(pair, taken, strict=True)):
            yield tuple(rest[number] for rest, number in zip(rests, pair, strict=True))
            for number, used in zip(pair, taken, strict=True):
                used.add(number)
    yield from ((each, None) for n, each in enumerate(rests[0]) if n not in taken[0])
    yield from ((None, each) for n, each in enumerate(rests[1]) if n not in taken[1])


def _matches(one: Sequence["Particle"], other: Sequence["Particle"]) -> list[tuple[int, int]]:
    """Numbers of those that overlap enough, the best first."""
    if not one or not other:
        return []
    ends = [np.add(each.offset, each.mask.shape[::-1]) for each in (*one, *other)]
    width, height = np.max(ends, axis=0).tolist()
    masks = [
        CropMasks([e.mask for e in side], [e.offset for e in side], (height, width))
        for side in (one, other)
    ]
    pairs = candidate_pairs(*masks, min_iou=_MIN_IOU)
    order = np.argsort(-pairs.iou[:, 0], kind="stable")
    return list(zip(pairs.predicted[order].tolist(), pairs.true[order].tolist(), strict=True))


def _decisions(says: Sequence[tuple[str, str]]) -> pd.DataFrame:
    names = sorted({name for pair in says for name in pair} - {""})
    rows = [_kappa_row("all", says)]
    rows.append(_kappa_row(ANY, [tuple(bool(name) for name in pair) for pair in says]))
    rows += [_kappa_row(n, [tuple(name == n for name in pair) for pair in says]) for n in names]
    return pd.DataFrame(rows)


def _kappa_row(name: str, says: Sequence[tuple]) -> dict[str, float]:
    kappa, interval = cohen_kappa(says)
    agreed = sum(first == second for first, second in says)
    about = {"decision": name, "units": len(says), "agreed": agreed}
    return {**about, "kappa": kappa, "kappa_low": interval[0], "kappa_high": interval[1]}


def cohen_kappa(pairs: Sequence[tuple]) -> tuple[float, tuple[float, float]]:
    """Agreement of two raters beyond chance, with a 95 % interval.

    Sources: Cohen 1960, doi:10.1177/001316446002000104; the variance of Fleiss, Cohen and Everitt
    1969, doi:10.1037/h0028106.

    Args:
        pairs: what the two say of each unit.

    Returns:
        kappa and the bounds of its interval; NaN if both say the same of all units.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(itertools.chain(*pairs)))}
    table = np.zeros((len(names), len(names)))
    for first, second in pairs:
        table[names[first], names[second]] += 1
    p = table / len(pairs)
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, chance = float(np.trace(p)), float(rows @ columns)
    if chance == 1:
        return np.nan, (np.nan, np.nan)
    kappa = (observed - chance) / (1 - chance)
    sums = columns[:, None] + rows[None, :]
    same = np.diag(p) @ ((1 - chance) - np.diag(sums) * (1 - observed)) ** 2
    unlike = (1 - observed) ** 2 * ((p - np.diag(np.diag(p))) * sums**2).sum()
    variance = same + unlike - (observed * chance - 2 * chance + observed) ** 2
    half = ndtri((1 + _LEVEL) / 2) * np.sqrt(max(variance, 0) / len(pairs)) / (1 - chance) ** 2
    return kappa, (max(kappa - half, -1.0), min(kappa + half, 1.0))


def _sizes(one: "Review", other: "Review", units: Iterable[tuple]) -> pd.DataFrame:
    pairs = [unit for unit in units if all(each and each.counts for each in unit[1:])]
    tables = [side.table(every=True).set_index(["image", "particle"]) for side in (one, other)]
    keys = [[(image, pair[side].id) for image, *pair in pairs] for side in (0, 1)]
    rows = []
    for measure, unit in itertools.product(_SIZES, ("um", "px")):
        name = f"{measure}_{unit}"
        if not pairs or any(name not in table for table in tables):
            continue
        values = [t[name].reindex(key).to_numpy() for t, key in zip(tables, keys, strict=True)]
        difference = (values[1] - values[0])[np.isfinite(values[0] + values[1])]
        if len(difference):
            rows.append({"measure": measure, "unit": unit, **_differences(difference)})
    return pd.DataFrame(rows)


def _differences(difference: np.ndarray) -> dict[str, float]:
    mean, interval = float(difference.mean()), Interval(*t_interval(difference))
    sd = float(difference.std(ddof=1)) if len(difference) > 1 else np.nan
    spread = ndtri((1 + _LEVEL) / 2) * sd
    return {
        "pairs": len(difference),
        "differing": int(np.count_nonzero(difference)),
        **interval.columns("mean_difference", mean),
        **{"sd": sd, "limit_low": mean - spread, "limit_high": mean + spread},
    }
