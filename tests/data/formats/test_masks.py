"""Mask files of every layout, kind and depth, read and written."""

import contextlib
import csv
import io
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import user_error

from microplastics.data import images
from microplastics.data.formats import masks
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.masks import instance_rles, read_label_image
from microplastics.utils.errors import UserError

LABELS = np.zeros((20, 30), np.int32)
LABELS[2:6, 3:9] = 1
LABELS[10:18, 5:7] = 2
LABELS[10:12, 20:25] = 300
LABELS[15, 27] = 300  # the same particle in two parts
BINARY = np.zeros((20, 30), np.uint8)
BINARY[2:4, 2:4] = BINARY[4:6, 4:6] = 1  # they touch at a corner
BINARY[10, 20] = 1


def photo(path, size=(30, 20), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path, **options)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, **options)
    else:
        Image.fromarray(array).save(path, **options)


def read(folder, **options):
    notes = Notes()
    (source,) = masks.read(folder, ReadOptions(**options), notes).values()
    return list(source.records()), source, notes


def bitmap(instance):
    return mask_util.decode(instance.segmentation).astype(bool)


def check(folder, labels=LABELS, ids=(1, 2, 300)):
    """The one image of a folder has exactly the particles of a label image."""
    (record,), _, notes = read(folder)
    assert len(record.instances) == len(ids)
    for number, instance in zip(ids, record.instances, strict=True):
        assert np.array_equal(bitmap(instance), labels == number)
    return record, notes


@pytest.fixture
def folder(tmp_path):
    photo(tmp_path / "images/a.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [
        ("a.png", np.uint16, {}),
        ("a.tif", np.uint16, {}),
        ("a.tif", np.int32, {"compression": "zlib"}),
        ("a.tif", np.uint32, {"photometric": "miniswhite"}),
        ("a.tif", np.float32, {}),
        ("a_mask.tif", np.int64, {}),
        ("a_cp_masks.tif", np.uint16, {"bigtiff": True}),
        ("a.jpg.tif", np.uint16, {}),
    ],
)
def test_label_images_of_any_depth(folder, name, dtype, options):
    labels = LABELS.astype(dtype)
    save(folder / "masks" / name, labels, **options)
    record, notes = check(folder)
    assert (record.file_name, record.width, record.height) == ("a.jpg", 30, 20)
    assert [each.category for each in record.instances] == ["particle"] * 3
    assert record.instances[2].where == f"{name}, id 300"
    assert "label images, each number one instance" in notes.lines()[0]


def test_lzw_tiffs(folder):
    path = folder / "masks/a.tif"
    path.parent.mkdir()
    labels = (LABELS % 256).astype(np.uint8)
    Image.fromarray(labels).save(path, compression="tiff_lzw")
    check(folder, labels, (1, 2, 44))
    # Pillow turns what it writes as WhiteIsZero over: the file holds the labels.
    Image.fromarray(255 - labels).save(path, compression="tiff_lzw", tiffinfo={262: 0})
    check(folder, labels, (1, 2, 44))


def test_palettes_are_indices_and_voids_background(folder):
    labels = (LABELS % 256).astype(np.uint8)
    labels[0] = 255
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * (252 * 3) + [224, 224, 192])
    (folder / "masks").mkdir()
    image.save(folder / "masks/a.png")
    check(folder, LABELS % 256, (1, 2, 44))


def test_a_particle_255_may_be_a_border(folder):
    save(folder / "masks/a.png", np.where(LABELS == 2, 255, LABELS % 256).astype(np.uint8))
    notes = read(folder)[2]
    assert notes.as_dict()["mask_border"]["places"] == ["a.png"]


def test_colours_are_instances(folder):
    colours = np.zeros((20, 30, 3), np.uint8)
    colours[LABELS == 1] = (255, 0, 0)
    colours[LABELS == 2] = (0, 0, 7)
    save(folder / "masks/a.png", colours)
    record, notes = check(folder, ids=(2, 1))
    assert record.instances[1].where.endswith(f"id {0xFF0000}")
    assert notes.count("mask_colours") == 1


@pytest.mark.parametrize("value", [1, 255])
def test_binary_images_are_split_into_parts(folder, value):
    save(folder / "masks/a.png", BINARY * np.uint8(value))
    parts = cv2.connectedComponents(BINARY, connectivity=8)[1]
    _, notes = check(folder, parts, (1, 2))
    assert notes.count("mask_speck") == 1
    assert "binary images, each 8-connected part one instance" in notes.lines()[0]


