"""Single pictures, panels and their files."""

import io

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import user_error

from microplastics.structures.crop_masks import CropMasks
from microplastics.visualization import draw
from microplastics.visualization.draw import (
    LabelPlacer,
    Panel,
    ParticleVisualizer,
    class_legend,
    crop_path,
    draw_instances,
    mask_paths,
    outline_points,
    picture_names,
    picture_scale,
    resize,
    save_picture,
    show_picture,
    side_by_side,
)

METADATA = Metadata(thing_classes=["Fiber", "Film"], thing_colors=[[213, 94, 0], [0, 114, 178]])
IMAGE = np.random.default_rng(0).integers(90, 160, (60, 80, 3), dtype=np.uint8)
POLYGON = [[10.0, 10.0, 40.0, 10.0, 40.0, 30.0, 10.0, 30.0]]
ANNOTATION = {
    "bbox": [10, 10, 30, 20],
    "bbox_mode": BoxMode.XYWH_ABS,
    "category_id": 1,
    "segmentation": POLYGON,
}


def test_truth_is_drawn_the_same_from_annotations_and_from_mapped_instances():
    mapped = Instances(
        (60, 80), gt_boxes=Boxes([[10, 10, 40, 30]]), gt_masks=PolygonMasks([POLYGON])
    )
    mapped.gt_classes = torch.tensor([1])
    picture = draw_instances(IMAGE, {"annotations": [ANNOTATION]}, METADATA)
    assert picture.shape == (600, 800, 3) and picture.dtype == np.uint8
    assert (draw_instances(IMAGE, mapped, METADATA) == picture).all()
    assert (picture != resize(IMAGE, 10)).any()
    plain = draw_instances(IMAGE, {"annotations": [ANNOTATION]}, METADATA, labels=False)
    assert (plain != picture).any()


def test_predictions_may_carry_full_frame_masks():
    masks = torch.zeros(1, 60, 80, dtype=torch.bool)
    masks[:, 10:30, 10:40] = True
    fields = {"pred_boxes": Boxes([[10, 10, 40, 30]]), "pred_masks": masks}
    found = Instances((60, 80), **fields, scores=torch.ones(1), pred_classes=torch.tensor([0]))
    picture = draw_instances(IMAGE, found, METADATA, scale=2)
    assert picture.shape == (120, 160, 3)
    assert (picture[10:60, 20:80] != resize(IMAGE, 2)[10:60, 20:80]).any()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 1700), st.integers(1, 60), st.sampled_from([0.37, 1.0, 2.0]))
def test_photograph_and_drawing_are_of_the_same_size(height, width, scale):
    image = np.zeros((height, width, 3), np.uint8)
    assert resize(image, scale).shape == draw_instances(image, {}, None, scale).shape


def test_the_legend_lists_every_class_and_what_metadata_does_not_know():
    assert class_legend([1, 1], METADATA) == [
        ("Fiber", 0, [213, 94, 0]),
        ("Film", 2, [0, 114, 178]),
    ]
    names = [(name, count) for name, count, _ in class_legend([0, 2], None)]
    assert names == [("0", 1), ("1", 0), ("2", 1)]
    assert class_legend([], None) == []


