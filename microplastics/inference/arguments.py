"""The command lines of ``tools/predict.py`` and ``tools/measure.py``."""

import argparse
import socket
from collections.abc import Sequence

from microplastics.runs.images import add_run_arguments


def parse_predict(arguments: Sequence[str], about: str) -> argparse.Namespace:
    """Read the command line of ``tools/predict.py``; names are those of Detectron2's demo."""
    parser = _parser(about)
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="images, folders, globs, or .txt lists of images",
    )
    add("--weights", metavar="FILE", help="checkpoint; its own config is used without the next")
    add("--config-file", default="", metavar="FILE", help="config YAML")
    add(
        "--confidence-threshold",
        type=float,
        metavar="S",
        help="least score of a particle (default: the checkpoint's own, else 0.5)",
    )
    add("--mask-threshold", type=float, default=0.5, metavar="P", help="of a mask's pixels")
    add(
        "--max-overlap",
        type=float,
        metavar="F",
        help="share of a particle that a better-scored one may cover (default: 0.5)",
    )
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16: about 0.6 of the time where the processor has it",
    )
    add("--batch-size", type=int, metavar="N", help="images at once (default: 1, on a GPU 8)")
    add = parser.add_argument_group("windows (docs/stitching.md)").add_argument
    add("--tile", type=int, metavar="PX", help="side of the windows; 0: never cut (default: auto)")
    add("--overlap", type=int, metavar="PX", help="that windows share (default: auto)")
    add("--largest", type=float, metavar="PX", help="length of the largest particle expected")
    add("--no-coarse", dest="coarse", action="store_false", help="no pass for larger things")
    add("--no-join", dest="join", action="store_false", help="leave broken fibres in pieces")
    add_run_arguments(parser)
    add = parser.add_argument_group("several GPUs").add_argument
    add("--num-gpus", type=int, default=1, metavar="N", help="of this machine")
    add("--num-machines", type=int, default=1, metavar="N")
    add("--machine-rank", type=int, default=0, metavar="N")
    add("--dist-url", default=f"tcp://127.0.0.1:{_free_port()}", metavar="URL")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="config KEY VALUE pairs")
    return parser.parse_args(arguments)


def parse_measure(arguments: Sequence[str], about: str) -> argparse.Namespace:
    """Read the command line of ``tools/measure.py``."""
    parser = _parser(about)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--masks",
        nargs="+",
        metavar="FILE",
        help="COCO JSON, COCO results JSON, or label TIFFs or PNGs (a folder of them)",
    )
    source.add_argument(
        "--merge-runs", nargs="+", metavar="DIR", help="put the tables of finished runs together"
    )
    add = parser.add_argument
    add("--images", metavar="DIR", help="the photographs, for colours, overlays and their scale")
    add("--dataset", metavar="JSON", help="COCO JSON that names images and classes of results")
    add("--class-name", default="Particle", metavar="NAME", help="of all labels of label images")
    add("--min-score", type=float, default=0.0, metavar="S", help="least score of results")
    add_run_arguments(parser)
    return parser.parse_args(arguments)


def _parser(about: str) -> argparse.ArgumentParser:
    summary, _, example = about.strip().partition("\n")
    return argparse.ArgumentParser(
        description=summary,
        epilog=example.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _free_port() -> int:
    """A port for the processes of one machine to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