def test_bits_are_binary(folder):
    save(folder / "masks/a.png", BINARY.astype(bool))
    check(folder, cv2.connectedComponents(BINARY, connectivity=8)[1], (1, 2))


def test_one_particle_of_id_1_among_label_images(folder):
    photo(folder / "images/b.jpg")
    save(folder / "masks/a.png", BINARY)
    save(folder / "masks/b.png", LABELS.astype(np.uint16))
    records, _, _ = read(folder)
    assert [len(record.instances) for record in records] == [1, 3]


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["a_0001.png", "a_02.png"], ["particle"] * 2),
        (["a_Fiber_1.png", "a_Film_2.png"], ["Fiber", "Film"]),
        (["a/1.png", "a/2.png"], ["particle"] * 2),
        (["a/Fiber_1.png", "a/Film 2.png"], ["Fiber", "Film"]),
        (["Fiber/a_1.png", "Film/a_2.png"], ["Fiber", "Film"]),
        (["a/0f3e9a.png", "a/17bc.png"], ["particle"] * 2),
    ],
)
def test_one_file_an_instance(folder, names, classes):
    for number, name in enumerate(names, 1):
        save(folder / "masks" / name, (LABELS == number).astype(np.uint8) * 255)
    record, notes = check(folder, ids=(1, 2))
    assert [each.category for each in record.instances] == classes
    assert notes.as_dict()["mask_kind"]["places"][0].endswith("(one file an instance)")


@pytest.mark.parametrize(
    "names",
    [
        ["a_Fiber.png", "a_Film.png"],
        ["Fiber/a.png", "Film/a.png"],
        ["a/Fiber.png", "a/Film.png"],
        ["a_Fiber_mask.png", "a_Film_mask.png"],
    ],
)
def test_one_file_a_class(folder, names):
    save(folder / "masks" / names[0], BINARY * 255)
    save(folder / "masks" / names[1], (LABELS == 2).astype(np.uint8))
    (record,), source, notes = read(folder)
    assert [each.category for each in record.instances] == ["Fiber", "Fiber", "Film"]
    assert source.classes == ["Fiber", "Film"]
    assert "one file a class" in notes.lines()[0]


def test_numbers_in_a_class_file_are_instances(folder):
    save(folder / "masks/Fiber/a.png", LABELS.astype(np.uint16))
    _, notes = check(folder)
    assert notes.count("mask_numbered") == 1


def test_masks_beside_their_images(tmp_path):
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png")
    save(tmp_path / "a_mask.png", LABELS.astype(np.uint16))
    records, _, notes = read(tmp_path)
    assert [len(record.instances) for record in records] == [3, 0]
    assert notes.as_dict()["image_unlabelled"]["places"] == ["b.png"]


@pytest.mark.parametrize("inner", [False, True])
def test_splits(tmp_path, inner):
    for split in ("train", "valid"):
        images, labels = (
            (f"images/{split}", f"masks/{split}")
            if inner
            else (
                f"{split}/images",
                f"{split}/masks",
            )
        )
        photo(tmp_path / images / "a.jpg")
        save(tmp_path / labels / "a.png", LABELS.astype(np.uint16))
    sources = masks.read(tmp_path, ReadOptions(), Notes())
    assert list(sources) == ["train", "val"]
    assert [len(next(source.records()).instances) for source in sources.values()] == [3, 3]
    assert masks.detect(tmp_path)


@pytest.mark.parametrize(
    ("split", "beside"),
    [
        ("images/train/a.jpg", "images/b.jpg"),
        ("train/images/a.jpg", "images/b.jpg"),
        ("train/images/a.jpg", "b_mask.png"),
    ],
)
def test_images_beside_those_of_the_splits_are_not_dropped(tmp_path, split, beside):
    for name in (split, beside):
        photo(tmp_path / name)
        mask = name.replace("images", "masks").replace(".jpg", ".png")
        save(tmp_path / mask, LABELS.astype(np.uint16))
    assert masks.detect(tmp_path)
    with user_error("name_clash"):
        read(tmp_path)


