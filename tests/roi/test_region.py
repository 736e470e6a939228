import os
import zipfile

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from region_support import FEATURE, HOLE, POLYGON, region_of, write
from region_support import SIZE as SIZE_region_files
from region_support import SQUARE as SQUARE_region_outlines
from roifile import ROI_TYPE, ImagejRoi

from microplastics.roi.region import Region, RegionSource
from microplastics.utils.errors import UserError

SIZE = (60, 80)
CENTERS = np.stack(np.meshgrid(np.arange(80) + 0.5, np.arange(60) + 0.5), axis=-1).reshape(-1, 2)
SQUARE = np.array([[10, 20], [50, 20], [50, 45], [10, 45]], float)


def cells(region):
    return region.contains(CENTERS).reshape(SIZE)


@settings(deadline=None, max_examples=60)
@given(st.floats(-30, 110), st.floats(-30, 90), st.floats(1, 90), st.integers(0, 2**32 - 1))
def test_a_circle_counts_the_pixels_whose_centre_is_inside(x, y, radius, seed):
    inside = np.hypot(CENTERS[:, 0] - x, CENTERS[:, 1] - y).reshape(SIZE) < radius
    if not inside.any():
        with pytest.raises(UserError, match="no pixel inside the image of 80 x 60 px"):
            Region.from_circle((x, y), radius, SIZE)
        return
    region = Region.from_circle((x, y), radius, SIZE)
    assert (cells(region) == inside).all()
    assert region.area_px == inside.sum()
    rng = np.random.default_rng(seed)
    for _ in range(20):
        x0, y0 = rng.integers(0, 80), rng.integers(0, 60)
        x1, y1 = rng.integers(x0, 81), rng.integers(y0, 61)
        if inside[y0:y1, x0:x1].any():
            assert region.meets(x0, y0, x1, y1)


def test_the_outline_of_a_cut_circle_stays_in_the_image():
    region = Region.from_circle((10, 30), 25, SIZE)
    (outline,) = region.outlines()
    assert outline.min() >= 0 and (outline[0] == outline[-1]).all()
    assert shapely.Polygon(outline).area == pytest.approx(region.area_px, rel=0.01)
    assert region.source == "circle at (10.0, 30.0), radius 25.0 px"


def test_points_outside_of_the_image_and_nan_are_outside():
    region = Region.from_circle((0, 0), 1000, SIZE)
    points = [[-0.1, 5], [80, 5], [5, 60], [np.nan, 5], [np.inf, 5], [0, 0], [79.9, 59.9]]
    assert region.contains(points).tolist() == [False] * 5 + [True] * 2
    assert not region.meets(-20, 0, 0, 10) and not region.meets(80, 0, 90, 10)
    assert region.meets(-20, 0, 1, 10)


def test_polygons_unite_and_leave_their_holes_out():
    hole = np.array([[20, 30], [30, 30], [30, 40], [20, 40]])
    region = Region.from_polygons([[SQUARE, hole], [SQUARE + 5]], SIZE, "m.geojson")
    inside = np.zeros(SIZE, bool)
    inside[20:45, 10:50] = True
    inside[30:40, 20:30] = False
    inside[25:50, 15:55] = True
    assert (cells(region) == inside).all()
    assert region.area_px == inside.sum()
    assert region.source == "m.geojson"


def test_a_hole_is_outlined_and_not_met():
    hole = np.array([[15, 25], [45, 25], [45, 40], [15, 40]])
    region = Region.from_polygons([[SQUARE, hole]], SIZE, "m")
    assert len(region.outlines()) == 2
    assert not region.meets(20, 30, 40, 35) and region.meets(20, 30, 46, 35)


def test_both_lobes_of_a_bow_tie_count():
    region = Region.from_polygons([[np.array([[0, 0], [40, 40], [40, 0], [0, 40]])]], SIZE, "m")
    assert region.area_px == 800
    assert region.contains([[1.5, 20], [38, 20], [20, 1.5]]).tolist() == [True, True, False]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(3, 12))
