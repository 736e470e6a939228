import dataclasses
import json

import pytest

from microplastics.data.synthetic import render_dataset
from microplastics.data.synthetic.storage import (
    JOURNAL,
    Journal,
    Rendered,
    Settings,
    image_path,
)
from microplastics.errors import UserError

SETTINGS = Settings({"train": 9}, 64, 1.0, 0, "default", None)


@pytest.fixture
def noted(tmp_path):
    """A folder with a journal of three images, and what it says."""
    images = []
    with Journal(tmp_path).open() as journal:
        for index in range(3):
            path = image_path(tmp_path, "train", index)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x" * (index + 1))
            images.append(Rendered("train", index, index + 1, {"file_name": path.name}, []))
            journal.add(images[-1])
    return tmp_path, images


def test_a_journal_without_a_manifest_is_not_trusted(noted):
    root, _ = noted
    for path in (root / "train").iterdir():
        path.unlink()
    paths = render_dataset(root, {"train": 1}, 64, progress=False)
    assert not (root / JOURNAL).exists()
    assert json.loads(paths["train"].read_text())["images"][0]["width"] == 64


def resumed(root, settings=SETTINGS):
    return list(Journal(root).resume(settings).values())


def test_a_journal_gives_back_what_it_noted(noted):
    root, images = noted
    assert resumed(root) == images
    Journal(root).discard()
    assert resumed(root) == []


@pytest.mark.parametrize(
    "tail",
    [b"{", b'{"split": "train"}\n', b"[1]\n", b"[" * 10**5 + b"\n", b"\xff\n", b"null\n"]
    + [b'{"split":"train","index":"0","length":1,"record":{},"annotations":[]}\n'],
)
def test_a_damaged_line_ends_a_journal(noted, tail):
    root, images = noted
    whole = (root / JOURNAL).read_bytes()
    later = json.dumps(dataclasses.asdict(images[0])).encode() + b"\n"
    (root / JOURNAL).write_bytes(whole + tail + later * tail.endswith(b"\n"))
    assert resumed(root) == images
    assert (root / JOURNAL).read_bytes() == whole


def test_a_line_cut_before_its_end_does_not_count(noted):
    root, images = noted
    (root / JOURNAL).write_bytes((root / JOURNAL).read_bytes()[:-1])
    assert resumed(root) == images[:2]


def test_images_gone_or_of_another_length_or_not_wanted_are_left_out(noted):
    root, images = noted
    image_path(root, "train", 0).unlink()
    image_path(root, "train", 1).write_bytes(b"longer than before")
    assert resumed(root) == images[2:]
    assert resumed(root, dataclasses.replace(SETTINGS, counts={"train": 2})) == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"counts": {"train": "x"}}', "[" * 100000])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "synthetic.json").write_text(text)
    with pytest.raises(UserError, match="synthetic.json .*: delete it or choose another --output"):
        render_dataset(tmp_path, {"train": 1}, 64, progress=False)
