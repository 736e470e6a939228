"""Convolutional networks of ``timm`` as Detectron2 backbones."""

import copy
import difflib
import functools
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from microplastics.modeling.backbone.fpn import build_fpn
from microplastics.utils.errors import UserError

_STRIDES = {f"res{stage}": 2**stage for stage in range(1, 6)}


class TimmBackbone(Backbone):
    """A ``timm`` network that returns its feature maps by stride.

    Frozen stages stay in evaluation mode, norm layers and stochastic depth included, and no
    gradients are computed through them.
    """

    def __init__(
        self,
        name: str,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        *,
        freeze_at: int = 0,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        image_format: str = "RGB",
    ):
        """
        Args:
            name: a model of ``timm.list_models()`` with convolutional features.
            out_features: ``res1`` to ``res5``, the feature maps of strides 2, 4, 8, 16 and 32.
            freeze_at: the stages up to ``res<freeze_at>`` are frozen, as with Detectron2's
                MODEL.BACKBONE.FREEZE_AT; 0 freezes none and 5 all.
            pixel_mean, pixel_std: what the detector normalises its input with, 0 to 255, in the
                order of ``image_format``. The input is normalised anew as ``timm`` trained the
                network. ``None`` takes it as it is.
            image_format: ``RGB`` or ``BGR``.

        Raises:
            UserError: config_invalid; the network or one of its strides does not exist.
        """
        super().__init__()
        self.channels = channels = 3 if pixel_mean is None else len(pixel_mean)
        self.body = _create(name, channels)
        levels = {
            reduction: index for index, reduction in enumerate(self.body.feature_info.reduction())
        }
        missing = [each for each in out_features if _STRIDES.get(each) not in levels]
        if missing:
            has = [each for each, stride in _STRIDES.items() if stride in levels]
            raise UserError(
                f"MODEL.TIMM.NAME {name} has no feature map {', '.join(missing)}; expected "
                f"MODEL.FPN.IN_FEATURES of {', '.join(has) or 'another network'}.",
                code="config_invalid",
            )
        self._out_features = list(out_features)
        self._indices = {each: levels[_STRIDES[each]] for each in out_features}
        self._out_feature_strides = {each: _STRIDES[each] for each in out_features}
        widths = self.body.feature_info.channels()
        self._out_feature_channels = {each: widths[i] for each, i in self._indices.items()}
        self._renormalise(name, channels, pixel_mean, pixel_std, image_format)
        self._frozen = self._freeze(freeze_at)

    def _renormalise(self, name, channels, mean, std, image_format) -> None:
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)
        self.order = None
        if channels != 3 or mean is None:
            return
        import timm

        # In numpy: the model may be built on the meta device, where numbers cannot be compared.
        order = [2, 1, 0] if image_format == "BGR" else [0, 1, 2]
        given_mean, given_std = (np.asarray(v, np.float64)[order] for v in (mean, std))
        wanted = timm.get_pretrained_cfg(name)
        wanted_mean, wanted_std = (255 * np.asarray(v) for v in (wanted.mean, wanted.std))
        scale, shift = given_std / wanted_std, (given_mean - wanted_mean) / wanted_std
        if image_format == "BGR":
            self.order = order
        # Half a grey level makes no difference to a network.
        if np.abs(scale - 1).max() > 0.01 or (np.abs(shift) * wanted_std).max() > 1:
            for key, values in (("scale", scale), ("shift", shift)):
                values = torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1)
                self.register_buffer(key, values, persistent=False)

    def _freeze(self, freeze_at: int) -> list[nn.Module]:
        """Freeze the stages up to ``res<freeze_at>`` and return their modules."""
        info = self.body.feature_info
        last = [
            module
            for reduction, module in zip(info.reduction(), info.module_name(), strict=True)
            if reduction <= 2**freeze_at
        ]
        if freeze_at < 1 or not last:
            return []
        modules = list(self.body.named_modules())
        ends = (last[-1], last[-1].replace(".", "_"))  # timm flattens some names
        inside = [
            index
            for index, (path, _) in enumerate(modules)
            if path in ends or path.startswith(tuple(f"{end}." for end in ends))
        ]
        frozen = [module for _, module in modules[: inside[-1] + 1]]
        for module in frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        return frozen

    def train(self, mode: bool = True) -> "TimmBackbone":
        super().train(mode)
        for module in self._frozen:  # among them the parents of stages that are trained
            module.training = False
        return self

    def fold_norms(self) -> None:
        """Fold batch norms into the convolutions before them, for inference only.

        A network in which something else needs the output of such a convolution, as in networks
        with norms before convolutions, stays as it is.
        """
        body = copy.deepcopy(self.body).eval()
        weight = next(body.parameters())
        x = torch.linspace(-2, 2, self.channels * 64 * 64).reshape(1, -1, 64, 64).to(weight)
        with torch.no_grad():
            before, pairs = _norms_after_convolutions(body, x)
            for norm, convolution in pairs:
                layer = body.get_submodule(norm)
                fused = fuse_conv_bn_eval(body.get_submodule(convolution), layer)
                _replace(body, convolution, fused)
                # timm's norms hold the activation after them.
                rest = [getattr(layer, each, nn.Identity()) for each in ("drop", "act")]
                _replace(body, norm, nn.Sequential(*rest))
            if all(map(_nearly_equal, body(x), before)):
                self.body, self._frozen = body, []

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            x: (N, C, H, W) normalised images.

        Returns:
            (N, C_i, H / stride, W / stride) feature maps by name.
        """
        if self.order is not None:
            x = x[:, self.order]
        if self.scale is not None:
            x = x * self.scale + self.shift
        features = self.body(x)
        return {name: features[index] for name, index in self._indices.items()}


def _create(name: str, channels: int) -> nn.Module:
    """Build the network without its classifier, from random weights."""
    import timm  # takes a second, which models of other backbones need not pay

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {close[0]}?" if close else "see timm.list_models()."
        raise UserError(
            f"MODEL.TIMM.NAME is {name!r}, which timm does not have; {hint}", code="config_invalid"
        )
    try:
        body = timm.create_model(name, features_only=True, pretrained=False, in_chans=channels)
        # Networks for one input size, and those with features in another order, stop here.
        with torch.no_grad():
            features = body.eval()(torch.zeros(1, channels, 64, 96))
        body.train()
        fits = all(
            each.shape[1:] == (width, 64 // stride, 96 // stride)
            for each, width, stride in zip(
                features,
                body.feature_info.channels(),
                body.feature_info.reduction(),
                strict=True,
            )
        )
        if not fits:
            raise ValueError("its feature maps are not (N, C, H / stride, W / stride)")
    except MemoryError:
        raise
    except Exception as error:  # each network stops in its own way, with any type of error
        raise UserError(
            f"MODEL.TIMM.NAME {name} does not return feature maps of any image size "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); expected a "
            "convolutional network such as resnet18 or tf_efficientnet_lite0.",
            code="config_invalid",
        ) from error
    return body


def _norms_after_convolutions(
    body: nn.Module, x: torch.Tensor
) -> tuple[list[torch.Tensor], list[tuple[str, str]]]:
    """Run a network; return its features and the paths of norms whose input a convolution made."""
    made, pairs = {}, []

    def hook(module: nn.Module, inputs: tuple, output: torch.Tensor, *, path: str) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = path, output  # kept, so that no other tensor gets its id
        elif id(inputs[0]) in made:
            pairs.append((path, made[id(inputs[0])][0]))

    layers = [
        (path, module)
        for path, module in body.named_modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
    ]
    hooks = [m.register_forward_hook(functools.partial(hook, path=path)) for path, m in layers]
    features = body(x)
    for each in hooks:
        each.remove()
    return features, pairs


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")  # Module.set_submodule came with torch 2.5
    setattr(root.get_submodule(parent), name, module)


def _nearly_equal(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-3 * theirs.abs().max())


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a feature pyramid on the network MODEL.TIMM.NAME.

    MODEL.FPN.IN_FEATURES names its levels by Detectron2's names for ResNets: ``res2`` is the
    feature map of stride 4. ``input_shape`` is not used: the channels are those of PIXEL_MEAN.
    """
    return build_fpn(cfg, _from_config(cfg, cfg.MODEL.FPN.IN_FEATURES))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the network MODEL.TIMM.NAME without a feature pyramid.

    MODEL.RESNETS.OUT_FEATURES names its feature maps, as for Detectron2's own ResNets.
    """
    return _from_config(cfg, cfg.MODEL.RESNETS.OUT_FEATURES)


def _from_config(cfg: CfgNode, out_features: Sequence[str]) -> TimmBackbone:
    model = cfg.MODEL
    return TimmBackbone(
        model.TIMM.NAME,
        out_features,
        freeze_at=model.BACKBONE.FREEZE_AT,
        pixel_mean=model.PIXEL_MEAN,
        pixel_std=model.PIXEL_STD,
        image_format=cfg.INPUT.FORMAT,
    )
