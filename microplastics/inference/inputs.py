"""From an array or a file to the network's input, as Detectron2's ``DefaultPredictor`` has it."""

import os
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from microplastics.data.images import MAX_PIXELS, read_image, to_uint8
from microplastics.errors import UserError

Image = np.ndarray | str | os.PathLike


@dataclass(frozen=True)
class NetworkInput:
    """An image ready for the network.

    Attributes:
        tensor: (3, H, W) uint8 or float32, 0 to 255, in the order of INPUT.FORMAT.
        size: height and width in px of the image before it was resized.
    """

    tensor: torch.Tensor
    size: tuple[int, int]


class InputReader:
    """Reads, converts and resizes images by the keys of a config."""

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            UserError: INPUT.FORMAT is neither BGR nor RGB.
        """
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise UserError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}; only BGR and RGB can be read.")
        self._rgb = cfg.INPUT.FORMAT == "RGB"
        self._max_pixels = cfg.INPUT.MAX_PIXELS
        side = cfg.INPUT.MIN_SIZE_TEST
        self._resize = T.ResizeShortestEdge([side, side], cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, image: Image, scale: float | None = None) -> NetworkInput:
        """Prepare one image.

        Args:
            image: as :meth:`Predictor.__call__` takes it.
            scale: factor on its sides; by INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST if None.

        Raises:
            UserError: a file cannot be read, or would become too large for the network.
            ValueError: an array is no image.
        """
        if isinstance(image, (str, os.PathLike)):
            image = read_image(image, max_pixels=self._max_pixels)
        image = to_bgr(image)
        height, width = image.shape[:2]
        if self._rgb:
            image = image[:, :, ::-1]
        transform = self._transform(image, scale)
        image = transform.apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return NetworkInput(tensor, (height, width))

    def _transform(self, image: np.ndarray, scale: float | None) -> T.Transform:
        height, width = image.shape[:2]
        if scale is None:
            transform = self._resize.get_transform(image)
            if not isinstance(transform, T.ResizeTransform):
                return transform
            size = (transform.new_h, transform.new_w)
        else:
            size = (int(height * scale + 0.5), int(width * scale + 0.5))
        # Of an image a thousand times as long as wide nothing would be left.
        size = (max(1, size[0]), max(1, size[1]))
        if size[0] * size[1] > MAX_PIXELS:
            raise UserError(
                f"An image of {width} x {height} px would be resized to {size[1]} x {size[0]} px; "
                "lower INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST."
            )
        if size == (height, width):
            return T.NoOpTransform()
        return T.ResizeTransform(height, width, *size, self._resize.interp)


def to_bgr(array: np.ndarray) -> np.ndarray:
    """Make any array of an image 8-bit BGR, as :func:`microplastics.data.images.read_image` does.

    Args:
        array: (H, W), (H, W, 1), BGR (H, W, 3) or BGRA (H, W, 4), of bool, integers or floats;
            what is not uint8 is stretched by :func:`microplastics.data.images.to_uint8`.

    Returns:
        uint8 array of shape (H, W, 3).

    Raises:
        ValueError: no array, of another shape or type, or without a pixel.
    """
    if not isinstance(array, np.ndarray):
        raise ValueError(f"An image is a numpy array or a path, not {type(array).__name__}")
    if array.dtype.kind not in "buif":
        raise ValueError(f"An image of {array.dtype} values cannot be read")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"An image has the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}"
        )
    if not array.size:
        raise ValueError(f"An image of shape {array.shape} has no pixel")
    array = to_uint8(array[:, :, :3])
    if array.shape[2] == 1:
        return cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_GRAY2BGR)
    return array
