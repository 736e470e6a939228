"""Trained models as TorchScript or ONNX files that need neither Detectron2 nor this package."""

import contextlib
import copy
import hashlib
import importlib
import inspect
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import detectron2
import numpy as np
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F
from torchvision.ops import nms

import microplastics
from microplastics.inference.postprocess import postprocess
from microplastics.inference.predictor import Predictions, Predictor
from microplastics.synthetic import render_image
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write


def why_not_exportable(model: nn.Module) -> str | None:
    """Name the part of a model that :class:`ExportNetwork` does not know; ``None`` if none."""
    if type(model) is not GeneralizedRCNN:
        return f"the architecture {type(model).__name__}"
    rpn, heads = model.proposal_generator, model.roi_heads
    parts = [
        (rpn, RPN),
        (getattr(rpn, "anchor_generator", None), DefaultAnchorGenerator),
        (heads, StandardROIHeads),
        (getattr(heads, "box_predictor", None), FastRCNNOutputLayers),
    ]
    for part, known in parts:
        if type(part) is not known:
            return f"{type(part).__name__} in place of {known.__name__}"
    poolers = [heads.box_pooler]
    if heads.mask_on:
        if not isinstance(heads.mask_head, BaseMaskRCNNHead):
            return f"the mask head {type(heads.mask_head).__name__}"
        poolers.append(heads.mask_pooler)
    for pooler in poolers:
        if not isinstance(pooler, ROIPooler):
            return f"the pooler {type(pooler).__name__}"
        for level in pooler.level_poolers:
            if not isinstance(level, ROIAlign):
                return f"{type(level).__name__} in place of ROIAlign"
    if heads.keypoint_on:
        return "keypoints"
    if model.backbone.padding_constraints.get("square_size"):
        return "inputs padded to a square"
    return None


