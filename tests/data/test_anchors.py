"""microplastics anchors and microplastics/data/anchors.py."""

import json

import cv2
import numpy as np
import pytest
import yaml
from support import ROOT, user_error

from microplastics.config import load_config
from microplastics.data import anchors
from microplastics.data.anchors import TrainingBoxes, find_anchors, kmeans

QUICK = f"{ROOT}/configs/microplastics_quick.yaml"
# Of one area on each level, so that one size and three ratios meet them all.
SHAPES = [(16, 16), (32, 8), (8, 32), (64, 64), (128, 32), (32, 128)]


def coco(folder, boxes, size=256, categories=("Fiber", "Fragment", "Film")):
    """A data set of one image with these (x, y, width, height, class) boxes: its entry."""
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "a.png"), np.full((size, size, 3), 90, np.uint8))
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": size, "height": size}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, 1)],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": label,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            for number, (x, y, w, h, label) in enumerate(boxes, 1)
        ],
    }
    (folder / "a.json").write_text(json.dumps(data))
    return ("DATASETS.TRAIN", repr((f"{folder}/a.json:{folder}",)))


@pytest.fixture
def clustered(tmp_path):
    """Boxes of six shapes around a point of every level's grid."""
    return coco(tmp_path / "data", [(128 - w / 2, 128 - h / 2, w, h, 1) for w, h in SHAPES])


def config(*opts):
    keys = ("MODEL.ANCHOR_GENERATOR.SIZES", "[[12], [30], [64], [128], [256]]")
    return load_config(QUICK, [*keys, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1, 2, 3]]", *opts])


def test_kmeans_finds_clusters_of_known_shape():
    random = np.random.default_rng(0)
    true = np.array([(10.0, 10.0), (60.0, 8.0), (8.0, 60.0)])
    # Pairs around each centre, of which it is the mean.
    away = random.uniform(0, 0.8, (20, 1, 2))
    shapes = np.concatenate([true + away, true - away]).reshape(-1, 2)
    found = kmeans(shapes, np.ones(len(shapes)), 3, random)
    assert np.sort(found, axis=0) == pytest.approx(np.sort(true, axis=0))
    few = kmeans(true[[0, 0, 1]], np.ones(3), 5, random)
    assert np.sort(few, axis=0) == pytest.approx(np.sort(true[:2], axis=0))


def test_boxes_of_exact_clusters_get_exactly_their_anchors(clustered):
    search = find_anchors(config(*clustered), "quick")
    before, found = search.fits["before"], search.fits["k-means"]
    # Levels p2 and p4 have boxes, the others keep theirs.
    assert found.sizes == [[16.0], [30.0], [64.0], [128.0], [256.0]]
    assert found.ratios[0] == found.ratios[2] == [0.25, 1.0, 4.0]
    assert found.ratios[1] == before.ratios[1] == [1, 2, 3]
    assert found.figures["all"] == {
        "mean_iou": 1.0,
        "recall_0.5": 1.0,
        "recall_0.7": 1.0,
        "no_anchor": 0.0,
    }
    assert list(found.figures) == ["Fiber", "all"]
    # The anchor of size 64 and ratio 3 is 64 / sqrt(3) wide and 64 sqrt(3) high.
    common = 32 * 64 * 3**0.5
    tall = common / (64**2 + 64**2 - common)
    assert before.best[[0, 3, 5]] == pytest.approx([144 / 256, 1.0, tall], abs=1e-6)
    assert search.chosen in ("k-means", "evolution")
    assert search.fits[search.chosen].best == pytest.approx(np.ones(6))


def test_evolution_knows_the_grid(tmp_path):
    # 4 px off the grid of p3 in both directions an anchor of the boxes' own 12 px covers 8 x 8 px
    # of them; one of 20 px covers them whole, which no smaller and no larger one does better.
    boxes = [(8 * i + 6, 8 * i + 6, 12, 12, 1) for i in range(3, 12)]
    keys = ("MODEL.RPN.IN_FEATURES", "['p3']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8]]")
    ratio = ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]")
    search = find_anchors(load_config(QUICK, [*coco(tmp_path / "data", boxes), *keys, *ratio]))
    assert search.fits["k-means"].sizes == [[12.0]]
    assert search.fits["k-means"].best == pytest.approx(np.full(9, 64 / (2 * 144 - 64)))
    assert search.chosen == "evolution"
    assert search.fits["evolution"].sizes[0] == pytest.approx([20], rel=0.01)
    assert search.fits["evolution"].best == pytest.approx(np.full(9, 144 / 400), rel=0.01)


