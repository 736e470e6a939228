"""Geometric and photometric augmentations of (H, W, 3) uint8 BGR images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from torch.nn import functional as F

FRAMES = ("same", "expand", "inside")
BORDERS = ("reflect", "median", "black")
BLURS = ("gaussian", "defocus", "both")

# Margin in px around the box of a particle, whose blurred rim must not be mirrored either.
_RIM = 2
# Weights of blue, green and red in the brightness of ITU-R BT.601.
_LUMA = np.array([0.114, 0.587, 0.299])
# From RGB to YIQ (NTSC), whose chroma plane rotates with the hue at constant brightness.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(eq=False, repr=False)
class WarpTransform(T.Transform):
    """Any affine map, with linear interpolation and a border without mirrored particles.

    Attributes:
        matrix: (2, 3) from (x, y, 1) to new (x, y), in continuous pixel coordinates.
        output_size: (height, width) of the new image, in px.
        border: fill outside the image: ``"reflect"`` mirrors it, with the boxes of particles
            painted in its median colour, since the copies would have no masks; ``"median"`` is
            only that colour; ``"black"``.
        boxes: (N, 4) x0, y0, x1, y1 of the particles before the map, for ``"reflect"``.
    """

    matrix: np.ndarray
    output_size: tuple[int, int]
    border: str = "reflect"
    boxes: np.ndarray | None = None

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        if self.border == "black":
            return self._warp(img, cv2.BORDER_CONSTANT)
        median = np.median(img[::8, ::8].reshape(-1, img.shape[2]), axis=0)
        if self.border == "median":
            return self._warp(img, cv2.BORDER_CONSTANT, median.tolist())
        warped = self._warp(img, cv2.BORDER_REFLECT_101)
        if self.boxes is not None and len(self.boxes):
            ground, boxes = img.copy(), np.asarray(self.boxes, dtype=np.float64)
            start, end = np.floor(boxes[:, :2]) - _RIM, np.ceil(boxes[:, 2:]) + _RIM
            rims = np.concatenate([start, end], axis=1).clip(0).astype(int)
            for x0, y0, x1, y1 in rims.tolist():
                ground[y0:y1, x0:x1] = np.rint(median)
            inside = self._warp(np.full(img.shape[:2], 255, np.uint8), cv2.BORDER_CONSTANT)
            ground = self._warp(ground, cv2.BORDER_REFLECT_101)
            np.copyto(warped, ground, where=(inside < 128)[:, :, None])
        return warped

    def _warp(self, img: np.ndarray, border: int, value: Sequence[float] = (0, 0, 0)) -> np.ndarray:
        matrix = np.asarray(self.matrix, dtype=np.float64)
        # The origin of cv2 is the centre of the first pixel.
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
        return coords @ self.matrix[:, :2].T + self.matrix[:, 2]


@dataclass(eq=False, repr=False)
class RandomRotation(T.Augmentation):
    """Rotates about the centre by any angle.

    Attributes:
        max_angle: degrees; the angle is drawn evenly from [-max_angle, max_angle].
        frame: ``"same"`` keeps the size of the image and cuts its corners; ``"expand"`` makes it
            as large as the rotated image; ``"inside"`` keeps the largest rectangle without border.
        border: see :class:`WarpTransform`.
    """

    max_angle: float = 180.0
    frame: str = "same"
    border: str = "reflect"

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
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
    """Return the largest upright rectangle inside a rotated one, (width, height) in whole px.

    Its four corners are on the sides of the rotated rectangle, or, if that is long and thin, two
    of them on its long sides, halfway between the ends.

    Args:
        width, height: of the rectangle before the rotation, in px.
        angle: of the rotation, in radians.
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
    """``ResizeTransform`` of 8-bit colour images by torch, in about half the time of Pillow.

    The same antialiased bilinear filter, with weights of 16 bits instead of 22: about 2 of 10,000
    values differ from Pillow's by one level.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize (H, W, 3) uint8; anything else like Detectron2."""
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3 or interp is not None:
            return super().apply_image(img, interp)
        # torch needs writable, contiguous memory.
        img = np.require(img, requirements=("C", "W"))
        planes = torch.from_numpy(img).permute(2, 0, 1)[None]
        size = (self.new_h, self.new_w)
        resized = F.interpolate(planes, size, mode="bilinear", antialias=True)
        return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


