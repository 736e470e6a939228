"""Blanks: photographs of filters on which no particle from a sample can lie.

Laboratories take a procedural blank through every step of a sample's preparation. Its images are
a set without annotations: training mixes them in, and in evaluation whatever is found on them is
a false positive.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from microplastics.data.coco import show
from microplastics.data.formats import layout
from microplastics.data.formats.base import ImageRecord, Notes, ReadOptions, Source
from microplastics.data.formats.convert import PROJECT_CLASSES
from microplastics.data.formats.layout import is_printable, list_images
from microplastics.data.images import image_size
from microplastics.utils.errors import UserError

NAME = "blanks"
_ANNOTATIONS = frozenset((".json", ".xml", ".txt"))


def looks_like(path: Path) -> bool:
    """False: any folder of photographs would."""
    return False


def open_dataset(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a folder of images, each of which becomes a blank.

    Args:
        path: folder; its sub-folders train, val and test are splits.
        options: ``classes`` are those of the set that the blanks are used with.
        notes: takes images that are left out, and annotation files, which are not read.

    Returns:
        split -> source; ``"all"`` where there are no splits.

    Raises:
        UserError: it is no folder, holds no image or has images beside its splits, or the classes
            cannot be used.
    """
    path = Path(path)
    if options.images is not None:
        raise UserError("Blanks have no annotations; give the folder as --input, without --images.")
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the one with the images of blanks.")
    classes = _classes(options)
    folders = layout.split_folders(path)
    beside = [name for name in list_images(path) if "/" not in name]
    if "all" not in folders and beside:
        raise UserError(
            f"{path / beside[0]} lies beside the folders of the splits ({', '.join(folders)}); "
            "move it into one of them."
        )
    sources = {}
    for split, folder in folders.items():
        names = list(list_images(folder))
        if not names:
            raise UserError(f"{folder} holds no image; put the photographs of blanks there.")
        read = functools.partial(_records, folder, names, options)
        sources[split] = layout.make_source(folder, classes, read, notes, len(names))
    return sources


def _records(
    folder: Path, names: list[str], options: ReadOptions, notes: Notes
) -> Iterator[ImageRecord]:
    for path in layout.walk(folder):
        if path.suffix.lower() in _ANNOTATIONS:
            notes.add("annotation_ignored", path.relative_to(folder).as_posix())
    for name in names:
        try:
            size = image_size(folder / name, options.max_pixels)
        except UserError as error:
            layout.skip_or_raise(error, "image_broken", name, options, notes)
            continue
        yield ImageRecord(name, *size)


def _classes(options: ReadOptions) -> list[str]:
    if options.classes is None:
        return list(PROJECT_CLASSES)
    names = list(options.classes)
    for name in names:
        if not is_printable(name):
            raise UserError(f"--classes holds {show(name)}; write class names as A,B,C.")
    if not names or len(set(names)) < len(names):
        raise UserError(f"--classes {','.join(names)} has none or one twice; write each once.")
    return names
