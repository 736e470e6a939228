"""Hostile COCO files: each ends in records, or in a sentence."""

import copy
import json
import os
import random

import cv2
import numpy as np
import pytest
from format_fuzz import check_cases

from microplastics.data.formats import coco, convert
from microplastics.data.formats.base import Notes, ReadOptions
from microplastics.utils.errors import UserError

SQUARE = [2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]


def image(path, width=40, height=30, value=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))


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


HOSTILE = (
    [None, True, -1, 0, 1, 2**63, 10**400, 1e308, -1e308, float("nan"), float("inf"), 0.5, "", "1"]
    + ["a\0b", "../../etc/passwd", "/etc/passwd", "C:\\x", "\ud800", "a" * 5000, "0" * 30]
    + [[], {}, [[]], [{}], [None], {"size": [30, 40], "counts": "0" * 99}, [1, 2, 3], [[[1]]]]
    + [{"size": [30, 40], "counts": [-5, 2**70]}, [float("nan")] * 6, [1e9] * 8, [[0, 0] * 9]]
)
ENCODINGS = ["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-32", "cp037"]


def places(value, found):
    """Every place in a document: its container and key."""
    items = enumerate(value) if isinstance(value, list) else value.items()
    for key, item in items:
        found.append((value, key))
        if isinstance(item, (list, dict)):
            places(item, found)
    return found


@pytest.fixture
def fuzzed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    image(tmp_path / "in" / "a.png")
    image(tmp_path / "in" / "b.png")
    return tmp_path


def mutated_and_read(folder, seed):
    """Change a good data set, and read or convert it; anything but a UserError is a bug."""
    rng = random.Random(seed)
    rle = {"size": [30, 40], "counts": [5, 10, 1185]}
    content = document(
        annotations=[annotation(1, 1, 1), annotation(2, 2, 1, segmentation=rle, truth={"a": 1})],
    )
    content["images"].append({"id": 2, "file_name": "b.png", "width": 40, "height": 30})
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(places(content, []))
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


def test_fuzz(fuzzed):
    check_cases(lambda seed: mutated_and_read(fuzzed, seed))
