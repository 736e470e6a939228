"""What a folder of a rendered data set holds: its manifest, and the journal of a run."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from microplastics.data.synthetic.blanks import Blanks
from microplastics.data.synthetic.presets import find_preset
from microplastics.errors import UserError
from microplastics.files import write_error

# Goes up whenever the same parameters would give another picture.
RENDERER_VERSION = 2
MANIFEST = "synthetic.json"
JOURNAL = "synthetic.journal"
MIN_SIZE, MAX_SIZE = 64, 8192
_MIN_UM_PER_PX, _MAX_UM_PER_PX = 1e-6, 1e6


@dataclasses.dataclass(frozen=True)
class Rendered:
    """One image that is on the disk.

    Attributes:
        split: its split.
        index: its number in the split, from 0.
        length: bytes of its file.
        record: its COCO image entry without ``id``.
        annotations: its COCO annotations without ``id`` and ``image_id``.
    """

    split: str
    index: int
    length: int
    record: dict[str, Any]
    annotations: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a data set is rendered from.

    Attributes:
        counts: images per split.
        size: side of the images in px.
        um_per_px: micrometres per pixel.
        seed: 0 or more.
        preset: name of one of :data:`.presets.PRESETS`.
        blanks: photographs that are the ground, or None.
    """

    counts: dict[str, int]
    size: int
    um_per_px: float
    seed: int
    preset: str
    blanks: Blanks | None

    def check(self) -> None:
        """Raise UserError for what cannot be rendered."""
        for split, count in self.counts.items():
            if not re.fullmatch(r"[A-Za-z0-9_]+", split):
                raise UserError(f"'{split}' cannot name a split: use letters, digits and '_'.")
            if count < 0:
                raise UserError(f"--{split} is {count}: give the number of images, 0 or more.")
        if not sum(self.counts.values()):
            raise UserError("There is nothing to render: give at least one split an image.")
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise UserError(
                f"--size is {self.size}: give a side between {MIN_SIZE} and {MAX_SIZE} px."
            )
        # Written so that NaN fails it too.
        if not _MIN_UM_PER_PX <= self.um_per_px <= _MAX_UM_PER_PX:
            raise UserError(
                f"--um-per-px is {self.um_per_px:g}: give micrometres per pixel between "
                f"{_MIN_UM_PER_PX:g} and {_MAX_UM_PER_PX:g}."
            )
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}: give 0 or more.")
        find_preset(self.preset)

    def manifest(self) -> dict[str, Any]:
        """What the data set's bytes depend on, as JSON."""
        blanks = self.blanks
        return {
            "renderer_version": RENDERER_VERSION,
            "counts": self.counts,
            "size": self.size,
            "um_per_px": self.um_per_px,
            "seed": self.seed,
            "preset": self.preset,
            "backgrounds": blanks and {"images": len(blanks.files), "sha256": blanks.sha256},
        }


def read_manifest(root: Path) -> dict[str, Any] | None:
    """Read the manifest of a data set; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = root / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete it or choose another --output."
        ) from error
    counts = data.get("counts") if isinstance(data, dict) else None
    whole = isinstance(counts, dict) and all(isinstance(n, int) for n in counts.values())
    if not whole or not isinstance(data.get("files", {}), dict):
        raise UserError(f"{path} is not a manifest: delete it or choose another --output.")
    return data


def is_complete(root: Path, settings: Settings) -> bool:
    """Whether the folder holds this data set, every file with the size that was written."""
    manifest = read_manifest(root)
    if manifest is None or not manifest.get("complete"):
        return False
    if any(manifest.get(name) != value for name, value in settings.manifest().items()):
        return False
    with contextlib.suppress(OSError):
        files = manifest.get("files", {})
        return all((root / name).stat().st_size == length for name, length in files.items())
    return False


def claim(root: Path, settings: Settings) -> None:
    """Make the folders; refuse to overwrite what another command or other settings wrote."""
    manifest, ours = read_manifest(root), settings.manifest()
    if manifest is not None:
        counts = manifest.pop("counts")
        other = [
            f"{name} {manifest.get(name)}"
            for name, value in ours.items()
            if name != "counts" and manifest.get(name) != value
        ]
        other += [f"{n} {s} images" for s, n in counts.items() if n > settings.counts.get(s, 0)]
        if other:
            raise UserError(
                f"{root} holds another rendering ({', '.join(other)}): "
                "delete it or choose another --output."
            )
    for split in settings.counts:
        folder, json_file = root / split, root / "annotations" / f"instances_{split}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if manifest is None and (any(folder.iterdir()) or json_file.exists()):
                raise UserError(
                    f"{root} holds data of split '{split}' that this command did not write: "
                    "choose another --output."
                )
            # What a killed run left half written.
            for leftover in folder.glob(f".{split}_*.jpg.*"):
                leftover.unlink()
        except OSError as error:
            raise write_error(folder, error) from error
    if manifest is None:
        # Nobody knows which settings it belongs to.
        Journal(root).discard()


class Journal:
    """The images of a run as they are written, one line of JSON each, for a run that goes on.

    An image's file is whole on the disk before its line is written, and a line counts only where
    it is whole and the file has the length that it says.
    """

    def __init__(self, root: Path):
        self._root, self._path = root, root / JOURNAL
        self._file: IO[bytes] | None = None

    def resume(self, settings: Settings) -> dict[tuple[str, int], Rendered]:
        """Read what an earlier run of the same settings finished, and cut off a damaged end.

        Returns:
            By (split, index). What follows a damaged line is not used.
        """
        kept, whole = {}, 0
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            for line in file:
                rendered = _parse(line)
                if rendered is None:
                    break
                whole += len(line)
                if self._has(rendered) and rendered.index < settings.counts.get(rendered.split, 0):
                    kept[rendered.split, rendered.index] = rendered
            with open(self._path, "r+b") as writable:
                writable.truncate(whole)
        return kept

    @contextlib.contextmanager
    def open(self) -> Iterator["Journal"]:
        """Append in a ``with`` block; its file is closed at the end, and stays."""
        try:
            self._file = open(self._path, "ab")
        except OSError as error:
            raise write_error(self._path, error) from error
        with self._file:
            yield self

    def add(self, rendered: Rendered) -> None:
        """Note an image that is on the disk."""
        line = json.dumps(dataclasses.asdict(rendered)).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise write_error(self._path, error) from error

    def discard(self) -> None:
        """Delete the journal, if there is one."""
        self._path.unlink(missing_ok=True)

    def _has(self, rendered: Rendered) -> bool:
        try:
            path = image_path(self._root, rendered.split, rendered.index)
            return path.stat().st_size == rendered.length
        except OSError:
            return False


def image_path(root: Path, split: str, index: int) -> Path:
    """Where an image lies."""
    return root / split / f"{split}_{index:06d}.jpg"


def _parse(line: bytes) -> Rendered | None:
    """A line of the journal; None where it is damaged."""
    try:
        rendered = Rendered(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    kinds = {"split": str, "index": int, "length": int, "record": dict, "annotations": list}
    sound = all(type(getattr(rendered, name)) is kind for name, kind in kinds.items())
    return rendered if sound and line.endswith(b"\n") else None
