"""microplastics/data/mapper.py."""

import logging
import time
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image
from pycocotools import mask as mask_util
from scale_bar_pictures import draw_bar, plain_style, reader
from support import user_error

from microplastics.calibration.scale_bar import find_scale_bars, only_bar
from microplastics.config import get_cfg
from microplastics.data import large_images
from microplastics.data.augmentation.mixing import CopyPaste, Mosaic
from microplastics.data.augmentation.transforms import (
    RandomParticleCrop,
    RandomRotation,
    ResizeWithJitter,
    WarpTransform,
)
from microplastics.data.images import read_image
from microplastics.data.mapper import (
    MicroplasticsDatasetMapper,
    RecordReader,
    affine_matrix,
    build_augmentations,
)
from microplastics.data.tiling import tile_dicts
from microplastics.structures import crop_masks
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.system import seeded

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


def test_mask_format_bitmask_gives_what_point_rend_takes(tmp_path):
    record = dataset_dict(tmp_path, [[SQUARE]])
    masks = configured("INPUT.MASK_FORMAT", "bitmask", size=80)(record)["instances"].gt_masks
    assert isinstance(masks, CropMasks) and isinstance(masks, BitMasks)
    polygons = configured(size=80)(record)["instances"].gt_masks
    assert isinstance(polygons, PolygonMasks)
    assert masks.tensor.sum() == polygons.area().sum() == 900
    with user_error("config_invalid", "INPUT.MASK_FORMAT"):
        configured("INPUT.MASK_FORMAT", "rle")


def test_the_affine_matrix_of_a_list_of_transforms():
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


@pytest.mark.parametrize("cuts", [False, True])
def test_masks_beyond_the_memory_are_refused_by_name(tmp_path, monkeypatch, cuts):
    monkeypatch.setattr(crop_masks, "_most_pixels", lambda: 1500)
    item = dataset_dict(tmp_path, [rle_of(SQUARE, 80, 100)])  # of 30 * 30 px
    assert len(mapper(recompute_boxes=cuts)(item)["instances"]) == 1
    item["annotations"] *= 2
    with user_error("annotations_invalid", "image.png", "half of the memory"):
        mapper(recompute_boxes=cuts)(item)
    monkeypatch.setattr(crop_masks, "_most_pixels", lambda: 800)
    with user_error("annotations_invalid", "image.png"):
        tile_dicts([item], 40, 0, 0.1)


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


def photograph(tmp_path, seed, size=(200, 160)):
    """White polygons on black, with their annotations."""
    rng = np.random.default_rng(seed)
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    annotations = []
    for class_number in range(4):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        points = rng.uniform(25, 135, 2) + 22 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        polygon = points.ravel().tolist()
        image[mask_util.decode(rle_of(polygon, height, width)) > 0] = 255
        box = {"bbox": [*points.min(axis=0), *points.max(axis=0)], "bbox_mode": BoxMode.XYXY_ABS}
        annotations.append({**box, "category_id": class_number, "segmentation": [polygon]})
    path = tmp_path / f"{seed}.png"
    Image.fromarray(image).save(path)
    common = {"file_name": str(path), "width": width, "height": height, "image_id": seed}
    return {**common, "annotations": annotations}


def configured(*opts, size=160):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (size,)
    cfg.merge_from_list(list(opts))
    return MicroplasticsDatasetMapper(cfg, is_train=True)


def full_masks(instances):
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
        return masks.tensor.numpy()
    return masks.to_bitmasks().numpy()


def on(*nodes):
    return [x for node in nodes for x in (f"INPUT.AUG.{node}.PROB", 1.0)]


