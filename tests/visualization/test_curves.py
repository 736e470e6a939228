"""Curves out of metrics.json."""

import json
import logging

import matplotlib
import numpy as np
import pytest
from PIL import Image
from support import user_error

from microplastics.visualization.curves import (
    plot_counting_curves,
    plot_training_curves,
    read_counting_curves,
    read_metrics,
)

TRAINING = [
    {"iteration": 19, "total_loss": 2.0, "loss_mask": 0.7, "loss_cls": 0.9, "lr": 0.01},
    {"iteration": 39, "total_loss": 1.5, "loss_mask": 0.6, "loss_cls": 0.5, "lr": 0.01},
]
EVALUATION = {
    "validation/total_loss": 1.7,
    "validation/loss_mask": 0.8,
    "segm/AP50": 55.04,
    "segm/AP": 30.0,
    "bbox/AP": float("nan"),
    "semantic/Dice": 71.0,
}


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.json"

    def write(*records, tail=""):
        path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
        return path

    return write


def test_curves_are_in_order_without_repeats_or_numbers_that_are_none(metrics, caplog):
    again = {"iteration": 19, "total_loss": 1.9}
    path = metrics(*TRAINING[::-1], again, {"iteration": 39, **EVALUATION}, tail='{"itera')
    with caplog.at_level(logging.WARNING):
        curves = read_metrics(path)
    assert curves["total_loss"] == ([19, 39], [1.9, 1.5])
    assert curves["segm/AP50"] == ([39], [55.04])
    assert "bbox/AP" not in curves
    assert "1 lines of" in caplog.text and "left out" in caplog.text


def texts(path):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_training_curves(path, path.with_suffix(".svg"))
    return path.with_suffix(".svg").read_text()


def test_losses_lr_and_the_best_accuracy_are_plotted(metrics):
    path = metrics(*TRAINING, {"iteration": 39, **EVALUATION}, {"iteration": 59, "segm/AP50": 50})
    svg = texts(path)
    for word in ("training/total loss", "validation/total loss", "learning rate", "mask", "cls"):
        assert f">{word}<" in svg
    assert "segm/AP50 (best 55.0 at 39)" in svg and "semantic/Dice (best 71.0" in svg


def test_panels_without_data_are_left_out(metrics):
    heights = []
    for records in (TRAINING, [*TRAINING, {"iteration": 39, **EVALUATION}]):
        path = metrics(*records)
        plot_training_curves(path, path.with_suffix(".png"))
        heights.append(Image.open(path.with_suffix(".png")).height)
    assert heights == [pytest.approx(2 * 3.4 * 110, abs=2), pytest.approx(3 * 3.4 * 110, abs=2)]


def test_several_test_sets_are_told_apart(metrics):
    records = [{"iteration": 9, f"{name}/segm/AP50": 40.0} for name in ("water", "soil")]
    svg = texts(metrics(*records))
    assert "water/segm/AP50 (best" in svg and "soil/segm/AP50 (best" in svg


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        '{\n  "segm/AP": 3.0\n}\n',
        '{"iteration": 3, "eta_seconds": 1.0}\n',
        "[" * 100_000,
        "\xff\x00garbage",
    ],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with user_error("file_missing" if content is None else "file_invalid", path):
        plot_training_curves(path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_unknown_formats_are_refused(metrics, tmp_path):
    with user_error("option_invalid", "curves.doc", ".svg"):
        plot_training_curves(metrics(*TRAINING), tmp_path / "curves.doc")


HEADER = "class,threshold,true,predicted,count_error,count_error_pct,precision,recall,F1\n"


def write(path, names):
    rows = [
        f"{name},{t / 100},20,{60 - t // 2},{40 - t // 2},1,{t},{100 - t},{'' if t > 90 else 50}\n"
        for name in names
        for t in range(1, 100)
    ]
    path.write_text(HEADER + "".join(rows))
    return path


def test_empty_cells_are_gaps(tmp_path):
    panels = read_counting_curves(write(tmp_path / "a.csv", ["Fiber", "all"]))
    assert list(panels) == ["Fiber", "all"]
    assert panels["Fiber"]["predicted"].iloc[0] == 60 and np.isnan(panels["all"]["f1"].iloc[-1])


@pytest.mark.parametrize("names", [["all"], ["Fiber $x", "all"], ["a", "b", "c", "all"], "abcde"])
def test_a_panel_for_each_class(tmp_path, names):
    table = write(tmp_path / "a.csv", names)
    plot_counting_curves(table, tmp_path / "a.png", {names[0]: 0.4})
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"), dtype=int)
    # The curve of F1 in its blue, in as many panels as there are classes.
    blue = (np.abs(picture - (0x00, 0x72, 0xB2)).sum(axis=2) < 30).sum()
    assert blue > 200 * len(names)
    assert picture.shape[1] > 400 * min(len(names), 2)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "class,F1\nFiber,1\n",
        HEADER + "Fiber,0.1,x,1,1,1,1,1,1\n",
        HEADER + "Fiber,0.1\n",
        b"\xff\xfe\x00",
        HEADER.replace("F1", "class") + "Fiber,0.1,1,1,1,1,1,1,Film\n",
        HEADER.replace("count_error,", "true,") + "Fiber,0.1,1,1,1,1,1,1,1\n",
    ],
)
def test_other_files(tmp_path, text):
    if text is not None:
        (tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with user_error("file_missing" if text is None else "file_invalid", "a.csv"):
        plot_counting_curves(tmp_path / "a.csv", tmp_path / "a.png")
