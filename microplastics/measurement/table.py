"""Table of measured particles, and their size classes."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd

from microplastics.calibration import Calibration
from microplastics.measurement.nearest import nearest_distances
from microplastics.measurement.shape import (
    Item,
    Shape,
    kind_of,
    measure_trimmed,
)
from microplastics.structures.particles import Particles
from microplastics.utils.errors import UserError
from microplastics.utils.system import available_processors, map_in_processes

_BATCH = 100  # particles per task of a process
# With fewer particles the start of the processes, which import the package, takes longer than they
# save.
_WORTH_PROCESSES = 20_000
_LENGTHS = (
    "equivalent_diameter",
    "feret_max",
    "feret_min",
    "length",
    "width",
    "perimeter",
    "nearest",
)
_PLACE = {
    **{"image": "string", "particle": "int64", "class": "string"},
    **dict.fromkeys(("score", "x", "y"), "float64"),
    **dict.fromkeys(("bbox_x", "bbox_y", "bbox_w", "bbox_h", "area_px"), "int64"),
}
_UM = dict.fromkeys(("area_um2", *(f"{name}_um" for name in _LENGTHS)), "float64")
_PX = dict.fromkeys((f"{name}_px" for name in _LENGTHS), "float64")
_FORM = {
    "length_method": "string",
    **dict.fromkeys(("aspect_ratio", "circularity", "roundness", "solidity"), "float64"),
    **{"elongation": "float64", "touches_edge": "bool"},
    **dict.fromkeys(("size_class", "color_lab", "color_name"), "string"),
    **{"um_per_px": "float64", "calibration_source": "string"},
}
IMAGE_COLUMNS = {
    "image": "string",
    "width_px": "int64",
    "height_px": "int64",
    "region_px": "int64",
    "um_per_px": "float64",
    "calibration_source": "string",
}


# Values of the column length_method by kind.
LENGTH_METHODS = {"fiber": "centerline", "other": "feret_max"}

_MOST_BOUNDS = 100

# docs/counts.md has the sources.
SCHEMES = {
    "default": (20.0, 50.0, 100.0, 300.0, 500.0, 1000.0, 5000.0),
    "msfd": (20.0, 1000.0, 5000.0),
    "iso24187": (1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0),
    "mm": (1000.0, 2000.0, 5000.0, 10000.0),
}


@dataclasses.dataclass(frozen=True)
class SizeClasses:
    """Half-open bins [low, high), one below the first bound and one from the last on.

    Attributes:
        bounds: between the bins in µm, ascending.
    """

    bounds: tuple[float, ...]

    @property
    def labels(self) -> list[str]:
        """Values of the column ``size_class``, from the smallest bin on.

        ASCII: spreadsheets read CSV in the encoding of the system.
        """
        return self._named("<{} um", "{}-{} um", ">={} um")

    @property
    def columns(self) -> list[str]:
        """The bins' names in a column of the summary, from the smallest bin on."""
        return self._named("below_{}_um", "{}_{}_um", "from_{}_um")

    def _named(self, first: str, between: str, last: str) -> list[str]:
        texts = [_text(bound) for bound in self.bounds]
        middle = [between.format(*pair) for pair in itertools.pairwise(texts)]
        return [first.format(texts[0]), *middle, last.format(texts[-1])]

    def bins(self, sizes: np.ndarray) -> np.ndarray:
        """Number the bins, from 0 on, that (N,) sizes in µm fall into."""
        return np.searchsorted(np.asarray(self.bounds), np.asarray(sizes), side="right")


DEFAULT_SIZE_CLASSES = SizeClasses(SCHEMES["default"])


