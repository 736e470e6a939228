"""A copy of a trained model that does the same sums faster."""

import copy

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import StandardROIHeads
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

PRECISIONS = ("fp32", "bf16")


def inference_copy(model: nn.Module, precision: str = "fp32") -> nn.Module:
    """Copy a model and make the copy fast; it can no longer be trained.

    Batch norms, frozen or in evaluation mode, are folded into their convolutions
    (``w' = w g / sqrt(var + eps)``, ``b' = (b - mean) g / sqrt(var + eps) + beta``, in float64),
    and convolutions are kept in NHWC order. In bf16 the weights of the backbone and the heads
    are bf16 too, except for the last layer of the RPN and of the box head, so that scores,
    objectness and box coordinates stay fp32.

    Args:
        model: a Detectron2 model; it is not changed.
        precision: ``"fp32"`` or ``"bf16"``. In bf16 the backbone of the copy gives bf16 features:
            cast them to fp32 before Detectron2's ``ROIAlign``, which reads box coordinates in the
            type of the features (steps of 4 px at 512 to 1024 in bf16).

    Returns:
        The copy, in evaluation mode and without gradients.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for module in model.modules():
            # A subclass with a forward of its own may use its norm in another way.
            if isinstance(module, Conv2d) and type(module).forward is Conv2d.forward:
                _fold(module)
        if precision == "bf16":
            _use_bf16(model)
    return model.to(memory_format=torch.channels_last)


def _fold(conv: Conv2d) -> None:
    norm = conv.norm
    if not isinstance(norm, (FrozenBatchNorm2d, _BatchNorm)) or norm.running_mean is None:
        return
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    bias = -mean if conv.bias is None else conv.bias.double() - mean
    bias = bias * gain
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = conv.weight.double() * gain.reshape(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    conv.norm = None


def _use_bf16(model: nn.Module) -> None:
    if hasattr(model, "backbone"):
        _cast(model.backbone)
    rpn_head = getattr(getattr(model, "proposal_generator", None), "rpn_head", None)
    if isinstance(rpn_head, StandardRPNHead):
        _cast(rpn_head.conv)
        _cast(rpn_head.objectness_logits, torch.float32)
        _cast(rpn_head.anchor_deltas, torch.float32)
    heads = getattr(model, "roi_heads", None)
    if isinstance(heads, StandardROIHeads):
        _cast(heads.box_head)
        _cast(heads.box_predictor, torch.float32)
        if heads.mask_on:
            _cast(heads.mask_head)
            predictor = getattr(heads.mask_head, "predictor", None)
            if isinstance(predictor, nn.Module):
                # Sums near the threshold are fine in bf16, their sigmoid is not.
                predictor.register_forward_hook(lambda _module, _inputs, logits: logits.float())


def _cast(root: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Keep convolutions and linear layers in a type, norms and the rest in fp32.

    Each module turns its inputs into the type of its own weights.
    """
    for module in root.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not own:
            continue
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
        module.register_forward_pre_hook(_inputs_in(own[0].dtype))


def _inputs_in(dtype: torch.dtype):
    def cast(_module: nn.Module, inputs: tuple) -> tuple:
        return tuple(
            x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for x in inputs
        )

    return cast
