import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, dataset_entry, user_error

from microplastics.data.loader import (
    TrainLoader,
    ValidationLoader,
    batch_stream,
    check_datasets,
    effective_workers,
    repeat_factors,
    set_factors,
)
from microplastics.utils.system import seed_all, seeded


def take(loader, count, start=0):
    return list(itertools.islice(loader.iterate(start), count))


@pytest.mark.parametrize("workers", [0, 1])
def test_batch_k_is_the_same_wherever_one_starts(tiny_cfg, workers):
    cfg = check_datasets(tiny_cfg("DATALOADER.NUM_WORKERS", workers))
    whole = take(TrainLoader(cfg), 5)
    for late, early in zip(take(TrainLoader(cfg), 2, start=3), whole[3:], strict=True):
        for ours, theirs in zip(late, early, strict=True):
            assert ours["file_name"] == theirs["file_name"]
            assert torch.equal(ours["image"], theirs["image"])
            assert torch.equal(
                ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor
            )


def test_augmentation_differs_from_visit_to_visit(tiny_cfg):
    cfg = check_datasets(tiny_cfg("SOLVER.IMS_PER_BATCH", 1))
    visits = {}
    for (item,) in take(TrainLoader(cfg), 40):
        visits.setdefault(item["file_name"], set()).add(item["image"].sum(0)[0, 0].item())
    assert any(len(corners) > 1 for corners in visits.values())


@pytest.mark.parametrize("tile", [0, 64])
def test_sizes_are_drawn_from_the_whole_range(tiny_cfg, tile):
    many = ("INPUT.MIN_SIZE_TRAIN", "(48, 96)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range")
    cfg = check_datasets(tiny_cfg(*many, "INPUT.TILE.SIZE", tile, "INPUT.TILE.OVERLAP", 16))
    sides = [item["image"].shape for batch in take(TrainLoader(cfg), 30) for item in batch]
    assert all(height == width for _, height, width in sides)
    found = {height for _, height, _ in sides}
    assert 48 <= min(found) < 56 and 88 < max(found) <= 96 and len(found) > 20


def test_validation_keeps_annotations_and_sees_each_image_once(tiny_cfg):
    cfg = check_datasets(tiny_cfg())
    items = [item for batch in ValidationLoader(cfg, cfg.DATASETS.TEST[0]) for item in batch]
    assert len({item["image_id"] for item in items}) == len(items) == 4
    assert sum(len(item["instances"]) for item in items) > 0


def test_the_repeat_factor_sampler_is_known_and_others_are_refused(tiny_cfg):
    cfg = check_datasets(tiny_cfg("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"))
    assert len(take(TrainLoader(cfg), 2)) == 2
    cfg = check_datasets(tiny_cfg("DATALOADER.SAMPLER_TRAIN", "Shuffle"))
    with user_error("config_invalid", "SAMPLER_TRAIN is Shuffle"):
        take(TrainLoader(cfg), 1)


def test_weights_decide_how_often_each_set_is_drawn(tiny_cfg, rendered):
    sets = (dataset_entry(rendered, "train"), dataset_entry(rendered, "val"))
    names = ("DATASETS.TRAIN", repr(sets), "SOLVER.IMS_PER_BATCH", 1)
    cfg = check_datasets(tiny_cfg(*names, "DATASETS.TRAIN_WEIGHTS", "[1, 4]"))
    loader = TrainLoader(cfg)
    files = [batch[0]["file_name"] for batch in take(loader, 400)]
    fraction = sum("/val/" in name for name in files) / len(files)
    assert fraction == pytest.approx(0.8, abs=0.05)
    assert loader.images_per_epoch == pytest.approx(len(loader.dataset_dicts))
    assert take(loader, 1, start=399)[0][0]["file_name"] == files[399]


@pytest.mark.parametrize("weights", ["[1, 2, 3]", "[0]"])
def test_weights_that_are_refused(tiny_cfg, weights):
    with user_error("config_invalid", "DATASETS.TRAIN_WEIGHTS"):
        check_datasets(tiny_cfg("DATASETS.TRAIN_WEIGHTS", weights))