def test_sub_folders(folder):
    photo(folder / "images/filter 1/a.jpg")
    save(folder / "masks/filter 1/a.png", LABELS.astype(np.uint16))
    records, _, _ = read(folder)
    assert [(each.file_name, len(each.instances)) for each in records] == [
        ("a.jpg", 0),
        ("filter 1/a.jpg", 3),
    ]


def test_classes_csv(folder):
    save(folder / "masks/a.png", LABELS.astype(np.uint16))
    text = "\ufeffImage;ID;Class;iscrowd\na.jpg;1;Film;\na;2;Fiber;1\na;7;Fiber;0\nz;1;Film;0\n"
    (folder / "classes.csv").write_text(text, encoding="utf-8")
    (folder / "classes.txt").write_text("Foam\nFiber\n", encoding="utf-8")
    (record,), source, notes = read(folder)
    found = [(each.category, each.iscrowd) for each in record.instances]
    assert found == [("Film", 0), ("Fiber", 1)]
    assert source.classes == ["Foam", "Fiber", "Film"]
    places = {code: entry["places"] for code, entry in notes.as_dict().items()}
    assert places["shape_unlabelled"] == ["a.png, id 300"]
    assert places["id_absent"] == ["a.png, id 7"]
    assert places["label_without_image"] == ["classes.csv, line 5 ('z')"]


def test_values_that_are_classes(folder):
    save(folder / "masks/a.png", np.where(LABELS == 2, 2, BINARY).astype(np.uint8))
    (folder / "masks/classes.csv").write_text("value,class\n1,Fiber\n2,Film\n")
    (record,), _, notes = read(folder)
    assert [each.category for each in record.instances] == ["Fiber", "Fiber", "Film"]
    assert notes.count("mask_speck") == 1


def test_roboflow_s_masks_of_classes(tmp_path):
    photo(tmp_path / "train/a.jpg")
    save(tmp_path / "train/a_mask.png", np.where(LABELS == 2, 2, BINARY).astype(np.uint8))
    text = "Pixel Value, Class\n0, background\n1, Fiber\n2, Film\n"
    (tmp_path / "train/_classes.csv").write_text(text)
    assert masks.detect(tmp_path)
    source = masks.read(tmp_path, ReadOptions(), Notes())["train"]
    (record,) = source.records()
    assert [each.category for each in record.instances] == ["Fiber", "Fiber", "Film"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,number\na,1\n", "'image,number'"),
        ("image,id,class\na,x,Film\n", "line 2 is 'a,x,Film'"),
        ("image,id,class\na,0,Film\n", "line 2 is 'a,0,Film'"),
        ("image,id,class\na,1,\n", "line 2 is 'a,1,'"),
        ("image,id,class\na,1,F\na,1,G\n", "line 3 has the number 1 again"),
        ("value,class\n1,F\n1,G\n", "line 3 has the number 1 again"),
        ("image,id,class,iscrowd\na,1,F,2\n", "line 2 is 'a,1,F,2'"),
        ("", "columns ''"),
        ("image,id,class\na,1,F,G\n", "CSV"),
    ],
)
def test_broken_classes_csv(folder, text, words):
    save(folder / "masks/a.png", LABELS.astype(np.uint16))
    (folder / "classes.csv").write_text(text)
    with user_error("table_invalid", "classes.csv", words):
        read(folder)


def test_classes_csv_in_another_encoding(folder):
    save(folder / "masks/a.png", LABELS.astype(np.uint16))
    text = "image,id,class\na,1,Fäser\n"
    for encoding in ("latin-1", "utf-16"):
        (folder / "classes.csv").write_bytes(text.encode(encoding))
        assert read(folder)[1].classes == ["Fäser"]
    (folder / "classes.csv").write_bytes(text.encode() + b"\0")
    with user_error("file_invalid", "classes.csv"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "array", "code"),
    [
        ("a.tif", LABELS - 1, "image_invalid"),
        ("a.tif", LABELS / np.float32(2), "image_invalid"),
        ("a.tif", np.full((20, 30), np.nan, np.float32), "image_invalid"),
        ("a.png", LABELS[1:].astype(np.uint16), "image_size"),
        ("a_1.png", LABELS.astype(np.uint16), "image_invalid"),
        ("z.png", LABELS.astype(np.uint16), "image_missing"),
    ],
)
def test_unusable_masks(folder, name, array, code):
    save(folder / "masks/a.png", BINARY) if name == "z.png" else None
    options = {"photometric": "minisblack"} if name.endswith(".tif") else {}
    save(folder / "masks" / name, array, **options)
    with user_error(code, folder / "masks" / name):
        read(folder)


