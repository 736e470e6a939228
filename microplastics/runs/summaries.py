"""Summaries of runs: samples, blanks, merged runs."""

import fnmatch
import json
import logging
import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from microplastics.counts.corrections import Sampling, parse_volume
from microplastics.counts.summary import image_rows, summarize
from microplastics.data.splits.groups import group_of, table_from_csv
from microplastics.measurement.size_classes import parse_size_classes
from microplastics.measurement.table import (
    IMAGE_COLUMNS,
    combine_tables,
    images_table,
    table_columns,
    table_sizes,
)
from microplastics.runs.images import RunOptions
from microplastics.runs.store import RUN_FILE, SUMMARY_FILE
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json

logger = logging.getLogger(__name__)

PARTICLES_FILE = "particles.csv"


def check_samples(options: RunOptions, names: Sequence[str]) -> None:
    """Refuse options of the summary that make no sense, before hours of work.

    Args:
        options: of the run.
        names: of its images.

    Raises:
        UserError: names the option, the image without a group, or the group of blanks and samples.
    """
    parse_size_classes(options.size_classes)
    _sampling(options, names, warn=True)
    if options.edge == "weight" and options.region is not None:
        raise UserError(
            "--edge weight cannot be combined with --region (it corrects for a rectangular image "
            "border); leave out one of them.",
            code="option_conflict",
        )
    blanks = blank_names(names, options.blanks)
    if options.group_by is not None:
        images = images_table((name, (1, 1), None) for name in names)
        image_rows(images, groups_of(names, options.group_by), blanks)


