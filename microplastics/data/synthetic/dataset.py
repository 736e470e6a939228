"""Rendered data sets on the disk: photographs, COCO annotations and a manifest."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from microplastics.data.pool import available_processors, map_in_processes
from microplastics.data.synthetic.blanks import check_blanks, find_blanks
from microplastics.data.synthetic.presets import find_preset
from microplastics.data.synthetic.scene import render_image
from microplastics.data.synthetic.storage import (
    MANIFEST,
    Journal,
    Rendered,
    Settings,
    claim,
    image_path,
    is_complete,
)
from microplastics.errors import UserError
from microplastics.files import atomic_write, write_json

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
        preset: name of one of :data:`microplastics.data.synthetic.presets.PRESETS`.
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
