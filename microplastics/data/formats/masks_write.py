"""Label images out: one 32-bit TIFF a picture, and the class of every number in ``classes.csv``."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pycocotools.mask as mask_util
import tifffile
from tqdm import tqdm

from microplastics.data.coco_findings import show
from microplastics.data.coco_load import SegmentationError, measure
from microplastics.data.formats.file_names import safe_name
from microplastics.data.formats.notes import Notes
from microplastics.data.formats.records import ImageRecord, Instance, Source
from microplastics.data.images import MAX_PIXELS
from microplastics.errors import UserError
from microplastics.files import atomic_write
from microplastics.structures import rle as runs

_COMPRESSION = "zlib"  # which every TIFF reader has, unlike zstd


def write_dataset(sources: dict[str, Source], output: Path, notes: Notes) -> list[Path]:
    """Write one label image a picture: ``output/SPLIT/masks/NAME.tif``, int32, zlib.

    Particles are numbered from 1 in their order. ``classes.csv`` beside ``masks`` has ``image``,
    ``id``, ``class`` and ``iscrowd`` of each, ``classes.txt`` the classes in their order. Where
    particles overlap the later one has the pixels; a particle that has none left has no row.

    Args:
        sources: split -> images.
        output: folder; the image of ``file_name`` belongs at ``output/SPLIT/images/file_name``.
        notes: takes ``overlap_lost``, ``instance_lost`` and ``extra_lost``.

    Returns:
        the files written.

    Raises:
        UserError: a file cannot be written, a file name leaves the folder, or two images would
            share a label image.
    """
    written = []
    for split, source in sources.items():
        folder, taken = Path(output, split), {}
        with atomic_write(folder / "classes.csv") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("image", "id", "class", "iscrowd"))
            progress = tqdm(
                source.records(), split, source.num_images, unit="image", disable=None, leave=False
            )
            for record in progress:
                name = safe_name(record.file_name, f"An image of {split}")
                key = f"{PurePosixPath(name).with_suffix('')}.tif"
                other = taken.setdefault(key.lower(), name)
                if other != name:
                    raise UserError(
                        f"{name} and {other} of {split} would share the label image {key}; rename "
                        "one of them."
                    )
                path = folder / "masks" / key
                labels, kept = _label_image(record, notes)
                content = io.BytesIO()
                tifffile.imwrite(content, labels, compression=_COMPRESSION, metadata=None)
                with atomic_write(path, "wb") as image:
                    image.write(content.getbuffer())
                table.writerows((name, *row) for row in kept)
                written.append(path)
        with atomic_write(folder / "classes.txt") as file:
            file.writelines(f"{category}\n" for category in source.classes)
        written += [folder / "classes.csv", folder / "classes.txt"]
    return written


def _label_image(
    record: ImageRecord, notes: Notes
) -> tuple[np.ndarray, list[tuple[int, str, int]]]:
    """Paint the particles of an image, and give id, class and iscrowd of those that show."""
    height, width = record.height, record.width
    if height * width > MAX_PIXELS:
        raise UserError(
            f"{record.file_name} is {width} x {height} px, above the limit of {MAX_PIXELS} pixels "
            "of a label image; cut it into smaller ones."
        )
    labels = np.zeros((height, width), dtype=np.int32)
    areas = [0]
    for number, (instance, crop, x0, y0) in enumerate(_crops(record, notes), 1):
        labels[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]][crop] = number
        areas.append(int(np.count_nonzero(crop)))
        for key in instance.extra:
            notes.add("extra_lost", instance.where, show(key))
    for key in record.extra:
        notes.add("extra_lost", record.file_name, show(key))
    rows = []
    shown = np.bincount(labels.reshape(-1), minlength=len(areas)).tolist()
    for number, instance in enumerate(record.instances, 1):
        if shown[number] < areas[number]:
            detail = f"{areas[number] - shown[number]} of {areas[number]} px"
            notes.add("overlap_lost", instance.where, detail)
        if shown[number]:
            rows.append((number, instance.category, instance.iscrowd))
        elif areas[number]:
            notes.add("instance_lost", instance.where, "wholly under later ones")
    return labels, rows


def _crops(record: ImageRecord, notes: Notes) -> Iterator[tuple[Instance, np.ndarray, int, int]]:
    """The pixels of each instance in its own box; none, and a note, where it has no pixel."""
    height, width = record.height, record.width
    texts = [_rle_text(instance, height, width, notes) for instance in record.instances]
    counts = runs.decode_counts_batch(texts)
    for instance, lengths in zip(record.instances, counts, strict=True):
        yield instance, *runs.crop_of_runs(*runs.runs_of_counts(lengths), height)


def _rle_text(instance: Instance, height: int, width: int, notes: Notes) -> bytes | str:
    """Compressed run lengths of an instance; empty, and a note, where it cannot be painted."""
    try:
        measured = measure(instance.segmentation, height, width)
    except SegmentationError as error:
        notes.add("instance_lost", instance.where, error.detail or error.code)
        return b""
    if measured.subpixel:
        notes.add("instance_lost", instance.where, "no pixel")
    mask = measured.segmentation
    if isinstance(mask, list):
        rles = mask_util.frPyObjects(mask, height, width)
        mask = rles[0] if len(rles) == 1 else mask_util.merge(rles)
    return mask["counts"]
