"""Summary of counts per image or group of images."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from microplastics.counts.corrections import (
    Counts,
    EdgeRule,
    Sampling,
    concentration_columns,
    correct_for_blanks,
    edge_weights,
)
from microplastics.counts.intervals import (
    Interval,
    bootstrap_mean_interval,
    bootstrap_median_interval,
    poisson_interval,
    wilson_interval,
)
from microplastics.measurement.table import (
    DEFAULT_SIZE_CLASSES,
    IMAGE_COLUMNS,
    SizeClasses,
    check_min_size,
    table_sizes,
)
from microplastics.utils.errors import UserError

_MOST_SOURCES = 5
_UM2_PER_MM2 = 1e6
_PERCENTILES = (10, 25, 50, 75, 90)
_STATISTICS = ("mean", "sd", *(f"p{each}" for each in _PERCENTILES), "p50_low", "p50_high")
_Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rows:
    """R rows of N images."""

    names: list[str]  # of the rows
    images: pd.Index  # names of the N images
    codes: np.ndarray  # (N,) row of each image
    members: list[np.ndarray]  # images of each row
    frames: np.ndarray  # (N, 2) width and height of each image in px
    calibrated: np.ndarray  # (R,) whether the row's images have a calibration
    areas: np.ndarray  # (R,) counted area in mm²; NaN without a calibration
    exposures: np.ndarray  # (R,) the areas, or if a row has no scale, counted numbers of images
    blank: np.ndarray  # (R,) whether the row is a blank
    grouped: bool  # whether rows are groups
    columns: dict[str, object]  # of the summary, about the rows themselves

    def __len__(self) -> int:
        return len(self.names)


def summarize(
    table: pd.DataFrame,
    images: pd.DataFrame,
    *,
    classes: Sequence[str] = (),
    groups: Mapping[str, str] | None = None,
    size_classes: SizeClasses = DEFAULT_SIZE_CLASSES,
    min_size: float | None = None,
    edge: EdgeRule = "count",
    blanks: Collection[str] = (),
    sampling: Sampling | None = None,
) -> pd.DataFrame:
    """Count the particles of each image or group; ``docs/counts.md`` has the columns.

    Args:
        table: of particles, as of :func:`microplastics.measurement.table.combine_tables`.
        images: all images, with or without particles, as of
            :func:`microplastics.measurement.table.images_table`.
        classes: that have columns even if none was found; other classes of the table follow.
        groups: group of every image; None gives a row an image.
        size_classes: bins of the counts by size.
        min_size: smallest reported size in µm, in px of an image without a calibration; smaller
            particles are counted only in ``below_min_size``.
        edge: how particles at the edge count.
        blanks: names of the images that are blanks.
        sampling: what was filtered; None leaves the concentrations out.

    Returns:
        a row for each image in their order, or for each group by its name.

    Raises:
        ValueError: an image stands twice, or a particle's image is not among them.
        UserError: a group mixes blanks with samples or µm with px, a name is unknown, a setting is
            invalid, or weights are combined with a region.
    """
    check_min_size(min_size)
    rows = image_rows(images, groups, blanks)
    partial = images["region_px"] != images["width_px"] * images["height_px"]
    if edge == "weight" and partial.any():
        raise UserError(
            f"{images['image'][partial].iloc[0]} has a region of interest, which excludes --edge "
            "weight (it corrects for a rectangular border); leave out one of them.",
            code="option_conflict",
        )
    particles = weigh_particles(table, rows, min_size, edge)
    liters = None
    if sampling is not None:
        liters = np.full(len(rows), np.nan)  # of blanks
        samples = np.flatnonzero(~rows.blank)
        names = [rows.names[index] for index in samples]
        liters[samples] = sampling.counted_liters(names, rows.areas[samples])
    columns = {**rows.columns, **_left_out_columns(particles, rows)}
    particles = particles[~particles["small"] & (particles["weight"] > 0)]
    names = dict.fromkeys([*classes, *sorted(set(table["class"]) - set(classes))])
    for name in (None, *names):
        part = particles if name is None else particles[particles["class"] == name]
        found = _count_columns(part, rows, None if name is None else _count(particles, rows))
        found |= _size_columns(part, rows, size_classes, edge == "weight")
        found |= _corrected_columns(_count(part, rows), rows, liters)
        prefix = "" if name is None else f"{name}."
        columns.update({f"{prefix}{key}": values for key, values in found.items()})
    return pd.DataFrame(columns)


def image_rows(
    images: pd.DataFrame, groups: Mapping[str, str] | None, blanks: Collection[str]
) -> Rows:
    """Make the rows of a summary; arguments and errors as for :func:`summarize`."""
    index = pd.Index(images["image"].to_numpy(object), dtype=object)
    if not index.is_unique:
        raise ValueError(f"{index[index.duplicated()][0]} stands twice among the images")
    if unknown := sorted(set(blanks) - set(index)):
        raise UserError(
            f"The blank {unknown[0]} is not among the images; give its name as in the table.",
            code="option_invalid",
        )
    owners = list(index) if groups is None else [groups[name] for name in index]
    names = list(index) if groups is None else sorted(set(owners))
    codes = pd.Index(names, dtype=object).get_indexer(owners).astype(np.int64)
    members = _members(codes, len(names))
    scales = images["um_per_px"].to_numpy(np.float64)
    calibrated = _uniform(
        ~np.isnan(scales), members, names, "images with and without a calibration; calibrate all"
    )
    blank = _uniform(
        index.isin(list(blanks)),
        members,
        names,
        "blanks and samples; give blanks a group of their own",
    )
    pixels = images["region_px"].to_numpy(np.int64)
    frames = images[["width_px", "height_px"]].to_numpy(np.int64)
    areas = np.bincount(codes, pixels.astype(np.float64) * scales**2 / _UM2_PER_MM2, len(names))
    fractions = np.bincount(codes, pixels / frames.prod(axis=1), len(names))
    if groups is None:
        columns = {name: images[name].array for name in IMAGE_COLUMNS}
    else:
        columns = _group_columns(images, names, members)
    columns["area_mm2"] = areas
    if blank.any():
        columns["is_blank"] = blank
    return Rows(
        names=names,
        images=index,
        codes=codes,
        members=members,
        frames=frames,
        calibrated=calibrated,
        areas=areas,
        exposures=fractions if np.isnan(areas).any() else areas,
        blank=blank,
        grouped=groups is not None,
        columns=columns,
    )


def _members(codes: np.ndarray, count: int) -> list[np.ndarray]:
    """Places of each of the numbers 0 to ``count``."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.searchsorted(codes[order], np.arange(1, count)))[:count]


