"""Training samples on the page."""

import itertools

import numpy as np
import pytest
import torch

from microplastics.data.images import read_image
from microplastics.data.loader import TrainLoader, check_datasets
from microplastics.review.samples import training_samples
from microplastics.structures.crop_masks import CropMasks, as_crop_masks


@pytest.mark.parametrize(
    "opts", [(), ("INPUT.TILE.SIZE", 64, "INPUT.TILE.OVERLAP", 16, "MODEL.MASK_ON", False)]
)
def test_samples_are_what_training_sees(tiny_cfg, tmp_path, opts):
    cfg = tiny_cfg("SEED", 5, "INPUT.MIN_SIZE_TRAIN", "(80, 120)", *opts)
    source = training_samples(cfg, 5, tmp_path)
    seen = cfg.clone()
    seen.defrost()
    seen.MODEL.MASK_ON = True
    loader = itertools.chain.from_iterable(TrainLoader(check_datasets(seen, ("TRAIN",))))
    assert len(source.images) == 5
    for image, item in zip(source.images, loader, strict=False):
        pixels = item["image"].numpy().transpose(1, 2, 0)
        pixels = pixels if cfg.INPUT.FORMAT == "BGR" else pixels[:, :, ::-1]
        np.testing.assert_array_equal(read_image(image.path), pixels)
        assert (image.height, image.width) == pixels.shape[:2]
        particles, instances = image.particles, item["instances"]
        numbers = [source.classes.index(name) for name in particles.classes]
        assert numbers == instances.gt_classes.tolist()
        masks = CropMasks(particles.masks, particles.offsets, particles.image_size)
        assert torch.equal(masks.tensor, as_crop_masks(instances.gt_masks, pixels.shape[:2]).tensor)
    assert source.images[2].name.startswith("iteration 1, 1: ")
    assert ("at x" in source.images[0].name) == bool(opts)


def test_the_seed_decides(tiny_cfg, tmp_path):
    def pixels(seed):
        source = training_samples(tiny_cfg("SEED", seed), 3, tmp_path / str(seed))
        return [read_image(image.path) for image in source.images]

    same = zip(pixels(1), pixels(1), strict=True)
    assert all(np.array_equal(one, other) for one, other in same)
    other = zip(pixels(1), pixels(2), strict=True)
    assert not all(np.array_equal(one, two) for one, two in other)


def test_particles_cut_off_are_told(tiny_cfg, tmp_path):
    cut = (
        "INPUT.CROP.ENABLED",
        True,
        "INPUT.CROP.SIZE",
        "[0.3, 0.3]",
        "INPUT.MIN_VISIBLE_SHARE",
        0.99,
        "SEED",
        0,
    )
    names = [image.name for image in training_samples(tiny_cfg(*cut), 8, tmp_path).images]
    assert any(name.endswith(" left out") for name in names)
