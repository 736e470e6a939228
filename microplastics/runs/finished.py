"""Finished runs: their tables, and the images and masks behind them."""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd

from microplastics.data.large_images import ImageReader, open_reader
from microplastics.measurement.table import combine_tables
from microplastics.roi.region import RegionSource
from microplastics.runs.images import RunOptions
from microplastics.runs.store import RUN_FILE, SAMPLES_FILE, SUMMARY_FILE, part_path
from microplastics.runs.summaries import (
    merge_runs,
    read_failures,
    read_images,
    read_record,
    read_run_csv,
    run_class_names,
)
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import sha256_of
from microplastics.writers.registry import FORMATS, PARTICLES_FILE
from microplastics.writers.tables import read_part

logger = logging.getLogger(__name__)

# Types of what readers of run.json rely on, of the run and of its images; dicts of numbers.
_OF_RUN = {"training": dict, "masks": dict, "score_thresholds": dict, "failed": int, "command": str}
_OF_IMAGE = {"left_out": dict, "calibration_notes": list, "windows_cut_short": int, "tile": int}
_OF_NUMBERS = ("score_thresholds", "left_out")
_OPTIONS = get_type_hints(RunOptions)
_PLACE = ["particle", "bbox_x", "bbox_y", "bbox_w", "bbox_h"]


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The folder of a run that predict or measure finished, or that merged others.

    Attributes:
        folder: of the run.
        record: its run.json.
        options: of scale, counts and formats.
        class_names: of model or data set, in order.
        particles: all particles, as of :func:`microplastics.measurement.table.combine_tables`.
        images: all images, as of :func:`microplastics.measurement.table.images_table`.
        summary: summary.csv, a row an image.
        samples: samples.csv, a row a sample, if images are summed.
        failures: failed.csv; empty if no image failed.
    """

    folder: Path
    record: dict[str, Any]
    options: RunOptions
    class_names: list[str]
    particles: pd.DataFrame
    images: pd.DataFrame
    summary: pd.DataFrame
    samples: pd.DataFrame | None
    failures: pd.DataFrame

    @property
    def blanks(self) -> list[str]:
        """Names of the images that are blanks."""
        if "is_blank" not in self.summary:
            return []
        return self.summary["image"][self.summary["is_blank"].astype(bool)].tolist()

    @property
    def sample_rows(self) -> pd.DataFrame:
        """Rows of the samples, without blanks: of images, if none are summed."""
        rows = self.summary if self.samples is None else self.samples
        return rows if "is_blank" not in rows else rows[~rows["is_blank"].astype(bool)]

    @functools.cached_property
    def found_by(self) -> dict[str, Any]:
        """The run.json that says what found the particles: a merged run has it of its first."""
        for _, record in self._records:
            if record.keys() & {"checkpoint", "masks"}:
                return record
        return self.record

    @property
    def review(self) -> dict[str, Any] | None:
        """What run.json says of the people who checked the particles; None if nobody did.

        ``reviewers`` are their names, ``finished_images`` a number, ``states`` numbers by state.
        """
        found = self.record.get("review")
        if not isinstance(found, dict):
            return None
        names, finished, states = map(found.get, ("reviewers", "finished_images", "states"))
        sound = isinstance(names, list) and type(finished) is int and isinstance(states, dict)
        return found if sound and all(type(each) is int for each in states.values()) else None

    @functools.cached_property
    def image_records(self) -> dict[str, dict[str, Any]]:
        """What the run.json, or those of the merged runs, say of each image by its name."""
        return {name: record for name, (_, record) in self._origins.items()}

    @functools.cached_property
    def _origins(self) -> dict[str, tuple[Path, dict[str, Any]]]:
        """Folder and record of each image."""
        found: dict[str, tuple[Path, dict[str, Any]]] = {}
        for folder, record in self._records:
            for image in record.get("images", []):
                found.setdefault(str(image["name"]), (folder, image))
        return found

    @functools.cached_property
    def _records(self) -> list[tuple[Path, dict[str, Any]]]:
        """The run.json of this run and of those that it merged, with their folders."""
        found, seen, waiting = [], set(), [self.folder]
        while waiting:
            folder = waiting.pop(0)
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                record = self.record if folder == self.folder else checked_record(folder)
            except UserError as error:
                logger.warning("%s The report says nothing of its images.", error)
                continue
            found.append((folder, record))
            waiting += map(Path, record.get("merged", []))
        return found

    @functools.cached_property
    def regions(self) -> RegionSource | None:
        """Where the particles count, None for everywhere.

        Raises:
            UserError: the files of ``--region`` are gone or have changed.
        """
        what = self.options.region
        if not isinstance(what, str):
            return None
        paths = {name: str(each.get("path") or "") for name, each in self.image_records.items()}
        source = RegionSource(what)
        source.check(self.images["image"].tolist(), paths)
        if source.fingerprint() != self.record.get("region_sha256"):
            raise UserError(f"--region {what} has changed since the run.", code="region_invalid")
        return source

    @contextlib.contextmanager
    def open_image(self, name: str) -> Iterator[ImageReader]:
        """Open the photograph of an image.

        Raises:
            UserError: there was none, it is gone, or it is another file by now.
        """
        record = self.image_records.get(name, {})
        path = record.get("path")
        if not isinstance(path, str) or not path:
            raise UserError(f"{name} was measured without its photograph.", code="image_missing")
        if not os.path.isfile(path):
            raise UserError(f"The photograph {path} is gone.", code="image_missing")
        if sha256_of(path) != record.get("sha256"):
            raise UserError(f"{path} has changed since the run.", code="image_invalid")
        limits = {
            "max_pixels": self.options.max_pixels,
            "allow_large": bool(self.options.allow_large),
        }
        with open_reader(path, **limits) as reader:
            yield reader

    def read_masks(self, name: str, particles: pd.DataFrame) -> CropMasks:
        """Read the masks of an image's particles.

        Args:
            name: of the image.
            particles: N of its rows of ``self.particles``.

        Returns:
            N masks in the same order.

        Raises:
            UserError: they are not kept, or not those of the table.
        """
        folder = self._origins.get(name, (self.folder, {}))[0]
        part = read_part(part_path(folder, name))
        row = self.images[self.images["image"] == name].iloc[0]
        size = int(row["height_px"]), int(row["width_px"])
        kept = part.table.select(_PLACE).to_pandas()
        places = pd.Index(kept["particle"]).get_indexer(particles["particle"])
        same = (
            (part.image.get("height"), part.image.get("width")) == size
            and (places >= 0).all()
            and (kept[_PLACE].to_numpy()[places] == particles[_PLACE].to_numpy()).all()
        )
        if not same:
            raise UserError(
                f"The masks kept of {name} are not those of its table; run the command again with "
                "--resume.",
                code="run_invalid",
            )
        rles = [{"size": list(size), "counts": part.counts[place]} for place in places.tolist()]
        try:
            return CropMasks.from_rles(rles, size)
        except ValueError as error:
            raise UserError(
                f"The masks kept of {name} are damaged ({error}); run the command again with "
                "--overwrite.",
                code="run_invalid",
            ) from error


def read_run(folder: str | os.PathLike) -> FinishedRun:
    """Read the folder of a finished run.

    Raises:
        UserError: ``run_invalid`` or ``file_missing``: it is no folder of a run, or one of its
            files is damaged.
    """
    folder = Path(folder)
    record = checked_record(folder)
    options = recorded_options(folder, record)
    if (folder / PARTICLES_FILE).is_file():
        particles, images = merge_runs([folder])
    else:
        images = read_images(folder / SUMMARY_FILE).drop(columns="particles")
        parts = (read_part(part_path(folder, name)) for name in images["image"])
        particles = combine_tables(part.table.to_pandas() for part in parts)
    samples = folder / SAMPLES_FILE
    return FinishedRun(
        folder,
        record,
        options,
        run_class_names(folder),
        particles,
        images,
        read_run_csv(folder / SUMMARY_FILE, {"image": "string"}),
        read_run_csv(samples, {"group": "string"}) if samples.is_file() else None,
        read_failures(folder),
    )


def checked_record(folder: Path) -> dict[str, Any]:
    """Read the run.json of a run, of the shape that its readers rely on.

    Raises:
        UserError: ``file_missing``, or ``run_invalid``.
    """
    record = read_record(folder)
    if not record:
        raise UserError(
            f"{folder} has no {RUN_FILE}; give the folder of a run that is finished.",
            code="file_missing",
        )
    images, merged = record.get("images", []), record.get("merged", [])
    right = (
        isinstance(record.get("options"), dict)
        and _has_types(record, _OF_RUN)
        and isinstance(images, list)
        and all(isinstance(each, dict) and _has_types(each, _OF_IMAGE) for each in images)
        and all(isinstance(each.get("name"), str) for each in images)
        and isinstance(merged, list)
        and all(isinstance(each, str) for each in merged)
    )
    if not right:
        raise _damaged(folder)
    return record


def _has_types(values: dict[str, Any], types: dict[str, type]) -> bool:
    """Whether each value that is there and known has its type; those of dicts are numbers."""
    return all(
        values.get(name) is None
        or isinstance(values[name], kind)
        and (
            name not in _OF_NUMBERS
            or all(isinstance(v, (int, float)) for v in values[name].values())
        )
        for name, kind in types.items()
    )


def recorded_options(folder: Path, record: dict[str, Any]) -> RunOptions:
    """The options of a run by its run.json.

    Raises:
        UserError: ``run_invalid``: one has another type than options have.
    """
    values = {name: value for name, value in record["options"].items() if name in _OPTIONS}
    if not all(_fits(name, value) for name, value in values.items()):
        raise _damaged(folder)
    return RunOptions(**{**values, "output": str(folder)})


def _fits(name: str, value: Any) -> bool:
    """Whether an untrusted value has the type of an option."""
    if name in ("formats", "blanks", "fiber_classes") and value is not None:
        texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
        return texts and (name != "formats" or set(value) <= set(FORMATS))
    kinds = get_args(_OPTIONS[name]) or (_OPTIONS[name],)
    # JSON has whole numbers without a point.
    return type(value) in kinds or (type(value) is int and float in kinds)


def _damaged(folder: Path) -> UserError:
    return UserError(
        f"{folder / RUN_FILE} is not as a run wrote it; copy it again.", code="run_invalid"
    )