def test_panels_stand_side_by_side_below_captions_of_the_same_height():
    pictures = [np.full((50, 200, 3), shade, np.uint8) for shade in (40, 90)]
    legend = [(f"a class of a long name {i}", i, (1, 2, 3)) for i in range(4)]
    page = side_by_side([Panel(pictures[0], "x" * 500), Panel(pictures[1], "Two", legend)])
    top = page.shape[0] - 50
    assert page.shape[1] == 408 and top > 70
    assert (page[top:, :200] == 40).all() and (page[top:, 208:] == 90).all()
    assert (page[:, 200:208] == 255).all()
    assert (page[:top, 208:] == (1, 2, 3)).all(axis=2).any()
    # The shortened title ends inside its panel.
    assert (page[:top, 195:200] == 255).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pictures_are_written_whole_with_full_colour(tmp_path, suffix):
    path = tmp_path / "new" / f"picture{suffix}"
    save_picture(IMAGE, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    read = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
    assert np.abs(read.astype(int) - IMAGE).mean() < (1 if suffix == ".png" else 8)
    if suffix == ".jpg":
        assert Image.open(path).layer[1][1:3] == (1, 1)  # chroma is not subsampled


def test_other_formats_are_refused(tmp_path):
    with user_error("option_invalid", ".jpg"):
        save_picture(IMAGE, tmp_path / "picture.bmp")


def test_names_tell_the_folder_where_they_would_collide():
    paths = ["a/x.jpg", "b/x.jpg", "b/x.png", "c/y.tif", "c/Y.jpg", "x.jpg"]
    assert picture_names(paths) == [
        *("x.jpg", "b_x.jpg", "x_2.jpg", "y.jpg", "c_Y.jpg", "x_3.jpg"),
    ]


@given(st.lists(st.text("abAB_1/.2", min_size=1, max_size=6), max_size=12))
def test_names_never_collide_and_never_leave_the_folder(paths):
    names = picture_names(paths)
    assert len({name.casefold() for name in names}) == len(paths)
    assert all("/" not in name and name.endswith(".jpg") for name in names)


def test_showing_needs_a_desktop(monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.get_backend", lambda: "agg")
    with user_error("device_unavailable", "--show"):
        show_picture(IMAGE, "title")


def test_showing_opens_a_window(monkeypatch):
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "get_backend", lambda: "tkagg")
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf().axes[0].images[0].get_array()))
    with plt.rc_context():
        show_picture(IMAGE, "title")
    assert (shown[0] == IMAGE).all() and not plt.get_fignums()


def test_fonts_come_with_matplotlib():
    assert draw._font(12).getlength("Fiber µm 纤") > 0


COLORS = [[213, 94, 0], [0, 114, 178]]
METADATA_VISUALIZER = Metadata(thing_classes=["Fiber", "Film"], thing_colors=COLORS)
GREY = np.full((40, 60, 3), 128, np.uint8)


def draw_visualizer(
    masks, boxes=((0, 0, 1, 1),), classes=(0,), image=GREY, scale=8, labels=False, **options
):
    visualizer = ParticleVisualizer(image, METADATA_VISUALIZER, scale, labels)
    return visualizer.draw_particles(boxes, classes, masks, **options).get_image()


def bitmap(*rows_columns):
    mask = np.zeros(GREY.shape[:2], bool)
    for y0, y1, x0, x1 in rows_columns:
        mask[y0:y1, x0:x1] = True
    return mask


def touched(picture):
    """Boolean (H, W): pixels that are no longer grey."""
    return (picture != 128).any(axis=2)


@pytest.mark.parametrize(
    "size, scale",
    [((256, 256), 4), ((512, 512), 2), ((600, 800), 1), ((799, 3), 2), ((5000, 10000), 0.4)],
)
def test_small_images_are_enlarged_by_whole_factors_and_large_ones_shrunk(size, scale):
    assert picture_scale(*size) == scale


@pytest.mark.parametrize("size", [(40, 60), (1, 1), (7, 900), (300, 1300)])
@pytest.mark.parametrize("scale", [None, 1.0, 3.0, 0.31])
def test_the_photograph_stays_as_it_is_where_nothing_is_drawn(size, scale):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    scale = picture_scale(*size) if scale is None else scale
    picture = ParticleVisualizer(image, METADATA_VISUALIZER, scale).get_output().get_image()
    assert picture.shape[:2] == tuple(max(1, round(side * scale)) for side in size)
    if scale >= 1:
        assert (picture == image.repeat(int(scale), 0).repeat(int(scale), 1)).all()


def test_outlines_have_the_colour_of_the_class_and_run_between_pixels():
    picture = draw_visualizer(bitmap((10, 30, 10, 40))[None])
    for y, x in ((20 * 8, 10 * 8), (20 * 8, 40 * 8), (10 * 8, 25 * 8), (30 * 8, 25 * 8)):
        around = picture[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).astype(int)
        assert np.abs(around - COLORS[0]).max(axis=1).min() <= 10
    # Inside a faint fill: still mostly the photograph.
    inside = picture[20 * 8, 25 * 8].astype(int)
    assert np.abs(inside - (0.85 * 128 + 0.15 * np.array(COLORS[0]))).max() <= 2
    assert not touched(picture)[: 9 * 8].any()