def test_the_grid_agrees_with_exact_geometry(seed, count):
    rng = np.random.default_rng(seed)
    rings = [rng.uniform(-20, 100, (count, 2)) for _ in range(3)]
    exact = Region.from_polygons([[ring] for ring in rings], SIZE, "m")
    # The same with so many points on its edges that it is drawn on the grid.
    share = np.linspace(0, 1, 300, endpoint=False)[:, None]
    fine = [
        (ring[:, None] + share * (np.roll(ring, -1, axis=0) - ring)[:, None]).reshape(-1, 2)
        for ring in rings
    ]
    drawn = Region.from_polygons([[ring] for ring in fine], SIZE, "m")
    assert (cells(drawn) == cells(exact)).mean() > 0.999
    assert drawn.area_px == cells(drawn).sum()
    for box in rng.integers(0, 60, (30, 2)):
        x, y = box.tolist()
        if cells(drawn)[y : y + 3, x : x + 3].any():
            assert drawn.meets(x, y, x + 3, y + 3)


@pytest.mark.parametrize("grid", [False, True])
@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.integers(0, 160)] * 2),
    st.tuples(*[st.integers(0, 120)] * 2),
    st.lists(st.tuples(st.integers(0, 159), st.integers(0, 119)), min_size=1, max_size=30),
)
def test_a_point_lies_in_one_of_two_polygons_that_abut(grid, xs, ys, points):
    """A line from border to border parts the image, and points in halves of a px."""
    start, end = (xs[0] / 2, 0), (xs[1] / 2, 60)
    if ys[0] % 2:
        start, end = (0, ys[0] / 2), (80, ys[1] / 2)
        sides = [[start, end, (80, -5), (0, -5)], [end, start, (0, 65), (80, 65)]]
    else:
        sides = [[start, end, (-5, 60), (-5, 0)], [end, start, (85, 0), (85, 60)]]
    share = np.linspace(0, 1, 64)[:, None]
    on_line = np.rint((np.array(start) * (1 - share) + np.array(end) * share) * 2) / 2
    points = np.concatenate([np.array(points) / 2, on_line, CENTERS])
    points = points[(points < (80, 60)).all(axis=1)]
    # Many more polygons far away have these drawn on the grid.
    far = [[SQUARE + (1000 + 50 * i, 0)] for i in range(600)] if grid else []
    regions = [
        Region.from_polygons([[np.array(side)], *far], SIZE, "m")
        for side in sides
        if abs(shapely.Polygon(side).intersection(shapely.box(0, 0, 80, 60)).area) > 100
    ]
    count = sum(region.contains(points).astype(int) for region in regions)
    if len(regions) == 2:
        assert (count == 1).all()


def test_abutting_rectangles_and_triangles_share_no_point():
    left, right = (np.array([[x, 0], [x + 40, 0], [x + 40, 60], [x, 60]]) for x in (0, 40))
    upper, lower = ([[0, 0], [60, 0], [60, 60]], [[0, 0], [60, 60], [0, 60]])
    line = np.column_stack([np.arange(0, 60, 0.5)] * 2)
    for one, other, points in (
        (left, right, np.column_stack([np.full(120, 40.0), np.arange(0, 60, 0.5)])),
        (np.array(upper), np.array(lower), line),
    ):
        regions = [Region.from_polygons([[ring]], SIZE, "m") for ring in (one, other)]
        first, second = (region.contains(points) for region in regions)
        assert (first ^ second).all()


def test_the_borders_of_the_image_belong_to_a_polygon_that_covers_it():
    region = Region.from_polygons([[np.array([[0, 0], [80, 0], [80, 60], [0, 60]])]], SIZE, "m")
    last = np.nextafter((80, 60), 0)
    assert region.contains([[0, 0], last, (0, last[1])]).all()


def test_a_polygon_of_a_huge_image_takes_no_grid():
    angle = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    ring = np.column_stack([np.cos(angle), np.sin(angle)]) * 90_000 + 100_000
    region = Region.from_polygons([[ring]], (200_000, 200_000), "m")
    assert region.area_px == pytest.approx(np.pi * 90_000**2, rel=1e-6)
    assert region.contains([[10_001, 100_000], [9_999, 100_000]]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("ring", "words"),
    [
        ([[0, 0], [1, np.nan], [5, 5]], "no place in an image"),
        ([[0, 0], [1e308, 0], [5, 5]], "no place in an image"),
        ([[0, 0], [5, 5]], "fewer than 3 points"),
        ([[100, 100], [120, 100], [120, 120]], "no pixel inside the image of 80 x 60 px"),
        ([[5, 5], [20, 5], [30, 5]], "no pixel inside"),
        (np.zeros((2_000_001, 2)), "simplify its outline"),
    ],
)
def test_a_polygon_that_cannot_be_used_is_refused(ring, words):
    with pytest.raises(UserError, match=f"m.geojson has .*{words}"):
        Region.from_polygons([[np.array(ring)]], SIZE, "m.geojson")


