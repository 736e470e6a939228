import base64
import io
import json
import math
import time

import numpy as np
import pycocotools.mask as mask_util
import pytest
from format_fuzz import check_cases, check_reader
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import user_error

from microplastics.data.formats import labelme
from microplastics.data.formats.base import (
    NOTES,
    ImageRecord,
    Instance,
    Notes,
    ReadOptions,
    Source,
    open_dataset,
)
from microplastics.data.formats.convert import convert_dataset
from microplastics.data.segmentation import measure
from microplastics.utils.errors import UserError

TRIANGLE = [[10.0, 10.0], [30.5, 10.25], [20.0, 33.0]]


def _png(crop, mode="1"):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(crop)).convert(mode).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _shape(label, points, kind="polygon", **fields):
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
        **fields,
    }


def _document(shapes, **fields):
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": "a.png",
        "imageData": None,
        "imageHeight": 48,
        "imageWidth": 64,
        **fields,
    }


def _mask_shape(label="Film", **fields):
    crop = np.ones((4, 6), bool)
    crop[1:3, 2:4] = False
    return _shape(label, [[5.0, 7.0], [10.0, 10.0]], "mask", mask=_png(crop), **fields), crop


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    return tmp_path


def _write(folder, shapes, name="a.json", **fields):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_document(shapes, **fields)))
    return path


def _read(path, **options):
    notes = Notes()
    sources = labelme.read(path, ReadOptions(**options), notes)
    return {split: list(source.records()) for split, source in sources.items()}, notes, sources


def _one(folder, shapes, **options):
    _write(folder, shapes)
    records, notes, sources = _read(folder, **options)
    (record,) = records["all"]
    return record.instances, notes, sources["all"]


def _decoded(segmentation):
    return mask_util.decode(segmentation).astype(bool)


def test_a_polygon_keeps_its_coordinates_and_fields(folder):
    shape = _shape("Fiber ", TRIANGLE, description="curled", flags={"blurred": True}, score=0.5)
    (instance,), notes, source = _one(folder, [shape])
    assert instance.segmentation == [[10.0, 10.0, 30.5, 10.25, 20.0, 33.0]]
    assert instance.category == "Fiber" and instance.where == "a.json, shape 1"
    assert instance.extra == {"description": "curled", "flags": {"blurred": True}, "score": 0.5}
    assert source.classes == ["Fiber"] and source.num_images == 1 and len(notes) == 0


def test_a_file_of_labelme_4_without_shape_type(folder):
    shape = {"label": "Film", "points": TRIANGLE, "line_color": None, "fill_color": None}
    (instance,), _, _ = _one(folder, [shape])
    assert len(instance.segmentation[0]) == 6 and instance.extra == {}


def test_rectangles_of_two_and_of_four_corners(folder):
    turned = [[20, 5], [30, 15], [20, 25], [10, 15]]
    shapes = [_shape("A", [[30, 20], [10, 12]], "rectangle"), _shape("A", turned, "rectangle")]
    instances, notes, _ = _one(folder, shapes)
    assert instances[0].segmentation == [[10, 12, 30, 12, 30, 20, 10, 20]]
    assert instances[1].segmentation == [[20, 5, 30, 15, 20, 25, 10, 15]]
    assert notes.count("box_only") == 2


@pytest.mark.parametrize("radius", [1.5, 20.0, 400.0])
def test_a_circle_becomes_a_polygon_of_its_area_within_a_tenth_of_a_pixel(folder, radius):
    shape = _shape("Bead", [[32.0, 24.0], [32.0 + radius * 0.6, 24.0 + radius * 0.8]], "circle")
    (instance,), notes, _ = _one(folder, [shape])
    points = np.reshape(instance.segmentation[0], (-1, 2)) - [32, 24]
    x, y = points.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert area == pytest.approx(math.pi * radius**2, rel=1e-9)
    middles = (points + np.roll(points, -1, axis=0)) / 2
    off = np.abs(np.hypot(*np.concatenate([points, middles]).T) - radius)
    assert off.max() < 0.1 and notes.count("curve_as_polygon") == 1


