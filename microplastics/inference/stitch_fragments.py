"""Fragments: what each window saw of the particles, kept small until they are put together."""

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

_PLAIN_PIXELS = 4096  # smaller masks are kept as they are
_DEFLATED_PIXELS = 65536  # larger ones are worth deflating: a fibre's box is nearly empty
_UNPACKED_PIXELS = 16 << 20  # of fragments that are kept unpacked for a while
_FAR = 1 << 30


class PackedMasks(Sequence[np.ndarray]):
    """Bool masks that are unpacked one at a time: a thin fibre takes 1/50 of its box.

    Indexing and iterating give read-only (h, w) bool arrays.
    """

    def __init__(self, masks: Iterable[np.ndarray] = ()) -> None:
        self._items: list[np.ndarray | tuple[tuple[int, int], bytes, bool]] = []
        for mask in masks:
            self.append(mask)

    def append(self, mask: np.ndarray) -> None:
        """Keep a (h, w) bool mask; the array itself is not held."""
        if mask.size <= _PLAIN_PIXELS:
            mask = mask.copy()
            mask.setflags(write=False)
            self._items.append(mask)
            return
        bits = np.packbits(mask).tobytes()
        deflate = mask.size > _DEFLATED_PIXELS
        self._items.append((mask.shape, zlib.compress(bits, 1) if deflate else bits, deflate))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, item: int | slice) -> np.ndarray:
        if isinstance(item, slice):
            part = PackedMasks()
            part._items = self._items[item]
            return part
        kept = self._items[item]
        if isinstance(kept, np.ndarray):
            return kept
        shape, bits, deflated = kept
        bits = np.frombuffer(zlib.decompress(bits) if deflated else bits, np.uint8)
        mask = np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).view(bool)
        mask.setflags(write=False)
        return mask

    def extend(self, others: "PackedMasks") -> None:
        """Keep other packed masks too."""
        self._items += others._items

    def take(self, order: Iterable[int]) -> "PackedMasks":
        """Select masks by number, without unpacking them."""
        part = PackedMasks()
        part._items = [self._items[index] for index in order]
        return part


class View(NamedTuple):
    """A bool mask, or part of one, and where its first pixel lies in the image."""

    mask: np.ndarray
    x: int
    y: int


def tight(mask: np.ndarray, x: int, y: int) -> View:
    """Cut a mask down to its pixels; (0, 0) in shape where it has none."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return View(mask[top : top + height, left : left + width], x + left, y + top)


def clip(view: View, box: Sequence[int]) -> View:
    """The part of a mask inside of a box x0, y0, x1, y1."""
    height, width = view.mask.shape
    x0, y0 = max(box[0], view.x), max(box[1], view.y)
    x1, y1 = min(box[2], view.x + width), min(box[3], view.y + height)
    x1, y1 = max(x0, x1), max(y0, y1)
    return View(view.mask[y0 - view.y : y1 - view.y, x0 - view.x : x1 - view.x], x0, y0)


def box_of(view: View) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask's array."""
    height, width = view.mask.shape
    return view.x, view.y, view.x + width, view.y + height


def common_pixels(first: View, second: View) -> int:
    """Number of pixels that are in both of two masks."""
    own, ox, oy = first
    other, tx, ty = second
    x0, y0 = (ox if ox > tx else tx), (oy if oy > ty else ty)
    x1, y1 = ox + own.shape[1], oy + own.shape[0]
    x1, y1 = min(x1, tx + other.shape[1]), min(y1, ty + other.shape[0])
    if x0 >= x1 or y0 >= y1:
        return 0
    part = own[y0 - oy : y1 - oy, x0 - ox : x1 - ox]
    return int(np.count_nonzero(part & other[y0 - ty : y1 - ty, x0 - tx : x1 - tx]))


def union(views: Sequence[View]) -> View:
    """All pixels of some masks."""
    boxes = np.array([box_of(view) for view in views])
    x0, y0 = boxes[:, :2].min(axis=0).tolist()
    x1, y1 = boxes[:, 2:].max(axis=0).tolist()
    whole = np.zeros((y1 - y0, x1 - x0), dtype=bool)
    for mask, x, y in views:
        height, width = mask.shape
        whole[y - y0 : y - y0 + height, x - x0 : x - x0 + width] |= mask
    return View(whole, x0, y0)


def dilated(view: View, pixels: int) -> View:
    """A mask grown by a disc of some radius; its array grows with it."""
    if not view.mask.size:
        return view
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1,) * 2)
    framed = cv2.copyMakeBorder(
        np.ascontiguousarray(view.mask).view(np.uint8), *[pixels] * 4, cv2.BORDER_CONSTANT
    )
    return View(cv2.dilate(framed, kernel).view(bool), view.x - pixels, view.y - pixels)


