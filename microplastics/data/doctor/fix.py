"""Fixed copies of annotation files for ``--fix``."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
import shapely

from microplastics.data.coco import (
    ID_LIMIT,
    Findings,
    area_oddity,
    box_oddity,
    check_categories,
    check_images,
    drop_placeholders,
    is_box,
    is_id,
    is_repeated,
    key_of,
    objects_of,
    structure_problem,
)
from microplastics.data.doctor.checks import (
    are_valid,
    only_touches,
    polygon_points,
    repair,
    without_repeats,
)
from microplastics.data.doctor.findings import CHANGES, DatasetSummary, Diagnosis, Fixed
from microplastics.data.segmentation import (
    COORDINATE_LIMIT,
    NUMBERS,
    Measured,
    SegmentationError,
    measure,
)
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json, write_json

_SLIVER = 0.01  # px²; covers no pixel
_HOLES = 200  # of one polygon; each needs two cuts through it
_CUTS = 10_000
# Errors of a segmentation that leave nothing usable of its annotation.
_NOTHING_LEFT = ("zero_area", "polygon_outside", "polygon_points", "segmentation_empty")

# Takes the kind of change, its reason, and details.
Note = Callable[..., None]


class Changes:
    """All changes of one annotation file, in order."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def add(self, kind: str, index: int, id_: Any, reason: str, **details: Any) -> None:
        """Note one change.

        Args:
            kind: a key of ``CHANGES``.
            index: position in its list of the original JSON, from 0.
            id_: the original id, of any type.
            reason: why.
            details: old and new values.
        """
        if kind not in CHANGES:
            raise KeyError(kind)
        self.entries.append(
            {"change": kind, "index": index, "id": id_, "reason": reason, **details}
        )

    def counts(self) -> dict[str, int]:
        """Number of changes of each kind that occurs, in the order of ``CHANGES``."""
        counts = Counter(entry["change"] for entry in self.entries)
        return {kind: counts[kind] for kind in CHANGES if counts[kind]}


def fix_datasets(diagnosis: Diagnosis, output: str | os.PathLike) -> list[Fixed]:
    """Write a fixed copy of each diagnosed annotation file.

    Args:
        diagnosis: from :func:`~microplastics.data.doctor.checks.diagnose`, with the images that
            are missing or unreadable.
        output: the fixed file of one annotation file; for several files a folder, in which they
            keep their names (preceded by the name of their folder if two are equal).

    Returns:
        one entry a file. ``NAME.changes.json`` beside each fixed file lists every change.

    Raises:
        UserError: an output would overwrite an annotation file, or cannot be written.
    """
    summaries = diagnosis.datasets
    outputs = check_output([summary.json_file for summary in summaries], output)
    return [_fix_file(*pair) for pair in zip(summaries, outputs, strict=True)]


def check_output(json_files: list[str], output: str | os.PathLike) -> list[str]:
    """Return the path of each fixed file of :func:`fix_datasets`.

    Raises:
        UserError: an output would overwrite an annotation file, or any other file that is not an
            earlier fixed copy.
    """
    output = os.fspath(output)
    outputs = _output_paths(json_files, output)
    taken = set(map(os.path.realpath, json_files))
    for path in [*outputs, *map(changes_path, outputs)]:
        same = os.path.exists(path) and any(os.path.samefile(path, j) for j in json_files)
        if same or os.path.realpath(path) in taken:
            raise UserError(
                f"--fix {output} would overwrite the annotation file {path}; choose another path.",
                code="output_exists",
            )
    for path in outputs:
        if os.path.lexists(path) and not os.path.exists(changes_path(path)):
            raise UserError(
                f"--fix would overwrite {path}, which is not an earlier fixed copy (there is no "
                f"{changes_path(path)}); choose another path, or delete it.",
                code="output_exists",
            )
    return outputs


def changes_path(output: str) -> str:
    """Path of the list of changes of a fixed file."""
    return re.sub(r"\.json$", "", output, flags=re.IGNORECASE) + ".changes.json"


