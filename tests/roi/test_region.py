"""microplastics/roi/region.py."""

import json
import os
import zipfile

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from roifile import ROI_TYPE, ImagejRoi
from shapely import Polygon
from support import user_error

from microplastics.roi.region import Region, RegionSource
from microplastics.utils.errors import UserError

SIZE = (60, 80)
CENTERS = np.stack(np.meshgrid(np.arange(80) + 0.5, np.arange(60) + 0.5), axis=-1).reshape(-1, 2)
SQUARE = [[10, 20], [50, 20], [50, 45], [10, 45], [10, 20]]
HOLE = [[20, 30], [30, 30], [30, 40], [20, 40], [20, 30]]
ISLAND = [[22, 32], [26, 32], [26, 36], [22, 36], [22, 32]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE, HOLE]}
FEATURE = {"type": "Feature", "geometry": POLYGON, "properties": {"objectType": "annotation"}}


def write(path, content):
    """Write a text, or anything else as JSON, and give the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def region_of(path, size=SIZE, name="a.tif"):
    """The region of one image as ``--region path`` gives it."""
    source = RegionSource(str(path))
    source.check([name])
    return source.of_image(name, size, None)


def mask_region(folder, mask, size=SIZE):
    Image.fromarray(mask).save(folder / "m.png")
    return region_of(folder / "m.png", size)


def region(*polygons):
    return Region.from_polygons(polygons, SIZE, "m.geojson")


def cells(region):
    return region.contains(CENTERS).reshape(SIZE)


# Shapes


@settings(deadline=None, max_examples=60)
@given(st.floats(-30, 110), st.floats(-30, 90), st.floats(1, 90), st.integers(0, 2**32 - 1))
def test_a_circle_holds_the_pixels_whose_centre_is_inside(x, y, radius, seed):
    apart = np.hypot(CENTERS[:, 0] - x, CENTERS[:, 1] - y).reshape(SIZE) - radius
    frame = shapely.box(0, 0, 80, 60)
    area = shapely.Point(x, y).buffer(radius, quad_segs=200).intersection(frame).area
    if area < 0.49:
        with user_error("region_invalid", "circle at", "80 x 60 px"):
            Region.from_circle((x, y), radius, SIZE)
        return
    if area < 0.51:
        return
    circle = Region.from_circle((x, y), radius, SIZE)
    clear = np.abs(apart) > 0.001
    assert (cells(circle) == (apart < 0))[clear].all()
    assert circle.area_px == pytest.approx(area, abs=0.6)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        x0, y0 = rng.integers(0, 80), rng.integers(0, 60)
        x1, y1 = rng.integers(x0, 81), rng.integers(y0, 61)
        if (apart[y0:y1, x0:x1] < -0.001).any():
            assert circle.meets(x0, y0, x1, y1)


def test_the_outline_of_a_cut_circle_stays_in_the_image():
    circle = Region.from_circle((10, 30), 25, SIZE)
    (outline,) = circle.outlines()
    assert outline.min() >= 0 and (outline[0] == outline[-1]).all()
    assert Polygon(outline).area == pytest.approx(circle.area_px, rel=0.01)
    assert circle.source == "circle at (10.0, 30.0), radius 25.0 px"


def test_points_outside_of_the_image_and_nan_are_outside():
    circle = Region.from_circle((0, 0), 1000, SIZE)
    points = [[-0.1, 5], [80, 5], [5, 60], [np.nan, 5], [np.inf, 5], [0, 0], [79.9, 59.9]]
    assert circle.contains(points).tolist() == [False] * 5 + [True] * 2
    assert not circle.meets(-20, 0, 0, 10) and not circle.meets(80, 0, 90, 10)
    assert circle.meets(-20, 0, 1, 10)


def test_polygons_unite_and_leave_their_holes_out():
    both = region(Polygon(SQUARE, [HOLE]), Polygon(np.array(SQUARE) + 5))
    inside = np.zeros(SIZE, bool)
    inside[20:45, 10:50] = True
    inside[30:40, 20:30] = False
    inside[25:50, 15:55] = True
    assert (cells(both) == inside).all()
    assert both.area_px == inside.sum()
    assert both.source == "m.geojson"


def test_a_hole_is_outlined_and_not_met():
    frame = region(Polygon(SQUARE, [[[15, 25], [45, 25], [45, 40], [15, 40]]]))
    assert len(frame.outlines()) == 2
    assert not frame.meets(20, 30, 40, 35) and frame.meets(20, 30, 46, 35)


def test_outlines_that_cross_themselves_are_filled_even_odd():
    bow_tie = region(Polygon([[0, 0], [40, 40], [40, 0], [0, 40]]))
    assert bow_tie.area_px == 800
    assert bow_tie.contains([[1.5, 20], [38, 20], [20, 1.5]]).tolist() == [True, True, False]
    # A hole takes away, also if it reaches out of its polygon.
    overhanging = region(Polygon(SQUARE, [[[40, 30], [70, 30], [70, 40], [40, 40]]]))
    assert overhanging.area_px == 1000 - 100
    rng = np.random.default_rng(0)
    wild = Polygon(rng.uniform(0, 60, (80, 2)))
    points = rng.uniform(0, 60, (3000, 2))
    # GEOS counts crossings of a ray.
    agree = region(wild).contains(points) == shapely.contains_xy(wild, points)
    assert agree.mean() > 0.999


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.integers(0, 160)] * 2),
    st.tuples(*[st.integers(0, 120)] * 2),
    st.lists(st.tuples(st.integers(0, 159), st.integers(0, 119)), min_size=1, max_size=30),
)
def test_a_point_lies_in_one_of_two_polygons_that_abut(xs, ys, points):
    """A line from border to border parts the image, and points in halves of a px."""
    start, end = (xs[0] / 2, 0), (xs[1] / 2, 60)
    if ys[0] % 2:
        start, end = (0, ys[0] / 2), (80, ys[1] / 2)
        sides = [[start, end, (80, -5), (0, -5)], [end, start, (0, 65), (80, 65)]]
    else:
        sides = [[start, end, (-5, 60), (-5, 0)], [end, start, (85, 0), (85, 60)]]
    along = np.linspace(0, 1, 64)[:, None]
    on_line = np.rint((np.array(start) * (1 - along) + np.array(end) * along) * 2) / 2
    points = np.concatenate([np.array(points) / 2, on_line, CENTERS])
    points = points[(points < (80, 60)).all(axis=1)]
    sides = [Polygon(side) for side in sides]
    if min(side.intersection(shapely.box(0, 0, 80, 60)).area for side in sides) > 100:
        assert (sum(region(side).contains(points).astype(int) for side in sides) == 1).all()


@pytest.mark.parametrize(
    ("rings", "points"),
    [
        (
            [[[x, 0], [x + 40, 0], [x + 40, 60], [x, 60]] for x in (0, 40)],
            np.column_stack([np.full(120, 40.0), np.arange(0, 60, 0.5)]),
        ),
        (
            [[[0, 0], [60, 0], [60, 60]], [[0, 0], [60, 60], [0, 60]]],
            np.column_stack([np.arange(0, 60, 0.5)] * 2),
        ),
    ],
)
def test_abutting_rectangles_and_triangles_have_no_point_in_common(rings, points):
    first, second = (region(Polygon(ring)).contains(points) for ring in rings)
    assert (first ^ second).all()


def test_the_borders_of_the_image_belong_to_a_polygon_that_covers_it():
    whole = region(shapely.box(0, 0, 80, 60))
    last = np.nextafter((80, 60), 0)
    assert whole.contains([[0, 0], last, (0, last[1])]).all()


def test_a_polygon_of_a_huge_image_takes_no_grid():
    angle = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    ring = np.column_stack([np.cos(angle), np.sin(angle)]) * 90_000 + 100_000
    disc = Region.from_polygons([Polygon(ring)], (200_000, 200_000), "m")
    assert disc.area_px == pytest.approx(np.pi * 90_000**2, rel=1e-6)
    assert disc.contains([[10_001, 100_000], [9_999, 100_000]]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("ring", "words"),
    [
        ([[0, 0], [1, np.nan], [5, 5]], "coordinate"),
        ([[0, 0], [1e308, 0], [5, 5]], "coordinate"),
        ([[100, 100], [120, 100], [120, 120]], "80 x 60 px"),
        ([[5, 5], [20, 5], [30, 5]], "80 x 60 px"),
        (np.zeros((2_000_001, 2)), "2000001 points"),
        (np.random.default_rng(0).uniform(0, 5000, (100_000, 2)), "too long to be combined"),
    ],
)
def test_a_polygon_that_cannot_be_used_is_refused(ring, words):
    with user_error("region_invalid", "m.geojson", words):
        region(Polygon(ring))


def test_a_mask_is_scaled_up_by_the_nearest(tmp_path):
    mask = np.zeros((6, 8), bool)
    mask[1:4, 1:5] = True
    mask[2, 2] = False
    scaled = mask_region(tmp_path, mask)
    assert (cells(scaled) == np.kron(mask, np.ones((10, 10), bool))).all()
    assert scaled.area_px == 1100
    assert not scaled.meets(21, 21, 29, 29) and scaled.meets(21, 21, 31, 29)
    outer, hole = sorted(map(Polygon, scaled.outlines()), key=lambda p: -p.area)
    assert outer.bounds == (10, 10, 50, 40)
    assert hole.bounds == (20, 20, 30, 30)


def test_an_odd_scale_of_a_mask_counts_each_pixel_once(tmp_path):
    mask = np.random.default_rng(1).random((18, 24)) < 0.5
    size = (61, 81)
    some, rest = (mask_region(tmp_path, one, size) for one in (mask, ~mask))
    places = np.stack(np.meshgrid(np.arange(81) + 0.5, np.arange(61) + 0.5), axis=-1)
    assert some.area_px == some.contains(places).sum()
    assert some.area_px + rest.area_px == 61 * 81


def test_a_large_mask_is_outlined_by_the_majority(tmp_path):
    mask = np.zeros((2600, 4000), bool)
    mask[400:2000, 800:3200] = True
    mask[1000:1200, 1000:1400] = False
    mask[5::8, 5::8] ^= True  # single cells, in and out
    outer, hole = mask_region(tmp_path, mask, (5200, 8000)).outlines()
    assert Polygon(outer).bounds == pytest.approx((1600, 800, 6400, 4000), abs=4)
    assert Polygon(hole).bounds == pytest.approx((2000, 2000, 2800, 2400), abs=4)


# Mask images


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
    found = region_of(tmp_path / "m.png")
    assert found.area_px == 1000
    assert found.contains([[10.5, 20.5], [9.5, 20.5]]).tolist() == [True, False]
    assert region_of(tmp_path / "m.png", (600, 803)).area_px == pytest.approx(100_375, abs=125)


@pytest.mark.parametrize("size", [(120, 80), (30, 40), (60, 100)])
def test_a_mask_of_another_form_is_refused(tmp_path, size):
    Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / "m.png")
    with user_error("image_size", "m.png", "80 x 60 px", "a.tif", f"{size[1]} x {size[0]} px"):
        region_of(tmp_path / "m.png", size)


def test_an_empty_or_broken_mask_is_refused(tmp_path):
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "m.png")
    with user_error("region_invalid", "m.png", "not 0"):
        region_of(tmp_path / "m.png")
    content = (tmp_path / "m.png").read_bytes()
    (tmp_path / "m.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="m.png"):
        region_of(tmp_path / "m.png")


FORMS = {
    "tiles": (np.uint16, {"tile": (256, 64), "compression": "zlib"}),
    "strips": (np.uint16, {"rowsperstrip": 7}),
    "big-endian": (np.uint16, {"rowsperstrip": 64, "byteorder": ">"}),
    "miniswhite": (np.uint8, {"photometric": "miniswhite", "tile": (256, 64)}),
    "bits": (bool, {}),
    "packed bits": (bool, {"compression": "packbits"}),
    "signed": (np.int32, {"compression": "lzw"}),
    "float": (np.float32, {}),
    "rgb": (np.uint8, {"photometric": "rgb"}),
    "opaque": (np.uint8, {"photometric": "rgb", "extrasamples": ("unassalpha",)}),
    "png": (np.uint8, None),
}


@pytest.mark.parametrize("height", [80, 5003])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_stored_and_not_0_counts_in_masks_of_any_size(tmp_path, form, height):
    dtype, options = FORMS[form]
    inside = np.zeros((height, 200), bool)
    top, bottom = height // 5, height * 4 // 5
    inside[top:bottom, 31:150] = True
    # Deep masks of small numbers: a stretch to 8 bits would lose them.
    stored = inside.astype(dtype)
    path = tmp_path / ("m.png" if form == "png" else "m.tif")
    if form in ("rgb", "opaque"):
        stored = np.stack([stored * 0, stored * 0, stored] + [stored * 0 + 255], axis=2)
        stored = stored[:, :, : 4 if form == "opaque" else 3]
    if form == "png":
        Image.fromarray(stored).save(path)
    else:
        tifffile.imwrite(path, stored, **options)
    found = region_of(path, inside.shape)
    assert found.area_px == inside.sum()
    points = [[90, top + 2], [90, top - 2], [34, top + 9], [29, top + 9], [90, bottom + 2]]
    assert found.contains(points).tolist() == [True, False, True, False, False]
    assert found.meets(147, bottom - 3, 150, bottom) and not found.meets(160, 0, 200, height)
    assert region_of(path, (2 * height, 400)).area_px == 4 * inside.sum()


def test_a_large_mask_is_kept_on_a_grid(tmp_path, monkeypatch):
    monkeypatch.setattr("microplastics.roi.region._MAX_GRID", 20)
    inside = np.zeros((90, 70), np.uint8)
    inside[11:52, 8:33] = 255
    for name, options in (("plain", {}), ("tiles", {"tile": (16, 32), "compression": "zlib"})):
        tifffile.imwrite(tmp_path / f"{name}.tif", inside, **options)
        found = region_of(tmp_path / f"{name}.tif", inside.shape)
        assert found.area_px == 41 * 25
        assert found.contains([[20, 30], [60, 80]]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("value", "options", "code", "words"),
    [
        (np.uint8(255), {"compression": "jpeg"}, "image_invalid", "compressed as JPEG"),
        (np.float32("nan"), {}, "image_invalid", "expected whole numbers"),
        (np.float32(0.5), {"compression": "zlib"}, "image_invalid", "expected whole numbers"),
        (np.int16(-1), {}, "image_invalid", "from -1"),
        (np.complex64(1), {}, "image_invalid", "complex64"),
        (np.uint8(1), {"extratags": [(274, 3, 1, 3, True)]}, "image_invalid", "turned"),
    ],
)
def test_a_tiff_that_is_not_a_mask_is_refused(tmp_path, value, options, code, words):
    tifffile.imwrite(tmp_path / "m.tif", np.full((80, 64), value), **options)
    with user_error(code, "m.tif", words):
        region_of(tmp_path / "m.tif", (80, 64))


@pytest.mark.parametrize("height", [80, 5003])
@pytest.mark.parametrize("form", ["LA", "RGBA", "P", "gif", "tiff"])
def test_a_mask_that_is_transparent_in_places_is_refused(tmp_path, form, height):
    pixels = np.zeros((height, 64, 4), np.uint8)
    pixels[10:, :, 3] = 255
    path = tmp_path / f"m.{form if form in ('gif', 'tiff') else 'png'}"
    if form == "tiff":
        tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=("unassalpha",))
    elif form in ("P", "gif"):
        Image.fromarray(pixels[:, :, 3] // 255).convert("P").save(path, transparency=0)
    else:
        Image.fromarray(pixels).convert(form).save(path)
    with user_error("region_invalid", path.name, "transparent in places"):
        region_of(path, pixels.shape[:2])


def test_an_opaque_png_is_a_mask(tmp_path):
    Image.fromarray(np.full((*SIZE, 4), 255, np.uint8)).save(tmp_path / "m.png")
    assert region_of(tmp_path / "m.png").area_px == 4800


@pytest.mark.parametrize("suffix", ["gif", "tif"])
def test_several_frames_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(np.full(SIZE, grey, np.uint8)) for grey in (1, 200)]
    path = tmp_path / f"m.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with user_error("image_invalid", path.name, "it has 2 "):
        region_of(path)


# Sources


def test_one_file_for_all_images_is_read_once(tmp_path):
    Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / "m.png")
    source = RegionSource(str(tmp_path / "m.png"))
    source.check(["a.tif", "b.tif"])
    assert source.of_image("a.tif", SIZE, None).area_px == 4800
    os.remove(tmp_path / "m.png")
    assert source.of_image("b.tif", (120, 160), None).area_px == 19200
    with user_error("image_size", "c.tif", "60 x 80 px"):
        source.of_image("c.tif", (80, 60), None)


def test_the_photographs_own_folder(tmp_path):
    photograph = np.full((*SIZE, 3), 90, np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(photograph).save(tmp_path / name)
    images = {name: str(tmp_path / name) for name in ("a.png", "b.png")}
    write(tmp_path / "a.geojson", POLYGON)
    with user_error("region_invalid", "no file", "b.png", "b.geojson"):
        RegionSource(str(tmp_path)).check(list(images), images)
    write(tmp_path / "b.geojson", POLYGON)
    source = RegionSource(str(tmp_path))
    source.check(list(images), images)
    assert source.of_image("b.png", SIZE, None).area_px == 900
    assert source.path_of("a.png") == tmp_path / "a.geojson"
    os.symlink(tmp_path / "a.png", tmp_path / "link.png")
    for path in ("a.png", "link.png"):
        with user_error("option_conflict", path, "one of the photographs"):
            RegionSource(str(tmp_path / path)).check(list(images), images)
    # Only masks, without photographs.
    RegionSource(str(tmp_path / "a.png")).check(["a.png"], {"a.png": ""})


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
    ("files", "names", "code", "words"),
    [
        (["a.geojson"], ["b.tif"], "region_invalid", ["no file", "b.tif", "b.geojson"]),
        (["a.geojson"], ["x/a.tif", "y/a.tif"], "region_invalid", ["no file", "x/a.tif"]),
        (["a.geojson", "a.json"], ["a.tif"], "region_invalid", ["a.geojson, a.json"]),
        (["x/a.geojson"], ["x/a.tif", "x/a.jpg"], "name_clash", ["x/a.tif", "x/a.jpg"]),
        (["a.geojson"], ["../a.tif", "/etc/a.tif"], "region_invalid", ["no file"]),
        (["readme.txt"], ["a.tif"], "region_invalid", ["no file of a known kind"]),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, files, names, code, words):
    for file in files:
        write(tmp_path / file, POLYGON)
    with user_error(code, *words):
        RegionSource(str(tmp_path)).check(names)


def test_what_is_not_a_region_is_refused(tmp_path):
    with user_error("region_invalid", "m.csv", "known kind"):
        RegionSource(str(write(tmp_path / "m.csv", "a")))
    for missing in (str(tmp_path / "nothing"), "", " "):
        with user_error("file_missing", "--region", missing, "give 'circle'"):
            RegionSource(missing)


def test_the_fingerprint_follows_the_bytes_and_names_of_what_is_used(tmp_path):
    write(tmp_path / "1/a.geojson", POLYGON)
    write(tmp_path / "2/a.geojson", POLYGON)
    write(tmp_path / "2/unused.geojson", POLYGON)
    write(tmp_path / "3/sub/a.geojson", POLYGON)
    write(tmp_path / "4/a.geojson", FEATURE)
    sources = [RegionSource(str(tmp_path / n)) for n in "1234"]
    for source, name in zip(sources, ("a.tif", "a.tif", "sub/a.tif", "a.tif"), strict=True):
        source.check([name])
    one, same, renamed, changed = (source.fingerprint() for source in sources)
    assert one == same
    assert len({one, renamed, changed, RegionSource("circle").fingerprint()}) == 4


def test_the_path_that_a_region_comes_from(tmp_path):
    single = write(tmp_path / "m.geojson", POLYGON)
    assert RegionSource("circle").path_of("a.tif") is None
    assert RegionSource(str(single)).path_of("a.tif") == single


def test_circle_looks_at_the_image():
    y, x = np.mgrid[:300, :400] + 0.5
    picture = np.where(np.hypot(x - 190, y - 152) < 110, 200, 20).astype(np.uint8)
    picture = np.repeat(picture[..., None], 3, axis=2)
    source = RegionSource("circle")
    source.check(["a.tif"])
    assert source.needs_image
    found = source.of_image("a.tif", (3000, 4000), lambda side: (picture, 10.0))
    assert found.area_px == pytest.approx(np.pi * 1100**2, rel=0.005)
    assert found.source.startswith("circle at (19")
    with user_error("region_invalid", "a.tif", "no circle", "--merge-runs"):
        source.of_image("a.tif", (3000, 4000), lambda side: (picture * 0, 10.0))


# GeoJSON and ROIs


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
    found = region_of(write(tmp_path / "m.geojson", document))
    assert found.area_px == 40 * 25 - 100
    assert found.contains([[11, 21], [25, 35], [60, 30]]).tolist() == [True, False, False]
    assert found.source == "m.geojson"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"type": "Point", "coordinates": [1, 2]}, "'Point'"),
        ({"type": "Feature", "geometry": None}, "Polygon"),
        ({"type": "FeatureCollection"}, "'FeatureCollection'"),
        ([], "no outline"),
        ({"type": ["x"]}, "Polygon"),
        ({"type": "Polygon", "coordinates": []}, "no outline"),
        ({"type": "Polygon", "coordinates": "x"}, "coordinates"),
        ({"type": "Polygon", "coordinates": [[["x", "2"]] * 4]}, "coordinates"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3]]]}, "coordinates"),
        ({"type": "Polygon", "coordinates": [[[10**30, 2]] * 4]}, "coordinate"),
        ({"type": "Polygon", "coordinates": [[[1e308, 2]] * 4]}, "coordinate"),
        ({"type": "Polygon", "coordinates": [[[float("nan"), 2]] * 4]}, "coordinate"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}, "3 points"),
        ({"type": "Polygon", "coordinates": [[[100, 0], [120, 0], [120, 9]]]}, "80 x 60 px"),
    ],
)
def test_geojson_that_cannot_be_used_is_refused(tmp_path, document, words):
    with user_error("region_invalid", "m.geojson", words):
        region_of(write(tmp_path / "m.geojson", document))


@pytest.mark.parametrize("text", ["[" * 100_000, "{", ""])
def test_geojson_that_is_not_json_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="m.geojson"):
        region_of(write(tmp_path / "m.geojson", text))


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
    found = region_of(tmp_path / "m.roi")
    assert found.area_px == pytest.approx(area, abs=1)
    assert found.contains([[30, 30], [9, 30]]).tolist() == [True, False]


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
    apart = (np.array(HOLE) + [40, -25]).tolist()
    composite(HOLE, ISLAND, SQUARE, apart).tofile(tmp_path / "m.roi")
    assert region_of(tmp_path / "m.roi").area_px == 1000 - 100 + 16 + 100


def test_the_rois_of_a_zip_unite(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("a.roi", roi(ROI_TYPE.RECT).tobytes())
        archive.writestr("b.roi", roi(ROI_TYPE.RECT, box=(0, 0, 20, 30)).tobytes())
        archive.writestr("readme.txt", "not a ROI")
    assert region_of(tmp_path / "m.zip").area_px == 1000 + 600 - 100


@pytest.mark.parametrize("kind", [ROI_TYPE.LINE, ROI_TYPE.POLYLINE, ROI_TYPE.POINT])
def test_a_roi_without_an_area_is_refused(tmp_path, kind):
    points = None if kind == ROI_TYPE.LINE else SQUARE[:4]
    roi(kind, points).tofile(tmp_path / "m.roi")
    with user_error("region_invalid", "m.roi", kind.name.lower()):
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
    with user_error("file_invalid", f"m{suffix}", "damaged"):
        region_of(tmp_path / f"m{suffix}")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_composite_with_wild_numbers_is_refused(tmp_path, value):
    wild = [[0, 0], [9, value], [9, 9], [0, 0]]
    composite(SQUARE, wild).tofile(tmp_path / "m.roi")
    with user_error("region_invalid", "m.roi", "coordinate"):
        region_of(tmp_path / "m.roi")


def test_a_composite_with_curves_is_refused(tmp_path):
    made = composite(SQUARE)
    made.multi_coordinates = np.array([0, 1, 1, 3, 5, 5, 9, 5, 9, 9, 4], np.float32)
    made.shape_roi_size = 11
    made.tofile(tmp_path / "m.roi")
    with user_error("region_invalid", "m.roi", "curves", "> Interpolate"):
        region_of(tmp_path / "m.roi")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_broken_content_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "m.zip", "w", method) as archive:
        archive.writestr("a.roi", roi(ROI_TYPE.POLYGON, SQUARE[:4]).tobytes())
    content = bytearray((tmp_path / "m.zip").read_bytes())
    content[39:60] = b"\xff" * 21
    (tmp_path / "m.zip").write_bytes(content)
    with user_error("file_invalid", "m.zip", "damaged"):
        region_of(tmp_path / "m.zip")


def test_an_encrypted_or_empty_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("a.roi", roi(ROI_TYPE.RECT).tobytes())
    content = bytearray((tmp_path / "m.zip").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "m.zip").write_bytes(content)
    with user_error("file_invalid", "m.zip", "'a.roi'", "encrypted"):
        region_of(tmp_path / "m.zip")
    zipfile.ZipFile(tmp_path / "m.zip", "w").close()
    with user_error("region_invalid", "m.zip", "no outline"):
        region_of(tmp_path / "m.zip")
