#!/usr/bin/env python
"""Write a trained model as a TorchScript or ONNX file that runs without Detectron2.

python tools/export_model.py --weights output/demo/model/model_best.pth --format onnx \
    --output model.onnx
"""

import argparse

from microplastics.cli import run
from microplastics.export.export import FORMATS, export_model
from microplastics.runs.run import make_predictor


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE", help="checkpoint of training")
    add(
        "--config-file", default="", metavar="FILE", help="config; the checkpoint's own if left out"
    )
    add("--format", required=True, choices=FORMATS)
    add("--output", required=True, metavar="FILE", help=".onnx; .ts, .pt or .torchscript")
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="the one size in px of an ONNX file's input (default: any)",
    )
    add("--dynamic", action="store_true", help="any size in spite of --size")
    add(
        "--confidence-threshold",
        type=float,
        metavar="S",
        help="least score of a particle (default: the checkpoint's own, else 0.5)",
    )
    add("--opts", nargs=argparse.REMAINDER, default=[], help="config KEY VALUE pairs")
    return parser.parse_args()


def main() -> None:
    """Export, then say what was written and what was checked."""
    args = parse()
    args.mask_threshold, args.precision, args.batch_size = 0.5, "fp32", 1
    args.opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    about = export_model(make_predictor(args), args.output, args.format, args.size, args.dynamic)
    check, (_, height, width) = about["check"], about["input"]["shape"]
    print(
        f"{args.output}: {args.format}, uint8 {about['input']['channels']} (3, {height}, {width})"
    )
    print(
        f"{check['detections']} detections on {check['pictures']} rendered pictures as the "
        f"checkpoint has them: {check['unmatched']} unmatched, boxes within "
        f"{check['boxes_px']:.1g} px, scores within {check['scores']:.1g}, "
        f"{check['mask_pixels_share']:.1g} of the mask pixels differ"
    )
    if not check["detections"]:
        print("Nothing there was scored above the thresholds: compare on photographs of your own")


if __name__ == "__main__":
    run(main)
