"""microplastics measure on masks of known size."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile


@pytest.fixture
def coco(tmp_path):
    """Two images: a square of 10 px with a crowd beside it, and a blank."""
    square = [20, 20, 30, 20, 30, 30, 20, 30]
    common = {"image_id": 1, "bbox": [20, 20, 10, 10], "area": 100, "segmentation": [square]}
    crowd = {**common, "segmentation": {"size": [80, 100], "counts": [10, 20, 7970]}}
    crowd.update(bbox=[0, 10, 1, 20], area=20)
    data = {
        "images": [
            {"id": 1, "file_name": "a/one.png", "width": 100, "height": 80},
            {"id": 2, "file_name": "two.png", "width": 100, "height": 80},
        ],
        "categories": [{"id": 1, "name": "Film"}, {"id": 2, "name": "Fiber"}],
        "annotations": [
            {**common, "id": 7, "category_id": 1, "iscrowd": 0},
            {**crowd, "id": 8, "category_id": 1, "iscrowd": 1},
        ],
    }
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("a/one.png", "two.png"):
        cv2.imwrite(str(tmp_path / "images" / name), np.full((80, 100, 3), (0, 0, 200), np.uint8))
    return tmp_path / "images"


def test_annotations_are_measured(cli, coco, images, tmp_path):
    arguments = ("--masks", coco, "--images", images, "--um-per-px", "3", "--output")
    result = cli("measure", *arguments, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    (row,) = pd.read_csv(tmp_path / "out" / "particles.csv").to_dict("records")
    assert (row["image"], row["particle"], row["class"]) == ("a/one.png", 7, "Film")
    assert (row["area_px"], row["area_um2"], row["feret_min_um"]) == (100, 900, 30)
    assert (row["bbox_x"], row["bbox_y"], row["bbox_w"], row["bbox_h"]) == (20, 20, 10, 10)
    assert row["size_class"] == "20-50 um" and row["color_name"] == "red"
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("image")
    assert summary["count"].to_dict() == {"a/one.png": 1, "two.png": 0}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["images"][0]["left_out_of_masks"] == {"crowds": 1}
    assert (tmp_path / "out" / "overlays" / "a__one.png.png").exists()


def test_label_images_find_their_photographs(cli, images, tmp_path):
    labels = np.zeros((80, 100), np.int32)
    labels[5:15, 5:25], labels[40:44, 10:90] = 3, 5
    (tmp_path / "labels" / "a").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "labels" / "a" / "one.tif", labels)
    arguments = ("--masks", tmp_path / "labels" / "a", "--images", images / "a", "--formats", "csv")
    more = ("--class-name", "Fiber", "--output", tmp_path / "out")
    result = cli("measure", *arguments, *more)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "out" / "particles.csv").set_index("particle")
    assert table["area_px"].to_dict() == {3: 200, 5: 320}
    assert table["length_px"][5] == pytest.approx(80, abs=1) and table["image"][3] == "one.png"
    assert table["nearest_px"].tolist() == [25, 25] and "area_um2" not in table


def test_a_scale_for_each_image(cli, coco, tmp_path):
    scales = tmp_path / "scales.csv"
    scales.write_text("image;um_per_px\na/one.png;0,5\ntwo.png;2\n")
    arguments = ("--masks", coco, "--calibration", scales, "--output", tmp_path / "out")
    assert cli("measure", *arguments).returncode == 0
    (row,) = pd.read_csv(tmp_path / "out" / "particles.csv").to_dict("records")
    assert (row["area_um2"], row["um_per_px"]) == (25, 0.5)
    assert "scales.csv" in row["calibration_source"]


def test_each_sample_has_its_volume_and_all_have_one_filter(cli, coco, tmp_path):
    volumes = tmp_path / "volumes.csv"
    volumes.write_text("sample,volume\na/one.png,2 L\n")
    arguments = ("--masks", coco, "--um-per-px", "10", "--sampled-volume", volumes)
    result = cli("measure", *arguments, "--output", tmp_path / "missing")
    assert result.returncode == 2 and "volumes.csv has no volume for two.png" in result.stderr
    volumes.write_text("Sample;Volume\none;2 L\ntwo;500 mL\n")
    # An image shows 1 mm x 0.8 mm of the filter's 1.6 mm².
    more = ("--filter-area-mm2", "1.6", "--formats", "csv", "--output", tmp_path / "out")
    result = cli("measure", *arguments, *more)
    assert result.returncode == 0, result.stderr
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("image")
    assert summary["particles_per_l"].to_dict() == {"a/one.png": 1, "two.png": 0}
    highest = summary["count_high"] / [1, 0.25]
    assert summary["particles_per_l_high"].tolist() == pytest.approx(highest.tolist(), rel=1e-5)


def test_what_lies_in_the_region_counts(cli, coco, images, tmp_path):
    """The square's centroid is at (25, 25), four px inside of the one and outside of the other."""
    for part, edges in (("a/one", (21, 60)), ("two", (0, 100))):
        path = tmp_path / "where" / f"{part}.geojson"
        path.parent.mkdir(parents=True, exist_ok=True)
        (x0, x1), y1 = edges, 80
        ring = [[x0, 0], [x1, 0], [x1, y1], [x0, y1], [x0, 0]]
        path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    arguments = ("--masks", coco, "--images", images, "--um-per-px", "10")
    where = ("--region", tmp_path / "where", "--output", tmp_path / "out")
    result = cli("measure", *arguments, *where)
    assert result.returncode == 0, result.stderr
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("image")
    assert summary["count"].to_dict() == {"a/one.png": 1, "two.png": 0}
    assert summary["area_mm2"].tolist() == [0.312, 0.8]
    assert pd.read_csv(tmp_path / "out" / "particles.csv")["particle"].tolist() == [7]
    mask = np.zeros((80, 100), np.uint8)
    mask[:, 29:] = 1
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    result = cli(
        "measure", *arguments, "--region", tmp_path / "mask.png", "--output", tmp_path / "mask"
    )
    assert result.returncode == 0 and "0 particles on 2 images" in result.stdout
    record, _ = json.loads((tmp_path / "mask" / "run.json").read_text())["images"]
    assert record["left_out"]["outside_region"] == 1
    assert (record["region"], record["region_px"]) == ("mask.png", 80 * 71)
    # An image whose region has changed is done again, and no other.
    (tmp_path / "where" / "a" / "one.geojson").write_text((where[1] / "two.geojson").read_text())
    result = cli("measure", *arguments, *where, "--resume")
    assert result.returncode == 0 and "1 images are finished already" in result.stdout
    assert pd.read_csv(tmp_path / "out" / "summary.csv")["area_mm2"].tolist() == [0.8, 0.8]
    other = ("--region", tmp_path / "mask.png", "--output", tmp_path / "out", "--resume")
    result = cli("measure", *arguments, *other)
    assert result.returncode == 2 and "was made with region" in result.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: {"--region": "circle"}, "--region circle needs the photographs"),
        (lambda d: {"--region": d / "masks.json", "--edge": "weight"}, "--edge weight"),
        (lambda d: {"--filter-area-mm2": "9"}, "--filter-area-mm2 needs --sampled-volume"),
        (lambda d: {"--sampled-volume": d / "v.csv"}, "Cannot read"),
        (lambda d: {"--images": d / "nowhere"}, "nowhere is not a folder"),
        (lambda d: {"--images": d}, "which is not in"),
        (lambda d: {"--masks": d / "results.json"}, "which name neither images nor classes"),
        (lambda d: {"--scale-bar-um": "100"}, "--scale-bar-um needs the photographs"),
        (lambda d: {"--size-classes": "5,x"}, "5,x"),
    ],
)
def test_mistakes_are_one_sentence(cli, coco, tmp_path, change, words):
    (tmp_path / "results.json").write_text("[]")
    options = {"--masks": coco, "--output": tmp_path / "out", **change(tmp_path)}
    result = cli("measure", *[part for pair in options.items() for part in pair])
    assert result.returncode == 2 and words in result.stderr


