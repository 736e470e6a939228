import pytest

from microplastics.runs.images import find_images
from microplastics.utils.errors import UserError


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


def test_a_runs_own_output_is_no_input(folder):
    assert names(folder, exclude=str(folder / "b")) == ["1.tif"]


def test_errors_name_the_input_and_the_mend(folder):
    (folder / "list.txt").write_text("b/2.jpg\nb/3.jpg\n")
    for given, words in {
        "c": "--input .*c does not exist; correct the path",
        "*.jpg": "matches no image",
        "list.txt": "line 2: b/3.jpg does not exist",
    }.items():
        with pytest.raises(UserError, match=words):
            find_images([str(folder / given)])
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        find_images([str(folder / "empty")])
