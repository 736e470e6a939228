import json

import numpy as np
import shapely
from shapely.geometry import shape

from microplastics.inference.writers.geojson import write_geojson


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
