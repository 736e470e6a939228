"""COCO samples in the layouts of CVAT, Roboflow, Label Studio and Detectron2."""

import copy
import json
import os
import random
import time

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from format_fuzz import HOSTILE, check_cases, places
from support import user_error

from microplastics.data.formats import coco, convert
from microplastics.data.formats.base import Notes, ReadOptions
from microplastics.utils.errors import UserError

SQUARE = [2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]


def image(path, width=40, height=30, value=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))


def write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def annotation(id_, image_id, category_id, **fields):
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": [SQUARE],
        "area": 100.0,
        "bbox": [2.0, 3.0, 10.0, 10.0],
        "iscrowd": 0,
        **fields,
    }


def document(**fields):
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [annotation(1, 1, 1)],
        "categories": [{"id": 1, "name": "Fiber", "supercategory": ""}],
        **fields,
    }


def read(path, **options):
    """Split -> records, split -> source, and the notes."""
    notes = Notes()
    assert coco.detect(path)
    sources = coco.read(path, ReadOptions(**options), notes)
    return {split: list(source.records()) for split, source in sources.items()}, sources, notes


def read_one(tmp_path, **fields):
    image(tmp_path / "a.png")
    write(tmp_path / "a.json", document(**fields))
    records, _, notes = read(tmp_path / "a.json")
    return records["all"], notes


def test_cvat(tmp_path):
    mask = np.zeros((30, 40), np.uint8)
    mask[5:9, 6:20] = 1
    counts = np.diff(np.flatnonzero(np.diff(np.r_[0, mask.T.reshape(-1), 0])), prepend=0).tolist()
    counts.append(mask.size - sum(counts))
    write(
        tmp_path / "annotations" / "instances_default.json",
        {
            "licenses": [{"name": "", "id": 0, "url": ""}],
            "info": {
                "contributor": "",
                "date_created": "",
                "description": "",
                "url": "",
                "version": "",
                "year": "",
            },
            "categories": [{"id": 1, "name": "Fiber", "supercategory": ""}],
            "images": [
                {
                    "id": 1,
                    "width": 40,
                    "height": 30,
                    "file_name": "filter 1/a.png",
                    "license": 0,
                    "flickr_url": "",
                    "coco_url": "",
                    "date_captured": 0,
                }
            ],
            "annotations": [
                annotation(1, 1, 1, attributes={"occluded": False}),
                annotation(2, 1, 1, segmentation=[], attributes={"occluded": True}),
                annotation(3, 1, 1, segmentation={"counts": counts, "size": [30, 40]}, iscrowd=1),
            ],
        },
    )
    image(tmp_path / "images" / "default" / "filter 1" / "a.png")
    records, sources, notes = read(tmp_path)
    assert sources["all"].image_root == tmp_path / "images" / "default"
    (record,) = records["all"]
    assert record.file_name == "filter 1/a.png" and record.extra == {}
    polygon, box, brush = record.instances
    assert polygon.segmentation == [SQUARE] and polygon.extra == {"attributes": {"occluded": False}}
    assert box.segmentation == [SQUARE] and notes.count("box_only") == 1
    assert brush.iscrowd == 1 and notes.count("crowd_kept") == 1
    assert type(brush.segmentation["counts"]) is str
    np.testing.assert_array_equal(mask_util.decode(brush.segmentation), mask)
    records, _, notes = read(tmp_path, crowd_as_instances=True)
    assert [i.iscrowd for i in records["all"][0].instances] == [0, 0, 0]
    assert notes.count("crowd_instance") == 1 and notes.count("crowd_kept") == 0


def roboflow(folder, categories, category_id=1):
    name = "a_png.rf.684e43096a3fd124.png"
    image(folder / name)
    write(
        folder / "_annotations.coco.json",
        {
            "info": {"year": "2025", "description": "Exported from roboflow.com"},
            "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}],
            "categories": categories,
            "images": [
                {
                    "id": 0,
                    "license": 1,
                    "file_name": name,
                    "height": 30,
                    "width": 40,
                    "date_captured": "2025-11-09T00:22:23+00:00",
                    "extra": {"name": "a.png"},
                }
            ],
            "annotations": [annotation(0, 0, category_id)],
        },
    )


