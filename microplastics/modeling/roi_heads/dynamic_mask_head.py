"""Masks without a grid: a small network for each particle on features of the whole image."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, get_norm
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Instances
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from microplastics.modeling.backbone.with_image import IMAGE, WITH_IMAGE
from microplastics.modeling.roi_masks import WindowMasks, areas
from microplastics.structures.crop_masks import CropMasks, as_crop_masks
from microplastics.utils.errors import UserError

Features = dict[str, torch.Tensor]

_STRIDES = (1, 2, 4)
_LEAST = {
    **dict.fromkeys(("CONV_DIM", "CHANNELS", "FC_DIM", "NUM_LAYERS", "MAX_INSTANCES", "WINDOW"), 1),
    **dict.fromkeys(("MARGIN", "DICE_WEIGHT"), 0),
}
# Cells of the windows that are computed at a time: 10 MB in the cache, and bounded memory.
_CELLS_AT_A_TIME = 1 << 17


class MaskBranch(nn.Module):
    """The mask features of a whole image, which all its particles share.

    The finest feature map, brought to few channels, is upsampled to the stride asked for. There
    the image itself, through two convolutions, adds the detail, if the backbone passes it on
    (``build_backbone_with_image``).
    """

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        stride: int,
        conv_dim: int,
        channels: int,
        norm: str = "",
    ):
        """
        Args:
            input_shape: of the feature maps.
            stride: of the result: 1, 2 or 4 px.
            conv_dim, channels: inside, and of the result.
            norm: of Detectron2's ``get_norm``, of the layers on the feature map and on the image.
        """
        super().__init__()
        levels = {name: shape for name, shape in input_shape.items() if name != IMAGE}
        self.level = min(levels, key=lambda name: levels[name].stride)
        self.upsampling = levels[self.level].stride // stride

        def conv(width: int, step: int = 1, norm: str = "") -> Conv2d:
            layer = Conv2d(
                width,
                conv_dim,
                3,
                stride=step,
                padding=1,
                bias=not norm,
                norm=get_norm(norm, conv_dim),
                activation=F.relu,
            )
            weight_init.c2_msra_fill(layer)
            return layer

        # Features of a pyramid may be fifty times as large as the values of the image: each is
        # brought to one scale before they are added.
        self.coarse = conv(levels[self.level].channels, norm=norm)
        self.detail = None
        if IMAGE in input_shape and self.upsampling > 1:
            first = conv(input_shape[IMAGE].channels, stride, norm)
            self.detail = nn.Sequential(first, conv(conv_dim))
        self.fuse = conv(conv_dim)
        self.output = Conv2d(conv_dim, channels, 1)
        weight_init.c2_msra_fill(self.output)

    def forward(self, features: Features) -> torch.Tensor:
        """
        Args:
            features: (B, C, H / stride, W / stride) feature maps by name.

        Returns:
            (B, channels, H / stride, W / stride) float32.
        """
        x = self.coarse(features[self.level])
        if self.upsampling > 1:
            x = F.interpolate(x, scale_factor=self.upsampling, mode="bilinear", align_corners=False)
        if self.detail is not None:
            x = x + self.detail(features[IMAGE])
        return self.output(self.fuse(x)).float()


class DynamicFCN:
    """A network of 1x1 convolutions whose weights come as one vector for each particle.

    Tian et al. 2020, "Conditional Convolutions for Instance Segmentation", section 3.1.
    """

    def __init__(self, widths: Sequence[int]):
        """
        Args:
            widths: channels of the input, of each hidden layer, and of the output.
        """
        self.shapes = list(zip(widths[:-1], widths[1:], strict=True))
        self.splits = [n for rows, columns in self.shapes for n in (rows * columns, columns)]

    def __call__(self, x: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Run the networks of N particles on (N, P, C) values of P cells: (N, P, widths[-1]).

        ``parameters`` are (N, sum(splits)); there is a ReLU between the layers.
        """
        parts = iter(parameters.split(self.splits, dim=1))
        for index, (rows, columns) in enumerate(self.shapes):
            weight = next(parts).reshape(-1, rows, columns)
            x = torch.baddbmm(next(parts)[:, None], F.relu(x) if index else x, weight)
        return x

    def initialise(self, parameters: torch.Tensor) -> None:
        """Draw the (sum(splits),) parameters of one network in place, after He et al. 2015."""
        parts = iter(parameters.split(self.splits))
        for rows, columns in self.shapes:
            # The last layer's are smaller: logits start near 0.
            nn.init.normal_(next(parts), std=(2 / rows) ** 0.5 if columns > 1 else 0.1)
            nn.init.zeros_(next(parts))


