import copy
import json
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.cocoeval import COCOeval
from support import user_error

from microplastics.data import coco
from microplastics.data.coco import (
    check_content,
    check_instances,
    checked_instances,
    coco_api,
    load_instances,
)
from microplastics.utils.errors import UserError


def _clean(seed=0, images=6, each=5):
    """A JSON in which polygons, both kinds of RLE, sparse ids and shuffled lists occur."""
    rng = np.random.default_rng(seed)
    data = {
        "images": [
            {"id": 10 * i + 3, "file_name": f"{i}.png", "width": 90, "height": 60, "license": 1}
            for i in range(images)
        ],
        "categories": [
            {"id": 7, "name": "Film"},
            {"id": 2, "name": "Fiber"},
            {"id": 4, "name": "Fragment"},
        ],
        "annotations": [],
    }
    for image in data["images"]:
        for _ in range(each):
            id_ = len(data["annotations"]) + 1
            x, y = rng.integers(0, [60, 40]).tolist()
            width, height = rng.integers(5, 20, 2).tolist()
            mask = np.zeros((60, 90), np.uint8)
            mask[y : y + height, x : x + width] = 1
            rle = mask_util.encode(np.asfortranarray(mask))
            runs = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=0))
            runs = np.diff([0, *runs.tolist(), 5400]).tolist()
            segmentation = [
                [[x, y, x + width, y, x + width, y + height, x, y + height]],
                {"size": [60, 90], "counts": rle["counts"].decode()},
                {"size": [60, 90], "counts": runs},
            ][id_ % 3]
            data["annotations"].append(
                {
                    "id": id_,
                    "image_id": image["id"],
                    "category_id": [2, 4, 7][id_ % 3],
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(id_ % 7 == 0),
                    "segmentation": segmentation,
                }
            )
    rng.shuffle(data["images"])
    rng.shuffle(data["annotations"])
    return data


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(_clean()))
    return str(tmp_path / "a.json")


def test_loads_as_detectron2_does(path):
    name = f"loads as Detectron2 {path}"
    expected = load_coco_json(path, "/images", name, extra_annotation_keys=["id"])
    loaded = load_instances(path, "/images")
    assert loaded == expected
    assert loaded[0]["annotations"][0]["bbox_mode"] is BoxMode.XYWH_ABS
    metadata = MetadataCatalog.get(name)
    checked = checked_instances(path)
    assert checked.classes == metadata.thing_classes == ["Fiber", "Fragment", "Film"]
    ids = metadata.thing_dataset_id_to_contiguous_id
    assert checked.contiguous_ids == ids == {2: 0, 4: 1, 7: 2}


def test_changes_of_a_caller_do_not_reach_the_next(path):
    first = load_instances(path, "/images")
    kept = copy.deepcopy(first)
    truth = coco_api(path).dataset
    for image in first:
        for annotation in image["annotations"]:
            annotation["bbox"][0] = -1
            if isinstance(annotation["segmentation"], dict):
                annotation["segmentation"]["counts"] = "oo"
            else:
                annotation["segmentation"][0].clear()
        image["annotations"].clear()
    for annotation in truth["annotations"]:
        annotation.clear()
    assert load_instances(path, "/images") == kept


def test_missing_area_iscrowd_and_wrong_boxes_are_filled_in_from_the_mask(path):
    data = _clean()
    expected = load_instances(path, "/images")
    for annotation in data["annotations"]:
        del annotation["area"]
        annotation["bbox"] = [0, 0, 1, 0]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    with open(path, "w") as file:
        json.dump(data, file)
    assert load_instances(path, "/images") == expected


def test_ground_truth_has_the_areas_of_the_masks(path):
    data = _clean()
    areas = {annotation["id"]: annotation["area"] for annotation in data["annotations"]}
    for annotation in data["annotations"]:
        annotation["area"] *= 17
    with open(path, "w") as file:
        json.dump(data, file)
    truth = coco_api(path).dataset
    assert {annotation["id"]: annotation["area"] for annotation in truth["annotations"]} == areas
    assert json.loads(json.dumps(truth)) == truth
    assert [category["id"] for category in truth["categories"]] == [2, 4, 7]