def _uniform(
    flags: np.ndarray, members: list[np.ndarray], names: list[str], mixture: str
) -> np.ndarray:
    """The flag of each row, which all its images must have in common."""
    for name, own in zip(names, members, strict=True):
        if flags[own].any() != flags[own].all():
            raise UserError(f"The group {name} mixes {mixture}.", code="option_conflict")
    return np.array([flags[own].all() for own in members], dtype=bool)


def _group_columns(
    images: pd.DataFrame, names: list[str], members: list[np.ndarray]
) -> dict[str, object]:
    scales = images["um_per_px"].to_numpy(np.float64)
    sources = images["calibration_source"].to_numpy(object)
    common = [scales[own[0]] if len(set(scales[own])) == 1 else np.nan for own in members]
    return {
        "group": pd.array(names, dtype="string"),
        "images": np.array([len(own) for own in members], dtype=np.int64),
        "um_per_px": np.array(common, dtype=np.float64),
        "calibration_source": pd.array([_sources(sources[own]) for own in members], dtype="string"),
    }


def _sources(sources: np.ndarray) -> str | None:
    """The sources of a group's scales in one text."""
    found = sorted({source for source in sources if isinstance(source, str)})
    more = len(found) - _MOST_SOURCES
    text = "; ".join(found[:_MOST_SOURCES]) + (f"; and {more} more" if more > 0 else "")
    return text or None


