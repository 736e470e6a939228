import json
import math
import time
from xml.etree import ElementTree

import numpy as np
import pycocotools.mask as mask_util
import pytest
from format_fuzz import check_cases, check_reader
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import user_error

from microplastics.data.formats import labelstudio
from microplastics.data.formats.base import NOTES, Notes, ReadOptions
from microplastics.data.formats.convert import export_dataset
from microplastics.data.formats.labelstudio import brush_rle
from microplastics.data.formats.shapes import ShapeError

POINTS = [[10.0, 10.0], [50.0, 12.5], [25.0, 75.0]]


def encode_brush(values, widths=(3, 4, 8, 16)):
    """Write bytes as Label Studio does: runs of one value, and runs of differing ones."""
    values = [int(value) for value in values]
    bits = [f"{len(values):032b}", f"{7:05b}", *(f"{width - 1:04b}" for width in widths)]
    position = 0
    while position < len(values):
        end = position + 1
        same = end < len(values) and values[end] == values[position]
        longest = min(len(values), position + 2 ** widths[-1])
        if same:
            while end < longest and values[end] == values[position]:
                end += 1
        else:
            while end < longest and not (end + 1 < len(values) and values[end] == values[end + 1]):
                end += 1
        choice = next(i for i, width in enumerate(widths) if end - position <= 2**width)
        bits += [str(int(same)), f"{choice:02b}", f"{end - position - 1:0{widths[choice]}b}"]
        bits += [f"{value:08b}" for value in values[position : position + 1 if same else end]]
        position = end
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[i : i + 8], 2) for i in range(0, len(stream), 8)]


def _rgba(mask, alpha=255):
    picture = np.zeros((*mask.shape, 4), np.uint8)
    picture[mask] = (200, 30, 70, alpha)
    return picture.reshape(-1)


def _result(kind, value, label="Fiber", **fields):
    return {
        "id": fields.pop("id", f"r{json.dumps(value)}{label}"),
        "type": f"{kind}labels",
        "from_name": "label",
        "to_name": "image",
        "original_width": 64,
        "original_height": 48,
        "image_rotation": 0,
        "value": {**value, f"{kind}labels": [label]},
        **fields,
    }


def _annotation(*results, **fields):
    return {
        "id": 7,
        "completed_by": 1,
        "result": list(results),
        "was_cancelled": False,
        "ground_truth": False,
        "updated_at": "2024-01-01T00:00:00Z",
        **fields,
    }


def _task(*annotations, image="/data/upload/1/0a1b2c3d-a.png", **fields):
    task = {"id": 3, "annotations": list(annotations), "data": {"image": image}}
    return {**task, "predictions": [_annotation(_result("polygon", {"points": POINTS}))], **fields}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    return tmp_path


def _read(folder, document, **options):
    if document is not None:
        (folder / "export.json").write_text(json.dumps(document))
    notes = Notes()
    (source,) = labelstudio.read(folder, ReadOptions(**options), notes).values()
    return list(source.records()), notes, source


def _instances(folder, *results):
    (record,), notes, source = _read(folder, [_task(_annotation(*results))])
    return record.instances, notes, source


def test_polygons_are_percent_of_the_image(folder):
    (instance,), notes, source = _instances(folder, _result("polygon", {"points": POINTS}))
    assert instance.segmentation == [pytest.approx([6.4, 4.8, 32, 6, 16, 36])]
    assert instance.category == "Fiber" and source.classes == ["Fiber"] and len(notes) == 0
    assert instance.where == "export.json, task 3, region 1" and source.num_images == 1


def test_rectangles_turn_about_their_first_corner(folder):
    box = {"x": 50, "y": 50, "width": 25, "height": 12.5, "rotation": 0}
    turned = {**box, "rotation": 90}
    instances, notes, _ = _instances(
        folder, _result("rectangle", box), _result("rectangle", turned)
    )
    assert instances[0].segmentation == [[32, 24, 48, 24, 48, 30, 32, 30]]
    assert instances[1].segmentation == [pytest.approx([32, 24, 32, 40, 26, 40, 26, 24])]
    assert notes.count("box_only") == 2


