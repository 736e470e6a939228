"""Single pictures, panels and their files."""

import io

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from microplastics.errors import UserError
from microplastics.report import figures
from microplastics.report.figures import (
    Panel,
    class_legend,
    draw_instances,
    draw_photograph,
    draw_predictions,
    picture_names,
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
    assert (draw_instances(IMAGE, [ANNOTATION], METADATA) == picture).all()
    assert (draw_instances(IMAGE, mapped, METADATA) == picture).all()
    assert (picture != draw_photograph(IMAGE)).any()
    assert (draw_instances(IMAGE, [ANNOTATION], METADATA, labels=False) != picture).any()


def test_predictions_may_carry_full_frame_masks():
    masks = torch.zeros(1, 60, 80, dtype=torch.bool)
    masks[:, 10:30, 10:40] = True
    fields = {"pred_boxes": Boxes([[10, 10, 40, 30]]), "pred_masks": masks}
    found = Instances((60, 80), **fields, scores=torch.ones(1), pred_classes=torch.tensor([0]))
    picture = draw_predictions(IMAGE, found, METADATA, scale=2)
    assert picture.shape == (120, 160, 3)
    assert (picture[10:60, 20:80] != draw_photograph(IMAGE, 2)[10:60, 20:80]).any()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 1700), st.integers(1, 60), st.sampled_from([None, 0.37, 1.0, 2.0]))
def test_photograph_and_drawing_are_of_the_same_size(height, width, scale):
    image = np.zeros((height, width, 3), np.uint8)
    assert draw_photograph(image, scale).shape == draw_instances(image, [], None, scale).shape


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
    page = side_by_side(
        [Panel(pictures[0], "One", note="x" * 500), Panel(pictures[1], "Two", legend)]
    )
    top = page.shape[0] - 50
    assert page.shape[1] == 408 and top > 70
    assert (page[top:, :200] == 40).all() and (page[top:, 208:] == 90).all()
    assert (page[:, 200:208] == 255).all()
    assert (page[:top, 208:] == (1, 2, 3)).all(axis=2).any()
    # The shortened note ends inside its panel.
    assert (page[:top, 195:200] == 255).all()


def test_no_panel_is_a_bug():
    with pytest.raises(ValueError, match="no panel"):
        side_by_side([])


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
    with pytest.raises(UserError, match="written as .jpg or .png, not as"):
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
    with pytest.raises(UserError, match="--show needs a desktop"):
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
    assert figures._font(12).getlength("Fiber µm 纤") > 0
