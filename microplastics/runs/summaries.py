"""Summaries of runs: samples, blanks, several runs as one."""

import dataclasses
import fnmatch
import json
import logging
import os
import posixpath
from collections.abc import Collection, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import microplastics
from microplastics.counts.corrections import Sampling, parse_volume
from microplastics.counts.summary import image_rows, summarize
from microplastics.data.splits.groups import group_of, table_from_csv
from microplastics.measurement.table import (
    IMAGE_COLUMNS,
    combine_tables,
    images_table,
    parse_size_classes,
    table_columns,
    with_size_classes,
)
from microplastics.runs.images import RunOptions
from microplastics.runs.store import FAILED_FILE, RUN_FILE, SAMPLES_FILE, SUMMARY_FILE, forget_run
from microplastics.utils.errors import UserError
from microplastics.utils.io import OWN_FILE, of_cell, read_json, write_json
from microplastics.writers.registry import PARQUET_FILE, PARTICLES_FILE
from microplastics.writers.tables import write_csv, write_parquet

logger = logging.getLogger(__name__)

SOME_FAILED = 3
"""Exit code of a run in which images failed."""

_SHOWN = 20  # rows of the summary on the terminal
# Bars of one length differ by less, in px and as a fraction.
_BAR_PX, _BAR_SHARE = 2.0, 0.02
_BARS_SHOWN = 20  # images of one length by name
_OF_IMAGES = ("um_per_px", "calibration", "scale_bar_um", "scale_bar", "ignore_metadata")
_OF_IMAGES += ("region", "resume")
# What found the particles must be the same, or the counts cannot be added up.
_SAME = ("checkpoint_sha256", "score_thresholds", "mask_threshold", "join", "max_overlap")
_SAME += ("min_score",)


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
    blanks = _blanks(names, options.blanks)
    if options.group_by is not None:
        images = images_table((name, (1, 1), None) for name in names)
        image_rows(images, groups_of(names, options.group_by), blanks)


def make_summaries(
    table: pd.DataFrame, images: pd.DataFrame, classes: Sequence[str], options: RunOptions
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Count by the options of a run.

    Args:
        table: of all particles.
        images: all images, as :func:`microplastics.measurement.table.images_table` gives them.
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
        "blanks": _blanks(names, options.blanks),
    }
    sampling = _sampling(options, names)
    if options.group_by is None:
        return summarize(table, images, sampling=sampling, **common), None
    groups = groups_of(names, options.group_by)
    samples = summarize(table, images, groups=groups, sampling=sampling, **common)
    return summarize(table, images, **common), samples


def groups_of(names: Sequence[str], group_by: str) -> dict[str, str]:
    """Give the sample of each image by its name.

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
    table = table_from_csv(group_by, "image", "group")
    return {name: table[_row_of(table, group_by, name, "group")] for name in names}


def _row_of(table: Container[str], path: str, name: str, column: str) -> str:
    """What a table calls an image: its name, its last part, or that without its suffix."""
    short = posixpath.basename(name)
    for key in (name, short, os.path.splitext(short)[0]):
        if key in table:
            return key
    raise UserError(f"{path} has no {column} for {name}; add a row for it.", code="table_invalid")


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The images that a name or glob means, of their whole name or its last part."""
    return [
        name
        for name in names
        if fnmatch.fnmatchcase(name, pattern)
        or fnmatch.fnmatchcase(posixpath.basename(name), pattern)
    ]


