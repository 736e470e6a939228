import numpy as np
import pycocotools.mask as mask_util
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from microplastics.data.formats.label_images import instance_rles, read_label_image


def test_numbers_are_read_as_they_are_stored(tmp_path):
    labels = np.arange(600, dtype=np.uint16).reshape(20, 30)
    Image.fromarray(labels).save(tmp_path / "a.png")
    found, colour = read_label_image(tmp_path / "a.png")
    assert np.array_equal(found, labels) and not colour


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9))
def test_rles_of_label_images_are_those_of_pycocotools(seed, height, width, most):
    labels = np.random.default_rng(seed).integers(0, most + 1, (height, width), dtype=np.uint16)
    ids, rles, areas = instance_rles(labels)
    assert ids == [number for number in range(1, most + 1) if (labels == number).any()]
    for number, rle, area in zip(ids, rles, areas, strict=True):
        expected = mask_util.encode(np.asfortranarray(labels == number, dtype=np.uint8))
        assert rle == {"size": [height, width], "counts": expected["counts"].decode()}
        assert area == (labels == number).sum()
