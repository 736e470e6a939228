"""Rendered data sets on disk."""

import math
import os
import re
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from microplastics.synthetic.filters import Blanks, check_blanks, find_blanks
from microplastics.synthetic.scene import find_preset, frame_of, render_image
from microplastics.utils.errors import UserError, check_option
from microplastics.utils.io import (
    atomic_write,
    read_json,
    remove_leftovers,
    write_error,
    write_json,
)
from microplastics.utils.system import available_processors, map_in_processes

# Must be raised whenever the same parameters give another picture.
RENDERER_VERSION = 2
MANIFEST = "synthetic.json"
MIN_SIZE, MAX_SIZE = 64, 8192


def render_dataset(
    output: str | os.PathLike,
    counts: dict[str, int],
    size: int | tuple[int, int] = 512,
    um_per_px: float = 4.0,
    seed: int = 0,
    workers: int | None = None,
    preset: str = "default",
    backgrounds: str | os.PathLike | None = None,
) -> dict[str, Path]:
    """Render a data set: ``output/SPLIT/*.jpg`` and ``output/annotations/instances_SPLIT.json``.

    The bytes of an image depend only on (seed, split, index, size, um_per_px, preset, content of
    backgrounds). A complete data set is kept; an interrupted one, or one with fewer images, is
    rendered again in place.

    Args:
        output: folder of the data set.
        counts: images per split, such as ``{"train": 240, "val": 60, "test": 60}``.
        size: side of the images, or their width and height, in px, 64 to 8192.
        um_per_px: micrometres per pixel.
        seed: 0 or more.
        workers: processes; None uses all processors for large jobs.
        preset: name in :data:`microplastics.synthetic.scene.PRESETS`.
        backgrounds: folder with photographs of empty filters, which replace the preset's filters;
            None draws those.

    Returns:
        Path of the annotation file of each split.

    Raises:
        UserError: a parameter is invalid, a background cannot be read, or ``output`` cannot be
            written or holds other data.
    """
    for split, count in counts.items():
        named = re.fullmatch(r"[A-Za-z0-9_]+", split) is not None
        check_option(named, "A split", f"'{split}'", "letters, digits and '_'")
        check_option(count >= 0, f"--{split}", count, "a number of images, 0 or more")
    total = sum(counts.values())
    check_option(total > 0, "The number of images of all splits", total, "1 or more")
    frame = frame_of(size)
    for side in frame:
        check_parameters(side, (MIN_SIZE, MAX_SIZE), um_per_px, seed)
    find_preset(preset)
    workers = choose_workers(workers, total * math.prod(frame))
    root, blanks = Path(output), None
    if backgrounds is not None:
        _check_apart(root, Path(backgrounds))
        blanks = find_blanks(backgrounds)
    # Everything that the data set's bytes depend on.
    settings = {
        "renderer_version": RENDERER_VERSION,
        "counts": dict(counts),
        "size": frame[0] if frame[0] == frame[1] else list(frame),
        "um_per_px": float(um_per_px),
        "seed": seed,
        "preset": preset,
        "backgrounds": blanks and {"images": len(blanks.files), "bytes": blanks.bytes},
    }
    if not _is_complete(root, settings):
        if blanks is not None:
            check_blanks(blanks, max(frame))
        _claim(root, settings)
        write_json(root / MANIFEST, {**settings, "complete": False}, indent=1)
        files = _render(root, settings, blanks, workers)
        write_json(root / MANIFEST, {**settings, "complete": True, "files": files}, indent=1)
    return {split: root / "annotations" / f"instances_{split}.json" for split in counts}


def check_parameters(size: int, limits: tuple[int, int], um_per_px: float, seed: int) -> None:
    """Raise UserError for a size (within ``limits``, px), scale or seed that is out of range."""
    low, high = limits
    check_option(low <= size <= high, "--size", size, f"{low} to {high} px")
    valid = 1e-6 <= um_per_px <= 1e6  # False for NaN
    check_option(valid, "--um-per-px", f"{um_per_px:g}", "1e-06 to 1e+06 µm per pixel")
    check_option(seed >= 0, "--seed", seed, "0 or more")


def choose_workers(workers: int | None, pixels: int) -> int:
    """Check --workers; if it is None, choose all processors or one."""
    check_option(workers is None or workers > 0, "--workers", workers, "1 or more")
    # Starting a process costs a few seconds: small jobs are rendered without.
    return workers or (available_processors() if pixels >= 16_000_000 else 1)