def test_ellipses_turn_about_their_centre(folder):
    value = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 12.5, "rotation": 30}
    (instance,), notes, _ = _instances(folder, _result("ellipse", value))
    x, y = np.reshape(instance.segmentation[0], (-1, 2)).T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert area == pytest.approx(math.pi * 16 * 6) and notes.count("curve_as_polygon") == 1
    assert math.degrees(math.atan2(y[0] - 24, x[0] - 32)) == pytest.approx(30)
    assert (x.mean(), y.mean()) == pytest.approx((32, 24))


def test_a_brush_keeps_its_pixels_and_holes(folder):
    mask = np.zeros((48, 64), bool)
    mask[5:20, 10:40] = True
    mask[8:12, 15:30] = False
    mask[47, 63] = True
    value = {"format": "rle", "rle": encode_brush(_rgba(mask))}
    (instance,), _, _ = _instances(folder, _result("brush", value, "Film"))
    assert (mask_util.decode(instance.segmentation).astype(bool) == mask).all()
    assert instance.segmentation["counts"] == mask_util.encode(np.asfortranarray(mask))[
        "counts"
    ].decode("ascii")


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([1, 128, 255]),
    st.sampled_from([(3, 4, 8, 16), (1, 2, 3, 4), (16, 16, 16, 16)]),
)
def test_any_brush_is_decoded(seed, height, width, alpha, widths):
    mask = np.random.default_rng(seed).random((height, width)) > 0.6
    values = encode_brush(_rgba(mask, alpha), widths)
    if not mask.any():
        with pytest.raises(ShapeError, match="without a pixel"):
            brush_rle(values, (height, width))
        return
    rle = brush_rle(values, (height, width))
    assert (mask_util.decode(rle).astype(bool) == mask).all()


def test_the_soft_rim_of_a_stroke_does_not_widen_it():
    picture = np.zeros((5, 5, 4), np.uint8)
    picture[1:4, 1:4] = 100
    picture[2, 2] = 255
    picture[2, 1] = 128
    rle = brush_rle(encode_brush(picture.reshape(-1)), (5, 5))
    assert np.argwhere(mask_util.decode(rle)).tolist() == [[2, 1], [2, 2]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "cut off"),
        ("x", "cut off"),
        ([256], "not a list of bytes"),
        ([0.5], "not a list of bytes"),
        ([255] * 3, "cut off"),
        ([255] * 100, "4294967295 values, not 12288"),
        (encode_brush(np.zeros(48 * 64 * 4)), "without a pixel"),
        (encode_brush(np.ones(48 * 64 * 4))[:-1], "cut off"),
        ([0, 0, 48, 0, 56, *[255] * 20], "too many values"),
        ([0, 0, 48, 0, 0, *[255] * 20], "not bytes"),
    ],
)
def test_broken_brushes(values, words):
    with pytest.raises(ShapeError, match=words):
        brush_rle(values, (48, 64))


def test_the_annotation_that_counts(folder):
    def named(label, **fields):
        return _annotation(_result("polygon", {"points": POINTS}, label), **fields)

    late = {"updated_at": "2025-01-01T00:00:00Z"}
    annotations = [named("late", **late), named("old"), named("out", was_cancelled=True)]
    (record,), notes, source = _read(folder, [_task(*annotations)])
    assert [each.category for each in record.instances] == ["late"] == source.classes
    assert notes.count("annotation_other") == 1 and notes.count("annotation_cancelled") == 1
    (record,), notes, _ = _read(folder, [_task(*annotations, named("true", ground_truth=True))])
    assert record.instances[0].category == "true" and notes.count("annotation_other") == 2


def test_blanks_stay_and_tasks_without_an_annotation_do_not(folder):
    for name in ("b.png", "c.png"):
        Image.new("RGB", (64, 48)).save(folder / name)
    tasks = [
        _task(_annotation(_result("polygon", {"points": POINTS}))),
        _task(_annotation(), image="b.png", id=4),
        _task(image="c.png", id=5),
        _task(image="gone.png", id=6),
        _task(_annotation(was_cancelled=True), image="gone2.png", id=7),
    ]
    records, notes, _ = _read(folder, tasks)
    assert [(r.file_name, len(r.instances)) for r in records] == [("a.png", 1), ("b.png", 0)]
    places = notes.as_dict()["image_unannotated"]["places"]
    assert places == [f"export.json, task {number}" for number in (5, 6, 7)]


