"""Our mapper against Detectron2's ``DatasetMapper``: images a worker makes ready for training."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, Instances
from PIL import Image
from pycocotools import mask as mask_util

from benchmarks.agreement import Check
from benchmarks.setting import machine, require_positive
from benchmarks.timing import Measurement, Report, alternate, timed
from microplastics.data.augmentation.transforms import ResizeWithJitter
from microplastics.data.images import read_image
from microplastics.data.mapper import MicroplasticsDatasetMapper
from microplastics.utils.system import seeded

PLAIN, OURS, FAST = "Detectron2", "ours, FAST_RESIZE False", "ours"
# Half as many images again in the same time.
TARGET = 1 / 1.5

_WIDTH, _HEIGHT, _SHORT_EDGE, _LONG_EDGE = 1000, 750, 800, 1333
_FORMATS = {"polygons": "polygon", "RLE": "bitmask"}
# Images that the two sides' output is compared on.
_COMPARED = 3

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def benchmark(
    *, folder: Path, images: int = 12, particles: int = 40, repeat: int = 7, seed: int = 1
) -> Report:
    """Measure the mappers alone, on one thread as in a worker, and their parts.

    The same JPEGs of 1000 x 750 px, the same augmentations (shorter side 800 px, horizontal
    flip), the same particles, once as polygons and once as RLE.

    Args:
        folder: takes the images.
        images: drawn; each turn maps all of them.
        particles: on each image.
        repeat: turns of each.
        seed: of images and augmentations.
    """
    require_positive(images=images, particles=particles, repeat=repeat)
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)  # as the loader's workers do
    try:
        torch.set_num_threads(1)
        dicts = _dataset(folder, images, particles, seed)
        mappers = {kind: _mappers(kind) for kind in _FORMATS}
        checks = [c for kind in _FORMATS for c in _checks(kind, mappers[kind], dicts[kind], seed)]
        seconds = alternate(
            {name: lambda n=name: _turn(n, mappers, dicts, seed) for name in (PLAIN, OURS, FAST)},
            repeat,
            warmup=1,
        )
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
    # The whole first: it is what the target is for.
    names = sorted(seconds, key=lambda name: not name.startswith("an image"))
    measurements = [
        Measurement(
            name,
            seconds[name],
            PLAIN,
            {FAST: TARGET} if name.startswith("an image") else {},
        )
        for name in names
    ]
    settings = {
        **machine(),
        "Data": f"{images} JPEGs of {_WIDTH} x {_HEIGHT} px, {particles} particles each",
        "Augmentation": f"shorter side {_SHORT_EDGE} px, longer at most {_LONG_EDGE} px, flip",
        "Turns": f"{repeat} of all images, one thread each",
    }
    notes = [
        "Detectron2 needs MASK_FORMAT bitmask for RLE and then resizes full frames by the nearest "
        "pixel; ours interpolates each crop"
    ]
    return Report(settings, measurements, checks, notes)


def _augmentations(name: str) -> list[T.Augmentation]:
    size = (_SHORT_EDGE,), _LONG_EDGE, "choice"
    resize = ResizeWithJitter(*size, fast=True) if name == FAST else T.ResizeShortestEdge(*size)
    return [resize, T.RandomFlip()]


def _mappers(kind: str) -> dict[str, Mapper]:
    def build(mapper: type, name: str, **options: str) -> Mapper:
        augmentations = _augmentations(name)
        return mapper(True, augmentations=augmentations, image_format="BGR", **options)

    plain = {"use_instance_mask": True, "instance_mask_format": _FORMATS[kind]}
    return {
        PLAIN: build(DatasetMapper, PLAIN, **plain),
        OURS: build(MicroplasticsDatasetMapper, OURS),
        FAST: build(MicroplasticsDatasetMapper, FAST),
    }


def _turn(
    name: str, mappers: Mapping[str, Any], dicts: Mapping[str, list[dict]], seed: int
) -> dict[str, float]:
    """Seconds an image of the whole mapper and of its parts."""
    found = {}
    for kind, mapper in ((kind, mappers[kind][name]) for kind in _FORMATS):
        records = dicts[kind]
        with seeded(seed):
            elapsed, _ = timed(lambda m=mapper, r=records: [m(record) for record in r])
        found[f"an image, {kind}"] = elapsed / len(records)
    records = dicts["polygons"]
    paths = [record["file_name"] for record in records]
    read = partial(detection_utils.read_image, format="BGR") if name == PLAIN else read_image
    elapsed, decoded = timed(lambda: [read(path) for path in paths])
    found["read a JPEG"] = elapsed / len(paths)
    with seeded(seed):
        elapsed, transforms = timed(lambda: [_augment(name, image) for image in decoded])
    found["resize, flip, to tensor"] = elapsed / len(paths)
    for kind in _FORMATS:
        instances = _plain_instances if name == PLAIN else _own_instances
        mapper, records = mappers[kind][name], dicts[kind]
        pairs = list(zip(records, transforms, strict=True))
        elapsed, _ = timed(
            lambda m=mapper, p=pairs, k=kind, f=instances: [f(m, r, t, k) for r, t in p]
        )
        found[f"instances, {kind}"] = elapsed / len(records)
    return found


def _augment(name: str, image: np.ndarray) -> T.TransformList:
    aug_input = T.AugInput(image)
    transforms = T.AugmentationList(_augmentations(name))(aug_input)
    torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
    return transforms


def _size_after() -> tuple[int, int]:
    return _SHORT_EDGE, int(_SHORT_EDGE / _HEIGHT * _WIDTH + 0.5)


def _own_instances(
    mapper: MicroplasticsDatasetMapper, record: dict, transforms: T.TransformList, _kind: str
) -> Instances:
    size = (_HEIGHT, _WIDTH)
    return mapper._instances(record, transforms, size, _size_after())


def _plain_instances(
    _mapper: DatasetMapper, record: dict, transforms: T.TransformList, kind: str
) -> Instances:
    # What DatasetMapper.__call__ does with them.
    annotations = [
        detection_utils.transform_instance_annotations(annotation, transforms, _size_after())
        for annotation in copy.deepcopy(record)["annotations"]
    ]
    return detection_utils.filter_empty_instances(
        detection_utils.annotations_to_instances(annotations, _size_after(), _FORMATS[kind])
    )


def _checks(
    kind: str, mappers: Mapping[str, Mapper], records: list[dict], seed: int
) -> list[Check]:
    """Equal pixels and boxes; equal polygons, or nearly equal masks."""
    same_pixels, same_boxes, overlaps, count = True, True, [], 0
    for record in records[:_COMPARED]:
        with seeded(seed):
            plain = mappers[PLAIN](record)
        with seeded(seed):
            own = mappers[OURS](record)
        same_pixels &= torch.equal(plain["image"], own["image"])
        boxes = [m["instances"].gt_boxes.tensor for m in (plain, own)]
        same_boxes &= boxes[0].shape == boxes[1].shape and torch.allclose(*boxes, atol=1e-3)
        masks = [m["instances"].gt_masks for m in (plain, own)]
        count += len(masks[0])
        overlaps += _overlaps(*masks)
    least = 0.999 if kind == "polygons" else 0.9
    mean = float(np.mean(overlaps))
    detail = f"{count} masks, mean IoU {mean:.4f}"
    return [
        Check(f"{kind}: pixels", same_pixels, f"{min(len(records), _COMPARED)} images"),
        Check(f"{kind}: boxes and masks", same_boxes and mean >= least, detail),
    ]


def _overlaps(plain: Any, own: Any) -> list[float]:
    """IoU of the masks of both sides, one by one."""
    size = _size_after()
    frames = []
    for masks in (plain, own):
        if hasattr(masks, "polygons"):
            masks = BitMasks.from_polygon_masks(masks, *size)
        frames.append(masks.tensor.numpy() if isinstance(masks, BitMasks) else list(masks))
    pairs = zip(*frames, strict=True)
    return [float((a & b).sum() / max(1, (a | b).sum())) for a, b in pairs]


def _dataset(folder: Path, images: int, particles: int, seed: int) -> dict[str, list[dict]]:
    """The same photographs with their particles as polygons and as RLE."""
    rng = np.random.default_rng(seed)
    dicts: dict[str, list[dict]] = {kind: [] for kind in _FORMATS}
    for number in range(images):
        path = folder / f"{number}.jpg"
        image = cv2.resize(rng.normal(150, 12, (75, 100, 3)), (_WIDTH, _HEIGHT))
        image = (image + rng.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8)
        outlines = [_outline(rng) for _ in range(particles)]
        for outline in outlines:
            colour = rng.integers(20, 120, 3).tolist()
            cv2.fillPoly(image, [np.rint(outline).astype(np.int32)], colour, cv2.LINE_AA)
        Image.fromarray(image).save(path, quality=92)
        common = {"file_name": str(path), "width": _WIDTH, "height": _HEIGHT, "image_id": number}
        annotations = {kind: [] for kind in _FORMATS}
        for outline in outlines:
            polygon = outline.ravel().tolist()
            rle = mask_util.frPyObjects([polygon], _HEIGHT, _WIDTH)[0]
            box = {"bbox": [*outline.min(axis=0), *outline.max(axis=0)]}
            box.update(bbox_mode=BoxMode.XYXY_ABS, category_id=int(rng.integers(3)), iscrowd=0)
            annotations["polygons"].append({**box, "segmentation": [polygon]})
            tight = mask_util.toBbox(rle).tolist()
            box.update(bbox=tight, bbox_mode=BoxMode.XYWH_ABS)
            annotations["RLE"].append({**box, "segmentation": rle})
        for kind in _FORMATS:
            dicts[kind].append({**common, "annotations": annotations[kind]})
    return dicts


def _outline(rng: np.random.Generator) -> np.ndarray:
    """(N, 2) points around a particle of 10 to 120 px, long ones thin, as annotators click them."""
    count = int(rng.integers(12, 48))
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    length = rng.uniform(5, 60)
    radii = np.array([length, max(2.5, length * rng.uniform(0.05, 1.0))])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
    points *= rng.uniform(0.85, 1.15, (count, 1))
    turn = rng.uniform(0, np.pi)
    points @= np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    center = rng.uniform((70, 70), (_WIDTH - 70, _HEIGHT - 70))
    return points + center
