"""Corrections of counts for edges, blanks and volume."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtri

from microplastics.counts.intervals import (
    Interval,
    difference_interval,
    weighted_poisson_interval,
)
from microplastics.utils.errors import UserError

EdgeRule = Literal["count", "exclude", "weight"]
_LOD_SDS, _LOQ_SDS = 3.3, 10.0
_ERROR_RATE = 0.05  # of both kinds in Currie's limit
_LITERS = {
    **{"ml": 1e-3, "cm3": 1e-3, "cl": 1e-2, "dl": 0.1, "hl": 100.0, "m3": 1000.0},
    **dict.fromkeys(("l", "dm3", "liter", "litre", "liters", "litres"), 1.0),
}
_VOLUME = re.compile(
    r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)\s*([A-Za-z]{1,6}3?)\s*"
)
_LITERS_PER_M3 = 1000.0


class Counts(NamedTuple):
    """Particles counted in each of R rows."""

    numbers: np.ndarray  # (R,) int64
    sums: np.ndarray  # (R,) sum of their weights
    squares: np.ndarray  # (R,) sum of their squared weights, the variance of the sums
    largest: np.ndarray  # (R,) largest weight, at least 1

    def interval(self) -> Interval:
        """Interval of the mean of ``sums``."""
        return weighted_poisson_interval(self.sums, self.squares, self.largest)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Filtered volume, and the fraction of the filter that was photographed.

    Attributes:
        liters: volume above 0 that passed each sample's filter, one for all or by the sample's
            name; a sample is a row of the summary: a group, or an image if nothing is grouped.
        counted_fraction: fraction of the filter that the images of a sample show, in (0, 1].
        filter_area_mm2: area of the filter on which particles lie; the fraction is then the images'
            area over it, in place of ``counted_fraction``.
    """

    liters: float | Mapping[str, float]
    counted_fraction: float = 1.0
    filter_area_mm2: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.counted_fraction <= 1:
            raise UserError(
                f"The counted fraction is {self.counted_fraction:g}; expected the fraction of the "
                "filter that was photographed, above 0 and at most 1.",
                code="option_invalid",
            )
        area = self.filter_area_mm2
        if area is not None and not (math.isfinite(area) and area > 0):
            raise UserError(
                f"The filter's area is {area:g} mm²; expected a positive number.",
                code="option_invalid",
            )

    def counted_liters(self, names: Sequence[str], areas: np.ndarray) -> np.ndarray:
        """Give the litres, (R,), whose particles lie on what was photographed.

        Args:
            names: of the R samples.
            areas: (R,) of their images in mm²; NaN without a calibration.

        Raises:
            UserError: the images of a sample have no scale, or show more than a filter.
        """
        by_name = isinstance(self.liters, Mapping)
        volumes = np.array([self.liters[name] if by_name else self.liters for name in names])
        if self.filter_area_mm2 is None:
            return volumes * self.counted_fraction
        for name, area in zip(names, areas, strict=True):
            if np.isnan(area):
                raise UserError(
                    f"The images of {name} have no scale, so that their fraction of the filter's "
                    "area is unknown; calibrate them or give the counted fraction (with --resume "
                    "nothing is lost).",
                    code="scale_missing",
                )
            if area > self.filter_area_mm2 * (1 + 1e-9):
                raise UserError(
                    f"The images of {name} show {area:g} mm², more than the filter's "
                    f"{self.filter_area_mm2:g} mm²; correct it, or give the counted fraction "
                    "instead (with --resume nothing is lost).",
                    code="option_invalid",
                )
        return volumes * areas / self.filter_area_mm2


def edge_weights(
    touches_edge: np.ndarray, sizes: np.ndarray, frames: np.ndarray, rule: EdgeRule
) -> np.ndarray:
    """Weight each particle.

    ``"count"`` gives all particles 1, ``"exclude"`` gives 0 to particles that touch the edge.
    ``"weight"`` also corrects for large particles touching it more often: of the W × H places of
    the first pixel of a w × h box in the frame, (W - w - 1) · (H - h - 1) keep it off the border's
    pixels, so that a particle found there stands for W · H over that number (Miles 1974 and
    Lantuéjoul 1980; ISO 13322-1). The sum of weights is then an unbiased estimate of the number of
    particles whose first pixel lies in the frame, which is the number in a frame's area.

    Args:
        touches_edge: (N,) bool, whether the mask has a pixel on the border of the image.
        sizes: (N, 2) width and height of the particles' boxes in px.
        frames: (N, 2) width and height of their images in px.
        rule: how particles at the edge count.

    Returns:
        (N,) float64.

    Raises:
        UserError: a box does not fit inside its image's border.
    """
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
            "The columns bbox_w, bbox_h and touches_edge contradict each other: a particle off the "
            "edge is as large as its image; write the table again from the images.",
            code="table_invalid",
        )
    weights[inside] = (frames / places).prod(axis=1)
    return weights


