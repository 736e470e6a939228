import os

import numpy as np
import pytest
import tifffile
from PIL import Image
from region_support import FEATURE, POLYGON, SIZE, region_of, write

from microplastics.errors import UserError
from microplastics.measurement.region_files import RegionSource


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
    Image.fromarray(np.full((*SIZE, 4), 255, np.uint8)).save(tmp_path / "m.png")
    assert region_of(tmp_path / "m.png").area_px == 4800
    monkeypatch.setattr("microplastics.measurement.region_files.MAX_PIXELS", 1000)
    with pytest.raises(
        UserError, match="m.png is 80 x 60 px.*shrink it with the same aspect.*TIFF"
    ):
        region_of(tmp_path / "m.png")


def test_frames_of_a_gif_are_refused(tmp_path):
    frames = [Image.fromarray(np.full(SIZE, grey, np.uint8)) for grey in (1, 200)]
    frames[0].save(tmp_path / "m.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="m.gif has 2 frames; save the one that counts alone"):
        region_of(tmp_path / "m.gif")


def test_one_file_for_all_images_is_read_once(tmp_path):
    Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / "m.png")
    source = RegionSource(str(tmp_path / "m.png"))
    source.check(["a.tif", "b.tif"])
    assert source.of_image("a.tif", SIZE, None).area_px == 4800
    os.remove(tmp_path / "m.png")
    assert source.of_image("b.tif", (120, 160), None).area_px == 19200
    with pytest.raises(UserError, match="its image c.tif 60 x 80 px"):
        source.of_image("c.tif", (80, 60), None)


def test_the_photographs_own_folder(tmp_path):
    photograph = np.full((*SIZE, 3), 90, np.uint8)
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
    assert source.of_image("b.png", SIZE, None).area_px == 900
    assert source.path_of("a.png") == tmp_path / "a.geojson"
    os.symlink(tmp_path / "a.png", tmp_path / "link.png")
    for path in ("a.png", "link.png"):
        with pytest.raises(UserError, match=f"{path} is one of the photographs; give 'circle'"):
            RegionSource(str(tmp_path / path)).check(list(images), images)
    # Masks alone, without photographs.
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
