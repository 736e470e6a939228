"""Checks of a data set."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import shapely
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from PIL import Image
from tqdm import tqdm

from microplastics.calibration.scale_bar import Box, find_scale_bars
from microplastics.data.coco import (
    Examined,
    MeasuredEntry,
    Place,
    check_image_root,
    examine,
    file_problem,
    is_safe_name,
    key_of,
    objects_of,
    pair_image_roots,
    show,
    structure_problem,
)
from microplastics.data.doctor.classes import (
    check_balance,
    check_case,
    check_categories,
    check_mixing,
)
from microplastics.data.doctor.findings import (
    Collector,
    DatasetSummary,
    Diagnosis,
    Example,
    example_at,
)
from microplastics.data.doctor.model_fit import measure_fit
from microplastics.data.formats.layout import IMAGE_SUFFIXES
from microplastics.data.formats.masks import is_mask
from microplastics.data.images import (
    EXIF_ORIENTATION,
    is_deep_png,
    open_image,
    read_image,
)
from microplastics.data.orientation import STORED, UNSURE, UPRIGHT, keeps_size, reading
from microplastics.data.painting import Picture
from microplastics.data.segmentation import NUMBERS, mask_points
from microplastics.data.splits.groups import compile_pattern, group_of, roboflow_original
from microplastics.data.splits.similarity import Fingerprint, find_duplicates, fingerprint
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json
from microplastics.utils.system import available_processors, map_in_processes

OVERLAP = 0.9  # IoU
_PARTS = 1_000  # polygons of one annotation that are compared with each other
# Noding an outline that crosses itself takes time and memory for every crossing.
_CROSSINGS = 200_000
_EDGES = 400  # of an outline, from which the number of its crossings is estimated
_TOUCH_TOLERANCE = 1e-6  # of the area
_CANDIDATES = 20_000  # pairs of one image whose masks are compared
_BOXES = 3 * 10**7  # pairs of one image whose boxes meet: beyond that they are not compared
# Starting a process takes a few seconds: fewer pixels than this are decoded without.
_PIXELS_WORTH_A_PROCESS = 3 * 10**8
_EXIF_CODES = {
    UPRIGHT: "image_exif",
    STORED: "image_exif_stored",
    UNSURE: "image_exif_unsure",
}
_FILES = 200_000  # of a folder that are searched


@dataclass(eq=False)
class Dataset:
    """One annotation file under examination."""

    summary: DatasetSummary
    examined: Examined
    class_names: dict[int, str]  # by category id, without placeholders
    # file_name of entries that cannot be used, and the code of the finding.
    lost: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageFacts:
    """Properties of an image file."""

    problem: tuple[str, str] | None = None  # code and detail
    bits: int = 0  # a channel, or 0 if unknown
    grey: bool = False  # all channels are the same
    orientation: int = 1  # EXIF, 1 to 8
    frames: int = 1
    bars: tuple[Box, ...] = ()  # x, y, width and height in px of what looks like a scale bar
    fingerprint: Fingerprint | None = None  # None if it cannot be read
    unread: str = ""  # why bits, orientation or frames are unknown


@dataclass(frozen=True, eq=False)
class CheckedImage:
    """An image entry of a data set with the properties of its file."""

    dataset: Dataset
    image: dict[str, Any]
    path: str
    facts: ImageFacts

    def example(self, detail: str = "") -> Example:
        """Make an example of it."""
        return example_at(Place("image", 0, self.image), detail, self.dataset.summary)


def diagnose(
    json_files: Sequence[str | os.PathLike],
    image_roots: Sequence[str | os.PathLike],
    *,
    cfg: CfgNode | None = None,
    config_file: str = "",
    group_regex: str | None = None,
    workers: int | None = None,
    max_pixels: int | None = None,
) -> Diagnosis:
    """Find everything that is wrong or odd in a data set.

    Includes the check before training (:func:`microplastics.data.coco.examine`). Every image is
    decoded.

    Args:
        json_files: COCO instance JSONs, such as train, val and test.
        image_roots: image folder of each, or one for all.
        cfg: config whose number of classes and model the data is compared with, or None.
        config_file: its path, for the report.
        group_regex: regular expression that extracts the sample or filter from a ``file_name``
            (see ``data.splits.groups.group_of``), or None.
        workers: processes that decode; by default one a processor, or none for a small job.
        max_pixels: images of more pixels are refused; ``images.MAX_PIXELS`` if None.

    Raises:
        UserError: a file or folder does not exist, or an argument is invalid.
    """
    collector = Collector()
    summaries = [DatasetSummary(*pair) for pair in pair_image_roots(json_files, image_roots)]
    loaded = [load_dataset(summary, collector) for summary in summaries]
    datasets = [dataset for dataset in loaded if dataset is not None]
    findings, fit = [], None
    if datasets:
        for dataset in datasets:
            check_polygons(dataset, collector)
            check_overlaps(dataset, collector)
        images = inspect_images(datasets, collector, workers, max_pixels)
        check_orientation(images, collector, workers, max_pixels)
        unread = [s for s, dataset in zip(summaries, loaded, strict=True) if dataset is None]
        check_unlisted(datasets, unread, images, collector)
        check_duplicates(images, collector)
        check_groups(images, group_regex, collector)
        check_categories(datasets, cfg, collector)
        check_case(datasets, collector)
        check_balance(datasets, collector)
        check_mixing(datasets, collector)
        if cfg is not None and any(dataset.examined.annotations for dataset in datasets):
            fit, findings = measure_fit(cfg, config_file, *_detectron2_dicts(datasets))
    return Diagnosis(summaries, collector.findings() + findings, fit)


def load_dataset(summary: DatasetSummary, collector: Collector) -> Dataset | None:
    """Read and examine an annotation file, and fill in the figures of its summary.

    Returns:
        None if it cannot be used at all, which is a finding.

    Raises:
        UserError: ``file_missing`` for the file or its image folder.
    """
    try:
        data = read_json(summary.json_file)
    except UserError as error:
        if error.code == "file_missing":
            raise
        collector.add("not_json", Example(str(error), summary.json_file))
        return None
    check_image_root(summary.json_file, summary.image_root)
    problem = structure_problem(data)
    if problem:
        collector.add("structure", Example(f"{summary.json_file} {problem}", summary.json_file))
        return None
    examined = examine(data)
    collector.add_checked(examined.findings, summary)
    names = {category["id"]: category["name"] for category in examined.categories}
    _summarize(summary, data["images"], examined, names)
    return Dataset(summary, examined, names, _lost(data["images"], examined))


def _lost(entries: list[Any], examined: Examined) -> dict[str, str]:
    """Names of image entries that are not among the images, or leave their folder, and why."""
    names = (image["file_name"] for image in examined.images.values())
    kept = {name for name in names if isinstance(name, str)}
    lost = {}
    for entry in objects_of(entries):
        name = entry.get("file_name")
        if isinstance(name, str) and name not in kept:
            taken = key_of(entry.get("id")) in examined.images
            lost[name] = "image_duplicate" if taken else "image_field"
        elif isinstance(name, str) and not is_safe_name(name):
            lost[name] = "file_name"
    return lost


def check_polygons(dataset: Dataset, collector: Collector) -> None:
    """Find invalid, repeated and nested polygons of measurable annotations."""
    for m in dataset.examined.measured:
        polygons = m.entry["segmentation"]
        if not isinstance(polygons, list):
            continue
        for ring in map(polygon_points, polygons):
            if len(without_repeats(ring)) < len(ring):
                collector.add("points_repeated", _example(m, dataset))
            if not is_valid(ring):
                code = "polygon_touching" if only_touches(ring) else "polygon_crossing"
                collector.add(code, _example(m, dataset))
        different = list(dict.fromkeys(map(tuple, polygons)))
        if len(different) < len(polygons):
            collector.add("polygon_repeated", _example(m, dataset))
        if len(different) > _PARTS:
            collector.add("unchecked", _example(m, dataset))
        elif len(different) > 1 and _is_nested(different):
            collector.add("polygon_hole", _example(m, dataset))


def polygon_points(polygon: Sequence[float]) -> np.ndarray:
    """Points of a COCO polygon as float64 of shape (N, 2)."""
    return np.array(polygon, np.float64).reshape(-1, 2)


def without_repeats(points: np.ndarray) -> np.ndarray:
    """Remove consecutive equal points of an (N, 2) array; a last equal to the first stays."""
    return points[np.append(True, (points[1:] != points[:-1]).any(axis=1))]


def is_valid(ring: np.ndarray) -> bool:
    """Whether a ring, (N, 2) float64, neither crosses nor touches itself."""
    return _can_close(ring) and bool(shapely.is_valid(shapely.Polygon(ring)))


def only_touches(ring: np.ndarray) -> bool:
    """Whether an invalid ring fills the area that it encloses.

    This holds if the area filled by the even-odd rule, by which COCO masks are drawn, equals the
    area of the shoelace formula; a loop passed twice or in reverse makes them differ.
    """
    parts = repair(ring)
    if parts is None:
        return False
    area = shapely.area(shapely.Polygon(ring))
    return area > 0 and abs(float(shapely.area(parts)) - area) <= _TOUCH_TOLERANCE * area


def repair(ring: np.ndarray) -> shapely.Geometry | None:
    """Make a ring valid, filled by the even-odd rule; None for a line or too many crossings."""
    if not _can_close(ring) or crosses_too_often(ring):
        return None
    return shapely.make_valid(shapely.Polygon(ring))


def crosses_too_often(ring: np.ndarray) -> bool:
    """Whether more pairs of a ring's edges may cross than can be processed."""
    if len(ring) ** 2 <= _CROSSINGS:
        return False
    edges = shapely.linestrings(np.stack([ring, np.roll(ring, -1, axis=0)], axis=1))
    sample = np.linspace(0, len(edges) - 1, _EDGES).astype(int)
    met = shapely.STRtree(edges).query(edges[sample]).shape[1] / len(sample)
    # Each edge meets itself and its neighbours, and every pair is counted twice.
    return (met - 5) * len(edges) > 2 * _CROSSINGS


