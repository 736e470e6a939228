"""Masks in the folders of Pascal VOC, of CVAT and of labelme2voc."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from format_fuzz import check_cases, check_damaged
from PIL import Image
from support import user_error

from microplastics.data.formats import masks, voc
from microplastics.data.formats.base import Notes, ReadOptions

OBJECTS = np.zeros((20, 30), np.uint8)
OBJECTS[2:6, 3:9] = 1
OBJECTS[6:10, 3:9] = 2  # touches the first
OBJECTS[12:18, 20:25] = 3
CLASSES = np.array([0, 1, 1, 2], np.uint8)[OBJECTS]
VOID = OBJECTS.copy()
VOID[11:19, 19:26] = 255
VOID[12:18, 20:25] = 3
LABELMAP = (
    "# label:color_rgb:parts:actions\nFiber:250,50,83::\nFilm:51,221,255::\nbackground:0,0,0::"
)
COLOURS = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], np.uint8)
NAMES = "_background_\nFiber\nFilm\n"


def save(path, array, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def photo(folder, name="a.jpg"):
    save(folder / "JPEGImages" / name, np.full((20, 30, 3), 99, np.uint8))


def read(folder, **options):
    notes = Notes()
    sources = voc.read(folder, ReadOptions(**options), notes)
    return {split: list(source.records()) for split, source in sources.items()}, sources, notes


def check(folder, classes=("Fiber", "Fiber", "Film"), objects=OBJECTS):
    """The only image has exactly the objects of a label image."""
    found, sources, notes = read(folder)
    (record,) = found["all"]
    assert [each.category for each in record.instances] == list(classes)
    for number, each in enumerate(record.instances, 1):
        assert np.array_equal(mask_util.decode(each.segmentation), objects == number)
    return sources["all"].classes, notes


@pytest.fixture
def folder(tmp_path):
    photo(tmp_path)
    return tmp_path


def test_cvat_s_colours(folder):
    save(folder / "SegmentationClass/a.png", COLOURS[CLASSES])
    save(folder / "SegmentationObject/a.png", np.dstack([OBJECTS * 60, OBJECTS, 0 * OBJECTS]))
    (folder / "labelmap.txt").write_text(LABELMAP)
    classes, notes = check(folder)
    assert classes == ["Fiber", "Film"] and len(notes) == 1  # the kind of the masks
    assert voc.detect(folder) and not masks.detect(folder)


def test_the_colours_of_a_palette(folder):
    save(folder / "SegmentationClass/a.png", CLASSES, COLOURS.reshape(-1).tolist())
    (folder / "labelmap.txt").write_text(LABELMAP)
    found, _, _ = read(folder)
    # The two touching fibres are one part without SegmentationObject.
    assert sorted(each.category for each in found["all"][0].instances) == ["Fiber", "Film"]


@pytest.mark.parametrize("palette", [None, list(range(255, 255 - 256, -1)) * 3])
def test_the_void_border_is_background_in_grey_and_any_palette(folder, palette):
    palette = palette and [value % 256 for value in palette]
    save(folder / "SegmentationObject/a.png", VOID, palette)
    classes = np.where(VOID == 255, 255, CLASSES).astype(np.uint8)
    save(folder / "SegmentationClass/a.png", classes, palette)
    (folder / "class_names.txt").write_text("__ignore__\n" + NAMES)
    classes, notes = check(folder)
    assert classes == ["Fiber", "Film"]
    assert notes.count("mask_void") == 1 and notes.count("shape_unlabelled") == 0


def test_objects_of_one_colour_in_the_palette_stay_apart(folder):
    save(folder / "SegmentationClass/a.png", CLASSES, COLOURS.reshape(-1).tolist())
    save(folder / "SegmentationObject/a.png", OBJECTS, [0, 0, 0] + [9, 9, 9] * 255)
    (folder / "labelmap.txt").write_text(LABELMAP)
    check(folder)


def test_the_void_border_without_class_masks(folder):
    save(folder / "SegmentationObject/a.png", VOID)
    _, notes = check(folder, ["particle"] * 3)
    assert notes.as_dict()["mask_void"]["places"] == ["a.png"]


def test_a_binary_mask_is_no_border(folder):
    save(folder / "SegmentationObject/a.png", (OBJECTS == 1).astype(np.uint8) * 255)
    check(folder, ["particle"])
    (folder / "SegmentationObject").rename(folder / "SegmentationClass")
    check(folder, ["particle"])


def test_voc_s_own_colours_have_voc_s_numbers(folder):
    save(
        folder / "SegmentationClass/a.png",
        np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)[CLASSES],
    )
    save(folder / "SegmentationObject/a.png", OBJECTS)
    (folder / "class_names.txt").write_text(NAMES)
    check(folder)
    assert [voc._voc_colour(n) for n in (1, 2, 3, 8, 20, 255)] == [
        *(0x800000, 0x008000, 0x808000, 0x400000, 0x004080, 0xE0E0C0)
    ]


def test_classes_without_names_keep_their_numbers(folder):
    save(folder / "SegmentationClass/a.png", np.where(VOID == 255, 255, CLASSES).astype(np.uint8))
    save(folder / "SegmentationObject/a.png", VOID)
    _, notes = check(folder, ["class_1", "class_1", "class_2"])
    assert notes.count("class_unnamed") == 2


def test_what_the_two_masks_disagree_on_is_noted(folder):
    classes = CLASSES.copy()
    classes[2, 3] = 2  # of object 1
    classes[0, 0] = 1  # of no object
    classes[OBJECTS == 2] = 0
    classes[19] = 9  # no name
    save(folder / "SegmentationClass/a.png", classes)
    save(folder / "SegmentationObject/a.png", OBJECTS)
    (folder / "class_names.txt").write_text(NAMES)
    (record,), _, notes = (value for value in read(folder))
    places = {code: entry["places"] for code, entry in notes.as_dict().items()}
    assert places["mask_classes"] == ["a.png, object 1 (23 px Fiber, 1 px Film)"]
    assert places["mask_without_object"] == ["a.png (1 px)"]
    assert places["shape_unlabelled"] == ["a.png, class_9", "a.png, object 2"]


def test_lists_of_splits(folder):
    for name in "bcde":
        photo(folder, f"{name}.jpg")
    for name in "abc":
        save(folder / f"SegmentationObject/{name}.png", OBJECTS)
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nb\n")
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\nd\n")
    found, _, notes = read(folder)
    names = {split: [record.file_name for record in records] for split, records in found.items()}
    assert names == {"train": ["a.jpg"], "val": ["b.jpg", "d.jpg"], "all": ["c.jpg"]}
    assert notes.as_dict()["image_unlabelled"]["places"] == ["d.jpg"]
    assert notes.as_dict()["image_unannotated"]["places"] == ["e.jpg"]
    (lists / "val.txt").write_text("a\n")
    with user_error("annotations_invalid", "val.txt", "'a'"):
        read(folder)
    (lists / "val.txt").write_text("../../z\n")
    with user_error("image_missing", "val.txt", "z"):
        read(folder)


def test_split_folders(tmp_path):
    for split in ("train", "valid"):
        photo(tmp_path / split)
        save(tmp_path / split / "SegmentationObject/a.png", OBJECTS)
    assert voc.detect(tmp_path)
    assert {split: len(records) for split, records in read(tmp_path)[0].items()} == {
        **{"train": 1, "val": 1}
    }


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("labelmap.txt", "Fiber:250,50\n", "table_invalid"),
        ("labelmap.txt", "Fiber:1,2,3::\nFiber:4,5,6::\n", "table_invalid"),
        ("labelmap.txt", "Fiber:1,2,3::\nFilm:1,2,3::\n", "table_invalid"),
        ("labelmap.txt", "background:0,0,0::\n", "table_invalid"),
        ("labelmap.txt", "Hintergrund:0,0,0::\nFiber:1,2,3::\n", "table_invalid"),
        ("class_names.txt", NAMES, "file_missing"),  # which class an object has, nobody knows
    ],
)
def test_broken_names(folder, name, text, code):
    save(folder / "SegmentationObject/a.png", OBJECTS)
    (folder / name).write_text(text)
    with user_error(code):
        read(folder)


def test_unusable_masks(folder):
    save(folder / "SegmentationObject/a.png", OBJECTS)
    save(folder / "SegmentationClass/a.png", np.zeros((19, 30), np.uint8))
    with user_error("image_size", "a.jpg", "SegmentationClass/a.png"):
        read(folder)
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    save(folder / "SegmentationClass/a.png", np.tile(noise, (1, 1, 1)))
    (folder / "labelmap.txt").write_text(LABELMAP)
    found, _, notes = read(folder, skip_broken=True)
    assert not found["all"][0].instances and notes.count("shape_unlabelled") > 100
    save(folder / "SegmentationClass/b.png", CLASSES)
    with user_error("image_missing", "SegmentationClass/b.png"):
        read(folder)
    photo(folder, "b.jpg")
    with user_error("file_missing", "SegmentationClass/b.png", "SegmentationObject"):
        read(folder)


def test_a_control_character_in_a_colour_is_a_blank(folder):
    save(folder / "SegmentationClass/a.png", COLOURS[CLASSES])
    (folder / "labelmap.txt").write_text(LABELMAP.replace("250,", "\x1f250,"))
    assert read(folder)[1]["all"].classes == ["Fiber", "Film"]


@pytest.mark.parametrize("names", ["*.txt", "*.tif"])
@pytest.mark.parametrize("colours", [True, False])
def test_damaged_files(tmp_path_factory, names, colours):
    folder = tmp_path_factory.mktemp("fuzz")
    photo(folder)
    # Without a check sum, so that other numbers come through.
    save(folder / "SegmentationClass/a.tif", COLOURS[CLASSES] if colours else CLASSES)
    save(folder / "SegmentationObject/a.tif", OBJECTS)
    (folder / ("labelmap.txt" if colours else "class_names.txt")).write_text(
        LABELMAP if colours else NAMES
    )
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/train.txt").write_text("a\n")
    check_cases(lambda seed: check_damaged(voc, folder, seed, names))
