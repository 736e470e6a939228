"""Training augmentations."""

from microplastics.data.augmentation.build import (
    build_augmentations,
    build_copy_paste,
    build_validation,
    check_augmentation,
    clips,
    is_augmented,
    mixes,
)
from microplastics.data.augmentation.mixing import MOSAIC_IMAGES, CopyPaste, Mosaic, Sample

__all__ = [
    "MOSAIC_IMAGES",
    "CopyPaste",
    "Mosaic",
    "Sample",
    "build_augmentations",
    "build_copy_paste",
    "build_validation",
    "check_augmentation",
    "clips",
    "is_augmented",
    "mixes",
]
