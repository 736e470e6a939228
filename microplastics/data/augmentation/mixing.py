"""Augmentations from several images: copy-paste and mosaic.

Copy-paste after Ghiasi et al. 2021, "Simple Copy-Paste is a Strong Data Augmentation Method for
Instance Segmentation"; mosaic after Bochkovskiy et al. 2020, "YOLOv4".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from detectron2.structures import BoxMode

from microplastics.structures.crop_masks import CropMasks

MOSAIC_IMAGES = 4
_TRIES = 10
# Range of the centre of a mosaic, as fraction of its sides.
_MIDDLE = (0.3, 0.7)


@dataclass(frozen=True)
class Sample:
    """One image with its particles.

    Attributes:
        image: (H, W, 3) uint8, BGR; may be read only.
        classes: (N,) int64, contiguous class numbers.
        masks: N masks of the image's size.
        whole: (N,) float64, px² of each particle if nothing had cut or covered it: the reference
            of its visible fraction.
    """

    image: np.ndarray
    classes: np.ndarray
    masks: CropMasks
    whole: np.ndarray

    @classmethod
    def from_annotations(cls, image: np.ndarray, annotations: Sequence[dict[str, Any]]) -> "Sample":
        """Rasterise annotations in Detectron2's format; one without a mask becomes its box.

        Args:
            image: (H, W, 3) uint8, BGR.
            annotations: with ``whole_area`` if a tile has cut the particle.
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
    """Return the box of an annotation as a COCO polygon."""
    x0, y0, x1, y1 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


