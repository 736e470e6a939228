"""A Mask R-CNN with torchvision's inputs and outputs."""

import contextlib
import copy
import functools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage, has_event_storage
from torch import nn

from microplastics.config import load_config, merge_options
from microplastics.data.catalog import DEFAULT_CLASSES
from microplastics.data.targets import (
    Target,
    check_images,
    check_targets,
    resized_image,
    to_instances,
    write_coco,
)
from microplastics.engine.checkpoint import (
    TrainingCheckpointer,
    class_names_of,
    config_of,
    fetch_weights,
    load_into,
    read_weights,
    refuse_second_training,
)
from microplastics.engine.defaults import finalize_config
from microplastics.engine.hooks import flatten_results
from microplastics.engine.trainer import Trainer
from microplastics.export.export import export_model
from microplastics.inference.predictor import Predictor
from microplastics.modeling.arguments import build_around, set_arguments
from microplastics.modeling.interface import (
    is_staged,
    keep_boxes_fp32,
    losses_and_predictions,
)
from microplastics.modeling.interface import (
    num_classes as number_of_classes,
)
from microplastics.modeling.postprocessing import to_image
from microplastics.modeling.test_time_augmentation import AugmentedRCNN
from microplastics.structures.crop_masks import paste_probabilities
from microplastics.utils.errors import UserError, check_option
from microplastics.utils.io import atomic_write, check_output_dir

# Seeds of training begin with SEED, those of validation with another number.
_SEED_DOMAIN = 0x676574


class Losses(TypedDict):
    """Losses by Detectron2's names, 0-dimensional tensors; ``total_loss`` is the sum of all others.

    Other heads may have more of them.
    """

    loss_rpn_cls: torch.Tensor
    loss_rpn_loc: torch.Tensor
    loss_cls: torch.Tensor
    loss_box_reg: torch.Tensor
    loss_mask: torch.Tensor
    total_loss: torch.Tensor


