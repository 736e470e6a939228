"""microplastics pretrain, on a tiny network."""

import pytest
import torch
from support import ROOT, TINY

QUICK = ("--config-file", f"{ROOT}/configs/microplastics_quick.yaml")


@pytest.mark.slow
def test_a_checkpoint_to_start_from_and_its_scores(tmp_path, cli_process):
    sets = ("--preset", "default", "--preset", "darkfield", "--images", 7, "--val", 2)
    arguments = ("pretrain", "--output", tmp_path, *sets, "--size", 96, "--epochs", 2)
    arguments += (*QUICK, *TINY)
    environment = {"OMP_NUM_THREADS": "1"}
    done = cli_process(*arguments, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| preset    |   segm/AP |" in done.stdout and "| darkfield |" in done.stdout
    best = torch.load(tmp_path / "model" / "model_best.pth", weights_only=True)
    assert set(best["microplastics"]["score_thresholds"]) == {"Fiber", "Fragment", "Film"}
    assert f"MODEL.WEIGHTS {tmp_path / 'model' / 'model_best.pth'}" in done.stdout
    again = cli_process(*arguments, env=environment, cwd=tmp_path)
    # Six of the eight images have a particle: two epochs of three batches of two.
    assert again.returncode == 0 and "Starting training from iteration 6" in again.stdout


def test_wrong_numbers_end_it_before_the_work(tmp_path, cli):
    done = cli("pretrain", "--output", tmp_path, "--images", 0)
    assert done.returncode == 2 and "--images is 0; expected more than 0" in done.stderr
    done = cli("pretrain", "--output", tmp_path, "--preset", "beads", "--preset", "dense")
    assert done.returncode == 2 and "without other presets" in done.stderr
    assert not any(tmp_path.iterdir())
