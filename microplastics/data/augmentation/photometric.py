"""Light, lens, sensor and file: what changes pixels and moves none of them.

All take and give (H, W, 3) uint8 images in BGR order.
"""

import cv2
import numpy as np
from detectron2.data import transforms as T

BLURS = ("gaussian", "defocus", "both")

# Weights of blue, green and red in the brightness of ITU-R BT.601.
_LUMA = np.array([0.114, 0.587, 0.299])
# JPEG knows no longer side, in px.
_JPEG_SIDE = 65500
# From RGB to YIQ (NTSC), whose chroma plane turns with the hue and keeps the brightness.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


class RandomBrightness(T.Augmentation):
    """Multiply all values by a factor."""

    def __init__(self, low: float, high: float):
        """
        Args:
            low, high: bounds of the factor.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the factor."""
        table = _table(np.arange(256) * np.random.uniform(self.low, self.high))
        return T.ColorTransform(lambda img: cv2.LUT(img, table))


class RandomContrast(T.Augmentation):
    """Multiply the distance of all values from the image's mean by a factor."""

    def __init__(self, low: float, high: float):
        """
        Args:
            low, high: bounds of the factor.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the factor."""
        mean = float(np.mean(cv2.mean(image)[:3]))
        factor = np.random.uniform(self.low, self.high)
        table = _table(mean + factor * (np.arange(256) - mean))
        return T.ColorTransform(lambda img: cv2.LUT(img, table))


class RandomSaturation(T.Augmentation):
    """Multiply the distance of each pixel from its grey by a factor."""

    def __init__(self, low: float, high: float):
        """
        Args:
            low, high: bounds of the factor; 0 is grey.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the factor."""
        factor = np.random.uniform(self.low, self.high)
        matrix = factor * np.eye(3) + (1 - factor) * np.ones((3, 1)) * _LUMA
        return T.ColorTransform(lambda img: cv2.transform(img, matrix))


class RandomHue(T.Augmentation):
    """Turn all colours about the grey axis: a camera of another white balance."""

    def __init__(self, max_shift: float):
        """
        Args:
            max_shift: degrees; the turn is even in [-max_shift, max_shift].
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the turn."""
        angle = np.radians(np.random.uniform(-self.max_shift, self.max_shift))
        turn = np.eye(3)
        turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix = (np.linalg.inv(_YIQ) @ turn @ _YIQ)[::-1, ::-1]
        # The rounded coefficients of YIQ leave grey not quite grey.
        matrix = np.ascontiguousarray(matrix / matrix.sum(axis=1, keepdims=True))
        return T.ColorTransform(lambda img: cv2.transform(img, matrix))


class RandomBlur(T.Augmentation):
    """Blur as a lens does: a Gaussian, or the even disc of a particle out of focus."""

    def __init__(self, low: float, high: float, kind: str = "both"):
        """
        Args:
            low, high: bounds of the standard deviation along x, in px.
            kind: ``"gaussian"``, ``"defocus"`` (a disc of the same standard deviation, its
                radius twice that), or ``"both"``: either, by a coin.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw kind and size."""
        sigma = np.random.uniform(self.low, self.high)
        disc = self.kind == "defocus" or (self.kind == "both" and np.random.uniform() < 0.5)
        if disc:
            kernel = disc_kernel(2 * sigma)
            return T.ColorTransform(lambda img: cv2.filter2D(img, -1, kernel))
        return T.ColorTransform(lambda img: cv2.GaussianBlur(img, (0, 0), sigma))


def disc_kernel(radius: float) -> np.ndarray:
    """An even disc whose rim pixels weigh by how much of them it covers; its sum is 1.

    Args:
        radius: in px.
    """
    reach, steps = int(np.ceil(radius + 0.5)), 8
    side = 2 * reach + 1
    fine = (np.arange(side * steps) + 0.5) / steps - side / 2
    inside = (fine[:, None] ** 2 + fine**2 <= max(radius, 0.5) ** 2).astype(np.float32)
    kernel = inside.reshape(side, steps, side, steps).mean(axis=(1, 3))
    return kernel / kernel.sum()


class RandomNoise(T.Augmentation):
    """Noise of a sensor: an even part, and shot noise that grows with the light."""

    def __init__(self, sigma: tuple[float, float], shot: tuple[float, float]):
        """
        Args:
            sigma: bounds of the standard deviation of the even part, in grey levels (of 255).
            shot: bounds of the variance of the shot noise for each grey level of the pixel
                (a Poisson count of v / shot photons, scaled to v, has the variance v · shot).
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw strengths and the seed of the noise."""
        sigma, shot = np.random.uniform(*self.sigma), np.random.uniform(*self.shot)
        seed = int(np.random.randint(2**31 - 1))
        deviation = np.sqrt(sigma**2 + shot * np.arange(256)).astype(np.float32)
        return T.ColorTransform(lambda img: _add_noise(img, deviation, seed))


def _add_noise(image: np.ndarray, deviation: np.ndarray, seed: int) -> np.ndarray:
    # A grey camera has one noise, not three: its pictures stay grey.
    grey = bool(
        (image[:, :, 0] == image[:, :, 1]).all() and (image[:, :, 0] == image[:, :, 2]).all()
    )
    plane = image[:, :, 0] if grey else image
    # One channel: of several, cv2 would give a lone standard deviation to the first alone.
    noise = np.empty((plane.shape[0], plane.size // plane.shape[0]), np.float32)
    cv2.setRNGSeed(seed)  # numpy's normal numbers take four times as long
    cv2.randn(noise, 0.0, 1.0)
    noise = noise.reshape(plane.shape)
    noise = cv2.multiply(noise, deviation[plane])
    noisy = cv2.add(np.ascontiguousarray(plane), noise, dtype=cv2.CV_8U)
    return cv2.cvtColor(noisy, cv2.COLOR_GRAY2BGR) if grey else noisy


class RandomJPEG(T.Augmentation):
    """Pack as JPEG and unpack again; images of more than 65,500 px a side stay as they are."""

    def __init__(self, low: int, high: int):
        """
        Args:
            low, high: bounds of the quality, 1 to 100, both included.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the quality."""
        quality = int(np.random.randint(self.low, self.high + 1))
        return T.ColorTransform(lambda img: _jpeg(img, quality))


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    if max(image.shape[:2]) > _JPEG_SIDE:
        return image  # no camera writes it as JPEG either
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def _table(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)
