"""The lab's own photographs of empty filters, as grounds on which particles are drawn."""

import collections
import dataclasses
import hashlib
import logging
import os
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from microplastics.data.images import read_image
from microplastics.data.synthetic.background import Scene
from microplastics.data.synthetic.fields import generator
from microplastics.errors import UserError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".ppm", ".pgm"}
# Below this median brightness (0 to 1) a photograph is taken for a dark field.
_DARK_BELOW = 0.35
# What the drawn filters' brightness is about: particles are shaded for it.
_PLAIN_LEVEL = 0.8
# Decoded photographs that a process keeps, in bytes.
_CACHE_BYTES = 256 * 2**20
_cache: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Blanks:
    """Photographs of empty filters in a folder.

    Attributes:
        root: the folder.
        files: their paths below it with ``/``, sorted.
        sha256: hash of all those names and of the bytes of the files.
    """

    root: str
    files: tuple[str, ...]
    sha256: str


def find_blanks(folder: str | os.PathLike) -> Blanks:
    """Find the images in a folder and its sub-folders, by their suffix.

    Hidden files and folders are passed over; files that are no images are named in a warning.

    Args:
        folder: folder of JPEG, PNG, TIFF, BMP, WebP, JPEG 2000 or PPM files.

    Raises:
        UserError: there is no such folder, it cannot be read, or it holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--backgrounds {root} is not a folder: give a folder of blank images.")
    names, others = [], []
    try:
        for at, folders, files in os.walk(root, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = Path(at, name).relative_to(root).as_posix()
                if not name.startswith("."):
                    (names if Path(name).suffix.lower() in _SUFFIXES else others).append(path)
        names.sort()
        whole = hashlib.sha256()
        for name in names:
            whole.update(f"{name}\0{_hash(root / name)}\n".encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise UserError(
            f"{error.filename or root} cannot be read ({error.strerror}): change its permissions "
            "or take it out of the folder of backgrounds."
        ) from error
    if not names:
        raise UserError(f"--backgrounds {root} holds no image: put blank filter images there.")
    if others:
        _logger.warning(
            "%d files in %s are no images and are left aside, such as %s.",
            *(len(others), root, min(others)),
        )
    return Blanks(os.fspath(root), tuple(names), whole.hexdigest())


def _raise(error: OSError) -> None:
    raise error


def _hash(path: Path) -> str:
    if not path.is_file():  # reading a pipe would wait for ever
        raise UserError(f"{path} is not a file: take it out of the folder of backgrounds.")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check_blanks(blanks: Blanks, size: int, progress: bool = True) -> None:
    """Decode every photograph once.

    Args:
        blanks: the photographs.
        size: side in px of the pictures to be rendered.
        progress: whether to show a progress bar on stderr, where that is a terminal.

    Raises:
        UserError: one cannot be read, or has a side below half of ``size``.
    """
    for name in tqdm(
        blanks.files, desc="Checking backgrounds", unit="image", disable=None if progress else True
    ):
        path = Path(blanks.root, name)
        height, width = read_image(path).shape[:2]
        # A smaller one would show its mirror image more often than itself.
        if 2 * min(height, width) < size:
            raise UserError(
                f"{path} is {width} x {height} px, too small for pictures of {size} px: "
                f"take it out of the folder, or give a --size of at most {2 * min(height, width)}."
            )


@dataclasses.dataclass(frozen=True)
class Camera:
    """How a photograph was taken: what drawn particles need to look taken by the same camera.

    Attributes:
        name: the photograph's path below its folder.
        photograph: float32 (size, size, 3), BGR, 0 to 1: the piece of it that is the ground.
        light: float32, broadcast against it: what turns the evenly lit scene into it.
        blur: standard deviation of the lens's blur in px.
        noise: standard deviation of the noise of a channel, 0 to 1.
    """

    name: str
    photograph: np.ndarray
    light: np.ndarray
    blur: float
    noise: float

    def retake(self, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Photograph the scene: what was drawn gets blur and noise, what was there stays.

        Args:
            rng: where the numbers come from.
            scene: the finished scene on the photograph.

        Returns:
            uint8 (size, size, 3), BGR.
        """
        drawn = scene.canvas * self.light - self.photograph
        cover = scene.cover
        if self.blur > 0.3:
            drawn = cv2.GaussianBlur(drawn, (0, 0), self.blur)
            cover = cv2.GaussianBlur(cover, (0, 0), self.blur)
        # A particle hides the photograph's noise where it covers it, and gets as much anew.
        noise = cv2.GaussianBlur(rng.standard_normal(drawn.shape, dtype=np.float32), (0, 0), 0.6)
        noise *= self.noise / max(float(noise.std()), 1e-6)
        hidden = np.sqrt(np.clip(1 - (1 - cover) ** 2, 0, 1))
        image = self.photograph + drawn + noise * hidden[..., None]
        return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def photographed_filter(
    key: tuple[int | str, ...], size: int, blanks: Blanks
) -> tuple[Scene, Camera]:
    """Take a random piece of a random photograph as an empty filter.

    It is turned by right angles, mirrored and made up to 8 % brighter or darker at random; a
    photograph that is smaller than the picture is continued by its mirror image.

    Args:
        key: key of the picture's random stream.
        size: side of the picture in px.
        blanks: the photographs.

    Returns:
        The scene, evenly lit, and the camera that finishes it.
    """
    rng = generator(*key, "background")
    name = blanks.files[rng.integers(len(blanks.files))]
    image = _decoded(os.path.join(blanks.root, name))
    short = [max(size - side, 0) for side in image.shape[:2]]
    if any(short):
        edges = (short[0] // 2, -(-short[0] // 2), short[1] // 2, -(-short[1] // 2))
        image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_REFLECT_101)
    top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
    piece = np.rot90(image[top : top + size, left : left + size], int(rng.integers(4)))
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    photograph = np.ascontiguousarray(piece, np.float32) / 255
    photograph = np.clip(photograph * np.float32(rng.uniform(0.92, 1.08)), 0, 1)
    blur, noise = camera_of(photograph[..., 1])
    dark = float(np.median(photograph.mean(2))) < _DARK_BELOW
    lamp = _light(photograph, dark)
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    cover = np.zeros((size, size), np.float32)
    scene = Scene(photograph / lamp, direction, "photograph", dark, cover)
    return scene, Camera(name, photograph, lamp, blur, noise)


