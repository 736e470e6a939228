import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.projects.point_rend.point_features import sample_point_labels
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from microplastics.structures.crop_masks import CropMasks

SIZE = (40, 50)


def random_masks(seed, number=4, size=SIZE):
    """Blobs of every kind: dense, thin, at the border, whole-frame, empty."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((number, *size), dtype=bool)
    for mask in masks:
        kind = generator.integers(6)
        if kind == 0:
            continue
        if kind == 1:
            mask[:] = True
        elif kind == 2:
            mask[:] = generator.random(size) < 0.5
        else:
            y, x = generator.integers(0, size[0]), generator.integers(0, size[1])
            h, w = generator.integers(1, 20, 2)
            mask[y : y + h, x : x + w] = generator.random(mask[y : y + h, x : x + w].shape) < 0.8
    return masks


def encode(masks):
    return [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


SEEDS = st.integers(0, 2**32 - 1)
COORDINATE = st.one_of(
    st.floats(-8, 60, width=32), st.integers(-8, 60), st.integers(-32, 240).map(lambda n: n / 4)
)


@given(SEEDS)
@settings(deadline=None)
def test_bitmasks_and_rles_and_back(seed):
    full = random_masks(seed)
    masks = CropMasks.from_bitmasks(torch.from_numpy(full))
    assert np.array_equal(masks.to_bitmasks().numpy(), full)
    assert masks.to_rles() == encode(full)
    assert masks.to_rles(as_str=True)[0]["counts"] == encode(full)[0]["counts"].decode()
    again = CropMasks.from_rles(masks.to_rles(), SIZE)
    assert np.array_equal(again.to_bitmasks().numpy(), full)
    assert again.to_rles() == masks.to_rles()
    assert masks.area().tolist() == full.sum(axis=(1, 2)).tolist()
    reference = BitMasks(torch.from_numpy(full))
    assert torch.equal(masks.nonempty(), reference.nonempty())
    assert torch.equal(masks.get_bounding_boxes().tensor, reference.get_bounding_boxes().tensor)
    assert all(np.array_equal(one, each) for one, each in zip(masks, full, strict=True))


def assert_targets_of_full_frames(masks, full, boxes, size):
    """Targets are those of full frames, but for bins whose mean rounding decides."""
    result = masks.crop_and_resize(boxes, size)
    rois = torch.cat([torch.arange(len(full))[:, None], boxes], 1).float()
    mean = roi_align(full[:, None].float(), rois, size, 1.0, 0, True)[:, 0]
    assert result.dtype == torch.bool
    assert ((mean - 0.5).abs()[result != (mean >= 0.5)] < 1e-3).all()


@given(SEEDS, st.lists(st.tuples(*[COORDINATE] * 4), min_size=4, max_size=4), st.integers(1, 9))
@example(1, [(0, 0, 50, 40), (-1, -1, 7, 7), (3, 3, 3, 9), (49, 39, 51, 41)], 7)
@settings(max_examples=200, deadline=None)
def test_crop_and_resize_is_that_of_full_frames(seed, boxes, size):
    full = torch.from_numpy(random_masks(seed))
    boxes = torch.tensor(boxes, dtype=torch.float32)
    boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])], 1)
    assert_targets_of_full_frames(CropMasks.from_bitmasks(full), full, boxes, size)


def test_crop_and_resize_far_from_the_origin_and_shared():
    generator = np.random.default_rng(0)
    full = np.zeros((3, 900, 1300), dtype=bool)
    full[0, 700:790, 1200:1300] = generator.random((90, 100)) < 0.6
    full[1, 300:303, 400:650] = True
    full[2, 100:800, 100:900] = generator.random((700, 800)) < 0.5
    index = torch.from_numpy(generator.integers(0, 3, 60))
    masks = CropMasks.from_bitmasks(full)
    boxes = masks.get_bounding_boxes().tensor[index]
    boxes = boxes + torch.from_numpy(generator.normal(0, 5, (60, 4)).astype(np.float32))
    assert_targets_of_full_frames(masks[index], torch.from_numpy(full)[index], boxes, 28)


@pytest.mark.parametrize("box", [(3, 3, 3, 9), (9, 3, 2, 9), (3, 3, 3, 3), (9, 9, 2, 3)])
def test_boxes_without_area_have_empty_targets(box):
    masks = CropMasks.from_bitmasks(np.ones((1, *SIZE), dtype=bool))
    assert not masks.crop_and_resize(torch.tensor([box]).float(), 4).any()


def test_point_rend_samples_its_labels():
    full = torch.from_numpy(random_masks(11))
    points = torch.rand(4, 30, 2) * torch.tensor([SIZE[1], SIZE[0]])
    found = [
        sample_point_labels([Instances(SIZE, gt_masks=masks)], points)
        for masks in (CropMasks.from_bitmasks(full), BitMasks(full))
    ]
    assert torch.equal(*found)
    moved = CropMasks.from_bitmasks(full).to("meta")
    assert moved[[1]].tensor.device == CropMasks.cat([moved, moved]).tensor.device == moved.device
    assert np.array_equal(moved.crops[1], CropMasks.from_bitmasks(full).crops[1])


@given(SEEDS, st.lists(st.tuples(*[COORDINATE] * 4), min_size=1, max_size=5), st.floats(0.05, 0.95))
@settings(max_examples=150, deadline=None)
def test_paste_is_that_of_detectron2(seed, boxes, threshold):
    boxes = torch.tensor(boxes, dtype=torch.float32)
    low, high = boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])
    boxes = torch.cat([low, high + 0.01], 1)
    # As Detectron2 has it, where boxes are clipped to the image before.
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, SIZE[1])
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, SIZE[0])
    boxes = boxes[Boxes(boxes).nonempty()]
    probs = torch.rand(len(boxes), 7, 7, generator=torch.Generator().manual_seed(seed))
    expected = paste_masks_in_image(probs, Boxes(boxes), SIZE, threshold)
    result = CropMasks.paste(probs, boxes, SIZE, threshold)
    assert torch.equal(result.to_bitmasks(), expected.bool())
    assert result.to_rles() == encode(expected.numpy())


def test_paste_of_large_boxes_and_none():
    generator = torch.Generator().manual_seed(1)
    probs = torch.rand(6, 28, 28, generator=generator)
    start = torch.rand(6, 2, generator=generator) * torch.tensor([900.0, 600.0])
    boxes = torch.cat([start, start + 3 + 300 * torch.rand(6, 2, generator=generator)], 1)
    expected = paste_masks_in_image(probs, Boxes(boxes), (700, 1000), 0.5)
    assert torch.equal(CropMasks.paste(probs, boxes, (700, 1000)).to_bitmasks(), expected)
    assert len(CropMasks.paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE)) == 0
    outside = CropMasks.paste(torch.ones(1, 4, 4), torch.tensor([[60.0, 50, 70, 60]]), SIZE)
    assert not outside.nonempty()[0]
    with pytest.raises(ValueError, match="not finite"):
        CropMasks.paste(probs[:1], torch.full((1, 4), float("nan")), SIZE)
    with pytest.raises(ValueError, match="shorter"):
        CropMasks.paste(probs[:2], boxes[:1], SIZE)


TENTH = st.integers(-100, 700).map(lambda n: n / 10)
POLYGON = st.lists(st.tuples(TENTH, TENTH), min_size=3, max_size=8)


@given(st.lists(POLYGON, min_size=1, max_size=3))
@settings(deadline=None)
def test_polygons_are_rasterised_as_pycocotools_does(polygons):
    flat = [np.array(polygon).ravel().tolist() for polygon in polygons]
    expected = mask_util.merge(mask_util.frPyObjects(flat, *SIZE))
    masks = CropMasks.from_coco([flat], SIZE)
    assert masks.to_rles() == encode([mask_util.decode(expected)])


def test_polygons_and_rles_mix():
    rles = encode(random_masks(5, 3))
    counts = [5, 3, 2000 - 8]
    triangle = [10.0, 10.0, 30.0, 10.0, 20.0, 30.0]
    masks = CropMasks.from_coco([rles[0], [triangle], {"size": SIZE, "counts": counts}], SIZE)
    assert masks.to_rles()[0] == rles[0]
    assert masks.area().tolist()[2] == 3
    assert masks.get_bounding_boxes().tensor[2].tolist() == [0, 5, 1, 8]


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([], "is empty"),
        ([[1, 2, 3, 4]], "at least 3 points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least 3 points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, 1e9]], "too far outside"),
        ([[0, 0, 1e7, 1e7] * 50], "too far outside"),
        ([[[1, 2], [3, 4]]], "at least 3 points"),
        ([["a", 2, 3, 4, 5, 6]], "not a list of numbers"),
        (7, "not a list of numbers"),
        ({"size": [40, 50]}, "lacks its size or its counts"),
        ({"size": None, "counts": "0"}, "lacks its size or its counts"),
        ({"size": [50, 40], "counts": [2000]}, r"size \[50, 40\] in an image of size \[40, 50\]"),
        ({"size": [40, 50], "counts": [1999]}, "covers 1999 pixels"),
    ],
)
def test_bad_segmentations_are_value_errors(segmentation, words):
    with pytest.raises(ValueError, match=words):
        CropMasks.from_coco([segmentation], SIZE)


def test_constructor_refuses_what_does_not_fit():
    crop = np.ones((4, 4), dtype=bool)
    for offset in [(-1, 0), (47, 0), (0, 37)]:
        with pytest.raises(ValueError, match="outside"):
            CropMasks([crop], [offset], SIZE)
    with pytest.raises(ValueError, match="1 crops have 2 offsets"):
        CropMasks([crop], [(0, 0), (1, 1)], SIZE)
    with pytest.raises(ValueError, match="expected one"):
        CropMasks.cat([CropMasks([], [], SIZE), CropMasks([], [], (1, 1))])


def test_indexing_is_that_of_a_tensor():
    full = torch.from_numpy(random_masks(3, 6))
    masks = CropMasks.from_bitmasks(full)
    masks.to_rles()
    keep = torch.tensor([True, False, True, False, False, True])
    order = torch.tensor([5, 0, 0, 3])
    none = torch.zeros(0, dtype=torch.int64)
    for item in [2, -1, slice(1, 4), keep, order, none, keep.numpy(), [1, 2], []]:
        index = [item] if isinstance(item, int) else item
        index = torch.tensor(index, dtype=torch.int64) if isinstance(index, list) else index
        assert torch.equal(masks[item].to_bitmasks(), full[index])
        assert masks[item].to_rles() == encode(full[index].numpy())
    with pytest.raises(IndexError):
        masks[6]
    with pytest.raises(IndexError):
        masks[keep[:3]]
    joined = CropMasks.cat([masks[:2], masks[2:]])
    assert torch.equal(joined.to_bitmasks(), full)


def test_in_instances_and_pickled():
    full = torch.from_numpy(random_masks(4, 3))
    masks = CropMasks.from_bitmasks(full)
    instances = Instances(SIZE, gt_masks=masks, gt_classes=torch.arange(3))
    assert instances.to("cpu").gt_masks is masks
    assert str(masks.device) == "cpu"
    picked = instances[torch.tensor([2, 0])]
    assert torch.equal(picked.gt_masks.to_bitmasks(), full[[2, 0]])
    joined = Instances.cat([instances, picked])
    assert len(joined) == len(joined.gt_masks) == 5
    again = pickle.loads(pickle.dumps(masks))
    assert torch.equal(again.to_bitmasks(), full)
    assert repr(masks) == "CropMasks(num_instances=3, image_size=(40, 50))"


def test_visualizer_draws_them_as_full_frames():
    full = random_masks(8, 3)
    pictures = []
    for masks in (CropMasks.from_bitmasks(full), torch.from_numpy(full)):
        np.random.seed(0)  # the Visualizer draws its colours
        instances = Instances(SIZE, pred_masks=masks, pred_classes=torch.zeros(3, dtype=int))
        picture = Visualizer(np.full((*SIZE, 3), 90, np.uint8))
        pictures.append(picture.draw_instance_predictions(instances).get_image())
    assert np.array_equal(*pictures)
    assert (pictures[0] != 90).any()


AFFINES = {
    "flip x": ([[-1, 0, 50], [0, 1, 0]], SIZE, lambda m: m[:, :, ::-1]),
    "flip y": ([[1, 0, 0], [0, -1, 40]], SIZE, lambda m: m[:, ::-1]),
    "quarter turn": ([[0, -1, 40], [1, 0, 0]], (50, 40), lambda m: np.rot90(m, -1, (1, 2))),
    "transpose": ([[0, 1, 0], [1, 0, 0]], (50, 40), lambda m: m.transpose(0, 2, 1)),
    "shift": ([[1, 0, -7], [0, 1, -5]], (30, 33), lambda m: m[:, 5:35, 7:40]),
    "nothing": ([[1, 0, 0], [0, 1, 0]], SIZE, lambda m: m),
}


@pytest.mark.parametrize("name", AFFINES)
@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_affine_is_exact_for_flips_turns_and_shifts(name, seed):
    matrix, size, expected = AFFINES[name]
    full = random_masks(seed)
    result = CropMasks.from_bitmasks(full).affine(np.array(matrix), size)
    assert np.array_equal(result.to_bitmasks().numpy(), expected(full))


@given(SEEDS, st.data())
@settings(max_examples=60, deadline=None)
def test_clip_is_a_window_of_the_frame(seed, data):
    full = random_masks(seed)
    x0, y0 = data.draw(st.integers(0, 49)), data.draw(st.integers(0, 39))
    x1, y1 = data.draw(st.integers(x0 + 1, 50)), data.draw(st.integers(y0 + 1, 40))
    clipped = CropMasks.from_bitmasks(full).clip(x0, y0, x1 - x0, y1 - y0)
    assert np.array_equal(clipped.to_bitmasks().numpy(), full[:, y0:y1, x0:x1])


@given(st.floats(0.3, 3.3), st.floats(0.3, 3.3), st.integers(0, 1))
@settings(deadline=None)
def test_affine_scales_a_rectangle(sx, sy, flip):
    full = np.zeros((1, *SIZE), dtype=bool)
    full[0, 10:34, 8:44] = True
    matrix = [[-sx if flip else sx, 0, 50 * sx if flip else 0], [0, sy, 0]]
    height, width = round(40 * sy), round(50 * sx)
    result = CropMasks.from_bitmasks(full).affine(matrix, (height, width))
    x = (50 - 44, 50 - 8) if flip else (8, 44)
    expected = [x[0] * sx, 10 * sy, x[1] * sx, 34 * sy]
    assert np.abs(result.get_bounding_boxes().tensor[0].numpy() - expected).max() <= 1
    assert result.image_size == (height, width)


def test_affine_refuses_singular_matrices_and_drops_no_instance():
    masks = CropMasks.from_bitmasks(np.ones((2, *SIZE), dtype=bool))
    with pytest.raises(ValueError, match="inverted"):
        masks.affine([[1, 1, 0], [1, 1, 0]], SIZE)
    with pytest.raises(ValueError, match="inverted"):
        masks.affine([[np.nan, 1, 0], [1, 1, 0]], SIZE)
    away = masks.affine([[1, 0, 500], [0, 1, 0]], SIZE)
    assert len(away) == 2 and not away.nonempty().any()


def test_nothing_is_as_large_as_the_frame():
    size = (40_000, 50_000)
    crop = np.ones((3, 4), dtype=bool)
    masks = CropMasks([crop] * 2, [(49_996, 39_997), (7, 9)], size)
    rles = masks.to_rles()
    assert mask_util.area(rles).tolist() == [12, 12]
    assert mask_util.toBbox(rles).tolist() == [[49_996, 39_997, 4, 3], [7, 9, 4, 3]]
    again = CropMasks.from_rles(rles)
    assert [each.shape for each in again.crops] == [(3, 4)] * 2
    assert again.offsets.tolist() == [[49_996, 39_997], [7, 9]]
    flipped = again.affine([[-1, 0, size[1]], [0, 1, 0]], size)
    assert flipped.get_bounding_boxes().tensor[0].tolist() == [0, 39_997, 4, 40_000]