def test_lines_need_a_width(folder):
    line = _shape("Fiber", [[10, 10], [40, 10]], "linestrip")
    instances, notes, source = _one(folder, [line])
    assert instances == [] and source.classes == [] and notes.count("shape_without_area") == 1
    (instance,), notes, source = _one(folder, [line], line_width=4)
    points = {tuple(point) for point in np.reshape(instance.segmentation[0], (-1, 2)).tolist()}
    assert points == {(10, 8), (40, 8), (40, 12), (10, 12)}
    assert source.classes == ["Fiber"] and notes.count("line_as_polygon") == 1


def test_a_line_round_a_hole_keeps_the_hole(folder):
    ring = [[10, 10], [40, 10], [40, 40], [10, 40], [10, 10], [20, 10]]
    (instance,), _, _ = _one(folder, [_shape("Fiber", ring, "linestrip")], line_width=6)
    mask = _decoded(instance.segmentation)
    assert mask[10, 25] and not mask[25, 25] and mask[36, 38] and not mask[30, 30]
    assert mask.sum() == pytest.approx(36 * 36 - 24 * 24, abs=12)


def test_a_mask_shape_becomes_the_same_pixels(folder):
    shape, crop = _mask_shape()
    (instance,), _, _ = _one(folder, [shape])
    expected = np.zeros((48, 64), bool)
    expected[7:11, 5:11] = crop
    assert (_decoded(instance.segmentation) == expected).all()


def test_a_mask_that_reaches_out_of_the_image_is_cut_off(folder):
    crop = np.ones((10, 10), bool)
    shape = _shape("Film", [[60, -3], [69, 6]], "mask", mask=_png(crop, "L"))
    outside = _shape("Film", [[70, 0], [79, 9]], "mask", mask=_png(crop))
    (instance,), notes, _ = _one(folder, [shape, outside])
    mask = _decoded(instance.segmentation)
    assert mask[:7, 60:].all() and mask.sum() == 28 and notes.count("shape_outside") == 1


def test_groups_of_one_label_become_one_instance(folder):
    square = [[50, 30], [60, 30], [60, 40], [50, 40]]
    mask, crop = _mask_shape(group_id=2)
    shapes = [
        _shape("Fiber", TRIANGLE, group_id=1, description="x"),
        mask,
        _shape("Fiber", square, group_id=1),
        _shape("Film", square, group_id=2),
        _shape("Fiber", square, group_id=2),
    ]
    instances, notes, _ = _one(folder, shapes)
    assert [instance.category for instance in instances] == ["Fiber", "Film", "Fiber"]
    assert len(instances[0].segmentation) == 2 and instances[0].extra == {"description": "x"}
    union = _decoded(instances[1].segmentation)
    assert union.sum() == crop.sum() + 100 and union[35, 55] and union[7, 5]
    assert notes.count("group_joined") == 2
    assert "group 2 (Fiber, Film)" in "\n".join(notes.lines())


def test_unusable_shapes_are_noted_with_their_place(folder):
    shapes = [
        _shape("A", [[1, 1]], "point"),
        _shape("A", [[1, 1], [2, 2]]),
        _shape("A", [[1, 1], [2, float("nan")], [3, 3]]),
        _shape("", TRIANGLE),
        _shape("A", TRIANGLE, "cuboid"),
        "shape",
        _shape("A", [[0, 0], [63, 47]], "mask", mask="%%%"),
        _shape("A", TRIANGLE, long="x" * 5000),
    ]
    instances, notes, source = _one(folder, shapes)
    assert len(instances) == 1 and source.classes == ["A"]
    assert notes.count("shape_broken") == 4 and notes.count("shape_without_area") == 1
    assert notes.count("shape_unlabelled") == 1 and notes.count("shape_type") == 1
    assert notes.as_dict()["field_unknown"]["places"] == ["a.json, shape 8 ('long')"]
    assert "a.json, shape 7 (a mask that is not a PNG in base64)" in "\n".join(notes.lines())


@pytest.mark.parametrize(
    "image_path",
    ["../img/b.png", "..\\img\\b.png", "C:\\Users\\x\\b.png", "/home/x/b.png", "b.png"],
)
def test_images_are_found_where_they_are(tmp_path, image_path):
    (tmp_path / "img").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "img/b.png")
    _write(tmp_path, [], "ann/b.json", imagePath=image_path)
    records, notes, sources = _read(tmp_path)
    assert records["all"][0].file_name == "img/b.png" and len(notes) == 0
    assert sources["all"].image_root == tmp_path