def _decoded(path: str) -> np.ndarray:
    """Read an image, or take it from those last used by this process."""
    if path in _cache:
        _cache.move_to_end(path)
        return _cache[path]
    image = _cache[path] = read_image(path)
    while len(_cache) > 1 and sum(kept.nbytes for kept in _cache.values()) > _CACHE_BYTES:
        _cache.popitem(last=False)
    return image


def _light(photograph: np.ndarray, dark: bool) -> np.ndarray:
    """Light over the field: its slow changes, and half of its cast (the rest is the filter's)."""
    if dark:
        return np.ones((1, 1, 1), np.float32)
    size = photograph.shape[0]
    small = cv2.resize(photograph, (32, 32), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 6, borderType=cv2.BORDER_REFLECT)
    level = np.maximum(small.mean(2, keepdims=True), 0.02)
    lamp = level / _PLAIN_LEVEL * np.sqrt(np.maximum(small / level, 0.02))
    return cv2.resize(lamp.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)


def camera_of(gray: np.ndarray) -> tuple[float, float]:
    """Estimate blur and noise from the spectrum of a photograph.

    The power at spatial frequency f (cycles a pixel) is taken as a f^-p exp(-(2 pi f s)^2) + n:
    a natural texture (Field 1987), the lens's Gaussian blur s, white noise n.

    Args:
        gray: float32 (H, W), 0 to 1.

    Returns:
        (standard deviation of the blur in px, 0.3 to 4; of the noise, 0 to 0.1).
    """
    height, width = (min(side, 512) for side in gray.shape)
    window = np.hanning(height)[:, None] * np.hanning(width)[None]
    part = (gray[:height, :width] - gray[:height, :width].mean()) * window
    power = np.abs(np.fft.rfft2(part)) ** 2 / (window**2).sum()
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    bins = np.minimum((radius * 80).astype(int), 41)
    counts = np.bincount(bins.ravel(), minlength=42)
    mean = np.bincount(bins.ravel(), power.ravel(), minlength=42) / np.maximum(counts, 1)
    # The lowest frequencies are the lamp, those beyond 0.5 lie in the spectrum's corners alone.
    f, mean = (np.arange(4, 40) + 0.5) / 80, np.maximum(mean[4:40], 1e-9)
    best = (np.inf, 0.6, 0.0)
    for exponent in (1.0, 1.5, 2.0):
        for blur in np.linspace(0.3, 4.0, 38):
            texture = f**-exponent * np.exp(-((2 * np.pi * f * blur) ** 2))
            basis = np.stack([texture / texture[0], np.full_like(f, mean[-1])], 1) / mean[:, None]
            weights = np.linalg.lstsq(basis, np.ones_like(f), rcond=None)[0].clip(0)
            error = float(((basis @ weights - 1) ** 2).sum())
            if error < best[0]:
                best = (error, float(blur), float(np.sqrt(weights[1] * mean[-1])))
    return best[1], min(best[2], 0.1)
