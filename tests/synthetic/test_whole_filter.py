import itertools
import json

import cv2
import numpy as np
import pytest
import tifffile
from pycocotools import mask as mask_util
from shapely.geometry import Polygon
from support import user_error

from microplastics.data.coco import check_instances
from microplastics.synthetic import render_mosaic, whole_filter
from microplastics.synthetic.particles import FIBER, FILM, FRAGMENT
from microplastics.synthetic.whole_filter import draw_membrane

SMALL = {"size": 1300, "um_per_px": 2.5, "seed": 6, "particles": 50, "filter_name": "cellulose"}


SIDE = 1700


@pytest.fixture(scope="module")
def lossless(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "filter.tif"
    return path, render_mosaic(path, **SMALL, jpeg_quality=None, workers=1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The same filter without and with 120 particles, and their annotations."""
    images = []
    for number in (0, 120):
        path = tmp_path_factory.mktemp("pictures") / "filter.tif"
        options = {"um_per_px": 2.0, "seed": 4, "filter_name": "polycarbonate"}
        json_file = render_mosaic(path, SIDE, particles=number, **options, jpeg_quality=None)
        images.append(tifffile.imread(path).astype(np.int16))
    return *images, json.loads(json_file.read_text())["annotations"]


def outline_of(annotation):
    rings = annotation["segmentation"]
    return Polygon(np.reshape(rings[0], (-1, 2)) if isinstance(rings, list) else [])


def masks_of(annotations, size):
    for annotation in annotations:
        rle = annotation["segmentation"]
        if isinstance(rle, list):
            (rle,) = mask_util.frPyObjects(rle, size, size)
        yield mask_util.decode(rle)


def test_the_file_states_its_scale_and_is_tiled(lossless):
    with tifffile.TiffFile(lossless[0]) as tiff:
        (page,) = tiff.pages
        assert page.shape == (1300, 1300, 3)
        assert (page.tilewidth, page.tilelength) == (512, 512)
        numerator, denominator = page.tags["XResolution"].value
        assert denominator / numerator * 1e4 == pytest.approx(2.5)
        assert page.tags["ResolutionUnit"].value == 3


def test_the_annotations_are_clean(lossless):
    report = check_instances(str(lossless[1]), str(lossless[0].parent))
    assert not report.findings.warnings and report.classes == ["Fiber", "Fragment", "Film"]
    coco = json.loads(lossless[1].read_text())
    (image,) = coco["images"]
    assert (image["file_name"], image["um_per_px"]) == ("filter.tif", 2.5)
    assert image["filter"] == "cellulose" and image["membrane"]["radius"] < 650
    assert len(report.annotations) == coco["info"]["particles_wanted"] == 50


def test_jpeg_and_pyramid_show_the_same(tmp_path):
    path = tmp_path / "filter.tiff"
    render_mosaic(path, 2100, seed=6, particles=0, preset="darkfield")
    with tifffile.TiffFile(path) as tiff:
        image, small = (level.asarray() for level in tiff.series[0].levels)
        assert tiff.pages[0].compression == tifffile.COMPRESSION.JPEG
    assert small.shape == (525, 525, 3)
    shrunk = cv2.resize(image, (525, 525), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - shrunk).mean() < 1.5
    assert np.array_equal(cv2.imread(str(path))[..., ::-1], image)


def test_several_processes_give_the_same_bytes(tmp_path, lossless):
    path = tmp_path / "filter.tif"
    render_mosaic(path, **SMALL, jpeg_quality=None, workers=2)
    assert path.read_bytes() == lossless[0].read_bytes()
    assert path.with_suffix(".json").read_bytes() == lossless[1].read_bytes()


def test_a_finished_filter_is_kept_and_never_overwritten_by_another(lossless, monkeypatch):
    monkeypatch.setattr(whole_filter, "_empty_filter", None)
    before = lossless[0].stat().st_mtime_ns
    assert render_mosaic(lossless[0], **SMALL, jpeg_quality=None) == lossless[1]
    assert lossless[0].stat().st_mtime_ns == before
    with user_error("output_exists", "filter.tif"):
        render_mosaic(lossless[0], **{**SMALL, "seed": 7}, jpeg_quality=None)


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"info": 3}', '{"info": {"a": []}}', "{", "[" * 100_000]
)
def test_foreign_files_are_not_overwritten(tmp_path, content):
    (tmp_path / "filter.json").write_text(content)
    with user_error("output_exists", "filter.json"):
        render_mosaic(tmp_path / "filter.tif", **SMALL)
    (tmp_path / "filter.json").rename(tmp_path / "filter.tif")
    with user_error("output_exists", "filter.tif"):
        render_mosaic(tmp_path / "filter.tif", **SMALL)
    assert (tmp_path / "filter.tif").read_text() == content


def test_a_stopped_run_leaves_nothing_and_a_lost_image_is_rendered_again(
    tmp_path, monkeypatch, lossless
):
    path = tmp_path / "filter.tif"

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(whole_filter, "write_json", stopped)
        with pytest.raises(KeyboardInterrupt):
            render_mosaic(path, **SMALL, jpeg_quality=None, workers=1)
    assert not any(tmp_path.iterdir())
    (tmp_path / "filter.json").write_bytes(lossless[1].read_bytes())
    render_mosaic(path, **SMALL, jpeg_quality=None, workers=1)
    assert path.read_bytes() == lossless[0].read_bytes()


@pytest.mark.parametrize(
    "change, code, name",
    [
        ({"output": "filter.png"}, "option_invalid", "filter.png"),
        ({"output": "file/filter.tif", "particles": 0}, "not_writable", "filter.tif"),
        ({"workers": 0}, "option_invalid", "--workers"),
        ({"size": 12}, "option_invalid", "--size is 12"),
        ({"size": 10_001}, "option_invalid", "10000 px"),
        ({"um_per_px": float("nan")}, "option_invalid", "--um-per-px"),
        ({"seed": -1}, "option_invalid", "--seed"),
        ({"particles": -1}, "option_invalid", "--particles"),
        ({"jpeg_quality": 101}, "option_invalid", "--jpeg-quality"),
        ({"jpeg_quality": 0}, "option_invalid", "--jpeg-quality"),
        ({"preset": "beads"}, "option_invalid", "beads"),
        ({"preset": "dish"}, "option_invalid", "dish"),
        ({"preset": "gridded"}, "option_invalid", "gridded"),
        ({"preset": "mud"}, "option_invalid", "mud"),
        ({"filter_name": "nylon_mesh"}, "option_invalid", "nylon_mesh"),
        ({"preset": "darkfield"}, "option_invalid", "cellulose"),
    ],
)
def test_nonsense_is_refused(tmp_path, change, code, name):
    (tmp_path / "file").write_text("")
    arguments = {**SMALL, **change, "output": tmp_path / change.get("output", "filter.tif")}
    with user_error(code, name):
        render_mosaic(**arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_particles_cross_touch_and_reach_far(pictures):
    annotations = pictures[2]
    assert len(annotations) == 120
    order = [a["category_id"] for a in annotations]
    assert order == sorted(order, key=[FILM, FRAGMENT, FIBER].index) and set(order) == {1, 2, 3}
    assert max(a["truth"]["length_um"] / 2 for a in annotations) == pytest.approx(0.3 * SIDE)
    crossing = touching = 0
    shapes = [(a["category_id"] == FIBER, outline_of(a)) for a in annotations]
    for (one_fiber, one), (other_fiber, other) in itertools.combinations(shapes, 2):
        crossing += one_fiber and other_fiber and one.intersects(other)
        touching += not one_fiber and not other_fiber and one.distance(other) < 1
    assert crossing > 6 and touching > 3


def test_particles_lie_inside_the_funnel(pictures):
    membrane = draw_membrane(4, SIDE)
    assert membrane.deposit_radius < membrane.radius < SIDE / 2
    for mask in masks_of(pictures[2], SIDE):
        y, x = np.nonzero(mask)
        far = np.hypot(x + 0.5 - membrane.center[0], y + 0.5 - membrane.center[1]).max()
        assert far < membrane.deposit_radius - 4


def test_what_is_annotated_is_what_is_drawn(pictures):
    empty, picture, annotations = pictures
    changed = np.abs(picture - empty).max(2)
    covered = np.zeros((SIDE, SIDE), np.uint8)
    for mask in masks_of(annotations, SIDE):
        covered |= mask
        inside = cv2.erode(mask, np.ones((3, 3), np.uint8)) > 0
        assert (changed[inside] > 8).mean() > 0.8
    far = cv2.dilate(covered, np.ones((29, 29), np.uint8)) == 0
    assert far.mean() > 0.5 and not changed[far].any()


def test_around_the_membrane_it_is_dark(pictures):
    membrane = draw_membrane(4, SIDE)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    r = np.hypot(x - membrane.center[0], y - membrane.center[1])
    inside, outside = (
        pictures[1][part] for part in (r < 0.98 * membrane.radius, r > 1.02 * membrane.radius)
    )
    assert np.median(inside) > 120 and np.percentile(outside, 99) < 60


# Seed 9 draws stains.
@pytest.mark.parametrize(
    "name, seed", [("glass_fiber", 9), ("polycarbonate", 3), ("dark_polycarbonate", 3)]
)
def test_no_border_of_blocks_or_strips_is_seen(name, seed, tmp_path):
    path = tmp_path / "filter.tif"
    render_mosaic(path, 2100, seed=seed, particles=0, filter_name=name, jpeg_quality=None)
    gray = cv2.cvtColor(tifffile.imread(path), cv2.COLOR_RGB2GRAY).astype(float)
    for lines in (gray[500:1600, 300:1800], gray[300:1800, 500:1600].T):
        steps, contrast = np.abs(np.diff(lines, axis=1)).mean(0), lines.std(0)
        around = np.median(np.lib.stride_tricks.sliding_window_view(steps, 31), axis=1)
        # Entry c of ``off`` is the step onto column 316 + c of the picture.
        off = steps[15:-15] - around
        spread = 1.48 * np.median(np.abs(off))
        borders = (512, 768, 896, 960, 1024, 1280, 1536)
        assert all(abs(off[border - 316]) < 4.5 * spread for border in borders)
        band = contrast[896 - 300 : 960 - 300].mean()
        assert band == pytest.approx(contrast.mean(), rel=0.2)


def test_fields_of_the_microscope_differ_faintly():
    light = whole_filter._light(5, 2048)
    whole = light(slice(0, 2048))[..., 1]
    assert 1e-3 < np.abs(np.diff(whole, axis=1)).max() / whole.mean() < 0.02
    assert np.allclose(light(slice(700, 800))[8:-8, :, 1], whole[708:792], atol=1e-6)
