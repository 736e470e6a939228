"""Hostile masks, names and class tables: each ends in records, or in a sentence."""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from microplastics.data.formats import masks
from microplastics.data.formats.base import Notes, ReadOptions
from microplastics.utils.errors import UserError

# Damaged files make Pillow and tifffile warn of nearly anything.
pytestmark = pytest.mark.filterwarnings("ignore")

LABELS = np.zeros((20, 30), np.int32)
LABELS[2:6, 3:9] = 1
LABELS[10:18, 5:7] = 2
LABELS[10:12, 20:25] = 300
LABELS[15, 27] = 300  # the same particle in two parts
BINARY = np.zeros((20, 30), np.uint8)
BINARY[2:4, 2:4] = BINARY[4:6, 4:6] = 1  # they touch at a corner
BINARY[10, 20] = 1


def encoded(array, suffix):
    stream = io.BytesIO()
    if suffix == ".tif":
        tifffile.imwrite(stream, array, compression="zlib" if array.dtype != bool else None)
    else:
        Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


PHOTO = encoded(np.full((20, 30, 3), 99, np.uint8), ".png")
SEEDS = [
    encoded(array, suffix)
    for suffix in (".tif", ".png")
    for array in (LABELS.astype(np.uint16), BINARY, np.dstack([BINARY] * 3))
]
NAMES = st.one_of(
    st.sampled_from(
        "a.png a.tif a_1.png a_Fiber.png a_Fiber_2.tif a/1.png Fiber/a.png a_mask.png z.png a.jpg "
        "a..png a_.png a_-1.png classes.csv classes.txt".split()
    ),
    st.text(st.characters(blacklist_characters="/\0", codec="utf-8"), min_size=1, max_size=8).map(
        lambda text: f"a_{text}.png"
    ),
)
CELLS = st.one_of(
    st.sampled_from(["a", "a.jpg", "1", "2", "300", "Fiber", "#ff0000", "-1", "1e308", "nan", ""]),
    st.text(max_size=6),
)


@st.composite
def mutated(draw):
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(1, len(content))) if draw(st.booleans()) else None])


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(NAMES, mutated(), min_size=1, max_size=2), st.booleans())
def test_fuzzed_files_and_names(contents, skip_broken):
    with fuzz_folder() as folder:
        for name, content in contents.items():
            path = folder / "masks" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        _read_or_user_error(folder, skip_broken)


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(["image,id,class", "value,class", "image;id;class;iscrowd", "class"]),
    st.lists(st.lists(CELLS, max_size=5), max_size=5),
    st.sampled_from(["utf-8", "utf-16", "latin-1"]),
    st.booleans(),
)
def test_fuzzed_class_tables(head, rows, encoding, skip_broken):
    text = "\n".join([head, *(",".join(row) for row in rows)])
    with fuzz_folder() as folder:
        (folder / "masks/a.png").write_bytes(SEEDS[3])
        (folder / "classes.csv").write_bytes(text.encode(encoding, errors="replace"))
        _read_or_user_error(folder, skip_broken)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from("bool u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8 c8".split()),
    st.sampled_from([(20, 30), (20, 30, 1), (20, 30, 2), (20, 30, 3), (3, 20, 30), (20, 30, 7)]),
    st.sampled_from([None, "zlib"]),
    st.integers(0, 99),
)
def test_fuzzed_dtypes(dtype, shape, compression, seed):
    rng = np.random.default_rng(seed)
    array = rng.integers(-1 if seed % 5 == 0 else 0, 3, shape).astype(dtype)
    with fuzz_folder() as folder:
        path = folder / "masks/a.tif"
        tifffile.imwrite(path, array, compression=compression, photometric="minisblack")
        _read_or_user_error(folder, False)


@contextlib.contextmanager
def fuzz_folder():
    """One folder for all cases, emptied for each: removing folders would take the most time."""
    folder = Path(tempfile.gettempdir(), f"microplastics-fuzz-masks-{os.getpid()}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.unlink()
    (folder / "images/a.jpg").write_bytes(PHOTO)
    yield folder


@pytest.fixture(scope="module", autouse=True)
def _remove_fuzz_folder():
    yield
    shutil.rmtree(Path(tempfile.gettempdir(), f"microplastics-fuzz-masks-{os.getpid()}"), True)


def _read_or_user_error(folder, skip_broken):
    try:
        for source in masks.read(folder, ReadOptions(skip_broken), Notes()).values():
            for record in source.records():
                for instance in record.instances:
                    assert mask_util.area(instance.segmentation) > 0
                    assert instance.category in source.classes
    except UserError as error:
        assert str(error)
