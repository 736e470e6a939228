"""Round trips of random particles from COCO through each format."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from microplastics.data.formats.base import NOTES, Notes, ReadOptions, open_dataset
from microplastics.data.formats.convert import convert_dataset, export_dataset

HEIGHT, WIDTH = 48, 64
CLASSES = ("Film", "Fiber", "Fragment", "Bead")
CELL = 16  # each particle has a cell of its own, so that none overlap
FORMATS = ("yolo", "labelme", "masks", "labelstudio", "cvat", "coco")

COORDINATES = st.integers(0, CELL * 8).map(lambda eighth: eighth / 8)
POLYGON = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=3, max_size=8)
BITMAP = st.integers(1, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).random((CELL, CELL)) < 0.6
)


def bitmap(segmentation):
    if isinstance(segmentation, list):
        rles = mask_util.frPyObjects(segmentation, HEIGHT, WIDTH)
        segmentation = mask_util.merge(rles)
    return mask_util.decode(segmentation).astype(bool)


def encode(mask):
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@st.composite
def segmentations(draw):
    """One particle a cell: a free polygon, two polygons, or a mask with holes and parts."""
    found = []
    for x in range(0, draw(st.integers(1, 4)) * CELL, CELL):
        y = draw(st.sampled_from((0, CELL)))
        kind = draw(st.sampled_from(("polygon", "parts", "mask")))
        if kind == "mask":
            full = np.zeros((HEIGHT, WIDTH), bool)
            full[y : y + CELL, x : x + CELL] = draw(BITMAP)
            found.append(encode(full))
            continue
        parts = [draw(POLYGON)]
        if kind == "parts":  # the second in the free row at the bottom
            parts.append([(px, py + 2 * CELL - y) for px, py in draw(POLYGON)])
        polygons = [[v for px, py in part for v in (px + x, py + y)] for part in parts]
        if all(bitmap([polygon]).any() for polygon in polygons):
            found.append(polygons)
    return found


def make_dataset(folder, images):
    """A COCO set from a list of segmentations for each image."""
    annotations = []
    (folder / "train").mkdir(parents=True)
    for number, found in enumerate(images, 1):
        Image.new("L", (WIDTH, HEIGHT), number).save(folder / "train" / f"{number}.png")
        for segmentation in found:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": len(annotations) % len(CLASSES) + 1,
                    "iscrowd": 0,
                    "area": 1,
                    "bbox": [0, 0, 1, 1],
                    "segmentation": segmentation,
                }
            )
    document = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT}
            for n in range(1, len(images) + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations/instances_train.json").write_text(json.dumps(document))


def particles(source):
    """file name -> (class, bitmap, segmentation) of each particle."""
    return {
        Path(record.file_name).name: [
            (each.category, bitmap(each.segmentation), each.segmentation)
            for each in record.instances
        ]
        for record in source.records()
    }


def take_over(tasks):
    """What Label Studio exports after somebody has submitted the pre-annotations."""
    data = json.loads(tasks.read_text())
    for task in data:
        task["annotations"] = task.pop("predictions")
    tasks.write_text(json.dumps(data))


def round_trip(folder, format, **options):
    """Export, convert back; the particles before and after, and the notes of the way out."""
    export = export_dataset(folder / "set", folder / format, format, **options)
    if format == "labelstudio":
        take_over(folder / format / "train/tasks.json")
    back = folder / f"{format}_back"
    convert_dataset(folder / format, back, place="link")
    before, after = (
        particles(next(iter(open_dataset(path, ReadOptions(), Notes(), "coco")[1].values())))
        for path in (folder / "set", back)
    )
    return before, after, export.notes


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_random_particles(format, polygons):
    @settings(max_examples=10)  # each takes a tenth of a second
    @given(segmentations().filter(len), segmentations())
    def check(first, second):
        folder = Path(tempfile.mkdtemp())
        try:
            make_dataset(folder / "set", [first, [], second])
            before, after, notes = round_trip(folder, format, polygons=polygons)
            _compare(before, after, format, polygons)
            _check_notes(notes, first + second, format, polygons)
        finally:
            shutil.rmtree(folder)

    check()


def _compare(before, after, format, polygons):
    assert list(after) == ["1.png", "2.png", "3.png"]
    assert after["2.png"] == []
    for name, expected in before.items():
        assert [each[0] for each in after[name]] == [each[0] for each in expected]
        for (_, old, old_shape), (_, new, new_shape) in zip(expected, after[name], strict=True):
            # Every format holds every pixel: YOLO's ten digits keep eighths of a pixel.
            assert np.array_equal(old, new)
            if format in ("coco", "labelme", "cvat") and not polygons:
                assert old_shape == new_shape


def _check_notes(notes, shapes, format, polygons):
    rles = sum(isinstance(shape, dict) for shape in shapes)
    parts = sum(isinstance(shape, list) and len(shape) > 1 for shape in shapes)
    assert notes.count("mask_outlined") == (rles if polygons or format == "yolo" else 0)
    if format == "yolo":
        assert notes.count("parts_joined") >= parts
    if format in ("labelme", "cvat"):
        assert notes.count("parts_split") >= parts
    assert notes.count("instance_lost") == notes.count("overlap_lost") == 0


@pytest.mark.parametrize("format", FORMATS)
def test_losses_are_listed(tmp_path, format):
    ring = np.zeros((HEIGHT, WIDTH), bool)
    ring[4:20, 4:20] = True
    ring[8:12, 8:12] = False
    square = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
    make_dataset(tmp_path / "set", [[encode(ring), square]])
    path = tmp_path / "set/annotations/instances_train.json"
    document = json.loads(path.read_text())
    document["annotations"][0].update(iscrowd=1, length_um=12.5)
    path.write_text(json.dumps(document))
    before, after, notes = round_trip(tmp_path, format)
    lost = {
        "yolo": {"crowd_lost": 1, "extra_lost": 1, "hole_bridged": 1, "mask_outlined": 1},
        "labelme": {},
        "masks": {"overlap_lost": 1, "extra_lost": 1},
        "labelstudio": {"crowd_lost": 1, "extra_lost": 1},
        "cvat": {"crowd_lost": 1, "extra_lost": 1},
        "coco": {},
    }[format]
    codes = [code for code in NOTES if code.endswith("_lost") or code.endswith("ed")]
    found = {code: notes.count(code) for code in codes if notes.count(code)}
    assert {code: found.get(code, 0) for code in lost} == lost
    assert {code for code in found if code.endswith("_lost")} == {c for c in lost if "_lost" in c}
    old, new = before["1.png"], after["1.png"]
    if format == "masks":  # the square lies over the ring, which keeps the rest
        assert np.array_equal(new[0][1], old[0][1] & ~old[1][1])
    else:
        assert np.array_equal(new[0][1], old[0][1])
    assert np.array_equal(new[1][1], old[1][1])
