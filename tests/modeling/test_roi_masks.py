"""microplastics/modeling/roi_masks.py."""

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks

from microplastics.modeling.postprocessing import postprocess
from microplastics.modeling.roi_masks import BoxedMasks

SIZE = (60, 80)


def raw(count=6, seed=0):
    """Raw results with masks in boxes of their own, some of which reach out of the image."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([70.0, 50.0])
    sides = 1 + torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + sides], dim=1)
    masks = torch.rand(count, 14, 14, generator=generator)
    results = Instances(SIZE, pred_boxes=Boxes(boxes), scores=torch.rand(count))
    results.pred_boxes.clip(SIZE)
    results.pred_masks = BoxedMasks(masks, boxes + torch.tensor([-4.0, -3.0, 5.0, 6.0]), SIZE)
    return results


def test_both_ways_of_pasting_agree_with_detectron2s_own():
    results, size = raw(), (97, 171)
    masks = results.pred_masks
    other = Instances(size, pred_boxes=Boxes(masks.boxes_on(size)))
    expected = ROIMasks(masks.tensor).to_bitmasks(other.pred_boxes, *size).tensor
    mine = postprocess(results, *size)
    theirs = detector_postprocess(raw(), *size)
    assert torch.equal(mine.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(theirs.pred_masks, expected) and expected.any(dim=(1, 2)).all()
    assert torch.equal(mine.pred_masks.to_bitmasks(), expected)


def test_detections_without_a_box_take_their_masks_with_them():
    results = raw()
    results.pred_boxes.tensor[2, 2] = results.pred_boxes.tensor[2, 0]
    kept = [0, 1, 3, 4, 5]
    expected = results.pred_masks[torch.tensor(kept)].paste(SIZE)
    found = postprocess(results, *SIZE).pred_masks
    assert torch.equal(found.to_bitmasks(), expected.to_bitmasks())


def test_parts_of_instances_join_again():
    results = raw()
    joined = Instances.cat([results[:2], results[2:2], results[torch.arange(6) >= 2]]).to("cpu")
    assert type(joined.pred_masks) is BoxedMasks and len(joined.pred_masks) == 6
    assert torch.equal(joined.pred_masks.tensor, results.pred_masks.tensor)
    assert torch.equal(joined.pred_masks.boxes, results.pred_masks.boxes)
    assert joined.pred_masks.image_size == SIZE