def test_results_of_another_data_set_are_refused(cli, coco, tmp_path):
    rle = {"size": [80, 100], "counts": [10, 20, 7970]}
    for entry, words in [
        ({"image_id": 9, "category_id": 1, "score": 1}, "image 9 is not in the data set"),
        ({"image_id": 1, "category_id": 9, "score": 1}, "category 9 is not in the data set"),
        ({"image_id": 1, "category_id": 1, "score": "x"}, "the score is 'x'"),
        (
            {"image_id": 1, "category_id": 1, "score": 1, "segmentation": None},
            "the result has no mask",
        ),
    ]:
        path = tmp_path / "results.json"
        path.write_text(json.dumps([{"segmentation": rle, **entry}]))
        arguments = ("--masks", path, "--dataset", coco, "--output", tmp_path / "out")
        result = cli("measure", *arguments)
        assert result.returncode == 2 and words in result.stderr


def test_a_data_set_of_results_that_is_broken_is_refused(cli, coco, tmp_path):
    results = tmp_path / "results.json"
    results.write_text("[]")
    for change, words in [
        ({"id": 1}, "the id of another image"),
        ({"file_name": "a/one.png"}, "masks of a/one.png 2 times"),
        ({"height": float("nan")}, "height is nan"),
    ]:
        data = json.loads(coco.read_text())
        data["images"][1].update(change)
        (tmp_path / "set.json").write_text(json.dumps(data))
        arguments = ("--masks", results, "--dataset", tmp_path / "set.json")
        result = cli("measure", *arguments, "--output", tmp_path / "out")
        assert result.returncode == 2 and words in result.stderr


