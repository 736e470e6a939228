"""The ground of a whole filter: a round membrane with its rim, its texture, dirt and stains.

Everything here is a function of the place on the filter alone, so that windows of it agree.
"""

import dataclasses
import functools
import math

import numpy as np

from microplastics.data.synthetic.background import DARK_FILTERS, Scene, bare_filter
from microplastics.data.synthetic.debris import (
    draw_dirt,
    enclose_bubbles,
    scatter_dirt,
    shed_fibers,
)
from microplastics.data.synthetic.fields import generator, plane_noise
from microplastics.data.synthetic.optics import scratch
from microplastics.data.synthetic.presets import find_preset

# Side of the texture that cells are cut from, of a cell, and of the band where two fade over, in
# px. Cells are set off by half a cell, so that a window of whole cells meets as few as can be.
_TEXTURE, _CELL, _BAND = 2048, 512, 64
# The weave of a mesh would not go on from cell to cell.
_UNFIT = ("nylon_mesh",)


@dataclasses.dataclass(frozen=True)
class Membrane:
    """Where the membrane lies, in px.

    Attributes:
        center: (x, y).
        radius: of the membrane's edge.
        deposit_radius: of the disc through which the sample ran; all particles lie in it. The
            funnel covered the ring around it.
    """

    center: tuple[float, float]
    radius: float
    deposit_radius: float


def draw_membrane(seed: int, size: int) -> Membrane:
    """Draw where the membrane lies in a frame of ``size`` px."""
    rng = generator(seed, "membrane")
    x, y = size * (0.5 + rng.uniform(-0.008, 0.008, 2))
    radius = size * rng.uniform(0.47, 0.482)
    return Membrane((float(x), float(y)), radius, radius * rng.uniform(0.92, 0.95))


