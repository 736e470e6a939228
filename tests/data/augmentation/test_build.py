import pytest
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from support import user_error

from microplastics.config import get_cfg
from microplastics.data.augmentation import (
    build_augmentations,
    build_copy_paste,
    build_validation,
    clips,
    is_augmented,
    mixes,
)
from microplastics.data.augmentation.transforms import ResizeWithJitter

# In the order in which they are applied.
NODES = (
    *("CROP", "BLUR", "BRIGHTNESS", "CONTRAST", "SATURATION", "HUE", "NOISE", "JPEG"),
    *("RIGHT_ANGLES", "ROTATION", "SCALE"),
)


def config(*opts):
    cfg = get_cfg()
    cfg.INPUT.FAST_RESIZE = False
    cfg.merge_from_list(list(opts))
    return cfg


def names(augmentations):
    return [type(getattr(a, "aug", a)).__name__ for a in augmentations]


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "none"])
def test_with_exact_pixels_it_is_detectron2s_list(flip):
    cfg = config("INPUT.RANDOM_FLIP", flip)
    plain = detection_utils.build_augmentation(cfg, True)
    assert [repr(a) for a in build_augmentations(cfg)] == [repr(a) for a in plain]
    plain = detection_utils.build_augmentation(cfg, False)
    assert [repr(a) for a in build_validation(cfg)] == [repr(a) for a in plain]
    assert names(build_augmentations(get_cfg())) == ["ResizeWithJitter", "RandomFlip"]
    assert not (clips(cfg) or is_augmented(cfg) or mixes(cfg))


def test_every_key_switches_its_own_augmentation_on():
    plain = names(build_augmentations(config()))
    for node in NODES:
        cfg = config(f"INPUT.AUG.{node}.PROB", 0.5)
        found = [name for name in names(build_augmentations(cfg)) if name not in plain]
        expected = "ResizeWithJitter" if node == "SCALE" else None
        assert len(found) == 1 and (expected is None or found == [expected])
        assert is_augmented(cfg) and not mixes(cfg)
        assert clips(cfg) == (node in ("CROP", "ROTATION"))
    for node in ("COPY_PASTE", "MOSAIC"):
        cfg = config(f"INPUT.AUG.{node}.PROB", 0.5)
        assert clips(cfg) and mixes(cfg) and names(build_augmentations(cfg)) == plain
    assert is_augmented(config("INPUT.TILE.SIZE", 512))


def test_the_order_is_that_of_a_camera():
    opts = [x for node in NODES for x in (f"INPUT.AUG.{node}.PROB", 0.5)]
    built = build_augmentations(config(*opts, "INPUT.RANDOM_FLIP", "both"))
    assert names(built) == [
        *("RandomParticleCrop", "RandomBlur", "RandomBrightness", "RandomContrast"),
        *("RandomSaturation", "RandomHue", "RandomNoise", "RandomJPEG", "RandomRightAngle"),
        *("RandomRotation", "ResizeWithJitter", "RandomFlip", "RandomFlip"),
    ]
    assert (built[-2].horizontal, built[-1].vertical) == (True, True)


def test_validation_has_neither_jitter_nor_other_pixels():
    cfg = config("INPUT.AUG.SCALE.PROB", 1.0, "INPUT.FAST_RESIZE", True)
    assert type(build_validation(cfg)[0]) is T.ResizeShortestEdge
    resize = build_augmentations(cfg)[-2]
    assert isinstance(resize, ResizeWithJitter) and resize.fast and resize.prob == 1


def test_copy_paste_takes_all_its_keys():
    node = "INPUT.AUG.COPY_PASTE."
    values = {"MAX_PARTICLES": 3, "MAX_COVER": 0.1, "SCALE": (0.9, 1.0), "ROTATE": False}
    values |= {"EDGE": 0.0, "OCCLUSION": "amodal"}
    paste = build_copy_paste(config(*[x for k, v in values.items() for x in (node + k, v)]))
    assert {key: getattr(paste, key.lower()) for key in values} == values


@pytest.mark.parametrize(
    "key, value",
    [
        ("AUG.HUE.PROB", 1.5),
        ("AUG.MOSAIC.PROB", -0.1),
        ("AUG.NOISE.PROB", float("nan")),
        ("AUG.BRIGHTNESS.RANGE", (1.2, 0.8)),
        ("AUG.CONTRAST.RANGE", (0.8,)),
        ("AUG.SATURATION.RANGE", (0.0, 1e308)),
        ("AUG.SCALE.RANGE", (0.0, 1.0)),
        ("AUG.SCALE.RANGE", ("a", "b")),
        ("AUG.BLUR.SIGMA", (1.0, float("inf"))),
        ("AUG.JPEG.QUALITY", (0, 90)),
        ("AUG.JPEG.QUALITY", (50.5, 90)),
        ("AUG.CROP.SIZE", (0, 512)),
        ("AUG.CROP.SHIFT", 1.1),
        ("AUG.ROTATION.MAX_ANGLE", 181.0),
        ("AUG.ROTATION.FRAME", "crop"),
        ("AUG.ROTATION.BORDER", "wrap"),
        ("AUG.BLUR.KIND", "motion"),
        ("AUG.COPY_PASTE.OCCLUSION", "none"),
        ("AUG.COPY_PASTE.MAX_PARTICLES", 0),
        ("MIN_VISIBLE_SHARE", 1.0),
        ("MIN_MASK_PIXELS", 0),
        ("TILE.SIZE", -1),
        ("TILE.SIZE", 64),  # the overlap is 64
        ("TILE.EMPTY_SHARE", 2.0),
        ("RANDOM_FLIP", "diagonal"),
        ("MASK_FORMAT", "rle"),
    ],
)
def test_values_that_are_refused(key, value):
    named = "TILE.OVERLAP" if value == 64 else key
    with user_error("config_invalid", f"INPUT.{named} is"):
        build_augmentations(config(f"INPUT.{key}", value))


def test_a_crop_may_be_higher_than_wide():
    build_augmentations(config("INPUT.AUG.CROP.SIZE", (600, 400)))
