"""benchmarks/mask_bound.py."""

import cv2
import numpy as np
from support import dataset_entry

from benchmarks.mask_bound import HEADS, benchmark
from microplastics.structures.crop_masks import CropMasks


def test_a_finer_mask_has_a_higher_bound_and_one_of_pixels_is_exact(rendered):
    canvas = np.zeros((300, 300), np.uint8)
    cv2.line(canvas, (10, 20), (280, 260), 1, 3)
    truth = CropMasks.from_bitmasks(canvas[None])
    full = truth.to_bitmasks()
    bounds = []
    for through in HEADS.values():
        pasted = through(truth).to_bitmasks()
        bounds.append(float((pasted & full).sum() / (pasted | full).sum()))
    grids, cells = bounds[:3], bounds[3:]
    assert grids == sorted(grids) and cells == sorted(cells) and cells[2] == 1
    assert cells[1] > grids[1] > grids[0] + 0.05
    words = benchmark(dataset_entry(rendered, "val")).settings
    assert "Fiber mean IoU 1.000, AP 100.0" in words["dynamic, stride 1"]
