"""``--fix``: a mended copy of annotation files, and the list of every change."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection
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
from microplastics.data.doctor.checks import are_valid, only_touches, polygon_points, repair
from microplastics.data.doctor.findings import Changes, DatasetSummary, Diagnosis, Fixed
from microplastics.data.segmentation import (
    COORDINATE_LIMIT,
    NUMBERS,
    Measured,
    SegmentationError,
    measure,
    read_json,
)
from microplastics.utils.errors import UserError
from microplastics.utils.io import write_json

_SLIVER = 0.01  # px²; no pixel is covered by it
_HOLES = 200  # of one polygon; each costs two cuts through it
_CUTS = 10_000

# Takes the kind of change, its reason, and details.
Note = Callable[..., None]


def mend_polygons(
    polygons: list[Any], width: int, height: int, note: Note
) -> list[list[float]] | None:
    """Make every polygon of an annotation valid and clip it to the image.

    Repeated points are taken out, polygons that cross themselves are made valid as the even-odd
    rule fills them, which COCO masks are drawn by, and holes that this leaves are opened by a cut
    into two polygons. Polygons of no area and repeats of another are left out.

    Args:
        polygons: COCO polygons, of which some may be unusable.
        width: of the image in px.
        height: of the image in px.
        note: takes every change.

    Returns:
        The mended polygons, empty where nothing can be kept; None where a polygon is broken in a
        way that cannot be mended without a guess.
    """
    if not all(map(_is_mendable, polygons)):
        return None
    kept: list[list[float]] = []
    seen: set[tuple[float, ...]] = set()
    for number, polygon in enumerate(polygons):
        for part in _mend(polygon, number, width, height, note):
            key = tuple(part)
            if key in seen:
                note("polygon_dropped", "repeats another polygon", polygon=number)
                continue
            seen.add(key)
            kept.append(part)
    return kept


def _is_mendable(polygon: Any) -> bool:
    """Whether it is a list of pairs of finite numbers, however few."""
    return (
        type(polygon) is list
        and len(polygon) % 2 == 0
        and NUMBERS.issuperset(map(type, polygon))
        and all(-COORDINATE_LIMIT <= value <= COORDINATE_LIMIT for value in polygon)
    )


def _mend(
    polygon: list[float], number: int, width: int, height: int, note: Note
) -> list[list[float]]:
    if len(polygon) < 6:
        note("polygon_dropped", f"has {len(polygon) // 2} points", polygon=number)
        return []
    points = polygon_points(polygon)
    ring = _without_repeats(points)
    if len(ring) < len(points):
        removed = len(points) - len(ring)
        note("points_removed", f"{removed} repeated points", polygon=number)
    outside = bool((ring < 0).any() or (ring > (width, height)).any())
    sound = len(ring) >= 3 and (bool(are_valid([ring])[0]) or only_touches(ring))
    if sound and not outside:
        return [polygon if len(ring) == len(points) else _flat(ring)]
    if not sound:
        note("polygon_mended", "crosses itself or encloses nothing", polygon=number)
    if outside:
        note("polygon_clipped", "reaches out of the image", polygon=number)
    try:
        geometry = repair(ring)
        if geometry is None:
            note("polygon_dropped", "crosses itself too often to be made valid", polygon=number)
            return []
        if outside:
            geometry = shapely.intersection(geometry, shapely.box(0, 0, width, height))
        rings = _finish(_rings(geometry, number, note), width, height, number, note)
    except shapely.errors.GEOSException as error:
        note("polygon_dropped", f"cannot be made valid ({error})", polygon=number)
        return []
    if not rings:
        note("polygon_dropped", "nothing of it is left", polygon=number)
    return list(map(_flat, rings))


def _without_repeats(points: np.ndarray) -> np.ndarray:
    """Take out points that follow themselves; the first one at the end stays."""
    differs = (points[1:] != points[:-1]).any(axis=1)
    return points[np.concatenate([[True], differs])]


def _flat(ring: np.ndarray) -> list[float]:
    return ring.reshape(-1).tolist()


def _rings(geometry: shapely.Geometry, number: int, note: Note) -> list[np.ndarray]:
    """Outlines of the polygonal parts of a geometry, those with holes cut open."""
    outlines = []
    for part in shapely.get_parts(geometry):
        if part.is_empty:
            continue
        if shapely.get_type_id(part) == shapely.GeometryType.MULTIPOLYGON:
            outlines += _rings(part, number, note)
        elif shapely.get_type_id(part) != shapely.GeometryType.POLYGON:
            words = f"a {part.geom_type} without area"
            note("polygon_dropped", words, polygon=number)
        else:
            outlines += _opened(part, number, note)
    return outlines


def _opened(polygon: shapely.Polygon, number: int, note: Note) -> list[np.ndarray]:
    """Cut a polygon with holes into polygons without, by lines through the holes."""
    if shapely.get_num_interior_rings(polygon) > _HOLES:
        note("polygon_dropped", f"has more than {_HOLES} holes", polygon=number)
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
        for half in (
            shapely.box(x0 - 1, y0 - 1, x, y1 + 1),
            shapely.box(x, y0 - 1, x1 + 1, y1 + 1),
        ):
            pieces = shapely.get_parts(shapely.intersection(part, half))
            waiting += [p for p in pieces if p.geom_type == "Polygon" and p.area > 0]
    note("polygon_dropped", "cannot be cut into polygons without holes", polygon=number)
    return []


def _finish(
    rings: list[np.ndarray], width: int, height: int, number: int, note: Note
) -> list[np.ndarray]:
    """Keep the rings that are valid once their last digits lie inside the image.

    Parts that cover no pixel go, unless nothing else is left.
    """
    kept, areas = [], []
    for ring in rings:
        ring = _without_repeats(np.clip(ring, 0, (width, height)))
        while len(ring) > 3 and (ring[0] == ring[-1]).all():
            ring = ring[:-1]
        if len(ring) >= 3 and are_valid([ring])[0]:
            kept.append(ring)
            areas.append(float(shapely.area(shapely.Polygon(ring))))
    if areas and max(areas) >= _SLIVER:
        kept = [ring for ring, area in zip(kept, areas, strict=True) if area >= _SLIVER]
    if len(kept) < len(rings):
        words = f"{len(rings) - len(kept)} parts of less than {_SLIVER} px²"
        note("polygon_dropped", words, polygon=number)
    return kept


# What is left of an annotation by these can be used for nothing.
_NOTHING_LEFT = ("zero_area", "polygon_outside", "polygon_points", "segmentation_empty")


def fix_datasets(diagnosis: Diagnosis, output: str | os.PathLike) -> list[Fixed]:
    """Write a mended copy of each diagnosed annotation file.

    Args:
        diagnosis: what :func:`~microplastics.data.doctor.checks` found; says which images are
            missing or unreadable.
        output: the mended file for one annotation file; for several a folder, in which the files
            keep their names (with the name of their own folder before it, where two are equal).

    Returns:
        one entry a file. ``NAME.changes.json`` beside each mended file lists every change.

    Raises:
        UserError: an output would overwrite an annotation file, or cannot be written.
    """
    summaries = diagnosis.datasets
    outputs = _output_paths([summary.json_file for summary in summaries], os.fspath(output))
    return [_fix_file(*pair) for pair in zip(summaries, outputs, strict=True)]


def check_output(json_files: list[str], output: str | os.PathLike) -> None:
    """Refuse an output of :func:`fix_datasets` before any work is done.

    Raises:
        UserError: as there.
    """
    _output_paths(json_files, os.fspath(output))


def changes_path(output: str) -> str:
    """Path of the list of changes of a mended file."""
    return re.sub(r"\.json$", "", output, flags=re.IGNORECASE) + ".changes.json"


def _output_paths(json_files: list[str], output: str) -> list[str]:
    if len(json_files) == 1:
        if os.path.isdir(output):
            raise UserError(f"--fix {output} is a folder; name a file, such as mended.json.")
        if not output.lower().endswith(".json"):
            raise UserError(f"--fix {output} does not end in .json; name a file like mended.json.")
        outputs = [output]
    else:
        if os.path.isfile(output):
            raise UserError(
                f"--fix {output} is a file; with several annotation files name a folder."
            )
        names = [os.path.basename(path) for path in json_files]
        if len(set(names)) < len(names):
            folders = [os.path.basename(os.path.dirname(os.path.abspath(p))) for p in json_files]
            names = [f"{folder}_{name}" for folder, name in zip(folders, names, strict=True)]
        if len(set(names)) < len(names):
            raise UserError(
                "Several annotation files have the same name and folder name; mend them one by one."
            )
        outputs = [os.path.join(output, name) for name in names]
    taken = {os.path.realpath(path): path for path in json_files}
    for path in [*outputs, *map(changes_path, outputs)]:
        for json_file in json_files:
            same = os.path.exists(path) and os.path.samefile(path, json_file)
            if same or os.path.realpath(path) in taken:
                raise UserError(
                    f"--fix {output} would overwrite {json_file}; the annotations are never "
                    "mended in place: choose another path."
                )
    for path in outputs:
        if os.path.lexists(path) and not os.path.exists(changes_path(path)):
            raise UserError(
                f"--fix would overwrite {path}, which is no earlier mended copy (there is no "
                f"{changes_path(path)}); choose another path, or delete it."
            )
    return outputs


def _fix_file(summary: DatasetSummary, output: str) -> Fixed:
    try:
        data = read_json(summary.json_file)
    except UserError as error:
        return Fixed(summary.json_file, reason=str(error))
    problem = structure_problem(data)
    if problem:
        return Fixed(summary.json_file, reason=f"{summary.json_file} {problem}.")
    changes = Changes()
    mended = mend_content(data, set(summary.unusable_images), changes)
    if not mended["images"]:
        reason = f"{summary.image_root} holds no image of {summary.json_file}; correct --images."
        return Fixed(summary.json_file, reason=reason)
    listed = changes_path(output)
    # First, so that no mended copy is ever without it.
    write_json(
        listed,
        {
            "json_file": summary.json_file,
            "output": output,
            "counts": changes.counts(),
            "changes": changes.entries,
        },
        indent=1,
    )
    write_json(output, mended)
    return Fixed(summary.json_file, output, listed, changes.counts())


def mend_content(
    data: dict[str, Any], unusable_images: Collection[str], changes: Changes
) -> dict[str, Any]:
    """Mend the content of a COCO JSON that holds its three lists.

    Args:
        data: the content; not changed.
        unusable_images: ``file_name`` of the images that are missing or cannot be read.
        changes: takes every change.

    Returns:
        the mended content; fields that are not known stay as they are.
    """
    entries = []
    ids = Counter(key_of(entry.get("id")) for entry in objects_of(data["images"]))
    for index, entry in enumerate(data["images"]):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        # Without one of two images of the same id, all annotations would become the other's.
        if isinstance(name, str) and name in unusable_images and ids[key_of(entry.get("id"))] < 2:
            changes.add("image_dropped", index, entry.get("id"), "missing or unreadable", file=name)
        else:
            entries.append(entry)
    images, _ = check_images(entries, Findings())
    annotations = _mend_annotations(data["annotations"], images, changes)
    categories = _mend_categories(data["categories"], annotations, changes)
    return {**data, "images": entries, "annotations": annotations, "categories": categories}


def _mend_categories(entries: list, annotations: list, changes: Changes) -> list:
    used = {key_of(entry.get("category_id")) for entry in objects_of(annotations)}
    categories = check_categories(entries, Findings())
    kept = {c["id"] for c in drop_placeholders(categories, used, Findings())}
    mended, seen = [], set()
    for index, entry in enumerate(entries):
        id_ = key_of(entry.get("id")) if isinstance(entry, dict) else None
        # A second category of the same id is another fault, and stays.
        if id_ in categories and id_ not in kept and id_ not in seen:
            seen.add(id_)
            changes.add(
                "category_dropped", index, id_, "unused placeholder", name=entry.get("name")
            )
        else:
            mended.append(entry)
    return mended


def _mend_annotations(
    entries: list, images: dict[int, dict[str, Any]], changes: Changes
) -> list[Any]:
    mended: list[tuple[int, Any]] = []
    seen: dict[tuple, Any] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            mended.append((index, entry))
            continue
        image_id = entry.get("image_id")
        image = images.get(key_of(image_id))
        if is_id(image_id) and image is None:
            reason = "its image is left out or not in the file"
            changes.add("annotation_dropped", index, entry.get("id"), reason, annotation=entry)
            continue
        kept = _mend_annotation(index, entry, image, seen, changes)
        if kept is not None:
            mended.append((index, kept))
    return _renumber(mended, changes)


def _mend_annotation(
    index: int,
    entry: dict[str, Any],
    image: dict[str, Any] | None,
    seen: dict[tuple, Any],
    changes: Changes,
) -> dict[str, Any] | None:
    """Return the mended annotation, or None where it is left out."""
    original, id_ = entry, entry.get("id")
    entry = dict(entry)
    if entry.get("iscrowd") is None:
        entry["iscrowd"] = 0
        changes.add("iscrowd", index, id_, "missing")
    if image is None or "invalid" in image or "segmentation" not in entry:
        return entry
    noted: list[tuple[str, str, dict[str, Any]]] = []
    measured: Measured | None = None
    code = ""
    if _has_polygons(entry["segmentation"]):
        polygons = mend_polygons(
            entry["segmentation"],
            image["width"],
            image["height"],
            lambda kind, reason, **details: noted.append((kind, reason, details)),
        )
        if polygons is None:
            return entry
        entry["segmentation"] = polygons
    try:
        measured = measure(entry["segmentation"], image["height"], image["width"])
    except SegmentationError as error:
        code = error.code
    if measured is None and not (noted or _has_polygons(original["segmentation"])):
        return entry
    if measured is None and code not in _NOTHING_LEFT:
        return {**entry, "segmentation": original["segmentation"]}
    for kind, reason, details in noted:
        changes.add(kind, index, id_, reason, **details)
    if measured is None:
        reason = f"nothing of its outline can be used ({code})"
        changes.add("annotation_dropped", index, id_, reason, annotation=original)
        return None
    if is_repeated(entry, measured, seen):
        reason = "repeats another's image, category and outline"
        changes.add("annotation_dropped", index, id_, reason, annotation=original)
        return None
    _mend_figures(
        index, entry, measured, any(kind != "points_removed" for kind, *_ in noted), changes
    )
    return entry


def _has_polygons(segmentation: Any) -> bool:
    """Whether it is a list of polygons, not all of them empty."""
    return (
        isinstance(segmentation, list)
        and any(segmentation)
        and type(segmentation[0]) not in NUMBERS
    )


def _mend_figures(
    index: int, entry: dict[str, Any], measured: Measured, changed: bool, changes: Changes
) -> None:
    """Set box and area to those of the mask, where the check finds fault or the mask changed."""
    box, area = entry.get("bbox"), entry.get("area")
    # The area is judged with the box that the file has: it tells an area of the box.
    area_code = area_oddity(entry, measured.area)
    box_code = box_oddity(box, measured.box) if is_box(box) else "box_field"
    true = list(measured.box)
    if box_code or (changed and box != true):
        entry["bbox"] = true
        reason = box_code or "the mask changed"
        changes.add("bbox", index, entry.get("id"), reason, old=box, new=true)
    if area_code or (changed and area != measured.area):
        entry["area"] = measured.area
        reason = area_code or "the mask changed"
        changes.add("area", index, entry.get("id"), reason, old=area, new=measured.area)


def _renumber(mended: list[tuple[int, Any]], changes: Changes) -> list[Any]:
    """Give annotations with id 0, or with that of an earlier one, the next free id."""
    ids = {entry["id"] for _, entry in mended if isinstance(entry, dict) and is_id(entry.get("id"))}
    taken: set[int] = set()
    free = max(ids, default=0) + 1
    if free + len(mended) >= ID_LIMIT:
        free = 1
    for index, entry in mended:
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
    return [entry for _, entry in mended]