@dataclass(frozen=True)
class CopyPaste:
    """Pastes particles of another image, cut out along their masks with a soft edge.

    Particles that touch the border of their image are not used.

    Attributes:
        max_particles: paste 1 to this many.
        max_cover: largest fraction of a particle that all pasted ones together may cover; a
            position is tried ten times.
        scale: bounds of the scale factor, drawn evenly on a logarithmic scale.
        rotate: rotate by any angle; flips have probability 0.5 in any case.
        edge: standard deviation in px of the blur that blends the surroundings of a particle into
            the image; 0 is a hard cut.
        occlusion: ``"modal"``: masks are cut by pasted particles on top, as people annotate;
            ``"amodal"``: they stay whole, as the renderer of this project writes them.
        prob: probability for an image.
    """

    max_particles: int = 10
    max_cover: float = 0.3
    scale: tuple[float, float] = (0.8, 1.25)
    rotate: bool = True
    edge: float = 1.0
    occlusion: str = "modal"
    prob: float = 1.0

    def __call__(self, sample: Sample, donor: Sample) -> Sample:
        """Paste particles of ``donor`` into a copy of ``sample``."""
        candidates = _whole_particles(donor.masks)
        if not len(candidates):
            return sample
        count = np.random.randint(1, min(self.max_particles, len(candidates)) + 1)
        scene = _Scene(sample)
        for index in np.random.permutation(candidates)[:count]:
            colours, alpha, mask = self._cut(donor, int(index))
            corner = scene.find_place(mask, self.max_cover)
            if corner is not None:
                scene.paste(colours, alpha, mask, corner, int(donor.classes[index]))
        return scene.sample(amodal=self.occlusion == "amodal")

    def _cut(self, donor: Sample, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return colours (h, w, 3), opacity and mask (h, w) of a transformed particle."""
        crop, (x0, y0) = donor.masks.crops[index], donor.masks.offsets[index]
        angle = np.random.uniform(-math.pi, math.pi) if self.rotate else 0.0
        factor = math.exp(np.random.uniform(*np.log(self.scale)))
        flip = -1.0 if np.random.uniform() < 0.5 else 1.0
        sine, cosine = math.sin(angle), math.cos(angle)
        turn = factor * np.array([[cosine, sine], [-sine, cosine]]) @ np.diag([flip, 1.0])
        rim = math.ceil(3 * self.edge) + 1
        # Both in px of the pasted particle: the soft edge is outside its mask.
        size = np.ceil(np.abs(turn) @ crop.shape[::-1]).astype(int) + 2 * rim
        # The origin of cv2 is the centre of the first pixel.
        middle = np.array(crop.shape[::-1]) / 2 - 0.5
        matrix = np.column_stack([turn, size / 2 - 0.5 - turn @ middle])
        warped = cv2.warpAffine(crop.astype(np.float32), matrix, size.tolist())
        mask = warped >= 0.5
        alpha = mask.astype(np.float32)
        if self.edge > 0:
            # Opaque inside: otherwise a thin fibre would become translucent.
            blurred = cv2.GaussianBlur(alpha, (0, 0), self.edge, borderType=cv2.BORDER_CONSTANT)
            alpha = np.maximum(alpha, blurred)
        # Pixels around the mask come from the donor, mirrored only beyond its border.
        matrix[:, 2] -= turn @ (x0, y0)
        colours = cv2.warpAffine(
            donor.image,
            matrix,
            size.tolist(),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        return colours, alpha, mask


class _Scene:
    """An image into which particles are pasted on top of each other."""

    def __init__(self, sample: Sample):
        self._image = sample.image.copy()
        self._crops = list(sample.masks.crops)
        self._visible = list(sample.masks.crops)
        self._areas = sample.masks.area().tolist()
        self._offsets = sample.masks.offsets.tolist()
        self._classes, self._whole = sample.classes.tolist(), sample.whole.tolist()

    def find_place(self, mask: np.ndarray, max_cover: float) -> tuple[int, int] | None:
        """Return left and top of a position at which ``mask`` covers little enough, or None."""
        free = np.array(self._image.shape[1::-1]) - mask.shape[::-1]
        if not mask.any() or (free < 0).any():
            return None
        for _ in range(_TRIES):
            x0, y0 = (int(np.random.randint(n + 1)) for n in free)
            for index, own, other in self._meetings(mask, x0, y0):
                rest = np.count_nonzero(self._visible[index])
                rest -= np.count_nonzero(self._visible[index][own] & mask[other])
                if self._areas[index] - rest > max_cover * self._areas[index]:
                    break
            else:
                return x0, y0
        return None

    def _meetings(self, mask: np.ndarray, x0: int, y0: int) -> list[tuple[int, tuple, tuple]]:
        """Return masks whose crops meet one at (x0, y0): index, slices of both crops."""
        found = []
        height, width = mask.shape
        for index, (crop, (x, y)) in enumerate(zip(self._crops, self._offsets, strict=True)):
            left, right = max(x, x0), min(x + crop.shape[1], x0 + width)
            top, bottom = max(y, y0), min(y + crop.shape[0], y0 + height)
            if left < right and top < bottom:
                own = slice(top - y, bottom - y), slice(left - x, right - x)
                other = slice(top - y0, bottom - y0), slice(left - x0, right - x0)
                found.append((index, own, other))
        return found

    def paste(
        self,
        colours: np.ndarray,
        alpha: np.ndarray,
        mask: np.ndarray,
        corner: tuple[int, int],
        class_number: int,
    ) -> None:
        """Paste a particle on top of all others."""
        x0, y0 = corner
        for index, own, other in self._meetings(mask, x0, y0):
            visible = self._visible[index].copy()
            visible[own] &= ~mask[other]
            self._visible[index] = visible
        ground = self._image[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]]
        weight = alpha[:, :, None]
        ground[:] = np.rint(weight * colours + (1 - weight) * ground)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        self._crops.append(tight)
        self._visible.append(tight)
        self._areas.append(np.count_nonzero(tight))
        self._offsets.append([x0 + columns[0], y0 + rows[0]])
        self._classes.append(class_number)
        self._whole.append(float(self._areas[-1]))

    def sample(self, amodal: bool) -> Sample:
        """Return the image and its particles, the pasted ones last."""
        crops = self._crops if amodal else self._visible
        masks = CropMasks(crops, self._offsets, self._image.shape[:2])
        return Sample(self._image, np.array(self._classes, np.int64), masks, np.array(self._whole))


def _whole_particles(masks: CropMasks) -> np.ndarray:
    """Return the indices of masks that have a pixel, but none at the border of the image."""
    boxes = masks.get_bounding_boxes().tensor.numpy()
    end = np.array(masks.image_size[::-1])
    return np.flatnonzero((boxes[:, :2] > 0).all(axis=1) & (boxes[:, 2:] < end).all(axis=1))


@dataclass(frozen=True)
class Mosaic:
    """Combines four images in the quarters of one as large as the first.

    Attributes:
        scale: bounds of the scale factor of each image, drawn evenly on a logarithmic scale. An
            image too small for its quarter is enlarged to fill it.
        prob: probability for an image.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    prob: float = 1.0

    def __call__(self, samples: Sequence[Sample]) -> Sample:
        """Combine four samples; masks are cut at the seams."""
        height, width = samples[0].image.shape[:2]
        middle_x, middle_y = (
            int(np.clip(round(np.random.uniform(*_MIDDLE) * side), 1, max(side - 1, 1)))
            for side in (width, height)
        )
        image = np.empty((height, width, 3), np.uint8)
        parts = []
        for number, sample in enumerate(samples):
            left, right = (middle_x, width) if number % 2 else (0, middle_x)
            top, bottom = (middle_y, height) if number // 2 else (0, middle_y)
            if left == right or top == bottom:  # an image of a single row or column
                continue
            part = self._quarter(sample, right - left, bottom - top)
            image[top:bottom, left:right] = part.image
            masks = CropMasks(part.masks.crops, part.masks.offsets + (left, top), (height, width))
            parts.append((part, masks))
        return Sample(
            image,
            np.concatenate([part.classes for part, _ in parts]),
            CropMasks.cat([masks for _, masks in parts]),
            np.concatenate([part.whole for part, _ in parts]),
        )

    def _quarter(self, sample: Sample, width: int, height: int) -> Sample:
        """Return a random window of an image, resized to ``width`` x ``height`` px."""
        frame = np.array(sample.image.shape[1::-1])
        target = np.array([width, height])
        factor = math.exp(np.random.uniform(*np.log(self.scale)))
        factor = max(factor, *(target / frame))
        window = np.clip(np.rint(target / factor), 1, frame).astype(int)
        x0, y0 = (int(np.random.randint(n + 1)) for n in frame - window)
        cut = sample.image[y0 : y0 + window[1], x0 : x0 + window[0]]
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        zoom = target / window
        matrix = np.column_stack([np.diag(zoom), -zoom * (x0, y0)])
        return Sample(
            cv2.resize(cut, (width, height), interpolation=method),
            sample.classes,
            sample.masks.affine(matrix, (height, width)),
            sample.whole * zoom.prod(),
        )
