"""A model's way from training to export, which every config and every head must go."""

import importlib.util
import math

import torch
from detectron2.engine import DefaultPredictor
from support import barred_image, user_error

from microplastics.engine import Trainer
from microplastics.engine.checkpoint import TrainingCheckpointer
from microplastics.export.export import export_model
from microplastics.inference.predictor import Predictor
from microplastics.modeling.interface import class_dependent, is_staged, mask_size

SHORT = ("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2)


def train(cfg, resume=False):
    """Trains a config; returns the trainer and the last evaluation."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    metrics = trainer.train()
    return trainer, metrics


def from_training_to_export(build_cfg, tmp_path, loss):
    """Trains two steps, validates, resumes, predicts, fine-tunes and exports.

    ``build_cfg`` takes KEY VALUE pairs; ``loss`` is a loss of the model.
    """
    watched = ("SOLVER.BEST_CHECKPOINT.METRIC", f"validation/{loss}")
    cfg = build_cfg(*watched, *SHORT)
    trainer, metrics = train(cfg)
    assert math.isfinite(metrics[watched[1]])
    assert {"segm/AP", "bbox/AP", "semantic/IoU", "semantic/Dice"} <= set(metrics)
    trainer.model.train()
    again = Trainer.test(trainer.cfg, trainer.model)["validation"]  # on no dropout, no state
    assert again["total_loss"] == metrics["validation/total_loss"]
    assert all(module.training for module in trainer.model.modules())

    trainer, _ = train(build_cfg(*watched, *SHORT, "SOLVER.MAX_ITER", 4), resume=True)
    assert (trainer.start_iter, trainer.finished_iters) == (2, 4)

    path = f"{cfg.OUTPUT_DIR}/model_final.pth"
    staged = is_staged(trainer.model)
    # In a segmentation a pixel between two classes may tip when sums are rounded in another way.
    opts = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01")
    predictor = Predictor.from_checkpoint(path, opts, optimize=staged)
    check_prediction(predictor, path)
    check_fine_tuning(build_cfg, path)
    check_export(predictor, tmp_path)


def check_export(predictor, folder):
    """The model is exported, or refused for what it is."""
    if not is_staged(predictor.model):
        refused = predictor.cfg.MODEL.META_ARCHITECTURE
    elif not mask_size(predictor.cfg):
        refused = "masks on a grid"
    elif predictor.cfg.MODEL.BACKBONE.NAME == "build_vit_fpn_backbone":
        refused = "onnx with a size"
        if importlib.util.find_spec("onnxruntime"):
            export_model(predictor, folder / "model.onnx", "onnx", size=(96, 96))
    else:
        export_model(predictor, folder / "model.ts", "torchscript", size=(96, 96))
        return
    with user_error("export_unsupported", refused):
        export_model(predictor, folder / "refused.ts", "torchscript", size=(96, 96))


def check_prediction(predictor, path):
    """Predictions are Detectron2's own, also on tiles and nearly so in bf16."""
    picture, cap = barred_image(90, 120), predictor.cfg.TEST.DETECTIONS_PER_IMAGE
    found, expected = predictor(picture), DefaultPredictor(predictor.cfg)(picture)["instances"]
    # A mask head may change scores.
    expected = expected[expected.scores.argsort(descending=True)]
    expected = expected[expected.scores > 0.01]
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    masks = found.pred_masks.to_bitmasks()
    assert (masks != expected.pred_masks).sum() <= 1e-3 * expected.pred_masks.sum() + 1
    (tile,) = predictor.predict_many([picture], dense=True)
    assert len(tile) > cap if is_staged(predictor.model) else len(tile) <= cap
    half = Predictor.from_checkpoint(path, precision="bf16")(picture)
    # Untrained networks of a hundred layers have sums that bf16 rounds a lot.
    torch.testing.assert_close(half.scores[:3], found.scores[:3], rtol=0, atol=0.1)


def check_fine_tuning(build_cfg, path):
    """The layers that depend on the number of classes, and no others, are left as they are."""
    other = ("MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.POINT_HEAD.NUM_CLASSES", 5)
    cfg = build_cfg(*other, "MODEL.WEIGHTS", path)
    model = Trainer.build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpointer = TrainingCheckpointer(model, cfg, ["a", "b", "c", "d", "e"])
    with user_error("checkpoint_mismatch", path):
        checkpointer.load_weights(new_classes=False)
    checkpointer.load_weights()
    trained = torch.load(path, weights_only=True)["model"]
    left = class_dependent(cfg)
    assert left and not any(name.startswith("backbone") for name in left)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in left else trained[name]), name
