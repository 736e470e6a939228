"""YOLO samples in the layouts of Ultralytics, Roboflow, CVAT and Label Studio."""

import json
import os
import random
import time

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import yaml
from format_fuzz import check_cases
from PIL import Image
from support import user_error

from microplastics.data.formats import convert, yolo
from microplastics.data.formats.base import NOTES, ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.utils.errors import UserError

TRIANGLE = "0 0.25 0.5 0.75 0.5 0.75 0.9"


def image(path, width=40, height=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 120, np.uint8))


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def read(path, **options):
    """Split -> records, split -> source, and the notes."""
    notes = Notes()
    sources = yolo.read(path, ReadOptions(**options), notes)
    return {split: list(source.records()) for split, source in sources.items()}, sources, notes


def plain(folder, label=TRIANGLE + "\n", names="Fiber\nFilm\n"):
    image(folder / "images" / "a.png")
    text(folder / "labels" / "a.txt", label)
    if names:
        text(folder / "classes.txt", names)
    return folder


def test_ultralytics(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "sub/b", "c"):
            image(tmp_path / "images" / split / f"{name}.png")
        text(tmp_path / "labels" / split / "a.txt", TRIANGLE + "\n\n1 .5 .5 .2 .4")
        text(tmp_path / "labels" / split / "sub" / "b.txt", "")
    text(tmp_path / "labels" / "val" / "x.txt", TRIANGLE)
    text(
        tmp_path / "data.yaml",
        "path: ../datasets/filters\ntrain: images/train\nval: images/val\ntest:\n"
        "names:\n  0: Fiber\n  1: Film\n",
    )
    assert yolo.detect(tmp_path) and yolo.detect(tmp_path / "data.yaml")
    records, sources, notes = read(tmp_path)
    assert list(records) == ["train", "val"] and sources["val"].classes == ["Fiber", "Film"]
    assert sources["val"].image_root == tmp_path / "images" / "val"
    assert [record.file_name for record in records["val"]] == ["a.png", "c.png", "sub/b.png"]
    polygon, box = records["val"][0].instances
    assert polygon.segmentation == [[10, 15, 30, 15, 30, 27]] and polygon.category == "Fiber"
    assert box.segmentation == [[16, 9, 24, 9, 24, 21, 16, 21]] and box.category == "Film"
    assert box.where == "val/a.txt, line 3"
    counts = [notes.count(c) for c in ("box_only", "image_unlabelled", "label_without_image")]
    assert counts == [2, 2, 1] and len(notes) == 5


def test_roboflow_with_paths_that_are_wrong(tmp_path):
    for split in ("train", "test"):
        image(tmp_path / split / "images" / "a.png")
        text(tmp_path / split / "labels" / "a.txt", TRIANGLE)
    text(
        tmp_path / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: /content/set/test/images\n\nnc: 1\n"
        "names: ['Bead']\n\nroboflow:\n  version: 5\n",
    )
    records, sources, notes = read(tmp_path)
    assert list(records) == ["train", "test"]
    assert sources["test"].image_root == tmp_path / "test" / "images"
    assert len(records["test"][0].instances) == 1
    assert notes.count("folder_fixed") == 2 and notes.count("split_missing") == 1


def test_cvat_with_a_list_of_images(tmp_path):
    image(tmp_path / "images" / "train" / "a.png")
    text(tmp_path / "labels" / "train" / "a.txt", TRIANGLE)
    text(tmp_path / "train.txt", "data/images/train/a.png\n")
    text(tmp_path / "data.yaml", "path: ./\ntrain: train.txt\nnames:\n  0: Fiber\n")
    records, sources, _ = read(tmp_path)
    assert records["train"][0].file_name == "images/train/a.png"
    assert len(records["train"][0].instances) == 1


def test_cvat_darknet(tmp_path):
    image(tmp_path / "obj_train_data" / "a.png")
    text(tmp_path / "obj_train_data" / "a.txt", "0 0.5 0.5 0.2 0.4\n")
    text(tmp_path / "obj.names", "Fiber\n")
    text(tmp_path / "obj.data", "classes = 1\nnames = data/obj.names\n")
    assert yolo.detect(tmp_path)
    records, _, notes = read(tmp_path)
    assert len(records["all"][0].instances) == 1 and len(notes) == notes.count("box_only") == 1


