import json

import cv2
import numpy as np
import pytest
import tifffile

from microplastics.data.coco import check_instances
from microplastics.data.synthetic import mosaic, render_mosaic
from microplastics.data.synthetic.mosaic_plan import MosaicSettings, plan_particles
from microplastics.data.synthetic.mosaic_render import render_window
from microplastics.errors import UserError

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
    monkeypatch.setattr(mosaic, "plan_particles", None)
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
    path, render, calls = tmp_path / "filter.tif", mosaic._render, []

    def stopped(task):
        calls.append(task)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return render(task)

    with monkeypatch.context() as patch:
        patch.setattr(mosaic, "_render", stopped)
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
