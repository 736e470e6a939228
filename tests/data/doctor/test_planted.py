"""Each defect, planted into a clean rendered set, is found as itself."""

import copy
import json
import math
import os
import shutil
import struct

import cv2
import numpy as np
import pytest
import shapely
from PIL import Image

from microplastics.config import get_cfg
from microplastics.data.doctor import checks, diagnose
from microplastics.data.doctor.findings import CODES, INFO, describe
from microplastics.data.formats.base import ReadOptions
from microplastics.data.formats.convert import convert_dataset
from microplastics.data.segmentation import measure

PLANTS = {}
MODEL = {"no_anchor", "too_small", "mask_resolution"}  # in test_model_fit


def plant(expected, single=False, **options):
    """Register a plant: a function that spoils ``s``, a clean set, and what is found then."""
    expected = {expected: 1} if isinstance(expected, str) else expected

    def register(function):
        PLANTS[next(iter(expected))] = (function, expected, single, options)
        return function

    return register


def _without_repeats(polygon):
    points = np.reshape(polygon, (-1, 2)).tolist()
    kept = [p for i, p in enumerate(points) if i == 0 or p != points[i - 1]]
    return [value for point in kept for value in point]


class CleanSet:
    """Train and val of a rendered set, to be spoilt."""

    def __init__(self, folder):
        self.folder = folder
        self.train, self.val = map(self._read, ("train", "val"))
        for entry in self.train["annotations"]:
            entry["segmentation"] = [_without_repeats(p) for p in entry["segmentation"]]
        # The largest particle of the most frequent class.
        ids = [a["category_id"] for a in self.train["annotations"]]
        usual = max(ids, key=ids.count)
        self.a = max(
            (a for a in self.train["annotations"] if a["category_id"] == usual),
            key=lambda a: a["area"],
        )
        images = {image["id"]: image for image in self.train["images"]}
        self.image = images[self.a["image_id"]]
        self.path = folder / "train" / self.image["file_name"]
        self.other = next(image for image in self.train["images"] if image is not self.image)
        self.other_path = folder / "train" / self.other["file_name"]
        self.val_path = folder / "val" / self.val["images"][0]["file_name"]
        self.content = None  # bytes to stand in the train JSON instead

    def _read(self, split):
        return json.loads((self.folder / f"annotations/instances_{split}.json").read_text())

    def add(self, **changes):
        id_ = max(a["id"] for a in self.train["annotations"]) + 1
        self.train["annotations"].append({**copy.deepcopy(self.a), "id": id_, **changes})

    def outline(self, *polygons):
        """Give the particle these outlines, with a true box and area."""
        self.a["segmentation"] = [list(map(float, polygon)) for polygon in polygons]
        measured = measure(self.a["segmentation"], self.image["height"], self.image["width"])
        self.a["bbox"], self.a["area"] = list(measured.box), measured.area

    def diagnose(self, single, **options):
        files = []
        for split in ("train", "val")[: 1 if single else 2]:
            path = self.folder / f"annotations/instances_{split}.json"
            path.write_text(json.dumps(getattr(self, split)))
            files.append(path)
        if self.content is not None:
            files[0].write_bytes(self.content)
        roots = [self.folder / path.stem.partition("_")[2] for path in files]
        return diagnose(files, roots, workers=1, **options)


