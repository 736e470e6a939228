"""Folders of pictures of a data set, of batches and of results."""

import json
import shutil

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from conftest import dataset_entry
from detectron2.data import MetadataCatalog
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab
from support import user_error

from microplastics.data.colors import class_colors
from microplastics.utils.errors import UserError
from microplastics.visualization import draw, galleries
from microplastics.visualization.galleries import (
    OUTCOME_COLORS,
    draw_annotations,
    draw_batches,
    draw_results,
    read_results,
    results_to_instances,
)


@pytest.fixture
def entry(rendered):
    return dataset_entry(rendered, "val")


@pytest.fixture
def truth(rendered):
    """The JSON of the validation images."""
    return json.loads((rendered / "annotations" / "instances_val.json").read_text())


@pytest.fixture
def results(truth, tmp_path):
    """Writes results that repeat the truth with the given scores."""

    def write(*scores, **changes):
        annotations = truth["annotations"]
        found = [
            {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
            | {"score": score}
            | changes
            for a, score in zip(annotations * 9, scores, strict=False)
        ]
        path = tmp_path / "coco_instances_results.json"
        path.write_text(json.dumps(found))
        return path

    return write


def test_every_image_of_the_training_sets_is_drawn(tiny_cfg, rendered, tmp_path, capsys):
    entries = repr((dataset_entry(rendered, "val"), dataset_entry(rendered, "test")))
    assert draw_annotations(tiny_cfg("DATASETS.TRAIN", entries), tmp_path / "new") == 6
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == [f"test_{i:06d}.jpg" for i in range(2)] + [f"val_{i:06d}.jpg" for i in range(4)]
    assert "6/6" in capsys.readouterr().err
    picture = np.asarray(Image.open(tmp_path / "new" / names[0]))
    assert picture.shape[1] == 864  # 9 × 96 px


def test_batches_are_those_that_training_sees(tiny_cfg, tmp_path):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(64,)")
    count = draw_batches(cfg, tmp_path / "new")
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert len(names) == count <= 8
    assert [name[:6] for name in names] == [f"{i:06d}" for i in range(count)]
    assert Image.open(tmp_path / "new" / names[0]).width == 832  # 13 × 64 px
    other = draw_batches(cfg, tmp_path / "limited", limit=3)
    assert other == 3 and len(list((tmp_path / "limited").iterdir())) == 3
    for path in (tmp_path / "limited").iterdir():
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()


def test_rle_annotations_are_drawn_in_batches_too(tiny_cfg, rendered, truth, tmp_path):
    import pycocotools.mask as mask_util

    for annotation in truth["annotations"][::2]:
        image = next(i for i in truth["images"] if i["id"] == annotation["image_id"])
        if isinstance(annotation["segmentation"], list):
            size = image["height"], image["width"]
            rle = mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], *size))
            annotation["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    (tmp_path / "rle.json").write_text(json.dumps(truth))
    cfg = tiny_cfg("DATASETS.TRAIN", repr((f"{tmp_path}/rle.json:{rendered}/val",)))
    assert draw_batches(cfg, tmp_path / "new", limit=4) == 4
    assert draw_annotations(cfg, tmp_path / "new", limit=2) == 2


def test_showing_writes_nothing(tiny_cfg, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(draw, "show_picture", lambda picture, title: shown.append(title))
    draw_annotations(tiny_cfg(), tmp_path / "new", limit=2, show=True)
    assert shown == ["train_000000.jpg", "train_000001.jpg"] and not (tmp_path / "new").exists()


def test_no_training_set_is_a_sentence(tiny_cfg, tmp_path):
    with user_error("option_missing", "DATASETS.TRAIN", "--config-file"):
        draw_annotations(tiny_cfg("DATASETS.TRAIN", "()"), tmp_path)


def test_photograph_truth_and_prediction_stand_side_by_side(entry, results, truth, tmp_path):
    count = len(truth["annotations"])
    done = draw_results(results(*[0.9] * count), entry, tmp_path / "new")
    assert done == (4, [0.9] * count)
    picture = np.asarray(Image.open(tmp_path / "new" / "val_000000.jpg")).astype(int)
    assert picture.shape[1] == 3 * 864 + 2 * 8
    side = picture[-864:]
    photograph, drawn_truth, predicted = (side[:, x : x + 864] for x in (0, 872, 1744))
    outline = np.abs(photograph - drawn_truth).max(axis=2) > 60
    assert outline.any()
    # Predictions equal to the truth have its outlines, but for rounding to pixels (9 of these).
    changed = (np.abs(photograph - predicted).max(axis=2) > 60).astype(np.uint8)
    assert cv2.dilate(changed, np.ones((13, 13)))[outline].mean() > 0.85


def test_the_threshold_keeps_what_reaches_it(entry, results, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(galleries, "compare", lambda *given: drawn.append(len(given[2])))
    monkeypatch.setattr(draw, "save_picture", lambda *_: None)
    path = results(0.5, 0.3, 0.7)
    assert draw_results(path, entry, tmp_path / "a") == (4, [0.5, 0.3, 0.7])
    draw_results(path, entry, tmp_path / "b", 0.71)
    assert sum(drawn[:4]) == 2 and sum(drawn[4:]) == 0


def test_no_prediction_at_all_still_shows_the_truth(entry, results, tmp_path):
    assert draw_results(results(), entry, tmp_path / "new", limit=2) == (2, [])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"image_id": 99}, "image id 99"),
        ({"category_id": 9}, "category 9 is predicted"),
        ({"segmentation": {"size": [5, 5], "counts": "55"}}, "image val_0"),
    ],
)
def test_results_of_another_data_set_are_refused(entry, results, tmp_path, change, words):
    with user_error("annotations_invalid", words, "--dataset"):
        draw_results(results(0.9, 0.9, **change), entry, tmp_path / "new")


