"""All checks of a data set, in one pass over its files."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import shapely
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from PIL import Image
from tqdm import tqdm

from microplastics.data.coco import (
    Examined,
    MeasuredEntry,
    Place,
    examine,
    file_problem,
    is_safe_name,
    show,
    structure_problem,
)
from microplastics.data.doctor.findings import (
    Collector,
    DatasetSummary,
    Diagnosis,
    Example,
    at_image,
    at_place,
    sort_findings,
)
from microplastics.data.doctor.model_fit import measure_fit
from microplastics.data.images import read_image
from microplastics.data.segmentation import NUMBERS, mask_points, read_json
from microplastics.data.splits.groups import compile_pattern, group_of, roboflow_original
from microplastics.data.splits.similarity import Fingerprint, find_duplicates, fingerprint
from microplastics.modeling.interface import num_classes
from microplastics.utils.errors import UserError
from microplastics.utils.system import available_processors, map_in_processes


@dataclass
class Dataset:
    """One annotation file as it is examined.

    Attributes:
        json_file: the annotation file.
        image_root: its image folder.
        data: content of the JSON.
        examined: what the check before training makes of it.
        class_names: class name by category id; placeholders are left out.
        summary: its figures.
    """

    json_file: str
    image_root: str
    data: dict[str, Any]
    examined: Examined
    class_names: dict[int, str]
    summary: DatasetSummary


def load_dataset(json_file: str, image_root: str, collector: Collector) -> Dataset | None:
    """Read and examine an annotation file.

    Returns:
        None where it cannot be used at all, which is a finding.

    Raises:
        UserError: there is no such file or folder.
    """
    if not os.path.isfile(json_file):
        raise UserError(f"There is no annotation file {json_file}; correct the path.")
    if not os.path.isdir(image_root):
        raise UserError(f"The image folder {image_root} of {json_file} does not exist; correct it.")
    try:
        data = read_json(json_file)
    except UserError as error:
        text = str(error)
        collector.add("not_json", lambda: Example(text, json_file))
        return None
    problem = structure_problem(data)
    if problem:
        collector.add("structure", lambda: Example(f"{json_file} {problem}", json_file))
        return None
    examined = examine(data)
    collector.add_checked(examined.findings, json_file, image_root)
    names = {category["id"]: category["name"] for category in examined.categories}
    summary = _summarise(json_file, image_root, data, examined, names)
    return Dataset(json_file, image_root, data, examined, names, summary)


def _summarise(
    json_file: str,
    image_root: str,
    data: dict[str, Any],
    examined: Examined,
    names: dict[int, str],
) -> DatasetSummary:
    summary = DatasetSummary(json_file, image_root, num_images=len(data["images"]))
    scales = {id_: _scale(data["images"][i]) for id_, i in examined.image_indices.items()}
    per_image: Counter[int] = Counter()
    for _, entry, image, measured, _ in examined.measured:
        category = entry.get("category_id")
        name = names.get(category) if type(category) is int else None
        if name is None:
            continue
        per_image[image["id"]] += 1
        summary.class_of.append(name)
        summary.size_px.append(measured.area**0.5)
        summary.long_side_px.append(max(measured.box[2:]))
        summary.aspect_ratio.append(aspect_ratio(mask_points(measured.segmentation)))
        summary.um_per_px.append(scales[image["id"]])
    counts = Counter(summary.class_of)
    summary.classes = {name: counts[name] for name in names.values()}
    summary.num_annotations = len(summary.class_of)
    summary.particles_per_image = [per_image[id_] for id_ in sorted(examined.images)]
    blank = examined.findings.warnings.get("image_blank")
    summary.blanks = blank.count if blank else 0
    return summary


def _scale(entry: dict[str, Any]) -> float | None:
    """Micrometres per pixel of an image entry, where it has them."""
    value = entry.get("um_per_px")
    return float(value) if type(value) in NUMBERS and 1e-6 <= value <= 1e6 else None


def aspect_ratio(points: np.ndarray) -> float:
    """Longer through shorter side of the rectangle of least area around points.

    Args:
        points: (N, 2) float64, x and y in px; a side counts as at least 1 px.
    """
    # Moved to their corner first: float32 has no half pixels left far from 0.
    _, sides, _ = cv2.minAreaRect((points - points.min(axis=0)).astype(np.float32))
    return max(*sides, 1.0) / max(min(sides), 1.0)


_CHUNK = 20_000  # annotations looked at together
_PARTS = 1_000  # polygons of one annotation that are compared with each other
# Noding an outline that crosses itself costs time and memory with every crossing.
_CROSSINGS = 200_000
_TOUCH_TOLERANCE = 1e-6  # of the area


def check_polygons(dataset: Dataset, collector: Collector) -> None:
    """Find polygons that are not as they should be, among those that can be measured."""
    measured = [m for m in dataset.examined.measured if isinstance(m.entry["segmentation"], list)]
    for start in range(0, len(measured), _CHUNK):
        chunk = measured[start : start + _CHUNK]
        rings = [polygon_points(polygon) for m in chunk for polygon in m.entry["segmentation"]]
        owners = np.repeat(
            np.arange(len(chunk)), [len(m.entry["segmentation"]) for m in chunk]
        ).tolist()
        repeated = _repeats_points(rings)
        for index in np.flatnonzero(repeated):
            _report(dataset, collector, "points_repeated", chunk[owners[index]])
        for index in np.flatnonzero(~are_valid(rings)):
            code = "polygon_touching" if only_touches(rings[index]) else "polygon_crossing"
            _report(dataset, collector, code, chunk[owners[index]])
        for entry in chunk:
            if len(entry.entry["segmentation"]) > 1:
                _check_parts(dataset, collector, entry)


def _report(dataset: Dataset, collector: Collector, code: str, m: MeasuredEntry) -> None:
    place = Place("annotation", m.index, m.entry, m.image)
    collector.add(code, lambda: at_place(place, "", dataset.json_file, dataset.image_root))


def polygon_points(polygon: Sequence[float]) -> np.ndarray:
    """Points of a COCO polygon as float64 of shape (N, 2)."""
    return np.array(polygon, np.float64).reshape(-1, 2)


def _repeats_points(rings: list[np.ndarray]) -> np.ndarray:
    """Whether a point of each ring follows itself; the first one at the end does not count."""
    if not rings:
        return np.zeros(0, bool)
    points = np.concatenate(rings)
    owners = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    same = (points[1:] == points[:-1]).all(axis=1) & (owners[1:] == owners[:-1])
    found = np.zeros(len(rings), bool)
    found[owners[1:][same]] = True
    return found


def are_valid(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Whether each ring is a valid polygon: it neither crosses nor touches itself.

    Args:
        rings: (N_i, 2) float64 arrays of x and y in px, N_i at least 3, all finite.

    Returns:
        bool array, one a ring.
    """
    valid = np.zeros(len(rings), bool)
    enough = [i for i, ring in enumerate(rings) if _can_close(ring)]
    if enough:
        owners = np.repeat(np.arange(len(enough)), [len(rings[i]) for i in enough])
        points = np.concatenate([rings[i] for i in enough])
        polygons = shapely.polygons(shapely.linearrings(points, indices=owners))
        valid[enough] = shapely.is_valid(polygons)
    return valid


