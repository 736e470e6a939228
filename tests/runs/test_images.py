import pytest
from support import user_error

from microplastics.runs.images import find_images


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
    for given, code, name in (
        ("c", "file_missing", "--input"),
        ("*.jpg", "file_missing", "*.jpg"),
        ("list.txt", "file_missing", "b/3.jpg"),
    ):
        with user_error(code, name):
            find_images([str(folder / given)])
    (folder / "empty").mkdir()
    with user_error("input_empty", folder / "empty"):
        find_images([str(folder / "empty")])
