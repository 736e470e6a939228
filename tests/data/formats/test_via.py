import json
import math
import time

import numpy as np
import pytest
from format_fuzz import check_cases, check_damaged, check_reader
from PIL import Image
from support import user_error

from microplastics.data.formats import via
from microplastics.data.formats.base import NOTES, Notes, ReadOptions

POLYGON = {"name": "polygon", "all_points_x": [10, 30, 20], "all_points_y": [5, 6, 25]}
OPTIONS = {"fib": "Fiber", "Film": "", "b": "Bead"}


def _region(shape, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes}


def _export(*regions, name="a.png"):
    entry = {"filename": name, "size": 123, "regions": list(regions), "file_attributes": {}}
    return {f"{name}123": entry}


def _project(*regions, kind="dropdown", name="a.png", attribute="class"):
    listed = {"type": kind, "description": "", "options": OPTIONS, "default_options": {}}
    return {
        "_via_settings": {"ui": {}, "core": {"filepath": {}}, "project": {"name": "p"}},
        "_via_img_metadata": _export(*regions, name=name),
        "_via_attributes": {"region": {attribute: listed}, "file": {}},
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": [f"{name}123"],
    }


def _project_3(*metadata, kind=4, src="", fname="a.png"):
    listed = {
        f"1_{number}": {"vid": "1", "flg": 0, "z": [], **m} for number, m in enumerate(metadata)
    }
    attribute = {"anchor_id": "FILE1_Z0_XY1", "type": kind, "desc": "", "default_option_id": "2"}
    return {
        "project": {"pid": "__VIA_PROJECT_ID__", "pname": "p", "vid_list": ["1"]},
        "config": {"file": {"loc_prefix": {"1": ""}}, "ui": {}},
        "attribute": {
            "1": {"aname": "particle", "options": {"0": "Fiber", "2": "Film"}, **attribute},
            "2": {"aname": "note", "anchor_id": "FILE1_Z0_XY0", "type": 1, "options": {}},
        },
        "file": {"1": {"fid": "1", "fname": fname, "type": 2, "loc": 1, "src": src}},
        "metadata": listed,
        "view": {"1": {"fid_list": ["1"]}},
    }


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    return tmp_path


def _read(folder, document, **options):
    if document is not None:
        (folder / "via.json").write_text(json.dumps(document))
    notes = Notes()
    (source,) = via.read(folder, ReadOptions(**options), notes).values()
    return list(source.records()), notes, source


def _instances(folder, document, **options):
    (record,), notes, source = _read(folder, document, **options)
    return record.instances, notes, source


def test_an_export_of_via_2(folder):
    regions = [
        _region(POLYGON, type="Fiber", quality="good"),
        _region({"name": "rect", "x": 1, "y": 2, "width": 10, "height": 5}, type="Film"),
    ]
    instances, notes, source = _instances(folder, _export(*regions))
    assert instances[0].segmentation == [[10, 5, 30, 6, 20, 25]]
    assert instances[1].segmentation == [[1, 2, 11, 2, 11, 7, 1, 7]]
    assert [each.category for each in instances] == ["Fiber", "Film"] == source.classes
    assert instances[0].extra == {"quality": "good"} and notes.count("box_only") == 1
    assert source.num_images == 1 and instances[0].where == "via.json, 'a.png', region 1"


def test_a_project_of_via_2_gives_the_words_and_order_of_its_options(folder):
    regions = [_region(POLYGON, **{"class": name}) for name in ("Film", "fib", "other")]
    instances, _, source = _instances(folder, _project(*regions))
    assert [each.category for each in instances] == ["Film", "Fiber", "other"]
    assert source.classes == ["Fiber", "Film", "other"]


def test_check_boxes_of_via_2(folder):
    ticked = ({"fib": True, "Film": False}, {"fib": True, "b": True}, {"b": False})
    regions = [_region(POLYGON, **{"class": value}) for value in ticked]
    instances, notes, _ = _instances(folder, _project(*regions, kind="checkbox"))
    assert [each.category for each in instances] == ["Fiber", "Fiber"]
    assert notes.count("label_ambiguous") == 1 and notes.count("shape_unlabelled") == 1


