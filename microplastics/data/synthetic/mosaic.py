"""Whole filters, rendered in pieces into a tiled TIFF, with COCO annotations beside it."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import tifffile
from tqdm import tqdm

from microplastics.data.pool import available_processors, map_in_processes
from microplastics.data.synthetic.mosaic_plan import (
    Laid,
    MosaicSettings,
    ground_of,
    plan_particles,
)
from microplastics.data.synthetic.mosaic_render import TILE, meets, render_window
from microplastics.data.synthetic.presets import find_preset
from microplastics.errors import UserError
from microplastics.files import atomic_write, write_json

# Side of the pieces in px: some 200 MB are in use while one is drawn.
CHUNK = 1024
# A pyramid's levels are this many times smaller each; the least has at least so many px a side.
_SHRINK, _LEAST_LEVEL = 4, 512
# Starting a process costs a few seconds: fewer pieces than this are rendered without.
_CHUNKS_WORTH_A_PROCESS = 16
_JPEG_QUALITY = 92


def render_mosaic(
    output: str | os.PathLike,
    size: int = 10_000,
    um_per_px: float = 2.0,
    seed: int = 0,
    particles: int | None = None,
    preset: str = "default",
    filter_name: str | None = None,
    jpeg_quality: int | None = _JPEG_QUALITY,
    workers: int | None = None,
    chunk: int = CHUNK,
    progress: bool = True,
) -> Path:
    """Render a stitched photograph of a whole filter, with annotations that are exact.

    The TIFF (BigTIFF from 4 GB of pixels on) has tiles of 512 px, the scale in its resolution
    tags, and smaller copies as SubIFDs. Neither ``workers`` nor ``chunk`` changes the picture (but
    for a rounding to the next grey value here and there with another ``chunk``); no process ever
    holds more than a strip of it and a copy of a sixteenth. Both files take their names when they
    are whole; where they are there already they are left as they are.

    Args:
        output: path of the TIFF; the annotations lie beside it, with the suffix ``.json``.
        size: side of the picture in px, 1,024 to 40,000.
        um_per_px: micrometres per pixel.
        seed: 0 or more.
        particles: how many to lay; None takes 15 on a megapixel for ``preset`` ``default``, and
            for the others as many more or fewer as their pictures hold.
        preset: name of one of :data:`microplastics.data.synthetic.presets.PRESETS`.
        filter_name: one of the preset's filters; None draws one.
        jpeg_quality: of the tiles, 1 to 100; None compresses without loss (deflate).
        workers: processes; None takes the processors there are, or none for a small picture.
        chunk: side in px of the pieces that are rendered at a time, a multiple of 512.
        progress: whether to show progress bars on stderr, where that is a terminal.

    Returns:
        Path of the annotation file.

    Raises:
        UserError: a parameter makes no sense, the files cannot be written, or others are there.
    """
    settings = MosaicSettings(
        size, float(um_per_px), seed, particles, preset, filter_name, jpeg_quality
    )
    image = Path(output)
    _check_arguments(image, settings, workers, chunk)
    annotations = image.with_suffix(".json")
    if _is_complete(image, annotations, settings):
        return annotations
    starts = [(x, y) for y in range(0, size, chunk) for x in range(0, size, chunk)]
    if workers is None:
        workers = available_processors() if len(starts) >= _CHUNKS_WORTH_A_PROCESS else 1
    laid, entries = plan_particles(settings, workers, progress)
    pieces = _render_pieces(settings, laid, starts, chunk, workers, progress)
    with atomic_write(image, "wb") as file:
        _write_tiff(file, settings, _strips(pieces, size, chunk))
        # Renamed first: a JSON without its image is done again, an image without JSON is foreign.
        coco = _coco(settings, image.name, file.seek(0, os.SEEK_END), entries)
        write_json(annotations, coco)
    return annotations


def _check_arguments(
    image: Path, settings: MosaicSettings, workers: int | None, chunk: int
) -> None:
    settings.check()
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: give the number of processes, 1 or more.")
    if chunk < TILE or chunk % TILE:
        raise ValueError(f"chunk is {chunk}: a multiple of {TILE} is needed")
    if image.suffix.lower() not in (".tif", ".tiff"):
        raise UserError(f"--output {image} is no TIFF: give a name that ends in .tif.")


def _is_complete(image: Path, annotations: Path, settings: MosaicSettings) -> bool:
    """Whether both files are there; refuse to overwrite what another command has written."""
    if not annotations.exists() and not image.exists():
        return False
    info = None
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
        info = json.loads(annotations.read_text(encoding="utf-8")).get("info")
    if not isinstance(info, dict) or any(
        info.get(name, info) != value for name, value in settings.manifest().items()
    ):
        other = image if image.exists() else annotations
        raise UserError(
            f"{other} is there and is not what would be rendered: delete it with its JSON, or "
            "choose another --output."
        )
    return image.exists() and image.stat().st_size == info.get("bytes")


def _render_pieces(
    settings: MosaicSettings,
    laid: Sequence[Laid],
    starts: Sequence[tuple[int, int]],
    chunk: int,
    workers: int,
    progress: bool,
) -> Iterable[np.ndarray]:
    """Render the pieces whose upper left corners are ``starts``, one after another."""
    tasks = [
        (settings, x, y, chunk, [one for one in laid if meets(one, x, y, chunk)]) for x, y in starts
    ]
    return tqdm(
        map_in_processes(_render, tasks, min(workers, len(tasks)), chunk=1),
        total=len(tasks),
        desc="Rendering",
        unit="piece",
        disable=None if progress else True,
    )


def _render(task: tuple[MosaicSettings, int, int, int, Sequence[Laid]]) -> np.ndarray:
    return render_window(*task)


def _strips(pieces: Iterable[np.ndarray], size: int, chunk: int) -> Iterator[np.ndarray]:
    """Join pieces to strips over the whole width."""
    row = []
    for piece in pieces:
        row.append(piece)
        if len(row) == -(-size // chunk):
            strip, row = np.concatenate(row, axis=1), []
            yield strip


def _write_tiff(file: IO[bytes], settings: MosaicSettings, strips: Iterable[np.ndarray]) -> None:
    size, quality = settings.size, settings.jpeg_quality
    levels = _empty_levels(size)
    options: dict[str, Any] = {"photometric": "rgb", "tile": (TILE, TILE)}
    if quality is None:
        options |= {"compression": "adobe_deflate", "predictor": True}
    else:
        options |= {"compression": "jpeg", "compressionargs": {"level": quality}}
    per_cm = 1e4 / settings.um_per_px
    # The name of a temporary file is a number, which tifffile does not take.
    handle = tifffile.FileHandle(file, name="filter.tif", size=0)
    with tifffile.TiffWriter(handle, bigtiff=3 * size**2 >= 2**32) as tiff:
        tiff.write(
            _tiles(strips, levels),
            shape=(size, size, 3),
            dtype=np.uint8,
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
            software="microplastics",
            description="Rendered photograph of a whole filter (no real sample)",
            metadata=None,
            subifds=len(levels),
            **options,
        )
        for number, level in enumerate(levels, start=1):
            fewer = per_cm / _SHRINK**number
            resolution = {"resolution": (fewer, fewer), "resolutionunit": "CENTIMETER"}
            tiff.write(level, subfiletype=1, metadata=None, **resolution, **options)


def _tiles(strips: Iterable[np.ndarray], levels: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Cut RGB tiles, row by row, out of BGR strips, and fill the pyramid on the way."""
    top = 0
    for strip in strips:
        strip = strip[..., ::-1]
        _shrink_into(levels, strip, top)
        top += len(strip)
        for y in range(0, len(strip), TILE):
            for x in range(0, strip.shape[1], TILE):
                tile = strip[y : y + TILE, x : x + TILE]
                missing = [(0, TILE - side) for side in tile.shape[:2]]
                yield np.pad(tile, [*missing, (0, 0)], "edge")