def check_overlaps(dataset: Dataset, collector: Collector) -> None:
    """Find pairs of overlapping particles, except crowds and exact repeats."""
    by_image: dict[int, list[MeasuredEntry]] = defaultdict(list)
    for m in dataset.examined.measured:
        if not m.repeated and m.entry.get("iscrowd") != 1 and not m.measured.subpixel:
            by_image[m.image["id"]].append(m)
    for entries in by_image.values():
        rles: dict[int, dict[str, Any]] = {}
        for count, pair in enumerate(_candidates(entries), 1):
            if pair is None or count > _CANDIDATES:
                image = Place("image", 0, entries[0].image)
                collector.add("unchecked", example_at(image, "", dataset.summary))
                break
            for index in pair:
                if index not in rles:
                    rles[index] = _rle(entries[index])
            iou = float(mask_util.iou([rles[pair[0]]], [rles[pair[1]]], [0])[0, 0])
            if iou > OVERLAP:
                one, other = (entries[index] for index in pair)
                example = _example(one, dataset, f"with {_place(other)}: IoU {iou:.2f}")
                example.box, example.other_box = one.measured.box, other.measured.box
                collector.add("overlap", example)


def inspect_images(
    datasets: Sequence[Dataset],
    collector: Collector,
    workers: int | None,
    max_pixels: int | None,
) -> list[CheckedImage]:
    """Decode every image and find problems of its file; unusable ones enter the summaries."""
    entries = [
        (dataset, image, os.path.join(dataset.summary.image_root, image["file_name"]))
        for dataset in datasets
        for image in sorted(dataset.examined.images.values(), key=lambda image: image["id"])
        if is_safe_name(image["file_name"])
    ]
    tasks = [(image, dataset.summary.image_root, max_pixels) for dataset, image, _ in entries]
    results = map_in_processes(inspect_file, tasks, _processes(workers, tasks))
    bar = tqdm(results, "Decoding", len(tasks), unit="image", disable=None)
    images = [CheckedImage(*entry, facts) for entry, facts in zip(entries, bar, strict=True)]
    for image in images:
        _report_image(image, collector)
    _check_kinds(images, collector)
    return images


