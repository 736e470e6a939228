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
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode

from microplastics.errors import UserError
from microplastics.files import atomic_write
from microplastics.inference.export_about import describe
from microplastics.inference.export_check import check_exported, network_input, render_picture
from microplastics.inference.export_network import ExportNetwork, why_not_exportable
from microplastics.inference.predictor import Predictor

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
