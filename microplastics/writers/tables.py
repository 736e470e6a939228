"""Results of images: as tables (CSV, Parquet), kept for the end of the run, as label images.

The columns are those of :mod:`microplastics.measurement.table`.
"""

import contextlib
import csv
import dataclasses
import functools
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from microplastics import __version__
from microplastics.calibration import Calibration
from microplastics.data.colors import class_colors
from microplastics.data.large_images import ImageReader
from microplastics.measurement.table import table_columns
from microplastics.roi.region import Region
from microplastics.structures import rle
from microplastics.structures.particles import Particles
from microplastics.utils.errors import UserError
from microplastics.utils.io import as_cell, atomic_write

# An image without a calibration, or without a particle, must not change the type of a column.
_ARROW = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
_COLUMNS = {name: _ARROW[kind] for name, kind in table_columns(um=True, px=True).items()}
# Significant digits of all numbers but scales, which are written exactly.
_EXACT = frozenset(("um_per_px",))
_DIGITS = 6
_ROWS_OF_A_GROUP = 100_000
_CODEC = "zstd"
# Of a part: the column of the masks, and the key of what is known of the image.
_RLE, _KEY = "rle counts", b"microplastics part"

_LARGEST_LABEL = 2**31 - 1
# Beyond every scanner: a size that an untrusted file claims must not fill the disk.
_MOST_PIXELS = 40_000_000_000
# Strips, which every reader knows (ImageJ no tiles).
_STRIP_ROWS = 64
_COMPRESSION_LEVEL = 1
# Compressed labels are far smaller, so that a classic TIFF holds what would not fit as it is.
_CLASSIC_BYTES = 2**32 - 2**25
_UM_PER_CM = 10_000


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """The finished result of one image.

    Attributes:
        particles: N particles in px of the image.
        table: N rows in the same order, the columns of ``particles.csv``.
        class_names: of the model or data set, in order: they give category ids (from 1), colours
            and ROI groups.
        calibration: of the image, if there is one.
        image: the photograph; only overlays look at it.
        region: region of interest; overlays show its outline.
    """

    particles: Particles
    table: pd.DataFrame
    class_names: Sequence[str]
    calibration: Calibration | None = None
    image: ImageReader | None = None
    region: Region | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """Name of the image, its size in px and its scale, None if that is not known."""
        height, width = self.particles.image_size
        return {
            "image": self.particles.image,
            "width": width,
            "height": height,
            "um_per_px": self.calibration.um_per_px if self.calibration else None,
            "calibration_source": self.calibration.source if self.calibration else None,
        }

    @functools.cached_property
    def class_numbers(self) -> list[int]:
        """Number from 0 of each particle's class."""
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return [numbers[name] for name in self.particles.classes]

    @functools.cached_property
    def colors(self) -> list[list[int]]:
        """RGB in 0–255 of each class."""
        return class_colors(self.class_names)


def to_arrow(table: pd.DataFrame) -> pa.Table:
    """Give a table's columns their types: 64-bit numbers, bools, texts; missing values are null."""
    columns = {
        str(name): pa.array(values, _COLUMNS.get(str(name)), from_pandas=True)
        for name, values in table.items()
    }
    return pa.table(columns)


