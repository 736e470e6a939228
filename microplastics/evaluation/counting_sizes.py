"""Sizes of predicted and true particles, and the bins that they are counted in."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from microplastics.errors import UserError
from microplastics.evaluation.matching import Crop
from microplastics.measurement import Item, measure_many
from microplastics.measurement.shape import kind_of

QUANTITIES = ("length", "feret_max", "area")
_FERET = QUANTITIES.index("feret_max")
_MOST_BOUNDS = 100


@dataclasses.dataclass(frozen=True)
class SizeBins:
    """Size classes by the maximum Feret diameter.

    Attributes:
        bounds: ascending; a particle of exactly a bound belongs to the bin above it.
        unit: ``"px"`` or ``"um"``.
        names: one more than bounds; made from them where left out.
    """

    bounds: tuple[float, ...] = (32.0, 96.0)
    unit: str = "px"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bounds = tuple(self.bounds)
        sound = all(
            isinstance(b, (int, float)) and not isinstance(b, bool) and 0 < b < math.inf
            for b in bounds
        )
        if (
            not sound
            or len(bounds) > _MOST_BOUNDS
            or any(a >= b for a, b in zip(bounds, bounds[1:], strict=False))
        ):
            raise UserError(
                f"TEST.COUNTING.SIZE_BOUNDS is {list(bounds)[:5]}; give ascending numbers above 0, "
                f"{_MOST_BOUNDS} at most, such as [32, 96]."
            )
        if self.unit not in ("px", "um"):
            raise UserError(f"TEST.COUNTING.SIZE_UNIT is {self.unit!r}; use px or um.")
        object.__setattr__(self, "bounds", tuple(map(float, bounds)))
        names = tuple(self.names) or self._names()
        if len(names) != len(bounds) + 1 or len(set(names)) < len(names):
            raise ValueError(f"{len(bounds)} bounds make {len(bounds) + 1} bins, not {names}")
        object.__setattr__(self, "names", names)

    def _names(self) -> tuple[str, ...]:
        if not self.bounds:
            return ("any size",)
        first, last = self.bounds[0], self.bounds[-1]
        between = zip(self.bounds, self.bounds[1:], strict=False)
        middle = [f"{low:g}-{high:g}{self.unit}" for low, high in between]
        return (f"<{first:g}{self.unit}", *middle, f">={last:g}{self.unit}")

    def assign(self, sizes: np.ndarray, um_per_px: np.ndarray) -> np.ndarray:
        """Number of each particle's bin.

        Args:
            sizes: (N, 3) of :func:`measure_sizes`.
            um_per_px: (N,); used where the unit is µm.
        """
        feret = sizes[:, _FERET] * (um_per_px if self.unit == "um" else 1.0)
        return np.searchsorted(np.array(self.bounds), feret, side="right")


def measure_sizes(
    masks: Sequence[Crop], classes: Sequence[int], class_names: Sequence[str]
) -> np.ndarray:
    """Length and maximum Feret diameter in px and area in px² of masks.

    The length is that of the centreline where the class is Fiber or Fibre, whatever the case of
    the letters, else the Feret diameter: see ``microplastics.measurement``.

    Args:
        masks: the crops; an empty one measures 0.
        classes: class number of each mask.
        class_names: by class number.

    Returns:
        (N, 3) float64 in the order of :data:`QUANTITIES`.
    """
    sizes = np.zeros((len(masks), len(QUANTITIES)))
    items, places = [], []
    for index, ((mask, x, y), number) in enumerate(zip(masks, classes, strict=True)):
        if mask.any():
            items.append(Item(mask, (x, y), kind=kind_of(class_names[number])))
            places.append(index)
    for index, shape in zip(places, measure_many(items, processes=1), strict=True):
        sizes[index] = [getattr(shape, quantity) for quantity in QUANTITIES]
    return sizes


def read_scales(images: Sequence[Any]) -> dict[int, float]:
    """µm per pixel of the images of a COCO JSON that carry a usable ``um_per_px``.

    Args:
        images: the entries of the JSON, of any form.

    Returns:
        Image id to µm per pixel.
    """
    scales = {}
    for image in images:
        value = image.get("um_per_px") if isinstance(image, dict) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            # 1e-300 and 1e300 are numbers, but no scale of any microscope.
            if 1e-6 <= value <= 1e6:
                scales[image.get("id")] = float(value)
    return scales


def agreement(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """How far measurements of the same particles agree, after Bland and Altman (1986).

    Args:
        predicted, true: (N,) of one quantity.

    Returns:
        ``bias`` (mean of predicted - true), ``MAE`` (mean of its amount) and the limits of
        agreement ``loa_low`` and ``loa_high`` (bias -/+ 1.96 sample standard deviations), in the
        quantity's unit; ``MAPE``, the mean of the amount in % of the true value. NaN where there
        is no pair, the limits with fewer than two.
    """
    difference = predicted - true
    nan = float("nan")
    bias = float(difference.mean()) if len(difference) else nan
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else nan
    share = np.abs(difference[true > 0]) / true[true > 0]
    return {
        "bias": bias,
        "MAE": float(np.abs(difference).mean()) if len(difference) else nan,
        "loa_low": bias - spread,
        "loa_high": bias + spread,
        "MAPE": 100 * float(share.mean()) if len(share) else nan,
    }