plant("not_json")(lambda s: setattr(s, "content", json.dumps(s.train).encode()[:-9]))
plant("structure")(lambda s: s.train.pop("annotations"))
plant("not_an_object")(lambda s: s.train["annotations"].append(7))
plant("image_field")(lambda s: s.train["images"].append({"file_name": "x.jpg"}))
plant("image_duplicate")(lambda s: s.train["images"].append({**s.image, "file_name": "x.jpg"}))
plant("category_field", single=True)(lambda s: s.train["categories"][0].pop("name"))
plant("category_duplicate")(
    lambda s: s.train["categories"].append({**s.train["categories"][0], "name": "Other"})
)
plant("category_placeholder")(
    lambda s: s.train["categories"].append({**s.train["categories"][0], "id": 0})
)
plant("category_unused", single=True)(
    lambda s: s.train["categories"].append({"id": 9, "name": "Bead"})
)
plant("annotation_field")(lambda s: s.a.update(category_id="1"))
plant("box_field")(lambda s: s.a.pop("bbox"))
plant("area_field")(lambda s: s.a.update(area="12"))
plant("annotation_zero")(lambda s: s.a.update(id=0))
plant("annotation_duplicate")(lambda s: s.add(id=s.a["id"], image_id=s.other["id"]))
plant("annotation_twice")(lambda s: s.add())
plant("no_image")(lambda s: s.add(image_id=999))
plant("no_category")(lambda s: s.a.update(category_id=99))
plant("ignore")(lambda s: s.a.update(ignore=1))
plant("area_missing")(lambda s: s.a.pop("area"))
plant("area_differs")(lambda s: s.a.update(area=7 * s.a["area"] + 100))
plant("bbox_differs")(lambda s: s.a["bbox"].__setitem__(2, s.a["bbox"][2] + 9))
plant("iscrowd_missing")(lambda s: s.a.pop("iscrowd"))
plant("crowd")(lambda s: s.a.update(iscrowd=1))
plant("keypoints")(lambda s: s.a.update(keypoints=[1, 1, 2]))
plant("segmentation_empty")(lambda s: s.a.update(segmentation=[]))
plant("segmentation_type")(lambda s: s.a.update(segmentation="x"))
plant("polygon_flat")(lambda s: s.a.update(segmentation=[1, 1, 9, 1, 9, 9]))
plant("polygon_points")(lambda s: s.a.update(segmentation=[[1, 1, 9, 9]]))
plant("polygon_odd")(lambda s: s.a.update(segmentation=[[1, 1, 9, 1, 9, 9, 4]]))
plant("polygon_numbers")(lambda s: s.a.update(segmentation=[[1, 1, 9, 1, 9, math.nan]]))
plant("polygon_outside")(lambda s: s.a.update(segmentation=[[200, 1, 209, 1, 209, 9]]))
plant("outline_long")(lambda s: s.a.update(segmentation=[[0, 0, 95, 0, 95, 9, 0, 9] * 12000]))
plant("zero_area")(lambda s: s.a.update(segmentation=[[5, 5, 9, 9, 13, 13]]))
plant("polygon_clipped")(lambda s: s.outline([-20, 40, 30, 40, 30, 70, -20, 70]))
plant("subpixel")(lambda s: s.outline([10.1, 10.1, 10.4, 10.1, 10.1, 10.4]))
plant("polygon_crossing")(lambda s: s.outline([5, 5, 45, 35, 45, 5, 5, 35]))
plant("polygon_touching")(
    lambda s: s.outline([5, 5, 20, 5, 20, 15, 30, 15, 30, 5, 45, 5, 45, 35, 20, 15, 5, 35])
)
plant("polygon_repeated")(lambda s: s.a.update(segmentation=2 * s.a["segmentation"]))
plant("rle_size")(lambda s: s.a.update(segmentation={"size": [9, 9], "counts": [9, 72]}))
plant("rle_counts")(lambda s: s.a.update(segmentation={"size": [96, 96], "counts": "oo"}))
plant("rle_empty")(lambda s: s.a.update(segmentation={"size": [96, 96], "counts": [9216]}))
plant("image_missing")(lambda s: os.remove(s.path))
plant("image_file")(lambda s: s.path.write_bytes(s.path.read_bytes()[:-300]))
plant("image_size")(lambda s: s.image.update(width=97))
plant("image_unlisted")(lambda s: shutil.copy(s.path, s.folder / "train/more.JPG"))
plant("image_same")(lambda s: shutil.copy(s.path, s.other_path))
plant("image_near")(lambda s: Image.open(s.path).save(s.other_path, quality=60))
plant("split_same")(lambda s: shutil.copy(s.path, s.val_path))
plant("split_near")(lambda s: Image.open(s.path).save(s.val_path, quality=60))
plant({"split_group": 4}, group_regex=r"(\d{6})")(lambda s: None)
plant({"group_unmatched": 4}, group_regex=r"train_(\d+)")(lambda s: None)
plant("image_channels_mixed")(lambda s: Image.open(s.path).convert("L").save(s.path))
plant({"num_classes": 2}, cfg=get_cfg())(lambda s: None)
plant("category_names")(lambda s: s.val["categories"][0].update(name="Bead"))


