"""Training and evaluation."""

from microplastics.engine.evaluate import evaluate
from microplastics.engine.launch import launch
from microplastics.engine.setup import setup
from microplastics.engine.trainer import Trainer

__all__ = ["Trainer", "evaluate", "launch", "setup"]
