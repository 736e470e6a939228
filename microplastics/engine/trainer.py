"""The training loop."""

import contextlib
import logging
import math
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from microplastics.data.catalog import fiber_classes
from microplastics.data.doctor.model_fit import outlook
from microplastics.data.loader import TrainLoader, ValidationLoader, training_dicts
from microplastics.engine.averaging import ResumablePreciseBN, WeightAverage
from microplastics.engine.checkpoint import (
    FINAL,
    TrainingCheckpointer,
    load_optimizer_state,
    optimizer_state,
    refuse_second_training,
)
from microplastics.engine.defaults import amp_dtype, finalize_config, set_schedule
from microplastics.engine.distributed import distribute, share_buffers, unwrap
from microplastics.engine.events import MlflowWriter, WandbWriter, truncate_metrics
from microplastics.engine.hooks import (
    AdaptThreads,
    BestCheckpoint,
    EarlyStopping,
    PeriodicCheckpoints,
    PlateauLR,
    ValidationHook,
    ValidationPictures,
    Writers,
    check_metric_names,
)
from microplastics.engine.optimizer import FrozenLayers, UntilTheEnd, build_optimizer, freeze
from microplastics.evaluation.coco import COCOEvaluator
from microplastics.evaluation.counting import CountingEvaluator
from microplastics.evaluation.image_metrics import BlankEvaluator, SemanticEvaluator
from microplastics.evaluation.validation import first_predictions, loss_names, validate
from microplastics.modeling.interface import check_architecture, keep_boxes_fp32
from microplastics.utils.errors import UserError, check_option
from microplastics.utils.io import remove_leftovers
from microplastics.utils.system import seed_all, seeded

logger = logging.getLogger(__name__)

FULL_MODEL = "full_model"
# Iterations after which several processes agree on a signal.
_PERIOD = 10
_PICTURE_SIDE = 640  # px of each panel for TensorBoard
_OUTLOOK_MASKS = 50  # of each class, measured in about a second


