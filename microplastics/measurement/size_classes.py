"""Size classes by the largest Feret diameter."""

import dataclasses
import itertools
import math

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
        bounds: between the bins in µm, ascending.
    """

    bounds: tuple[float, ...]

    @property
    def labels(self) -> list[str]:
        """Values of the column ``size_class``, from the smallest bin on.

        ASCII: spreadsheets read CSV in the encoding of the system.
        """
        texts = [_text(bound) for bound in self.bounds]
        between = [f"{low}-{high} um" for low, high in itertools.pairwise(texts)]
        return [f"<{texts[0]} um", *between, f">={texts[-1]} um"]

    @property
    def columns(self) -> list[str]:
        """The bins' names in a column of the summary, from the smallest bin on."""
        texts = [_text(bound) for bound in self.bounds]
        between = [f"{low}_{high}_um" for low, high in itertools.pairwise(texts)]
        return [f"below_{texts[0]}_um", *between, f"from_{texts[-1]}_um"]

    def bins(self, sizes: np.ndarray) -> np.ndarray:
        """Number the bins, from 0 on, that (N,) sizes in µm fall into."""
        return np.searchsorted(np.asarray(self.bounds), np.asarray(sizes), side="right")


DEFAULT_SIZE_CLASSES = SizeClasses(SCHEMES["default"])


def parse_size_classes(text: str) -> SizeClasses:
    """Read the value of ``--size-classes``.

    Args:
        text: a name of :data:`SCHEMES`, or bounds in µm with commas between them.

    Raises:
        UserError: it is neither, or the bounds are not positive and ascending.
    """
    name = text.strip().casefold()
    try:
        bounds = SCHEMES.get(name) or tuple(float(part) for part in text.split(","))
    except ValueError:
        bounds = ()
    # Written so that NaN fails it too.
    ascending = all(low < high for low, high in itertools.pairwise((0.0, *bounds, math.inf)))
    if not (0 < len(bounds) <= _MOST_BOUNDS and ascending):
        raise UserError(
            f"The size classes are {text[:60]!r}; expected one of {', '.join(SCHEMES)}, or at most "
            f"{_MOST_BOUNDS} positive bounds in µm, the smallest first, for example 10,50,100,500.",
            code="option_invalid",
        )
    return SizeClasses(bounds)


def check_min_size(min_size: float | None) -> None:
    """Check a smallest reported size, in µm, or in px for images without a calibration.

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
