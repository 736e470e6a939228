"""Turns and sizes. All of them are affine, so masks and boxes follow from one matrix."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from torch.nn import functional as F

FRAMES = ("same", "expand", "inside")
BORDERS = ("reflect", "median", "black")

# Around a particle's box, in px: its blurred rim is not mirrored either.
_RIM = 2


class RightAngleTransform(T.Transform):
    """Turn counter-clockwise by ``turns`` right angles, exactly."""

    _CODES = {
        1: cv2.ROTATE_90_COUNTERCLOCKWISE,
        2: cv2.ROTATE_180,
        3: cv2.ROTATE_90_CLOCKWISE,
    }

    def __init__(self, height: int, width: int, turns: int):
        """
        Args:
            height, width: of the image before the turn, in px.
            turns: 1, 2 or 3.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Turn an (H, W) or (H, W, C) array."""
        return cv2.rotate(img, self._CODES[self.turns])

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Turn (N, 2) points."""
        x, y = coords[:, 0], coords[:, 1]
        turned = {
            1: (y, self.width - x),
            2: (self.width - x, self.height - y),
            3: (self.height - y, x),
        }[self.turns]
        return np.stack(turned, axis=1)

    def inverse(self) -> T.Transform:
        """The turn back."""
        height, width = self.height, self.width
        if self.turns % 2:
            height, width = width, height
        return RightAngleTransform(height, width, 4 - self.turns)


class WarpTransform(T.Transform):
    """Any affine map, with linear interpolation and a border that holds no second particles."""

    def __init__(
        self,
        matrix: np.ndarray,
        output_size: tuple[int, int],
        border: str = "reflect",
        boxes: np.ndarray | None = None,
    ):
        """
        Args:
            matrix: (2, 3) from (x, y, 1) to new (x, y), in continuous pixel coordinates.
            output_size: (height, width) of the new image, in px.
            border: what lies beyond the image: ``"reflect"`` mirrors it, with the particles'
                boxes painted over in its median colour, since the copies would have no masks;
                ``"median"`` is that colour alone; ``"black"``.
            boxes: (N, 4) x0, y0, x1, y1 of the particles before the map, for ``"reflect"``.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Warp an (H, W, 3) uint8 image."""
        if self.border == "black":
            return self._warp(img, cv2.BORDER_CONSTANT)
        median = np.median(img[::8, ::8].reshape(-1, img.shape[2]), axis=0)
        if self.border == "median":
            return self._warp(img, cv2.BORDER_CONSTANT, median.tolist())
        warped = self._warp(img, cv2.BORDER_REFLECT_101)
        if self.boxes is not None and len(self.boxes):
            ground = img.copy()
            for x0, y0, x1, y1 in self._rims(img.shape):
                ground[y0:y1, x0:x1] = np.rint(median)
            inside = self._warp(np.full(img.shape[:2], 255, np.uint8), cv2.BORDER_CONSTANT)
            ground = self._warp(ground, cv2.BORDER_REFLECT_101)
            np.copyto(warped, ground, where=(inside < 128)[:, :, None])
        return warped

    def _rims(self, shape: Sequence[int]) -> np.ndarray:
        boxes = np.asarray(self.boxes, dtype=np.float64)
        start, end = np.floor(boxes[:, :2]) - _RIM, np.ceil(boxes[:, 2:]) + _RIM
        frame = shape[1::-1]
        return np.concatenate([start.clip(0, frame), end.clip(0, frame)], axis=1).astype(int)

    def _warp(self, img: np.ndarray, border: int, value: Sequence[float] = (0, 0, 0)) -> np.ndarray:
        matrix = np.asarray(self.matrix, dtype=np.float64)
        # cv2 counts from the pixels' centres.
        shift = matrix[:, :2] @ (0.5, 0.5) + matrix[:, 2] - 0.5
        return cv2.warpAffine(
            img,
            np.column_stack([matrix[:, :2], shift]),
            (self.output_size[1], self.output_size[0]),
            flags=cv2.INTER_LINEAR,
            borderMode=border,
            borderValue=value,
        )

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map (N, 2) points."""
        return coords @ self.matrix[:, :2].T + self.matrix[:, 2]


class RandomRightAngle(T.Augmentation):
    """Turn by 90°, 180° or 270°."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the turn."""
        return RightAngleTransform(*image.shape[:2], int(np.random.randint(1, 4)))


