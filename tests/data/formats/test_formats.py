import contextlib
import json
import os
import zipfile

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roifile import ImagejRoi
from support import user_error

from microplastics.data.formats.base import (
    READERS,
    Notes,
    ReadOptions,
    detect,
    open_dataset,
    reader,
)
from microplastics.data.formats.convert import convert_dataset, export_dataset
from microplastics.utils.errors import UserError

POINTS = [[2.0, 3.0], [12.0, 3.0], [12.0, 13.0], [2.0, 13.0]]


def image(path, value=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((30, 40), value, np.uint8))


def write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))


def coco(folder):
    image(folder / "train" / "a.png")
    flat = [coordinate for point in POINTS for coordinate in point]
    write(
        folder / "train" / "_annotations.coco.json",
        {
            "images": [{"id": 0, "file_name": "a.png", "width": 40, "height": 30}],
            "categories": [{"id": 1, "name": "Fiber", "supercategory": "none"}],
            "annotations": [
                {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [flat], "iscrowd": 0}
            ],
        },
    )


def labelme(folder):
    image(folder / "a.png")
    shape = {"label": "Fiber", "points": POINTS, "group_id": None, "shape_type": "polygon"}
    document = {"version": "5.5.0", "flags": {}, "shapes": [shape], "imagePath": "a.png"}
    write(folder / "a.json", {**document, "imageData": None, "imageHeight": 30, "imageWidth": 40})


def via(folder):
    image(folder / "a.png")
    xs, ys = zip(*POINTS, strict=True)
    shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
    regions = [{"shape_attributes": shape, "region_attributes": {"class": "Fiber"}}]
    entry = {"filename": "a.png", "size": 99, "regions": regions, "file_attributes": {}}
    write(folder / "via_region_data.json", {"a.png99": entry})


def yolo(folder):
    image(folder / "train" / "images" / "a.png")
    write(folder / "train" / "labels" / "a.txt", "0 0.1 0.1 0.3 0.1 0.3 0.4\n")
    write(folder / "data.yaml", "train: ../train/images\nnc: 1\nnames: ['Fiber']\n")


def labelstudio(folder):
    image(folder / "images" / "1-a.png")
    value = {"points": [[5, 10], [30, 10], [30, 43]], "polygonlabels": ["Fiber"], "closed": True}
    result = {"id": "x", "type": "polygonlabels", "value": value, "original_width": 40}
    result |= {"original_height": 30, "image_rotation": 0, "from_name": "l", "to_name": "image"}
    task = {"id": 1, "annotations": [{"id": 1, "result": [result], "was_cancelled": False}]}
    write(folder / "project.json", [{**task, "data": {"image": "/data/upload/1/1-a.png"}}])


def masks(folder):
    image(folder / "images" / "a.png")
    labels = np.zeros((30, 40), np.uint8)
    labels[3:9, 4:9], labels[20:25, 4:9] = 1, 2
    (folder / "masks").mkdir()
    cv2.imwrite(str(folder / "masks" / "a.png"), labels)


def cvat(folder):
    image(folder / "images" / "a.png")
    points = ";".join(f"{x},{y}" for x, y in POINTS)
    picture = '<image id="0" name="a.png" width="40" height="30">'
    polygon = f'<polygon label="Fiber" points="{points}"/>'
    write(folder / "annotations.xml", f"<annotations>{picture}{polygon}</image></annotations>")


def supervisely(folder):
    image(folder / "ds0" / "img" / "a.png")
    drawn = {"geometryType": "polygon", "points": {"exterior": POINTS, "interior": []}}
    document = {"size": {"height": 30, "width": 40}, "objects": [{"classTitle": "Fiber", **drawn}]}
    write(folder / "ds0" / "ann" / "a.png.json", document)
    write(folder / "meta.json", {"classes": [{"title": "Fiber"}], "tags": []})


def qupath(folder):
    image(folder / "a.png")
    geometry = {"type": "Polygon", "coordinates": [[*POINTS, POINTS[0]]]}
    drawn = {"type": "Feature", "geometry": geometry}
    drawn["properties"] = {"objectType": "annotation", "classification": {"name": "Fiber"}}
    write(folder / "a.geojson", {"type": "FeatureCollection", "features": [drawn]})


def imagej(folder):
    image(folder / "a.png")
    roi = ImagejRoi.frompoints(np.array(POINTS), name="Fiber 1")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("Fiber 1.roi", roi.tobytes())


def voc(folder):
    masks(folder)
    (folder / "images").rename(folder / "JPEGImages")
    (folder / "masks").rename(folder / "SegmentationObject")
    write(folder / "class_names.txt", "_background_\nFiber\n")


def dsb2018(folder):
    image(folder / "a1" / "images" / "a1.png")
    mask = np.zeros((30, 40), np.uint8)
    mask[3:9, 4:9] = 255
    (folder / "a1" / "masks").mkdir()
    cv2.imwrite(str(folder / "a1" / "masks" / "0.png"), mask)


def cellpose(folder):
    image(folder / "a.png")
    labels = np.zeros((30, 40), np.uint16)
    labels[3:9, 4:9] = 1
    np.save(folder / "a_seg.npy", {"masks": labels, "filename": "a.png"})


