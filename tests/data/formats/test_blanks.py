"""Blanks, on the command line and into the training loader."""

import itertools
import json

import pytest
from PIL import Image
from support import dataset_entry, user_error

from microplastics.data.coco import check_instances
from microplastics.data.formats import detect
from microplastics.data.formats.base import ReadOptions
from microplastics.data.formats.convert import FORMATS, convert_dataset, export_dataset
from microplastics.data.loader import TrainLoader, check_datasets
from microplastics.utils.errors import UserError


@pytest.fixture
def photos(tmp_path):
    """Two photographs of 96 px, one in a sub-folder."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("a.png", "filter 2/b.tif"), 1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 80), (number, 99, 99)).save(folder / name)
    return folder


def test_every_image_below_a_folder_is_a_blank(cli, photos, tmp_path):
    (photos / "notes.txt").write_text("washed twice")
    options = ("--input", photos, "--from", "blanks", "--output", tmp_path / "set")
    done = cli("convert", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].split() == ["all", "2", "2", "0", "0", "0"]
    assert (
        "annotation files among blanks left out; their images count as blanks: notes.txt"
        in done.stdout
    )
    json_file, image_root = done.stdout.splitlines()[-2].removeprefix("all: ").split(":")
    report = check_instances(json_file, image_root)
    assert (len(report.images), len(report.annotations)) == (2, 0)
    document = json.loads((tmp_path / "set/annotations/instances_all.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["a.png", "filter 2/b.tif"]
    assert [entry["name"] for entry in document["categories"]] == ["Fiber", "Fragment", "Film"]


def test_training_mixes_them_in(tiny_cfg, rendered, photos, tmp_path):
    (written,) = convert_dataset(photos, tmp_path / "set", "blanks").written
    sets = ("DATASETS.TRAIN", repr((dataset_entry(rendered, "train"), written.entry)))
    keep = ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False")
    loader = TrainLoader(check_datasets(tiny_cfg(*sets, *keep)))
    assert len(loader.dataset_dicts) == 10
    batches = itertools.islice(loader.iterate(0), 12)
    drawn = [item for batch in batches for item in batch]
    blanks = [item for item in drawn if item["file_name"].startswith(str(photos))]
    assert 0 < len(blanks) < len(drawn)
    assert all(len(item["instances"]) == 0 for item in blanks)
    with pytest.raises(UserError, match="instances_all.json"):
        check_datasets(tiny_cfg(*sets))


def test_classes_and_splits(cli, photos, tmp_path):
    (photos / "filter 2").rename(photos / "train")
    options = ("--input", photos, "--from", "blanks", "--output", tmp_path / "set")
    done = cli("convert", *options)
    assert done.returncode == 2 and "a.png lies beside the folders of the splits" in done.stderr
    (photos / "valid").mkdir()
    (photos / "a.png").rename(photos / "valid/a.png")
    done = cli("convert", *options, "--classes", "Bead, Fiber", "--copy")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split() == ["split", "images", "blank", "Bead", "Fiber"]
    for split, name in (("train", "b.tif"), ("val", "a.png")):
        path = tmp_path / f"set/annotations/instances_{split}.json"
        names = [entry["name"] for entry in json.loads(path.read_text())["categories"]]
        assert names == ["Bead", "Fiber"] and (tmp_path / "set" / split / name).is_file()


@pytest.mark.parametrize("format", FORMATS)
def test_a_set_without_annotations_is_exported(photos, tmp_path, format):
    convert_dataset(photos, tmp_path / "set", "blanks", place="copy")
    export = export_dataset(tmp_path / "set", tmp_path / "out", format)
    assert (export.splits["all"].num_images, export.splits["all"].num_blank) == (2, 2)
    assert (tmp_path / "out/export.json").is_file() and len(export.notes) == 0


def test_broken_images_stop_or_are_listed(photos, tmp_path):
    (photos / "c.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="c.jpg"):
        convert_dataset(photos, tmp_path / "set", "blanks")
    options = ReadOptions(skip_broken=True)
    conversion = convert_dataset(photos, tmp_path / "set", "blanks", options=options)
    assert conversion.notes.as_dict()["image_broken"]["places"][0].startswith("c.jpg")
    assert conversion.written[0].num_images == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from", "blanks", "--classes", "A,B,A"], "--classes has 'A'"),
        (["--from", "blanks", "--classes", "A,,B"], "--classes has ''"),
        (["--from", "blanks", "--categories", "A=B"], "--categories"),
        (["--from", "blanks", "--images", "x"], "--images"),
        (["--from", "coco", "--classes", "A"], "--classes"),
        ([], "--from"),
    ],
)
def test_invalid_options(cli, photos, tmp_path, options, words):
    result = cli("convert", "--input", photos, "--output", tmp_path / "set", *options)
    assert result.returncode == 2 and words in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "set").exists()


def test_blanks_are_never_detected(photos, tmp_path):
    with user_error("format_unknown", photos):
        detect(photos)
    (tmp_path / "empty").mkdir()
    with user_error("input_empty", tmp_path / "empty"):
        convert_dataset(tmp_path / "empty", tmp_path / "set", "blanks")
    with user_error("input_empty", "a.png"):
        convert_dataset(photos / "a.png", tmp_path / "set", "blanks")