class ResizeWithJitter(T.ResizeShortestEdge):
    """Detectron2's ``ResizeShortestEdge`` followed by a random scale factor."""

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
                also limits the longer side after the jitter.
            scale: bounds of the factor, drawn evenly on a logarithmic scale.
            prob: probability of a factor other than 1.
            fast: resize by :class:`FastResizeTransform`.
        """
        super().__init__(short_edge_length, max_size, sample_style)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
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


@dataclass(eq=False, repr=False)
class RandomParticleCrop(T.Augmentation):
    """Crops a window around a random particle, or anywhere in a blank image.

    Every particle is equally likely, so crowded areas are seen most.

    Attributes:
        height, width: of the window, in px; a smaller image is kept whole along that side.
        shift: largest distance of the particle from the centre of the window, as fraction of half
            the window in each direction.
    """

    height: int
    width: int
    shift: float = 0.5

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        frame = np.array(image.shape[1::-1])
        window = np.minimum((self.width, self.height), frame)
        centers = np.zeros((0, 2)) if boxes is None else (boxes[:, :2] + boxes[:, 2:]) / 2
        centers = centers[((centers >= 0) & (centers < frame)).all(axis=1)]
        if len(centers):
            center = centers[np.random.randint(len(centers))]
            center = center + np.random.uniform(-self.shift, self.shift, 2) * window / 2
            start = np.rint(center - window / 2).clip(0, frame - window).astype(int)
        else:
            start = np.array([np.random.randint(n + 1) for n in frame - window])
        return T.CropTransform(*start.tolist(), *window.tolist(), *frame.tolist())


@dataclass(eq=False, repr=False)
class _RandomFactor(T.Augmentation):
    """Base of augmentations by a factor drawn evenly from [low, high]."""

    low: float
    high: float

    def draw(self) -> float:
        return np.random.uniform(self.low, self.high)


class RandomBrightness(_RandomFactor):
    """Multiplies all values by a factor."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        table = _table(np.arange(256) * self.draw())
        return T.ColorTransform(lambda img: cv2.LUT(img, table))


class RandomContrast(_RandomFactor):
    """Multiplies the distance of all values from the mean of the image by a factor."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        mean = float(np.mean(cv2.mean(image)[:3]))
        table = _table(mean + self.draw() * (np.arange(256) - mean))
        return T.ColorTransform(lambda img: cv2.LUT(img, table))


class RandomSaturation(_RandomFactor):
    """Multiplies the distance of each pixel from its grey value by a factor; 0 gives grey."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        factor = self.draw()
        matrix = factor * np.eye(3) + (1 - factor) * np.ones((3, 1)) * _LUMA
        return T.ColorTransform(lambda img: cv2.transform(img, matrix))


@dataclass(eq=False, repr=False)
class RandomHue(T.Augmentation):
    """Rotates all colours about the grey axis, like another white balance.

    Attributes:
        max_shift: degrees; the angle is drawn evenly from [-max_shift, max_shift].
    """

    max_shift: float

    def get_transform(self, image: np.ndarray) -> T.Transform:
        angle = np.radians(np.random.uniform(-self.max_shift, self.max_shift))
        turn = np.eye(3)
        turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix = (np.linalg.inv(_YIQ) @ turn @ _YIQ)[::-1, ::-1]
        # The rounded coefficients of YIQ leave grey not quite grey.
        matrix = np.ascontiguousarray(matrix / matrix.sum(axis=1, keepdims=True))
        return T.ColorTransform(lambda img: cv2.transform(img, matrix))


