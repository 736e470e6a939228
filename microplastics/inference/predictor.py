"""Prediction with a trained model."""

import functools
import logging
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from detectron2.structures import Instances

from microplastics.data.colors import class_colors
from microplastics.data.images import MAX_PIXELS, read_image, to_uint8
from microplastics.data.painting import paint_scale_bars
from microplastics.engine.checkpoint import (
    checkpoint_info_of,
    class_names_of,
    config_of,
    fetch_weights,
    fiber_classes_of,
    is_score,
    load_into,
    read_weights,
    score_thresholds_of,
    training_side_of,
)
from microplastics.engine.defaults import cpu_has_bf16
from microplastics.inference.detector import PRECISIONS, Detector, inference_copy
from microplastics.measurement.shape import choose_fiber_classes, is_fiber_class
from microplastics.modeling.interface import (
    build_shapes,
    check_architecture,
    class_node,
    num_classes,
    predicts_masks,
)
from microplastics.modeling.postprocessing import to_image
from microplastics.modeling.test_time_augmentation import TestTimeAugmentation
from microplastics.structures.particles import Particles
from microplastics.structures.view import tight
from microplastics.utils.errors import UserError
from microplastics.utils.io import sha256_of
from microplastics.utils.system import available_device

logger = logging.getLogger(__name__)

_GPU_BATCH = 8
_END = object()

Image = np.ndarray | str | os.PathLike
Input = tuple[torch.Tensor, tuple[int, int]]


class Predictions(Instances):
    """Detectron2's ``Instances`` of one image, on the CPU, best score first.

    Fields: ``pred_boxes`` in px of the image, ``scores``, ``pred_classes`` (from 0) and, if the
    model predicts masks, ``pred_masks`` (:class:`CropMasks`). Detectron2's ``Visualizer`` takes
    them as they are.
    """

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays, named as by torchvision.

        Returns:
            ``masks`` (N, H, W) bool, ``labels`` (N,) int64 from 1 to K, ``scores`` (N,) float32
            and ``boxes`` (N, 4) float32 x0, y0, x1, y1 in px. The masks take N * H * W bytes; a
            model without masks gives none.
        """
        arrays = {
            "labels": self.pred_classes.cpu().numpy().astype(np.int64) + 1,
            "scores": self.scores.cpu().numpy().astype(np.float32),
            "boxes": self.pred_boxes.tensor.cpu().numpy().astype(np.float32),
        }
        if self.has("pred_masks"):
            arrays["masks"] = self.pred_masks.to_bitmasks().numpy()
        return arrays

    def __getitem__(self, item: Any) -> "Predictions":
        """Select instances by number, slice, a bool vector or a vector of numbers."""
        return _typed(super().__getitem__(item))

    def to(self, *args: Any, **kwargs: Any) -> "Predictions":
        """Do what ``Instances.to`` does; the masks stay on the CPU."""
        return _typed(super().to(*args, **kwargs))

    @staticmethod
    def cat(instance_lists: Sequence[Instances]) -> "Predictions":
        """Concatenate predictions of the same image."""
        return _typed(Instances.cat(list(instance_lists)))


def _typed(instances: Instances) -> Predictions:
    return Predictions(instances.image_size, **instances.get_fields())


def read_input(image: Image, cfg: CfgNode, scale: float | None = None) -> Input:
    """Read, convert and resize an image by the keys INPUT of a config.

    Args:
        image: as :meth:`Predictor.__call__` takes it; the errors are the same.
        cfg: of the model.
        scale: factor on its sides; by INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST if None.

    Returns:
        The network's input, (3, H, W) uint8 or float32, 0 to 255, in the order of INPUT.FORMAT;
        and the height and width in px that the image had.
    """
    image = read_bgr(image, cfg.INPUT.MAX_PIXELS)
    height, width = size = image.shape[:2]
    side = cfg.INPUT.MIN_SIZE_TEST
    if scale is not None:
        size = int(height * scale + 0.5), int(width * scale + 0.5)
    elif side:
        largest = cfg.INPUT.MAX_SIZE_TEST
        size = T.ResizeShortestEdge.get_output_shape(height, width, side, largest)
    # An image a thousand times as long as wide would vanish.
    size = max(1, size[0]), max(1, size[1])
    if cfg.INPUT.FORMAT == "RGB":
        image = image[:, :, ::-1]
    if size != (height, width):
        if size[0] * size[1] > MAX_PIXELS:
            raise UserError(
                f"The image is {width} x {height} px and would be resized to {size[1]} x "
                f"{size[0]} px; lower INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST.",
                code="image_too_large",
            )
        image = T.ResizeTransform(height, width, *size).apply_image(image)
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return tensor, (height, width)


def read_bgr(image: Image, max_pixels: int | None = None) -> np.ndarray:
    """Read or convert an image to uint8 BGR (H, W, 3); arguments as of :func:`read_input`."""
    if isinstance(image, (str, os.PathLike)):
        image = read_image(image, max_pixels=max_pixels)
    return _to_bgr(image)


def _to_bgr(array: np.ndarray) -> np.ndarray:
    """Convert an image array to 8-bit BGR (H, W, 3), as ``read_image`` does."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(
            f"The image is {kind}; expected a path or an array of bool, integers or floats"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise ValueError(
            f"The shape of the image is {array.shape}; expected (H, W), (H, W, 1), (H, W, 3) or "
            "(H, W, 4) with pixels"
        )
    array = to_uint8(array[:, :, :3])
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


