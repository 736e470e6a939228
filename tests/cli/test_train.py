"""microplastics train, as people call it and miscall it."""

import hashlib
import json
import pickle
import shutil

import pytest
import torch
from support import ROOT, dataset_entry

QUICK = ("--config-file", f"{ROOT}/configs/microplastics_quick.yaml")


@pytest.fixture(scope="module")
def trained(tiny_opts, tmp_path_factory, request):
    """Folder of a finished tiny training."""
    from microplastics.config import load_config
    from microplastics.engine import Trainer

    output = tmp_path_factory.mktemp("trained")
    cfg = load_config(QUICK[1], [*tiny_opts, "OUTPUT_DIR", str(output)])
    cfg.freeze()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return output


def test_training_writes_what_the_readme_says(trained):
    for name in ("model_best.pth", "model_final.pth", "last_checkpoint", "metrics.json"):
        assert (trained / name).stat().st_size, name
    records = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    logged = {key for record in records for key in record}
    assert {"total_loss", "lr", "validation/total_loss", "segm/AP50", "semantic/Dice"} <= logged


def test_a_checkpoint_carries_its_config_and_classes(trained):
    info = torch.load(trained / "model_best.pth", weights_only=True)["microplastics"]
    assert info["class_names"] == ["Fiber", "Fragment", "Film"]
    assert "NUM_CLASSES: 3" in info["config"]