def test_label_studio(tmp_path):
    plain(tmp_path)
    text(tmp_path / "notes.json", json.dumps({"categories": [{"id": 0, "name": "Fiber"}]}))
    assert yolo.detect(tmp_path)
    records, sources, notes = read(tmp_path)
    assert sources["all"].classes == ["Fiber", "Film"] and not len(notes)


def test_labels_beside_the_images_without_names(tmp_path):
    image(tmp_path / "a.png")
    text(tmp_path / "a.txt", TRIANGLE.replace("0 ", "3 ", 1))
    text(tmp_path / "README.txt", "0 1 2 3 4")
    assert yolo.detect(tmp_path)
    records, sources, notes = read(tmp_path)
    assert sources["all"].classes == ["class_3"] and notes.count("class_unnamed") == len(notes) == 1


def test_a_broken_label_among_images_without_names(tmp_path):
    for name in ("a", "b"):
        image(tmp_path / f"{name}.png")
    text(tmp_path / "a.txt", TRIANGLE)
    (tmp_path / "b.txt").write_bytes(b"0 0.1 \xff\0")
    assert yolo.detect(tmp_path)
    records, _, notes = read(tmp_path, skip_broken=True)
    assert [len(record.instances) for record in records["all"]] == [1, 0]
    assert notes.count("label_broken") == 1


def test_images_elsewhere(tmp_path):
    image(tmp_path / "photos" / "a.png")
    text(tmp_path / "labels" / "a.txt", TRIANGLE)
    records, _, _ = read(tmp_path / "labels", images=tmp_path / "photos")
    assert len(records["all"][0].instances) == 1


def test_photographs_turned_by_exif(tmp_path):
    plain(tmp_path)
    (tmp_path / "images" / "a.png").unlink()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.jpg", exif=exif)
    (record,) = read(tmp_path)[0]["all"]
    assert (record.width, record.height) == (30, 40)
    assert record.instances[0].segmentation == [[7.5, 20, 22.5, 20, 22.5, 36]]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("0 0.1 0.1 0.5 0.1", "box_only"),
        ("0 0.1 0.1 0 0.1", "shape_without_area"),
        ("0 0.1 0.1 0.2 0.2 0.9", "shape_broken"),
        ("0 0.1 0.1 0.2 0.2", "box_only"),
        ("0 0.1 0.1", "shape_broken"),
        ("0 0.1 0.1 0.2 0.2 0.3 x", "shape_broken"),
        ("0 0.1 0.1 0.2 0.2 0.3 nan", "shape_broken"),
        ("0 10 10 200 200 30 1e308", "shape_broken"),
        ("-1 0.1 0.1 0.2 0.2 0.3 0.1", "shape_broken"),
        ("7 0.1 0.1 0.2 0.2 0.3 0.1", "shape_unlabelled"),
        ("Fiber 0.1 0.1 0.2 0.2 0.3 0.1", "shape_broken"),
    ],
)
def test_unusable_lines(tmp_path, line, code):
    records, _, notes = read(plain(tmp_path, f"{TRIANGLE}\r\n{line}\r\n"))
    assert notes.count(code) == len(notes) == 1
    assert len(records["all"][0].instances) == 1 + (code == "box_only")


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ("names: " + "[" * 50 + "]" * 50, "annotations_invalid", "class '0'"),
        ("names: " + "[" * 5000, "annotations_invalid", "YAML"),
        ("names: [a\n", "annotations_invalid", "YAML"),
        ("- names\n", "annotations_invalid", "mapping"),
        ("names: Fiber\n", "annotations_invalid", "'Fiber'"),
        ("names: {a: Fiber}\n", "annotations_invalid", "'a'"),
        ("names: [Fiber, '']\n", "annotations_invalid", "class '1'"),
        ("names: []\n", "annotations_invalid", "{}"),
        ("names: [Fiber]\ntrain: {a: b}\n", "annotations_invalid", "train"),
        ("names: [Fiber]\ntrain: /etc\n", "image_missing", "--images"),
        ("names: [Fiber]\ntrain: ../..\n", "image_missing", "--images"),
        ("#" * 300_000, "annotations_invalid", "256 KiB"),
    ],
)
def test_errors_of_data_yaml(tmp_path, content, code, words):
    plain(tmp_path, names="")
    text(tmp_path / "data.yaml", content)
    with user_error(code, "data.yaml", words):
        read(tmp_path)


