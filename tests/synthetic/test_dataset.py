import dataclasses
import json
import math
from pathlib import Path

import cv2
import pytest
from pycocotools.coco import COCO

from microplastics.data.coco import check_instances
from microplastics.synthetic import PRESETS, render_dataset, render_image
from microplastics.synthetic.dataset import JOURNAL, Journal, Rendered, Settings, image_path
from microplastics.synthetic.particles import CATEGORIES
from microplastics.utils.errors import UserError


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("rendered")
    return root, render_dataset(root, {"train": 4, "val": 2}, 96, 4.0, 7, progress=False)


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
    render_dataset(tmp_path, {"train": 4, "val": 2}, 96, 4.0, 7, workers=2, progress=False)
    assert content(tmp_path) == content(rendered[0])


def test_more_images_leave_the_first_as_they_are(rendered, tmp_path):
    before = content(rendered[0])
    for counts in ({"train": 3, "val": 1}, {"train": 5, "val": 1}):
        render_dataset(tmp_path, counts, 96, 4.0, 7, progress=False)
    after = content(tmp_path)
    for index in range(4):
        name = Path(f"train/train_{index:06d}.jpg")
        assert after[name] == before[name]
    assert (
        len(json.loads((tmp_path / "annotations/instances_train.json").read_text())["images"]) == 5
    )


def test_a_finished_data_set_is_left_alone(tmp_path, monkeypatch):
    render_dataset(tmp_path, {"train": 2}, 64, 1.0, 0, progress=False)
    before = content(tmp_path)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    render_dataset(tmp_path, {"train": 2}, 64, 1.0, 0, progress=False)
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    (tmp_path / "train/train_000001.jpg").write_bytes(b"damaged")
    render_dataset(tmp_path, {"train": 2}, 64, 1.0, 0, progress=False)
    assert content(tmp_path) == before


def test_an_interrupted_run_is_finished_by_the_next(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    render_dataset(whole, {"train": 3}, 64, 1.0, 0, progress=False)
    calls, later = [], []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render_image(*args)

    def counted(*args):
        later.append(args[0])
        return render_image(*args)

    with monkeypatch.context() as patch:
        patch.setattr("microplastics.synthetic.dataset.render_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render_dataset(cut, {"train": 3}, 64, 1.0, 0, progress=False)
    assert not json.loads((cut / "synthetic.json").read_text())["complete"]
    (cut / "train/.train_000001.jpg.abc").write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr("microplastics.synthetic.dataset.render_image", counted)
        render_dataset(cut, {"train": 3}, 64, 1.0, 0, progress=False)
    assert later == [(0, "train", 2)]
    assert content(cut) == content(whole)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"size": 63}, "--size is 63: give a side between 64"),
        ({"size": 9000}, "between 64 and 8192 px"),
        ({"counts": {"train": -1}}, "--train is -1: give the number of images, 0 or more"),
        ({"counts": {"train": 0, "val": 0}}, "nothing to render"),
        ({"counts": {"../up": 1}}, "cannot name a split"),
        ({"um_per_px": 0.0}, "--um-per-px is 0: give micrometres per pixel"),
        ({"um_per_px": math.nan}, "--um-per-px is nan"),
        ({"um_per_px": -2.0}, "--um-per-px is -2"),
        ({"um_per_px": math.inf}, "--um-per-px is inf"),
        ({"seed": -1}, "--seed is -1: give 0 or more"),
        ({"workers": 0}, "--workers is 0: give the number of processes"),
        ({"preset": "mud"}, "no preset 'mud': choose one of default, glass-filter, cellulose"),
        ({"backgrounds": "/no/such"}, "--backgrounds /no/such is not a folder"),
    ],
)
def test_nonsense_is_refused(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        render_dataset(**{"output": tmp_path, "counts": {"train": 1}, "size": 64} | change)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seed": 8}, "holds another rendering .seed 7.: delete it or choose another --output"),
        ({"size": 64}, "size 96"),
        ({"um_per_px": 1.0}, "um_per_px 4.0"),
        ({"preset": "dense"}, "preset default"),
        ({"counts": {"train": 3, "val": 2}}, "4 train images"),
    ],
)
def test_another_rendering_is_not_overwritten(rendered, change, words):
    before = content(rendered[0])
    same = {"counts": {"train": 4, "val": 2}, "size": 96, "um_per_px": 4.0, "seed": 7}
    with pytest.raises(UserError, match=words):
        render_dataset(rendered[0], **same | change, progress=False)
    assert content(rendered[0]) == before


