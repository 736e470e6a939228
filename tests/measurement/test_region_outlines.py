import zipfile

import numpy as np
import pytest
import shapely
from region_support import FEATURE, HOLE, POLYGON, SQUARE, region_of, write
from roifile import ROI_TYPE, ImagejRoi

from microplastics.errors import UserError


@pytest.mark.parametrize(
    "document",
    [
        POLYGON,
        FEATURE,
        [FEATURE],
        {"type": "FeatureCollection", "features": [FEATURE]},
        {"type": "GeometryCollection", "geometries": [POLYGON]},
        {"type": "MultiPolygon", "coordinates": [POLYGON["coordinates"]]},
    ],
)
def test_all_forms_of_geojson_are_the_same(tmp_path, document):
    region = region_of(write(tmp_path / "m.geojson", document))
    assert region.area_px == 40 * 25 - 100
    assert region.contains([[11, 21], [25, 35], [60, 30]]).tolist() == [True, False, False]
    assert region.source == "m.geojson"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"type": "Point", "coordinates": [1, 2]}, "holds 'Point' where a Polygon"),
        ({"type": "Feature", "geometry": None}, "holds None where a Polygon"),
        ({"type": "FeatureCollection"}, "without a list of parts"),
        ([], "no outline"),
        ({"type": ["x"]}, "where a Polygon"),
        ({"type": "Polygon", "coordinates": []}, "no lists of x and y"),
        ({"type": "Polygon", "coordinates": "x"}, "no lists of x and y"),
        ({"type": "Polygon", "coordinates": [[["1", "2"]] * 4]}, "no lists of x and y"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3]]]}, "no lists of x and y"),
        ({"type": "Polygon", "coordinates": [[[10**30, 2]] * 4]}, "no lists of x and y"),
        ({"type": "Polygon", "coordinates": [[[1e308, 2]] * 4]}, "no place in an image"),
        ({"type": "Polygon", "coordinates": [[[float("nan"), 2]] * 4]}, "no place in an image"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}, "fewer than 3 points"),
        ({"type": "Polygon", "coordinates": [[[100, 0], [120, 0], [120, 9]]]}, "no pixel inside"),
        ("[" * 100_000, "nested too deep|cut off"),
        ("{", "cut off"),
        ("", "empty"),
    ],
)
def test_geojson_that_cannot_be_used_is_refused(tmp_path, document, words):
    with pytest.raises(UserError, match=words):
        region_of(write(tmp_path / "m.geojson", document))


def roi(kind, points=None, box=(10, 20, 50, 45), **fields):
    if points is not None:
        made = ImagejRoi.frompoints(np.array(points))
    else:
        made = ImagejRoi()
        made.left, made.top, made.right, made.bottom = box
    made.roitype = kind
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("made", "area"),
    [
        (roi(ROI_TYPE.RECT), 1000),
        (roi(ROI_TYPE.RECT, rounded_rect_arc_size=10), 1000 - (100 - np.pi * 25)),
        (roi(ROI_TYPE.OVAL), np.pi * 20 * 12.5),
        (roi(ROI_TYPE.POLYGON, SQUARE[:4]), 1000),
        (roi(ROI_TYPE.FREEHAND, SQUARE[:4]), 1000),
        (roi(ROI_TYPE.TRACED, SQUARE[:4]), 1000),
    ],
)
def test_rois_that_have_an_area(tmp_path, made, area):
    made.tofile(tmp_path / "m.roi")
    region = region_of(tmp_path / "m.roi")
    assert region.area_px == pytest.approx(area, abs=1)
    assert region.contains([[30, 30], [9, 30]]).tolist() == [True, False]


def composite(*rings):
    path = []
    for ring in rings:
        for step, (x, y) in enumerate(ring[:-1]):
            path += [int(step > 0), x, y]
        path.append(4)
    made = roi(ROI_TYPE.RECT)
    made.multi_coordinates = np.array(path, np.float32)
    made.shape_roi_size = len(path)
    return made


def test_the_holes_and_islands_of_a_composite(tmp_path):
    island = [[22, 32], [26, 32], [26, 36], [22, 36], [22, 32]]
    composite(HOLE, island, SQUARE).tofile(tmp_path / "m.roi")
    assert region_of(tmp_path / "m.roi").area_px == 1000 - 100 + 16


