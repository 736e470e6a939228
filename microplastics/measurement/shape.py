"""Size, form, place and colour of a particle."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from skimage.color import deltaE_ciede2000

from microplastics.measurement.centerline import Centerline, measure_centerline
from microplastics.measurement.outline import crofton_perimeter, measure_hull, with_border
from microplastics.structures.view import canonical
from microplastics.utils.errors import UserError

# CIE L*, a*, b* under D65 of sRGB colours. A name has several entries for its dark, muted and
# light shades, because plastic under a microscope seldom has a pure colour.
NAMED_COLORS: dict[str, list[tuple[float, float, float]]] = {
    "black": [(8, 0, 0)],
    "grey": [(35, 0, 0), (55, 0, 0), (74, 0, 0)],
    "white": [(95, 0, 0)],
    "red": [(28, 45, 28), (48, 65, 42)],
    "orange": [(60, 42, 55), (73, 26, 65)],
    "yellow": [(75, 2, 60), (91, -8, 60)],
    "green": [(30, -25, 20), (52, -40, 32), (80, -35, 35)],
    "cyan": [(55, -28, -12), (82, -32, -10)],
    "blue": [(20, 12, -35), (32, 79, -108), (42, 4, -42), (72, -8, -28)],
    "purple": [(28, 35, -32), (52, 38, -38)],
    "pink": [(58, 52, 0), (80, 26, 4)],
    "brown": [(28, 16, 24), (45, 18, 32)],
    "beige": [(80, 4, 20)],
}
_NAMES = [name for name, labs in NAMED_COLORS.items() for _ in labs]
_LABS = np.array([lab for labs in NAMED_COLORS.values() for lab in labs], dtype=np.float64)
Kind = Literal["fiber", "other"]
# Words for fibres in the names of classes and supercategories; a compound such as Mikrofaser or
# microfibres ends in one.
_FIBER_WORDS = (
    *("fiber", "fibers", "fibre", "fibres", "filament", "filaments", "thread", "threads"),
    *("faser", "fasern", "faden", "fäden", "filamente", "vezel", "vezels", "fibra", "fibras"),
    *("filamento", "filamentos", "filamenti", "fibrer", "纤维", "纖維", "繊維", "섬유"),
)
_NEGATIONS = {"no", "non", "not", "nicht", "kein", "keine"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Measures of a particle in px and px²; ``docs/measurement.md`` has the definitions.

    Coordinates are in the image, whose first pixel's centre lies at (0.5, 0.5).

    Attributes:
        x, y: centroid.
        bbox: x, y, width and height of the smallest box about the mask's pixels.
        area: number of pixels.
        perimeter: Crofton's, holes included.
        equivalent_diameter: of the disc of the same area.
        feret_max, feret_min: largest and smallest extent over all directions.
        length: along a fibre's centreline; of others ``feret_max``.
        width: a fibre's area by ``centerline_length``; of others ``feret_min``.
        aspect_ratio: ``length`` / ``width``.
        circularity: 4π · area / perimeter².
        roundness: 4 · area / (π · feret_max²).
        solidity: area / area of the convex hull, in (0, 1].
        elongation: 1 - feret_min / feret_max, in [0, 1).
        touches_edge: whether the mask meets the image's border; None if its size is unknown.
        parts: number of 8-connected parts.
        holes: number of holes.
        centerline_length: total length of a fibre's centreline with all branches and parts
            (``length`` follows the longest path); of others 0.
        branches, crossings, loops: of a fibre's centreline; of others 0.
        color_lab: median CIE L*, a* and b* of the mask's pixels; None without an image.
        color_name: nearest named colour; None without an image.
    """

    x: float
    y: float
    bbox: tuple[int, int, int, int]
    area: float
    perimeter: float
    equivalent_diameter: float
    feret_max: float
    feret_min: float
    length: float
    width: float
    aspect_ratio: float
    circularity: float
    roundness: float
    solidity: float
    elongation: float
    touches_edge: bool | None
    parts: int
    holes: int
    centerline_length: float
    branches: int
    crossings: int
    loops: int
    color_lab: tuple[float, float, float] | None
    color_name: str | None


class Item(NamedTuple):
    """One particle to measure; the arguments of :func:`measure`."""

    mask: np.ndarray
    offset: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] | None = None
    kind: Kind = "other"
    pixels: np.ndarray | None = None

    def trimmed(self) -> "Item":
        """Give the same particle with a bool mask without margins; errors as of :func:`measure`."""
        mask = np.asarray(self.mask).astype(bool, copy=False)
        if mask.ndim != 2:
            raise ValueError(f"A mask has two dimensions, not {mask.ndim}")
        if self.kind not in ("fiber", "other"):
            raise ValueError(f'kind is "fiber" or "other", not {self.kind!r}')
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            raise ValueError("The mask is empty")
        if self.pixels is not None and self.pixels.shape != (int(mask.sum()), 3):
            raise ValueError(f"A mask of {int(mask.sum())} pixels has colours {self.pixels.shape}")
        mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        offset = int(self.offset[0]) + int(columns[0]), int(self.offset[1]) + int(rows[0])
        return self._replace(mask=mask, offset=offset)


