"""Single checks with exact numbers: geometry, overlaps, image files, figures."""

import json
import time
from dataclasses import asdict

import numpy as np
import pycocotools.mask as mask_util
import pytest
import shapely
from PIL import Image
from support import user_error

from microplastics.config import get_cfg
from microplastics.data.coco import examine
from microplastics.data.doctor import diagnose
from microplastics.data.doctor.checks import (
    Dataset,
    aspect_ratio,
    check_overlaps,
    crosses_too_often,
    inspect_file,
    is_valid,
    only_touches,
)
from microplastics.data.doctor.findings import Collector, DatasetSummary

SQUARE = np.array([[10.0, 10], [30, 10], [30, 30], [10, 30]])


def test_valid_rings():
    bow_tie = SQUARE[[0, 2, 1, 3]]
    closed = np.vstack([SQUARE, SQUARE[:1]])
    flat, back = SQUARE[[0, 1, 0]], SQUARE[[0, 1, 0, 1]]
    rings = [SQUARE, bow_tie, closed, flat, back]
    assert list(map(is_valid, rings)) == [True, False, True, False, False]


def test_a_cut_to_a_hole_only_touches():
    hole = [[20, 20], [20, 25], [25, 25], [25, 20], [20, 20]]
    keyhole = np.vstack([SQUARE, SQUARE[:1], hole])
    assert not is_valid(keyhole) and only_touches(keyhole)
    assert not only_touches(SQUARE[[0, 2, 1, 3]])
    assert not only_touches(np.vstack([SQUARE, SQUARE]))  # twice round: nothing is filled


def test_an_endless_scribble_is_not_worked_on():
    scribble = np.random.default_rng(0).uniform(0, 1000, (20_000, 2))
    angle = np.linspace(0, 2 * np.pi, 200_001)[:-1]
    circle = 1000 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    start = time.process_time()
    assert crosses_too_often(scribble) and not crosses_too_often(circle)
    assert not only_touches(scribble) and time.process_time() - start < 10


def test_aspect_ratio():
    turned = shapely.affinity.rotate(shapely.box(1e6, 1e6, 1e6 + 40, 1e6 + 4), 30)
    assert aspect_ratio(shapely.get_coordinates(turned)) == pytest.approx(10, rel=1e-3)
    assert aspect_ratio(np.array([[0, 0], [20, 0], [20, 0.1]])) == pytest.approx(20, rel=1e-2)


@pytest.fixture
def check(tmp_path):
    """Diagnoses particles on one blank photograph of 64 x 48 px."""
    Image.new("RGB", (64, 48), "white").save(tmp_path / "a.png")

    def call(*annotations, image=None, **options):
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48, **(image or {})}],
            "categories": [{"id": 1, "name": "Fiber"}, {"id": 2, "name": "Film"}],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": 1, "iscrowd": 0, **annotation}
                for i, annotation in enumerate(annotations, start=1)
            ],
        }
        (tmp_path / "a.json").write_text(json.dumps(content))
        return diagnose([tmp_path / "a.json"], [tmp_path], workers=1, **options)

    return call


def _box(x, y, width, height, **changes):
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        "bbox": [x, y, width, height],
        "area": width * height,
        "segmentation": [polygon],
        **changes,
    }


def _codes(diagnosis):
    return {finding.code: finding.count for finding in diagnosis.findings}


def test_figures(check):
    mask = np.zeros((48, 64), np.uint8, order="F")
    mask[3:43, 7:11] = 1
    rle = {"size": [48, 64], "counts": mask_util.encode(mask)["counts"].decode()}
    diagnosis = check(
        _box(10, 10, 20, 5),
        {"bbox": [7, 3, 4, 40], "area": 160, "segmentation": rle, "category_id": 2},
        image={"um_per_px": 2.5},
    )
    [data] = diagnosis.datasets
    assert data.classes == {"Fiber": 1, "Film": 1} and data.class_of == ["Fiber", "Film"]
    assert data.num_images == 1 and data.num_annotations == 2 and data.particles_per_image == [2]
    assert data.size_px == [10.0, 160**0.5] and data.long_side_px == [20, 40]
    assert data.aspect_ratio == pytest.approx([4, 10]) and data.um_per_px == [2.5, 2.5]
    assert diagnosis.findings == [] and json.dumps(asdict(diagnosis))


def test_overlap_begins_above_nine_tenths(check):
    assert _codes(check(_box(0, 0, 20, 10), _box(0, 0, 18, 10))) == {"category_unused": 1}
    assert _codes(check(_box(0, 0, 20, 10), _box(0, 0, 19, 10)))["overlap"] == 1
    assert "overlap" not in _codes(check(_box(0, 0, 20, 10), _box(0, 0, 19, 10, iscrowd=1)))
    pair = _codes(check(_box(0, 0, 20, 10), _box(0, 0, 19, 10, category_id=2)))
    assert pair == {"overlap": 1}


def test_thousands_in_one_place_end_in_time(check):
    many = [_box(0, 0, 20 + i * 1e-5, 10, area=200) for i in range(1500)]
    start = time.process_time()
    found = _codes(check(*many))
    assert found["unchecked"] == 1 and found["overlap"] == 20_000
    assert time.process_time() - start < 20


