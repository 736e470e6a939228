"""What training sees, as images and particles for the page."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from tqdm import tqdm

from microplastics.data.catalog import fiber_classes
from microplastics.data.loader import TrainLoader, check_datasets
from microplastics.review.source import ReviewSource, SourceImage
from microplastics.runs.images import RunOptions, printable
from microplastics.structures.crop_masks import as_crop_masks
from microplastics.structures.particles import Particles
from microplastics.visualization.draw import save_picture
from microplastics.visualization.galleries import mapped_rgb


def training_samples(cfg: CfgNode, number: int, folder: Path) -> ReviewSource:
    """Draw the first samples of a training: cropped, painted over and augmented, in its order.

    Args:
        cfg: the config; ``SEED`` decides on the order and on the augmentations.
        number: of samples, from iteration 0 on.
        folder: in which their pixels are kept, as PNGs.

    Returns:
        A source of them, sizes in px of the network's input. Their names say how many particles
        are left out, of which too little is in view.

    Raises:
        UserError: a data set or an image cannot be used, or config_invalid.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = True  # for their outlines
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg = check_datasets(cfg, splits=("TRAIN",))
    data, loader = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]), TrainLoader(cfg)
    images = []
    items = itertools.islice(itertools.chain.from_iterable(loader), number)
    for place, item in enumerate(tqdm(items, "Augmenting", number, unit="sample", disable=None)):
        iteration, which = divmod(place, loader.batch_size)
        name = f"iteration {iteration}, {which + 1}: {os.path.basename(item['file_name'])}"
        if "window" in item:
            name += " at x {}, y {}".format(*item["window"][:2])
        if item["dropped_instances"]:
            name += f", {item['dropped_instances']} left out"
        path = folder / f"{place}.png"
        save_picture(mapped_rgb(item, cfg), path)
        particles = _particles(printable(name), item["instances"], data.thing_classes)
        height, width = particles.image_size
        images.append(SourceImage(particles.image, str(path), width, height, None, particles))
    options = RunOptions(output="", max_pixels=cfg.INPUT.MAX_PIXELS, ignore_metadata=True)
    fibers = fiber_classes(cfg, cfg.DATASETS.TRAIN[0])
    title = folder / "training"
    return ReviewSource(title, images, list(data.thing_classes), options, {}, fibers)


def _particles(name: str, instances: Instances, class_names: Sequence[str]) -> Particles:
    masks = as_crop_masks(instances.gt_masks, instances.image_size)
    there = masks.nonempty()
    masks, classes = masks[there], instances.gt_classes[there].tolist()
    return Particles(
        name,
        masks.image_size,
        masks.crops,
        masks.offsets,
        [class_names[number] for number in classes],
        np.full(len(masks), np.nan),
        np.arange(1, len(masks) + 1),
    )
