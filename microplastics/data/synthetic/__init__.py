"""Rendered photographs of filters, with exact COCO annotations and true measures in µm."""

from microplastics.data.synthetic.dataset import RENDERER_VERSION, render_dataset
from microplastics.data.synthetic.scene import render_image

__all__ = ["RENDERER_VERSION", "render_dataset", "render_image"]
