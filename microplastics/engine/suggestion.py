"""Settings that let a training see more of its data set."""

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from microplastics.config import write_derived
from microplastics.data.anchors import ALL, find_anchors
from microplastics.data.catalog import resolve_datasets
from microplastics.data.doctor.model_fit import (
    FEW_EPOCHS,
    MIN_WIDTH,
    WARNING_FRACTION,
    WARNING_IOU,
    as_evaluated,
    mask_widths,
    measure_fit,
)
from microplastics.data.loader import check_datasets, training_dicts
from microplastics.modeling.interface import WITHOUT_BOXES, class_node

# Epochs beyond which a network mostly learns its images by heart.
_MANY_EPOCHS, _LEAST_ITERATIONS = 200, 500
_LARGEST_FACTOR = 2.0  # more px of input than so many times those of the file show nothing new
_LARGEST_SIDE = 2400  # px of the shorter side of an evaluated image
_MULTIPLE = 32  # the stride of the coarsest features, to which images are padded
# Inputs this much larger than the config's are trained on crops.
_WORTH_CROPS = 1.5
_AROUND = 1.5  # sides of a crop for the length of a long particle
_LONG = 0.95  # quantile of the lengths


@dataclass
class Suggestion:
    """Settings on top of a config that fit its data set.

    Attributes:
        cfg: the config with them.
        settings: values by dotted key.
        reasons: a sentence each.
    """

    cfg: CfgNode
    settings: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def add(self, reason: str, values: dict[str, Any]) -> None:
        """Set values by dotted key, and say why."""
        self.reasons.append(reason)
        self.settings.update(values)
        for key, value in values.items():
            self.cfg.merge_from_list([key, value])


