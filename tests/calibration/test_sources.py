import cv2
import numpy as np
import pytest
import tifffile
from scale_bar_pictures import reader
from support import user_error

from microplastics.calibration.label import parse_label
from microplastics.calibration.sources import read_calibration_csv, resolve_calibration


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


def test_without_a_source_there_is_no_scale(resolve):
    assert resolve(scale_bar="ignore") == (None, [], [])


def test_each_source_by_itself(resolve, tmp_path):
    for calibration, um_per_px, source in (
        (resolve(um_per_px=2.0)[0], 2.0, "option --um-per-px"),
        (resolve(table=table(tmp_path, 0.5))[0], 0.5, "scales.csv"),
        (resolve(0.25)[0], 0.25, "OME-XML PhysicalSizeX"),
        (resolve(scale_bar_um=50)[0], 0.5, "scale bar of 50 um, 100.0 px"),
    ):
        assert (calibration.um_per_px, calibration.source) == (um_per_px, source)


def test_the_bar_and_its_text_hold_no_particle(resolve, picture):
    _, (bar,), _ = resolve(scale_bar_um=50)
    covered = np.zeros(picture.shape[:2], bool)
    for x, y, w, h in bar.boxes:
        covered[y : y + h, x : x + w] = True
    assert covered[picture[..., 0] != 170].all()
    assert covered.mean() < 0.1
    # Nor where the scale comes from elsewhere.
    assert resolve(0.5)[1] == resolve(um_per_px=0.5)[1] != []
    assert resolve(0.5, scale_bar="ignore")[1] == []


def test_sources_that_agree(resolve, tmp_path):
    calibration, _, _ = resolve(0.502, um_per_px=0.5, scale_bar_um=50.2)
    assert calibration.um_per_px == 0.5
    assert calibration.source == "option --um-per-px and scale bar of 50.2 um, 100.0 px"
    calibration, _, _ = resolve(0.502, table=table(tmp_path, 0.5))
    assert (calibration.um_per_px, calibration.source) == (0.5, "scales.csv")


def test_sources_that_differ(resolve, tmp_path):
    both = ("a.tif", "option --um-per-px says 2 µm", "OME-XML PhysicalSizeX says 0.5")
    with user_error("scale_conflict", *both, "--ignore-metadata"):
        resolve(0.5, um_per_px=2.0)
    assert resolve(0.5, um_per_px=2.0, use_metadata=False)[0].um_per_px == 2.0
    with user_error("scale_conflict", "scale bar of 50 um, 100.0 px says 0.5"):
        resolve(um_per_px=0.6, scale_bar_um=50)
    with user_error("scale_conflict", "scales.csv says 0.6"):
        resolve(um_per_px=0.5, table=table(tmp_path, 0.6))


def test_metadata_that_contradict_each_other(tmp_path, picture):
    options = {"resolution": (5000, 5000), "resolutionunit": "CENTIMETER", "metadata": None}
    text = '<OME><Image><Pixels PhysicalSizeX="0.5"/></Image></OME>'
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", description=text, **options)
    with user_error("scale_conflict", "TIFF resolution tags says 2", "--um-per-px"):
        resolve_calibration(tmp_path / "a.tif", 300, 200, reader(picture))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e308, 1e-9])
def test_values_that_are_not_a_scale(resolve, value):
    with user_error("scale_invalid", "--um-per-px", f"{value:g}"):
        resolve(um_per_px=value)
    code = "scale_invalid" if value == 1e-9 else "option_invalid"
    with user_error(code, f"{value:g}"):
        resolve(scale_bar_um=value)


def test_the_label_is_read(resolve):
    pytest.importorskip("rapidocr")
    calibration, (bar,), _ = resolve(scale_bar="auto")
    assert (calibration.um_per_px, bar.um) == (0.5, 50)
    assert calibration.source == "scale bar of 50 um, 100.0 px"
    with user_error("scale_conflict", "a.tif", "--scale-bar-um says 75 µm", "label", "50 µm"):
        resolve(scale_bar_um=75)


def test_a_label_that_cannot_be_read(resolve, picture):
    pytest.importorskip("rapidocr")
    picture[150:178] = 170
    with user_error("scale_missing", "a.tif", "100.0 px", "--scale-bar-um"):
        resolve(scale_bar="auto")
    assert resolve(scale_bar_um=75)[0].um_per_px == 0.75


@pytest.mark.parametrize(
    "text, um",
    [
        *(("750 µm", 750), ("750 μm", 750), ("200um", 200), ("0,5 mm", 500), ("0.5mm", 500)),
        *(("2.5 mm", 2500), ("500 nm", 0.5), ("1OO pm", 100), ("50 microns", 50)),
        *(("1004m", None), ("mm", None), ("50", None), ("10 x", None), ("0 µm", None)),
        *(("1.000.0 µm", None), ("5 µm/px", None), ("", None), ("10 kV", None)),
    ],
)
def test_labels(text, um):
    assert parse_label(text) == um


