"""Size classes: bins of the largest Feret diameter in µm."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from microplastics.utils.errors import UserError

_MOST_EDGES = 100


@dataclasses.dataclass(frozen=True)
class SizeClasses:
    """Half-open bins [low, high), one below the first bound and one from the last on.

    Attributes:
        name: that of the scheme, or ``custom``.
        bounds: between the bins in µm, ascending.
    """

    name: str
    bounds: tuple[float, ...]

    @property
    def labels(self) -> list[str]:
        """What stands in the column ``size_class``, from the smallest bin on.

        ASCII: spreadsheets read CSV in the encoding of the system.
        """
        texts = [_text(bound) for bound in self.bounds]
        between = [f"{low}-{high} um" for low, high in zip(texts, texts[1:], strict=False)]
        return [f"<{texts[0]} um", *between, f">={texts[-1]} um"]

    @property
    def columns(self) -> list[str]:
        """The bins' names in a column of the summary, from the smallest bin on."""
        texts = [_text(bound) for bound in self.bounds]
        between = [f"{low}_{high}_um" for low, high in zip(texts, texts[1:], strict=False)]
        return [f"below_{texts[0]}_um", *between, f"from_{texts[-1]}_um"]

    def bins(self, sizes: np.ndarray) -> np.ndarray:
        """Number the bins that sizes fall into.

        Args:
            sizes: (N,) in µm, not NaN.

        Returns:
            (N,) int64, 0 for the smallest bin.
        """
        return np.searchsorted(np.asarray(self.bounds), np.asarray(sizes), side="right")


# docs/counts.md has the sources.
SCHEMES = {
    "default": (20.0, 50.0, 100.0, 300.0, 500.0, 1000.0, 5000.0),
    "msfd": (20.0, 1000.0, 5000.0),
    "iso24187": (1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0),
    "mm": (1000.0, 2000.0, 5000.0, 10000.0),
}
DEFAULT_SIZE_CLASSES = SizeClasses("default", SCHEMES["default"])


def parse_size_classes(text: str) -> SizeClasses:
    """Read the value of ``--size-classes``.

    Args:
        text: a name of :data:`SCHEMES`, or bounds in µm with commas between them.

    Raises:
        UserError: it is neither.
    """
    name = text.strip().casefold()
    if name in SCHEMES:
        return SizeClasses(name, SCHEMES[name])
    try:
        bounds = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"The size classes {_quoted(text)} are neither one of {', '.join(SCHEMES)} nor bounds "
            "in µm with commas between them; write for example 10,50,100,500."
        ) from error
    return custom_size_classes(bounds)


def custom_size_classes(bounds: Sequence[float]) -> SizeClasses:
    """Make size classes of given bounds.

    Args:
        bounds: in µm.

    Raises:
        UserError: there are none or too many, or they are not positive and ascending.
    """
    bounds = tuple(float(bound) for bound in bounds)
    if not 0 < len(bounds) <= _MOST_EDGES:
        raise UserError(
            f"The size classes have {len(bounds)} bounds; give at least one and at most "
            f"{_MOST_EDGES}."
        )
    for bound in bounds:
        if not (math.isfinite(bound) and bound > 0):
            raise UserError(
                f"The size classes have the bound {bound:g} µm; give positive, finite numbers."
            )
    for low, high in zip(bounds, bounds[1:], strict=False):
        if low >= high:
            raise UserError(
                f"The size classes have the bound {_text(high)} µm after {_text(low)} µm; give "
                "each bound once, the smallest first."
            )
    return SizeClasses("custom", bounds)


def check_min_size(min_size: float | None) -> None:
    """Refuse a smallest reported size that is none.

    Raises:
        UserError: it is not positive and finite.
    """
    if min_size is not None and not (math.isfinite(min_size) and min_size > 0):
        raise UserError(
            f"The smallest reported size is {min_size:g}; give a positive number, in µm where the "
            "image is calibrated and in px where it is not."
        )


def below_label(min_size: float, unit: str) -> str:
    """What stands in ``size_class`` of a particle smaller than the smallest reported size."""
    return f"below {_text(min_size)} {unit}"


def _text(value: float) -> str:
    """The shortest text of a number that tells it from all others."""
    return repr(float(value)).removesuffix(".0")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