@pytest.fixture
def weighted_blanks(rendered, tmp_path):
    """Keys that weight the training set and a set of blank images."""
    data = json.loads((rendered / "annotations" / "instances_val.json").read_text())
    blank = tmp_path / "blank.json"
    blank.write_text(json.dumps({**data, "annotations": []}))
    sets = repr((dataset_entry(rendered, "train"), f"{blank}:{rendered}/val"))
    return ("DATASETS.TRAIN", sets, "DATASETS.TRAIN_WEIGHTS", "[1, 1]")


def test_a_weighted_set_of_blank_images(tiny_cfg, weighted_blanks):
    keep = ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False")
    assert len(TrainLoader(check_datasets(tiny_cfg(*weighted_blanks, *keep))).dataset_dicts) == 12
    with user_error("dataset_empty", "blank.json"):
        check_datasets(tiny_cfg(*weighted_blanks))


def test_a_set_without_a_window_left(tiny_cfg, weighted_blanks):
    tiles = ("INPUT.TILE.SIZE", 64, "INPUT.TILE.OVERLAP", 16, "INPUT.TILE.EMPTY_SHARE", "0.0")
    keep = ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False")
    cfg = check_datasets(tiny_cfg(*weighted_blanks, *tiles, *keep))
    with user_error("dataset_empty", "blank.json", "INPUT.TILE.EMPTY_SHARE"):
        TrainLoader(cfg)


def test_partners_are_weighted_as_the_images_are(tiny_cfg, rendered):
    sets = repr((dataset_entry(rendered, "train"), dataset_entry(rendered, "val")))
    opts = ("DATASETS.TRAIN", sets, "DATASETS.TRAIN_WEIGHTS", "[1e308, 1e308]")
    loader = TrainLoader(check_datasets(tiny_cfg(*opts, "INPUT.AUG.MOSAIC.PROB", 1.0)))
    weights = loader._mapper.partner_weights
    assert weights[:8].sum() == pytest.approx(weights[8:].sum()) == pytest.approx(6)
    assert len(take(loader, 1)) == 1


def test_sets_with_different_classes_are_refused(tiny_cfg, rendered, tmp_path):
    data = json.loads((rendered / "annotations" / "instances_val.json").read_text())
    data["categories"][2]["name"] = "Foam"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data))
    cfg = tiny_cfg("DATASETS.TEST", repr((f"{other}:{rendered}/val",)))
    with user_error("classes_mismatch", "other.json", "Foam"):
        check_datasets(cfg)


