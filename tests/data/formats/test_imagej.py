import random
import struct
import zipfile

import numpy as np
import pycocotools.mask as mask_util
import pytest
from format_fuzz import check_cases, damaged
from PIL import Image
from roifile import ROI_SUBTYPE, ROI_TYPE, ImagejRoi
from support import user_error

from microplastics.data.formats import imagej
from microplastics.data.formats.base import Notes, ReadOptions
from microplastics.utils.errors import UserError

TRIANGLE = [[10, 10], [40, 10], [40, 30]]


def polygon(points=TRIANGLE, name="", **fields):
    roi = ImagejRoi.frompoints(np.array(points), name=name or None)
    for key, value in fields.items():
        setattr(roi, key, value)
    return roi


def framed(kind, left, top, right, bottom, **fields):
    roi = ImagejRoi()
    roi.roitype, roi.left, roi.top, roi.right, roi.bottom = kind, left, top, right, bottom
    for key, value in fields.items():
        setattr(roi, key, value)
    return roi


def archive(path, *rois, names=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for number, roi in enumerate(rois):
            content = roi if isinstance(roi, bytes) else roi.tobytes()
            file.writestr(names[number] if names else f"{number:04d}-0001.roi", content)


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    return tmp_path


def read(folder, **options):
    notes = Notes()
    (source,) = imagej.read(folder, ReadOptions(**options), notes).values()
    return list(source.records()), notes


def instances(folder, *rois, **options):
    archive(folder / "a.zip", *rois)
    (record,), notes = read(folder, **options)
    return record.instances, notes


def test_outlines_keep_their_points(folder):
    rois = [polygon(), polygon([[1.5, 2.25], [9.5, 2.25], [9.5, 7]])]
    (whole, fine), notes = instances(folder, *rois)
    assert notes.count("class_absent") == 2
    assert whole.segmentation == [[10, 10, 40, 10, 40, 30]]
    assert fine.segmentation == [[1.5, 2.25, 9.5, 2.25, 9.5, 7]] and len(notes) == 2


def test_rectangles_ovals_lines_and_points(folder):
    line = ImagejRoi()
    line.roitype, line.x1, line.y1, line.x2, line.y2 = ROI_TYPE.LINE, 10, 40, 40, 40
    rois = [
        framed(ROI_TYPE.RECT, 2, 4, 12, 9),
        framed(ROI_TYPE.OVAL, 20, 10, 40, 20),
        framed(ROI_TYPE.RECT, 0, 0, 9, 9, subtype=ROI_SUBTYPE.TEXT),
        line,
        polygon([[1, 1]], roitype=ROI_TYPE.POINT),
        polygon(roitype=ROI_TYPE.ANGLE),
    ]
    (box, oval), notes = instances(folder, *rois)
    assert box.segmentation == [[2, 4, 12, 4, 12, 9, 2, 9]]
    x, y = np.reshape(oval.segmentation, (-1, 2)).T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert area == pytest.approx(np.pi * 50) and (x.mean(), y.mean()) == pytest.approx((30, 15))
    counts = {"box_only": 1, "curve_as_polygon": 1, "shape_without_area": 2, "shape_type": 2}
    assert {code: notes.count(code) for code in counts} == counts
    assert len(instances(folder, *rois, line_width=4)[0]) == 3


def test_composites_are_filled_by_the_even_odd_rule(folder):
    def path(points):
        commands = [[0, *points[0]], *([1, *point] for point in points[1:])]
        return np.append(np.ravel(commands), 4)

    rings = [[[10, 10], [40, 10], [40, 40], [10, 40]], [[20, 20], [30, 20], [30, 30], [20, 30]]]
    coordinates = np.concatenate([path(ring) for ring in rings]).astype(np.float32)
    roi = framed(ROI_TYPE.RECT, 10, 10, 40, 40, multi_coordinates=coordinates)
    roi.shape_roi_size = len(coordinates)
    (instance,), _ = instances(folder, roi)
    mask = mask_util.decode(instance.segmentation)
    assert mask.sum() == 800 and not mask[20:30, 20:30].any()


def test_classes_from_properties_names_and_groups(folder):
    rois = [
        polygon(name="0001 Film", props="score: 0.5\nclass: F\\u0069ber\n"),
        polygon(name="0002-Film_3"),
        polygon(name="0123-0456", group=3),
        polygon(name="4f2d5d76-eb39-11f1-b10a-02fc5e1b7a90"),
        polygon(name="0123-0456"),
    ]
    found, notes = instances(folder, *rois)
    assert [each.category for each in found] == ["Fiber", "Film", "group 3", "particle", "particle"]
    assert notes.count("class_from_name") == 1 and notes.count("class_absent") == 2


def test_frames_of_a_stack_are_not_laid_over_each_other(folder):
    rois = [polygon(position=0), polygon(position=1), polygon(position=2), polygon(t_position=3)]
    found, notes = instances(folder, *rois)
    assert len(found) == 2 and notes.count("shape_outside") == 2
    assert "frame 3" in "\n".join(notes.lines())


@pytest.mark.parametrize(
    "name", ["a.zip", "a.png.zip", "RoiSet_a.zip", "a_RoiSet.zip", "rois/a.zip", "RoiSet.zip"]
)
def test_an_archive_is_called_as_its_image(folder, name):
    archive(folder / name, polygon())
    (record,), notes = read(folder)
    assert record.file_name == "a.png" and len(record.instances) == len(notes) == 1
    assert imagej.detect(folder) and imagej.detect(folder / name)


def test_single_files_and_folders_of_them(folder):
    Image.new("RGB", (64, 48)).save(folder / "b.png")
    Image.new("RGB", (64, 48)).save(folder / "c.png")
    (folder / "a.roi").write_bytes(polygon().tobytes())
    (folder / "b").mkdir()
    for number in range(3):
        (folder / "b" / f"000{number}.roi").write_bytes(polygon().tobytes())
    archive(folder / "c.zip")  # of an image without a particle
    records, notes = read(folder)
    counts = {record.file_name: len(record.instances) for record in records}
    assert counts == {"a.png": 1, "b.png": 3, "c.png": 0} and len(notes) == 4
    assert len(read(folder / "a.roi")[0][0].instances) == 1


def test_broken_rois_are_noted_and_broken_archives_refused(folder):
    broken = polygon().tobytes()
    rois = [b"", b"Iout", broken[:70], b"x" * 99, polygon(TRIANGLE[:2]), polygon()]
    found, notes = instances(folder, *rois)
    assert len(found) == 1 and notes.count("shape_broken") == 5
    content = (folder / "a.zip").read_bytes()
    for text in (b"", b"PK", content[:-30], content.replace(b"Iout", b"IouT")):
        (folder / "a.zip").write_bytes(text)
        with user_error("file_invalid", "a.zip"):
            read(folder)
    archive(folder / "a.zip", b"x", names=["a.png"])
    assert not imagej.detect(folder)
    with user_error("file_invalid", "a.zip", "without a .roi"):
        read(folder)


def test_paths_and_bombs_in_archives(folder, monkeypatch):
    names = ["../../evil.roi", "/etc/evil.roi"]
    archive(folder / "a.zip", polygon(), polygon(), names=names)
    before = sorted(folder.parent.rglob("*"))
    assert len(read(folder)[0][0].instances) == 2
    assert sorted(folder.parent.rglob("*")) == before  # nothing was unpacked
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0001.roi", bytes(257 << 20))
    with user_error("file_invalid", "a.zip", "at most"):
        read(folder)
    monkeypatch.setattr(imagej, "MAX_INSTANCES", 3)
    archive(folder / "a.zip", *[polygon()] * 4)
    with user_error("file_invalid", "4 ROIs"):
        read(folder)


def test_a_false_size_in_the_head_reads_no_more(folder):
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0001.roi", polygon().tobytes() + bytes(50 << 20))
    content = bytearray((folder / "a.zip").read_bytes())
    for signature, place in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        at = content.index(signature) + place
        content[at : at + 4] = struct.pack("<I", 100)
    (folder / "a.zip").write_bytes(content)
    with user_error("file_invalid", "a.zip"):
        read(folder)


def test_hostile_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    archive(folder / "b.zip", polygon(name="0001 Fiber", props="class: Fiber\n"), polygon())
    content = (folder / "b.zip").read_bytes()
    (folder / "b.zip").unlink()

    def case(seed):
        rng = random.Random(seed)
        if seed % 2:
            archive(folder / "a.zip", damaged(polygon().tobytes(), rng))
        else:
            (folder / "a.zip").write_bytes(damaged(content, rng))
        imagej.detect(folder)
        try:
            read(folder)
        except UserError:
            return "error"
        return "read"

    check_cases(case)
