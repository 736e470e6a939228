"""Summary of counts per image or group of images."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

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
    LEVEL,
    bootstrap_mean_interval,
    bootstrap_median_interval,
    poisson_interval,
    wilson_interval,
)
from microplastics.measurement.size_classes import DEFAULT_SIZE_CLASSES, SizeClasses, check_min_size
from microplastics.measurement.table import table_sizes
from microplastics.utils.errors import UserError

_MOST_SOURCES = 5
_UM2_PER_MM2 = 1e6
PERCENTILES = (10, 25, 50, 75, 90)
STATISTICS = (
    "mean",
    "sd",
    *(f"p{percentile}" for percentile in PERCENTILES),
    "p50_low",
    "p50_high",
)


@dataclasses.dataclass(frozen=True)
class Rows:
    """R rows of N images.

    Attributes:
        names: of the rows.
        images: of the N images.
        codes: (N,) row of each image.
        members: images of each row.
        frames: (N, 2) width and height of each image in px.
        calibrated: (R,) whether the row's images have a calibration.
        areas: (R,) counted area of each row in mm²; NaN without a calibration.
        fractions: (R,) sum over the row's images of the fraction of their px that is counted.
        blank: (R,) whether the row is a blank.
        grouped: whether rows are groups.
        columns: columns of the summary about the rows themselves.
    """

    names: list[str]
    images: pd.Index
    codes: np.ndarray
    members: list[np.ndarray]
    frames: np.ndarray
    calibrated: np.ndarray
    areas: np.ndarray
    fractions: np.ndarray
    blank: np.ndarray
    grouped: bool
    columns: dict[str, object]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def exposures(self) -> np.ndarray:
        """(R,) counted areas in mm², or if a row has no scale, counted numbers of images."""
        return self.fractions if np.isnan(self.areas).any() else self.areas

    @property
    def whole(self) -> np.ndarray:
        """(R,) whether the row's images are counted completely."""
        return self.fractions == [len(members) for members in self.members]


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
    level: float = LEVEL,
) -> pd.DataFrame:
    """Count the particles of each image or group; ``docs/counts.md`` has the columns.

    Args:
        table: of particles, as of :func:`microplastics.measurement.table.combine_tables`.
        images: all images, with or without particles, as of
            :func:`microplastics.measurement.table.images_table`.
        classes: that have columns even if none was found; other classes of the table follow.
        groups: group of each image; None gives a row an image.
        size_classes: bins of the counts by size.
        min_size: smallest reported size in µm, in px of an image without a calibration; smaller
            particles are counted only in ``below_min_size``.
        edge: how particles at the edge count.
        blanks: names of the images that are blanks.
        sampling: what was filtered; None leaves the concentrations out.
        level: coverage of all intervals, in (0, 1).

    Returns:
        a row for each image in their order, or for each group by its name.

    Raises:
        ValueError: an image stands twice, or a particle's image is not among them.
        UserError: a group mixes blanks with samples or µm with px, a name is unknown, a setting is
            invalid, or weights are combined with a region.
    """
    check_min_size(min_size)
    rows = image_rows(images, groups, blanks)
    if edge == "weight" and not rows.whole.all():
        name = rows.names[int(np.argmin(rows.whole))]
        raise UserError(
            f"{name} has a region of interest, which excludes --edge weight (it corrects for a "
            "rectangular border); leave out one of them.",
            code="option_conflict",
        )
    particles = _particles(table, rows, min_size, edge)
    names = list(dict.fromkeys([*classes, *sorted(set(table["class"]) - set(classes))]))
    columns = _row_columns(rows, particles)
    liters = _liters(rows, sampling)
    for name in (None, *names):
        part = particles if name is None else particles[particles["class"] == name]
        prefix = "" if name is None else f"{name}."
        scope = _scope_columns(part, particles, rows, size_classes, edge, liters, level, name)
        columns.update({f"{prefix}{key}": values for key, values in scope})
    return pd.DataFrame(columns)


