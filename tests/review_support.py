"""A small data set to review, and outlines to draw on it."""

import json

import cv2
import numpy as np

CLASSES = ["Fiber", "Film"]


def box(x, y, width=10, height=10):
    """Polygons of a rectangle, as operations take them."""
    return [[[[x, y], [x + width, y], [x + width, y + height], [x, y + height]]]]


def write_annotations(folder):
    """Write two photographs with four squares of 10 px, and return their COCO JSON."""
    (folder / "images").mkdir()
    images, found = [], []
    rng = np.random.default_rng(0)
    for number, name in enumerate(["a.png", "b.png"], start=1):
        pixels = rng.integers(60, 120, (60, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / name), pixels)
        images.append({"id": number, "file_name": name, "width": 80, "height": 60})
    for image, x, y in (1, 5, 5), (1, 25, 5), (1, 50, 30), (2, 10, 10):
        ((outline,),) = box(x, y)
        number = len(found)
        found.append(
            {
                "id": number + 1,
                "image_id": image,
                "category_id": 1 + number % 2,
                "bbox": [x, y, 10, 10],
                "area": 100,
                "iscrowd": 0,
                "segmentation": [np.ravel(outline).tolist()],
                "score": [0.9, 0.4, 0.7, 0.55][number],
            }
        )
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    data = {"images": images, "annotations": found, "categories": categories}
    (folder / "set.json").write_text(json.dumps(data))
    return folder / "set.json"