@pytest.mark.parametrize(
    "opts",
    [
        on("CROP") + ["INPUT.AUG.CROP.SIZE", (80, 90)],
        on("RIGHT_ANGLES"),
        on("ROTATION"),
        on("ROTATION") + ["INPUT.AUG.ROTATION.FRAME", "inside"],
        on("ROTATION") + ["INPUT.AUG.ROTATION.FRAME", "expand"],
        on("SCALE"),
        on("COPY_PASTE") + ["INPUT.AUG.COPY_PASTE.OCCLUSION", "amodal"],
        on("COPY_PASTE"),
        on("MOSAIC"),
        on("CROP", "ROTATION", "RIGHT_ANGLES", "SCALE", "MOSAIC", "COPY_PASTE"),
        ["INPUT.RANDOM_FLIP", "both"],
        ["INPUT.FAST_RESIZE", True],
    ],
    ids=lambda opts: " ".join(str(o) for o in opts).replace("INPUT.AUG.", ""),
)
def test_masks_lie_on_what_is_seen_and_boxes_around_masks(tmp_path, opts):
    records = [photograph(tmp_path, seed) for seed in range(3)]
    map_it = configured(*opts, "INPUT.MIN_VISIBLE_SHARE", 0.0, "INPUT.MIN_MASK_PIXELS", 1)
    map_it.partners = records
    for seed in range(6):
        with seeded(seed):
            mapped = map_it(records[seed % 3])
        with seeded(seed):
            again = map_it(records[seed % 3])
        assert torch.equal(mapped["image"], again["image"])
        instances = mapped["instances"]
        assert torch.equal(instances.gt_boxes.tensor, again["instances"].gt_boxes.tensor)
        masks = full_masks(instances)
        assert len(masks) and masks.any(axis=(1, 2)).all()
        seen, union = mapped["image"][0].numpy() >= 128, masks.any(axis=0)
        assert (seen & union).sum() / (seen | union).sum() >= 0.95
        tight = CropMasks.from_bitmasks(masks).get_bounding_boxes().tensor
        # The boxes of polygons are those of the corners, not of the pixels.
        slack = 1.5 if isinstance(instances.gt_masks, PolygonMasks) else 0
        assert (instances.gt_boxes.tensor - tight).abs().max() <= slack


def test_what_is_cut_below_the_visible_fraction_is_dropped_and_counted(tmp_path):
    # 30 px wide at x = 20: from x = 41 on 9 / 30 are left.
    far = [90.0, 70.0, 99.0, 70.0, 99.0, 79.0, 90.0, 79.0]
    for segmentation in ([SQUARE], rle_of(SQUARE, 80, 100)):
        record = dataset_dict(tmp_path, [segmentation, [far], [[1.0, 1, 9, 1, 9, 9, 1, 9]]])
        record["annotations"][1]["segmentation"] = [far]
        record["annotations"][2]["segmentation"] = [[1.0, 1, 9, 1, 9, 9, 1, 9]]
        for least, kept in ((0.25, 2), (0.35, 1)):
            cut = mapper(
                T.CropTransform(41, 0, 59, 80), recompute_boxes=True, min_visible_fraction=least
            )
            mapped = cut(record)
            assert len(mapped["instances"]) == kept
            assert mapped["dropped_instances"] == 2 - kept


@pytest.mark.parametrize("as_rle", [False, True])
def test_what_becomes_smaller_than_the_least_pixels_is_dropped_and_counted(tmp_path, as_rle):
    small = [10.0, 10, 16, 10, 16, 16, 10, 16]
    parts = [SQUARE, small]
    record = dataset_dict(tmp_path, [rle_of(p, 80, 100) if as_rle else [p] for p in parts])
    mapped = mapper(T.Resize((20, 25)), min_mask_pixels=4)(record)
    assert (len(mapped["instances"]), mapped["dropped_instances"]) == (1, 1)
    mapped = mapper(T.Resize((20, 25)))(record)
    assert (len(mapped["instances"]), mapped["dropped_instances"]) == (2, 0)


def test_the_limits_hold_only_where_something_is_augmented():
    assert configured().min_mask_pixels == 1 and configured().min_visible_fraction == 0
    augmented = configured(*on("NOISE"))
    assert (augmented.min_mask_pixels, augmented.min_visible_fraction) == (4, 0.1)
    cfg = get_cfg()
    cfg.merge_from_list(on("CROP", "MOSAIC"))
    validation = MicroplasticsDatasetMapper(cfg, is_train=False)
    assert not validation.recompute_boxes and not validation.mixes