def test_wild_outlines_end_in_a_sentence():
    wild = np.random.default_rng(0).uniform(0, 5000, (100_000, 2))
    with pytest.raises(UserError, match="too many long outlines"):
        Region.from_polygons([[wild]], (5000, 5000), "m")


def test_a_mask_is_scaled_up_by_the_nearest():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 1:5] = True
    mask[2, 2] = False
    region = Region.from_mask(mask, SIZE, "m.png")
    big = np.kron(mask, np.ones((10, 10), bool))
    assert (cells(region) == big).all()
    assert region.area_px == 1100
    assert not region.meets(21, 21, 29, 29) and region.meets(21, 21, 31, 29)
    outer, hole = sorted(map(shapely.Polygon, region.outlines()), key=lambda p: -p.area)
    assert outer.bounds == (10, 10, 50, 40)
    assert hole.bounds == (20, 20, 30, 30)


def test_an_odd_scale_of_a_mask_counts_each_pixel_once():
    mask = np.random.default_rng(1).random((17, 23)) < 0.5
    region = Region.from_mask(mask, SIZE, "m")
    assert region.area_px == cells(region).sum()
    rest = Region.from_mask(~mask, SIZE, "m")
    assert region.area_px + rest.area_px == 60 * 80


def test_a_large_mask_is_outlined_by_the_majority():
    mask = np.zeros((2600, 4000), bool)
    mask[400:2000, 800:3200] = True
    mask[1000:1200, 1000:1400] = False
    mask[5::8, 5::8] ^= True  # single cells, in and out
    outer, hole = Region.from_mask(mask, (5200, 8000), "m").outlines()
    assert shapely.Polygon(outer).bounds == (1600, 800, 6400, 4000)
    assert shapely.Polygon(hole).bounds == (2000, 2000, 2800, 2400)
    (line,) = Region.from_mask(np.arange(4000) == 2001 * np.ones((9, 1)), (9, 4000), "m").outlines()
    assert shapely.Polygon(line).bounds == (2000, 0, 2004, 9)


def test_the_outlines_of_noise_are_few():
    noise = np.random.default_rng(0).random((4096, 4096)) < 0.5
    outlines = Region.from_mask(noise, (8192, 8192), "m").outlines()
    assert 0 < sum(map(len, outlines)) <= 150_000
    assert max(ring.max() for ring in outlines) <= 8192


def test_a_mask_without_a_pixel_is_refused():
    with pytest.raises(UserError, match="m.png has no pixel inside"):
        Region.from_mask(np.zeros((6, 8), bool), SIZE, "m.png")


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_a_mask_counts_what_is_not_0(tmp_path, mode):
    inside = np.zeros(SIZE_region_files, bool)
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
    Image.fromarray(np.ones(SIZE_region_files, np.uint8)).save(tmp_path / "m.png")
    words = rf"m.png is 80 x 60 px .* its image a.tif {size[1]} x {size[0]} px"
    with pytest.raises(UserError, match=words):
        region_of(tmp_path / "m.png", size)


