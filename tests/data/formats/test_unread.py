import json

import cv2
import numpy as np
import pytest
from support import user_error

from microplastics.data.formats.base import Notes, ReadOptions, detect, open_dataset
from microplastics.data.formats.convert import convert_dataset, export_dataset

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
VOC = f"<annotation><filename>a.png</filename><object><name>Fiber</name>{BOX}</object></annotation>"
CREATEML = [
    {
        "image": "a.png",
        "annotations": [
            {"label": "Fiber", "coordinates": {"x": 5, "y": 5, "width": 4, "height": 4}}
        ],
    }
]
ASSET = {"id": "x", "name": "a.png", "size": {"width": 40, "height": 30}}
VOTT_ASSET = {"asset": ASSET, "regions": [], "version": "2.2.0"}
VOTT = {"name": "p", "tags": [{"name": "Fiber", "color": "#fff"}], "assets": {"x": ASSET}}
OPEN_IMAGES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\nab,xclick,/m/0,1,0,1,0,1"
TABLE = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,30,Fiber,1,2,9,9"
DATUMARO = {
    "info": {},
    "categories": {"label": {"labels": [{"name": "Fiber"}]}},
    "items": [{"id": "a", "annotations": [], "image": {"path": "a.png"}}],
}
PANOPTIC = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
    "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": []}],
    "categories": [{"id": 1, "name": "Fiber", "isthing": 1}],
}
OBB = "0 0.1 0.2 0.4 0.3 0.38 0.36 0.08 0.26\n1 0.5 0.5 0.6 0.5 0.6 0.7 0.5 0.7\n"
DOTA = "imagesource:x\ngsd:0.1\n" + "4 6 16 9 15.2 10.8 3.2 7.8 Fiber 0\n" * 2


def write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document, indent=1))


def image(folder, name="images/a.png"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / name), np.full((30, 40), 9, np.uint8))


@pytest.mark.parametrize(
    ("name", "document", "words"),
    [
        ("Annotations/a.xml", VOC, "Pascal VOC"),
        ("train/_annotations.createml.json", CREATEML, "CreateML"),
        ("x-asset.json", VOTT_ASSET, "VoTT"),
        ("vott-json-export/p-export.json", VOTT, "VoTT"),
        ("p.vott", VOTT, "VoTT"),
        ("train-annotations-bbox.csv", OPEN_IMAGES, "OpenImages"),
        ("train/_annotations.csv", TABLE, "boxes"),
        ("annotations/default.json", DATUMARO, "Datumaro"),
        ("annotations/panoptic_val.json", PANOPTIC, "panoptic"),
        ("labels/a.txt", OBB, "YOLO-OBB"),
        ("labelTxt/a.txt", DOTA, "DOTA"),
    ],
)
def test_each_is_named_with_the_export_to_choose(tmp_path, name, document, words):
    image(tmp_path)
    write(tmp_path / name, document)
    with user_error("format_unknown", tmp_path, words, "COCO" if words != "panoptic" else "instan"):
        detect(tmp_path)


def test_boxes_of_yolo_obb_are_read_if_asked_for(tmp_path):
    image(tmp_path)
    write(tmp_path / "labels" / "a.txt", OBB)
    _, sources = open_dataset(tmp_path, ReadOptions(), Notes(), "yolo")
    assert len(next(sources["all"].records()).instances) == 2


@pytest.mark.parametrize(
    "line", ["0 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4", "0 0.1 0.2 0.4 0.3 0.3 0.5 0.1 0.3", "0 1 2 3 4"]
)
def test_upright_rectangles_and_outlines_of_four_points_are_yolo(tmp_path, line):
    image(tmp_path)
    write(tmp_path / "labels" / "a.txt", line)
    assert detect(tmp_path) == "yolo"


def test_panoptic_files_beside_instances_are_no_matter(tmp_path):
    image(tmp_path / "in")
    segmentation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0}
    segmentation["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    write(tmp_path / "in" / "annotations" / "panoptic_val.json", PANOPTIC)
    write(
        tmp_path / "in" / "annotations" / "instances_val.json",
        {**PANOPTIC, "annotations": [segmentation]},
    )
    assert detect(tmp_path / "in") == "coco"
    convert_dataset(tmp_path / "in", tmp_path / "set")
    export_dataset(tmp_path / "set", tmp_path / "yolo", "yolo")
    assert detect(tmp_path / "yolo") == "yolo"