def test_a_list_of_images_that_leaves_the_folder(tmp_path):
    plain(tmp_path)
    text(tmp_path / "train.txt", "../../secret.png\n")
    text(tmp_path / "data.yaml", "train: train.txt\nnames: [Fiber]\n")
    with user_error("annotations_invalid", "../../secret.png"):
        read(tmp_path)


def test_names_that_are_too_long(tmp_path):
    plain(tmp_path)
    text(tmp_path / "train.txt", f"{'a' * 3000}.png\nimages/a.png\n")
    text(tmp_path / "data.yaml", "train: train.txt\nnames: [Fiber]\n")
    with pytest.raises(UserError, match="aaa.png"):
        read(tmp_path)
    records, _, notes = read(tmp_path, skip_broken=True)
    assert len(records["train"]) == 1 and notes.count("image_broken") == 1


def test_broken_files_stop_or_are_noted(tmp_path):
    plain(tmp_path)
    (tmp_path / "labels" / "a.txt").write_bytes(b"0 0.1 \xff\0")
    (tmp_path / "images" / "b.png").write_bytes(b"no image")
    with user_error("file_invalid", "a.txt"):
        read(tmp_path)
    records, _, notes = read(tmp_path, skip_broken=True)
    assert notes.count("label_broken") == notes.count("image_broken") == 1
    assert [record.instances for record in records["all"]] == [[]]


def test_many_points(tmp_path):
    angles = np.linspace(0, 2 * np.pi, 2 * 10**5, endpoint=False)
    points = 0.5 + 0.3 * np.stack([np.cos(angles), np.sin(angles)], axis=1).reshape(-1)
    start = time.monotonic()
    records, _, notes = read(plain(tmp_path, "0 " + " ".join(map("{:.6f}".format, points))))
    assert len(records["all"][0].instances[0].segmentation[0]) == 4 * 10**5 and not len(notes)
    assert time.monotonic() - start < 30


def source_of(root, instances, width, height):
    record = ImageRecord("sub/a.png", width, height, instances)
    return Source(root, ["Fiber", "Film"], lambda: iter([record]), 1)


def test_written_and_read_again(tmp_path):
    rng = np.random.default_rng(4)
    width, height = 20_000, 37
    polygon = (rng.uniform(0, 1, 24).reshape(-1, 2) * (width, height)).round(3)
    polygon[0], polygon[1] = (width, height), (0, 0)
    parts = [[10, 10, 20, 10, 20, 20], [40, 20, 50, 20, 50, 30]]
    instances = [
        Instance("Film", [polygon.reshape(-1).tolist()], "one"),
        Instance("Fiber", parts, "two", iscrowd=1, extra={"score": 0.5}),
    ]
    image(tmp_path / "images" / "val" / "sub" / "a.png", width, height)
    notes = Notes()
    sources = {"val": source_of(tmp_path, instances, width, height)}
    yolo.write(sources, tmp_path, notes)
    assert (tmp_path / "labels" / "val" / "sub" / "a.txt").is_file()
    assert {code for code in NOTES if notes.count(code)} == {
        *("crowd_lost", "extra_lost", "parts_joined")
    }
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert data == {"val": "images/val", "names": {0: "Fiber", 1: "Film"}}
    records, _, notes = read(tmp_path)
    film, fiber = records["val"][0].instances
    assert film.category == "Film" and not len(notes)
    again = np.reshape(film.segmentation[0], (-1, 2))
    assert np.abs(again - polygon).max() < 1e-3
    masks = [
        mask_util.decode(mask_util.merge(mask_util.frPyObjects(s, 60, 60)))
        for s in (parts, fiber.segmentation)
    ]
    np.testing.assert_array_equal(*masks)