def inspect_file(task: tuple[dict[str, Any], str, int | None]) -> ImageFacts:
    """Decode an image of ``Examined.images``, given with its folder and the limit of its pixels."""
    image, root, max_pixels = task
    path = os.path.join(root, image["file_name"])
    problem = file_problem(image, root, max_pixels)
    if problem and problem[0] != "image_size":
        return ImageFacts(problem)
    try:
        pixels = read_image(path, max_pixels=max_pixels)
    except UserError as error:
        return ImageFacts(("image_file", str(error).rstrip(".")))
    grey = bool((pixels[..., :1] == pixels[..., 1:]).all())
    bars = tuple(bar.box for bar in find_scale_bars(Picture(pixels).read, *pixels.shape[1::-1]))
    facts = {"grey": grey, "bars": bars, "fingerprint": fingerprint(pixels)}
    return ImageFacts(problem, **facts, **_header(path, max_pixels))


def check_orientation(
    images: Sequence[CheckedImage],
    collector: Collector,
    workers: int | None,
    max_pixels: int | None,
) -> None:
    """Find images with an EXIF rotation, and whether they were annotated upright.

    Their size tells it, or else the picture, if it can.
    """
    turned = [i for i in images if i.facts.orientation > 1 and not i.facts.problem]
    outlines: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for dataset in {image.dataset for image in turned}:
        for m in dataset.examined.measured:
            outlines[id(dataset), m.image["id"]].append(m.measured.segmentation)
    asked, tasks = [], []
    for image in turned:
        segmentations = outlines[id(image.dataset), image.image["id"]]
        size = image.image["width"], image.image["height"]
        if segmentations and keeps_size(image.facts.orientation, *size):
            asked.append(image)
            tasks.append((image.path, image.facts.orientation, segmentations, max_pixels))
        else:
            collector.add("image_exif", image.example())
    workers = available_processors() if workers is None and len(tasks) > 50 else workers or 1
    readings = map_in_processes(_reading, tasks, max(1, min(workers, len(tasks))))
    for image, found in zip(asked, readings, strict=True):
        detail = f"orientation {image.facts.orientation}"
        collector.add(_EXIF_CODES[found], image.example(detail))


