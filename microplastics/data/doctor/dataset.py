"""One annotation file: what the check before training says of it, and its figures."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from microplastics.data.coco_check import Examined, examine, structure_problem
from microplastics.data.coco_load import NUMBERS, mask_points, read_json
from microplastics.data.doctor.collector import Collector
from microplastics.data.doctor.diagnosis import DatasetSummary, Example
from microplastics.errors import UserError


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