@pytest.mark.parametrize(
    ("name", "used", "code"),
    [
        ("Bead", 1, "category_placeholder"),
        ("Bead", 0, "category_merged"),
        ("particles", 1, "category_placeholder"),
    ],
)
def test_roboflow_and_its_placeholder(tmp_path, name, used, code):
    categories = [
        {"id": 0, "name": name, "supercategory": "none"},
        {"id": 1, "name": "Bead", "supercategory": name},
    ]
    for folder in ("train", "valid", "test"):
        roboflow(tmp_path / folder, categories, used)
    records, sources, notes = read(tmp_path)
    assert list(records) == ["train", "val", "test"]
    assert sources["val"].image_root == tmp_path / "valid"
    assert {tuple(source.classes) for source in sources.values()} == {("Bead",)}
    assert notes.count(code) == 3 and len(notes) == 3
    (record,) = records["val"]
    assert record.instances[0].category == "Bead" and record.extra["extra"] == {"name": "a.png"}
    assert record.instances[0].where == "valid/_annotations.coco.json, annotation 1"


def test_a_used_placeholder_stays(tmp_path):
    categories = [
        {"id": 0, "name": "particles", "supercategory": "none"},
        {"id": 1, "name": "Bead", "supercategory": "particles"},
    ]
    roboflow(tmp_path, categories, 0)
    records, sources, notes = read(tmp_path)
    assert sources["all"].classes == ["particles", "Bead"] and not len(notes)


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("images/90fb-a.png", 0),
        ("images\\90fb-a.png", 1),
        ("images\\1/90fb-a.png", 1),
        ("../../label-studio/data/upload/4/90fb-a.png", 1),
        ("..\\..\\label-studio\\media\\upload\\4\\90fb-a.png", 1),
        ("/data/local-files/?d=lab/90fb-a.png", 1),
        ("http://localhost:8080/data/upload/1/90fb%2Da.png", 1),
        ("C:\\lab\\90fb-a.png", 1),
    ],
)
def test_label_studio(tmp_path, name, fixed):
    image(tmp_path / "images" / "90fb-a.png")
    write(
        tmp_path / "result.json",
        {
            "images": [{"width": 40, "height": 30, "id": 0, "file_name": name}],
            "categories": [{"id": 0, "name": "Fiber"}, {"id": 1, "name": "Film"}],
            "annotations": [annotation(0, 0, 0, ignore=0)],
            "info": {"year": 2022, "version": "1.0", "contributor": "Label Studio"},
        },
    )
    records, sources, notes = read(tmp_path)
    (record,) = records["all"]
    assert (sources["all"].image_root / record.file_name).samefile(
        tmp_path / "images" / "90fb-a.png"
    )
    assert record.instances[0].category == "Fiber" and sources["all"].classes == ["Fiber", "Film"]
    assert notes.count("file_name_fixed") == len(notes) == fixed


def test_detectron2(tmp_path):
    rle = mask_util.encode(np.asfortranarray(np.eye(30, 40, dtype=np.uint8)))
    rle["counts"] = rle["counts"].decode()
    name = str(tmp_path / "train" / "a.png")
    image(tmp_path / "train" / "a.png")
    write(
        tmp_path / "out" / "coco.json",
        {
            "info": {"date_created": "2026-01-01", "description": "Automatically generated"},
            "images": [{"id": "a", "width": 40, "height": 30, "file_name": name}],
            "categories": [{"id": 0, "name": "Fiber"}],
            "licenses": None,
            "annotations": [annotation(1, "a", 0, segmentation=rle, score=0.5)],
        },
    )
    records, sources, _ = read(tmp_path / "out" / "coco.json", images=tmp_path / "train")
    (record,) = records["all"]
    assert record.file_name == "a.png" and record.instances[0].extra == {"score": 0.5}
    assert record.instances[0].segmentation == rle


def test_our_own_keeps_its_further_fields(rendered):
    records, sources, notes = read(rendered)
    assert list(records) == ["train", "val", "test"] and not len(notes)
    source = json.loads((rendered / "annotations" / "instances_val.json").read_text())
    record, expected = records["val"][0], source["images"][0]
    assert sources["val"].image_root == rendered / "val"
    assert record.extra == {
        key: value
        for key, value in expected.items()
        if key not in ("id", "file_name", "width", "height")
    }
    assert record.extra["um_per_px"] == 2.0
    extra = [i.extra for r in records["val"] for i in r.instances]
    assert len(extra) == len(source["annotations"])
    assert extra[0]["truth"] == source["annotations"][0]["truth"]