def _reading(task: tuple[str, int, list[Any], int | None]) -> str:
    path, orientation, segmentations, max_pixels = task
    return reading(read_image(path, max_pixels=max_pixels), orientation, segmentations)


def check_unlisted(
    datasets: Sequence[Dataset],
    unread: Sequence[DatasetSummary],
    images: Sequence[CheckedImage],
    collector: Collector,
) -> None:
    """Find image files in the image folders that no JSON names.

    ``unread`` are the files that could not be used at all: their images may be in these folders.
    """
    known = {os.path.abspath(image.path) for image in images}
    causes = {_stem(name): code for dataset in datasets for name, code in dataset.lost.items()}
    missing = [image for image in images if (image.facts.problem or ("",))[0] == "image_missing"]
    causes |= {_stem(image.path): "image_missing" for image in missing}
    names = {_stem(image.path): image.image["file_name"] for image in missing}
    lost = {
        os.path.abspath(summary.image_root): collector.most_frequent(("not_json", "structure"))
        for summary in unread
    }
    for root in dict.fromkeys(os.path.abspath(d.summary.image_root) for d in datasets):
        for number, path in enumerate(_image_files(root)):
            if number >= _FILES:
                collector.add("image_unlisted_cut", Example(root))
                break
            if path not in known:
                known.add(path)
                printable = path.encode("utf-8", "backslashreplace").decode()
                named = names.get(_stem(path))
                text = printable if named is None else f"{printable}; the JSON names {show(named)}"
                cause = causes.get(_stem(path)) or lost.get(root, "")
                collector.add("image_unlisted", Example(text, image=path), cause)


