"""Rendered data sets on the disk: photographs, COCO annotations and a manifest."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from microplastics.data.synthetic.particles import CATEGORIES
from microplastics.data.synthetic.scene import render_image
from microplastics.errors import UserError
from microplastics.files import atomic_write, write_error, write_json

# Goes up whenever the same parameters would give another picture.
RENDERER_VERSION = 1
MANIFEST = "synthetic.json"
MIN_SIZE, MAX_SIZE = 64, 8192
_MIN_UM_PER_PX, _MAX_UM_PER_PX = 1e-6, 1e6
# Starting a process costs a few seconds: fewer pixels than this are rendered without.
_PIXELS_WORTH_A_PROCESS = 100 * 512 * 512


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a data set is rendered from."""

    counts: dict[str, int]
    size: int
    um_per_px: float
    seed: int

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

    def manifest(self) -> dict[str, Any]:
        return {"renderer_version": RENDERER_VERSION, **dataclasses.asdict(self)}


def render_dataset(
    output: str | os.PathLike,
    counts: dict[str, int],
    size: int = 512,
    um_per_px: float = 4.0,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Path]:
    """Render a data set: ``output/SPLIT/*.jpg`` and ``output/annotations/instances_SPLIT.json``.

    An image depends on (seed, split, index, size, um_per_px) alone: the number of workers and of
    further images changes no byte of it. A folder that already holds this very data set is left
    as it is; one where rendering was interrupted, or that holds fewer images of it, is rendered
    again in place.

    Args:
        output: folder of the data set.
        counts: images per split, such as ``{"train": 240, "val": 60, "test": 60}``.
        size: side of the images in px, 64 to 8192.
        um_per_px: micrometres per pixel.
        seed: 0 or more.
        workers: processes; None takes the processors there are, or none for a small job.
        progress: whether to show a progress bar on stderr, where that is a terminal.

    Returns:
        Path of the annotation file of each split.

    Raises:
        UserError: a parameter makes no sense, ``output`` cannot be written, or it holds other
            data that would be overwritten.
    """
    settings = _Settings(dict(counts), size, float(um_per_px), seed)
    settings.check()
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: give the number of processes, 1 or more.")
    root = Path(output)
    paths = {split: root / "annotations" / f"instances_{split}.json" for split in counts}
    if _is_complete(root, settings):
        return paths
    _claim(root, settings)
    write_json(root / MANIFEST, {**settings.manifest(), "complete": False}, indent=1)
    tasks = [(str(root), s, i, settings) for s, count in counts.items() for i in range(count)]
    files: dict[str, int] = {}
    coco: dict[str, dict[str, Any]] = {split: _empty_coco(settings) for split in counts}
    results = _results(tasks, _processes(workers, settings))
    for split, length, record, annotations in tqdm(
        results,
        total=len(tasks),
        desc="Rendering",
        unit="image",
        disable=None if progress else True,
    ):
        _append(coco[split], record, annotations)
        files[f"{split}/{record['file_name']}"] = length
    for split, path in paths.items():
        write_json(path, coco[split])
        files[path.relative_to(root).as_posix()] = path.stat().st_size
    write_json(root / MANIFEST, {**settings.manifest(), "complete": True, "files": files}, indent=1)
    return paths


def _processes(workers: int | None, settings: _Settings) -> int:
    images = sum(settings.counts.values())
    if workers is None:
        small = images * settings.size**2 < _PIXELS_WORTH_A_PROCESS
        available = getattr(os, "sched_getaffinity", None)
        workers = 1 if small else len(available(0)) if available else os.cpu_count() or 1
    return min(workers, images)


def _results(tasks: list[tuple], processes: int) -> Iterator[tuple]:
    """Render in this process or in several, in the order of the tasks."""
    if processes == 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            yield from map(_render_to_file, tasks)
        finally:
            cv2.setNumThreads(threads)
        return
    pool = ProcessPoolExecutor(processes, mp_context=_context(), initializer=_start_worker)
    try:
        yield from pool.map(_render_to_file, tasks, chunksize=4)
    except BrokenProcessPool as error:
        raise UserError(
            "A rendering process was killed, most likely for want of memory: "
            "run the command again with fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """Never plain fork: a process in which OpenCV or torch has threads can hang after it.

    A fork server imports the package once for all workers, where spawning does so for each.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # Ctrl-C reaches the whole group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker of a killed parent would wait for its next task for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _render_to_file(task: tuple[str, str, int, _Settings]) -> tuple[str, int, dict, list]:
    root, split, index, settings = task
    key = (settings.seed, split, index)
    image, record, annotations = render_image(key, settings.size, settings.um_per_px)
    quality = [cv2.IMWRITE_JPEG_QUALITY, record["jpeg_quality"]]
    _, encoded = cv2.imencode(".jpg", image, quality)
    name = f"{split}_{index:06d}.jpg"
    with atomic_write(Path(root) / split / name, "wb") as file:
        file.write(encoded.tobytes())
    return split, encoded.size, {"file_name": name, **record}, annotations


def _empty_coco(settings: _Settings) -> dict[str, Any]:
    about = {
        "description": "Rendered photographs of filters with microplastics (not real samples)",
        **settings.manifest(),
    }
    return {"info": about, "images": [], "annotations": [], "categories": CATEGORIES}


def _append(coco: dict[str, Any], record: dict[str, Any], annotations: list[dict]) -> None:
    image_id = len(coco["images"]) + 1
    coco["images"].append({"id": image_id, **record})
    for annotation in annotations:
        number = len(coco["annotations"]) + 1
        coco["annotations"].append({"id": number, "image_id": image_id, **annotation})


def _read_manifest(root: Path) -> dict[str, Any] | None:
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


def _is_complete(root: Path, settings: _Settings) -> bool:
    """Whether the folder holds this data set, every file with the size that was written."""
    manifest = _read_manifest(root)
    if manifest is None or not manifest.get("complete"):
        return False
    if any(manifest.get(name) != value for name, value in settings.manifest().items()):
        return False
    with contextlib.suppress(OSError):
        files = manifest.get("files", {})
        return all((root / name).stat().st_size == length for name, length in files.items())
    return False


def _claim(root: Path, settings: _Settings) -> None:
    """Make the folders; refuse to overwrite what another command or other settings wrote."""
    manifest, ours = _read_manifest(root), settings.manifest()
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
