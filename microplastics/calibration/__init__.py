"""Scale of images in micrometres per pixel."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The scale of one image.

    Attributes:
        um_per_px: side of a pixel in µm, positive and finite.
        source: origin of the figure, written in every output.
    """

    um_per_px: float
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.um_per_px) and self.um_per_px > 0):
            raise ValueError(f"{self.um_per_px} µm per pixel is not a scale")
