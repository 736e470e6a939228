"""microplastics/report/counting.py."""

import numpy as np
import pytest
from PIL import Image

from microplastics.errors import UserError
from microplastics.report.counting import plot_counting_curves, read_counting_curves

HEADER = "class,threshold,true,predicted,count_error,count_error_pct,precision,recall,F1\n"


def write(path, names):
    rows = [
        f"{name},{t / 100},20,{60 - t // 2},{40 - t // 2},1,{t},{100 - t},{'' if t > 90 else 50}\n"
        for name in names
        for t in range(1, 100)
    ]
    path.write_text(HEADER + "".join(rows))
    return path


def test_empty_cells_are_gaps(tmp_path):
    panels = read_counting_curves(write(tmp_path / "a.csv", ["Fiber", "all"]))
    assert list(panels) == ["Fiber", "all"]
    assert panels["Fiber"]["predicted"][0] == 60 and np.isnan(panels["all"]["F1"][-1])


@pytest.mark.parametrize("names", [["all"], ["Fiber $x", "all"], ["a", "b", "c", "all"], "abcde"])
def test_a_panel_for_each_class(tmp_path, names):
    table = write(tmp_path / "a.csv", names)
    plot_counting_curves(table, tmp_path / "a.png", {names[0]: 0.4})
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"), dtype=int)
    # The curve of F1 in its blue, in as many panels as there are classes.
    blue = (np.abs(picture - (0x00, 0x72, 0xB2)).sum(axis=2) < 30).sum()
    assert blue > 200 * len(names)
    assert picture.shape[1] > 400 * min(len(names), 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "Cannot read .*a.csv: No such file"),
        ("", "holds no threshold curves; give the counting_curves.csv"),
        ("class,F1\nFiber,1\n", "holds no threshold curves"),
        (HEADER + "Fiber,0.1,x,1,1,1,1,1,1\n", "holds no threshold curves"),
        (HEADER + "Fiber,0.1\n", "holds no threshold curves"),
        (b"\xff\xfe\x00", "holds no threshold curves"),
    ],
)
def test_other_files(tmp_path, text, words):
    if text is not None:
        (tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words):
        plot_counting_curves(tmp_path / "a.csv", tmp_path / "a.png")