@ROI_MASK_HEAD_REGISTRY.register()
class DynamicMaskHead(BaseMaskRCNNHead):
    """Mask head that predicts for each box the weights of a small network, which draws its mask.

    The network runs over shared features of the whole image and each cell's place relative to the
    box, in a window around the box: no M x M grid limits the detail, and a box that is too tight
    does not cut the mask. Masks are class-agnostic. After Tian et al. 2020, "Conditional
    Convolutions for Instance Segmentation"; here the weights come from the pooled features of Mask
    R-CNN's boxes. A coarse sketch of the mask in the box, which is learnt within a few hundred
    iterations, is an input of the network and added to its result; outside of the box it is 0.
    It needs MODEL.ROI_MASK_HEAD.POOLER_TYPE "".
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        branch: MaskBranch,
        pooler: ROIPooler,
        pooled_in: Sequence[str],
        conv_dims: Sequence[int],
        conv_norm: str,
        fc_dim: int,
        stride: int,
        channels: int,
        num_layers: int,
        window: float,
        margin: float,
        max_instances: int,
        dice_weight: float,
        **kwargs,
    ):
        """
        Args:
            input_shape: of the feature maps.
            branch: makes the mask features.
            pooler: pools the feature maps ``pooled_in`` in the boxes.
            pooled_in: names of feature maps.
            conv_dims: channels of the convolutions on pooled features.
            conv_norm: of Detectron2's ``get_norm``.
            fc_dim: width of the layer between the convolutions and the weights.
            stride: of the mask features in px.
            channels: of the mask features, and of the network's hidden layers.
            num_layers: of the network.
            window: factor on the sides of a box that gives its window ...
            margin: ... and px that it reaches beyond the box at least, on each side.
            max_instances: boxes of an image in training.
            dice_weight: of the Dice loss beside the cross entropy.
        """
        super().__init__(**kwargs)
        self.branch, self.pooler, self.pooled_in = branch, pooler, list(pooled_in)
        self.stride, self.window, self.margin = stride, window, margin
        self.max_instances, self.dice_weight = max_instances, dice_weight
        self.network = DynamicFCN([channels + 3, *[channels] * (num_layers - 1), 1])
        width, layers = input_shape[self.pooled_in[0]].channels, []
        for conv_dim in conv_dims:
            norm = get_norm(conv_norm, conv_dim)
            layers.append(
                Conv2d(
                    width, conv_dim, 3, padding=1, bias=not conv_norm, norm=norm, activation=F.relu
                )
            )
            weight_init.c2_msra_fill(layers[-1])
            width = conv_dim
        self.convs = nn.Sequential(*layers)
        height, columns = pooler.output_size
        hidden = nn.Linear(width * height * columns, fc_dim)
        weight_init.c2_xavier_fill(hidden)
        # All particles start with one network, which each then changes.
        weights = nn.Linear(fc_dim, sum(self.network.splits))
        nn.init.normal_(weights.weight, std=0.01)
        with torch.no_grad():
            self.network.initialise(weights.bias)
        self.controller = nn.Sequential(
            nn.Flatten(), hidden, nn.LayerNorm(fc_dim), nn.ReLU(), weights
        )
        upsampling = ConvTranspose2d(width, width, 2, stride=2)
        weight_init.c2_msra_fill(upsampling)
        sketch = Conv2d(width, 1, 1)
        nn.init.normal_(sketch.weight, std=0.001)
        nn.init.zeros_(sketch.bias)
        self.sketch = nn.Sequential(upsampling, nn.ReLU(), sketch)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        _check(cfg, input_shape)
        head, own = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.DYNAMIC_MASK_HEAD
        names = [name for name in cfg.MODEL.ROI_HEADS.IN_FEATURES if name != IMAGE]
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "branch": MaskBranch(
                input_shape,
                stride=own.STRIDE,
                conv_dim=own.CONV_DIM,
                channels=own.CHANNELS,
                norm=own.NORM,
            ),
            "pooler": ROIPooler(
                output_size=head.POOLER_RESOLUTION,
                scales=[1 / input_shape[name].stride for name in names],
                sampling_ratio=head.POOLER_SAMPLING_RATIO,
                pooler_type="ROIAlignV2",
            ),
            "pooled_in": names,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "conv_norm": head.NORM,
            "fc_dim": own.FC_DIM,
            "stride": own.STRIDE,
            "channels": own.CHANNELS,
            "num_layers": own.NUM_LAYERS,
            "window": own.WINDOW,
            "margin": own.MARGIN,
            "max_instances": own.MAX_INSTANCES,
            "dice_weight": own.DICE_WEIGHT,
        }

    def forward(self, features: Features, instances: list[Instances]):
        """
        Args:
            features: feature maps by name.
            instances: of each image, with ``proposal_boxes`` and ``gt_masks`` in training and
                ``pred_boxes`` in inference.

        Returns:
            The losses in training, else the instances with ``pred_masks``, a
            :class:`WindowMasks`.
        """
        if self.training:
            instances = [each[: self.max_instances] for each in instances]
            boxes = [each.proposal_boxes for each in instances]
        else:
            boxes = [each.pred_boxes for each in instances]
        shared = self.branch(features)
        pooled = self.convs(self.pooler([features[f] for f in self.pooled_in], boxes))
        parameters, sketch = self.controller(pooled).float(), self.sketch(pooled).float()
        boxes = [each.tensor.detach().float() for each in boxes]
        windows = [
            windows_around(b, each.image_size, self.stride, self.window, self.margin)
            for b, each in zip(boxes, instances, strict=True)
        ]
        logits = self._draw(shared, parameters, sketch, boxes, windows)
        if self.training:
            nothing = 0 * (shared.sum() + parameters.sum() + sketch.sum())
            return self._losses(logits, instances, windows, nothing)
        counts = [int(areas(each).sum()) for each in windows]
        # In half precision: all masks of a crowded tile are kept at once.
        parts = logits.sigmoid().half().split(counts)
        for each, part, flat in zip(instances, windows, parts, strict=True):
            each.pred_masks = WindowMasks(flat, part, self.stride, each.image_size)
        return instances

    def _draw(
        self,
        shared: torch.Tensor,
        parameters: torch.Tensor,
        sketch: torch.Tensor,
        boxes: Sequence[torch.Tensor],
        windows: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Run each box's network over its window.

        Args:
            shared: (B, C, H, W) mask features.
            parameters: (N, K) of all boxes.
            sketch: (N, 1, M, M) logits in the boxes.
            boxes: (N_b, 4) of each image, in px.
            windows: (N_b, 4) of each image, in cells.

        Returns:
            (T,) logits of all windows, one after the other and row by row.
        """
        rows = shared.permute(0, 2, 3, 1).reshape(-1, shared.shape[1])
        sizes = shared.shape[-2:]
        number = torch.repeat_interleave(torch.tensor([len(each) for each in boxes]))
        windows, boxes = torch.cat(list(windows)), torch.cat(list(boxes))
        number, on = number.to(boxes.device), windows.to(boxes.device)
        parts: list[torch.Tensor] = [parameters.new_zeros(0)] * len(windows)
        with torch.autocast(shared.device.type, enabled=False):
            for chunk in _chunks(areas(windows).tolist()):
                x0, y0, x1, y1 = on[chunk].unbind(1)
                x, y, inside = _cells(x0, y0, x1, y1)
                index = (number[chunk, None] * sizes[0] + y) * sizes[1] + x
                values = F.embedding(index, rows)
                place = relative_places(x, y, boxes[chunk], self.stride)
                hint = F.grid_sample(sketch[chunk], place[:, None], align_corners=False)[:, 0, 0]
                values = torch.cat([values, place, hint[..., None]], dim=2)
                drawn = self.network(values, parameters[chunk])[..., 0] + hint
                counts = inside.sum(dim=1).tolist()
                for i, flat in zip(chunk, drawn[inside].split(counts), strict=True):
                    parts[i] = flat
        return torch.cat([parameters.new_zeros(0), *parts])

    def _losses(
        self,
        logits: torch.Tensor,
        instances: list[Instances],
        windows: Sequence[torch.Tensor],
        nothing: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        windows, targets = list(windows), []
        for each, part in zip(instances, windows, strict=True):
            if len(each):
                masks = as_crop_masks(each.gt_masks, each.image_size)
                targets.append(coarse_targets(masks, part.numpy(), self.stride))
        if not targets:
            return {"loss_mask": nothing, "loss_mask_dice": nothing}
        target = torch.from_numpy(np.concatenate(targets)).to(logits.device)
        counts = areas(torch.cat(windows)).to(logits.device)
        entropy, dice = mask_losses(logits, target, counts)
        return {
            "loss_mask": entropy * self.loss_weight,
            "loss_mask_dice": dice * self.dice_weight * self.loss_weight,
        }


def _check(cfg: CfgNode, input_shape: dict[str, ShapeSpec] | ShapeSpec) -> None:
    if isinstance(input_shape, ShapeSpec):
        raise UserError(
            f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is {cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE!r}; "
            "DynamicMaskHead expected '', since it pools by itself.",
            code="config_invalid",
        )
    if cfg.MODEL.BACKBONE.NAME == WITH_IMAGE and IMAGE not in input_shape:
        raise UserError(
            f"MODEL.ROI_HEADS.NAME is {cfg.MODEL.ROI_HEADS.NAME}, which does not pass the image to "
            "DynamicMaskHead; expected ParticleROIHeads or ParticleCascadeROIHeads.",
            code="config_invalid",
        )
    own = cfg.MODEL.DYNAMIC_MASK_HEAD
    for key, least in _LEAST.items():
        if not own[key] >= least:
            raise UserError(
                f"MODEL.DYNAMIC_MASK_HEAD.{key} is {own[key]}; expected {least} or more.",
                code="config_invalid",
            )
    stride = own.STRIDE
    finest = min(shape.stride for name, shape in input_shape.items() if name != IMAGE)
    if stride not in _STRIDES or finest % stride:
        raise UserError(
            f"MODEL.DYNAMIC_MASK_HEAD.STRIDE is {stride}; expected 1, 2 or 4, and a divisor of "
            f"the finest feature map's stride, {finest}.",
            code="config_invalid",
        )


def windows_around(
    boxes: torch.Tensor, image_size: Sequence[int], stride: int, factor: float, margin: float
) -> torch.Tensor:
    """Find the cells around each of (N, 4) boxes in px, in an image of (height, width) px.

    Args:
        stride: side of a cell in px.
        factor: on the sides of the box, about its centre ...
        margin: ... or so many px more on each side, whichever is more.

    Returns:
        (N, 4) int64 on the CPU: x0, y0, x1, y1 in cells, inside the image, at least one cell.
    """
    boxes = boxes.detach().cpu().double()
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    more = (sides * (factor - 1) / 2).clamp(min=margin)
    limit = torch.tensor([-(-side // stride) for side in (image_size[1], image_size[0])])
    start = ((boxes[:, :2] - more) / stride).floor().long().clamp(min=0).minimum(limit - 1)
    end = ((boxes[:, 2:] + more) / stride).ceil().long().minimum(limit).maximum(start + 1)
    return torch.cat([start, end], dim=1)


def relative_places(
    x: torch.Tensor, y: torch.Tensor, boxes: torch.Tensor, stride: int
) -> torch.Tensor:
    """Place cells relative to their box: -1 and 1 are its borders.

    Args:
        x, y: (N, P) cells.
        boxes: (N, 4) in px.
        stride: side of a cell in px.

    Returns:
        (N, P, 2) of the cells' centres; sides below the stride count as the stride.
    """
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = ((boxes[:, 2:] - boxes[:, :2]) / 2).clamp(min=stride / 2)
    places = (torch.stack([x, y], dim=2) + 0.5) * stride
    return (places - center[:, None]) / half[:, None]


def _chunks(counts: Sequence[int]):
    """Group windows of similar size, so that padding at most doubles the cells."""
    order = sorted(range(len(counts)), key=counts.__getitem__)
    chunk: list[int] = []
    for index in order:
        most = counts[index]
        if chunk and (most > 2 * counts[chunk[0]] or (len(chunk) + 1) * most > _CELLS_AT_A_TIME):
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk


def _cells(
    x0: torch.Tensor, y0: torch.Tensor, x1: torch.Tensor, y1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """List the cells of (N,) windows row by row, padded: x, y and which are real, each (N, P)."""
    width, area = (x1 - x0)[:, None], ((x1 - x0) * (y1 - y0))[:, None]
    number = torch.arange(int(area.max()), device=x0.device)[None]
    inside = number < area
    number = number.minimum(area - 1)
    row = torch.div(number, width, rounding_mode="floor")
    return x0[:, None] + number - row * width, y0[:, None] + row, inside


def coarse_targets(masks: CropMasks, windows: np.ndarray, stride: int) -> np.ndarray:
    """Compute which fraction of each cell a mask covers.

    Args:
        masks: N masks.
        windows: (N, 4) x0, y0, x1, y1 in cells.
        stride: side of a cell in px.

    Returns:
        (T,) float32 of all windows, one after the other and row by row.
    """
    shared: dict[tuple, np.ndarray] = {}
    parts = []
    for crop, offset, (x0, y0, x1, y1) in zip(
        masks.crops, masks.offsets.tolist(), windows.tolist(), strict=True
    ):
        part = np.zeros((y1 - y0, x1 - x0), dtype=np.float32)
        key = (id(crop), *offset)
        if key not in shared:
            shared[key] = _coverage(crop, offset, stride)
        cells, left, top = shared[key], offset[0] // stride, offset[1] // stride
        right, bottom = left + cells.shape[1], top + cells.shape[0]
        xs, ys = slice(max(x0, left), min(x1, right)), slice(max(y0, top), min(y1, bottom))
        if xs.start < xs.stop and ys.start < ys.stop:
            part[ys.start - y0 : ys.stop - y0, xs.start - x0 : xs.stop - x0] = cells[
                ys.start - top : ys.stop - top, xs.start - left : xs.stop - left
            ]
        parts.append(part.reshape(-1))
    return np.concatenate(parts)


def _coverage(crop: np.ndarray, offset: Sequence[int], stride: int) -> np.ndarray:
    """Average a crop over the cells that it touches."""
    x, y = (each % stride for each in offset)
    rows, columns = (-(-(n + k) // stride) for n, k in zip(crop.shape, (y, x), strict=True))
    padded = np.zeros((rows * stride, columns * stride), dtype=np.float32)
    padded[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    return padded.reshape(rows, stride, columns, stride).mean(axis=(1, 3))


def mask_losses(
    logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute cross entropy and Dice loss, both averaged over particles.

    Dice as Milletari et al. 2016, "V-Net", with squares in the denominator.

    Args:
        logits, target: (T,), window by window; the target is a fraction.
        counts: (N,) cells of each window.
    """
    number = torch.repeat_interleave(counts)

    def sums(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(counts)).index_add(0, number, values)

    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    common = sums(probability * target)
    both = sums(probability.square()) + sums(target.square())
    dice = 1 - (2 * common + 1e-3) / (both + 1e-3)
    return (sums(entropy) / counts).mean(), dice.mean()