def _can_close(ring: np.ndarray) -> bool:
    """Whether GEOS takes it: it wants four points in a closed ring."""
    return len(ring) > 3 or (len(ring) == 3 and bool((ring[0] != ring[2]).any()))


def only_touches(ring: np.ndarray) -> bool:
    """Whether an invalid ring has the mask that it seems to have.

    That is so where what the even-odd rule fills, by which COCO masks are drawn, has the area
    that the shoelace formula gives; a loop that is passed twice, or the other way round, has not.

    Args:
        ring: (N, 2) float64, x and y in px.
    """
    parts = repair(ring)
    if parts is None:
        return False
    area = shapely.area(shapely.Polygon(ring)) if len(ring) > 3 else 0.0
    filled = float(shapely.area(parts))
    return area > 0 and abs(filled - area) <= _TOUCH_TOLERANCE * area


def repair(ring: np.ndarray) -> shapely.Geometry | None:
    """Make a ring valid, filled by the even-odd rule.

    Args:
        ring: (N, 2) float64, x and y in px.

    Returns:
        a valid geometry, which may hold lines and points too; None where the ring crosses itself
        too often to be worth it.
    """
    if not _can_close(ring):
        return shapely.GeometryCollection()
    if crosses_too_often(ring):
        return None
    return shapely.make_valid(shapely.Polygon(ring))


