"""The table of particles: one row a particle, in micrometres where the scale is known."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from microplastics.measurement.calibration import Calibration
from microplastics.measurement.many import Item, measure_many, nearest_distances
from microplastics.measurement.particles import Particles
from microplastics.measurement.shape import FIBER_CLASSES, Shape, kind_of
from microplastics.measurement.size_classes import (
    DEFAULT_SIZE_CLASSES,
    SizeClasses,
    below_label,
    check_min_size,
)

PLACE_COLUMNS = {
    "image": "string",
    "particle": "int64",
    "class": "string",
    "score": "float64",
    "x": "float64",
    "y": "float64",
    "bbox_x": "int64",
    "bbox_y": "int64",
    "bbox_w": "int64",
    "bbox_h": "int64",
    "area_px": "int64",
}
LENGTHS = (
    "equivalent_diameter",
    "feret_max",
    "feret_min",
    "length",
    "width",
    "perimeter",
    "nearest",
)
UM_COLUMNS = {"area_um2": "float64", **{f"{name}_um": "float64" for name in LENGTHS}}
PX_COLUMNS = {f"{name}_px": "float64" for name in LENGTHS}
FORM_COLUMNS = {
    "aspect_ratio": "float64",
    "circularity": "float64",
    "roundness": "float64",
    "solidity": "float64",
    "elongation": "float64",
    "touches_edge": "bool",
    "size_class": "string",
    "color_lab": "string",
    "color_name": "string",
    "um_per_px": "float64",
    "calibration_source": "string",
}
IMAGE_COLUMNS = {
    "image": "string",
    "width_px": "int64",
    "height_px": "int64",
    "region_px": "int64",
    "um_per_px": "float64",
    "calibration_source": "string",
}


def table_columns(um: bool = True, px: bool = False) -> dict[str, str]:
    """Names and dtypes of a table's columns, in order.

    Args:
        um: whether there are images with a calibration.
        px: whether there are images without one.
    """
    sizes = {**(UM_COLUMNS if um else {}), **(PX_COLUMNS if px else {})}
    return {**PLACE_COLUMNS, **sizes, **FORM_COLUMNS}


def particle_table(
    particles: Particles,
    calibration: Calibration | None,
    *,
    size_classes: SizeClasses = DEFAULT_SIZE_CLASSES,
    min_size: float | None = None,
    fiber_classes: Sequence[str] = FIBER_CLASSES,
    processes: int | None = None,
) -> pd.DataFrame:
    """Measure the particles of one image.

    Args:
        particles: of the image.
        calibration: its scale; None leaves all sizes in px.
        size_classes: the bins of ``size_class``.
        min_size: smallest reported size (``feret_max``) in µm, without a calibration in px; smaller
            ones stay in the table and are marked in ``size_class``.
        fiber_classes: classes that are measured along their centreline; case does not count.
        processes: as of :func:`microplastics.measurement.measure_many`.

    Returns:
        a row for each particle in their order; columns and dtypes of :func:`table_columns`, the
        same for an image without a particle.

    Raises:
        ValueError: a mask is empty or lies outside of the image.
        UserError: ``min_size`` is no size.
    """
    kinds = {name: kind_of(name, fiber_classes) for name in set(particles.classes)}
    pixels = particles.pixels if particles.pixels is not None else [None] * len(particles)
    offsets = [(int(x), int(y)) for x, y in particles.offsets]
    items = [
        Item(mask, offset, particles.image_size, None, kind, colors)
        for mask, offset, kind, colors in zip(
            particles.masks,
            offsets,
            [kinds[name] for name in particles.classes],
            pixels,
            strict=True,
        )
    ]
    shapes = measure_many(items, processes)
    values: dict[str, object] = {
        "image": [particles.image] * len(shapes),
        "particle": particles.ids,
        "class": list(particles.classes),
        "score": particles.scores,
        **_place(shapes),
        **_sizes(shapes, nearest_distances(particles.masks, offsets), calibration),
        **_form(shapes),
        "um_per_px": calibration.um_per_px if calibration else np.nan,
        "calibration_source": calibration.source if calibration else None,
        "size_class": None,
    }
    columns = table_columns(calibration is not None, calibration is None)
    rows = pd.RangeIndex(len(shapes))
    table = pd.DataFrame(
        {name: pd.Series(values[name], rows, dtype) for name, dtype in columns.items()}
    )
    return with_size_classes(table, size_classes, min_size)


def _place(shapes: list[Shape]) -> dict[str, object]:
    boxes = np.array([shape.bbox for shape in shapes], dtype=np.int64).reshape(-1, 4)
    return {
        "x": [shape.x for shape in shapes],
        "y": [shape.y for shape in shapes],
        **{f"bbox_{name}": boxes[:, index] for index, name in enumerate("xywh")},
        "area_px": [int(shape.area) for shape in shapes],
    }


def _sizes(
    shapes: list[Shape], nearest: np.ndarray, calibration: Calibration | None
) -> dict[str, np.ndarray]:
    lengths = {
        name: np.array([getattr(shape, name) for shape in shapes], dtype=np.float64)
        for name in LENGTHS[:-1]
    }
    lengths["nearest"] = nearest
    if calibration is None:
        return {f"{name}_px": values for name, values in lengths.items()}
    scale = calibration.um_per_px
    areas = np.array([shape.area for shape in shapes], dtype=np.float64)
    return {
        "area_um2": areas * scale**2,
        **{f"{name}_um": values * scale for name, values in lengths.items()},
    }


def _form(shapes: list[Shape]) -> dict[str, list]:
    names = ("aspect_ratio", "circularity", "roundness", "solidity", "elongation")
    return {
        **{name: [getattr(shape, name) for shape in shapes] for name in names},
        "touches_edge": [shape.touches_edge for shape in shapes],
        "color_lab": [_lab_text(shape.color_lab) for shape in shapes],
        "color_name": [shape.color_name for shape in shapes],
    }


def _lab_text(lab: tuple[float, float, float] | None) -> str | None:
    # Adding 0.0 turns the -0.0 to which a small negative number is rounded into 0.0.
    return None if lab is None else " ".join(f"{round(value, 1) + 0.0:.1f}" for value in lab)


def table_sizes(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The largest Feret diameter of each particle, whichever its unit.

    Returns:
        (N,) float64, and (N,) bool telling which are in µm; the others are in px.
    """
    calibrated = table["um_per_px"].notna().to_numpy(bool)
    sizes = np.full(len(table), np.nan)
    for unit, rows in (("um", calibrated), ("px", ~calibrated)):
        if rows.any():
            sizes[rows] = table[f"feret_max_{unit}"].to_numpy(np.float64)[rows]
    return sizes, calibrated


