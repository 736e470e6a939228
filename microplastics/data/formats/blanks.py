"""Blanks: photographs of filters without particles from a sample.

Laboratories take a procedural blank through every step of a sample's preparation. Training mixes
its images in; in evaluation every detection on them is a false positive.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from microplastics.data.coco import is_printable, show
from microplastics.data.formats import layout
from microplastics.data.formats.base import ImageRecord, Notes, ReadOptions, Source
from microplastics.data.formats.convert import PROJECT_CLASSES
from microplastics.utils.errors import UserError

_ANNOTATIONS = frozenset((".json", ".xml", ".txt"))


def detect(path: Path) -> bool:
    """Return False: every folder of photographs would fit."""
    return False


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a folder of images, each of which becomes a blank (see ``base.Reader.read``).

    ``options.classes`` are the classes of the data set that the blanks are used with.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; expected a folder of blanks.", code="input_empty")
    classes = list(PROJECT_CLASSES if options.classes is None else options.classes)
    for name in classes:
        if not is_printable(name) or classes.count(name) > 1:
            raise UserError(
                f"--classes has {show(name)} among {len(classes)} names; expected different class "
                "names, as A,B,C.",
                code="option_invalid",
            )
    sources = {}
    for split, folder in layout.input_splits(path, layout.IMAGE_SUFFIXES).items():
        names = list(layout.list_files(folder))
        if not names:
            raise UserError(
                f"{folder} has no image; put the photographs of blanks there.", code="input_empty"
            )
        records = functools.partial(_records, folder, names, options)
        sources[split] = Source.noting(folder, classes, records, notes, len(names))
    return sources


def _records(
    folder: Path, names: list[str], options: ReadOptions, notes: Notes
) -> Iterator[ImageRecord]:
    for name in layout.list_files(folder, _ANNOTATIONS):
        notes.add("annotation_ignored", name)
    for name in names:
        with layout.skipping(name, options, notes):
            yield ImageRecord(name, *layout.checked_size(folder / name))
