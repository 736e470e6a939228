import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from microplastics.data.coco import check_instances, coco_api, load_instances
from microplastics.data.coco_check import check_content
from microplastics.errors import UserError

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
    report = _check(root, _valid(), num_classes=3, training=True)
    assert report.warnings == [] and report.num_images == 2 and report.num_annotations == 3
    assert report.instances_per_class == {"Fiber": 1, "Fragment": 1, "Film": 1}


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
CASES = [
    (_drop("images"), "has no list 'images'"),
    (_drop("annotations"), "has no list 'annotations'"),
    (_set("categories", value={}), "has 'categories' that is no list"),
    (_set("categories", value=[]), "has an empty list 'categories'"),
    (_set("images", value=[]), "has an empty list 'images'"),
    (_set("images", 0, value=7), "image number 1 is not a JSON object"),
    (_drop("images", 0, "id"), "image number 1 ('a.jpg') lacks a field"),
    (_drop("images", 0, "file_name"), "(no file_name)"),
    (_drop("images", 0, "width"), "image 1 ('a.jpg') lacks a field or has one of the wrong"),
    (_set("images", 0, "height", value="48"), "(height is '48', not a positive integer)"),
    (_set("images", 0, "height", value=48.0), "(height is 48.0, not a positive integer)"),
    (_set("images", 0, "height", value=True), "(height is True, not a positive integer)"),
    (_set("images", 0, "height", value=-1), "(height is -1,"),
    (_set("images", 0, "height", value=10**30), "px is too large"),
    (_set("images", 0, "id", value="1"), "(id is '1', not an integer from 0)"),
    (_set("images", 1, "id", value=1), "image 1 ('sub/b.png') has an id that another image has"),
    (_set("images", 0, "file_name", value="../a.jpg"), "leaves the image folder"),
    (_set("images", 0, "file_name", value="sub/../../a.jpg"), "leaves the image folder"),
    (_set("images", 0, "file_name", value="sub\\..\\a.jpg"), "leaves the image folder"),
    (_set("images", 0, "file_name", value="/etc/passwd"), "leaves the image folder"),
    (_set("images", 0, "file_name", value="\\\\host\\a.jpg"), "leaves the image folder"),
    (_set("images", 0, "file_name", value="C:\\a.jpg"), "leaves the image folder"),
    (_set("images", 0, "file_name", value="c:a.jpg"), "leaves the image folder"),
    (_set("images", 0, "file_name", value="a\0.jpg"), "not a file's name"),
    (_set("images", 0, "file_name", value="\ud800"), "not a file's name"),
    (_set("images", 0, "file_name", value=""), "not a file's name"),
    (_set("images", 0, "file_name", value="b.jpg"), "image 1 ('b.jpg') has no file"),
    (_set("images", 0, "file_name", value="x\\b.jpg"), "whose backslashes should be /"),
    (_set("images", 0, "file_name", value="sub"), "sub is not a file"),
    (_set("images", 1, "width", value=65), "is 64 x 48 px (width x height) but the JSON says 65"),
    (_drop("categories", 0, "name"), "category 1 lacks a field"),
    (_set("categories", 0, "id", value=None), "(id is None, not an integer from 0)"),
    (_set("categories", 1, "id", value=1), "category 1 ('Fragment') has an id that another"),
    (_set("categories", 1, "name", value="Fiber"), "has the name of another category"),
    (_set(*FIRST, value=None), "annotation number 1 is not a JSON object"),
    (_set(*FIRST, "id", value=0), "annotation 0 of image 1 ('a.jpg')"),
    (_set(*FIRST, "id", value=3), "annotation 3 of image 1 ('a.jpg') has an id that"),
    (_set(*FIRST, "id", value=2**53), "not an integer from 1"),
    (_drop(*FIRST, "id"), "(no id): correct"),
    (_drop(*FIRST, "image_id"), "(no image_id)"),
    (_set(*FIRST, "image_id", value=9), "annotation 1 belongs to an image that is not in"),
    (_drop(*FIRST, "category_id"), "(no category_id)"),
    (_set(*FIRST, "category_id", value=9), "category that is not in the file (category_id 9)"),
    (_drop(*FIRST, "bbox"), "annotation 1 of image 1 ('a.jpg') lacks a field or has one of the"),
    (_set(*FIRST, "bbox", value=[1, 2, 3]), "not [x, y, width, height] in px"),
    (_set(*FIRST, "bbox", value=[1, 2, 3, "4"]), "not [x, y, width, height] in px"),
    (_set(*FIRST, "bbox", value=[1, 2, 3, float("nan")]), "not [x, y, width, height] in px"),
    (_set(*FIRST, "area", value="400"), "(area is '400', not a number of pixels)"),
    (_set(*FIRST, "area", value=float("inf")), "(area is inf, not a number of pixels)"),
    (_set(*FIRST, "iscrowd", value=2), "(iscrowd is 2, not 0 or 1)"),
    (_set(*FIRST, "iscrowd", value=True), "(iscrowd is True, not 0 or 1)"),
    (_set(*FIRST, "ignore", value=1), "has ignore set"),
    (_drop(*FIRST, "segmentation"), "(no segmentation)"),
    (_set(*FIRST, "segmentation", value=[]), "has an empty segmentation"),
    (_set(*FIRST, "segmentation", value=[[1, 1, 9, 9]]), "fewer than 3 points (2 points)"),
    (_set(*FIRST, "segmentation", value=[[99, 1, 99, 9, 110, 9]]), "wholly outside the image"),
    (
        _set("annotations", 2, "segmentation", "size", value=[64, 48]),
        "annotation 3 of image 1 ('a.jpg') has an RLE of another size than its image (size [64,",
    ),
    (_set("annotations", 2, "segmentation", "counts", value="oo"), "has a malformed RLE"),
]


