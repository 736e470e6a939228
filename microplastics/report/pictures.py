"""Pictures of a run's report: photographs with outlines, and a gallery of particles.

Photographs become JPEGs of few bytes; outlines are lines of SVG upon them, so that they print
sharply, can be switched off, and can be linked to.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from microplastics.data.large_images import ImageReader
from microplastics.measurement.table import table_sizes
from microplastics.report.page import jpeg, number
from microplastics.runs.finished import FinishedRun
from microplastics.utils.errors import UserError
from microplastics.visualization.draw import LabelPlacer, resize, scale_bar
from microplastics.writers.overlay import outline_lines, ring

GALLERY = 300
"""Particles in the gallery of all classes together."""
_LEAST_OF_CLASS, _FEW_CLASSES = 8, 40
# Beyond so many images only those with a particle of the gallery are shown.
_ALL_IMAGES = 60
# Pixels of all photographs together, sides of one, and bytes of all.
_PIXELS, _SIDES, _BYTES = 16_000_000, (320, 2400), 6_000_000
_QUALITIES = (80, 65, 50, 35)
_THUMB_SIDE, _THUMB_QUALITY = 160, 75
_MARGIN, _LEAST_WINDOW = 0.35, 24  # around a particle, in its longer side; least side in px
_READ_SIDE = 3000  # of what is read in full for a thumbnail, in px of the image
_MAX_OUTLINES = 12_000
_RING, _RING_BELOW = 6.0, 5.0  # in px of the picture
_NUMBERED = 250  # particles of an image up to which they are numbered
# Width in px at which a picture is looked at: numbers are placed for it.
_LOOKED_AT, _FONT = 1000, 13
# Images up to so many px wide are shown side by side, at this width.
_SMALL, _SMALL_AT = 320, 470


@dataclasses.dataclass(frozen=True)
class Outline:
    """A particle upon its photograph.

    Attributes:
        key: of its place in the page.
        class_number: of its class.
        path: of SVG, in px of the image.
        title: what it is, shown under the pointer.
        label: its number with x and y of its place in px of the image; None without room.
    """

    key: str
    class_number: int
    path: str
    title: str
    label: tuple[str, float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Overlay:
    """An image of the run with its particles.

    Attributes:
        key: of its place in the page.
        name: of the image.
        width, height: in px.
        picture: the photograph, JPEG; None if there is none to show.
        why: there is none, or not all outlines.
        outlines: of its particles.
        counts: particles by class name.
        bar: label and length in px of its scale bar; None without a scale.
        font: size of its texts in px of the image.
        small: it can stand beside another one.
    """

    key: str
    name: str
    width: int
    height: int
    picture: bytes | None
    why: str
    outlines: list[Outline]
    counts: dict[str, int]
    bar: tuple[str, float] | None
    font: float
    small: bool


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A particle of the gallery.

    Attributes:
        key: of its place on its overlay.
        class_number: of its class.
        window: x, y, width and height in px of the image.
        picture: that part of the photograph, JPEG; None if there is none to show.
        path: its outline as SVG, in px of the image.
        title: what it is.
        score: of it, or empty.
        size: of it, with its unit.
    """

    key: str
    class_number: int
    window: tuple[int, int, int, int]
    picture: bytes | None
    path: str
    title: str
    score: str
    size: str


@dataclasses.dataclass(frozen=True)
class Pictures:
    """All pictures of a report.

    Attributes:
        overlays: in the order of the images.
        gallery: by class name, the highest score first.
        of_class: particles of each class, of which the gallery shows some.
    """

    overlays: list[Overlay]
    gallery: dict[str, list[Thumbnail]]
    of_class: dict[str, int]


def draw_pictures(run: FinishedRun, counted: pd.DataFrame) -> Pictures:
    """Draw the pictures of a run, one photograph at a time, read by region where it can be.

    A photograph that is gone, has changed or cannot be read is left out, and its overlay says so.

    Args:
        run: the run.
        counted: those of ``run.particles`` that count, by its index.
    """
    chosen = _choose(counted, run.class_names)
    names = run.images["image"].tolist()
    if len(names) > _ALL_IMAGES:
        shown = set(counted.loc[sorted(set().union(*map(set, chosen.values())))]["image"])
        names = [name for name in names if name in shown]
    rows = run.images.set_index("image", drop=False)
    groups = dict(tuple(run.particles.groupby("image", sort=False)))
    drawer = _Drawer(run, {index for own in chosen.values() for index in own}, len(names))
    overlays, thumbnails = [], {}
    for number_, name in enumerate(tqdm(names, "Report", unit="image", disable=None), start=1):
        own = groups.get(name, run.particles[:0])
        overlay, drawn = drawer.draw(number_, rows.loc[name], own)
        overlays.append(overlay)
        thumbnails.update(drawn)
    gallery = {name: [thumbnails[each] for each in own] for name, own in chosen.items() if own}
    return Pictures(overlays, gallery, counted["class"].value_counts().to_dict())


