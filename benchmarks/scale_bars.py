"""Scale bars drawn on photographs without one: how many are found, and their numbers read."""

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from microplastics.calibration import label
from microplastics.calibration.scale_bar import ScaleBar, find_scale_bars
from microplastics.data.formats.layout import IMAGE_SUFFIXES, list_files
from microplastics.data.images import read_image
from microplastics.data.painting import Picture
from microplastics.synthetic.scene import PRESETS, render_image

# The pictures of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from scale_bar_pictures import Drawn, as_jpeg, draw_bar, draw_style, thin_style  # noqa: E402

STYLES = {"thin": thin_style, "any": draw_style}
_WIDTH = 1000  # px, of the photographs
_UM_PER_PX = 2.0
_RENDERED = 750  # px, side of the rendered filters


@dataclasses.dataclass
class Result:
    """Counts by what was looked for, and by outcome.

    Attributes:
        counts: of pictures.
        worst_px: greatest error of a length that counts as found.
        seconds: mean time of a search.
    """

    counts: dict[str, Counter]
    worst_px: float
    seconds: float
    disagreements: Sequence[Any] = ()

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON takes them."""
        return {"counts": self.counts, "worst_px": self.worst_px, "seconds": self.seconds}

    def __str__(self) -> str:
        lines = [f"{what}: {dict(outcomes)}" for what, outcomes in self.counts.items()]
        lines.append(f"worst of those within 1 px: {self.worst_px:.2f} px")
        return "\n".join([*lines, f"{self.seconds:.2f} s a search"])


def benchmark(
    grounds: Sequence[str] = (),
    bars: int = 200,
    style: str = "thin",
    rendered: int = 28,
    seed: int = 0,
) -> Result:
    """Look for bars on photographs without one, then on the same with bars drawn into them.

    Args:
        grounds: folders of photographs without a bar.
        bars: number of pictures with one.
        style: a key of ``STYLES``.
        rendered: filters that are rendered as further grounds.
        seed: of the choice of grounds and styles.
    """
    files = [
        Path(folder) / each
        for folder in grounds
        for each in list_files(Path(folder), IMAGE_SUFFIXES)
    ]
    presets = [dataclasses.replace(each, scale_bar_fraction=0.0) for each in PRESETS.values()]
    rng, result = np.random.default_rng(seed), Result({}, 0.0, 0.0)
    counts = {name: Counter() for name in ("without a bar", "lengths", "labels", "numbers")}

    def ground(number: int) -> np.ndarray:
        if number < len(files):
            image = read_image(str(files[number]))
            scale = min(1.0, _WIDTH / image.shape[1])
            return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        preset = presets[number % len(presets)]
        return render_image((seed, "bars", number), _RENDERED, _UM_PER_PX, preset)[0]

    number_of_grounds = len(files) + rendered
    spent = 0.0
    progress = tqdm(range(number_of_grounds), "Without a bar", unit="image", disable=None)
    for number in progress:
        seen = len(_find(ground(number)))
        counts["without a bar"]["none" if not seen else "a false one"] += 1
        progress.set_postfix(counts["without a bar"], refresh=False)
    progress = tqdm(total=bars, desc="With a bar", unit="image", disable=None)
    while counts["lengths"].total() < bars:
        image = ground(int(rng.integers(number_of_grounds)))
        drawn = draw_bar(image, STYLES[style](rng, image.shape[1], image.shape[0]))
        if drawn is None:  # no room, or the ink would not show
            continue
        image = as_jpeg(drawn.image, int(rng.integers(75, 96)))
        start = time.perf_counter()
        found = _find(image)
        spent += time.perf_counter() - start
        outcome = _length(found, drawn)
        counts["lengths"][outcome] += 1
        if outcome == "within 1 px":
            result.worst_px = max(result.worst_px, abs(found[0].px - drawn.px))
            counts["labels"]["whole" if _is_covered(found[0], drawn) else "in part"] += 1
            if label.is_installed():
                counts["numbers"][_number(found[0], drawn, image)] += 1
        progress.set_postfix(counts["lengths"], refresh=False)
        progress.update()
    result.counts, result.seconds = counts, spent / bars
    return result


def _find(image: np.ndarray) -> list[ScaleBar]:
    return find_scale_bars(Picture(image).read, *image.shape[1::-1])


def _length(found: Sequence[ScaleBar], drawn: Drawn) -> str:
    if len(found) != 1:
        return "several" if found else "none"
    return "within 1 px" if abs(found[0].px - drawn.px) <= 1 else "wrong"


def _is_covered(bar: ScaleBar, drawn: Drawn) -> bool:
    """Whether 98 % of the box around the letters are in the boxes of the bar."""
    covered = np.zeros(drawn.image.shape[:2], bool)
    for x, y, w, h in bar.boxes:
        covered[y : y + h, x : x + w] = True
    x, y, w, h = drawn.text_box
    return covered[y : y + h, x : x + w].mean() > 0.98


def _number(bar: ScaleBar, drawn: Drawn, image: np.ndarray) -> str:
    if bar.text_box is None:
        return "not read"
    x, y, w, h = bar.text_box
    region = image[y : y + h, max(x - h, 0) : x + w + h]
    um = label.read_label(region, bar.polarity == "dark")
    if um is not None and not 0.01 <= um / bar.px <= 100:
        um = None
    if um is None:
        return "not read"
    return "right" if um == label.parse_label(drawn.style["text"]) else "wrong"