def parse_size_classes(text: str) -> SizeClasses:
    """Read the value of ``--size-classes``.

    Args:
        text: a name of :data:`SCHEMES`, or bounds in µm with commas between them.

    Raises:
        UserError: it is neither, or the bounds are not positive and ascending.
    """
    name = text.strip().casefold()
    try:
        bounds = SCHEMES.get(name) or tuple(float(part) for part in text.split(","))
    except ValueError:
        bounds = ()
    # Written so that NaN fails it too.
    ascending = all(low < high for low, high in itertools.pairwise((0.0, *bounds, math.inf)))
    if not (0 < len(bounds) <= _MOST_BOUNDS and ascending):
        raise UserError(
            f"The size classes are {text[:60]!r}; expected one of {', '.join(SCHEMES)}, or at most "
            f"{_MOST_BOUNDS} positive bounds in µm, the smallest first, for example 10,50,100,500.",
            code="option_invalid",
        )
    return SizeClasses(bounds)


def check_min_size(min_size: float | None) -> None:
    """Check a smallest reported size, in µm, or in px for images without a calibration.

    Raises:
        UserError: it is not positive and finite.
    """
    if min_size is not None and not (math.isfinite(min_size) and min_size > 0):
        raise UserError(
            f"The smallest reported size is {min_size:g}; expected a positive number, in µm if the "
            "image is calibrated and in px if not.",
            code="option_invalid",
        )


def below_label(min_size: float, unit: str) -> str:
    """Give the value of ``size_class`` below the smallest reported size, in ``unit``."""
    return f"below {_text(min_size)} {unit}"


def _text(value: float) -> str:
    """The shortest text that identifies a number."""
    return repr(float(value)).removesuffix(".0")


def table_columns(um: bool = True, px: bool = False) -> dict[str, str]:
    """Give names and dtypes of a table's columns, in order.

    Args:
        um: whether there are images with a calibration.
        px: whether there are images without one.
    """
    return {**_PLACE, **(_UM if um else {}), **(_PX if px else {}), **_FORM}


def particle_table(
    particles: Particles,
    calibration: Calibration | None,
    *,
    size_classes: SizeClasses = DEFAULT_SIZE_CLASSES,
    min_size: float | None = None,
    fiber_classes: Collection[str] | None = None,
    processes: int | None = None,
) -> pd.DataFrame:
    """Measure the particles of one image.

    Args:
        particles: of the image.
        calibration: its scale; None leaves all sizes in px.
        size_classes: the bins of ``size_class``.
        min_size: smallest reported size (``feret_max``) in µm, without a calibration in px; smaller
            particles stay in the table and are marked in ``size_class``.
        fiber_classes: classes that are measured along their centreline; None judges by their
            names, as of :func:`microplastics.measurement.shape.is_fiber_class`.
        processes: as for :func:`microplastics.measurement.measure_many`.

    Returns:
        a row for each particle in their order; columns and dtypes of :func:`table_columns`, the
        same for an image without a particle.

    Raises:
        ValueError: a mask is empty.
        UserError: ``min_size`` is not positive.
    """
    pixels = particles.pixels if particles.pixels is not None else [None] * len(particles)
    offsets = [(int(x), int(y)) for x, y in particles.offsets]
    kinds = [kind_of(name, fiber_classes) for name in particles.classes]
    items = [
        Item(mask, offset, particles.image_size, kind, colors)
        for mask, offset, kind, colors in zip(particles.masks, offsets, kinds, pixels, strict=True)
    ]
    shapes = [vars(shape) for shape in measure_many(items, processes)]
    table = pd.DataFrame(shapes, columns=[field.name for field in dataclasses.fields(Shape)])
    table["nearest"] = nearest_distances(particles.masks, offsets)
    unit, scale = ("um", calibration.um_per_px) if calibration else ("px", 1.0)
    for name in _LENGTHS:
        table[f"{name}_{unit}"] = table[name].astype(np.float64) * scale
    table["area_um2"] = table["area"].astype(np.float64) * scale**2
    table[["bbox_x", "bbox_y", "bbox_w", "bbox_h"]] = np.reshape(table["bbox"].tolist(), (-1, 4))
    table["color_lab"] = [
        # Adding 0.0 turns the -0.0 to which a small negative number is rounded into 0.0.
        lab and " ".join(f"{round(value, 1) + 0.0:.1f}" for value in lab)
        for lab in table["color_lab"]
    ]
    about = {
        "image": particles.image,
        "particle": particles.ids,
        "class": list(particles.classes),
        "score": particles.scores,
        "length_method": [LENGTH_METHODS[kind] for kind in kinds],
        "area_px": table["area"],
        "um_per_px": calibration.um_per_px if calibration else np.nan,
        "calibration_source": calibration.source if calibration else None,
        "size_class": None,
    }
    columns = table_columns(calibration is not None, calibration is None)
    table = table.assign(**about)[list(columns)].astype(columns)
    return with_size_classes(table, size_classes, min_size)


