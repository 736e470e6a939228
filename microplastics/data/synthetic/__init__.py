"""Rendered photographs of filters, with exact COCO annotations and true measures in µm."""

from microplastics.data.synthetic.dataset import render_dataset
from microplastics.data.synthetic.mosaic import render_mosaic
from microplastics.data.synthetic.presets import PRESETS
from microplastics.data.synthetic.scene import render_image
from microplastics.data.synthetic.storage import RENDERER_VERSION

__all__ = ["PRESETS", "RENDERER_VERSION", "render_dataset", "render_image", "render_mosaic"]