def test_merging_says_what_it_cannot_do_and_what_is_missing(cli, coco, tmp_path):
    one, both = tmp_path / "one", tmp_path / "both"
    assert cli("measure", "--masks", coco, "--output", one).returncode == 0
    run = json.loads((one / "run.json").read_text())
    assert run["images"][0]["left_out"]["overlays_without_photograph"] == 1
    (one / "failed.csv").write_text("image,path,error\nc.png,/c.png,it is empty\n")
    merged = cli("measure", "--merge-runs", one, "--output", both)
    assert merged.returncode == 3 and f"1 image failed in {one}" in merged.stdout
    scaled = cli("measure", "--merge-runs", one, "--output", both, "--um-per-px", "2")
    assert (
        scaled.returncode == 2
        and "--um-per-px cannot be combined with --merge-runs" in scaled.stderr
    )


@pytest.fixture
def arc(tmp_path):
    """A half ring, 3 px wide, of class dark and supercategory fibre, in COCO."""
    mask = np.zeros((80, 100), np.uint8)
    cv2.ellipse(mask, (50, 60), (30, 30), 0, 180, 360, 1, 3)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    ring = outlines[0].ravel().tolist()
    box, area = cv2.boundingRect(outlines[0]), int(mask.sum())
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": box}
    data = {
        "images": [{"id": 1, "file_name": "one.png", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "dark", "supercategory": "fibre"}],
        "annotations": [{**annotation, "area": area, "segmentation": [ring]}],
    }
    (tmp_path / "arc.json").write_text(json.dumps(data))
    return tmp_path / "arc.json"


def test_fibres_by_another_name_are_measured_along_their_centreline(cli, arc, tmp_path):
    def row_of(masks, name, *more):
        result = cli("measure", "--masks", masks, "--output", tmp_path / name, *more)
        assert result.returncode == 0, result.stderr
        (row,) = pd.read_csv(tmp_path / name / "particles.csv").to_dict("records")
        return row["length_method"], row["length_px"]

    method, length = row_of(arc, "found")
    assert method == "centerline" and length == pytest.approx(30 * np.pi, rel=0.05)
    assert row_of(tmp_path / "found" / "annotations.json", "again")[0] == "centerline"
    method, length = row_of(arc, "none", "--fiber-classes", "")
    assert method == "feret_max" and length == pytest.approx(62, abs=2)
    assert row_of(arc, "named", "--fiber-classes", "DARK")[0] == "centerline"
    wrong = cli("measure", "--masks", arc, "--output", tmp_path / "x", "--fiber-classes", "drak")
    assert wrong.returncode == 2 and "'drak' is not among the classes" in wrong.stderr


def test_conversion_keeps_that_a_class_is_of_fibres(cli, arc, tmp_path):
    cv2.imwrite(str(tmp_path / "one.png"), np.zeros((80, 100, 3), np.uint8))
    result = cli("convert", "--input", arc, "--output", tmp_path / "converted")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "converted/annotations/instances_all.json").read_text())
    assert written["categories"] == [{"id": 1, "name": "dark", "supercategory": "fibre"}]


