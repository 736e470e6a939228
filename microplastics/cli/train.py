"""Commands for models: train, evaluate, thresholds, plot, gpu-check."""

import argparse
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from microplastics.cli.parsing import (
    command,
    config_file,
    flag,
    option,
    path,
    processes,
)
from microplastics.utils.errors import UserError

_config_of_training = "Name or path of the config of the training."
_best = "Checkpoint (model_best.pth of OUTPUT_DIR if not given)."


def train_or_evaluate(args: argparse.Namespace) -> int:
    """Do what a command line of Detectron2's ``train_net.py`` says, in each of its processes.

    Returns:
        the exit code: 0, or 128 + the signal that stopped training.
    """
    from microplastics.engine.defaults import setup

    cfg = setup(args)
    if args.eval_only:
        from microplastics.engine.scoring import evaluate
        from microplastics.report.evaluation import finish_evaluation

        finish = functools.partial(finish_evaluation, page=not args.no_report)
        evaluate(cfg, weights_given="MODEL.WEIGHTS" in args.opts, finish=finish)
        return 0
    from microplastics.engine.trainer import Trainer

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if not trainer.start_iter:
        trainer.log_outlook(args.config_file)
    trainer.train()
    return trainer.signals.exit_code


@command(pairs=True, short_help="Train a model.")
@config_file()
@flag("--resume", "Go on with the training in OUTPUT_DIR.")
@flag("--eval-only", "Only score a model, as microplastics evaluate does.")
@path("--suggest=FILE", "Do not train; write a config (.yaml) that fits the data set better.")
@flag("--no-report", "With --eval-only: do not write evaluation.html.")
@processes
def train(suggest: str | None, **given: Any) -> Any:
    """Train a model, with the options of Detectron2's train_net.py.

    \b
    microplastics train --config-file r50 DATASETS.TRAIN '("train.json:photos",)' \\
        DATASETS.TEST '("val.json:photos",)' OUTPUT_DIR output/mine
    microplastics train --config-file output/mine/config.yaml --resume
    torchrun --nproc_per_node=2 -m microplastics train --config-file r50
    """
    from microplastics.engine import launch

    if suggest:
        return _suggest(given["config_file"], given["opts"], suggest)
    return launch(train_or_evaluate, argparse.Namespace(**given))


def _suggest(config_file: str, opts: list[str], output: str) -> None:
    from detectron2.utils.logger import setup_logger

    from microplastics.config import check_derived, load_config
    from microplastics.engine.suggestion import suggest, write_suggestion

    check_derived(output, config_file)
    cfg = load_config(config_file, opts)
    setup_logger(name="microplastics")
    found = suggest(cfg, config_file)
    write_suggestion(found, config_file, opts, output)
    for reason in found.reasons:
        print(f"- {reason}")
    if not found.reasons:
        print(f"{config_file or 'The config'} fits the data set as it is.")
    print(f"The settings are in {output}; microplastics train --config-file {output}")


@command(pairs=True, short_help="Score a model on annotated images.")
@config_file(_config_of_training)
@path("--weights=FILE", _best)
@flag("--no-report", "Do not write evaluation.html.")
@processes
def evaluate(weights: str | None, opts: list[str], **given: Any) -> Any:
    """Score a model on the annotated images of DATASETS.TEST.

    Writes metrics.json, tables and evaluation.html, a page that shows where the model errs, into
    OUTPUT_DIR/inference (docs/counting.md, docs/evaluation.md).

    \b
    microplastics evaluate --config-file output/mine/config.yaml
    microplastics evaluate --config-file r50 --weights best.pth DATASETS.TEST '("a.json:photos",)'
    """
    from microplastics.engine import launch

    if weights:
        opts = [*opts, "MODEL.WEIGHTS", weights]
    args = argparse.Namespace(eval_only=True, resume=False, opts=opts, **given)
    return launch(train_or_evaluate, args)


