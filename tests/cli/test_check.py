import json
import shutil

import pytest


@pytest.fixture
def train(rendered, tmp_path):
    """A copy of the rendered training set: its JSON and its images."""
    shutil.copytree(rendered / "train", tmp_path / "images")
    shutil.copy(rendered / "annotations/instances_train.json", tmp_path / "train.json")
    return tmp_path / "train.json", tmp_path / "images"


def _spoil(path, change):
    data = json.loads(path.read_text())
    change(data["annotations"])
    path.write_text(json.dumps(data))


def test_a_clean_set(cli, rendered):
    files = [rendered / f"annotations/instances_{split}.json" for split in ("train", "val")]
    done = cli("check", *files, "--images", rendered / "train", rendered / "val")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{files[0]}: 8 images (" in done.stdout and "PROBLEMS" not in done.stdout
    assert "Kinds found: problems 0, warnings 0, notes" in done.stdout


def test_problems_are_named_fixed_and_reported(cli, train, tmp_path):
    json_file, images = train
    _spoil(json_file, lambda annotations: (annotations[0].update(id=0), annotations[1].pop("area")))
    original = json_file.read_bytes()
    out, report = tmp_path / "fixed.json", tmp_path / "report"
    done = cli("check", json_file, "--images", images, "--fix", out, "--report", report)
    assert done.returncode == 1 and json_file.read_bytes() == original
    problems, warnings = done.stdout.index("PROBLEMS"), done.stdout.index("WARNINGS")
    assert problems < done.stdout.index("1 x annotations with id 0  [annotation_zero]") < warnings
    assert warnings < done.stdout.index("1 x annotations without area  [area_missing]")
    assert "- annotation 0 of image" in done.stdout
    assert "1 x annotations given a new id" in done.stdout
    codes = {f["code"] for f in json.loads((report / "report.json").read_text())["findings"]}
    assert {"annotation_zero", "area_missing"} <= codes
    assert f"Report: {report / 'report.html'}" in done.stdout and (report / "report.html").exists()
    again = cli("check", f"{out}:{images}")
    assert again.returncode == 0 and "WARNINGS" not in again.stdout


@pytest.mark.parametrize("name", ["quick", "demo"])
def test_a_config_of_other_classes_is_a_problem(cli, train, name):
    json_file, images = train
    config = ("--config-file", f"configs/microplastics_{name}.yaml")
    done = cli("check", f"{json_file}:{images}", *config)
    assert done.returncode == 0 and "WHAT THE MODEL OF configs/" in done.stdout
    opts = ("MODEL.ROI_HEADS.NUM_CLASSES", 7)
    done = cli("check", json_file, *config, "--images", images, *opts)
    assert done.returncode == 1 and "[num_classes]" in done.stdout


def test_what_is_no_json_is_a_problem(cli, train, tmp_path):
    json_file, images = train
    json_file.write_text('{"images": [')
    done = cli("check", json_file, "--images", images, "--fix", tmp_path / "fixed.json")
    assert done.returncode == 1 and "is cut off" in done.stdout
    assert "Not fixed: " in done.stdout and not (tmp_path / "fixed.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "{images}", "--fix", "{json}"], "which is an input"),
        (["--images", "{images}/none"], "The image folder"),
        (["none.json", "--images", "{images}"], "Cannot read none.json"),
        (["--images", "{images}", "--group-regex", "("], "is not a regular expression"),
        (["--images", "{images}", "--workers", "0"], "0 is not in the range x>=1"),
        (["--images", "{images}", "MODEL.MASK_ON", "True"], "name it with --config-file"),
        (["--images", "{images}", "--config-file", "none.yaml"], "There is no config file none"),
    ],
)
def test_misuse_ends_in_one_sentence(cli, train, arguments, words):
    json_file, images = train
    arguments = [a.format(json=json_file, images=images) for a in arguments]
    done = cli("check", json_file, *arguments)
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1


def test_from_outside_the_checkout(cli_process, train, tmp_path):
    done = cli_process("check", "train.json", "--images", "images", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
