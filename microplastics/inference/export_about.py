"""What one must know to use an exported model: its JSON."""

import os
from typing import Any

import torch
import torchvision

import microplastics
from microplastics.compat import detectron2_build
from microplastics.inference.export_network import ExportNetwork
from microplastics.inference.predictor import Predictor


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
        "detectron2": detectron2_build(),
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
