"""Measure ours and plain Detectron2 in one run, taking turns: medians and ratios.

python tools/benchmark.py train
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    busy,
    duplicates,
    evaluation,
    faults,
    gpu,
    infer,
    loader,
    mask_bound,
    scale_bars,
    stitch,
    train,
    validate,
    zoo,
)
from benchmarks.setting import cores, require_positive, workspace
from microplastics.cli import run
from microplastics.utils.errors import report_error
from microplastics.utils.io import write_json

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def parse() -> argparse.Namespace:
    """Read the command line; what is left out stays at the benchmark's own default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    defaults = {"argument_default": argparse.SUPPRESS}

    def command(
        name: str, module: Any, images: str = "", config: str = ""
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=module.__doc__.splitlines()[0], **defaults)
        sub.set_defaults(benchmark=module.benchmark)
        if images:
            sub.add_argument("--images", type=int, metavar="N", help=images)
        sub.add_argument("--repeat", type=int, metavar="N", help="turns of each contestant")
        sub.add_argument("--seed", type=int, metavar="K")
        sub.add_argument("--threads", type=int, metavar="N", help="threads (default: all cores)")
        sub.add_argument("--json", metavar="FILE", help="write all figures there too")
        if config:
            sub.add_argument("--config-file", default=str(CONFIGS / config), metavar="FILE")
            sub.add_argument("--dataset", metavar="JSON:IMAGES", help="instead of rendered images")
            sides = "+" if module is infer else None
            sub.add_argument(
                "--size", type=int, nargs=sides, metavar="PX", help="side of rendered images"
            )
            sub.add_argument("opts", nargs=argparse.REMAINDER, help="config KEY VALUE pairs")
        return sub

    for name, module in (("train", train), ("busy", busy)):
        sub = command(name, module, "images to render", "microplastics_quick.yaml")
        sub.add_argument("--iterations", type=int, metavar="N", help="iterations of a turn")
    for name, module in (("validate", validate), ("infer", infer)):
        sub = command(name, module, "images to render", "microplastics_r50.yaml")
        sub.add_argument("--weights", metavar="FILE", help="instead of random ones")
        sub.add_argument("--detections", type=int, nargs="+", metavar="N", help="caps an image")
    sub.add_argument("--paste-size", type=int, metavar="PX", help="frame to paste into, 0: none")
    sub.add_argument("--paste-masks", type=int, metavar="N", help="masks to paste")
    sub = command("input", loader, "images to draw")
    sub.add_argument("--particles", type=int, metavar="N", help="on each image")
    sub = command("eval", evaluation, "images")
    sub.add_argument("--true", type=int, metavar="N", help="true particles an image")
    sub.add_argument("--caps", type=int, nargs="+", metavar="N", help="detections an image")
    sub = command("stitch", stitch)
    sub.add_argument("--size", type=int, metavar="PX", help="side of the image")
    sub.add_argument("--particles", type=int, metavar="N", help="on it")
    sub.add_argument("--tile", type=int, metavar="PX", help="side of the windows")
    sub.add_argument("--overlap", type=int, metavar="PX", help="that neighbours share")
    sub = command("zoo", zoo)
    sub.add_argument("--configs", nargs="+", metavar="NAME", help="instead of all models")
    sub.add_argument("--size", type=int, metavar="PX", help="side of the image")
    sub = command("gpu", gpu, "images to render for each config")
    sub.add_argument("--config-file", nargs="+", metavar="FILE", help="default: r50 demo")
    sub.add_argument("--device", metavar="NAME", help="cuda (the default), or cpu to try it there")
    sub.add_argument("--size", type=int, metavar="PX", help="side of rendered images")
    sub.add_argument("--iterations", type=int, metavar="N", help="iterations of a turn")
    sub.add_argument("--minutes", type=float, metavar="M", help="nothing new begins after them")
    sub.add_argument("--tests", nargs="+", metavar="PATH", help="tests to run those marked gpu of")
    sub.add_argument("opts", nargs="*", help="config KEY VALUE pairs, after --")
    words = mask_bound.__doc__.splitlines()[0]
    sub = commands.add_parser("mask-bound", help=words, **defaults)
    sub.set_defaults(benchmark=mask_bound.benchmark)
    sub.add_argument("--dataset", required=True, metavar="NAME or JSON:IMAGES")
    sub.add_argument("--json", metavar="FILE", help="write all figures there too")
    words = duplicates.__doc__.splitlines()[0]
    sub = commands.add_parser("duplicates", help=words, **defaults)
    sub.set_defaults(benchmark=duplicates.benchmark)
    sub.add_argument("photographs", nargs="+", metavar="DIR", help="folders of photographs")
    sub.add_argument("--limit", type=int, metavar="N", help="photographs of each folder")
    sub.add_argument("--json", metavar="FILE", help="write all figures there too")
    words = scale_bars.__doc__.splitlines()[0]
    sub = commands.add_parser("scale-bars", help=words, **defaults)
    sub.set_defaults(benchmark=scale_bars.benchmark)
    sub.add_argument("--grounds", nargs="+", metavar="DIR", help="photographs without a bar")
    sub.add_argument("--rendered", type=int, metavar="N", help="filters to render beside them")
    sub.add_argument("--bars", type=int, metavar="N", help="pictures with a bar")
    sub.add_argument("--style", choices=sorted(scale_bars.STYLES))
    sub.add_argument("--seed", type=int, metavar="K")
    sub.add_argument("--json", metavar="FILE", help="write all figures there too")
    words = faults.__doc__.splitlines()[0]
    sub = commands.add_parser("faults", help=words, **defaults)
    sub.set_defaults(benchmark=faults.benchmark)
    sub.add_argument("fault", choices=("kill", "full", "rank", "many"))
    sub.add_argument("--commands", nargs="+", choices=faults.COMMANDS)
    sub.add_argument("--number", type=int, metavar="N", help="of faults of each command")
    sub.add_argument("--images", type=int, metavar="N", help="that are predicted by many")
    sub.add_argument("--formats", metavar="A,B", help="that are written by many")
    sub.add_argument("--seed", type=int, metavar="K", help="of the moments")
    sub.add_argument("--json", metavar="FILE", help="write all figures there too")
    return parser.parse_args()


def main() -> int:
    """Run one benchmark; 1 when the two sides do not agree on what they computed."""
    options = vars(parse())
    command, benchmark = options.pop("command"), options.pop("benchmark")
    json_file = options.pop("json", None)
    threads = options.pop("threads", cores())
    require_positive(threads=threads)
    torch.set_num_threads(threads)
    with workspace() as folder:
        if command not in ("eval", "stitch", "zoo", "mask-bound", "duplicates", "scale-bars"):
            options["folder"] = folder
        report = benchmark(**options)
    print(report)
    if json_file:
        arguments = shlex.join(sys.argv[1:])
        write_json(json_file, {"command": arguments, **report.as_dict()}, indent=1)
        print(f"Figures written to {json_file}")
    if wrong := report.disagreements:
        names = ", ".join(f"{check.name} ({check.detail})" for check in wrong)
        report_error(f"Ours and the reference differ, so the times say nothing: {names}.")
        return 1
    return 0


if __name__ == "__main__":
    run(main)
