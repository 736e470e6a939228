"""Putting the tables of finished runs together."""

import fnmatch
import json
import logging
import math
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from microplastics.counts.corrections import Sampling, parse_volume
from microplastics.counts.summary import image_rows, summarize
from microplastics.data.segmentation import read_json
from microplastics.data.splits.groups import group_of, groups_from_csv, table_from_csv
from microplastics.measurement.size_classes import parse_size_classes
from microplastics.measurement.table import (
    IMAGE_COLUMNS,
    PX_COLUMNS,
    UM_COLUMNS,
    combine_tables,
    images_table,
    table_columns,
    table_sizes,
)
from microplastics.runs.images import RunOptions
from microplastics.runs.store import RUN_FILE, SUMMARY_FILE
from microplastics.utils.errors import UserError

logger = logging.getLogger(__name__)


def check_samples(options: RunOptions, names: Sequence[str]) -> None:
    """Refuse options of the summary that make no sense, before hours of work.

    Args:
        options: of the run.
        names: of its images.

    Raises:
        UserError: names the option, the image without a group, or the group of blanks and samples.
    """
    parse_size_classes(options.size_classes)
    _sampling(options, names, told=True)
    if options.edge == "weight" and options.region is not None:
        raise UserError(
            "--edge weight makes up for the border of a rectangle, which --region has none of; "
            "leave one of them out."
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
        classes: that have columns even where none was found.
        options: of the run.

    Returns:
        a row for each image, and with ``group_by`` a row for each sample. Concentrations are
        those of samples where images are summed.

    Raises:
        UserError: an image has no group, or a blank is no image.
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
    table, groups = groups_from_csv(group_by), {}
    for name in names:
        row = _row_of(table, name)
        if row not in table:
            raise UserError(f"{group_by} names no group of {name}; add a row for it.")
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
                f"--blanks {pattern} matches none of the images; give names or globs of theirs."
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _sampling(options: RunOptions, names: Sequence[str], told: bool = False) -> Sampling | None:
    """What was filtered; ``names`` are those of the images, ``told`` whether to warn."""
    if options.sampled_volume is None:
        if options.counted_fraction != 1:
            raise UserError("--counted-fraction needs --sampled-volume; give both.")
        if options.filter_area_mm2 is not None:
            raise UserError("--filter-area-mm2 needs --sampled-volume; give both.")
        return None
    return Sampling(
        _liters(options, names, told), options.counted_fraction, options.filter_area_mm2
    )


def _liters(options: RunOptions, names: Sequence[str], told: bool) -> float | dict[str, float]:
    """One volume for all samples, or that of each by the table's name for it."""
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
            raise UserError(f"{volume} has no volume of {sample}; add a row for it.")
        other = owners.setdefault(key, sample)
        if other != sample:
            raise UserError(
                f"{volume}: {key} may be {other} or {sample}; write both with their folders."
            )
        try:
            liters[sample] = parse_volume(table[key])
        except UserError as error:
            raise UserError(f"{volume}, {key}: {error}") from error
    unused = [key for key in table if key not in owners]
    if unused and told:
        logger.warning("%s has volumes of no sample here: %s", volume, ", ".join(unused[:5]))
    return liters


PARTICLES_FILE = "particles.csv"
_BOOLS = {"true": True, "false": False}
_OPTIONAL = {"score", "um_per_px", *UM_COLUMNS, *PX_COLUMNS}
_LARGEST = 2**53  # whole numbers that a float64 holds exactly


def merge_runs(
    runs: Sequence[str | os.PathLike], same: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the particles and images of finished runs as if they were those of one.

    Args:
        runs: folders with particles.csv and summary.csv (of images, not of groups).
        same: fields of run.json that must be the same in all runs, such as the checkpoint and the
            thresholds; a run without run.json has none.

    Returns:
        particles as of :func:`microplastics.measurement.table.combine_tables`, and images as of
        :func:`microplastics.measurement.table.images_table`, both in the order of the runs.

    Raises:
        UserError: a file is missing, broken or not of a run; two runs have an image in common, or
            sizes in different units, or differ in ``same``.
    """
    if not runs:
        raise UserError("There are no runs to merge; name their folders.")
    folders = [Path(run) for run in runs]
    tables, images = [], []
    owners: dict[str, Path] = {}
    for folder in folders:
        table, own = read_particles(folder / PARTICLES_FILE), read_images(folder / SUMMARY_FILE)
        _check_whole(folder, table, own)
        for name in own["image"]:
            if name in owners:
                raise UserError(
                    f"{name} is in {owners[name]} and in {folder}; leave one of the runs out, or "
                    "rename the image and run it again."
                )
            owners[name] = folder
        tables.append(table)
        images.append(own.drop(columns="particles"))
    _check_units(folders, images)
    _check_same(folders, same)
    return combine_tables(tables), pd.concat(images, ignore_index=True).astype(IMAGE_COLUMNS)


def read_particles(path: str | os.PathLike) -> pd.DataFrame:
    """Read a table of particles that was written as CSV.

    Args:
        path: the file.

    Returns:
        columns and dtypes of :func:`microplastics.measurement.table.table_columns`.

    Raises:
        UserError: it is missing, not CSV in UTF-8, lacks a column, or has a cell that is none.
    """
    cells = _read_cells(path)
    um, px = "feret_max_um" in cells, "feret_max_px" in cells
    columns = table_columns(um or not px, px)
    table = _typed(path, cells, columns)
    _check_positive(path, table, ("bbox_w", "bbox_h", "area_px", "um_per_px"))
    return table


def read_images(path: str | os.PathLike) -> pd.DataFrame:
    """Read the images of a run from its summary.

    Args:
        path: summary.csv with a row an image.

    Returns:
        columns and dtypes of :data:`microplastics.measurement.table.IMAGE_COLUMNS`, and
        ``particles``, int64, their number.

    Raises:
        UserError: as of :func:`read_particles`, or an image stands twice, has no size, or has a
            scale that is none.
    """
    cells = _read_cells(path)
    if "group" in cells and "image" not in cells:
        raise UserError(f"{path} has a row a group; merge the summary that has a row an image.")
    if "region_px" not in cells and {"width_px", "height_px"} <= set(cells):
        # Of a run before there were regions: all px count.
        cells["region_px"] = _products(cells["width_px"], cells["height_px"])
    images = _typed(path, cells, {**IMAGE_COLUMNS, "particles": "int64"})
    twice = images["image"].duplicated()
    if twice.any():
        raise UserError(f"{path} has {images['image'][twice].iloc[0]} twice; keep one of the rows.")
    _check_positive(path, images, ("width_px", "height_px", "region_px", "um_per_px"))
    larger = images["region_px"] > images["width_px"] * images["height_px"]
    if larger.any():
        name = images["image"][larger].iloc[0]
        raise UserError(f"{path} has a region_px of {name} larger than the image; correct it.")
    return images


def _products(first: pd.Series, second: pd.Series) -> list[str]:
    """Products of whole numbers in text; "1" where one is none, which its own column tells."""
    pairs = zip(first, second, strict=True)
    return [
        str(int(a) * int(b)) if a.isdecimal() and b.isdecimal() and len(a + b) < 16 else "1"
        for a, b in pairs
    ]


def _check_positive(path: str | os.PathLike, frame: pd.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        wrong = frame[column] <= 0
        if wrong.any():
            name = frame["image"][wrong].iloc[0]
            raise UserError(f"{path} has a {column} of {name} that is not positive; correct it.")


def _read_cells(path: str | os.PathLike) -> pd.DataFrame:
    """All cells as text; an empty one is an empty text, and so is none at a short row's end."""
    path = os.fspath(path)
    try:
        cells = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"Cannot read {path}: {error.strerror or error}; name the folder of a finished run "
            "that wrote CSV."
        ) from error
    except UnicodeError as error:
        raise UserError(f"{path} is not UTF-8; save it as CSV in UTF-8.") from error
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{path} is empty; run the images again.") from error
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not CSV with commas: {reason}; copy it again.") from error
    if not isinstance(cells.index, pd.RangeIndex):
        # Where all rows have a cell too many pandas takes the first for an index.
        raise UserError(f"{path} has rows of more cells than its first; copy it again.")
    return cells.fillna("")


def _typed(path: str | os.PathLike, cells: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    typed = {}
    for name, dtype in columns.items():
        if name not in cells:
            raise UserError(
                f"{path} has no column {name}; take the file as microplastics wrote it."
            )
        convert = _CONVERTERS[dtype]
        values = []
        for row, text in enumerate(cells[name]):
            try:
                if text == "" and dtype == "float64" and name not in _OPTIONAL | set(IMAGE_COLUMNS):
                    raise ValueError
                values.append(convert(text))
            except (KeyError, ValueError, OverflowError) as error:
                raise UserError(
                    f"{path} has {text[:40]!r} as {name} in row {row + 2}; correct the cell."
                ) from error
        typed[name] = pd.Series(values, dtype=dtype)
        if name in ("image", "class") and typed[name].isna().any():
            raise UserError(f"{path} has a row without {name}; correct the cell.")
    return pd.DataFrame(typed)


def _float(text: str) -> float:
    value = float(text) if text else math.nan
    if text and not math.isfinite(value):
        raise ValueError
    return value


def _int(text: str) -> int:
    value = int(text)
    if abs(value) > _LARGEST:
        raise ValueError
    return value


_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "string": lambda text: text or None,
    "float64": _float,
    "int64": _int,
    "bool": lambda text: _BOOLS[text.casefold()],
}


def _check_whole(folder: Path, table: pd.DataFrame, images: pd.DataFrame) -> None:
    """Each image has as many particles in one file as the other one says."""
    found = table["image"].value_counts()
    unknown = found.index.difference(images["image"])
    if len(unknown):
        raise UserError(
            f"{folder / PARTICLES_FILE} has particles of {unknown[0]}, which {SUMMARY_FILE} lacks; "
            "the files are not of one run."
        )
    said = images.set_index("image")["particles"]
    found = found.reindex(said.index, fill_value=0)
    wrong = (found.to_numpy(np.int64) != said.to_numpy(np.int64)).nonzero()[0]
    if len(wrong):
        name = said.index[wrong[0]]
        raise UserError(
            f"{folder / PARTICLES_FILE} has {found[name]} particles of {name}, {SUMMARY_FILE} "
            f"{said[name]}; a file is not whole: copy it again."
        )
    scales = images.set_index("image")["um_per_px"].reindex(table["image"]).to_numpy()
    if not np.array_equal(scales, table["um_per_px"].to_numpy(), equal_nan=True):
        raise UserError(
            f"{folder / PARTICLES_FILE} and {SUMMARY_FILE} have different um_per_px; the files are "
            "not of one run."
        )
    missing = ~(table_sizes(table)[0] > 0)
    if missing.any():
        row = int(missing.argmax())
        raise UserError(
            f"{folder / PARTICLES_FILE} has no feret_max of particle {table['particle'][row]} of "
            f"{table['image'][row]}; copy it again."
        )


def _check_units(folders: list[Path], images: list[pd.DataFrame]) -> None:
    first: dict[bool, Path] = {}
    for folder, own in zip(folders, images, strict=True):
        for calibrated in own["um_per_px"].notna().unique():
            first.setdefault(bool(calibrated), folder)
    if len(first) == 2:
        raise UserError(
            f"{first[True]} has sizes in µm, {first[False]} in px; measure both with a calibration."
        )


def _check_same(folders: list[Path], same: Sequence[str]) -> None:
    if not same:
        return
    settings = [
        (
            read_json(
                folder / RUN_FILE, meant="the settings of a run; take it as microplastics wrote it"
            )
            if (folder / RUN_FILE).exists()
            else {}
        )
        for folder in folders
    ]
    for name in same:
        for folder, own in zip(folders[1:], settings[1:], strict=True):
            if own.get(name) != settings[0].get(name):
                one, other = (json.dumps(run.get(name))[:80] for run in (settings[0], own))
                raise UserError(
                    f"{folders[0]} was made with {name} {one}, {folder} with {other}; run the "
                    "images of one again with the settings of the other."
                )
