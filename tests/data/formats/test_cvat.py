import math
import random

import numpy as np
import pycocotools.mask as mask_util
import pytest
from format_fuzz import check_cases
from PIL import Image
from support import user_error

from microplastics.data.formats import cvat
from microplastics.data.formats.base import Notes, ReadOptions
from microplastics.utils.errors import UserError

META = """<meta><task><labels><label><name>Film</name></label><label><name>Fiber</name></label>
</labels></task></meta>"""
POLYGON = '<polygon label="Fiber" occluded="0" points="10.0,10.0;40.5,10.0;40.0,30.25"/>'
SHAPES = f"""{POLYGON}
<polygon label="Film" occluded="1" points="1,1;5,1;5,5" group_id="0">
  <attribute name="quality">good</attribute></polygon>
<box label="Film" xtl="2" ytl="4" xbr="12" ybr="9"/>
<box label="Film" xtl="20" ytl="20" xbr="30" ybr="24" rotation="90"/>
<ellipse label="Fiber" cx="30" cy="20" rx="15" ry="4" rotation="30"/>
<mask label="Film" rle="1, 2, 3, 1, 2" left="50" top="40" width="3" height="3"/>
<polyline label="Fiber" points="10,40;40,40"/>
<points label="Fiber" points="3,3"/>
<cuboid label="Film" xtl1="1"/>
<tag label="blurred"/>"""


def document(*images, meta=META):
    return f'<?xml version="1.0"?><annotations><version>1.1</version>{meta}{"".join(images)}' + (
        "</annotations>"
    )


def image(shapes, name="a.png", **fields):
    fields = {"name": name, "width": 64, "height": 48, **fields}
    listed = " ".join(f'{key}="{value}"' for key, value in fields.items())
    return f'<image id="0" {listed}>{shapes}</image>'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "a.png")
    return tmp_path


def read(folder, text=None, **options):
    if text is not None:
        (folder / "annotations.xml").write_text(text)
    notes = Notes()
    sources = cvat.read(folder, ReadOptions(**options), notes)
    return {split: list(source.records()) for split, source in sources.items()}, notes, sources


def test_every_shape(folder):
    records, notes, sources = read(folder, document(image(SHAPES)))
    (record,) = records["all"]
    polygon, film, box, turned, ellipse, mask = record.instances
    assert record.file_name == "images/a.png" and record.extra == {"tags": ["blurred"]}
    assert polygon.segmentation == [[10, 10, 40.5, 10, 40, 30.25]] and polygon.extra == {}
    assert film.extra == {"attributes": {"quality": "good", "occluded": True}}
    assert box.segmentation == [[2, 4, 12, 4, 12, 9, 2, 9]]
    # A box of 10 x 4 px turned by a right angle about its centre (25, 22).
    assert np.allclose(turned.segmentation, [[27, 17, 27, 27, 23, 27, 23, 17]])
    # The first vertex is the end of the longer half axis, turned clockwise on the screen.
    x, y = ellipse.segmentation[0][:2]
    assert math.atan2(y - 20, x - 30) == pytest.approx(math.radians(30))
    pixels = mask_util.decode(mask.segmentation)
    assert pixels[40:43, 50:53].tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert pixels.sum() == 3 and sources["all"].classes == ["Film", "Fiber"]
    counts = {"box_only": 2, "curve_as_polygon": 1, "shape_without_area": 2, "shape_type": 1}
    assert {code: notes.count(code) for code in counts} == counts and len(notes) == 6
    (record,) = read(folder, line_width=4)[0]["all"]
    assert len(record.instances) == 7


def test_groups_become_one_instance(folder):
    parts = [POLYGON.replace("/>", f' group_id="{group}"/>') for group in (1, 1, 2, 0, 0)]
    records, notes, _ = read(folder, document(image("".join(parts))))
    assert [len(each.segmentation) for each in records["all"][0].instances] == [2, 1, 1, 1]
    assert notes.count("group_joined") == 1


