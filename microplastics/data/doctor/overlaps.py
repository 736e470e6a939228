"""Particles of one image that are nearly the same: IoU of their masks above 0.9."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import shapely

from microplastics.data.coco_check import MeasuredEntry
from microplastics.data.coco_findings import Place
from microplastics.data.doctor.collector import Collector, at_image, at_place
from microplastics.data.doctor.dataset import Dataset
from microplastics.data.doctor.diagnosis import Example

OVERLAP = 0.9
_CANDIDATES = 20_000  # pairs of one image whose masks are compared
_BOXES = 3 * 10**7  # pairs of one image whose boxes meet: beyond that they are not looked at
_CHUNK = 10**6  # pairs of boxes that fit into memory together


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
    step = max(1, _CHUNK // len(entries))
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
