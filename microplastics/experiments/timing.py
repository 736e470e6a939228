"""The expected time of trainings that have not begun, from a few timed iterations."""

import itertools
import math
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from detectron2.config import CfgNode

from microplastics.data.loader import ValidationLoader
from microplastics.engine.trainer import Trainer
from microplastics.experiments.jobs import OUTPUT, Job, print_to, training_config
from microplastics.utils.system import process_context

ITERATIONS = 8
IMAGES = 8  # of the validation set


def expected_seconds(jobs: Sequence[Job]) -> list[float]:
    """Return the seconds that each job takes from start to end, found by running a little of it.

    Raises:
        UserError: a training cannot start.
    """
    if not jobs:
        return []
    with ProcessPoolExecutor(1, mp_context=process_context(__name__)) as pool:
        return list(pool.map(_probe, jobs))


def _probe(job: Job) -> float:
    with tempfile.TemporaryDirectory() as folder:
        print_to(Path(folder, OUTPUT))
        start = time.monotonic()
        trainer = _Probe(training_config(job._replace(folder=Path(folder))))
        trainer.resume_or_load(resume=False)
        cfg, iterations = trainer.cfg, trainer.max_iter
        preparation = time.monotonic() - start
        trainer.max_iter = min(ITERATIONS, iterations)
        trainer.train()
    evaluations = math.ceil(iterations / cfg.TEST.EVAL_PERIOD) if cfg.TEST.EVAL_PERIOD > 0 else 1
    # The first iterations allocate memory and choose algorithms.
    step = statistics.median(trainer.steps[2:] or trainer.steps)
    return preparation + iterations * step + evaluations * trainer.evaluation


class _Probe(Trainer):
    """A trainer that measures its steps, and its evaluation on a few images."""

    def __init__(self, cfg: CfgNode):
        self.steps: list[float] = []
        self.evaluation = 0.0
        super().__init__(cfg)

    def run_step(self) -> None:
        start = time.perf_counter()
        super().run_step()
        self.steps.append(time.perf_counter() - start)

    def _evaluate(self) -> OrderedDict:
        start = time.perf_counter()
        results = super()._evaluate()
        images = [len(Trainer.build_test_loader(self.cfg, n)) for n in self.cfg.DATASETS.TEST]
        fraction = sum(min(IMAGES, number) for number in images) / max(sum(images), 1)
        self.evaluation = (time.perf_counter() - start) / fraction
        return results

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> list[list[dict]]:
        loader: ValidationLoader = super().build_test_loader(cfg, dataset_name)
        return list(itertools.islice(loader, IMAGES))
