"""microplastics/evaluation/counting_records.py."""

import contextlib
import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from microplastics.evaluation.counting_records import LEAST_IOU, crops_of, judge_image
from microplastics.structures.crop_masks import CropMasks

SIZE = (24, 24)


def random_masks(random, count):
    masks = np.zeros((count, *SIZE), dtype=bool)
    for mask in masks:
        x, y = random.integers(0, 12, 2)
        width, height = random.integers(5, 13, 2)
        mask[y : y + height, x : x + width] = True
    return CropMasks.from_bitmasks(masks)


def coco_matches(found, classes, scores, true, true_classes, crowd):
    """Matched (not to a crowd) and ignored predictions of each class, as pycocotools has them."""
    api = COCO()
    frame = {"image_id": 1, "iscrowd": 0}
    annotations = [
        {**frame, "id": i + 1, "category_id": int(c), "segmentation": rle, "area": 1.0} | extra
        for i, (c, rle, extra) in enumerate(
            zip(
                true_classes,
                true.to_rles(as_str=True),
                [{"iscrowd": int(flag), "bbox": [0, 0, 1, 1]} for flag in crowd],
                strict=True,
            )
        )
    ]
    api.dataset = {
        "info": {},
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        "annotations": annotations,
    }
    results = [
        {"image_id": 1, "category_id": int(c), "segmentation": rle, "score": float(s)}
        for c, rle, s in zip(classes, found.to_rles(as_str=True), scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
        judge = COCOeval(api, api.loadRes(results), "segm")
        judge.params.iouThrs = np.array([LEAST_IOU])
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
    counts = {}
    for number, image in enumerate(judge.evalImgs):
        matched = image["dtMatches"][0] > 0 if image else np.zeros(0, dtype=bool)
        ignored = image["dtIgnore"][0].astype(bool) if image else matched
        counts[number] = (int((matched & ~ignored).sum()), int(ignored.sum()))
    return counts


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_matches_are_those_of_pycocotools(seed):
    random = np.random.default_rng(seed)
    found, true = (random_masks(random, int(n)) for n in random.integers(1, 9, 2))
    classes, true_classes = (random.integers(0, 2, len(masks)) for masks in (found, true))
    crowd = random.random(len(true)) < 0.2
    scores = random.random(len(found))
    record = judge_image(
        1, crops_of(found), classes, scores, crops_of(true), true_classes, crowd, np.zeros(2)
    )
    expected = coco_matches(found, classes, scores, true, true_classes, crowd)
    for number, (matched, ignored) in expected.items():
        own = classes == number
        assert (record["matches"][own, 0] >= 0).sum() == matched
        assert record["ignored"][own, 0].sum() == ignored


def test_each_particle_stands_once_in_the_confusion():
    random = np.random.default_rng(5)
    for _ in range(50):
        found, true = (random_masks(random, int(n)) for n in random.integers(0, 9, 2))
        classes, true_classes = (random.integers(0, 2, len(masks)) for masks in (found, true))
        scores, none = random.random(len(found)), np.zeros(len(true), dtype=bool)
        record = judge_image(
            1, crops_of(found), classes, scores, crops_of(true), true_classes, none, np.full(2, 0.4)
        )
        truths, guesses = record["confusion"].T
        assert sorted(truths[truths >= 0]) == sorted(true_classes)
        assert sorted(guesses[guesses >= 0]) == sorted(classes[scores >= 0.4])
        assert not ((truths < 0) & (guesses < 0)).any()