def measure_many(items: Iterable[Item], processes: int | None = None) -> list[Shape]:
    """Measure many particles; the results equal those of :func:`measure` one by one.

    Crops are sent to other processes, images are not.

    Args:
        items: the particles.
        processes: None for as many as save time.

    Raises:
        ValueError: as for :func:`measure`.
        UserError: a process was killed.
    """
    trimmed = [item.trimmed() for item in items]
    if processes is None:
        processes = available_processors() if len(trimmed) >= _WORTH_PROCESSES else 1
    batches = [trimmed[start : start + _BATCH] for start in range(0, len(trimmed), _BATCH)]
    measured = map_in_processes(measure_trimmed, batches, processes, chunk=1)
    return list(itertools.chain.from_iterable(measured))


def table_sizes(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Give the largest Feret diameter of each particle, and whether it is in µm (else in px)."""
    calibrated = table["um_per_px"].notna().to_numpy(bool)
    sizes = np.full(len(table), np.nan)
    for unit, rows in (("um", calibrated), ("px", ~calibrated)):
        if rows.any():
            sizes[rows] = table[f"feret_max_{unit}"].to_numpy(np.float64)[rows]
    return sizes, calibrated


def with_size_classes(
    table: pd.DataFrame, size_classes: SizeClasses, min_size: float | None = None
) -> pd.DataFrame:
    """Add or replace the column ``size_class`` of a table; arguments as of :func:`particle_table`.

    Raises:
        UserError: ``min_size`` is not positive.
    """
    check_min_size(min_size)
    sizes, calibrated = table_sizes(table)
    labels = np.full(len(table), None, dtype=object)
    bins = size_classes.bins(sizes[calibrated])
    labels[calibrated] = np.array(size_classes.labels, dtype=object)[bins]
    if min_size is not None:
        small = sizes < min_size
        labels[small & calibrated] = below_label(min_size, "um")
        labels[small & ~calibrated] = below_label(min_size, "px")
    return table.assign(size_class=pd.Series(labels, table.index, "string"))


def combine_tables(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Combine the tables of several images; an empty list gives an empty table in µm.

    If only some images have a calibration, the result has columns of sizes in µm and in px, empty
    for the other images.
    """
    tables = list(tables)
    px = any("feret_max_px" in table for table in tables)
    um = not px or any("feret_max_um" in table for table in tables)
    columns = table_columns(um, px)
    full = [table.reindex(columns=list(columns)) for table in tables]
    # An empty frame with NaN columns would make pandas guess the dtypes.
    full = [frame for frame in full if len(frame)]
    if not full:
        return pd.DataFrame({name: pd.Series([], dtype=dtype) for name, dtype in columns.items()})
    return pd.concat(full, ignore_index=True).astype(columns)


def images_table(images: Iterable[tuple]) -> pd.DataFrame:
    """Make the table of a run's images that :func:`microplastics.counts.summary.summarize` needs.

    Args:
        images: name, (height, width) in px, and calibration or None of each, also of images without
            a particle; optionally the number of pixels in which particles count, by default all.

    Returns:
        columns and dtypes of :data:`IMAGE_COLUMNS`.
    """
    rows = [
        (
            name,
            width,
            height,
            *(region or [width * height]),
            scale and scale.um_per_px,
            scale and scale.source,
        )
        for name, (height, width), scale, *region in images
    ]
    return pd.DataFrame(rows, columns=list(IMAGE_COLUMNS)).astype(IMAGE_COLUMNS)
