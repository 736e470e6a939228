import itertools
import json

import cv2
import numpy as np
import pytest
import tifffile
from pycocotools import mask as mask_util

from microplastics.data.coco import check_instances
from microplastics.synthetic import render_mosaic, whole_filter
from microplastics.synthetic.particles import FIBER, FILM, FRAGMENT
from microplastics.synthetic.whole_filter import (
    MosaicSettings,
    _Light,
    ground_of,
    meets,
    plan_particles,
    render_window,
)
from microplastics.utils.errors import UserError

SMALL = {"size": 1100, "um_per_px": 2.5, "seed": 6, "particles": 40, "filter_name": "cellulose"}


@pytest.fixture(scope="module")
def lossless(tmp_path_factory):
    path = tmp_path_factory.mktemp("mosaic") / "filter.tif"
    return path, render_mosaic(path, **SMALL, jpeg_quality=None, workers=1, progress=False)


def test_the_picture_is_that_of_its_pieces(lossless):
    settings = MosaicSettings(1100, 2.5, 6, 40, "default", "cellulose", None)
    laid, annotations = plan_particles(settings, progress=False)
    expected = render_window(settings, 0, 0, 1536, laid)
    image = tifffile.imread(lossless[0])
    assert image.shape == (1100, 1100, 3)
    difference = np.abs(image[..., ::-1].astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() < 1e-3
    written = json.loads(lossless[1].read_text())["annotations"]
    assert [{**a, "id": i + 1, "image_id": 1} for i, a in enumerate(annotations)] == written


def test_the_file_says_its_scale_and_is_tiled(lossless):
    with tifffile.TiffFile(lossless[0]) as tiff:
        (page,) = tiff.pages
        assert (page.tilewidth, page.tilelength) == (512, 512) and not tiff.is_bigtiff
        numerator, denominator = page.tags["XResolution"].value
        assert denominator / numerator * 1e4 == pytest.approx(2.5)
        assert page.tags["ResolutionUnit"].value == 3


def test_the_annotations_are_clean(lossless):
    report = check_instances(str(lossless[1]), str(lossless[0].parent))
    assert not report.warnings and report.classes == ["Fiber", "Fragment", "Film"]
    coco = json.loads(lossless[1].read_text())
    (image,) = coco["images"]
    assert (image["file_name"], image["um_per_px"]) == ("filter.tif", 2.5)
    assert image["filter"] == "cellulose" and image["membrane"]["radius"] < 550
    assert report.num_annotations == coco["info"]["particles_wanted"] == 40


def test_jpeg_and_pyramid_show_the_same(tmp_path):
    path = tmp_path / "filter.tiff"
    render_mosaic(path, 2100, seed=6, particles=0, preset="darkfield", progress=False)
    with tifffile.TiffFile(path) as tiff:
        image, small = (level.asarray() for level in tiff.series[0].levels)
        assert tiff.pages[0].compression == tifffile.COMPRESSION.JPEG
    assert small.shape == (525, 525, 3)
    shrunk = cv2.resize(image, (525, 525), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - shrunk).mean() < 1.5
    assert np.array_equal(cv2.imread(str(path))[..., ::-1], image)


def test_several_processes_give_the_same_bytes(tmp_path, lossless):
    path = tmp_path / "filter.tif"
    render_mosaic(path, **SMALL, jpeg_quality=None, workers=2, progress=False)
    assert path.read_bytes() == lossless[0].read_bytes()
    assert path.with_suffix(".json").read_bytes() == lossless[1].read_bytes()


def test_what_is_there_is_left_alone(lossless, monkeypatch):
    monkeypatch.setattr(whole_filter, "plan_particles", None)
    before = lossless[0].stat().st_mtime_ns
    assert render_mosaic(lossless[0], **SMALL, jpeg_quality=None) == lossless[1]
    assert lossless[0].stat().st_mtime_ns == before
    with pytest.raises(UserError, match="filter.tif is there and is not what would be rendered"):
        render_mosaic(lossless[0], **{**SMALL, "seed": 7}, jpeg_quality=None)


@pytest.mark.parametrize("content", ["{}", "[]", '{"info": 3}', "{", "[" * 100_000])
def test_foreign_files_are_not_overwritten(tmp_path, content):
    (tmp_path / "filter.json").write_text(content)
    with pytest.raises(UserError, match="filter.json is there and is not what"):
        render_mosaic(tmp_path / "filter.tif", **SMALL)
    (tmp_path / "filter.json").rename(tmp_path / "filter.tif")
    with pytest.raises(UserError, match="filter.tif is there and is not what"):
        render_mosaic(tmp_path / "filter.tif", **SMALL)
    assert (tmp_path / "filter.tif").read_text() == content


def test_a_stopped_run_leaves_nothing_and_a_lost_image_is_rendered_again(
    tmp_path, monkeypatch, lossless
):
    path, render, calls = tmp_path / "filter.tif", whole_filter._render, []

    def stopped(task):
        calls.append(task)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return render(task)

    with monkeypatch.context() as patch:
        patch.setattr(whole_filter, "_render", stopped)
        with pytest.raises(KeyboardInterrupt):
            render_mosaic(path, **SMALL, jpeg_quality=None, workers=1, progress=False)
    assert not any(tmp_path.iterdir())
    (tmp_path / "filter.json").write_bytes(lossless[1].read_bytes())
    render_mosaic(path, **SMALL, jpeg_quality=None, workers=1, progress=False)
    assert path.read_bytes() == lossless[0].read_bytes()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"output": "filter.png"}, "--output .*filter.png is no TIFF"),
        ({"size": 12}, "--size is 12: give a side"),
        ({"workers": 0}, "--workers is 0"),
        ({"output": "file/filter.tif", "particles": 0}, "Cannot write .*filter.tif"),
    ],
)
def test_nonsense_is_refused(tmp_path, change, words):
    (tmp_path / "file").write_text("")
    output = tmp_path / change.pop("output", "filter.tif")
    with pytest.raises(UserError, match=words):
        render_mosaic(output, **{**SMALL, **change}, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


SETTINGS = MosaicSettings(3000, 2.0, 4, 220, "default", "polycarbonate", None)


@pytest.fixture(scope="module")
def plan():
    return plan_particles(SETTINGS, progress=False)


def test_all_that_makes_stitching_hard_occurs(plan):
    laid, annotations = plan
    particles = [one.particle for one in laid]
    assert len(particles) == len(annotations) >= 200
    order = [p.category_id for p in particles]
    assert order == sorted(order, key=[FILM, FRAGMENT, FIBER].index) and set(order) == {1, 2, 3}
    lengths = [a["truth"]["length_um"] / 2 for a in annotations]
    assert max(lengths) == pytest.approx(0.3 * 3000) and sum(v > 400 for v in lengths) >= 3
    fibers = [p.outline for p in particles if p.category_id == FIBER]
    compact = [p.outline for p in particles if p.category_id != FIBER]
    crossing = sum(a.intersects(b) for a, b in itertools.combinations(fibers, 2))
    touching = sum(a.distance(b) < 1 for a, b in itertools.combinations(compact, 2))
    assert crossing > 15 and touching > 5


def test_particles_lie_where_the_sample_ran_through(plan):
    membrane = ground_of(SETTINGS).membrane
    assert membrane.deposit_radius < membrane.radius < 1500
    for one in plan[0]:
        edge = np.asarray(one.particle.outline.exterior.coords) - membrane.center
        assert np.hypot(*edge.T).max() < membrane.deposit_radius


def test_annotations_are_those_of_the_masks(plan):
    ratios = []
    for annotation in plan[1]:
        rle = annotation["segmentation"]
        if isinstance(rle, list):
            (rle,) = mask_util.frPyObjects(rle, 3000, 3000)
        assert mask_util.area(rle) == annotation["area"]
        assert mask_util.toBbox(rle).tolist() == annotation["bbox"]
        assert not annotation["touches_edge"]
        ratios.append(annotation["area"] * 4 / annotation["truth"]["area_um2"])
    assert np.median(ratios) == pytest.approx(1, abs=0.005)
    assert any(isinstance(a["segmentation"], dict) for a in plan[1])


def test_each_particle_has_a_look_of_its_own(plan):
    assert len({one.look for one in plan[0]}) == len(plan[0])


def test_without_a_number_the_preset_says_how_many():
    for preset, expected in (("default", 10), ("dense", 50), ("blank", 0)):
        settings = MosaicSettings(1024, 2.0, 0, None, preset, None, None)
        assert settings.count(ground_of(settings).membrane) == pytest.approx(expected, rel=0.15)
    settings = MosaicSettings(1024, 2.0, 0, None, "blank", None, None)
    assert plan_particles(settings, progress=False) == ([], [])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"size": 1023}, "--size is 1023: give a side between 1024 and 40000 px"),
        ({"size": 40001}, "--size is 40001"),
        ({"um_per_px": float("nan")}, "--um-per-px is nan: give micrometres per pixel"),
        ({"um_per_px": 0.0}, "--um-per-px is 0"),
        ({"seed": -1}, "--seed is -1: give 0 or more"),
        ({"particles": -1}, "--particles is -1: give between 0 and 50000"),
        ({"particles": 50001}, "--particles is 50001"),
        ({"jpeg_quality": 0}, "--jpeg-quality is 0: give 1 to 100"),
        ({"preset": "mud"}, "no preset 'mud'"),
        ({"preset": "beads"}, "--preset beads has no whole filter"),
        ({"filter_name": "nylon_mesh"}, "no whole filter 'nylon_mesh': choose one of glass_fiber"),
    ],
)
def test_nonsense_is_refused_mosaic_plan(change, words):
    with pytest.raises(UserError, match=words):
        MosaicSettings(**{**vars(SETTINGS), **change}).check()