def image_rows(
    images: pd.DataFrame, groups: Mapping[str, str] | None, blanks: Collection[str]
) -> Rows:
    """Make the rows of a summary.

    Args:
        images: as of :func:`microplastics.measurement.table.images_table`.
        groups: group of each image, or None.
        blanks: names of images.

    Raises:
        ValueError: an image stands twice.
        UserError: an image has no group, a blank is not among the images, or a group mixes blanks
            with samples or µm with px.
    """
    index = pd.Index(images["image"].to_numpy(object), dtype=object)
    if not index.is_unique:
        raise ValueError(f"{index[index.duplicated()][0]} stands twice among the images")
    if unknown := sorted(set(blanks) - set(index)):
        raise UserError(
            f"The blank {unknown[0]} is not among the images; give its name as in the table.",
            code="option_invalid",
        )
    owners = list(index) if groups is None else [_group(groups, name) for name in index]
    names = list(index) if groups is None else sorted(set(owners))
    codes = pd.Index(names, dtype=object).get_indexer(owners).astype(np.int64)
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes, minlength=len(names)))[:-1])
    members = members if names else []
    frames = images[["width_px", "height_px"]].to_numpy(np.int64)
    scales = images["um_per_px"].to_numpy(np.float64)
    pixels = images["region_px"].to_numpy(np.int64)
    areas = pixels.astype(np.float64) * scales**2 / _UM2_PER_MM2
    calibrated = _uniform(
        ~np.isnan(scales), members, names, "images with and without a calibration; calibrate all"
    )
    is_blank = np.array([name in set(blanks) for name in index], dtype=bool)
    blank = _uniform(
        is_blank, members, names, "blanks and samples; give blanks a group of their own"
    )
    sums = np.bincount(codes, areas, len(names))
    columns = _columns(images, names, members, frames, scales, groups is not None)
    columns["area_mm2"] = sums
    if blank.any():
        columns["is_blank"] = blank
    fractions = np.bincount(codes, pixels / frames.prod(axis=1), len(names))
    return Rows(
        names=names,
        images=index,
        codes=codes,
        members=members,
        frames=frames,
        calibrated=calibrated,
        areas=sums,
        fractions=fractions,
        blank=blank,
        grouped=groups is not None,
        columns=columns,
    )


