"""Configs by name, in a checkout and away from it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, user_error

from microplastics import model_zoo
from microplastics.config import load_config
from microplastics.engine.defaults import setup
from microplastics.engine.distributed import argument_parser

NAMES = [
    *("demo", "demo_finetune"),
    *(
        "quick",
        "quick_cascade",
        "quick_dynamic",
        "quick_finetune",
        "quick_lite0",
        "quick_mask112",
        "quick_mask56",
    ),
    *("quick_pointrend", "quick_semantic"),
    *(
        "r101",
        "r50",
        "r50_balanced",
        "r50_cascade",
        "r50_dynamic",
        "r50_mask112",
        "r50_mask56",
        "r50_pointrend",
    ),
    *("r50_scratch", "r50_semantic", "torchvision", "torchvision_v2", "vitdet_b", "x101"),
]
AWAY = """
import sys
from pathlib import Path
import microplastics.model_zoo as zoo
from microplastics.config import load_config
from microplastics.data.doctor.findings import CODES
from microplastics.report import dataset
assert Path(zoo.__file__).is_relative_to(sys.argv[1]), zoo.__file__
assert Path(zoo.config_file("r50")).is_relative_to(sys.argv[1])
assert zoo.get_config("r50").MODEL.ROI_HEADS.NUM_CLASSES == 3
assert load_config("r50_scratch").MODEL.RESNETS.NORM == "GN"
assert Path(zoo.sweep_file("roi_pooling")).is_relative_to(sys.argv[1])
assert CODES and (Path(dataset.__file__).parent / "templates/dataset.html.j2").is_file()
print(*zoo.config_names())
"""


def test_every_config_has_a_name():
    assert model_zoo.config_names() == NAMES
    for name in NAMES:
        assert Path(model_zoo.config_file(name)) == ROOT / f"configs/microplastics_{name}.yaml"


@pytest.mark.parametrize("name", ["r50", "microplastics_r50", "microplastics_r50.yaml"])
def test_a_config_is_found_under_each_of_its_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == model_zoo.get_config(name)
    assert load_config(name) == load_config(f"{ROOT}/configs/microplastics_r50.yaml")


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r50").write_text("SEED: 77\n")
    assert load_config("r50").SEED == 77


def test_a_training_starts_from_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = argument_parser().parse_args(["--config-file", "quick", "OUTPUT_DIR", "here"])
    assert setup(arguments).MODEL.RESNETS.DEPTH == 18
    assert "DEPTH: 18" in Path("here/config.yaml").read_text()
    assert arguments.config_file == "quick"


@pytest.mark.parametrize("name", ["r51", "configs/nope.yaml", "nowhere/microplastics_r50.yaml"])
def test_an_unknown_name_lists_the_known_ones(name):
    with user_error("file_missing", name, "quick_finetune", "r50_scratch"):
        load_config(name)


def test_sweep_files_have_names(tmp_path):
    assert model_zoo.sweep_file("mask_convs") == f"{ROOT}/configs/sweeps/mask_convs.yaml"
    with user_error("file_missing", "no sweep file nope", "roi_pooling"):
        model_zoo.sweep_file("nope")


@pytest.mark.slow
def test_a_wheel_works_away_from_the_repository(tmp_path):
    source = tmp_path / "source"
    for name in ("microplastics", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "."]
    run(*pip, *wheel, str(source), cwd=tmp_path)
    (built,) = tmp_path.glob("microplastics-*.whl")
    run(*pip, "install", "--no-deps", "--no-index", "--target", "site", built, cwd=tmp_path)
    shutil.rmtree(source)
    assert run(sys.executable, "-c", AWAY, tmp_path / "site", cwd=tmp_path).split() == NAMES


def run(*command, cwd):
    """Runs a command that sees ``cwd/site`` and no other copy of the package."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [path for path in paths if not Path(path).resolve().is_relative_to(ROOT)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(cwd / "site"), *paths])}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
