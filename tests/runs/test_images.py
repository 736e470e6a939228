import os

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scale_bar_pictures import draw_bar, plain_style
from support import user_error

from microplastics.data.painting import PaintedRegions
from microplastics.runs.images import (
    ImageOpener,
    RunOptions,
    find_images,
    output_names,
    printable,
)


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.jpg", "b/10.PNG", "a/1.tif", ".hidden/x.jpg", "b/.y.jpg", "b/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(*inputs, **options):
    return [image.name for image in find_images([str(each) for each in inputs], **options)]


def test_folders_globs_files_and_lists_name_each_image_once(folder):
    everything = ["a/1.tif", "b/10.PNG", "b/2.jpg"]
    assert names(folder) == everything
    assert names(folder / "**" / "*.*") == everything
    assert names(folder / "b", folder / "b" / "2.jpg") == ["10.PNG", "2.jpg"]
    (folder / "list.txt").write_text("# mine\n\nb/2.jpg\na/1.tif\n", encoding="utf-8-sig")
    assert names(folder / "list.txt") == ["b/2.jpg", "a/1.tif"]


def test_names_fit_into_one_line(folder):
    (folder / "a/one\ntwo\t3.png").touch()
    assert names(folder / "a") == ["1.tif", "one\\ntwo\\t3.png"]


def test_a_runs_own_output_is_not_an_input(folder):
    assert names(folder, exclude=str(folder / "b")) == ["1.tif"]


def test_errors_name_the_input(folder):
    (folder / "list.txt").write_text("b/2.jpg\nb/3.jpg\n")
    for path, code, name in (
        ("c", "file_missing", "does not exist"),
        ("*.jpg", "file_missing", "*.jpg"),
        ("list.txt", "file_missing", "b/3.jpg"),
    ):
        with user_error(code, name):
            find_images([str(folder / path)])
    (folder / "empty").mkdir()
    with user_error("input_empty", folder / "empty"):
        find_images([str(folder / "empty")])


hostile = st.text(st.sampled_from("aA_./\\%~ :\n\x00é\udc80") | st.characters(), max_size=300)


@pytest.mark.parametrize(
    ("image", "stem"),
    [
        ("x.jpg", "x.jpg"),
        ("sample 1/Filter_2/x.jpg", "sample 1__Filter_2__x.jpg"),
        ("../../etc/passwd", "__..__etc__passwd"),
        ("/etc/passwd", "__etc__passwd"),
        (r"C:\x.jpg", "C__x.jpg"),
        (".hidden", "hidden"),
        ("a\nb.jpg", "a_b.jpg"),
        ("\udc80.jpg", "_.jpg"),
        ("Faser µm.tif", "Faser µm.tif"),
        ("", "_"),
    ],
)
def test_names_stay_readable_and_safe(image, stem):
    assert output_names([image]) == {image: stem}


@given(images=st.lists(hostile, unique=True, max_size=6))
def test_any_names_are_different_files_of_the_folder(images):
    stems = output_names(images)
    for stem in stems.values():
        assert os.path.basename(stem) == stem and not stem.startswith(".")
        assert 0 < len(stem.encode()) <= 240
        assert not set(stem) & set('/\\:*?"<>|\n\x00')
    assert len({stem.casefold() for stem in stems.values()}) == len(images)
    assert stems == output_names(images[::-1])


def test_long_and_equal_names_get_a_mark():
    images = ["x" * 400 + "1", "x" * 400 + "2", "a/b.jpg", "a__b.jpg"]
    stems = output_names(images)
    assert len(set(stems.values())) == 4 and all("~" in stem for stem in stems.values())


def test_names_that_differ_in_case_or_accents_alone_get_a_mark():
    stems = output_names(["a.jpg", "A.jpg", "b.jpg", "é.jpg", "e\u0301.jpg"])
    assert stems["b.jpg"] == "b.jpg"
    assert stems["a.jpg"].startswith("a.jpg~") and stems["A.jpg"].startswith("A.jpg~")
    assert stems["a.jpg"][6:] != stems["A.jpg"][6:]
    assert stems["é.jpg"] != "é.jpg"


def test_bytes_that_are_no_text_can_be_written():
    assert printable("a\udc80b") == "a\\udc80b"


@pytest.mark.parametrize("plate", ["none", "solid"])
def test_a_bar_is_painted_over_wherever_the_scale_comes_from(tmp_path, plate):
    style = plain_style(ink="white", plate=plate, thick=2.0, font_px=14, text_opacity=0.7)
    drawn = draw_bar(np.full((300, 400, 3), 90, np.uint8), style)
    cv2.imwrite(str(tmp_path / "a.png"), drawn.image)
    (image,) = find_images([str(tmp_path)])
    scales = {"um_per_px": 2.0}, {"scale_bar_um": 750.0}, {"ignore_metadata": True}
    for options in scales:
        with ImageOpener(RunOptions(str(tmp_path), **options)).open(image) as opened:
            painted = PaintedRegions(opened.regions, opened.boxes).read(0, 0, 400, 300)
            assert (np.abs(painted.astype(int) - 90) <= 2).all()
    with ImageOpener(RunOptions(str(tmp_path), scale_bar="ignore")).open(image) as opened:
        assert opened.boxes == []