def test_a_mask_with_a_hole_comes_back_pixel_for_pixel(tmp_path):
    mask = np.zeros((30, 40), np.uint8)
    mask[5:25, 8:30] = 1
    mask[10:15, 12:20] = 0
    mask[0:2, 0:3] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    rle["counts"] = rle["counts"].decode()
    image(tmp_path / "images" / "all" / "sub" / "a.png")
    notes = Notes()
    sources = {"all": source_of(tmp_path, [Instance("Fiber", rle, "one")], 40, 30)}
    yolo.write(sources, tmp_path, notes)
    assert notes.count("hole_bridged") == notes.count("parts_joined") == 1
    (record,) = read(tmp_path)[0]["train"]
    rles = mask_util.frPyObjects(record.instances[0].segmentation, 30, 40)
    np.testing.assert_array_equal(mask_util.decode(rles)[:, :, 0], mask)


def test_two_images_of_one_label(tmp_path):
    records = [ImageRecord("a.png", 9, 9), ImageRecord("a.jpg", 9, 9)]
    source = Source(tmp_path, ["Fiber"], lambda: iter(records), 2)
    with user_error("name_clash", "a.jpg", "a.png", "train"):
        yolo.write({"train": source}, tmp_path / "out", Notes())


LABEL = "0 0.25 0.5 0.75 0.5 0.75 0.9\n1 0.5 0.5 0.2 0.4\n"
DATA = "path: .\ntrain: images\nval: images\nnames:\n  0: Fiber\n  1: Film\n"
PIECES = (
    ["nan", "inf", "-1", "1e308", "-1e308", "9" * 400, "0x1", "", " ", "\n", "\r\n", "\0", "\t"]
    + ["../../etc", "/etc", "C:\\x", "*a", "&a ", "[" * 30, "{", "]", ": ", "- ", "!!python/none "]
    + ["<<: *a", "~", "null", "1:1:1", "\ud800", "é", "\x85", "\u2028", "'", '"', "#", "|", ">"]
    + ["train: ../../../..\n", "names: 3\n", "names: [a, a]\n", "images", "a" * 3000, "0 " * 900]
)


@pytest.fixture
def fuzzed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    image(tmp_path / "in" / "images" / "a.png")
    (tmp_path / "in" / "labels").mkdir()
    return tmp_path


def mutated_and_read(folder, seed):
    """Change a good data set, and read or convert it; only a UserError may be raised."""
    rng = random.Random(seed)
    contents = [LABEL, DATA]
    for _ in range(rng.randint(1, 3)):
        which, start, length = rng.randint(0, 1), rng.randint(0, 90), rng.randint(0, 12)
        content = contents[which]
        contents[which] = content[:start] + rng.choice(PIECES) + content[start + length :]
    encoding = rng.choice(["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-32", "cp037"])
    errors = "replace" if encoding == "cp037" else "surrogatepass"
    label, data = (content.encode(encoding, errors) for content in contents)
    noise = rng.randbytes(rng.randint(0, 40)) if rng.random() < 0.2 else b""
    described = rng.random() < 0.7
    (folder / "in" / "labels" / "a.txt").write_bytes(label + noise)
    (folder / "in" / "data.yaml").unlink(missing_ok=True)
    if described:
        (folder / "in" / "data.yaml").write_bytes(data + noise[:3])
    yolo.detect(folder / "in")
    notes = Notes()
    options = ReadOptions(skip_broken=rng.random() < 0.5)
    output = folder / f"out{described}"
    try:
        sources = yolo.read(folder / "in", options, notes)
        if rng.random() < 0.75:  # writing takes longer than reading
            return "read" if [list(source.records()) for source in sources.values()] else "error"
        (output / convert.MANIFEST).unlink(missing_ok=True)
        for left in output.glob("annotations/*"):
            left.unlink()
        written = convert.write_dataset(sources, output, notes, options=options)
    except UserError as error:
        assert str(error)
        return "error"
    for one in written:
        again = json.loads(one.json_file.read_text())
        assert len(again["images"]) == one.num_images == 1
        assert len(again["annotations"]) == sum(one.instances.values()) > 0
    return "read"


def test_hostile_files(fuzzed):
    check_cases(lambda seed: mutated_and_read(fuzzed, seed))