def test_each_class_counts_alike(tmp_path):
    boxes = [(40 + i, 40, 20, 20, 2) for i in range(30)] + [(60, 60, 6, 60, 1)]
    opts = coco(tmp_path / "data", boxes)
    data = TrainingBoxes.from_config(config(*opts))
    assert data.weights[data.labels == 0].sum() == pytest.approx(0.5)
    drawn = data.drawn(12, seed=0)
    assert len(drawn) == 12 and (drawn.labels == 0).any()


def test_boxes_are_those_of_training(tmp_path):
    # A fibre across both windows, a speck in the left one.
    opts = coco(tmp_path / "data", [(10, 100, 200, 4, 1), (20, 20, 10, 10, 2)])
    whole = TrainingBoxes.from_config(config(*opts, "INPUT.MIN_SIZE_TRAIN", "(128,)"))
    assert whole.boxes.tolist() == [[5, 50, 105, 52], [10, 10, 15, 15]]
    assert whole.sizes.tolist() == [[128, 128]] * 2
    tiles = ("INPUT.TILE.SIZE", 160, "INPUT.TILE.OVERLAP", 64)
    tiled = TrainingBoxes.from_config(config(*opts, *tiles, "INPUT.MIN_SIZE_TRAIN", "(160,)"))
    widths = sorted((tiled.boxes[:, 2] - tiled.boxes[:, 0])[tiled.labels == 0])
    # Windows start at 0 and 96: 10 to 160, and 96 to 210; the row is in both of them.
    assert set(widths) == {150, 114}
    several = ("INPUT.MIN_SIZE_TRAIN", "(64, 128)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range")
    turned = ("INPUT.AUG.RIGHT_ANGLES.PROB", 0.5)
    assert len(TrainingBoxes.from_config(config(*opts, *several))) == 3 * 2
    assert len(TrainingBoxes.from_config(config(*opts, *several, *turned))) == 2 * 3 * 2


def test_a_model_without_boxes_has_no_anchors(clustered):
    with user_error("config_invalid", "ParticleSegmentor, which has no anchors"):
        find_anchors(load_config("quick_semantic", clustered))


def test_the_written_config_trains(cli, tiny_opts, tmp_path, monkeypatch):
    monkeypatch.setattr(anchors, "_GENERATIONS", 2)
    output, plot = tmp_path / "anchors.yaml", tmp_path / "anchors.png"
    options = ("--ratios", "3", "--plot", plot, "--output", output, *tiny_opts)
    done = cli("anchors", "--config-file", QUICK, *options)
    assert done.returncode == 0, done.stderr
    assert "| all" in done.stdout and "without an anchor" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    written = yaml.safe_load(output.read_text())["MODEL"]
    assert [len(row) for row in written["ANCHOR_GENERATOR"]["ASPECT_RATIOS"]] == [3] * 5
    # Three anchors a place instead of five: the RPN's head starts anew whatever the weights.
    assert "proposal_generator.rpn_head.anchor_deltas" in written["WEIGHTS_ALLOW_MISMATCH"]
    # On top of a config it is a config: training takes it, and resumes from its own.
    short = ("SOLVER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 0, "OUTPUT_DIR", tmp_path / "run")
    done = cli("train", "--config-file", output, *tiny_opts, *short)
    assert done.returncode == 0, done.stderr
    assert load_config(str(output)).MODEL.FPN.OUT_CHANNELS == 64
    same = cli("anchors", "--config-file", output, "--output", output, *tiny_opts)
    assert same.returncode == 2 and "is the config itself" in same.stderr
    other = cli("anchors", "--config-file", QUICK, "--output", "anchors.json", *tiny_opts)
    assert other.returncode == 2 and "ends in .yaml" in other.stderr
