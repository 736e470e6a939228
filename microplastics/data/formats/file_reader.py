"""What the readers of JSON files have in common: LabelMe, VIA and Label Studio."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from microplastics.data.formats import files
from microplastics.data.formats.notes import Notes
from microplastics.data.formats.records import ImageRecord, ReadOptions, Source


class FileReader(ABC):
    """One split: its annotation files and where their images are.

    Attributes:
        root: folder of the annotation files.
        finder: finds the images that they name.
        paths: the annotation files.
        options: how to read.
    """

    def __init__(self, path: Path, split: str, options: ReadOptions):
        """
        Args:
            path: a file, or a folder of them.
            split: name of the split.
            options: how to read.
        """
        self.root = path if path.is_dir() else path.parent
        self.finder = files.ImageFinder(self.root, split, options)
        self.paths = files.json_files(path)
        self.options = options
        self._whole = path.is_dir()

    @abstractmethod
    def survey(self) -> tuple[list[str], int | None]:
        """Return the classes that occur, and how many images."""

    @abstractmethod
    def records(self, seen: dict[str, str], notes: Notes) -> Iterator[ImageRecord]:
        """Read one file after the other.

        Args:
            seen: takes the names of the images that have annotations.
            notes: takes what is changed or left out.
        """

    def read(self, notes: Notes) -> Iterator[ImageRecord]:
        """Read all files, then note the images that none of them names."""
        seen: dict[str, str] = {}
        yield from self.records(seen, notes)
        if self._whole:
            files.note_unannotated(self.finder.root, seen, notes)

    def source(self, notes: Notes) -> Source:
        """Return the split as a stream whose notes are made in its first pass alone."""
        classes, count = self.survey()
        return files.make_source(self.finder.root, classes, self.read, notes, count)


def open_splits(
    reader: type[FileReader], path: Path, options: ReadOptions, notes: Notes
) -> dict[str, Source]:
    """Open a file, or a folder with or without sub-folders train, val and test.

    Args:
        reader: of the format.
        path: file or folder.
        options: how to read.
        notes: takes what is changed or left out while the records are read.

    Returns:
        split -> source; ``"all"`` where there are no splits.

    Raises:
        UserError: nothing there, or a file that cannot be used.
    """
    splits = files.split_folders(Path(path))
    return {split: reader(folder, split, options).source(notes) for split, folder in splits.items()}
