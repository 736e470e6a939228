import zipfile

import numpy as np
import roifile
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from microplastics.inference.writers.rois import _roi, write_rois

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=8)).filter(np.any)


def fill(roi, size):
    """The pixels whose centres the ROI's path holds, by ImageJ's even-odd rule."""
    parts = roi.coordinates(multi=True)
    rows, columns = np.mgrid[: size[0], : size[1]]
    inside = np.zeros(size, dtype=bool)
    for ring in parts:
        inside ^= shapely.contains_xy(
            shapely.make_valid(shapely.Polygon(ring)), columns + 0.5, rows + 0.5
        )
    return inside


def test_filled_rois_are_the_masks(make_result, frame, tmp_path):
    result = make_result()
    assert write_rois(result, tmp_path / "x.zip") == {}
    rois = roifile.roiread(tmp_path / "x.zip")
    assert [roi.name for roi in rois] == ["0001 Fiber", "0002 Fragment", "0003 Film"]
    assert [roi.roitype.name for roi in rois] == ["TRACED", "RECT", "RECT"]
    assert [roi.group for roi in rois] == [1, 2, 3]
    for index, roi in enumerate(rois):
        assert (fill(roi, (40, 50)) == frame(result, index)).all()
        assert roi.stroke_color == bytes((255, *result.colors[index]))


@settings(max_examples=50)
@given(mask=masks, x=st.integers(0, 9), y=st.integers(0, 9))
def test_any_mask_comes_back(mask, x, y):
    roi = roifile.ImagejRoi.frombytes(_roi(mask, [x, y]).tobytes())
    whole = np.zeros((20, 20), dtype=bool)
    whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    assert (fill(roi, whole.shape) == whole).all()


def test_places_beyond_16_bits_stay_exact():
    near = roifile.ImagejRoi.frombytes(_roi(np.ones((2, 3), bool), [40_000, 60_000]).tobytes())
    far = roifile.ImagejRoi.frombytes(_roi(np.ones((2, 3), bool), [100_000, 70_001]).tobytes())
    assert near.coordinates().min(axis=0).tolist() == [40_000, 60_000]
    (ring,) = far.coordinates(multi=True)
    assert ring.min(axis=0).tolist() == [100_000, 70_001]
    assert ring.max(axis=0).tolist() == [100_003, 70_003]


def test_properties_hold_class_score_and_calibration(make_result, tmp_path):
    write_rois(make_result(scores=(0.25, np.nan, 1)), tmp_path / "x.zip")
    first, second, _ = roifile.roiread(tmp_path / "x.zip")
    assert first.props == (
        "class: Fiber\nscore: 0.25\num_per_px: 2.0\n"
        "calibration_source: stage micrometer, \\u00b5m\n"
    )
    assert "score" not in second.props


def test_hostile_class_names_stay_in_the_archive(make_result, tmp_path):
    import dataclasses

    result = make_result()
    names = ("../../evil\n", "\U0001f9eb foam", "Film")
    particles = dataclasses.replace(result.particles, classes=list(names))
    write_rois(
        dataclasses.replace(result, particles=particles, class_names=names), tmp_path / "x.zip"
    )
    entries = zipfile.ZipFile(tmp_path / "x.zip").namelist()
    assert entries == ["0001 .._.._evil_.roi", "0002 \ufffd foam.roi", "0003 Film.roi"]
    assert [roi.name for roi in roifile.roiread(tmp_path / "x.zip")][1] == "0002 \ufffd foam"


def test_the_same_particles_give_the_same_bytes(make_result, tmp_path):
    for name in ("a.zip", "b.zip"):
        write_rois(make_result(), tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