def test_regions_of_via_1_are_an_object(folder):
    document = _export()
    document["a.png123"]["regions"] = {"0": _region(POLYGON, name="Fiber")}
    assert len(_instances(folder, document)[0]) == 1


def test_ellipses_and_circles_keep_their_area(folder):
    ellipse = {"name": "ellipse", "cx": 30, "cy": 20, "rx": 15.0, "ry": 4.0, "theta": math.pi / 6}
    circle = {"name": "circle", "cx": 30, "cy": 20, "r": 7.5}
    old = {"name": "ellipse", "cx": 30, "cy": 20, "rx": 15, "ry": 4}
    document = _export(*(_region(each, c="A") for each in (ellipse, circle, old)))
    instances, notes, _ = _instances(folder, document)
    areas = []
    for instance in instances:
        x, y = np.reshape(instance.segmentation[0], (-1, 2)).T
        areas.append(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
    assert areas == pytest.approx([math.pi * 60, math.pi * 56.25, math.pi * 60], rel=1e-9)
    # The first vertex is the end of the half axis rx, turned clockwise on the screen.
    x, y = instances[0].segmentation[0][:2]
    assert math.atan2(y - 20, x - 30) == pytest.approx(math.pi / 6)
    assert math.hypot(x - 30, y - 20) == pytest.approx(15, abs=0.1)
    assert notes.count("curve_as_polygon") == 3


def test_lines_need_a_width_and_points_have_no_area(folder):
    line = {"name": "polyline", "all_points_x": [10, 40], "all_points_y": [10, 10]}
    point = {"name": "point", "cx": 3, "cy": 3}
    document = _export(_region(line, label="Fiber"), _region(point, label="Dot"))
    instances, notes, source = _instances(folder, document)
    assert instances == [] and source.classes == [] and notes.count("shape_without_area") == 2
    (instance,), notes, source = _instances(folder, document, line_width=4)
    xs, ys = np.reshape(instance.segmentation[0], (-1, 2)).T
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (10, 40, 8, 12)
    assert source.classes == ["Fiber"]


def test_every_shape_of_via_3(folder):
    shapes = [
        [2, 1, 2, 10, 5],
        [3, 30, 20, 5],
        [4, 30, 20, 10, 5],
        [7, 10, 5, 30, 6, 20, 25],
        [8, 10, 20, 20, 10, 30, 20, 20, 30],
        [9, 25, 20, 30, 25, 35, 20],
        [1, 5, 5],
        [5, 1, 1, 9, 9],
        [6, 1, 1, 9, 9, 9, 20],
        [12, 1, 1],
    ]
    document = _project_3(*({"xy": xy, "av": {"1": "0"}} for xy in shapes))
    instances, notes, source = _instances(folder, document)
    assert len(instances) == 6 and source.classes == ["Fiber"]
    assert instances[0].segmentation == [[1, 2, 11, 2, 11, 7, 1, 7]]
    assert instances[3].segmentation == [[10, 5, 30, 6, 20, 25]]
    assert instances[4].segmentation == [[10, 10, 30, 10, 30, 30, 10, 30]]
    assert instances[1].segmentation == instances[5].segmentation or np.allclose(
        np.subtract(instances[5].segmentation, instances[1].segmentation), 0
    )
    counts = {code: notes.count(code) for code in NOTES if notes.count(code)}
    assert counts == {
        "box_only": 2,
        "curve_as_polygon": 3,
        "shape_without_area": 3,
        "shape_type": 1,
    }


def test_options_defaults_and_whole_images_of_via_3(folder):
    metadata = [
        {"xy": [7, 10, 5, 30, 6, 20, 25], "av": {"1": "0"}},
        {"xy": [7, 10, 5, 30, 6, 20, 25], "av": {}},
        {"xy": [], "av": {"2": "blurred"}},
    ]
    (record,), notes, source = _read(folder, _project_3(*metadata))
    assert [each.category for each in record.instances] == ["Fiber", "Film"] == source.classes
    assert record.extra == {"note": "blurred"} and len(notes) == 0
    metadata[0]["av"]["1"] = "2,0"
    instances, notes, _ = _instances(folder, _project_3(*metadata, kind=2))
    assert instances[0].category == "Film" and notes.count("label_ambiguous") == 1


@pytest.mark.parametrize(
    ("attributes", "chosen"),
    [
        ({"quality": "x", "Category ": "A"}, "Category "),
        ({"label": "x", "class": "A"}, "class"),
        ({"anything": "A"}, "anything"),
    ],
)
def test_the_attribute_that_is_the_class(folder, attributes, chosen):
    (instance,), _, _ = _instances(folder, _export(_region(POLYGON, **attributes)))
    assert instance.category == attributes[chosen] == "A"


def test_a_class_attribute_is_required(folder):
    document = _export(_region(POLYGON, colour="x", quality="y"))
    with user_error("annotations_invalid", "via.json", "'colour', 'quality'"):
        _read(folder, document)
    records, notes, _ = _read(folder, document, skip_broken=True)
    assert records == [] and notes.count("label_broken") == 1


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "https://host.org/dir/a.png?token=1",
        "C:\\Users\\x\\a.png",
        "/home/x/a.png",
        "../data/a.png",
        "file:///x/a.png",
    ],
)
def test_names_of_other_machines(folder, name):
    (record,), _, _ = _read(folder, _project(_region(POLYGON, **{"class": "b"}), name=name))
    assert record.file_name == "a.png" and record.instances[0].category == "Bead"
    assert _read(folder, _project_3(src=name, fname="z.png"))[0][0].file_name == "a.png"