def test_coco_api_evaluates_and_prints_nothing(path, capsys):
    api = coco_api(path)
    assert capsys.readouterr().out == ""
    assert len(api.anns) == 30 and sorted(api.imgs) == [3, 13, 23, 33, 43, 53]
    results = [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "segmentation": api.annToRLE(annotation),
            "score": 0.9,
        }
        for annotation in api.dataset["annotations"]
        if not annotation["iscrowd"]
    ]
    evaluation = COCOeval(api, api.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_roboflow_layout_loads_as_one_class(tmp_path):
    data = _clean()
    data["categories"] = [
        {"id": 0, "name": "Microplastics", "supercategory": "none"},
        {"id": 1, "name": "Microplastics", "supercategory": "Microplastics"},
    ]
    for annotation in data["annotations"]:
        annotation["category_id"] = 1
    path = str(tmp_path / "_annotations.coco.json")
    with open(path, "w") as file:
        json.dump(data, file)
    checked = checked_instances(path)
    assert checked.classes == ["Microplastics"] and checked.contiguous_ids == {1: 0}
    ids = {a["category_id"] for image in load_instances(path, "") for a in image["annotations"]}
    assert ids == {0}
    assert list(coco_api(path).cats) == [1]


def test_a_file_is_parsed_once_until_it_changes(path, monkeypatch):
    reads = []
    read_json = coco.read_json
    monkeypatch.setattr(coco, "read_json", lambda path: reads.append(path) or read_json(path))
    checked_instances(path), load_instances(path, ""), coco_api(path)
    assert reads == [path]
    data = _clean()
    data["categories"][0]["name"] = "Foam"
    with open(path, "w") as file:
        json.dump(data, file)
    assert checked_instances(path).classes == ["Fiber", "Fragment", "Foam"] and reads == [
        path,
        path,
    ]


def test_a_broken_file_stays_broken_until_it_is_fixed(path):
    content = open(path).read()
    with open(path, "w") as file:
        file.write(content[:500])
    for _ in range(2):
        with user_error("file_invalid", path):
            load_instances(path, "")
    with open(path, "w") as file:
        file.write(content)
    assert len(load_instances(path, "")) == 6
    os.unlink(path)
    with user_error("file_missing", path):
        load_instances(path, "")


SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
RLE = {"size": [48, 64], "counts": [480, 24, 24, 24, 2520]}


def _annotation(id_, **changes):
    annotation = {
        "id": id_,
        "image_id": 1,
        "category_id": 1,
        "bbox": [10, 10, 20, 20],
        "area": 400,
        "iscrowd": 0,
        "segmentation": [list(SQUARE)],
    }
    return {**annotation, **changes}


def _valid():
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48},
            {"id": 2, "file_name": "sub/b.png", "width": 64, "height": 48},
        ],
        "categories": [
            {"id": 1, "name": "Fiber"},
            {"id": 2, "name": "Fragment"},
            {"id": 3, "name": "Film"},
        ],
        "annotations": [
            _annotation(1),
            _annotation(2, category_id=2, image_id=2),
            _annotation(
                3, category_id=3, bbox=[10, 0, 3, 24], area=48, segmentation=copy.deepcopy(RLE)
            ),
        ],
    }


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    Image.new("RGB", (64, 48)).save(tmp_path / "sub/b.png")
    return tmp_path


def _check(root, data, **kwargs):
    (root / "a.json").write_text(json.dumps(data))
    return check_instances(str(root / "a.json"), str(root), **kwargs)


def test_a_sound_file_has_no_warnings(root):
    report = _check(root, _valid(), training=True)
    assert not report.findings.warnings
    assert len(report.images) == 2 and len(report.annotations) == 3


def _set(*path, value):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def _drop(*path):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