def _stem(path: str) -> str:
    """Name of a file without folders and extension, in lower case."""
    return os.path.splitext(re.split(r"[/\\]", path)[-1])[0].casefold()


def check_duplicates(images: Sequence[CheckedImage], collector: Collector) -> None:
    """Find images that occur twice, in one file or in two."""
    whole = [image for image in images if image.facts.fingerprint is not None]
    duplicates = find_duplicates([image.facts.fingerprint for image in whole])
    for group in duplicates.exact:
        _check_copies([whole[i] for i in group], "split_same", collector, "image_same")
    # Of images with the same pixels, which are reported already, one represents all.
    linked: dict[int, list[CheckedImage]] = defaultdict(list)
    for one, other in duplicates.links:
        linked[other].append(whole[one])
    for index, earlier in sorted(linked.items()):
        image = whole[index]
        for code, within in (("split_near", False), ("image_near", True)):
            alike = [e for e in earlier if (e.dataset is image.dataset) is within]
            if alike:
                collector.add(code, _pair_example(image, alike[0]))


def check_groups(images: Sequence[CheckedImage], pattern: str | None, collector: Collector) -> None:
    """Find samples that are in two files, by a pattern or by Roboflow's names."""
    compiled = None if pattern is None else compile_pattern(pattern)
    samples, originals = defaultdict(list), defaultdict(list)
    for image in images:
        name = image.image["file_name"]
        original = roboflow_original(name)
        if original is not None:
            originals[original].append(image)
        try:
            if compiled is not None:
                samples[group_of(name, compiled)].append(image)
        except UserError:
            collector.add("group_unmatched", image.example())
    for code, groups in (("split_group", samples), ("split_original", originals)):
        for name, members in groups.items():
            _check_copies(members, code, collector, words=f"{show(name)}, ")


def aspect_ratio(points: np.ndarray) -> float:
    """Longer divided by shorter side of the minimum-area rectangle around (N, 2) points in px."""
    # Moved to the origin first: far from it, float32 does not resolve half a pixel.
    _, sides, _ = cv2.minAreaRect((points - points.min(axis=0)).astype(np.float32))
    return max(*sides, 1.0) / max(min(sides), 1.0)


def _summarize(
    summary: DatasetSummary, entries: list[Any], examined: Examined, names: dict[int, str]
) -> None:
    per_image: Counter[int] = Counter()
    um_per_px = {key_of(entry.get("id")): _um_per_px(entry) for entry in objects_of(entries)}
    for m in examined.measured:
        category = m.entry.get("category_id")
        name = names.get(category) if type(category) is int else None
        if name is None:
            continue
        image_id = m.image["id"]
        per_image[image_id] += 1
        summary.class_of.append(name)
        summary.size_px.append(m.measured.area**0.5)
        summary.long_side_px.append(max(m.measured.box[2:]))
        summary.aspect_ratio.append(aspect_ratio(mask_points(m.measured.segmentation)))
        summary.um_per_px.append(um_per_px[image_id])
    counts = Counter(summary.class_of)
    summary.num_images = len(entries)
    summary.classes = {name: counts[name] for name in names.values()}
    summary.num_annotations = len(summary.class_of)
    summary.particles_per_image = [per_image[id_] for id_ in sorted(examined.images)]
    blank = examined.findings.warnings.get("image_blank")
    summary.blanks = blank.count if blank else 0


