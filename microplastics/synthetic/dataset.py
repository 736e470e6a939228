"""Rendered data sets on the disk: photographs, COCO annotations and a manifest."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import cv2
from tqdm import tqdm

from microplastics.synthetic.filters import Blanks, check_blanks, find_blanks
from microplastics.synthetic.scene import find_preset, render_image
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, write_error, write_json
from microplastics.utils.system import available_processors, map_in_processes

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
        check_parameters(self.size, (MIN_SIZE, MAX_SIZE), self.um_per_px, self.seed)
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
            "backgrounds": blanks and {"images": len(blanks.files), "bytes": blanks.bytes},
        }


def check_parameters(size: int, limits: tuple[int, int], um_per_px: float, seed: int) -> None:
    """Raise UserError for a size (within ``limits``, px), scale or seed that is out of range."""
    if not limits[0] <= size <= limits[1]:
        raise UserError(
            f"--size is {size}; expected {limits[0]} to {limits[1]} px.", code="option_invalid"
        )
    # Written so that NaN fails it too.
    if not _MIN_UM_PER_PX <= um_per_px <= _MAX_UM_PER_PX:
        raise UserError(
            f"--um-per-px is {um_per_px:g}; expected micrometres per pixel between "
            f"{_MIN_UM_PER_PX:g} and {_MAX_UM_PER_PX:g}.",
            code="option_invalid",
        )
    if seed < 0:
        raise UserError(f"--seed is {seed}; expected 0 or more.", code="option_invalid")


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


# Starting a process costs a few seconds: fewer pixels than this are rendered without.
_PIXELS_WORTH_A_PROCESS = 100 * 512 * 512


def render_dataset(
    output: str | os.PathLike,
    counts: dict[str, int],
    size: int = 512,
    um_per_px: float = 4.0,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    preset: str = "default",
    backgrounds: str | os.PathLike | None = None,
) -> dict[str, Path]:
    """Render a data set: ``output/SPLIT/*.jpg`` and ``output/annotations/instances_SPLIT.json``.

    An image depends on (seed, split, index, size, um_per_px, preset, content of backgrounds)
    alone: the number of workers and of further images changes no byte of it. A folder that
    already holds this very data set is left as it is; where rendering was interrupted it goes on;
    one that holds fewer images of it is rendered again in place.

    Args:
        output: folder of the data set.
        counts: images per split, such as ``{"train": 240, "val": 60, "test": 60}``.
        size: side of the images in px, 64 to 8192.
        um_per_px: micrometres per pixel.
        seed: 0 or more.
        workers: processes; None takes the processors there are, or none for a small job.
        progress: whether to show a progress bar on stderr, where that is a terminal.
        preset: name of one of :data:`microplastics.synthetic.presets.PRESETS`.
        backgrounds: folder with photographs of empty filters, which then take the place of the
            preset's filters; None draws those.

    Returns:
        Path of the annotation file of each split.

    Raises:
        UserError: a parameter makes no sense, a background cannot be read, ``output`` cannot be
            written, or it holds other data that would be overwritten.
    """
    settings = Settings(dict(counts), size, float(um_per_px), seed, preset, None)
    settings.check()
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: give the number of processes, 1 or more.")
    root = Path(output)
    if backgrounds is not None:
        _keep_apart(root, Path(backgrounds))
        settings = dataclasses.replace(settings, blanks=find_blanks(backgrounds))
    paths = {split: root / "annotations" / f"instances_{split}.json" for split in counts}
    journal = Journal(root)
    if is_complete(root, settings):
        journal.discard()
        return paths
    if settings.blanks is not None:
        check_blanks(settings.blanks, size, progress)
    claim(root, settings)
    write_json(root / MANIFEST, {**settings.manifest(), "complete": False}, indent=1)
    images = _render(root, settings, workers, progress, journal)
    files = _write_annotations(root, settings, paths, images)
    write_json(root / MANIFEST, {**settings.manifest(), "complete": True, "files": files}, indent=1)
    journal.discard()
    return paths


def _write_annotations(
    root: Path,
    settings: Settings,
    paths: dict[str, Path],
    images: dict[tuple[str, int], Rendered],
) -> dict[str, int]:
    """Write the annotation files; length in bytes of every file of the data set by its path."""
    files: dict[str, int] = {}
    for split, path in paths.items():
        coco = _empty_coco(settings)
        for index in range(settings.counts[split]):
            rendered = images[split, index]
            _append(coco, rendered)
            files[f"{split}/{rendered.record['file_name']}"] = rendered.length
        write_json(path, coco)
        files[path.relative_to(root).as_posix()] = path.stat().st_size
    return files


def _keep_apart(root: Path, backgrounds: Path) -> None:
    """Refuse to render into the folder of backgrounds: its pictures would become some."""
    root, backgrounds = root.resolve(), backgrounds.resolve()
    if root == backgrounds or backgrounds in root.parents:
        raise UserError(
            f"--output {root} lies in the folder of backgrounds: choose another --output."
        )


def _render(
    root: Path, settings: Settings, workers: int | None, progress: bool, journal: Journal
) -> dict[tuple[str, int], Rendered]:
    """Render what an earlier run left to do; all images by (split, index)."""
    images = journal.resume(settings)
    wanted = [(split, i) for split, count in settings.counts.items() for i in range(count)]
    tasks = [(str(root), *key, settings) for key in wanted if key not in images]
    bar = tqdm(
        map_in_processes(_render_to_file, tasks, _processes(workers, settings, len(tasks))),
        total=len(wanted),
        initial=len(images),
        desc="Rendering",
        unit="image",
        disable=None if progress else True,
    )
    with journal.open():
        for rendered in bar:
            journal.add(rendered)
            images[rendered.split, rendered.index] = rendered
    return images


def _processes(workers: int | None, settings: Settings, images: int) -> int:
    if workers is None:
        small = images * settings.size**2 < _PIXELS_WORTH_A_PROCESS
        workers = 1 if small else available_processors()
    return max(min(workers, images), 1)


def _render_to_file(task: tuple[str, str, int, Settings]) -> Rendered:
    root, split, index, settings = task
    key = (settings.seed, split, index)
    image, record, annotations = render_image(
        key, settings.size, settings.um_per_px, find_preset(settings.preset), settings.blanks
    )
    quality = [cv2.IMWRITE_JPEG_QUALITY, record["jpeg_quality"]]
    _, encoded = cv2.imencode(".jpg", image, quality)
    path = image_path(Path(root), split, index)
    with atomic_write(path, "wb") as file:
        file.write(encoded.tobytes())
    record = {"file_name": path.name, **record}
    return Rendered(split, index, encoded.size, record, annotations)


def _empty_coco(settings: Settings) -> dict[str, Any]:
    about = {
        "description": "Rendered photographs of filters with microplastics (not real samples)",
        **settings.manifest(),
    }
    categories = find_preset(settings.preset).categories
    return {"info": about, "images": [], "annotations": [], "categories": categories}


def _append(coco: dict[str, Any], rendered: Rendered) -> None:
    image_id = len(coco["images"]) + 1
    coco["images"].append({"id": image_id, **rendered.record})
    for annotation in rendered.annotations:
        number = len(coco["annotations"]) + 1
        coco["annotations"].append({"id": number, "image_id": image_id, **annotation})