class ExportNetwork(nn.Module):
    """From one resized image to its detections, as Detectron2's ``GeneralizedRCNN`` finds them.

    Normalises, pads, detects, and cuts by score before the mask head. The sums are Detectron2's
    on either of its builds; sizes of the image and numbers of boxes are never turned into Python
    numbers, so that a trace holds for others. NMS runs for each level and class on its own, which
    torchvision does for many boxes only and for few by shifting them apart.
    """

    def __init__(self, model: nn.Module, score_thresholds: torch.Tensor):
        """
        Args:
            model: in evaluation mode, one without :func:`why_not_exportable`.
            score_thresholds: (K,) float32; a detection is scored above its class's.
        """
        super().__init__()
        self.backbone = model.backbone
        self.rpn = model.proposal_generator
        self.heads = model.roi_heads
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())
        self.register_buffer("thresholds", score_thresholds)
        self.divisor = max(1, model.backbone.size_divisibility)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Args:
            image: (3, H, W) uint8, channels in the order of INPUT.FORMAT.

        Returns:
            boxes: (N, 4) float32 x0, y0, x1, y1 in px of ``image``, best score first.
            scores: (N,) float32.
            classes: (N,) int64, 0 to K - 1.
            masks: (N, 1, M, M) float32 probabilities inside the boxes; left out without a mask
                head.
            size: (2,) int64, H and W.
        """
        height, width = _tensor(image.shape[1]), _tensor(image.shape[2])
        size = torch.stack([height, width])
        # Counted on the image's own device: what is moved there is moved to the trace's device.
        across = torch.ones_like(image[0, 0], dtype=torch.float32).sum()
        down = torch.ones_like(image[0, :, 0], dtype=torch.float32).sum()
        limits = torch.stack([across, down, across, down])
        pixels = (image.float() - self.mean) / self.std
        padding = [0, (-width) % self.divisor, 0, (-height) % self.divisor]
        features = self.backbone(F.pad(pixels, padding)[None])
        boxes = self._propose([features[name] for name in self.rpn.in_features], limits)
        boxes, scores, classes = self._detect(features, boxes, limits)
        if not self.heads.mask_on:
            return boxes, scores, classes, size
        levels = [features[name] for name in self.heads.mask_in_features]
        logits = self.heads.mask_head.layers(_pool(self.heads.mask_pooler, levels, boxes))
        if logits.shape[1] != 1:
            chosen = classes[:, None, None, None].expand(-1, 1, logits.shape[2], logits.shape[3])
            logits = logits.gather(1, chosen)
        return boxes, scores, classes, logits.sigmoid(), size

    def _propose(self, features: list[torch.Tensor], limits: torch.Tensor) -> torch.Tensor:
        """Boxes (P, 4) worth a look, by RPN."""
        rpn = self.rpn
        boxes, scores = [], []
        all_logits, all_deltas = rpn.rpn_head(features)
        generator = rpn.anchor_generator
        for feature, logits, deltas, cells, stride in zip(
            features, all_logits, all_deltas, generator.cell_anchors, generator.strides, strict=True
        ):
            anchors = _anchors(feature, cells, stride, generator.offset)
            logits = logits[0].permute(1, 2, 0).flatten()
            count = torch.clamp(_tensor(logits.shape[0]), max=rpn.pre_nms_topk[False])
            best, chosen = logits.topk(count)
            deltas = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            found = rpn.box2box_transform.apply_deltas(deltas[chosen], anchors[chosen])
            finite = torch.isfinite(found).all(dim=1) & torch.isfinite(best)
            found, best = _clip(found[finite], limits), best[finite]
            sides = found[:, 2:] - found[:, :2]
            large = (sides > rpn.min_box_size).all(dim=1)
            found, best = found[large], best[large]
            kept = nms(found, best, rpn.nms_thresh)
            boxes.append(found[kept])
            scores.append(best[kept])
        order = torch.cat(scores).argsort(descending=True)
        return torch.cat(boxes)[order[: rpn.post_nms_topk[False]]]

    def _detect(
        self, features: dict[str, torch.Tensor], proposals: torch.Tensor, limits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Boxes, scores and classes above their thresholds, by the box head."""
        heads, predictor = self.heads, self.heads.box_predictor
        levels = [features[name] for name in heads.box_in_features]
        logits, deltas = predictor(heads.box_head(_pool(heads.box_pooler, levels, proposals)))
        found = predictor.box2box_transform.apply_deltas(deltas, proposals)
        if predictor.use_sigmoid_ce:
            probabilities = logits.sigmoid()
        else:
            probabilities = logits.softmax(dim=-1)
        finite = torch.isfinite(found).all(dim=1) & torch.isfinite(probabilities).all(dim=1)
        boxes, scores, classes = [], [], []
        for number in range(len(self.thresholds)):
            score = probabilities[:, number]
            high = finite & (score > predictor.test_score_thresh)
            first = 4 * number if found.shape[1] > 4 else 0
            of_class, score = _clip(found[high, first : first + 4], limits), score[high]
            kept = nms(of_class, score, predictor.test_nms_thresh)
            boxes.append(of_class[kept])
            scores.append(score[kept])
            classes.append(torch.full_like(kept, number))
        score = torch.cat(scores)
        order = score.argsort(descending=True)
        if predictor.test_topk_per_image >= 0:
            order = order[: predictor.test_topk_per_image]
        box, score, label = torch.cat(boxes)[order], score[order], torch.cat(classes)[order]
        above = score > self.thresholds[label]
        return box[above], score[above], label[above]


def _tensor(side: int | torch.Tensor) -> torch.Tensor:
    # Within a trace sides are tensors already, and must stay what was traced.
    return side if isinstance(side, torch.Tensor) else torch.tensor(side)


def _anchors(
    feature: torch.Tensor, cells: torch.Tensor, stride: int, offset: float
) -> torch.Tensor:
    # Running sums of ones: torch.arange would write the device of the trace into it.
    x = (torch.ones_like(feature[0, 0, 0]).cumsum(0) - 1 + offset) * stride
    y = (torch.ones_like(feature[0, 0, :, 0]).cumsum(0) - 1 + offset) * stride
    x, y = x[None] + 0 * y[:, None], y[:, None] + 0 * x[None]
    return (torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4) + cells).reshape(-1, 4)


