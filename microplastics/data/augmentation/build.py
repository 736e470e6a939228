"""Augmentations from INPUT.AUG of the config."""

import functools
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from microplastics.data.augmentation import mixing, transforms
from microplastics.data.augmentation.transforms import RandomParticleCrop
from microplastics.utils.errors import UserError

# Keys of INPUT: (least, greatest). NaN is never between them.
_NUMBERS = {
    "AUG.CROP.SHIFT": (0, 1),
    "AUG.HUE.MAX_SHIFT": (0, 180),
    "AUG.ROTATION.MAX_ANGLE": (0, 180),
    "AUG.COPY_PASTE.MAX_PARTICLES": (1, 10**4),
    "AUG.COPY_PASTE.MAX_COVER": (0, 1),
    "AUG.COPY_PASTE.EDGE": (0, 50),
    "MIN_VISIBLE_SHARE": (0, 0.99),
    "MIN_MASK_PIXELS": (1, 10**6),
    "TILE.SIZE": (0, 10**6),
    "TILE.OVERLAP": (0, 10**6),
    "TILE.EMPTY_SHARE": (0, 1),
}
_PAIRS = {
    "AUG.BRIGHTNESS.RANGE": (0, 10),
    "AUG.CONTRAST.RANGE": (0, 10),
    "AUG.SATURATION.RANGE": (0, 10),
    "AUG.SCALE.RANGE": (0.05, 20),
    "AUG.MOSAIC.SCALE": (0.05, 20),
    "AUG.COPY_PASTE.SCALE": (0.05, 20),
    "AUG.BLUR.SIGMA": (0.05, 50),
    "AUG.NOISE.SIGMA": (0, 255),
    "AUG.NOISE.SHOT": (0, 255),
    "AUG.JPEG.QUALITY": (1, 100),
    "AUG.CROP.SIZE": (1, 10**6),
}
_INTEGERS = ("AUG.JPEG.QUALITY", "AUG.CROP.SIZE")
_CHOICES = {
    "AUG.ROTATION.FRAME": transforms.FRAMES,
    "AUG.ROTATION.BORDER": transforms.BORDERS,
    "AUG.BLUR.KIND": transforms.BLURS,
    "AUG.COPY_PASTE.OCCLUSION": mixing.OCCLUSIONS,
    "RANDOM_FLIP": ("none", "horizontal", "vertical", "both"),
    "MASK_FORMAT": ("polygon", "bitmask"),
}


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Return the augmentations of one training image, in their order.

    First the crop, whose rest then costs nothing; then the effects of lens, light, sensor and
    file, on the pixels of the photograph; then rotation, size and flips. With all of INPUT.AUG off
    these are Detectron2's own.

    Raises:
        UserError: ``config_invalid``.
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
    """Return the augmentation of validation: the size used in prediction."""
    return [_resize(cfg, is_train=False)]


def _resize(cfg: CfgNode, is_train: bool) -> T.Augmentation:
    node, scale = cfg.INPUT, cfg.INPUT.AUG.SCALE
    size = node.MIN_SIZE_TEST, node.MAX_SIZE_TEST, "choice"
    if is_train:
        size = node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING
    # Validation has exactly the pixels of Detectron2's DefaultPredictor.
    prob, fast = (scale.PROB, node.FAST_RESIZE) if is_train else (0.0, False)
    if prob == 0 and not fast:
        return T.ResizeShortestEdge(*size)
    return transforms.ResizeWithJitter(*size, tuple(scale.RANGE), prob, fast)


def build_copy_paste(cfg: CfgNode) -> mixing.CopyPaste:
    """Return the copy-paste of INPUT.AUG.COPY_PASTE."""
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
    """Return whether training does more than flip and resize whole images."""
    probabilities = [node.PROB for node in cfg.INPUT.AUG.values()]
    return cfg.INPUT.CROP.ENABLED or cfg.INPUT.TILE.SIZE > 0 or any(p > 0 for p in probabilities)


def clips(cfg: CfgNode) -> bool:
    """Return whether an augmentation cuts particles or needs their boxes: masks become crops."""
    aug = cfg.INPUT.AUG
    return cfg.INPUT.CROP.ENABLED or aug.ROTATION.PROB > 0 or aug.CROP.PROB > 0 or mixes(cfg)


def mixes(cfg: CfgNode) -> bool:
    """Return whether an augmentation needs other images."""
    return cfg.INPUT.AUG.COPY_PASTE.PROB > 0 or cfg.INPUT.AUG.MOSAIC.PROB > 0


def check_augmentation(cfg: CfgNode) -> None:
    """Check the values of INPUT that the project adds or uses.

    Raises:
        UserError: ``config_invalid``, naming the key and the values it may have.
    """
    node = cfg.INPUT
    for name in node.AUG:
        _check_numbers(f"AUG.{name}.PROB", node.AUG[name].PROB, 0, 1)
    for key, (low, high) in _NUMBERS.items():
        _check_numbers(key, _value(node, key), low, high)
    for key, (low, high) in _PAIRS.items():
        _check_numbers(key, _value(node, key), low, high, pair=True)
    if node.TILE.SIZE:
        _check_numbers("TILE.OVERLAP", node.TILE.OVERLAP, 0, node.TILE.SIZE - 1)
    for key, choices in _CHOICES.items():
        if _value(node, key) not in choices:
            raise UserError(
                f"INPUT.{key} is {_value(node, key)!r}; expected one of {', '.join(choices)}.",
                code="config_invalid",
            )


def _value(node: CfgNode, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), node)


def _check_numbers(key: str, value: Any, low: float, high: float, pair: bool = False) -> None:
    """Check a number, or a pair: a size, or bounds with the lower one first."""
    kinds = int if key in _INTEGERS else (int, float)
    values = tuple(value) if pair else (value,)
    bounds = pair and key != "AUG.CROP.SIZE"
    valid = len(values) == (2 if pair else 1) and all(
        isinstance(v, kinds) and not isinstance(v, bool) and low <= v <= high for v in values
    )
    if not valid or (bounds and values[0] > values[1]):
        kind = "integer" if key in _INTEGERS else "number"
        expected = f"{f'two {kind}s' if pair else f'a {kind}'} from {low} to {high}"
        expected += ", the lower one first" if bounds else ""
        raise UserError(
            f"INPUT.{key} is {values if pair else value}; expected {expected}.",
            code="config_invalid",
        )
