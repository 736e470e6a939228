"""microplastics/evaluation/validation.py."""

import pytest
import torch
from detectron2.evaluation import COCOEvaluator as Detectron2COCOEvaluator
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.utils.events import EventStorage

from microplastics.data.loader import ValidationLoader, check_datasets
from microplastics.engine import Trainer
from microplastics.engine.hooks import flatten_results
from microplastics.modeling.postprocessing import postprocess
from microplastics.utils.system import seed_all


@pytest.fixture
def setting(tiny_cfg):
    cfg = check_datasets(tiny_cfg())
    seed_all(7)
    return cfg, Trainer.build_model(cfg).train()


def test_evaluating_twice_gives_the_same_numbers_and_leaves_the_model_as_it_was(setting):
    cfg, model = setting
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = flatten_results(Trainer.test(cfg, model))
    torch.rand(3)  # whatever else draws random numbers in between
    second = flatten_results(Trainer.test(cfg, model))
    assert first == pytest.approx(second, rel=0, abs=0, nan_ok=True)
    assert model.training and model.roi_heads.mask_head.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.roi_heads.batch_size_per_image == cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE


def test_the_loss_has_the_five_parts_of_training_and_their_sum(setting):
    cfg, model = setting
    losses = Trainer.test(cfg, model)["validation"]
    batch = next(iter(ValidationLoader(cfg, cfg.DATASETS.TEST[0])))
    with EventStorage():
        expected = set(model(batch))
    total = losses.pop("total_loss")
    assert set(losses) == expected and len(losses) == 5
    assert total == pytest.approx(sum(losses.values()))


def test_predictions_are_those_of_the_model_alone(setting):
    cfg, model = setting
    model.eval()
    (item,) = next(iter(ValidationLoader(cfg, cfg.DATASETS.TEST[0])))
    with torch.no_grad():
        theirs = model([item])[0]["instances"]
        raw = model.inference([item], do_postprocess=False)[0]
    ours = postprocess(raw, item["height"], item["width"])
    reference = detector_postprocess(raw, item["height"], item["width"])
    assert len(ours) == len(theirs) == len(reference) > 0
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.pred_masks.to_bitmasks(), theirs.pred_masks)


def test_without_the_loss_there_is_only_what_the_evaluators_say(tiny_cfg):
    cfg = check_datasets(tiny_cfg("TEST.VAL_LOSS.ENABLED", False))
    results = Trainer.test(cfg, Trainer.build_model(cfg))
    assert list(results) == ["bbox", "segm", "semantic", "counting", "errors"]


def test_detectron2s_own_evaluator_fits_in(setting, tmp_path):
    cfg, model = setting
    theirs = Detectron2COCOEvaluator(
        cfg.DATASETS.TEST[0], ("bbox",), False, output_dir=str(tmp_path), use_fast_impl=False
    )
    ours = Trainer.test(cfg, model)["bbox"]
    results = Trainer.test(cfg, model, evaluators=theirs)
    assert results["bbox"]["AP50"] == pytest.approx(ours["AP50"], nan_ok=True)
