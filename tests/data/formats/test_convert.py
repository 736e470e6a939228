import json
import os

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from support import user_error

from microplastics.data.coco import check_instances
from microplastics.data.formats import convert
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.convert import parse_categories, write_dataset

SQUARE = [2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]


def square(category="Fiber", **fields):
    return Instance(category, [SQUARE], f"a square of {category}", **fields)


def source(root, names, instances=None, classes=("Fiber",), width=40, height=30):
    """A source of images that are there, each with these instances."""
    instances = [square()] if instances is None else instances
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((height, width, 3), len(str(path)) % 256, np.uint8)
        if not path.exists():
            cv2.imwrite(str(path), pixels)
    records = [ImageRecord(name, width, height, instances) for name in names]
    return Source(root, list(classes), lambda: iter(records), len(records))


def write(sources, output, **fields):
    notes = Notes()
    return write_dataset(sources, output, notes, **fields), notes


def load(written):
    return json.loads(written.json_file.read_text())


def test_written_data_sets_pass_the_check(tmp_path):
    rle = mask_util.encode(np.asfortranarray(np.eye(30, 40, dtype=np.uint8)))
    rle["counts"] = rle["counts"].decode()
    instances = [
        square("Film", extra={"truth": {"length": 3.5}, "id": 99, "bbox": [0, 0, 1, 1]}),
        Instance("Fiber", rle, "an RLE", iscrowd=1),
        Instance("Fiber", [[-5, -5, 5, -5, 5, 5, -5, 5]], "reaches out"),
        Instance("Fiber", [[1, 1, 2, 1]], "two points"),
    ]
    train = source(tmp_path / "in", ["a.png", "sub/b.png"], instances, ("Film", "Fiber"))
    blank = source(tmp_path / "in", ["c.png"], [], ("Film",))
    blank.records = lambda: iter([ImageRecord("c.png", 40, 30, extra={"um_per_px": 2.0})])
    (written, empty), notes = write({"train": train, "val": blank}, tmp_path / "out")
    coco = load(written)
    assert coco["categories"] == [
        {"id": 1, "name": "Fiber", "supercategory": ""},
        {"id": 2, "name": "Fragment", "supercategory": ""},
        {"id": 3, "name": "Film", "supercategory": ""},
    ]
    assert [image["id"] for image in coco["images"]] == [1, 2]
    assert [a["id"] for a in coco["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert coco["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 3,
        "bbox": [2.0, 3.0, 10.0, 10.0],
        "area": 100,
        "iscrowd": 0,
        "segmentation": [SQUARE],
        "truth": {"length": 3.5},
    }
    assert coco["annotations"][1]["segmentation"] == rle
    assert coco["annotations"][1]["iscrowd"] == 1 and coco["annotations"][1]["area"] == 30
    assert coco["annotations"][2]["bbox"] == [0, 0, 5, 5]
    assert notes.count("shape_clipped") == notes.count("shape_broken") == 2 and len(notes) == 4
    assert written.instances == {"Fiber": 4, "Fragment": 0, "Film": 2}
    assert (written.num_images, written.num_blank, empty.num_blank) == (2, 0, 1)
    assert load(empty)["images"][0]["um_per_px"] == 2.0
    assert load(empty)["categories"] == coco["categories"]
    report = check_instances(written.json_file, written.image_root)
    assert set(report.findings.warnings) == {"crowd", "category_unused"}
    manifest = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert manifest["complete"] and manifest["splits"]["val"]["blank"] == 1
    assert manifest["notes"]["shape_broken"]["places"][0].startswith("two points")


def test_other_classes_keep_their_order(tmp_path):
    sources = {
        "train": source(tmp_path, ["a.png"], classes=("Foam", "Fiber")),
        "val": source(tmp_path, ["b.png"], classes=("Bead", "Fiber")),
    }
    written, _ = write(sources, tmp_path / "out")
    for one in written:
        names = [(c["id"], c["name"]) for c in load(one)["categories"]]
        assert names == [(1, "Foam"), (2, "Fiber"), (3, "Bead")]


def test_categories_renamed_merged_and_left_out(tmp_path):
    instances = [square("thread"), square("Fiber"), square("dirt"), square("film")]
    classes = ("thread", "Fiber", "dirt", "film")
    categories = parse_categories("thread=Fiber, dirt=,film = Film")
    assert categories == {"thread": "Fiber", "dirt": "", "film": "Film"}
    sources = {"all": source(tmp_path / "in", ["a.png"], instances, classes)}
    (written,), notes = write(sources, tmp_path / "out", categories=categories)
    assert written.json_file.name == "instances_all.json"
    assert [a["category_id"] for a in load(written)["annotations"]] == [1, 1, 3]
    assert notes.count("category_dropped") == 1 and notes.count("category_renamed") == 2


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        ({"fibre": "Fiber"}, "Did you mean 'fiber'?"),
        ({"fiber": "", "x": ""}, "--categories"),
        ({"fiber": "a\nb"}, r"'a\nb'"),
    ],
)
def test_invalid_categories(tmp_path, categories, words):
    sources = {"all": source(tmp_path / "in", ["a.png"], [square("fiber")], ("fiber", "x"))}
    with user_error("option_invalid", words):
        write(sources, tmp_path / "out", categories=categories)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "a", "a=b,", "=b", "a=b,a=c"])
def test_malformed_categories(text):
    with user_error("option_invalid", "--categories"):
        parse_categories(text)


