"""microplastics predict on a tiny model that sees many things everywhere."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from support import ROOT

from microplastics.data.images import read_image


@pytest.fixture(scope="module")
def weights(tiny_opts, tmp_path_factory):
    from microplastics.config import load_config
    from microplastics.engine import Trainer
    from microplastics.engine.checkpoint import TrainingCheckpointer

    folder = tmp_path_factory.mktemp("model")
    quick = f"{ROOT}/configs/microplastics_quick.yaml"
    cfg = load_config(quick, [*tiny_opts, "OUTPUT_DIR", str(folder)])
    torch.manual_seed(4)
    model = Trainer.build_model(cfg)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=1.0)
    names = ["Fiber", "Fragment", "Film"]
    TrainingCheckpointer(model, cfg, names, training_side=96).save("model")
    return folder / "model.pth"


@pytest.fixture
def photographs(rendered, tmp_path):
    """Two photographs of 96 px, one of 230 x 150 px for windows, and a broken one."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("val_000000.jpg", "val_000001.jpg"):
        shutil.copy(rendered / "val" / name, folder)
    pictures = [read_image(path) for path in sorted((rendered / "val").iterdir())]
    large = np.tile(np.concatenate(pictures[:2], axis=1), (2, 2, 1))[:150, :230, ::-1]
    tifffile.imwrite(folder / "large.tif", large, photometric="rgb", tile=(64, 64))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    return folder


def numbers(path):
    return pd.read_csv(path).groupby("image").size().to_dict()


@pytest.mark.slow
def test_a_folder_becomes_tables_and_pictures_and_goes_on(cli, weights, photographs, tmp_path):
    output = tmp_path / "out"
    arguments = ("--weights", weights, "--input", photographs, "--output", output)
    arguments += ("--um-per-px", "2.5", "--confidence-threshold", "0.3", "--largest", "150")
    result = cli("predict", *arguments)
    assert result.returncode == 3, result.stderr
    failed = pd.read_csv(output / "failed.csv")
    assert failed["image"].tolist() == ["broken.png"], failed["error"].tolist()
    assert "broken.png" in failed["error"][0] and "| val_000000.jpg" in result.stdout
    assert f"1 image failed, see {output / 'failed.csv'}" in result.stdout

    table = pd.read_csv(output / "particles.csv")
    summary = pd.read_csv(output / "summary.csv").set_index("image")
    run = json.loads((output / "run.json").read_text())
    assert list(summary.index) == ["large.tif", "val_000000.jpg", "val_000001.jpg"]
    assert summary["count"].to_dict() == numbers(output / "particles.csv")
    assert table["area_um2"].to_numpy() == pytest.approx(table["area_px"] * 2.5**2, rel=1e-5)
    assert set(table["calibration_source"]) == {"option --um-per-px"}
    assert run["particles"] == len(table) and run["failed"] == 1
    assert run["score_thresholds_from"] == "option"
    assert run["training"]["architecture"] == "GeneralizedRCNN"
    page = (output / "report.html").read_text()
    assert run["checkpoint_sha256"] in page and "1 of 4 images failed: not counted." in page
    by_name = {each["name"]: each for each in run["images"]}
    assert by_name["large.tif"]["tile"] == 96 and by_name["large.tif"]["windows"] > 4
    assert by_name["large.tif"]["coarse"] and by_name["val_000000.jpg"]["tile"] is None
    for name in summary.index:
        labels = tifffile.imread(output / "labels" / f"{name}.tif")
        ids = table[table["image"] == name]["particle"]
        assert set(np.unique(labels)) - {0} <= set(ids)
        overlay = read_image(output / "overlays" / f"{name}.png")
        assert overlay.shape[1] >= 2 * labels.shape[1]
    results = json.loads((output / "coco_instances_results.json").read_text())
    assert len(results) == len(table)

    # What is finished stays, what failed is tried again.
    times = {path: path.stat().st_mtime_ns for path in (output / "overlays").iterdir()}
    shutil.copy(photographs / "val_000000.jpg", photographs / "broken.png")
    assert cli("predict", *arguments).returncode == 2
    again = cli("predict", *arguments, "--resume")
    assert again.returncode == 0 and not (output / "failed.csv").exists()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    found = numbers(output / "particles.csv")
    assert found["broken.png"] == found["val_000000.jpg"]