def weigh_particles(
    table: pd.DataFrame, rows: Rows, min_size: float | None, edge: EdgeRule
) -> pd.DataFrame:
    """Give class, row, image, size, unit, whether small, and weight of each particle.

    Arguments are those of :func:`summarize`, with ``rows`` of :func:`image_rows`. What is not
    ``small`` and has a weight counts.
    """
    places = rows.images.get_indexer(table["image"])
    if (places < 0).any():
        unknown = table["image"].iloc[int(np.argmax(places < 0))]
        raise ValueError(f"There is a particle of {unknown}, which is not among the images")
    sizes, calibrated = table_sizes(table)
    touching = table["touches_edge"].to_numpy(bool)
    boxes = table[["bbox_w", "bbox_h"]].to_numpy(np.int64)
    return pd.DataFrame(
        {
            "class": table["class"].to_numpy(object),
            "row": rows.codes[places],
            "image": places,
            "size": sizes,
            "calibrated": calibrated,
            "small": np.full(len(table), False) if min_size is None else sizes < min_size,
            "touching": touching,
            "weight": edge_weights(touching, boxes, rows.frames[places], edge),
        }
    )


def _left_out_columns(particles: pd.DataFrame, rows: Rows) -> _Columns:
    """Numbers of all particles and of those that are not counted."""
    reported = ~particles["small"]
    chosen = {
        "particles": slice(None),
        "below_min_size": ~reported,
        "touching_edge": particles["touching"] & reported,
        "excluded_at_edge": (particles["weight"] == 0) & reported,
    }
    return {name: _count(particles[which], rows).numbers for name, which in chosen.items()}


def _count(particles: pd.DataFrame, rows: Rows) -> Counts:
    place, weights = particles["row"].to_numpy(), particles["weight"].to_numpy()
    largest = np.ones(len(rows))
    np.maximum.at(largest, place, weights)
    return Counts(
        np.bincount(place, minlength=len(rows)).astype(np.int64),
        # Without particles numpy returns integers.
        np.bincount(place, weights, len(rows)).astype(np.float64),
        np.bincount(place, weights**2, len(rows)).astype(np.float64),
        largest,
    )


def _count_columns(part: pd.DataFrame, rows: Rows, whole: Counts | None) -> _Columns:
    """Counts of all particles, or of one class, which are a fraction of the ``whole``."""
    counts = _count(part, rows)
    interval = counts.interval()
    columns = poisson_interval(counts.numbers).columns("count", counts.numbers)
    columns |= interval.columns("weighted_count", counts.sums)
    if whole is not None:
        columns |= _fraction_columns(counts, whole)
    per_area = Interval(interval.low / rows.areas, interval.high / rows.areas)
    columns |= per_area.columns("count_per_mm2", counts.sums / rows.areas)
    if rows.grouped:
        columns |= _per_image_columns(part, rows)
    return columns


def _fraction_columns(counts: Counts, whole: Counts) -> _Columns:
    some = whole.sums > 0
    fractions = np.divide(counts.sums, whole.sums, out=np.full(len(some), np.nan), where=some)
    numbers = np.divide(whole.sums**2, whole.squares, out=np.zeros(len(some)), where=some)
    # A sum of weights in another order may be off by a rounding.
    fractions = np.minimum(fractions, 1)
    return wilson_interval(fractions, numbers).columns("fraction", fractions)


def _per_image_columns(part: pd.DataFrame, rows: Rows) -> _Columns:
    """Mean and spread over a group's images."""
    sums = np.bincount(part["image"].to_numpy(), part["weight"].to_numpy(), len(rows.images))
    values = [sums[members] for members in rows.members]
    bounds = np.array([bootstrap_mean_interval(one) for one in values]).reshape(-1, 2)
    sds = [one.std(ddof=1) if len(one) > 1 else np.nan for one in values]
    columns = Interval(*bounds.T).columns(
        "count_per_image", np.array([one.mean() for one in values])
    )
    return {**columns, "count_per_image_sd": np.array(sds)}