def size_columns(
    particles: pd.DataFrame, rows: Rows, size_classes: SizeClasses, weighted: bool, level: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Give statistics of ``feret_max`` and counts by size class.

    Args:
        particles: that count, with ``row``, ``size``, ``calibrated`` and ``weight``.
        rows: of the summary.
        size_classes: bins in µm; particles without a calibration are in none.
        weighted: whether the weights are not all 1.
        level: coverage of the median's interval.

    Yields:
        name and (R,) values of each column.
    """
    place = particles["row"].to_numpy()
    sizes, weights = particles["size"].to_numpy(), particles["weight"].to_numpy()
    order = np.argsort(place, kind="stable")
    cuts = np.cumsum(np.bincount(place, minlength=len(rows)))[:-1]
    found = np.array(
        [
            _statistics(sizes[own], weights[own] if weighted else None, level)
            for own in (np.split(order, cuts) if len(rows) else [])
        ]
    ).reshape(-1, len(STATISTICS))
    for unit, applies in (("um", rows.calibrated), ("px", ~rows.calibrated)):
        # Without a single image the table is in µm.
        if applies.any() or (unit == "um" and not len(rows)):
            for index, name in enumerate(STATISTICS):
                yield f"feret_max_{name}_{unit}", np.where(applies, found[:, index], np.nan)
    if not rows.calibrated.any() and len(rows):
        return
    calibrated = particles["calibrated"].to_numpy(bool)
    names = size_classes.columns
    bins = size_classes.bins(sizes[calibrated])
    cells = place[calibrated] * len(names) + bins
    shape = (len(rows), len(names))
    numbers = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    for index, name in enumerate(names):
        yield f"size_{name}", numbers[:, index].astype(np.int64)
    if weighted:
        sums = np.bincount(cells, weights[calibrated], shape[0] * shape[1]).reshape(shape)
        for index, name in enumerate(names):
            yield f"weighted_size_{name}", sums[:, index].astype(np.float64)


def percentiles(sizes: np.ndarray, weights: np.ndarray | None) -> list[float]:
    """Compute the :data:`PERCENTILES` of sorted sizes.

    Args:
        sizes: (N,) ascending, at least one.
        weights: (N,) positive. None interpolates as numpy, pandas, R and Excel do by default
            (type 7 of Hyndman and Fan 1996, doi:10.1080/00031305.1996.10473566); weights put each
            size at the middle of its step of the cumulative weight (type 5).
    """
    fractions = np.array(PERCENTILES) / 100
    if weights is None:
        return np.quantile(sizes, fractions).tolist()
    ends = np.cumsum(weights)
    return np.interp(fractions, (ends - weights / 2) / ends[-1], sizes).tolist()


def _group(groups: Mapping[str, str], name: str) -> str:
    if name not in groups:
        raise UserError(
            f"{name} does not belong to a group; give each image a group.", code="option_missing"
        )
    return groups[name]


def _uniform(
    flags: np.ndarray, members: list[np.ndarray], names: list[str], mixture: str
) -> np.ndarray:
    """The flag of each row, which all its images must have in common."""
    for name, own in zip(names, members, strict=True):
        if flags[own].any() != flags[own].all():
            raise UserError(f"The group {name} mixes {mixture}.", code="option_conflict")
    return np.array([flags[own].all() for own in members], dtype=bool)


def _columns(
    images: pd.DataFrame,
    names: list[str],
    members: list[np.ndarray],
    frames: np.ndarray,
    scales: np.ndarray,
    grouped: bool,
) -> dict[str, object]:
    sources = images["calibration_source"].to_numpy(object)
    if not grouped:
        return {
            "image": pd.array(names, dtype="string"),
            "width_px": frames[:, 0],
            "height_px": frames[:, 1],
            "region_px": images["region_px"].to_numpy(np.int64),
            "um_per_px": scales,
            "calibration_source": pd.array(sources, dtype="string"),
        }
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


def _statistics(sizes: np.ndarray, weights: np.ndarray | None, level: float) -> list[float]:
    """Compute :data:`STATISTICS`; all are NaN without a particle, the sd of one is NaN."""
    if not len(sizes):
        return [np.nan] * len(STATISTICS)
    # Sums in one order, so that the order of the particles does not show in the last digit.
    order = np.argsort(sizes, kind="stable") if weights is None else np.lexsort((weights, sizes))
    sizes = sizes[order]
    weights = None if weights is None else weights[order]
    mean = float(np.average(sizes, weights=weights))
    spread = float(np.average((sizes - mean) ** 2, weights=weights))
    number = len(sizes)
    sd = np.sqrt(spread * number / (number - 1)) if number > 1 else np.nan
    low, high = bootstrap_median_interval(sizes, weights, level)
    return [mean, float(sd), *percentiles(sizes, weights), low, high]


def _particles(
    table: pd.DataFrame, rows: Rows, min_size: float | None, edge: EdgeRule
) -> pd.DataFrame:
    """Class, row, image, size, unit, whether small, and weight of each particle."""
    places = rows.images.get_indexer(table["image"])
    if (places < 0).any():
        unknown = table["image"].iloc[int(np.argmax(places < 0))]
        raise ValueError(f"There is a particle of {unknown}, which is not among the images")
    sizes, calibrated = table_sizes(table)
    touching = table["touches_edge"].to_numpy(bool)
    small = sizes < min_size if min_size is not None else np.zeros(len(table), bool)
    boxes = table[["bbox_w", "bbox_h"]].to_numpy(np.int64)
    return pd.DataFrame(
        {
            "class": table["class"].to_numpy(object),
            "row": rows.codes[places],
            "image": places,
            "size": sizes,
            "calibrated": calibrated,
            "small": small,
            "touching": touching,
            "weight": edge_weights(touching, boxes, rows.frames[places], edge),
        }
    )


def _row_columns(rows: Rows, particles: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns about a row's images, and how many of its particles are not counted."""
    reported = ~particles["small"].to_numpy()
    touching = particles["touching"].to_numpy() & reported
    left_out = (particles["weight"].to_numpy() == 0) & reported
    place = particles["row"].to_numpy()
    return {
        **rows.columns,
        "particles": _numbers(place, len(rows)),
        "below_min_size": _numbers(place[~reported], len(rows)),
        "touching_edge": _numbers(place[touching], len(rows)),
        "excluded_at_edge": _numbers(place[left_out], len(rows)),
    }


def _liters(rows: Rows, sampling: Sampling | None) -> np.ndarray | None:
    """Volume whose particles were counted in each row; NaN for blanks."""
    if sampling is None:
        return None
    liters = np.full(len(rows), np.nan)
    samples = np.flatnonzero(~rows.blank)
    liters[samples] = sampling.counted_liters(
        [rows.names[index] for index in samples], rows.areas[samples]
    )
    return liters


def _scope_columns(
    part: pd.DataFrame,
    whole: pd.DataFrame,
    rows: Rows,
    size_classes: SizeClasses,
    edge: EdgeRule,
    liters: np.ndarray | None,
    level: float,
    name: str | None,
) -> Iterator[tuple[str, np.ndarray]]:
    """The columns of all particles or of one class."""
    part = _counted(part)
    counts = _count(part, rows)
    exact = poisson_interval(counts.numbers, level)
    interval = counts.interval(level)
    yield "count", counts.numbers
    yield "count_low", exact.low
    yield "count_high", exact.high
    yield "weighted_count", counts.sums
    yield "weighted_count_low", interval.low
    yield "weighted_count_high", interval.high
    if name is not None:
        yield from _fraction_columns(counts, _count(_counted(whole), rows), level)
    yield "count_per_mm2", counts.sums / rows.areas
    yield "count_per_mm2_low", interval.low / rows.areas
    yield "count_per_mm2_high", interval.high / rows.areas
    if rows.grouped:
        yield from _per_image_columns(part, rows, level)
    weighted = edge == "weight"
    yield from size_columns(part, rows, size_classes, weighted, level)
    if liters is not None:
        yield from concentration_columns(counts.sums, interval, liters).items()
    if rows.blank.any():
        corrected = correct_for_blanks(counts, rows.exposures, rows.blank, level)
        yield from corrected.columns.items()
        if liters is not None:
            yield from concentration_columns(
                corrected.estimates, corrected.interval, liters, "_corrected"
            ).items()


def _counted(particles: pd.DataFrame) -> pd.DataFrame:
    return particles[~particles["small"] & (particles["weight"] > 0)]


def _count(particles: pd.DataFrame, rows: Rows) -> Counts:
    place, weights = particles["row"].to_numpy(), particles["weight"].to_numpy()
    largest = np.ones(len(rows))
    np.maximum.at(largest, place, weights)
    return Counts(
        _numbers(place, len(rows)),
        # Without particles numpy returns integers.
        np.bincount(place, weights, len(rows)).astype(np.float64),
        np.bincount(place, weights**2, len(rows)).astype(np.float64),
        largest,
    )


def _numbers(places: np.ndarray, length: int) -> np.ndarray:
    return np.bincount(places, minlength=length).astype(np.int64)


def _fraction_columns(
    counts: Counts, whole: Counts, level: float
) -> Iterator[tuple[str, np.ndarray]]:
    some = whole.sums > 0
    fractions = np.divide(counts.sums, whole.sums, out=np.full(len(some), np.nan), where=some)
    numbers = np.divide(whole.sums**2, whole.squares, out=np.zeros(len(some)), where=some)
    # A sum of weights in another order may be off by a rounding.
    interval = wilson_interval(np.minimum(fractions, 1), numbers, level)
    yield "fraction", np.minimum(fractions, 1)
    yield "fraction_low", interval.low
    yield "fraction_high", interval.high


def _per_image_columns(
    part: pd.DataFrame, rows: Rows, level: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Mean and spread over a group's images."""
    sums = np.bincount(part["image"].to_numpy(), part["weight"].to_numpy(), len(rows.images))
    values = [sums[members] for members in rows.members]
    bounds = np.array([bootstrap_mean_interval(one, level) for one in values]).reshape(-1, 2)
    yield "count_per_image", np.array([one.mean() for one in values])
    yield "count_per_image_low", bounds[:, 0]
    yield "count_per_image_high", bounds[:, 1]
    yield (
        "count_per_image_sd",
        np.array([one.std(ddof=1) if len(one) > 1 else np.nan for one in values]),
    )