def _um_per_px(entry: dict[str, Any]) -> float | None:
    value = entry.get("um_per_px")
    return float(value) if type(value) in NUMBERS and 1e-6 <= value <= 1e6 else None


def _place(m: MeasuredEntry) -> Place:
    return Place("annotation", m.index, m.entry, m.image)


def _example(m: MeasuredEntry, dataset: Dataset, detail: str = "") -> Example:
    return example_at(_place(m), detail, dataset.summary)


def _can_close(ring: np.ndarray) -> bool:
    """Whether GEOS accepts it: a closed ring needs four points."""
    return len(ring) > 3 or (len(ring) == 3 and bool((ring[0] != ring[2]).any()))


def _is_nested(polygons: list[Sequence[float]]) -> bool:
    """Whether one valid polygon is inside another."""
    shapes = [shapely.Polygon(ring) for ring in map(polygon_points, polygons) if is_valid(ring)]
    if not shapes:  # such as parts that meet themselves in a corner
        return False
    outer, inner = shapely.STRtree(shapes).query(shapes, predicate="contains")
    return bool((outer != inner).any())


def _candidates(entries: list[MeasuredEntry]) -> Iterator[tuple[int, int] | None]:
    """Yield pairs of annotations whose boxes and areas allow an IoU above ``OVERLAP``.

    None is last if more boxes meet than are compared.
    """
    # A polygon's pixels may reach half a pixel beyond its points.
    low = np.array([m.measured.box[:2] for m in entries]) - 1
    high = low + np.array([m.measured.box[2:] for m in entries]) + 2
    area = np.array([m.measured.area for m in entries])
    boxes = shapely.box(*low.T, *high.T)
    tree, compared = shapely.STRtree(boxes), 0
    for one, box in enumerate(boxes):
        others = np.sort(tree.query(box))
        others = others[others > one]
        compared += len(others)
        if compared > _BOXES:
            yield None
            return
        sides = np.minimum(high[one], high[others]) - np.maximum(low[one], low[others])
        smaller, larger = np.minimum(area[one], area[others]), np.maximum(area[one], area[others])
        common = np.minimum(np.clip(sides, 0, None).prod(axis=1), smaller)
        for other in others[common > OVERLAP * larger].tolist():
            yield one, other


def _rle(m: MeasuredEntry) -> dict[str, Any]:
    segmentation = m.measured.segmentation
    if isinstance(segmentation, dict):
        return segmentation
    rles = mask_util.frPyObjects(segmentation, m.image["height"], m.image["width"])
    return mask_util.merge(rles) if len(rles) > 1 else rles[0]


def _processes(workers: int | None, tasks: Sequence[tuple]) -> int:
    if workers is None:
        images = [image for image, _, _ in tasks if "invalid" not in image]
        pixels = sum(image["width"] * image["height"] for image in images)
        workers = available_processors() if pixels >= _PIXELS_WORTH_A_PROCESS else 1
    return max(1, min(workers, len(tasks)))


def _header(path: str, max_pixels: int | None) -> dict[str, Any]:
    """Bits, orientation and frames of a decoded file, or why they are unknown."""
    # A damaged tag can still raise nearly anything.
    try:
        if path.lower().endswith((".tif", ".tiff")):
            import tifffile  # slow to import and rarely needed

            with tifffile.TiffFile(path) as tiff:
                frames, page = len(tiff.pages), tiff.pages[0]
                bits, turned = page.bitspersample, page.tags.valueof(EXIF_ORIENTATION)
        else:
            with open_image(path, max_pixels) as image:
                # The second picture in a phone's JPEG is a preview.
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                # Asking a PNG for EXIF that its header lacks would decode all of it.
                has_exif = image.format != "PNG" or "exif" in image.info
                exif = image.getexif() if has_exif else {}
                bits, turned = _bits(image), exif.get(EXIF_ORIENTATION)
        orientation = int(turned or 1)
        known = orientation if orientation in range(1, 9) else 1
        return {"frames": int(frames), "bits": int(bits), "orientation": known}
    except Exception as error:
        return {"unread": str(error) or type(error).__name__}