def test_ids_as_text_and_sizes_from_the_file(tmp_path):
    image(tmp_path / "a.png", 40, 30)
    write(
        tmp_path / "a.json",
        document(
            images=[{"id": "7", "file_name": "a.png"}],
            annotations=[annotation(1, 7, "1"), annotation(2, "7", 1.0)],
        ),
    )
    (record,) = read(tmp_path / "a.json")[0]["all"]
    assert (record.width, record.height, len(record.instances)) == (40, 30, 2)


@pytest.mark.parametrize(
    ("fields", "code", "kept"),
    [
        ({"image_id": 9}, "annotation_without_image", 0),
        ({"category_id": 9}, "shape_unlabelled", 0),
        ({"segmentation": [[1, 2, 3, 4]]}, "shape_broken", 0),
        ({"segmentation": [SQUARE, [1, 2, 3, 4]]}, "part_broken", 1),
        ({"segmentation": [[1, 2, 3, float("nan"), 5, 6]]}, "shape_broken", 0),
        ({"segmentation": [[50, 50, 60, 50, 60, 60]]}, "shape_outside", 0),
        ({"segmentation": [[1, 1, 9, 1, 5, 1]]}, "shape_without_area", 0),
        ({"segmentation": [[-9, 1, 9, 1, 9, 9]]}, "shape_clipped", 1),
        ({"segmentation": {"size": [3, 4], "counts": [2, 10]}}, "shape_broken", 0),
        ({"segmentation": None, "bbox": None}, "shape_broken", 0),
        ({"segmentation": None, "bbox": [1, 1, 0, 5]}, "shape_broken", 0),
        ({"ignore": 1}, "ignore_as_crowd", 1),
        ({"keypoints": [1, 2, 2]}, "field_unknown", 1),
        ({"note": "x" * 5000}, "field_unknown", 1),
        ({"note": float("inf")}, "field_unknown", 1),
    ],
)
def test_unusable_annotations_are_noted(tmp_path, fields, code, kept):
    (record,), notes = read_one(tmp_path, annotations=[{**annotation(1, 1, 1), **fields}])
    assert notes.count(code) == 1 and len(record.instances) == kept


def test_polygon_without_its_brackets(tmp_path):
    (record,), notes = read_one(tmp_path, annotations=[annotation(1, 1, 1, segmentation=SQUARE)])
    assert record.instances[0].segmentation == [SQUARE] and not len(notes)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"images": []}, "'images'"),
        ({"categories": None}, "'categories'"),
        ({"images": [{"id": 1, "file_name": "a\0.png"}]}, "image 1"),
        ({"images": document()["images"] * 2}, "image 2 has the id 1"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": -4, "height": 3}]}, "-4 x 3 px"),
        ({"categories": [{"id": 1, "name": ""}]}, "category 1"),
        ({"categories": document()["categories"] * 2}, "category 2 has the id 1"),
    ],
)
def test_errors_name_the_place(tmp_path, fields, place):
    with user_error("annotations_invalid", "a.json", place):
        read_one(tmp_path, **fields)


def test_several_files_for_one_split(tmp_path):
    for name in ("one.json", "two.json"):
        write(tmp_path / name, document())
    with user_error("name_clash", "one.json", "two.json"):
        read(tmp_path)


def test_missing_images(tmp_path):
    write(tmp_path / "a.json", document())
    with user_error("image_missing", "a.json", "--images"):
        read(tmp_path)
    with user_error("file_missing", tmp_path / "none"):
        read(tmp_path, images=tmp_path / "none")


def test_images_of_another_ending(tmp_path):
    image(tmp_path / "images" / "a.png")
    images = [{"id": 1, "file_name": "x/a.jpg", "width": 40, "height": 30}]
    write(tmp_path / "a.json", document(images=images))
    records, sources, notes = read(tmp_path / "a.json")
    assert [each.file_name for each in records["all"]] == ["a.png"]
    assert sources["all"].image_root == tmp_path / "images"
    assert notes.count("image_ending") == len(notes) == 1