def test_an_unknown_data_set_is_refused(results, tmp_path):
    with user_error("dataset_unknown", "microplastics_vall", "'microplastics_val'"):
        draw_results(results(), "microplastics_vall", tmp_path)


def test_a_missing_image_is_named(rendered, results, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(rendered, copy)
    (copy / "val" / "val_000000.jpg").unlink()
    with pytest.raises(UserError, match="val_000000.jpg"):
        draw_results(results(), dataset_entry(copy, "val"), tmp_path / "new")


def test_colours_are_those_of_the_metadata(entry, results, tmp_path):
    draw_results(results(), entry, tmp_path / "new", limit=1)
    picture = np.asarray(Image.open(tmp_path / "new" / "val_000000.jpg")).astype(int)
    caption = picture[: picture.shape[0] - 864]
    for color in MetadataCatalog.get(entry).thing_colors:
        assert (np.abs(caption - color).max(axis=2) < 12).any()


GOOD = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}
SIZE = (10, 20)


def rle(size=SIZE):
    mask = np.zeros(size, np.uint8, order="F")
    mask[2:6, 1:4] = 1
    encoded = mask_util.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "results.json"),
        ("", "results.json"),
        ("[{", "results.json"),
        (b"\xff\xfe\xfa", "results.json"),
        ("[" * 100_000, "results.json"),
        ("[1" + "0" * 5000 + "]", "results.json"),
        ("{}", "results.json"),
        ([GOOD, 3], "number 2"),
        ([{**GOOD, "image_id": None}], "number 1"),
        ([{**GOOD, "category_id": 1.5}], "number 1"),
        ([{**GOOD, "score": float("nan")}], "number 1"),
        ([{**GOOD, "score": "0.5"}], "number 1"),
        ([{**GOOD, "bbox": [1, 2, 3]}], "number 1"),
        ([{**GOOD, "bbox": [1, 2, 3, 10**400]}], "number 1"),
        ([{**GOOD, "bbox": [1, 2, -3, 4]}], "number 1"),
        ([{k: v for k, v in GOOD.items() if k != "bbox"}], "number 1"),
    ],
)
def test_a_file_that_is_no_list_of_predictions_is_refused(tmp_path, content, words):
    path = tmp_path / "results.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with user_error("file_missing" if content is None else "file_invalid", words):
        read_results(path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"category_id": 4}, "category 4 is predicted, and the data set has 1, 2"),
        ({"segmentation": rle((20, 20))}, "[20, 20]"),
        ({"segmentation": {"size": [10, 20], "counts": "!!"}}, "does not fit"),
        ({"segmentation": [[1, 2]]}, "at least 3 points"),
        ({"segmentation": 3}, "does not fit"),
        ({"bbox": [30, 2, 3, 4]}, "outside the image of 20 x 10 px"),
        ({"bbox": [-9, 2, 3, 4]}, "outside the image"),
    ],
)
def test_what_does_not_fit_the_data_set_is_refused(change, words):
    with user_error("annotations_invalid", words):
        results_to_instances([{**GOOD, **change}], SIZE, {1: 0, 2: 1}, "x")


