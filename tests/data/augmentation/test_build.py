"""microplastics/data/augmentation/build.py."""

import pytest
from detectron2.data import detection_utils
from detectron2.data import transforms as T

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
from microplastics.utils.errors import UserError

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
    "key, value, words",
    [
        ("AUG.HUE.PROB", 1.5, "a number from 0 to 1"),
        ("AUG.MOSAIC.PROB", -0.1, "a number from 0 to 1"),
        ("AUG.NOISE.PROB", float("nan"), "a number from 0 to 1"),
        ("AUG.BRIGHTNESS.RANGE", (1.2, 0.8), "the lower bound first"),
        ("AUG.CONTRAST.RANGE", (0.8,), "two numbers from 0 to 10"),
        ("AUG.SATURATION.RANGE", (0.0, 1e308), "two numbers from 0 to 10"),
        ("AUG.SCALE.RANGE", (0.0, 1.0), "two numbers from 0.05 to 20"),
        ("AUG.SCALE.RANGE", ("a", "b"), "two numbers"),
        ("AUG.BLUR.SIGMA", (1.0, float("inf")), "two numbers"),
        ("AUG.JPEG.QUALITY", (0, 90), "two whole numbers from 1 to 100"),
        ("AUG.JPEG.QUALITY", (50.5, 90), "two whole numbers"),
        ("AUG.CROP.SIZE", (0, 512), "two whole numbers from 1"),
        ("AUG.CROP.SHIFT", 1.1, "a number from 0 to 1"),
        ("AUG.ROTATION.MAX_ANGLE", 181.0, "from 0 to 180"),
        ("AUG.ROTATION.FRAME", "crop", "one of same, expand, inside"),
        ("AUG.ROTATION.BORDER", "wrap", "one of reflect, median, black"),
        ("AUG.BLUR.KIND", "motion", "one of gaussian, defocus, both"),
        ("AUG.COPY_PASTE.OCCLUSION", "none", "one of modal, amodal"),
        ("AUG.COPY_PASTE.MAX_PARTICLES", 0, "from 1"),
        ("MIN_VISIBLE_SHARE", 1.0, "from 0 to 0.99"),
        ("MIN_MASK_PIXELS", 0, "from 1"),
        ("TILE.SIZE", -1, "from 0"),
        ("TILE.EMPTY_SHARE", 2.0, "from 0 to 1"),
        ("RANDOM_FLIP", "diagonal", "one of none, horizontal, vertical, both"),
    ],
)
def test_nonsense_is_refused_by_name(key, value, words):
    with pytest.raises(UserError) as error:
        build_augmentations(config(f"INPUT.{key}", value))
    assert f"INPUT.{key} is" in str(error.value) and words in str(error.value)


def test_an_overlap_as_large_as_the_tile_is_refused():
    with pytest.raises(UserError, match="INPUT.TILE.OVERLAP is 64; give a number from 0 to 63"):
        build_augmentations(config("INPUT.TILE.SIZE", 64))