def fix_content(
    data: dict[str, Any], unusable_images: Collection[str], changes: Changes
) -> dict[str, Any]:
    """Fix the content of a COCO JSON that has its three lists.

    Args:
        data: the content; not changed.
        unusable_images: ``file_name`` of the images that are missing or cannot be read.
        changes: takes every change.

    Returns:
        the fixed content; unknown fields stay as they are.
    """
    entries = []
    ids = Counter(key_of(entry.get("id")) for entry in objects_of(data["images"]))
    for index, entry in enumerate(data["images"]):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        # Without one of two images of the same id, the other would get all annotations.
        if isinstance(name, str) and name in unusable_images and ids[key_of(entry.get("id"))] < 2:
            changes.add("image_dropped", index, entry.get("id"), "missing or unreadable", file=name)
        else:
            entries.append(entry)
    images = check_images(entries, Findings())
    annotations = _fix_annotations(data["annotations"], images, changes)
    categories = _fix_categories(data["categories"], annotations, changes)
    return {**data, "images": entries, "annotations": annotations, "categories": categories}


def fix_polygons(
    polygons: list[Any], width: int, height: int, note: Note
) -> list[list[float]] | None:
    """Make every polygon of an annotation valid and clip it to the image.

    Repeated points are removed, polygons that cross themselves are made valid as filled by the
    even-odd rule, by which COCO masks are drawn, and polygons with holes are cut into polygons
    without. Polygons of zero area and repeats of another are left out.

    Args:
        polygons: COCO polygons, some of them possibly unusable.
        width: of the image in px.
        height: of the image in px.
        note: takes every change.

    Returns:
        The fixed polygons, empty if nothing can be kept; None if a polygon cannot be fixed without
        a guess.
    """
    if not all(map(_is_fixable, polygons)):
        return None
    kept: dict[tuple[float, ...], list[float]] = {}
    for number, polygon in enumerate(polygons):
        noted = partial(note, polygon=number)
        for part in _fix_polygon(polygon, width, height, noted):
            if tuple(part) in kept:
                noted("polygon_dropped", "repeats another polygon")
            kept.setdefault(tuple(part), part)
    return list(kept.values())


def _output_paths(json_files: list[str], output: str) -> list[str]:
    if len(json_files) == 1:
        if os.path.isdir(output) or not output.lower().endswith(".json"):
            raise UserError(
                f"--fix {output} is not a .json file; name one, such as fixed.json.",
                code="option_invalid",
            )
        return [output]
    if os.path.isfile(output):
        raise UserError(
            f"--fix {output} is a file; expected a folder for several annotation files.",
            code="option_invalid",
        )
    names = [os.path.basename(path) for path in json_files]
    if len(set(names)) < len(names):
        folders = [os.path.basename(os.path.dirname(os.path.abspath(p))) for p in json_files]
        names = [f"{folder}_{name}" for folder, name in zip(folders, names, strict=True)]
    if len(set(names)) < len(names):
        raise UserError(
            f"The annotation files have equal names ({', '.join(sorted(names))}); fix them one by "
            "one.",
            code="name_clash",
        )
    return [os.path.join(output, name) for name in names]


def _fix_file(summary: DatasetSummary, output: str) -> Fixed:
    try:
        data = read_json(summary.json_file)
    except UserError as error:
        return Fixed(summary.json_file, reason=str(error))
    problem = structure_problem(data)
    if problem:
        return Fixed(summary.json_file, reason=f"{summary.json_file} {problem}.")
    changes = Changes()
    fixed = fix_content(data, set(summary.unusable_images), changes)
    if not fixed["images"]:
        reason = f"{summary.image_root} has no image of {summary.json_file}; correct --images."
        return Fixed(summary.json_file, reason=reason)
    result = Fixed(summary.json_file, output, changes_path(output), changes.counts())
    listed = {"json_file": summary.json_file, "output": output, "counts": result.counts}
    # First, so that a fixed copy is never without it.
    write_json(result.changes_file, {**listed, "changes": changes.entries}, indent=1)
    write_json(output, fixed)
    return result


def _fix_categories(entries: list, annotations: list, changes: Changes) -> list:
    used = {key_of(entry.get("category_id")) for entry in objects_of(annotations)}
    categories = check_categories(entries, Findings())
    kept = {c["id"] for c in drop_placeholders(categories, used, Findings())}
    dropped = set(categories) - kept
    fixed = []
    for index, entry in enumerate(entries):
        id_ = key_of(entry.get("id")) if isinstance(entry, dict) else None
        if id_ in dropped:
            dropped.remove(id_)  # a second category of the same id is another problem, and stays
            name = entry.get("name")
            changes.add("category_dropped", index, id_, "unused placeholder", name=name)
        else:
            fixed.append(entry)
    return fixed