SIZE = 1500
SETTINGS_MOSAIC_RENDER = MosaicSettings(SIZE, 2.0, 2, 70, "default", "glass_fiber", None)


def stitched(laid, chunk, settings=SETTINGS_MOSAIC_RENDER):
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    for y in range(0, SIZE, chunk):
        for x in range(0, SIZE, chunk):
            near = [one for one in laid if meets(one, x, y, chunk)]
            piece = render_window(settings, x, y, chunk, near)
            image[y : y + chunk, x : x + chunk] = piece
    return image


@pytest.fixture(scope="module")
def plan_mosaic_render():
    return plan_particles(SETTINGS_MOSAIC_RENDER, progress=False)


@pytest.fixture(scope="module")
def picture(plan_mosaic_render):
    return stitched(plan_mosaic_render[0], 512)


def masks_of(annotations):
    for annotation in annotations:
        rle = annotation["segmentation"]
        if isinstance(rle, list):
            (rle,) = mask_util.frPyObjects(rle, SIZE, SIZE)
        yield mask_util.decode(rle)


def assert_same(one, other):
    difference = np.abs(one.astype(int) - other)
    # Sums of floats in another order may round over to the next grey value.
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_pieces_of_any_size_give_one_picture(plan_mosaic_render, picture):
    assert_same(stitched(plan_mosaic_render[0], 1024), picture)