def test_the_number_of_classes_is_that_of_the_model(tiny_cfg, rendered):
    names = "instances_train.json", "Fiber, Fragment, Film"
    with user_error("classes_mismatch", *names, "MODEL.ROI_HEADS.NUM_CLASSES is 80"):
        check_datasets(tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 80))
    retina = ("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 2)
    with user_error("classes_mismatch", *names, "MODEL.RETINANET.NUM_CLASSES is 2"):
        check_datasets(tiny_cfg(*retina))


def test_no_data_set(tiny_cfg):
    with user_error("config_invalid", "DATASETS.TRAIN"):
        check_datasets(tiny_cfg("DATASETS.TRAIN", "()"))


def test_workers_do_not_exceed_the_cores():
    assert effective_workers(0) == 0
    assert effective_workers(10**6) <= os.cpu_count()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_die_with_a_killed_main_process(rendered, tiny_opts, tmp_path):
    script = f"""
import sys, time
from microplastics.config import load_config
from microplastics.data.loader import TrainLoader, check_datasets
cfg = load_config({str(ROOT / "configs/microplastics_quick.yaml")!r}, {tiny_opts!r})
cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 1])
batches = TrainLoader(check_datasets(cfg)).iterate()
next(batches)
import multiprocessing
print(multiprocessing.active_children()[0].pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    lines = (line for line in process.stdout if line.strip().isdigit())
    worker = int(next(lines))
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
        if open(f"/proc/{worker}/stat").read().split()[2] == "Z":  # dead, nobody reaped it yet
            break
        time.sleep(0.05)
    else:
        assert not os.path.exists(f"/proc/{worker}")


def test_entries_are_registered_under_their_own_text(tiny_cfg, rendered):
    cfg = check_datasets(tiny_cfg())
    assert cfg.DATASETS.TRAIN == (dataset_entry(rendered, "train"),)


def test_tiles_cover_the_images_and_are_weighted_as_sets(tiny_cfg, rendered):
    sets = repr((dataset_entry(rendered, "train"), dataset_entry(rendered, "val")))
    tiles = ("INPUT.TILE.SIZE", 64, "INPUT.TILE.OVERLAP", 16, "DATASETS.TRAIN", sets)
    weights = ("DATASETS.TRAIN_WEIGHTS", "[1, 1]")
    loader = TrainLoader(check_datasets(tiny_cfg(*tiles, *weights)))
    windows = {d["window"] for d in loader.dataset_dicts}
    assert windows == {(x, y, 64, 64) for x in (0, 32) for y in (0, 32)}
    assert loader.images_per_epoch == pytest.approx(len(loader.dataset_dicts))
    (first, _), *_ = take(loader, 3)
    assert first["full_size"] == (96, 96) and first["width"] == 64


def test_mixing_batches_repeat_wherever_one_starts(tiny_cfg):
    mixing = ("INPUT.AUG.MOSAIC.PROB", 0.5, "INPUT.AUG.COPY_PASTE.PROB", 0.5)
    cfg = check_datasets(tiny_cfg(*mixing, "INPUT.AUG.ROTATION.PROB", 0.5))
    whole = take(TrainLoader(cfg), 6)
    for late, early in zip(take(TrainLoader(cfg), 2, start=4), whole[4:], strict=True):
        for ours, theirs in zip(late, early, strict=True):
            assert torch.equal(ours["image"], theirs["image"])
            assert torch.equal(
                ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor
            )


def test_augmentations_are_checked(tiny_cfg):
    cfg = check_datasets(tiny_cfg("INPUT.AUG.BLUR.PROB", 1.5))
    with user_error("config_invalid", "INPUT.AUG.BLUR.PROB"):
        TrainLoader(cfg)


def batches(count, start=0, size=7, groups=(0,) * 7, batch_size=3):
    stream = batch_stream(TrainingSampler(size, seed=5), groups, batch_size)
    return list(itertools.islice(stream, start, start + count))


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 12), st.data())
def test_starting_at_batch_k_is_skipping_k(size, batch_size, start, data):
    groups = data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    whole = batches(start + 4, 0, size, groups, batch_size)
    assert batches(4, start, size, groups, batch_size) == whole[start:]
    assert all(len({groups[i] for i, _ in batch}) == 1 for batch in whole)


def test_each_image_comes_once_an_epoch_and_positions_never_repeat():
    stream = [item for batch in batches(7) for item in batch]
    assert sorted(index for index, _ in stream) == sorted(list(range(7)) * 3)
    assert [position for _, position in stream] == list(range(21))


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_seeded_blocks_repeat_and_leave_no_trace():
    seed_all(1)
    before = draw()
    seed_all(1)
    with seeded(2, 3):
        first = draw()
    assert draw() == before
    with seeded(2, 3):
        assert draw() == first
    with seeded(3, 2):
        assert draw() != first


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0.1, 10)), min_size=1, max_size=4),
)
def test_sets_are_drawn_in_proportion_to_their_weights(sets):
    sizes, weights = zip(*sets, strict=True)
    factors = set_factors(sizes, weights, [str(k) for k in range(len(sizes))])
    drawn = [part.sum().item() for part in factors.split(sizes)]
    expected = [sum(sizes) * weight / sum(weights) for weight in weights]
    assert drawn == pytest.approx(expected, rel=1e-4)


def test_images_with_a_rare_class_are_repeated_and_blanks_are_not(caplog):
    def image(*classes):
        return {"annotations": [{"category_id": c} for c in classes]}

    caplog.set_level("INFO")
    dicts = [image(0), image(0, 0), image(0, 1), image()]
    factors = repeat_factors(dicts, 0.5)
    # Film is on a quarter of the images: sqrt(0.5 / 0.25).
    assert factors.tolist() == pytest.approx([1, 1, 2**0.5, 1])
    assert "4 images for 4, those of the rarest class 1.41 times" in caplog.text
    repeat_factors(dicts, 0.1)
    assert "raise DATALOADER.REPEAT_THRESHOLD" in caplog.text