def _fix_annotations(
    entries: list, images: dict[int, dict[str, Any]], changes: Changes
) -> list[Any]:
    fixed: list[tuple[int, Any]] = []
    seen: set[tuple] = set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            fixed.append((index, entry))
            continue
        add = partial(changes.add, index=index, id_=entry.get("id"))
        image_id = entry.get("image_id")
        image = images.get(key_of(image_id))
        if is_id(image_id) and image is None:
            reason = "its image is left out or not in the file"
            add("annotation_dropped", reason=reason, annotation=entry)
            continue
        kept = _fix_annotation(entry, image, seen, add)
        if kept is not None:
            fixed.append((index, kept))
    return _renumber(fixed, changes)


def _fix_annotation(
    original: dict[str, Any], image: dict[str, Any] | None, seen: set[tuple], add: Note
) -> dict[str, Any] | None:
    """Return the fixed annotation, or None if it is left out."""
    entry = dict(original)
    if entry.get("iscrowd") is None:
        entry["iscrowd"] = 0
        add("iscrowd", reason="missing")
    if image is None or "invalid" in image or "segmentation" not in entry:
        return entry
    height, width = image["height"], image["width"]
    noted: list[dict[str, Any]] = []
    outlined = _has_polygons(entry["segmentation"])
    if outlined:

        def note(kind: str, reason: str, **details: Any) -> None:
            noted.append({"kind": kind, "reason": reason, **details})

        entry["segmentation"] = fix_polygons(entry["segmentation"], width, height, note)
    untouched = {**entry, "segmentation": original["segmentation"]}
    if entry["segmentation"] is None:
        return untouched
    reason = "repeats another's image, category and outline"
    try:
        measured = measure(entry["segmentation"], height, width)
        kept = not is_repeated(entry, measured, seen)
    except SegmentationError as error:
        if not outlined or error.code not in _NOTHING_LEFT:
            return untouched
        kept, reason = False, f"nothing of its outline can be used ({error.code})"
    for change in noted:
        add(**change)
    if not kept:
        add("annotation_dropped", reason=reason, annotation=original)
        return None
    _fix_figures(entry, measured, any(c["kind"] != "points_removed" for c in noted), add)
    return entry


def _has_polygons(segmentation: Any) -> bool:
    """Whether it is a list of polygons, not all of them empty."""
    return (
        isinstance(segmentation, list)
        and any(segmentation)
        and type(segmentation[0]) not in NUMBERS
    )


def _fix_figures(entry: dict[str, Any], measured: Measured, changed: bool, add: Note) -> None:
    """Take box and area from the mask if the check reports them or the mask changed."""
    box, area, true = entry.get("bbox"), entry.get("area"), list(measured.box)
    # Before the box is replaced: the area may be that of the box in the file.
    area_code = area_oddity(entry, measured.area)
    box_code = box_oddity(box, measured.box) if is_box(box) else "box_field"
    if box_code or (changed and box != true):
        entry["bbox"] = true
        add("bbox", reason=box_code or "the mask changed", old=box, new=true)
    if area_code or (changed and area != measured.area):
        entry["area"] = measured.area
        add("area", reason=area_code or "the mask changed", old=area, new=measured.area)


def _renumber(fixed: list[tuple[int, Any]], changes: Changes) -> list[Any]:
    """Give annotations with id 0 or the id of an earlier one the next free id."""
    ids = {entry["id"] for _, entry in fixed if isinstance(entry, dict) and is_id(entry.get("id"))}
    taken: set[int] = set()
    free = max(ids, default=0) + 1
    if free + len(fixed) >= ID_LIMIT:
        free = 1
    for index, entry in fixed:
        id_ = entry.get("id") if isinstance(entry, dict) else None
        if not is_id(id_):
            continue
        if id_ == 0 or id_ in taken:
            while free in ids:
                free += 1
            ids.add(free)
            entry["id"] = free
            changes.add("id", index, id_, "id 0" if id_ == 0 else "used twice", new=free)
        taken.add(entry["id"])
    return [entry for _, entry in fixed]


