"""XML of LabelMe's web tool."""

import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from format_fuzz import check_cases, check_damaged
from PIL import Image
from support import user_error

from microplastics.data.formats import labelme_web
from microplastics.data.formats.base import Notes, ReadOptions, detect

MASK = np.zeros((20, 30, 4), np.uint8)
MASK[2:6, 3:9] = (153, 51, 255, 255)
MASK[6, 3:9] = (153, 51, 255, 40)  # the soft edge
POINTS = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((3, 3), (12, 3), (12, 9), (3, 9)))
POLYGON = f"<polygon><username>x</username>{POINTS}</polygon>"
SEGM = "<segm><box/><mask>a_mask_1.png</mask></segm>"


def thing(shape, name="Fiber", more=""):
    return f"<object><name>{name}</name><deleted>0</deleted>{more}{shape}</object>"


def document(*objects, folder="f", name="a.jpg"):
    return (
        f"<annotation><filename>{name}</filename><folder>{folder}</folder><source>"
        f"<sourceAnnotation>LabelMe Webtool</sourceAnnotation></source>{''.join(objects)}"
        "<imagesize><nrows>20</nrows><ncols>30</ncols></imagesize></annotation>"
    )


OBJECTS = (
    thing(SEGM),
    thing(POLYGON, "Film", "<occluded>yes</occluded><attributes>blue</attributes>"),
    thing(POLYGON, "Film", "<type>bounding_box</type>"),
    thing(POLYGON, "").replace("<deleted>0", "<deleted>1"),
    thing(POLYGON, ""),
)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make(folder, nested, text=None):
    sub = "/f" if nested else ""
    save(folder / ("Images/f/a.jpg" if nested else "a.jpg"), MASK[:, :, :3])
    save(folder / f"Masks{sub}/a_mask_1.png", MASK)
    save(folder / f"Scribbles{sub}/a_scribble_1.png", MASK)
    path = folder / ("Annotations/f/a.xml" if nested else "a.xml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(*OBJECTS) if text is None else text)
    return folder


def read(path, **options):
    notes = Notes()
    (source,) = labelme_web.read(path, ReadOptions(**options), notes).values()
    return list(source.records()), source.classes, notes


@pytest.mark.parametrize("nested", [False, True])
def test_outlines_and_masks_keep_their_classes(tmp_path, nested):
    make(tmp_path, nested)
    assert detect(tmp_path) == "labelme_web"
    (record,), classes, notes = read(tmp_path)
    assert record.file_name == ("f/a.jpg" if nested else "a.jpg")
    assert classes == ["Fiber", "Film"]
    mask, polygon, box = record.instances
    assert np.array_equal(mask_util.decode(mask.segmentation), MASK[:, :, 3] > 127)
    assert polygon.segmentation == [[3, 3, 12, 3, 12, 9, 3, 9]] and polygon.extra == {
        **{"occluded": "yes", "attributes": "blue"}
    }
    found = {code: entry["count"] for code, entry in notes.as_dict().items()}
    assert found == {"box_only": 1, "annotation_cancelled": 1, "shape_unlabelled": 1}


def test_images_of_the_same_name_in_two_folders(tmp_path):
    make(tmp_path, True)
    save(tmp_path / "Images/g/a.jpg", MASK[:, :, :3])
    (tmp_path / "Annotations/g").mkdir()
    (tmp_path / "Annotations/g/a.xml").write_text(document(thing(POLYGON), folder="g"))
    assert [record.file_name for record in read(tmp_path)[0]] == ["f/a.jpg", "g/a.jpg"]


BOMB = '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (BOMB, "file_invalid"),
        (OUTSIDE, "file_invalid"),
        ("<annotation>", "file_invalid"),
        ("<annotations/>", "annotations_invalid"),
        (document(thing(POLYGON), name="../../etc/passwd", folder="/.."), "image_missing"),
        (document(thing(SEGM.replace("a_mask", "../../b"))), "file_missing"),
        (document(thing(POLYGON)).replace("<ncols>30", "<ncols>31"), "image_size"),
    ],
)
def test_unusable_files(tmp_path, text, code):
    make(tmp_path, True, text)
    with user_error(code):
        read(tmp_path)
    records, _, notes = read(tmp_path, skip_broken=True)
    assert not records and len(notes) >= 1


def test_a_pipe_is_not_waited_for(tmp_path):
    make(tmp_path, False)
    os.mkfifo(tmp_path / "b.xml")
    with user_error("file_invalid", "b.xml", "is not a file"):
        read(tmp_path)


@pytest.mark.parametrize(
    "points", ["<pt><x>1</x></pt>", "<pt><x>nan</x><y>inf</y></pt>" * 3, "", "<pt/>" * 9]
)
def test_unusable_shapes_are_noted(tmp_path, points):
    make(tmp_path, False, document(thing(f"<polygon>{points}</polygon>"), thing(POLYGON)))
    (record,), _, notes = read(tmp_path)
    assert len(record.instances) == 1 and notes.count("shape_broken") == 1


@pytest.mark.parametrize("names", ["*.xml", "*.png"])
def test_damaged_files(tmp_path_factory, names):
    folder = make(tmp_path_factory.mktemp("fuzz"), True)
    check_cases(lambda seed: check_damaged(labelme_web, folder, seed, names))