@pytest.mark.parametrize(("change", "words"), CASES, ids=[words for _, words in CASES])
def test_refused(root, change, words):
    data = _valid()
    change(data)
    with pytest.raises(UserError) as raised:
        _check(root, data)
    assert words in str(raised.value) and str(root / "a.json") in str(raised.value)


def test_many_errors_are_counted_by_kind(root):
    data = _valid()
    data["annotations"] = [_annotation(i, segmentation=[[1, 2, 3, 4]]) for i in range(1, 9)]
    data["annotations"] += [_annotation(9, image_id=7), _annotation(0)]
    with pytest.raises(UserError) as raised:
        _check(root, data)
    lines = str(raised.value).splitlines()
    assert lines[0].endswith(
        "a.json: annotation 1 of image 1 ('a.jpg') has a polygon of fewer than 3 points (2 "
        "points): outline it again or delete it. 9 more problems:"
    )
    assert lines[1].startswith("  8 x has a polygon of fewer than 3 points: annotation 1 of image")
    assert lines[1].endswith("annotation 5 of image 1 (2 points); …") and len(lines) == 4


def _warnings(root, data):
    return {w.code: w.count for w in _check(root, data).warnings}


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
        "a.json: 3 x annotations without area; it is computed from the mask: annotation 1 of "
        "image 1; annotation 2 of image 2; annotation 3 of image 1"
    )


def test_placeholder_with_the_same_name_is_left_out(root):
    data = _valid()
    data["categories"].insert(0, {"id": 0, "name": "Film", "supercategory": "none"})
    assert _warnings(root, data) == {"category_placeholder": 1}
    assert _check(root, data, num_classes=3).classes == ["Fiber", "Fragment", "Film"]
    data["annotations"] = []  # a split without annotations gives the same classes
    assert _check(root, data, num_classes=3).classes == ["Fiber", "Fragment", "Film"]


def test_placeholder_with_the_name_of_the_project_is_left_out(root):
    data = _valid()
    for category in data["categories"]:
        category["supercategory"] = "particles"
    data["categories"].append({"id": 0, "name": "particles", "supercategory": "none"})
    assert _check(root, data).classes == ["Fiber", "Fragment", "Film"]
    data["annotations"][0]["category_id"] = 0  # used: then it is a class
    assert _check(root, data).classes == ["particles", "Fiber", "Fragment", "Film"]


def test_number_of_classes(root):
    with pytest.raises(
        UserError,
        match=r"has 3 classes \(Fiber, Fragment, Film\) but MODEL.ROI_HEADS.NUM_CLASSES is 80",
    ):
        _check(root, _valid(), num_classes=80)


def test_blank_images_are_no_training_set(root):
    data = _valid()
    data["annotations"] = []
    assert _warnings(root, data) == {"image_blank": 2, "category_unused": 3}
    with pytest.raises(UserError, match="has no annotation to train on"):
        _check(root, data, training=True)


def test_image_files(root):
    (root / "a.jpg").write_bytes(b"")
    Image.new("RGB", (48, 64)).save(root / "sub/b.png")
    with pytest.raises(UserError) as raised:
        _check(root, _valid())
    message = str(raised.value)
    assert "image 1 ('a.jpg') cannot be used" in message and "a.jpg is empty" in message
    assert "b.png is 48 x 64 px (width x height) but the JSON says 64 x 48 px" in message
    with pytest.raises(UserError, match="The image folder .*none of .*a.json does not exist"):
        check_instances(str(root / "a.json"), str(root / "none"))


def test_exif_rotation_is_named(root):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (64, 48)).save(root / "a.jpg", exif=exif)
    with pytest.raises(UserError, match="turned by its EXIF rotation"):
        _check(root, _valid())


def test_pixel_limit(root):
    with pytest.raises(UserError, match="above the limit of 3071 pixels"):
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
        lambda: check_instances(str(path), str(root), 3),
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