@pytest.mark.parametrize("name", ["train/mine.jpg", "annotations/instances_train.json"])
def test_foreign_data_is_not_overwritten(tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="'train' that this command did not write"):
        render_dataset(tmp_path, {"train": 1}, 64, progress=False)
    assert (tmp_path / name).read_text() == "mine"


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*file"):
        render_dataset(tmp_path / "file/data", {"train": 1}, 64, progress=False)
    with pytest.raises(UserError, match="Cannot write .*file"):
        render_dataset(tmp_path / "file", {"train": 1}, 64, progress=False)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_a_clean_data_set(preset, tmp_path):
    paths = render_dataset(tmp_path, {"train": 6}, 160, 4.0, 3, progress=False, preset=preset)
    report = check_instances(str(paths["train"]), str(tmp_path / "train"))
    blank = {"image_blank", "category_unused"} if preset == "blank" else {"image_blank"}
    assert {warning.code for warning in report.warnings} <= blank
    assert report.classes == (["Bead"] if preset == "beads" else ["Fiber", "Fragment", "Film"])
    assert (report.num_annotations > 0) == (preset != "blank")
    coco = json.loads(paths["train"].read_text())
    assert {image["filter"] for image in coco["images"]} <= set(PRESETS[preset].filters)
    assert coco["info"]["preset"] == preset and coco["info"]["backgrounds"] is None


SETTINGS = Settings({"train": 9}, 64, 1.0, 0, "default", None)


@pytest.fixture
def noted(tmp_path):
    """A folder with a journal of three images, and what it says."""
    images = []
    with Journal(tmp_path).open() as journal:
        for index in range(3):
            path = image_path(tmp_path, "train", index)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x" * (index + 1))
            images.append(Rendered("train", index, index + 1, {"file_name": path.name}, []))
            journal.add(images[-1])
    return tmp_path, images


def test_a_journal_without_a_manifest_is_not_trusted(noted):
    root, _ = noted
    for path in (root / "train").iterdir():
        path.unlink()
    paths = render_dataset(root, {"train": 1}, 64, progress=False)
    assert not (root / JOURNAL).exists()
    assert json.loads(paths["train"].read_text())["images"][0]["width"] == 64


def resumed(root, settings=SETTINGS):
    return list(Journal(root).resume(settings).values())


def test_a_journal_gives_back_what_it_noted(noted):
    root, images = noted
    assert resumed(root) == images
    Journal(root).discard()
    assert resumed(root) == []


@pytest.mark.parametrize(
    "tail",
    [b"{", b'{"split": "train"}\n', b"[1]\n", b"[" * 10**5 + b"\n", b"\xff\n", b"null\n"]
    + [b'{"split":"train","index":"0","length":1,"record":{},"annotations":[]}\n'],
)
def test_a_damaged_line_ends_a_journal(noted, tail):
    root, images = noted
    whole = (root / JOURNAL).read_bytes()
    later = json.dumps(dataclasses.asdict(images[0])).encode() + b"\n"
    (root / JOURNAL).write_bytes(whole + tail + later * tail.endswith(b"\n"))
    assert resumed(root) == images
    assert (root / JOURNAL).read_bytes() == whole


def test_a_line_cut_before_its_end_does_not_count(noted):
    root, images = noted
    (root / JOURNAL).write_bytes((root / JOURNAL).read_bytes()[:-1])
    assert resumed(root) == images[:2]


def test_images_gone_or_of_another_length_or_not_wanted_are_left_out(noted):
    root, images = noted
    image_path(root, "train", 0).unlink()
    image_path(root, "train", 1).write_bytes(b"longer than before")
    assert resumed(root) == images[2:]
    assert resumed(root, dataclasses.replace(SETTINGS, counts={"train": 2})) == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"counts": {"train": "x"}}', "[" * 100000])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "synthetic.json").write_text(text)
    with pytest.raises(UserError, match="synthetic.json .*: delete it or choose another --output"):
        render_dataset(tmp_path, {"train": 1}, 64, progress=False)