def crosses_too_often(ring: np.ndarray) -> bool:
    """Whether more pairs of a ring's edges may cross than can be worked on."""
    if len(ring) ** 2 <= _CROSSINGS:
        return False
    edges = shapely.linestrings(np.stack([ring, np.roll(ring, -1, axis=0)], axis=1))
    tree = shapely.STRtree(edges)
    step = max(1, 2 * 10**7 // len(edges))
    pairs = 0
    for start in range(0, len(edges), step):
        pairs += tree.query(edges[start : start + step]).shape[1]
        # Each edge meets itself and its neighbours, and every pair is counted twice.
        if pairs > 5 * len(edges) + 2 * _CROSSINGS:
            return True
    return False


def _check_parts(dataset: Dataset, collector: Collector, m: MeasuredEntry) -> None:
    """Find polygons of one annotation that are equal, or lie inside each other."""
    polygons = m.entry["segmentation"]
    different = list({tuple(polygon): None for polygon in polygons})
    if len(different) < len(polygons):
        _report(dataset, collector, "polygon_repeated", m)
    if len(different) > _PARTS:
        _report(dataset, collector, "unchecked", m)
    elif len(different) > 1 and _has_inner(different):
        _report(dataset, collector, "polygon_hole", m)


def _has_inner(polygons: list[Sequence[float]]) -> bool:
    """Whether one of the valid ones among polygons lies inside another."""
    rings = [polygon_points(polygon) for polygon in polygons]
    rings = [ring for ring, valid in zip(rings, are_valid(rings), strict=True) if valid]
    return any(True for _ in _inner_pairs(rings))


def _inner_pairs(rings: list[np.ndarray]) -> Iterator[tuple[int, int]]:
    boxes = np.array([[*ring.min(axis=0), *ring.max(axis=0)] for ring in rings]).reshape(-1, 4)
    shapes = [shapely.Polygon(ring) for ring in rings]
    for outer, shape in enumerate(shapes):
        box = boxes[outer]
        inside = (boxes[:, :2] >= box[:2]).all(axis=1) & (boxes[:, 2:] <= box[2:]).all(axis=1)
        inside[outer] = False
        candidates = np.flatnonzero(inside)
        if len(candidates):
            shapely.prepare(shape)
            for inner in candidates[shapely.contains(shape, [shapes[i] for i in candidates])]:
                yield outer, int(inner)


OVERLAP = 0.9
_CANDIDATES = 20_000  # pairs of one image whose masks are compared
_BOXES = 3 * 10**7  # pairs of one image whose boxes meet: beyond that they are not looked at
_PAIRS_AT_ONCE = 10**6  # pairs of boxes that fit into memory together


def check_overlaps(dataset: Dataset, collector: Collector) -> None:
    """Find pairs of particles that overlap; crowds and exact repeats are left out."""
    by_image: dict[int, list[MeasuredEntry]] = defaultdict(list)
    for m in dataset.examined.measured:
        if not m.repeated and m.entry.get("iscrowd") != 1 and not m.measured.subpixel:
            by_image[m.image["id"]].append(m)
    for entries in by_image.values():
        image = entries[0].image
        count = 0
        rles: dict[int, dict[str, Any]] = {}
        for pair in _candidates(entries):
            count += 1
            if pair is None or count > _CANDIDATES:
                collector.add(
                    "unchecked",
                    lambda i=image: at_image(i, "", dataset.json_file, dataset.image_root),
                )
                break
            one, other = pair
            for index in pair:
                if index not in rles:
                    rles[index] = _rle(entries[index])
            iou = float(mask_util.iou([rles[one]], [rles[other]], [0])[0, 0])
            if iou > OVERLAP:
                both = entries[one], entries[other]
                collector.add("overlap", lambda b=both, i=iou: _example(dataset, *b, i))


def _candidates(entries: list[MeasuredEntry]) -> Iterator[tuple[int, int] | None]:
    """Pairs of annotations whose boxes and areas allow an IoU above ``OVERLAP``.

    None comes last where more boxes meet than are looked at.
    """
    if len(entries) < 2:
        return
    # A polygon's pixels may reach half a pixel beyond its points.
    low = np.array([m.measured.box[:2] for m in entries]) - 1
    high = low + np.array([m.measured.box[2:] for m in entries]) + 2
    area = np.array([m.measured.area for m in entries])
    boxes = shapely.box(*low.T, *high.T)
    tree, looked = shapely.STRtree(boxes), 0
    step = max(1, _PAIRS_AT_ONCE // len(entries))
    for start in range(0, len(entries), step):
        ones, others = tree.query(boxes[start : start + step])
        ones += start
        later = ones < others
        ones, others = ones[later], others[later]
        looked += len(ones)
        if looked > _BOXES:
            yield None
            return
        sides = np.minimum(high[ones], high[others]) - np.maximum(low[ones], low[others])
        shared = np.clip(sides, 0, None).prod(axis=1)
        shared = np.minimum(shared, np.minimum(area[ones], area[others]))
        possible = np.flatnonzero(shared > OVERLAP * np.maximum(area[ones], area[others]))
        # STRtree answers in no order that can be relied on.
        order = possible[np.lexsort((others[possible], ones[possible]))]
        yield from zip(ones[order].tolist(), others[order].tolist(), strict=True)


def _rle(m: MeasuredEntry) -> dict[str, Any]:
    segmentation = m.measured.segmentation
    if isinstance(segmentation, dict):
        return segmentation
    rles = mask_util.frPyObjects(segmentation, m.image["height"], m.image["width"])
    return mask_util.merge(rles) if len(rles) > 1 else rles[0]


def _example(dataset: Dataset, one: MeasuredEntry, other: MeasuredEntry, iou: float) -> Example:
    place = Place("annotation", one.index, one.entry, one.image)
    second = Place("annotation", other.index, other.entry, other.image)
    detail = f"with {second.short()}: IoU {iou:.2f}"
    example = at_place(place, detail, dataset.json_file, dataset.image_root)
    example.box, example.other_box = one.measured.box, other.measured.box
    return example


# Starting a process costs a few seconds: fewer pixels than this are decoded without.
_PIXELS_WORTH_A_PROCESS = 3 * 10**8
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".webp", ".jp2")
_FILES = 200_000  # of a folder that are looked at
_EXIF_ORIENTATION, _TIFF_BITS = 274, 258


@dataclass(frozen=True)
class ImageFacts:
    """What a file turned out to be.

    Attributes:
        problem: code and detail of what is wrong with it, or None.
        bits: a channel, or 0 where it is not known.
        grey: all channels are the same.
        turned: its EXIF orientation is another than upright.
        frames: how many it holds.
        fingerprint: for finding it again, or None where it cannot be read.
        unread: why bits, turned or frames could not be looked up, or "".
    """

    problem: tuple[str, str] | None = None
    bits: int = 0
    grey: bool = False
    turned: bool = False
    frames: int = 1
    fingerprint: Fingerprint | None = None
    unread: str = ""


@dataclass(frozen=True)
class ImageOf:
    """An image entry of a data set with what its file turned out to be."""

    dataset: int
    image: dict[str, Any]
    path: str
    facts: ImageFacts


def inspect_images(
    datasets: Sequence[Dataset],
    collector: Collector,
    workers: int | None,
    max_pixels: int | None,
    progress: bool,
) -> list[ImageOf]:
    """Decode every image once and find what is wrong with it.

    Args:
        datasets: whose images; the unusable ones are listed in their summaries.
        collector: takes the findings.
        workers: processes; None takes the processors there are, or none for a small job.
        max_pixels: images of more pixels are refused; ``images.MAX_PIXELS`` if None.
        progress: whether to show a bar on stderr, where that is a terminal.
    """
    entries = [
        (number, image, os.path.join(dataset.image_root, image["file_name"]))
        for number, dataset in enumerate(datasets)
        for image in sorted(dataset.examined.images.values(), key=lambda image: image["id"])
        if is_safe_name(image["file_name"])
    ]
    tasks = [(image, datasets[n].image_root, max_pixels) for n, image, _ in entries]
    # One file may be named by several splits, which may claim different sizes of it.
    keys = [(path, image.get("width"), image.get("height")) for _, image, path in entries]
    distinct = dict(zip(map(repr, keys), tasks, strict=True))
    results = map_in_processes(
        inspect_file, list(distinct.values()), _processes(workers, distinct.values())
    )
    bar = tqdm(results, "Decoding", len(distinct), unit="image", disable=None if progress else True)
    facts = dict(zip(distinct, bar, strict=True))
    images = [
        ImageOf(number, image, path, facts[repr(key)])
        for (number, image, path), key in zip(entries, keys, strict=True)
    ]
    for of in images:
        _report_image(datasets[of.dataset], of, collector)
    _check_kinds(datasets, images, collector)
    return images


def _processes(workers: int | None, tasks: Any) -> int:
    if workers is None:
        pixels = sum(
            image["width"] * image["height"] for image, _, _ in tasks if "invalid" not in image
        )
        workers = available_processors() if pixels >= _PIXELS_WORTH_A_PROCESS else 1
    return max(1, min(workers, len(tasks)))


def inspect_file(task: tuple[dict[str, Any], str, int | None]) -> ImageFacts:
    """Decode one image.

    Args:
        task: the image as ``coco_check`` gives it, its image root, the bound on its pixels.
    """
    image, root, max_pixels = task
    path = os.path.join(root, image["file_name"])
    problem = file_problem(image, root, max_pixels)
    if problem and problem[0] != "image_size":
        return ImageFacts(problem)
    try:
        pixels = read_image(path, max_pixels=max_pixels)
    except UserError as error:
        return ImageFacts(("image_file", str(error).rstrip(".")))
    grey = bool(
        (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
    )
    return ImageFacts(problem, grey=grey, fingerprint=fingerprint(pixels), **_header(path))


def _header(path: str) -> dict[str, Any]:
    """Bits, orientation and frames of a file that has been decoded already."""
    # Decoded without fault, but a damaged tag can still raise nearly anything.
    facts: dict[str, Any] = {}
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            # The second picture in the JPEG of a phone is a preview.
            facts["frames"] = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
            facts["bits"] = _bits(image)
            facts["turned"] = int(image.getexif().get(_EXIF_ORIENTATION, 1)) in range(2, 9)
    except Exception as error:
        return facts | _tiff_header(path, error)
    return facts


def _bits(image: Image.Image) -> int:
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(_TIFF_BITS, (1,))))
    if image.mode in ("I", "F"):
        return 32
    # Pillow cuts 16-bit colour down to 8 bits, and tells so in the raw mode alone.
    deep = image.mode.startswith("I;16") or any(";16" in str(tile[3]) for tile in image.tile)
    return 16 if deep else 8


