import json

import pycocotools.mask as mask_util
import pytest
from format_fuzz import check_cases, check_reader
from PIL import Image
from support import user_error

from microplastics.data.formats import qupath
from microplastics.data.formats.base import Notes, ReadOptions

SQUARE = [[10, 10], [40, 10], [40, 40], [10, 40], [10, 10]]
HOLE = [[20, 20], [20, 30], [30, 30], [30, 20], [20, 20]]
OTHER = [[50.5, 10], [60, 10], [60, 20], [50.5, 10]]


def feature(coordinates=(SQUARE,), kind="Polygon", name="Fiber", **properties):
    properties = {"objectType": "annotation", **properties}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties}


def collection(*features, **fields):
    return {"type": "FeatureCollection", "features": list(features), **fields}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    return tmp_path


def read(folder, document=None, name="a.geojson", **options):
    if document is not None:
        (folder / name).write_text(json.dumps(document))
    notes = Notes()
    (source,) = qupath.read(folder, ReadOptions(**options), notes).values()
    return list(source.records()), notes


def test_polygons_holes_and_parts(folder):
    features = [
        feature([OTHER], measurements={"Area px": 9.5}, isLocked=True),
        feature([SQUARE, HOLE]),
        feature([[SQUARE, HOLE], [OTHER]], "MultiPolygon"),
        feature([[SQUARE], [OTHER]], "MultiPolygon"),
    ]
    (record,), notes = read(folder, collection(*features))
    plain, holed, mixed, parts = record.instances
    assert plain.segmentation == [[50.5, 10, 60, 10, 60, 20]]
    assert plain.extra == {"measurements": {"Area px": 9.5}}
    mask, union = (mask_util.decode(each.segmentation) for each in (holed, mixed))
    assert mask.sum() == 800 and not mask[20:30, 20:30].any()
    assert (union[:, :45] == mask[:, :45]).all() and union[11, 58] == 1
    assert [len(ring) for ring in parts.segmentation] == [8, 6] and len(notes) == 0


def test_names_of_classes(folder):
    features = [
        feature(name="Fiber: dark"),
        feature(name=None, classification={"names": ["Fiber", "dark"]}),
        feature(name=None, objectType="detection"),
        feature(name=None, objectType="cell"),
        feature(name=None),
        feature(objectType="tile"),
    ]
    (record,), notes = read(folder, features)  # a bare list, as older scripts write it
    names = [each.category for each in record.instances]
    assert names == ["Fiber: dark", "Fiber: dark", "particle", "particle"]
    assert notes.count("shape_unlabelled") == notes.count("shape_type") == 1


def test_other_geometry(folder):
    line = feature([[10, 40], [40, 40]], "LineString")
    features = [line, feature([1, 1], "Point"), feature([], "GeometryCollection")]
    features += [feature([]), feature([[]]), feature([SQUARE[:2]]), feature("x"), "x", {}]
    (record,), notes = read(folder, collection(*features))
    assert record.instances == [] and notes.count("shape_type") == 2
    assert notes.count("shape_without_area") == 2 and notes.count("shape_broken") == 5
    assert len(read(folder, line_width=4)[0][0].instances) == 1


@pytest.mark.parametrize("name", ["a.geojson", "a.png.geojson", "a.json"])
def test_a_file_is_called_as_its_image(folder, name):
    records, notes = read(folder, collection(feature()), name)
    assert records[0].file_name == "a.png" and len(notes) == 0


def test_folders_in_front_and_the_name_within(folder):
    (folder / "s1").mkdir()
    (folder / "out").mkdir()
    (folder / "a.png").rename(folder / "s1" / "a.png")
    read(folder, collection(), "out/s1__a.png.geojson")
    about = {"image": "s1/b.png", "width": 64, "height": 48}
    (folder / "out" / "s1__b.png~0123.geojson").write_text(
        json.dumps(collection(feature(), microplastics=about))
    )
    Image.new("RGB", (64, 48)).save(folder / "s1" / "b.png")
    records, notes = read(folder)
    assert [record.file_name for record in records] == ["s1/a.png", "s1/b.png"]
    assert len(notes) == 0
    Image.new("RGB", (63, 48)).save(folder / "s1" / "b.png")
    with user_error("image_size", "b.png"):
        read(folder)


def test_detect_and_wrong_content(folder):
    for document in (collection(feature()), [feature()], feature(), collection()):
        (folder / "a.geojson").write_text(json.dumps(document, indent=1))
        assert qupath.detect(folder) and qupath.detect(folder / "a.geojson")
    (folder / "run.json").write_text("{}")  # beside the outputs of predict
    assert not qupath.detect(folder)
    with user_error("annotations_invalid", "a.geojson", "FeatureCollection"):
        read(folder, {"type": "FeatureCollection"})


def test_hostile_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    parts = feature([[SQUARE, HOLE], [OTHER]], "MultiPolygon")
    documents = [
        collection(feature([SQUARE, HOLE]), parts, microplastics={"image": "a.png", "width": 64}),
        [feature([OTHER]), feature([[1, 2], [3, 4]], "LineString")],
    ]
    check_cases(lambda seed: check_reader(qupath, folder / "a.geojson", documents, seed))
