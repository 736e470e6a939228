"""Particles found on five small images with every kind of error, as evaluators see them."""

import json

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from microplastics.data.catalog import resolve_datasets
from microplastics.evaluation.coco import COCOEvaluator
from microplastics.evaluation.counting import CountingEvaluator
from microplastics.structures.crop_masks import CropMasks

SIZE = (100, 120)
NAMES = ["Fiber", "Film", "Fragment"]
FIBER, FILM = 0, 1

# Each image: class and box of its truths; score, class and box of its detections.
IMAGES = [
    (
        [(2, (82, 24, 17, 15)), (0, (20, 32, 10, 15)), (2, (93, 77, 18, 19))],
        [
            (0.41, 2, (83, 25, 17, 15)),
            (0.34, 1, (82, 24, 17, 15)),
            (0.25, 2, (91, 33, 17, 15)),
            (0.32, 2, (15, 24, 10, 15)),
            (0.87, 0, (12, 40, 10, 15)),
            (0.46, 2, (91, 80, 18, 19)),
            (0.43, 2, (94, 80, 18, 19)),
        ],
    ),
    ([(2, (75, 52, 21, 11))], []),
    (
        [
            (0, (58, 53, 27, 12)),
            (0, (19, 68, 22, 13)),
            (1, (23, 14, 23, 15)),
            (1, (73, 52, 20, 18)),
        ],
        [
            (0.83, 0, (25, 17, 23, 15)),
            (0.38, 2, (25, 17, 23, 15)),
            (0.47, 1, (23, 13, 23, 15)),
            (0.30, 2, (64, 59, 20, 18)),
            (0.15, 1, (74, 52, 20, 18)),
        ],
    ),
    (
        [
            (1, (18, 62, 27, 18)),
            (0, (1, 73, 10, 23)),
            (1, (87, 70, 25, 19)),
            (2, (35, 60, 25, 8)),
        ],
        [
            (0.75, 0, (9, 69, 10, 23)),
            (0.27, 1, (79, 64, 25, 19)),
            (0.10, 1, (89, 71, 25, 19)),
            (0.50, 2, (34, 61, 25, 8)),
            (0.77, 2, (36, 59, 25, 8)),
        ],
    ),
    (
        [(2, (97, 66, 16, 20)), (0, (43, 36, 11, 28))],
        [
            (0.81, 0, (99, 59, 16, 20)),
            (0.60, 2, (95, 68, 16, 20)),
            (0.19, 2, (99, 64, 16, 20)),
            (0.33, 0, (43, 36, 11, 28)),
            (0.45, 2, (37, 32, 11, 28)),
        ],
    ),
]


def masks(boxes):
    full = np.zeros((len(boxes), *SIZE), dtype=bool)
    for mask, (x, y, width, height) in zip(full, boxes, strict=True):
        mask[y : y + height, x : x + width] = True
    return CropMasks.from_bitmasks(full)


def write_truth(folder, images=IMAGES, names=NAMES):
    """Write the photographs and their COCO JSON; the registered name."""
    listed, annotations = [], []
    for image_id, (truths, _) in enumerate(images, 1):
        name = f"{image_id}.png"
        cv2.imwrite(str(folder / name), np.full((*SIZE, 3), 120, np.uint8))
        size = {"height": SIZE[0], "width": SIZE[1]}
        listed.append({"id": image_id, "file_name": name, **size, "um_per_px": 2.0})
        for number, (x, y, w, h) in truths:
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": image_id,
                    "category_id": number + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [corners],
                }
            )
    categories = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
    path = folder / "truth.json"
    path.write_text(
        json.dumps({"images": listed, "annotations": annotations, "categories": categories})
    )
    return resolve_datasets([f"{path}:{folder}"])[0]


def evaluate(name, folder, images=IMAGES, threshold=0.4):
    """Write what the evaluators write; their figures."""
    figures = {}
    for evaluator in (
        CountingEvaluator(name, score_thresholds=threshold, output_dir=folder),
        COCOEvaluator(name, folder),
    ):
        for image_id, (_, found) in enumerate(images, 1):
            scores, classes, boxes = list(zip(*found, strict=True)) or ([], [], [])
            crops = masks(boxes)
            instances = Instances(SIZE, pred_boxes=Boxes(crops.get_bounding_boxes().tensor))
            instances.scores = torch.tensor(scores, dtype=torch.float64)
            instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
            instances.pred_masks = crops
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
        figures.update(evaluator.evaluate())
    return figures
