"""Settings that fit a data set, and what a training is told to expect."""

import json
import math

import cv2
import numpy as np
import pytest
import yaml

from microplastics.config import load_config
from microplastics.data import anchors
from microplastics.data.doctor.model_fit import outlook
from microplastics.data.loader import check_datasets, training_dicts
from microplastics.engine.suggestion import suggest

SIDE, WIDTH, LENGTH = 600, 4, 60


@pytest.fixture(autouse=True)
def short_search(monkeypatch):
    monkeypatch.setattr(anchors, "_GENERATIONS", 1)


@pytest.fixture
def strips(tmp_path):
    """KEY VALUE pairs of six photographs of 600 px, each with ten fibres of 60 x 4 px."""
    images, annotations = [], []
    for number in range(1, 7):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((SIDE, SIDE, 3), 200, np.uint8))
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        for row in range(10):
            x, y = 50 + 37 * row, 30 + 53 * row
            ring = [x, y, x + LENGTH, y, x + LENGTH, y + WIDTH, x, y + WIDTH]
            annotation = {"image_id": number, "category_id": 1, "iscrowd": 0}
            annotation |= {"bbox": [x, y, LENGTH, WIDTH], "area": LENGTH * WIDTH}
            annotations.append({**annotation, "id": len(annotations) + 1, "segmentation": [ring]})
    data = {"images": images, "annotations": annotations}
    data["categories"] = [{"id": 1, "name": "Fiber"}]
    (tmp_path / "train.json").write_text(json.dumps(data))
    return ["DATASETS.TRAIN", f"('{tmp_path}/train.json:{tmp_path}',)"]


def test_thin_particles_get_crops_anchors_and_finer_masks(strips):
    found = suggest(load_config("quick", strips))
    settings = found.settings
    assert settings["MODEL.ROI_HEADS.NUM_CLASSES"] == 1
    # 4 px wide in files of 600 px: by area and Crofton's perimeter 4.2 px, so 570 px, in strides.
    assert settings["INPUT.MIN_SIZE_TEST"] == 576
    trained, (crop, _) = settings["INPUT.MIN_SIZE_TRAIN"][0], settings["INPUT.AUG.CROP.SIZE"]
    assert trained == 256 and crop == round(256 * SIDE / 576)
    assert settings["SOLVER.MAX_ITER"] == 500  # and not 600 epochs
    assert len(found.reasons) >= 4
    cfg = check_datasets(found.cfg, ("TRAIN",))
    before, after = (
        outlook(each, training_dicts(cfg)).fit
        for each in (load_config("quick", [*strips, "MODEL.ROI_HEADS.NUM_CLASSES", 1]), cfg)
    )
    assert before.small["Fiber"] == 1 and before.no_anchor["Fiber"] == 1
    assert after.small["Fiber"] == 0 and after.no_anchor["Fiber"] <= 0.5
    assert after.mask_iou["Fiber"][after.mask_size] >= 0.9


def test_a_config_that_fits_is_left_alone(tiny_cfg):
    cfg = tiny_cfg("SOLVER.MAX_ITER", 100, "INPUT.MIN_SIZE_TEST", 192, "INPUT.MAX_SIZE_TEST", 192)
    found = suggest(cfg)
    assert "SOLVER.MAX_ITER" not in found.settings and "INPUT.MIN_SIZE_TEST" not in found.settings


def test_few_epochs_are_named(tiny_cfg):
    cfg = check_datasets(tiny_cfg("SOLVER.MAX_ITER", 3), ("TRAIN",))
    sight = outlook(cfg, training_dicts(cfg), sample=5)
    assert sight.epochs == 3 * cfg.SOLVER.IMS_PER_BATCH / sight.images and sight.wants_better
    assert "fewer than the 12 that most data sets need" in sight.lines()[0]
    assert suggest(cfg).settings["SOLVER.MAX_ITER"] == math.ceil(
        12 * sight.images / cfg.SOLVER.IMS_PER_BATCH
    )


def test_the_command_writes_a_config_that_trains(cli, strips, tmp_path):
    output = tmp_path / "better.yaml"
    done = cli("train", "--config-file", "quick", "--suggest", output, *strips)
    assert done.returncode == 0, done.stderr
    assert "- the thinnest particles are" in done.stdout and str(output) in done.stdout
    assert output.read_text().startswith("# Settings for ")
    written = yaml.safe_load(output.read_text())
    assert written["DATASETS"]["TRAIN"] and written["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 1
    small = ("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "TEST.EVAL_PERIOD", 0)
    short = ("SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "run")
    done = cli("train", "--config-file", output, *small, *short)
    assert done.returncode == 0, done.stderr
    assert "60 particles on 6 images; 1 iterations of 4 are 0.667 epochs" in done.stdout
    assert "--suggest better.yaml writes them" in done.stdout
    same = cli("train", "--config-file", output, "--suggest", output, *strips)
    assert same.returncode == 2 and "is the config itself" in same.stderr