def test_tens_of_thousands_apart_are_compared_quickly(check):
    corners = np.mgrid[0:20_000:100, 0:10_000:100].reshape(2, -1).T.tolist()
    many = [_box(x, y, 20, 10) for x, y in corners] + [_box(100, 100, 19, 10)]
    dataset = Dataset(DatasetSummary("a.json", "."), _examined(many), {1: "Fiber"})
    collector, start = Collector(), time.process_time()
    check_overlaps(dataset, collector)
    assert time.process_time() - start < 3
    [finding] = collector.findings()
    assert (finding.code, finding.count) == ("overlap", 1)


def _examined(annotations):
    images = [{"id": 1, "file_name": "a.png", "width": 20_100, "height": 10_100}]
    numbered = [{**a, "id": n, "image_id": 1} for n, a in enumerate(annotations, 1)]
    categories = [{"id": 1, "name": "Fiber"}]
    return examine({"images": images, "annotations": numbered, "categories": categories})


def test_a_million_points(check):
    angle = np.linspace(0, 2 * np.pi, 10**6 + 1)[:-1]
    circle = np.stack([32 + 20 * np.cos(angle), 24 + 20 * np.sin(angle)], axis=1)
    start = time.process_time()
    found = _codes(check(_box(12, 4, 40, 40, segmentation=[circle.reshape(-1).tolist()])))
    assert set(found) <= {"category_unused", "area_of_box"}
    assert time.process_time() - start < 20


def test_crossing_fibres_with_one_box_are_not_repeats(check):
    up = _box(5, 5, 30, 30, segmentation=[[5, 5, 7, 5, 35, 33, 35, 35, 33, 35, 5, 7]], area=116)
    down = _box(5, 5, 30, 30, segmentation=[[35, 5, 33, 5, 5, 33, 5, 35, 7, 35, 35, 7]], area=116)
    assert _codes(check(up, down)) == {"category_unused": 1}


@pytest.mark.parametrize(
    ("files", "roots", "code", "named"),
    [
        (["a.json"], ["a", "b"], "option_invalid", "--images names 2 folders"),
        (["none.json"], ["."], "file_missing", "none.json"),
    ],
)
def test_misuse_is_refused(files, roots, code, named):
    with user_error(code, named):
        diagnose(files, roots, workers=1)


def test_a_config_of_other_classes(check):
    cfg = get_cfg()
    diagnosis = check(_box(10, 10, 20, 5), cfg=cfg, config_file="x.yaml")
    [finding] = [f for f in diagnosis.findings if f.code == "num_classes"]
    assert "has 2 (['Fiber', 'Film']), the config 80" in finding.examples[0].text
    assert diagnosis.model_fit.config_file == "x.yaml" and diagnosis.has_problems


def test_an_image_without_a_name_is_compared_with_a_config(check):
    diagnosis = check(_box(10, 10, 20, 5), image={"file_name": None}, cfg=get_cfg())
    assert "image_field" in _codes(diagnosis) and diagnosis.model_fit.sampled == 1


def test_a_too_large_image_is_named(check):
    diagnosis = check(_box(10, 10, 20, 5), max_pixels=100)
    [finding] = [f for f in diagnosis.findings if f.code == "image_file"]
    assert "above the limit of 100 pixels" in finding.examples[0].text
    assert diagnosis.datasets[0].unusable_images == ["a.png"]


def test_facts_of_a_file(tmp_path):
    Image.new("L", (64, 48)).save(tmp_path / "a.png")
    image = {"file_name": "a.png", "width": 64, "height": 48}
    facts = inspect_file((image, str(tmp_path), None))
    assert (facts.problem, facts.bits, facts.grey, facts.orientation, facts.frames) == (
        (None, 8, True, 1, 1)
    )
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(tmp_path / "b.tif")
    facts = inspect_file(({**image, "file_name": "b.tif"}, str(tmp_path), None))
    assert facts.bits == 16 and facts.problem is None
    facts = inspect_file(({**image, "file_name": "b.tif", "width": 63}, str(tmp_path), None))
    assert facts.problem[0] == "image_size" and facts.fingerprint is not None


def test_in_processes_as_in_one(rendered):
    files = [rendered / f"annotations/instances_{split}.json" for split in ("train", "val")]
    roots = [rendered / "train", rendered / "val"]
    one, two = (diagnose(files, roots, workers=w) for w in (1, 2))
    assert one == two


def test_unsafe_file_names_are_not_opened(check):
    for name in ("/etc/passwd", "../a.png", "a\0.png"):
        diagnosis = check(_box(10, 10, 20, 5), image={"file_name": name})
        assert diagnosis.has_problems
        assert not any("passwd" in e.image for f in diagnosis.findings for e in f.examples)


def test_parts_that_are_all_invalid(check):
    bow_tie = SQUARE[[0, 2, 1, 3]]
    parts = [(bow_tie + [shift, 0]).ravel().tolist() for shift in (0, 20)]
    annotation = {"bbox": [10, 10, 40, 20], "area": 400, "segmentation": parts}
    assert _codes(check(annotation))["polygon_crossing"] == 2
