"""Decisions on particles: what they change, undo, conflicts, and the log that gives them back."""

import dataclasses
import json
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from review_support import box
from support import user_error

from microplastics.review import Conflict, Review
from microplastics.utils.errors import UserError

BOB = {"reviewer": "bob"}


def states(review, image="a.png"):
    return {each.id: each.state for each in review.particles(image)}


def snapshot(review):
    """Everything that a review knows, as plain values."""
    return {
        image.name: [
            dataclasses.astuple(image),
            *(
                {**vars(each), "mask": each.mask.tolist(), "score": repr(each.score)}
                for each in review.particles(image.name)
            ),
        ]
        for image in review.images
    }


def test_decisions_and_undo(review):
    review.accept({"a.png": [1, 2], "b.png": [4]}, **BOB, version=0)
    review.reject({"a.png": [3]}, **BOB, version=1)
    assert states(review) == {1: "accepted", 2: "accepted", 3: "rejected"}
    assert review.table()["particle"].tolist() == [1, 2, 4]
    review.undo(**BOB)
    assert states(review)[3] == "unseen"
    change = review.redo(**BOB)
    assert states(review)[3] == "rejected" and change.particles == {"a.png": [3]}
    review.reset({"a.png": [3]}, **BOB, version=change.version)
    assert states(review)[3] == "unseen" and not review.can_redo("bob")
    with user_error("input_empty", "nothing to redo"):
        review.redo(**BOB)


def test_a_conflict_changes_nothing(review):
    review.accept({"a.png": [1]}, reviewer="ann", version=0)
    with pytest.raises(Conflict, match="Particle 1 of a.png has been changed since by ann"):
        review.reject({"a.png": [1, 2]}, **BOB, version=0)
    assert states(review) == {1: "accepted", 2: "unseen", 3: "unseen"} and review.version == 1
    review.reject({"a.png": [2]}, **BOB, version=0)
    assert [each.reviewer for each in review.changes_since(0)] == ["ann", "bob"]


def test_undo_stops_at_the_work_of_others(review):
    review.accept({"a.png": [1]}, **BOB, version=0)
    review.reject({"a.png": [1]}, reviewer="ann", version=1)
    with pytest.raises(Conflict, match="by ann"):
        review.undo(**BOB)
    review.undo(reviewer="ann")
    review.undo(**BOB)
    assert states(review)[1] == "unseen"


def test_class_outline_and_comment(review):
    review.set_class({"a.png": [1]}, "Pellet", **BOB, version=0)
    review.set_outline("a.png", 2, box(20.4, 2.6, 5, 6), **BOB, version=0)
    review.comment({"a.png": [3]}, "<b>dirt?</b>", **BOB, version=0)
    one, two, three = review.particles("a.png")
    assert review.classes == ["Fiber", "Film", "Pellet"] and (one.changed, one.redrawn) == (1, 0)
    assert two.box == (20, 3, 5, 6) and two.redrawn and two.score == 0.4
    assert (three.comment, three.state) == ("<b>dirt?</b>", "unseen")
    assert review.table("a.png")["area_px"].tolist() == [100, 30, 100]


def test_draw_merge_split(review):
    new = review.draw("a.png", box(60, 5, 10, 4), "Film", **BOB, version=0)
    assert new.particles == {"a.png": [4]}
    review.merge("a.png", [1, 2], "Film", **BOB, version=1)
    merged = review.particle("a.png", 5)
    assert (merged.parents, merged.class_name, merged.mask.sum()) == ((1, 2), "Film", 200)
    review.split("a.png", 3, line=[[45, 34.5], [75, 34.5]], **BOB, version=2)
    review.split("a.png", 4, pieces=[box(60, 5, 3, 4), box(63, 5, 7, 4)], **BOB, version=3)
    expected = {1: "replaced", 2: "replaced", 3: "replaced", 4: "replaced"}
    assert states(review) == expected | dict.fromkeys([5, 6, 7, 8, 9], "accepted")
    assert review.table("a.png")["area_px"].tolist() == [200, 50, 50, 12, 28]
    with pytest.raises(Conflict, match="merged or split"):
        review.accept({"a.png": [1]}, **BOB, version=4)
    for _ in range(4):
        review.undo(**BOB)
    assert states(review) == {1: "unseen", 2: "unseen", 3: "unseen"}
    with pytest.raises(Conflict, match="taken back"):
        review.accept({"a.png": [4]}, **BOB, version=4)
    assert review.draw("a.png", box(1, 1), "Film", **BOB, version=8).particles == {"a.png": [10]}