def _clip(boxes: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    return torch.minimum(boxes.clamp(min=0), limits)


def _pool(pooler: ROIPooler, features: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
    """Detectron2's ``ROIPooler`` for one image; boxes keep their order."""
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    if len(features) == 1:
        return pooler.level_poolers[0](features[0], rois)
    sides = boxes[:, 2:] - boxes[:, :2]
    size = (sides[:, 0] * sides[:, 1]).sqrt()
    level = (pooler.canonical_level + torch.log2(size / pooler.canonical_box_size + 1e-8)).floor()
    level = level.clamp(pooler.min_level, pooler.max_level) - pooler.min_level
    parts, order = [], []
    for number, (align, feature) in enumerate(zip(pooler.level_poolers, features, strict=True)):
        chosen = (level == number).nonzero()[:, 0]
        parts.append(align(feature, rois[chosen]))
        order.append(chosen)
    return torch.cat(parts)[torch.cat(order).argsort()]


def describe(
    predictor: Predictor,
    network: ExportNetwork,
    mask_side: int | None,
    file_name: str,
    file_format: str,
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """Describe an exported model field by field, as docs/export.md explains.

    Args:
        predictor: whose model it is.
        network: the exported module.
        mask_side: M of its M x M masks; None without masks.
        file_name: of the exported file, without its folder.
        file_format: ``"onnx"`` or ``"torchscript"``.
        size: the one height and width in px of its input; None if it takes any.

    Returns:
        Plain values.
    """
    cfg = predictor.cfg
    height, width = size or ("height", "width")
    return {
        "file": file_name,
        "format": file_format,
        "microplastics": microplastics.__version__,
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "checkpoint": os.path.basename(cfg.MODEL.WEIGHTS),
        "checkpoint_sha256": predictor.weights_sha256,
        "class_names": list(predictor.class_names),
        "score_thresholds": dict(
            zip(predictor.class_names, predictor.score_thresholds.tolist(), strict=True)
        ),
        "detections_per_image": network.heads.box_predictor.test_topk_per_image,
        "input": {
            "name": "image",
            "dtype": "uint8",
            "shape": [3, height, width],
            "channels": cfg.INPUT.FORMAT,
        },
        "resize": {
            "rule": "ResizeShortestEdge",
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "interpolation": "Pillow BILINEAR",
        },
        "inside_the_model": {
            "pixel_mean": network.mean.flatten().tolist(),
            "pixel_std": network.std.flatten().tolist(),
            "padding": {"multiple_of": network.divisor, "value": 0, "sides": "right, bottom"},
            "score_thresholds": True,
        },
        "outputs": _outputs(mask_side),
        "masks": _pasting(predictor.mask_threshold) if mask_side else None,
    }


def _pasting(threshold: float) -> dict[str, Any]:
    return {
        "threshold": threshold,
        "paste": "microplastics.structures.crop_masks.CropMasks.paste",
    }


def _outputs(mask_side: int | None) -> list[dict[str, Any]]:
    outputs = [
        ("boxes", "float32", ["detections", 4]),
        ("scores", "float32", ["detections"]),
        ("classes", "int64", ["detections"]),
        ("masks", "float32", ["detections", 1, mask_side, mask_side]),
        ("size", "int64", [2]),
    ]
    return [
        {"name": name, "dtype": dtype, "shape": shape}
        for name, dtype, shape in outputs
        if mask_side or name != "masks"
    ]


Runner = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""Takes a (3, H, W) uint8 tensor and gives the outputs of ``ExportNetwork``."""

# Ten times what untrained networks, whose sums are large, show of rounding.
BOX_TOLERANCE, SCORE_TOLERANCE, PIXEL_TOLERANCE = 2e-2, 1e-3, 1e-2
# Detections that rounding puts on the other side of a threshold or of NMS.
_STRAYS = 0.02
_RENDERED_SIDES = (64, 1024)


def check_exported(
    run: Runner, predictor: Predictor, sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Run an exported model and its predictor on pictures of particles.

    Args:
        run: the exported model.
        predictor: it.
        sizes: height and width in px of the pictures, which are not resized.

    Returns:
        The number of pictures and of detections, of detections that only one of the two has,
        and the largest differences of the others.

    Raises:
        UserError: they do not find the same.
    """
    report = {"pictures": len(sizes), "detections": 0, "unmatched": 0}
    report |= {"boxes_px": 0.0, "scores": 0.0, "mask_pixels_share": 0.0}
    for number, size in enumerate(sizes):
        picture = render_picture(number, size)
        (expected,) = predictor.predict_many([picture], scale=1.0)
        image = network_input(picture, predictor.cfg.INPUT.FORMAT)
        found = to_predictions(run(image), size, predictor.mask_threshold)
        _compare(found, expected, report)
    allowed = 1 + _STRAYS * report["detections"]
    if (
        report["unmatched"] > allowed
        or report["scores"] > SCORE_TOLERANCE
        or report["mask_pixels_share"] > PIXEL_TOLERANCE
    ):
        figures = ", ".join(f"{name} {value:g}" for name, value in report.items())
        raise UserError(
            f"The exported model does not find what the model finds ({figures}), so nothing was "
            "written; try the other --format."
        )
    return report


def to_predictions(
    outputs: Sequence[torch.Tensor], image_size: tuple[int, int], mask_threshold: float = 0.5
) -> Predictions:
    """Bring the outputs of an exported model onto the image, as :class:`Predictor` does.

    Args:
        outputs: of ``ExportNetwork``, with masks or without.
        image_size: height and width in px of the image before it was resized.
        mask_threshold: mask probability from which a pixel belongs to the particle.
    """
    boxes, scores, classes, *masks, size = outputs
    raw = Instances(tuple(size.tolist()))
    raw.pred_boxes, raw.scores, raw.pred_classes = Boxes(boxes), scores, classes
    if masks:
        raw.pred_masks = masks[0]
    result = postprocess(raw, *image_size, mask_threshold)
    return Predictions(image_size, **result.get_fields())


def render_picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """Particles on a filter, uint8 BGR (H, W, 3); each number is another one."""
    side = min(max(*size, _RENDERED_SIDES[0]), _RENDERED_SIDES[1])
    picture = render_image(("export", number), side, um_per_px=2.0)[0]
    repeats = (-(-size[0] // side), -(-size[1] // side), 1)
    return np.ascontiguousarray(np.tile(picture, repeats)[: size[0], : size[1]])


def network_input(image: np.ndarray, channels: str) -> torch.Tensor:
    """Make a BGR image (H, W, 3) of the network's size its input, (3, H, W).

    Args:
        image: uint8.
        channels: ``"BGR"`` or ``"RGB"``, as INPUT.FORMAT.
    """
    ordered = image[:, :, ::-1] if channels == "RGB" else image
    return torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1)))


def _compare(found: Predictions, expected: Predictions, report: dict[str, Any]) -> None:
    """Pair detections of one class by their boxes, and add what differs to the report."""
    report["detections"] += len(expected)
    boxes, others = found.pred_boxes.tensor, expected.pred_boxes.tensor
    apart = (boxes[:, None] - others[None]).abs().amax(dim=2)
    apart[found.pred_classes[:, None] != expected.pred_classes[None]] = torch.inf
    pairs: dict[int, int] = {}
    for row, column in (apart <= BOX_TOLERANCE).nonzero().tolist():
        if row not in pairs and column not in pairs.values():
            pairs[row] = column
    report["unmatched"] += len(found) + len(expected) - 2 * len(pairs)
    if not pairs:
        return
    rows, columns = list(pairs), list(pairs.values())
    scores = (found.scores[rows] - expected.scores[columns]).abs().max()
    report["boxes_px"] = max(report["boxes_px"], float(apart[rows, columns].max()))
    report["scores"] = max(report["scores"], float(scores))
    if expected.has("pred_masks"):
        pixels = differing = 0
        for row, column in pairs.items():
            (mine,), (theirs,) = found.pred_masks[row], expected.pred_masks[column]
            differing += int(np.count_nonzero(mine != theirs))
            pixels += int(np.count_nonzero(theirs))
        share = differing / max(pixels, 1)
        report["mask_pixels_share"] = max(report["mask_pixels_share"], share)


ABOUT_KEY = "microplastics"
"""Where an ONNX file keeps its description: ``metadata_props`` of the model."""
ABOUT_FILE = "microplastics.json"
"""Where a TorchScript file keeps it: one of ``_extra_files``."""

_SUFFIXES = {"onnx": (".onnx",), "torchscript": (".ts", ".pt", ".torchscript")}
FORMATS = tuple(_SUFFIXES)

# The first with RoIAlign's half-pixel rule is 16; torch 2.4 and later write 17.
_OPSET = 17
_SIDES = (32, 8192)
_TRACE_SIDE = 512
_PROTOBUF_LIMIT = 2 * 10**9
# The one by torch.export, the default from torch 2.9 on, stops at Detectron2's convolutions, which
# ask whether their input is empty while its size is unknown.
_TRACING_EXPORTER = (
    {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
)


def export_model(
    predictor: Predictor,
    output: str | os.PathLike,
    file_format: str,
    size: Sequence[int] | None = None,
    dynamic: bool = False,
) -> dict[str, Any]:
    """Write a model as one file, and what one needs to use it as a JSON of the same stem.

    The file holds everything from the resized uint8 image to boxes, scores, classes and the
    probabilities of the masks: see docs/export.md for what comes before and after. It is run once
    beside the predictor on rendered pictures, and not written unless both find the same.

    Args:
        predictor: fp32 and on the CPU; its score thresholds become part of the file.
        output: ``.onnx``; ``.ts``, ``.pt`` or ``.torchscript``.
        file_format: ``"onnx"`` or ``"torchscript"``.
        size: height and width in px of the network's input. An ONNX file with a size takes no
            other, unless ``dynamic``; for TorchScript it is only the one that is traced with.
        dynamic: any size of input, as without ``size``.

    Returns:
        What the JSON holds.

    Raises:
        UserError: the model or an argument does not fit, something is not installed, the exported
            model finds something else, or a file cannot be written.
    """
    output = Path(output)
    _check_arguments(output, file_format, size, predictor)
    fixed = file_format == "onnx" and size is not None and not dynamic
    traced_size = tuple(size) if size is not None else _default_size(predictor.cfg)
    network = _network(predictor)
    example = network_input(render_picture(0, traced_size), predictor.cfg.INPUT.FORMAT)
    with torch.no_grad():
        outputs = network(example)
    about = describe(
        predictor,
        network,
        outputs[-2].shape[-1] if network.heads.mask_on else None,
        output.name,
        file_format,
        traced_size if fixed else None,
    )
    if file_format == "onnx":
        exported = _Onnx(network, example, [each["name"] for each in about["outputs"]], fixed)
    else:
        exported = _TorchScript(network, example)
    sizes = [traced_size] if fixed else [traced_size, _other_size(traced_size)]
    about["check"] = check_exported(exported, predictor, sizes)
    content = exported.content(about)
    about["file_sha256"] = hashlib.sha256(content).hexdigest()
    # The model takes its name first: what can go wrong there leaves no JSON behind.
    with atomic_write(output.with_suffix(".json")) as beside:
        json.dump(about, beside, indent=2)
        with atomic_write(output, "wb") as file:
            file.write(content)
    return about


def _check_arguments(
    output: Path, file_format: str, size: Sequence[int] | None, predictor: Predictor
) -> None:
    if file_format not in _SUFFIXES:
        raise UserError(f"The format is {file_format!r}; use {' or '.join(FORMATS)}.")
    suffixes = _SUFFIXES[file_format]
    if output.suffix not in suffixes:
        raise UserError(
            f"With --format {file_format} the name ends in {' or '.join(suffixes)}, unlike "
            f"{output}."
        )
    if size is not None and not all(_SIDES[0] <= side <= _SIDES[1] for side in size):
        raise UserError(
            f"The size is {' x '.join(map(str, size))} px; each side is {_SIDES[0]} to "
            f"{_SIDES[1]} px."
        )
    if output.exists() and _is_same(output, predictor.cfg.MODEL.WEIGHTS):
        raise UserError(f"{output} is the checkpoint itself; choose another --output.")
    if predictor.precision != "fp32" or torch.device(predictor.cfg.MODEL.DEVICE).type != "cpu":
        raise UserError("Models are exported from the CPU in fp32; set MODEL.DEVICE to cpu.")
    if predictor.mask_threshold != 0.5:
        raise UserError("Masks are pasted outside of the file, by its reader; leave 0.5 here.")
    _check_beside(output)


def _check_beside(output: Path) -> None:
    """Refuse to overwrite a JSON that belongs to another file."""
    beside = output.with_suffix(".json")
    if not beside.exists():
        return
    try:
        with open(beside, "rb") as file:
            owner = json.loads(file.read(1_000_000))["file"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        owner = None
    if owner != output.name:
        raise UserError(f"{beside} belongs to something else; choose another name for --output.")


def _is_same(path: Path, other: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(path, other)
    return False


def _installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"ONNX export needs {name} ({error}); install it with: pip install onnx onnxruntime"
        ) from error


def _default_size(cfg: CfgNode) -> tuple[int, int]:
    side = min(max(cfg.INPUT.MIN_SIZE_TEST or _TRACE_SIDE, _SIDES[0]), _TRACE_SIDE)
    return side, side


def _other_size(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] * 3 // 4 + 13, size[1] * 2 // 3 + 29


def _network(predictor: Predictor) -> ExportNetwork:
    model = predictor.model
    reason = why_not_exportable(model)
    if reason is not None:
        raise UserError(
            f"The model has {reason}, which cannot be exported; use a GeneralizedRCNN with RPN, "
            "StandardROIHeads and ROIAlign."
        )
    # Constants of the file: in plain order, and without inference mode's marks.
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    thresholds = torch.tensor(predictor.score_thresholds, dtype=torch.float32)
    return ExportNetwork(model, thresholds).eval().requires_grad_(False)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the tracer's warnings: what it warns of is what the check looks at."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _tracing(mend: str) -> Iterator[None]:
    """Turn what a tracer says of a layer that it cannot follow into a sentence."""
    try:
        with _silence():
            yield
    except RuntimeError as error:
        words = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"A layer of the model cannot be exported with torch {torch.__version__} "
            f"({type(error).__name__}: {words}); {mend}."
        ) from error


class _TorchScript:
    def __init__(self, network: ExportNetwork, example: torch.Tensor):
        with _tracing("report the config to the project"):
            self._script = torch.jit.trace(network, example, check_trace=False)

    def __call__(self, image: torch.Tensor) -> Sequence[torch.Tensor]:
        with torch.inference_mode():
            return self._script(image)

    def content(self, about: dict[str, Any]) -> bytes:
        buffer = io.BytesIO()
        with _silence():
            torch.jit.save(self._script, buffer, _extra_files={ABOUT_FILE: json.dumps(about)})
        return buffer.getvalue()


class _Onnx:
    def __init__(
        self, network: ExportNetwork, example: torch.Tensor, outputs: Sequence[str], fixed: bool
    ):
        self._onnx, runtime = _installed("onnx"), _installed("onnxruntime")
        weights = [*network.parameters(), *network.buffers()]
        if sum(tensor.numel() * tensor.element_size() for tensor in weights) > _PROTOBUF_LIMIT:
            raise UserError(
                "The weights exceed the 2 GB of an ONNX file; use --format torchscript."
            )
        axes = {name: {0: "detections"} for name in outputs if name != "size"}
        if not fixed:
            axes["image"] = {1: "height", 2: "width"}
        buffer = io.BytesIO()
        with _tracing("use --format torchscript"):
            torch.onnx.export(
                network,
                (example,),
                buffer,
                input_names=["image"],
                output_names=list(outputs),
                dynamic_axes=axes,
                opset_version=_OPSET,
                **_TRACING_EXPORTER,
            )
        self._graph = buffer.getvalue()
        self._session = runtime.InferenceSession(self._graph, providers=["CPUExecutionProvider"])

    def __call__(self, image: torch.Tensor) -> Sequence[torch.Tensor]:
        outputs = self._session.run(None, {"image": image.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    def content(self, about: dict[str, Any]) -> bytes:
        model = self._onnx.load_model_from_string(self._graph)
        self._onnx.helper.set_model_props(model, {ABOUT_KEY: json.dumps(about)})
        self._onnx.checker.check_model(model)
        return model.SerializeToString()