def correct_for_blanks(
    counts: Counts, exposures: np.ndarray, blanks: np.ndarray
) -> dict[str, np.ndarray]:
    """Subtract the mean of the blanks, scaled to each row's exposure.

    A row of exposure e is corrected by e · Σ(counts of the blanks) / Σ(their exposures). The
    variance comes from both Poisson counts, the interval from their difference
    (:func:`microplastics.counts.intervals.difference_interval`). Limits of detection and
    quantification are the blanks' mean and 3.3 or 10 standard deviations over them; and Currie's
    detection limit (1968, doi:10.1021/ac60259a007), for which one blank is enough.

    Args:
        counts: of R rows, blanks among them.
        exposures: (R,) area or number of images in each.
        blanks: (R,) bool, at least one.

    Returns:
        (R,) columns of the summary by name; NaN in the rows of the blanks.
    """
    scale = np.where(blanks, np.nan, exposures / float(exposures[blanks].sum()))
    total, squares = counts.sums[blanks].sum(), counts.squares[blanks].sum()
    bounds = weighted_poisson_interval(total, squares, counts.largest[blanks].max())
    expected = scale * total
    raw = counts.sums - expected
    interval = difference_interval(
        counts.sums,
        counts.interval(),
        expected,
        Interval(scale * bounds.low, scale * bounds.high),
    )
    interval = Interval(*np.maximum(interval, 0))
    rates = counts.sums[blanks] / exposures[blanks]
    spread = rates.std(ddof=1) if len(rates) > 1 else np.nan
    exposures = np.where(blanks, np.nan, exposures)
    k = ndtri(1 - _ERROR_RATE)
    return {
        "blank_expected": expected,
        **interval.columns("count_corrected", np.maximum(raw, 0)),
        "count_corrected_unclipped": raw,
        "count_corrected_sd": np.sqrt(counts.squares + scale**2 * squares),
        "lod": exposures * (rates.mean() + _LOD_SDS * spread),
        "loq": exposures * (rates.mean() + _LOQ_SDS * spread),
        "currie_detection_limit": expected
        + k**2
        + 2 * k * np.sqrt(scale * squares + scale**2 * squares),
    }


def parse_volume(text: str) -> float:
    """Read the value of ``--sampled-volume``, such as ``2 L`` or ``0.5 m3``, in litres.

    Raises:
        UserError: it is not a positive number with a unit.
    """
    match = _VOLUME.fullmatch(text.replace("³", "3")) if len(text) <= 80 else None
    liters = math.nan
    if match:
        liters = float(match[1]) * _LITERS.get(match[2].casefold(), math.nan)
    if not (math.isfinite(liters) and liters > 0):
        raise UserError(
            f"The sampled volume is {text[:60]!r}; expected a positive number with a decimal point "
            "and a unit, for example 2 L, 0.5 m3 or 300 mL.",
            code="option_invalid",
        )
    return liters


def concentration_columns(
    estimates: np.ndarray, interval: Interval, liters: np.ndarray, suffix: str = ""
) -> dict[str, np.ndarray]:
    """Give the columns of particles per litre and per m³ with their intervals.

    Args:
        estimates: (R,) numbers of particles.
        interval: of the estimates.
        liters: (R,) as of :meth:`Sampling.counted_liters`; NaN gives NaN.
        suffix: of the columns' names.
    """
    columns = {}
    for unit, scale in (("l", 1.0), ("m3", _LITERS_PER_M3)):
        scaled = Interval(interval.low / liters * scale, interval.high / liters * scale)
        columns |= scaled.columns(f"particles_per_{unit}{suffix}", estimates / liters * scale)
    return columns