def test_thin_particles_that_are_not_measured_as_fibres_are_named(cli, tmp_path):
    labels = np.zeros((80, 100), np.int32)
    for number in range(1, 7):
        labels[number * 10 : number * 10 + 3, 10:90] = number
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    result = cli("measure", "--masks", tmp_path / "labels.tif", "--output", tmp_path / "out")
    assert "6 of 6 particles of class Particle are thin" in result.stdout
    assert "--fiber-classes Particle" in result.stdout


@pytest.fixture
def barred(tmp_path):
    """Two photographs with bars of 194 px, 750 µm, and 127 px, 250 µm; masks of a fibre and of
    the second one's letters."""
    (tmp_path / "images").mkdir()
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "Fiber"}]}
    for number, (px, text) in enumerate(((194, "750 um"), (127, "250 um")), 1):
        image = np.full((750, 1000, 3), 170, np.uint8)
        x0, x1 = 980 - px, 980
        image[38:41, x0:x1] = image[31:47, x0 : x0 + 3] = image[31:47, x1 - 3 : x1] = 0
        at = (x0 + px // 2 - 30, 27)
        cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        cv2.line(image, (300, 300), (399, 300), (40, 40, 90), 4)
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), image)
        size = {"width": 1000, "height": 750}
        data["images"].append({"id": number, "file_name": f"{number}.png", **size})
        boxes = [(300, 298, 100, 4)] + [(at[0], 18, 40, 9)] * (number == 2)
        for x, y, w, h in boxes:
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            each = {"image_id": number, "category_id": 1, "iscrowd": 0, "bbox": [x, y, w, h]}
            each |= {"id": len(data["annotations"]) + 1, "area": w * h, "segmentation": [outline]}
            data["annotations"].append(each)
    (tmp_path / "masks.json").write_text(json.dumps(data))
    return "--masks", tmp_path / "masks.json", "--images", tmp_path / "images", "--formats", "csv"


def test_bars_of_several_lengths_are_read(cli, barred, tmp_path):
    pytest.importorskip("rapidocr")
    out = tmp_path / "out"
    result = cli("measure", *barred, "--scale-bar", "auto", "--output", out)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(out / "particles.csv").set_index("image")
    assert table["um_per_px"].to_dict() == pytest.approx({"1.png": 750 / 194, "2.png": 250 / 127})
    assert "1 particle on scale bars left out" in result.stdout
    run = json.loads((out / "run.json").read_text())
    assert [each["scale_bars"] for each in run["images"]] == [
        [{"px": 194.0, "um": 750.0}],
        [{"px": 127.0, "um": 250.0}],
    ]
    result = cli("measure", *barred, "--scale-bar-um", "750", "--output", out, "--overwrite")
    assert result.returncode == 3
    (row,) = pd.read_csv(out / "failed.csv").to_dict("records")
    assert row["image"] == "2.png" and "750 µm" in row["error"] and "250 µm" in row["error"]


@pytest.mark.parametrize("option", [("--scale-bar-um", "750"), ("--um-per-px", "3.87")])
def test_bars_of_several_lengths_are_told(cli, barred, tmp_path, monkeypatch, caplog, option):
    monkeypatch.setattr("microplastics.calibration.label.is_installed", lambda: False)
    result = cli("measure", *barred, *option, "--output", tmp_path / "out")
    assert result.returncode == 0
    words = result.stdout + result.stderr + caplog.text
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("differ in length: " in words) == (option[0] == "--scale-bar-um")
    for text in (page, words) if "differ" in words else (page,):
        assert "194.0 px on 1.png" in text and "127.0 px on 2.png" in text and option[0] in text
    result = cli("measure", *barred, "--scale-bar", "auto", "--output", tmp_path / "other")
    assert result.returncode == 2 and "pip install 'microplastics[ocr]'" in result.stderr


def test_bars_can_be_left_alone(cli, barred, tmp_path):
    result = cli("measure", *barred, "--scale-bar", "ignore", "--output", tmp_path / "out")
    assert result.returncode == 0 and "scale bar" not in result.stdout + result.stderr
    assert len(pd.read_csv(tmp_path / "out" / "particles.csv")) == 3
