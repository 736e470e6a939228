import numpy as np
import pandas as pd
import pytest
from support import user_error

from microplastics.runs.images import InputImage
from microplastics.runs.store import RunStore
from microplastics.structures.particles import Particles
from microplastics.utils.errors import UserError
from microplastics.writers.tables import ImageResult, read_part


@pytest.fixture
def image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    return InputImage(str(tmp_path / "a.jpg"), "a.jpg")


@pytest.fixture
def result():
    masks, offsets = [np.ones((2, 3), bool)], np.array([[4, 5]])
    particles = Particles("a.jpg", (9, 9), masks, offsets, ["Fiber"], np.ones(1), np.ones(1, int))
    return ImageResult(particles, pd.DataFrame({"score": [1.0]}), ["Fiber"])


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "run", {"tile": 256, "size_bins": (10, 50)})
    store.claim(resume=False, overwrite=False)
    return store


def test_a_finished_image_comes_back_until_its_file_changes(store, image, result, tmp_path):
    assert not store.is_finished(image)
    store.save(image, result, {"particles": 1})
    assert store.is_finished(image) and store.record(image)["particles"] == 1
    assert read_part(store.part(image)).table["score"].to_pylist() == [1.0]
    (tmp_path / "a.jpg").write_bytes(b"22")
    assert not store.is_finished(image)


def test_an_image_that_failed_says_why_until_it_succeeds(store, image, result):
    assert store.failure(image).startswith("not reached")
    store.fail(image, "it is empty")
    assert store.failure(image) == "it is empty"
    store.save(image, result, {})
    assert store.failure(image).startswith("not reached") and store.is_finished(image)
    store.fail(image, "it is gone")
    assert not store.is_finished(image)


def test_a_damaged_part_is_not_finished(store, image, result):
    store.save(image, result, {})
    store.part(image).write_bytes(store.part(image).read_bytes()[:-20])
    assert not store.is_finished(image)


def test_what_a_killed_run_left_is_no_part_of_it(image, result, tmp_path):
    (tmp_path / "run" / "parts").mkdir(parents=True)
    (tmp_path / "run" / "overlays").mkdir()
    # Killed while it wrote its very first file, and another one while it wrote an overlay.
    for left in ("parts/.settings.json.a.unfinished", "overlays/.a.jpg.png.b.unfinished"):
        (tmp_path / "run" / left).touch()
    store = RunStore(tmp_path / "run", {})
    store.claim(resume=True, overwrite=False)
    assert not list((tmp_path / "run").rglob(".*"))


def test_a_run_is_neither_mixed_nor_lost(store, image, result, tmp_path):
    store.save(image, result, {})
    again = RunStore(tmp_path / "run", {"tile": 256, "size_bins": (10, 50)})
    being_written = tmp_path / "run" / "parts" / ".b.parquet.c.unfinished"
    being_written.touch()
    with user_error("output_exists", "--resume"):
        again.claim(resume=False, overwrite=False)
    assert being_written.exists()  # the run may be under way
    again.claim(resume=True, overwrite=False)
    assert not being_written.exists()
    assert again.is_finished(image)
    other = RunStore(tmp_path / "run", {"tile": 512, "size_bins": (10, 50)})
    with user_error("run_mismatch", "tile 256", "512"):
        other.claim(resume=True, overwrite=False)
    other.claim(resume=False, overwrite=True)
    assert not other.is_finished(image)


@pytest.mark.parametrize("way", ["resume", "overwrite"])
def test_a_foreign_folder_is_left_alone(tmp_path, way):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "thesis.doc").touch()
    with user_error("output_exists", tmp_path):
        RunStore(tmp_path, {}).claim(**{"resume": False, "overwrite": False, way: True})
    assert (tmp_path / "parts" / "thesis.doc").exists()


def test_beginning_anew_takes_away_what_the_old_run_wrote(store, image, result, tmp_path):
    store.save(image, result, {"name": "a.jpg"})
    gone = ("overlays/a.jpg.png", "labels/a.jpg.tif", "particles.csv", "samples.csv", "failed.csv")
    for name in (*gone, "overlays/mine.png", "notes.txt"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).touch()
    RunStore(tmp_path / "run", {}).claim(resume=False, overwrite=True)
    assert not any((tmp_path / "run" / name).exists() for name in gone)
    assert (tmp_path / "run/overlays/mine.png").exists() and (tmp_path / "run/notes.txt").exists()


def test_a_complete_run_without_its_parts_is_not_mixed_with_another(tmp_path):
    (tmp_path / "run.json").write_text('{"images": [{"name": "b.jpg"}]}')
    (tmp_path / "rois").mkdir()
    (tmp_path / "rois/b.jpg.zip").touch()
    with user_error("output_exists", tmp_path, "parts", "--overwrite"):
        RunStore(tmp_path, {}).claim(resume=True, overwrite=False)
    RunStore(tmp_path, {}).claim(resume=False, overwrite=True)
    assert not (tmp_path / "rois/b.jpg.zip").exists() and not (tmp_path / "run.json").exists()


def test_a_long_setting_is_cut_in_the_error(store, tmp_path):
    with pytest.raises(UserError) as error:
        RunStore(tmp_path / "run", {"tile": "x" * 5000}).claim(resume=True, overwrite=False)
    assert len(str(error.value)) < 400
