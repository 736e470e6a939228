"""COCO JSON of a whole run, written image by image."""

import contextlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from microplastics import __version__
from microplastics.data.segmentation import mask_to_polygons
from microplastics.measurement.shape import is_fiber_class
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.io import atomic_write
from microplastics.writers.tables import Part

Add = Callable[[Part, int], int]


@contextlib.contextmanager
def open_results(path: Path, class_names: Sequence[str]) -> Iterator[Add]:
    """Write ``coco_instances_results.json``: a list of detections, as COCO's evaluation takes it.

    Args:
        path: of the file, which is there when the block ends well.
        class_names: of the run, in order; category ids count from 1.

    Yields:
        the function that takes the next part and its image id, and gives the number of particles
        left out because they have no score: a person annotated them.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path) as file:
        write = _list_writer(file)

        def add(part: Part, image_id: int) -> int:
            scored = 0
            for row, rle in zip(_rows(part, class_names), _rles(part), strict=True):
                if row["score"] is not None:
                    scored += 1
                    fields = {name: row[name] for name in ("category_id", "bbox", "score")}
                    write({"image_id": image_id, **fields, "segmentation": rle})
            return len(part.counts) - scored

        file.write("[")
        yield add
        file.write("]\n")


@contextlib.contextmanager
def open_annotations(
    path: Path, class_names: Sequence[str], fiber_classes: Collection[str] = ()
) -> Iterator[Add]:
    """Write ``annotations.json``: a COCO data set to be corrected by hand and trained on.

    Masks are polygons along the edges of their pixels, which every annotation tool can edit and
    pycocotools fills to the same pixels. Arguments and errors are those of :func:`open_results`;
    no particle is left out.
    """
    head = {
        "info": {"description": f"predicted by microplastics {__version__}"},
        "licenses": [],
        "categories": categories(class_names, fiber_classes),
    }
    images: list[str] = []
    with atomic_write(path) as file:
        write, ids = _list_writer(file), itertools.count(1)

        def add(part: Part, image_id: int) -> int:
            images.append(json.dumps(_image(part.image, image_id)))
            for row, rle in zip(_rows(part, class_names), _rles(part), strict=True):
                mask = CropMasks.from_rles([rle])
                rings = mask_to_polygons(mask.crops[0], mask.offsets[0])
                annotation = {
                    "id": next(ids),
                    "image_id": image_id,
                    "category_id": row["category_id"],
                    "bbox": row["bbox"],
                    "area": row["area_px"],
                    "segmentation": [ring.astype(int).ravel().tolist() for ring in rings],
                    "iscrowd": 0,
                    "particle": row["particle"],
                }
                if row["score"] is not None:
                    annotation["score"] = row["score"]
                write(annotation)
            return 0

        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        yield add
        file.write('], "images": [' + ",\n".join(images) + "]}\n")


def categories(class_names: Sequence[str], fiber_classes: Collection[str]) -> list[dict[str, Any]]:
    """Make COCO categories, with ids from 1.

    A class of ``fiber_classes`` whose name does not say so has the supercategory fiber, by which it
    is measured along its centreline again.
    """
    unnamed = {name for name in fiber_classes if not is_fiber_class(name)}
    return [
        {
            "id": number,
            "name": name,
            "supercategory": "fiber" if name in unnamed else "microplastic",
        }
        for number, name in enumerate(class_names, start=1)
    ]


def _list_writer(file: IO[str]) -> Callable[[dict[str, Any]], None]:
    """A function that writes the next record of a JSON list."""
    separators = itertools.chain([""], itertools.repeat(",\n"))
    return lambda record: file.write(next(separators) + json.dumps(record))


def _rows(part: Part, class_names: Sequence[str]) -> list[dict[str, Any]]:
    box = ["bbox_x", "bbox_y", "bbox_w", "bbox_h"]
    rows = part.table.select(["particle", "class", "score", *box, "area_px"]).to_pylist()
    numbers = {name: number for number, name in enumerate(class_names, start=1)}
    for row in rows:
        row["category_id"], row["bbox"] = numbers[row["class"]], [row[name] for name in box]
    return rows


def _rles(part: Part) -> list[dict[str, Any]]:
    size = [part.image["height"], part.image["width"]]
    return [{"size": size, "counts": counts} for counts in part.counts]


def _image(image: dict[str, Any], image_id: int) -> dict[str, Any]:
    record = {"id": image_id, "file_name": image["image"]}
    record.update((name, image[name]) for name in ("width", "height"))
    if image["um_per_px"] is not None:
        record.update((name, image[name]) for name in ("um_per_px", "calibration_source"))
    return record
