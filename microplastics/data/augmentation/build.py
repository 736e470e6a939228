"""From INPUT.AUG of the config to augmentations."""

import math
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from microplastics.data.augmentation import mixing, transforms
from microplastics.data.augmentation.transforms import RandomParticleCrop
from microplastics.utils.errors import UserError

_FLIPS = ("none", "horizontal", "vertical", "both")


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The augmentations of one image in training, in their order.

    The window first, since what it leaves out costs nothing any more; then what lens, light,
    sensor and file do, on the photograph's own pixels; then turns, size and flips. With all of
    INPUT.AUG off these are Detectron2's own.

    Raises:
        UserError: a value makes no sense.
    """
    check_augmentation(cfg)
    aug = cfg.INPUT.AUG
    listed: list[tuple[float, T.Augmentation]] = []
    if cfg.INPUT.CROP.ENABLED:
        listed.append((1.0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)))
    listed += [
        (aug.CROP.PROB, RandomParticleCrop(*aug.CROP.SIZE, aug.CROP.SHIFT)),
        (aug.BLUR.PROB, transforms.RandomBlur(*aug.BLUR.SIGMA, aug.BLUR.KIND)),
        (aug.BRIGHTNESS.PROB, transforms.RandomBrightness(*aug.BRIGHTNESS.RANGE)),
        (aug.CONTRAST.PROB, transforms.RandomContrast(*aug.CONTRAST.RANGE)),
        (aug.SATURATION.PROB, transforms.RandomSaturation(*aug.SATURATION.RANGE)),
        (aug.HUE.PROB, transforms.RandomHue(aug.HUE.MAX_SHIFT)),
        (aug.NOISE.PROB, transforms.RandomNoise(aug.NOISE.SIGMA, aug.NOISE.SHOT)),
        (aug.JPEG.PROB, transforms.RandomJPEG(*aug.JPEG.QUALITY)),
        (aug.RIGHT_ANGLES.PROB, transforms.RandomRightAngle()),
        (
            aug.ROTATION.PROB,
            transforms.RandomRotation(
                aug.ROTATION.MAX_ANGLE, aug.ROTATION.FRAME, aug.ROTATION.BORDER
            ),
        ),
    ]
    built = [a if prob == 1 else T.RandomApply(a, prob) for prob, a in listed if prob > 0]
    built.append(_resize(cfg, is_train=True))
    flip = cfg.INPUT.RANDOM_FLIP
    if flip in ("horizontal", "both"):
        built.append(T.RandomFlip())
    if flip in ("vertical", "both"):
        built.append(T.RandomFlip(horizontal=False, vertical=True))
    return built


def build_validation(cfg: CfgNode) -> list[T.Augmentation]:
    """The augmentation of validation: the size of prediction."""
    return [_resize(cfg, is_train=False)]


def _resize(cfg: CfgNode, is_train: bool) -> T.Augmentation:
    node, scale = cfg.INPUT, cfg.INPUT.AUG.SCALE
    size = node.MIN_SIZE_TEST, node.MAX_SIZE_TEST, "choice"
    if is_train:
        size = node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING
    # Validation keeps the very pixels of Detectron2's DefaultPredictor.
    prob, fast = (scale.PROB, node.FAST_RESIZE) if is_train else (0.0, False)
    if prob == 0 and not fast:
        return T.ResizeShortestEdge(*size)
    return transforms.ResizeWithJitter(*size, tuple(scale.RANGE), prob, fast)


def build_copy_paste(cfg: CfgNode) -> mixing.CopyPaste:
    """Copy-paste as INPUT.AUG.COPY_PASTE says."""
    node = cfg.INPUT.AUG.COPY_PASTE
    return mixing.CopyPaste(
        node.MAX_PARTICLES,
        node.MAX_COVER,
        tuple(node.SCALE),
        node.ROTATE,
        node.EDGE,
        node.OCCLUSION,
    )


def is_augmented(cfg: CfgNode) -> bool:
    """Whether training sees anything but flipped and resized whole images."""
    probabilities = [node.PROB for node in cfg.INPUT.AUG.values()]
    return cfg.INPUT.CROP.ENABLED or cfg.INPUT.TILE.SIZE > 0 or any(p > 0 for p in probabilities)


def clips(cfg: CfgNode) -> bool:
    """Whether an augmentation cuts particles off or must see where they lie.

    Polygons will not do then.
    """
    aug = cfg.INPUT.AUG
    return cfg.INPUT.CROP.ENABLED or aug.ROTATION.PROB > 0 or aug.CROP.PROB > 0 or mixes(cfg)


def mixes(cfg: CfgNode) -> bool:
    """Whether an augmentation needs other images."""
    return cfg.INPUT.AUG.COPY_PASTE.PROB > 0 or cfg.INPUT.AUG.MOSAIC.PROB > 0


def check_augmentation(cfg: CfgNode) -> None:
    """Refuse nonsense in what the project adds to INPUT.

    Raises:
        UserError: names the key and what may stand there.
    """
    aug = cfg.INPUT.AUG
    for name, node in aug.items():
        _number(f"INPUT.AUG.{name}.PROB", node.PROB, 0, 1)
    for name in ("BRIGHTNESS", "CONTRAST", "SATURATION"):
        _range(f"INPUT.AUG.{name}.RANGE", aug[name].RANGE, 0, 10)
    _range("INPUT.AUG.SCALE.RANGE", aug.SCALE.RANGE, 0.05, 20)
    _range("INPUT.AUG.MOSAIC.SCALE", aug.MOSAIC.SCALE, 0.05, 20)
    _range("INPUT.AUG.COPY_PASTE.SCALE", aug.COPY_PASTE.SCALE, 0.05, 20)
    _range("INPUT.AUG.BLUR.SIGMA", aug.BLUR.SIGMA, 0.05, 50)
    _range("INPUT.AUG.NOISE.SIGMA", aug.NOISE.SIGMA, 0, 255)
    _range("INPUT.AUG.NOISE.SHOT", aug.NOISE.SHOT, 0, 255)
    _range("INPUT.AUG.JPEG.QUALITY", aug.JPEG.QUALITY, 1, 100, whole=True)
    _pair("INPUT.AUG.CROP.SIZE", aug.CROP.SIZE, 1, 10**6, whole=True)
    _number("INPUT.AUG.CROP.SHIFT", aug.CROP.SHIFT, 0, 1)
    _number("INPUT.AUG.HUE.MAX_SHIFT", aug.HUE.MAX_SHIFT, 0, 180)
    _number("INPUT.AUG.ROTATION.MAX_ANGLE", aug.ROTATION.MAX_ANGLE, 0, 180)
    _number("INPUT.AUG.COPY_PASTE.MAX_PARTICLES", aug.COPY_PASTE.MAX_PARTICLES, 1, 10**4)
    _number("INPUT.AUG.COPY_PASTE.MAX_COVER", aug.COPY_PASTE.MAX_COVER, 0, 1)
    _number("INPUT.AUG.COPY_PASTE.EDGE", aug.COPY_PASTE.EDGE, 0, 50)
    _number("INPUT.MIN_VISIBLE_SHARE", cfg.INPUT.MIN_VISIBLE_SHARE, 0, 0.99)
    _number("INPUT.MIN_MASK_PIXELS", cfg.INPUT.MIN_MASK_PIXELS, 1, 10**6)
    _number("INPUT.TILE.SIZE", cfg.INPUT.TILE.SIZE, 0, 10**6)
    most = cfg.INPUT.TILE.SIZE - 1 if cfg.INPUT.TILE.SIZE > 0 else 10**6
    _number("INPUT.TILE.OVERLAP", cfg.INPUT.TILE.OVERLAP, 0, most)
    _number("INPUT.TILE.EMPTY_SHARE", cfg.INPUT.TILE.EMPTY_SHARE, 0, 1)
    _one_of("INPUT.AUG.ROTATION.FRAME", aug.ROTATION.FRAME, transforms.FRAMES)
    _one_of("INPUT.AUG.ROTATION.BORDER", aug.ROTATION.BORDER, transforms.BORDERS)
    _one_of("INPUT.AUG.BLUR.KIND", aug.BLUR.KIND, transforms.BLURS)
    _one_of("INPUT.AUG.COPY_PASTE.OCCLUSION", aug.COPY_PASTE.OCCLUSION, mixing.OCCLUSIONS)
    _one_of("INPUT.RANDOM_FLIP", cfg.INPUT.RANDOM_FLIP, _FLIPS)


def _is_number(value: Any, whole: bool) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _number(key: str, value: Any, low: float, high: float) -> None:
    if not _is_number(value, False) or not low <= value <= high:
        raise UserError(f"{key} is {value}; give a number from {low} to {high}.")


def _pair(key: str, values: Any, low: float, high: float, whole: bool = False) -> None:
    if len(values) != 2 or not all(_is_number(v, whole) and low <= v <= high for v in values):
        kind = "whole numbers" if whole else "numbers"
        raise UserError(f"{key} is {tuple(values)}; give two {kind} from {low} to {high}.")


def _range(key: str, values: Any, low: float, high: float, whole: bool = False) -> None:
    _pair(key, values, low, high, whole)
    if values[0] > values[1]:
        raise UserError(f"{key} is {tuple(values)}; give the lower bound first.")


def _one_of(key: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key} is {value!r}; give one of {', '.join(choices)}.")
