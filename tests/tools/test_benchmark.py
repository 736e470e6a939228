"""tools/benchmark.py on tiny models: what it reports, never how fast it was."""

import importlib
import json
import math
import sys

import pytest
import torch
from conftest import ROOT, TINY, dataset_entry

from benchmarks import busy, evaluation, zoo
from benchmarks.agreement import compare_figures, compare_predictions
from benchmarks.infer_agreement import check_same, difference
from benchmarks.timing import Measurement, Report, alternate
from microplastics.config import load_config
from microplastics.evaluation.coco import coco_evaluation
from microplastics.modeling.interface import build_shapes
from microplastics.utils.errors import UserError

QUICK = ("--config-file", str(ROOT / "configs" / "microplastics_quick.yaml"))


@pytest.fixture
def benchmark(monkeypatch, tmp_path, capsys):
    """Runs the tool's ``main``: exit code, what ``--json`` wrote, stdout, stderr."""
    module = importlib.import_module("benchmarks.__main__")
    threads = torch.get_num_threads()

    def call(command, *options):
        path = tmp_path / "figures.json"
        common = ("--threads", "1", "--json", str(path))
        arguments = [str(option) for option in (command, *common, *options)]
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
        code = module.main()
        output = capsys.readouterr()
        return code, json.loads(path.read_text()), output.out, output.err

    yield call
    torch.set_num_threads(threads)


def assert_whole(figures, contestants, repeat):
    """Every contestant has a time for every turn, every other one than the reference a ratio."""
    for measurement in figures["measurements"]:
        found = measurement["contestants"]
        assert len(found) == contestants and measurement["reference"] in found
        for name, row in found.items():
            assert len(row["seconds"]) == repeat
            assert all(math.isfinite(s) and s > 0 for s in row["seconds"])
            if name != measurement["reference"]:
                assert 0 < row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
    assert figures["checks"] and all(check["agrees"] for check in figures["checks"])


@pytest.mark.slow
def test_train_runs_the_same_model_on_the_same_images(benchmark, rendered):
    options = ("--repeat", 2, "--iterations", 1, "--dataset", dataset_entry(rendered, "train"))
    code, figures, out, _ = benchmark("train", *QUICK, *options, *TINY)
    assert code == 0
    assert_whole(figures, contestants=3, repeat=2)
    (measurement,) = figures["measurements"]
    assert measurement["contestants"]["ours, all hooks on"]["target"] == 1.03
    assert [check["name"] for check in figures["checks"]] == [
        "images of the first batch",
        "loss of one batch",
    ]
    assert "an iteration" in out and "Turns: 2 of 1 iterations, 2 a batch" in out


@pytest.mark.slow
def test_busy_measures_both_settings_idle_and_busy(benchmark, rendered, monkeypatch):
    monkeypatch.setattr(busy, "_SECONDS_TO_SETTLE", 0.0)
    options = ("--repeat", 1, "--iterations", 1, "--dataset", dataset_entry(rendered, "train"))
    code, figures, _, _ = benchmark("busy", *QUICK, *options, *TINY)
    assert code == 0
    labels = [measurement["label"] for measurement in figures["measurements"]]
    assert labels == [
        "an iteration, idle",
        "an iteration, beside a busy process",
        "an iteration of ours",
    ]
    for measurement in figures["measurements"]:
        assert len(measurement["contestants"]) == 2
        assert all(c["median"] > 0 for c in measurement["contestants"].values())
    ours = figures["measurements"][2]["contestants"]["beside a busy process"]
    assert ours["target"] == 2.5


def test_validate_gives_detectron2s_predictions_and_figures(benchmark):
    options = ("--repeat", 1, "--images", 3, "--size", 96, "--detections", 20, 5)
    code, figures, out, _ = benchmark("validate", *options, *QUICK, *TINY)
    assert code == 0
    assert_whole(figures, contestants=3, repeat=1)
    assert [m["label"] for m in figures["measurements"]] == [
        "validation, 20 detections an image",
        "validation, 5 detections an image",
    ]
    assert [check["detail"] for check in figures["checks"]][2] == "18 figures"
    assert "COCO" not in out  # pycocotools' chatter