def with_size_classes(
    table: pd.DataFrame, size_classes: SizeClasses, min_size: float | None = None
) -> pd.DataFrame:
    """Put particles into size classes, in place of those that they were in.

    Args:
        table: of particles.
        size_classes: the bins; a particle without a calibration is in none.
        min_size: as of :func:`particle_table`.

    Returns:
        the table with another column ``size_class``.

    Raises:
        UserError: ``min_size`` is no size.
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
    """One table of the tables of several images.

    Where some images have a calibration and some have none, it has the sizes in µm and those in px,
    each empty where it does not apply.

    Args:
        tables: of particles; none at all gives an empty table in µm.
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


def images_table(
    images: Iterable[
        tuple[str, tuple[int, int], Calibration | None]
        | tuple[str, tuple[int, int], Calibration | None, int]
    ],
) -> pd.DataFrame:
    """The images of a run, those without a particle too, as :func:`summarize` needs them.

    Args:
        images: name, height and width in px, and calibration of each; and the pixels in which
            particles count, all of them where left out.

    Returns:
        columns and dtypes of :data:`IMAGE_COLUMNS`.
    """
    rows = [
        (
            name,
            width,
            height,
            region[0] if region else width * height,
            calibration.um_per_px if calibration else np.nan,
            calibration.source if calibration else None,
        )
        for name, (height, width), calibration, *region in images
    ]
    return pd.DataFrame(rows, columns=list(IMAGE_COLUMNS)).astype(IMAGE_COLUMNS)
