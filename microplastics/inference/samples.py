"""The summary of a run: images, samples and blanks."""

import fnmatch
import logging
import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from microplastics.data.splits.groups import group_of, groups_from_csv, table_from_csv
from microplastics.errors import UserError
from microplastics.inference.options import RunOptions
from microplastics.measurement.concentration import Sampling, parse_volume
from microplastics.measurement.size_classes import parse_size_classes
from microplastics.measurement.summary import summarize
from microplastics.measurement.summary_rows import image_rows
from microplastics.measurement.table import images_table

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
