"""The layout of the Data Science Bowl 2018: a folder an image, with one mask file a particle.

``ID/images/ID.png`` and ``ID/masks/*.png``, whose names say nothing.
"""

import functools
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from microplastics.data.formats import layout
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.masks import (
    DEFAULT_CLASS,
    check_size,
    instance_rles,
    read_label_image,
)
from microplastics.data.images import image_header
from microplastics.utils.errors import UserError

_IMAGES, _MASKS = "images", "masks"
_SNIFFED_FOLDERS = 20


def detect(path: Path) -> bool:
    """Return whether a folder has folders with ``images`` and ``masks``, each of one image."""
    try:
        return path.is_dir() and bool(_roots(path))
    except UserError:  # two folders for one split
        return True
    except OSError:
        return False


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open the folder of the images' folders, or one with such splits (see ``base.Reader.read``).

    Each mask file is one particle, in however many parts; they have no class.
    """
    roots = _roots(path) if path.is_dir() else {}
    if not roots:
        raise UserError(
            f"{path} has no folder with {_IMAGES} and {_MASKS} for each image; give the folder of "
            "these.",
            code="input_empty",
        )
    if options.images is not None:
        raise UserError(
            f"--images does not fit to {path}, where images lie beside their masks; leave it out.",
            code="option_conflict",
        )
    sources = {}
    for split, root in roots.items():
        # Stage 1's test set, of which the masks were published as a table, has images only.
        folders = [folder for folder in _children(root) if (folder / _IMAGES).is_dir()]
        for folder in folders:
            if not (folder / _MASKS).is_dir():
                notes.add("image_unannotated", folder.relative_to(path).as_posix())
        folders = [folder for folder in folders if (folder / _MASKS).is_dir()]
        records = functools.partial(_records, root, folders, options)
        sources[split] = Source.noting(root, [DEFAULT_CLASS], records, notes, len(folders))
    return sources


def _roots(path: Path) -> dict[str, Path]:
    """Return split -> folder of the images' folders; the splits may be called stage1_train."""
    if _is_root(path):
        return {"all": path}
    found: dict[str, Path] = {}
    for folder in filter(_is_root, _children(path)):
        split = layout.split_of(folder.name)
        if split in found:
            raise UserError(
                f"{found[split]} and {folder} are both the split {split}; give one of them as "
                "--input.",
                code="name_clash",
            )
        found[split] = folder
    return layout.in_order(found)


def _is_root(path: Path) -> bool:
    """Return whether one of the first sub-folders has masks and one image."""
    for folder in islice(_children(path), _SNIFFED_FOLDERS):
        is_split = folder.name.lower() in layout.SPLITS  # has all the images and all the masks
        if not is_split and (folder / _IMAGES).is_dir() and (folder / _MASKS).is_dir():
            return len(list(islice(layout.list_files(folder / _IMAGES), 2))) == 1
    return False


def _children(path: Path) -> list[Path]:
    return [
        child for child in sorted(path.iterdir()) if child.is_dir() and child.name[:1] not in "._"
    ]


def _records(
    root: Path, folders: list[Path], options: ReadOptions, notes: Notes
) -> Iterator[ImageRecord]:
    for folder in folders:
        where = folder.name
        with layout.skipping(where, options, notes):
            names = list(layout.list_files(folder / _IMAGES))
            if len(names) != 1:
                raise UserError(
                    f"{folder / _IMAGES} has {len(names)} images; expected one.",
                    code="image_missing",
                )
            image = folder / _IMAGES / names[0]
            size, rotated = image_header(image)
            record = ImageRecord(image.relative_to(root).as_posix(), *size)
            with layout.skipping(where, options, notes, "label_broken"):
                for name in layout.list_files(folder / _MASKS):
                    place, path = f"{where}/{name}", folder / _MASKS / name
                    labels, _ = read_label_image(path)
                    check_size(labels, path, image, record.size, rotated)
                    values = np.unique(labels[labels > 0])
                    if len(values) > 1:
                        raise UserError(
                            f"{path} has the values {values[:4].tolist()}; expected one particle a "
                            "file, of one value.",
                            code="image_invalid",
                        )
                    if not len(values):
                        notes.add("shape_without_area", place, "no pixel")
                    rles = instance_rles(labels)[1]
                    record.instances += [Instance(DEFAULT_CLASS, rle, place) for rle in rles]
                yield record
