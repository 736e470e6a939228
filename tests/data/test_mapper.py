"""microplastics/data/mapper.py."""

import time

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image
from pycocotools import mask as mask_util

from microplastics.data.mapper import ImageCache, MicroplasticsDatasetMapper, affine_matrix
from microplastics.structures.crop_masks import CropMasks

SQUARE = [20.0, 30.0, 50.0, 30.0, 50.0, 60.0, 20.0, 60.0]


def rle_of(polygon, height, width):
    return mask_util.frPyObjects([polygon], height, width)[0]


def dataset_dict(tmp_path, segmentations, size=(100, 80)):
    width, height = size
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    box = {"bbox": [20, 30, 30, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    annotations = [{**box, "segmentation": s, "iscrowd": 0} for s in segmentations]
    return {
        "file_name": str(path),
        "width": width,
        "height": height,
        "image_id": 1,
        "annotations": annotations,
    }


def mapper(*augmentations, **kwargs):
    return MicroplasticsDatasetMapper(
        True, augmentations=list(augmentations), image_format="BGR", **kwargs
    )


def test_polygons_stay_polygons_and_one_rle_turns_all_into_crops(tmp_path):
    polygons = dataset_dict(tmp_path, [[SQUARE], [SQUARE]])
    mixed = dataset_dict(tmp_path, [[SQUARE], rle_of(SQUARE, 80, 100)])
    assert isinstance(mapper()(polygons)["instances"].gt_masks, PolygonMasks)
    assert isinstance(mapper()(mixed)["instances"].gt_masks, CropMasks)


@pytest.mark.parametrize(
    "augmentation",
    [T.RandomFlip(1.0), T.RandomFlip(1.0, horizontal=False, vertical=True), T.Resize((160, 200))],
)
def test_boxes_polygons_and_rle_move_alike(tmp_path, augmentation):
    polygon = mapper(augmentation)(dataset_dict(tmp_path, [[SQUARE]]))["instances"]
    rle = mapper(augmentation)(dataset_dict(tmp_path, [rle_of(SQUARE, 80, 100)]))["instances"]
    assert torch.equal(polygon.gt_boxes.tensor, rle.gt_boxes.tensor)
    height, width = polygon.image_size
    drawn = BitMasks.from_polygon_masks(polygon.gt_masks, height, width).tensor
    assert torch.equal(rle.gt_masks.to_bitmasks(), drawn)


def test_the_affine_matrix_tells_a_list_of_transforms_whole():
    transforms = T.TransformList(
        [
            T.HFlipTransform(100),
            T.ResizeTransform(80, 100, 160, 300),
            T.RotationTransform(160, 300, 30),
        ]
    )
    points = np.random.default_rng(0).uniform(0, 100, (9, 2))
    matrix = affine_matrix(transforms)
    assert points @ matrix[:, :2].T + matrix[:, 2] == pytest.approx(transforms.apply_coords(points))


def test_crowds_are_left_out_and_images_without_particles_stay(tmp_path):
    record = dataset_dict(tmp_path, [[SQUARE]])
    record["annotations"][0]["iscrowd"] = 1
    mapped = mapper()(record)
    assert len(mapped["instances"]) == 0
    assert mapped["image"].shape == (3, 80, 100)


def test_mapping_does_not_change_the_data_set(tmp_path):
    record = dataset_dict(tmp_path, [[SQUARE]])
    before = repr(record)
    mapper(T.RandomFlip(1.0))(record)
    assert repr(record) == before


def test_150_rle_instances_of_a_4000_px_image_never_become_full_frames(tmp_path):
    rng = np.random.default_rng(0)
    offsets = rng.integers(0, 3900, (150, 2))
    corners = np.array([[0, 0], [90, 10], [80, 90]])
    rles = [rle_of((corners + o).ravel().tolist(), 4000, 4000) for o in offsets]
    record = dataset_dict(tmp_path, rles, size=(4000, 4000))
    map_it = mapper(T.Resize((800, 800)), cache_bytes=2**26)
    map_it(record)  # from here on the image is in the cache: the decode is not the masks' doing
    start = time.process_time()
    instances = map_it(record)["instances"]
    assert len(instances) == 150
    assert max(crop.size for crop in instances.gt_masks.crops) < 40 * 40
    # Not a speed test: full frames would take 20 s here.
    assert time.process_time() - start < 5


def test_a_crop_clips_polygons_and_drops_what_is_out_of_view(tmp_path):
    far = [90.0, 70.0, 99.0, 70.0, 99.0, 79.0]
    record = dataset_dict(tmp_path, [[SQUARE], [far]])
    crop = mapper(T.CropTransform(30, 40, 40, 40), recompute_boxes=True)
    instances = crop(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 20, 20]]


def test_the_cache_keeps_to_its_limit():
    cache = ImageCache(100)
    cache.put("a", np.zeros(60, np.uint8))
    cache.put("b", np.zeros(60, np.uint8))
    assert cache.get("a") is not None and cache.get("b") is None