def test_mixing_without_other_images_is_off_with_one_warning(tmp_path, caplog):
    record = photograph(tmp_path, 0)
    map_it = configured(*on("MOSAIC", "COPY_PASTE"))
    for _ in range(2):
        assert len(map_it(record)["instances"]) == 4
    warned = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1 and "partners" in warned[0].getMessage()


def test_blanks_get_particles_pasted_and_lend_none(tmp_path):
    record, blank = photograph(tmp_path, 0), photograph(tmp_path, 1)
    blank["annotations"] = []
    paste = CopyPaste(max_particles=3)
    map_it = mapper(copy_paste=paste)
    map_it.partners = [record]
    assert len(map_it(blank)["instances"]) > 0
    map_it.partners = [blank]
    assert len(map_it(record)["instances"]) == 4
    map_it = mapper(mosaic=Mosaic())
    map_it.partners = [blank]
    mapped = map_it(blank)
    assert len(mapped["instances"]) == 0 and mapped["image"].shape == (3, 160, 200)


def test_annotations_without_masks_are_cut_by_their_boxes(tmp_path):
    record = photograph(tmp_path, 0)
    for annotation in record["annotations"]:
        del annotation["segmentation"]
    map_it = mapper(T.CropTransform(0, 0, 60, 60), recompute_boxes=True, use_instance_mask=False)
    instances = map_it(record)["instances"]
    assert not instances.has("gt_masks")
    assert len(instances) and (instances.gt_boxes.tensor <= 60).all()


def test_a_window_is_read_as_an_image_of_its_own(tmp_path):
    record = photograph(tmp_path, 0)
    window = {**record, "window": (40, 30, 100, 90), "full_size": (200, 160), "annotations": []}
    window.update(width=100, height=90)
    image = mapper()(window)["image"].numpy().transpose(1, 2, 0)
    assert np.array_equal(image, read_image(record["file_name"])[30:120, 40:140])


@pytest.mark.parametrize("augmentation", [T.RandomFlip(1.0), T.NoOpTransform()])
def test_rgb_is_bgr_turned_around(tmp_path, augmentation):
    record = dataset_dict(tmp_path, [[SQUARE]])
    noise = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    cv2.imwrite(record["file_name"], noise)
    images = [
        MicroplasticsDatasetMapper(True, augmentations=[augmentation], image_format=f)(record)
        for f in ("BGR", "RGB")
    ]
    assert torch.equal(images[0]["image"], images[1]["image"].flip(0))
    expected = noise if isinstance(augmentation, T.NoOpTransform) else noise[:, ::-1]
    assert np.array_equal(images[0]["image"].numpy(), expected.transpose(2, 0, 1))


def test_cached_images_are_not_written_to(tmp_path):
    records = [photograph(tmp_path, seed) for seed in range(2)]
    nodes = ("BLUR", "BRIGHTNESS", "CONTRAST", "SATURATION", "HUE", "NOISE", "JPEG", "CROP")
    cached = configured(*on(*nodes, "COPY_PASTE", "ROTATION"), "DATALOADER.CACHE_MB", 8)
    fresh = configured(*on(*nodes, "COPY_PASTE", "ROTATION"))
    cached.partners = fresh.partners = records
    for seed in range(4):
        images = []
        for map_it in (cached, fresh):
            with seeded(seed):
                images.append(map_it(records[0])["image"])
        assert torch.equal(*images)


def test_16_bit_images_reach_training_as_they_reach_prediction(tmp_path):
    record = dataset_dict(tmp_path, [[SQUARE]])
    deep = np.random.default_rng(0).integers(0, 4096, (80, 100), dtype=np.uint16)
    Image.fromarray(deep).save(record["file_name"])
    image = mapper()(record)["image"].numpy().transpose(1, 2, 0)
    assert image.min() == 0 and image.max() == 255
    assert np.array_equal(image, read_image(record["file_name"]))