def test_a_long_fiber_has_no_seam_between_its_blocks(plan_mosaic_render, picture, monkeypatch):
    monkeypatch.setattr(whole_filter, "BLOCK", 512)
    assert_same(stitched(plan_mosaic_render[0], 512), picture)


@pytest.mark.parametrize("name", ["glass_fiber", "polycarbonate", "dark_polycarbonate"])
def test_no_border_of_cells_pieces_or_blocks_is_seen(name):
    settings = MosaicSettings(SIZE, 2.0, 3, 0, "default", name, None)
    gray = cv2.cvtColor(stitched([], 512, settings), cv2.COLOR_BGR2GRAY).astype(float)
    for lines in (gray[300:1200, 200:1300], gray[200:1300, 300:1200].T):
        steps, contrast = np.abs(np.diff(lines, axis=1)).mean(0), lines.std(0)
        around = np.median(np.lib.stride_tricks.sliding_window_view(steps, 31), axis=1)
        # Entry c of ``off`` is the step onto column 216 + c of the picture.
        off = steps[15:-15] - around
        spread = 1.48 * np.median(np.abs(off))
        assert all(abs(off[border - 216]) < 4.5 * spread for border in (256, 512, 768, 1024))
        bands = [contrast[border - 232 : border - 168].mean() for border in (256, 768)]
        assert np.mean(bands) == pytest.approx(contrast.mean(), rel=0.2)


def test_what_is_annotated_is_what_is_drawn(plan_mosaic_render, picture):
    empty = stitched([], 512)
    changed = np.abs(picture.astype(int) - empty).max(2)
    covered = np.zeros((SIZE, SIZE), np.uint8)
    for mask in masks_of(plan_mosaic_render[1]):
        covered |= mask
        inside = cv2.erode(mask, np.ones((3, 3), np.uint8)) > 0
        assert (changed[inside] > 8).mean() > 0.8
    far = cv2.dilate(covered, np.ones((29, 29), np.uint8)) == 0
    assert far.mean() > 0.5 and not changed[far].any()


def test_around_the_membrane_it_is_dark(picture):
    membrane = ground_of(SETTINGS_MOSAIC_RENDER).membrane
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    r = np.hypot(x - membrane.center[0], y - membrane.center[1])
    inside, outside = picture[r < 0.98 * membrane.radius], picture[r > 1.02 * membrane.radius]
    assert np.median(inside) > 120 and np.percentile(outside, 99) < 60


def test_fields_of_the_microscope_differ_faintly():
    light = _Light(5, 2048)._fields(0, 0, 2048)
    assert 0.005 < light.std() < 0.04 and np.ptp(light) < 0.2
    assert 1e-4 < np.abs(np.diff(light, axis=1)).max() < 0.02
    assert np.allclose(
        _Light(5, 2048)._fields(700, 900, 512)[8:-8, 8:-8], light[908:1404, 708:1204]
    )
