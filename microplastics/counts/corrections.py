"""From counts to particles per volume of the water that was filtered."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.special import ndtri

from microplastics.counts.intervals import (
    LEVEL,
    Interval,
    difference_interval,
    weighted_poisson_interval,
)
from microplastics.utils.errors import UserError

EdgeRule = Literal["count", "exclude", "weight"]
EDGE_RULES: tuple[str, ...] = get_args(EdgeRule)


def edge_weights(
    touches_edge: np.ndarray, sizes: np.ndarray, frames: np.ndarray, rule: EdgeRule
) -> np.ndarray:
    """How much each particle counts.

    ``"count"`` counts all as 1, ``"exclude"`` those that touch the edge as 0. ``"weight"`` further
    makes up for the larger chance of a large particle to touch it: of the W × H places that the
    first pixel of a w × h box has in the frame, (W - w - 1) · (H - h - 1) keep it off the border's
    pixels, so that those found there stand for W · H over that number (Miles 1974 and Lantuéjoul
    1980; ISO 13322-1). The sum of weights is then an unbiased estimate of the number of particles
    whose first pixel lies in the frame, as many as there are in a frame's area of the filter.

    Args:
        touches_edge: (N,) bool, whether the mask has a pixel on the border of the image.
        sizes: (N, 2) width and height of the particles' boxes in px.
        frames: (N, 2) width and height of their images in px.
        rule: one of :data:`EDGE_RULES`.

    Returns:
        (N,) float64.

    Raises:
        UserError: the rule is unknown, or a box does not fit inside its image's border.
    """
    if rule not in EDGE_RULES:
        raise UserError(f"The edge rule {rule!r} is none of {', '.join(EDGE_RULES)}; choose one.")
    touches_edge = np.asarray(touches_edge, dtype=bool)
    if rule == "count":
        return np.ones(len(touches_edge))
    weights = np.where(touches_edge, 0.0, 1.0)
    if rule == "exclude":
        return weights
    inside = ~touches_edge
    frames, sizes = (
        np.asarray(a, dtype=np.float64).reshape(-1, 2)[inside] for a in (frames, sizes)
    )
    places = frames - sizes - 1
    if (places < 1).any():
        raise UserError(
            "A particle that touches no edge has a box as large as its image; the columns bbox_w, "
            "bbox_h and touches_edge do not agree: write the table again from the images."
        )
    weights[inside] = (frames / places).prod(axis=1)
    return weights


_LOD_SDS, _LOQ_SDS = 3.3, 10.0
_ERROR_RATE = 0.05  # of both kinds in Currie's limit


class Counts(NamedTuple):
    """Particles counted in each of R rows.

    Attributes:
        numbers: (R,) int64.
        sums: (R,) sum of their weights.
        squares: (R,) sum of their squared weights, the variance of ``sums``.
        largest: (R,) largest weight, at least 1.
    """

    numbers: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    largest: np.ndarray

    def interval(self, level: float = LEVEL) -> Interval:
        """Interval of the mean of ``sums``."""
        return weighted_poisson_interval(self.sums, self.squares, self.largest, level)


class Corrected(NamedTuple):
    """Counts less what blanks have; NaN in the rows of the blanks.

    Attributes:
        estimates: (R,) from 0 on.
        interval: of them, from 0 on.
        columns: all that the summary tells, by name.
    """

    estimates: np.ndarray
    interval: Interval
    columns: dict[str, np.ndarray]


def correct_for_blanks(
    counts: Counts, exposures: np.ndarray, blanks: np.ndarray, level: float = LEVEL
) -> Corrected:
    """Subtract from each row what blanks of the same size have on average.

    A row of exposure e is corrected by e · Σ(counts of the blanks) / Σ(their exposures). The
    variance is that of both Poisson counts, the interval that of a difference
    (:func:`microplastics.counts.intervals.difference_interval`). Limits of detection and
    quantification are the blanks' mean and 3.3 or 10 standard deviations over them; and Currie's
    detection limit (1968, doi:10.1021/ac60259a007), which a single blank gives too.

    Args:
        counts: of R rows, blanks among them.
        exposures: (R,) how much was looked at in each: area or number of images.
        blanks: (R,) bool, at least one.
        level: coverage of the interval.
    """
    of_blanks = float(exposures[blanks].sum())
    scale = np.where(blanks, np.nan, exposures / of_blanks)
    total, squares = counts.sums[blanks].sum(), counts.squares[blanks].sum()
    largest = counts.largest[blanks].max()
    bounds = weighted_poisson_interval(total, squares, largest, level)
    expected = scale * total
    raw = counts.sums - expected
    interval = difference_interval(
        counts.sums,
        counts.interval(level),
        expected,
        Interval(scale * bounds.low, scale * bounds.high),
    )
    interval = Interval(np.maximum(interval.low, 0), np.maximum(interval.high, 0))
    rates = counts.sums[blanks] / exposures[blanks]
    spread = rates.std(ddof=1) if len(rates) > 1 else np.nan
    exposures = np.where(blanks, np.nan, exposures)
    k = ndtri(1 - _ERROR_RATE)
    estimates = np.maximum(raw, 0)
    columns = {
        "blank_expected": expected,
        "count_corrected": estimates,
        "count_corrected_low": interval.low,
        "count_corrected_high": interval.high,
        "count_corrected_unclipped": raw,
        "count_corrected_sd": np.sqrt(counts.squares + scale**2 * squares),
        "lod": exposures * (rates.mean() + _LOD_SDS * spread),
        "loq": exposures * (rates.mean() + _LOQ_SDS * spread),
        "currie_detection_limit": expected
        + k**2
        + 2 * k * np.sqrt(scale * squares + scale**2 * squares),
    }
    return Corrected(estimates, interval, columns)


_LITERS = {
    "ml": 1e-3,
    "cm3": 1e-3,
    "cl": 1e-2,
    "dl": 1e-1,
    "l": 1.0,
    "dm3": 1.0,
    "liter": 1.0,
    "litre": 1.0,
    "liters": 1.0,
    "litres": 1.0,
    "hl": 100.0,
    "m3": 1000.0,
}
_VOLUME = re.compile(r"\s*([0-9.]{1,40}(?:[eE][+-]?[0-9]{1,3})?)\s*([A-Za-z]{1,6}3?)\s*")
_LITERS_PER_M3 = 1000.0


def parse_volume(text: str) -> float:
    """Read the value of ``--sampled-volume``.

    Args:
        text: a number and a unit: ``2 L``, ``0.5 m3``, ``300 mL``.

    Returns:
        litres.

    Raises:
        UserError: it is no volume.
    """
    match = _VOLUME.fullmatch(text.replace("³", "3")) if len(text) <= 80 else None
    scale = _LITERS.get(match[2].casefold()) if match else None
    try:
        liters = float(match[1]) * scale if match and scale else math.nan
    except ValueError:
        liters = math.nan
    if not (math.isfinite(liters) and liters > 0):
        raise UserError(
            f"The sampled volume {text[:60]!r} is no volume; write a positive number with a "
            "decimal point and a unit, for example 2 L, 0.5 m3 or 300 mL."
        )
    return liters


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What was filtered, and how much of the filter was photographed.

    Attributes:
        liters: volume that passed each sample's filter, one for all or by the sample's name; a
            sample is a row of the summary: a group, or an image where nothing is grouped.
        counted_fraction: share of the filter that the images of a sample show, in (0, 1].
        filter_area_mm2: area of the filter on which particles lie; the share is then the images'
            area over it.
    """

    liters: float | Mapping[str, float]
    counted_fraction: float = 1.0
    filter_area_mm2: float | None = None

    def __post_init__(self) -> None:
        named = self.liters if isinstance(self.liters, Mapping) else {"": self.liters}
        for name, liters in named.items():
            if not (math.isfinite(liters) and liters > 0):
                owner = f" of {name}" if name else ""
                raise UserError(f"The sampled volume{owner} is {liters:g} L; give a positive one.")
        if not 0 < self.counted_fraction <= 1:
            raise UserError(
                f"The counted fraction is {self.counted_fraction:g}; give the share of the filter "
                "that was photographed, above 0 and at most 1."
            )
        area = self.filter_area_mm2
        if area is not None:
            if not (math.isfinite(area) and area > 0):
                raise UserError(f"The filter's area is {area:g} mm²; give a positive one.")
            if self.counted_fraction != 1:
                raise UserError(
                    "The filter's area and the counted fraction both tell how much was "
                    "photographed; give one of them."
                )

    def counted_liters(self, names: Sequence[str], areas: np.ndarray) -> np.ndarray:
        """The volume whose particles lie on what was photographed.

        Args:
            names: of the R samples.
            areas: (R,) of their images in mm²; NaN without a calibration.

        Returns:
            (R,) in litres.

        Raises:
            UserError: a sample has no volume, its images no scale, or they show more than a filter.
        """
        volumes = []
        for name in names:
            liters = self.liters.get(name) if isinstance(self.liters, Mapping) else self.liters
            if liters is None:
                raise UserError(f"{name} has no sampled volume; add it to the list of volumes.")
            volumes.append(liters)
        if self.filter_area_mm2 is None:
            return np.array(volumes) * self.counted_fraction
        for name, area in zip(names, areas, strict=True):
            if np.isnan(area):
                raise UserError(
                    f"The images of {name} have no scale, so that their share of the filter's area "
                    "is not known; calibrate them or give the counted fraction (with --resume "
                    "nothing is lost)."
                )
            if area > self.filter_area_mm2 * (1 + 1e-9):
                raise UserError(
                    f"The images of {name} show {area:g} mm², more than the filter's "
                    f"{self.filter_area_mm2:g} mm²; correct it, or give the counted fraction "
                    "in place of the area (with --resume nothing is lost)."
                )
        return np.array(volumes) * areas / self.filter_area_mm2


def concentration_columns(
    estimates: np.ndarray, interval: Interval, liters: np.ndarray, suffix: str = ""
) -> dict[str, np.ndarray]:
    """Particles per litre and per m³ with their intervals.

    Args:
        estimates: (R,) numbers of particles.
        interval: of them.
        liters: (R,) as of :meth:`Sampling.counted_liters`; NaN gives NaN.
        suffix: of the columns' names.
    """
    columns = {}
    for unit, scale in (("l", 1.0), ("m3", _LITERS_PER_M3)):
        name = f"particles_per_{unit}{suffix}"
        columns[name] = estimates / liters * scale
        columns[f"{name}_low"] = interval.low / liters * scale
        columns[f"{name}_high"] = interval.high / liters * scale
    return columns
