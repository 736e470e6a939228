"""Particles of one image."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Particles:
    """Detected or annotated particles of one image, in its pixels.

    Attributes:
        image: name of the image in every output; unique within a run.
        image_size: height and width of the whole image in px.
        masks: N bool arrays of shape (h, w), each with at least one pixel.
        offsets: (N, 2) int64, x and y of the first pixel of each mask in the image.
        classes: N class names.
        scores: (N,) float64 in [0, 1]; NaN for annotations.
        ids: (N,) int64, unique: 1 to N, or the ids of the annotations.
        pixels: N uint8 BGR arrays of shape (pixels of the mask, 3), in any order; None without
            the image.
    """

    image: str
    image_size: tuple[int, int]
    masks: Sequence[np.ndarray]
    offsets: np.ndarray
    classes: Sequence[str]
    scores: np.ndarray
    ids: np.ndarray
    pixels: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.masks)

    def only(self, numbers: Sequence[int]) -> "Particles":
        """Return the particles at some of the places from 0 to N - 1, in this order."""
        return dataclasses.replace(
            self,
            masks=[self.masks[number] for number in numbers],
            offsets=self.offsets[numbers],
            classes=[self.classes[number] for number in numbers],
            scores=self.scores[numbers],
            ids=self.ids[numbers],
            pixels=None if self.pixels is None else [self.pixels[number] for number in numbers],
        )
