"""What find_duplicates finds: precision and recall on copies of photographs, and its time."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from benchmarks.timing import Report
from microplastics.data.formats.layout import IMAGE_SUFFIXES
from microplastics.data.images import read_image
from microplastics.data.splits.similarity import Duplicates, Fingerprint, find_duplicates
from microplastics.data.splits.similarity import fingerprint as take
from microplastics.utils.errors import UserError

# A photograph -> two that show one place.
Change = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def shifted(fraction: float) -> Change:
    """Two views that are apart by a fraction of both sides."""

    def change(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, x = (round(side * fraction) for side in image.shape[:2])
        return image[y:, x:], image[: image.shape[0] - y, : image.shape[1] - x]

    return change


def copied(function: Callable[[np.ndarray], np.ndarray]) -> Change:
    """The photograph and what a function makes of it."""
    return lambda image: (image, function(image))


def _blurred(fraction: float) -> Change:
    def change(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (0, 0), fraction * np.prod(image.shape[:2]) ** 0.5)

    return copied(change)


def _cropped(fraction: float) -> Change:
    def change(image: np.ndarray) -> np.ndarray:
        y, x = (round(side * fraction / 2) for side in image.shape[:2])
        return image[y : image.shape[0] - y, x : image.shape[1] - x]

    return copied(change)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [1, quality])[1], cv2.IMREAD_COLOR)


def _resized(x: float, y: float) -> Change:
    return copied(lambda i: cv2.resize(i, None, fx=x, fy=y, interpolation=cv2.INTER_AREA))


def _turned(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    warp = cv2.getRotationMatrix2D((width / 2, height / 2), 7, 1.15)
    return cv2.warpAffine(image, warp, (width, height))


def _several(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, other = shifted(0.1)(image)
    _, other = _blurred(0.003)(other)
    return one, _jpeg(cv2.flip(cv2.convertScaleAbs(other, alpha=1.2), 0), 60)


GAMMA = np.uint8(255 * (np.arange(256) / 255) ** 1.8)
CHANGES: dict[str, Change] = {
    "shifted by 10 % of both sides": shifted(0.1),
    "shifted by 20 %": shifted(0.2),
    "shifted by 30 %": shifted(0.3),
    "refocused, sigma 0.2 % of the side": _blurred(0.002),
    "refocused, 0.4 %": _blurred(0.004),
    "refocused, 0.8 %": _blurred(0.008),
    "brighter by 30 %": copied(lambda i: cv2.convertScaleAbs(i, alpha=1.3)),
    "darker by 40 %": copied(lambda i: cv2.convertScaleAbs(i, alpha=0.6)),
    "gamma 1.8": copied(lambda i: cv2.LUT(i, GAMMA)),
    "cropped by 5 %": _cropped(0.05),
    "cropped by 20 %": _cropped(0.2),
    "cropped by 40 %": _cropped(0.4),
    "JPEG quality 30": copied(lambda i: _jpeg(i, 30)),
    "half size": _resized(0.5, 0.5),
    "height × 0.8": _resized(1, 0.8),
    "turned by 90°": copied(lambda i: cv2.rotate(i, cv2.ROTATE_90_CLOCKWISE)),
    "turned by 7°": copied(_turned),
    "mirrored": copied(lambda i: cv2.flip(i, 1)),
    "shifted 10 %, refocused 0.3 %, brighter 20 %, mirrored, JPEG 60": _several,
}


def benchmark(photographs: Sequence[str], limit: int = 0) -> Report:
    """Find copies among photographs.

    Each change makes two images of every photograph; all of them are compared with each other.
    Photographs that are near-duplicates of each other before any change count as one place: look
    at them, they are listed.

    Args:
        photographs: folders, searched with their subfolders.
        limit: photographs of each folder, evenly spaced; 0 for all.
    """
    paths = [path for folder in photographs for path in _photographs(Path(folder), limit)]
    start = time.perf_counter()
    prints = [take(read_image(path)) for path in tqdm(paths, "reading")]
    taken = time.perf_counter() - start
    start = time.perf_counter()
    found = find_duplicates(prints)
    compared = time.perf_counter() - start
    report = Report({"photographs": len(paths)})
    report.settings["time"] = f"{taken:.0f} s to read them, {compared:.1f} s to compare them"
    names = {path: path.name for path in paths}
    pairs = "".join(f"\n  {names[paths[a]]} and {names[paths[b]]}" for a, b in found.links)
    report.settings["pairs among them"] = f"{len(found.links)}{pairs}"
    places = _places(found, len(paths))
    for name, change in CHANGES.items():
        report.settings[name] = _measure(paths, places, name, change)
    return report


def _measure(paths: Sequence[Path], places: np.ndarray, name: str, change: Change) -> str:
    prints: list[Fingerprint] = []
    for path in tqdm(paths, name):
        prints += map(take, change(read_image(path)))
    found = find_duplicates(prints)
    joined = _places(found, len(prints))
    hits = int((joined[::2] == joined[1::2]).sum())
    wrong = sum(places[one // 2] != places[other // 2] for one, other in found.links)
    links = len(found.links)
    precision = f"{1 - wrong / links:.3f}" if links else "none"
    recall = hits / len(paths)
    return f"recall {recall:.3f} ({hits}), precision {precision} ({wrong} of {links} links wrong)"


def _places(found: Duplicates, count: int) -> np.ndarray:
    """Number of the place of each image, (count,)."""
    places = np.arange(count)
    for group in (*found.exact, *found.near):
        places[group] = places[group[0]]
    return places


def _photographs(folder: Path, limit: int) -> list[Path]:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{folder} has no photograph.", code="file_missing")
    return paths if not limit else paths[:: max(1, len(paths) // limit)][:limit]