def suggest(cfg: CfgNode, config_file: str = "") -> Suggestion:
    """Find settings that fit the data set of DATASETS.TRAIN.

    The number of classes; an input at which 95 % of the particles of every class are 4 px wide,
    by larger images or, where these would be slow, crops; anchors, if more than 5 % of a class
    have none; the resolution of masks that keeps a mean IoU of 0.9; and the number of iterations.

    Args:
        cfg: the config; it is not changed.
        config_file: its name, for errors.

    Raises:
        UserError: a data set cannot be used, or the config has no usable anchors.
    """
    found = Suggestion(cfg.clone())
    found.cfg.defrost()
    found.cfg.DATASETS.TRAIN = resolve_datasets(cfg.DATASETS.TRAIN)
    names = MetadataCatalog.get(found.cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
    key, node = class_node(cfg)
    if names and len(names) != node.NUM_CLASSES:
        reason = f"the data set's classes are {', '.join(names)}"
        found.add(reason, {f"{key}.NUM_CLASSES": len(names)})
    dicts = training_dicts(check_datasets(found.cfg, ("TRAIN",)))
    _suggest_input(found, dicts)
    if cfg.MODEL.META_ARCHITECTURE not in WITHOUT_BOXES:
        _suggest_anchors(found, dicts, names, config_file)
    _suggest_masks(found, dicts, names, config_file)
    _suggest_iterations(found, len(dicts))
    return found


def write_suggestion(
    suggestion: Suggestion, config_file: str, opts: Sequence[str], output: str | os.PathLike
) -> None:
    """Write a config that derives from another one, with the reasons as comments.

    Args:
        suggestion: of :func:`suggest`.
        config_file, opts: name or path of the other one, and ``KEY VALUE`` pairs on it, which the
            file repeats.
        output: ``.yaml`` to write.

    Raises:
        UserError: ``option_invalid`` (another ending), ``option_conflict`` (the base itself).
    """
    train = ", ".join(suggestion.cfg.DATASETS.TRAIN)
    comments = [f"Settings for {train}: microplastics train --suggest.", *suggestion.reasons]
    given = {key: functools.reduce(getattr, key.split("."), suggestion.cfg) for key in opts[::2]}
    write_derived(output, config_file, {**given, **suggestion.settings}, comments)


def _suggest_input(found: Suggestion, dicts: Sequence[dict[str, Any]]) -> None:
    given = found.cfg.INPUT
    in_file = found.cfg.clone()
    in_file.INPUT.MIN_SIZE_TEST = 0
    widths, labels = mask_widths(in_file, dicts)
    if not len(widths):
        return
    thin = [np.quantile(widths[labels == n], WARNING_FRACTION) for n in np.unique(labels)]
    sides = np.array([sorted((each["height"], each["width"])) for each in dicts], dtype=float)
    short, ratio = float(np.median(sides[:, 0])), float((sides[:, 1] / sides[:, 0]).max())
    before = given.MIN_SIZE_TEST or short
    before = min(before, given.MAX_SIZE_TEST / ratio) if given.MIN_SIZE_TEST else before
    factor = min(MIN_WIDTH / max(min(thin), 0.1), _LARGEST_FACTOR)
    side = min(_up(short * factor), _LARGEST_SIDE)
    if side <= before / 0.95:
        return
    factor = side / short
    reason = (
        f"the thinnest particles are {min(thin):.1f} px wide in the files, whose shorter side is "
        f"{short:.0f} px, and {min(thin) * before / short:.1f} px at an input of {before:.0f} px"
    )
    evaluated = {"INPUT.MIN_SIZE_TEST": side, "INPUT.MAX_SIZE_TEST": _up(side * ratio)}
    budget = max(given.MIN_SIZE_TRAIN) if given.MIN_SIZE_TRAIN else side
    if side <= _WORTH_CROPS * budget:
        trained = {"INPUT.MIN_SIZE_TRAIN": (side,), "INPUT.MAX_SIZE_TRAIN": _up(side * ratio)}
        found.add(reason, {**trained, **evaluated})
        return
    boxes = np.array([a["bbox"][2:] for d in dicts for a in d["annotations"]], dtype=float)
    least = _AROUND * float(np.quantile(boxes.max(axis=1), _LONG))
    crop = min(max(budget / factor, least, _MULTIPLE), short)
    resized = min(_up(crop * factor), _up(2 * budget))
    crop = round(resized / factor)
    found.add(
        f"{reason}; training sees crops of {crop} px of the files, resized to {resized} px",
        {
            "INPUT.AUG.CROP.PROB": 1.0,
            "INPUT.AUG.CROP.SIZE": (crop, crop),
            "INPUT.MIN_SIZE_TRAIN": (resized,),
            "INPUT.MAX_SIZE_TRAIN": resized,
            **evaluated,
        },
    )


def _up(pixels: float) -> int:
    return math.ceil(pixels / _MULTIPLE) * _MULTIPLE


def _suggest_anchors(
    found: Suggestion,
    dicts: Sequence[dict[str, Any]],
    names: Sequence[str],
    config_file: str,
) -> None:
    seen = as_evaluated(found.cfg)
    missed = measure_fit(seen, config_file, dicts, names, sample=1)[0].no_anchor
    if not missed or max(missed.values()) <= WARNING_FRACTION:
        return
    search = find_anchors(seen, config_file)
    fit = search.fits[search.chosen]
    worst = max(missed, key=missed.__getitem__)
    found.add(
        f"{missed[worst]:.0%} of {worst} have no anchor; recall at IoU 0.5 rises from "
        f"{search.fits['before'].figures[ALL]['recall_0.5']:.0%} to "
        f"{fit.figures[ALL]['recall_0.5']:.0%}",
        {
            "MODEL.ANCHOR_GENERATOR.SIZES": fit.sizes,
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": fit.ratios,
        },
    )


def _suggest_masks(
    found: Suggestion,
    dicts: Sequence[dict[str, Any]],
    names: Sequence[str],
    config_file: str,
) -> None:
    head = found.cfg.MODEL.ROI_MASK_HEAD
    fit = measure_fit(as_evaluated(found.cfg), config_file, dicts, names)[0]
    own = fit.mask_size
    scales = own == 2 * head.POOLER_RESOLUTION or head.NAME == "ParticleMaskHead"
    if not (found.cfg.MODEL.MASK_ON and fit.mask_iou and scales):
        return
    for size in sorted(fit.mask_iou[ALL]):
        worst = {side: min(by[side] for by in fit.mask_iou.values()) for side in (own, size)}
        if size > own and worst[own] < WARNING_IOU <= worst[size]:
            found.add(
                f"masks of {own} x {own} keep a mean IoU of {worst[own]:.2f} of the thinnest "
                f"class, those of {size} x {size} {worst[size]:.2f}",
                {"MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": head.POOLER_RESOLUTION * size // own},
            )
            return


def _suggest_iterations(found: Suggestion, images: int) -> None:
    solver = found.cfg.SOLVER
    if solver.MAX_EPOCHS:
        return
    an_epoch = images / solver.IMS_PER_BATCH
    epochs = solver.MAX_ITER / an_epoch
    if epochs < FEW_EPOCHS:
        wanted = math.ceil(FEW_EPOCHS * an_epoch)
    elif epochs > _MANY_EPOCHS and solver.MAX_ITER > _LEAST_ITERATIONS:
        wanted = max(math.ceil(_MANY_EPOCHS * an_epoch), _LEAST_ITERATIONS)
    else:
        return
    quarter = math.ceil(wanted / 4)
    found.add(
        f"{solver.MAX_ITER} iterations are {epochs:.3g} epochs of these {images} images; expected "
        f"{FEW_EPOCHS} to {_MANY_EPOCHS}",
        {
            "SOLVER.MAX_ITER": wanted,
            "SOLVER.CHECKPOINT_PERIOD": quarter,
            "TEST.EVAL_PERIOD": quarter,
        },
    )
