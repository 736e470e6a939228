"""What perfect predictions reach: true masks through M x M grids and through an image's cells."""

from collections.abc import Callable

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from benchmarks.timing import Report
from microplastics.config import get_cfg
from microplastics.data.catalog import resolve_datasets
from microplastics.modeling.roi_heads.dynamic_mask_head import coarse_targets, windows_around
from microplastics.modeling.roi_masks import WindowMasks
from microplastics.structures.crop_masks import CropMasks

Through = Callable[[CropMasks], CropMasks]

THRESHOLDS = np.arange(0.5, 1, 0.05)


def grid(side: int) -> Through:
    """Return what Mask R-CNN's targets of ``side`` x ``side`` become when they are pasted."""

    def through(masks: CropMasks) -> CropMasks:
        boxes = masks.get_bounding_boxes().tensor
        targets = masks.crop_and_resize(boxes, side).float()
        return CropMasks.paste(targets, boxes, masks.image_size)

    return through


def cells(stride: int) -> Through:
    """Return what the targets of ``DynamicMaskHead`` become when they are pasted."""

    def through(masks: CropMasks) -> CropMasks:
        boxes = masks.get_bounding_boxes().tensor
        head = get_cfg().MODEL.DYNAMIC_MASK_HEAD
        windows = windows_around(boxes, masks.image_size, stride, head.WINDOW, head.MARGIN)
        covered = torch.from_numpy(coarse_targets(masks, windows.numpy(), stride))
        return WindowMasks(covered, windows, stride, masks.image_size).paste(masks.image_size)

    return through


HEADS = {
    **{f"mask{side}": grid(side) for side in (28, 56, 112)},
    **{f"dynamic, stride {stride}": cells(stride) for stride in (4, 2, 1)},
}


def benchmark(dataset: str) -> Report:
    """Measure each head's bound on a data set.

    Args:
        dataset: registered name or ``JSON:IMAGES``; images are taken at their own size.
    """
    (name,) = resolve_datasets([dataset])
    dicts, classes_of = DatasetCatalog.get(name), MetadataCatalog.get(name).thing_classes
    found: dict[str, list[np.ndarray]] = {name: [] for name in HEADS}
    classes = []
    for each in dicts:
        particles = [a for a in each["annotations"] if not a.get("iscrowd", 0)]
        if not particles:
            continue
        size = each["height"], each["width"]
        masks = CropMasks.from_coco([a["segmentation"] for a in particles], size)
        classes += [a["category_id"] for a in particles]
        full = masks.to_bitmasks()
        for name, through in HEADS.items():
            pasted = through(masks).to_bitmasks()
            common, union = (pasted & full).sum(dim=(1, 2)), (pasted | full).sum(dim=(1, 2))
            found[name].append((common / union).numpy())
    kind = np.array(classes)
    report = Report({"data set": dataset, "particles": len(kind)})
    for name, parts in found.items():
        iou = np.concatenate(parts)
        words = []
        for number, of_class in enumerate(classes_of):
            mine = iou[kind == number]
            if not len(mine):
                continue
            share = 100 * (mine[:, None] >= THRESHOLDS).mean()
            words.append(f"{of_class} mean IoU {mine.mean():.3f}, AP {share:.1f}")
        report.settings[name] = "; ".join(words)
    return report