def merge_schemas(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Give the columns of a table that holds the particles of several images."""
    names = {name for schema in schemas for name in schema.names}
    return pa.schema([(name, kind) for name, kind in _COLUMNS.items() if name in names])


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Add the columns of a schema that a table lacks; their values are null."""
    return pa.concat_tables([schema.empty_table(), table], promote_options="permissive")


@contextlib.contextmanager
def open_csv(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Write a CSV table by table: UTF-8, commas, decimal points, ``\\n``, a header.

    Numbers have six significant digits and no thousands separators; truth is TRUE or FALSE, as in
    spreadsheets and R; what is missing is empty.

    Yields:
        the function that takes the next table. The file is there when the block ends well.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(as_cell, schema.names))

        def add(table: pa.Table) -> None:
            table = _conform(table, schema)
            columns = [
                [_text(value, name in _EXACT) for value in table[name].to_pylist()]
                for name in schema.names
            ]
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
            waiting.append(_conform(table, schema))
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


def _text(value: Any, exact: bool) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if exact or not isinstance(value, float):
        return as_cell(value)
    # Spreadsheets show exponents; large numbers keep all their digits instead.
    return f"{value:.{_DIGITS}g}" if abs(value) < 10**_DIGITS else f"{value:.0f}"


@dataclasses.dataclass(frozen=True)
class Part:
    """A finished image, as it is kept until the files of the whole run are written.

    Attributes:
        image: :attr:`ImageResult.provenance`, and what else run.json says of it.
        table: N rows, the columns of ``particles.csv``.
        counts: N compressed COCO run lengths of the whole frame.
    """

    image: dict[str, Any]
    table: pa.Table
    counts: list[str]


def write_part(result: ImageResult, path: Path, more: Mapping[str, Any] | None = None) -> None:
    """Write a part as a Parquet file, whole or not at all; ``more`` are plain values of ``image``.

    Raises:
        UserError: the file cannot be written.
    """
    particles, image = result.particles, {**result.provenance, **(more or {})}
    height, width = particles.image_size
    # Mask by mask: those of a whole filter are unpacked when they are asked for.
    lengths = [
        rle.counts_of_runs(*rle.runs_of_crop(mask, offset, height), height * width)
        for mask, offset in zip(particles.masks, particles.offsets.tolist(), strict=True)
    ]
    counts = [text.decode("ascii") for text in rle.encode_counts_batch(lengths)]
    table = to_arrow(result.table).append_column(_RLE, pa.array(counts, pa.string()))
    table = table.replace_schema_metadata({_KEY: json.dumps(image).encode()})
    with atomic_write(path, "wb") as file:
        pq.write_table(table, file, compression=_CODEC)


def read_part(path: Path) -> Part:
    """Read a part.

    Raises:
        UserError: it is missing or damaged.
    """
    with _reading(path):
        table = pq.read_table(path, partitioning=None)
        image, counts = json.loads(table.schema.metadata[_KEY]), table[_RLE].to_pylist()
    return Part(image, table.drop_columns([_RLE]).replace_schema_metadata(None), counts)


def read_head(path: Path) -> tuple[dict[str, Any], pa.Schema]:
    """Read what is known of a part's image and the columns of its table, without its rows.

    Raises:
        UserError: as of :func:`read_part`.
    """
    with _reading(path):
        schema = pq.read_schema(path)
        image, place = json.loads(schema.metadata[_KEY]), schema.names.index(_RLE)
    return image, schema.remove(place).remove_metadata()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}, the result of one image, cannot be read ({reason}); delete it and run the "
            "command again with --resume.",
            code="run_invalid",
        ) from error


def write_labels(result: ImageResult, path: Path) -> dict[str, int]:
    """Write the particles of one image as an int32 TIFF: 0 is background, else the ``particle``.

    Where particles overlap, the smaller one is on top (of two equal ones the later). Counted are
    ``label_pixels_hidden``, pixels of particles that lie under another one, and
    ``label_particles_hidden``, particles that lie wholly under others and are not in the file.

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
    big = 4 * height * width > _CLASSIC_BYTES
    hidden: Counter[int] = Counter()
    known = {what: value for what, value in result.provenance.items() if value is not None}
    resolution = {}
    if result.calibration is not None:
        per_cm = _UM_PER_CM / result.calibration.um_per_px
        resolution = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
    with (
        atomic_write(path, "wb") as file,
        # Named, because tifffile takes the name of an unnamed file for text.
        tifffile.FileHandle(file, name=path.name) as handle,
        tifffile.TiffWriter(handle, bigtiff=big, byteorder="<") as tiff,
    ):
        tiff.write(
            _strips(particles, hidden),
            shape=(height, width),
            dtype=np.int32,
            photometric="minisblack",
            compression="adobe_deflate",
            software=f"microplastics {__version__}",
            description=json.dumps({**known, "value": "particle"}),
            metadata=None,
            rowsperstrip=_STRIP_ROWS,
            **resolution,
        )
    return _counts(particles, hidden)


def _strips(particles: Particles, hidden: Counter[int]) -> Iterator[bytes]:
    """Paint strip by strip, and compress each."""
    height, width = particles.image_size
    areas = np.array([np.count_nonzero(mask) for mask in particles.masks], dtype=np.int64)
    reached: dict[int, list[int]] = defaultdict(list)  # particles by strip, the largest first
    for index in np.argsort(-areas, kind="stable").tolist():
        top = particles.offsets[index][1]
        bottom = top + len(particles.masks[index]) - 1
        for strip in range(top // _STRIP_ROWS, bottom // _STRIP_ROWS + 1):
            reached[strip].append(index)
    empty: dict[int, bytes] = {}
    for strip, top in enumerate(range(0, height, _STRIP_ROWS)):
        rows = min(_STRIP_ROWS, height - top)
        if strip in reached:
            labels = np.zeros((rows, width), dtype="<i4")
            for index in reached[strip]:
                _paint(labels, top, particles, index, hidden)
            yield zlib.compress(labels, _COMPRESSION_LEVEL)
        else:
            if rows not in empty:
                empty[rows] = zlib.compress(bytes(4 * rows * width), 9)
            yield empty[rows]


def _paint(labels: np.ndarray, top: int, particles: Particles, index: int, hidden: Counter[int]):
    (x, y), mask = particles.offsets[index].tolist(), particles.masks[index]
    start, end = max(y, top), min(y + len(mask), top + len(labels))
    part = mask[start - y : end - y]
    target = labels[start - top : end - top, x : x + mask.shape[1]]
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