def sam(folder):
    image(folder / "a.png")
    mask = {"size": [30, 40], "counts": [100, 5, 1095]}
    entry = {"id": 1, "segmentation": mask, "predicted_iou": 0.9}
    picture = {"file_name": "a.png", "width": 40, "height": 30}
    write(folder / "a.json", {"image": picture, "annotations": [entry]})


def labelme_web(folder):
    image(folder / "a.png")
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in POINTS)
    thing = f"<object><name>Fiber</name><polygon>{points}</polygon></object>"
    write(folder / "a.xml", f"<annotation><filename>a.png</filename>{thing}</annotation>")


SAMPLES = [coco, labelme, via, yolo, labelstudio, cvat, supervisely, qupath, imagej, masks]
SAMPLES += [voc, dsb2018, cellpose, sam, labelme_web]
SAMPLES = {sample.__name__: sample for sample in SAMPLES}
WITHOUT_CLASSES = ("masks", "dsb2018", "cellpose", "sam")


@pytest.mark.parametrize("name", [name for name in READERS if name != "blanks"])
def test_each_format_is_detected_and_read(tmp_path, name):
    SAMPLES[name](tmp_path)
    assert detect(tmp_path) == name and reader(name).__name__.endswith(name)
    notes = Notes()
    found, sources = open_dataset(tmp_path, ReadOptions(), notes)
    assert found == name and list(sources) == (["train"] if name in ("coco", "yolo") else ["all"])
    (source,) = sources.values()
    (record,) = source.records()
    assert (source.image_root / record.file_name).is_file()
    assert (record.width, record.height) == (40, 30) and source.num_images == 1
    classes = {"particle"} if name in WITHOUT_CLASSES else {"Fiber"}
    assert {instance.category for instance in record.instances} == classes == set(source.classes)
    assert list(source.records()) == [record]


def test_our_own_set_is_coco(rendered):
    assert detect(rendered) == detect(rendered / "annotations" / "instances_val.json") == "coco"


def test_two_formats_in_one_folder(tmp_path):
    labelme(tmp_path)
    via(tmp_path)
    with user_error("format_unknown", "labelme and via", "--from"):
        detect(tmp_path)


def test_our_own_manifests_are_no_annotations(tmp_path):
    coco(tmp_path / "coco")
    convert_dataset(tmp_path / "coco", tmp_path / "set", place="copy")
    export_dataset(tmp_path / "set", tmp_path / "out", "labelme")
    manifest = (tmp_path / "out/export.json").read_bytes()
    for name in ("export.json", "conversion.json", "train/export.json"):
        (tmp_path / "out" / name).write_bytes(manifest)
    assert detect(tmp_path / "out") == "labelme"
    (written,) = convert_dataset(tmp_path / "out", tmp_path / "back").written
    assert (written.split, written.num_images) == ("train", 1)
    (tmp_path / "out/other.json").write_bytes(manifest)
    with user_error("name_clash", "other.json"):
        convert_dataset(tmp_path / "out", tmp_path / "again")


def test_annotations_may_be_called_as_a_manifest(tmp_path):
    labelme(tmp_path)
    (tmp_path / "a.json").rename(tmp_path / "export.json")
    (source,) = open_dataset(tmp_path, ReadOptions(), Notes())[1].values()
    assert source.num_images == 1


def test_unknown_formats(tmp_path):
    image(tmp_path / "a.png")
    with user_error("format_unknown", tmp_path, "coco, labelme, via, yolo", "blanks"):
        detect(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"PK")
    with user_error("format_unknown", "a.zip", "unpack it"):
        detect(tmp_path / "a.zip")
    for name in (None, "coco"):
        with user_error("file_missing", tmp_path / "none"):
            open_dataset(tmp_path / "none", ReadOptions(), Notes(), name)


@pytest.mark.parametrize(
    "name", ["a.xml", "a.csv", "a.geojson", "b.zip", "ann/b.json", "b/1.roi", "labels/b.txt"]
)
def test_pipes_are_not_waited_for(tmp_path, name):
    image(tmp_path / "b.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with user_error("format_unknown"):
        detect(tmp_path)
    for each in ("cvat", "via", "qupath", "imagej", "supervisely"):
        with contextlib.suppress(UserError):
            for source in open_dataset(tmp_path, ReadOptions(), Notes(), each)[1].values():
                assert not any(record.instances for record in source.records())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60)
    | st.sampled_from(['{"images": [', "[" * 9000, '[{"annotations": [', "names: [", "\ud800"]).map(
        lambda text: text.encode("utf-16", "surrogatepass")
    ),
    name=st.sampled_from(
        ["a.json", "data.yaml", "a.txt", "a.png", "labels", "x/_annotations.json"]
        + ["a.xml", "a.geojson", "a.zip", "a.roi", "a.csv", "ann/a.json"]
    ),
)
def test_looking_never_raises(tmp_path, content, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    for each in READERS:
        for place in (path, tmp_path, tmp_path / "none"):
            assert reader(each).detect(place) in (True, False)
    path.unlink()
