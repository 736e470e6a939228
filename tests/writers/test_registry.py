import json

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from support import user_error

from microplastics.data.coco import load_instances
from microplastics.writers.registry import FORMATS, write_image, write_run
from microplastics.writers.tables import read_part, write_part

CLASSES = ["Fiber", "Fragment", "Film"]
RUN_FILES = {
    "particles.csv",
    "particles.parquet",
    "coco_instances_results.json",
    "annotations.json",
}


@pytest.fixture
def parts(make_result, tmp_path):
    """Parts of an image with particles, one without, and one without a scale."""
    results = [
        make_result(image="a/x.jpg"),
        make_result((), (), (), image="blank.jpg"),
        make_result(image="b/x.jpg", um_per_px=None),
    ]
    paths = [tmp_path / "parts" / f"{number}.parquet" for number in range(3)]
    for result, path in zip(results, paths, strict=True):
        write_part(result, path)
    return results, paths


def test_a_part_holds_the_image_its_table_and_its_masks(parts, frame):
    (result, *_), (path, *_) = parts
    part = read_part(path)
    assert part.image["image"] == "a/x.jpg" and part.image["um_per_px"] == 2.0
    assert (part.image["width"], part.image["height"]) == (50, 40)
    assert part.table.column_names == list(result.table)
    for index, counts in enumerate(part.counts):
        expected = coco_mask.encode(np.asfortranarray(frame(result, index).astype(np.uint8)))
        assert counts.encode() == expected["counts"]


def test_a_run_has_every_particle_in_every_file(parts, frame, tmp_path):
    results, paths = parts
    assert write_run(paths, tmp_path, list(FORMATS), CLASSES) == {}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == RUN_FILES
    table = pd.read_csv(tmp_path / "particles.csv")
    assert table["image"].tolist() == ["a/x.jpg"] * 3 + ["b/x.jpg"] * 3
    assert table["length_um"].isna().sum() == table["length_px"].isna().sum() == 3
    assert list(pd.read_parquet(tmp_path / "particles.parquet")) == list(table)
    truth = COCO(str(tmp_path / "annotations.json"))
    assert [image["file_name"] for image in truth.loadImgs([1, 2, 3])] == [
        "a/x.jpg",
        "blank.jpg",
        "b/x.jpg",
    ]
    detections = truth.loadRes(str(tmp_path / "coco_instances_results.json"))
    for image_id, result in ((1, results[0]), (3, results[2])):
        for coco in (truth, detections):
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
            assert [a["category_id"] for a in annotations] == [1, 2, 3]
            assert [a["score"] for a in annotations] == [0.5, 0.75, 1.0]
            for index, annotation in enumerate(annotations):
                mask = frame(result, index)
                assert (coco.annToMask(annotation) == mask).all()
                ys, xs = np.nonzero(mask)
                box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert annotation["bbox"] == box
                # Of results pycocotools takes the area of the box.
                assert coco is detections or annotation["area"] == mask.sum()


def test_the_annotations_can_be_trained_on_as_they_are(parts, tmp_path, caplog):
    write_run(parts[1], tmp_path, ["coco"], CLASSES)
    loaded = load_instances(str(tmp_path / "annotations.json"), str(tmp_path))
    assert [len(each["annotations"]) for each in loaded] == [3, 0, 3]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "1 x images without annotations"
    ]
    data = json.loads((tmp_path / "annotations.json").read_text())
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert data["images"][0]["calibration_source"] == "stage micrometer, µm"
    assert "um_per_px" not in data["images"][2]


def test_results_are_those_of_coco(parts, tmp_path):
    write_run(parts[1], tmp_path, ["coco"], CLASSES)
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(results) == 6
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert results[0]["segmentation"]["size"] == [40, 50]


def test_particles_without_a_score_are_annotations_alone(make_result, tmp_path):
    write_part(make_result(scores=(0.5, np.nan, np.nan)), tmp_path / "p.parquet")
    notes = write_run([tmp_path / "p.parquet"], tmp_path, ["coco"], CLASSES)
    assert notes == {"coco_results_without_score": 2}
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == 1
    annotations = json.loads((tmp_path / "annotations.json").read_text())["annotations"]
    assert ["score" in annotation for annotation in annotations] == [True, False, False]


def test_a_run_without_a_particle_has_whole_files(make_result, tmp_path):
    write_part(make_result((), (), ()), tmp_path / "p.parquet")
    write_run([tmp_path / "p.parquet"], tmp_path, ["csv", "coco"], CLASSES)
    assert (tmp_path / "particles.csv").read_text().startswith("image,particle,class,score,")
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []
    assert json.loads((tmp_path / "annotations.json").read_text())["annotations"] == []
    assert not (tmp_path / "particles.parquet").exists()


def test_the_files_of_an_image_lie_in_their_folders(make_result, photograph, tmp_path):
    photo = photograph(np.full((40, 50, 3), 120, dtype=np.uint8))
    assert write_image(make_result(photo=photo), tmp_path, list(FORMATS), "a__x.jpg") == {}
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "overlays/a__x.jpg.png",
        "labels/a__x.jpg.tif",
        "rois/a__x.jpg.zip",
        "geojson/a__x.jpg.geojson",
    }


def test_without_the_photograph_there_is_no_overlay(make_result, tmp_path):
    notes = write_image(make_result(), tmp_path, ["overlays", "labels", "csv"], "x")
    assert notes == {"overlays_without_photograph": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet" * 100])
def test_a_damaged_part_is_named(parts, tmp_path, content):
    paths = parts[1]
    paths[1].write_bytes(content)
    with user_error("run_invalid", "1.parquet"):
        write_run(paths, tmp_path, ["csv"], CLASSES)
    with user_error("run_invalid"):
        read_part(paths[1])
    assert not (tmp_path / "particles.csv").exists()
