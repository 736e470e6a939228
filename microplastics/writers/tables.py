"""Tables as CSV and Parquet, and label images."""

import contextlib
import csv
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from microplastics import __version__
from microplastics.measurement.table import table_columns
from microplastics.structures.particles import Particles
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write
from microplastics.writers.base import ImageResult

# An image without a calibration, or without a particle, must not change the type of a column.
_ARROW = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
_COLUMNS = {name: _ARROW[kind] for name, kind in table_columns(um=True, px=True).items()}
# Significant digits of all numbers but scales, which are written exactly.
_EXACT = frozenset(("um_per_px",))
_DIGITS = 6
_ROWS_OF_A_GROUP = 100_000
_CODEC = "zstd"

_LARGEST_LABEL = 2**31 - 1
# Beyond every scanner: a size that an untrusted file claims must not fill the disk.
_MOST_PIXELS = 40_000_000_000
# Strips, which every reader knows (ImageJ no tiles), up to this side; tiles above.
_LARGEST_STRIPED = 4096
_STRIP_ROWS, _TILE = 64, 512
_COMPRESSION_LEVEL = 1
# Compressed labels are far smaller, so that a classic TIFF holds what would not fit as it is.
_CLASSIC_BYTES = 2**32 - 2**25
_UM_PER_CM = 10_000


def to_arrow(table: pd.DataFrame) -> pa.Table:
    """Give a table's columns their types: 64-bit numbers, bools, texts; missing values are null.

    Args:
        table: of one image or of a whole run.
    """
    columns = {str(name): _column(str(name), table[name]) for name in table.columns}
    return pa.table(columns)


