"""The training loop."""

import contextlib
import logging
import math
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from detectron2.utils.logger import setup_logger
from torch import nn

from microplastics.data.loader import TrainLoader, ValidationLoader, training_dicts
from microplastics.engine.checkpoint import (
    FINAL,
    TrainingCheckpointer,
    load_trainer_state,
    refuse_second_training,
    trainer_state,
)
from microplastics.engine.defaults import finalize_config
from microplastics.engine.distributed import distribute, share_buffers, unwrap
from microplastics.engine.events import (
    build_writers,
    check_metric_names,
    divergence,
    truncate_metrics,
    write_losses,
)
from microplastics.engine.hooks import (
    AdaptThreads,
    BestCheckpoint,
    EarlyStopping,
    PeriodicCheckpoints,
    PlateauLR,
    ValidationHook,
    Writers,
)
from microplastics.engine.solver import (
    amp_dtype,
    autocast,
    build_optimizer,
    clip_gradients,
    keep_boxes_fp32,
    set_schedule,
)
from microplastics.evaluation.coco import COCOEvaluator
from microplastics.evaluation.counting import CountingEvaluator
from microplastics.evaluation.image_metrics import BlankEvaluator, SemanticEvaluator
from microplastics.evaluation.validation import loss_names, validate
from microplastics.modeling.interface import check_architecture
from microplastics.utils.errors import UserError
from microplastics.utils.system import seed_all

logger = logging.getLogger(__name__)

# Iterations after which several processes agree on a signal.
_PERIOD = 10