def _empty_levels(size: int) -> list[np.ndarray]:
    levels, side = [], size // _SHRINK
    while side >= _LEAST_LEVEL:
        levels.append(np.zeros((side, side, 3), np.uint8))
        side //= _SHRINK
    return levels


def _shrink_into(levels: list[np.ndarray], strip: np.ndarray, top: int) -> None:
    """Put a strip that begins at row ``top`` into each level of the pyramid."""
    for level in levels:
        rows, columns = (side // _SHRINK for side in strip.shape[:2])
        if not rows:
            return
        whole = np.ascontiguousarray(strip[: rows * _SHRINK, : columns * _SHRINK])
        strip = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
        top //= _SHRINK
        part = level[top : top + rows]
        part[:] = strip[: len(part), : level.shape[1]]


def _coco(
    settings: MosaicSettings, name: str, length: int, entries: list[dict[str, Any]]
) -> dict[str, Any]:
    ground = ground_of(settings)
    membrane = ground.membrane
    image = {
        "id": 1,
        "file_name": name,
        "width": settings.size,
        "height": settings.size,
        "um_per_px": settings.um_per_px,
        "filter": ground.filter,
        "membrane": {
            "center": [round(v, 2) for v in membrane.center],
            "radius": round(membrane.radius, 2),
            "deposit_radius": round(membrane.deposit_radius, 2),
        },
    }
    preset = find_preset(settings.preset)
    info = {
        "description": "Rendered photograph of a whole filter with microplastics (no real sample)",
        **settings.manifest(),
        "particles_wanted": settings.count(membrane),
        "bytes": length,
    }
    annotations = [{"id": i, "image_id": 1, **entry} for i, entry in enumerate(entries, start=1)]
    return {
        "info": info,
        "images": [image],
        "annotations": annotations,
        "categories": preset.categories,
    }
