"""The command pretrain: a checkpoint of rendered photographs that a lab's training starts from."""

import json
import shlex
from pathlib import Path

import click

from microplastics.cli.data import PRESETS
from microplastics.cli.demo import run_step
from microplastics.cli.parsing import command, config_file, option, path
from microplastics.utils.errors import UserError, check_option

# Those with the project's three classes and particles.
_PRESETS = tuple(name for name in PRESETS if name not in ("beads", "blank"))
_METRICS = ("segm/AP", "segm/AP50", "segm/AP-Fiber", "bbox/AP", "counting/F1")


@command(pairs=True, short_help="Train on rendered photographs a model to start from.")
@config_file("Name or path of the config.", default="demo", show_default=True)
@path("--output=DIR", "Folder of all files.", default="output/pretrained")
@option("--images=N", "Training images of all presets together.", default=4000)
@option("--val=N", "Validation images of each preset.", default=40)
@option("--size=PX", "Side of the images.", default=256)
@option("--um-per-px=UM", "µm per pixel of the images.", default=2.0)
@option("--epochs=N", "Passes over the images.", default=12)
@option(
    "--preset",
    "What to render, several times for several presets (all with particles if not given).",
    multiple=True,
    type=click.Choice(PRESETS),
)
@option("--seed=K", "Of the rendered images.", default=0)
def pretrain(
    config_file: str,
    output: str,
    images: int,
    val: int,
    size: int,
    um_per_px: float,
    epochs: int,
    preset: tuple[str, ...],
    seed: int,
    opts: list[str],
) -> None:
    """Train on rendered photographs a model that trainings on few real ones start from.

    It renders a data set of each preset, trains on all of them, chooses score thresholds and
    scores each preset. The same command goes on where it was stopped: give it a night on a CPU.

    \b
    microplastics pretrain --images 4000 --output output/pretrained
    microplastics train --config-file demo_finetune \\
        MODEL.WEIGHTS output/pretrained/model/model_best.pth \\
        DATASETS.TRAIN '("train.json:photos",)' DATASETS.TEST '("val.json:photos",)'
    """
    presets = list(dict.fromkeys(preset)) or list(_PRESETS)
    _check(presets, images, epochs)
    folder = Path(output).absolute()
    model, keys = folder / "model", ("OUTPUT_DIR", folder / "model", *opts)
    each = -(-images // len(presets))
    for name in presets:
        run_step(
            f"Rendering preset {name}",
            *("render", "dataset", "--preset", name, "--output", folder / "datasets" / name),
            *("--train", each, "--val", val, "--test", 0, "--size", size),
            *("--um-per-px", um_per_px, "--seed", seed),
        )
    data = ("DATASETS.TRAIN", _entries(folder, presets, "train"))
    validation = ("DATASETS.TEST", _entries(folder, presets, "val"))
    config = ("--config-file", config_file)
    length = ("SOLVER.MAX_EPOCHS", epochs, "SOLVER.MAX_ITER", 10**9)
    periods = (
        "TEST.EVAL_PERIOD_EPOCHS",
        epochs / 4,
        "SOLVER.CHECKPOINT_PERIOD_EPOCHS",
        epochs / 12,
    )
    title = f"Training {epochs} epochs on {each * len(presets)} images"
    run_step(title, "train", *config, "--resume", *data, *validation, *length, *periods, *keys)
    own = ("--config-file", model / "config.yaml")
    title = "Choosing the score thresholds that count best on the validation images"
    run_step(title, "thresholds", *own, "--metric", "count")
    scores = {}
    for name in presets:
        one = ("DATASETS.TEST", _entries(folder, [name], "val"))
        where = folder / "scores" / name
        run_step(
            f"Scoring preset {name}",
            *("evaluate", *own, "--weights", model / "model_best.pth", *one),
            *("OUTPUT_DIR", where),
        )
        metrics = json.loads((where / "inference" / "metrics.json").read_text(encoding="utf-8"))
        scores[name] = [metrics.get(metric, float("nan")) for metric in _METRICS]
    print(f"\n{_table(scores)}\n\nBest model  {model / 'model_best.pth'}")
    line = ("microplastics", "train", "--config-file", model / "config.yaml")
    line += ("MODEL.WEIGHTS", model / "model_best.pth", "OUTPUT_DIR", "output/mine")
    # Otherwise the training would be judged on the rendered images.
    line += ("DATASETS.TRAIN", "('train.json:photos',)", "DATASETS.TEST", "('val.json:photos',)")
    print(f"Start from it: {shlex.join(map(str, line))}")


def _check(presets: list[str], images: int, epochs: int) -> None:
    if "beads" in presets and len(presets) > 1:
        raise UserError(
            "--preset beads has the one class Bead; expected it without other presets.",
            code="option_conflict",
        )
    for name, value in (("--images", images), ("--epochs", epochs)):
        check_option(value > 0, name, value, "more than 0")


def _entries(folder: Path, presets: list[str], split: str) -> str:
    """The value of DATASETS.TRAIN or TEST with the sets of some presets."""
    roots = [folder / "datasets" / name for name in presets]
    entries = [f"{root}/annotations/instances_{split}.json:{root}/{split}" for root in roots]
    return repr(tuple(entries))


def _table(scores: dict[str, list[float]]) -> str:
    from tabulate import tabulate

    rows = [[name, *values] for name, values in scores.items()]
    return tabulate(rows, ["preset", *_METRICS], tablefmt="pipe", floatfmt=".1f")
