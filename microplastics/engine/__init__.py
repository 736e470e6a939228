"""Training and evaluation."""

from microplastics.engine.evaluate import evaluate
from microplastics.engine.launch import argument_parser, launch
from microplastics.engine.setup import setup
from microplastics.engine.trainer import Trainer

__all__ = ["Trainer", "argument_parser", "evaluate", "launch", "setup"]