@pytest.mark.slow
def test_infer_gives_detectron2s_predictions(benchmark):
    images = ("--repeat", 1, "--images", 2, "--size", 96, "--detections", 7)
    paste = ("--paste-size", 200, "--paste-masks", 5)
    code, figures, _, _ = benchmark("infer", *images, *paste, *QUICK, *TINY)
    assert code == 0
    whole, pasted = figures["measurements"]
    assert_whole({**figures, "measurements": [whole]}, contestants=3, repeat=1)
    assert_whole({**figures, "measurements": [pasted]}, contestants=2, repeat=1)
    assert [m["label"] for m in figures["measurements"]] == [
        "an image of 96 px, 7 detections",
        "paste and encode 5 masks, 200 x 200 px",
    ]
    assert [check["name"] for check in figures["checks"]] == [
        "fp32 at 96 px, cap 7",
        "pasted RLEs",
    ]
    notes = figures["notes"]
    assert any(note.startswith("96 px, cap 7: ours, bf16 beside ours, fp32: 14") for note in notes)
    assert any(note.startswith("peak memory of 5 masks in 200 x 200 px: Detect") for note in notes)


def test_infer_pairs_detections_by_class_and_box():
    def result(box, score=0.5, category=0):
        rle = {"size": [50, 50], "counts": "abc"}
        where = {"image_id": 0, "category_id": category, "bbox": box}
        return {**where, "score": score, "segmentation": rle}

    ours = [result([0, 0, 10, 10]), result([20, 20, 9, 9], 0.9), result([0, 0, 10, 10], 0.4, 1)]
    theirs = [result([20, 20, 9, 9.5], 0.8), result([0, 0, 10, 10]), result([0, 0, 10, 10])]
    found = difference(ours, theirs)
    assert (found.counts, found.matched, found.mask_iou) == ((3, 3), 2, 1.0)
    assert (found.box, found.score) == pytest.approx((0.5, 0.1))
    assert check_same(ours, ours, "p").agrees and check_same([], [], "p").agrees
    assert not check_same(ours, theirs, "p").agrees and not check_same(ours, [], "p").agrees


@pytest.mark.slow
def test_input_gives_detectron2s_pixels_boxes_and_masks(benchmark):
    options = ("--repeat", 2, "--images", 2, "--particles", 5)
    code, figures, out, _ = benchmark("input", *options)
    assert code == 0
    assert_whole(figures, contestants=3, repeat=2)
    labels = [m["label"] for m in figures["measurements"]]
    assert labels[:2] == ["an image, polygons", "an image, RLE"]
    assert "read a JPEG" in labels and "resize, flip, to tensor" in labels
    for measurement in figures["measurements"][:2]:
        assert measurement["contestants"]["ours"]["target"] == pytest.approx(1 / 1.5)
    assert [check["name"] for check in figures["checks"]][:2] == [
        "polygons: pixels",
        "polygons: boxes and masks",
    ]
    assert "2 JPEGs of 1000 x 750 px, 5 particles each" in out


TINY_EVAL = ("--images", 6, "--true", 5, "--caps", 4, 120)


@pytest.mark.slow
def test_eval_gives_pycocotools_figures(benchmark):
    code, figures, _, _ = benchmark("eval", "--repeat", 2, *TINY_EVAL)
    assert code == 0
    assert_whole(figures, contestants=2, repeat=2)
    assert [check["name"] for check in figures["checks"]] == [
        "box, 4 predicted: figures",
        "mask, 4 predicted: figures",
        "box, 120 predicted: figures",
        "mask, 120 predicted: figures",
    ]
    targets = {m["label"]: m["contestants"]["ours"].get("target") for m in figures["measurements"]}
    assert targets["box, 120 predicted: evaluate + accumulate"] == 1 / 15
    assert targets["mask, 120 predicted: evaluate + accumulate"] == 1 / 6