@pytest.mark.parametrize(
    ("image", "file"),
    [
        ("/data/upload/1/0a1b2c3d-a.png", "a.png"),
        ("/data/upload/1/0a1b2c3d-a.png", "images/0a1b2c3d-a.png"),
        ("/data/local-files/?d=lab%2Fset/b%20c.png", "images/b c.png"),
        ("/data/local-files/?d=sub/d.png", "sub/d.png"),
        ("s3://bucket/dir/e.png", "images/e.png"),
        ("https://host/dir/f%20g.png?X-Amz=1%2F2", "f g.png"),
        ("C:\\data\\h.png", "h.png"),
    ],
)
def test_addresses_of_images(tmp_path, image, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 48)).save(tmp_path / file)
    (record,), _, _ = _read(tmp_path, [_task(_annotation(), image=image)])
    assert record.file_name == file


def test_images_under_another_key(folder):
    task = _task(_annotation())
    task["data"] = {"photo": "a.png", "sample": "S1"}
    assert _read(folder, [task])[0][0].file_name == "a.png"
    task["data"] = {"photo": "a.png", "other": "b.png"}
    with user_error("annotations_invalid", "task 3", "'photo', 'other'"):
        _read(folder, [task])
    task["data"] = {"text": "words"}
    with user_error("annotations_invalid", "task 3 has no image"):
        _read(folder, [task])


def test_labels_beside_the_shape_and_choices_of_a_region(folder):
    shape = {"id": "x", "type": "polygon", "value": {"points": POINTS}}
    label = {"id": "x", "type": "labels", "value": {"points": POINTS, "labels": ["Film", "A"]}}
    choice = {"id": "y", "type": "choices", "value": {"points": POINTS, "choices": ["Bead"]}}
    whole = {"id": "z", "type": "choices", "value": {"choices": ["good"]}}
    relation = {"from_id": "x", "to_id": "y", "type": "relation"}
    instances, notes, source = _instances(folder, shape, label, choice, whole, relation)
    assert [each.category for each in instances] == ["Film", "Bead"]
    assert source.classes == ["Bead", "Film"]
    assert notes.count("label_ambiguous") == 1 and notes.count("field_unknown") == 2


def test_unusable_annotations_are_noted(folder):
    results = [
        _result("keypoint", {"x": 1, "y": 2, "width": 1}, "Dot"),
        _result("polygon", {"points": POINTS[:2]}),
        _result("polygon", {"points": POINTS}, " "),
        _result("brush", {"format": "rle", "rle": [1, 2, 3]}),
        _result("brush", {"format": "png", "rle": [1]}),
        _result("vector", {"vertices": []}),
    ]
    instances, notes, source = _instances(folder, *results)
    assert instances == [] and "Dot" not in source.classes
    counts = {code: notes.count(code) for code in NOTES if notes.count(code)}
    assert counts == {
        "shape_without_area": 1,
        "shape_broken": 2,
        "shape_unlabelled": 1,
        "shape_type": 2,
    }


def test_json_min(folder):
    region = {"points": POINTS, "polygonlabels": ["Fiber"], "original_width": 64}
    region["original_height"] = 48
    row = {"image": "/data/upload/1/0a1b2c3d-a.png", "id": 9, "label": [region], "annotator": 1}
    row.update(annotation_id=5, updated_at="2024-02-01T00:00:00Z", lead_time=2.0)
    newer = {**row, "label": [region, region], "updated_at": "2024-03-01T00:00:00Z"}
    (record,), notes, source = _read(folder, [newer, row])
    assert len(record.instances) == 2 and source.classes == ["Fiber"]
    assert record.instances[0].segmentation == [pytest.approx([6.4, 4.8, 32, 6, 16, 36])]
    assert notes.count("annotation_other") == 1
    assert labelstudio.detect(folder / "export.json")


def test_the_size_must_be_that_of_the_file(folder):
    result = {**_result("polygon", {"points": POINTS}), "original_width": 640}
    with user_error("image_size", "a.png", "64 x 48", "640 x 48"):
        _instances(folder, result)
    records, notes, _ = _read(folder, [_task(_annotation(result))], skip_broken=True)
    assert records == [] and notes.count("image_size") == 1


def test_other_json_is_refused(folder):
    for document in ([3], [{"data": {"image": "a.png"}}]):
        with user_error("annotations_invalid", "export.json, task 1"):
            _read(folder, document)