FIRST = ("annotations", 0)
CONTENT = [
    (_set("images", 0, value=7), "not_an_object"),
    (_drop("images", 0, "id"), "image_field"),
    (_drop("images", 0, "file_name"), "image_field"),
    (_drop("images", 0, "width"), "image_field"),
    (_set("images", 0, "height", value="48"), "image_field"),
    (_set("images", 0, "height", value=48.0), "image_field"),
    (_set("images", 0, "height", value=True), "image_field"),
    (_set("images", 0, "height", value=-1), "image_field"),
    (_set("images", 0, "height", value=10**30), "image_field"),
    (_set("images", 0, "id", value="1"), "image_field"),
    (_set("images", 1, "id", value=1), "image_duplicate"),
    (_set("images", 0, "file_name", value="../a.jpg"), "file_name"),
    (_set("images", 0, "file_name", value="sub/../../a.jpg"), "file_name"),
    (_set("images", 0, "file_name", value="sub\\..\\a.jpg"), "file_name"),
    (_set("images", 0, "file_name", value="/etc/passwd"), "file_name"),
    (_set("images", 0, "file_name", value="\\\\host\\a.jpg"), "file_name"),
    (_set("images", 0, "file_name", value="C:\\a.jpg"), "file_name"),
    (_set("images", 0, "file_name", value="c:a.jpg"), "file_name"),
    (_set("images", 0, "file_name", value="a\0.jpg"), "image_field"),
    (_set("images", 0, "file_name", value="\ud800"), "image_field"),
    (_set("images", 0, "file_name", value=""), "image_field"),
    (_drop("categories", 0, "name"), "category_field"),
    (_set("categories", 0, "id", value=None), "category_field"),
    (_set("categories", 1, "id", value=1), "category_duplicate"),
    (_set("categories", 1, "name", value="Fiber"), "category_same_name"),
    (_set(*FIRST, value=None), "not_an_object"),
    (_set(*FIRST, "id", value=0), "annotation_zero"),
    (_set(*FIRST, "id", value=3), "annotation_duplicate"),
    (_set(*FIRST, "id", value=2**53), "annotation_field"),
    (_drop(*FIRST, "id"), "annotation_field"),
    (_drop(*FIRST, "image_id"), "annotation_field"),
    (_set(*FIRST, "image_id", value=9), "no_image"),
    (_drop(*FIRST, "category_id"), "annotation_field"),
    (_set(*FIRST, "category_id", value=9), "no_category"),
    (_drop(*FIRST, "bbox"), "box_field"),
    (_set(*FIRST, "bbox", value=[1, 2, 3]), "box_field"),
    (_set(*FIRST, "bbox", value=[1, 2, 3, "4"]), "box_field"),
    (_set(*FIRST, "bbox", value=[1, 2, 3, float("nan")]), "box_field"),
    (_set(*FIRST, "area", value="400"), "area_field"),
    (_set(*FIRST, "area", value=float("inf")), "area_field"),
    (_set(*FIRST, "iscrowd", value=2), "annotation_field"),
    (_set(*FIRST, "iscrowd", value=True), "annotation_field"),
    (_set(*FIRST, "ignore", value=1), "ignore"),
    (_drop(*FIRST, "segmentation"), "annotation_field"),
    (_set(*FIRST, "segmentation", value=[]), "segmentation_empty"),
    (_set(*FIRST, "segmentation", value=[[1, 1, 9, 9]]), "polygon_points"),
    (_set(*FIRST, "segmentation", value=[[99, 1, 99, 9, 110, 9]]), "polygon_outside"),
    (_set("annotations", 2, "segmentation", "size", value=[64, 48]), "rle_size"),
    (_set("annotations", 2, "segmentation", "counts", value="oo"), "rle_counts"),
]


@pytest.mark.parametrize(("change", "code"), CONTENT)
def test_content_that_is_refused(root, change, code):
    data = _valid()
    change(data)
    assert next(iter(coco.examine(data).findings.errors)) == code
    with user_error("annotations_invalid", root / "a.json", coco.ERRORS[code]):
        _check(root, data)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_drop("images"), "'images'"),
        (_drop("annotations"), "'annotations'"),
        (_set("categories", value={}), "'categories'"),
        (_set("categories", value=[]), "'categories'"),
        (_set("images", value=[]), "'images'"),
    ],
)
def test_files_without_the_three_lists(root, change, name):
    data = _valid()
    change(data)
    with user_error("annotations_invalid", root / "a.json", name):
        _check(root, data)