class FilterGround:
    """An empty filter, drawn window by window.

    Attributes:
        filter: name of the filter.
        dark: whether particles shine on a dark ground.
        light: unit vector (x, y) in the image that points to the lamp.
        membrane: where it lies.
    """

    def __init__(self, seed: int, size: int, preset_name: str, filter_name: str | None = None):
        preset = find_preset(preset_name)
        shares = filters_of(preset_name) if filter_name is None else {filter_name: 1.0}
        rng = generator(seed, "filter")
        self.filter, self.light, gray, self._color = bare_filter(rng, _TEXTURE, shares)
        self._gray = np.clip(gray, 0, 1.1).astype(np.float32)
        self.dark = self.filter in DARK_FILTERS
        self.membrane = draw_membrane(seed, size)
        self._mean = float(self._gray.mean()) * self._color
        self._seed, self._preset = seed, preset
        rng = generator(seed, "deposit")
        self._dirt = preset.dirt * draw_dirt(rng)
        fibrous = self.filter in ("glass_fiber", "cellulose")
        self._stain = rng.uniform(0.25, 0.6) if rng.random() < 0.45 and fibrous else 0.0
        self._keys = [int(k) for k in rng.integers(2**63, size=8)]
        self._wobble = rng.normal(0, 0.0012, 5), rng.uniform(0, 6.28, 5)
        self._cake = 1 - rng.uniform(0.0, 0.05) * np.array([1.0, 0.75, 0.6])
        self._around = rng.uniform(0.02, 0.09) * rng.uniform(0.8, 1.1, 3)
        self._clamp = rng.uniform(0.03, 0.09)

    def sample(self, rng: np.random.Generator, side: int) -> Scene:
        """A random clean piece of the filter, for trying colours on.

        Args:
            rng: where the place comes from.
            side: in px, at most 2048.
        """
        y, x = rng.integers(0, _TEXTURE - side + 1, 2)
        canvas = self._gray[y : y + side, x : x + side, None] * self._color
        return Scene(canvas, self.light, self.filter, self.dark, origin=(0, 0))

    def window(self, left: int, top: int, side: int) -> Scene:
        """Draw a square window of the filter, lit evenly.

        Args:
            left, top: in px; it may reach beyond the frame.
            side: in px.

        Returns:
            The scene, its ``origin`` at (left, top).
        """
        canvas = np.zeros((side, side, 3), np.float32)
        weight = np.zeros((side, side), np.float32)
        for row in _cells_of(top, side):
            for column in _cells_of(left, side):
                if self._meets(row, column):
                    self._add_cell(canvas, weight, (row, column), (left, top))
        # Fading two unlike textures over evenly would take contrast from the band between them.
        canvas /= np.sqrt(np.maximum(weight, 1e-6))[..., None]
        canvas += self._mean
        self._discolor(canvas, left, top)
        self._cut_out(canvas, left, top)
        return Scene(canvas, self.light, self.filter, self.dark, origin=(left, top))

    def _meets(self, row: int, column: int) -> bool:
        """Whether a cell may show something of the membrane."""
        off = np.array([column, row]) * _CELL - self.membrane.center
        return math.hypot(*off) < self.membrane.radius * 1.01 + _CELL

    def _add_cell(
        self,
        canvas: np.ndarray,
        weight: np.ndarray,
        cell: tuple[int, int],
        origin: tuple[int, int],
    ) -> None:
        """Add a cell's deviation from the mean, faded out at its border, and its squared weight."""
        side = _CELL + _BAND
        # Keys are natural numbers, and cells begin at -1.
        key = (self._seed, "cell", *(number + 8 for number in cell))
        scene = self.sample(generator(*key), side)
        x, y = (number * _CELL for number in cell[::-1])
        local = math.exp(0.5 * float(plane_noise(self._keys[0], x, y, (1, 1), 1500.0)[0, 0]))
        scatter_dirt(generator(*key, "debris"), scene, self._dirt * local)
        enclose_bubbles(generator(*key, "bubbles"), scene, self._preset.bubbles)
        shed_fibers(generator(*key, "shed"), scene, self._preset.dirt)
        scratch(generator(*key, "scratch"), scene, self._preset.dirt)
        (rows, part_rows), (columns, part_columns) = (
            _overlap(number * _CELL - side // 2, side, start, canvas.shape[0])
            for number, start in zip(cell, origin[::-1], strict=True)
        )
        fade = _fade()
        mix = fade[part_rows, None] * fade[None, part_columns]
        canvas[rows, columns] += mix[..., None] * (
            scene.canvas[part_rows, part_columns] - self._mean
        )
        weight[rows, columns] += mix**2

    def _discolor(self, canvas: np.ndarray, left: int, top: int) -> None:
        """Let silt discolour parts of the filter: soft brown clouds with a grainy edge."""
        if not self._stain:
            return
        cloud, weight = np.zeros(canvas.shape[:2], np.float32), 1.0
        for key, cell in zip(self._keys[1:5], (1300, 420, 6, 2.5), strict=True):
            cloud += weight * plane_noise(key, left, top, cloud.shape, cell)
            weight *= 0.45
        amount = self._stain * np.clip((cloud - 0.5) * 0.6, 0, 1)
        canvas *= 1 - amount[..., None] * np.array([0.45, 0.28, 0.16], np.float32)

    def _cut_out(self, canvas: np.ndarray, left: int, top: int) -> None:
        """Cut the membrane out round, with the funnel's print, its edge and what lies around."""
        side, membrane = canvas.shape[0], self.membrane
        x = np.arange(side, dtype=np.float32) + np.float32(left + 0.5 - membrane.center[0])
        y = np.arange(side, dtype=np.float32) + np.float32(top + 0.5 - membrane.center[1])
        r = np.hypot(x[None], y[:, None])
        angle = np.arctan2(y[:, None], x[None])
        waves = zip(*self._wobble, strict=True)
        edge = sum(a * np.cos((k + 2) * angle + b) for k, (a, b) in enumerate(waves))
        inside = membrane.radius * (1 + edge) - r
        deposit = membrane.deposit_radius - r
        # What ran through left a thin cake; the funnel pressed a line around it.
        cake = np.clip(deposit / 40 + 0.5, 0, 1)[..., None]
        canvas *= 1 - cake * (1 - self._cake).astype(np.float32)
        toward = np.cos(angle - math.atan2(self.light[1], self.light[0]))
        tone = 1 - self._clamp * np.exp(-((deposit / 9) ** 2))
        tone += self._clamp * toward * np.exp(-(((deposit + 12) / 10) ** 2))
        # The edge is bent a little: lit on one side, shaded on the other.
        tone += (0.16 * toward - 0.05) * np.exp(-((inside / 14) ** 2))
        canvas *= tone[..., None]
        dust = plane_noise(self._keys[5], left, top, (side, side), 2.2) - 2.1
        gray = 1 + 0.12 * plane_noise(self._keys[6], left, top, (side, side), 700.0)
        gray += 0.5 * np.exp(np.minimum(inside, 0) / 60) + 2.0 * np.clip(dust, 0, 1)
        cover = np.clip(inside / 2.5 + 0.5, 0, 1)[..., None]
        around = gray[..., None] * self._around.astype(np.float32)
        canvas *= cover
        canvas += (1 - cover) * around
        np.clip(canvas, 0, 1.1, out=canvas)


def filters_of(preset_name: str) -> dict[str, float]:
    """The preset's filters that whole filters can be made of, and how often each is drawn."""
    filters = find_preset(preset_name).filters
    shares = {name: share for name, share in filters.items() if name not in _UNFIT}
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def _cells_of(start: int, side: int) -> range:
    """Numbers of the cells that a window meets along an axis; cell 0 has its middle at 0."""
    half = (_CELL + _BAND) // 2
    return range(math.ceil((start - half + 1) / _CELL), (start + side + half - 1) // _CELL + 1)


def _overlap(begin: int, length: int, start: int, side: int) -> tuple[slice, slice]:
    """What a cell and a window share along an axis: in the window, and in the cell."""
    low, high = max(begin, start), min(begin + length, start + side)
    return slice(low - start, high - start), slice(low - begin, high - begin)


@functools.cache
def _fade() -> np.ndarray:
    """Weight of a cell along an axis: 1, falling to 0 over the bands at its ends."""
    place = np.arange(_CELL + _BAND, dtype=np.float32) + 0.5
    return np.clip(np.minimum(place, place[::-1]) / _BAND, 0, 1)
