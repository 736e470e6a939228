"""From counts to particles per volume of the water that was filtered."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from microplastics.errors import UserError
from microplastics.measurement.intervals import Interval

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
