"""What one finished image leaves behind until the files of the whole run are written.

A part is a Parquet file with the image's table, the masks as run lengths, and what is known of the
image. It is on the disk whole before the next image begins, so that a run can be stopped, go on,
and be put together by one process from the parts of many, without holding more than one of them.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from microplastics.structures import rle
from microplastics.structures.particles import Particles
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write
from microplastics.writers.base import ImageResult
from microplastics.writers.tables import to_arrow

_RLE, _KEY, _VERSION = "rle counts", b"microplastics part", 1


@dataclasses.dataclass(frozen=True)
class Part:
    """What was read of one part.

    Attributes:
        image: ``name``, ``width`` and ``height`` in px, ``um_per_px`` and ``calibration_source``
            (None without a calibration), ``class_names``.
        table: N rows, the columns of ``particles.csv``.
        counts: N compressed COCO run lengths of the whole frame.
    """

    image: dict[str, Any]
    table: pa.Table
    counts: list[str]


def write_part(result: ImageResult, path: Path) -> None:
    """Write what the run's files need of one image, whole or not at all.

    Args:
        result: of the image.
        path: of the part.

    Raises:
        UserError: the file cannot be written.
    """
    height, width = result.particles.image_size
    image = {
        "version": _VERSION,
        "name": result.particles.image,
        "width": width,
        "height": height,
        "um_per_px": result.calibration.um_per_px if result.calibration else None,
        "calibration_source": result.calibration.source if result.calibration else None,
        "class_names": list(result.class_names),
    }
    table = to_arrow(result.table)
    table = table.append_column(_RLE, pa.array(encode_masks(result.particles), pa.string()))
    table = table.replace_schema_metadata({_KEY: json.dumps(image).encode()})
    with atomic_write(path, "wb") as file:
        pq.write_table(table, file, compression="zstd")


def read_part(path: Path) -> Part:
    """Read a part.

    Raises:
        UserError: it is missing, damaged or of another version of the package.
    """
    try:
        table = pq.read_table(path, partitioning=None)
        image = _image(table.schema)
        counts = table[_RLE].to_pylist()
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    return Part(image, table.drop_columns([_RLE]).replace_schema_metadata(None), counts)


def read_schema(path: Path) -> tuple[dict[str, Any], pa.Schema]:
    """Read what is known of a part's image and the columns of its table, without its rows.

    Raises:
        UserError: it is missing, damaged or of another version of the package.
    """
    try:
        schema = pq.read_schema(path)
        image, place = _image(schema), schema.names.index(_RLE)
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    return image, schema.remove(place).remove_metadata()


def encode_masks(particles: Particles) -> list[str]:
    """Encode masks as compressed COCO run lengths of the whole frame, which is never made."""
    height, width = particles.image_size
    masks: Iterable[tuple[np.ndarray, list[int]]] = zip(
        particles.masks, particles.offsets.tolist(), strict=True
    )
    counts = [
        rle.counts_of_runs(*rle.runs_of_crop(mask, offset, height), height * width)
        for mask, offset in masks
    ]
    return [text.decode("ascii") for text in rle.encode_counts_batch(counts)]


def _image(schema: pa.Schema) -> dict[str, Any]:
    image = json.loads((schema.metadata or {})[_KEY])
    if image["version"] != _VERSION:
        raise ValueError(f"its version is {image['version']}")
    return image


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"{path}, the result of one image, cannot be read ({reason}); delete it and run the "
        "command again with --resume.",
        code="run_invalid",
    )
