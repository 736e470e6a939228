"""A tiny rendered data set, a tiny config, and the real command line."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from detectron2.utils.logger import setup_logger
from hypothesis import settings
from support import ROOT, TINY, dataset_entry

from microplastics.cli import main

# Few examples at a desk; more in CI, which sets CI=true.
_SAME = {"deadline": None, "derandomize": True, "database": None}
settings.register_profile("dev", max_examples=25, **_SAME)
settings.register_profile("ci", max_examples=100, **_SAME)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")


@pytest.fixture
def caplog(caplog):
    """pytest's own, which sees the project's lines after Detectron2's ``setup_logger`` too."""
    project = logging.getLogger("microplastics")
    before = project.propagate
    project.propagate = False
    project.addHandler(caplog.handler)
    yield caplog
    project.removeHandler(caplog.handler)
    project.propagate = before


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """Folder with 8 + 4 + 2 rendered images of 96 px."""
    from microplastics.synthetic import render_dataset

    folder = tmp_path_factory.mktemp("data") / "rendered"
    counts = {"train": 8, "val": 4, "test": 2}
    render_dataset(folder, counts, size=96, um_per_px=2.0, seed=3, workers=1)
    return folder


@pytest.fixture(scope="session")
def tiny_opts(rendered):
    """KEY VALUE pairs that make the quick config tiny and name the rendered set."""
    return [
        *TINY,
        *("DATASETS.TRAIN", repr((dataset_entry(rendered, "train"),))),
        *("DATASETS.TEST", repr((dataset_entry(rendered, "val"),))),
    ]


@pytest.fixture
def tiny_cfg(tiny_opts, tmp_path):
    """Builds a frozen tiny config: ``tiny_cfg("SOLVER.MAX_ITER", 4)``, of quick or another one."""
    from microplastics.config import load_config

    def build(*opts, name="quick"):
        output = ("OUTPUT_DIR", str(tmp_path / "output"))
        path = f"{ROOT}/configs/microplastics_{name}.yaml"
        cfg = load_config(path, [*tiny_opts, *output, *opts])
        cfg.freeze()
        return cfg

    return build


def _run(command, env=None, cwd=ROOT, timeout=300, launcher=()):
    return subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def tool():
    """Runs a script of tools/: ``tool("train_net", "--eval-only", …)``."""
    return lambda name, *arguments, **how: _run([ROOT / "tools" / f"{name}.py", *arguments], **how)


@pytest.fixture
def cli_process():
    """Runs a command in a process of its own: ``cli_process("predict", "--weights", …)``."""
    return lambda *arguments, **how: _run(["-m", "microplastics", *arguments], **how)


@pytest.fixture
def cli(monkeypatch, capfd):
    """Runs a command in this process, which saves its imports: ``cli("predict", …)``."""

    def forget_loggers():
        # Their handlers hold the output stream of the test that made them.
        setup_logger.cache_clear()
        for logger in ("detectron2", "fvcore", "microplastics"):
            logging.getLogger(logger).handlers.clear()

    def call(*arguments):
        forget_loggers()
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        forget_loggers()
        return SimpleNamespace(returncode=end.value.code, stdout=printed.out, stderr=printed.err)

    return call