def make_summaries(
    table: pd.DataFrame, images: pd.DataFrame, classes: Sequence[str], options: RunOptions
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Count by the options of a run.

    Args:
        table: of all particles.
        images: all images, as ``measurement.table.images_table`` gives them.
        classes: classes with columns, found or not.
        options: of the run.

    Returns:
        a row for each image, and with ``group_by`` a row for each sample. Concentrations are
        of samples if images are summed.

    Raises:
        UserError: an image has no group, or a blank is not an image of the run.
    """
    names = images["image"].tolist()
    common: dict[str, Any] = {
        "classes": classes,
        "size_classes": parse_size_classes(options.size_classes),
        "min_size": options.min_size,
        "edge": options.edge,
        "blanks": blank_names(names, options.blanks),
    }
    sampling = _sampling(options, names)
    if options.group_by is None:
        return summarize(table, images, sampling=sampling, **common), None
    groups = groups_of(names, options.group_by)
    samples = summarize(table, images, groups=groups, sampling=sampling, **common)
    return summarize(table, images, **common), samples


def groups_of(names: Sequence[str], group_by: str) -> dict[str, str]:
    """The sample of each image.

    Args:
        names: of the images.
        group_by: ``folder``, a CSV file with the columns image and group, or a regex whose one
            (group) names the sample in an image's name.

    Raises:
        UserError: an image has no group.
    """
    if group_by == "folder":
        return {name: posixpath.dirname(name) or "." for name in names}
    if not group_by.lower().endswith(".csv"):
        return {name: group_of(name, group_by) for name in names}
    table, groups = table_from_csv(group_by, "image", "group"), {}
    for name in names:
        row = _row_of(table, name)
        if row not in table:
            raise UserError(
                f"{group_by} has no group for {name}; add a row for it.", code="table_invalid"
            )
        groups[name] = table[row]
    return groups


def _row_of(table: Mapping[str, str], name: str) -> str:
    """What a table calls an image: its name, its last part, or that without its kind."""
    short = posixpath.basename(name)
    return next((key for key in (name, short) if key in table), os.path.splitext(short)[0])


def blank_names(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The images that are blanks, by names or globs of their whole name or its last part.

    Raises:
        UserError: a pattern matches no image.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = [
            name
            for name in names
            if fnmatch.fnmatchcase(name, pattern)
            or fnmatch.fnmatchcase(posixpath.basename(name), pattern)
        ]
        if not matches:
            raise UserError(
                f"--blanks {pattern} matches no image; give image names or glob patterns.",
                code="input_empty",
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _sampling(options: RunOptions, names: Sequence[str], warn: bool = False) -> Sampling | None:
    """Sampling given by the options.

    Args:
        options: of the run.
        names: of the images.
        warn: warn of volumes that no sample uses.
    """
    if options.sampled_volume is None:
        if options.counted_fraction != 1:
            raise UserError(
                "--counted-fraction needs --sampled-volume; give both.", code="option_missing"
            )
        if options.filter_area_mm2 is not None:
            raise UserError(
                "--filter-area-mm2 needs --sampled-volume; give both.", code="option_missing"
            )
        return None
    return Sampling(
        _liters(options, names, warn), options.counted_fraction, options.filter_area_mm2
    )


def _liters(options: RunOptions, names: Sequence[str], warn: bool) -> float | dict[str, float]:
    """Litres of all samples, or of each sample by name."""
    volume = options.sampled_volume
    if not volume.lower().endswith(".csv"):
        return parse_volume(volume)
    table, blanks = table_from_csv(volume, "sample", "volume"), blank_names(names, options.blanks)
    samples = [name for name in names if name not in set(blanks)]
    if options.group_by is None:
        keys = {name: _row_of(table, name) for name in samples}
    else:
        groups = groups_of(names, options.group_by)
        keys = {groups[name]: groups[name] for name in samples}
    liters: dict[str, float] = {}
    owners: dict[str, str] = {}
    for sample, key in keys.items():
        if key not in table:
            raise UserError(
                f"{volume} has no volume for {sample}; add a row for it.", code="table_invalid"
            )
        other = owners.setdefault(key, sample)
        if other != sample:
            raise UserError(
                f"{volume}: {key} may be {other} or {sample}; write both with their folders.",
                code="table_invalid",
            )
        try:
            liters[sample] = parse_volume(table[key])
        except UserError as error:
            raise UserError(f"{volume}, {key}: {error}", code="table_invalid") from error
    unused = [key for key in table if key not in owners]
    if unused and warn:
        logger.warning("%s has volumes of no sample here: %s", volume, ", ".join(unused[:5]))
    return liters


def merge_runs(
    runs: Sequence[str | os.PathLike], same: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the particles and images of finished runs as if they were of one run.

    Args:
        runs: folders with particles.csv and summary.csv (of images, not of groups).
        same: fields of run.json that must be equal in all runs, such as the checkpoint and the
            thresholds; a run without run.json has none.

    Returns:
        particles as of :func:`microplastics.measurement.table.combine_tables`, and images as of
        :func:`microplastics.measurement.table.images_table`, both in the order of the runs.

    Raises:
        UserError: a file is missing, damaged or not of a run; two runs have an image in common,
            have sizes in different units, or differ in ``same``.
    """
    if not runs:
        raise UserError("--merge-runs is empty; name the folders of the runs.", code="input_empty")
    folders = [Path(run) for run in runs]
    tables = [read_particles(folder / PARTICLES_FILE) for folder in folders]
    images = [read_images(folder / SUMMARY_FILE) for folder in folders]
    for folder, table, own in zip(folders, tables, images, strict=True):
        _check_consistent(folder, table, own)
    merged = pd.concat(images, ignore_index=True)
    _check_distinct(folders, images, merged)
    _check_units(folders, images)
    _check_same(folders, same)
    return combine_tables(tables), merged.drop(columns="particles").astype(IMAGE_COLUMNS)


def read_particles(path: str | os.PathLike) -> pd.DataFrame:
    """Read a particles.csv.

    Args:
        path: the file.

    Returns:
        columns and dtypes of :func:`microplastics.measurement.table.table_columns`.

    Raises:
        UserError: it is missing, damaged or not the table of a run.
    """
    names = _header(path)
    um, px = "feret_max_um" in names, "feret_max_px" in names
    table = _read(path, table_columns(um or not px, px))
    _check_rows(path, table, table[["image", "class", "x", "y"]].notna().all(axis=1), "is empty")
    _check_rows(
        path, table, (table[["bbox_w", "bbox_h", "area_px"]] > 0).all(axis=1), "has no size"
    )
    return table


def read_images(path: str | os.PathLike) -> pd.DataFrame:
    """Read the images of a run from its summary.csv, which has a row per image.

    Returns:
        columns and dtypes of :data:`microplastics.measurement.table.IMAGE_COLUMNS`, and
        ``particles``, int64, their number.

    Raises:
        UserError: as of :func:`read_particles`.
    """
    names = _header(path)
    if "group" in names and "image" not in names:
        raise UserError(
            f"{path} has a row per group; expected the summary with a row per image.",
            code="run_invalid",
        )
    columns = {**IMAGE_COLUMNS, "particles": "int64"}
    if "region_px" not in names:  # a run before there were regions
        del columns["region_px"]
    images = _read(path, columns)
    size = images["width_px"] * images["height_px"]
    if "region_px" not in images:
        images.insert(3, "region_px", size)
    _check_rows(path, images, images["image"].notna(), "is empty")
    _check_rows(path, images, ~images["image"].duplicated(), "is there twice")
    valid = (images[["width_px", "height_px", "region_px"]] > 0).all(axis=1)
    valid &= (images["region_px"] <= size) & ~(images["um_per_px"] <= 0)
    _check_rows(path, images, valid, "has an impossible size or scale")
    return images


def _header(path: str | os.PathLike) -> list[str]:
    return list(_read_csv(path, nrows=0))


def _read(path: str | os.PathLike, columns: dict[str, str]) -> pd.DataFrame:
    """Read a table whose columns have these names and dtypes; others are left out."""
    missing = set(columns) - set(_header(path))
    if missing:
        raise UserError(
            f"{path} has no column {min(missing)}; expected the file of a run, unchanged.",
            code="run_invalid",
        )
    table = _read_csv(path, dtype=columns)[list(columns)]
    numbers = table.select_dtypes("float64")
    _check_rows(path, table, ~np.isinf(numbers).any(axis=1), "has an infinite number")
    return table


def _read_csv(path: str | os.PathLike, **options: Any) -> pd.DataFrame:
    try:
        return pd.read_csv(
            path,
            encoding="utf-8-sig",
            keep_default_na=False,
            na_values=[""],
            index_col=False,
            true_values=["True", "TRUE", "true"],
            false_values=["False", "FALSE", "false"],
            **options,
        )
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); name the folder of a finished run "
            "that wrote CSV.",
            code="file_missing",
        ) from error
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"{path} is not the table of a run ({reason}); copy it again.", code="run_invalid"
        ) from error