@command(pairs=True, short_help="Choose the score threshold of each class.")
@config_file(_config_of_training, required=True)
@path("--weights=FILE", _best, default="", show_default=False)
@option(
    "--metric",
    "Maximise F1 at mask IoU 0.5, or minimise the error of the count.",
    type=click.Choice(["f1", "count"]),
    default="f1",
)
@path(
    "--output=FILE",
    "Write a copy, and leave the checkpoint as it is.",
    default="",
    show_default=False,
)
def thresholds(config_file: str, opts: list[str], weights: str, metric: str, output: str) -> None:
    """Choose the score threshold of each class on the images of DATASETS.TEST.

    The thresholds are stored in the checkpoint; evaluate, predict and export use them.

    \b
    microplastics thresholds --config-file output/mine/config.yaml --metric count
    """
    from detectron2.utils.logger import setup_logger

    from microplastics.config import load_config
    from microplastics.engine.scoring import choose_and_store
    from microplastics.visualization.curves import plot_counting_curves

    cfg = load_config(config_file, opts)
    cfg.freeze()
    setup_logger(name="microplastics")
    weights = weights or (cfg.MODEL.WEIGHTS if "MODEL.WEIGHTS" in opts else "")
    outcome = choose_and_store(cfg, metric, weights, output)
    picture = outcome.curves.removesuffix(".csv") + ".png"
    chosen = {choice.class_name: choice.threshold for choice in outcome.choices}
    plot_counting_curves(outcome.curves, picture, chosen)
    print(f"Thresholds by {metric} on {outcome.num_images} images (from 0.5 on -> chosen):")
    print(_threshold_table(outcome.choices))
    for choice in outcome.choices:
        if choice.kept_because:
            print(choice.kept_because)
    print("On other images expect somewhat less: the thresholds were chosen on these very ones.")
    print(f"Stored in {outcome.checkpoint}; curves in {outcome.curves} and {picture}")


def _threshold_table(choices: Any) -> str:
    from tabulate import tabulate

    rows = [
        {
            "class": c.class_name,
            "threshold": f"{c.threshold:g}",
            "F1": f"{c.before['F1']:.1f} -> {c.after['F1']:.1f}",
            "true": c.true,
            "predicted": f"{c.before['predicted']} -> {c.after['predicted']}",
        }
        for c in choices
    ]
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


@command(short_help="Plot losses, learning rate and AP of a training.")
@path("--input=JSON", "metrics.json of a training's OUTPUT_DIR.", required=True)
@path("--output=FILE", ".png, .jpg, .pdf or .svg.", required=True)
def plot(input: str, output: str) -> None:
    """Plot losses, learning rate and AP of a training.

    \b
    microplastics plot --input output/mine/metrics.json --output curves.png
    """
    from microplastics.visualization import plot_training_curves

    plot_training_curves(input, output)
    print(f"Curves in {output}")


@command("gpu-check", pairs=True, short_help="Test and time training and prediction on a GPU.")
@config_file("Names or paths of configs.", multiple=True, default=["r50", "demo"])
@option("--device=NAME", "cuda; or cpu, to try the same without a GPU.", default="cuda")
@option("--images=N", "Images that are rendered for each config.", type=int, default=24)
@option("--size=PX", "Their side (the config's MIN_SIZE_TEST if not given).", type=int)
@option("--iterations=N", "Iterations of a turn of training.", type=int, default=8)
@option("--repeat=N", "Turns of each measurement.", type=int, default=4)
@option("--minutes=M", "Nothing new begins after so many minutes.", type=float, default=8.0)
@option("--tests=PATH", "Tests of which those marked gpu run.", multiple=True, default=["tests"])
@path("--json=FILE", "Write all figures there too.")
def gpu_check(opts: list[str], **given: Any) -> int:
    """Run the GPU tests, then time training and prediction, and measure their memory.

    Prints one Markdown table. Weights are random, so that nothing is downloaded. It runs
    tools/benchmark.py gpu of the checkout that the package is in.

    \b
    microplastics gpu-check
    microplastics gpu-check --config-file mine.yaml --minutes 4 SOLVER.IMS_PER_BATCH 8
    """
    import microplastics

    script = Path(microplastics.__file__).parents[1] / "tools" / "benchmark.py"
    if not script.is_file():
        raise UserError(
            f"{script} does not exist: gpu-check runs tests and benchmarks that are no part of the "
            "installed package; expected a checkout of the repository (make gpu).",
            code="file_missing",
        )
    words = [sys.executable, str(script), "gpu"]
    for name, value in given.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return subprocess.run([*words, "--", *opts]).returncode