@plant("image_twice")
def _(s):
    s.train["images"].append({**s.image, "id": 999})
    s.add(image_id=999)


@plant("file_name")
def _(s):
    os.remove(s.path)
    s.image["file_name"] = "../x.jpg"


@plant("category_same_name", single=True)
def _(s):
    used = {a["category_id"] for a in s.train["annotations"]}
    one, other = [c for c in s.train["categories"] if c["id"] in used][:2]
    other["name"] = one["name"]


@plant("area_of_box")
def _(s):
    s.outline([5, 5, 45, 35, 45, 5])
    s.a["area"] = 40 * 30


@plant("bbox_xyxy")
def _(s):
    s.outline([15, 15, 45, 35, 45, 5])
    s.a["bbox"] = [15, 5, 45, 35]


@plant("points_repeated")
def _(s):
    s.outline([5, 5, 45, 35, 45, 35, 45, 5])


@plant("polygon_hole")
def _(s):
    polygon = s.a["segmentation"][0]
    inside = shapely.Polygon(np.reshape(polygon, (-1, 2))).representative_point()
    x, y = inside.x, inside.y
    s.a["segmentation"].append([x, y, x + 0.2, y, x, y + 0.2])


@plant("overlap")
def _(s):
    s.outline([5, 5, 45, 35, 45, 5])
    s.add(segmentation=[[5, 5, 45, 34, 45, 5]], category_id=s.a["category_id"] % 3 + 1)


@plant("unchecked")
def _(s):
    corners = [(x, y) for x in range(0, 94, 3) for y in range(0, 94, 3)]
    squares = [[x, y, x + 2, y, x + 2, y + 2, x, y + 2] for x, y in corners]
    s.outline(*squares, *[[x, y, x + 1, y, x, y + 1] for x, y in corners])


@plant({"image_unlisted_cut": 2})
def _(s):
    s.monkeypatch.setattr(checks, "_FILES", 2)


@plant("image_blank")
def _(s):
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(noise).save(s.folder / "train/blank.png")
    s.train["images"].append({**s.image, "id": 999, "file_name": "blank.png"})


