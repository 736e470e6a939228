"""Groups by name, by table and by similarity."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import user_error

from microplastics.data.splits.groups import (
    NameIndex,
    group_of,
    groups_by_similarity,
    roboflow_original,
    table_from_csv,
)
from microplastics.utils.errors import UserError


def test_group_of_extracts_the_group():
    assert group_of("lake/F12_003.jpg", r"F(\d+)_") == "12"
    assert group_of("F12_b.jpg", r"(?P<group>F\d+)_(a|b)") == "F12"


@pytest.mark.parametrize(
    ("name", "pattern", "named"),
    [
        ("x.jpg", r"F(\d+)", "'x.jpg'"),
        ("x.jpg", r"x(y?)", "'x.jpg'"),
        ("x.jpg", r"F(\d+", "not a regular expression"),
        ("x.jpg", r"x", "0 capture groups"),
        ("x.jpg", r"(x)(.)", "2 capture groups"),
        ("x" * 300, r"(x)", "over 255 characters"),
    ],
)
def test_group_of_refuses(name, pattern, named):
    with user_error("option_invalid", named) as caught:
        group_of(name, pattern)
    assert "\n" not in str(caught.value)


def test_roboflow_copies_have_one_original():
    one, two = (f"a/F1_jpg.rf.{digest * 4}.jpg" for digest in ("f9c7eee0", "00aa11bb"))
    assert roboflow_original(one) == roboflow_original(two) == "a/F1_jpg"
    assert roboflow_original("F1_jpg.jpg") is None
    assert roboflow_original(".rf.abcdef1.jpg") is None


@pytest.mark.parametrize(
    "content",
    [
        b"image,group\na.jpg,F1\nb.jpg,F 2\n",
        b"\xef\xbb\xbfGroup;Image;note\r\nF1;a.jpg;x\r\n;;\r\nF 2;b.jpg\r\n\r\n",
        "IMAGE\tGROUP\na.jpg\tF1\nb.jpg\tF 2".encode("utf-16"),
        b'\n\nimage , group\n"a.jpg", F1 \nb.jpg,F 2',
    ],
)
def test_tables_of_groups(tmp_path, content):
    (tmp_path / "groups.csv").write_bytes(content)
    assert table_from_csv(tmp_path / "groups.csv", "image", "group") == {
        "a.jpg": "F1",
        "b.jpg": "F 2",
    }


def test_windows_1252_and_folds(tmp_path):
    (tmp_path / "folds.csv").write_bytes("image;fold\nprobe_ö.jpg;1\n".encode("cp1252"))
    assert table_from_csv(tmp_path / "folds.csv", "image", "fold") == {"probe_ö.jpg": "1"}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"file,group\na,b\n", "'file', 'group'; expected 'image'"),
        (b"image,group,group\na,b,c\n", "'group' once"),
        (b"", "expected 'image'"),
        (b"image,group\n", "lists no image"),
        (b"image,group\na,F1\n\na,F2\n", "line 4, is incomplete or lists 'a' again"),
        (b"image,group\na\n", "line 2, is incomplete"),
        (b'image,group\na,"F1\n' + b"x" * 200_000, "not a CSV table"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, named):
    (tmp_path / "g.csv").write_bytes(content)
    with user_error("table_invalid", named, tmp_path / "g.csv"):
        table_from_csv(tmp_path / "g.csv", "image", "group")


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.sampled_from([b"", b"image,group\n", b"\xff\xfe"]))
def test_any_bytes_are_a_table_or_a_sentence(tmp_path_factory, content, head):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(head + content)
    try:
        assert all(table_from_csv(path, "image", "group").values())
    except UserError as error:
        assert str(path) in str(error) and error.code in ("table_invalid", "file_invalid")


def test_external_names_are_found_by_part_and_stem():
    index = NameIndex(["a/one.jpg", "b/two.v2.png", "a/same.jpg", "b/same.jpg"])
    assert index.find("a/one.jpg") == "a/one.jpg"
    assert index.find("D:\\photos\\one.jpg") == "a/one.jpg"
    assert index.find("one.tif") == index.find("one") == "a/one.jpg"
    assert index.find("two.v2") == "b/two.v2.png"
    assert index.find("b/same.jpg") == "b/same.jpg"
    assert index.find("same.jpg") is index.find("same") is index.find("three") is None


def test_a_dot_in_a_name_is_not_an_extension():
    index = NameIndex(["S1.jpg", "S2.1.jpg"])
    assert index.find("S1.3") is None and index.find("S2.1") == "S2.1.jpg"
    assert index.find("S1.tif") == index.find("x/S1") == "S1.jpg"


def test_tables_must_name_every_image_once():
    index = NameIndex(["one.jpg", "two.jpg"])
    table = {"one": "F1", "x/two.jpg": "F2"}
    assert index.assign(table.items(), "g.csv", "group") == {"one.jpg": "F1", "two.jpg": "F2"}
    for wrong, named in (
        ({**table, "six": "F1"}, "'six'"),
        ({"one": "F1"}, "'two.jpg'"),
        ({**table, "one.jpg": "F2"}, "'one.jpg' two groups, 'F1' and 'F2'"),
    ):
        with user_error("table_invalid", "g.csv", named):
            index.assign(wrong.items(), "g.csv", "group")


def test_groups_of_similar_files(tmp_path):
    rng = np.random.default_rng(5)
    images = [cv2.GaussianBlur(rng.normal(0, 400, (90, 120)), (0, 0), 3) + 128 for _ in range(3)]
    one, two, three = (np.clip(image, 0, 255).astype(np.uint8) for image in images)
    files = {"a.png": one, "b.png": two, "c.jpg": cv2.flip(one, 0), "d.png": three, "e.png": two}
    for name, image in files.items():
        cv2.imwrite(str(tmp_path / name), image)
    assert groups_by_similarity([tmp_path / name for name in files]) == [0, 1, 0, 3, 1]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match="broken.jpg"):
        groups_by_similarity([tmp_path / "a.png", tmp_path / "broken.jpg"])
