"""microplastics/data/blank_windows.py and tools/cut_blanks.py."""

import json

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from microplastics.data.blank_windows import cut_blank_windows, largest_free_square


def test_the_square_beside_a_box_is_found():
    assert largest_free_square(np.zeros((0, 4)), 21, 21) == (0, 0, 21)
    assert largest_free_square(np.zeros((0, 4)), 256, 300)[2] == 256
    x, y, side = largest_free_square(np.array([[0, 0, 9, 100.0]]), 40, 100)
    assert side == 31 and x == 9 and 0 <= y <= 69
    assert largest_free_square(np.array([[-5, -5, 50, 50.0]]), 40, 40)[2] == 0


@given(
    st.lists(st.tuples(*[st.integers(-5, 30)] * 4), max_size=6),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_no_box_reaches_into_it_and_none_is_larger(corners, width, height):
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    taken = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        taken[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    x, y, side = largest_free_square(np.array(boxes, float).reshape(-1, 4), width, height)
    assert x >= 0 and y >= 0 and x + side <= width and y + side <= height
    assert not taken[y : y + side, x : x + side].any()

    def free(k):
        windows = np.lib.stride_tricks.sliding_window_view(taken, (k, k))
        return (~windows.any(axis=(2, 3))).any()

    best = max([k for k in range(1, min(width, height) + 1) if free(k)], default=0)
    assert side == best


def test_images_of_one_name_keep_a_square_each(tmp_path):
    names = ["a/x.jpg", "b/x.jpg", "b/x.png"]
    for shade, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.full((32, 32, 3), 60 * shade, np.uint8))
    images = [
        {"id": n, "file_name": name, "width": 32, "height": 32} for n, name in enumerate(names)
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "Fiber"}]}
    (tmp_path / "all.json").write_text(json.dumps(content))
    written, without = cut_blank_windows(tmp_path / "all.json", tmp_path, tmp_path / "out", 32)
    found = [path.relative_to(tmp_path / "out").as_posix() for path in written]
    assert found == ["a/x_0_0.png", "b/x_0_0.png", "b/x_png_0_0.png"] and without == []
    assert [cv2.imread(str(path)).mean().round() for path in written] == [0, 60, 120]


def test_the_tool_writes_particle_free_squares(tool_here, rendered, tmp_path):
    json_file = rendered / "annotations" / "instances_train.json"
    arguments = ("--input", json_file, "--images", rendered / "train", "--output", tmp_path / "b")
    result = tool_here("cut_blanks", *arguments, "--min-size", "16", "--margin", "2")
    assert result.returncode == 0, result.stderr
    data = json.loads(json_file.read_text())
    for path in (tmp_path / "b").glob("*.png"):
        stem, x, y = path.stem.rsplit("_", 2)
        side = cv2.imread(str(path)).shape[0]
        (image,) = [i for i in data["images"] if i["file_name"].startswith(stem)]
        for a in data["annotations"]:
            if a["image_id"] == image["id"]:
                bx, by, w, h = a["bbox"]
                outside = bx >= int(x) + side or bx + w <= int(x)
                assert outside or by >= int(y) + side or by + h <= int(y)
    result = tool_here("cut_blanks", *arguments, "--min-size", "95", "--margin", "2")
    assert result.returncode == 2 and "lower --min-size" in result.stderr