def _size_columns(
    part: pd.DataFrame, rows: Rows, size_classes: SizeClasses, weighted: bool
) -> _Columns:
    """Statistics of ``feret_max`` and counts by size class."""
    place, calibrated = part["row"].to_numpy(), part["calibrated"].to_numpy(bool)
    sizes, weights = part["size"].to_numpy(), part["weight"].to_numpy()
    found = np.array(
        [
            _statistics(sizes[own], weights[own] if weighted else None)
            for own in _members(place, len(rows))
        ]
    ).reshape(-1, len(_STATISTICS))
    columns = {}
    for unit, applies in (("um", rows.calibrated), ("px", ~rows.calibrated)):
        # Without a single image the table is in µm.
        if applies.any() or (unit == "um" and not len(rows)):
            for name, values in zip(_STATISTICS, found.T, strict=True):
                columns[f"feret_max_{name}_{unit}"] = np.where(applies, values, np.nan)
    if not rows.calibrated.any() and len(rows):
        return columns
    names = size_classes.columns
    shape = (len(rows), len(names))
    cells = place[calibrated] * len(names) + size_classes.bins(sizes[calibrated])
    numbers = np.bincount(cells, minlength=shape[0] * shape[1]).astype(np.int64)
    columns.update(zip((f"size_{name}" for name in names), numbers.reshape(shape).T, strict=True))
    if weighted:
        sums = np.bincount(cells, weights[calibrated], shape[0] * shape[1]).astype(np.float64)
        titles = (f"weighted_size_{name}" for name in names)
        columns.update(zip(titles, sums.reshape(shape).T, strict=True))
    return columns


def _statistics(sizes: np.ndarray, weights: np.ndarray | None) -> list[float]:
    """Compute :data:`_STATISTICS`; all are NaN without a particle, the sd of one is NaN."""
    if not len(sizes):
        return [np.nan] * len(_STATISTICS)
    # Sums in one order, so that the order of the particles does not show in the last digit.
    order = np.argsort(sizes, kind="stable") if weights is None else np.lexsort((weights, sizes))
    sizes = sizes[order]
    weights = None if weights is None else weights[order]
    mean = float(np.average(sizes, weights=weights))
    spread = float(np.average((sizes - mean) ** 2, weights=weights))
    number = len(sizes)
    sd = np.sqrt(spread * number / (number - 1)) if number > 1 else np.nan
    low, high = bootstrap_median_interval(sizes, weights)
    return [mean, float(sd), *_percentiles(sizes, weights), low, high]


def _percentiles(sizes: np.ndarray, weights: np.ndarray | None) -> list[float]:
    """The percentiles of sorted sizes.

    Without weights interpolated as numpy, pandas, R and Excel do by default (type 7 of Hyndman and
    Fan 1996, doi:10.1080/00031305.1996.10473566); weights put each size at the middle of its step
    of the cumulative weight (type 5).
    """
    fractions = np.array(_PERCENTILES) / 100
    if weights is None:
        return np.quantile(sizes, fractions).tolist()
    ends = np.cumsum(weights)
    return np.interp(fractions, (ends - weights / 2) / ends[-1], sizes).tolist()


def _corrected_columns(counts: Counts, rows: Rows, liters: np.ndarray | None) -> _Columns:
    """Concentrations, and counts and concentrations less those of the blanks."""
    columns: _Columns = {}
    if liters is not None:
        columns |= concentration_columns(counts.sums, counts.interval(), liters)
    if rows.blank.any():
        corrected = correct_for_blanks(counts, rows.exposures, rows.blank)
        columns |= corrected
        if liters is not None:
            estimates, *bounds = (
                corrected[f"count_corrected{end}"] for end in ("", "_low", "_high")
            )
            columns |= concentration_columns(estimates, Interval(*bounds), liters, "_corrected")
    return columns
