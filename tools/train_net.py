#!/usr/bin/env python
"""Train or evaluate, with the arguments of Detectron2's own train_net.py.

python tools/train_net.py --config-file configs/microplastics_r50.yaml --num-gpus 2
"""

import argparse
import sys

from microplastics.cli import run
from microplastics.engine import Trainer, argument_parser, evaluate, launch, setup


def main(args: argparse.Namespace) -> int:
    cfg = setup(args)
    if args.eval_only:
        evaluate(cfg, weights_given="MODEL.WEIGHTS" in args.opts)
        return 0
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    return trainer.signals.exit_code


if __name__ == "__main__":
    arguments = argument_parser(epilog=__doc__).parse_args(sys.argv[1:])
    run(lambda: launch(main, arguments))
