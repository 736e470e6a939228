"""Losses of a mask head, on the masks of the true class alone.

Each takes (N, M, M) logits and bool targets and gives the mean over the masks, a float32 scalar.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from microplastics.utils.errors import UserError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy of each cell, as in He et al. 2017, "Mask R-CNN"."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


def gce(logits: torch.Tensor, targets: torch.Tensor, q: float = 0.7) -> torch.Tensor:
    """Generalised cross entropy, for masks that are wrong in places.

    ``(1 - p^q) / q`` with the probability p of a cell's true state: cross entropy for q towards
    0, the absolute error for q = 1 (Zhang and Sabuncu 2018, "Generalized Cross Entropy Loss for
    Training Deep Neural Networks with Noisy Labels", eq. 6).
    """
    true_state = torch.where(targets, logits.float(), -logits.float())
    return -torch.expm1(q * F.logsigmoid(true_state)).mean() / q


def sdt(logits: torch.Tensor, targets: torch.Tensor, radius: int = 3) -> torch.Tensor:
    """Absolute error from soft targets, which rise across the outline within ``radius`` cells."""
    return F.l1_loss(logits.float().sigmoid(), soft_targets(targets, radius))


def dice(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One minus the Dice coefficient of each mask, with squares in the denominator.

    Milletari et al. 2016, "V-Net", section 3; one cell is added above and below, so that an empty
    mask has a gradient and no division by zero.
    """
    probs, truth = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    common = (probs * truth).sum(1)
    return 1 - ((2 * common + 1) / (probs.square().sum(1) + truth.square().sum(1) + 1)).mean()


def lovasz(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Lovász hinge: the convex extension of one minus the IoU of each mask.

    Berman et al. 2018, "The Lovász-Softmax loss", eqs. 8 and 9, on the hinge errors of eq. 7.
    """
    truth = targets.flatten(1)
    signed = torch.where(truth, logits.flatten(1).float(), -logits.flatten(1).float())
    errors, order = (1 - signed).sort(dim=1, descending=True)
    ranked = truth.gather(1, order).float()
    # IoU lost if the first k errors are all wrong.
    common = ranked.sum(1, keepdim=True) - ranked.cumsum(1)
    union = ranked.sum(1, keepdim=True) + (1 - ranked).cumsum(1)
    lost = 1 - common / union
    return (errors.relu() * lost.diff(dim=1, prepend=torch.zeros_like(lost[:, :1]))).sum(1).mean()


def boundary(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy plus Dice of the masks' boundaries.

    Boundaries are the cells of a mask that touch a cell outside of it, as a Laplacian finds them
    (Cheng et al. 2020, "Boundary-preserving Mask R-CNN", section 3.3); the grid's border is none.

    Args:
        logits: (N, M, M) of boundaries.
        targets: (N, M, M) bool masks.
    """
    edges = boundary_targets(targets)
    return bce(logits, edges) + dice(logits, edges)


def boundary_targets(masks: torch.Tensor) -> torch.Tensor:
    """Mark the cells of (N, M, M) bool masks that touch, even by a corner, a cell outside."""
    return masks & (F.max_pool2d((~masks)[:, None].float(), 3, 1, 1)[:, 0] > 0)


def mask_iou(found: torch.Tensor, truth: torch.Tensor, areas: torch.Tensor) -> torch.Tensor:
    """IoU of masks on a grid with particles that may reach out of it: (N,) float32.

    Args:
        found, truth: (N, M, M) bool, the predicted and the true masks on the grid.
        areas: (N,) of the whole particles in cells.
    """
    found, truth = found.flatten(1), truth.flatten(1)
    outside = (areas - truth.sum(1)).clamp(min=0)
    return (found & truth).sum(1) / ((found | truth).sum(1) + outside).clamp(min=1)


def soft_targets(masks: torch.Tensor, radius: int) -> torch.Tensor:
    """Turn masks into ramps of their signed distance from the outline.

    One half on the outline, between two cells; 0 and 1 from ``radius`` cells on outside and
    inside. What lies beyond the grid is unknown: the grid's border is no outline. Distances are
    exact, by one pass for each axis (Felzenszwalb and Huttenlocher 2012, "Distance Transforms of
    Sampled Functions").

    Args:
        masks: (N, M, M) bool.
        radius: in cells.

    Returns:
        (N, M, M) float32 in [0, 1].
    """
    inside, outside = (_distance(each, radius) for each in (~masks, masks))
    signed = torch.where(masks, inside - 0.5, 0.5 - outside)
    return (0.5 + signed / (2 * radius)).clamp(0, 1)


def _distance(cells: torch.Tensor, radius: int) -> torch.Tensor:
    """Distance of each cell from the nearest of some cells, or more than the radius + 1/2."""
    reach = radius + 1
    squared = torch.where(cells, 0.0, float(4 * reach**2))
    for axis, around in ((1, (0, 0, reach, reach)), (2, (reach, reach, 0, 0))):
        side, padded = squared.shape[axis], F.pad(squared, around, value=float(4 * reach**2))
        squared = functools.reduce(
            torch.minimum,
            (padded.narrow(axis, reach + k, side) + k**2 for k in range(-reach, reach + 1)),
        )
    return squared.sqrt()


_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "bce": bce,
    "gce": gce,
    "sdt": sdt,
    "dice": dice,
    "lovasz": lovasz,
}


def build_loss(terms: Sequence[Sequence], gce_q: float = 0.7, sdt_radius: int = 3) -> Loss:
    """Make the weighted sum of some losses.

    Args:
        terms: pairs of a name (bce, gce, sdt, dice, lovasz) and its weight.
        gce_q, sdt_radius: ``q`` of :func:`gce` and ``radius`` of :func:`sdt`.

    Returns:
        :func:`bce` itself if it is alone, as in Detectron2.

    Raises:
        UserError: config_invalid.
    """
    losses = []
    for term in terms:
        match term:
            case [str(name), float(weight) | int(weight)] if name in _LOSSES and weight > 0:
                losses.append((_LOSSES[name], weight))
    if not terms or len(losses) < len(terms):
        raise UserError(
            f"MODEL.ROI_MASK_HEAD.LOSSES is {list(terms)}; expected pairs of a name "
            f"({', '.join(_LOSSES)}) and a weight above 0, such as [['bce', 1.0]].",
            code="config_invalid",
        )
    if not 0 < gce_q <= 1 or sdt_radius < 1:
        raise UserError(
            f"MODEL.ROI_MASK_HEAD.GCE_Q is {gce_q} and SDT_RADIUS {sdt_radius}; expected a number "
            "above 0 and up to 1, and at least 1 cell.",
            code="config_invalid",
        )
    if losses == [(bce, 1)]:
        return bce
    options = {gce: {"q": gce_q}, sdt: {"radius": sdt_radius}}

    def total(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        parts = (w * loss(logits, targets, **options.get(loss, {})) for loss, w in losses)
        return functools.reduce(torch.add, parts)

    return total