def _bits(image: Image.Image) -> int:
    if image.mode in ("I", "F"):
        return 32
    return 16 if image.mode.startswith("I;16") or is_deep_png(image) else 8


def _report_image(image: CheckedImage, collector: Collector) -> None:
    facts = image.facts
    if facts.problem:
        code, detail = facts.problem
        collector.add(code, image.example(detail))
        if code != "image_size":
            image.dataset.summary.unusable_images.append(image.image["file_name"])
    if facts.unread:
        collector.add("image_header", image.example(facts.unread))
    if facts.frames > 1:
        collector.add("image_frames", image.example(f"{facts.frames} frames"))
    for x, y, width, _ in facts.bars[:1]:
        collector.add("image_scale_bar", image.example(f"about {width} px long at ({x}, {y})"))
    if facts.bits > 8:
        collector.add("image_deep", image.example(f"{facts.bits} bits"))


def _check_kinds(images: Sequence[CheckedImage], collector: Collector) -> None:
    """Find images of another kind than most, over all data sets together."""
    channels = [
        (image, "grey" if image.facts.grey else "coloured")
        for image in images
        if image.facts.fingerprint is not None
    ]
    depths = [(image, f"{max(8, image.facts.bits)} bits") for image in images if image.facts.bits]
    for code, kinds in (("image_channels_mixed", channels), ("image_depth_mixed", depths)):
        [(usual, _)] = Counter(kind for _, kind in kinds).most_common(1) or [("", 0)]
        for image, kind in kinds:
            if kind != usual:
                collector.add(code, image.example(kind))


def _image_files(root: str) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(folder, name)
            if name.lower().endswith(tuple(IMAGE_SUFFIXES)) and not name.startswith("."):
                if not is_mask(os.path.relpath(path, root)):
                    yield path


def _check_copies(
    group: Sequence[CheckedImage],
    code: str,
    collector: Collector,
    code_within: str | None = None,
    words: str = "",
) -> None:
    """Report each file of a group after the first, and, with a code, the copies within a file."""
    firsts: dict[Dataset, CheckedImage] = {}
    for image in group:
        earlier = firsts.get(image.dataset)
        if earlier is None:
            if firsts:
                first = next(iter(firsts.values()))
                collector.add(code, _pair_example(image, first, words))
            firsts[image.dataset] = image
        # Two entries that name one file are found without comparing pixels.
        elif code_within and os.path.normpath(earlier.path) != os.path.normpath(image.path):
            collector.add(code_within, _pair_example(image, earlier))


def _pair_example(image: CheckedImage, other: CheckedImage, words: str = "") -> Example:
    name, json_file = show(other.image["file_name"]), other.dataset.summary.json_file
    example = image.example(f"{words}as {name} of {json_file}")
    example.other_image = other.path
    return example


def _detectron2_dicts(datasets: Sequence[Dataset]) -> tuple[list[dict[str, Any]], list[str]]:
    """The sound annotations of all files in Detectron2's form, and the class names."""
    names = list(dict.fromkeys(n for dataset in datasets for n in dataset.class_names.values()))
    dicts = []
    for dataset in datasets:
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in dataset.examined.annotations:
            label = names.index(dataset.class_names[annotation["category_id"]])
            by_image[annotation["image_id"]].append(
                {**annotation, "bbox_mode": BoxMode.XYWH_ABS, "category_id": label}
            )
        for id_, annotations in by_image.items():
            image = dataset.examined.images[id_]
            path = os.path.join(dataset.summary.image_root, str(image["file_name"]))
            dicts.append({**image, "file_name": path, "image_id": id_, "annotations": annotations})
    return dicts, names
