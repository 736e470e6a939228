import json

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import user_error

from microplastics.calibration.metadata import read_metadata
from microplastics.utils.errors import UserError

PIXELS = np.zeros((8, 8, 3), np.uint8)


def tiff(tmp_path, name="a.tif", **options):
    tifffile.imwrite(tmp_path / name, PIXELS, **{"photometric": "rgb", "metadata": None, **options})
    return tmp_path / name


def one(path):
    (scale,), notes = read_metadata(path)
    assert notes == []
    return scale.um_per_px, scale.source


@pytest.mark.parametrize(
    "resolution, unit, um",
    [((5000, 5000), "CENTIMETER", 2.0), ((12345.6, 12345.6), "INCH", 25400 / 12345.6)],
)
@pytest.mark.parametrize("bigtiff", [False, True])
def test_tiff_tags(tmp_path, resolution, unit, um, bigtiff):
    path = tiff(tmp_path, resolution=resolution, resolutionunit=unit, bigtiff=bigtiff)
    assert one(path) == (pytest.approx(um), "TIFF resolution tags")


@pytest.mark.parametrize("dpi", [1, 72, 96, 150, 300, 600, 1200, 4800])
def test_print_resolutions_are_not_a_scale(tmp_path, dpi):
    scales, (note,) = read_metadata(tiff(tmp_path, resolution=(dpi, dpi), resolutionunit="INCH"))
    assert scales == []
    assert f"TIFF resolution tags is not used: {dpi} dpi is a setting" in note
    assert f"give --um-per-px {25400 / dpi:.6g}" in note
    for kind in ("png", "jpg", "bmp"):
        Image.fromarray(PIXELS).save(tmp_path / f"a.{kind}", dpi=(dpi, dpi))
        scales, notes = read_metadata(tmp_path / f"a.{kind}")
        assert scales == [] and len(notes) == 1


@pytest.mark.parametrize(
    "options, words",
    [
        ({"resolution": (5000, 5000), "resolutionunit": "NONE"}, "no unit of length"),
        ({"resolution": (0, 0), "resolutionunit": "CENTIMETER"}, "not a positive number"),
        ({"resolution": (3e6, 3e6), "resolutionunit": "CENTIMETER"}, "outside the 0.01 to 100"),
        ({"resolution": (3.3, 3.3), "resolutionunit": "CENTIMETER"}, "outside the 0.01 to 100"),
    ],
)
def test_tags_that_are_not_used_are_noted(tmp_path, options, words):
    scales, (note,) = read_metadata(tiff(tmp_path, **options))
    assert scales == [] and words in note


@pytest.mark.parametrize(("unit", "per_unit"), [("MILLIMETER", 400.0), ("MICROMETER", 0.4)])
def test_units_beyond_the_standards(tmp_path, unit, per_unit):
    path = tiff(tmp_path, resolution=(per_unit, per_unit), resolutionunit=unit)
    (scale,), notes = read_metadata(path)
    assert scale.um_per_px == pytest.approx(2.5) and notes == []
    (), (note,) = read_metadata(tiff(tmp_path, resolution=(0, 0), resolutionunit=unit))
    assert "not a positive number" in note