def test_images_in_a_folder_of_their_own(tmp_path):
    (tmp_path / "img/train").mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(tmp_path / "img/train/b.png")
    _write(tmp_path, [], "ann/train/b.json", imagePath="../../b.png")
    with user_error("image_missing", "ann/train", "b.png", "--images"):
        _read(tmp_path / "ann")
    records, _, sources = _read(tmp_path / "ann", images=tmp_path / "img")
    assert records["train"][0].file_name == "b.png"
    assert sources["train"].image_root == tmp_path / "img/train"


def test_an_image_outside_of_the_input_is_refused(folder):
    _write(folder, [], "ann/a.json", imagePath="../a.png")
    with user_error("image_missing", "a.json", folder / "a.png", "outside"):
        _read(folder / "ann")


def test_two_images_of_one_name_are_refused(folder):
    (folder / "x").mkdir()
    Image.new("RGB", (64, 48)).save(folder / "x/a.png")
    _write(folder, [], "ann/a.json", imagePath="/old/a.png")
    (folder / "a.png").rename(folder / "x/../y.png")
    assert _read(folder)[0]["all"][0].file_name == "x/a.png"
    (folder / "z").mkdir()
    (folder / "y.png").rename(folder / "z/a.png")
    with user_error("image_missing", "x/a.png, z/a.png"):
        _read(folder)


def _embedded(kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 8, 7)).save(buffer, kind)
    return buffer.getvalue(), base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg")])
def test_an_embedded_picture_is_written_out(folder, tmp_path_factory, kind, suffix):
    (folder / "a.png").rename(folder / "b.png")
    content, text = _embedded(kind)
    _write(folder, [_shape("Fiber", TRIANGLE)], imagePath="C:\\x\\a.bmp", imageData=text)
    _write(folder, [_shape("Film", TRIANGLE)], "b.json", imagePath="b.png", imageData=text)
    out = tmp_path_factory.mktemp("out") / "set"
    for _ in range(2):  # the second time over the first
        conversion = convert_dataset(folder, out)
    assert conversion.notes.as_dict()["picture_embedded"]["places"] == [f"a.json (a{suffix})"]
    assert (out / "all" / f"a{suffix}").read_bytes() == content
    assert (out / "all" / "b.png").samefile(folder / "b.png")
    (source,) = open_dataset(out, ReadOptions(), Notes())[1].values()
    records = list(source.records())
    assert [record.file_name for record in records] == [f"a{suffix}", "b.png"]
    assert source.image_root == out / "all" and not source.embedded
    (out / "all" / f"a{suffix}").write_bytes(b"x")
    with user_error("output_exists", f"a{suffix}"):
        convert_dataset(folder, out)


def test_embedded_pictures_that_cannot_be_used(folder):
    (folder / "a.png").unlink()
    for text, code in (("iVBORw0KGgo=", "image_invalid"), ("%", "image_missing")):
        _write(folder, [], imageData=text)
        with user_error(code, "a.json", "embedded picture"):
            _read(folder)
    records, notes, _ = _read(folder, skip_broken=True)
    assert records["all"] == [] and notes.count("image_missing") == 1
    _write(folder, [], imageData=_embedded()[1], imageWidth=63)
    with user_error("image_size", "a.json", "64 x 48"):
        _read(folder)


@pytest.mark.parametrize("image_path", ["a.json", "x/a.JPG", "C:\\a.czi", "a"])
def test_an_image_of_another_ending_is_found_by_its_stem(folder, image_path):
    _write(folder, [], imagePath=image_path, imageData=_embedded()[1])
    records, notes, _ = _read(folder)
    assert records["all"][0].file_name == "a.png" and len(notes) == (image_path != "a")
    assert notes.count("image_ending") == len(notes)
    Image.new("RGB", (64, 48)).save(folder / "a.tif")  # which of the two is meant?
    _write(folder, [], imagePath=image_path)
    with user_error("image_missing", "a.json"):
        _read(folder)