def test_crop_and_rotation_draw_on_the_same_seed_alike(tmp_path):
    record = photograph(tmp_path, 0)
    map_it = mapper(RandomParticleCrop(60, 60), RandomRotation(), recompute_boxes=True)
    with seeded(5):
        one = map_it(record)
    with seeded(6):
        other = map_it(record)
    assert not torch.equal(one["image"], other["image"])


@pytest.mark.parametrize("side", [40, 57])
def test_a_turn_after_a_crop_brings_nothing_back_that_the_crop_cut_off(tmp_path, side):
    record = dataset_dict(tmp_path, [[SQUARE], [SQUARE]])
    inside = [52.0, 40.0, 64.0, 40.0, 64.0, 52.0, 52.0, 52.0]
    beside = [26.0, 40.0, 38.0, 40.0, 38.0, 52.0, 26.0, 52.0]
    for annotation, polygon in zip(record["annotations"], (inside, beside), strict=True):
        annotation["segmentation"] = [polygon]
    turn = np.array([[1.0, 1.0], [-1.0, 1.0]]) * 0.5**0.5
    matrix = np.column_stack([turn, side / 2 - turn @ (20.0, 20.0)])
    crop = T.CropTransform(38, 26, 40, 40)
    alone = mapper(crop, WarpTransform(matrix, (side, side)), recompute_boxes=True)
    mapped = alone(record)
    assert mapped["dropped_instances"] == 0 and len(mapped["instances"]) == 1
    assert mapped["instances"].gt_masks.area().tolist() == pytest.approx([144], abs=8)


def test_crops_and_counts_leave_alone_what_a_mosaic_does_not_show(tmp_path):
    records = [photograph(tmp_path, seed) for seed in range(3)]
    seen = []

    class Spy(RandomParticleCrop):
        def get_transform(self, image, boxes):
            seen.append(boxes)
            return super().get_transform(image, boxes)

    mixed = mapper(Spy(60, 60), RandomRotation(frame="expand"), mosaic=Mosaic((1.0, 2.0)))
    mixed.partners = records
    for seed in range(20):
        with seeded(seed):
            mapped = mixed(records[0])
        assert len(mapped["instances"]) <= 16 and mapped["dropped_instances"] == 0
    assert all((boxes[:, 2:] > boxes[:, :2]).all() for boxes in seen)


def test_the_cache_holds_the_images_of_windows_too(tmp_path, monkeypatch):
    images = [photograph(tmp_path, seed) for seed in range(4)]
    windows = [
        {**record, "window": (30, 40, 90, 80), "full_size": (200, 160), "width": 90, "height": 80}
        for record in images
    ]
    read, decoded = read_image, []
    monkeypatch.setattr(large_images, "read_image", lambda p, *a: decoded.append(p) or read(p, *a))
    caching, plain = mapper(cache_bytes=10**6), mapper()
    for window in windows * 2:
        assert torch.equal(caching(window)["image"], plain(window)["image"])
    assert len(decoded) == 4 + 8  # two are kept without a cache, and the third pushes them out


def test_partners_are_drawn_by_their_weights(tmp_path):
    records = [photograph(tmp_path, seed) for seed in range(3)]
    mixed = mapper(copy_paste=CopyPaste())
    mixed.partners, mixed.partner_weights = records, np.array([0.0, 3.0, 1.0])
    drawn = []
    pixels = np.zeros((160, 200, 3), "u1")
    mixed._read = Mock(side_effect=lambda record: drawn.append(record["image_id"]) or pixels)
    mixed._read.painted.return_value = []
    with seeded(0):
        for _ in range(200):
            mixed._random_partner()
    assert 0 not in drawn and drawn.count(1) / 200 == pytest.approx(0.75, abs=0.08)


def test_decoded_images_are_kept_up_to_a_limit(tmp_path):
    reader = RecordReader(cache_bytes=20_000)
    for seed, size in enumerate([(80, 60), (80, 60)]):
        record = photograph(tmp_path, seed, size)
        assert np.array_equal(reader(record), reader(record))
        assert np.shares_memory(reader(record), reader(record)) == (seed == 0)


WINDOWS = [(0, 0, 64, 64), (37, 21, 90, 60), (136, 50, 64, 70), (0, 0, 200, 120)]