def _check_rows(path: str | os.PathLike, table: pd.DataFrame, valid: Any, fault: str) -> None:
    """Raise an error that names the first row that is not valid."""
    wrong = np.flatnonzero(~np.asarray(valid, dtype=bool))
    if len(wrong):
        name = table["image"].iloc[wrong[0]]
        raise UserError(
            f"{path} is damaged: row {wrong[0] + 2} (image {name}) {fault}; copy it again.",
            code="run_invalid",
        )


def _check_consistent(folder: Path, table: pd.DataFrame, images: pd.DataFrame) -> None:
    """Check that both files of a run have the same particles at the same scales."""
    stated = images.set_index("image")
    found = table["image"].value_counts()
    names = stated.index.union(found.index)
    differ = found.reindex(names, fill_value=0) != stated["particles"].reindex(names, fill_value=0)
    scales = stated["um_per_px"].reindex(table["image"]).to_numpy()
    if differ.any() or not np.array_equal(scales, table["um_per_px"].to_numpy(), equal_nan=True):
        of = f" (image {names[differ.to_numpy(bool)][0]})" if differ.any() else ""
        raise UserError(
            f"{folder / PARTICLES_FILE} and {SUMMARY_FILE} have different particles or scales{of}; "
            "expected both files of one run.",
            code="run_invalid",
        )
    _check_rows(folder / PARTICLES_FILE, table, table_sizes(table)[0] > 0, "has no feret_max")


def _check_distinct(folders: list[Path], images: list[pd.DataFrame], merged: pd.DataFrame) -> None:
    twice = merged["image"][merged["image"].duplicated()]
    if len(twice):
        owners = [
            str(folder)
            for folder, own in zip(folders, images, strict=True)
            if twice.iloc[0] in set(own["image"])
        ]
        raise UserError(
            f"{twice.iloc[0]} is in {' and in '.join(owners)}; leave out one of the runs, or "
            "rename the image and run it again.",
            code="name_clash",
        )


def _check_units(folders: list[Path], images: list[pd.DataFrame]) -> None:
    first: dict[bool, Path] = {}
    for folder, own in zip(folders, images, strict=True):
        for calibrated in own["um_per_px"].notna().unique():
            first.setdefault(bool(calibrated), folder)
    if len(first) == 2:
        raise UserError(
            f"{first[True]} has sizes in µm, {first[False]} in px; measure both with a scale.",
            code="scale_missing",
        )


def _check_same(folders: list[Path], same: Sequence[str]) -> None:
    settings = [
        read_json(folder / RUN_FILE) if same and (folder / RUN_FILE).exists() else {}
        for folder in folders
    ]
    for name in same:
        for folder, own in zip(folders[1:], settings[1:], strict=True):
            if own.get(name) != settings[0].get(name):
                one, other = (json.dumps(run.get(name))[:80] for run in (settings[0], own))
                raise UserError(
                    f"{folders[0]} was made with {name} {one}, {folder} with {other}; run the "
                    "images of one again with the settings of the other.",
                    code="run_mismatch",
                )