def test_the_size_of_the_file_counts(folder):
    _write(folder, [_shape("A", TRIANGLE)], imageWidth=None, imageHeight=None)
    record = _read(folder)[0]["all"][0]
    assert (record.width, record.height) == (64, 48)
    _write(folder, [], imageWidth=48, imageHeight=64)
    with user_error("image_size", "a.png", "64 x 48", "48 x 64"):
        _read(folder)
    records, notes, _ = _read(folder, skip_broken=True)
    assert records["all"] == [] and notes.count("image_size") == 1


def test_splits_blanks_and_images_without_annotations(tmp_path):
    for split, names in {"train": "ab", "valid": "c"}.items():
        (tmp_path / split).mkdir()
        for name in names:
            Image.new("RGB", (64, 48)).save(tmp_path / split / f"{name}.png")
    _write(tmp_path, [_shape("B", TRIANGLE), _shape("A", TRIANGLE)], "train/a.json")
    _write(tmp_path, [], "valid/c.json", imagePath="c.png")
    records, notes, sources = _read(tmp_path)
    assert list(records) == ["train", "val"] and sources["train"].classes == ["A", "B"]
    assert [len(records[split]) for split in records] == [1, 1]
    assert records["val"][0].instances == []
    assert notes.as_dict()["image_unannotated"]["places"] == ["b.png"]
    _write(tmp_path, [], "d.json")
    with user_error("name_clash", "d.json"):
        _read(tmp_path)


def test_files_that_are_broken_stop_or_are_skipped(folder):
    _write(folder, [_shape("A", TRIANGLE)])
    (folder / "b.json").write_text('{"shapes": [')
    (folder / "c.json").write_text('{"images": []}')
    _write(folder, [], "d.json")
    with pytest.raises(UserError, match="b.json"):
        _read(folder)
    records, notes, _ = _read(folder, skip_broken=True)
    assert len(records["all"]) == 1 and notes.count("label_broken") == 3
    assert "both annotate a.png" in "\n".join(notes.lines())


def test_a_folder_without_json_is_an_error(tmp_path):
    with user_error("file_missing", tmp_path):
        _read(tmp_path)


def test_notes_are_made_once_however_often_records_are_read(folder):
    _write(folder, [_shape("A", [[1, 1]], "point")])
    notes = Notes()
    source = labelme.read(folder, ReadOptions(), notes)["all"]
    assert list(source.records()) == list(source.records()) and len(notes) == 1


def test_detect(folder):
    path = _write(folder, [_shape("A", TRIANGLE)])
    assert labelme.detect(path) and labelme.detect(folder)
    path.write_bytes(path.read_text().encode("utf-16"))
    assert labelme.detect(path)
    coco = '{"images": [], "annotations": [], "categories": []}'
    for text in (coco, "", "[]", '{"shapes": [', "\0\0"):
        path.write_text(text)
        assert not labelme.detect(path), text
    assert not labelme.detect(folder / "missing")


def test_many_points_and_bombs_take_no_time(folder):
    rng = np.random.default_rng(0)
    points = (rng.random((2 * 10**5, 2)) * 64).round(2).tolist()
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    bomb = base64.b64encode(bomb.getvalue()).decode()
    shapes = [
        _shape("A", points),
        _shape("A", points[:21_000], "linestrip"),
        _shape("A", points[:4_000], "linestrip"),
        _shape("A", [[0, 0], [19_999, 19_999]], "mask", mask=bomb),
        _shape("A", [[-1e7, 0], [1e7, 5]], "mask", mask=bomb),
        _shape("A", [[0, 0], [7e6, 7e6]], "circle"),
        _shape("A", points[:300], "linestrip"),
    ]
    _write(folder, shapes)
    start = time.process_time()
    records, notes, _ = _read(folder, line_width=5)
    instances = records["all"][0].instances
    assert time.process_time() - start < 15
    assert [instance.where.split()[-1] for instance in instances] == ["1", "6", "7"]
    assert notes.count("shape_broken") == 4
    (folder / "a.json").write_text('{"shapes": ' + "[" * 200_000)
    with pytest.raises(UserError, match="a.json"):
        _read(folder)