def read(path, window, full_size=(200, 120), reader=None):
    x, y, width, height = window
    record = {"file_name": path, "window": window, "width": width, "height": height}
    return (reader or RecordReader())({**record, "full_size": full_size})


def pixels(dtype=np.uint8, samples=3):
    shape = (120, 200, samples) if samples > 1 else (120, 200)
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"tile": (32, 48)},
        {"rowsperstrip": 7},
        {"tile": (16, 16), "compression": "zlib"},
        {"rowsperstrip": 50, "compression": "zlib", "byteorder": ">"},
        {"tile": (64, 64), "bigtiff": True},
    ],
)
def test_windows_of_tiffs_are_read_without_the_rest(tmp_path, monkeypatch, samples, options):
    path = str(tmp_path / "a.tif")
    photometric = "rgb" if samples == 3 else "minisblack"
    tifffile.imwrite(path, pixels(samples=samples), photometric=photometric, **options)
    whole = read_image(path)
    monkeypatch.setattr(large_images, "read_image", None)  # nothing is decoded whole
    reader = RecordReader()
    for x, y, w, h in WINDOWS:
        region = read(path, (x, y, w, h), reader=reader)
        assert np.array_equal(region, whole[y : y + h, x : x + w]) and region.dtype == np.uint8


def save_deep(path):
    tifffile.imwrite(path, pixels(np.uint16, 1), tile=(32, 32))


def save_alpha(path):
    tifffile.imwrite(path, pixels(samples=4), photometric="rgb", extrasamples=["unassalpha"])


def save_turned(path):
    tag = (274, "H", 1, 3, True)
    tifffile.imwrite(path, pixels(), photometric="rgb", extratags=[tag])


def save_planar(path):
    data = np.ascontiguousarray(pixels().transpose(2, 0, 1))
    tifffile.imwrite(path, data, photometric="rgb", planarconfig="separate")


def save_inverted(path):
    tifffile.imwrite(path, pixels(samples=1), photometric="miniswhite")


@pytest.mark.parametrize("save", [save_deep, save_alpha, save_turned, save_planar, save_inverted])
def test_other_tiffs_are_read_as_everywhere_else(tmp_path, save):
    path = str(tmp_path / "a.tif")
    save(path)
    whole, reader = read_image(path), RecordReader()
    for x, y, w, h in WINDOWS:
        region = read(path, (x, y, w, h), reader=reader)
        assert np.array_equal(region, whole[y : y + h, x : x + w])


def test_the_images_decoded_last_are_kept(tmp_path, monkeypatch):
    decoded = []

    monkeypatch.setattr(
        large_images, "read_image", lambda p, *a: decoded.append(p) or read_image(p, *a)
    )
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path in paths:
        Image.fromarray(pixels()).save(path)
    reader = RecordReader()
    for index in (0, 1, 0, 1, 2, 1, 0):
        read(paths[index], WINDOWS[0], reader=reader)
    assert [paths.index(path) for path in decoded] == [0, 1, 2, 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_another_size_and_a_missing_file(tmp_path, suffix):
    path = str(tmp_path / f"a.{suffix}")
    Image.fromarray(pixels()).save(path)
    with user_error("image_size", path, "200 x 120 px", "300 x 120"):
        read(path, WINDOWS[0], (300, 120))
    with user_error("file_missing", path):
        read(path + f".{suffix}", WINDOWS[0])


def test_a_cut_off_tiff(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(), photometric="rgb", tile=(32, 32), compression="zlib")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with user_error("image_invalid", path):
        read(str(path), WINDOWS[3])


# In the order in which they are applied.
NODES = (
    *("CROP", "BLUR", "BRIGHTNESS", "CONTRAST", "SATURATION", "HUE", "NOISE", "JPEG"),
    *("RIGHT_ANGLES", "ROTATION", "SCALE"),
)


def config(*opts):
    cfg = get_cfg()
    cfg.INPUT.FAST_RESIZE = False
    cfg.merge_from_list(list(opts))
    return cfg


def names(augmentations):
    return [type(getattr(a, "aug", a)).__name__ for a in augmentations]


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "none"])
def test_with_exact_pixels_it_is_detectron2s_list(flip):
    cfg = config("INPUT.RANDOM_FLIP", flip)
    plain = detection_utils.build_augmentation(cfg, True)
    assert [repr(a) for a in build_augmentations(cfg)] == [repr(a) for a in plain]
    plain = detection_utils.build_augmentation(cfg, False)
    validation = MicroplasticsDatasetMapper.from_config(cfg, False)["augmentations"]
    assert [repr(a) for a in validation] == [repr(a) for a in plain]
    assert names(build_augmentations(get_cfg())) == ["ResizeWithJitter", "RandomFlip"]
    plain = MicroplasticsDatasetMapper(get_cfg())
    assert not plain.recompute_boxes and plain.min_mask_pixels == 1


