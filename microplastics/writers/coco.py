"""COCO JSON of a whole run, written image by image."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from microplastics import __version__
from microplastics.data.segmentation import mask_to_polygons
from microplastics.structures import rle
from microplastics.utils.io import atomic_write
from microplastics.writers.parts import Part

Add = Callable[[Part, int], int]


@contextlib.contextmanager
def open_results(path: Path, class_names: Sequence[str]) -> Iterator[Add]:
    """Write ``coco_instances_results.json``: a list of detections, as COCO's evaluation takes it.

    Args:
        path: of the file, which is there when the block ends well.
        class_names: of the run, in order; category ids count from 1.

    Yields:
        the function that takes the next part and its image id, and gives how many particles it
        left out because they have no score (a person annotated them).

    Raises:
        UserError: the file cannot be written.
    """
    categories = _category_ids(class_names)
    with atomic_write(path) as file:
        file.write("[")
        separator = ""

        def add(part: Part, image_id: int) -> int:
            nonlocal separator
            size = [part.image["height"], part.image["width"]]
            results = [
                {
                    "image_id": image_id,
                    "category_id": categories[row["class"]],
                    "bbox": _bbox(row),
                    "score": row["score"],
                    "segmentation": {"size": size, "counts": counts},
                }
                for row, counts in zip(_rows(part), part.counts, strict=True)
                if row["score"] is not None
            ]
            separator = _write(file, results, separator)
            return len(part.counts) - len(results)

        yield add
        file.write("]\n")


@contextlib.contextmanager
def open_annotations(path: Path, class_names: Sequence[str]) -> Iterator[Add]:
    """Write ``annotations.json``: a COCO data set to be corrected by hand and trained on.

    Masks are polygons along the edges of their pixels, which every annotation tool can edit and
    pycocotools fills to the same pixels.

    Args:
        path: of the file, which is there when the block ends well.
        class_names: of the run, in order; category ids count from 1.

    Yields:
        the function that takes the next part and its image id, and gives 0.

    Raises:
        UserError: the file cannot be written.
    """
    categories = _category_ids(class_names)
    head = {
        "info": {"description": f"predicted by microplastics {__version__}"},
        "licenses": [],
        "categories": [
            {"id": number, "name": name, "supercategory": "microplastic"}
            for name, number in categories.items()
        ],
    }
    images: list[str] = []
    with atomic_write(path) as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        separator, count = "", 0

        def add(part: Part, image_id: int) -> int:
            nonlocal separator, count
            images.append(json.dumps(_image(part.image, image_id)))
            annotations = []
            for row, counts in zip(_rows(part), part.counts, strict=True):
                count += 1
                annotations.append(
                    {
                        "id": count,
                        "image_id": image_id,
                        "category_id": categories[row["class"]],
                        "bbox": _bbox(row),
                        "area": row["area_px"],
                        "segmentation": _polygons(counts, part.image["height"]),
                        "iscrowd": 0,
                        "particle": row["particle"],
                    }
                )
                if row["score"] is not None:
                    annotations[-1]["score"] = row["score"]
            separator = _write(file, annotations, separator)
            return 0

        yield add
        file.write('], "images": [' + ",\n".join(images) + "]}\n")


def _write(file, records: list[dict[str, Any]], separator: str) -> str:
    """Append records to a list and give what stands before the next one."""
    for record in records:
        file.write(separator + json.dumps(record))
        separator = ",\n"
    return separator


def _category_ids(class_names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(class_names, start=1)}


def _rows(part: Part) -> list[dict[str, Any]]:
    names = ["particle", "class", "score", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "area_px"]
    return part.table.select(names).to_pylist()


def _bbox(row: dict[str, Any]) -> list[int]:
    return [row["bbox_x"], row["bbox_y"], row["bbox_w"], row["bbox_h"]]


def _image(image: dict[str, Any], image_id: int) -> dict[str, Any]:
    record = {
        "id": image_id,
        "file_name": image["name"],
        "width": image["width"],
        "height": image["height"],
    }
    if image["um_per_px"] is not None:
        record["um_per_px"] = image["um_per_px"]
        record["calibration_source"] = image["calibration_source"]
    return record


def _polygons(counts: str, height: int) -> list[list[int]]:
    starts, ends = rle.runs_of_counts(rle.decode_counts(counts))
    crop, x0, y0 = rle.crop_of_runs(starts, ends, height)
    rings = mask_to_polygons(crop, (x0, y0))
    return [ring.astype(int).ravel().tolist() for ring in rings]
