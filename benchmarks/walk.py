"""Count the project's files that a training and a prediction go through.

python benchmarks/walk.py

``train``: from the arguments to the end of the first iteration; ``predict``: one image, from the
command line to its files. Counted are the files with a function that is entered, the functions,
and the changes of file in the order in which functions are entered first. ``--list`` names them.
"""

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import microplastics
from microplastics.cli import main as command
from microplastics.cli.train import train_or_evaluate
from microplastics.config import load_config
from microplastics.engine import Trainer
from microplastics.model_zoo import config_file
from microplastics.synthetic import render_dataset

PACKAGE = Path(microplastics.__file__).parent
_OPTIONS = (
    *("MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0"),
)


class Walk:
    """Records the functions of the package in the order in which they are entered first."""

    def __init__(self) -> None:
        self.functions: dict[CodeType, str] = {}

    def _enter(self, frame: FrameType, event: str, _arg: Any) -> None:
        code = frame.f_code
        # Modules and class bodies run when they are imported.
        if event == "call" and code not in self.functions and not code.co_name.startswith("<"):
            path = Path(code.co_filename)
            if path.is_relative_to(PACKAGE) and code.co_flags & 0x1:
                self.functions[code] = str(path.relative_to(PACKAGE))

    def __enter__(self) -> "Walk":
        threading.setprofile(self._enter)
        sys.setprofile(self._enter)
        return self

    def __exit__(self, *_exception: Any) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    @property
    def files(self) -> list[str]:
        """Files in the order in which they are entered first."""
        return list(dict.fromkeys(self.functions.values()))

    def __str__(self) -> str:
        files = list(self.functions.values())
        changes = sum(a != b for a, b in zip(files, files[1:], strict=False))
        return f"{len(self.files)} files, {len(files)} functions, {changes} file changes"


class _FirstIterationDone(Exception):
    pass


def walk_train(arguments: argparse.Namespace) -> Walk:
    """Walk from the arguments of ``train_net.py`` to the end of the first iteration."""
    run_step = Trainer.run_step

    def run_once(trainer: Trainer) -> None:
        run_step(trainer)
        raise _FirstIterationDone

    Trainer.run_step = run_once
    try:
        with Walk() as walk:
            train_or_evaluate(arguments)
    except _FirstIterationDone:
        return walk
    finally:
        Trainer.run_step = run_step
    raise RuntimeError("The training ended before its first iteration")


def walk_predict(weights: str, image: str, output: str) -> Walk:
    """Walk through ``microplastics predict`` of one image."""
    arguments = ["predict", "--weights", weights, "--input", image, "--output", output]
    with Walk() as walk:
        try:
            command([*arguments, "--um-per-px", "2"])
        except SystemExit as end:
            if end.code:
                raise
    return walk


def main() -> None:
    """Render a few images, walk, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name the files in their order")
    listed = parser.parse_args().list
    with tempfile.TemporaryDirectory() as folder:
        render_dataset(folder, {"train": 4, "val": 2, "test": 1}, size=96, seed=3, workers=1)
        sets = {
            split: repr((f"{folder}/annotations/instances_{split}.json:{folder}/{split}",))
            for split in ("train", "val")
        }
        output = f"{folder}/model"
        opts = (*_OPTIONS, "DATASETS.TRAIN", sets["train"], "DATASETS.TEST", sets["val"])
        arguments = argparse.Namespace(
            config_file=config_file("quick"),
            opts=[*opts, "OUTPUT_DIR", output],
            eval_only=False,
            resume=False,
            num_gpus=0,
        )
        walks = {"train": walk_train(arguments)}
        trainer = Trainer(load_config("quick", arguments.opts))
        trainer.checkpointer.save("weights", with_trainer=False)
        image = next(Path(folder, "test").iterdir())
        walks["predict"] = walk_predict(f"{output}/weights.pth", str(image), f"{folder}/run")
    for name, walk in walks.items():
        print(f"{name}: {walk}")
        if listed:
            print("  " + "\n  ".join(walk.files))


if __name__ == "__main__":
    main()