def test_the_rois_of_a_zip_unite(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("a.roi", roi(ROI_TYPE.RECT).tobytes())
        archive.writestr("b.roi", roi(ROI_TYPE.RECT, box=(0, 0, 20, 30)).tobytes())
        archive.writestr("readme.txt", "no roi")
    assert region_of(tmp_path / "m.zip").area_px == 1000 + 600 - 100


@pytest.mark.parametrize("kind", [ROI_TYPE.LINE, ROI_TYPE.POLYLINE, ROI_TYPE.POINT])
def test_a_roi_without_an_area_is_refused(tmp_path, kind):
    points = None if kind == ROI_TYPE.LINE else SQUARE[:4]
    roi(kind, points).tofile(tmp_path / "m.roi")
    with pytest.raises(UserError, match=f"m.roi is a {kind.name.lower()}, which has no area"):
        region_of(tmp_path / "m.roi")


@pytest.mark.parametrize("cut", [5, 40, 70, -6])
@pytest.mark.parametrize("suffix", [".roi", ".zip"])
def test_truncated_rois_are_refused(tmp_path, cut, suffix):
    content = roi(ROI_TYPE.POLYGON, SQUARE[:4]).tobytes()
    if suffix == ".zip":
        with zipfile.ZipFile(tmp_path / "whole", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.roi", content)
        content = (tmp_path / "whole").read_bytes()
    elif cut < 0:
        content = content[:68]
    (tmp_path / f"m{suffix}").write_bytes(content[:cut])
    with pytest.raises(UserError, match="is damaged"):
        region_of(tmp_path / f"m{suffix}")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_composite_with_wild_numbers_is_refused(tmp_path, value):
    wild = [[0, 0], [9, value], [9, 9], [0, 0]]
    composite(SQUARE, wild).tofile(tmp_path / "m.roi")
    with pytest.raises(UserError, match="m.roi has a coordinate that is no place in an image"):
        region_of(tmp_path / "m.roi")


def test_a_composite_with_curves_is_refused(tmp_path):
    made = composite(SQUARE)
    made.multi_coordinates = np.array([0, 1, 1, 3, 5, 5, 9, 5, 9, 9, 4], np.float32)
    made.shape_roi_size = 11
    made.tofile(tmp_path / "m.roi")
    with pytest.raises(UserError, match="has curves, which cannot be read; .* > Interpolate"):
        region_of(tmp_path / "m.roi")


def test_what_shapely_gives_up_on_ends_in_a_sentence(tmp_path, monkeypatch):
    def give_up(*_):
        raise shapely.errors.GEOSException("TopologyException")

    composite(SQUARE, HOLE).tofile(tmp_path / "m.roi")
    write(tmp_path / "m.geojson", [POLYGON, POLYGON])
    for name, call in (("m.roi", "is_valid"), ("m.geojson", "unary_union")):
        with monkeypatch.context() as patch:
            patch.setattr(shapely, call, give_up)
            with pytest.raises(UserError, match=f"{name} has outlines that cannot be put together"):
                region_of(tmp_path / name)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_broken_content_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "m.zip", "w", method) as archive:
        archive.writestr("a.roi", roi(ROI_TYPE.POLYGON, SQUARE[:4]).tobytes())
    content = bytearray((tmp_path / "m.zip").read_bytes())
    content[39:60] = b"\xff" * 21
    (tmp_path / "m.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"m.zip is damaged \(.+\); save the ROIs again"):
        region_of(tmp_path / "m.zip")


def test_an_encrypted_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("a.roi", roi(ROI_TYPE.RECT).tobytes())
    content = bytearray((tmp_path / "m.zip").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "m.zip").write_bytes(content)
    with pytest.raises(UserError, match="m.zip, 'a.roi' is encrypted; save the ROIs without a"):
        region_of(tmp_path / "m.zip")


def test_an_empty_zip_is_refused(tmp_path):
    zipfile.ZipFile(tmp_path / "m.zip", "w").close()
    with pytest.raises(UserError, match="m.zip holds no outline"):
        region_of(tmp_path / "m.zip")
