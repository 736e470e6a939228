"""From images to the particles on them."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from detectron2.structures import Instances

from microplastics.data.catalog import class_colors
from microplastics.engine.checkpoint import checkpoint_info_of
from microplastics.engine.checkpoint_config import (
    class_names_of,
    config_of,
    is_score,
    score_thresholds_of,
)
from microplastics.engine.precision import cpu_has_bf16
from microplastics.engine.setup import resolve_device
from microplastics.engine.weights import fetch_weights, load_into, read_weights, sha256_of
from microplastics.errors import UserError
from microplastics.inference.inputs import Image, InputReader, NetworkInput
from microplastics.inference.predictions import Predictions
from microplastics.inference.stream import stream
from microplastics.modeling.inference_detector import Detector
from microplastics.modeling.inference_model import PRECISIONS, inference_copy
from microplastics.modeling.postprocess import postprocess
from microplastics.structures.crop_masks import CropMasks

logger = logging.getLogger(__name__)

_GPU_BATCH = 8


class Predictor:
    """A trained model, ready for images.

    Gives what Detectron2's ``DefaultPredictor`` gives for the same config, with
    ``MODEL.ROI_HEADS.SCORE_THRESH_TEST`` at the lowest score threshold, faster and with masks as
    :class:`CropMasks`: the same pixels, and with ``optimize=False`` the same bits.

    Attributes:
        cfg: frozen; MODEL.DEVICE is a device that is there.
        class_names: K names.
        score_thresholds: (K,) float64; a particle is scored above its class's.
        mask_threshold: mask probability from which a pixel belongs to the particle.
        precision: ``"fp32"`` or ``"bf16"``.
        batch_size: images of like size that go through the model at once.
        weights_sha256: of the file behind MODEL.WEIGHTS.
        info: what the checkpoint says of itself; empty for one of another project.
        metadata: class names and colours for Detectron2's ``Visualizer``.
    """

    def __init__(
        self,
        cfg: CfgNode,
        class_names: Sequence[str] | None = None,
        *,
        score_threshold: float | Mapping[str, float] | None = None,
        mask_threshold: float = 0.5,
        precision: str = "fp32",
        batch_size: int | None = None,
        optimize: bool = True,
        _checkpoint: dict[str, Any] | None = None,
    ):
        """
        Args:
            cfg: with MODEL.WEIGHTS; without a GPU MODEL.DEVICE falls back to the CPU.
            class_names: those in the checkpoint, else those of DATASETS.TEST, if None.
            score_threshold: one for all classes, or by class name (config's for the rest); if
                None those in the checkpoint, else MODEL.ROI_HEADS.SCORE_THRESH_TEST.
            mask_threshold: above 0 and below 1.
            precision: ``"fp32"``, or ``"bf16"``: about 0.6 of the time on processors and GPUs that
                have it, with box coordinates and scores in fp32.
            batch_size: 1 on the CPU and 8 on a GPU if None.
            optimize: fold norms and use the NHWC order (scores differ by about 1e-5).
            _checkpoint: of :meth:`from_checkpoint`, already read.

        Raises:
            UserError: the weights cannot be read or do not fit, or an argument is wrong.
        """
        if not cfg.MODEL.WEIGHTS:
            raise UserError("MODEL.WEIGHTS is empty: name a checkpoint to predict with.")
        source = cfg.MODEL.WEIGHTS
        path = fetch_weights(source)
        checkpoint = _checkpoint or read_weights(path, cfg.MODEL.WEIGHTS_SHA256)
        info = checkpoint.get("microplastics")
        self.info: dict[str, Any] = dict(info) if isinstance(info, dict) else {}
        self.weights_sha256 = sha256_of(path)
        self.class_names = _class_names(cfg, class_names, self.info, source)
        self.metadata = Metadata(
            thing_classes=self.class_names, thing_colors=class_colors(self.class_names)
        )
        default = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
        if score_threshold is None:
            score_threshold = score_thresholds_of(self.info, source, self.class_names)
        self.score_thresholds = _thresholds(score_threshold, self.class_names, default)
        self.mask_threshold = _checked_mask_threshold(mask_threshold)
        self.cfg = _with_score_threshold(resolve_device(cfg), min(self.score_thresholds))
        self.precision = _checked_precision(precision, optimize, self.cfg.MODEL.DEVICE)
        self.batch_size = _checked_batch_size(batch_size, self.cfg.MODEL.DEVICE)
        self._read = InputReader(self.cfg)
        model = _build(self.cfg, checkpoint, source).eval()
        load_into(model, checkpoint, source, new_classes=False)
        self._divisor = max(1, getattr(getattr(model, "backbone", None), "size_divisibility", 1))
        if optimize:
            model = inference_copy(model, precision)
        self._detector = Detector(model, self.score_thresholds)
        if not self._detector.staged and self.mask_threshold != 0.5:
            raise UserError(
                f"{self.cfg.MODEL.META_ARCHITECTURE} pastes its masks by itself, at 0.5; leave "
                "the mask threshold at 0.5."
            )

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike, opts: Sequence[str] = (), **kwargs: Any
    ) -> "Predictor":
        """Make a predictor of a ``.pth`` of this project's training alone.

        Config, class names and score thresholds come out of the file, as data: no code in it is
        run, and no other file that it names is opened.

        Args:
            path: the checkpoint.
            opts: config ``KEY VALUE`` pairs on top of its own.
            kwargs: of :class:`Predictor`.

        Raises:
            UserError: it cannot be read, or carries no config or a wrong one.
        """
        path = os.fspath(path)
        checkpoint = read_weights(fetch_weights(path))
        cfg = config_of(checkpoint_info_of(checkpoint, path), path, opts)
        # A digest in there is that of the file which its training started from.
        cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_SHA256 = path, ""
        cfg.freeze()
        return cls(cfg, _checkpoint=checkpoint, **kwargs)

    @property
    def model(self) -> torch.nn.Module:
        """The network, in evaluation mode; optimized unless ``optimize`` was off."""
        return self._detector.model

    @property
    def windows_cut_short(self) -> int:
        """Windows so far that may hold more than ``dense`` could find; see ``predict_many``."""
        return self._detector.windows_cut_short

    def __call__(self, image: Image | Sequence[Image]) -> Predictions | list[Predictions]:
        """Predict on one image, or on a list of them.

        Args:
            image: a path, or an array (H, W), (H, W, 1), BGR (H, W, 3) or BGRA (H, W, 4). What is
                not uint8 is stretched over the image, see :mod:`microplastics.data.images`.

        Returns:
            :class:`Predictions` in px of the image, or a list of them.

        Raises:
            UserError: a file cannot be read.
            ValueError: an array is no image.
        """
        if isinstance(image, (list, tuple)):
            return list(self.predict_many(image))
        (predictions,) = self.predict_many([image])
        return predictions

    def predict_many(
        self, images: Iterable[Image], *, dense: bool = False, scale: float | None = None
    ) -> Iterator[Predictions]:
        """Predict on any number of images, with a few of them in memory.

        Images are read and resized in a thread ahead of the model, and masks pasted in one behind
        it.

        Args:
            images: as :meth:`__call__` takes them; drawn from in another thread.
            dense: for windows of a large image: no cap on the detections of one
                (TEST.DETECTIONS_PER_IMAGE), and those on proposals raised where they are in the
                way.
            scale: factor on the sides of all images; by INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST,
                which follow the sides of each, if None.

        Yields:
            :class:`Predictions` in the order of the images.

        Raises:
            UserError, ValueError: as :meth:`__call__`, after the results of the images before.
        """
        if scale is not None and not 0 < scale < float("inf"):
            raise ValueError(f"The scale is {scale}; it must be positive")

        def run(batch: Sequence[NetworkInput]) -> list[Instances]:
            tensors, sizes = [each.tensor for each in batch], [each.size for each in batch]
            return self._detector(tensors, sizes, dense)

        return stream(
            images,
            prepare=lambda image: self._read(image, scale),
            run=run,
            finish=self._finish,
            kind=self._padded_size,
            batch_size=self.batch_size,
        )

    def _padded_size(self, image: NetworkInput) -> tuple[int, ...]:
        # Within one of these, an image gets no other padding in a batch than on its own.
        return tuple(-(-side // self._divisor) for side in image.tensor.shape[1:])

    def _finish(self, image: NetworkInput, raw: Instances) -> Predictions:
        raw = raw.to("cpu")
        if self._detector.staged:
            result = postprocess(raw, *image.size, self.mask_threshold)
        else:
            # Cloned: tensors of inference mode could not be changed in place.
            result = raw[torch.arange(len(raw))]
            if result.has("pred_masks"):
                result.pred_masks = CropMasks.from_bitmasks(result.pred_masks)
        return Predictions(image.size, **result.get_fields())


def _with_score_threshold(cfg: CfgNode, threshold: float) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(threshold)
    cfg.freeze()
    return cfg


def _checked_mask_threshold(threshold: float) -> float:
    if not (is_score(threshold) and 0 < threshold < 1):
        raise UserError(f"The mask threshold is {threshold}; give one between 0 and 1.")
    return float(threshold)


def _checked_batch_size(batch_size: int | None, device: str) -> int:
    if batch_size is None:
        return 1 if torch.device(device).type == "cpu" else _GPU_BATCH
    if batch_size < 1:
        raise UserError(f"The batch size is {batch_size}; give 1 or more.")
    return batch_size


def _checked_precision(precision: str, optimize: bool, device: str) -> str:
    if precision not in PRECISIONS:
        raise UserError(f"The precision is {precision!r}; use {' or '.join(PRECISIONS)}.")
    if precision == "bf16":
        if not optimize:
            raise UserError("The precision bf16 is one of the optimizations: leave those on.")
        if torch.device(device).type == "cpu" and not cpu_has_bf16():
            logger.warning("This processor has no bf16 instructions: fp32 is faster here.")
    return precision


def _class_names(
    cfg: CfgNode, given: Sequence[str] | None, info: Mapping[str, Any], source: str
) -> list[str]:
    retina = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    count = cfg.MODEL.RETINANET.NUM_CLASSES if retina else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    names = list(given) if given is not None else class_names_of(info, source)
    if names is None:
        names = _names_of_dataset(cfg, count)
    if len(names) != count or len(set(names)) != count:
        where = "given" if given is not None else f"in {source}"
        raise UserError(
            f"The class names {where} are {', '.join(names[:20])}, but the config has "
            f"{count} classes; name each class once, or set MODEL.ROI_HEADS.NUM_CLASSES."
        )
    return names


def _names_of_dataset(cfg: CfgNode, count: int) -> list[str]:
    for name in cfg.DATASETS.TEST:
        if name in DatasetCatalog.list():
            names = MetadataCatalog.get(name).get("thing_classes", ())
            if len(names) == count:
                return list(names)
    logger.warning("The classes of %s have no names: they get numbers.", cfg.MODEL.WEIGHTS)
    return [f"class {number + 1}" for number in range(count)]


def _thresholds(
    threshold: float | Mapping[str, float] | None, class_names: Sequence[str], default: float
) -> np.ndarray:
    if threshold is None:
        threshold = {}
    by_name = threshold if isinstance(threshold, Mapping) else dict.fromkeys(class_names, threshold)
    for name, value in by_name.items():
        if name not in class_names:
            raise UserError(
                f"A score threshold is for {name}, which is no class of the model; its classes "
                f"are {', '.join(class_names)}."
            )
        if not is_score(value):
            raise UserError(f"The score threshold of {name} is {value}; give one from 0 to 1.")
    return np.array([by_name.get(name, default) for name in class_names], dtype=np.float64)


def _build(cfg: CfgNode, checkpoint: Mapping[str, Any], source: str) -> torch.nn.Module:
    """The model of a config, with no more parameters than the checkpoint can fill."""
    shell = cfg.clone()
    shell.defrost()
    shell.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            needed = sum(p.numel() for p in build_model(shell).parameters())
        held = sum(int(np.prod(value.shape)) for value in checkpoint["model"].values())
        # A wrong number in a config asks for more memory than any machine has.
        if needed > 2 * held + 1_000_000:
            raise UserError(
                f"{source} does not fit its config, which makes a model of {needed:,} parameters "
                f"where the file holds {held:,}; use a checkpoint of the same architecture."
            )
        return build_model(cfg)
    except UserError:
        raise
    except Exception as error:
        # Detectron2 answers wrong values with whatever the layer at hand raises.
        words = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"The config for {source} makes no model ({type(error).__name__}: {words}); correct "
            "its MODEL keys."
        ) from error