def _coco_records():
    rng = np.random.default_rng(3)
    polygons = [(rng.random((12, 2)) * [64, 48]).reshape(-1).tolist() for _ in range(3)]
    blob = rng.random((48, 64)) > 0.6
    rle = mask_util.encode(np.asfortranarray(blob))
    rle = {"size": [48, 64], "counts": rle["counts"].decode()}
    extra = {"description": "d", "score": 0.25, "flags": {"f": True}, "attributes": {"a": 1}}
    instances = [
        Instance("Fiber", polygons[:1], "0", extra=extra),
        Instance("Film", polygons[1:], "1"),
        Instance("Film", rle, "2", iscrowd=1),
    ]
    return [
        ImageRecord("sub/a.png", 64, 48, instances, {"sample": "S1"}),
        ImageRecord("sub/a.tif", 64, 48, []),
    ]


def test_nothing_is_lost_in_the_round_trip(tmp_path):
    records = _coco_records()
    source = Source(tmp_path / "in", ["Fiber", "Film"], lambda: iter(records), 2)
    notes = Notes()
    out = tmp_path / "out"
    labelme.write({"train": source}, out, notes)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.json")) == [
        "train/sub/a.json",
        "train/sub/a.tif.json",
    ]
    assert [line.split(":")[0] for line in notes.lines()] == [f"1 x {NOTES['parts_split']}"]
    for record in records:
        Image.new("RGB", (64, 48)).save(tmp_path / "out/train" / record.file_name)
    notes = Notes()
    back = labelme.read(tmp_path / "out", ReadOptions(), notes)["train"]
    first, second = back.records()
    assert back.classes == ["Fiber", "Film"] and notes.count("group_joined") == 1
    assert (first.file_name, second.file_name) == ("sub/a.png", "sub/a.tif")
    assert first.extra == {"sample": "S1"} and second.instances == []
    for before, after in zip(records[0].instances, first.instances, strict=True):
        assert after.segmentation == before.segmentation
        assert (after.category, after.iscrowd) == (before.category, before.iscrowd)
        assert after.extra == before.extra


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_any_mask_survives_the_round_trip(seed, height, width, fraction):
    blob = np.random.default_rng(seed).random((height, width)) < fraction
    blob[seed % height, seed % width] = True
    rle = mask_util.encode(np.asfortranarray(blob))
    instance = Instance("A", {"size": [height, width], "counts": rle["counts"].decode()}, "0")
    notes = Notes()
    document = labelme._document(ImageRecord("a.png", width, height, [instance]), notes)
    assert labelme._mask(document["shapes"][0], (height, width)) == instance.segmentation


def test_fields_that_labelme_cannot_hold_are_noted(tmp_path):
    extra = {"label": "x", "flags": [1]}
    record = ImageRecord("a.png", 64, 48, [Instance("A", [[1, 1, 9, 1, 9, 9]], "0", 0, extra)])
    notes = Notes()
    source = Source(tmp_path, ["A"], lambda: iter([record]))
    labelme.write({"all": source}, tmp_path, notes)
    (shape,) = json.loads((tmp_path / "all" / "a.json").read_text())["shapes"]
    assert notes.count("extra_lost") == 2
    assert shape["label"] == "A" and shape["flags"] == {}


def test_a_name_that_leaves_the_folder_is_not_written(tmp_path):
    record = ImageRecord("../a.png", 64, 48)
    source = Source(tmp_path, [], lambda: iter([record]))
    with user_error("annotations_invalid", "'../a.png'"):
        labelme.write({"all": source}, tmp_path / "out", Notes())
    assert not (tmp_path / "a.json").exists()


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    return folder


MASK = _mask_shape(group_id=1)[0]
DOCUMENTS = [
    _document([_shape("A", TRIANGLE, flags={"iscrowd": True}), MASK, _shape("A", TRIANGLE)]),
    _document([_shape("A", TRIANGLE, group_id=1), MASK, _shape("Film", TRIANGLE, group_id=1)]),
    _document(
        [
            _shape("A", [[1, 1], [20, 20]], kind)
            for kind in ("rectangle", "circle", "line", "linestrip", "point", "mask")
        ],
        imageData="AAAA",
    ),
]


def test_hostile_files(fuzz_folder):
    check_cases(lambda seed: check_reader(labelme, fuzz_folder / "a.json", DOCUMENTS, seed))


def test_a_polygon_that_was_read_can_be_measured(folder):
    (instance,), _, _ = _one(folder, [_shape("A", TRIANGLE)])
    assert measure(instance.segmentation, 48, 64).area == pytest.approx(230, rel=0.1)