def measure(
    mask: np.ndarray,
    offset: tuple[int, int] = (0, 0),
    image_size: tuple[int, int] | None = None,
    kind: Kind = "other",
    pixels: np.ndarray | None = None,
) -> Shape:
    """Measure one particle.

    A mask that is shifted, turned by right angles or mirrored has the same size and form to the
    last bit, because it is brought into one of its eight positions first.

    Args:
        mask: (h, w) bool or integers, non-zero inside: a crop of the image.
        offset: x and y of the crop's first pixel in the image.
        image_size: height and width of the whole image, for ``touches_edge``.
        kind: ``"fiber"`` measures ``length`` and ``width`` along the centreline.
        pixels: uint8 BGR, (pixels of the mask, 3), for the colour: ``image[mask]``.

    Raises:
        ValueError: the mask is empty or not of two dimensions, the kind is unknown, or the number
            of pixels is wrong.
    """
    return measure_trimmed([Item(mask, offset, image_size, kind, pixels).trimmed()])[0]


def measure_trimmed(items: list[Item]) -> list[Shape]:
    """Measure particles that :meth:`Item.trimmed` prepared."""
    shapes = [_measure(item) for item in items]
    colored = [index for index, shape in enumerate(shapes) if shape.color_lab is not None]
    names = color_names([shapes[index].color_lab for index in colored]) if colored else []
    for index, name in zip(colored, names, strict=True):
        shapes[index] = dataclasses.replace(shapes[index], color_name=name)
    return shapes


def is_fiber_class(name: str) -> bool:
    """Tell whether a class is one of fibres, by the words of its name.

    ``Fiber``, ``PET fibres`` and ``black_Mikrofaser`` are; ``fiberglass`` and ``non-fiber`` are
    not.
    """
    words = _words(name)
    return not _NEGATIONS.intersection(words) and any(map(_is_fiber_word, words))


def find_fiber_classes(supercategories: Mapping[str, str | None]) -> list[str]:
    """Find the fibre classes of a data set by their names and supercategories.

    A supercategory says so if it is nothing but a word for fibres, and if its classes are not told
    apart by their names: some tools write the project's name there, such as ``fibers``, over Film.

    Args:
        supercategories: of each class, by name.
    """
    named = set(filter(is_fiber_class, supercategories))
    telling = {supercategories[name] for name in named}

    def is_fiber(name: str) -> bool:
        group = supercategories[name] or ""
        words = _words(group)
        return len(words) == 1 and _is_fiber_word(words[0]) and group not in telling

    return [name for name in supercategories if name in named or is_fiber(name)]


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\W\d_]+", text.casefold()) if word]


def _is_fiber_word(word: str) -> bool:
    return any(word.endswith(fiber) for fiber in _FIBER_WORDS)


