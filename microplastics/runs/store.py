"""What of a run is finished: kept image by image, so that a run that was stopped goes on."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from microplastics.runs.images import InputImage
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json, write_error, write_json
from microplastics.writers import FORMATS, output_names
from microplastics.writers.base import ImageResult
from microplastics.writers.parts import write_part

SUMMARY_FILE, SAMPLES_FILE = "summary.csv", "samples.csv"
RUN_FILE, FAILED_FILE = "run.json", "failed.csv"

_FOLDER, _SETTINGS = "parts", "settings.json"
_SHOWN = 80  # characters of a setting in an error


def forget_image(output: Path, stem: str) -> None:
    """Delete the files of one image, which would tell of another state of it.

    Args:
        output: folder of the run.
        stem: of its files, by :func:`microplastics.writers.output_names`.
    """
    for form in FORMATS.values():
        if form.write is not None:
            _delete(output / form.files[0].format(stem))


def forget_run(output: Path, names: Iterable[str]) -> None:
    """Delete the files of a run, so that none is taken for one of the run that begins.

    Args:
        output: its folder; what is not of the run stays.
        names: of its images, besides those in its run.json.
    """
    known = dict.fromkeys([*names, *_names_in(output / RUN_FILE)])
    for stem in output_names(list(known)).values():
        forget_image(output, stem)
    for form in FORMATS.values():
        for name in form.files if form.write is None else ():
            _delete(output / name)
    for name in (SUMMARY_FILE, SAMPLES_FILE, RUN_FILE, FAILED_FILE):
        _delete(output / name)


def _names_in(path: Path) -> list[str]:
    try:
        images = read_json(path).get("images")
    except UserError:
        return []
    entries = images if isinstance(images, list) else []
    names = [each.get("name") for each in entries if isinstance(each, dict)]
    return [name for name in names if isinstance(name, str)]


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


class RunStore:
    """The folder ``OUTPUT/parts``: a settings file, and one part for each finished image.

    Several processes may share it, each with its own images.
    """

    def __init__(self, output: str | os.PathLike, settings: dict[str, Any]):
        """
        Args:
            output: folder of the run.
            settings: plain values that the results depend on.
        """
        self._output = Path(output)
        self._folder = self._output / _FOLDER
        # As JSON gives them back: with lists for tuples.
        self._settings = json.loads(json.dumps(settings))

    def claim(self, resume: bool, overwrite: bool) -> None:
        """Begin a run in the folder, or go on with the one that lies there.

        Args:
            resume: continue a run if there is one.
            overwrite: forget what is finished, and delete its files.

        Raises:
            UserError: a run lies there and neither was asked for, or it had other settings.
        """
        path = self._folder / _SETTINGS
        if not path.is_file() and self._folder.exists() and any(self._folder.iterdir()):
            raise UserError(
                f"{self._folder} was not written by microplastics; choose another --output.",
                code="output_exists",
            )
        if not (path.is_file() or overwrite) and (self._output / RUN_FILE).exists():
            raise UserError(
                f"{self._output} contains a run without its {_FOLDER}; add --overwrite to start "
                "again, or choose another --output.",
                code="output_exists",
            )
        if overwrite:
            forget_run(self._output, self.names())
            if self._folder.is_dir():
                shutil.rmtree(self._folder)
        if path.is_file():
            if not resume:
                raise UserError(
                    f"{self._output} contains a run; add --resume to continue it, "
                    "--overwrite to start again, or choose another --output.",
                    code="output_exists",
                )
            self._compare(read_json(path))
        write_json(path, self._settings, indent=1)

    def _compare(self, before: dict[str, Any]) -> None:
        for name in sorted({*before, *self._settings}):
            old, new = before.get(name), self._settings.get(name)
            if old != new:
                raise UserError(
                    f"The run in {self._output} was made with {name} {_shown(old)}, not "
                    f"{_shown(new)}; give the same, add --overwrite to start again, or choose "
                    "another --output.",
                    code="run_mismatch",
                )

    def is_finished(self, image: InputImage) -> bool:
        """Whether the image is finished and its file is still the same."""
        path = self._path(image, "record.json")
        if not (path.is_file() and self.part(image).is_file()):
            return False
        try:
            return read_json(path)["file"] == files_state(image)
        except (UserError, KeyError):
            return False

    def save(self, image: InputImage, result: ImageResult, record: dict[str, Any]) -> None:
        """Keep a finished image; only when all of it is on the disk does it count as finished.

        Args:
            image: that was worked on.
            result: what the run's files need of it.
            record: what run.json says of it.
        """
        write_part(result, self.part(image))
        write_json(self._path(image, "record.json"), {**record, "file": files_state(image)})
        self._path(image, "failed.json").unlink(missing_ok=True)

    def fail(self, image: InputImage, error: str) -> None:
        """Note why an image could not be finished."""
        self._path(image, "record.json").unlink(missing_ok=True)
        write_json(self._path(image, "failed.json"), {"image": image.name, "error": error})

    def names(self) -> list[str]:
        """The images of the run that lies in the folder, whether finished or failed."""
        names: dict[str, None] = {}
        for ending, key in (("record", "name"), ("failed", "image")):
            for path in sorted(self._folder.glob(f"*.{ending}.json")):
                with contextlib.suppress(UserError):  # damaged: it is to be forgotten anyway
                    name = read_json(path).get(key)
                    if isinstance(name, str):
                        names[name] = None
        return list(names)

    def part(self, image: InputImage) -> Path:
        """The part of a finished image (:mod:`microplastics.writers.parts`)."""
        return self._path(image, "parquet")

    def record(self, image: InputImage) -> dict[str, Any]:
        """What run.json says of a finished image."""
        return read_json(self._path(image, "record.json"))

    def failure(self, image: InputImage) -> str:
        """Why an image is not finished."""
        path = self._path(image, "failed.json")
        return read_json(path)["error"] if path.is_file() else "not reached; add --resume"

    def _path(self, image: InputImage, ending: str) -> Path:
        # A name of its own for each image, however long or odd the image's is.
        key = hashlib.sha256(image.name.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return self._folder / f"{key}.{ending}"


def files_state(image: InputImage) -> list[list[int] | None]:
    """Size in bytes and modification time in ns of an image's files; None for missing ones."""
    found: list[list[int] | None] = []
    for path in (image.path, image.masks_path, image.region_path):
        try:
            status = os.stat(path)
            found.append([status.st_size, status.st_mtime_ns])
        except (OSError, ValueError):
            found.append(None)
    return found


def _shown(value: Any) -> str:
    text = "left out" if value is None else json.dumps(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