def test_images_that_a_conversion_left_in_their_place(tmp_path):
    image(tmp_path / "photos" / "a.png")
    write(tmp_path / "a.json", document())
    manifest = {"version": "1", "images": {"all": str(tmp_path / "photos")}, "place": "keep"}
    write(tmp_path / "conversion.json", manifest)
    source = coco.read(tmp_path / "a.json", ReadOptions(), Notes())["all"]
    assert source.num_images == 1 and len(list(source.records())[0].instances) == 1


def test_notes_are_made_once(tmp_path):
    image(tmp_path / "a.png")
    write(tmp_path / "a.json", document(annotations=[annotation(1, 1, 1, segmentation=[])]))
    notes = Notes()
    source = coco.read(tmp_path, ReadOptions(), notes)["all"]
    assert list(source.records()) == list(source.records()) and notes.count("box_only") == 1


def test_many_points(tmp_path):
    angles = np.linspace(0, 2 * np.pi, 2 * 10**5, endpoint=False)
    points = np.stack([20 + 10 * np.cos(angles), 15 + 10 * np.sin(angles)], axis=1)
    start = time.monotonic()
    (record,), notes = read_one(
        tmp_path,
        annotations=[annotation(1, 1, 1, segmentation=[points.round(2).reshape(-1).tolist()])],
    )
    assert len(record.instances[0].segmentation[0]) == 4 * 10**5
    zigzag = np.stack([np.arange(10**5) % 2 * 39.0, np.linspace(0, 29, 10**5)], axis=1)
    (record,), notes = read_one(
        tmp_path, annotations=[annotation(1, 1, 1, segmentation=[zigzag.reshape(-1).tolist()])]
    )
    assert not record.instances and notes.count("shape_broken") == 1
    assert time.monotonic() - start < 30


ENCODINGS = ["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-32", "cp037"]


@pytest.fixture
def fuzzed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    image(tmp_path / "in" / "a.png")
    image(tmp_path / "in" / "b.png")
    return tmp_path


def mutated_and_read(folder, seed):
    """Change a good data set, and read or convert it; only a UserError may be raised."""
    rng = random.Random(seed)
    rle = {"size": [30, 40], "counts": [5, 10, 1185]}
    content = document(
        annotations=[annotation(1, 1, 1), annotation(2, 2, 1, segmentation=rle, truth={"a": 1})],
    )
    content["images"].append({"id": 2, "file_name": "b.png", "width": 40, "height": 30})
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(list(places(content)))
        if rng.random() < 0.2:
            del container[key]
        else:
            container[key] = copy.deepcopy(rng.choice(HOSTILE))
    cut = rng.randint(0, 900) if rng.random() < 0.1 else None
    text = json.dumps(content).encode(rng.choice(ENCODINGS), errors="surrogatepass")[:cut]
    path = folder / "in" / "a.json"
    path.write_bytes(text)
    coco.detect(path)
    notes = Notes()
    options = ReadOptions(skip_broken=rng.random() < 0.5)
    try:
        sources = coco.read(path, options, notes)
        if rng.random() < 0.75:  # writing takes longer than reading
            return "read" if list(sources["all"].records()) else "error"
        (written,) = convert.write_dataset(sources, folder / "out", notes, options=options)
    except UserError as error:
        assert str(error)
        return "error"
    again = json.loads(written.json_file.read_text())
    assert len(again["images"]) == written.num_images > 0
    assert len(again["annotations"]) == sum(written.instances.values()) > 0
    return "read"


def test_hostile_files(fuzzed):
    check_cases(lambda seed: mutated_and_read(fuzzed, seed))


def test_a_file_beside_the_folders_of_the_splits_is_not_dropped(tmp_path):
    roboflow(tmp_path / "train", [{"id": 1, "name": "Fiber"}])
    roboflow(tmp_path, [{"id": 1, "name": "Fiber"}])
    with user_error("name_clash", tmp_path / "_annotations.coco.json", "(train)"):
        coco.read(tmp_path, ReadOptions(), Notes())
    assert list(coco.read(tmp_path / "_annotations.coco.json", ReadOptions(), Notes())) == ["all"]
