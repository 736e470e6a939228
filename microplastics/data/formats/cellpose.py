"""``IMAGE_seg.npy`` of Cellpose: a pickled table of which ``masks`` is a label image.

It is read without running what the pickle asks for (see ``utils.pickles``).
"""

import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from microplastics.data.formats import layout
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.masks import DEFAULT_CLASS, check_size, instance_rles
from microplastics.utils.errors import UserError
from microplastics.utils.pickles import Call, PickleError, array_of, read_pickle

_MARK = "_seg.npy"


def detect(path: Path) -> bool:
    """Return whether a file, or one below a folder, is called ``…_seg.npy``."""
    try:
        return path.name.endswith(_MARK) if path.is_file() else any(_files(path))
    except (UserError, OSError):
        return False


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open one ``…_seg.npy``, or a folder of them (see ``base.Reader.read``)."""
    return layout.read_splits(_Reader, path, options, notes)


def _files(path: Path) -> Iterator[str]:
    return (name for name in layout.list_files(path, _Reader.suffixes) if name.endswith(_MARK))


class _Reader(layout.FileReader):
    suffixes = frozenset((".npy",))

    def __init__(self, path: Path, split: str, options: ReadOptions):
        super().__init__(path, split, options)
        if self._whole:
            self._paths = [path / name for name in _files(path)]

    def load(self, path: Path) -> Any:
        """Return the masks, None if they are no array, and the name of the image in a file."""
        try:
            with (
                open(path, "rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m,
            ):
                table = _table(m)
                return array_of(table.get("masks")), table.get("filename")
        except Exception as error:  # a damaged head makes NumPy raise nearly anything
            raise UserError(
                f"{path} cannot be read as Cellpose's ({error}) and nothing in it was run; save it "
                "again with Cellpose, or export its masks as PNG or TIFF.",
                code="file_invalid",
            ) from error

    def records(self, data: Any, where: str) -> Iterator[ImageRecord]:
        with layout.skipping(where, self.options, self.notes):
            masks, named = data
            record = self.image(self._names(named, where), where)
            with layout.skipping(where, self.options, self.notes, "label_broken"):
                labels = _labels(masks, where)
                check_size(labels, self._root / where, self._images / record.file_name, record.size)
                try:
                    numbers, rles, _ = instance_rles(labels)
                except ValueError as error:
                    raise UserError(f"{where} {error}.", code="image_invalid") from error
                for number, rle in zip(numbers, rles, strict=True):
                    place = f"{where}, mask {number}"
                    record.instances.append(Instance(DEFAULT_CLASS, rle, place))
                yield record

    def _names(self, named: Any, where: str) -> list[str]:
        """Return the possible names of the image, which is called as the file is."""
        stem = PurePosixPath(where).name.removesuffix(_MARK)
        found = self.named(stem)
        named = re.split(r"[/\\]", named)[-1] if isinstance(named, str) else None
        if named in found or (named and not found and os.path.splitext(named)[0] == stem):
            return [named]
        if len(found) > 1:
            raise UserError(
                f"{where} fits to {found[0]} and {found[1]}; rename or move one of them.",
                code="name_clash",
            )
        return found or [stem]


def _table(file: mmap.mmap) -> dict[Any, Any]:
    """Read the only element, a dict, of an array of objects."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise PickleError(f"its version is {version}")
    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    if not read_header(file)[2].hasobject:
        raise PickleError("it has numbers, not a table with masks")
    data = read_pickle(file)
    state = data.state if isinstance(data, Call) else None
    elements = state[-1] if isinstance(state, tuple) and state else None
    if not isinstance(elements, list) or len(elements) != 1 or not isinstance(elements[0], dict):
        raise PickleError("it is not one table")
    return elements[0]


def _labels(labels: np.ndarray | None, where: str) -> np.ndarray:
    """Return the label image in an array, checked."""
    if labels is None or labels.dtype.kind not in "biu":
        words = "no masks of whole numbers"
    else:
        labels = labels[0] if labels.ndim == 3 and len(labels) == 1 else labels
        words = "" if labels.ndim == 2 and labels.size else f"masks of shape {labels.shape}"
        if not words and labels.min() < 0:
            words = "masks with negative numbers"
    if words:
        raise UserError(
            f"{where} has {words}; expected a label image of one photograph.",
            code="annotations_invalid",
        )
    return labels.astype(np.uint8) if labels.dtype.kind == "b" else labels