def test_eval_only_prints_what_training_logged(trained, tiny_opts, cli_process):
    done = cli_process("train", *QUICK, *tiny_opts, "OUTPUT_DIR", trained, "--eval-only")
    assert done.returncode == 0, done.stderr
    scores = json.loads((trained / "inference" / "metrics.json").read_text())
    best = torch.load(trained / "model_best.pth", weights_only=True)
    logged = best["metrics"]
    assert {name: scores[name] for name in logged} == pytest.approx(logged, nan_ok=True)
    # Sizes are measured here alone.
    assert "counting/F1_tol1-Fiber" in logged and "counting/length_MAE" in set(scores) - set(logged)
    assert isinstance(
        json.loads((trained / "inference" / "coco_instances_results.json").read_text()), list
    )
    table = (trained / "inference" / "per_class.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table] == ["class", "Fiber", "Fragment", "Film", "all"]
    assert "model_best.pth" in done.stdout


def test_evaluate_takes_the_weights_that_it_is_given(trained, tiny_opts, tmp_path, cli):
    output = ("OUTPUT_DIR", tmp_path)
    page = tmp_path / "inference" / "evaluation.html"
    for name, *flags in (("model_best", "--no-report"), ("model_final",)):
        weights = trained / f"{name}.pth"
        done = cli("evaluate", *tiny_opts, *output, "--weights", weights, *QUICK, *flags)
        assert done.returncode == 0, done.stderr
        assert f"{name}.pth" in done.stdout
        assert page.exists() is not bool(flags)
        about = json.loads((tmp_path / "inference" / "evaluation.json").read_text())
        assert about["checkpoint"] == str(weights)
        assert about["checkpoint_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert "model_final.pth" in page.read_text()
    assert (tmp_path / "inference" / "per_class.csv").stat().st_size
    done = cli("evaluate", *QUICK, *tiny_opts, *output, "--weights", "gone.pth")
    assert done.returncode == 2 and "gone.pth" in done.stderr


def test_several_machines_need_a_place_to_meet(cli, tiny_opts, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    done = cli("train", *QUICK, *tiny_opts, "--num-machines", "2")
    assert done.returncode == 2 and "--dist-url" in done.stderr


def test_test_time_augmentation_is_scored_too(trained, tiny_opts, cli):
    sizes = ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(96,128)")
    done = cli("train", *QUICK, "--eval-only", *tiny_opts, "OUTPUT_DIR", trained, *sizes)
    assert done.returncode == 0, done.stderr
    scores = json.loads((trained / "inference" / "metrics.json").read_text())
    assert {"bbox/AP", "bbox_TTA/AP", "segm_TTA/AP50"} <= set(scores)
    page = (trained / "inference_TTA" / "evaluation.html").read_text()
    assert "with test-time augmentation" in page


def test_a_second_training_in_the_same_folder_is_refused(trained, tiny_opts, cli):
    done = cli("train", *QUICK, *tiny_opts, "OUTPUT_DIR", trained)
    assert done.returncode == 2
    assert "add --resume" in done.stderr


def evil(path):
    class Evil:
        def __reduce__(self):
            return print, ("pwned",)

    path.write_bytes(pickle.dumps({"model": Evil(), "__author__": "x"}))


MISTAKES = {
    "no config": (["--config-file", "configs/none.yaml"], "no config file configs/none.yaml"),
    "unknown key": ([*QUICK, "SOLVER.BASE_RL", "1"], "did you mean SOLVER.BASE_LR"),
    "unknown data": (
        [*QUICK, "DATASETS.TRAIN", "('microplastics_trian',)"],
        "microplastics_train",
    ),
    "eval of nothing": ([*QUICK, "--eval-only"], "MODEL.WEIGHTS is empty"),
    "random weights": ([*QUICK, "--eval-only", "MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
    "no such weights": (
        [*QUICK, "--eval-only", "MODEL.WEIGHTS", "gone.pth"],
        "weights file gone.pth",
    ),
    "too many GPUs": ([*QUICK, "--num-gpus", "64"], "--num-gpus 64"),
    "metric": (
        [*QUICK, "SOLVER.BEST_CHECKPOINT.METRIC", "segm/AP51"],
        "SOLVER.BEST_CHECKPOINT.METRIC is segm/AP51",
    ),
    "device": ([*QUICK, "MODEL.DEVICE", "gpu"], "MODEL.DEVICE"),
    "output": ([*QUICK, "OUTPUT_DIR", "/dev/null/x"], "Cannot write /dev/null/x"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence_and_code_2(name, tiny_opts, tmp_path, cli):
    (first, *rest), words = MISTAKES[name]
    options = [first, *rest[:1]]
    # Options named later win: the tiny data set first, the mistake after it.
    flags = [r for r in rest[1:] if r.startswith("--")]
    if "--num-gpus" in flags:
        flags += [rest[rest.index("--num-gpus") + 1]]
    opts = [r for r in rest[1:] if r not in flags]
    output = ("OUTPUT_DIR", str(tmp_path))
    done = cli("train", *options, *flags, *tiny_opts, *output, *opts)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last
    assert "Traceback" not in done.stderr


def test_wrong_number_of_classes_names_both(tiny_opts, tmp_path, cli):
    options = ("MODEL.ROI_HEADS.NUM_CLASSES", "4", "OUTPUT_DIR", tmp_path)
    done = cli("train", *QUICK, *tiny_opts, *options)
    assert done.returncode == 2
    for word in ("NUM_CLASSES", "4", "Fiber", "Film"):
        assert word in done.stderr


def test_a_checkpoint_of_another_model_is_refused(trained, tiny_opts, tmp_path, cli):
    options = ("MODEL.WEIGHTS", trained / "model_best.pth", "MODEL.FPN.OUT_CHANNELS", "32")
    done = cli("train", *QUICK, "--eval-only", *tiny_opts, *options, "OUTPUT_DIR", tmp_path)
    assert done.returncode == 2
    assert "does not fit this model" in done.stderr


def test_a_malicious_checkpoint_is_refused(tiny_opts, tmp_path, cli):
    evil(tmp_path / "evil.pkl")
    options = ("MODEL.WEIGHTS", tmp_path / "evil.pkl", "OUTPUT_DIR", tmp_path / "out")
    done = cli("train", *QUICK, *tiny_opts, *options)
    assert done.returncode == 2
    assert "holds more than weights" in done.stderr and "pwned" not in done.stdout


def test_resume_with_nothing_there_says_so_and_trains(tiny_opts, tmp_path, cli):
    options = ("OUTPUT_DIR", tmp_path / "new", "SOLVER.MAX_ITER", "1")
    done = cli("train", *QUICK, "--resume", *tiny_opts, *options)
    assert done.returncode == 0, done.stderr
    assert "no checkpoint" in done.stdout + done.stderr
    assert (tmp_path / "new" / "model_final.pth").exists()


def test_a_broken_image_ends_training_with_its_name_and_a_checkpoint(
    rendered, tiny_opts, tmp_path, cli
):
    copy = tmp_path / "data"
    shutil.copytree(rendered, copy)
    victim = sorted((copy / "train").iterdir())[-1]
    victim.write_bytes(victim.read_bytes()[:-2000])
    options = (
        "DATASETS.TRAIN",
        repr((dataset_entry(copy, "train"),)),
        "OUTPUT_DIR",
        tmp_path / "o",
    )
    done = cli("train", *QUICK, *tiny_opts, *options)
    assert done.returncode == 2
    assert victim.name in done.stderr and "Traceback" not in done.stderr


def test_exploding_training_names_iteration_images_and_checkpoint(tiny_opts, tmp_path, cli):
    options = ("SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0", "OUTPUT_DIR", tmp_path)
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", "False")
    done = cli("train", *QUICK, *tiny_opts, *options, *clip)
    assert done.returncode == 2, done.stderr
    for word in ("iteration", ".jpg", "last checkpoint", "SOLVER.BASE_LR"):
        assert word in done.stderr