@pytest.mark.slow
def test_measuring_what_was_predicted_gives_the_same_table(cli, weights, photographs, tmp_path):
    (photographs / "broken.png").unlink()
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    scale = ("--um-per-px", "4", "--formats", "csv,coco,labels")
    predicted = cli(
        "predict", "--weights", weights, "--input", photographs, "--output", one, *scale
    )
    assert predicted.returncode == 0, predicted.stderr
    masks = ("--masks", one / "coco_instances_results.json", "--images", photographs)
    measured = cli("measure", *masks, "--output", two, *scale)
    assert measured.returncode == 0, measured.stderr
    pd.testing.assert_frame_equal(
        pd.read_csv(one / "particles.csv"), pd.read_csv(two / "particles.csv")
    )
    merged = cli("measure", "--merge-runs", one, "--output", three, "--group-by", "^(...)")
    assert merged.returncode == 0, merged.stderr
    samples = pd.read_csv(three / "samples.csv").set_index("group")
    assert samples["images"].to_dict() == {"lar": 1, "val": 2}
    assert samples["count"].sum() == len(pd.read_csv(one / "particles.csv"))


@pytest.mark.slow
def test_a_region_changes_nothing_within_it(cli, weights, photographs, tmp_path):
    (photographs / "broken.png").unlink()
    where = tmp_path / "left.geojson"
    ring = [[0, 0], [30.5, 0], [30.5, 999], [0, 999], [0, 0]]
    where.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    common = ("--weights", weights, "--input", photographs, "--formats", "csv")
    common += ("--um-per-px", "2", "--confidence-threshold", "0.6", "--largest", "60", "--no-join")
    runs = {}
    for name, more in (("all", ()), ("left", ("--region", where))):
        result = cli("predict", *common, *more, "--output", tmp_path / name)
        assert result.returncode == 0, result.stderr
        runs[name] = pd.read_csv(tmp_path / name / "particles.csv").drop(columns="particle")
    assert "outside of the region left out" in result.stdout
    inside = runs["all"][runs["all"]["x"] < 30.5].reset_index(drop=True)
    assert 0 < len(inside) < len(runs["all"])
    kept = [name for name in inside if not name.startswith("nearest")]
    pd.testing.assert_frame_equal(runs["left"][kept], inside[kept])
    images = json.loads((tmp_path / "left" / "run.json").read_text())["images"]
    assert {each["name"]: each.get("outside", 0) > 0 for each in images}["large.tif"]
    assert all(each["region_px"] == 30.5 * each["height"] for each in images)


@pytest.mark.slow
def test_two_processes_share_the_images(cli_process, weights, photographs, tmp_path):
    (photographs / "broken.png").unlink()
    common = ("--weights", weights, "--input", photographs, "--formats", "csv", "--output")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    two = cli_process("predict", *common, tmp_path / "two", launcher=launcher, env=environment)
    assert two.returncode == 0, two.stderr
    one = cli_process("predict", *common, tmp_path / "one", env=environment)
    assert one.returncode == 0, one.stderr
    assert (tmp_path / "two/particles.csv").read_text() == (
        tmp_path / "one/particles.csv"
    ).read_text()
    assert json.loads((tmp_path / "two/run.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--weights is missing"),
        (("--weights", "nowhere.pth"), "weights file nowhere.pth"),
        (("--weights", "W", "--tile", "9"), "--tile is 9"),
        (("--weights", "W", "--confidence-threshold", "2"), "score threshold of Fiber is 2.0"),
        (("--weights", "W", "--blanks", "*.gif"), "--blanks *.gif"),
        (("--weights", "W", "--sampled-volume", "2 apples"), "2 apples"),
        (("--weights", "W", "--scale-bar-um", "500", "--input", "P"), "scale bar"),
    ],
)
def test_mistakes_are_one_sentence(cli, weights, photographs, tmp_path, arguments, words):
    places = {"W": weights, "P": photographs / "val_000000.jpg"}
    given = [places.get(each, each) for each in arguments]
    if "--input" not in given:
        given += ["--input", photographs]
    result = cli("predict", *given, "--output", tmp_path / "out")
    assert result.returncode == 2 and words in result.stderr
    assert "Traceback" not in result.stderr
