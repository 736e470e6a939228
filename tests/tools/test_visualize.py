"""tools/visualize_data.py, visualize_json_results.py and plot_training.py, as people call them."""

import json
import runpy
import sys

import pytest
from conftest import ROOT, dataset_entry

QUICK = f"{ROOT}/configs/microplastics_quick.yaml"


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a tool in this process: exit code, standard output, standard error."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.json"

    def write(*scores):
        box = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 20]}
        path.write_text(json.dumps([{**box, "score": score} for score in scores]))
        return path

    return write


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_a_training_set_is_drawn(tool, tiny_opts, tmp_path, source):
    options = ("--source", source, "--config-file", QUICK, "--limit", "2")
    done = tool("visualize_data", *options, "--output-dir", tmp_path / "new", *tiny_opts)
    assert done.returncode == 0, done.stderr
    assert f"2 pictures in {tmp_path / 'new'}" in done.stdout
    assert len(list((tmp_path / "new").glob("*.jpg"))) == 2


def test_annotations_need_no_config(call, rendered, tmp_path):
    options = ("--source", "annotation", "--output-dir", tmp_path / "new", "--limit", "1")
    entry = repr((dataset_entry(rendered, "test"),))
    code, out, _ = call("visualize_data", *options, "DATASETS.TRAIN", entry)
    assert code == 0 and "1 pictures in" in out


def test_results_are_drawn(call, rendered, results, tmp_path):
    options = ("--dataset", dataset_entry(rendered, "val"), "--output", tmp_path / "new")
    code, out, _ = call("visualize_json_results", "--input", results(0.9), *options)
    assert code == 0 and "4 pictures in" in out
    code, out, _ = call("visualize_json_results", "--input", results(0.25, 0.31), *options)
    assert code == 0
    assert "None of the 2 predictions reaches --conf-threshold 0.5" in out
    assert "highest score is 0.31" in out
    code, out, _ = call("visualize_json_results", "--input", results(), *options, "--limit", 1)
    assert code == 0 and "holds no predictions at all" in out and "1 pictures in" in out


def test_curves_are_plotted(call, tmp_path):
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"iteration": 3, "total_loss": 1.0}\n')
    code, out, _ = call(
        "plot_training", "--input", metrics, "--output", tmp_path / "a" / "curves.png"
    )
    assert code == 0 and "Curves in" in out
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")


MISTAKES = {
    "unknown data": (
        *("visualize_data", "--source", "annotation", "DATASETS.TRAIN", "('microplastics_trian',)"),
        "No data set 'microplastics_trian'",
    ),
    "no data": ("visualize_data", "--source", "annotation", "DATASETS.TRAIN is empty"),
    "no JSON": (
        *("visualize_data", "--source", "dataloader", "DATASETS.TRAIN", "('gone.json:.',)"),
        "gone.json does not exist",
    ),
    "no config": (
        *("visualize_data", "--source", "annotation", "--config-file", "configs/none.yaml"),
        "no config file configs/none.yaml",
    ),
    "limit": (
        *("visualize_data", "--source", "annotation", "--limit", "0"),
        "--limit is 0: give the number of pictures",
    ),
    "no results": (
        *("visualize_json_results", "--input", "gone.json", "--output", "x", "--dataset", "VAL"),
        "Cannot read gone.json: No such file",
    ),
    "threshold": (
        *("visualize_json_results", "--input", "x", "--output", "x", "--conf-threshold", "50"),
        "--conf-threshold is 50: give a score from 0 to 1",
    ),
    "no metrics": (
        "plot_training",
        "--input",
        "gone.json",
        "--output",
        "x.png",
        "Cannot read gone",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence_and_code_2(call, rendered, name):
    tool, *arguments, words = MISTAKES[name]
    arguments = [dataset_entry(rendered, "val") if a == "VAL" else a for a in arguments]
    code, _, err = call(tool, *arguments)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ") and words in err


def test_a_folder_that_cannot_be_written_is_named(call, tiny_opts):
    options = ("--source", "annotation", "--config-file", QUICK, "--output-dir", "/dev/null/x")
    code, _, err = call("visualize_data", *options, *tiny_opts)
    assert code == 2 and "Cannot write /dev/null/x" in err


def test_the_source_must_be_chosen(call):
    code, _, err = call("visualize_data")
    assert code == 2 and "--source" in err
