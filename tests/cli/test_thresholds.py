"""microplastics thresholds, and --eval-only that takes up what it chose."""

import csv
import json
import re

import pytest
import torch
from support import ROOT

QUICK = ("--config-file", f"{ROOT}/configs/microplastics_quick.yaml")


@pytest.fixture(scope="module")
def checkpoint(tiny_opts, tmp_path_factory):
    """Weights that see fibres of all scores everywhere."""
    from microplastics.config import load_config
    from microplastics.engine import Trainer
    from microplastics.engine.checkpoint import TrainingCheckpointer

    folder = tmp_path_factory.mktemp("model")
    cfg = load_config(QUICK[1], [*tiny_opts, "OUTPUT_DIR", str(folder)])
    cfg.freeze()
    torch.manual_seed(4)
    model = Trainer.build_model(cfg)
    scores = model.roi_heads.box_predictor.cls_score
    torch.nn.init.normal_(scores.weight, std=1.0)
    scores.bias.data[0] += 1.0
    TrainingCheckpointer(model, cfg, ["Fiber", "Fragment", "Film"]).save("model_best")
    return folder / "model_best.pth"


@pytest.fixture
def opts(tiny_opts, rendered, tmp_path):
    """Options that evaluate on images with 48 fibres and two films."""
    data = json.loads((rendered / "annotations" / "instances_train.json").read_text())
    data["annotations"] = [
        {
            "id": index + 1,
            "image_id": data["images"][index % 8]["id"],
            "category_id": 1 if index > 1 else 3,
            "bbox": [10 * (index // 8), 10, 8, 40],
            "area": 320,
            "iscrowd": 0,
            "segmentation": [[x, 10, x + 8, 10, x + 8, 50, x, 50]],
        }
        for index in range(50)
        for x in [10 * (index // 8)]
    ]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    test = ("DATASETS.TEST", repr((f"{path}:{rendered}/train",)))
    return [*tiny_opts, *test, "OUTPUT_DIR", str(tmp_path / "run")]


def table(text):
    """Threshold and number predicted before and after, of each class."""
    rows = re.findall(
        r"^\| (\w+) +\| ([\d.]+) +\| [\w. >-]+\| (\d+) +\| (\d+) -> (\d+)", text, re.MULTILINE
    )
    return {name: (float(t), *map(int, counts)) for name, t, *counts in rows}


def test_thresholds_are_chosen_stored_and_used(checkpoint, opts, tmp_path, cli):
    output, before = tmp_path / "chosen.pth", checkpoint.read_bytes()
    arguments = ("--weights", checkpoint, "--metric", "count", "--output", output)
    done = cli("thresholds", *QUICK, *arguments, *opts)
    assert done.returncode == 0, done.stderr
    assert checkpoint.read_bytes() == before
    rows = table(done.stdout)
    assert list(rows) == ["Fiber", "Fragment", "Film"]
    stored = torch.load(output, weights_only=True)["microplastics"]
    assert stored["score_thresholds"] == {name: row[0] for name, row in rows.items()}
    origin = stored["score_thresholds_origin"]
    assert (origin["metric"], origin["images"]) == ("count", 8)
    assert origin["kept_default"] == ["Fragment", "Film"]
    assert "Film has 2 true particles, fewer than the 10 that a choice needs" in done.stdout
    assert rows["Film"][0] == rows["Fragment"][0] == 0.5
    threshold, true, old, new = rows["Fiber"]
    assert threshold != 0.5 and abs(new - true) < abs(old - true)
    assert "thresholds were chosen on these very" in done.stdout
    folder = tmp_path / "run" / "thresholds"
    assert (folder / "counting_curves.png").stat().st_size > 10_000
    with open(folder / "counting_curves.csv", newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} == {*rows, "all"}

    scored = cli("train", *QUICK, "--eval-only", *opts, "MODEL.WEIGHTS", output)
    assert scored.returncode == 0, scored.stderr
    inference = tmp_path / "run" / "inference"
    metrics = json.loads((inference / "metrics.json").read_text())
    assert {n: metrics[f"counting/count_predicted-{n}"] for n in rows} == {
        name: row[3] for name, row in rows.items()
    }
    assert {"counting/length_bias", "counting/F1-<32px"} <= set(metrics)
    assert {path.name for path in inference.iterdir()} >= {
        *("counting.csv", "counting_sizes.csv", "counting_confusion.csv"),
        *("counting_curves.csv", "counting_curves.png"),
    }
    header = (inference / "per_class.csv").read_text().splitlines()[0]
    assert "counting F1,counting F1_tol1" in header and "counting length_MAE" in header
    fixed = ("TEST.COUNTING.CLASS_SCORE_THRESH", "[1.0, 1.0, 1.0]")
    cli("train", *QUICK, "--eval-only", *opts, "MODEL.WEIGHTS", output, *fixed)
    metrics = json.loads((inference / "metrics.json").read_text())
    assert metrics["counting/count_predicted"] == 0


def test_the_checkpoint_itself_is_written_without_output(checkpoint, opts, tmp_path, cli):
    (tmp_path / "run").mkdir()
    best = tmp_path / "run" / "model_best.pth"
    best.write_bytes(checkpoint.read_bytes())
    done = cli("thresholds", *QUICK, *opts)
    assert done.returncode == 0, done.stderr
    assert f"Stored in {best}" in done.stdout
    old, new = (torch.load(path, weights_only=True) for path in (checkpoint, best))
    assert set(new["microplastics"]["score_thresholds"]) == {"Fiber", "Fragment", "Film"}
    assert all(torch.equal(value, old["model"][key]) for key, value in new["model"].items())


MISTAKES = {
    "no weights": (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
    "gone": (["--weights", "gone.pth"], "weights file gone.pth"),
    "name": (["--output", "a.pkl"], "--output is a.pkl; expected a name that ends in .pth"),
    "classes": (["DATASETS.TEST", ""], "MODEL.ROI_HEADS.NUM_CLASSES is 3"),
    "masks": (["MODEL.MASK_ON", "False"], "MODEL.MASK_ON is False"),
    "metric": (["--metric", "f2"], "'f2' is not one of 'f1', 'count'"),
    "folder": (["--output", "/dev/null/a.pth"], "Cannot write /dev/null: a file of that name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, checkpoint, opts, rendered, tmp_path, cli):
    (key, value), words = MISTAKES[mistake]
    if mistake == "classes":
        data = json.loads((rendered / "annotations" / "instances_val.json").read_text())
        data["categories"].append({"id": 9, "name": "Bead"})
        (tmp_path / "beads.json").write_text(json.dumps(data))
        value = repr((f"{tmp_path}/beads.json:{rendered}/val",))
    flags, keys = ([key, value], []) if key.startswith("--") else ([], [key, value])
    if mistake not in ("no weights", "gone"):
        flags = ["--weights", str(checkpoint), *flags]
    done = cli("thresholds", *QUICK, *flags, *opts, *keys)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