def test_every_key_switches_its_own_augmentation_on():
    plain = names(build_augmentations(config()))
    for node in NODES:
        cfg = config(f"INPUT.AUG.{node}.PROB", 0.5)
        found = [name for name in names(build_augmentations(cfg)) if name not in plain]
        expected = "ResizeWithJitter" if node == "SCALE" else None
        assert len(found) == 1 and (expected is None or found == [expected])
        built = MicroplasticsDatasetMapper(cfg)
        assert built.min_mask_pixels == 4 and not built.mixes
        assert built.recompute_boxes == (node in ("CROP", "ROTATION"))
    for node in ("COPY_PASTE", "MOSAIC"):
        cfg = config(f"INPUT.AUG.{node}.PROB", 0.5)
        built = MicroplasticsDatasetMapper(cfg)
        assert built.recompute_boxes and built.mixes and names(build_augmentations(cfg)) == plain
    assert MicroplasticsDatasetMapper(config("INPUT.TILE.SIZE", 512)).min_mask_pixels == 4


def test_the_order_is_that_of_a_camera():
    opts = [x for node in NODES for x in (f"INPUT.AUG.{node}.PROB", 0.5)]
    built = build_augmentations(config(*opts, "INPUT.RANDOM_FLIP", "both"))
    assert names(built) == [
        *("RandomParticleCrop", "RandomBlur", "RandomBrightness", "RandomContrast"),
        *("RandomSaturation", "RandomHue", "RandomNoise", "RandomJPEG"),
        *("RandomRotation", "RandomRotation", "ResizeWithJitter", "RandomFlip", "RandomFlip"),
    ]
    assert (built[-2].horizontal, built[-1].vertical) == (True, True)


def test_validation_has_neither_jitter_nor_other_pixels():
    cfg = config("INPUT.AUG.SCALE.PROB", 1.0, "INPUT.FAST_RESIZE", True)
    (validation,) = MicroplasticsDatasetMapper.from_config(cfg, False)["augmentations"]
    assert type(validation) is T.ResizeShortestEdge
    resize = build_augmentations(cfg)[-2]
    assert isinstance(resize, ResizeWithJitter) and resize.fast and resize.prob == 1


def test_copy_paste_takes_all_its_keys():
    node = "INPUT.AUG.COPY_PASTE."
    values = {"MAX_PARTICLES": 3, "MAX_COVER": 0.1, "SCALE": (0.9, 1.0), "ROTATE": False}
    values |= {"EDGE": 0.0, "OCCLUSION": "amodal"}
    cfg = config(*[x for k, v in values.items() for x in (node + k, v)])
    paste = MicroplasticsDatasetMapper.from_config(cfg)["copy_paste"]
    assert {key: getattr(paste, key.lower()) for key in values} == values


