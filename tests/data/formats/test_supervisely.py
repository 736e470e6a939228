import base64
import io
import json
import zlib

import numpy as np
import pycocotools.mask as mask_util
import pytest
from format_fuzz import check_cases, check_reader
from PIL import Image
from support import user_error

from microplastics.data.formats import supervisely
from microplastics.data.formats.base import Notes, ReadOptions

SQUARE = [[10, 10], [40, 10], [40, 40], [10, 40]]
HOLE = [[20, 20], [30, 20], [30, 30], [20, 30]]
CROP = np.array([[0, 1, 1], [1, 0, 1]], np.uint8)


def packed(crop, mode="L"):
    buffer = io.BytesIO()
    if mode == "RGBA":
        crop = np.dstack([np.full_like(crop, 255)] * 3 + [crop * 255])
        Image.fromarray(crop).save(buffer, "PNG")
    else:  # as Supervisely writes it: a palette whose first colour is transparent
        picture = Image.fromarray(crop).convert("P")
        picture.putpalette([0, 0, 0, 255, 255, 255])
        picture.save(buffer, "PNG", transparency=0)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


def item(kind, title="Fiber", **fields):
    return {"id": 1, "classId": 7, "geometryType": kind, "classTitle": title, "tags": [], **fields}


def polygon(exterior=SQUARE, interior=(), **fields):
    return item("polygon", points={"exterior": exterior, "interior": list(interior)}, **fields)


def bitmap(data, origin=(5, 6)):
    return item("bitmap", "Film", bitmap={"data": data, "origin": list(origin)})


def annotation(*objects, **fields):
    size = {"height": 48, "width": 64}
    return {"description": "", "tags": [], "size": size, "objects": list(objects), **fields}


def write(folder, document, name="a.png", dataset="ds0"):
    for kind in ("ann", "img"):
        (folder / dataset / kind).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(folder / dataset / "img" / name)
    (folder / dataset / "ann" / f"{name}.json").write_text(json.dumps(document))
    classes = [{"title": title, "shape": "any"} for title in ("Film", "Fiber")]
    (folder / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))


def read(folder, **options):
    notes = Notes()
    sources = supervisely.read(folder, ReadOptions(**options), notes)
    return {split: list(source.records()) for split, source in sources.items()}, notes, sources


def one(folder, *objects, **options):
    write(folder, annotation(*objects))
    records, notes, sources = read(folder, **options)
    (record,) = records["all"]
    return record.instances, notes, sources["all"]


def test_polygons_and_their_holes(tmp_path):
    tags = [{"name": "quality", "value": "good"}]
    inner = [[22, 22], [28, 22], [28, 28], [22, 28]]  # within the hole: nothing is added
    objects = polygon(tags=tags), polygon(interior=[HOLE, inner, [[70, 0], [80, 0], [80, 9]]])
    (plain, holed), notes, source = one(tmp_path, *objects)
    assert plain.segmentation == [[10, 10, 40, 10, 40, 40, 10, 40]]
    assert plain.extra == {"tags": {"quality": "good"}} and holed.extra == {}
    mask = mask_util.decode(holed.segmentation)
    assert mask.sum() == 900 - 100 and not mask[20:30, 20:30].any() and mask[19, 19] == 1
    assert source.classes == ["Fiber"] and len(notes) == 0


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_bitmaps_become_the_same_pixels(tmp_path, mode):
    (instance,), _, _ = one(tmp_path, bitmap(packed(CROP, mode)))
    mask = mask_util.decode(instance.segmentation)
    assert mask[6:8, 5:8].tolist() == CROP.tolist() and mask.sum() == 4


def test_other_geometry(tmp_path):
    corners = {"exterior": [[12, 9], [2, 4]], "interior": []}
    line = item("line", points={"exterior": [[10, 40], [40, 40]], "interior": []})
    objects = item("rectangle", points=corners), line, item("point", points={"exterior": [[1, 1]]})
    (box,), notes, _ = one(tmp_path, *objects, item("cuboid_2d"))
    assert box.segmentation == [[2, 4, 12, 4, 12, 9, 2, 9]]
    assert notes.count("shape_without_area") == 2 and notes.count("shape_type") == 1
    assert len(one(tmp_path, *objects, line_width=4)[0]) == 2


def test_splits_blanks_and_the_order_of_classes(tmp_path):
    write(tmp_path, annotation(polygon()), dataset="train")
    write(tmp_path, annotation(bitmap(packed(CROP))), "b.png", "train")
    write(tmp_path, annotation(description="empty"), "c.png", "val")
    records, notes, sources = read(tmp_path)
    assert {split: len(found) for split, found in records.items()} == {"train": 2, "val": 1}
    assert sources["train"].classes == ["Film", "Fiber"] and len(notes) == 0
    assert records["val"][0].extra == {"description": "empty"}
    write(tmp_path, annotation(), "d.png", "extra")
    with user_error("name_clash", "d.png.json"):
        read(tmp_path)


def test_renders_beside_the_images_are_not_taken_for_them(tmp_path):
    write(tmp_path, annotation(polygon()))
    (tmp_path / "ds0" / "masks_human").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "ds0" / "masks_human" / "a.png")
    assert read(tmp_path)[0]["all"][0].file_name == "ds0/img/a.png"


def test_unusable_objects_are_noted(tmp_path):
    bomb = base64.b64encode(zlib.compress(bytes(50 << 20))).decode()
    large = packed(np.ones((49, 10), np.uint8))
    objects = [bitmap(each) for each in (bomb, large, "%", None)]
    objects += [bitmap(packed(CROP), (70, 0)), polygon(SQUARE[:2]), polygon(interior=[SQUARE])]
    objects += [polygon(title="", classTitle=None), "x", item("bitmap"), polygon(interior=[[[1]]])]
    instances, notes, _ = one(tmp_path, *objects)
    assert instances == []
    assert notes.count("shape_broken") == 8 and notes.count("shape_outside") == 1
    assert notes.count("shape_without_area") == notes.count("shape_unlabelled") == 1


def test_detect_and_wrong_content(tmp_path):
    write(tmp_path, annotation())
    assert supervisely.detect(tmp_path) and supervisely.detect(tmp_path / "ds0")
    write(tmp_path, {"size": [], "objects": []})
    assert not supervisely.detect(tmp_path)
    with user_error("annotations_invalid", "a.png.json"):
        read(tmp_path)
    write(tmp_path, annotation(size={"height": 48, "width": 63}))
    with user_error("image_size", "a.png"):
        read(tmp_path)


def test_hostile_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    box = item("rectangle", points={"exterior": [[12, 9], [2, 4]], "interior": []})
    document = annotation(polygon(interior=[HOLE]), bitmap(packed(CROP)), box)
    path = folder / "a.png.json"
    check_cases(lambda seed: check_reader(supervisely, path, [document], seed))