class Detections(TypedDict):
    """The N detections of one image, best score first.

    Attributes:
        boxes: (N, 4) float32 x0, y0, x1, y1 in px of the image.
        labels: (N,) int64, 1 to K.
        scores: (N,) float32.
        masks: of ``forward``, (N, 1, H, W) float32 probabilities; of ``predict``, (N, H, W) bool.
            A model without masks has none.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    scores: torch.Tensor
    masks: torch.Tensor


class MaskRCNN(nn.Module):
    """A Mask R-CNN for notebooks and for code written for torchvision's.

    Images are (3, H, W) float tensors, RGB from 0 to 1 and of any sizes; they are resized by
    INPUT.MIN_SIZE_TEST (in training MIN_SIZE_TRAIN) and normalised inside. It is made on the CPU:
    ``.to("cuda")`` moves it, and :meth:`fit` trains it where it is.

    ``train(mode)`` is that of every ``nn.Module``, since Detectron2, torch and others call it;
    training on a data set is :meth:`fit`.

    Attributes:
        cfg: the config that describes it, all but a backbone of the user's own.
        network: Detectron2's model.
        class_names: K names; the label of the first is 1.
    """

    def __init__(
        self,
        config: str | CfgNode = "r50_scratch",
        *,
        backbone: nn.Module | str | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        anchor_sizes: Sequence | None = None,
        aspect_ratios: Sequence | None = None,
        pool_size: int | None = None,
        hidden_dim: int | None = None,
        dropout: float | None = None,
        mask_pool_size: int | None = None,
        mask_hidden_channels: int | None = None,
        mask_out_size: int | None = None,
        use_fpn: bool | None = None,
        weights: str | None = None,
        opts: Sequence[Any] = (),
    ):
        """
        Args:
            config: a name of the model zoo, a YAML file or a config. What follows is set on top of
                it; what is None stays as it says.
            backbone: the name of a network in timm, or a module that takes normalised (N, 3, H, W)
                images and returns a feature map, or a dict or list of them. Its weights stay as
                they are.
            num_classes: K, without the background (torchvision counts it).
            class_names: K names.
            anchor_sizes: in px of the resized image: one size for each feature map, or a list of
                sizes for each. All numbers belong to the map if there is only one.
            aspect_ratios: height through width of the anchors: for all maps, or a list for each.
            pool_size: side of what the box head pools from a proposal.
            hidden_dim: width of its fully connected layers.
            dropout: probability behind each of them.
            mask_pool_size: side of what the mask head pools.
            mask_hidden_channels: channels of its convolutions.
            mask_out_size: side of its masks: twice what it pools, or with ParticleMaskHead once,
                four or eight times.
            use_fpn: build a feature pyramid on the backbone. False takes the feature map of stride
                16, or the module's as they are. None: as in the config, on a module only if its
                maps differ in their channels.
            weights: MODEL.WEIGHTS to start from, such as ``imagenet://tf_efficientnet_lite0``; with
                another backbone than the config's, or ``""``, random weights.
            opts: config ``KEY VALUE`` pairs that come last.

        Raises:
            UserError: config_invalid, option_invalid, option_conflict, checkpoint_mismatch, ….
        """
        super().__init__()
        given = isinstance(backbone, nn.Module)
        if given and weights:
            raise UserError(
                "A backbone module and weights are given; load the weights into the module, or "
                "open a checkpoint with MaskRCNN.load(path, backbone=module).",
                code="option_conflict",
            )
        cfg = _unfrozen(config)
        cfg.MODEL.DEVICE = "cpu"
        if weights is not None or backbone is not None:
            cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_SHA256 = weights or "", ""
        # Here for the pyramid that is built on a module, and below to come last.
        merge_options(cfg, opts)
        self.class_names = _names(class_names, num_classes)
        self._backbone = set_arguments(
            cfg,
            backbone=backbone,
            num_classes=len(self.class_names) if self.class_names else num_classes,
            anchor_sizes=anchor_sizes,
            aspect_ratios=aspect_ratios,
            pool_size=pool_size,
            hidden_dim=hidden_dim,
            dropout=dropout,
            mask_pool_size=mask_pool_size,
            mask_hidden_channels=mask_hidden_channels,
            mask_out_size=mask_out_size,
            use_fpn=use_fpn,
        )
        merge_options(cfg, opts)
        cfg.freeze()
        self.cfg = cfg
        self.class_names = self.class_names or _default_names(number_of_classes(cfg))
        self.network = self._build(cfg, self._backbone)
        # For autocast in a training loop of the user's own.
        keep_boxes_fp32(self.network)
        if cfg.MODEL.WEIGHTS:
            TrainingCheckpointer(self.network, cfg, self.class_names).load_weights()
        self._remember_weights()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        config: str | CfgNode = "",
        *,
        backbone: nn.Module | None = None,
        opts: Sequence[Any] = (),
    ) -> "MaskRCNN":
        """Open a checkpoint: of the project's training, of :meth:`save`, or of torchvision.

        No code of the file is run.

        Args:
            path: a local file or an address, see MODEL.WEIGHTS.
            config: of a checkpoint without one; for torchvision's, by its layers
                ``maskrcnn_resnet50_fpn`` or ``maskrcnn_resnet50_fpn_v2``.
            backbone: the module, if the model was made with one; its weights are overwritten.
            opts: config ``KEY VALUE`` pairs on top.

        Raises:
            UserError: file_missing, checkpoint_invalid, checkpoint_mismatch, ….
        """
        path = os.fspath(path)
        checkpoint = read_weights(fetch_weights(path))
        info, names = checkpoint.get("microplastics"), None
        if isinstance(info, dict):
            cfg, names = config_of(info, path), class_names_of(info, path)
        elif checkpoint.get("torchvision"):
            second = "roi_heads.box_head.conv1.weight" in checkpoint["model"]
            cfg = _unfrozen(config or ("torchvision_v2" if second else "torchvision"))
            scores = checkpoint["model"]["roi_heads.box_predictor.cls_score.weight"]
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(scores) - 1
        elif config:
            cfg = _unfrozen(config)
        else:
            raise UserError(
                f"{path} says nothing of its model; name a config, such as "
                "MaskRCNN.load(path, 'r50').",
                code="checkpoint_invalid",
            )
        merge_options(cfg, opts)
        cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_SHA256 = "", ""
        pyramid = any(name.startswith("backbone.bottom_up.") for name in checkpoint["model"])
        use_fpn = None if backbone is None else pyramid
        model = cls(cfg, backbone=backbone, class_names=names, use_fpn=use_fpn)
        load_into(model.network, checkpoint, path)
        model._remember_weights()
        return model

    @staticmethod
    def _build(cfg: CfgNode, backbone: nn.Module | None) -> nn.Module:
        return Trainer.build_model(cfg) if backbone is None else build_around(backbone, cfg)

    def _remember_weights(self) -> None:
        state = self.network.state_dict()
        self._start = {name: value.detach().cpu().clone() for name, value in state.items()}

    def reset_weights(self) -> None:
        """Set all weights, of the heads too, to those that the model was made or loaded with.

        They are kept on the CPU, so that the folds of a cross-validation start from the same
        numbers.
        """
        self.network.load_state_dict(self._start)

    # Inference and losses

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.device

    def train(self, mode: bool = True) -> "MaskRCNN":
        """Switch to training or evaluation, as any ``nn.Module``; :meth:`fit` trains."""
        if not isinstance(mode, bool):
            raise UserError(
                f"train(mode) switches a module to training and was given {type(mode).__name__}; "
                "use fit(dataset) to train.",
                code="option_invalid",
            )
        return super().train(mode)

    def forward(
        self, images: Sequence[torch.Tensor], targets: Sequence[Target] | None = None
    ) -> Losses | list[Detections]:
        """Compute the losses in training, and detections in evaluation mode.

        Args:
            images: (3, H, W) float tensors from 0 to 1, RGB, of any sizes.
            targets: one for each image, in training.

        Returns:
            In training :class:`Losses`: ``losses["total_loss"].backward()``. In evaluation mode
            :class:`Detections` of each image scored above MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            without gradients.

        Raises:
            UserError: option_invalid; an image or target does not fit.
        """
        check_images(images)
        if not self.training:
            with torch.no_grad():
                return [
                    self._detections(raw, image)
                    for raw, image in zip(self._raw(images), images, strict=True)
                ]
        check_targets(targets, images, len(self.class_names))
        items = [self._item(*each) for each in zip(images, targets, strict=True)]
        # Detectron2's layers log, into the storage of a trainer if there is one.
        with contextlib.nullcontext() if has_event_storage() else EventStorage():
            return _with_total(self.network(items))

    def predict(
        self,
        images: Sequence[torch.Tensor],
        score_threshold: float = 0.5,
        mask_threshold: float = 0.5,
    ) -> list[Detections]:
        """Detect particles, in evaluation mode whatever the mode is.

        Args:
            images: as of :meth:`forward`.
            score_threshold: detections are scored above it, and above
                MODEL.ROI_HEADS.SCORE_THRESH_TEST.
            mask_threshold: probability from which a pixel belongs to the particle.

        Returns:
            :class:`Detections` with masks (N, H, W) bool, the pixels of :meth:`predictor`.
        """
        check_images(images)
        for name, value in (("score", score_threshold), ("mask", mask_threshold)):
            check_option(0 <= value <= 1, f"{name}_threshold", value, "0 to 1")
        with self._evaluating():
            found = [raw[raw.scores > score_threshold] for raw in self._raw(images)]
            return [
                self._detections(raw, image, mask_threshold)
                for raw, image in zip(found, images, strict=True)
            ]

    def get_loss(
        self, images: Sequence[torch.Tensor], targets: Sequence[Target]
    ) -> tuple[Losses, list[Detections]]:
        """Compute losses and predictions of one pass, in evaluation mode whatever the mode is.

        The losses are those of validation: without augmentation and dropout, with the norms of
        evaluation and always the same samples, averaged over the images with particles.

        Args:
            images, targets: as of :meth:`forward`.

        Returns:
            :class:`Losses` without gradients, NaN if no image has a particle; and what
            :meth:`forward` returns in evaluation mode without TEST.AUG.
        """
        check_images(images)
        check_targets(targets, images, len(self.class_names))
        rois = self.cfg.TEST.VAL_LOSS.BATCH_SIZE_PER_IMAGE
        rows, found = [], []
        with self._evaluating(), EventStorage():
            for number, (image, target) in enumerate(zip(images, targets, strict=True)):
                losses, output = losses_and_predictions(
                    self.network,
                    self._item(image, target),
                    seed=(_SEED_DOMAIN, number),
                    rois_per_image=rois,
                )
                found.append(self._detections(output["instances"], image))
                rows += [losses] if losses is not None else []
        names = rows[0] if rows else list(Losses.__annotations__)[:-1]
        means = {name: torch.tensor([row[name] for row in rows]).mean() for name in names}
        return _with_total(means), found

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode

    def _item(self, image: torch.Tensor, target: Target | None = None) -> dict[str, Any]:
        """Turn an image and its target into Detectron2's input."""
        height, width = image.shape[-2:]
        keys, train = self.cfg.INPUT, self.training
        sides = keys.MIN_SIZE_TRAIN if train else keys.MIN_SIZE_TEST
        longest = keys.MAX_SIZE_TRAIN if train else keys.MAX_SIZE_TEST
        style = keys.MIN_SIZE_TRAIN_SAMPLING if train else "choice"
        resize = T.ResizeShortestEdge(sides, longest, style)
        # It looks at the size alone.
        chosen = resize.get_transform(np.broadcast_to(np.uint8(0), (height, width)))
        size = getattr(chosen, "new_h", height), getattr(chosen, "new_w", width)
        pixels = 255 * resized_image(image.to(self.device), size)
        item = {
            "image": pixels.flip(0) if keys.FORMAT == "BGR" else pixels,
            "height": height,
            "width": width,
        }
        if target is not None:
            item["instances"] = to_instances(target, (height, width), size)
            if not self.cfg.MODEL.MASK_ON:
                item["instances"].remove("gt_masks")
        return item

    def _raw(self, images: Sequence[torch.Tensor]) -> list[Instances]:
        items = [self._item(image) for image in images]
        if self.cfg.TEST.AUG.ENABLED:
            augmented = AugmentedRCNN(self.cfg, self.network)
            return [augmented.detect(item["image"]) for item in items]
        if is_staged(self.network):
            return self.network.inference(items, do_postprocess=False)
        return [output["instances"] for output in self.network(items)]

    def _detections(
        self, raw: Instances, image: torch.Tensor, mask_threshold: float | None = None
    ) -> Detections:
        """Bring detections onto their image; with a mask threshold masks are bool, else floats."""
        size, staged = tuple(image.shape[-2:]), is_staged(self.network)
        threshold = 0.5 if mask_threshold is None else mask_threshold
        raw = raw[raw.scores.argsort(descending=True, stable=True)]  # a mask head may change them
        probs = raw.pred_masks if raw.has("pred_masks") else None
        boxed = staged and torch.is_tensor(probs) and mask_threshold is None
        if boxed:
            fields = raw.get_fields()
            raw = Instances(
                raw.image_size,
                **{name: v for name, v in fields.items() if name != "pred_masks"},
                probs=probs,
            )
        found = to_image(raw.to("cpu"), size, staged, threshold)
        result = {
            "boxes": found.pred_boxes.tensor,
            "labels": found.pred_classes + 1,
            "scores": found.scores,
        }
        if boxed:
            result["masks"] = torch.zeros(len(found), 1, *size)
            windows = paste_probabilities(found.probs[:, 0], found.pred_boxes.tensor, size)
            for mask, (window, (x, y)) in zip(result["masks"], windows, strict=True):
                mask[0, y : y + window.shape[0], x : x + window.shape[1]] = window
        elif probs is not None:
            masks = found.pred_masks.to_bitmasks()
            result["masks"] = masks[:, None].float() if mask_threshold is None else masks
        return {name: value.to(self.device) for name, value in result.items()}

    # Training, evaluation and files

    def fit(
        self,
        train: Any,
        val: Any = None,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        output_dir: str | os.PathLike | None = None,
        resume: bool = False,
        opts: Sequence[Any] = (),
    ) -> dict[str, float]:
        """Train from the present weights with the project's trainer.

        Checkpoints and metrics are written into the output folder, as by ``microplastics train``;
        the model ends with the last weights, in evaluation mode.

        Args:
            train: registered name, ``JSON:IMAGES``, or a list of them; or a data set of
                torchvision's kind, whose items are (image, target). It is written to
                the output folder as PNG and COCO, each item once: random augmentations belong to
                INPUT.AUG.
            val: likewise, to be evaluated on; None for no evaluation.
            epochs: SOLVER.MAX_EPOCHS.
            batch_size: SOLVER.IMS_PER_BATCH.
            learning_rate: SOLVER.BASE_LR.
            output_dir: OUTPUT_DIR.
            resume: continue the training in the output folder.
            opts: config ``KEY VALUE`` pairs on top.

        Returns:
            The metrics of the last evaluation, such as ``segm/AP50``.

        Raises:
            UserError: a data set does not fit, training diverged, a file cannot be written.
        """
        cfg = self._config(output_dir, opts)
        for node, key, value in (
            (cfg.SOLVER, "MAX_EPOCHS", epochs),
            (cfg.SOLVER, "IMS_PER_BATCH", batch_size),
            (cfg.SOLVER, "BASE_LR", learning_rate),
        ):
            if value is not None:
                node[key] = type(node[key])(value)
        cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_SHA256 = "", ""
        if val is None:
            # What watches an evaluation.
            cfg.SOLVER.PLATEAU.ENABLED = cfg.SOLVER.EARLY_STOPPING.ENABLED = False
        check_output_dir(cfg.OUTPUT_DIR)
        if not resume:
            refuse_second_training(cfg.OUTPUT_DIR)
        cfg.DATASETS.TRAIN = self._entries(train, cfg, "train")
        cfg.DATASETS.TEST = self._entries(val, cfg, "val") if val is not None else ()
        cfg.freeze()
        with atomic_write(os.path.join(cfg.OUTPUT_DIR, "config.yaml")) as file:
            file.write(cfg.dump())
        trainer = _trainer_of(self.network)(cfg)
        if resume:
            trainer.resume_or_load(resume=True)
        metrics = trainer.train()
        names = MetadataCatalog.get(trainer.cfg.DATASETS.TRAIN[0]).get("thing_classes")
        self.class_names = list(names or self.class_names)
        self.eval()
        return dict(metrics)

    def evaluate(
        self,
        dataset: Any,
        *,
        output_dir: str | os.PathLike | None = None,
        opts: Sequence[Any] = (),
    ) -> dict[str, float]:
        """Score the model: loss, COCO AP, counts and sizes.

        Args:
            dataset: as ``train`` of :meth:`fit`.
            output_dir: OUTPUT_DIR, whose folder ``inference`` gets the tables.
            opts: config ``KEY VALUE`` pairs on top, such as TEST.COUNTING.SIZES.

        Returns:
            The metrics by name, such as ``segm/AP50`` or ``counting/F1-Fiber``.
        """
        cfg = self._config(output_dir, opts)
        cfg.DATASETS.TEST = self._entries(dataset, cfg, "test")
        if cfg.TEST.COUNTING.SIZES == "eval_only":
            cfg.TEST.COUNTING.SIZES = "always"
        cfg = finalize_config(cfg, splits=("TEST",))
        return flatten_results(Trainer.test(cfg, self.network))

    def _config(self, output_dir: str | os.PathLike | None, opts: Sequence[Any]) -> CfgNode:
        cfg = _unfrozen(self.cfg)
        cfg.MODEL.DEVICE = str(self.device)
        if output_dir is not None:
            cfg.OUTPUT_DIR = os.fspath(output_dir)
        merge_options(cfg, opts)
        return cfg

    def _entries(self, dataset: Any, cfg: CfgNode, split: str) -> tuple[str, ...]:
        if isinstance(dataset, (str, os.PathLike)):
            return (os.fspath(dataset),)
        if isinstance(dataset, (list, tuple)) and all(isinstance(each, str) for each in dataset):
            return tuple(dataset)
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise UserError(
                f"The data set is {type(dataset).__name__}; expected a registered name, "
                "JSON:IMAGES or a data set of (image, target).",
                code="option_invalid",
            )
        return (write_coco(dataset, Path(cfg.OUTPUT_DIR, "datasets", split), self.class_names),)

    def save(self, path: str | os.PathLike) -> None:
        """Write the weights, the config and the class names as one ``.pth``.

        :meth:`load`, ``Predictor.from_checkpoint`` and every command with ``--weights`` take it.

        Raises:
            UserError: option_invalid (another ending), not_writable.
        """
        path = Path(path)
        check_option(path.suffix == ".pth", "The path", path, "a name that ends in .pth")
        checkpointer = TrainingCheckpointer(self.network, self.cfg, self.class_names)
        checkpointer.save_dir = os.fspath(path.parent)
        checkpointer.save(path.stem)

    def predictor(self, **kwargs: Any) -> Predictor:
        """Make a :class:`Predictor` with a copy of the weights.

        It reads files and arrays, and its results, Detectron2's ``Instances``, can be measured.

        Args:
            kwargs: of :class:`Predictor`, such as ``score_threshold``.
        """
        return self._predictor(str(self.device), **kwargs)

    def _predictor(self, device: str, **kwargs: Any) -> Predictor:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.pth")
            self.save(path)
            opts = ("MODEL.WEIGHTS", path, "MODEL.WEIGHTS_SHA256", "", "MODEL.DEVICE", device)
            cfg = self._config(None, opts)
            # With score thresholds of its own, but not from a config alone.
            build = functools.partial(self._build, backbone=copy.deepcopy(self._backbone))
            build = build if self._backbone is not None else None
            return Predictor(cfg, self.class_names, _build_model=build, **kwargs)

    def export(
        self,
        path: str | os.PathLike,
        *,
        size: Sequence[int] | None = None,
        score_threshold: float | Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Write an ONNX (``.onnx``) or TorchScript (``.ts``, ``.pt``) file; see docs/export.md.

        Args:
            path: of the file; a JSON of the same name describes it.
            size: height and width of the network's input, if it is fixed.
            score_threshold: of the detections that the file gives.

        Returns:
            The content of the JSON.

        Raises:
            UserError: as of :func:`microplastics.export.export.export_model`.
        """
        file_format = "onnx" if Path(path).suffix == ".onnx" else "torchscript"
        predictor = self._predictor("cpu", score_threshold=score_threshold)
        return export_model(predictor, path, file_format, size)


def _with_total(losses: dict[str, torch.Tensor]) -> Losses:
    return {**losses, "total_loss": torch.stack(list(losses.values())).sum()}


def _trainer_of(network: nn.Module) -> type[Trainer]:
    class GivenModelTrainer(Trainer):
        """Trains a model that is already there."""

        @classmethod
        def build_model(cls, cfg: CfgNode) -> nn.Module:
            return network

    return GivenModelTrainer


def _unfrozen(config: str | CfgNode) -> CfgNode:
    if not isinstance(config, CfgNode):
        return load_config(config)
    cfg = config.clone()
    cfg.defrost()
    return cfg


def _names(given: Sequence[str] | None, num_classes: int | None) -> list[str]:
    """Return the class names that were given, if they are."""
    names = list(given or ())
    if len(set(names)) != len(names) or (names and num_classes not in (None, len(names))):
        raise UserError(
            f"The class names are {', '.join(names)} and num_classes is {num_classes}; expected "
            "one name for each class.",
            code="classes_mismatch",
        )
    return names


def _default_names(count: int) -> list[str]:
    if count == len(DEFAULT_CLASSES):
        return list(DEFAULT_CLASSES)
    return [f"class {number}" for number in range(1, count + 1)]