@pytest.mark.parametrize("place", ["copy", "link"])
def test_images_are_put_into_the_set(tmp_path, place):
    sources = {"val": source(tmp_path / "in", ["a.png", "sub/b.png"])}
    (written,), _ = write(sources, tmp_path / "out", place=place)
    assert written.image_root == tmp_path / "out" / "val"
    check_instances(written.json_file, written.image_root)
    for name in ("a.png", "sub/b.png"):
        one, other = tmp_path / "in" / name, written.image_root / name
        assert one.read_bytes() == other.read_bytes()
        assert os.path.samefile(one, other) == (place == "link")
    before = {p: p.stat().st_mtime_ns for p in written.image_root.rglob("*.png")}
    write(sources, tmp_path / "out", place=place)
    assert {p: p.stat().st_mtime_ns for p in written.image_root.rglob("*.png")} == before
    (written.image_root / "a.png").unlink()
    (written.image_root / "a.png").write_bytes(b"other")
    with user_error("output_exists", "in/a.png", "val/a.png"):
        write(sources, tmp_path / "out", place=place)
    assert (written.image_root / "a.png").read_bytes() == b"other"


def test_links_are_symbolic_where_hard_ones_cannot_be(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    sources = {"all": source(tmp_path / "in", ["a.png"])}
    (written,), _ = write(sources, tmp_path / "out", place="link")
    assert (written.image_root / "a.png").is_symlink()
    check_instances(written.json_file, written.image_root)


def test_unusable_images(tmp_path):
    names = [f"{i}.png" for i in range(9)]
    one = source(tmp_path / "in", names)
    for name in names[:7]:
        (tmp_path / "in" / name).unlink()
    (tmp_path / "in" / "5.png").write_bytes(b"x")
    cv2.imwrite(str(tmp_path / "in" / "6.png"), np.zeros((40, 30, 3), np.uint8))
    with user_error("image_invalid", "7 images of all", "0.png", "--skip-broken"):
        write({"all": one}, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("instances*"))
    options = ReadOptions(skip_broken=True)
    (written,), notes = write({"all": one}, tmp_path / "out", options=options)
    counts = [notes.count(c) for c in ("image_missing", "image_broken", "image_size")]
    assert counts == [5, 1, 1] and written.num_images == 2
    assert [a["image_id"] for a in load(written)["annotations"]] == [1, 2]


@pytest.mark.parametrize(
    "name",
    ["../a.png", "/etc/passwd", "C:\\a.png", "a/../../b.png", "a\0.png", "a\n.png", "", "\\x"],
)
def test_names_that_leave_the_folder(tmp_path, name):
    records = [ImageRecord(name, 40, 30, [square()])]
    one = Source(tmp_path, ["Fiber"], lambda: iter(records), 1)
    with user_error("annotations_invalid", "An image of all"):
        write({"all": one}, tmp_path / "out", place="copy")
    assert not (tmp_path / "out" / "annotations" / "instances_all.json").exists()


@pytest.mark.parametrize("other", ["a.png", "./a.png", ".//a.png"])
def test_images_named_twice(tmp_path, other):
    one = source(tmp_path, ["a.png", other])
    with user_error("name_clash", "'a.png'"):
        write({"all": one}, tmp_path / "out")


def test_nothing_left(tmp_path):
    one = source(tmp_path, ["a.png"], [Instance("Fiber", [[1, 1]], "here")])
    with user_error("dataset_empty", "--from blanks", "here"):
        write({"all": one}, tmp_path / "out")
    with user_error("dataset_empty"):
        write({"all": source(tmp_path, [])}, tmp_path / "empty")
    assert not list(tmp_path.rglob("instances*"))


def test_a_split_without_images_is_left_out(tmp_path):
    sources = {"train": source(tmp_path, ["a.png"]), "val": source(tmp_path, [])}
    written, notes = write(sources, tmp_path / "out")
    assert [one.split for one in written] == ["train"] and notes.count("split_missing") == 1


def test_other_data_is_not_overwritten(tmp_path):
    one = {"all": source(tmp_path / "in", ["a.png"])}
    (written,), _ = write(one, tmp_path / "out")
    before = written.json_file.read_bytes()
    other = {"all": source(tmp_path / "other", ["a.png"])}
    with user_error("output_exists", tmp_path / "out"):
        write(other, tmp_path / "out")
    (tmp_path / "out" / convert.MANIFEST).unlink()
    with user_error("output_exists", "instances_all.json"):
        write(one, tmp_path / "out")
    assert written.json_file.read_bytes() == before


def test_a_stopped_run_is_finished_by_the_next(tmp_path):
    one = source(tmp_path / "in", ["a.png", "b.png"])
    records = list(one.records())

    def stopped():
        yield records[0]
        raise KeyboardInterrupt

    one.records = stopped
    with pytest.raises(KeyboardInterrupt):
        write({"all": one}, tmp_path / "out", place="copy")
    manifest = tmp_path / "out" / convert.MANIFEST
    assert json.loads(manifest.read_text())["complete"] is False
    assert not list((tmp_path / "out" / "annotations").iterdir())
    one.records = lambda: iter(records)
    (written,), _ = write({"all": one}, tmp_path / "out", place="copy")
    assert written.num_images == 2 and json.loads(manifest.read_text())["complete"] is True


def test_a_smaller_than_pixel_particle_is_kept_and_noted(tmp_path):
    tiny = Instance("Fiber", [[2.1, 3.1, 2.3, 3.1, 2.3, 3.3, 2.1, 3.3]], "tiny")
    (written,), notes = write({"all": source(tmp_path, ["a.png"], [tiny])}, tmp_path / "out")
    assert notes.count("shape_subpixel") == len(notes) == 1
    assert load(written)["annotations"][0]["area"] == pytest.approx(0.04)