def _tiff_header(path: str, error: Exception) -> dict[str, Any]:
    """The same for a TIFF that Pillow does not know; for others what Pillow stumbled over."""
    if not path.lower().endswith((".tif", ".tiff")):
        return {"unread": str(error) or type(error).__name__}
    import tifffile  # slow to import and seldom needed

    try:
        with tifffile.TiffFile(path) as tiff:
            return {"frames": len(tiff.pages), "bits": int(tiff.pages[0].bitspersample)}
    except Exception as error:
        return {"unread": str(error) or type(error).__name__}


def _report_image(dataset: Dataset, of: ImageOf, collector: Collector) -> None:
    facts = of.facts

    def add(code: str, detail: str = "") -> None:
        collector.add(
            code, lambda: at_image(of.image, detail, dataset.json_file, dataset.image_root)
        )

    if facts.problem:
        add(*facts.problem)
        if facts.problem[0] != "image_size":
            dataset.summary.unusable_images.append(of.image["file_name"])
    elif facts.turned:
        add("image_exif")
    if facts.unread:
        add("image_header", facts.unread)
    if facts.frames > 1:
        add("image_frames", f"{facts.frames} frames")
    if facts.bits > 8:
        add("image_deep", f"{facts.bits} bits")


def _check_kinds(datasets: Sequence[Dataset], images: list[ImageOf], collector: Collector) -> None:
    """Find images that are of another kind than most, over all data sets together."""
    _check_kind(
        "image_channels_mixed",
        [of for of in images if of.facts.fingerprint is not None],
        lambda of: "grey" if of.facts.grey else "coloured",
        datasets,
        collector,
    )
    _check_kind(
        "image_depth_mixed",
        [of for of in images if of.facts.bits],
        lambda of: f"{of.facts.bits if of.facts.bits > 8 else 8} bits",
        datasets,
        collector,
    )


