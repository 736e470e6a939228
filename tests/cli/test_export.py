"""microplastics export."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from support import ROOT, TINY

QUICK = ("--config-file", f"{ROOT}/configs/microplastics_quick.yaml")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Weights of a tiny model, as training writes them."""
    from microplastics.config import load_config
    from microplastics.engine import Trainer
    from microplastics.engine.checkpoint import TrainingCheckpointer

    folder = tmp_path_factory.mktemp("model")
    cfg = load_config(QUICK[1], [*TINY, "OUTPUT_DIR", str(folder), "DATASETS.TEST", "()"])
    cfg.freeze()
    torch.manual_seed(4)
    model = Trainer.build_model(cfg)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=1.0)
    TrainingCheckpointer(model, cfg, ["Fiber", "Fragment", "Film"]).save("model")
    return folder / "model.pth"


def test_onnx(cli_process, checkpoint, tmp_path):
    path = tmp_path / "new" / "model.onnx"
    done = cli_process(
        *("export", "--weights", checkpoint, "--format", "onnx", "--output", path),
        *("--size", 96, 128, "--dynamic"),
    )
    assert done.returncode == 0, done.stderr
    assert f"{path}: onnx, uint8 BGR (3, height, width)" in done.stdout
    assert "detections on 2 rendered pictures as the checkpoint has them" in done.stdout
    assert "TracerWarning" not in done.stderr
    about = json.loads(path.with_suffix(".json").read_text())
    assert set(about["score_thresholds"].values()) == {0.5}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"image": np.full((3, 70, 50), 90, np.uint8)})
    assert scores.dtype == np.float32 and (scores > 0.5).all()


def test_torchscript_with_a_config_and_options(cli, checkpoint, tmp_path):
    path = tmp_path / "model.ts"
    done = cli(
        *("export", "--weights", checkpoint, "--format", "torchscript", "--output", path),
        *(*QUICK, "--confidence-threshold", 0.2),
        *("--opts", *TINY, "INPUT.FORMAT", "RGB", "DATASETS.TEST", "()"),
    )
    assert done.returncode == 0, done.stderr
    assert "torchscript, uint8 RGB (3, height, width)" in done.stdout
    about = json.loads(path.with_suffix(".json").read_text())
    assert set(about["score_thresholds"].values()) == {0.2}
    boxes, scores, *_ = torch.jit.load(path)(torch.full((3, 64, 96), 90, dtype=torch.uint8))
    assert boxes.shape == (len(scores), 4) and (scores > 0.2).all()


def test_says_that_nothing_was_compared(cli, checkpoint, tmp_path):
    done = cli(
        *("export", "--weights", checkpoint, "--format", "torchscript"),
        *("--output", tmp_path / "m.ts", "--confidence-threshold", 1),
    )
    assert done.returncode == 0, done.stderr
    assert "0 detections on 2" in done.stdout and "photographs of your own" in done.stdout


def test_errors_are_one_sentence(cli, checkpoint, tmp_path):
    arguments = ("export", "--weights", checkpoint, "--format", "onnx")
    done = cli(*arguments, "--output", tmp_path / "model.ts")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "model.ts" in last and ".onnx" in last
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
    done = cli(*arguments, "--output", tmp_path / "m.onnx", "--confidence-threshold", 7)
    assert done.returncode == 2 and "expected a number from 0 to 1" in done.stderr
    done = cli(
        *("export", "--weights", tmp_path / "none.pth", "--format", "onnx"),
        *("--output", tmp_path / "m.onnx"),
    )
    assert done.returncode == 2 and "none.pth" in done.stderr