@pytest.mark.slow
def test_zoo_measures_each_config_by_itself():
    found = zoo.benchmark(configs=["quick_semantic"], opts=TINY, size=96, repeat=1)
    cfg = load_config("quick_semantic", TINY)
    model = build_shapes(cfg)
    (row,) = found.rows
    assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert min(row["memory"], row["seconds"], row["flops"]) > 0
    # The stem, a 7 x 7 convolution at half the side, is a part of it.
    assert row["flops"] > 48**2 * 7**2 * 3 * 64
    assert str(found).splitlines()[-1].startswith("| `quick_semantic` | 11.")
    with pytest.raises(UserError, match="no config file r51"):
        zoo.benchmark(configs=["r51"])


def test_zoo_knows_which_models_differ():
    names = zoo.different_models()
    assert {"r50", "r50_scratch", "quick", "demo"} <= set(names)
    assert not {"r50_balanced", "quick_finetune", "demo_finetune"} & set(names)


@pytest.mark.slow
def test_figures_that_differ_end_in_code_1(benchmark, monkeypatch):
    def wrong(truth, results, *settings):
        worst_first = [{**result, "score": -result["score"]} for result in results]
        return coco_evaluation(truth, worst_first, *settings)

    monkeypatch.setattr(evaluation, "coco_evaluation", wrong)
    code, figures, out, err = benchmark("eval", "--repeat", 1, *TINY_EVAL)
    assert code == 1
    assert not any(check["agrees"] for check in figures["checks"])
    assert "box, 4 predicted: figures: DIFFER" in out
    assert err.startswith("error: Ours and the reference differ, so the times say nothing: box, 4")


@pytest.mark.parametrize(
    "command, options, words",
    [
        ("eval", ("--repeat", 0), "--repeat is 0"),
        ("input", ("--particles", 0), "--particles is 0"),
        ("eval", ("--caps", 100, 0), "--caps is 0"),
        ("train", (*QUICK, "--iterations", 0), "--iterations is 0"),
        ("validate", (*QUICK, "--images", 0), "--images is 0"),
        ("validate", (*QUICK, "--detections", 0), "--detections is 0"),
        ("train", ("--config-file", "none.yaml"), "no config file none.yaml"),
        ("infer", (*QUICK, "--images", 1, "--size", 96, "--dataset", "gone.json:x"), "gone.json"),
        ("infer", (*QUICK, "--size", 96, 0), "--size is 0"),
    ],
)
def test_mistakes_are_named(benchmark, command, options, words):
    with pytest.raises(UserError, match=words):
        benchmark(command, *options)


@pytest.mark.slow
def test_turns_rotate_and_warm_up_does_not_count():
    order = []

    def contestant(name):
        def turn():
            order.append(name)
            return {"turn": len(order)}

        return turn

    seconds = alternate({name: contestant(name) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(order) == "cab" + "abc" + "bca" + "cab"
    assert seconds == {"turn": {"a": [4, 9, 11], "b": [5, 7, 12], "c": [6, 8, 10]}}


def test_ratios_are_of_rounds():
    seconds = {"theirs": [1.0, 2.0, 4.0], "ours": [0.5, 2.0, 8.0]}
    measurement = Measurement("x", seconds, "theirs", {"ours": 1.0})
    assert vars(measurement.ratio("ours")) == {"median": 1.0, "low": 0.5, "high": 2.0}
    assert measurement.met("ours") and measurement.met("theirs") is None
    measurement.targets["ours"] = 0.99
    assert "MISSED" in str(Report({}, [measurement]))


def test_predictions_differ_by_a_box_a_mask_or_an_order():
    one = {"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [1, 2, 3, 4]}
    one["segmentation"] = {"size": [9, 9], "counts": "x"}
    assert compare_predictions([one], [dict(one)], "p").agrees
    changes = ({"bbox": [1, 2, 3, 5]}, {"segmentation": {}}, {"category_id": 1}, {"image_id": 2})
    for change in changes:
        assert not compare_predictions([one], [{**one, **change}], "p").agrees
    assert not compare_predictions([one], [], "p").agrees


def test_nan_equals_nan_alone():
    nan = float("nan")
    assert compare_figures({"segm": {"AP": nan}}, {"segm": {"AP": nan}}, "f").agrees
    assert not compare_figures({"segm": {"AP": nan}}, {"segm": {"AP": 1.0}}, "f").agrees
    assert not compare_figures({"bbox": {"AP": 1.0}}, {"segm": {"AP": 1.0}}, "f").agrees
