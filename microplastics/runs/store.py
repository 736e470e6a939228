"""What of a run is finished: kept image by image, so that a run that was stopped goes on."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from microplastics.data.coco import show
from microplastics.runs.images import InputImage, output_names
from microplastics.utils.errors import UserError
from microplastics.utils.io import OWN_FILE, read_json, remove_leftovers, write_error, write_json
from microplastics.writers.registry import FORMATS
from microplastics.writers.tables import ImageResult, read_head, write_part

SUMMARY_FILE, SAMPLES_FILE = "summary.csv", "samples.csv"
RUN_FILE, FAILED_FILE = "run.json", "failed.csv"
REPORT_FILE = "report.html"

_FOLDER, _SETTINGS = "parts", "settings.json"


def forget_image(output: Path, stem: str) -> None:
    """Delete the files of one image, which would tell of another state of it."""
    _delete(output, (form.files[0].format(stem) for form in FORMATS.values() if form.write))


def forget_run(output: Path, names: Iterable[str] = ()) -> None:
    """Delete the files of a run, so that none is taken for one of the run that begins.

    What is not of the run stays. ``names`` are images besides those in its run.json.
    """
    known = dict.fromkeys([*names, *_names_in(output / RUN_FILE)])
    for stem in output_names(list(known)).values():
        forget_image(output, stem)
    for form in FORMATS.values():
        if form.write is None:
            _delete(output, form.files)
    _delete(output, (SUMMARY_FILE, SAMPLES_FILE, RUN_FILE, FAILED_FILE, REPORT_FILE))


def _names_in(path: Path) -> list[str]:
    try:
        return [str(image["name"]) for image in read_json(path, meant=OWN_FILE)["images"]]
    except (UserError, KeyError, TypeError):  # no run.json, or none of a run over images
        return []


def _delete(folder: Path, names: Iterable[str]) -> None:
    for path in (folder / name for name in names):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(path, error) from error


def part_path(output: Path, name: str) -> Path:
    """The part of an image of this name in the folder of a run, whether it is there or not."""
    # A name of its own for each image, however long or odd the image's is.
    key = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return output / _FOLDER / f"{key}.parquet"


class RunStore:
    """The folder ``OUTPUT/parts``: a settings file, and one part for each finished image.

    Several processes may share it, each with its own images.
    """

    def __init__(self, output: str | os.PathLike, settings: dict[str, Any]):
        """Look after the folder ``output``; the results depend on the plain values ``settings``."""
        self._output = Path(output)
        self._folder = self._output / _FOLDER
        # As JSON gives them back: with lists for tuples.
        self._settings = json.loads(json.dumps(settings))

    def claim(self, resume: bool, overwrite: bool) -> None:
        """Begin a run in the folder, or go on with the one that lies there, or forget it.

        Raises:
            UserError: a run lies there and neither was asked for, or it had other settings.
        """
        path = self._folder / _SETTINGS
        if not path.is_file():
            remove_leftovers(self._folder)
        if not path.is_file() and self._folder.exists() and any(self._folder.iterdir()):
            raise UserError(
                f"{self._folder} was not written by microplastics; choose another --output.",
                code="output_exists",
            )
        if overwrite:
            forget_run(self._output, self._names())
            if self._folder.is_dir():
                shutil.rmtree(self._folder)
        elif path.is_file() and resume:
            self._compare(read_json(path, meant=OWN_FILE))
        elif path.is_file() or (self._output / RUN_FILE).exists():
            parts = "" if path.is_file() else f" without its {_FOLDER}"
            resume_it = "" if parts else "--resume to continue it, or "
            raise UserError(
                f"{self._output} contains a run{parts}; add {resume_it}--overwrite to start again, "
                "or choose another --output.",
                code="output_exists",
            )
        # Not before: a run that is refused may be under way.
        remove_leftovers(
            self._folder, *{(self._output / form.files[0]).parent for form in FORMATS.values()}
        )
        write_json(path, self._settings, indent=1)

    def _compare(self, before: dict[str, Any]) -> None:
        for name in sorted({*before, *self._settings}):
            old, new = before.get(name), self._settings.get(name)
            if old != new:
                raise UserError(
                    f"The run in {self._output} was made with {name} {show(old)}, not {show(new)}; "
                    "give the same, add --overwrite to start again, or choose another --output.",
                    code="run_mismatch",
                )

    def is_finished(self, image: InputImage) -> bool:
        """Whether the image is finished and its files are still the same."""
        try:
            return self.part(image).is_file() and self.record(image).get("files") == _state(image)
        except UserError:  # damaged
            return False

    def save(self, image: InputImage, result: ImageResult, record: dict[str, Any]) -> None:
        """Keep a finished image; ``record`` is what else run.json says of it."""
        write_part(result, self.part(image), {**record, "files": _state(image)})
        self._failure(image).unlink(missing_ok=True)

    def fail(self, image: InputImage, error: str) -> None:
        """Note why an image could not be finished."""
        self.part(image).unlink(missing_ok=True)
        write_json(self._failure(image), error)

    def part(self, image: InputImage) -> Path:
        """The part of a finished image (:class:`microplastics.writers.tables.Part`)."""
        return part_path(self._output, image.name)

    def record(self, image: InputImage) -> dict[str, Any]:
        """What is known of a finished image.

        Raises:
            UserError: its part is missing or damaged.
        """
        return read_head(self.part(image))[0]

    def failure(self, image: InputImage) -> str:
        """Why an image is not finished."""
        path = self._failure(image)
        return read_json(path, str, OWN_FILE) if path.is_file() else "not reached; add --resume"

    def _names(self) -> list[str]:
        """The finished images of the run that lies in the folder."""
        names = []
        for path in sorted(self._folder.glob("*.parquet")):
            with contextlib.suppress(UserError):  # damaged: it is to be forgotten anyway
                about = read_head(path)[0]
                # An older version wrote the name under another key, or the part is not ours.
                name = about.get("image", about.get("name")) if isinstance(about, dict) else None
                if isinstance(name, str):
                    names.append(name)
        return names

    def _failure(self, image: InputImage) -> Path:
        return self.part(image).with_suffix(".failed.json")


def _state(image: InputImage) -> list[list[int] | None]:
    """Size in bytes and modification time in ns of an image's files; None for missing ones."""
    found: list[list[int] | None] = []
    for path in (image.path, image.masks_path, image.region_path):
        try:
            status = os.stat(path)
            found.append([status.st_size, status.st_mtime_ns])
        except (OSError, ValueError):
            found.append(None)
    return found
