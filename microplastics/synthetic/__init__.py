"""Rendered photographs of filters with exact annotations.

``rng`` is the source of random numbers of every function that takes one.
"""

from microplastics.synthetic.dataset import RENDERER_VERSION, render_dataset
from microplastics.synthetic.scene import PRESETS, render_image
from microplastics.synthetic.whole_filter import render_mosaic

__all__ = ["PRESETS", "RENDERER_VERSION", "render_dataset", "render_image", "render_mosaic"]