def test_a_file_without_metadata(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg")
    assert read_metadata(tmp_path / "a.png") == ([], [])
    assert read_metadata(tmp_path / "a.jpg") == ([], [])


def test_pixels_that_are_not_square(tmp_path):
    path = tiff(tmp_path, resolution=(5000, 5100), resolutionunit="CENTIMETER")
    with user_error("scale_invalid", "a.tif", "2 x 1.96"):
        read_metadata(path)
    path = tiff(tmp_path, resolution=(5000, 5040), resolutionunit="CENTIMETER")
    assert len(read_metadata(path)[0]) == 1


@pytest.mark.parametrize(
    "size, unit, um",
    [
        (0.65, "µm", 0.65),
        (0.65, None, 0.65),
        (650, "nm", 0.65),
        (0.00065, "mm", 0.65),
        (6500, "Å", 0.65),
        (1.5, "thou", 38.1),
        (6.5e-7, "m", 0.65),
    ],
)
def test_ome(tmp_path, size, unit, um):
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    if unit:
        metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    path = tiff(tmp_path, "a.ome.tif", ome=True, metadata=metadata)
    (scale, *rest), _ = read_metadata(path)
    assert (scale.um_per_px, scale.source) == (pytest.approx(um), "OME-XML PhysicalSizeX")
    assert rest == []


@pytest.mark.parametrize(
    "xml, words",
    [
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel"', "unit is 'pixel'"),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="reference frame"', "unit is 'reference frame'"),
        ('PhysicalSizeX="nan"', "not a positive number"),
        ('PhysicalSizeX="-1"', "not a positive number"),
        ('PhysicalSizeX="1e308" PhysicalSizeXUnit="m"', "not a positive number"),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pc"', "unit is 'pc'"),
        ('PhysicalSizeX="', "its XML is broken"),
    ],
)
def test_ome_that_is_not_used(tmp_path, xml, words):
    text = f"<OME><Image><Pixels {xml}/></Image></OME>"
    scales, (note,) = read_metadata(tiff(tmp_path, description=text))
    assert scales == [] and words in note


def test_ome_entities_are_not_expanded(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY b "xxxxxxxxxx">]><OME>' + "&b;" * 1000 + "</OME>"
    scales, (note,) = read_metadata(tiff(tmp_path, description=bomb))
    assert scales == [] and "declares a document type" in note


@pytest.mark.parametrize(
    "unit, per_px, um",
    [
        ("micron", 2.0, 0.5),
        ("um", 2.0, 0.5),
        ("\\u00B5m", 2.0, 0.5),
        ("nm", 0.002, 0.5),
        ("mm", 2000.0, 0.5),
        ("cm", 20000.0, 0.5),
        ("inch", 50800.0, 0.5),
    ],
)
def test_imagej(tmp_path, unit, per_px, um):
    tifffile.imwrite(
        tmp_path / "a.tif",
        PIXELS[..., 0],
        imagej=True,
        resolution=(per_px, per_px),
        metadata={"unit": unit},
    )
    assert one(tmp_path / "a.tif") == (pytest.approx(um), "ImageJ metadata")


def test_imagej_in_pixels(tmp_path):
    path = tiff(tmp_path, description="ImageJ=1.54\nunit=pixel\n", resolution=(1, 1))
    scales, (note,) = read_metadata(path)
    assert scales == [] and "unit is 'pixel'" in note


def test_aperio_and_micromanager(tmp_path):
    path = tiff(tmp_path, description="Aperio Image Library\n8x8 |AppMag = 40|MPP = 0.2525|x = 1")
    assert one(path) == (0.2525, "Aperio MPP")
    tag = (51123, "s", 0, json.dumps({"PixelSizeUm": 0.325}), True)
    assert one(tiff(tmp_path, extratags=[tag])) == (0.325, "MicroManager PixelSizeUm")
    broken = (51123, "s", 0, "[" * 100_000, True)
    scales, (note,) = read_metadata(tiff(tmp_path, extratags=[broken]))
    assert scales == []


def test_png_and_jpeg(tmp_path):
    density = 25400 / 0.8
    Image.fromarray(PIXELS).save(tmp_path / "a.png", dpi=(density, density))
    assert one(tmp_path / "a.png") == (pytest.approx(0.8, rel=1e-3), "PNG pHYs")
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", dpi=(12701, 12701))
    assert one(tmp_path / "a.jpg") == (pytest.approx(25400 / 12701), "JPEG density")
    exif = Image.Exif()
    exif[282], exif[283], exif[296] = 5003.5, 5003.5, 3
    Image.fromarray(PIXELS).save(tmp_path / "b.jpg", exif=exif)
    scales, _ = read_metadata(tmp_path / "b.jpg")
    assert scales[-1].um_per_px == pytest.approx(10000 / 5003.5, rel=1e-3)
    assert scales[-1].source == "EXIF resolution"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), kind=st.sampled_from(["tif", "ome.tif", "png", "jpg"]))
def test_damaged_files_give_a_note_or_an_error(tmp_path, data, kind):
    path = tmp_path / f"a.{kind}"
    if "tif" in kind:
        tiff(tmp_path, path.name, resolution=(5000, 5000), resolutionunit="CENTIMETER")
    else:
        Image.fromarray(PIXELS).save(path, dpi=(12701, 12701))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        scales, _ = read_metadata(path)
    except UserError as error:
        assert error.code == "scale_invalid"
    else:
        assert all(0.01 <= scale.um_per_px <= 100 for scale in scales)
