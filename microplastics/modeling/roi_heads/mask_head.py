"""Detectron2's mask head with more sizes, losses and branches."""

from collections import OrderedDict
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, cat
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import (
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import Instances
from torch import nn
from torch.nn import functional as F

from microplastics.modeling.roi_heads import mask_loss
from microplastics.utils.errors import UserError


@ROI_MASK_HEAD_REGISTRY.register()
class ParticleMaskHead(MaskRCNNConvUpsampleHead):
    """``MaskRCNNConvUpsampleHead`` with options; without any it is the same network.

    Its weights have the same names, so that checkpoints of the one start the other.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: list[int],
        upsamplings: int = 1,
        loss: mask_loss.Loss = mask_loss.bce,
        boundary_weight: float = 0.0,
        iou_weight: float = 0.0,
        iou_dims: tuple[int, int] = (256, 1024),
        **kwargs: Any,
    ):
        """
        Args:
            input_shape, num_classes, conv_dims, kwargs: of Detectron2's head.
            upsamplings: number of times that a transposed convolution doubles the pooler's
                resolution.
            loss: of the masks of the true class.
            boundary_weight: of the loss of a :class:`BoundaryBranch`; 0 for none.
            iou_weight: of the loss of a :class:`MaskIoUHead`; 0 for none.
            iou_dims: its channels, of convolutions and linear layers.
        """
        super().__init__(input_shape, num_classes=num_classes, conv_dims=conv_dims, **kwargs)
        before = conv_dims[-2] if len(conv_dims) > 1 else input_shape.channels
        self._set_upsamplings(before, conv_dims[-1], upsamplings)
        self.loss = loss
        weights = {"loss_boundary": boundary_weight, "loss_mask_iou": iou_weight}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.boundary = self.iou_head = None
        if boundary_weight:
            self.boundary = BoundaryBranch(before, conv_dims[-1], num_classes, upsamplings)
        if iou_weight:
            self.iou_head = MaskIoUHead(input_shape, num_classes, *iou_dims)

    def _set_upsamplings(self, before: int, channels: int, number: int) -> None:
        predictor = self._modules.pop("predictor")
        first = [self._modules.pop(name) for name in ("deconv", "deconv_relu")]
        if number:
            self.add_module("deconv", first[0])
            self.add_module("deconv_relu", first[1])
        elif before != channels:
            raise UserError(
                "MODEL.ROI_MASK_HEAD.NUM_CONV and UPSAMPLINGS are 0; expected one of them above 0.",
                code="config_invalid",
            )
        for name, layer in _upsampling(channels, number, start=2).items():
            self.add_module(name, layer)
        self.add_module("predictor", predictor)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        options, head = super().from_config(cfg, input_shape), cfg.MODEL.ROI_MASK_HEAD
        if not 0 <= head.UPSAMPLINGS <= 4:
            raise UserError(
                f"MODEL.ROI_MASK_HEAD.UPSAMPLINGS is {head.UPSAMPLINGS}; expected 0 to 4.",
                code="config_invalid",
            )
        for name in ("BOUNDARY", "IOU_HEAD"):
            if head[name].ENABLED and not head[name].LOSS_WEIGHT > 0:
                raise UserError(
                    f"MODEL.ROI_MASK_HEAD.{name}.LOSS_WEIGHT is {head[name].LOSS_WEIGHT}; expected "
                    "more than 0, or ENABLED False.",
                    code="config_invalid",
                )
        return {
            **options,
            "upsamplings": head.UPSAMPLINGS,
            "loss": mask_loss.build_loss(head.LOSSES, head.GCE_Q, head.SDT_RADIUS),
            "boundary_weight": head.BOUNDARY.LOSS_WEIGHT if head.BOUNDARY.ENABLED else 0.0,
            "iou_weight": head.IOU_HEAD.LOSS_WEIGHT if head.IOU_HEAD.ENABLED else 0.0,
            "iou_dims": (head.IOU_HEAD.CONV_DIM, head.IOU_HEAD.FC_DIM),
        }

    @property
    def rescores(self) -> bool:
        """Whether the scores of detections change with their masks."""
        return self.iou_head is not None

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """Predict (N, K or 1, M, M) logits of masks from (N, C, P, P) features of RoIs."""
        return self._masks_and_boundaries(x)[0]

    def _masks_and_boundaries(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Predict logits of masks and, in training, of their boundaries."""
        boundaries = None
        for layer in self.conv_norm_relus:
            x = layer(x)
        if self.boundary is not None:
            x, edges = self.boundary(x)
            boundaries = self.boundary.predict(edges) if self.training else None
        for name, layer in self.named_children():
            if name.startswith(("deconv", "predictor")):
                x = layer(x)
        return x, boundaries

    def forward(
        self, x: torch.Tensor, instances: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """
        Args:
            x: (N, C, P, P) features of all RoIs.
            instances: of each image; in training the foreground proposals with their particles.

        Returns:
            In training the losses; else the instances with ``pred_masks`` and, with the mask-IoU
            head, with their scores times the IoU that it expects.
        """
        logits, boundaries = self._masks_and_boundaries(x)
        if self.training:
            return self._losses(x, logits, boundaries, instances)
        mask_rcnn_inference(logits, instances)
        if self.iou_head is not None:
            self._rescore(x, instances)
        return instances

    def _losses(
        self,
        x: torch.Tensor,
        logits: torch.Tensor,
        boundaries: torch.Tensor | None,
        instances: list[Instances],
    ) -> dict[str, torch.Tensor]:
        instances = [each for each in instances if len(each)]
        # Detectron2's loss also logs how many cells are right.
        plain = mask_rcnn_loss(logits, instances, self.vis_period)
        if self.loss is mask_loss.bce and not self.weights:
            return {"loss_mask": plain * self.loss_weight}
        if not instances:  # the same losses, of nothing, from all layers
            unused = [boundaries] if boundaries is not None else []
            unused += [self.iou_head(x, logits[:, :1])] if self.iou_head is not None else []
            nothing = plain + sum(each.sum() * 0 for each in unused)
            return dict.fromkeys(("loss_mask", *self.weights), nothing)
        truth = cat([_cut(each, logits.shape[-1]) for each in instances])
        classes = cat([each.gt_classes for each in instances])
        logits = _of_class(logits, classes)
        loss = plain if self.loss is mask_loss.bce else self.loss(logits, truth)
        losses = {"loss_mask": loss * self.loss_weight}
        if boundaries is not None:
            losses["loss_boundary"] = mask_loss.boundary(_of_class(boundaries, classes), truth)
        if self.iou_head is not None:
            # Detached: the masks should be right, and not easy to judge.
            expected = self.iou_head(x, logits.detach().sigmoid()[:, None])
            areas = cat([_area_in_cells(each, logits.shape[-1]) for each in instances])
            iou = mask_loss.mask_iou(logits > 0, truth, areas)
            losses["loss_mask_iou"] = F.mse_loss(_of_class(expected, classes).float(), iou)
        return {name: loss * self.weights.get(name, 1.0) for name, loss in losses.items()}

    def _rescore(self, x: torch.Tensor, instances: list[Instances]) -> None:
        masks = cat([each.pred_masks for each in instances])
        classes = cat([each.pred_classes for each in instances])
        factors = _of_class(self.iou_head(x, masks), classes).float().clamp(0, 1)
        parts = factors.split([each.scores.shape[0] for each in instances])
        for each, part in zip(instances, parts, strict=True):
            each.scores = each.scores * part


class BoundaryBranch(nn.Module):
    """Predicts the boundaries of masks from features of its own, which it shares with the masks.

    After Cheng et al. 2020, "Boundary-preserving Mask R-CNN".
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, upsamplings: int):
        """
        Args:
            in_channels, channels: of the features that masks are made of, and of the branch.
            num_classes, upsamplings: as of the mask head.
        """
        super().__init__()
        self.convs = nn.Sequential(_conv3x3(in_channels, channels), _conv3x3(channels, channels))
        # Zero at first: a head that starts from a checkpoint without the branch keeps its masks.
        self.to_masks = Conv2d(channels, in_channels, kernel_size=1)
        nn.init.zeros_(self.to_masks.weight)
        nn.init.zeros_(self.to_masks.bias)
        self.upsampling = nn.Sequential(_upsampling(channels, upsamplings))
        self.predictor = Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features for masks, of the shape of x, and those of boundaries."""
        edges = self.convs(x)
        return x + self.to_masks(edges), edges

    def predict(self, edges: torch.Tensor) -> torch.Tensor:
        """Predict (N, K, M, M) logits of boundaries from their features."""
        return self.predictor(self.upsampling(edges))


class MaskIoUHead(nn.Module):
    """Predicts the IoU of a mask with its particle from the RoI's features and the mask.

    Huang et al. 2019, "Mask Scoring R-CNN", section 3.2.
    """

    def __init__(self, input_shape: ShapeSpec, num_classes: int, conv_dim: int, fc_dim: int):
        """
        Args:
            input_shape: of the RoI's features.
            num_classes: number of IoUs to predict.
            conv_dim, fc_dim: channels of the four convolutions and two hidden linear layers.
        """
        super().__init__()
        self.side = input_shape.height
        channels = [input_shape.channels + 1, *[conv_dim] * 4]
        self.convs = nn.Sequential(
            *(_conv3x3(channels[k], channels[k + 1], stride=1 + (k == 3)) for k in range(4))
        )
        cells = ((self.side + 1) // 2) ** 2
        layers = [nn.Linear(conv_dim * cells, fc_dim), nn.Linear(fc_dim, fc_dim)]
        for layer in layers:
            weight_init.c2_xavier_fill(layer)
        self.predictor = nn.Linear(fc_dim, num_classes)
        self.fcs = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU())
        # Starts from "the mask is right", which leaves scores as they are.
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.ones_(self.predictor.bias)

    def forward(self, x: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: (N, C, P, P) features.
            masks: (N, 1, M, M) probabilities, M a multiple of P.

        Returns:
            (N, K) IoUs, not bounded.
        """
        masks = F.max_pool2d(masks.to(x.dtype), masks.shape[-1] // self.side)
        return self.predictor(self.fcs(self.convs(torch.cat([x, masks], dim=1))))


def _upsampling(channels: int, number: int, start: int = 1) -> OrderedDict[str, nn.Module]:
    """Make the transposed convolutions from number ``start`` on, with their activations."""
    layers = OrderedDict()
    for k in range(start, number + 1):
        name = f"deconv{k}" if k > 1 else "deconv"
        layers[name] = ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
        weight_init.c2_msra_fill(layers[name])
        layers[f"{name}_relu"] = nn.ReLU()
    return layers


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> Conv2d:
    conv = Conv2d(
        in_channels, channels, kernel_size=3, stride=stride, padding=1, activation=nn.ReLU()
    )
    weight_init.c2_msra_fill(conv)
    return conv


def _of_class(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Select the class of each row: (N, K, ...) or, class-agnostic, (N, 1, ...) to (N, ...)."""
    if values.shape[1] == 1:
        return values[:, 0]
    index = classes.long().view(-1, *[1] * (values.dim() - 1))
    return values.gather(1, index.expand(-1, 1, *values.shape[2:]))[:, 0]


def _cut(instances: Instances, side: int) -> torch.Tensor:
    """Cut the true masks by the proposals: (N, M, M) bool on their device."""
    boxes = instances.proposal_boxes.tensor
    return instances.gt_masks.crop_and_resize(boxes, side).to(boxes.device) > 0.5


def _area_in_cells(instances: Instances, side: int) -> torch.Tensor:
    """Area of whole particles in cells of the grids in their proposals: (N,) float32."""
    boxes, masks = instances.proposal_boxes, instances.gt_masks
    pixels = masks.area() if hasattr(masks, "area") else masks.tensor.flatten(1).sum(1)
    return pixels.to(boxes.device).float() * side**2 / boxes.area()
