#!/usr/bin/env python
"""Train or evaluate, with the arguments of Detectron2's own train_net.py.

python tools/train_net.py --config-file configs/microplastics_r50.yaml --num-gpus 2
"""

from microplastics.cli import run
from microplastics.cli.train import train_or_evaluate
from microplastics.engine import argument_parser, launch

if __name__ == "__main__":
    parser = argument_parser(epilog=__doc__)
    parser.add_argument("--no-report", action="store_true", help="write no evaluation.html")
    arguments = parser.parse_args()
    run(lambda: launch(train_or_evaluate, arguments))
