import cv2
import numpy as np
import pytest
import tifffile
from scale_bar_pictures import reader

from microplastics.errors import UserError
from microplastics.measurement.calibration_sources import resolve_calibration
from microplastics.measurement.calibration_table import read_calibration_csv


@pytest.fixture
def picture():
    """Grey picture with a black bar of 100 px and its text."""
    image = np.full((200, 300, 3), 170, np.uint8)
    image[180:184, 150:250] = 0
    cv2.putText(image, "50 um", (165, 172), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1)
    return image


@pytest.fixture
def resolve(tmp_path, picture):
    """``resolve(metadata µm/px or None, **options)`` of a TIFF with the picture."""

    def call(um_per_px_inside=None, **options):
        path = tmp_path / "a.tif"
        metadata = {"axes": "YXS"}
        if um_per_px_inside:
            metadata |= {"PhysicalSizeX": um_per_px_inside, "PhysicalSizeY": um_per_px_inside}
        tifffile.imwrite(path, picture[..., ::-1], ome=True, photometric="rgb", metadata=metadata)
        return resolve_calibration(path, 300, 200, reader(picture), **options)

    return call


def table(tmp_path, scale):
    (tmp_path / "scales.csv").write_text(f"image,um_per_px\na,{scale}\n")
    return read_calibration_csv(tmp_path / "scales.csv")


def test_nothing_says_anything(resolve):
    assert resolve() == (None, [], [])


def test_each_source_alone(resolve, tmp_path):
    for calibration, um_per_px, source in (
        (resolve(um_per_px=2.0)[0], 2.0, "option --um-per-px"),
        (resolve(table=table(tmp_path, 0.5))[0], 0.5, "scales.csv"),
        (resolve(0.25)[0], 0.25, "OME-XML PhysicalSizeX"),
        (resolve(scale_bar_um=50)[0], 0.5, "scale bar of 50 um, 100.0 px"),
    ):
        assert (calibration.um_per_px, calibration.source) == (um_per_px, source)


def test_the_bar_and_its_text_hold_no_particle(resolve, picture):
    _, boxes, _ = resolve(scale_bar_um=50)
    covered = np.zeros(picture.shape[:2], bool)
    for x, y, w, h in boxes:
        covered[y : y + h, x : x + w] = True
    assert covered[picture[..., 0] != 170].all()
    assert covered.mean() < 0.1
    assert resolve(0.5)[1] == []


def test_sources_that_agree(resolve, tmp_path):
    calibration, _, _ = resolve(0.502, um_per_px=0.5, scale_bar_um=50.2)
    assert calibration.um_per_px == 0.5
    assert calibration.source == "option --um-per-px and scale bar of 50.2 um, 100.0 px"
    calibration, _, _ = resolve(0.502, table=table(tmp_path, 0.5))
    assert (calibration.um_per_px, calibration.source) == (0.5, "scales.csv")


def test_sources_that_differ(resolve, tmp_path):
    words = (
        r"a.tif: option --um-per-px says 2 µm per pixel and OME-XML PhysicalSizeX says 0.5: "
        r"correct what you give, or add --ignore-metadata if the file is wrong\.$"
    )
    with pytest.raises(UserError, match=words):
        resolve(0.5, um_per_px=2.0)
    assert resolve(0.5, um_per_px=2.0, use_metadata=False)[0].um_per_px == 2.0
    with pytest.raises(UserError, match="scale bar of 75 um, 100.0 px says 0.75: give one of them"):
        resolve(um_per_px=0.5, scale_bar_um=75)
    with pytest.raises(UserError, match="scales.csv says 0.6: give one of them"):
        resolve(um_per_px=0.5, table=table(tmp_path, 0.6))


def test_metadata_that_contradict_each_other(tmp_path, picture):
    options = {"resolution": (5000, 5000), "resolutionunit": "CENTIMETER", "metadata": None}
    text = '<OME><Image><Pixels PhysicalSizeX="0.5"/></Image></OME>'
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", description=text, **options)
    with pytest.raises(UserError, match="TIFF resolution tags says 2: give the right one by --um"):
        resolve_calibration(tmp_path / "a.tif", 300, 200, reader(picture))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e308, 1e-9])
def test_values_that_are_no_scale(resolve, value):
    with pytest.raises(UserError, match="--um-per-px: .* is no scale; give a number"):
        resolve(um_per_px=value)
    with pytest.raises(UserError, match="is no length|is no scale"):
        resolve(scale_bar_um=value)


def test_a_picture_without_a_bar(tmp_path):
    image = np.full((100, 100, 3), 90, np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    with pytest.raises(
        UserError, match="a.png shows no scale bar .* give its scale by --um-per-px"
    ):
        resolve_calibration(tmp_path / "a.png", 100, 100, reader(image), scale_bar_um=750)


def test_metadata_not_used_is_said(tmp_path):
    image = np.full((100, 100, 3), 90, np.uint8)
    options = {"resolution": (72, 72), "resolutionunit": "INCH", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", **options)
    calibration, boxes, notes = resolve_calibration(tmp_path / "a.tif", 100, 100, reader(image))
    assert (calibration, boxes) == (None, [])
    assert "72 dpi is a setting for print or screen" in notes[0]