def test_pieces_of_a_fibre_are_merged_into_one_of_its_length(review):
    for number, (x, length) in enumerate([(10, 12), (28, 20), (58, 10)]):
        review.draw("a.png", box(x, 50, length, 3), "Fiber", **BOB, version=number)
    review.merge("a.png", [4, 5, 6], **BOB, version=3)
    assert review.particle("a.png", 7).class_name == "Fiber"
    merged = review.sizes("a.png", [review.particle("a.png", 7)]).iloc[0]
    assert merged["length_px"] == pytest.approx(58, abs=0.5)
    assert merged["width_px"] == pytest.approx(3, rel=0.1)
    # Pieces of other things stay pieces: sizes span the gap, the area does not.
    for number, x in enumerate([10, 28], start=4):
        review.draw("a.png", box(x, 40, 10, 3), "Film", **BOB, version=number)
    review.merge("a.png", [8, 9], **BOB, version=6)
    merged = review.sizes("a.png", [review.particle("a.png", 10)]).iloc[0]
    assert (merged["area_px"], merged["feret_max_px"]) == (60, pytest.approx(28, abs=0.5))


def test_a_finished_image_has_nothing_unseen(review):
    review.reject({"a.png": [1]}, **BOB, version=0)
    review.finish(["a.png"], **BOB, version=1)
    assert review.image("a.png").finished and not review.image("b.png").finished
    assert states(review) == {1: "rejected", 2: "accepted", 3: "accepted"}
    review.undo(**BOB)
    assert not review.image("a.png").finished and states(review)[2] == "unseen"


def test_uncertain_first(review):
    found = review.uncertain_first()
    assert found == [("b.png", 4), ("a.png", 2), ("a.png", 3), ("a.png", 1)]
    review.draw("a.png", box(1, 1), "Film", **BOB, version=0)
    assert review.uncertain_first(("accepted",)) == [("a.png", 4)]


@pytest.mark.parametrize(
    ("code", "act"),
    [
        ("input_empty", lambda r, how: r.accept({"c.png": [1]}, **how)),
        ("input_empty", lambda r, how: r.accept({"a.png": [9]}, **how)),
        ("input_empty", lambda r, how: r.accept({}, **how)),
        ("option_invalid", lambda r, how: r.accept({"a.png": [1]}, reviewer="bob", version=1)),
        ("option_invalid", lambda r, how: r.accept({"a.png": [1]}, reviewer="\n", version=0)),
        ("option_invalid", lambda r, how: r.set_class({"a.png": [1]}, "a\x00", **how)),
        ("option_invalid", lambda r, how: r.comment({"a.png": [1]}, "x" * 9999, **how)),
        ("option_invalid", lambda r, how: r.merge("a.png", [1, 1], **how)),
        ("annotations_invalid", lambda r, how: r.set_outline("a.png", 1, [[[[0, 0]]]], **how)),
        ("annotations_invalid", lambda r, how: r.draw("a.png", box(200, 9), "Film", **how)),
        ("annotations_invalid", lambda r, how: r.split("a.png", 1, line=[[0, 0], [1, 1]], **how)),
        ("annotations_invalid", lambda r, how: r.split("a.png", 1, pieces=[box(5, 5)], **how)),
    ],
)
def test_what_cannot_be_done_is_said_and_not_written(review, code, act):
    with user_error(code):
        act(review, {**BOB, "version": 0})
    assert review.version == 0


def test_one_process_has_the_log(review, reopen):
    review.accept({"a.png": [1]}, **BOB, version=0)
    with user_error("run_mismatch", "Another process"):
        reopen()
    with reopen(read_only=True) as seen:
        assert states(seen)[1] == "accepted"
        with user_error("not_writable"):
            seen.reject({"a.png": [1]}, **BOB, version=1)


def test_threads_share_a_review(review):
    def decide(name, id_):
        for number in range(10):
            op = review.accept if number % 2 else review.reject
            op({"a.png": [id_]}, reviewer=name, version=review.version)

    threads = [threading.Thread(target=decide, args=(f"r{id_}", id_)) for id_ in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert review.version == 30 and set(states(review).values()) == {"accepted"}


OPERATIONS = st.tuples(
    st.sampled_from(
        ["accept", "reject", "reset", "class", "outline", "draw", "merge", "split", "finish"]
        + ["reopen", "comment", "undo", "redo", "undo"]
    ),
    st.sampled_from(["ann", "bob"]),
    st.sampled_from(["a.png", "b.png"]),
    st.lists(st.integers(1, 8), min_size=1, max_size=3, unique=True),
    st.integers(0, 60),
)


def act(review, operation):
    op, reviewer, image, ids, place = operation
    how = {"reviewer": reviewer, "version": review.version}
    targets = {image: ids}
    if op in ("undo", "redo"):
        getattr(review, op)(reviewer=reviewer)
    elif op in ("finish", "reopen"):
        getattr(review, op)([image], **how)
    elif op == "class":
        review.set_class(targets, ["Fiber", "Film", "Pellet"][place % 3], **how)
    elif op == "comment":
        review.comment(targets, f"at {place}", **how)
    elif op == "outline":
        review.set_outline(image, ids[0], box(place, place / 2, 7.5, 4), **how)
    elif op == "draw":
        review.draw(image, box(place, 9, 6, 3), "Film", **how)
    elif op == "merge":
        review.merge(image, ids, **how)
    elif op == "split":
        review.split(image, ids[0], line=[[0, place], [80, place + 3]], **how)
    else:
        getattr(review, op)(targets, **how)


@settings(max_examples=40, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=25))
def test_any_decisions_are_read_again_and_taken_back(annotations, operations):
    with tempfile.TemporaryDirectory() as folder:
        with Review.open(annotations, output=folder) as review:
            original = snapshot(review)
            for operation in operations:
                before = snapshot(review)
                try:
                    act(review, operation)
                except UserError:
                    assert snapshot(review) == before
            with Review.open(annotations, output=folder, read_only=True) as again:
                assert snapshot(again) == snapshot(review)
                for name in "ann", "bob":
                    assert again.can_undo(name) == review.can_undo(name)
                    assert again.can_redo(name) == review.can_redo(name)
            left = True
            while left:  # the last of all can always be taken back
                left = False
                for name in "ann", "bob":
                    while review.can_undo(name):
                        try:
                            review.undo(reviewer=name)
                            left = True
                        except Conflict:
                            break
            assert snapshot(review) == original


