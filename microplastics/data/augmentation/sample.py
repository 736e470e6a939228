"""One image with its particles, as mixing and clipping hand it on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from microplastics.structures.crop_masks import CropMasks


@dataclass(frozen=True)
class Sample:
    """One image with its particles.

    Attributes:
        image: (H, W, 3) uint8, BGR; may be read only.
        classes: (N,) int64, contiguous class numbers.
        masks: N masks of the image's size.
        whole: (N,) float64, px² that each particle would cover if nothing had cut it off or
            covered it: what its visible share is a share of.
    """

    image: np.ndarray
    classes: np.ndarray
    masks: CropMasks
    whole: np.ndarray

    @classmethod
    def from_annotations(cls, image: np.ndarray, annotations: Sequence[dict[str, Any]]) -> "Sample":
        """Rasterise annotations in Detectron2's format; one without a mask counts as its box.

        Args:
            image: (H, W, 3) uint8, BGR.
            annotations: each with ``category_id``, ``bbox``, ``bbox_mode``, and where it has
                them ``segmentation`` and, of a particle that a tile has cut, ``whole_area``.

        Raises:
            ValueError: a segmentation is malformed.
        """
        segmentations = [a.get("segmentation") or box_polygon(a) for a in annotations]
        masks = CropMasks.from_coco(segmentations, image.shape[:2])
        whole = [
            a.get("whole_area", area)
            for a, area in zip(annotations, masks.area().tolist(), strict=True)
        ]
        classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
        return cls(image, classes, masks, np.array(whole, dtype=np.float64))


def box_polygon(annotation: dict[str, Any]) -> list[list[float]]:
    """The box of an annotation as a COCO polygon."""
    x0, y0, x1, y1 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]