def test_the_size_is_that_of_the_file_and_blanks_stay(folder):
    Image.new("RGB", (30, 20)).save(folder / "b.png")
    Image.new("RGB", (30, 20)).save(folder / "c.png")
    document = {**_export(_region(POLYGON, c="A")), **_export(name="b.png")}
    (first, second), notes, _ = _read(folder, document)
    assert (first.width, first.height, second.width, second.height) == (64, 48, 30, 20)
    assert second.instances == []
    assert notes.as_dict()["image_unannotated"]["places"] == ["c.png"]


def test_missing_images_stop_or_are_skipped(folder):
    with user_error("image_missing", "z.png", "--images"):
        _read(folder, _export(name="z.png"))
    records, notes, _ = _read(folder, _export(name="z.png"), skip_broken=True)
    assert records == [] and notes.count("image_missing") == 1


def test_regions_without_any_attribute_are_particles(folder):
    (instance,), notes, _ = _instances(folder, _export(_region(POLYGON)))
    assert instance.category == "particle" and notes.count("class_absent") == 1


def test_splits(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (64, 48)).save(tmp_path / split / "a.png")
        text = json.dumps(_export(_region(POLYGON, c=split)))
        (tmp_path / split / "via_region_data.json").write_text(text)
    sources = via.read(tmp_path, ReadOptions(), Notes())
    assert {split: source.classes for split, source in sources.items()} == {
        "train": ["train"],
        "val": ["val"],
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"view": {"1": {"fid_list": ["1", "1"]}}}, "view '1'"),
        ({"file": [1]}, "files"),
        ({"metadata": {"x": {"vid": "7", "xy": []}}}, "view '7'"),
        ({"metadata": {"x": 3}}, "metadata"),
    ],
)
def test_unusable_projects(folder, change, words):
    with user_error("annotations_invalid", "via.json", words):
        _read(folder, {**_project_3(), **change})
    with user_error("annotations_invalid", "via.json", "regions"):
        _read(folder, {"x": {"filename": "a.png"}})


def test_detect(folder):
    path = folder / "via.json"
    for document in (_export(), _project(), _project_3()):
        for indent in (None, 2):
            path.write_text(json.dumps(document, indent=indent))
            assert via.detect(path) and via.detect(folder)
    labelme = {"shapes": [], "imagePath": "a.png", "imageData": None}
    coco = {"images": [{"filename": 1}], "annotations": [], "categories": [], "regions": []}
    for document in (labelme, coco, [], [{"data": {}}], {}):
        path.write_text(json.dumps(document))
        assert not via.detect(path)