def test_a_kill_at_any_byte_loses_one_line_at_most(review, reopen, tmp_path):
    review.accept({"a.png": [1]}, **BOB, version=0)
    review.draw("b.png", box(30, 30), "Film", **BOB, version=0)
    review.undo(**BOB)
    review.close()
    whole = (tmp_path / "out/review.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    log = tmp_path / "cut/review.jsonl"
    log.parent.mkdir()
    for size in [*range(0, len(whole), 7), *ends, *(end - 1 for end in ends), len(whole) - 2]:
        log.write_bytes(whole[:size])
        with reopen("cut") as again:
            lines = sum(end <= size for end in ends)
            assert again.version == max(lines - 1, 0)
            torn = size - max((end for end in ends if end <= size), default=0)
            assert [f"({torn} bytes)" in message for message in again.messages] == [True] * bool(
                torn
            )
            again.accept({"a.png": [2]}, **BOB, version=again.version)
        with reopen("cut") as again:
            assert states(again)[2] == "accepted" and not again.messages


def change_line(number, **fields):
    def change(path):
        lines = path.read_text().splitlines(keepends=True)
        lines[number] = json.dumps({**json.loads(lines[number]), **fields}) + "\n"
        path.write_text("".join(lines))

    return change


@pytest.mark.parametrize(
    ("code", "damage"),
    [
        ("run_mismatch", change_line(0, sha256="0")),
        ("run_invalid", change_line(0, review=99)),
        ("run_invalid", change_line(1, n=7)),
        ("run_invalid", change_line(1, on={"a.png": [77]})),
        ("run_invalid", change_line(1, on={"../x": [1]})),
        ("run_invalid", change_line(1, op="explode")),
        ("run_invalid", change_line(1, reviewer=None)),
        ("run_invalid", change_line(2, masks=[{"x": 75, "y": 0, "size": [9, 9], "counts": "1"}])),
        ("run_invalid", change_line(2, masks=[{"x": 0, "y": 0, "size": [9, 9], "counts": "0"}])),
        ("run_invalid", change_line(2, new=[1])),
        ("run_invalid", lambda path: path.write_text("{\n" + path.read_text())),
    ],
)
def test_a_log_of_another_run_or_a_damaged_one_is_refused(review, reopen, tmp_path, code, damage):
    review.accept({"a.png": [1]}, **BOB, version=0)
    review.draw("a.png", box(1, 20), "Film", **BOB, version=0)
    review.accept({"a.png": [2]}, **BOB, version=0)
    review.close()
    log = tmp_path / "out/review.jsonl"
    damage(log)
    before = log.read_bytes()
    with user_error(code, "review.jsonl"):
        reopen()
    assert log.read_bytes() == before
    shutil.rmtree(tmp_path / "out")
    with reopen() as again:
        assert again.version == 0


def test_a_disk_that_is_full_loses_no_decision(review, reopen, monkeypatch):
    review.accept({"a.png": [1]}, **BOB, version=0)
    file = review._log._file

    class Full:
        def write(self, data):
            if len(data) > 1:
                return file.write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(file, name)

    monkeypatch.setattr(review._log, "_file", Full())
    with user_error("not_writable"):
        review.reject({"a.png": [1]}, **BOB, version=1)
    assert states(review)[1] == "accepted"
    monkeypatch.undo()
    review.reject({"a.png": [2]}, **BOB, version=1)
    with reopen(read_only=True) as again:
        assert states(again) == {1: "accepted", 2: "rejected", 3: "unseen"}
    assert Path(review.output, "review.jsonl").read_bytes().count(b"\n") == 3
    assert np.array_equal(again.particle("a.png", 1).mask, review.particle("a.png", 1).mask)