@pytest.mark.parametrize("side", [1, 2, 3])
def test_no_mask_is_too_small_to_be_seen(side):
    mask = bitmap((20, 20 + side, 30, 30 + side))
    for scale in (1, 8):
        changed = touched(draw_visualizer(mask[None], scale=scale))
        assert changed.sum() > 60
        assert changed[int(20.5 * scale), int(30.5 * scale)]


def test_a_particle_below_a_pixel_is_ringed():
    polygon = [[30.2, 20.2, 30.4, 20.2, 30.4, 20.4]]
    changed = touched(draw_visualizer([polygon]))
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert 14 <= np.ptp(rows) <= 20 and 14 <= np.ptp(columns) <= 20


def test_holes_are_not_filled():
    mask = bitmap((5, 35, 10, 50))
    mask[15:25, 20:40] = False
    picture = draw_visualizer(mask[None])
    assert not touched(picture)[17 * 8 : 23 * 8, 22 * 8 : 38 * 8].any()
    assert touched(picture)[10 * 8, 30 * 8]


def test_overlapping_parts_of_a_polygon_are_filled_whichever_way_they_turn():
    one = [10, 10, 40, 10, 40, 30, 10, 30]
    back = [20, 15, 20, 25, 30, 25, 30, 15]
    picture = draw_visualizer([[one, back]])
    assert touched(picture)[20 * 8, 25 * 8]


def test_every_kind_of_mask_gives_the_same_picture():
    mask = bitmap((5, 15, 10, 30), (12, 20, 25, 28))
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    expected = draw_visualizer(CropMasks.from_bitmasks(mask[None]))
    as_tensor = torch.from_numpy(mask[None])
    for masks in ([rle], mask[None], as_tensor, BitMasks(as_tensor)):
        assert (draw_visualizer(masks) == expected).all()
    polygons = [[[10, 5, 30, 5, 30, 15, 10, 15]]]
    assert (draw_visualizer(polygons) == draw_visualizer(PolygonMasks(polygons))).all()


def test_full_frames_are_not_made(monkeypatch):
    def refuse(*_):
        raise AssertionError("full frame")

    monkeypatch.setattr(CropMasks, "to_bitmasks", refuse)
    monkeypatch.setattr("detectron2.utils.visualizer.GenericMask.__init__", refuse)
    size = (900, 1000)
    masks = CropMasks([np.ones((9, 9), bool)] * 3, [(0, 0), (500, 400), (991, 891)], size)
    predictions = Instances(size, pred_boxes=masks.get_bounding_boxes(), pred_masks=masks)
    predictions.pred_classes, predictions.scores = torch.tensor([0, 1, 0]), torch.ones(3)
    image = np.full((*size, 3), 128, np.uint8)
    picture = ParticleVisualizer(image, METADATA_VISUALIZER).draw_instance_predictions(predictions)
    assert all(touched(picture.get_image())[y, x] for x, y in ((4, 9), (500, 404), (991, 895)))


def test_the_smallest_particle_lies_on_top():
    large, small = bitmap((0, 40, 0, 60)), bitmap((18, 22, 28, 32))
    boxes = ((0, 0, 60, 40), (28, 18, 32, 22))
    one = draw_visualizer(np.stack([large, small]), boxes, (0, 1))
    other = draw_visualizer(np.stack([small, large]), boxes[::-1], (1, 0))
    assert (one == other).all()


def test_without_masks_boxes_are_drawn_and_an_empty_mask_gives_a_dashed_box():
    box = ((10, 10, 50, 30),)
    solid = touched(draw_visualizer(None, box))
    dashed = draw_visualizer(CropMasks.from_bitmasks(bitmap()[None]), box)
    assert (
        solid[10 * 8, 10 * 8 : 50 * 8].all() and not solid[12 * 8 : 28 * 8, 12 * 8 : 48 * 8].any()
    )

    def coloured(picture):
        # The middle of the line, without its white rim.
        row = picture[10 * 8, 12 * 8 : 48 * 8].astype(int)
        return (np.abs(row - COLORS[0]).max(axis=1) < 60).mean()

    assert coloured(draw_visualizer(None, box)) == 1
    assert 0.3 < coloured(dashed) < 0.9


