import json
import os

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import user_error

from microplastics.data.coco import check_instances
from microplastics.synthetic import PRESETS, render_dataset, render_image
from microplastics.synthetic.camera import generator
from microplastics.synthetic.filters import (
    camera_of,
    check_blanks,
    cut_blank_windows,
    enclose_bubbles,
    find_blanks,
    largest_free_square,
    render_filter,
    scatter_debris,
    shed_fibers,
)
from microplastics.utils.errors import UserError


def photograph(seed, shape=(150, 200), level=0.7):
    noise = np.random.default_rng(seed).normal(level, 0.02, (*shape, 3))
    return np.clip(noise * 255, 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Three photographs: bright JPEG, dark PNG in a sub-folder, 16-bit grey TIFF."""
    root = tmp_path / "blanks"
    (root / "sub").mkdir(parents=True)
    cv2.imwrite(str(root / "a.jpg"), photograph(0))
    cv2.imwrite(str(root / "sub/b.PNG"), photograph(1, level=0.1))
    cv2.imwrite(str(root / "c.tif"), photograph(2)[..., 0].astype(np.uint16) * 200)
    return root


def test_images_are_found_below_a_folder(folder, caplog):
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.jpg").write_text("x")
    os.mkfifo(folder / "pipe.png")
    blanks = find_blanks(folder)
    assert blanks.files == ("a.jpg", "c.tif", "sub/b.PNG")
    assert blanks.bytes == sum((folder / name).stat().st_size for name in blanks.files)
    assert "2 files in" in caplog.text and "such as notes.txt" in caplog.text
    check_blanks(blanks, 300)


def test_the_data_set_names_the_photographs_and_belongs_to_them(folder, tmp_path):
    def render(name, backgrounds=folder, **change):
        settings = {"counts": {"train": 12}, "size": 128} | change
        return render_dataset(tmp_path / name, backgrounds=backgrounds, **settings)

    paths = render("one")
    report = check_instances(str(paths["train"]), str(tmp_path / "one/train"))
    assert set(report.findings.warnings) <= {"image_blank"} and len(report.annotations) > 12
    coco = json.loads(paths["train"].read_text())
    used = {image["background"] for image in coco["images"]}
    assert used == {"a.jpg", "c.tif", "sub/b.PNG"}
    assert {image["filter"] for image in coco["images"]} == {"photograph"}
    manifest = json.loads((tmp_path / "one/synthetic.json").read_text())
    assert manifest["backgrounds"] == {"images": 3, "bytes": find_blanks(folder).bytes}
    render("two", workers=1)
    for name in ("train/train_000003.jpg", "annotations/instances_train.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    stamp = (tmp_path / "one/train/train_000000.jpg").stat().st_mtime_ns
    render("one")
    assert (tmp_path / "one/train/train_000000.jpg").stat().st_mtime_ns == stamp
    (folder / "c.tif").unlink()
    for backgrounds in (folder, None):
        with user_error("output_exists", "backgrounds"):
            render("one", backgrounds)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_goes_with_photographs(folder, preset):
    blanks = find_blanks(folder)
    pictures = [render_image((1, preset, i), 128, 1.0, PRESETS[preset], blanks) for i in range(6)]
    assert any(annotations for _, _, annotations in pictures) == (preset != "blank")


def test_what_no_particle_covers_stays_the_photograph(folder):
    blanks = find_blanks(folder)
    for index in range(6):
        image, record, _ = render_image((7, "x", index), 128, 1.0, PRESETS["blank"], blanks)
        if "scale_bar" in record:
            continue
        if record["background"] == "a.jpg":
            source = cv2.imread(str(folder / "a.jpg"))
            assert image.mean() == pytest.approx(source.mean(), rel=0.09)
            relative = source.std() / source.mean()
            assert image.std() / image.mean() == pytest.approx(relative, rel=0.05)


def test_particles_are_as_noisy_as_the_photograph(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), photograph(0, (300, 300)))
    blanks = find_blanks(tmp_path)
    grain = {True: [], False: []}
    for index in range(8):
        image, _, annotations = render_image((1, "n", index), 256, 1.0, PRESETS["default"], blanks)
        fine = image[..., 1].astype(np.float32)
        fine -= cv2.GaussianBlur(fine, (0, 0), 1.0)
        covered = np.zeros((256, 256), np.uint8)
        for annotation in annotations:
            if isinstance(annotation["segmentation"], list):
                outline = np.reshape(annotation["segmentation"][0], (-1, 1, 2))
                cv2.fillPoly(covered, [np.round(outline).astype(np.int32)], 1)
        inside = cv2.erode(covered, np.ones((7, 7), np.uint8)) > 0
        outside = cv2.dilate(covered, np.ones((15, 15), np.uint8)) == 0
        grain[True].append(np.median(np.abs(fine[inside])))
        grain[False].append(np.median(np.abs(fine[outside])))
    assert 0.4 < np.nanmean(grain[True]) / np.nanmean(grain[False]) < 2.5


@pytest.mark.parametrize("filter_name", ["cellulose", "glass_fiber", "polycarbonate"])
@pytest.mark.parametrize("blur, noise", [(0.5, 0.01), (0.9, 0.005), (1.6, 0.02)])
def test_blur_and_noise_are_estimated(filter_name, blur, noise):
    plain = render_filter((3, filter_name), 400, {filter_name: 1.0}).canvas[..., 1]
    taken = cv2.GaussianBlur(plain, (0, 0), blur)
    taken += np.random.default_rng(0).normal(0, noise, plain.shape).astype(np.float32)
    found = camera_of(taken)
    assert found[0] == pytest.approx(blur, abs=0.65)
    assert found[1] == pytest.approx(noise, rel=0.25)


def test_a_flat_photograph_has_no_noise():
    assert camera_of(np.full((64, 64), 0.5, np.float32))[1] < 1e-3


def test_unusable_backgrounds_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with user_error("input_empty", tmp_path / "empty"):
        find_blanks(tmp_path / "empty")
    with user_error("file_missing", folder / "a.jpg"):
        find_blanks(folder / "a.jpg")
    with user_error("image_size", folder / "a.jpg", "--size 301"):
        check_blanks(find_blanks(folder), 301)
    with user_error("option_conflict", folder / "out"):
        render_dataset(folder / "out", {"train": 1}, 64, backgrounds=folder)


def test_a_damaged_photograph_is_named_before_anything_is_written(folder, tmp_path):
    whole = (folder / "sub/b.PNG").read_bytes()
    (folder / "sub/b.PNG").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="b.PNG"):
        render_dataset(tmp_path / "out", {"train": 1}, 64, backgrounds=folder)
    assert not (tmp_path / "out").exists()


def drawn(draw, name, *arguments):
    """What a kind of debris changes on a filter."""
    scene = render_filter((1, name), 256, {name: 1.0})
    before = scene.canvas.copy()
    draw(generator(2), scene, *arguments)
    return scene.canvas - before


@pytest.mark.parametrize("name", ["cellulose", "dark_polycarbonate"])
def test_more_dirt_changes_more(name):
    none, some, much = (np.abs(drawn(scatter_debris, name, a)).mean() for a in (0.0, 1.0, 4.0))
    assert none == 0 < some < much


def test_bubbles_darken_a_bright_filter_and_shine_in_dark_field():
    bright, dark = (drawn(enclose_bubbles, n, 4.0) for n in ("cellulose", "dark_polycarbonate"))
    assert bright.min() < -0.3
    assert dark.min() >= 0 and dark.max() > 0.3
    assert not drawn(enclose_bubbles, "cellulose", 0.0).any()


def test_only_fibrous_filters_shed_fibers_and_without_colour():
    shed = drawn(shed_fibers, "glass_fiber", 8.0)
    assert np.abs(shed).max() > 0.05
    assert np.ptp(shed, axis=2).max() < 1e-5
    assert not drawn(shed_fibers, "polycarbonate", 8.0).any()


def test_the_square_beside_a_box_is_found():
    assert largest_free_square(np.zeros((0, 4)), 21, 21) == (0, 0, 21)
    assert largest_free_square(np.zeros((0, 4)), 256, 300)[2] == 256
    x, y, side = largest_free_square(np.array([[0, 0, 9, 100.0]]), 40, 100)
    assert side == 31 and x == 9 and 0 <= y <= 69
    assert largest_free_square(np.array([[-5, -5, 50, 50.0]]), 40, 40)[2] == 0


@given(
    st.lists(st.tuples(*[st.integers(-5, 30)] * 4), max_size=6),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_no_box_reaches_into_it_and_none_is_larger(corners, width, height):
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    taken = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        taken[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    x, y, side = largest_free_square(np.array(boxes, float).reshape(-1, 4), width, height)
    assert x >= 0 and y >= 0 and x + side <= width and y + side <= height
    assert not taken[y : y + side, x : x + side].any()

    def free(k):
        windows = np.lib.stride_tricks.sliding_window_view(taken, (k, k))
        return (~windows.any(axis=(2, 3))).any()

    best = max([k for k in range(1, min(width, height) + 1) if free(k)], default=0)
    assert side == best


def test_images_of_one_name_keep_a_square_each(tmp_path):
    names = ["a/x.jpg", "b/x.jpg", "b/x.png"]
    for shade, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.full((32, 32, 3), 60 * shade, np.uint8))
    images = [
        {"id": n, "file_name": name, "width": 32, "height": 32} for n, name in enumerate(names)
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "Fiber"}]}
    (tmp_path / "all.json").write_text(json.dumps(content))
    written, without = cut_blank_windows(tmp_path / "all.json", tmp_path, tmp_path / "out", 32)
    found = [path.relative_to(tmp_path / "out").as_posix() for path in written]
    assert found == ["a/x_0_0.png", "b/x_0_0.png", "b/x_png_0_0.png"] and without == []
    assert [cv2.imread(str(path)).mean().round() for path in written] == [0, 60, 120]


def test_the_command_writes_particle_free_squares(cli, rendered, tmp_path):
    json_file = rendered / "annotations" / "instances_train.json"
    arguments = ("--input", json_file, "--images", rendered / "train", "--output", tmp_path / "b")
    result = cli("render", "backgrounds", *arguments, "--min-size", "16", "--margin", "2")
    assert result.returncode == 0, result.stderr
    data = json.loads(json_file.read_text())
    for path in (tmp_path / "b").glob("*.png"):
        stem, x, y = path.stem.rsplit("_", 2)
        side = cv2.imread(str(path)).shape[0]
        (image,) = [i for i in data["images"] if i["file_name"].startswith(stem)]
        for a in data["annotations"]:
            if a["image_id"] == image["id"]:
                bx, by, w, h = a["bbox"]
                outside = bx >= int(x) + side or bx + w <= int(x)
                assert outside or by >= int(y) + side or by + h <= int(y)
    result = cli("render", "backgrounds", *arguments, "--min-size", "95", "--margin", "2")
    assert result.returncode == 2 and "lower --min-size" in result.stderr
