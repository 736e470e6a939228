"""The summary: one row an image, or one row a group of images of one sample."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from microplastics.errors import UserError
from microplastics.measurement.blanks import Counts, correct_for_blanks
from microplastics.measurement.concentration import Sampling, concentration_columns
from microplastics.measurement.edge import EdgeRule, edge_weights
from microplastics.measurement.intervals import (
    LEVEL,
    bootstrap_mean_interval,
    poisson_interval,
    wilson_interval,
)
from microplastics.measurement.size_classes import (
    DEFAULT_SIZE_CLASSES,
    SizeClasses,
    check_min_size,
)
from microplastics.measurement.size_statistics import size_columns
from microplastics.measurement.summary_rows import Rows, image_rows
from microplastics.measurement.table import table_sizes


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
        images: all images, those without a particle too, as of
            :func:`microplastics.measurement.table.images_table`.
        classes: that have columns even where none of them was found; those of the table follow.
        groups: group of each image; None gives a row an image.
        size_classes: bins of the counts by size.
        min_size: smallest reported size in µm, in px of an image without a calibration; what is
            smaller is counted in ``below_min_size`` alone.
        edge: what counts of particles that touch the edge.
        blanks: names of the images that are blanks.
        sampling: what was filtered; None leaves the concentrations out.
        level: coverage of all intervals, in (0, 1).

    Returns:
        a row for each image in their order, or for each group by its name.

    Raises:
        ValueError: an image stands twice, or a particle's image is not among them.
        UserError: a group mixes blanks with samples or µm with px, a name is unknown, a setting is
            none, or weights are asked for where a region counts.
    """
    check_min_size(min_size)
    rows = image_rows(images, groups, blanks)
    if edge == "weight" and not rows.whole.all():
        raise UserError(
            f"In {rows.names[int(np.argmin(rows.whole))]} particles count in a region alone, but "
            "weights hold for a rectangle; leave out --edge weight."
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


def _particles(
    table: pd.DataFrame, rows: Rows, min_size: float | None, edge: EdgeRule
) -> pd.DataFrame:
    """What of each particle counts: class, row, image, size, unit, whether small, weight."""
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
    """What a row tells of its images, and where all its particles are."""
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
    """Volume whose particles were counted in each row; NaN of blanks, which have none."""
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
    """The columns of all particles, or of those of one class."""
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
        # Of no particle at all numpy makes whole numbers.
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
    shares = np.divide(counts.sums, whole.sums, out=np.full(len(some), np.nan), where=some)
    numbers = np.divide(whole.sums**2, whole.squares, out=np.zeros(len(some)), where=some)
    # A sum of weights in another order may be off by a rounding.
    interval = wilson_interval(np.minimum(shares, 1), numbers, level)
    yield "fraction", np.minimum(shares, 1)
    yield "fraction_low", interval.low
    yield "fraction_high", interval.high


def _per_image_columns(
    part: pd.DataFrame, rows: Rows, level: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Mean of a group's images, and how it varies between them."""
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
