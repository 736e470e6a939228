"""microplastics/modeling/roi_masks.py."""

import numpy as np
import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks
from torch.nn import functional as F

from microplastics.modeling.postprocessing import postprocess
from microplastics.modeling.roi_masks import WindowMasks

SIZE = (40, 60)


def masks(*windows, stride=2, seed=0):
    windows = torch.tensor(windows, dtype=torch.int64).reshape(-1, 4)
    cells = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in windows.tolist())
    values = torch.rand(cells, generator=torch.Generator().manual_seed(seed))
    return WindowMasks(values, windows, stride, SIZE)


@pytest.mark.parametrize("size", [SIZE, (80, 120), (31, 77)])
def test_a_window_of_the_whole_image_is_interpolated_as_torch_does(size):
    whole = masks((0, 0, 30, 20))
    wanted = F.interpolate(whole.tensor.view(1, 1, 20, 30), size, mode="bilinear")[0, 0]
    pasted = whole.paste(size, 0.7).to_bitmasks()[0]
    clear = (wanted - 0.7).abs() > 1e-5
    assert torch.equal(pasted[clear], (wanted >= 0.7)[clear]) and clear.float().mean() > 0.99


def test_inside_of_its_window_a_mask_is_what_detectron2_pastes():
    windows = [(2, 3, 11, 12), (15, 8, 24, 17)]
    some = masks(*windows)
    boxes = 2 * torch.tensor(windows, dtype=torch.float32)
    grids = some.tensor.view(2, 9, 9)
    wanted = ROIMasks(grids).to_bitmasks(Boxes(boxes), *SIZE).tensor
    # Half a cell from the border Detectron2 mixes in a zero.
    inner, pasted = frame(boxes, 1), some.paste(SIZE).to_bitmasks()
    assert torch.equal(pasted & inner, wanted & inner) and (pasted & inner).sum() > 50
    assert not (pasted & ~frame(boxes)).any()


def frame(boxes, border=0):
    inside = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(inside, boxes.int().tolist(), strict=True):
        mask[y0 + border : y1 - border, x0 + border : x1 - border] = True
    return inside


def test_selected_joined_and_moved_masks_stay_the_same():
    three = masks((0, 0, 3, 2), (4, 5, 9, 6), (29, 19, 30, 20))
    full = three.to_bitmasks(None, *SIZE).tensor
    for item in (1, slice(0, 2), [2, 0], torch.tensor([False, True, True]), torch.tensor([2, 1])):
        picked = three[item].to_bitmasks(None, *SIZE).tensor
        assert torch.equal(picked, full[item].reshape(-1, *SIZE))
    joined = WindowMasks.cat([three[:1], three[1:]]).to("cpu")
    assert torch.equal(joined.tensor, three.tensor) and len(joined) == 3
    none = three[torch.zeros(3, dtype=torch.bool)]
    assert len(none) == len(none.paste(SIZE)) == 0
    assert none.to_bitmasks(None, *SIZE).tensor.shape == (0, *SIZE)
    with pytest.raises(ValueError, match="6 cells"):
        WindowMasks(torch.zeros(5), torch.tensor([[0, 0, 3, 2]]), 2, SIZE)


def test_both_postprocessings_give_the_same_masks():
    def instances():
        boxes = torch.tensor([[1.0, 2, 30, 20], [5, 5, 5, 5], [20, 10, 50, 39]])
        masked = masks((0, 0, 16, 12), (1, 1, 4, 4), (9, 4, 27, 20), seed=3)
        return Instances(
            SIZE, pred_boxes=Boxes(boxes), pred_masks=masked, scores=torch.tensor([3, 2, 1])
        )

    ours, theirs = (each(instances(), 67, 95) for each in (postprocess, detector_postprocess))
    assert ours.scores.tolist() == theirs.scores.tolist() == [3, 1]
    assert torch.equal(ours.pred_masks.to_bitmasks(), theirs.pred_masks)
    assert np.all(ours.pred_masks.area().numpy() > 100)