class StopSignals:
    """SIGINT and SIGTERM as a request to stop; a second one acts at once."""

    # Of the signal that came; the same on all ranks once agreed() was true.
    name: str | None = None

    def _note(self, number: int, _frame: Any) -> None:
        if self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        logger.warning("%s: finishing this iteration and saving …", self.name)

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
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
        # A signal may have come while the ranks were gathering.
        self.name = names[0] if names else self.name
        return bool(names)

    @property
    def exit_code(self) -> int:
        """0, or 128 + signal number."""
        return 0 if self.name is None else 128 + signal.Signals[self.name]


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with validation loss, plateau LR, early stopping and resume.

    Constructor and loop are the project's own; ``test``, ``build_model`` and the other ``build_…``
    methods can be overridden as in ``DefaultTrainer``.

    Attributes:
        last_eval: ``(finished iterations, flat metrics)`` of the newest evaluation, equal on all
            ranks.
        finished: the loop came to its end by MAX_ITER or early stopping.
        signals: ``signals.exit_code`` is the exit code of the command.
        lr_scale: factor of :class:`PlateauLR` on the scheduled LR.
        average: of the weights, with SOLVER.EMA.ENABLED, else None.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: the config, not yet final; it is not changed.

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
        _check_accumulation(cfg)
        self.seed = getattr(self.data_loader, "seed", max(cfg.SEED, 0))
        images = getattr(self.data_loader, "images_per_epoch", None)
        self._images = images or len(training_dicts(cfg))
        set_schedule(cfg, self._images)
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER

        seed_all(self.seed)
        model = self.build_model(cfg)
        frozen_layers = freeze(cfg, model)
        model.train()
        check_metric_names(
            cfg, lambda: loss_names(model, self.build_test_loader(cfg, cfg.DATASETS.TEST[0]), cfg)
        )
        self.optimizer = self.build_optimizer(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self._base_lrs = list(self.scheduler.base_lrs)
        self.lr_scale = 1.0
        several = comm.get_world_size() > 1
        self.model = distribute(model, cfg.MODEL.DEVICE) if several else model
        self._device = torch.device(cfg.MODEL.DEVICE).type
        self._amp_dtype = amp_dtype(cfg)
        self.grad_scaler = torch.amp.GradScaler(enabled=self._amp_dtype is torch.float16)
        class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
        side = getattr(self.data_loader, "image_side", None)
        self.checkpointer = TrainingCheckpointer(
            model,
            cfg,
            class_names,
            trainer=self,
            training_side=side,
            fiber_classes=fiber_classes(cfg, cfg.DATASETS.TRAIN[0]),
        )

        self._frozen_layers = frozen_layers
        self.average = WeightAverage(model, cfg) if cfg.SOLVER.EMA.ENABLED else None
        if self.average is not None:
            self.checkpointer.averages = self.average.averages

        self.last_eval: tuple[int, dict[str, float]] | None = None
        self.finished_iters = 0
        self.finished = False
        self.signals = StopSignals()
        self._stop_reason: str | None = None
        self.register_hooks(self.build_hooks())

    # Starting and resuming

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from OUTPUT_DIR, or load ``MODEL.WEIGHTS`` and start at iteration 0.

        Without a checkpoint to resume from, training starts from the beginning with a warning.

        Raises:
            UserError: the checkpoint does not fit, or OUTPUT_DIR already holds a training.
        """
        if not resume:
            refuse_second_training(self.cfg.OUTPUT_DIR)
        if comm.is_main_process():
            remove_leftovers(self.cfg.OUTPUT_DIR, os.path.join(self.cfg.OUTPUT_DIR, "inference"))
        if resume:
            path = self.checkpointer.resume()
            if path is not None:
                self.start_iter = self.finished_iters
                logger.info("Resuming from %s at iteration %d.", path, self.start_iter)
            starts = comm.all_gather(self.start_iter)
            if len(set(starts)) > 1:
                raise UserError(
                    f"The processes found different checkpoints (this one {path or 'none'}; they "
                    f"would start at iterations {starts}); put OUTPUT_DIR on a disk that all "
                    "machines share.",
                    code="checkpoint_mismatch",
                )
            if comm.is_main_process() and self.start_iter < self.max_iter:
                truncate_metrics(self.cfg.OUTPUT_DIR, self.start_iter)
            if path is not None:
                return
            logger.warning(
                "There is no checkpoint in %s to resume from: training starts from the beginning.",
                self.cfg.OUTPUT_DIR,
            )
        self.checkpointer.load_weights()

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs, loadable with ``weights_only=True``."""
        state = TrainerBase.state_dict(self)
        # The state of Detectron2's LR hook follows from iteration and scale.
        state.setdefault("hooks", {}).pop("LRScheduler", None)
        state |= {
            "iteration": self.finished_iters - 1,
            "seed": self.seed,
            "lr_scale": self.lr_scale,
            "optimizer": optimizer_state(self.optimizer, unwrap(self.model)),
            "circumstances": self._circumstances(),
        }
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; other circumstances than then are logged as warnings."""
        ours = self._circumstances()
        for key, theirs in state["circumstances"].items():
            if ours.get(key) != theirs:
                logger.warning(
                    "Resuming under other circumstances: %s was %s and is %s; training continues, "
                    "but not bit for bit as it would have.",
                    key,
                    theirs,
                    ours.get(key),
                )
        self.finished_iters = state["iteration"] + 1
        self.seed = state["seed"]
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.seed = self.seed
        load_optimizer_state(self.optimizer, unwrap(self.model), state["optimizer"])
        if self.grad_scaler.is_enabled() and "grad_scaler" in state:
            self.grad_scaler.load_state_dict(state["grad_scaler"])
        self.scheduler.last_epoch = self.finished_iters
        self.set_lr_scale(state["lr_scale"])
        TrainerBase.load_state_dict(self, state)

    def _circumstances(self) -> dict[str, Any]:
        return {
            "Detectron2 build": detectron2.__version__,
            "torch": torch.__version__.split("+")[0],
            "number of processes": comm.get_world_size(),
            "device": self._device,
            # Sums over threads differ in their last bits.
            "number of threads": torch.get_num_threads() if self._device == "cpu" else None,
            "batch size": self.cfg.SOLVER.IMS_PER_BATCH,
            "SOLVER.ACCUMULATE": self.cfg.SOLVER.ACCUMULATE,
            "SOLVER.EMA": self.cfg.SOLVER.EMA.ENABLED and self.cfg.SOLVER.EMA.DECAY,
            "training images": self._images,
            "MAX_ITER": self.max_iter,
            "precision": str(self._amp_dtype or torch.float32),
        }

    # The loop

    def log_outlook(self, config_file: str = "") -> None:
        """Log what the training will see of its data set, and how to let it see more.

        Args:
            config_file: name of the config, for the command that suggests a better one.
        """
        dicts = getattr(self.data_loader, "dataset_dicts", None)
        if not dicts or not comm.is_main_process():
            return
        sight = outlook(self.cfg, dicts, config_file, images=self._images, sample=_OUTLOOK_MASKS)
        logger.info("\n".join(sight.lines()))
        if sight.wants_better:
            logger.warning(
                "Other settings would let this training see more; microplastics train "
                "%s--suggest better.yaml writes them, with the reasons.",
                f"--config-file {config_file} " if config_file else "",
            )

    def train(self) -> OrderedDict:
        """Train to MAX_ITER, early stop or a signal; return the last evaluation's flat metrics.

        Raises:
            UserError: an image cannot be read, the loss is not finite, a file cannot be written.
        """
        logger.info("Starting training from iteration %d", self.start_iter)
        self.iter = self.finished_iters = self.start_iter
        with self.signals.caught(), EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                self._batches = self.batches_from(self.data_loader, self.start_iter)
                self._loop()
            finally:
                self._batches = None
                self.after_train()
            if self.finished:
                self.checkpointer.save(FINAL)
        return OrderedDict(self.last_eval[1] if self.last_eval else {})

    def _loop(self) -> None:
        while self.iter < self.max_iter and self._stop_reason is None:
            self.before_step()
            self.run_step()
            self.finished_iters = self.iter + 1
            self.after_step()
            self.iter += 1
            if self.signals.agreed(self.iter):
                self.checkpointer.save_periodic(self.iter - 1)
                logger.warning(
                    "%s: stopped after iteration %d; --resume continues from there.",
                    self.signals.name,
                    self.iter - 1,
                )
                return
        self.finished = True
        if self._stop_reason is not None:
            logger.info("Early stopping after iteration %d: %s.", self.iter - 1, self._stop_reason)

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
        """Run one iteration."""
        start = time.perf_counter()
        try:
            batch = next(self._batches)
        except UserError:
            # The weights of the last iteration are worth keeping.
            if self.iter > self.start_iter:
                self.checkpointer.save_periodic(self.iter - 1)
            raise
        data_time = time.perf_counter() - start
        seed_all(self.seed, comm.get_rank(), self.iter)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(batch)
        broken = [name for name, loss in losses.items() if not math.isfinite(loss.item())]
        # All ranks stop together, for one that goes on would wait for ever.
        found = [each for each in comm.all_gather((broken, _files(batch))) if each[0]]
        if found:
            names = dict.fromkeys(name for each, _ in found for name in each)
            files = [file for _, each in found for file in each]
            raise self._divergence(" and ".join(names), files)
        SimpleTrainer.write_metrics(losses, data_time, self.iter)
        # The particles that augmentations left too little of, if any.
        dropped = sum(item.get("dropped_instances", 0) for item in batch)
        if dropped or "dropped_instances" in self.storage.histories():
            self.storage.put_scalar("dropped_instances", dropped)

        self.after_backward()
        self.grad_scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.cfg, self.model)
        # With fp16 the scaler leaves out such a step and lowers its scale.
        if not (self.grad_scaler.is_enabled() or norm is None or math.isfinite(norm)):
            raise self._divergence("The gradient", _files(batch))
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Compute gradients in SOLVER.ACCUMULATE equal parts of a batch; return the mean losses."""
        number = self.cfg.SOLVER.ACCUMULATE
        length, means = len(batch) // number, {}
        for start in range(0, len(batch), length):
            part, last = batch[start : start + length], start + length == len(batch)
            # The ranks exchange their gradients once, with the last part.
            waiting = isinstance(self.model, DistributedDataParallel) and not last
            with self.model.no_sync() if waiting else contextlib.nullcontext():
                try:
                    with torch.autocast(self._device, self._amp_dtype, self._amp_dtype is not None):
                        losses = self.model(part)
                        total = sum(losses.values())
                except FloatingPointError as error:  # Detectron2's RPN checks its own output
                    raise self._divergence("Predicted boxes", _files(part)) from error
                self.grad_scaler.scale(total / number).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() / number
        return means

    def _divergence(self, what: str, files: list[str]) -> UserError:
        """Return the error of numbers that are not finite any more."""
        last = (self.checkpointer.resumable() or ["none yet"])[0]
        return UserError(
            f"{what} became infinite or NaN at iteration {self.iter} with the images "
            f"{', '.join(files)}; last checkpoint: {last}. Lower "
            "SOLVER.BASE_LR, or check the annotations of these images.",
            code="training_failed",
        )

    @staticmethod
    def batches_from(loader: Iterable, iteration: int) -> Iterator:
        """Iterate a loader of batches from an iteration on, if it can start anywhere."""
        return loader.iterate(iteration) if isinstance(loader, TrainLoader) else iter(loader)

    # Parts that a subclass may replace

    def build_hooks(self) -> list[HookBase | None]:
        """Return the hooks in the order in which they must run, the same on every rank."""
        cfg, solver = self.cfg, self.cfg.SOLVER
        draws = cfg.TEST.PICTURES > 0 and comm.is_main_process()
        deciding = [
            ValidationHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
            PlateauLR(cfg) if solver.PLATEAU.ENABLED else None,
            BestCheckpoint(cfg, self.checkpointer) if solver.BEST_CHECKPOINT.ENABLED else None,
            EarlyStopping(cfg) if solver.EARLY_STOPPING.ENABLED else None,
            ValidationPictures(self._pictures) if draws else None,
        ]
        return [
            AdaptThreads() if AdaptThreads.applies(cfg) else None,
            FrozenLayers(self._frozen_layers) if self._frozen_layers else None,
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self.average,
            self._precise_bn(),
            *(deciding if cfg.DATASETS.TEST else []),
            Writers(self.build_writers) if comm.is_main_process() else None,
            PeriodicCheckpoints(self.checkpointer, solver.CHECKPOINT_PERIOD),
        ]

    def _evaluate(self) -> OrderedDict:
        with self.average.applied() if self.average else contextlib.nullcontext():
            share_buffers(self.model)
            return comm.all_gather(self.test(self.cfg, unwrap(self.model)))[0]

    def _pictures(self) -> Iterator[tuple[str, np.ndarray]]:
        """Draw predictions beside the truth, without a trace in the random numbers of training."""
        # Imported here: matplotlib is not needed before.
        from microplastics.visualization.galleries import compare, read_rgb

        cfg, name = self.cfg, self.cfg.DATASETS.TEST[0]
        averaged = self.average.applied() if self.average else contextlib.nullcontext()
        with averaged, seeded(0, device=cfg.MODEL.DEVICE):
            loader = self.build_test_loader(cfg, name)
            pairs = first_predictions(unwrap(self.model), loader, cfg, cfg.TEST.PICTURES)
        dicts = {each["image_id"]: each for each in DatasetCatalog.get(name)}
        least = cfg.TEST.COUNTING.SCORE_THRESH
        for item, found in pairs:
            dic, kept = dicts[item["image_id"]], found[found.scores >= least].to("cpu")
            image = read_rgb(dic, cfg.INPUT.MAX_PIXELS)
            picture = compare(image, dic, kept, MetadataCatalog.get(name), least, _PICTURE_SIDE)
            yield f"validation/{os.path.basename(dic['file_name'])}", picture

    def _precise_bn(self) -> HookBase | None:
        settings = self.cfg.TEST.PRECISE_BN
        if not settings.ENABLED:
            return None
        loader, period = self.build_train_loader(self.cfg), self.cfg.TEST.EVAL_PERIOD
        return ResumablePreciseBN(period, self.model, loader, settings.NUM_ITER)

    def build_writers(self) -> list[EventWriter]:
        """Build Detectron2's terminal, ``metrics.json`` and TensorBoard, and those of WRITERS."""
        writers = super().build_writers()
        if self.cfg.WRITERS.WANDB.ENABLED:
            writers.append(WandbWriter(self.cfg))
        if self.cfg.WRITERS.MLFLOW.ENABLED:
            writers.append(MlflowWriter(self.cfg))
        return writers

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
        # Detectron2 does not know full_model: its own "norm" clips each parameter by itself.
        if cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == FULL_MODEL:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        try:
            scheduler = super().build_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise UserError(
                f"SOLVER.LR_SCHEDULER_NAME and its keys do not fit ({error}); expected "
                "WarmupMultiStepLR, WarmupCosineLR or WarmupStepWithFixedGammaLR.",
                code="config_invalid",
            ) from error
        scheduler._multiplier = UntilTheEnd(scheduler._multiplier)
        return scheduler

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
        evaluators: list[DatasetEvaluator] = [
            COCOEvaluator(dataset_name, output_dir, cfg.TEST.DETECTIONS_PER_IMAGE, tasks),
            BlankEvaluator(dataset_name, cfg.TEST.BLANK_SCORE_THRESH),
        ]
        if cfg.MODEL.MASK_ON:
            evaluators.append(SemanticEvaluator(dataset_name, cfg.TEST.SEMANTIC_SCORE_THRESH))
            if cfg.TEST.COUNTING.ENABLED:
                evaluators.append(CountingEvaluator.from_config(cfg, dataset_name, output_dir))
        return DatasetEvaluators(evaluators)

    @classmethod
    def build_evaluators(cls, cfg: CfgNode, folder: str) -> Iterator[DatasetEvaluator]:
        """Build the evaluators of the test sets one by one; they write below OUTPUT_DIR/folder."""
        for name, path in evaluation_folders(cfg, folder).items():
            yield cls.build_evaluator(cfg, name, path)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> OrderedDict:
        """Evaluate on every data set of DATASETS.TEST with one backbone pass an image.

        Args:
            cfg: the config.
            model: the model with its weights, wrapped in DDP or not.
            evaluators: one per test set; :meth:`build_evaluator`'s by default.

        Returns:
            Nested results on rank 0 (``{}`` on the others), of :func:`validate`; below the name of
            the data set if there are several.
        """
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        elif evaluators is None:
            evaluators = cls.build_evaluators(cfg, "inference")
        results = OrderedDict()
        for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
            loader = cls.build_test_loader(cfg, name)
            results[name] = validate(unwrap(model), loader, evaluator, cfg)
        if len(results) == 1:
            return next(iter(results.values()))
        return results if comm.is_main_process() else OrderedDict()


def evaluation_folders(cfg: CfgNode, folder: str = "inference") -> dict[str, str]:
    """Name the folder below OUTPUT_DIR of each data set of DATASETS.TEST."""
    path, names = os.path.join(cfg.OUTPUT_DIR, folder), cfg.DATASETS.TEST
    if len(names) == 1:
        return {names[0]: path}
    plain = ("".join(c if c.isalnum() else "_" for c in name) for name in names)
    return {name: os.path.join(path, each) for name, each in zip(names, plain, strict=True)}


def _files(batch: list[dict[str, Any]]) -> list[str]:
    return [item["file_name"] for item in batch]


def _check_accumulation(cfg: CfgNode) -> None:
    images, number = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), cfg.SOLVER.ACCUMULATE
    expected = f"a divisor of the {images} images that SOLVER.IMS_PER_BATCH gives each process"
    fits = number > 0 and images % number == 0
    check_option(fits, "SOLVER.ACCUMULATE", number, expected, "config_invalid")


def clip_gradients(cfg: CfgNode, model: nn.Module) -> float | None:
    """Scale all gradients so that their norm, which is returned, is at most ``CLIP_VALUE``.

    ``None`` if the config does not ask for it.
    """
    settings = cfg.SOLVER.CLIP_GRADIENTS
    if not settings.ENABLED or settings.CLIP_TYPE != FULL_MODEL:
        return None
    norm = nn.utils.clip_grad_norm_(model.parameters(), settings.CLIP_VALUE, settings.NORM_TYPE)
    return float(norm)