def test_some_with_and_some_without_masks_are_refused():
    with user_error("annotations_invalid", "masks"):
        results_to_instances([GOOD, {**GOOD, "segmentation": rle()}], SIZE, {2: 1}, "x")


def test_instances_have_contiguous_classes_cut_boxes_and_crop_masks():
    polygon = [[15, 5, 19, 5, 19, 9]]
    given = [
        {**GOOD, "bbox": [-1, 2, 30, 4], "segmentation": rle()},
        {"image_id": 1, "category_id": 1, "score": 1, "segmentation": polygon},
    ]
    instances = results_to_instances(given, SIZE, {1: 0, 2: 1}, "x")
    assert instances.pred_classes.tolist() == [1, 0] and instances.scores.tolist() == [0.5, 1]
    assert instances.pred_boxes.tensor[0].tolist() == [1, 2, 4, 6]  # not all have a bbox
    assert instances.pred_masks.area()[0] == 12
    assert instances[instances.scores >= 0.6].pred_boxes.tensor.tolist() == [[16, 5, 19, 8]]


def test_boxes_alone_and_nothing_at_all_are_fine():
    instances = results_to_instances([{**GOOD, "bbox": [-1, 2, 30, 4]}], SIZE, {2: 0}, "x")
    assert not instances.has("pred_masks")
    assert instances.pred_boxes.tensor.tolist() == [[0, 2, 20, 6]]
    assert len(results_to_instances([], SIZE, {2: 0}, "x")) == 0


# What is left without each kind of cone, in linear RGB (Machado, Oliveira and Fernandes 2009,
# doi:10.1109/TVCG.2009.113), and all of it.
SIGHTS = np.reshape(
    [
        *(1, 0, 0, 0, 1, 0, 0, 0, 1),
        *(0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216),
        *(-0.003882, -0.048116, 1.051998),
        *(0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413),
        *(-0.011820, 0.042940, 0.968881),
        *(1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602),
        *(0.004733, 0.691367, 0.303900),
    ],
    (4, 3, 3),
)


@pytest.mark.parametrize("sight", SIGHTS)
def test_everybody_tells_kinds_of_errors_and_classes_apart(sight):
    kinds, classes = list(OUTCOME_COLORS.values()), class_colors(["Fiber", "Fragment", "Film"])
    linear = (np.array([*kinds, *classes]) / 255) ** 2.2 @ sight.T
    seen = rgb2lab(np.clip(linear, 0, 1)[None] ** (1 / 2.2))[0]
    differences = deltaE_ciede2000(seen[: len(kinds), None], seen[None])
    assert np.sort(differences, axis=1)[:, 1].min() > 14