class RandomRotation(T.Augmentation):
    """Turn about the centre by any angle."""

    def __init__(self, max_angle: float = 180.0, frame: str = "same", border: str = "reflect"):
        """
        Args:
            max_angle: degrees; the angle is even in [-max_angle, max_angle].
            frame: ``"same"`` keeps the image's size and cuts the corners off; ``"expand"`` makes
                it as large as the turned image; ``"inside"`` keeps the largest rectangle that
                has no border in it.
            border: see :class:`WarpTransform`.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        """Draw the angle."""
        angle = math.radians(np.random.uniform(-self.max_angle, self.max_angle))
        height, width = image.shape[:2]
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        if self.frame == "same":
            size = np.array([width, height])
        elif self.frame == "expand":
            size = np.ceil(np.abs(turn) @ (width, height) - 1e-6).astype(int)
        else:
            size = inner_size(width, height, angle)
        shift = size / 2 - turn @ (width / 2, height / 2)
        matrix = np.column_stack([turn, shift])
        return WarpTransform(matrix, (int(size[1]), int(size[0])), self.border, boxes)


def inner_size(width: float, height: float, angle: float) -> np.ndarray:
    """The largest upright rectangle inside a turned one, (width, height) in whole px.

    Its four corners lie on the sides of the turned rectangle, or, where that is long and thin,
    two of them on its long sides, halfway between the ends.

    Args:
        width, height: of the rectangle before the turn, in px.
        angle: of the turn, in radians.
    """
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    longer, shorter = max(width, height), min(width, height)
    if shorter <= 2 * sine * cosine * longer or abs(sine - cosine) < 1e-9:
        half = shorter / 2
        size = half / max(sine, 1e-9), half / max(cosine, 1e-9)
        if width < height:
            size = size[::-1]
    else:
        double = cosine**2 - sine**2
        size = (width * cosine - height * sine) / double, (height * cosine - width * sine) / double
    return np.maximum(np.floor(np.array(size) + 1e-6), 1).astype(int)


class FastResizeTransform(T.ResizeTransform):
    """``ResizeTransform`` of 8-bit colour images by torch, in about half of Pillow's time.

    The same bilinear filter, antialiased where it shrinks, with weights of 16 bits instead of
    22: about 2 of 10,000 values come out one level away from Pillow's.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize (H, W, 3) uint8; anything else as Detectron2 does."""
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3 or interp is not None:
            return super().apply_image(img, interp)
        # torch wants memory that it may write to, in rows without gaps.
        img = np.require(img, requirements=("C", "W"))
        planes = torch.from_numpy(img).permute(2, 0, 1)[None]
        size = (self.new_h, self.new_w)
        resized = F.interpolate(planes, size, mode="bilinear", antialias=True)
        return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


class ResizeWithJitter(T.ResizeShortestEdge):
    """Detectron2's ``ResizeShortestEdge``, then larger or smaller by a random factor."""

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int,
        sample_style: str = "choice",
        scale: tuple[float, float] = (1.0, 1.0),
        prob: float = 0.0,
        fast: bool = False,
    ):
        """
        Args:
            short_edge_length, max_size, sample_style: as in ``ResizeShortestEdge``; ``max_size``
                bounds the longer side after the jitter too.
            scale: least and greatest factor; its logarithm is even between theirs.
            prob: probability of a factor other than 1.
            fast: resize by :class:`FastResizeTransform`.
        """
        super().__init__(short_edge_length, max_size, sample_style)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the size and the factor."""
        height, width = size = image.shape[:2]
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            size = transform.new_h, transform.new_w
        if self.prob > 0 and np.random.uniform() < self.prob:
            factor = math.exp(np.random.uniform(*np.log(self.scale)))
            factor = min(factor, self.max_size / max(size))
            size = tuple(max(1, round(side * factor)) for side in size)
        kind = FastResizeTransform if self.fast else T.ResizeTransform
        return kind(height, width, *map(int, size), self.interp)