def test_a_picture_without_a_bar(tmp_path):
    image = np.full((100, 100, 3), 90, np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    with user_error("scale_missing", "a.png", "--um-per-px"):
        resolve_calibration(tmp_path / "a.png", 100, 100, reader(image), scale_bar_um=750)


def test_metadata_that_are_not_used_give_a_note(tmp_path):
    image = np.full((100, 100, 3), 90, np.uint8)
    options = {"resolution": (72, 72), "resolutionunit": "INCH", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", **options)
    calibration, boxes, notes = resolve_calibration(tmp_path / "a.tif", 100, 100, reader(image))
    assert (calibration, boxes) == (None, [])
    assert "72 dpi is a setting for print or screen" in notes[0]


def written(tmp_path, content, name="scales.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "image,um_per_px\na.jpg,0.5\nb,2\n",
        "image;um_per_px\na.jpg;0,5\nb;2\n",
        "image\tum_per_px\r\na.jpg\t0,5\r\nb\t2\r\n",
        "image,note,UM,PX\na.jpg,x,100,200\n\nb,y,750,375\n",
        'image,um_per_px\n"a.jpg","0,5"\nb,2e0\n',
        "\ufeffimage,µm/px\na.jpg,0.5\nb,2\n",
        "image;um_per_px\na.jpg;0,5\nb;2\n".encode("utf-16"),
        "image;µm_per_px\na.jpg;0,5\nb;2\n".encode("cp1252"),
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, content):
    table = read_calibration_csv(written(tmp_path, content))
    assert len(table.scales) == 2
    assert table.lookup("photos/a.jpg").um_per_px == 0.5
    assert table.lookup("photos/b.tif").um_per_px == 2.0
    assert table.lookup("a.jpg").source == "scales.csv"


def test_the_row_that_names_most_folders_wins(tmp_path):
    rows = "image,um_per_px\na.jpg,1\na,2\nS1/a.jpg,3\nS2\\a,4\n./S3/a.jpg,5\n"
    table = read_calibration_csv(written(tmp_path, rows))
    for path, scale in {
        "x/a.jpg": 1,
        "x/a.png": 2,
        "x/S1/a.jpg": 3,
        "S2/a.jpg": 4,
        "x/S3/a.jpg": 5,
    }.items():
        assert table.lookup(path).um_per_px == scale
    with user_error("scale_missing", "scales.csv", "x/c.jpg"):
        table.lookup("x/c.jpg")


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "an empty file"),
        ("image,scale\na,1\n", "image, scale;"),
        ("image,um\na,1\n", "image, um;"),
        ("image,um_per_px,um,px\na,1,2,2\n", "image, um_per_px, um, px;"),
        ("image,image,um_per_px\na,a,1\n", "image, image, um_per_px;"),
        ("image,um_per_px\n", "no image"),
        ("image,um_per_px\na,1\na,1\n", "line 3: 'a' is listed twice"),
        ("image,um_per_px\na,1\n\nb,\n", "line 4: um_per_px is ''"),
        ("image,um_per_px\na\n", "line 2: um_per_px is ''"),
        ("image,um_per_px\n,1\n", "line 2: the image is missing"),
        ("image,um_per_px\na,0\n", "line 2: um_per_px is '0'"),
        ("image,um_per_px\na,-1\n", "line 2: um_per_px is '-1'"),
        ("image,um_per_px\na,nan\n", "line 2: um_per_px is 'nan'"),
        ("image,um_per_px\na,half\n", "line 2: um_per_px is 'half'"),
        ('image,um_per_px\na,"1,234.5"\n', "line 2: um_per_px is '1,234.5'"),
        ("image,um,px\na,750,0\n", "line 2: px is '0'"),
        ("image,um_per_px\na," + "9" * 200_000 + "\n", "line 2: um_per_px is '999"),
    ],
)
def test_what_is_wrong_and_where(tmp_path, content, words):
    with user_error("table_invalid", "scales.csv", words):
        read_calibration_csv(written(tmp_path, content))


@pytest.mark.parametrize(
    ("row", "scale"), [("um_per_px\na,1e308", "1e+308"), ("um,px\na,1e300,1e-300", "inf")]
)
def test_scales_that_are_not_plausible(tmp_path, row, scale):
    with user_error("scale_invalid", "scales.csv, line 2", scale):
        read_calibration_csv(written(tmp_path, f"image,{row}\n"))


def test_files_that_are_not_tables(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path, "a\0b"):
        with user_error("file_missing", path):
            read_calibration_csv(path)
    with user_error("file_invalid", "scales.csv"):
        read_calibration_csv(written(tmp_path, b"image,um_per_px\na\0,1\n"))
