import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import ROOT

from microplastics.data.coco import check_instances
from microplastics.data.formats.base import NOTES, READERS
from microplastics.utils.errors import CODES


@pytest.fixture
def export(tmp_path):
    """A YOLO export with a wrong path in data.yaml, a blank and a class too many."""
    for split in ("train", "valid"):
        for name in ("a", "b"):
            path = tmp_path / "export" / split / "images" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((30, 40, 3), 99, np.uint8))
        labels = tmp_path / "export" / split / "labels"
        labels.mkdir()
        (labels / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.6\n1 0.1 0.1 0.5 0.1 0.5 0.6\n")
        (labels / "b.txt").write_text("")
    (tmp_path / "export" / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: [fibre, dirt]\n"
    )
    return tmp_path / "export"


def last_line(result):
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_from_an_export_to_entries_that_can_be_pasted(cli_process, export, tmp_path):
    options = ["--input", export, "--output", tmp_path / "set"]
    result = cli_process("convert", *options, "--categories", "fibre=Fiber,dirt=")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "format: yolo"
    assert lines[1].split() == ["split", "images", "blank", "Fiber", "Fragment", "Film"]
    assert lines[2].split() == ["train", "2", "1", "1", "0", "0"]
    assert lines[3].split() == ["val", "2", "1", "1", "0", "0"]
    assert f"  2 x {NOTES['category_dropped']}: labels/a.txt, line 2 ('dirt'); " in result.stdout
    entries = dict(line.split(": ", 1) for line in lines[-2:])
    json_file, image_root = entries["val"].split(":")
    assert Path(image_root) == export / "valid" / "images"
    report = check_instances(json_file, image_root)
    assert (len(report.images), len(report.annotations)) == (2, 1)
    manifest = json.loads((tmp_path / "set" / "conversion.json").read_text())
    assert manifest["complete"] and manifest["format"] == "yolo"
    assert manifest["notes"]["category_dropped"]["count"] == 2


def test_copy(cli, export, tmp_path):
    result = cli("convert", "--input", export, "--output", tmp_path / "s", "--copy")
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/s/annotations/instances_val.json:{tmp_path}/s/val" in result.stdout
    assert len(list((tmp_path / "s").rglob("*.png"))) == 4


def test_one_split_says_how_to_go_on(cli, export, tmp_path):
    options = ["--input", export / "train", "--output", tmp_path / "s", "--from", "yolo"]
    result = cli("convert", *options)
    assert result.returncode == 0, result.stderr
    assert "microplastics split --input" in result.stdout.splitlines()[-1]
    assert "class_0" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--categories", "fiber=Fiber"], "Did you mean 'fibre'?"),
        (["--categories", "fibre"], "write each class once, old=New."),
        (["--line-width", "-3"], "error: --line-width is -3.0; give a width in px above 0."),
        (["--from", "coco"], "has no COCO JSON: export as COCO instance segmentation"),
        (["--images", "nowhere"], "The image folder nowhere does not exist; correct --images."),
    ],
)
def test_errors_are_one_sentence(cli, export, tmp_path, options, words):
    result = cli("convert", "--input", export, "--output", tmp_path / "set", *options)
    assert result.returncode == 2 and words in last_line(result)
    assert not (tmp_path / "set").exists()


def test_output_within_the_input(cli, export):
    result = cli("convert", "--input", export, "--output", export / "coco")
    assert result.returncode == 2 and "choose a folder outside of it." in last_line(result)


def test_missing_images_are_counted_or_skipped(cli, rendered, tmp_path):
    json_file = rendered / "annotations" / "instances_val.json"
    names = [image["file_name"] for image in json.loads(json_file.read_text())["images"]]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / names[0]).write_bytes((rendered / "val" / names[0]).read_bytes())
    options = ["--input", json_file, "--images", tmp_path / "photos", "--output", tmp_path / "s"]
    result = cli("convert", *options)
    assert result.returncode == 2
    words = f"3 images of all cannot be used: {tmp_path}/photos/{names[1]} does not exist"
    assert words in last_line(result)
    result = cli("convert", *options, "--skip-broken")
    assert result.returncode == 0 and f"3 x {NOTES['image_missing']}" in result.stdout


def test_every_note_is_documented():
    text, tables = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").split("## Notes\n")
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", tables, re.MULTILINE)) == NOTES
    fields = {"group_id", "skip_broken", "um_per_px", "z_order", "predicted_iou", "stability_score"}
    known = fields | set(NOTES) | set(CODES) | set(READERS)
    assert set(re.findall(r"`([a-z]+_[a-z_]+)`", text)) <= known
