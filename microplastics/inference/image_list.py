"""Which images ``--input`` means, and the name of each in every output."""

import dataclasses
import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from microplastics.errors import UserError
from microplastics.inference.writers.names import printable

IMAGE_ENDINGS = frozenset(
    (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".btf", ".tf8", ".bmp", ".webp", ".jp2", ".gif")
    + (".ppm", ".pgm", ".pnm", ".svs")
)
LIST_ENDINGS = frozenset((".txt", ".lst"))


@dataclasses.dataclass(frozen=True)
class InputImage:
    """One image of a run.

    Attributes:
        path: where it lies.
        name: what every output calls it, with ``/`` between folders; unique within a run.
        masks_path: the file of its given masks, where each image has one of its own.
        region_path: the file that tells where its particles count.
    """

    path: str
    name: str
    masks_path: str = ""
    region_path: str = ""


def find_images(inputs: Sequence[str], exclude: str = "") -> list[InputImage]:
    """List the images that files, folders, globs and lists of paths name, each once.

    A folder means all images in it and below it, a ``.txt`` or ``.lst`` file one path a line
    (relative to its own folder; empty lines and lines that start with ``#`` are skipped). Images
    are named by their path below the folder that holds all of them.

    Args:
        inputs: of the command line; a glob that the shell left alone is expanded here.
        exclude: a folder whose images are none: the output of the run.

    Returns:
        The images in the order of the inputs, those of a folder by name.

    Raises:
        UserError: an input is missing, or names no image.
    """
    paths: dict[str, None] = {}
    excluded = os.path.realpath(exclude) + os.sep if exclude else None
    for given in inputs:
        for path in _expand(given):
            if excluded is None or not os.path.realpath(path).startswith(excluded):
                paths.setdefault(os.path.abspath(path))
    if not paths:
        raise UserError("--input names no image; give image files, folders or globs.")
    root = _common_folder(list(paths))
    images = [
        InputImage(path, printable(Path(os.path.relpath(path, root)).as_posix())) for path in paths
    ]
    repeated = [name for name, times in Counter(each.name for each in images).items() if times > 1]
    if repeated:
        raise UserError(f"Two images would be called {repeated[0]}; rename one of them.")
    return images


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file name ends as that of an image and is not hidden."""
    name = os.path.basename(os.fspath(path))
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS and not name.startswith(".")


def _expand(given: str) -> list[str]:
    if os.path.isdir(given):
        found = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(given)
            for name in names
            if is_image(name) and not _is_hidden(os.path.relpath(folder, given))
        ]
        if not found:
            raise UserError(
                f"{given} holds no image; images end in {', '.join(sorted(IMAGE_ENDINGS))}."
            )
        return sorted(found)
    if os.path.splitext(given)[1].lower() in LIST_ENDINGS and os.path.isfile(given):
        return _listed(given)
    if os.path.exists(given):
        return [given]
    found = sorted(path for path in glob.glob(given, recursive=True) if is_image(path))
    if not found:
        words = "matches no image" if glob.has_magic(given) else "does not exist"
        raise UserError(f"--input {given} {words}; correct the path.")
    return found


def _is_hidden(folder: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in Path(folder).parts)


def _listed(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the list {path} ({error}); save it as UTF-8 text.") from error
    folder = os.path.dirname(os.path.abspath(path))
    found = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        image = os.path.join(folder, line)
        if not os.path.isfile(image):
            raise UserError(f"{path}, line {number}: {line} does not exist; correct the line.")
        found.append(image)
    if not found:
        raise UserError(f"{path} lists no image; write one path a line.")
    return found


def _common_folder(paths: list[str]) -> str:
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # several drives
        raise UserError("--input names images on several drives; run once for each.") from None