def _check_kind(
    code: str,
    images: list[ImageOf],
    kind_of: Callable[[ImageOf], str],
    datasets: Sequence[Dataset],
    collector: Collector,
) -> None:
    counts = Counter(map(kind_of, images))
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    for of in images:
        kind = kind_of(of)
        if kind != usual:
            dataset = datasets[of.dataset]
            collector.add(
                code,
                lambda o=of, k=kind, d=dataset: at_image(o.image, k, d.json_file, d.image_root),
            )


def check_unlisted(datasets: Sequence[Dataset], collector: Collector) -> None:
    """Find image files under the image roots that no JSON names."""
    named = {
        os.path.abspath(os.path.join(dataset.image_root, image["file_name"]))
        for dataset in datasets
        for image in dataset.examined.images.values()
        if is_safe_name(image["file_name"])
    }
    seen: set[str] = set()
    for root in dict.fromkeys(os.path.abspath(dataset.image_root) for dataset in datasets):
        for number, path in enumerate(_image_files(root)):
            if number >= _FILES:
                collector.add("image_unlisted_cut", lambda r=root: Example(r))
                break
            if path not in named and path not in seen:
                seen.add(path)
                collector.add("image_unlisted", lambda p=path: Example(_printable(p), image=p))


def _image_files(root: str) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(_EXTENSIONS) and not name.startswith("."):
                yield os.path.join(folder, name)


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