@pytest.mark.parametrize(
    ("change", "code", "name"),
    [
        (_set("images", 0, "file_name", value="b.jpg"), "image_missing", "image 1 ('b.jpg')"),
        (_set("images", 0, "file_name", value="x\\b.jpg"), "image_missing", "backslashes"),
        (_set("images", 0, "file_name", value="sub"), "image_invalid", "sub is not a file"),
        (_set("images", 1, "width", value=65), "image_size", "64 x 48 px (width x height)"),
    ],
)
def test_files_that_do_not_fit(root, change, code, name):
    data = _valid()
    change(data)
    with user_error(code, root / "a.json", name):
        _check(root, data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop("images", 0, "id"), "image #1 ('a.jpg')"),
        (_set("images", 0, "height", value="48"), "(height is '48'; expected a positive integer)"),
        (_set("annotations", 0, "image_id", value=9), "annotation 1 (image_id 9)"),
        (_drop("annotations", 0, "bbox"), "annotation 1 of image 1 ('a.jpg')"),
    ],
)
def test_the_place_is_named(root, change, words):
    data = _valid()
    change(data)
    with user_error("annotations_invalid", words):
        _check(root, data)


def test_many_errors_are_counted_by_kind(root):
    data = _valid()
    data["annotations"] = [_annotation(i, segmentation=[[1, 2, 3, 4]]) for i in range(1, 9)]
    data["annotations"] += [_annotation(9, image_id=7), _annotation(0)]
    with pytest.raises(UserError) as raised:
        _check(root, data)
    assert "a.json: 8 x polygons of fewer than 3 points: annotation 1 of image 1 ('a.jpg') (2 " in (
        str(raised.value)
    )
    assert str(raised.value).endswith(
        "; …; correct them, as `microplastics check` explains (8 polygon_points, 1 no_image, 1 "
        "annotation_zero)."
    )


def _warnings(root, data):
    return {code: w.count for code, w in _check(root, data).findings.warnings.items()}


@pytest.mark.parametrize(
    ("change", "warnings"),
    [
        (_drop(*FIRST, "area"), {"area_missing": 1}),
        (_set(*FIRST, "area", value=None), {"area_missing": 1}),
        (_drop(*FIRST, "iscrowd"), {"iscrowd_missing": 1}),
        (_set(*FIRST, "iscrowd", value=1), {"crowd": 1}),
        (_set(*FIRST, "area", value=900), {"area_differs": 1}),
        (_set("annotations", 2, "area", value=72), {"area_of_box": 1}),
        (_set(*FIRST, "bbox", value=[10, 10, 23, 20]), {"bbox_differs": 1}),
        (_set(*FIRST, "bbox", value=[11.5, 9, 19, 21]), {}),
        (_set(*FIRST, "bbox", value=[10, 10, 30, 30]), {"bbox_xyxy": 1}),
        (
            _set(*FIRST, "segmentation", value=[[-9, 10, 30, 10, 30, 30, -9, 30]]),
            {"polygon_clipped": 1, "bbox_differs": 1, "area_of_box": 1},
        ),
        (_set(*FIRST, "keypoints", value=[1, 1, 2]), {"keypoints": 1}),
        (_set("annotations", 1, "image_id", value=1), {"image_blank": 1}),
        (_set("annotations", 1, "category_id", value=3), {"category_unused": 1}),
        (lambda data: data["annotations"].append(_annotation(4)), {"annotation_twice": 1}),
        (_set("images", 1, "file_name", value="a.jpg"), {"image_twice": 1}),
    ],
)
def test_oddities_are_counted(root, change, warnings):
    data = _valid()
    change(data)
    assert _warnings(root, data) == warnings


