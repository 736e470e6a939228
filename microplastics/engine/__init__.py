"""Training and evaluation."""

from microplastics.engine.defaults import setup
from microplastics.engine.distributed import argument_parser, launch
from microplastics.engine.evaluate import evaluate
from microplastics.engine.trainer import Trainer

__all__ = ["Trainer", "argument_parser", "evaluate", "launch", "setup"]
