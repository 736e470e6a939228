"""Numbers beside particles, for thousands of them on one picture."""

from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_DIGITS = "0123456789-"
_DARKER = 0.7
# Side of the cells in which the placer counts, in px.
_CELL = 4
# What one cell of another number costs, in cells with an outline, and how many may be shared.
_NUMBER, _SHARED = 1000, 1


class Numerals:
    """Digits of one size, dark in the colour of a class on a white rim."""

    def __init__(self, size: int):
        """
        Args:
            size: of the font, in px.
        """
        self._glyphs = _glyphs(size)
        self._rim = max(1, round(size / 10))
        side = 2 * self._rim + 1
        self._kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))

    def render(self, text: str) -> np.ndarray:
        """Give the coverage of digits, (2, h, w) float32 in [0, 1]: of the rim and of the ink."""
        ink = np.concatenate([self._glyphs[character] for character in text], axis=1)
        ink = np.pad(ink, self._rim)
        return np.stack([cv2.dilate(ink, self._kernel), ink])

    @staticmethod
    def draw(picture: np.ndarray, text: np.ndarray, corner: tuple[int, int], color) -> None:
        """Blend digits into a picture.

        Args:
            picture: (H, W, 3) uint8, drawn on.
            text: what :meth:`render` gave; what lies outside of the picture is cut off.
            corner: x and y of its upper left corner, both 0 or more.
            color: of the class, in the picture's order of channels.
        """
        x, y = corner
        target = picture[y : y + text.shape[1], x : x + text.shape[2]]
        rim, ink = text[:, : target.shape[0], : target.shape[1], None]
        blended = target + (255 - target) * rim
        blended += (np.multiply(color, _DARKER, dtype=np.float32) - blended) * ink
        target[:] = np.round(blended)


class NumberPlacer:
    """Finds for each number a place at the outline of its particle where it covers little."""

    _ANGLES = np.arange(8) * (np.pi / 4)
    # Straight up first: among equally good places the first is taken.
    _DIRECTIONS = np.stack([np.sin(_ANGLES), -np.cos(_ANGLES)], axis=1)

    def __init__(self, size: tuple[int, int]):
        """
        Args:
            size: height and width of the picture in px.
        """
        self._frame = np.array([size[1], size[0]], dtype=np.float64)
        self._cost = np.zeros((size[0] // _CELL + 2, size[1] // _CELL + 2), dtype=np.int32)

    def cover(self, outline: np.ndarray) -> None:
        """Mark (N, 2) points, x and y in px of the picture, that are better not covered."""
        cells = (outline.clip(0, self._frame) / _CELL).astype(np.int64)
        self._cost[cells[:, 1], cells[:, 0]] += 1

    def place(
        self, outline: np.ndarray, shape: tuple[int, ...], gap: float
    ) -> tuple[int, int] | None:
        """Place one number.

        Args:
            outline: (N, 2) points of its particle in px of the picture.
            shape: of the number, height and width last, in px.
            gap: between number and particle, in px.

        Returns:
            x and y of its upper left corner; None where it would lie on another number.
        """
        size = np.array([shape[-1], shape[-2]], dtype=np.float64)
        anchors = outline.clip(0, self._frame)
        extreme = anchors[(anchors @ self._DIRECTIONS.T).argmax(axis=0)]
        # Half the number's size along each direction, so that it stands beside the outline.
        away = np.abs(self._DIRECTIONS) @ size / 2 + gap
        centers = extreme + self._DIRECTIONS * away[:, None]
        corners = (centers - size / 2).clip(0, np.maximum(self._frame - size, 0))
        moved = np.abs(corners + size / 2 - centers).max(axis=1) / _CELL
        low = (corners / _CELL).astype(np.int64)
        high = np.ceil((corners + size) / _CELL).astype(np.int64)
        boxes = np.concatenate([low, high], axis=1).tolist()
        costs = [int(self._cost[y0:y1, x0:x1].sum()) for x0, y0, x1, y1 in boxes] + moved
        best = int(np.argmin(costs))
        if costs[best] >= (_SHARED + 1) * _NUMBER:
            return None
        x0, y0, x1, y1 = boxes[best]
        self._cost[y0:y1, x0:x1] += _NUMBER
        return int(corners[best, 0]), int(corners[best, 1])


@lru_cache(maxsize=8)
def _glyphs(size: int) -> dict[str, np.ndarray]:
    # Matplotlib brings this font everywhere; its digits are of one width.
    font_file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    font = ImageFont.truetype(font_file, size)
    _, top, _, bottom = font.getbbox(_DIGITS)
    glyphs = {}
    for character in _DIGITS:
        image = Image.new("L", (round(font.getlength(character)), bottom - top))
        ImageDraw.Draw(image).text((0, -top), character, 255, font)
        glyphs[character] = np.asarray(image, dtype=np.float32) / 255
    return glyphs