def test_an_empty_or_broken_mask_is_refused(tmp_path):
    Image.fromarray(np.zeros(SIZE_region_files, np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(UserError, match="no pixel that is not 0"):
        region_of(tmp_path / "m.png")
    content = (tmp_path / "m.png").read_bytes()
    (tmp_path / "m.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="m.png"):
        region_of(tmp_path / "m.png")


FORMS = {
    "tiles": (np.uint16, {"tile": (256, 64), "compression": "zlib"}),
    "strips": (np.uint16, {"rowsperstrip": 7}),
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
    region = region_of(path, inside.shape)
    assert region.area_px == inside.sum()
    points = [[90, top + 2], [90, top - 2], [34, top + 9], [29, top + 9], [90, bottom + 2]]
    assert region.contains(points).tolist() == [True, False, True, False, False]
    assert region.meets(149, bottom - 1, 150, bottom) and not region.meets(160, 0, 200, height)
    assert region_of(path, (2 * height, 400)).area_px == 4 * inside.sum()


@pytest.mark.parametrize("height", [80, 5003])
@pytest.mark.parametrize(
    ("value", "options", "words"),
    [
        (np.uint8(255), {"compression": "jpeg"}, "is compressed as photographs are.*LZW"),
        (np.float32("nan"), {}, "negative, fractional or no numbers; save a mask of 0 and 255"),
        (np.float32(0.5), {"compression": "zlib"}, "negative, fractional or no numbers"),
        (np.int16(-1), {}, "negative, fractional or no numbers"),
        (np.complex64(1), {}, "rare kind of TIFF; save it as grey"),
        (np.uint8(1), {"extratags": [(274, 3, 1, 6, True)]}, "is turned by a tag; save it upright"),
    ],
)
def test_a_tiff_that_is_no_mask_is_refused_at_any_size(tmp_path, height, value, options, words):
    tifffile.imwrite(tmp_path / "m.tif", np.full((height, 64), value), **options)
    size = (64, height) if "turned" in words else (height, 64)
    with pytest.raises(UserError, match=f"m.tif .*{words}") as caught:
        region_of(tmp_path / "m.tif", size)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("height", [80, 5003])
def test_of_the_pages_of_a_tiff_only_the_levels_of_a_pyramid_may_be_there(tmp_path, height):
    whole, small = np.ones((height, 64), np.uint8), np.ones((height // 2, 32), np.uint8)
    for name, kind in (("pyramid", 1), ("pages", 0)):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as writer:
            writer.write(whole)
            writer.write(small, subfiletype=kind)
    assert region_of(tmp_path / "pyramid.tif", whole.shape).area_px == whole.size
    with pytest.raises(UserError, match="pages.tif has several pages; save the one that counts"):
        region_of(tmp_path / "pages.tif", whole.shape)


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
    with pytest.raises(UserError, match="transparent in places; draw the region in white on black"):
        region_of(path, pixels.shape[:2])


def test_an_opaque_png_and_one_above_the_limit_of_pixels(tmp_path, monkeypatch):
    Image.fromarray(np.full((*SIZE_region_files, 4), 255, np.uint8)).save(tmp_path / "m.png")
    assert region_of(tmp_path / "m.png").area_px == 4800
    monkeypatch.setattr("microplastics.roi.region.MAX_PIXELS", 1000)
    with pytest.raises(
        UserError, match="m.png is 80 x 60 px.*shrink it with the same aspect.*TIFF"
    ):
        region_of(tmp_path / "m.png")


def test_frames_of_a_gif_are_refused(tmp_path):
    frames = [Image.fromarray(np.full(SIZE_region_files, grey, np.uint8)) for grey in (1, 200)]
    frames[0].save(tmp_path / "m.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="m.gif has 2 frames; save the one that counts alone"):
        region_of(tmp_path / "m.gif")


def test_one_file_for_all_images_is_read_once(tmp_path):
    Image.fromarray(np.ones(SIZE_region_files, np.uint8)).save(tmp_path / "m.png")
    source = RegionSource(str(tmp_path / "m.png"))
    source.check(["a.tif", "b.tif"])
    assert source.of_image("a.tif", SIZE_region_files, None).area_px == 4800
    os.remove(tmp_path / "m.png")
    assert source.of_image("b.tif", (120, 160), None).area_px == 19200
    with pytest.raises(UserError, match="its image c.tif 60 x 80 px"):
        source.of_image("c.tif", (80, 60), None)


def test_the_photographs_own_folder(tmp_path):
    photograph = np.full((*SIZE_region_files, 3), 90, np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(photograph).save(tmp_path / name)
    images = {name: str(tmp_path / name) for name in ("a.png", "b.png")}
    write(tmp_path / "a.geojson", POLYGON)
    source = RegionSource(str(tmp_path))
    with pytest.raises(UserError, match="has no file for the image b.png; put b.geojson there"):
        source.check(list(images), images)
    write(tmp_path / "b.geojson", POLYGON)
    source = RegionSource(str(tmp_path))
    source.check(list(images), images)
    assert source.of_image("b.png", SIZE_region_files, None).area_px == 900
    assert source.path_of("a.png") == tmp_path / "a.geojson"
    os.symlink(tmp_path / "a.png", tmp_path / "link.png")
    for path in ("a.png", "link.png"):
        with pytest.raises(UserError, match=f"{path} is one of the photographs; give 'circle'"):
            RegionSource(str(tmp_path / path)).check(list(images), images)
    # Masks alone, without photographs.
    RegionSource(str(tmp_path / "a.png")).check(["a.png"], {"a.png": ""})


def test_a_folder_finds_the_file_of_each_image(tmp_path):
    write(tmp_path / "river/a.geojson", POLYGON)
    Image.fromarray(np.ones(SIZE_region_files, np.uint8)).save(tmp_path / "b.PNG")
    write(tmp_path / "readme.txt", "not a region")
    source = RegionSource(str(tmp_path))
    source.check(["river/a.tif", "lake/b.jpg"])
    assert source.of_image("river/a.tif", SIZE_region_files, None).area_px == 900
    assert source.of_image("lake/b.jpg", SIZE_region_files, None).area_px == 4800
    assert source.of_image("river/a.tif", SIZE_region_files, None).source == "river/a.geojson"


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
    for empty in ("", " "):
        with pytest.raises(UserError, match="--region is empty; give 'circle'"):
            RegionSource(empty)


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
    with pytest.raises(ValueError, match="was not named to check"):
        RegionSource(str(tmp_path)).path_of("m.tif")


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
    with pytest.raises(
        UserError, match="a.tif shows no circle .* as --region, and put .*--merge-runs"
    ):
        source.of_image("a.tif", (3000, 4000), lambda side: (picture * 0, 10.0))


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
        (roi(ROI_TYPE.POLYGON, SQUARE_region_outlines[:4]), 1000),
        (roi(ROI_TYPE.FREEHAND, SQUARE_region_outlines[:4]), 1000),
        (roi(ROI_TYPE.TRACED, SQUARE_region_outlines[:4]), 1000),
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
    composite(HOLE, island, SQUARE_region_outlines).tofile(tmp_path / "m.roi")
    assert region_of(tmp_path / "m.roi").area_px == 1000 - 100 + 16


def test_the_rois_of_a_zip_unite(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("a.roi", roi(ROI_TYPE.RECT).tobytes())
        archive.writestr("b.roi", roi(ROI_TYPE.RECT, box=(0, 0, 20, 30)).tobytes())
        archive.writestr("readme.txt", "no roi")
    assert region_of(tmp_path / "m.zip").area_px == 1000 + 600 - 100


@pytest.mark.parametrize("kind", [ROI_TYPE.LINE, ROI_TYPE.POLYLINE, ROI_TYPE.POINT])
def test_a_roi_without_an_area_is_refused(tmp_path, kind):
    points = None if kind == ROI_TYPE.LINE else SQUARE_region_outlines[:4]
    roi(kind, points).tofile(tmp_path / "m.roi")
    with pytest.raises(UserError, match=f"m.roi is a {kind.name.lower()}, which has no area"):
        region_of(tmp_path / "m.roi")


@pytest.mark.parametrize("cut", [5, 40, 70, -6])
@pytest.mark.parametrize("suffix", [".roi", ".zip"])
def test_truncated_rois_are_refused(tmp_path, cut, suffix):
    content = roi(ROI_TYPE.POLYGON, SQUARE_region_outlines[:4]).tobytes()
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
    composite(SQUARE_region_outlines, wild).tofile(tmp_path / "m.roi")
    with pytest.raises(UserError, match="m.roi has a coordinate that is no place in an image"):
        region_of(tmp_path / "m.roi")


def test_a_composite_with_curves_is_refused(tmp_path):
    made = composite(SQUARE_region_outlines)
    made.multi_coordinates = np.array([0, 1, 1, 3, 5, 5, 9, 5, 9, 9, 4], np.float32)
    made.shape_roi_size = 11
    made.tofile(tmp_path / "m.roi")
    with pytest.raises(UserError, match="has curves, which cannot be read; .* > Interpolate"):
        region_of(tmp_path / "m.roi")


def test_what_shapely_gives_up_on_ends_in_a_sentence(tmp_path, monkeypatch):
    def give_up(*_):
        raise shapely.errors.GEOSException("TopologyException")

    composite(SQUARE_region_outlines, HOLE).tofile(tmp_path / "m.roi")
    write(tmp_path / "m.geojson", [POLYGON, POLYGON])
    for name, call in (("m.roi", "is_valid"), ("m.geojson", "unary_union")):
        with monkeypatch.context() as patch:
            patch.setattr(shapely, call, give_up)
            with pytest.raises(UserError, match=f"{name} has outlines that cannot be put together"):
                region_of(tmp_path / name)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_broken_content_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "m.zip", "w", method) as archive:
        archive.writestr("a.roi", roi(ROI_TYPE.POLYGON, SQUARE_region_outlines[:4]).tobytes())
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
