import json
import tracemalloc

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.errors import UserError
from microplastics.inference.writers import labels
from microplastics.inference.writers.labels import write_labels


def test_pixels_hold_the_number_of_their_particle(make_result, frame, tmp_path):
    result = make_result(ids=(7, 2**31 - 1, 1))
    assert write_labels(result, tmp_path / "x.tif") == {}
    image = tifffile.imread(tmp_path / "x.tif")
    assert image.dtype == np.int32 and image.shape == (40, 50)
    for index, particle in enumerate((7, 2**31 - 1, 1)):
        assert ((image == particle) == frame(result, index)).all()


def test_the_scale_travels_in_the_tags(make_result, tmp_path):
    write_labels(make_result(um_per_px=0.65), tmp_path / "x.tif")
    page = tifffile.TiffFile(tmp_path / "x.tif").pages[0]
    numerator, denominator = page.tags["XResolution"].value
    assert numerator / denominator == pytest.approx(10_000 / 0.65, rel=1e-9)
    assert page.tags["ResolutionUnit"].value == 3
    about = json.loads(page.tags["ImageDescription"].value)
    assert about["um_per_px"] == 0.65 and about["calibration_source"] == "stage micrometer, µm"
    write_labels(make_result(um_per_px=None), tmp_path / "y.tif")
    page = tifffile.TiffFile(tmp_path / "y.tif").pages[0]
    assert page.tags["ResolutionUnit"].value == 1  # none


def test_the_smaller_particle_is_on_top_and_what_it_hides_is_counted(make_result, tmp_path):
    big, small = np.ones((10, 10), dtype=bool), np.ones((2, 3), dtype=bool)
    result = make_result((small, big), ((4, 4), (2, 2)), ("Film", "Fiber"))
    assert write_labels(result, tmp_path / "x.tif") == {"label_pixels_hidden": 6}
    image = tifffile.imread(tmp_path / "x.tif")
    assert (image == 1).sum() == 6 and (image == 2).sum() == 94


def test_particles_wholly_under_others_are_counted(make_result, tmp_path):
    same = np.ones((2, 2), dtype=bool)
    result = make_result((same, same), ((4, 4), (4, 4)), ("Film", "Film"))
    assert write_labels(result, tmp_path / "x.tif") == {
        "label_pixels_hidden": 4,
        "label_particles_hidden": 1,
    }
    assert np.unique(tifffile.imread(tmp_path / "x.tif")).tolist() == [0, 2]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_tiles_and_strips_hold_the_same(data, make_result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    height, width = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 700))
    masks, offsets = [], []
    for _ in range(data.draw(st.integers(0, 5))):
        h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        masks.append(np.ones((h, w), dtype=bool))
        offsets.append(
            (data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h)))
        )
    result = make_result(masks, offsets, ["Film"] * len(masks), size=(height, width))
    counts = write_labels(result, folder / "strips.tif")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "_LARGEST_STRIPED", 0)
        assert write_labels(result, folder / "tiles.tif") == counts
    assert tifffile.TiffFile(folder / "tiles.tif").pages[0].is_tiled
    tiles, strips = (tifffile.imread(folder / f"{name}.tif") for name in ("tiles", "strips"))
    assert (tiles == strips).all()
    painted = np.zeros((height, width), dtype=np.int32)
    for index in np.argsort([-mask.size for mask in masks], kind="stable"):
        (x, y), (h, w) = offsets[index], masks[index].shape
        painted[y : y + h, x : x + w] = index + 1
    assert (strips == painted).all()


def test_a_mosaic_is_never_held(make_result, tmp_path):
    masks = [np.ones((30, 40), dtype=bool)] * 3
    size = (12_000, 12_000)
    result = make_result(masks, ((0, 0), (490, 5000), (11_960, 11_970)), ["Film"] * 3, size=size)
    tracemalloc.start()
    write_labels(result, tmp_path / "x.tif")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # the frame would take 576 MB
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert not tiff.is_bigtiff
        assert (tiff.pages[0].asarray()[5000:5030, 490:530] == 2).all()


def test_a_claimed_size_does_not_fill_the_disk(make_result, tmp_path):
    with pytest.raises(UserError, match="1000000 x 1000000 px is too large for a label mask"):
        write_labels(make_result(size=(10**6, 10**6)), tmp_path / "x.tif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("particle", [0, -3, 2**31])
def test_numbers_that_do_not_fit_are_an_error(make_result, tmp_path, particle):
    with pytest.raises(UserError, match=rf"number {particle}, .* leave labels out of --formats"):
        write_labels(make_result(ids=(1, 2, particle)), tmp_path / "x.tif")
    assert not list(tmp_path.iterdir())
