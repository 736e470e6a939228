"""Size classes by the largest Feret diameter."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from microplastics.utils.errors import UserError

_MOST_BOUNDS = 100

# docs/counts.md has the sources.
SCHEMES = {
    "default": (20.0, 50.0, 100.0, 300.0, 500.0, 1000.0, 5000.0),
    "msfd": (20.0, 1000.0, 5000.0),
    "iso24187": (1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0),
    "mm": (1000.0, 2000.0, 5000.0, 10000.0),
}


@dataclasses.dataclass(frozen=True)
class SizeClasses:
    """Half-open bins [low, high), one below the first bound and one from the last on.

    Attributes:
        name: of the scheme, or ``custom``.
        bounds: between the bins in µm, ascending.
    """

    name: str
    bounds: tuple[float, ...]

    @property
    def labels(self) -> list[str]:
        """Values of the column ``size_class``, from the smallest bin on.

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


DEFAULT_SIZE_CLASSES = SizeClasses("default", SCHEMES["default"])


def parse_size_classes(text: str) -> SizeClasses:
    """Read the value of ``--size-classes``.

    Args:
        text: a name of :data:`SCHEMES`, or bounds in µm with commas between them.

    Raises:
        UserError: it is neither, or the bounds are not positive and ascending.
    """
    name = text.strip().casefold()
    if name in SCHEMES:
        return SizeClasses(name, SCHEMES[name])
    try:
        bounds = [float(part) for part in text.split(",")]
    except ValueError as error:
        shown = text if len(text) <= 60 else text[:57] + "…"
        raise _invalid(
            f"{shown!r}; expected one of {', '.join(SCHEMES)} or bounds in µm, for example "
            "10,50,100,500"
        ) from error
    return custom_size_classes(bounds)


def custom_size_classes(bounds: Sequence[float]) -> SizeClasses:
    """Make size classes with given bounds.

    Args:
        bounds: in µm.

    Raises:
        UserError: there are none or too many, or they are not positive and ascending.
    """
    bounds = tuple(float(bound) for bound in bounds)
    if not 0 < len(bounds) <= _MOST_BOUNDS:
        raise _invalid(f"{len(bounds)} bounds; expected 1 to {_MOST_BOUNDS}")
    for bound in bounds:
        if not (math.isfinite(bound) and bound > 0):
            raise _invalid(f"the bound {bound:g} µm; expected positive, finite numbers")
    for low, high in zip(bounds, bounds[1:], strict=False):
        if low >= high:
            raise _invalid(
                f"the bound {_text(high)} µm after {_text(low)} µm; expected each bound once, the "
                "smallest first"
            )
    return SizeClasses("custom", bounds)


def check_min_size(min_size: float | None) -> None:
    """Check a smallest reported size.

    Args:
        min_size: in µm, in px for images without a calibration; None for all sizes.

    Raises:
        UserError: it is not positive and finite.
    """
    if min_size is not None and not (math.isfinite(min_size) and min_size > 0):
        raise UserError(
            f"The smallest reported size is {min_size:g}; expected a positive number, in µm if the "
            "image is calibrated and in px if not.",
            code="option_invalid",
        )


def below_label(min_size: float, unit: str) -> str:
    """Give the value of ``size_class`` below the smallest reported size, in ``unit``."""
    return f"below {_text(min_size)} {unit}"


def _text(value: float) -> str:
    """The shortest text that identifies a number."""
    return repr(float(value)).removesuffix(".0")


def _invalid(problem: str) -> UserError:
    return UserError(f"The size classes have {problem}.", code="option_invalid")