def _check_apart(root: Path, backgrounds: Path) -> None:
    """Refuse to render into the folder of backgrounds, whose pictures would become backgrounds."""
    root, backgrounds = root.resolve(), backgrounds.resolve()
    if root == backgrounds or backgrounds in root.parents:
        raise UserError(
            f"--output {root} is inside the folder of backgrounds; choose another --output.",
            code="option_conflict",
        )


def _read_manifest(root: Path) -> dict[str, Any] | None:
    """Read the manifest of a data set; None if it does not exist."""
    path = root / MANIFEST
    if not path.is_file():
        return None
    data = read_json(path, meant="the settings of a data set; delete it")
    counts, files = data.get("counts"), data.get("files", {})
    valid = isinstance(counts, dict) and all(isinstance(n, int) for n in counts.values())
    if not valid or not isinstance(files, dict):
        raise UserError(
            f"{path} is damaged; delete it or choose another --output.", code="file_invalid"
        )
    return data


def _is_complete(root: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds this data set, with every file at its recorded size."""
    manifest = _read_manifest(root) or {}
    expected = {**settings, "complete": True}
    files = [(root / name, length) for name, length in manifest.get("files", {}).items()]
    return all(manifest.get(name) == value for name, value in expected.items()) and all(
        path.is_file() and path.stat().st_size == length for path, length in files
    )


def _claim(root: Path, settings: dict[str, Any]) -> None:
    """Make the folders; refuse to overwrite files of other commands or settings."""
    manifest = _read_manifest(root)
    if manifest is not None:
        counts = manifest.pop("counts")
        other = [
            f"{name} {manifest.get(name)}"
            for name, value in settings.items()
            if name != "counts" and manifest.get(name) != value
        ]
        wanted = settings["counts"]
        other += [f"{n} {s} images" for s, n in counts.items() if n > wanted.get(s, 0)]
        if other:
            raise UserError(
                f"{root} holds another rendering ({', '.join(other)}); delete it or choose "
                "another --output.",
                code="output_exists",
            )
    for split in settings["counts"]:
        folder, json_file = root / split, root / "annotations" / f"instances_{split}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if manifest is None and (any(folder.iterdir()) or json_file.exists()):
                raise UserError(
                    f"{root} holds data of split '{split}' that this command did not write; "
                    "choose another --output.",
                    code="output_exists",
                )
        except OSError as error:
            raise write_error(folder, error) from error
    remove_leftovers(root, root / "annotations", *(root / split for split in settings["counts"]))


def _render(
    root: Path, settings: dict[str, Any], blanks: Blanks | None, workers: int
) -> dict[str, int]:
    """Render all images and write the annotations; return path -> bytes of every file."""
    tasks = [
        (split, index, root, settings, blanks)
        for split, count in settings["counts"].items()
        for index in range(count)
    ]
    rendered = map_in_processes(_render_to_file, tasks, min(workers, len(tasks)))
    rendered = tqdm(rendered, "Rendering", len(tasks), unit="image", disable=None)
    head = {
        "description": "Rendered photographs of filters with microplastics (not real samples)",
        **settings,
    }
    categories = find_preset(settings["preset"]).categories
    files, sets = {}, {}
    for split in settings["counts"]:
        sets[split] = {"info": head, "images": [], "annotations": [], "categories": categories}
    for (split, *_), (length, record, annotations) in zip(tasks, rendered, strict=True):
        coco = sets[split]
        image_id, first = len(coco["images"]) + 1, len(coco["annotations"]) + 1
        coco["images"].append({"id": image_id, **record})
        for number, annotation in enumerate(annotations, start=first):
            coco["annotations"].append({"id": number, "image_id": image_id, **annotation})
        files[f"{split}/{record['file_name']}"] = length
    for split, coco in sets.items():
        name = f"annotations/instances_{split}.json"
        write_json(root / name, coco)
        files[name] = (root / name).stat().st_size
    return files


def _render_to_file(task: tuple) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    """Render an image to disk; return its bytes, its COCO entry, and annotations without ids."""
    split, index, root, settings, blanks = task
    path = root / split / f"{split}_{index:06d}.jpg"
    key, preset = (settings["seed"], split, index), find_preset(settings["preset"])
    image, record, annotations = render_image(
        key, settings["size"], settings["um_per_px"], preset, blanks
    )
    quality = [cv2.IMWRITE_JPEG_QUALITY, record["jpeg_quality"]]
    encoded = cv2.imencode(".jpg", image, quality)[1].tobytes()
    with atomic_write(path, "wb") as file:
        file.write(encoded)
    return len(encoded), {"file_name": path.name, **record}, annotations
