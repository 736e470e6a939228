"""microplastics/modeling/roi_heads/mask_loss.py beside textbook loops and scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from support import user_error

from microplastics.modeling.roi_heads import mask_loss
from microplastics.modeling.roi_heads.mask_loss import build_loss

NAMES = ("bce", "gce", "sdt", "dice", "lovasz")


@pytest.fixture(scope="module")
def masks():
    """Logits, and true masks: a disc, a diagonal, noise, nothing and everything."""
    y, x = np.mgrid[:14, :14]
    random = np.random.default_rng(0)
    truth = [np.hypot(y - 6, x - 7) < 4, abs(x - y) < 2, random.random((14, 14)) < 0.4]
    truth += [np.zeros((14, 14), bool), np.ones((14, 14), bool)]
    return torch.from_numpy(random.normal(0, 3, (5, 14, 14))), torch.from_numpy(np.array(truth))


def by_hand(name, logits, truth):
    """The loss of one mask, in numpy."""
    p = 1 / (1 + np.exp(-logits))
    true_state = np.where(truth, p, 1 - p)
    if name == "bce":
        return -np.log(true_state).mean()
    if name == "gce":
        return ((1 - true_state**0.7) / 0.7).mean()
    if name == "dice":
        return 1 - (2 * (p * truth).sum() + 1) / ((p**2).sum() + truth.sum() + 1)
    if name == "sdt":
        return abs(p - ramp(truth, 3)).mean()
    # Lovász: errors in descending order, each by what it adds to the Jaccard loss of those before.
    errors = np.maximum(0, 1 - logits * np.where(truth, 1, -1)).ravel()
    wrong, total, before = np.zeros(truth.size, bool), 0.0, 0.0
    for index in np.argsort(-errors, kind="stable"):
        wrong[index] = True
        jaccard_loss = wrong.sum() / (truth.ravel() | wrong).sum()
        total += errors[index] * (jaccard_loss - before)
        before = jaccard_loss
    return total


def ramp(truth, radius):
    """Signed distance from the outline by scipy, from 0 to 1 over ``radius`` cells either way."""
    if truth.all() or not truth.any():
        return truth.astype(float)
    inside, outside = (ndimage.distance_transform_edt(each) for each in (truth, ~truth))
    signed = np.where(truth, inside - 0.5, 0.5 - outside)
    return np.clip(0.5 + signed / (2 * radius), 0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_the_mean_of_those_by_hand(masks, name):
    logits, truth = masks
    expected = [by_hand(name, *pair) for pair in zip(logits.numpy(), truth.numpy(), strict=True)]
    found = build_loss([[name, 2.0]])(logits, truth)
    assert float(found) == pytest.approx(2 * np.mean(expected), rel=1e-5)
    both = build_loss([["bce", 1.0], [name, 0.5]])(logits, truth)
    assert float(both) == pytest.approx(float(mask_loss.bce(logits, truth) + found / 4), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sure", [0.0, 40.0, -40.0, 1e4])
def test_gradients_are_finite_and_point_to_the_mask(masks, name, sure):
    truth = masks[1]
    logits = torch.where(truth, sure, -sure).requires_grad_()
    loss = build_loss([[name, 1.0]])(logits, truth)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss) and gradient.isfinite().all()
    if sure > 0 and name != "sdt":
        assert loss < 1e-6
    if sure == 0:  # undecided: the right way for each mask as a whole
        assert ((gradient * torch.where(truth, 1.0, -1.0)).sum(dim=(1, 2)) < 0).all()


def test_generalised_cross_entropy_lies_between_its_two_ends(masks):
    logits, truth = masks
    absolute = (logits.sigmoid() - truth.double()).abs().mean()
    assert float(mask_loss.gce(logits, truth, 1.0)) == pytest.approx(float(absolute), rel=1e-5)
    almost = float(mask_loss.gce(logits, truth, 1e-3))
    assert almost == pytest.approx(float(mask_loss.bce(logits, truth)), rel=0.01)


@pytest.mark.parametrize("radius", [1, 2, 3, 6, 20])
def test_soft_targets_are_scipys_distances(masks, radius):
    truth = masks[1]
    found = mask_loss.soft_targets(truth, radius)
    expected = np.array([ramp(each, radius) for each in truth.numpy()])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert torch.equal(found > 0.5, truth)


def test_boundaries_are_what_an_erosion_takes_away(masks):
    truth = masks[1]
    square = np.ones((3, 3), bool)
    eroded = [ndimage.binary_erosion(each, square, border_value=1) for each in truth.numpy()]
    expected = truth & ~torch.from_numpy(np.array(eroded))
    assert torch.equal(mask_loss.boundary_targets(truth), expected) and expected.any()


def test_iou_counts_what_lies_outside_of_the_grid(masks):
    truth = masks[1][:3]
    found, areas = truth.roll(2, dims=2), truth.sum((1, 2)) + torch.tensor([0, 30, 5])
    common, either = (found & truth).sum((1, 2)), (found | truth).sum((1, 2))
    expected = common / (either + torch.tensor([0, 30, 5]))
    assert torch.equal(mask_loss.mask_iou(found, truth, areas), expected)
    nothing = torch.zeros_like(truth)
    assert mask_loss.mask_iou(nothing, nothing, areas * 0).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "terms", [[], [["bce"]], [["bse", 1.0]], [["bce", 0]], ["bce"], [["bce", "1"]], [[1.0, "bce"]]]
)
def test_terms_that_are_none(terms):
    with user_error("config_invalid", "MODEL.ROI_MASK_HEAD.LOSSES", "lovasz"):
        build_loss(terms)


@pytest.mark.parametrize("options", [{"gce_q": 0.0}, {"gce_q": 1.5}, {"sdt_radius": 0}])
def test_options_out_of_range(options):
    with user_error("config_invalid", "GCE_Q", "SDT_RADIUS"):
        build_loss([["bce", 1.0]], **options)
