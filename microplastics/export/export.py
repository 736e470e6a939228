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
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import ViT
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import nn

import microplastics
from microplastics.inference.predictor import Predictions, Predictor, read_input
from microplastics.inference.stitching.matching import greedy_pairs
from microplastics.modeling.interface import is_staged, rescores
from microplastics.modeling.postprocessing import postprocess
from microplastics.modeling.roi_masks import BoxedMasks
from microplastics.synthetic import render_image
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

ABOUT_KEY = "microplastics"
"""Key of the description in an ONNX file's ``metadata_props``."""
ABOUT_FILE = "microplastics.json"
"""Name of the description among a TorchScript file's ``_extra_files``."""

_SUFFIXES = {"onnx": (".onnx",), "torchscript": (".ts", ".pt", ".torchscript")}
FORMATS = tuple(_SUFFIXES)

# Ten times what untrained networks, whose sums are large, show of rounding.
BOX_TOLERANCE, SCORE_TOLERANCE, PIXEL_TOLERANCE = 2e-2, 1e-3, 1e-2
# Fraction of detections that rounding may put on the other side of a threshold or of NMS.
_STRAYS = 0.02
_RENDERED_SIDES = (64, 1024)

# The first with RoIAlign's half-pixel rule is 16; torch 2.4 and later write 17.
_OPSET = 17
_SIDES = (32, 8192)
_TRACE_SIDE = 512
# Rendered pictures among which one with a detection is sought.
_EXAMPLES = 4
# The one by torch.export, the default from torch 2.9 on, stops at Detectron2's convolutions, which
# ask whether their input is empty while its size is unknown.
_TRACING_EXPORTER = (
    {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
)

Runner = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""Takes a (3, H, W) uint8 tensor and gives the outputs of :class:`ExportNetwork`."""
Writer = Callable[[dict[str, Any]], bytes]
"""Takes the description of an exported model and gives the content of its file."""


def export_model(
    predictor: Predictor,
    output: str | os.PathLike,
    file_format: str,
    size: Sequence[int] | None = None,
    dynamic: bool = False,
) -> dict[str, Any]:
    """Write a model as one file, and its description as a JSON of the same stem.

    The file holds everything from the resized uint8 image to boxes, scores, classes and the
    probabilities of the masks; docs/export.md explains the steps before and after. It is written
    only if it finds on rendered pictures what the predictor finds.

    Args:
        predictor: fp32 and on the CPU; its score thresholds become part of the file.
        output: ``.onnx``; ``.ts``, ``.pt`` or ``.torchscript``.
        file_format: ``"onnx"`` or ``"torchscript"``.
        size: height and width in px of the network's input. An ONNX file with a size takes no
            other, unless ``dynamic``; TorchScript is only traced with it.
        dynamic: any size of input, as without ``size``.

    Returns:
        The content of the JSON.

    Raises:
        UserError: export_unsupported (the model, or the exported model finds something else),
            option_invalid, output_exists, dependency_missing, not_writable.
    """
    output = Path(output)
    fixed = file_format == "onnx" and size is not None and not dynamic
    _check_arguments(output, file_format, size, predictor, fixed)
    if size is None:
        side = predictor.cfg.INPUT.MIN_SIZE_TEST or _TRACE_SIDE
        size = (min(max(side, _SIDES[0]), _TRACE_SIDE),) * 2
    network = ExportNetwork(predictor)
    example, masks = _example(network, predictor, size)
    about = {"file": output.name, "format": file_format}
    about |= _describe(predictor, masks, size if fixed else ("height", "width"))
    run, content_with = _EXPORTERS[file_format](network, example, about)
    sizes = [size] if fixed else [size, (size[0] * 3 // 4 + 13, size[1] * 2 // 3 + 29)]
    about["check"] = _check_exported(run, predictor, sizes)
    content = content_with(about)
    about["file_sha256"] = hashlib.sha256(content).hexdigest()
    # The model is renamed first: if that fails, no JSON is left behind.
    with atomic_write(output.with_suffix(".json")) as beside:
        json.dump(about, beside, indent=2)
        with atomic_write(output, "wb") as file:
            file.write(content)
    return about


class ExportNetwork(nn.Module):
    """Detectron2's own inference from one resized image to tensors, cut by score before masks."""

    def __init__(self, predictor: Predictor):
        """
        Args:
            predictor: of a staged model (:func:`interface.is_staged`), which is copied.
        """
        super().__init__()
        # Constants of the file: in plain order, and without inference mode's marks.
        self.model = copy.deepcopy(predictor.model).to(memory_format=torch.contiguous_format)
        thresholds = torch.tensor(predictor.score_thresholds, dtype=torch.float32)
        self.register_buffer("thresholds", thresholds)
        self.eval().requires_grad_(False)

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
            mask_boxes: (N, 4) float32, the boxes that the masks lie in; left out if these are
                ``boxes``.
            size: (2,) int64, H and W.
        """
        images = self.model.preprocess_image([{"image": image}])
        features = self.model.backbone(images.tensor)
        proposals, _ = self.model.proposal_generator(images, features, None)
        heads = self.model.roi_heads
        if isinstance(heads, StandardROIHeads):
            found = self._above(heads._forward_box(features, proposals)[0])
            (found,) = heads.forward_with_given_boxes(features, [found])
            if rescores(self.model):
                found = self._above(found)
                found = found[found.scores.argsort(descending=True)]
        else:
            found = self._above(heads(images, features, proposals, None)[0][0])
        masks = _mask_outputs(found.pred_masks) if found.has("pred_masks") else []
        # Within a trace it is a tensor already, and must stay what was traced.
        size = images.image_sizes[0]
        size = size if isinstance(size, torch.Tensor) else torch.tensor(size)
        return found.pred_boxes.tensor, found.scores, found.pred_classes, *masks, size

    def _above(self, found: Instances) -> Instances:
        return found[found.scores > self.thresholds[found.pred_classes]]


def _mask_outputs(masks: torch.Tensor | ROIMasks) -> list[torch.Tensor]:
    if isinstance(masks, BoxedMasks):
        return [masks.tensor[:, None], masks.boxes]
    if isinstance(masks, ROIMasks):
        raise UserError(
            f"The mask head predicts {type(masks).__name__}; expected masks on a grid in a box, "
            "which a reader without this package can paste.",
            code="export_unsupported",
        )
    return [masks]


def _describe(
    predictor: Predictor, masks: Sequence[torch.Tensor], size: Sequence[int | str]
) -> dict[str, Any]:
    """Describe an exported model field by field, as docs/export.md explains."""
    cfg, model = predictor.cfg, predictor.model
    outputs = [
        ("boxes", "float32", ["detections", 4]),
        ("scores", "float32", ["detections"]),
        ("classes", "int64", ["detections"]),
        *(
            (name, "float32", ["detections", *each.shape[1:]])
            for name, each in zip(("masks", "mask_boxes"), masks, strict=False)
        ),
        ("size", "int64", [2]),
    ]
    return {
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
        "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "input": {
            "name": "image",
            "dtype": "uint8",
            "shape": [3, *size],
            "channels": cfg.INPUT.FORMAT,
        },
        "resize": {
            "rule": "ResizeShortestEdge",
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "interpolation": "Pillow BILINEAR",
        },
        "inside_the_model": {
            "pixel_mean": model.pixel_mean.flatten().tolist(),
            "pixel_std": model.pixel_std.flatten().tolist(),
            "padding": {
                "multiple_of": max(1, model.backbone.size_divisibility),
                "value": 0,
                "sides": "right, bottom",
            },
            "score_thresholds": True,
        },
        "outputs": [
            {"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in outputs
        ],
        "masks": (
            {
                "threshold": predictor.mask_threshold,
                "paste": "microplastics.structures.crop_masks.CropMasks.paste",
            }
            if masks
            else None
        ),
    }


def _check_exported(
    run: Runner, predictor: Predictor, sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Compare an exported model with its predictor on rendered pictures of some sizes.

    Returns the numbers of pictures, of detections and of detections that only one of the two
    has, and the largest differences of the others, which are an error if they are too large.
    """
    report = {"pictures": len(sizes), "detections": 0, "unmatched": 0}
    report |= {"boxes_px": 0.0, "scores": 0.0, "mask_pixels_share": 0.0}
    for number, size in enumerate(sizes):
        picture = _render(number, size)
        (expected,) = predictor.predict_many([picture], scale=1.0)
        outputs = run(read_input(picture, predictor.cfg, 1.0)[0])
        _compare(to_predictions(outputs, size, predictor.mask_threshold), expected, report)
    if (
        report["unmatched"] > 1 + _STRAYS * report["detections"]
        or report["scores"] > SCORE_TOLERANCE
        or report["mask_pixels_share"] > PIXEL_TOLERANCE
    ):
        figures = ", ".join(f"{name} {value:g}" for name, value in report.items())
        raise UserError(
            f"The exported model differs from the checkpoint ({figures}) and was not written; try "
            "the other --format.",
            code="export_unsupported",
        )
    return report


def _compare(found: Predictions, expected: Predictions, report: dict[str, Any]) -> None:
    """Pair detections of a class by their boxes, and add their differences to the report."""
    boxes, others = found.pred_boxes.tensor, expected.pred_boxes.tensor
    apart = (boxes[:, None] - others[None]).abs().amax(dim=2)
    apart[found.pred_classes[:, None] != expected.pred_classes[None]] = torch.inf
    pairs = greedy_pairs(-apart.numpy(), -BOX_TOLERANCE)
    report["detections"] += len(expected)
    report["unmatched"] += len(found) + len(expected) - 2 * len(pairs)
    pixels = differing = 0
    for row, column in pairs:
        score = float(abs(found.scores[row] - expected.scores[column]))
        report["boxes_px"] = max(report["boxes_px"], float(apart[row, column]))
        report["scores"] = max(report["scores"], score)
        if expected.has("pred_masks"):
            (mine,), (theirs,) = found.pred_masks[row], expected.pred_masks[column]
            differing += int(np.count_nonzero(mine != theirs))
            pixels += int(np.count_nonzero(theirs))
    report["mask_pixels_share"] = max(report["mask_pixels_share"], differing / max(pixels, 1))


def to_predictions(
    outputs: Sequence[torch.Tensor], image_size: tuple[int, int], mask_threshold: float = 0.5
) -> Predictions:
    """Bring the outputs of an exported model onto the image, like :class:`Predictor`.

    Args:
        outputs: of ``ExportNetwork``, with masks or without.
        image_size: height and width in px of the image before it was resized.
        mask_threshold: mask probability from which a pixel belongs to the particle.
    """
    boxes, scores, classes, *masks, size = outputs
    raw = Instances(tuple(size.tolist()))
    raw.pred_boxes, raw.scores, raw.pred_classes = Boxes(boxes), scores, classes
    if len(masks) == 2:
        raw.pred_masks = BoxedMasks(masks[0][:, 0], masks[1], raw.image_size)
    elif masks:
        raw.pred_masks = masks[0]
    result = postprocess(raw, *image_size, mask_threshold)
    return Predictions(image_size, **result.get_fields())


def _render(number: int, size: tuple[int, int]) -> np.ndarray:
    """Render particles on a filter, uint8 BGR (H, W, 3); each number gives another picture."""
    side = min(max(*size, _RENDERED_SIDES[0]), _RENDERED_SIDES[1])
    picture = render_image(("export", number), side, um_per_px=2.0)[0]
    repeats = (-(-size[0] // side), -(-size[1] // side), 1)
    return np.tile(picture, repeats)[: size[0], : size[1]]


def _owner(beside: Path) -> str | None:
    """Return the name of the file that a JSON of an export belongs to."""
    try:
        with open(beside, "rb") as file:
            return json.loads(file.read(1_000_000))["file"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _check_arguments(
    output: Path,
    file_format: str,
    size: Sequence[int] | None,
    predictor: Predictor,
    fixed: bool,
) -> None:
    code, wrong = "export_unsupported", None
    cfg, beside = predictor.cfg, output.with_suffix(".json")
    how = predictor.precision, torch.device(cfg.MODEL.DEVICE).type, predictor.mask_threshold
    if output.suffix not in _SUFFIXES.get(file_format, ()):
        code = "option_invalid"
        expected = (f"{name} with {' or '.join(ends)}" for name, ends in _SUFFIXES.items())
        wrong = f"The format is {file_format} and the output {output}; expected "
        wrong += f"{', '.join(expected)}."
    elif size is not None and not all(_SIDES[0] <= side <= _SIDES[1] for side in size):
        code = "option_invalid"
        wrong = f"The size is {' x '.join(map(str, size))} px; expected sides from {_SIDES[0]} to "
        wrong += f"{_SIDES[1]} px."
    elif os.path.realpath(output) == os.path.realpath(cfg.MODEL.WEIGHTS):
        code = "output_exists"
        wrong = f"{output} is the checkpoint itself; choose another --output."
    elif beside.exists() and _owner(beside) != output.name:
        code = "output_exists"
        wrong = f"{beside} belongs to another file; choose another name for --output."
    elif how != ("fp32", "cpu", 0.5):
        wrong = "The model is {} on {} with a mask threshold of {}; expected fp32 on the ".format(
            *how
        )
        wrong += (
            "CPU (MODEL.DEVICE cpu) with 0.5, since masks are pasted by the reader of the file."
        )
    elif not is_staged(predictor.model):
        wrong = f"The architecture is {cfg.MODEL.META_ARCHITECTURE}; expected a GeneralizedRCNN "
        wrong += "with RPN."
    elif cfg.MODEL.ROI_HEADS.NMS != "box":
        wrong = f"MODEL.ROI_HEADS.NMS is {cfg.MODEL.ROI_HEADS.NMS}; expected box, since the others "
        wrong += "depend on each detection in turn: add MODEL.ROI_HEADS.NMS box."
    elif cfg.TEST.AUG.ENABLED:
        wrong = (
            "TEST.AUG.ENABLED is True; expected False, since a file holds one pass of the model."
        )
    elif predictor.model.backbone.padding_constraints.get("square_size"):
        wrong = f"The backbone {cfg.MODEL.BACKBONE.NAME} pads inputs to a square; expected padding "
        wrong += "to a multiple of some pixels."
    elif not fixed and any(isinstance(module, ViT) for module in predictor.model.modules()):
        wrong = "The backbone is a vision transformer, whose positions are traced for one size of "
        wrong += "image; expected the format onnx with a size, and not dynamic."
    if wrong:
        raise UserError(wrong, code=code)


def _installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"The package {name} is not available ({error}), but ONNX export needs it; run pip "
            "install onnx onnxruntime.",
            code="dependency_missing",
        ) from error


def _example(
    network: ExportNetwork, predictor: Predictor, size: tuple[int, int]
) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """Choose an input to trace with, and learn the outputs of the mask head, if there is one."""
    for number in range(_EXAMPLES):
        example = read_input(_render(number, size), predictor.cfg, 1.0)[0]
        outputs = network(example)
        if len(outputs[0]):
            break
    else:
        head = getattr(predictor.model.roi_heads, "mask_head", None)
        if predictor.has_masks and not isinstance(head, BaseMaskRCNNHead):
            raise UserError(
                f"The model finds nothing on rendered pictures, without which its "
                f"{type(head).__name__} cannot be traced; lower --confidence-threshold.",
                code="export_unsupported",
            )
    return example, outputs[3:-1]


@contextlib.contextmanager
def _tracing(fix: str) -> Iterator[None]:
    """Trace Detectron2's code, whose ``len`` must stay a tensor; name what cannot be traced.

    The tracer's warnings are silenced: the check looks at what it warns of.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad(), patch_builtin_len():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        # The network has run without a trace: what fails now is the tracer or the exporter.
        words = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"A layer of the model cannot be exported with torch {torch.__version__} "
            f"({type(error).__name__}: {words}); {fix}.",
            code="export_unsupported",
        ) from error


def _torchscript(
    network: ExportNetwork, example: torch.Tensor, about: dict[str, Any]
) -> tuple[Runner, Writer]:
    with _tracing("try --format onnx"):
        script = torch.jit.trace(network, example, check_trace=False)

    def content(about: dict[str, Any]) -> bytes:
        buffer = io.BytesIO()
        with _tracing("try --format onnx"):
            torch.jit.save(script, buffer, _extra_files={ABOUT_FILE: json.dumps(about)})
        return buffer.getvalue()

    return torch.inference_mode()(script), content


def _onnx(
    network: ExportNetwork, example: torch.Tensor, about: dict[str, Any]
) -> tuple[Runner, Writer]:
    onnx, runtime = _installed("onnx"), _installed("onnxruntime")
    # A side that may vary has a word in its place.
    axes = {
        each["name"]: {k: side for k, side in enumerate(each["shape"]) if isinstance(side, str)}
        for each in (about["input"], *about["outputs"])
    }
    buffer = io.BytesIO()
    with _tracing("use --format torchscript"):
        torch.onnx.export(
            network,
            (example,),
            buffer,
            input_names=["image"],
            output_names=[each["name"] for each in about["outputs"]],
            dynamic_axes=axes,
            opset_version=_OPSET,
            **_TRACING_EXPORTER,
        )
    session = runtime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])

    def run(image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(each) for each in session.run(None, {"image": image.numpy()})]

    def content(about: dict[str, Any]) -> bytes:
        model = onnx.load_model_from_string(buffer.getvalue())
        onnx.helper.set_model_props(model, {ABOUT_KEY: json.dumps(about)})
        onnx.checker.check_model(model)
        return model.SerializeToString()

    return run, content


_EXPORTERS = {"onnx": _onnx, "torchscript": _torchscript}