def test_warnings_are_logged_once_one_line_a_kind(root, caplog):
    data = _valid()
    for annotation in data["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    _check(root, data)
    check_instances(str(root / "a.json"), str(root))
    assert len(caplog.messages) == 2
    assert caplog.messages[0].endswith(
        "a.json: 3 x annotations without area: annotation 1 of image 1 ('a.jpg'); annotation 2 of "
        "image 2 ('sub/b.png'); annotation 3 of image 1 ('a.jpg')"
    )


def test_placeholder_with_the_same_name_is_left_out(root):
    data = _valid()
    data["categories"].insert(0, {"id": 0, "name": "Film", "supercategory": "none"})
    assert _warnings(root, data) == {"category_placeholder": 1}
    assert _check(root, data).classes == ["Fiber", "Fragment", "Film"]
    data["annotations"] = []  # a split without annotations gives the same classes
    assert _check(root, data).classes == ["Fiber", "Fragment", "Film"]


def test_placeholder_with_the_name_of_the_project_is_left_out(root):
    data = _valid()
    for category in data["categories"]:
        category["supercategory"] = "particles"
    data["categories"].append({"id": 0, "name": "particles", "supercategory": "none"})
    assert _check(root, data).classes == ["Fiber", "Fragment", "Film"]
    data["annotations"][0]["category_id"] = 0  # used: then it is a class
    assert _check(root, data).classes == ["particles", "Fiber", "Fragment", "Film"]


def test_blank_images_are_no_training_set(root):
    data = _valid()
    data["annotations"] = []
    assert _warnings(root, data) == {"image_blank": 2, "category_unused": 3}
    with user_error("dataset_empty", "a.json"):
        _check(root, data, training=True)


def test_image_files(root):
    (root / "a.jpg").write_bytes(b"")
    Image.new("RGB", (48, 64)).save(root / "sub/b.png")
    with user_error("image_invalid", "image 1 ('a.jpg')", "1 image_file, 1 image_size"):
        _check(root, _valid())
    Image.new("RGB", (64, 48)).save(root / "a.jpg")
    with user_error("image_size", "b.png", "48 x 64 px", "64 x 48 px"):
        _check(root, _valid())
    (root / "sub/b.png").unlink()
    with user_error("image_missing", "sub/b.png"):
        _check(root, _valid())
    with user_error("file_missing", root / "none"):
        check_instances(str(root / "a.json"), str(root / "none"))


def test_exif_rotation_is_named(root):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (64, 48)).save(root / "a.jpg", exif=exif)
    with user_error("image_size", "EXIF"):
        _check(root, _valid())


def test_pixel_limit(root):
    with user_error("image_invalid", "limit of 3071 pixels"):
        _check(root, _valid(), max_pixels=3071)


HOSTILE = st.sampled_from(
    [None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf")]
    + ["", "1", "\0", "\ud800", "../a", "x" * 10000, [], {}, [[]], [None], [[[]]], {"size": 1}]
    + [[1] * 7, [[1] * 8], [[float("nan")] * 6], [[1e7, -1e7] * 50], "oooo", "0", [2**32 - 1] * 3]
) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def _paths(value, prefix=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*prefix, key)
        if isinstance(inner, dict | list):
            yield from _paths(inner, (*prefix, key))


@settings(
    max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.data())
def test_hostile_values_end_in_a_sentence_or_load(root, data):
    content = _valid()
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(_paths(content))))
        change = _drop(*path)
        if data.draw(st.booleans()) or data.draw(st.booleans()):
            change = _set(*path, value=copy.deepcopy(data.draw(HOSTILE)))
        change(content)
    path = root / "hostile.json"
    path.write_text(json.dumps(content))
    for use in (
        lambda: check_instances(str(path), str(root)),
        lambda: load_instances(str(path), str(root)),
        lambda: coco_api(str(path)),
    ):
        try:
            use()
        except UserError as error:
            assert str(error).encode()  # printable: no lone surrogates


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_hostile_bytes_end_in_a_sentence_or_load(root, data):
    content = bytearray(json.dumps(_valid()).encode())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (root / "bytes.json").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        load_instances(str(root / "bytes.json"), str(root))
    except UserError as error:
        assert "bytes.json" in str(error)


def test_checking_leaves_the_data_as_it_was():
    data = _valid()
    check_content("a.json", data)
    assert data == _valid()