def _choose(counted: pd.DataFrame, classes: Sequence[str]) -> dict[str, list[int]]:
    """Index of the particles of the gallery: of each class evenly over its scores, or sizes."""
    found = dict(list(counted.groupby("class", sort=False)))
    least = _LEAST_OF_CLASS if len(found) <= _FEW_CLASSES else 1
    number_ = max(least, GALLERY // max(len(found), 1))
    sizes = pd.Series(table_sizes(counted)[0], counted.index)
    chosen = {}
    for name in dict.fromkeys([*classes, *found]):
        own = found.get(name, counted[:0])
        by = own["score"] if own["score"].notna().any() else sizes.loc[own.index]
        order = by.sort_values(ascending=False, kind="stable").index
        places = np.unique(np.linspace(0, max(len(order) - 1, 0), number_).round().astype(int))
        chosen[name] = order[places].tolist() if len(order) else []
    return chosen


class _Drawer:
    """Draws the images of a report within its limits."""

    def __init__(self, run: FinishedRun, chosen: set[int], images: int):
        """Draw ``images`` images, and thumbnails of the ``chosen`` particles."""
        self._run, self._chosen, self._outlines_left = run, chosen, _MAX_OUTLINES
        self._pixels = _PIXELS / max(images, 1)
        self._bytes = _BYTES / max(images, 1)
        self._numbers = {name: place for place, name in enumerate(run.class_names)}

    def draw(
        self, place: int, image: pd.Series, particles: pd.DataFrame
    ) -> tuple[Overlay, dict[int, Thumbnail]]:
        """Draw one image and those of its particles that are chosen."""
        name, width, height = image["image"], int(image["width_px"]), int(image["height_px"])
        side = self._side(width, height)
        scale = side / max(width, height)
        picture, crops, why = self._photograph(image, side, particles)
        lines, exact, problem = self._lines(image, particles, scale)
        titles = [_title(row) for row in particles.to_dict("records")]
        keys = [f"i{place}-p{particle}" for particle in particles["particle"]]
        classes = [self._numbers.get(each, 0) for each in particles["class"]]
        paths = [_svg_path(each, scale) for each in lines]
        look = (_SMALL_AT if width <= _SMALL else _LOOKED_AT) / width
        labels = _labels(particles["particle"].tolist(), lines, (height, width), look / scale, look)
        outlines = [
            Outline(*values) for values in zip(keys, classes, paths, titles, labels, strict=True)
        ][: max(self._outlines_left, 0)]
        self._outlines_left -= len(outlines)
        notes = [why, problem]
        if len(outlines) < len(particles):
            notes.append(f"Outlines of {len(outlines)} of {len(particles)} particles are shown.")
        thumbnails = {
            index: Thumbnail(
                keys[row],
                classes[row],
                _window(particle, width, height),
                crops.get(index),
                exact.get(index, paths[row]),
                titles[row],
                "" if pd.isna(particle["score"]) else f"{particle['score']:.2f}",
                _size(particle),
            )
            for row, (index, particle) in enumerate(particles.iterrows())
            if index in self._chosen
        }
        bar = scale_bar(image["um_per_px"], width) if image["um_per_px"] > 0 else None
        counts = particles["class"].value_counts().to_dict()
        overlay = Overlay(
            f"image-{place}",
            name,
            width,
            height,
            picture,
            " ".join(filter(None, notes)),
            outlines,
            {each: counts.get(each, 0) for each in dict.fromkeys([*self._numbers, *counts])},
            bar,
            _FONT / look,
            width <= _SMALL,
        )
        return overlay, thumbnails

    def _side(self, width: int, height: int) -> int:
        """Longer side in px of an image's picture."""
        side = (self._pixels * max(width, height) / min(width, height)) ** 0.5
        return int(min(max(width, height), np.clip(side, *_SIDES)))

    def _photograph(
        self, image: pd.Series, side: int, particles: pd.DataFrame
    ) -> tuple[bytes | None, dict[int, bytes], str]:
        """Pictures of an image and of its chosen particles by index, or why there are none."""
        try:
            with self._run.open_image(image["image"]) as reader:
                if (reader.width, reader.height) != (image["width_px"], image["height_px"]):
                    raise UserError(f"{reader.path} has another size now.", code="image_size")
                whole, shrunk = reader.overview(side)
                crops = {
                    index: jpeg(_crop(reader, whole, shrunk, particle), _THUMB_QUALITY)
                    for index, particle in particles.iterrows()
                    if index in self._chosen
                }
        except UserError as error:
            return None, {}, str(error)
        return self._fitting_jpeg(whole[..., ::-1]), crops, ""

    def _fitting_jpeg(self, picture: np.ndarray) -> bytes:
        """Encode a picture with as much quality, and then size, as its share of the page allows."""
        while True:
            for quality in _QUALITIES:
                data = jpeg(np.ascontiguousarray(picture), quality)
                if len(data) <= self._bytes or max(picture.shape) <= _SIDES[0]:
                    return data
            picture = resize(picture, 0.7)

    def _lines(
        self, image: pd.Series, particles: pd.DataFrame, scale: float
    ) -> tuple[list[list[np.ndarray]], dict[int, str], str]:
        """Outlines of particles in px of the picture, and those of the gallery by index.

        Boxes stand for them if no masks are kept; the last value says why.
        """
        try:
            masks = self._run.read_masks(image["image"], particles)
        except UserError as error:
            boxes = particles[["bbox_x", "bbox_y", "bbox_w", "bbox_h"]].to_numpy(np.float64)
            corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
            lines = [[(box[:2] + corners * box[2:]) * scale] for box in boxes]
            return lines, {}, f"Boxes stand for outlines. {error}" if len(particles) else ""
        lines, exact = [], {}
        for index, mask, offset in zip(particles.index, masks.crops, masks.offsets, strict=True):
            offset = np.asarray(offset)
            own = outline_lines(mask, offset, np.array([scale, scale]))
            points = np.concatenate(own)
            is_dot = np.ptp(points, axis=0).max() < _RING_BELOW
            lines.append([ring(points.mean(axis=0), _RING)] if is_dot else own)
            if index in self._chosen:
                finer = min(1.0, _THUMB_SIDE / max(mask.shape))
                exact[index] = _svg_path(outline_lines(mask, offset, np.full(2, finer)), finer)
        return lines, exact, ""


def _crop(reader: ImageReader, whole: np.ndarray, shrunk: float, particle: pd.Series) -> np.ndarray:
    """The surroundings of a particle, RGB; ``shrunk`` is px of the image per px of ``whole``."""
    x, y, width, height = _window(particle, reader.width, reader.height)
    if max(width, height) <= _READ_SIDE:
        part = reader.read(x, y, x + width, y + height)
    else:
        x0, y0, x1, y1 = (round(each / shrunk) for each in (x, y, x + width, y + height))
        part = whole[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
    scale = min(1.0, _THUMB_SIDE / max(part.shape[:2]))
    return np.ascontiguousarray(resize(part, scale)[..., ::-1])


def _window(particle: pd.Series, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of an image around a particle, as x, y, width and height in px."""
    x, y, w, h = (int(particle[name]) for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h"))
    side = max(w, h)
    side = max(round(side * (1 + 2 * _MARGIN)), side + 4, _LEAST_WINDOW)
    x0, y0 = (
        max(0, min(low + size // 2 - side // 2, whole - side))
        for low, size, whole in ((x, w, width), (y, h, height))
    )
    return x0, y0, min(side, width), min(side, height)


def _svg_path(lines: Sequence[np.ndarray], scale: float) -> str:
    """Closed lines in px of a picture as a path in px of the image, in few characters."""
    digits = 10 if scale > 0.3 else 1  # tenths of a px where they can be seen
    parts = []
    for line in lines:
        points = np.round(line / scale * digits).astype(np.int64)
        steps = np.diff(points, axis=0).tolist()
        start = points[0].tolist()
        parts.append(f"M{_pair(start, digits)}l" + " ".join(_pair(s, digits) for s in steps) + "z")
    return "".join(parts)


def _pair(point: Sequence[int], digits: int) -> str:
    return ",".join(f"{value / digits:g}" if digits > 1 else str(value) for value in point)


def _labels(
    ids: Sequence[int],
    lines: Sequence[Sequence[np.ndarray]],
    size: tuple[int, int],
    enlarged: float,
    look: float,
) -> list[tuple[str, float, float] | None]:
    """The number of each particle beside it, None where there is no room or there are many.

    ``enlarged`` and ``look`` are px of what is looked at per px of the lines, and of the image.
    """
    if len(ids) > _NUMBERED:
        return [None] * len(ids)
    placer = LabelPlacer((round(size[0] * look), round(size[1] * look)))
    outlines = [np.concatenate(own) * enlarged for own in lines]
    for outline in outlines:
        placer.cover(outline)
    labels = []
    for particle, outline in zip(ids, outlines, strict=True):
        text = str(particle)
        corner = placer.place(outline, (_FONT, 0.62 * _FONT * len(text)), 2)
        # SVG places a text by its base line.
        labels.append(corner and (text, corner[0] / look, (corner[1] + 0.85 * _FONT) / look))
    return labels


def _title(particle: dict) -> str:
    words = [f"{particle['class']} {particle['particle']} on {particle['image']}"]
    if not pd.isna(particle["score"]):
        words.append(f"score {particle['score']:.2f}")
    return ", ".join([*words, _size(particle)])


def _size(particle: dict | pd.Series) -> str:
    """The largest Feret diameter with its unit."""
    for column, unit in (("feret_max_um", "µm"), ("feret_max_px", "px")):
        value = particle.get(column)
        if value is not None and not pd.isna(value):
            return f"{number(value, 3)} {unit}"
    return ""