def choose_fiber_classes(given: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Find the classes that a person names as fibres, whatever their case.

    Args:
        given: the names, as of ``--fiber-classes`` or ``DATASETS.FIBER_CLASSES``.
        class_names: of the model or the annotations.

    Returns:
        Their names as of ``class_names``, in that order.

    Raises:
        UserError: ``classes_mismatch``, there is no such class.
    """
    wanted = {name.casefold() for name in given}
    unknown = wanted - {name.casefold() for name in class_names}
    if unknown:
        raise UserError(
            f"The fibre class {min(unknown)!r} is not among the classes; expected some of "
            f"{', '.join(class_names)}.",
            code="classes_mismatch",
        )
    return [name for name in class_names if name.casefold() in wanted]


def kind_of(class_name: str, fiber_classes: Collection[str] | None = None) -> Kind:
    """Give the kind of a class's particles: a fibre's length is that of its centreline.

    Args:
        class_name: of the particle.
        fiber_classes: names of the fibre classes; None judges by :func:`is_fiber_class`.
    """
    fiber = is_fiber_class(class_name) if fiber_classes is None else class_name in fiber_classes
    return "fiber" if fiber else "other"


def median_lab(pixels: np.ndarray) -> tuple[float, float, float]:
    """Take the medians of L*, a* and b* (CIE 1976, D65, from sRGB) of (N, 3) uint8 BGR pixels."""
    scaled = pixels.reshape(1, -1, 3).astype(np.float32) / 255
    lightness, a, b = np.median(cv2.cvtColor(scaled, cv2.COLOR_BGR2Lab)[0], axis=0).tolist()
    return lightness, a, b


def color_names(labs: Sequence[tuple[float, float, float]]) -> list[str]:
    """Name the nearest entries of :data:`NAMED_COLORS` by CIEDE2000.

    Source of the distance: Sharma, Wu and Dalal 2005, doi:10.1002/col.20070.
    """
    colors = np.asarray(labs, dtype=np.float64).reshape(-1, 1, 3)
    nearest = deltaE_ciede2000(colors, _LABS[None]).argmin(axis=1)
    return [_NAMES[index] for index in nearest]


def _measure(item: Item) -> Shape:
    """Measure one particle, without its colour's name: many colours are named faster at once."""
    mask, (x0, y0) = item.mask, item.offset
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    area = len(rows)
    whole = canonical(mask)[0]
    hull = measure_hull(whole)
    perimeter = crofton_perimeter(whole)
    parts, holes = _count_parts(whole)
    line = Centerline(hull.feret_max, 0.0, 0, 0, 0, 0.0)
    breadth = hull.feret_min
    if item.kind == "fiber":
        line = _fiber_centerline(whole, hull.feret_max, parts, holes, 2 * area / perimeter)
        breadth = area / line.total_length
    edge = None
    if item.image_size is not None:
        full_height, full_width = item.image_size
        edge = x0 <= 0 or y0 <= 0 or x0 + width >= full_width or y0 + height >= full_height
    return Shape(
        x=x0 + int(columns.sum()) / area + 0.5,
        y=y0 + int(rows.sum()) / area + 0.5,
        bbox=(x0, y0, width, height),
        area=float(area),
        perimeter=perimeter,
        equivalent_diameter=math.sqrt(4 * area / math.pi),
        feret_max=hull.feret_max,
        feret_min=hull.feret_min,
        length=line.length,
        width=breadth,
        aspect_ratio=line.length / breadth,
        circularity=4 * math.pi * area / perimeter**2,
        roundness=4 * area / (math.pi * hull.feret_max**2),
        solidity=area / hull.area,
        elongation=1 - hull.feret_min / hull.feret_max,
        touches_edge=edge,
        parts=parts,
        holes=holes,
        centerline_length=line.total_length,
        branches=line.branches,
        crossings=line.crossings,
        loops=line.loops,
        color_lab=None if item.pixels is None else median_lab(item.pixels),
        color_name=None,
    )


def _count_parts(mask: np.ndarray) -> tuple[int, int]:
    """Number of 8-connected parts and of 4-connected holes."""
    padded = with_border(mask)
    parts = cv2.connectedComponents(padded.astype(np.uint8), connectivity=8)[0] - 1
    # The background's two labels are the mask and what surrounds it.
    holes = cv2.connectedComponents((~padded).astype(np.uint8), connectivity=4)[0] - 2
    return parts, holes


def _fiber_centerline(
    mask: np.ndarray, feret_max: float, parts: int, holes: int, breadth: float
) -> Centerline:
    """The centreline of a fibre, summed over its parts; a hole under breadth² is not a loop."""
    padded = with_border(mask)
    if holes:
        padded |= _small_holes(padded, breadth * breadth)
    if parts == 1:
        return _at_least(measure_centerline(padded), feret_max)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(padded.astype(np.uint8), connectivity=8)
    lines = []
    for label, (x, y, width, height) in enumerate(boxes[1:, : cv2.CC_STAT_AREA].tolist(), 1):
        part = labels[y : y + height, x : x + width] == label
        line = measure_centerline(with_border(part))
        lines.append(_at_least(line, measure_hull(part).feret_max))
    sums = [sum(values) for values in zip(*lines, strict=True)]
    sum_of_parts = Centerline(*sums[:5], max(line.radius for line in lines))
    # Gaps count for the length, but not for the width, as they have no area.
    return _at_least(sum_of_parts, feret_max)._replace(total_length=sum_of_parts.total_length)


def _at_least(line: Centerline, feret_max: float) -> Centerline:
    """Extend a line to the straight distance of its tips, which no path can be shorter than."""
    short = feret_max - line.length
    if short <= max(line.radius, 0.5):
        return line
    return line._replace(length=feret_max, total_length=line.total_length + short)


def _small_holes(padded: np.ndarray, largest: float) -> np.ndarray:
    """The pixels of holes of at most ``largest`` px²."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        (~padded).astype(np.uint8), connectivity=4
    )
    small = stats[:, cv2.CC_STAT_AREA] <= largest
    small[labels[0, 0]] = False
    small[0] = False
    return small[labels]