_RARE = 10  # times rarer than the most frequent class


def check_duplicates(
    datasets: Sequence[Dataset], images: Sequence[ImageOf], collector: Collector
) -> None:
    """Find images that occur twice, in one file or in two."""
    whole = [of for of in images if of.facts.fingerprint is not None]
    if len(whole) < 2:
        return
    duplicates = find_duplicates([of.facts.fingerprint for of in whole])
    exact_of = {index: group[0] for group in duplicates.exact for index in group}
    for group in duplicates.exact:
        _check_group(datasets, [whole[i] for i in group], ("image_same", "split_same"), collector)
    for group in duplicates.near:
        # Of images with the same pixels one stands for all: they have been reported.
        distinct = {exact_of.get(index, index): whole[index] for index in reversed(group)}
        members = [distinct[key] for key in sorted(distinct)]
        if len(members) > 1:
            _check_group(datasets, members, ("image_near", "split_near"), collector)


def _check_group(
    datasets: Sequence[Dataset],
    group: list[ImageOf],
    codes: tuple[str, str],
    collector: Collector,
) -> None:
    """Report each image of a group but the first: as of the same file, or of another."""
    firsts: dict[int, ImageOf] = {}
    for of in group:
        earlier = firsts.get(of.dataset)
        # Two entries that name one file are found without looking at pixels.
        if earlier is not None and os.path.normpath(earlier.path) != os.path.normpath(of.path):
            _add_pair(datasets, codes[0], of, earlier, collector)
        elif earlier is None:
            if firsts:
                _add_pair(datasets, codes[1], of, next(iter(firsts.values())), collector)
            firsts[of.dataset] = of


def _add_pair(
    datasets: Sequence[Dataset], code: str, of: ImageOf, other: ImageOf, collector: Collector
) -> None:
    dataset = datasets[of.dataset]

    def example() -> Example:
        where = "" if of.dataset == other.dataset else f" of {datasets[other.dataset].json_file}"
        detail = f"as {show(other.image['file_name'])}{where}"
        made = at_image(of.image, detail, dataset.json_file, dataset.image_root)
        made.other_image = other.path
        return made

    collector.add(code, example)