@pytest.mark.parametrize(
    "key, value",
    [
        ("AUG.HUE.PROB", 1.5),
        ("AUG.MOSAIC.PROB", -0.1),
        ("AUG.NOISE.PROB", float("nan")),
        ("AUG.BRIGHTNESS.RANGE", (1.2, 0.8)),
        ("AUG.CONTRAST.RANGE", (0.8,)),
        ("AUG.SATURATION.RANGE", (0.0, 1e308)),
        ("AUG.SCALE.RANGE", (0.0, 1.0)),
        ("AUG.SCALE.RANGE", ("a", "b")),
        ("AUG.BLUR.SIGMA", (1.0, float("inf"))),
        ("AUG.JPEG.QUALITY", (0, 90)),
        ("AUG.JPEG.QUALITY", (50.5, 90)),
        ("AUG.CROP.SIZE", (0, 512)),
        ("AUG.CROP.SHIFT", 1.1),
        ("AUG.ROTATION.MAX_ANGLE", 181.0),
        ("AUG.ROTATION.FRAME", "crop"),
        ("AUG.ROTATION.BORDER", "wrap"),
        ("AUG.BLUR.KIND", "motion"),
        ("AUG.COPY_PASTE.OCCLUSION", "none"),
        ("AUG.COPY_PASTE.MAX_PARTICLES", 0),
        ("MIN_VISIBLE_SHARE", 1.0),
        ("MIN_MASK_PIXELS", 0),
        ("TILE.SIZE", -1),
        ("TILE.SIZE", 64),  # the overlap is 64
        ("TILE.EMPTY_SHARE", 2.0),
        ("RANDOM_FLIP", "diagonal"),
        ("MASK_FORMAT", "rle"),
    ],
)
def test_values_that_are_refused(key, value):
    named = "TILE.OVERLAP" if value == 64 else key
    with user_error("config_invalid", f"INPUT.{named} is"):
        MicroplasticsDatasetMapper.from_config(config(f"INPUT.{key}", value))


def test_a_crop_may_be_higher_than_wide():
    MicroplasticsDatasetMapper.from_config(config("INPUT.AUG.CROP.SIZE", (600, 400)))


@pytest.mark.parametrize("cache_bytes", [0, 10**6])
def test_scale_bars_are_painted_over_with_what_lies_on_them(tmp_path, cache_bytes, caplog):
    image = np.full((300, 400, 3), 180, np.uint8)
    drawn = draw_bar(image, plain_style()).image
    cv2.imwrite(str(tmp_path / "bar.png"), drawn)
    record = dataset_dict(tmp_path, [[SQUARE]], (400, 300))
    x, y, w, h = only_bar(find_scale_bars(reader(drawn), 400, 300)).text_box
    on_text = {**record["annotations"][0], "bbox": [x + 2, y + 2, w // 3, h // 2]}
    record |= {"file_name": str(tmp_path / "bar.png")}
    record["annotations"].append(on_text)
    window = {**record, "window": (200, 150, 200, 150), "width": 200, "height": 150}
    window["full_size"] = (400, 300)
    read = RecordReader(cache_bytes, paint_scale_bar=True)
    for _ in range(2):
        assert (read(record) == 180).all() and (read(window) == 180).all()
    assert [u for u, *_ in read.painted(window)] == [u - 200 for u, *_ in read.painted(record)]
    assert np.array_equal(RecordReader()(record), drawn)
    for paint, number in ((True, 1), (False, 2)):
        mapped = mapper(paint_scale_bar=paint)(record)
        assert len(mapped["instances"]) == number
        assert bool((mapped["image"] == 180).all()) == paint
    assert f"1 annotations of {record['file_name']} lie on what looks like a scale" in caplog.text


def test_what_replaces_a_bar_is_found_once_for_all_windows_of_an_image(tmp_path, monkeypatch):
    drawn = draw_bar(np.full((300, 400, 3), 180, np.uint8), plain_style()).image
    cv2.imwrite(str(tmp_path / "bar.png"), drawn)
    fill, filled = cv2.inpaint, []
    monkeypatch.setattr(cv2, "inpaint", lambda *args: (filled.append(1), fill(*args))[1])
    read = RecordReader(paint_scale_bar=True)
    record = {"file_name": str(tmp_path / "bar.png"), "full_size": (400, 300)}
    for window in ((0, 0, 400, 300), (200, 150, 200, 150), (0, 0, 400, 300)):
        record |= {"window": window, "width": window[2], "height": window[3]}
        assert (read(record) == 180).all()
    assert len(filled) == len(read.painted(record)) > 0