def merge_schemas(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Give the columns of all tables: the known ones in their order, then what else there is.

    Whole numbers in one table and fractions in another become fractions.
    """
    whole = pa.unify_schemas(list(schemas), promote_options="permissive")
    known = [name for name in _COLUMNS if name in whole.names]
    other = [name for name in whole.names if name not in _COLUMNS]
    return pa.schema([whole.field(name) for name in (*known, *other)])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a table the columns of a schema; those that it lacks are null."""
    columns = [
        (
            table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(len(table), field.type)
        )
        for field in schema
    ]
    return pa.table(columns, schema=schema)


@contextlib.contextmanager
def open_csv(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Write a CSV table by table: UTF-8, commas, decimal points, ``\\n``, a header.

    Numbers have six significant digits and no thousands separators; truth is TRUE or FALSE, as in
    spreadsheets and R; what is missing is empty.

    Args:
        path: of the file, which is there when the block ends well.
        schema: of all tables.

    Yields:
        the function that takes the next table.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(schema.names)

        def add(table: pa.Table) -> None:
            table = conform(table, schema)
            columns = [_texts(name, table[name].to_pylist()) for name in schema.names]
            writer.writerows(zip(*columns, strict=True))

        yield add


@contextlib.contextmanager
def open_parquet(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Write a Parquet file table by table, with the numbers as they are (see :func:`open_csv`)."""
    with (
        atomic_write(path, "wb") as file,
        pq.ParquetWriter(file, schema, compression=_CODEC) as writer,
    ):
        waiting: list[pa.Table] = []

        def flush() -> None:
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
            waiting.clear()

        def add(table: pa.Table) -> None:
            waiting.append(conform(table, schema))
            # A group of rows an image would make the file large and slow.
            if sum(map(len, waiting)) >= _ROWS_OF_A_GROUP:
                flush()

        yield add
        flush()


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write one table as CSV (see :func:`open_csv`)."""
    arrow = to_arrow(table)
    with open_csv(path, arrow.schema) as add:
        add(arrow)


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write one table as Parquet (see :func:`open_parquet`)."""
    arrow = to_arrow(table)
    with open_parquet(path, arrow.schema) as add:
        add(arrow)


def _column(name: str, values: pd.Series) -> pa.Array:
    kind = _COLUMNS.get(name) or _kind(values)
    if kind == pa.string():
        return pa.array([None if pd.isna(v) else str(v) for v in values], kind)
    return pa.array(values, kind, from_pandas=True)


def _kind(values: pd.Series) -> pa.DataType:
    if pd.api.types.is_bool_dtype(values):
        return pa.bool_()
    if pd.api.types.is_integer_dtype(values):
        return pa.int64()
    return pa.float64() if pd.api.types.is_numeric_dtype(values) else pa.string()


def _texts(name: str, values: list[Any]) -> list[Any]:
    if any(isinstance(value, bool) for value in values):
        return ["" if value is None else str(value).upper() for value in values]
    if name in _EXACT or not any(isinstance(value, float) for value in values):
        return ["" if value is None else value for value in values]
    return [_number(value) for value in values]


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    # Spreadsheets show exponents; large numbers keep all their digits instead.
    return f"{value:.{_DIGITS}g}" if abs(value) < 10**_DIGITS else f"{value:.0f}"


def write_labels(result: ImageResult, path: Path) -> dict[str, int]:
    """Write the particles of one image as an int32 TIFF: 0 is background, else the ``particle``.

    Where particles overlap, the smaller one is on top (of two equal ones the later). The image is
    painted piece by piece; none larger than a band of it is ever made.

    Args:
        result: of the image.
        path: of the TIFF.

    Returns:
        ``label_pixels_hidden``, how many pixels of particles lie under another one, and
        ``label_particles_hidden``, how many particles lie wholly under others and are not in the
        file; both only if not 0.

    Raises:
        UserError: a particle's number is not a positive int32, the image is too large, or the
            file cannot be written.
    """
    particles = result.particles
    height, width = particles.image_size
    if height * width > _MOST_PIXELS:
        raise UserError(
            f"{particles.image} of {width} x {height} px is too large for a label mask; correct "
            "its size or leave labels out of --formats.",
            code="image_too_large",
        )
    bad = particles.ids[(particles.ids < 1) | (particles.ids > _LARGEST_LABEL)]
    if len(bad):
        raise UserError(
            f"{particles.image} has a particle of number {bad[0]}, but label masks hold "
            "1 to 2147483647; number the annotations from 1 or leave labels out of --formats.",
            code="annotations_invalid",
        )
    striped = max(height, width) <= _LARGEST_STRIPED
    step = (_STRIP_ROWS, width) if striped else (_TILE, _TILE)
    big = 4 * height * width > _CLASSIC_BYTES
    hidden: Counter[int] = Counter()
    layout = {"rowsperstrip": _STRIP_ROWS} if striped else {"tile": step}
    if result.calibration is not None:
        per_cm = _UM_PER_CM / result.calibration.um_per_px
        layout.update(resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")
    with (
        atomic_write(path, "wb") as file,
        # Named, because tifffile takes the name of an unnamed file for text.
        tifffile.FileHandle(file, name=path.name) as handle,
        tifffile.TiffWriter(handle, bigtiff=big, byteorder="<") as tiff,
    ):
        tiff.write(
            _pieces(particles, step, not striped, hidden),
            shape=(height, width),
            dtype=np.int32,
            photometric="minisblack",
            compression="adobe_deflate",
            software=f"microplastics {__version__}",
            description=_description(result),
            metadata=None,
            **layout,
        )
    return _counts(particles, hidden)


def _description(result: ImageResult) -> str:
    words = {"image": result.particles.image, "value": "particle"}
    if result.calibration is not None:
        words["um_per_px"] = result.calibration.um_per_px
        words["calibration_source"] = result.calibration.source
    return json.dumps(words)


def _pieces(
    particles: Particles, step: tuple[int, int], padded: bool, hidden: Counter[int]
) -> Iterator[bytes]:
    """Paint strip by strip or tile by tile, row by row, and compress each."""
    height, width = particles.image_size
    rows, columns = step
    places = _places(particles, step)
    empty: dict[tuple[int, int], bytes] = {}
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            shape = step if padded else (min(rows, height - top), columns)
            indices = places.pop((top // rows, left // columns), ())
            if indices:
                piece = np.zeros(shape, dtype="<i4")
                for index in indices:
                    _paint(piece, left, top, particles, index, hidden)
                yield zlib.compress(piece, _COMPRESSION_LEVEL)
            else:
                if shape not in empty:
                    empty[shape] = zlib.compress(bytes(4 * shape[0] * shape[1]), 9)
                yield empty[shape]


def _places(particles: Particles, step: tuple[int, int]) -> dict[tuple[int, int], list[int]]:
    """Which particles reach into a piece, the largest first."""
    areas = np.array([np.count_nonzero(mask) for mask in particles.masks], dtype=np.int64)
    places: dict[tuple[int, int], list[int]] = {}
    for index in np.argsort(-areas, kind="stable").tolist():
        (x, y), (h, w) = particles.offsets[index].tolist(), particles.masks[index].shape
        for row in range(y // step[0], (y + h - 1) // step[0] + 1):
            for column in range(x // step[1], (x + w - 1) // step[1] + 1):
                places.setdefault((row, column), []).append(index)
    return places


def _paint(piece: np.ndarray, left: int, top: int, particles: Particles, index: int, hidden):
    (x, y), mask = particles.offsets[index].tolist(), particles.masks[index]
    x0, y0 = max(x, left), max(y, top)
    x1 = min(x + mask.shape[1], left + piece.shape[1])
    y1 = min(y + mask.shape[0], top + piece.shape[0])
    part = mask[y0 - y : y1 - y, x0 - x : x1 - x]
    target = piece[y0 - top : y1 - top, x0 - left : x1 - left]
    under = target[part]
    if under.any():
        values, counts = np.unique(under[under > 0], return_counts=True)
        hidden.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    target[part] = particles.ids[index]


def _counts(particles: Particles, hidden: Counter[int]) -> dict[str, int]:
    if not hidden:
        return {}
    counts = {"label_pixels_hidden": hidden.total()}
    gone = sum(
        np.count_nonzero(mask) == hidden[particle]
        for mask, particle in zip(particles.masks, particles.ids.tolist(), strict=True)
        if particle in hidden
    )
    return {**counts, "label_particles_hidden": gone} if gone else counts