def check_groups(
    datasets: Sequence[Dataset],
    images: Sequence[ImageOf],
    pattern: str | None,
    collector: Collector,
) -> None:
    """Find samples that lie in two files: by the pattern, or by Roboflow's names.

    Args:
        datasets: the files.
        images: their images.
        pattern: regular expression of ``--group-regex``, or None.
        collector: takes the findings.
    """
    if pattern is not None:
        compiled = compile_pattern(pattern)
        grouped = []
        for of in images:
            try:
                grouped.append((of, group_of(of.image["file_name"], compiled)))
            except UserError:
                dataset = datasets[of.dataset]
                collector.add(
                    "group_unmatched",
                    lambda o=of, d=dataset: at_image(o.image, "", d.json_file, d.image_root),
                )
        _check_shared(datasets, grouped, "split_group", collector)
    originals = ((of, roboflow_original(of.image["file_name"])) for of in images)
    found = ((of, original) for of, original in originals if original is not None)
    _check_shared(datasets, found, "split_original", collector)


def _check_shared(
    datasets: Sequence[Dataset],
    grouped: Iterable[tuple[ImageOf, str]],
    code: str,
    collector: Collector,
) -> None:
    """Report each group that has images in two files, once for each further file."""
    groups: dict[str, dict[int, ImageOf]] = defaultdict(dict)
    for of, group in grouped:
        groups[group].setdefault(of.dataset, of)
    for group, members in groups.items():
        first, *others = members.values()
        for of in others:

            def example(of: ImageOf = of, first: ImageOf = first, group: str = group) -> Example:
                words = f"{show(group)}: {of.path} and {first.path}"
                return Example(
                    words, datasets[of.dataset].json_file, of.path, other_image=first.path
                )

            collector.add(code, example)


def check_categories(
    datasets: Sequence[Dataset], cfg: CfgNode | None, collector: Collector
) -> None:
    """Compare the classes of all files with those of the first, and with the config."""
    first = datasets[0]
    ids, names = list(first.class_names), list(first.class_names.values())
    for dataset in datasets[1:]:
        other_ids, other_names = list(dataset.class_names), list(dataset.class_names.values())
        if sorted(other_names) != sorted(names):
            code, detail = "category_names", f"{show(other_names)}, not {show(names)}"
        elif other_names != names:
            code, detail = "category_order", f"{show(other_names)}, not {show(names)}"
        elif other_ids != ids:
            code, detail = "category_ids", f"{show(other_ids)}, not {show(ids)}"
        else:
            continue
        text = f"{dataset.json_file}: {detail} as in {first.json_file}"
        collector.add(code, lambda t=text, d=dataset: Example(t, d.json_file))
    for dataset in datasets:
        if cfg is not None and len(dataset.class_names) != num_classes(cfg):
            text = (
                f"{dataset.json_file} has {len(dataset.class_names)} "
                f"({show(list(dataset.class_names.values()))}), the config "
                f"{num_classes(cfg)}"
            )
            collector.add("num_classes", lambda t=text, d=dataset: Example(t, d.json_file))


def check_balance(datasets: Sequence[Dataset], collector: Collector) -> None:
    """Find rare classes and the share of blanks, over all files together."""
    counts: dict[str, int] = defaultdict(int)
    for dataset in datasets:
        for name, count in dataset.summary.classes.items():
            counts[name] += count
    most = max(counts.values(), default=0)
    for name, count in counts.items():
        if 0 < count * _RARE < most:
            text = f"{show(name)}: {count} of {sum(counts.values())}"
            collector.add("class_imbalance", lambda t=text: Example(t))
    if not any(
        m.entry.get("iscrowd") != 1 for dataset in datasets for m in dataset.examined.measured
    ):
        collector.add("nothing_to_train", lambda: Example(datasets[0].json_file))
    blanks = sum(dataset.summary.blanks for dataset in datasets)
    images = sum(dataset.summary.num_images for dataset in datasets)
    collector.describe("image_blank", f"{blanks / images:.0%} of all" if images else "")


