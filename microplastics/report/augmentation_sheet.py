"""One picture that shows what each augmentation does to a photograph and its masks."""

import os
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from microplastics.data.loader import check_datasets, training_dicts
from microplastics.data.mapper import MicroplasticsDatasetMapper
from microplastics.data.rng import seeded
from microplastics.errors import UserError
from microplastics.report.figures import Panel, draw_instances, save_picture, side_by_side

_COLUMNS = 4
_GAP = 8


def draw_augmentations(
    cfg: CfgNode, output: str | os.PathLike, side: int = 280, seed: int = 0
) -> dict[str, int]:
    """Draw the training image with most particles as each augmentation of INPUT.AUG makes it.

    Each is switched on alone, with the config's own values; nothing is flipped.

    Args:
        cfg: a config with DATASETS.TRAIN.
        output: the picture, ``.jpg`` or ``.png``.
        side: of each panel, in px.
        seed: of the random numbers.

    Returns:
        Number of particles in each panel, by its title.

    Raises:
        UserError: the data set cannot be used, a value makes no sense, or the picture cannot be
            written.
    """
    if side < 32:
        raise UserError(f"--side is {side}; give the side of a panel in px, 32 or more.")
    cfg = check_datasets(cfg, splits=("TRAIN",))
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    dicts = training_dicts(cfg)
    record = max(dicts, key=lambda d: len(d["annotations"]))
    panels, counts = [], {}
    for name in ("", *cfg.INPUT.AUG):
        mapper = MicroplasticsDatasetMapper(_alone(cfg, name), is_train=True)
        mapper.partners = dicts
        with seeded(seed):
            mapped = mapper(record)
        title = name or "As it is"
        counts[title] = len(mapped["instances"])
        panels.append(Panel(_picture(mapped, cfg, metadata, side), title))
    rows = [side_by_side(panels[i : i + _COLUMNS]) for i in range(0, len(panels), _COLUMNS)]
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    save_picture(np.concatenate(padded), output)
    return counts


def _alone(cfg: CfgNode, name: str) -> CfgNode:
    """The config with one augmentation always on and all others off."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.CROP.ENABLED = False
    for node in cfg.INPUT.AUG.values():
        node.PROB = 0.0
    if name:
        cfg.INPUT.AUG[name].PROB = 1.0
    cfg.freeze()
    return cfg


def _picture(mapped: dict[str, Any], cfg: CfgNode, metadata: Any, side: int) -> np.ndarray:
    """A mapped image with its masks, fitted into a white square."""
    image = mapped["image"].numpy().transpose(1, 2, 0)
    if cfg.INPUT.FORMAT == "BGR":
        image = image[:, :, ::-1]
    drawn = draw_instances(
        np.ascontiguousarray(image), mapped["instances"], metadata, scale=2.0, labels=False
    )
    scale = side / max(drawn.shape[:2])
    size = [max(1, round(length * scale)) for length in drawn.shape[1::-1]]
    drawn = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
    square = np.full((side, side, 3), 255, np.uint8)
    square[: drawn.shape[0], : drawn.shape[1]] = drawn
    return square