@dataclass(eq=False, repr=False)
class RandomBlur(T.Augmentation):
    """Blurs by a Gaussian, or by the disc of a lens out of focus.

    Attributes:
        low, high: bounds of the standard deviation along x, in px.
        kind: ``"gaussian"``, ``"defocus"`` (a disc of the same standard deviation, with twice that
            as radius), or ``"both"``: either with probability 0.5.
    """

    low: float
    high: float
    kind: str = "both"

    def get_transform(self, image: np.ndarray) -> T.Transform:
        sigma = np.random.uniform(self.low, self.high)
        disc = self.kind == "defocus" or (self.kind == "both" and np.random.uniform() < 0.5)
        if disc:
            kernel = disc_kernel(2 * sigma)
            return T.ColorTransform(lambda img: cv2.filter2D(img, -1, kernel))
        return T.ColorTransform(lambda img: cv2.GaussianBlur(img, (0, 0), sigma))


def disc_kernel(radius: float) -> np.ndarray:
    """Return a uniform disc of a radius in px with antialiased rim, as kernel with sum 1."""
    reach, steps = int(np.ceil(radius + 0.5)), 8
    side = 2 * reach + 1
    fine = (np.arange(side * steps) + 0.5) / steps - side / 2
    inside = (fine[:, None] ** 2 + fine**2 <= max(radius, 0.5) ** 2).astype(np.float32)
    kernel = inside.reshape(side, steps, side, steps).mean(axis=(1, 3))
    return kernel / kernel.sum()


@dataclass(eq=False, repr=False)
class RandomNoise(T.Augmentation):
    """Adds the noise of a sensor: a constant part, and shot noise that grows with the light.

    Attributes:
        sigma: bounds of the standard deviation of the constant part, in grey levels (of 255).
        shot: bounds of the variance of the shot noise per grey level of the pixel (a Poisson count
            of v / shot photons, scaled to v, has variance v · shot).
    """

    sigma: tuple[float, float]
    shot: tuple[float, float]

    def get_transform(self, image: np.ndarray) -> T.Transform:
        sigma, shot = np.random.uniform(*self.sigma), np.random.uniform(*self.shot)
        seed = int(np.random.randint(2**31 - 1))
        deviation = np.sqrt(sigma**2 + shot * np.arange(256)).astype(np.float32)
        return T.ColorTransform(lambda img: _add_noise(img, deviation, seed))


def _add_noise(image: np.ndarray, deviation: np.ndarray, seed: int) -> np.ndarray:
    # A grey camera has one noise, not three: its images stay grey.
    grey = bool(
        (image[:, :, 0] == image[:, :, 1]).all() and (image[:, :, 0] == image[:, :, 2]).all()
    )
    plane = image[:, :, 0] if grey else image
    # One channel: of several, cv2 would apply a single standard deviation only to the first.
    noise = np.empty((plane.shape[0], plane.size // plane.shape[0]), np.float32)
    cv2.setRNGSeed(seed)  # numpy takes four times as long
    cv2.randn(noise, 0.0, 1.0)
    noise = noise.reshape(plane.shape)
    noise = cv2.multiply(noise, deviation[plane])
    noisy = cv2.add(np.ascontiguousarray(plane), noise, dtype=cv2.CV_8U)
    return cv2.cvtColor(noisy, cv2.COLOR_GRAY2BGR) if grey else noisy


@dataclass(eq=False, repr=False)
class RandomJPEG(T.Augmentation):
    """Compresses as JPEG of a quality from ``low`` to ``high``, 1 to 100."""

    low: int
    high: int

    def get_transform(self, image: np.ndarray) -> T.Transform:
        quality = int(np.random.randint(self.low, self.high + 1))
        return T.ColorTransform(lambda img: _jpeg(img, quality))


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def _table(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)
