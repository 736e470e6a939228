import json
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image
from roifile import ROI_TYPE, ImagejRoi

from microplastics.errors import UserError
from microplastics.measurement.region_files import RegionSource

SIZE = (60, 80)
SQUARE = [[10, 20], [50, 20], [50, 45], [10, 45], [10, 20]]
HOLE = [[20, 30], [30, 30], [30, 40], [20, 40], [20, 30]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE, HOLE]}
FEATURE = {"type": "Feature", "geometry": POLYGON, "properties": {"objectType": "annotation"}}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def region_of(path, size=SIZE, name="a.tif"):
    source = RegionSource(str(path))
    source.check([name])
    return source.of_image(name, size, None)


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


def test_an_empty_zip_is_refused(tmp_path):
    zipfile.ZipFile(tmp_path / "m.zip", "w").close()
    with pytest.raises(UserError, match="m.zip holds no outline"):
        region_of(tmp_path / "m.zip")


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_a_mask_counts_what_is_not_0(tmp_path, mode):
    inside = np.zeros(SIZE, bool)
    inside[20:45, 10:50] = True
    picture = {
        "1": Image.fromarray(inside),
        "L": Image.fromarray(inside.astype(np.uint8)),
        "P": Image.fromarray(inside.astype(np.uint8)).convert("P"),
        "I;16": Image.fromarray(inside.astype(np.uint16) * 7),
    }[mode]
    picture.save(tmp_path / "m.png")
    region = region_of(tmp_path / "m.png")
    assert region.area_px == 1000
    assert region.contains([[10.5, 20.5], [9.5, 20.5]]).tolist() == [True, False]
    assert region_of(tmp_path / "m.png", (600, 803)).area_px == pytest.approx(100_375, abs=1)


@pytest.mark.parametrize("size", [(120, 80), (30, 40), (60, 100)])
def test_a_mask_of_another_form_is_refused(tmp_path, size):
    Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / "m.png")
    words = rf"m.png is 80 x 60 px .* its image a.tif {size[1]} x {size[0]} px"
    with pytest.raises(UserError, match=words):
        region_of(tmp_path / "m.png", size)


def test_an_empty_or_broken_mask_is_refused(tmp_path):
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(UserError, match="no pixel that is not 0"):
        region_of(tmp_path / "m.png")
    content = (tmp_path / "m.png").read_bytes()
    (tmp_path / "m.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="m.png"):
        region_of(tmp_path / "m.png")


@pytest.mark.parametrize("form", ["tiles", "strips", "miniswhite", "png"])
def test_a_mask_larger_than_the_grid_is_counted_exactly(tmp_path, form):
    inside = np.zeros((5003, 200), bool)
    inside[1001:4000, 31:150] = True
    options = {
        "tiles": {"tile": (256, 64), "compression": "zlib"},
        "strips": {"rowsperstrip": 7},
        "miniswhite": {"photometric": "miniswhite", "tile": (256, 64)},
        "png": {},
    }[form]
    path = tmp_path / ("m.png" if form == "png" else "m.tif")
    # Deep masks of small numbers: a stretch to 8 bits would lose them.
    stored = (
        inside.astype(np.uint8) * 255 if form in ("png", "miniswhite") else inside * np.uint16(1)
    )
    if form == "png":
        Image.fromarray(stored).save(path)
    else:
        tifffile.imwrite(path, 255 - stored if form == "miniswhite" else stored, **options)
    region = region_of(path, inside.shape)
    assert region.area_px == inside.sum()
    points = [[90, 1003], [90, 999], [34, 2000], [29, 2000], [90, 4002]]
    assert region.contains(points).tolist() == [True, False, True, False, False]
    assert region.meets(149, 3999, 150, 4000) and not region.meets(160, 0, 200, 5003)
    big = region_of(path, (10_006, 400))
    assert big.area_px == 4 * inside.sum()


def test_a_folder_finds_the_file_of_each_image(tmp_path):
    write(tmp_path / "river/a.geojson", POLYGON)
    Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / "b.PNG")
    write(tmp_path / "readme.txt", "not a region")
    source = RegionSource(str(tmp_path))
    source.check(["river/a.tif", "lake/b.jpg"])
    assert source.of_image("river/a.tif", SIZE, None).area_px == 900
    assert source.of_image("lake/b.jpg", SIZE, None).area_px == 4800
    assert source.of_image("river/a.tif", SIZE, None).source == "river/a.geojson"


@pytest.mark.parametrize(
    ("files", "names", "words"),
    [
        (["a.geojson"], ["b.tif"], "no file for the image b.tif; put b.geojson"),
        (["a.geojson"], ["x/a.tif", "y/a.tif"], "no file for the image x/a.tif"),
        (["a.geojson", "a.json"], ["a.tif"], "2 files for the image a.tif: a.geojson, a.json"),
        (["x/a.geojson"], ["x/a.tif", "x/a.jpg"], "x/a.geojson would serve both x/a.tif and"),
        (["a.geojson"], ["../a.tif", "/etc/a.tif"], "no file for the image"),
        (["readme.txt"], ["a.tif"], "holds no file of a known kind"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, files, names, words):
    for file in files:
        write(tmp_path / file, POLYGON)
    with pytest.raises(UserError, match=words):
        RegionSource(str(tmp_path)).check(names)


def test_what_is_no_region_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist; give 'circle'"):
        RegionSource(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="m.csv is of no known kind"):
        RegionSource(str(write(tmp_path / "m.csv", "a")))


def test_the_fingerprint_follows_the_bytes_and_the_names(tmp_path):
    write(tmp_path / "1/a.geojson", POLYGON)
    write(tmp_path / "2/a.geojson", POLYGON)
    write(tmp_path / "3/b.geojson", POLYGON)
    write(tmp_path / "4/a.geojson", FEATURE)
    one, same, renamed, changed = (RegionSource(str(tmp_path / n)).fingerprint() for n in "1234")
    assert one == same
    assert len({one, renamed, changed, RegionSource("circle").fingerprint()}) == 4


def test_circle_looks_at_the_image():
    y, x = np.mgrid[:300, :400] + 0.5
    picture = np.where(np.hypot(x - 190, y - 152) < 110, 200, 20).astype(np.uint8)
    picture = np.repeat(picture[..., None], 3, axis=2)
    source = RegionSource("circle")
    source.check(["a.tif"])
    assert source.needs_image
    region = source.of_image("a.tif", (3000, 4000), lambda side: (picture, 10.0))
    assert region.area_px == pytest.approx(np.pi * 1100**2, rel=0.005)
    assert region.source.startswith("circle at (19")
    with pytest.raises(UserError, match="a.tif shows no circle .* mask image or GeoJSON"):
        source.of_image("a.tif", (3000, 4000), lambda side: (picture * 0, 10.0))
