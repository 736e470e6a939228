"""tools/train_net.py and its neighbours, with the arguments of Detectron2's scripts."""

import json

import pytest
from support import ROOT, dataset_entry

QUICK = ("--config-file", f"{ROOT}/configs/microplastics_quick.yaml")


@pytest.mark.slow
def test_train_net_has_detectron2s_arguments(tool, tiny_opts, tmp_path):
    text = tool("train_net", "--help").stdout
    assert "--machine-rank" in text and "--no-report" in text
    options = ("--num-gpus", "0", *tiny_opts, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", "1")
    done = tool("train_net", *QUICK, *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model_final.pth").exists()
    done = tool("train_net", *QUICK, "--eval-only", *tiny_opts, "OUTPUT_DIR", tmp_path / "none")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_visualize_data(tool, tiny_opts, tmp_path, source):
    options = ("--source", source, *QUICK, "--output-dir", tmp_path / "new", "--limit", "1")
    done = tool("visualize_data", *options, *tiny_opts)
    assert done.returncode == 0, done.stderr
    assert f"1 pictures in {tmp_path / 'new'}" in done.stdout
    done = tool("visualize_data")
    assert done.returncode == 2 and "--source" in done.stderr


def test_visualize_json_results(tool, rendered, tmp_path):
    path = tmp_path / "results.json"
    box = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 20], "score": 0.4}
    path.write_text(json.dumps([box]))
    options = ("--dataset", dataset_entry(rendered, "val"), "--output", tmp_path / "new")
    done = tool("visualize_json_results", "--input", path, *options, "--conf-threshold", "0.3")
    assert done.returncode == 0, done.stderr
    assert "4 pictures in" in done.stdout and "None of" not in done.stdout