def diagnose(
    json_files: Sequence[str | os.PathLike],
    image_roots: Sequence[str | os.PathLike],
    *,
    cfg: CfgNode | None = None,
    config_file: str = "",
    group_regex: str | None = None,
    workers: int | None = None,
    max_pixels: int | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Find everything that is wrong or odd in a data set.

    What the check before training finds (``coco_check``) is among it, from the same code. Every
    image is decoded.

    Args:
        json_files: COCO instance JSONs, such as those of train, val and test.
        image_roots: image folder of each, or one for all.
        cfg: config whose classes the files are held to and whose model is held to the particles,
            or None for neither.
        config_file: its path, for the report.
        group_regex: regular expression that takes the sample or filter out of a ``file_name``
            (see ``data.splits.groups.group_of``), or None.
        workers: processes that decode; None takes the processors there are, or none for a small
            job.
        max_pixels: images of more pixels are refused; ``images.MAX_PIXELS`` if None.
        progress: whether to show progress on stderr, where that is a terminal.

    Raises:
        UserError: a file or folder does not exist, or an argument makes no sense.
    """
    pairs = _pair(json_files, image_roots)
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: give the number of processes, 1 or more.")
    collector = Collector()
    loaded = [load_dataset(json_file, root, collector) for json_file, root in pairs]
    datasets = [dataset for dataset in loaded if dataset is not None]
    findings, fit = [], None
    if datasets:
        for dataset in datasets:
            check_polygons(dataset, collector)
            check_overlaps(dataset, collector)
        images = inspect_images(datasets, collector, workers, max_pixels, progress)
        check_unlisted(datasets, collector)
        check_duplicates(datasets, images, collector)
        check_groups(datasets, images, group_regex, collector)
        check_categories(datasets, cfg, collector)
        check_balance(datasets, collector)
        if cfg is not None and any(dataset.examined.annotations for dataset in datasets):
            dicts, names = _detectron2_dicts(datasets)
            fit, findings = measure_fit(cfg, config_file, dicts, names)
    summaries = [
        dataset.summary if dataset else DatasetSummary(*pair)
        for dataset, pair in zip(loaded, pairs, strict=True)
    ]
    return Diagnosis(summaries, sort_findings(collector.findings() + findings), fit)


def _pair(
    json_files: Sequence[str | os.PathLike], image_roots: Sequence[str | os.PathLike]
) -> list[tuple[str, str]]:
    files = [os.fspath(path) for path in json_files]
    roots = [os.fspath(path) for path in image_roots]
    if not files:
        raise UserError("There is nothing to check; give at least one annotation file.")
    if len(roots) == 1:
        roots *= len(files)
    if len(roots) != len(files):
        raise UserError(
            f"--images names {len(roots)} folders for {len(files)} annotation files; give one for "
            "all, or one for each in the same order."
        )
    for index, path in enumerate(files):
        if os.path.realpath(path) in map(os.path.realpath, files[:index]):
            raise UserError(f"{path} is given twice; name every annotation file once.")
    return list(zip(files, roots, strict=True))


def _detectron2_dicts(datasets: Sequence[Dataset]) -> tuple[list[dict[str, Any]], list[str]]:
    """The sound annotations of all files in Detectron2's form, and the class names."""
    names = list(dict.fromkeys(n for dataset in datasets for n in dataset.class_names.values()))
    dicts = []
    for dataset in datasets:
        by_image: dict[int, list[dict[str, Any]]] = {}
        for annotation in dataset.examined.annotations:
            name = dataset.class_names[annotation["category_id"]]
            by_image.setdefault(annotation["image_id"], []).append(
                {
                    **annotation,
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": names.index(name),
                }
            )
        images = dataset.examined.images
        dicts += [
            {
                "file_name": os.path.join(dataset.image_root, images[id_]["file_name"]),
                "image_id": id_,
                "height": images[id_]["height"],
                "width": images[id_]["width"],
                "annotations": annotations,
            }
            for id_, annotations in by_image.items()
        ]
    return dicts, names