def test_stacks_are_refused(folder):
    save(folder / "masks/a.tif", np.zeros((3, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match="a.tif.*3 pages"):
        read(folder)


def test_any_numbers_are_particles(folder):
    save(folder / "masks/a.tif", np.random.default_rng(0).integers(1, 2**31, (20, 30)))
    assert len(read(folder)[0][0].instances) == 600


def test_noise_is_refused(tmp_path):
    photo(tmp_path / "images/a.png", (300, 300))
    save(tmp_path / "masks/a.tif", np.arange(1, 90_001, dtype=np.int32).reshape(300, 300))
    with user_error("image_invalid", "a.tif", "50000"):
        read(tmp_path)


def test_jpeg_masks_are_refused(folder):
    photo(folder / "masks/a.jpg")
    with user_error("image_invalid", "a.jpg"):
        read(folder)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"compression": "jpeg"}, "JPEG"), ({"extratags": [(274, 3, 1, 3, True)]}, "turned")],
)
def test_tiffs_that_do_not_hold_their_numbers_are_refused(tmp_path, options, word):
    tifffile.imwrite(tmp_path / "a.tif", np.eye(32, dtype=np.uint8), **options)
    with user_error("image_invalid", "a.tif", word):
        masks.read_label_image(tmp_path / "a.tif")


def test_turned_photographs(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    photo(tmp_path / "images/a.jpg", exif=exif)
    save(tmp_path / "masks/a.png", LABELS.astype(np.uint16))
    with user_error("image_size", "images/a.jpg", "masks/a.png"):
        read(tmp_path)


def test_broken_masks_are_skipped_with_their_images(folder):
    for name in "bcd":
        photo(folder / f"images/{name}.jpg")
        save(folder / f"masks/{name}.png", LABELS.astype(np.uint16))
    (folder / "masks/b.png").write_bytes((folder / "masks/c.png").read_bytes()[:60])
    (folder / "images/c.jpg").write_bytes(b"no image")
    save(folder / "masks/d.png", LABELS[1:].astype(np.uint16))
    save(folder / "masks/z.png", LABELS.astype(np.uint16))
    records, _, notes = read(folder, skip_broken=True)
    assert [record.file_name for record in records] == ["a.jpg"]
    codes = ("label_broken", "image_broken", "image_size", "label_without_image")
    assert [notes.count(code) for code in codes] == [1] * 4


def test_bombs_are_refused(folder, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    save(folder / "masks/a.png", LABELS.astype(np.uint16))
    with pytest.raises(UserError, match="a.jpg.* 599 pixels"):
        read(folder)


def test_two_masks_of_one_image(folder):
    save(folder / "masks/a.png", BINARY)
    save(folder / "masks/a_Fiber.png", BINARY)
    with user_error("name_clash", "a.png", "a_Fiber.png"):
        read(folder)


def test_two_images_of_one_stem(folder):
    photo(folder / "images/a.png")
    save(folder / "masks/a.png", BINARY)
    records, _, _ = read(folder)  # a.png is the whole name of one
    assert [len(record.instances) for record in records] == [0, 2]
    (folder / "masks/a.png").rename(folder / "masks/a_mask.png")
    for options in ({}, {"skip_broken": True}):  # else both would be blanks
        with user_error("name_clash", "a.jpg", "a.png"):
            read(folder, **options)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["images/a.jpg", "masks/a.png"], True),
        (["images/a.jpg", "labels/a.tif", "classes.csv"], True),
        (["images/a.jpg", "labels/a.txt"], False),
        (["images/a.jpg", "annotations/instances_train.json"], False),
        (["images/a.jpg", "annotations/a.png", "instances.json"], False),
        (["a.jpg", "a_mask.png"], True),
        (["a.jpg", "a.json", "a_mask.png"], False),
        (["a.jpg", "b.png"], False),
        (["images/a.jpg"], False),
        ([], False),
    ],
)
def test_detect(tmp_path, files, expected):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert masks.detect(tmp_path) is expected
    assert masks.detect(tmp_path / "absent") is False


