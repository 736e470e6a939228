import json
import zipfile

import numpy as np
import pycocotools.mask as mask_util
import pytest
import roifile
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from shapely.geometry import shape

from microplastics.data.formats.base import Notes, ReadOptions, detect, open_dataset
from microplastics.data.formats.convert import convert_dataset
from microplastics.writers.qupath_imagej import _roi, pixel_polygons, write_geojson, write_rois


def read(result, path):
    assert write_geojson(result, path) == {}
    return json.loads(
        path.read_text(encoding="utf-8"), parse_constant=lambda text: pytest_fail(text)
    )


def pytest_fail(text):
    raise AssertionError(f"{text} is no JSON")


def test_geometries_are_the_masks(make_result, frame, tmp_path):
    result = make_result()
    features = read(result, tmp_path / "x.geojson")["features"]
    assert [f["geometry"]["type"] for f in features] == ["Polygon", "Polygon", "MultiPolygon"]
    rows, columns = np.mgrid[:40, :50]
    for index, feature in enumerate(features):
        geometry = shape(feature["geometry"])
        assert geometry.is_valid
        inside = shapely.contains_xy(geometry, columns + 0.5, rows + 0.5)
        assert (inside == frame(result, index)).all()


def test_features_are_what_qupath_reads(make_result, tmp_path):
    result = make_result()
    collection = read(result, tmp_path / "x.geojson")
    feature = collection["features"][0]
    properties = feature["properties"]
    assert collection["type"] == "FeatureCollection" and feature["type"] == "Feature"
    assert properties["objectType"] == "detection" and properties["name"] == "1"
    assert properties["classification"] == {"name": "Fiber", "color": result.colors[0]}
    measured = properties["measurements"]
    assert measured["area_um2"] == 72 and measured["area_px"] == 18 and measured["score"] == 0.5
    assert measured["touches_edge"] == 0
    assert all(isinstance(value, (int, float)) for value in measured.values())
    assert not {"image", "particle", "class", "size_class"} & set(measured)
    assert properties["metadata"]["calibration_source"] == "stage micrometer, µm"
    assert collection["microplastics"]["um_per_px"] == 2.0


def test_ids_are_stable_and_unique(make_result, tmp_path):
    def ids(image):
        return [f["id"] for f in read(make_result(image=image), tmp_path / "x.geojson")["features"]]

    assert ids("a.jpg") == ids("a.jpg")
    assert len({*ids("a.jpg"), *ids("b.jpg")}) == 6


def test_an_image_without_a_particle_or_a_scale(make_result, tmp_path):
    collection = read(make_result((), (), (), um_per_px=None), tmp_path / "x.geojson")
    assert collection["features"] == [] and collection["microplastics"]["um_per_px"] is None


def test_what_is_missing_is_left_out(make_result, tmp_path):
    result = make_result(scores=(np.nan, 0.5, 0.5), um_per_px=None)
    feature = read(result, tmp_path / "x.geojson")["features"][0]
    assert "score" not in feature["properties"]["measurements"]
    assert "length_px" in feature["properties"]["measurements"]
    assert "calibration_source" not in feature["properties"]["metadata"]


masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)).filter(np.any)


def shape_of(polygons):
    return shapely.MultiPolygon([shapely.Polygon(rings[0], rings[1:]) for rings in polygons])


@given(mask=masks, x=st.integers(-3, 10**6), y=st.integers(0, 10**6))
def test_polygons_are_valid_and_hold_the_pixels_of_the_mask_alone(mask, x, y):
    shape = shape_of(pixel_polygons(mask, (x, y)))
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    assert shape.is_valid, shapely.is_valid_reason(shape)
    assert shape.area == mask.sum()
    assert (shapely.contains_xy(shape, columns + x + 0.5, rows + y + 0.5) == mask).all()


@given(mask=masks)
def test_outer_rings_run_clockwise_on_the_screen_and_holes_the_other_way(mask):
    for rings in pixel_polygons(mask):
        # In shapely's axes, y up, clockwise on the screen is counter-clockwise.
        assert shapely.LinearRing(rings[0]).is_ccw
        assert not any(shapely.LinearRing(ring).is_ccw for ring in rings[1:])


def test_a_rectangle_has_four_corners():
    (((rings),),) = [pixel_polygons(np.ones((2, 3), dtype=bool), (10, 20))]
    assert [ring.tolist() for ring in rings] == [[[10, 20], [13, 20], [13, 22], [10, 22]]]


def test_a_particle_pinched_twice_is_two_polygons_without_a_hole():
    mask = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0], [0, 1, 1]], dtype=bool)
    assert [len(rings) for rings in pixel_polygons(mask)] == [1, 1, 1]
    ring = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=bool)
    assert [len(rings) for rings in pixel_polygons(ring)] == [1, 1]


masks_rois = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=8)).filter(np.any)


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
@given(mask=masks_rois, x=st.integers(0, 9), y=st.integers(0, 9))
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


@pytest.mark.parametrize(
    ("write", "folder", "name"),
    [(write_geojson, "qupath", "a__x.jpg.geojson"), (write_rois, "imagej", "a__x.jpg.zip")],
)
def test_what_is_written_comes_back(make_result, frame, tmp_path, write, folder, name):
    """Every pixel and class, through the reader and the converted set."""
    rng = np.random.default_rng(0)
    blobs = [rng.random((9, 12)) < 0.6 for _ in range(3)]
    (tmp_path / "photos" / "a").mkdir(parents=True)
    Image.new("RGB", (50, 40)).save(tmp_path / "photos" / "a" / "x.jpg")
    for result in (make_result(), make_result(blobs), make_result((), (), ())):
        write(result, tmp_path / folder / name)
        assert detect(tmp_path / folder) == folder
        options, notes = ReadOptions(images=tmp_path / "photos"), Notes()
        (source,) = open_dataset(tmp_path / folder, options, notes)[1].values()
        ((record),) = source.records()
        assert record.file_name == "a/x.jpg" and len(notes) == 0
        assert [each.category for each in record.instances] == list(result.particles.classes)
        for index, instance in enumerate(record.instances):
            segmentation = instance.segmentation
            if isinstance(segmentation, list):
                segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, 40, 50))
            assert (mask_util.decode(segmentation) == frame(result, index)).all()
    write(make_result(), tmp_path / folder / name)
    convert_dataset(tmp_path / folder, tmp_path / "set", options=options)
    document = json.loads((tmp_path / "set" / "annotations" / "instances_all.json").read_text())
    assert [each["area"] for each in document["annotations"]] == [18, 8, 3]
