"""Decisions on particles: what they change, undo, conflicts, and the log that gives them back."""

import json

import cv2
import numpy as np
import pytest
from support import user_error

from microplastics.review import Conflict, Review

BOB = {"reviewer": "bob"}


def square(x, y, side=10):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


@pytest.fixture
def annotations(tmp_path):
    (tmp_path / "images").mkdir()
    images, found = [], []
    for number, name in enumerate(["a.png", "b.png"], start=1):
        cv2.imwrite(str(tmp_path / "images" / name), np.full((60, 80, 3), 90, np.uint8))
        images.append({"id": number, "file_name": name, "width": 80, "height": 60})
    for image, x, y in (1, 5, 5), (1, 25, 5), (1, 50, 30), (2, 10, 10):
        found.append(
            {
                "id": len(found) + 1,
                "image_id": image,
                "category_id": 1 + len(found) % 2,
                "bbox": [x, y, 10, 10],
                "area": 100,
                "iscrowd": 0,
                "segmentation": [square(x, y)],
                "score": 0.9 - 0.1 * len(found),
            }
        )
    categories = [{"id": 1, "name": "Fiber"}, {"id": 2, "name": "Film"}]
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": found, "categories": categories}))
    return path


@pytest.fixture
def review(annotations):
    with Review.open(annotations, images=str(annotations.parent / "images")) as opened:
        yield opened


def states(review, image="a.png"):
    return {each.id: each.state for each in review.particles(image)}


def test_decisions_and_undo(review):
    review.accept({"a.png": [1, 2], "b.png": [4]}, **BOB, version=0)
    review.reject({"a.png": [3]}, **BOB, version=1)
    assert states(review) == {1: "accepted", 2: "accepted", 3: "rejected"}
    assert review.table()["particle"].tolist() == [1, 2, 4]
    review.undo(**BOB)
    assert states(review)[3] == "unseen"
    change = review.redo(**BOB)
    assert states(review)[3] == "rejected" and change.particles == {"a.png": [3]}


def test_a_conflict_changes_nothing(review):
    review.accept({"a.png": [1]}, reviewer="ann", version=0)
    with pytest.raises(Conflict, match="Particle 1 of a.png has been changed since by ann"):
        review.reject({"a.png": [1, 2]}, **BOB, version=0)
    assert states(review) == {1: "accepted", 2: "unseen", 3: "unseen"}
    review.reject({"a.png": [2]}, **BOB, version=0)
    assert review.version == 2


def test_geometry(review):
    new = review.draw("a.png", [[[[60, 5], [70, 5], [70, 9], [60, 9]]]], "Film", **BOB, version=0)
    assert new.particles == {"a.png": [4]} and review.particle("a.png", 4).mask.shape == (4, 10)
    review.merge("a.png", [1, 2], **BOB, version=1)
    assert states(review) == {
        1: "replaced",
        2: "replaced",
        3: "unseen",
        4: "accepted",
        5: "accepted",
    }
    merged = review.particle("a.png", 5)
    assert merged.mask.sum() == 200 and merged.parents == (1, 2)
    review.split("a.png", 3, line=[[45, 34.5], [75, 34.5]], **BOB, version=2)
    assert sorted(review.particle("a.png", n).mask.sum() for n in (6, 7)) == [50, 50]
    assert review.table("a.png")["area_px"].tolist() == [40, 200, 50, 50]
    for _ in range(3):
        review.undo(**BOB)
    assert states(review) == {1: "unseen", 2: "unseen", 3: "unseen"}


def test_reading_the_log_again(review, annotations):
    review.set_class({"a.png": [1]}, "Pellet", **BOB, version=0)
    review.undo(**BOB)
    review.finish(["b.png"], **BOB, version=2)
    before = review.table(every=True)
    with user_error("run_mismatch", "Another process"):
        Review.open(annotations)
    review.close()
    with Review.open(annotations, images=str(annotations.parent / "images")) as again:
        assert again.table(every=True).equals(before) and again.version == 3
        assert again.image("b.png").finished