def test_subsets_are_splits(folder):
    Image.new("RGB", (64, 48)).save(folder / "images" / "b.png")
    images = image(POLYGON, subset="Train"), image("", "b.png", subset="Validation")
    records, notes, _ = read(folder, document(*images))
    assert {split: [each.file_name for each in found] for split, found in records.items()} == {
        "train": ["images/a.png"],
        "val": ["images/b.png"],
    }
    assert len(records["train"][0].instances) == 1 and len(notes) == 0


def test_shapes_that_cannot_be_used_are_noted(folder):
    shapes = [
        '<polygon label="A" points="1,1;2"/>',
        '<polygon label="A" points="1,1;2,nan;3,3"/>',
        '<polygon points="1,1;9,1;9,9"/>',
        '<box label="A" xtl="1"/>',
        '<mask label="A" rle="1,2" left="0" top="0" width="3" height="3"/>',
        '<mask label="A" rle="-1,10" left="0" top="0" width="3" height="3"/>',
        '<mask label="A" rle="0,9e9" left="0" top="0" width="3" height="3"/>',
        '<mask label="A" rle="0,10000000000" left="0" top="0" width="100000" height="100000"/>',
        '<mask label="A" rle="0,9" left="70" top="0" width="3" height="3"/>',
    ]
    records, notes, _ = read(folder, document(image("".join(shapes) + POLYGON)))
    assert len(records["all"][0].instances) == 1
    assert notes.count("shape_broken") == 7
    assert notes.count("shape_unlabelled") == notes.count("shape_outside") == 1


def test_tracks_are_refused_by_name(folder):
    track = '<track id="0" label="Fiber"><box frame="0" xtl="1"/></track>'
    with user_error("annotations_invalid", "annotations.xml", "tracks", "CVAT for images 1.1"):
        read(folder, document(track))
    assert cvat.detect(folder)


BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">
<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><annotations><version>&b;</version></annotations>"""
OUTSIDE = """<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<annotations><image id="0" name="&x;" width="1" height="1"/></annotations>"""


@pytest.mark.parametrize("text", [BOMB, OUTSIDE, "", "<annotations>", "<annotations/><a/>", "{}"])
def test_what_is_no_safe_xml_is_refused(folder, text):
    with user_error("file_invalid", "annotations.xml"):
        read(folder, text)


def test_other_xml_is_refused(folder):
    text = "<annotation><object><name>Fiber</name></object></annotation>"
    with user_error("annotations_invalid", "annotations.xml", "'annotation'"):
        read(folder, text)
    assert not cvat.detect(folder)


def test_images_and_sizes(folder):
    with user_error("image_size", "a.png", "64 x 48"):
        read(folder, document(image("", width=63)))
    text = document(image(POLYGON, "../../a.png"), image("", "b.png"))
    with user_error("image_missing", "b.png"):
        read(folder, text)
    records, notes, _ = read(folder, text, skip_broken=True)
    assert [each.file_name for each in records["all"]] == ["images/a.png"]
    assert notes.count("image_missing") == 1


def test_detect(folder):
    assert not cvat.detect(folder) and not cvat.detect(folder / "none")
    for text in (document(image(SHAPES)), document(image("")).replace("><", ">\n  <")):
        for encoding in ("utf-8", "utf-16"):
            (folder / "annotations.xml").write_bytes(text.encode(encoding))
            assert cvat.detect(folder) and cvat.detect(folder / "annotations.xml")


def test_hostile_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    text = document(image(SHAPES))
    words = ['"', "<", "/>", "1e400", "nan", "-1", "9" * 5000, "", "polygon", "mask", "&#0;", "é"]

    def case(seed):
        rng = random.Random(seed)
        content = text
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(content))
            content = content[:start] + rng.choice(words) + content[start + rng.randrange(9) :]
        try:
            (record,) = read(folder, content)[0]["all"] or [None]
        except UserError:
            return "error"
        for instance in record.instances if record else ():
            assert instance.segmentation and instance.category
        return "read"

    check_cases(case)
