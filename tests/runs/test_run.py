"""A run over images whose particles are given: what fails, what stops it, and who does what."""

import dataclasses
import json
import types

import cv2
import numpy as np
import pandas as pd
import pytest
from support import user_error

from microplastics.inference.predictor import Predictions
from microplastics.runs.images import RunOptions, find_images
from microplastics.runs.run import ParticleFinder, Run
from microplastics.structures.particles import Particles
from microplastics.utils.errors import UserError, WriteError

FOUND = Particles(
    "a.png",
    (9, 9),
    [np.ones((2, 3), bool)],
    np.array([[4, 5]]),
    ["Film"],
    np.ones(1),
    np.ones(1, int),
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abcd":
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((9, 9, 3), 50, np.uint8))
    return tmp_path / "images"


@pytest.fixture
def make(folder, tmp_path):
    def run(settings=None, **options):
        options = RunOptions(output=str(tmp_path / "out"), **options)
        return Run(find_images([str(folder)]), options, ["Film"], [], {}, settings or {})

    return run


def finish(run, image):
    with run.opener.open(image) as opened:
        run.finish(opened, dataclasses.replace(FOUND, image=image.name), {}, 0.0)


def test_a_failed_image_leaves_no_file_behind(make, tmp_path):
    run = make()
    image = run.begin()[0]
    with run.attempt(image):
        finish(run, image)
        assert (tmp_path / "out/overlays/a.png.png").exists()
        raise ValueError("two\nlines")
    assert not list((tmp_path / "out").glob("*/a.png*"))
    with run.attempt(run.images[1]):
        finish(run, run.images[1])
    assert run.end() == 3
    errors = pd.read_csv(tmp_path / "out/failed.csv").set_index("image")["error"]
    assert errors["a.png"] == "ValueError: two lines (see log.txt)"
    assert errors["c.png"] == errors["d.png"] == "not reached; add --resume"


def test_a_disk_that_is_full_stops_the_run(make):
    run = make()
    image, *_ = run.begin()
    with pytest.raises(WriteError), run.attempt(image):
        raise WriteError("the disk is full")
    assert len(make(resume=True).begin()) == 4


def test_the_first_process_says_for_all_what_is_left(make, monkeypatch):
    """What it finishes while another one still looks must not shift the other one's share."""
    from microplastics.runs import run as module

    first = make()
    monkeypatch.setattr(module.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(module.comm, "all_gather", lambda mine: [[0, 1, 2, 3], mine])
    monkeypatch.setattr(module.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(module.comm, "get_rank", lambda: 1)
    monkeypatch.setattr(module.comm, "synchronize", lambda: finish(first, first.images[0]))
    monkeypatch.setattr(module.dist, "new_group", lambda **_: None)
    assert [image.name for image in make().begin()] == ["b.png", "d.png"]


def test_another_scale_table_under_the_same_name_is_another_run(make, tmp_path):
    table = tmp_path / "scales.csv"
    table.write_text("image,um_per_px\na.png,2\n")
    make(calibration=str(table)).begin()
    make(calibration=str(table), resume=True).begin()
    table.write_text("image,um_per_px\na.png,3\n")
    with user_error("run_mismatch", "calibration"):
        make(calibration=str(table), resume=True).begin()


def test_a_wrong_scale_is_told_before_the_work(make):
    with pytest.raises(UserError, match="--um-per-px"):
        make(um_per_px=-1.0)


def test_an_image_that_the_model_cannot_take_fails_alone(make, folder, tmp_path, monkeypatch):
    cv2.imwrite(str(folder / "c.png"), np.full((9, 9, 3), 99, np.uint8))
    monkeypatch.setattr(ParticleFinder, "_choose_tiling", lambda *_: None)

    def predict_many(images, paint):
        # Drawn two at a time, as batches are.
        for first in (images := iter(images)):
            for pixels in (first, *(each for _, each in zip(range(1), images, strict=False))):
                if pixels[0, 0, 0] == 99:
                    raise RuntimeError("out of memory")
                yield no_particles()

    predictor = types.SimpleNamespace(predict_many=predict_many, class_names=["Film"])
    run = make(formats=("csv",))
    ParticleFinder(predictor, run, {}, max_overlap=1.0).predict(run.begin())
    assert run.end() == 3
    errors = pd.read_csv(tmp_path / "out/failed.csv").set_index("image")["error"]
    assert errors.to_dict() == {"c.png": "RuntimeError: out of memory (see log.txt)"}
    images = json.loads((tmp_path / "out/run.json").read_text())["images"]
    assert [each["name"] for each in images] == ["a.png", "b.png", "d.png"]


def no_particles():
    import torch
    from detectron2.structures import Boxes

    from microplastics.structures.crop_masks import CropMasks

    return Predictions(
        (9, 9),
        pred_boxes=Boxes(torch.zeros(0, 4)),
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0, dtype=torch.int64),
        pred_masks=CropMasks.from_coco([], (9, 9)),
    )


def test_blanks_among_samples_are_told_before_the_work(make):
    with pytest.raises(UserError, match="mixes blanks and samples"):
        make(blanks=("a.png",), group_by="folder")


def test_counts_are_not_corrected_by_a_blank_that_failed(make):
    run = make(blanks=("a.png",))
    run.begin()
    finish(run, run.images[1])
    with user_error("run_invalid", "a.png", "failed.csv"):
        run.end()
