"""microplastics export-dataset on the command line."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image


@pytest.fixture
def dataset(tmp_path):
    """A canonical set of two splits: a polygon, a mask with a hole, a crowd, a blank."""
    ring = np.zeros((40, 60), np.uint8)
    ring[5:20, 5:20] = 1
    ring[10:15, 10:15] = 0
    hole = mask_util.encode(np.asfortranarray(ring))
    hole["counts"] = hole["counts"].decode()
    square = [30.0, 5.0, 50.0, 5.0, 50.0, 25.0, 30.0, 25.0]
    fields = {"image_id": 1, "category_id": 1, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]}
    annotations = {
        "train": [
            {**fields, "id": 1, "segmentation": [square], "area": 400, "bbox": [30, 5, 20, 20]},
            {**fields, "id": 2, "segmentation": hole, "category_id": 2},
            {**fields, "id": 3, "segmentation": hole, "iscrowd": 1},
        ],
        "val": [{**fields, "id": 1, "segmentation": [square]}],
    }
    folder = tmp_path / "set"
    (folder / "annotations").mkdir(parents=True)
    names = ["Fiber", "Fragment", "Film"]
    for split, entries in annotations.items():
        (folder / split).mkdir()
        images = []
        for number, name in enumerate(("a.png", "blank.png"), 1):
            Image.new("RGB", (60, 40), (number, 2, 3)).save(folder / split / name)
            images.append({"id": number, "file_name": name, "width": 60, "height": 40})
        document = {
            "images": images,
            "annotations": entries,
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


def listed(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


@pytest.mark.parametrize(
    ("format", "files"),
    [
        ("yolo", ["data.yaml", "images/train/a.png", "labels/train/a.txt", "labels/val/blank.txt"]),
        ("labelme", ["train/a.json", "train/a.png", "val/blank.json"]),
        ("masks", ["train/classes.csv", "train/images/a.png", "val/masks/blank.tif"]),
        ("coco", ["annotations/instances_train.json", "train/a.png", "val/blank.png"]),
    ],
)
def test_export(cli, dataset, tmp_path, format, files):
    output = tmp_path / "out"
    done = cli("export-dataset", "--input", dataset, "--to", format, "--output", output)
    assert done.returncode == 0, done.stderr
    assert set(files) < set(listed(output))
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[1:3] == [
        ["split", "images", "blank", "Fiber", "Fragment"],
        ["train", "2", "1", "2", "1"],
    ]
    manifest = json.loads((output / "export.json").read_text())
    assert manifest["complete"] and manifest["format"] == format
    assert manifest["splits"]["val"] == {"images": 2, "blank": 1, "instances": {"Fiber": 1}}
    lost = {"yolo": "crowd_lost", "masks": "instance_lost"}
    if format in lost:
        assert manifest["notes"][lost[format]]["count"] == 1
        assert manifest["notes"][lost[format]]["what"] in done.stdout


def test_outlined_coco(cli, dataset, tmp_path):
    arguments = ("--to", "coco", "--polygons", "--link", "--output", tmp_path / "out")
    assert cli("export-dataset", "--input", dataset, *arguments).returncode == 0
    document = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    polygon, hole, crowd = (entry["segmentation"] for entry in document["annotations"])
    assert polygon == [[30.0, 5.0, 50.0, 5.0, 50.0, 25.0, 30.0, 25.0]]
    assert len(hole) == 1 and isinstance(crowd, dict)
    rle = mask_util.merge(mask_util.frPyObjects(hole, 40, 60))
    assert rle["counts"].decode() == crowd["counts"]
    assert (tmp_path / "out/train/a.png").samefile(dataset / "train/a.png")


def test_one_json_with_images_elsewhere(cli, dataset, tmp_path):
    (dataset / "train").rename(tmp_path / "photos")
    json_file = dataset / "annotations/instances_train.json"
    arguments = ("--input", json_file, "--to", "yolo", "--output", tmp_path / "out")
    done = cli("export-dataset", *arguments)
    assert done.returncode == 2 and "--images" in done.stderr
    done = cli("export-dataset", *arguments, "--images", tmp_path / "photos")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/images/all/a.png").is_file()


def test_images_that_a_conversion_left_where_they_were(cli, dataset, tmp_path):
    out = {name: tmp_path / name for name in ("masks", "converted", "yolo")}
    steps = [
        ("export-dataset", dataset, "--to", "masks", "--output", out["masks"]),
        ("convert", out["masks"], "--from", "masks", "--output", out["converted"]),
        ("export-dataset", out["converted"], "--to", "yolo", "--output", out["yolo"]),
    ]
    for name, path, *arguments in steps:
        done = cli(name, "--input", path, *arguments)
        assert done.returncode == 0, done.stderr
    assert (out["yolo"] / "images/val/blank.png").is_file()


@pytest.mark.parametrize("format", ["yolo", "coco"])
def test_missing_images(cli, dataset, tmp_path, format):
    (dataset / "train/blank.png").unlink()
    arguments = ("--input", dataset, "--to", format, "--output", tmp_path / "out")
    done = cli("export-dataset", *arguments)
    assert done.returncode == 2 and "blank.png" in done.stderr and "--skip-broken" in done.stderr
    done = cli("export-dataset", *arguments, "--skip-broken")
    assert done.returncode == 2 and "was begun otherwise" in done.stderr
    done = cli("export-dataset", *arguments[:-1], tmp_path / "new", "--skip-broken")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "new/export.json").read_text())
    assert manifest["notes"]["image_missing"]["count"] == 1
    assert manifest["splits"]["train"]["images"] == 1


def test_annotations_alone(cli, dataset, tmp_path):
    arguments = ("--to", "labelme", "--no-images", "--output", tmp_path / "out")
    assert cli("export-dataset", "--input", dataset, *arguments).returncode == 0
    assert not list((tmp_path / "out").rglob("*.png"))


def test_wrong_sizes_are_refused(cli, dataset, tmp_path):
    Image.new("RGB", (40, 60)).save(dataset / "train/a.png")
    arguments = ("--to", "yolo", "--output", tmp_path / "out")
    done = cli("export-dataset", "--input", dataset, *arguments)
    assert done.returncode == 2 and "width and height are swapped" in done.stderr
    arguments = ("--to", "yolo", "--output", tmp_path / "new", "--skip-broken")
    assert cli("export-dataset", "--input", dataset, *arguments).returncode == 0
    notes = json.loads((tmp_path / "new/export.json").read_text())["notes"]
    assert notes["image_size"]["places"][0].startswith("a.png") and "image_broken" not in notes


def test_nothing_is_written_over(cli, dataset, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").touch()
    for output, words in [(out, "not empty"), (dataset / "out", "lies in --input")]:
        arguments = ("--to", "yolo", "--output", output)
        done = cli("export-dataset", "--input", dataset, *arguments)
        assert done.returncode == 2 and words in done.stderr
    (out / "thesis.txt").unlink()
    arguments = ("--input", dataset, "--to", "yolo", "--output", out)
    assert cli("export-dataset", *arguments).returncode == 0
    done = cli("export-dataset", *arguments)
    assert done.returncode == 2 and "holds an export" in done.stderr


def test_a_killed_run_is_finished(cli, dataset, tmp_path):
    image = (dataset / "val/a.png").read_bytes()
    (dataset / "val/a.png").unlink()
    arguments = ("--input", dataset, "--to", "masks", "--output", tmp_path / "out")
    assert cli("export-dataset", *arguments).returncode == 2
    assert json.loads((tmp_path / "out/export.json").read_text())["complete"] is False
    (dataset / "val/a.png").write_bytes(image)
    assert cli("export-dataset", *arguments).returncode == 0


def test_no_input(cli, tmp_path):
    arguments = ("--to", "coco", "--output", tmp_path / "out")
    done = cli("export-dataset", "--input", tmp_path / "absent", *arguments)
    assert done.returncode == 2 and "does not exist; correct --input" in done.stderr