class Fragments:
    """All fragments of one image, in an order that does not depend on how they came.

    Attributes:
        windows: (M, 4) int64 x0, y0, x1, y1 in px, row by row.
        inner: (M, 4) bool, which of these sides lie inside of the image.
        window: (N,) int64 window of each fragment; ascending.
        boxes: (N, 4) int64 x0, y0, x1, y1 of each fragment's pixels.
        areas: (N,) int64 px.
        classes: (N,) int64.
        scores: (N,) float64.
        masks: N masks, tight.
    """

    def __init__(
        self,
        windows: np.ndarray,
        image_size: tuple[int, int],
        window: np.ndarray,
        boxes: np.ndarray,
        areas: np.ndarray,
        classes: np.ndarray,
        scores: np.ndarray,
        masks: PackedMasks,
    ) -> None:
        by_row = np.lexsort(windows.T[[2, 3, 0, 1]])
        number = np.empty(len(windows), dtype=np.int64)
        number[by_row] = np.arange(len(windows))
        self.windows = windows[by_row]
        self.image_size = image_size
        height, width = image_size
        self.inner = self.windows != (0, 0, width, height)
        window = number[window]
        keys = (scores, classes, areas, *boxes.T[::-1], window)
        order = np.lexsort(keys)
        self.window, self.boxes, self.areas = window[order], boxes[order], areas[order]
        self.classes, self.scores = classes[order], scores[order]
        self.masks = masks.take(order.tolist())
        bounds = np.searchsorted(self.window, np.arange(len(windows) + 1))
        self._bounds = bounds.tolist()
        self._corners = self.boxes[:, :2].tolist()
        self._unpacked: OrderedDict[int, View] = OrderedDict()
        self._unpacked_pixels = 0

    def __len__(self) -> int:
        return len(self.window)

    def members(self, window: int) -> slice:
        """The fragments of a window."""
        return slice(self._bounds[window], self._bounds[window + 1])

    def view(self, fragment: int) -> View:
        """Unpack a fragment; neighbouring windows ask for the same ones, so some are kept."""
        view = self._unpacked.get(fragment)
        if view is None:
            view = View(self.masks[fragment], *self._corners[fragment])
            self._unpacked[fragment] = view
            self._unpacked_pixels += view.mask.size
            while self._unpacked_pixels > _UNPACKED_PIXELS:
                self._unpacked_pixels -= self._unpacked.popitem(last=False)[1].mask.size
        return view

    def border_gaps(self, numbers: Sequence[int] | slice = slice(None)) -> np.ndarray:
        """(n, 4) px between fragments and their windows' sides; huge at the image's border."""
        window = self.window[numbers]
        gaps = np.abs(self.boxes[numbers] - self.windows[window])
        return np.where(self.inner[window], gaps, _FAR)

    def inner_distance(self, window: int, box: Sequence[int]) -> np.ndarray:
        """Distance of each pixel of a box from its window's nearest inner border, in px.

        Args:
            window: which one.
            box: x0, y0, x1, y1 inside of it.

        Returns:
            (height, width) of the box, int64, 1 at the border; huge without inner borders.
        """
        x0, y0, x1, y1 = self.windows[window].tolist()
        left, top, right, bottom = self.inner[window].tolist()
        x, y = np.arange(box[0], box[2]), np.arange(box[1], box[3])
        across = np.minimum(x - x0 + 1 if left else _FAR, x1 - x if right else _FAR)
        down = np.minimum(y - y0 + 1 if top else _FAR, y1 - y if bottom else _FAR)
        across = np.broadcast_to(across, x.shape)
        return np.minimum(across, np.broadcast_to(down, y.shape)[:, None])

    def trusted(self, margin: int) -> np.ndarray:
        """(M, 4) int64 boxes of the windows without a margin along their inner borders."""
        return self.windows + self.inner * np.array([1, 1, -1, -1]) * margin

    def replaced(self, parts: dict[int, list[View]]) -> "Fragments":
        """Cut some fragments into parts, which have their class and score.

        Args:
            parts: of fragments, by their number; every part has a pixel.
        """
        kept = [index for index in range(len(self)) if index not in parts]
        origin = kept + [index for index, views in parts.items() for _ in views]
        masks, boxes, areas = self.masks.take(kept), [], []
        for views in parts.values():
            for view in views:
                view = tight(*view)
                masks.append(view.mask)
                boxes.append(box_of(view))
                areas.append(np.count_nonzero(view.mask))
        return Fragments(
            self.windows,
            self.image_size,
            self.window[origin],
            np.concatenate([self.boxes[kept], np.array(boxes, dtype=np.int64).reshape(-1, 4)]),
            np.concatenate([self.areas[kept], np.array(areas, dtype=np.int64)]),
            self.classes[origin],
            self.scores[origin],
            masks,
        )