def test_numbers_are_read_as_they_are_stored(tmp_path):
    labels = np.arange(600, dtype=np.uint16).reshape(20, 30)
    Image.fromarray(labels).save(tmp_path / "a.png")
    found, colour = read_label_image(tmp_path / "a.png")
    assert np.array_equal(found, labels) and not colour


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9))
def test_rles_of_label_images_are_those_of_pycocotools(seed, height, width, most):
    labels = np.random.default_rng(seed).integers(0, most + 1, (height, width), dtype=np.uint16)
    ids, rles, areas = instance_rles(labels)
    assert ids == [number for number in range(1, most + 1) if (labels == number).any()]
    for number, rle, area in zip(ids, rles, areas, strict=True):
        expected = mask_util.encode(np.asfortranarray(labels == number, dtype=np.uint8))
        assert rle == {"size": [height, width], "counts": expected["counts"].decode()}
        assert area == (labels == number).sum()


def square(x, y, side, category="Fiber", **fields):
    ring = [x, y, x + side, y, x + side, y + side, x, y + side]
    return Instance(category, [[float(v) for v in ring]], f"{category} at {x}", **fields)


def write(tmp_path, *records, classes=("Fiber", "Film")):
    notes = Notes()
    source = Source(tmp_path, list(classes), lambda: iter(records))
    masks.write({"train": source}, tmp_path / "out", notes)
    return notes


def test_written_label_images(tmp_path):
    record = ImageRecord(
        "s/a.jpg", 30, 20, [square(2, 2, 5), square(4, 4, 5, "Film", iscrowd=1)], {"site": "X"}
    )
    notes = write(tmp_path, record)
    out = tmp_path / "out" / "train"
    assert sorted(file.name for file in out.iterdir()) == ["classes.csv", "classes.txt", "masks"]
    labels = tifffile.imread(out / "masks/s/a.tif")
    assert labels.dtype == np.int32 and labels.shape == (20, 30)
    expected = np.zeros((20, 30))
    expected[2:7, 2:7] = 1
    expected[4:9, 4:9] = 2
    assert np.array_equal(labels, expected)
    assert list(csv.reader((out / "classes.csv").open())) == [
        ["image", "id", "class", "iscrowd"],
        ["s/a.jpg", "1", "Fiber", "0"],
        ["s/a.jpg", "2", "Film", "1"],
    ]
    assert notes.as_dict()["overlap_lost"]["places"] == ["Fiber at 2 (9 of 25 px)"]
    assert notes.count("extra_lost") == 1


def test_covered_particles_are_lost_with_a_note(tmp_path):
    notes = write(tmp_path, ImageRecord("a.jpg", 30, 20, [square(3, 3, 2), square(2, 2, 5)]))
    assert len((tmp_path / "out/train/classes.csv").read_text().splitlines()) == 2
    assert notes.as_dict()["instance_lost"]["places"] == ["Fiber at 3 (covered by later ones)"]


def test_names_that_differ_only_in_the_suffix(tmp_path):
    records = [ImageRecord(name, 30, 20, [square(2, 2, 5)]) for name in ("a.jpg", "a.png")]
    with user_error("name_clash", "a.jpg", "a.png", "a.tif"):
        write(tmp_path, *records)


def test_hostile_names_and_sizes_are_not_written(tmp_path):
    with user_error("annotations_invalid", "'../a.jpg'"):
        write(tmp_path, ImageRecord("../a.jpg", 30, 20))
    with user_error("image_too_large", "a.jpg"):
        write(tmp_path, ImageRecord("a.jpg", 10**6, 10**6))


def encoded(array, suffix):
    stream = io.BytesIO()
    if suffix == ".tif":
        tifffile.imwrite(stream, array, compression="zlib" if array.dtype != bool else None)
    else:
        Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


# Damaged files make Pillow and tifffile warn of nearly anything.
no_warnings = pytest.mark.filterwarnings("ignore")
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


@no_warnings
@given(st.dictionaries(NAMES, mutated(), min_size=1, max_size=2), st.booleans())
def test_fuzzed_files_and_names(contents, skip_broken):
    with fuzz_folder() as folder:
        for name, content in contents.items():
            path = folder / "masks" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        _read_or_user_error(folder, skip_broken)


@no_warnings
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


@no_warnings
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
