"""Fixed copies of annotation files for ``--fix``."""

import itertools
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
    is_valid,
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
    mask_to_polygons,
    measure,
)
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json, write_json

_SLIVER = 0.01  # px²; covers no pixel
# Errors of a segmentation that leave nothing usable of its annotation.
_NOTHING_LEFT = ("zero_area", "polygon_outside", "polygon_points", "segmentation_empty")

Changes = list[dict[str, Any]]
Note = Callable[..., None]  # adds a change: its kind (a key of CHANGES), its reason, details


def _note(changes: Changes, kind: str, reason: str, index: int, id_: Any, **details: Any) -> None:
    """Note a change of the entry at a position of its list, with an id of any type."""
    changes.append({"change": kind, "index": index, "id": id_, "reason": reason, **details})


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
    outputs = _output_paths(json_files, os.fspath(output))
    inputs = [path for path in json_files if os.path.exists(path)]
    for path in outputs:
        foreign = os.path.lexists(path) and not os.path.exists(changes_path(path))
        for written in (path, changes_path(path)):
            real = os.path.realpath(written)  # a folder of x/../a.json may be made only later
            given = os.path.exists(real) and any(os.path.samefile(real, i) for i in inputs)
            if given or foreign:
                raise UserError(
                    f"--fix would overwrite {written}, which is "
                    f"{'an input' if given else 'not an earlier fixed copy'}; choose another path.",
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
            reason = "missing or unreadable"
            _note(changes, "image_dropped", reason, index, entry.get("id"), file=name)
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

    Repeated points are removed, and polygons that cross themselves are made valid as filled by the
    even-odd rule, by which COCO masks are drawn; those that enclose holes are outlined along their
    pixels. Polygons of zero area and repeats of another are left out.

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
    several = len(json_files) > 1
    is_json = output.lower().endswith(".json") and not os.path.isdir(output)
    if os.path.isfile(output) if several else not is_json:
        raise UserError(
            f"--fix is {output}; expected "
            f"{'a folder for several annotation files' if several else 'a .json file'}.",
            code="option_invalid",
        )
    if not several:
        return [output]
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
    changes: Changes = []
    fixed = fix_content(data, set(summary.unusable_images), changes)
    if not fixed["images"]:
        reason = f"{summary.image_root} has no image of {summary.json_file}; correct --images."
        return Fixed(summary.json_file, reason=reason)
    of_kind = Counter(change["change"] for change in changes)
    counts = {kind: of_kind[kind] for kind in CHANGES if of_kind[kind]}
    listed = {"json_file": summary.json_file, "output": output, "counts": counts}
    # First, so that a fixed copy is never without it.
    write_json(changes_path(output), {**listed, "changes": changes}, indent=1)
    write_json(output, fixed)
    return Fixed(summary.json_file, output, changes_path(output), counts)


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
            _note(changes, "category_dropped", "unused placeholder", index, id_, name=name)
        else:
            fixed.append(entry)
    return fixed


def _fix_annotations(
    entries: list, images: dict[int, dict[str, Any]], changes: Changes
) -> list[Any]:
    fixed: list[tuple[int, Any]] = []
    seen: set[tuple] = set()
    for index, entry in enumerate(entries):
        if isinstance(entry, dict):
            entry, noted = _fix_annotation(index, entry, images, seen)
            changes += noted
            if entry is None:
                continue
        fixed.append((index, entry))
    return _renumber(fixed, changes)


def _fix_annotation(
    index: int, original: dict[str, Any], images: dict[int, dict[str, Any]], seen: set[tuple]
) -> tuple[dict[str, Any] | None, Changes]:
    """Return the fixed annotation, or None if it is left out, and its changes."""
    noted: Changes = []
    note = partial(_note, noted, index=index, id_=original.get("id"))
    image_id, entry = original.get("image_id"), dict(original)
    image = images.get(key_of(image_id))
    if is_id(image_id) and image is None:
        reason = "its image is left out or not in the file"
        note("annotation_dropped", reason, annotation=original)
        return None, noted
    if entry.get("iscrowd") is None:
        entry["iscrowd"] = 0
        note("iscrowd", "missing")
    if image is None or "invalid" in image or "segmentation" not in entry:
        return entry, noted
    untouched, size = (dict(entry), noted.copy()), (image["width"], image["height"])
    outlined = isinstance(entry["segmentation"], list) and any(entry["segmentation"])
    if outlined:
        entry["segmentation"] = fix_polygons(entry["segmentation"], *size, note)
        if entry["segmentation"] is None:
            return untouched
    dropped = ""
    try:
        measured = measure(entry["segmentation"], image["height"], image["width"])
        if is_repeated(entry, measured, seen):
            dropped = "repeats another's image, category and outline"
    except SegmentationError as error:
        if not outlined or error.code not in _NOTHING_LEFT:
            return untouched
        dropped = f"nothing of its outline can be used ({error.code})"
    if dropped:
        note("annotation_dropped", dropped, annotation=original)
        return None, noted
    changed = any(c["change"] not in ("iscrowd", "points_removed") for c in noted)
    _fix_figures(entry, measured, changed, note)
    return entry, noted


def _fix_figures(entry: dict[str, Any], measured: Measured, changed: bool, note: Note) -> None:
    """Take box and area from the mask if the check reports them or the mask changed."""
    box, area, true = entry.get("bbox"), entry.get("area"), list(measured.box)
    # Before the box is replaced: the area may be that of the box in the file.
    area_code = area_oddity(entry, measured.area)
    box_code = box_oddity(box, measured.box) if is_box(box) else "box_field"
    if box_code or (changed and box != true):
        entry["bbox"] = true
        note("bbox", box_code or "the mask changed", old=box, new=true)
    if area_code or (changed and area != measured.area):
        entry["area"] = measured.area
        note("area", area_code or "the mask changed", old=area, new=measured.area)


def _renumber(fixed: list[tuple[int, Any]], changes: Changes) -> list[Any]:
    """Give annotations with id 0 or the id of an earlier one the next free id."""
    ids = {entry["id"] for _, entry in fixed if isinstance(entry, dict) and is_id(entry.get("id"))}
    start = max(ids, default=0) + 1
    numbers = itertools.count(start if start + len(fixed) < ID_LIMIT else 1)
    free, taken = (number for number in numbers if number not in ids), set()
    for index, entry in fixed:
        id_ = entry.get("id") if isinstance(entry, dict) else None
        if not is_id(id_):
            continue
        if id_ == 0 or id_ in taken:
            entry["id"] = next(free)
            reason = "id 0" if id_ == 0 else "used twice"
            _note(changes, "id", reason, index, id_, new=entry["id"])
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
    sound = len(ring) >= 3 and (is_valid(ring) or only_touches(ring))
    if sound and not outside:
        return [polygon if len(ring) == len(points) else _flat(ring)]
    if not sound:
        note("polygon_fixed", "crosses itself or encloses nothing")
    if outside:
        note("polygon_clipped", "extends beyond the image")
    rings = _repaired(ring, width, height, note)
    if rings is None:
        rings = _traced(polygon, width, height)
    if not rings:
        note("polygon_dropped", "nothing of it is left")
    return list(map(_flat, rings))


def _flat(ring: np.ndarray) -> list[float]:
    return ring.reshape(-1).tolist()


def _repaired(ring: np.ndarray, width: int, height: int, note: Note) -> list[np.ndarray] | None:
    """Valid rings of what a polygon encloses in the image, None if that is impossible."""
    try:
        geometry = repair(ring)
        if geometry is None:
            return None
        geometry = shapely.intersection(geometry, shapely.box(0, 0, width, height))
    except shapely.errors.GEOSException:
        return None
    parts = shapely.get_parts(shapely.get_parts(geometry))  # also of a MultiPolygon inside
    areas = shapely.area(parts)
    kept = parts[(areas > 0) & (areas >= min(_SLIVER, areas.max(initial=0)))]
    if shapely.get_num_interior_rings(kept).any():
        return None
    rings = [shapely.get_coordinates(part)[:-1] for part in kept]
    rings = [without_repeats(np.clip(ring, 0, (width, height))) for ring in rings]
    if not all(map(is_valid, rings)):  # after rounding
        return None
    if len(kept) < len(parts):
        note("polygon_dropped", f"{len(parts) - len(kept)} parts of less than {_SLIVER} px²")
    return rings


def _traced(polygon: list[float], width: int, height: int) -> list[np.ndarray]:
    """Outlines of a polygon's pixels; COCO polygons have no holes, and these have cuts to them."""
    try:
        safe = measure([polygon], height, width).segmentation
    except SegmentationError:
        return []
    mask = CropMasks.from_coco([safe], (height, width))
    return mask_to_polygons(mask.crops[0], tuple(mask.offsets[0].tolist()))