def _is_fixable(polygon: Any) -> bool:
    """Whether it is a list of pairs of finite numbers, of any length."""
    return (
        type(polygon) is list
        and len(polygon) % 2 == 0
        and NUMBERS.issuperset(map(type, polygon))
        and all(-COORDINATE_LIMIT <= value <= COORDINATE_LIMIT for value in polygon)
    )


def _fix_polygon(polygon: list[float], width: int, height: int, note: Note) -> list[list[float]]:
    if len(polygon) < 6:
        note("polygon_dropped", f"has {len(polygon) // 2} points")
        return []
    points = polygon_points(polygon)
    ring = without_repeats(points)
    if len(ring) < len(points):
        note("points_removed", f"{len(points) - len(ring)} repeated points")
    outside = bool((ring < 0).any() or (ring > (width, height)).any())
    sound = len(ring) >= 3 and (bool(are_valid([ring])[0]) or only_touches(ring))
    if sound and not outside:
        return [polygon if len(ring) == len(points) else _flat(ring)]
    if not sound:
        note("polygon_fixed", "crosses itself or encloses nothing")
    if outside:
        note("polygon_clipped", "extends beyond the image")
    try:
        geometry = repair(ring)
        if geometry is None:
            note("polygon_dropped", "crosses itself too often to be made valid")
            return []
        if outside:
            geometry = shapely.intersection(geometry, shapely.box(0, 0, width, height))
        rings = _finish(_rings(geometry, note), width, height, note)
    except shapely.errors.GEOSException as error:
        note("polygon_dropped", f"cannot be made valid ({error})")
        return []
    if not rings:
        note("polygon_dropped", "nothing of it is left")
    return list(map(_flat, rings))


def _flat(ring: np.ndarray) -> list[float]:
    return ring.reshape(-1).tolist()


def _rings(geometry: shapely.Geometry, note: Note) -> list[np.ndarray]:
    """Outlines of the polygonal parts of a geometry, with holes cut open."""
    outlines = []
    for part in shapely.get_parts(geometry):
        if part.is_empty:
            continue
        if part.geom_type == "MultiPolygon":
            outlines += _rings(part, note)
        elif part.geom_type == "Polygon":
            outlines += _opened(part, note)
        else:
            note("polygon_dropped", f"a {part.geom_type} without area")
    return outlines


def _opened(polygon: shapely.Polygon, note: Note) -> list[np.ndarray]:
    """Cut a polygon with holes into polygons without, by lines through the holes."""
    if len(polygon.interiors) > _HOLES:
        note("polygon_dropped", f"has more than {_HOLES} holes")
        return []
    waiting, outlines = [polygon], []
    for _ in range(_CUTS):
        if not waiting:
            return outlines
        part = waiting.pop()
        if not part.interiors:
            outlines.append(shapely.get_coordinates(part)[:-1])
            continue
        x = shapely.Polygon(part.interiors[0]).representative_point().x
        x0, y0, x1, y1 = part.bounds
        for left, right in ((x0 - 1, x), (x, x1 + 1)):
            half = shapely.box(left, y0 - 1, right, y1 + 1)
            pieces = shapely.get_parts(shapely.intersection(part, half))
            waiting += [p for p in pieces if p.geom_type == "Polygon" and p.area > 0]
    note("polygon_dropped", "cannot be cut into polygons without holes")
    return []


def _finish(rings: list[np.ndarray], width: int, height: int, note: Note) -> list[np.ndarray]:
    """Keep the rings that are valid after clipping their rounding errors to the image.

    Parts that cover no pixel are removed, unless nothing else is left.
    """
    kept, areas = [], []
    for ring in rings:
        ring = without_repeats(np.clip(ring, 0, (width, height)))
        while len(ring) > 3 and (ring[0] == ring[-1]).all():
            ring = ring[:-1]
        if len(ring) >= 3 and are_valid([ring])[0]:
            kept.append(ring)
            areas.append(float(shapely.area(shapely.Polygon(ring))))
    if areas and max(areas) >= _SLIVER:
        kept = [ring for ring, area in zip(kept, areas, strict=True) if area >= _SLIVER]
    if len(kept) < len(rings):
        note("polygon_dropped", f"{len(rings) - len(kept)} parts of less than {_SLIVER} px²")
    return kept
