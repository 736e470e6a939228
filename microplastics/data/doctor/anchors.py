"""The anchors of a config, and how well boxes are matched by them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_anchor_generator, build_backbone

from microplastics.errors import UserError

_CHUNK = 2**16


@dataclass(frozen=True)
class AnchorGrid:
    """Where the anchors of a config lie on an image.

    Attributes:
        cells: for each level (A, 4) float64 x0, y0, x1, y1 in px around a grid position.
        strides: px between the grid positions of each level.
        offset: of the first grid position, in strides.
        divisibility: both sides of an image are padded to a multiple of it.
    """

    cells: list[np.ndarray]
    strides: list[int]
    offset: float
    divisibility: int

    @classmethod
    def from_config(cls, cfg: CfgNode, config_file: str = "") -> "AnchorGrid":
        """Lay out the anchors that Detectron2's RPN of this config has.

        Args:
            cfg: the config.
            config_file: its name, for errors.

        Raises:
            UserError: the config describes no backbone and anchors that fit together, or anchors
                that are turned.
        """
        name = config_file or "The config"
        try:
            # Only the shapes are asked for: on this device no weight is made.
            with torch.device("meta"):
                backbone = build_backbone(cfg)
            shapes = backbone.output_shape()
            features = [shapes[feature] for feature in cfg.MODEL.RPN.IN_FEATURES]
            generator = build_anchor_generator(cfg, features)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{name} has no anchors that can be laid out ({type(error).__name__}: {error}); "
                "correct MODEL.BACKBONE, MODEL.RPN.IN_FEATURES or MODEL.ANCHOR_GENERATOR."
            ) from error
        if generator.box_dim != 4:
            raise UserError(
                f"{name} has anchors that are turned, which are not measured; set "
                "MODEL.ANCHOR_GENERATOR.NAME DefaultAnchorGenerator."
            )
        return cls(
            [cell.double().numpy() for cell in generator.cell_anchors],
            [int(feature.stride) for feature in features],
            float(cfg.MODEL.ANCHOR_GENERATOR.OFFSET),
            max(1, int(backbone.size_divisibility)),
        )

    def best_iou(self, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Find for each box the IoU of the anchor that matches it best.

        The overlap of two boxes is the product of their overlaps along x and y, and each of them
        can only shrink when the centres move apart along its axis. So of all places of an anchor
        the one at the nearest column and the nearest row of the grid is the best, and the others
        need not be looked at. Anchors that reach out of the image count, as Detectron2 matches
        them by default (``MODEL.RPN.BOUNDARY_THRESH`` -1).

        Args:
            boxes: (N, 4) float x0, y0, x1, y1 in px of the resized images.
            sizes: (N, 2) height and width of the resized image of each box, in px.

        Returns:
            (N,) float64 in [0, 1].
        """
        best = np.zeros(len(boxes))
        for start in range(0, len(boxes), _CHUNK):
            part = slice(start, start + _CHUNK)
            best[part] = self._best_iou(boxes[part].astype(np.float64), sizes[part])
        return best

    def _best_iou(self, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        padded = -(-sizes // self.divisibility) * self.divisibility
        best = np.zeros(len(boxes))
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        for cells, stride in zip(self.cells, self.strides, strict=True):
            last = -(-padded[:, None, ::-1] // stride) - 1
            away = (low + high) / 2 - (cells[:, :2] + cells[:, 2:]) / 2
            place = np.clip(np.rint(away / stride - self.offset), 0, last)
            shift = (place + self.offset) * stride
            start = np.maximum(low, cells[:, :2] + shift)
            end = np.minimum(high, cells[:, 2:] + shift)
            shared = np.clip(end - start, 0, None).prod(axis=2)
            area = np.clip(high - low, 0, None).prod(axis=2)
            union = area + (cells[:, 2:] - cells[:, :2]).prod(axis=1) - shared
            iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
            best = np.maximum(best, iou.max(axis=1))
        return best

    def changed(
        self,
        factor: float = 1.0,
        steps: Sequence[float] = (1.0,),
        ratios: Sequence[float] = (),
    ) -> "AnchorGrid":
        """Lay out other anchors at the same places.

        Args:
            factor: by which every size is enlarged.
            steps: each size stands there once times each of these.
            ratios: height / width of the anchors of each size; the own ones if empty.
        """
        cells = []
        for cell in self.cells:
            width, height = (cell[:, 2:] - cell[:, :2]).T
            if ratios:
                sizes, shapes = np.unique(np.sqrt(width * height).round(3)), np.sqrt(ratios)
                width, height = (sizes[:, None] / shapes).ravel(), np.outer(sizes, shapes).ravel()
            half = np.concatenate([np.stack([width, height], 1) * factor * k / 2 for k in steps])
            cells.append(np.concatenate([-half, half], axis=1))
        return AnchorGrid(cells, self.strides, self.offset, self.divisibility)