def test_many_points_take_no_time(folder):
    rng = np.random.default_rng(0)
    xs, ys = (rng.random((2, 2 * 10**5)) * 48).tolist()
    many = {"all_points_x": xs, "all_points_y": ys}
    line = {"name": "polyline", "all_points_x": xs[:21_000], "all_points_y": ys[:21_000]}
    regions = [_region({"name": "polygon", **many}, c="A"), _region(line, c="A")]
    (folder / "via.json").write_text(json.dumps(_export(*regions)))
    start = time.process_time()
    instances, notes, _ = _instances(folder, None, line_width=3)
    assert len(instances) == 1 and notes.count("shape_broken") == 1
    assert time.process_time() - start < 15


HEADER = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"


def _csv(*rows, header=HEADER):
    def cell(value):
        return '"' + json.dumps(value).replace('"', '""') + '"'

    lines = [
        f"{name},9,{cell(fields)},1,0,{cell(shape)},{cell(attributes)}"
        for name, fields, shape, attributes in rows
    ]
    return "\n".join([f"{header}region_attributes", *lines])


@pytest.mark.parametrize("header", [HEADER, f"#{HEADER}"])
def test_the_csv_gives_what_the_json_gives(folder, header):
    ellipse = {"name": "ellipse", "cx": 30, "cy": 20, "rx": 15.0, "ry": 4.0, "theta": 0.5}
    regions = [_region(POLYGON, type="Fiber", note='a "b", c'), _region(ellipse, type="Film")]
    expected, _, _ = _instances(folder, _export(*regions))
    (folder / "via.json").unlink()
    rows = [
        ("a.png", {"sample": "S1"}, each["shape_attributes"], each["region_attributes"])
        for each in regions
    ]
    Image.new("RGB", (64, 48)).save(folder / "b.png")
    (folder / "via.csv").write_text(_csv(*rows, ("b.png", {}, {}, {}), header=header))
    (folder / "other.csv").write_text("image,class\na.png,Fiber")
    assert via.detect(folder) and via.detect(folder / "via.csv")
    (first, blank), notes, _ = _read(folder, None)
    for old, new in zip(expected, first.instances, strict=True):
        assert (new.category, new.segmentation, new.extra) == (
            (old.category, old.segmentation, old.extra)
        )
    assert first.extra == {"sample": "S1"} and blank.instances == []
    assert notes.count("curve_as_polygon") == len(notes) == 1


@pytest.mark.parametrize(
    "text",
    [HEADER, f"{HEADER}region_attributes\na.png,9,{{,1,0,{{}},{{}}", "# CSV_HEADER = metadata_id"],
)
def test_broken_csv_is_refused(folder, text):
    (folder / "via.csv").write_text(text)
    with user_error("annotations_invalid", "via.csv"):
        _read(folder, None)


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    return folder


SHAPES = [
    POLYGON,
    {"name": "polyline", "all_points_x": [1, 20, 30], "all_points_y": [1, 2, 3]},
    {"name": "ellipse", "cx": 9, "cy": 9, "rx": 3, "ry": 4, "theta": 0.5},
    {"name": "circle", "cx": 9, "cy": 9, "r": 3},
    {"name": "rect", "x": 9, "y": 9, "width": 3, "height": 3},
]
DOCUMENTS = [
    _export(*(_region(shape, type="A", x="b") for shape in SHAPES)),
    _project(*(_region(shape, **{"class": "fib"}) for shape in SHAPES)),
    _project(_region(POLYGON, **{"class": {"fib": True}}), kind="checkbox"),
    _project_3(
        *({"xy": xy, "av": {"1": "0"}} for xy in ([2, 1, 2, 9, 5], [7, 1, 5, 3, 6, 2, 25])),
        *({"xy": xy, "av": {"1": "2"}} for xy in ([4, 9, 9, 4, 4], [6, 1, 5, 3, 6, 9, 9], [])),
        {"xy": [9, 25, 20, 30, 25, 35, 20], "av": {}},
    ),
]


def test_hostile_files(fuzz_folder):
    check_cases(lambda seed: check_reader(via, fuzz_folder / "a.json", DOCUMENTS, seed))


def test_damaged_csv(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    rows = [("a.png", {}, shape, {"type": "A"}) for shape in SHAPES]
    (folder / "via.csv").write_text(_csv(*rows))
    check_cases(lambda seed: check_damaged(via, folder, seed, "*.csv"))
