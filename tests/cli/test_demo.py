"""microplastics demo, from rendering to pictures, on a tiny network."""

import pytest
from support import ROOT, TINY

QUICK = ("--config-file", f"{ROOT}/configs/microplastics_quick.yaml")


@pytest.mark.slow
def test_the_demo_goes_all_the_way_and_says_where_everything_is(tmp_path, cli_process):
    arguments = ("--output", tmp_path, "--train", "4", "--val", "2", "--test", "2", *TINY, *QUICK)
    done = cli_process("demo", *arguments, env={"OMP_NUM_THREADS": "1"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"$ microplastics train --config-file {QUICK[1]} --resume OUTPUT_DIR" in done.stdout
    assert "On 2 validation images: mask AP50" in done.stdout
    for name in ("model/model_best.pth", "model/training.png", "model/inference/per_class.csv"):
        assert (tmp_path / name).stat().st_size
        assert str(tmp_path / name).removesuffix("/per_class.csv") in done.stdout
    assert "| class    |   true |   found |" in done.stdout
    assert (tmp_path / "particles" / "particles.csv").stat().st_size
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_a_step_that_fails_ends_the_demo(tmp_path, cli_process):
    done = cli_process("demo", "--output", tmp_path, "--train", "-1", "--val", "2")
    assert done.returncode == 2
    assert "exit code 2; fix it" in done.stderr and "Traceback" not in done.stderr
