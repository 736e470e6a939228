"""Damaged and hostile annotation files for the tests of readers."""

import copy
import json
import random

from hypothesis import given
from hypothesis import strategies as st

from microplastics.data.formats.base import Notes, ReadOptions
from microplastics.utils.errors import UserError

HOSTILE = [
    *(None, True, False, 0, -1, 1, 2, 7, 10**400, -(10**30), 1e308, -1e308, 0.5),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "a", "1e9", "\x00", "\ud800", "é" * 300),
    *("../../../etc/passwd", "/etc/passwd", "C:\\a\\b.png", "//h/s/a.png", "http://[::1/a.png"),
    *("file:///dev/zero", "/dev/zero", "a.png/", ".", "..", "x" * 5000, "data:image/png;base64,AA"),
    *([], {}, [[]], [None], [{}], [[[[1]]]], {"": {}}, [float("nan")] * 6, [1e308] * 6, [[1, 2]]),
    *([[1, 2], [3]], [["1", "2"]] * 3, [10**400] * 6, [[1e7, -1e7], [-1e7, 1e7], [0, 1e7]]),
    *(["polygon"], {"polygon": 1}, "mask", "circle", "linestrip", "ellipse", "polyline", [0] * 40),
]

# What a text, a table or a number is not expected to hold.
PIECES = [
    *(b'"', b"'", b"<", b"/>", b",", b"\n", b"\t", b"{", b"[]", b"1e400", b"nan", b"-1", b"255"),
    *(b"", b"polygon", b"mask", b"0,0,0", b"&#0;", b"../", b"\x00", b"\xff" * 4, b"\x7f" * 8),
    *("é".encode(), b"9" * 5000),
]

_CASES = 5  # for each example of hypothesis


def mutated(document, rng):
    """A copy of a JSON document with one to three places changed."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        found = list(places(document))
        if not found:
            break
        parent, key = rng.choice(found)
        action = rng.random()
        if action < 0.6:
            parent[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif action < 0.75:
            del parent[key]
        elif action < 0.9:
            other, name = rng.choice(found)
            parent[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
        elif isinstance(parent, list):
            parent += [copy.deepcopy(parent[key])] * rng.choice([1, 2, 50])
        else:
            parent[rng.choice(["", "id", "bbox", "x" * 50, "\ud800"])] = parent[key]
    return document


def as_bytes(document, rng):
    """The document as a file, which may be cut off, overwritten or encoded otherwise."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.7)
    action = rng.random()
    if action < 0.7:
        return text.encode("utf-8", "surrogatepass")
    if action < 0.8:
        encoding = rng.choice(["utf-16", "utf-32", "latin-1", "cp037", "utf-8-sig"])
        return text.encode(encoding, "replace")
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if action < 0.9:
        return bytes(data[: rng.randrange(len(data) + 1)])
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def damaged(content, rng):
    """The bytes of a file with one to four places overwritten, and perhaps cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        # Often at the head, which says how the rest is to be read.
        start = rng.randrange(rng.choice([len(data), min(len(data), 400)]) + 1)
        if rng.random() < 0.5:
            data[start : start + 1] = bytes([rng.randrange(256)])
        else:
            data[start : start + rng.randrange(9)] = rng.choice(PIECES)
    return bytes(data if rng.random() < 0.9 else data[: rng.randrange(len(data) + 1)])


def check_reader(module, path, documents, seed):
    """Write a mutated document to ``path`` and read its folder (see :func:`check_file`)."""
    rng = random.Random(seed)
    content = as_bytes(mutated(rng.choice(documents), rng), rng)
    return check_file(module, path, content, rng.choice([path, path.parent]), rng)


def check_damaged(module, root, seed, names="*"):
    """Read a folder in which one of the files that a pattern matches is damaged."""
    rng = random.Random(seed)
    path = rng.choice(sorted(each for each in root.rglob(names) if each.is_file()))
    whole = path.read_bytes()
    try:
        return check_file(module, path, damaged(whole, rng), root, rng)
    finally:
        path.unlink()
        path.write_bytes(whole)


def check_file(module, path, content, target, rng):
    """Write a file and read ``target``, itself or a folder that it lies in.

    The reader must give instances of its classes with usable numbers, or a ``UserError``.
    """
    path.unlink(missing_ok=True)  # writing over a file makes some file systems wait for the disk
    path.write_bytes(content)
    module.detect(target)
    width = rng.choice([None, 3.0])
    options = ReadOptions(skip_broken=rng.random() < 0.5, line_width=width)
    notes = Notes()
    try:
        sources = module.read(target, options, notes)
        for source in sources.values():
            for record in source.records():
                assert (source.image_root / record.file_name).is_file()
                for instance in record.instances:
                    assert instance.category in source.classes
                    json.dumps(instance.extra, allow_nan=False).encode()
                    _check_segmentation(instance.segmentation, record)
    except UserError as error:
        assert str(error)
        return "error"
    json.dumps(notes.as_dict()).encode()
    return "read"


def _check_segmentation(segmentation, record):
    if isinstance(segmentation, dict):
        assert segmentation["size"] == [record.height, record.width]
        assert isinstance(segmentation["counts"], str)
        return
    for polygon in segmentation:
        assert len(polygon) >= 6 and len(polygon) % 2 == 0
        assert all(type(value) is float and abs(value) < 1e9 for value in polygon)


def _keys(parent):
    return parent if isinstance(parent, dict) else range(len(parent))


def places(value):
    """Every place in a JSON document, up to 20 entries a list: its container and key."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:20]))
    else:
        return
    for key, item in items:
        yield value, key
        yield from places(item)


def check_cases(case):
    """Run seeds through a case that returns "read" or "error"; both must occur."""
    outcomes = []

    @given(st.integers(0, 2**64 - 1))
    def check(seed):
        outcomes.extend(case(seed + number) for number in range(_CASES))

    check()
    assert {"read", "error"} == set(outcomes)
