"""Untrusted JSON: a diagnosis or a sentence, and what --fix repairs has no finding again."""

import copy
import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import user_error

from microplastics.data.doctor import diagnose, fix_datasets
from microplastics.data.doctor.findings import CODES, PROBLEM, describe, describe_fixed
from microplastics.data.doctor.fix import fix_content

SETTINGS = {
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    "deadline": None,
}
HOSTILE = st.sampled_from(
    [None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan")]
    + ["", "1", "\0", "\ud800", "../a", "x" * 10000, "a.png", [], {}, [[]], [None], [[[]]]]
    + [[1] * 7, [[1] * 8], [[float("nan")] * 6], [[1e7, -1e7] * 50], {"size": [48, 64]}]
    + [[[5, 5, 9, 9]], [[-5, 5, 70, 5, 70, 50, -5, 50]], [[5, 5, 30, 30, 30, 5, 5, 30]]]
    + [[[5, 5, 5, 5, 20, 5, 5, 20]], [[5, 5, 9, 9, 13, 13]], [[90, 1, 99, 1, 99, 9]]]
) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def _annotation(id_, **changes):
    annotation = {
        "id": id_,
        "image_id": 1,
        "category_id": 1,
        "bbox": [10, 10, 20, 20],
        "area": 400,
        "iscrowd": 0,
        "note": {"by": "A"},
        "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]],
    }
    return {**annotation, **changes}


def _valid():
    small = [[1, 1, 9, 1, 9, 9]]
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 64, "height": 48, "um_per_px": 2.5},
            {"id": 2, "file_name": "b.png", "width": 64, "height": 48},
        ],
        "categories": [{"id": 1, "name": "Fiber"}, {"id": 2, "name": "Film"}],
        "annotations": [
            _annotation(1),
            _annotation(2, image_id=2, category_id=2, bbox=[1, 1, 8, 8], segmentation=small),
            _annotation(3, segmentation={"size": [48, 64], "counts": [480, 24, 24, 24, 2520]}),
        ],
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    noise = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    for name, pixels in zip("ab", noise, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def _paths(value, prefix=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*prefix, key)
        if isinstance(inner, dict | list):
            yield from _paths(inner, (*prefix, key))


def _mutate(data, content):
    for _ in range(data.draw(st.integers(1, 4))):
        paths = list(_paths(content))
        if not paths:
            return
        *path, last = data.draw(st.sampled_from(paths))
        target = content
        for key in path:
            target = target[key]
        if data.draw(st.integers(0, 3)) == 0:
            del target[last]
        else:
            target[last] = copy.deepcopy(data.draw(HOSTILE))


def _diagnose(path, root):
    return diagnose([path], [root], workers=1)


@pytest.mark.slow
@settings(max_examples=200, **SETTINGS)
@given(st.data())
def test_hostile_values(root, data):
    content = _valid()
    _mutate(data, content)
    path = root / "hostile.json"
    path.write_text(json.dumps(content))
    diagnosis = _diagnose(path, root)
    assert describe(diagnosis).encode() and json.dumps(asdict(diagnosis))
    assert all(f.count >= 1 and 1 <= len(f.examples) <= 5 for f in diagnosis.findings)
    [result] = fix_datasets(diagnosis, root / "fixed.json")
    assert describe_fixed([result]).encode()
    if result.reason:
        assert result.reason.startswith(str(root)) and not result.output
        return
    again = _diagnose(root / "fixed.json", root)
    codes = {finding.code for finding in again.findings}
    # An annotation that cannot be fixed without a guess is left as it is.
    kept = any(f.severity == PROBLEM and not f.fixable for f in diagnosis.findings)
    assert kept or not {code for code in codes if CODES[code].fixable}
    fixed = json.loads((root / "fixed.json").read_text())
    changes = []
    fix_content(fixed, set(), changes)
    assert changes == []


@settings(max_examples=50, **SETTINGS)
@given(st.data())
def test_hostile_bytes(root, data):
    content = bytearray(json.dumps(_valid()).encode())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (root / "bytes.json").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    diagnosis = _diagnose(root / "bytes.json", root)
    assert describe(diagnosis).encode()


COORDINATES = st.integers(-20, 80) | st.floats(-20, 80) | st.sampled_from([0.0, 64.0, 48.0, 1e-9])
POINTS = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=12)


@pytest.mark.slow
@settings(max_examples=200, **SETTINGS)
@given(st.lists(st.lists(POINTS, min_size=1, max_size=3), min_size=1, max_size=4))
def test_any_outline_is_fixed(root, outlines):
    content = _valid()
    content["annotations"] = [
        _annotation(0, segmentation=[[v for point in ring for v in point] for ring in rings])
        for rings in outlines
    ]
    before = copy.deepcopy(content)
    changes = []
    fixed = fix_content(content, set(), changes)
    assert content == before
    (root / "outlines.json").write_text(json.dumps(fixed))
    codes = {finding.code for finding in _diagnose(root / "outlines.json", root).findings}
    assert not {code for code in codes if CODES[code].fixable}
    dropped = sum(entry["change"] == "annotation_dropped" for entry in changes)
    assert len(fixed["annotations"]) + dropped == len(outlines)
    again = []
    assert fix_content(fixed, set(), again) == fixed and again == []


def test_a_missing_file_is_misuse(root):
    with user_error("file_missing", "none.json"):
        _diagnose(root / "none.json", root)
    (root / "valid.json").write_text(json.dumps(_valid()))
    with user_error("file_missing", root / "none", "valid.json"):
        _diagnose(root / "valid.json", root / "none")
