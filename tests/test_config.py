"""configs/ and microplastics/config.py."""

from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg as detectron2_get_cfg
from support import user_error

from microplastics.config import add_microplastics_config, get_cfg, load_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def flat(cfg, prefix=""):
    for key, value in cfg.items():
        if hasattr(value, "items"):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_yaml_loads_and_has_three_classes(path):
    cfg = load_config(str(path))
    if not path.name.startswith("Base-"):
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
        assert cfg.MODEL.MASK_ON


def test_r50_differs_from_detectron2_in_exactly_this():
    reference = dict(
        flat(model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"))
    )
    ours = dict(flat(load_config("configs/microplastics_r50.yaml")))
    defaults = dict(flat(get_cfg()))
    different = {
        key: value
        for key, value in ours.items()
        if (reference[key] if key in reference else defaults[key]) != value
    }
    zoo = "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/"
    assert different == {
        "MODEL.WEIGHTS": zoo + "model_final_f10217.pkl",
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
        "MODEL.ROI_HEADS.NUM_CLASSES": 3,
        "DATASETS.TRAIN": ("microplastics_train",),
        "DATASETS.TEST": ("microplastics_val",),
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.REFERENCE_WORLD_SIZE": 1,
        "SOLVER.BASE_LR": 0.001,
        "SOLVER.WEIGHT_DECAY": 0.0005,
        "SOLVER.STEPS": (),
        "SOLVER.MAX_ITER": defaults["SOLVER.MAX_ITER"],
        "SOLVER.MAX_EPOCHS": 50,
        "SOLVER.CHECKPOINT_PERIOD_EPOCHS": 1.0,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
        "SOLVER.AMP.ENABLED": True,
        "SOLVER.PLATEAU.ENABLED": True,
        "SOLVER.EARLY_STOPPING.ENABLED": True,
        "TEST.EVAL_PERIOD_EPOCHS": 1.0,
        "OUTPUT_DIR": "./output/microplastics_r50",
    }


def test_r50_has_the_published_settings():
    cfg = load_config("configs/microplastics_r50.yaml")
    assert cfg.SOLVER.MOMENTUM == 0.9
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 1.0
    assert (cfg.SOLVER.PLATEAU.FACTOR, cfg.SOLVER.PLATEAU.PATIENCE) == (0.1, 5)
    assert cfg.SOLVER.EARLY_STOPPING.PATIENCE == 10
    assert cfg.SOLVER.PLATEAU.METRIC == cfg.SOLVER.EARLY_STOPPING.METRIC == "validation/total_loss"
    assert cfg.SOLVER.BEST_CHECKPOINT.METRIC == "segm/AP50"
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 1000
    assert cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION == 7
    assert cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION == 14
    assert cfg.MODEL.ROI_MASK_HEAD.NUM_CONV == 4


def test_adding_the_keys_changes_none_of_detectron2s():
    plain, ours = detectron2_get_cfg(), detectron2_get_cfg()
    add_microplastics_config(ours)
    assert dict(flat(plain)).items() <= dict(flat(ours)).items()


@pytest.mark.parametrize(
    "opts, name",
    [
        (["SOLVER.BASE_RL", "1"], "did you mean SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR"], "SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR", "fast"], "BASE_LR"),
        (["DATASETS.TRAIN", "set"], "DATASETS.TRAIN"),
    ],
)
def test_wrong_options(opts, name):
    with user_error("config_invalid", name):
        load_config("", opts)


@pytest.mark.parametrize(
    "text, code, name",
    [
        ("MODEL: [", "config_invalid", "broken.yaml"),
        ("MODEL: {NO_SUCH_KEY: 1}", "config_invalid", "MODEL.NO_SUCH_KEY"),
        ("MODEL: {MASK_ON: 3}", "config_invalid", "MASK_ON"),
        ("_BASE_: gone.yaml", "file_missing", "gone.yaml"),
        ("- 1", "config_invalid", "broken.yaml"),
        ("SEED: !!python/object/apply:len ['abc']", "config_invalid", "python/object"),
    ],
)
def test_broken_yaml(tmp_path, text, code, name):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with user_error(code, "broken.yaml", name):
        load_config(str(path))