class StopSignals:
    """SIGINT and SIGTERM as a request to stop; a second one acts at once.

    Attributes:
        name: of the signal that came; the same on all ranks once :meth:`agreed` was true.
    """

    def __init__(self):
        self.name: str | None = None

    def _note(self, number: int, _frame: Any) -> None:
        if self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        logger.warning("%s: finishing this iteration and saving …", self.name)

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals within the block."""
        before = {}
        # Only the main thread may handle signals.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, iteration: int) -> bool:
        """Return whether all ranks must stop now; call it on all ranks at the same iteration."""
        if comm.get_world_size() == 1:
            return self.name is not None
        if iteration % _PERIOD:
            return False
        names = [name for name in comm.all_gather(self.name) if name]
        if names:
            # Only then: a signal may have come while the ranks were gathering.
            self.name = names[0]
        return bool(names)

    @property
    def exit_code(self) -> int:
        """0, or 128 + signal number."""
        return 0 if self.name is None else 128 + signal.Signals[self.name]


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with validation loss, plateau LR, early stopping and resume.

    Constructor and loop are the project's own; ``build_model``, ``build_optimizer``,
    ``build_lr_scheduler``, ``build_train_loader``, ``build_test_loader``, ``build_evaluator``,
    ``build_hooks``, ``build_writers`` and ``test`` can be overridden as in ``DefaultTrainer``.

    Attributes:
        last_eval: ``(finished iterations, flat metrics)`` of the newest evaluation, equal on all
            ranks.
        finished: the loop came to its end by MAX_ITER or early stopping.
        signals: SIGINT and SIGTERM; ``signals.exit_code`` is the exit code of the command.
        lr_scale: factor of :class:`PlateauLR` on the scheduled LR.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: the config; it is made final here (:func:`finalize_config`, :func:`set_schedule`).

        Raises:
            UserError: data sets, metrics or batch size do not fit.
        """
        TrainerBase.__init__(self)
        # DefaultTrainer's properties model, data_loader and optimizer are stored in here.
        self._trainer = SimpleNamespace()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
            setup_logger(name="microplastics")
        cfg = finalize_config(cfg, ("TRAIN", "TEST") if cfg.DATASETS.TEST else ("TRAIN",))
        if cfg.TEST.AUG.ENABLED:
            logger.warning(
                "TEST.AUG is scored by microplastics evaluate; evaluations in training go without."
            )
        self.data_loader = self.build_train_loader(cfg)
        self.seed = getattr(self.data_loader, "seed", max(cfg.SEED, 0))
        self.schedule = set_schedule(cfg, _num_images(cfg, self.data_loader))
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER

        seed_all(self.seed)
        model = self.build_model(cfg)
        model.train()
        check_metric_names(cfg, lambda: self._loss_names(cfg, model))
        self.optimizer = self.build_optimizer(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self._base_lrs = list(self.scheduler.base_lrs)
        self.lr_scale = 1.0
        several = comm.get_world_size() > 1
        self.model = distribute(model, cfg.MODEL.DEVICE) if several else model
        self.grad_scaler = torch.amp.GradScaler("cuda") if amp_dtype(cfg) is torch.float16 else None
        class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
        side = getattr(self.data_loader, "image_side", None)
        self.checkpointer = TrainingCheckpointer(
            model, cfg, class_names, trainer=self, training_side=side
        )

        self.last_eval: tuple[int, dict[str, float]] | None = None
        self.finished_iters = 0
        self.finished = False
        self.signals = StopSignals()
        self._stop_reason: str | None = None
        self._batches: Iterator | None = None
        self.register_hooks(self.build_hooks())

    def _loss_names(self, cfg: CfgNode, model: nn.Module) -> list[str]:
        return loss_names(model, self.build_test_loader(cfg, cfg.DATASETS.TEST[0]), cfg)

    # Starting and resuming

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from OUTPUT_DIR, or load ``MODEL.WEIGHTS`` and start at iteration 0.

        Args:
            resume: continue from the newest complete checkpoint. If OUTPUT_DIR has none, training
                starts from the beginning, as in Detectron2, with a warning.

        Raises:
            UserError: the checkpoint does not fit, or ``resume`` is off and OUTPUT_DIR already
                holds a training, which would be lost.
        """
        self.checkpointer.remove_leftovers()
        if resume:
            path = self.checkpointer.resume()
            if path is not None:
                self.start_iter = self.finished_iters
                logger.info("Resuming from %s at iteration %d.", path, self.start_iter)
            self._agree_on_start(path)
            if comm.is_main_process() and self.start_iter < self.max_iter:
                truncate_metrics(self.cfg.OUTPUT_DIR, self.start_iter)
            if path is not None:
                return
            logger.warning(
                "There is no checkpoint in %s to resume from: training starts from the beginning.",
                self.cfg.OUTPUT_DIR,
            )
        else:
            refuse_second_training(self.cfg.OUTPUT_DIR)
        self.checkpointer.load_weights()

    def _agree_on_start(self, path: str | None) -> None:
        """Check that all ranks start from the same iteration."""
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise UserError(
                f"The processes found different checkpoints (this one {path or 'none'}; they would "
                f"start at iterations {starts}); put OUTPUT_DIR on a disk that all machines share.",
                code="checkpoint_mismatch",
            )

    def state_dict(self) -> dict[str, Any]:
        return trainer_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_trainer_state(self, state)

    # The loop

    def train(self) -> OrderedDict:
        """Train to MAX_ITER, early stop or a signal.

        Returns:
            The flat metrics of the last evaluation (empty if there was none).

        Raises:
            UserError: an image of the training set cannot be read, the loss is not finite, or a
                file cannot be written.
        """
        logger.info("Starting training from iteration %d", self.start_iter)
        self.iter = self.finished_iters = self.start_iter
        with self.signals.caught(), EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                self._batches = self._iterate_batches()
                self._loop()
            finally:
                self._batches = None
                self.after_train()
        return OrderedDict(self.last_eval[1] if self.last_eval else {})

    def _loop(self) -> None:
        while self.iter < self.max_iter and self._stop_reason is None:
            self.before_step()
            self.run_step()
            self.finished_iters = self.iter + 1
            self.after_step()
            self.iter += 1
            if self.signals.agreed(self.iter):
                self.checkpointer.save_periodic(self.iter - 1, self.cfg.SOLVER.CHECKPOINTS_TO_KEEP)
                logger.warning(
                    "%s: stopped after iteration %d; --resume continues from there.",
                    self.signals.name,
                    self.iter - 1,
                )
                return
        self.finished = True
        if self._stop_reason is not None:
            logger.info("Early stopping after iteration %d: %s.", self.iter - 1, self._stop_reason)

    def after_train(self) -> None:
        super().after_train()
        if self.finished:
            self.checkpointer.save(FINAL)

    def request_stop(self, reason: str) -> None:
        """End training after this iteration; call it on all ranks."""
        self._stop_reason = reason

    def set_lr_scale(self, scale: float) -> None:
        """Scale the LR schedule, from the next step on."""
        self.lr_scale = scale
        self.scheduler.base_lrs = [lr * scale for lr in self._base_lrs]
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = lr

    def run_step(self) -> None:
        """Run one iteration: batch, forward, backward, clip, step."""
        start = time.perf_counter()
        try:
            batch = next(self._batches)
        except UserError:
            # The weights of the last iteration are worth keeping.
            if self.iter > self.start_iter:
                self.checkpointer.save_periodic(self.iter - 1, self.cfg.SOLVER.CHECKPOINTS_TO_KEEP)
            raise
        data_time = time.perf_counter() - start

        seed_all(self.seed, comm.get_rank(), self.iter)
        try:
            with autocast(self.cfg):
                losses = self.model(batch)
                total = sum(losses.values())
        except FloatingPointError as error:  # Detectron2's RPN checks its own output
            files = [item["file_name"] for item in batch]
            raise divergence("Predicted boxes", self.iter, files, self.checkpointer) from error
        write_losses(losses, data_time, batch, self.checkpointer)

        self.optimizer.zero_grad(set_to_none=True)
        if self.grad_scaler is None:
            total.backward()
            self.after_backward()
            norm = clip_gradients(self.cfg, self.model)
            if norm is not None and not math.isfinite(norm):
                files = [item["file_name"] for item in batch]
                raise divergence("The gradient", self.iter, files, self.checkpointer)
            self.optimizer.step()
        else:
            self.grad_scaler.scale(total).backward()
            self.after_backward()
            self.grad_scaler.unscale_(self.optimizer)
            clip_gradients(self.cfg, self.model)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _iterate_batches(self) -> Iterator:
        if isinstance(self.data_loader, TrainLoader):
            return self.data_loader.iterate(self.start_iter)
        return iter(self.data_loader)

    # Parts that a subclass may replace

    def build_hooks(self) -> list[HookBase | None]:
        """Return the hooks in the order in which they must run, the same on every rank."""
        cfg, checkpointer = self.cfg, self.checkpointer
        best = cfg.SOLVER.BEST_CHECKPOINT.ENABLED
        deciding = [
            ValidationHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
            PlateauLR(cfg) if cfg.SOLVER.PLATEAU.ENABLED else None,
            BestCheckpoint(cfg, checkpointer) if best else None,
            EarlyStopping(cfg) if cfg.SOLVER.EARLY_STOPPING.ENABLED else None,
        ]
        return [
            AdaptThreads() if AdaptThreads.applies(cfg) else None,
            hooks.IterationTimer(),
            hooks.LRScheduler(self.optimizer, self.scheduler),
            self._precise_bn(),
            *(deciding if cfg.DATASETS.TEST else []),
            Writers(self.build_writers) if comm.is_main_process() else None,
            PeriodicCheckpoints(
                checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINTS_TO_KEEP
            ),
        ]

    def _evaluate(self) -> OrderedDict:
        share_buffers(self.model)
        return comm.all_gather(self.test(self.cfg, unwrap(self.model)))[0]

    def _precise_bn(self) -> HookBase | None:
        settings = self.cfg.TEST.PRECISE_BN
        if not settings.ENABLED:
            return None
        loader = self.build_train_loader(self.cfg)
        return hooks.PreciseBN(self.cfg.TEST.EVAL_PERIOD, self.model, loader, settings.NUM_ITER)

    def build_writers(self) -> list[EventWriter]:
        return build_writers(self.cfg, self.max_iter)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        check_architecture(cfg)
        model = build_model(cfg)
        if amp_dtype(cfg) is not None:
            keep_boxes_fp32(model)
        if cfg.MODEL.CHANNELS_LAST:
            model = model.to(memory_format=torch.channels_last)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        try:
            return super().build_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise UserError(
                f"SOLVER.LR_SCHEDULER_NAME and its keys do not fit ({error}); expected "
                "WarmupMultiStepLR or WarmupCosineLR.",
                code="config_invalid",
            ) from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return TrainLoader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> ValidationLoader:
        return ValidationLoader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | None = None
    ) -> DatasetEvaluator:
        """Build the evaluators: COCO AP, blanks, and for masks semantic figures and counts."""
        output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        evaluators = [
            COCOEvaluator(
                dataset_name,
                output_dir=output_dir,
                max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
                tasks=tasks,
            ),
            BlankEvaluator(dataset_name, score_threshold=cfg.TEST.BLANK_SCORE_THRESH),
        ]
        if cfg.MODEL.MASK_ON:
            evaluators.append(
                SemanticEvaluator(dataset_name, score_threshold=cfg.TEST.SEMANTIC_SCORE_THRESH)
            )
            if cfg.TEST.COUNTING.ENABLED:
                evaluators.append(CountingEvaluator.from_config(cfg, dataset_name, output_dir))
        return DatasetEvaluators(evaluators)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> OrderedDict:
        """Evaluate on every data set of DATASETS.TEST with one backbone pass an image.

        Args:
            cfg: the config.
            model: the model with its weights, wrapped in DDP or not.
            evaluators: one per test set; :meth:`build_evaluator`'s by default.

        Returns:
            Nested results on rank 0 (``{}`` on the others): ``validation`` (losses), ``bbox``,
            ``segm``, ``semantic``, ``counting``, and ``blank`` where there are blanks; below the
            name of the data set if there are several.
        """
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        results = OrderedDict()
        for number, name in enumerate(cfg.DATASETS.TEST):
            folder = os.path.join(cfg.OUTPUT_DIR, "inference")
            if len(cfg.DATASETS.TEST) > 1:
                folder = os.path.join(folder, "".join(c if c.isalnum() else "_" for c in name))
            evaluator = evaluators[number] if evaluators else cls.build_evaluator(cfg, name, folder)
            results[name] = validate(
                unwrap(model), cls.build_test_loader(cfg, name), evaluator, cfg
            )
        if len(results) == 1:
            return next(iter(results.values()))
        return results if comm.is_main_process() else OrderedDict()


def _num_images(cfg: CfgNode, loader: Any) -> float:
    if isinstance(loader, TrainLoader):
        return loader.images_per_epoch
    return len(training_dicts(cfg))