def test_detect(folder):
    path = folder / "export.json"
    for indent in (None, 2):
        path.write_text(json.dumps([_task(_annotation())], indent=indent))
        assert labelstudio.detect(path) and labelstudio.detect(folder)
    for document in ([], {}, [1], {"images": [], "annotations": []}, [{"regions": []}]):
        path.write_text(json.dumps(document))
        assert not labelstudio.detect(path)


def test_many_points_and_bombs_take_no_time(folder):
    rng = np.random.default_rng(0)
    points = (rng.random((2 * 10**5, 2)) * 100).round(2).tolist()
    literal = encode_brush(np.zeros(0))[:4]
    results = [
        _result("polygon", {"points": points}, id="a"),
        _result("brush", {"rle": [255] * 200_000}, id="b"),
        _result("brush", {"rle": [*literal, *[0] * 200_000]}, id="c"),
        # 12,288 values, one a run: the most runs that there can be.
        _result("brush", {"rle": [0, 0, 48, 0, 56, 0, 0, *[0] * 10**5]}, id="d"),
    ]
    (folder / "export.json").write_text(json.dumps([_task(_annotation(*results))]))
    start = time.process_time()
    (record,), notes, _ = _read(folder, None)
    assert time.process_time() - start < 15
    assert len(record.instances) == 1 and notes.count("shape_broken") == 3


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    return folder


BRUSH = encode_brush(_rgba(np.tri(48, 64, dtype=bool)))
RESULTS = [
    _result("polygon", {"points": POINTS}),
    _result("rectangle", {"x": 1, "y": 2, "width": 9, "height": 9, "rotation": 5}),
    _result("ellipse", {"x": 9, "y": 9, "radiusX": 3, "radiusY": 4, "rotation": 5}),
    _result("keypoint", {"x": 1, "y": 2, "width": 1}),
]
DOCUMENTS = [
    [_task(_annotation(*RESULTS), _annotation(RESULTS[0], ground_truth=True))],
    [_task(_annotation(_result("brush", {"format": "rle", "rle": BRUSH})))],
    [{"image": "a.png", "id": 1, "label": [{**RESULTS[0]["value"], "original_width": 64}]}],
    [_task(_annotation(*RESULTS), image="/data/local-files/?d=a.png")],
]


def test_hostile_files(fuzz_folder):
    check_cases(lambda seed: check_reader(labelstudio, fuzz_folder / "a.json", DOCUMENTS, seed))


@given(st.lists(st.tuples(st.integers(0, len(BRUSH) - 1), st.integers(0, 255)), min_size=1))
def test_hostile_brushes_are_masks_or_refused(changes):
    values = list(BRUSH)
    for place, value in changes:
        values[place] = value
    try:
        rle = brush_rle(values, (48, 64))
    except ShapeError:
        return
    assert mask_util.area(rle) > 0


def test_brushes_are_encoded_from_their_crop():
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    values = labelstudio.encode_brush(mask, (7, 11), 300, 200)
    pixels = mask_util.decode(brush_rle(values, (200, 300)))
    assert np.array_equal(pixels[11:31, 7:37], mask) and pixels.sum() == mask.sum()


def test_pre_annotations(tmp_path):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "set/a b.png")
    names = ["A<b>", 'C"']
    document = {
        "images": [{"id": 1, "file_name": "a b.png", "width": 64, "height": 48}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [8, 6, 16, 12],
                "segmentation": [[8, 6, 24, 6, 24, 18]],
                "score": 0.75,
            }
        ],
    }
    (tmp_path / "set/a.json").write_text(json.dumps(document))
    export_dataset(tmp_path / "set/a.json", tmp_path / "out", "labelstudio")
    (task,) = json.loads((tmp_path / "out/all/tasks.json").read_text())
    assert task["data"] == {"image": "/data/local-files/?d=all/a%20b.png"}
    ((result,),) = [each["result"] for each in task["predictions"]]
    assert (result["type"], result["from_name"]) == ("polygonlabels", "polygon")
    assert (result["score"], result["original_width"]) == (0.75, 64)
    assert result["value"]["points"] == [[12.5, 12.5], [37.5, 12.5], [37.5, 37.5]]
    interface = ElementTree.fromstring((tmp_path / "out/interface.xml").read_text())
    assert [each.get("value") for each in interface.iter("Label")] == names * 2
