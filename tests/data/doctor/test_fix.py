"""Fixed copies of annotation files."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from support import user_error

from microplastics.data.doctor import diagnose, fix_datasets
from microplastics.data.doctor.findings import DatasetSummary, Diagnosis
from microplastics.data.doctor.fix import changes_path, check_output, fix_content

IMAGE = {"id": 1, "file_name": "a.png", "width": 64, "height": 48}
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]


def _annotation(**changes):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}
    return {**annotation, "area": 400, "iscrowd": 0, "segmentation": [SQUARE], **changes}


def _content(*annotations):
    return {
        "info": {"by": "us"},
        "images": [dict(IMAGE)],
        "categories": [{"id": 1, "name": "Fiber"}],
        "annotations": list(annotations),
    }


def _fix(*annotations, **changes):
    noted = []
    fixed = fix_content({**_content(*annotations), **changes}, set(), noted)
    return fixed, noted


def test_sound_annotations_stay_as_they_are():
    content = _content(_annotation(bbox=[10.5, 9, 20, 21], area=405, colour="blue"))
    changes = []
    assert fix_content(content, set(), changes) == content and changes == []


def _kinds(changes):
    return [change["change"] for change in changes]


def _mask(polygons):
    rles = mask_util.frPyObjects(polygons, 48, 64)
    return np.asarray(mask_util.decode(mask_util.merge(rles)), bool)


@pytest.mark.parametrize(
    ("polygon", "parts"),
    [
        ([5, 5, 45, 35, 45, 5, 5, 35], 2),  # a bow tie
        ([10, 10, 40, 10, 40, 40, 10, 40, 10, 10, 20, 20, 30, 20, 30, 30, 20, 30, 20, 20], 1),
        ([0, 0, 40, 0, 40, 30, 10, 30, 10, 10, 30, 10, 30, 40, 0, 40], 1),  # over itself
        ([-20, 10, 30, 10, 30, 30, -20, 30], 1),
        ([10, 10, 70, 10, 70, 60, 50, 60, 50, 20, 20, 20, 20, 60, 10, 60], 1),
        ([10, 10, 10, 10, 30, 10, 30, 30, 30, 30, 10, 30], 1),
        ([-20, 10, 30, 10, 30, 40], 1),  # a triangle, cut
        ([10, 10, 90, 10, 90, 10, 30, 90, 10, 10], 1),
    ],
)
def test_fixed_polygons_keep_their_pixels(polygon, parts):
    fixed, _ = _fix(_annotation(segmentation=[polygon]))
    [annotation] = fixed["annotations"]
    assert len(annotation["segmentation"]) >= parts
    after = _mask(annotation["segmentation"])
    assert (after != _mask([polygon])).sum() <= 0.02 * after.sum()
    assert annotation["area"] == after.sum()
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in annotation["segmentation"]])
    assert annotation["bbox"] == [*points.min(0), *(points.max(0) - points.min(0))]
    assert points.min() >= 0 and (points <= (64, 48)).all()


def test_figures_come_from_the_mask():
    wrong = _annotation(bbox=[10, 10, 30, 30], area=900)
    del wrong["iscrowd"]
    fixed, changes = _fix(wrong)
    assert fixed["annotations"] == [_annotation(bbox=[10.0, 10.0, 20.0, 20.0], area=400.0)]
    assert changes == [
        {"change": "iscrowd", "index": 0, "id": 1, "reason": "missing"},
        {
            "change": "bbox",
            "index": 0,
            "id": 1,
            "reason": "bbox_xyxy",
            "old": [10, 10, 30, 30],
            "new": [10.0, 10.0, 20.0, 20.0],
        },
        {
            "change": "area",
            "index": 0,
            "id": 1,
            "reason": "area_of_box",
            "old": 900,
            "new": 400.0,
        },
    ]


def test_only_duplicate_and_zero_ids_change():
    shifted = [[[v + 7 * i for v in SQUARE]] for i in range(4)]
    fixed, changes = _fix(
        *(
            _annotation(id=id_, segmentation=outline, bbox=[10 + 7 * i, 10 + 7 * i, 20, 20])
            for i, (id_, outline) in enumerate(zip((7, 0, 7, 3), shifted, strict=True))
        )
    )
    assert [a["id"] for a in fixed["annotations"]] == [7, 8, 9, 3]
    ids = [entry for entry in changes if entry["change"] == "id"]
    assert [(e["id"], e["new"], e["reason"]) for e in ids] == [(0, 8, "id 0"), (7, 9, "used twice")]


def test_dropped_annotations_are_listed_whole():
    line = _annotation(id=2, segmentation=[[5, 5, 9, 9, 13, 13]])
    fixed, changes = _fix(_annotation(), line, _annotation(id=3), _annotation(id=4, image_id=9))
    assert [a["id"] for a in fixed["annotations"]] == [1]
    dropped = [e for e in changes if e["change"] == "annotation_dropped"]
    assert [e["annotation"]["id"] for e in dropped] == [2, 3, 4]
    assert [e["reason"].partition(" ")[0] for e in dropped] == ["nothing", "repeats", "its"]


def test_what_would_need_a_guess_is_left():
    annotations = [
        _annotation(id=1, segmentation=[]),
        _annotation(id=2, segmentation=[[1, 2, "3", 4, 5, 6]]),
        _annotation(id=3, category_id=9),
        _annotation(id=4, segmentation={"size": [1, 1], "counts": [1]}),
        7,
    ]
    fixed, changes = _fix(*annotations)
    assert fixed["annotations"] == annotations and changes == []


def test_a_placeholder_is_dropped():
    categories = [{"id": 0, "name": "Fiber"}, {"id": 1, "name": "Fiber", "color": "red"}]
    fixed, changes = _fix(_annotation(), categories=categories)
    assert fixed["categories"] == categories[1:] and _kinds(changes) == ["category_dropped"]


def test_unusable_images_go_with_their_annotations(rendered, tmp_path):
    source = json.loads((rendered / "annotations/instances_train.json").read_text())
    image = next(
        i for i in source["images"] if any(a["image_id"] == i["id"] for a in source["annotations"])
    )
    for path in (rendered / "train").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / image["file_name"]).write_bytes(b"\xff\xd8\xff")
    (tmp_path / "train.json").write_text(json.dumps(source))
    diagnosis = diagnose([tmp_path / "train.json"], [tmp_path], workers=1)
    [result] = fix_datasets(diagnosis, tmp_path / "out/fixed.json")
    fixed = json.loads((tmp_path / "out/fixed.json").read_text())
    assert image["id"] not in {i["id"] for i in fixed["images"]}
    assert len(fixed["images"]) == len(source["images"]) - 1
    gone = sum(a["image_id"] == image["id"] for a in source["annotations"])
    assert result.counts["annotation_dropped"] == gone > 0 and result.counts["image_dropped"] == 1
    listed = json.loads((tmp_path / "out/fixed.changes.json").read_text())
    assert listed["counts"] == result.counts and len(listed["changes"]) == sum(
        result.counts.values()
    )
    assert json.loads((tmp_path / "train.json").read_text()) == source


def test_nothing_is_fixed_in_place(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    (tmp_path / "link.json").symlink_to(path)
    for output in (path, tmp_path / "x/../a.json", tmp_path / "link.json"):
        with user_error("output_exists", output):
            check_output([str(path)], output)
    with user_error("output_exists", path):
        check_output([str(path), str(tmp_path / "b.json")], tmp_path)
    listed = tmp_path / "b.changes.json"
    listed.write_text("{}")
    with user_error("output_exists", listed):
        check_output([str(listed)], tmp_path / "b.json")


def test_outputs_of_the_wrong_kind(tmp_path):
    one, other = (str(tmp_path / name) for name in ("a.json", "b.json"))
    (tmp_path / "a.json").write_text("{}")
    for files, output in (([one], tmp_path), ([one], tmp_path / "a.png"), ([one, other], one)):
        with user_error("option_invalid", output):
            check_output(files, output)
    with user_error("name_clash", "x_a.json"):
        check_output(["1/x/a.json", "2/x/a.json"], tmp_path)


def test_several_files_keep_their_names(tmp_path):
    files = []
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        files.append(tmp_path / split / "a.json")
        files[-1].write_text(json.dumps(_content(_annotation(id=0))))
    summaries = [DatasetSummary(str(path), str(tmp_path)) for path in files]
    fixed = fix_datasets(Diagnosis(summaries), tmp_path / "out")
    assert [one.output for one in fixed] == [
        str(tmp_path / "out" / name) for name in ("train_a.json", "test_a.json")
    ]
    assert json.loads((tmp_path / "out/test_a.json").read_text())["annotations"][0]["id"] == 1


def test_files_that_are_not_coco_are_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"images": []}')
    summaries = [DatasetSummary(str(tmp_path / name), "x") for name in ("a.json", "b.json")]
    one, other = fix_datasets(Diagnosis(summaries), tmp_path / "out")
    assert "is cut off" in one.reason and "has an empty list 'images'" in other.reason
    assert not (tmp_path / "out").exists()


def test_a_wrong_image_folder_leaves_no_empty_file(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(_content(_annotation())))
    summary = DatasetSummary(str(tmp_path / "a.json"), "x", unusable_images=["a.png"])
    [fixed] = fix_datasets(Diagnosis([summary]), tmp_path / "b.json")
    assert "x has no image of" in fixed.reason and str(tmp_path / "a.json") in fixed.reason
    assert not (tmp_path / "b.json").exists()


def test_nothing_but_an_earlier_copy_is_overwritten(tmp_path):
    source = tmp_path / "a.json"
    source.write_text(json.dumps(_content(_annotation(id=0))))
    other = tmp_path / "val.json"
    other.write_text("{}")
    with user_error("output_exists", other):
        check_output([str(source)], other)
    assert other.read_text() == "{}"
    diagnosis = Diagnosis([DatasetSummary(str(source), str(tmp_path))])
    for _ in range(2):
        fix_datasets(diagnosis, tmp_path / "fixed.json")
    assert json.loads((tmp_path / "fixed.json").read_text())["annotations"][0]["id"] == 1


def test_images_with_one_id_do_not_inherit_annotations():
    images = [dict(IMAGE), {**IMAGE, "file_name": "b.png"}, {**IMAGE, "id": 2, "file_name": "c"}]
    content, changes = {**_content(_annotation()), "images": images}, []
    fixed = fix_content(content, {"a.png", "c"}, changes)
    assert fixed["images"] == images[:2] and fixed["annotations"] == [_annotation()]
    assert _kinds(changes) == ["image_dropped"]


def test_changes_path():
    assert changes_path("a/OUT.JSON") == "a/OUT.changes.json" and changes_path("b") == (
        "b.changes.json"
    )