class Predictor:
    """A trained model, ready for images.

    Gives what Detectron2's ``DefaultPredictor`` gives for the same config, with
    ``MODEL.ROI_HEADS.SCORE_THRESH_TEST`` at the lowest score threshold, faster and with masks as
    :class:`CropMasks`: the same pixels, and with ``optimize=False`` the same bits.

    Attributes:
        cfg: frozen; MODEL.DEVICE is available.
        class_names: K names.
        fiber_classes: those of them that are measured along their centreline.
        training_side: shorter side of the training images in px; None if that is not known.
        score_thresholds: (K,) float64; a particle is scored above its class's.
        has_masks: the model predicts masks; else predictions have boxes only.
        mask_threshold, precision, batch_size: as given.
        weights_sha256: of the file behind MODEL.WEIGHTS.
        info: metadata of the checkpoint, with iteration and scores if it is a training's best one;
            empty for one of another project.
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
        _build_model: Callable[[CfgNode], torch.nn.Module] | None = None,
    ):
        """
        Args:
            cfg: with MODEL.WEIGHTS; without a GPU MODEL.DEVICE falls back to the CPU.
            class_names: if None the checkpoint's, else DATASETS.TEST's.
            score_threshold: one for all classes, or by class name (the config's for the rest); if
                None TEST.COUNTING.CLASS_SCORE_THRESH, else the checkpoint's own, else
                MODEL.ROI_HEADS.SCORE_THRESH_TEST.
            mask_threshold: probability from which a pixel belongs to the particle, between 0 and 1.
            precision: ``"fp32"``, or ``"bf16"``: about 0.6 of the time on processors and GPUs that
                have it, with box coordinates and scores in fp32.
            batch_size: images of like size that go through the model at once; 1 on the CPU and 8
                on a GPU if None.
            optimize: fold norms and use the NHWC order (scores differ by about 1e-5).
            _checkpoint: of :meth:`from_checkpoint`, already read.
            _build_model: builds what a config alone cannot.

        Raises:
            UserError: as of :func:`read_weights` and :func:`load_into`; config_invalid,
                classes_mismatch, option_invalid, option_conflict.
        """
        if not cfg.MODEL.WEIGHTS:
            raise UserError(
                "MODEL.WEIGHTS is empty; name a checkpoint to predict with.", code="option_missing"
            )
        source = cfg.MODEL.WEIGHTS
        path = fetch_weights(source)
        checkpoint = _checkpoint or read_weights(path, cfg.MODEL.WEIGHTS_SHA256)
        info = checkpoint.get("microplastics")
        self.info: dict[str, Any] = dict(info) if isinstance(info, dict) else {}
        for key in ("iteration", "metrics"):
            if key in checkpoint:
                self.info.setdefault(key, checkpoint[key])
        self.weights_sha256 = sha256_of(path)
        self.class_names = _class_names(cfg, class_names, self.info, source)
        if cfg.DATASETS.FIBER_CLASSES:
            fibers = choose_fiber_classes(cfg.DATASETS.FIBER_CLASSES, self.class_names)
        elif class_names is None:
            fibers = fiber_classes_of(self.info, source, self.class_names)
        else:
            fibers = list(filter(is_fiber_class, self.class_names))
        self.fiber_classes = fibers
        self.training_side = training_side_of(self.info, source)
        self.metadata = Metadata(
            thing_classes=self.class_names, thing_colors=class_colors(self.class_names)
        )
        self.has_masks = predicts_masks(cfg)
        heads = cfg.MODEL.ROI_HEADS
        default = class_node(cfg)[1].get("SCORE_THRESH_TEST", heads.SCORE_THRESH_TEST)
        if score_threshold is None:
            score_threshold = _thresholds_of_config(cfg, self.class_names)
        if score_threshold is None:
            score_threshold = score_thresholds_of(self.info, source, self.class_names)
        self.score_thresholds = _thresholds(score_threshold, self.class_names, default)
        self.cfg = _final_config(cfg, min(self.score_thresholds))
        on_cpu = torch.device(self.cfg.MODEL.DEVICE).type == "cpu"
        if batch_size is None:
            batch_size = 1 if on_cpu else _GPU_BATCH
        _check_settings(cfg, mask_threshold, batch_size, precision, optimize)
        if precision == "bf16" and on_cpu and not cpu_has_bf16():
            logger.warning("This processor has no bf16 instructions; fp32 is faster here.")
        self.mask_threshold, self.batch_size = float(mask_threshold), batch_size
        self.precision = precision
        build = _build_model or functools.partial(_build, checkpoint=checkpoint, source=source)
        model = build(self.cfg).eval()
        load_into(model, checkpoint, source)
        self._divisor = max(1, getattr(getattr(model, "backbone", None), "size_divisibility", 1))
        if optimize:
            model = inference_copy(model, precision)
        self._detector = Detector(
            model,
            self.score_thresholds,
            tile_topk=cfg.TEST.TILE_TOPK,
            detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            augmentation=TestTimeAugmentation(cfg, model) if cfg.TEST.AUG.ENABLED else None,
        )
        if not self._detector.staged and self.mask_threshold != 0.5:
            raise UserError(
                f"The mask threshold is {self.mask_threshold}; expected 0.5, at which "
                f"{self.cfg.MODEL.META_ARCHITECTURE} pastes its own masks.",
                code="option_invalid",
            )

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike, opts: Sequence[str] = (), **kwargs: Any
    ) -> "Predictor":
        """Make a predictor from a ``.pth`` of this project's training, without further files.

        Config, class names and score thresholds are read from it as data: it runs no code, and no
        file that it names is opened.

        Args:
            path: the checkpoint.
            opts: config ``KEY VALUE`` pairs on top of its own.
            kwargs: of :class:`Predictor`.

        Raises:
            UserError: it cannot be read, or has no config or one that does not fit.
        """
        path = os.fspath(path)
        demanded = dict(zip(opts[::2], opts[1::2], strict=False)).get("MODEL.WEIGHTS_SHA256", "")
        checkpoint = read_weights(fetch_weights(path), demanded)
        cfg = config_of(checkpoint_info_of(checkpoint, path), path, opts)
        # The digest in its config is that of the file which its training started from.
        cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_SHA256 = path, ""
        cfg.freeze()
        return cls(cfg, _checkpoint=checkpoint, **kwargs)

    @property
    def model(self) -> torch.nn.Module:
        """The network in evaluation mode, optimized unless ``optimize`` was False."""
        return self._detector.model

    @property
    def windows_cut_short(self) -> int:
        """Number of tiles so far that may hold more particles than TEST.TILE_TOPK lets through."""
        return self._detector.windows_cut_short

    def __call__(self, image: Image | Sequence[Image]) -> Predictions | list[Predictions]:
        """Predict on one image, or on each of a list; :class:`Predictions` are in px of the image.

        Args:
            image: a path, or an array (H, W), (H, W, 1), BGR (H, W, 3) or BGRA (H, W, 4). What is
                not uint8 is stretched over the image, see :mod:`microplastics.data.images`.

        Raises:
            UserError: a file cannot be read, or would become too large for the network.
            ValueError: an array is not an image.
        """
        if isinstance(image, (list, tuple)):
            return list(self.predict_many(image))
        (predictions,) = self.predict_many([image])
        return predictions

    def predict_many(
        self,
        images: Iterable[Image],
        *,
        dense: bool = False,
        scale: float | None = None,
        paint: bool = True,
    ) -> Iterator[Predictions]:
        """Predict on any number of images, a few of which are in memory at a time.

        One thread reads and resizes ahead of the model, and another pastes masks behind it.

        Args:
            images: as :meth:`__call__` takes them; drawn from in another thread.
            dense: for tiles of a large image: TEST.TILE_TOPK proposals, and detections without a
                cap (TEST.DETECTIONS_PER_IMAGE).
            scale: factor on the sides of all images; if None each is resized by
                INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST.
            paint: paint scale bars over if INPUT.PAINT_SCALE_BAR says so, as in training. Tiles,
                and images with a ``scale``, are taken as they are.

        Yields:
            :class:`Predictions` in the order of the images.

        Raises:
            UserError, ValueError: as :meth:`__call__`, after the results of the images before.
        """
        if scale is not None and not 0 < scale < float("inf"):
            raise ValueError(f"The scale is {scale}; expected a positive number")

        def run(batch: Sequence[Input]) -> list[Instances]:
            return self._detector(*zip(*batch, strict=True), dense, scale is not None)

        def finish(image: Input, raw: Instances) -> Predictions:
            staged = self._detector.staged
            result = to_image(raw.to("cpu"), image[1], staged, self.mask_threshold)
            return Predictions(image[1], **result.get_fields())

        def padded_size(image: Input) -> tuple[int, ...]:
            # Images of one size here get the same padding in a batch as on their own.
            return tuple(-(-side // self._divisor) for side in image[0].shape[1:])

        whole = scale is None and not dense
        paint = paint and whole and self.cfg.INPUT.PAINT_SCALE_BAR

        def prepare(image: Image) -> Input:
            if paint:
                image = paint_scale_bars(read_bgr(image, self.cfg.INPUT.MAX_PIXELS))
            return read_input(image, self.cfg, scale)

        return stream(images, prepare, run, finish, padded_size, self.batch_size)


def to_particles(
    predictions: Instances,
    image_name: str,
    class_names: Sequence[str],
    image: np.ndarray | None = None,
) -> tuple[Particles, int]:
    """Turn predictions into the particles that are measured and written.

    Args:
        predictions: with ``pred_masks`` as :class:`CropMasks`.
        image_name: name of the image in every output.
        class_names: of the model, in its order.
        image: uint8 BGR (H, W, 3), to take the particles' pixels from; None for no pixels.

    Returns:
        The particles, numbered from 1 in the order of the predictions, each mask cut to its tight
        box; and the number of predictions dropped because their mask has no pixel.
    """
    masks = predictions.pred_masks
    classes, scores = predictions.pred_classes.tolist(), predictions.scores.cpu().numpy()
    whole = np.flatnonzero(masks.nonempty().numpy()).tolist()
    views = [tight(*view) for view in masks.views() if view.mask.any()]
    pixels = None
    if image is not None:
        pixels = [image[y : y + mask.shape[0], x : x + mask.shape[1]][mask] for mask, x, y in views]
    particles = Particles(
        image=image_name,
        image_size=masks.image_size,
        # A view would keep the whole crop in memory.
        masks=[np.ascontiguousarray(view.mask) for view in views],
        offsets=np.array([view[1:] for view in views], dtype=np.int64).reshape(-1, 2),
        classes=[class_names[classes[k]] for k in whole],
        scores=scores.astype(np.float64)[whole],
        ids=np.arange(1, len(whole) + 1, dtype=np.int64),
        pixels=pixels,
    )
    return particles, len(masks) - len(whole)


def stream(
    items: Iterable[Any],
    prepare: Callable[[Any], Any],
    run: Callable[[Sequence[Any]], Sequence[Any]],
    finish: Callable[[Any, Any], Any],
    kind: Callable[[Any], Hashable],
    batch_size: int,
) -> Iterator[Any]:
    """Process items while one thread prepares the next ones and another finishes the last ones.

    Batches are of one kind. To fill them, items overtake others of another kind by at most four
    batches; the results come in the order of the items. At most about eight batches of items are
    in memory, however many there are.

    Args:
        items: drawn from in the preparing thread.
        prepare: called in one thread.
        run: called in the caller's thread, on 1 to ``batch_size`` prepared items.
        finish: called in another thread, with a prepared item and its output of ``run``.
        kind: a value that the prepared items of a batch have in common.
        batch_size: 1 or more.

    Yields:
        The results of ``finish``. An error of ``items`` or of ``prepare`` is raised after the
        results of all items before it.
    """
    iterator = iter(items)

    def take() -> Any:
        for item in iterator:
            return prepare(item)
        return _END

    room = batch_size if batch_size == 1 else 4 * batch_size
    before = ThreadPoolExecutor(1, thread_name_prefix="prepare")
    behind = ThreadPoolExecutor(1, thread_name_prefix="finish")
    try:
        coming = deque(before.submit(take) for _ in range(2 * batch_size))
        waiting: dict[int, Any] = {}
        results: dict[int, Future] = {}
        drawn = given = 0
        while True:
            kinds = {number: kind(each) for number, each in waiting.items()}
            # The oldest item is always in the batch.
            oldest = next(iter(kinds.values()), None)
            batch = [number for number, each in kinds.items() if each == oldest][:batch_size]
            if coming and len(batch) < batch_size and len(waiting) < room:
                future = coming.popleft()
                if future.exception() is not None:
                    results[drawn] = future
                    coming.clear()
                elif future.result() is _END:
                    coming.clear()
                else:
                    coming.append(before.submit(take))
                    waiting[drawn] = future.result()
                    drawn += 1
                continue
            outputs = run([waiting[number] for number in batch]) if batch else ()
            for number, output in zip(batch, outputs, strict=True):
                results[number] = behind.submit(finish, waiting.pop(number), output)
            while given in results and (
                not batch or results[given].done() or len(results) > room + batch_size
            ):
                yield results.pop(given).result()
                given += 1
            if not batch:
                break
    finally:
        # An abandoned generator must not leave threads at work.
        before.shutdown(cancel_futures=True)
        behind.shutdown(cancel_futures=True)


def _final_config(cfg: CfgNode, threshold: float) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    for node in (cfg.MODEL.ROI_HEADS, class_node(cfg)[1]):
        if "SCORE_THRESH_TEST" in node:
            node.SCORE_THRESH_TEST = float(threshold)
    cfg.freeze()
    return cfg


def _check_settings(
    cfg: CfgNode, mask_threshold: float, batch_size: int, precision: str, optimize: bool
) -> None:
    code, wrong = "option_invalid", None
    if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
        code = "config_invalid"
        wrong = f"INPUT.FORMAT is {cfg.INPUT.FORMAT}; expected BGR or RGB."
    elif cfg.TEST.TILE_TOPK < 1:
        code = "config_invalid"
        wrong = f"TEST.TILE_TOPK is {cfg.TEST.TILE_TOPK}; expected 1 or more."
    elif not (is_score(mask_threshold) and 0 < mask_threshold < 1):
        wrong = f"The mask threshold is {mask_threshold}; expected a number between 0 and 1."
    elif batch_size < 1:
        wrong = f"The batch size is {batch_size}; expected 1 or more."
    elif precision not in PRECISIONS:
        wrong = f"The precision is {precision!r}; expected {' or '.join(PRECISIONS)}."
    elif precision == "bf16" and not optimize:
        code = "option_conflict"
        wrong = "The precision is bf16, but optimize is False; set it True."
    if wrong:
        raise UserError(wrong, code=code)


def _class_names(
    cfg: CfgNode, given: Sequence[str] | None, info: Mapping[str, Any], source: str
) -> list[str]:
    count = num_classes(cfg)
    names = list(given) if given is not None else class_names_of(info, source)
    for name in cfg.DATASETS.TEST if names is None else ():
        of_data = MetadataCatalog.get(name).get("thing_classes", ())
        if len(of_data) == count:
            names = list(of_data)
            break
    if names is None:
        logger.warning("%s has no class names; its classes are numbered.", source)
        names = [f"class {number + 1}" for number in range(count)]
    if len(names) != count or len(set(names)) != count:
        where = "given" if given is not None else f"in {source}"
        raise UserError(
            f"The class names {where} are {', '.join(names[:20])}, but the config has "
            f"{count} classes; name each class once, or set {class_node(cfg)[0]}.NUM_CLASSES.",
            code="classes_mismatch",
        )
    return names


def _thresholds_of_config(cfg: CfgNode, class_names: Sequence[str]) -> dict[str, float] | None:
    numbers = cfg.TEST.COUNTING.CLASS_SCORE_THRESH
    if len(numbers) not in (0, len(class_names)):
        raise UserError(
            f"TEST.COUNTING.CLASS_SCORE_THRESH is {numbers}; expected a number for each class: "
            f"{', '.join(class_names)}.",
            code="config_invalid",
        )
    return dict(zip(class_names, numbers, strict=True)) if numbers else None


def _thresholds(
    threshold: float | Mapping[str, float] | None, class_names: Sequence[str], default: float
) -> np.ndarray:
    if threshold is None:
        threshold = {}
    by_name = threshold if isinstance(threshold, Mapping) else dict.fromkeys(class_names, threshold)
    for name, value in by_name.items():
        if name not in class_names or not is_score(value):
            raise UserError(
                f"The score threshold of {name} is {value}; expected a number from 0 to 1 for a "
                f"class of the model: {', '.join(class_names)}.",
                code="option_invalid",
            )
    return np.array([by_name.get(name, default) for name in class_names], dtype=np.float64)


def _build(cfg: CfgNode, checkpoint: Mapping[str, Any], source: str) -> torch.nn.Module:
    """Build the model of a config, with at most as many parameters as the checkpoint can fill."""
    check_architecture(cfg)
    try:
        needed = sum(parameter.numel() for parameter in build_shapes(cfg).parameters())
        held = sum(int(np.prod(value.shape)) for value in checkpoint["model"].values())
        # A wrong number in a config asks for more memory than any machine has.
        if needed > 2 * held + 1_000_000:
            raise UserError(
                f"{source} holds {held:,} parameters, but its config makes a model of {needed:,}; "
                "use a checkpoint of the same architecture.",
                code="checkpoint_mismatch",
            )
        return build_model(cfg)
    except UserError:
        raise
    except Exception as error:
        # Detectron2 answers wrong values with whatever the layer at hand raises.
        words = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"The config of {source} cannot be built ({type(error).__name__}: {words}); correct "
            "its MODEL keys.",
            code="config_invalid",
        ) from error
