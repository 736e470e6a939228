"""What is predicted on one image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances

from microplastics.measurement.particles import Particles
from microplastics.structures.crop_masks import CropMasks


class Predictions(Instances):
    """Detectron2's ``Instances`` of one image, on the CPU, best score first.

    Fields: ``pred_boxes`` in px of the image, ``scores``, ``pred_classes`` (from 0) and, where
    the model predicts masks, ``pred_masks`` (:class:`CropMasks`). Detectron2's ``Visualizer``
    takes them as they are. Indexing, :meth:`to` and :meth:`cat` keep the type; Detectron2's own
    ``Instances.cat`` gives plain ``Instances``.
    """

    def to_dict(self) -> dict[str, np.ndarray]:
        """Plain arrays, as torchvision names them.

        Returns:
            ``masks`` (N, H, W) bool, ``labels`` (N,) int64 from 1 to K, ``scores`` (N,) float32
            and ``boxes`` (N, 4) float32 x0, y0, x1, y1 in px. The masks take N * H * W bytes; a
            model without masks gives none.
        """
        arrays = {
            "labels": self.pred_classes.cpu().numpy().astype(np.int64) + 1,
            "scores": self.scores.cpu().numpy().astype(np.float32),
            "boxes": self.pred_boxes.tensor.cpu().numpy().astype(np.float32),
        }
        if self.has("pred_masks"):
            arrays["masks"] = self.pred_masks.to_bitmasks().numpy()
        return arrays

    def to(self, *args: Any, **kwargs: Any) -> "Predictions":
        """As ``Instances.to``; the masks stay on the CPU."""
        return _typed(super().to(*args, **kwargs))

    def __getitem__(self, item: Any) -> "Predictions":
        """Select instances by number, slice, a bool vector or a vector of numbers."""
        return _typed(super().__getitem__(item))

    @staticmethod
    def cat(instance_lists: Sequence[Instances]) -> "Predictions":
        """Join predictions of the same image one after another."""
        return _typed(Instances.cat(list(instance_lists)))


def _typed(instances: Instances) -> Predictions:
    if isinstance(instances, Predictions):
        return instances
    return Predictions(instances.image_size, **instances.get_fields())


def to_particles(
    predictions: Instances,
    image_name: str,
    class_names: Sequence[str],
    image: np.ndarray | None = None,
) -> tuple[Particles, int]:
    """Turn predictions into what is measured and written.

    Args:
        predictions: with ``pred_masks`` as :class:`CropMasks`.
        image_name: name of the image in every output.
        class_names: of the model, in its order.
        image: uint8 BGR (H, W, 3), to take the particles' pixels from; None for no pixels.

    Returns:
        The particles, numbered from 1 in the order of the predictions, each mask cut to its tight
        box; and the number of predictions left out because their mask has no pixel.

    Raises:
        ValueError: there are no masks, a class has no name, or the image is of another size.
    """
    if not predictions.has("pred_masks"):
        raise ValueError("There are no masks to make particles of")
    masks: CropMasks = predictions.pred_masks
    classes = predictions.pred_classes.tolist()
    if classes and max(classes) >= len(class_names):
        raise ValueError(f"Class {max(classes)} is none of the {len(class_names)} names")
    if image is not None and image.shape[:2] != tuple(masks.image_size):
        raise ValueError(f"An image of {image.shape[:2]} px for masks of {masks.image_size}")
    whole = np.flatnonzero(masks.nonempty().numpy())
    crops, offsets, pixels = [], [], []
    for index in whole:
        crop, x, y = _tight(masks.crops[index], *masks.offsets[index].tolist())
        crops.append(crop)
        offsets.append((x, y))
        if image is not None:
            pixels.append(image[y : y + crop.shape[0], x : x + crop.shape[1]][crop])
    particles = Particles(
        image=image_name,
        image_size=(int(masks.image_size[0]), int(masks.image_size[1])),
        masks=crops,
        offsets=np.array(offsets, dtype=np.int64).reshape(-1, 2),
        classes=[class_names[classes[index]] for index in whole],
        scores=predictions.scores.cpu().numpy().astype(np.float64)[whole],
        ids=np.arange(1, len(whole) + 1, dtype=np.int64),
        pixels=None if image is None else pixels,
    )
    return particles, len(masks) - len(whole)


def _tight(crop: np.ndarray, x: int, y: int) -> tuple[np.ndarray, int, int]:
    rows, columns = np.flatnonzero(crop.any(axis=1)), np.flatnonzero(crop.any(axis=0))
    tight = crop[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # A view would keep the whole crop in memory.
    return np.ascontiguousarray(tight), x + int(columns[0]), y + int(rows[0])