def _save(image, path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    image.save(path, "JPEG", quality=95, exif=exif)


# The masks lie on edges of the picture only if it is turned, or only if it is not.
plant("image_exif")(lambda s: _save(Image.open(s.path).rotate(180), s.path, 3))
plant("image_exif_stored")(lambda s: _save(Image.open(s.path), s.path, 3))


@plant("image_exif_unsure")
def _(s):
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    _save(Image.fromarray(noise), s.path, 2)


@plant("category_case", single=True)
def _(s):
    used = {a["category_id"] for a in s.train["annotations"]}
    one, other = [c for c in s.train["categories"] if c["id"] in used][:2]
    one["name"], other["name"] = "fiber  A", "Fiber a"


@plant("class_of_image", single=True)
def _(s):
    for image in s.train["images"]:
        for x in range(0, 80, 20):
            square = [x, 2, x + 9, 2, x + 9, 9, x, 9]
            box = {"bbox": [x, 2, 9, 7], "area": 63}
            s.add(segmentation=[square], image_id=image["id"], **box)
    for entry in s.train["annotations"]:
        entry["category_id"] = entry["image_id"] % 3 + 1
    return {"class_of_image": len(s.train["images"])}


@plant({"image_deep": 1, "image_depth_mixed": 1})
def _(s):
    deep = cv2.imread(str(s.path)).astype(np.uint16) * 257
    s.path.write_bytes(cv2.imencode(".png", deep)[1])


PLANTS["image_depth_mixed"] = PLANTS["image_deep"]


@plant("image_header")
def _(s):
    orientation = struct.pack("<HHI4s", 274, 2, 4, b"up!\0")  # words where a number belongs
    tags = b"II*\0" + struct.pack("<IH", 8, 1) + orientation + bytes(4)
    Image.open(s.path).save(s.path, "JPEG", quality=95, exif=b"Exif\0\0" + tags)


@plant("image_frames")
def _(s):
    image = Image.open(s.path)
    image.load()
    image.save(s.path, "TIFF", save_all=True, append_images=[image])


@plant("split_original")
def _(s):
    for data, path in ((s.train, s.path), (s.val, s.val_path)):
        name = f"p_jpg.rf.{data is s.train:032d}.jpg"
        next(i for i in data["images"] if i["file_name"] == path.name)["file_name"] = name
        path.rename(path.with_name(name))


@plant("category_order")
def _(s):
    names = [category["name"] for category in s.val["categories"]]
    for category, name in zip(s.val["categories"], reversed(names), strict=True):
        category["name"] = name


@plant("category_ids")
def _(s):
    for entry in s.val["categories"]:
        entry["id"] += 10
    for entry in s.val["annotations"]:
        entry["category_id"] += 10


@plant("class_imbalance", single=True)
def _(s):
    rare = {a["category_id"] for a in s.train["annotations"]} - {s.a["category_id"]}
    for index in range(200):
        pixel = {"size": [96, 96], "counts": [97 * index % 9000, 1, 9215 - 97 * index % 9000]}
        x, y = divmod(97 * index % 9000, 96)
        s.add(segmentation=pixel, bbox=[x, y, 1, 1], area=1)
    return {"class_imbalance": len(rare)}


@plant("nothing_to_train", single=True)
def _(s):
    for entry in s.train["annotations"]:
        entry["iscrowd"] = 1
    return {"nothing_to_train": 1, "crowd": len(s.train["annotations"])}


def _counts(diagnosis):
    return {finding.code: finding.count for finding in diagnosis.findings}


_before = {}  # counts of the clean set, of train alone or not


@pytest.fixture
def clean(rendered, tmp_path, monkeypatch):
    shutil.copytree(rendered, tmp_path / "set")
    made = CleanSet(tmp_path / "set")
    made.monkeypatch = monkeypatch
    return made


def test_a_clean_set_has_no_problem_and_no_warning(rendered):
    splits = ("train", "val", "test")
    diagnosis = diagnose(
        [rendered / f"annotations/instances_{split}.json" for split in splits],
        [rendered / split for split in splits],
        group_regex=r"(.+)\.jpg",
    )
    assert [finding for finding in diagnosis.findings if finding.severity != INFO] == []
    assert not diagnosis.has_problems
    assert [data.num_images for data in diagnosis.datasets] == [8, 4, 2]


def test_every_code_is_planted():
    assert set(PLANTS) == set(CODES) - MODEL


@pytest.mark.parametrize("code", PLANTS)
def test_planted(clean, code):
    function, expected, single, options = PLANTS[code]
    if single not in _before:
        _before[single] = _counts(clean.diagnose(single))
    before = _before[single]
    made = function(clean)
    if isinstance(made, dict) and set(made) <= set(CODES):  # where it depends on the set
        expected = made
    diagnosis = clean.diagnose(single, **options)
    after = _counts(diagnosis)
    more = {c: n - before.get(c, 0) for c, n in after.items() if n > before.get(c, 0)}
    assert {c: n for c, n in more.items() if c not in MODEL} == expected
    finding = next(f for f in diagnosis.findings if f.code == code)
    assert finding.severity == CODES[code].severity and finding.fixable == CODES[code].fixable
    assert 1 <= len(finding.examples) <= 5 and all(example.text for example in finding.examples)


MENDED = [code for code in PLANTS if CODES[code].convertible]


@pytest.mark.parametrize("code", MENDED)
def test_convert_mends_what_it_says(clean, code):
    function, _, single, _ = PLANTS[code]
    function(clean)
    before = clean.diagnose(single)
    assert code in _counts(before)
    assert "microplastics convert)" in " ".join(describe(before).split())
    made = clean.folder / "annotations/instances_train.json"
    options = ReadOptions(images=clean.folder / "train")
    [written] = convert_dataset(made, clean.folder.parent / "out", options=options).written
    assert code not in _counts(diagnose([written.json_file], [written.image_root], workers=1))


def test_consequences_stand_beside_their_cause(clean):
    clean.path.rename(clean.path.with_suffix(".PNG"))
    for entry in clean.train["annotations"]:
        entry["iscrowd"] = 1
    clean.add(iscrowd=0, segmentation=[])
    clean.add(iscrowd=0, segmentation=[], image_id=clean.other["id"])
    diagnosis = clean.diagnose(True)
    found = [(f.code, f.cause) for f in diagnosis.findings]
    at = found.index(("image_missing", ""))
    assert found[at + 1] == ("image_unlisted", "image_missing")
    at = found.index(("segmentation_empty", ""))
    assert found[at + 1] == ("nothing_to_train", "segmentation_empty")
    words = describe(diagnosis)
    assert f"the JSON names {clean.image['file_name']!r}" in " ".join(words.split())
    assert "Follows from [image_missing]." in words
    # A note whose consequence is a problem stands among the problems.
    del clean.train["annotations"][-2:]
    diagnosis = clean.diagnose(True)
    found = [f.code for f in diagnosis.findings]
    assert found.index("nothing_to_train") == found.index("crowd") + 1
    assert {f.severity for f in diagnosis.findings[: found.index("crowd")]} <= {"problem"}
    assert "1 x data sets without an annotation" in describe(diagnosis).split("WARNINGS")[0]


def test_images_of_an_unusable_file_are_unlisted_because_of_it(clean):
    clean.content = b"{"
    files = [clean.folder / f"annotations/instances_{split}.json" for split in ("train", "val")]
    clean.diagnose(False)
    shutil.copytree(clean.folder / "val", clean.folder / "train", dirs_exist_ok=True)
    found = {f.code: f for f in diagnose(files, [clean.folder / "train"], workers=1).findings}
    assert found["image_unlisted"].count == 8 and found["image_unlisted"].cause == "not_json"


def test_the_place_is_named(clean):
    clean.a["area"] = 7 * clean.a["area"] + 100
    [finding] = [f for f in clean.diagnose(False).findings if f.code == "area_differs"]
    [example] = finding.examples
    id_, image = clean.a["id"], clean.image
    assert example.text == f"annotation {id_} of image {image['id']} ({image['file_name']!r})"
    assert example.annotation_id == id_ and example.box == tuple(clean.a["bbox"])
    assert example.image == str(clean.path) and os.path.exists(example.image)


def test_both_particles_of_a_pair_are_named(clean):
    clean.outline([5, 5, 45, 35, 45, 5])
    clean.add(segmentation=[[5, 5, 45, 34, 45, 5]])
    [finding] = [f for f in clean.diagnose(False).findings if f.code == "overlap"]
    assert finding.examples[0].box == (5, 5, 40, 30)
    assert finding.examples[0].other_box == (5, 5, 40, 29)
    assert "IoU 0.9" in finding.examples[0].text


def test_both_images_of_a_pair_are_named(clean):
    shutil.copy(clean.path, clean.val_path)
    [finding] = [f for f in clean.diagnose(False).findings if f.code == "split_same"]
    assert finding.examples[0].image == str(clean.val_path)
    assert finding.examples[0].other_image == str(clean.path)