def test_labels_name_class_and_score(monkeypatch):
    texts = []
    monkeypatch.setattr(
        ParticleVisualizer, "draw_text", lambda _, text, *a, **k: texts.append(text)
    )
    draw_visualizer(
        np.stack([bitmap((2, 9, 2, 9))] * 2),
        ((2, 2, 9, 9),) * 2,
        (0, 1),
        scores=(0.934, 1),
        labels=True,
    )
    assert sorted(texts) == ["Fiber 93%", "Film 100%"]
    texts.clear()
    annotation = {
        "bbox": [2, 2, 7, 7],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": 1,
    }
    single = Metadata(thing_classes=["Bead"])
    for metadata in (METADATA_VISUALIZER, single):
        ParticleVisualizer(GREY, metadata).draw_dataset_dict({"annotations": [annotation]})
    assert texts == ["Fiber crowd", "crowd"]


def test_an_image_without_particles_is_no_trouble():
    assert not touched(draw_visualizer([], np.zeros((0, 4)), ())).any()
    nothing = Instances((40, 60), pred_boxes=Boxes(torch.zeros(0, 4)))
    nothing.pred_classes, nothing.scores = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    visualizer = ParticleVisualizer(GREY, METADATA_VISUALIZER)
    assert not touched(visualizer.draw_instance_predictions(nothing).get_image()).any()
    assert not touched(visualizer.draw_dataset_dict({}).get_image()).any()


def test_paths_of_masks_without_a_pixel_are_none():
    assert crop_path(np.zeros((0, 0), bool), (0, 0)) is None
    assert mask_paths([None, []], (4, 4)) == [None, None]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_labels_stay_inside_the_image_and_off_each_other(data):
    width, height = data.draw(st.integers(60, 300)), data.draw(st.integers(60, 300))
    number = st.floats(-20, 320, allow_nan=False)
    boxes = data.draw(st.lists(st.tuples(number, number), min_size=1, max_size=6))
    outlines = [np.array([(x, y), (x + 5, y), (x + 5, y + 9)]) for x, y in boxes]
    placer = LabelPlacer((height, width))
    for outline in outlines:
        placer.cover(outline)
    for outline in outlines:
        x, y = placer.place(outline, (8, 30), 2, crowded=True)
        assert 0 <= x <= width - 30 and 0 <= y <= height - 8


def test_two_labels_of_neighbours_do_not_cover_each_other():
    outlines = [np.array([(50.0, 50.0), (52, 52)]), np.array([(54.0, 50.0), (56, 52)])]
    placer = LabelPlacer((200, 200))
    (x0, y0), (x1, y1) = (placer.place(outline, (10, 40), 2) for outline in outlines)
    assert abs(x0 - x1) >= 40 or abs(y0 - y1) >= 10
    small = LabelPlacer((12, 42))
    assert small.place(outlines[0], (10, 40), 2) is not None
    assert small.place(outlines[1], (10, 40), 2) is None
    assert small.place(outlines[1], (10, 40), 2, crowded=True) is not None


def test_outline_points_are_evenly_spaced():
    square = mask_paths([[[0, 0, 12, 0, 12, 12, 0, 12]]], (20, 20))[0]
    steps = np.hypot(*np.diff(outline_points(square, 49), axis=0).T)
    assert steps == pytest.approx(np.ones(48))


@pytest.mark.parametrize(
    ("um_per_px", "width", "text", "length"),
    [(2.0, 50, "20 µm", 10), (1.2, 20_000, "5 mm", 5000 / 1.2), (0.01, 100, "0.2 µm", 20)],
)
def test_a_scale_bar_is_a_round_number(um_per_px, width, text, length):
    assert draw.scale_bar(um_per_px, width) == (text, pytest.approx(length))
