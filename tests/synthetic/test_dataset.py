import json
import math
from pathlib import Path

import cv2
import pytest
from pycocotools.coco import COCO
from support import user_error

from microplastics.data.coco import check_instances
from microplastics.synthetic import PRESETS, render_dataset, render_image
from microplastics.synthetic.particles import CATEGORIES


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("rendered")
    return root, render_dataset(root, {"train": 4, "val": 2}, 96, 4.0, 7)


def content(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_layout_and_ids(rendered):
    root, paths = rendered
    assert paths == {s: root / f"annotations/instances_{s}.json" for s in ("train", "val")}
    coco = json.loads(paths["train"].read_text())
    assert coco["categories"] == CATEGORIES
    assert [(c["id"], c["name"]) for c in CATEGORIES] == [
        (1, "Fiber"),
        (2, "Fragment"),
        (3, "Film"),
    ]
    assert [i["id"] for i in coco["images"]] == [1, 2, 3, 4]
    assert [a["id"] for a in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    for image in coco["images"]:
        assert cv2.imread(str(root / "train" / image["file_name"])).shape == (96, 96, 3)
        assert (image["width"], image["height"], image["um_per_px"]) == (96, 96, 4.0)
    assert sorted(p.name for p in root.iterdir()) == [
        "annotations",
        "synthetic.json",
        "train",
        "val",
    ]


def test_pycocotools_reads_it(rendered, capsys):
    coco = COCO(str(rendered[1]["train"]))
    for annotation in coco.anns.values():
        assert coco.annToMask(annotation).sum() == annotation["area"]


def test_same_seed_same_bytes(rendered, tmp_path):
    render_dataset(tmp_path, {"train": 4, "val": 2}, 96, 4.0, 7, workers=2)
    assert content(tmp_path) == content(rendered[0])


def test_more_images_leave_the_first_as_they_are(rendered, tmp_path):
    before = content(rendered[0])
    for counts in ({"train": 3, "val": 1}, {"train": 5, "val": 1}):
        render_dataset(tmp_path, counts, 96, 4.0, 7)
    after = content(tmp_path)
    for index in range(4):
        name = Path(f"train/train_{index:06d}.jpg")
        assert after[name] == before[name]
    assert (
        len(json.loads((tmp_path / "annotations/instances_train.json").read_text())["images"]) == 5
    )


def test_a_finished_data_set_is_kept(tmp_path, monkeypatch):
    render_dataset(tmp_path, {"train": 2}, 64, 1.0, 0)
    before = content(tmp_path)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    render_dataset(tmp_path, {"train": 2}, 64, 1.0, 0)
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    (tmp_path / "train/train_000001.jpg").write_bytes(b"damaged")
    render_dataset(tmp_path, {"train": 2}, 64, 1.0, 0)
    assert content(tmp_path) == before


def test_an_interrupted_data_set_is_rendered_again(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    render_dataset(whole, {"train": 3}, 64, 1.0, 0)
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render_image(*args)

    with monkeypatch.context() as patch:
        patch.setattr("microplastics.synthetic.dataset.render_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render_dataset(cut, {"train": 3}, 64, 1.0, 0)
    assert not json.loads((cut / "synthetic.json").read_text())["complete"]
    (cut / "train/.train_000001.jpg.abc.unfinished").write_bytes(b"half")
    render_dataset(cut, {"train": 3}, 64, 1.0, 0)
    assert content(cut) == content(whole)


@pytest.mark.parametrize(
    "change, name",
    [
        ({"size": 63}, "--size is 63"),
        ({"size": 9000}, "8192 px"),
        ({"counts": {"train": -1}}, "--train is -1"),
        ({"counts": {"train": 0, "val": 0}}, "all splits"),
        ({"counts": {"../up": 1}}, "'../up'"),
        ({"um_per_px": 0.0}, "--um-per-px is 0"),
        ({"um_per_px": math.nan}, "--um-per-px is nan"),
        ({"um_per_px": -2.0}, "--um-per-px is -2"),
        ({"um_per_px": math.inf}, "--um-per-px is inf"),
        ({"seed": -1}, "--seed is -1"),
        ({"workers": 0}, "--workers is 0"),
        ({"preset": "mud"}, "--preset is mud"),
    ],
)
def test_nonsense_is_refused(tmp_path, change, name):
    with user_error("option_invalid", name):
        render_dataset(**{"output": tmp_path, "counts": {"train": 1}, "size": 64} | change)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, name",
    [
        ({"seed": 8}, "seed 7"),
        ({"size": 64}, "size 96"),
        ({"um_per_px": 1.0}, "um_per_px 4.0"),
        ({"preset": "dense"}, "preset default"),
        ({"counts": {"train": 3, "val": 2}}, "4 train images"),
    ],
)
def test_another_rendering_is_not_overwritten(rendered, change, name):
    before = content(rendered[0])
    same = {"counts": {"train": 4, "val": 2}, "size": 96, "um_per_px": 4.0, "seed": 7}
    with user_error("output_exists", rendered[0], name):
        render_dataset(rendered[0], **same | change)
    assert content(rendered[0]) == before


@pytest.mark.parametrize("name", ["train/mine.jpg", "annotations/instances_train.json"])
def test_foreign_data_is_not_overwritten(tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    with user_error("output_exists", tmp_path, "'train'"):
        render_dataset(tmp_path, {"train": 1}, 64)
    assert (tmp_path / name).read_text() == "mine"


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file/data", tmp_path / "file"):
        with user_error("not_writable", output):
            render_dataset(output, {"train": 1}, 64)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_a_clean_data_set(preset, tmp_path):
    paths = render_dataset(tmp_path, {"train": 6}, 160, 4.0, 3, preset=preset)
    report = check_instances(str(paths["train"]), str(tmp_path / "train"))
    blank = {"image_blank", "category_unused"} if preset == "blank" else {"image_blank"}
    assert set(report.findings.warnings) <= blank
    assert report.classes == (["Bead"] if preset == "beads" else ["Fiber", "Fragment", "Film"])
    assert (len(report.annotations) > 0) == (preset != "blank")
    coco = json.loads(paths["train"].read_text())
    assert {image["filter"] for image in coco["images"]} <= set(PRESETS[preset].filters)
    assert coco["info"]["preset"] == preset and coco["info"]["backgrounds"] is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"counts": {"train": "x"}}', "[" * 100000])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "synthetic.json").write_text(text)
    with user_error("file_invalid", tmp_path / "synthetic.json"):
        render_dataset(tmp_path, {"train": 1}, 64)


def test_both_sides_of_the_images(tmp_path, cli):
    options = ("--train", 2, "--val", 0, "--test", 0, "--preset", "gridded", "--um-per-px", 10)
    command = ("render", "dataset", "--output", tmp_path / "a", *options, "--size")
    for _ in range(2):  # the second keeps it
        assert cli(*command, "120x90").returncode == 0
    assert json.loads((tmp_path / "a/synthetic.json").read_text())["size"] == [120, 90]
    path = tmp_path / "a/annotations/instances_train.json"
    report = check_instances(str(path), str(tmp_path / "a/train"))
    assert {(i["width"], i["height"]) for i in json.loads(path.read_text())["images"]} == {
        (120, 90)
    }
    assert not report.findings.errors
    for size in ("120x", "x90", "12.5", "0x90", "120x9000"):
        done = cli(*command, size)
        assert done.returncode == 2 and "--size" in done.stderr
