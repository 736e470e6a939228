"""Scale of images in micrometres per pixel."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The scale of one image.

    Attributes:
        um_per_px: side of a pixel in µm, positive and finite.
        source: origin of the figure, written in every output.
    """

    um_per_px: float
    source: str
