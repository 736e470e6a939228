"""The rows of a summary: images, or groups of them, and how much each looked at."""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from microplastics.errors import UserError

_MOST_SOURCES = 5
_UM2_PER_MM2 = 1e6


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
        areas: (R,) of the row's images in mm², of what of them counts; NaN without a calibration.
        shares: (R,) sum over the row's images of the share of their px in which particles count.
        blank: (R,) whether the row is a blank.
        grouped: whether rows are groups.
        columns: what the summary tells of the rows themselves.
    """

    names: list[str]
    images: pd.Index
    codes: np.ndarray
    members: list[np.ndarray]
    frames: np.ndarray
    calibrated: np.ndarray
    areas: np.ndarray
    shares: np.ndarray
    blank: np.ndarray
    grouped: bool
    columns: dict[str, object]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def exposures(self) -> np.ndarray:
        """(R,) area in mm², or where a row has no scale images, each by its share that counts."""
        return self.shares if np.isnan(self.areas).any() else self.areas

    @property
    def whole(self) -> np.ndarray:
        """(R,) whether particles count in all px of the row's images."""
        return self.shares == [len(members) for members in self.members]


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
        raise UserError(f"The blank {unknown[0]} is not among the images; give its name as there.")
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
    shares = np.bincount(codes, pixels / frames.prod(axis=1), len(names))
    return Rows(
        names=names,
        images=index,
        codes=codes,
        members=members,
        frames=frames,
        calibrated=calibrated,
        areas=sums,
        shares=shares,
        blank=blank,
        grouped=groups is not None,
        columns=columns,
    )


def _group(groups: Mapping[str, str], name: str) -> str:
    if name not in groups:
        raise UserError(f"{name} belongs to no group; name a group for every image.")
    return groups[name]


def _uniform(
    flags: np.ndarray, members: list[np.ndarray], names: list[str], mixture: str
) -> np.ndarray:
    """The flag that all images of a row share."""
    for name, own in zip(names, members, strict=True):
        if flags[own].any() != flags[own].all():
            raise UserError(f"The group {name} mixes {mixture}.")
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
    shared = [scales[own[0]] if len(set(scales[own])) == 1 else np.nan for own in members]
    return {
        "group": pd.array(names, dtype="string"),
        "images": np.array([len(own) for own in members], dtype=np.int64),
        "um_per_px": np.array(shared, dtype=np.float64),
        "calibration_source": pd.array([_sources(sources[own]) for own in members], dtype="string"),
    }


def _sources(sources: np.ndarray) -> str | None:
    """All sources of a group's scales in one text."""
    found = sorted({source for source in sources if isinstance(source, str)})
    more = len(found) - _MOST_SOURCES
    text = "; ".join(found[:_MOST_SOURCES]) + (f"; and {more} more" if more > 0 else "")
    return text or None