def _blanks(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The images that are blanks, each once."""
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = matching(names, pattern)
        if not matches:
            raise UserError(
                f"--blanks {pattern} matches no image; give image names or glob patterns.",
                code="input_empty",
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _sampling(options: RunOptions, names: Sequence[str], warn: bool = False) -> Sampling | None:
    """Sampling of images by the options."""
    if options.sampled_volume is not None:
        return Sampling(
            _liters(options, names, warn), options.counted_fraction, options.filter_area_mm2
        )
    for name, given in (
        ("--counted-fraction", options.counted_fraction != 1),
        ("--filter-area-mm2", options.filter_area_mm2 is not None),
    ):
        if given:
            raise UserError(f"{name} needs --sampled-volume; give both.", code="option_missing")
    return None


def _liters(options: RunOptions, names: Sequence[str], warn: bool) -> float | dict[str, float]:
    """Litres of all samples, or of each sample by name."""
    volume = options.sampled_volume
    if not volume.lower().endswith(".csv"):
        return parse_volume(volume)
    table, blanks = table_from_csv(volume, "sample", "volume"), _blanks(names, options.blanks)
    samples = [name for name in names if name not in set(blanks)]
    if options.group_by is not None:
        samples = list(dict.fromkeys(groups_of(samples, options.group_by).values()))
    owners: dict[str, str] = {}
    for sample in samples:
        # Only an image goes by its last part or without its suffix, not a sample S1.5.
        known = table if options.group_by is None else table.keys() & {sample}
        key = _row_of(known, volume, sample, "volume")
        other = owners.setdefault(key, sample)
        if other != sample:
            raise UserError(
                f"{volume}: {key} may be {other} or {sample}; write both with their folders.",
                code="table_invalid",
            )
    unused = [key for key in table if key not in owners]
    if unused and warn:
        logger.warning("%s has volumes of no sample here: %s", volume, ", ".join(unused[:5]))
    liters = {}
    for key, sample in owners.items():
        try:
            liters[sample] = parse_volume(table[key])
        except UserError as error:
            raise UserError(f"{volume}, {key}: {error}", code="table_invalid") from error
    return liters


def write_summaries(output: Path, summary: pd.DataFrame, samples: pd.DataFrame | None) -> None:
    """Write summary.csv, and samples.csv if images are summed."""
    write_csv(summary, output / SUMMARY_FILE)
    if samples is not None:
        write_csv(samples, output / SAMPLES_FILE)
    else:
        (output / SAMPLES_FILE).unlink(missing_ok=True)


def print_summary(
    output: Path, summary: pd.DataFrame, samples: pd.DataFrame | None, classes: Sequence[str]
) -> None:
    """Print the number of particles found and the output folder."""
    shown = summary if samples is None else samples
    columns = {shown.columns[0]: shown.columns[0], "count": "particles"}
    columns.update({f"{name}.count": name for name in classes})
    columns.update(feret_max_p50_um="median size, µm", feret_max_p50_px="median size, px")
    rows = shown[[name for name in columns if name in shown]].rename(columns=columns)
    rows = rows.astype(object).where(rows.notna(), None)  # no median without particles
    print(rows[:_SHOWN].to_markdown(index=False, floatfmt=".1f", disable_numparse=[0]))
    if len(rows) > _SHOWN:
        print(f"… and {len(rows) - _SHOWN} more rows in {output}")
    found = counted(int(summary["count"].sum()), "particle")
    print(f"{found} on {counted(len(summary), 'image')}. Results in {output}")


def counted(number: int, thing: str) -> str:
    """Give ``1 image`` or ``2 images``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def differing_bars(records: Sequence[dict[str, Any]], options: RunOptions) -> str:
    """Say that one figure for all images meets scale bars of several lengths, and on which.

    Args:
        records: of the images of a run.
        options: of the run.

    Returns:
        A warning; empty without a reason for one.
    """
    if options.scale_bar_um is not None:
        given = f"--scale-bar-um {options.scale_bar_um:g} holds only where the bar says so"
    elif options.um_per_px is not None:
        given = f"--um-per-px {options.um_per_px:g} holds only if their numbers differ alike"
    else:
        return ""
    bars = sorted(
        (record["scale_bars"][0]["px"], record["name"])
        for record in records
        if len(record["scale_bars"]) == 1
    )
    groups: list[list[tuple[float, str]]] = []
    for bar in bars:
        if groups and bar[0] - groups[-1][-1][0] <= max(_BAR_PX, _BAR_SHARE * bar[0]):
            groups[-1].append(bar)
        else:
            groups.append([bar])
    if len(groups) < 2:
        return ""
    listed = []
    for group in sorted(groups, key=len):
        names = ", ".join(name for _, name in group[:_BARS_SHOWN])
        more = f" and {len(group) - _BARS_SHOWN} more" if len(group) > _BARS_SHOWN else ""
        listed.append(f"{group[0][0]:.1f} px on {names}{more}")
    return (
        f"The scale bars differ in length: {'; '.join(listed)}. {given}: look at these images, or "
        "let --scale-bar auto read each number."
    )


def run_class_names(run: Path) -> list[str]:
    """Read the class names of a run from its run.json."""
    names = read_record(run).get("class_names", [])
    if not (isinstance(names, list) and all(isinstance(name, str) and name for name in names)):
        raise UserError(
            f"{run / RUN_FILE} has invalid class names; use the file as it was written.",
            code="run_invalid",
        )
    return names


def merge_into(runs: Sequence[str], options: RunOptions) -> int:
    """Write the tables of several finished runs, and count them again by the options.

    Args:
        runs: their folders.
        options: of the summary, and the folder for the new tables.

    Returns:
        0, or 3 if images failed in one of the runs.

    Raises:
        UserError: the runs do not go together, the folder is one of them, or an option is for
            images only.
    """
    for name in _OF_IMAGES:
        if getattr(options, name):
            raise UserError(
                f"--{name.replace('_', '-')} cannot be combined with --merge-runs, which does not "
                "measure again; leave it out.",
                code="option_conflict",
            )
    output = Path(options.output)
    if output.resolve() in [Path(run).resolve() for run in runs]:
        raise UserError(
            f"--output {output} is one of the runs; choose another folder.", code="option_conflict"
        )
    if (output / SUMMARY_FILE).exists() and not options.overwrite:
        raise UserError(
            f"{output} contains a run; add --overwrite, or choose another --output.",
            code="output_exists",
        )
    table, images = merge_runs(runs, _SAME)
    check_samples(options, images["image"].tolist())
    table = with_size_classes(table, parse_size_classes(options.size_classes), options.min_size)
    classes = list(dict.fromkeys(name for run in runs for name in run_class_names(Path(run))))
    failed = {run: len(read_failures(Path(run))) for run in runs}
    summaries = make_summaries(table, images, classes, options)
    forget_run(output)
    write_csv(table, output / PARTICLES_FILE)
    if "parquet" in options.formats:
        write_parquet(table, output / PARQUET_FILE)
    write_summaries(output, *summaries)
    about = {
        "microplastics": microplastics.__version__,
        "merged": [str(Path(run).resolve()) for run in runs],
        "options": dataclasses.asdict(options),
        "class_names": classes,
        "particles": len(table),
        "failed": sum(failed.values()),
    }
    write_json(output / RUN_FILE, about, indent=1)
    print_summary(output, *summaries, classes)
    for run, number in failed.items():
        if number:
            print(f"{counted(number, 'image')} failed in {run} and are not counted")
    return SOME_FAILED if any(failed.values()) else 0


def read_record(folder: Path) -> dict[str, Any]:
    """Read the run.json of a run, empty if it has none."""
    path = folder / RUN_FILE
    return read_json(path, meant=OWN_FILE) if path.is_file() else {}


def read_failures(folder: Path) -> pd.DataFrame:
    """Read the failed.csv of a run, empty if no image failed."""
    path = folder / FAILED_FILE
    return read_run_csv(path, {}) if path.is_file() else pd.DataFrame()


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
    folders = [Path(run) for run in runs]
    tables = [read_particles(folder / PARTICLES_FILE) for folder in folders]
    images = [read_images(folder / SUMMARY_FILE) for folder in folders]
    for folder, table, own in zip(folders, tables, images, strict=True):
        _check_consistent(folder, table, own)
    owners = np.repeat([str(folder) for folder in folders], [len(own) for own in images])
    merged = pd.concat(images, ignore_index=True)
    twice = merged["image"][merged["image"].duplicated()]
    if len(twice):
        where = " and in ".join(owners[merged["image"] == twice.iloc[0]])
        raise UserError(
            f"{twice.iloc[0]} is in {where}; leave out one of the runs, or rename the image and "
            "run it again.",
            code="name_clash",
        )
    calibrated = merged["um_per_px"].notna().to_numpy()
    if calibrated.any() and not calibrated.all():
        raise UserError(
            f"{owners[calibrated][0]} has sizes in µm, {owners[~calibrated][0]} in px; measure "
            "both with a scale.",
            code="scale_missing",
        )
    records = [read_record(folder) for folder in folders]
    for name in same:
        values = [json.dumps(record.get(name), sort_keys=True) for record in records]
        for folder, value in zip(folders, values, strict=True):
            if value != values[0]:
                raise UserError(
                    f"{folders[0]} was made with {name} {values[0][:80]}, {folder} with "
                    f"{value[:80]}; run the images of one again with the settings of the other.",
                    code="run_mismatch",
                )
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
    table = read_run_csv(path, table_columns(um=True, px=True))
    if "length_method" not in table:  # written before there was such a column
        table["length_method"] = pd.Series(pd.NA, table.index, "string")
    um, px = "feret_max_um" in table, "feret_max_px" in table
    table = _select(path, table, table_columns(um or not px, px))
    valid = table[["image", "class", "x", "y"]].notna().all(axis=1)
    valid &= (table[["bbox_w", "bbox_h", "area_px"]] > 0).all(axis=1)
    _check_rows(path, table, valid & (table.filter(like="feret_max_").max(axis=1) > 0))
    return table


def read_images(path: Path) -> pd.DataFrame:
    """The images of a run and their number of particles, from its summary.csv."""
    columns = {**IMAGE_COLUMNS, "particles": "int64"}
    images = _select(path, read_run_csv(path, columns), columns)
    valid = images["image"].notna() & ~images["image"].duplicated()
    valid &= (images[["width_px", "height_px", "region_px"]] > 0).all(axis=1)
    valid &= images["region_px"] <= images["width_px"] * images["height_px"]
    _check_rows(path, images, valid & ~(images["um_per_px"] <= 0))
    return images


def read_run_csv(path: str | os.PathLike, dtypes: dict[str, str]) -> pd.DataFrame:
    """Read a table of a run; spreadsheets may have saved it."""
    try:
        table = pd.read_csv(
            path,
            dtype=dtypes,
            encoding="utf-8-sig",
            keep_default_na=False,
            na_values=[""],
            index_col=False,
            true_values=["True", "TRUE", "true"],
            false_values=["False", "FALSE", "false"],
        )
        for name in table.select_dtypes(("object", "string")):
            cells = table[name].map(of_cell, na_action="ignore")
            table[name] = cells.astype(table[name].dtype)
        return table.rename(columns=of_cell)
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


def _select(path: str | os.PathLike, table: pd.DataFrame, columns: Collection[str]) -> pd.DataFrame:
    missing = set(columns) - set(table)
    if missing:
        raise UserError(
            f"{path} has no column {min(missing)}; expected the file of a run with a row an image, "
            "unchanged.",
            code="run_invalid",
        )
    return table[list(columns)]


def _check_rows(path: str | os.PathLike, table: pd.DataFrame, valid: pd.Series) -> None:
    """Refuse the first row that is not valid or has an infinite number."""
    valid &= ~np.isinf(table.select_dtypes("float64")).any(axis=1)
    wrong = np.flatnonzero(~valid.to_numpy(bool))
    if len(wrong):
        name = table["image"].iloc[wrong[0]]
        raise UserError(
            f"{path} is damaged: row {wrong[0] + 2} (image {name}) has a cell that is empty, "
            "there twice or impossible; copy it again.",
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
