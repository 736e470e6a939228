import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from microplastics.structures.roi_align import roi_align_binary

SIZE = (37, 43)
EDGE = st.one_of(st.integers(-6, 50), st.integers(-24, 200).map(lambda n: n / 4))
BOX = st.tuples(EDGE, EDGE, EDGE, EDGE)


@given(
    st.integers(0, 2**32 - 1), st.lists(BOX, min_size=1, max_size=6), st.sampled_from([1, 3, 14])
)
@settings(max_examples=300, deadline=None)
def test_equals_torchvision_on_the_whole_image(seed, boxes, size):
    # Boxes on quarter pixels over half-full masks: means of exactly one half are everywhere.
    generator = np.random.default_rng(seed)
    (y0, y1), (x0, x1) = (np.sort(generator.integers(0, side + 1, 2)) for side in SIZE)
    full = np.zeros(SIZE, dtype=np.float32)
    full[y0:y1, x0:x1] = generator.random((y1 - y0, x1 - x0)) < 0.5
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 2, 2)
    boxes = np.sort(boxes, axis=1).reshape(-1, 4)  # torchvision crashes on boxes inside out
    rois = torch.from_numpy(np.column_stack([np.zeros(len(boxes), np.float32), boxes]))
    expected = roi_align(torch.from_numpy(full)[None, None], rois, size, 1.0, 0, True)[:, 0] >= 0.5
    crop = full[y0:y1, x0:x1].astype(bool)
    result = roi_align_binary(crop, (x0, y0), SIZE, boxes, size)
    assert np.array_equal(result, expected.numpy())


@pytest.mark.parametrize("box", [(3, 3, 3, 9), (9, 3, 2, 9), (3, 3, 3, 3)])
def test_boxes_without_area_are_empty(box):
    full = np.ones(SIZE, dtype=bool)
    assert not roi_align_binary(full, (0, 0), SIZE, np.array([box], np.float32), 4).any()
