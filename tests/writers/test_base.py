import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microplastics.writers import output_name, output_names
from microplastics.writers.base import printable

hostile = st.text(st.sampled_from("aA_./\\%~ :\n\x00é\udc80") | st.characters(), max_size=300)


@pytest.mark.parametrize(
    ("image", "stem"),
    [
        ("x.jpg", "x.jpg"),
        ("x.png", "x.png"),
        ("sample 1/Filter_2/x.jpg", "sample 1__Filter_2__x.jpg"),
        ("a__b.jpg", "a%5F%5Fb.jpg"),
        ("a_/b.jpg", "a%5F__b.jpg"),
        ("../../etc/passwd", "%2E%2E__%2E%2E__etc__passwd"),
        ("/etc/passwd", "__etc__passwd"),
        (r"C:\x.jpg", "C%3A%5Cx.jpg"),
        (".hidden", "%2Ehidden"),
        ("100%.jpg", "100%25.jpg"),
        ("NUL.jpg", "%4EUL.jpg"),
        ("com1", "%63om1"),
        ("a\nb.jpg", "a%0Ab.jpg"),
        ("\udc80.jpg", "%uDC80.jpg"),
        ("Faser µm.tif", "Faser µm.tif"),
        ("", "%"),
    ],
)
def test_names_stay_readable_and_safe(image, stem):
    assert output_name(image) == stem


@given(image=hostile)
def test_any_name_is_one_file_of_the_folder(image):
    stem = output_name(image)
    assert os.path.basename(stem) == stem and stem not in (".", "..")
    assert 0 < len(stem.encode()) <= 160
    assert not set(stem) & set('/\\:*?"<>|\n\x00')


@given(images=st.lists(hostile, unique=True, max_size=6))
def test_different_names_never_meet_on_any_file_system(images):
    stems = output_names(images)
    assert len({stem.casefold() for stem in stems.values()}) == len(images)
    assert len({output_name(image) for image in images}) == len(images)
    assert stems == output_names(images[::-1])


def test_long_names_are_cut_and_told_apart():
    one, other = output_name("x" * 400 + "1"), output_name("x" * 400 + "2")
    assert one != other and one.startswith("xxxx") and len(one) == 160
    assert len(output_name("µ" * 300).encode()) <= 160


def test_names_that_differ_in_case_or_accents_alone_get_a_mark():
    stems = output_names(["a.jpg", "A.jpg", "b.jpg", "é.jpg", "e\u0301.jpg"])
    assert stems["b.jpg"] == "b.jpg"
    assert stems["a.jpg"].startswith("a.jpg~") and stems["A.jpg"].startswith("A.jpg~")
    assert stems["a.jpg"][6:] != stems["A.jpg"][6:]
    assert stems["é.jpg"] != "é.jpg"


def test_bytes_that_are_no_text_can_be_written():
    assert printable("a\udc80b") == "a\\udc80b"
