import pytest

from microplastics.errors import UserError
from microplastics.measurement.calibration_table import read_calibration_csv


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
    assert len(table) == 2
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
    with pytest.raises(UserError, match="has no line for x/c.jpg: add one"):
        table.lookup("x/c.jpg")


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "needs the columns image and um_per_px.* has nothing"),
        ("image,scale\na,1\n", "has 'image', 'scale'; correct its first line"),
        ("image,um\na,1\n", "needs the columns"),
        ("image,um_per_px,um,px\na,1,2,2\n", "each once"),
        ("image,image,um_per_px\na,a,1\n", "each once"),
        ("image,um_per_px\n", "lists no image"),
        ("image,um_per_px\na,1\na,1\n", "line 3: 'a' is listed twice"),
        ("image,um_per_px\na,1\nb,\n", "line 3: um_per_px is missing; fill it in"),
        ("image,um_per_px\na\n", "line 2: um_per_px is missing"),
        ("image,um_per_px\n,1\n", "line 2: the image is missing"),
        ("image,um_per_px\na,0\n", "line 2: um_per_px is '0'; give a number above 0"),
        ("image,um_per_px\na,-1\n", "line 2: um_per_px is '-1'"),
        ("image,um_per_px\na,nan\n", "give a number above 0"),
        ("image,um_per_px\na,1e308\n", "is no scale"),
        ("image,um_per_px\na,half\n", "line 2: um_per_px is 'half', which is no number"),
        ('image,um_per_px\na,"1,234.5"\n', "which is no number"),
        ("image,um,px\na,750,0\n", "line 2: px is '0'"),
        ("image,um,px\na,1e300,1e-300\n", "line 2: inf µm per pixel is no scale"),
        (b"image,um_per_px\na\0,1\n", "is not text"),
        ("image,um_per_px\na," + "9" * 200_000 + "\n", "line 2: .*save it as CSV again"),
    ],
)
def test_what_is_wrong_and_where(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        read_calibration_csv(written(tmp_path, content)).lookup("a")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path, "a\0b"):
        with pytest.raises(UserError, match="correct the path"):
            read_calibration_csv(path)
