import json
import os

import cv2
import numpy as np
import pytest

from microplastics.data.coco import check_instances
from microplastics.data.synthetic import PRESETS, render_dataset, render_image
from microplastics.data.synthetic.background import render_filter
from microplastics.data.synthetic.blanks import camera_of, check_blanks, find_blanks
from microplastics.errors import UserError


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
    blanks = find_blanks(folder)
    assert blanks.files == ("a.jpg", "c.tif", "sub/b.PNG")
    assert "1 files in" in caplog.text and "such as notes.txt" in caplog.text
    check_blanks(blanks, 300)


def test_the_hash_is_that_of_names_and_bytes(folder):
    before = find_blanks(folder).sha256
    os.utime(folder / "a.jpg", (1, 1))
    assert find_blanks(folder).sha256 == before
    (folder / "a.jpg").rename(folder / "d.jpg")
    renamed = find_blanks(folder).sha256
    cv2.imwrite(str(folder / "d.jpg"), photograph(5))
    assert len({before, renamed, find_blanks(folder).sha256}) == 3


def test_the_data_set_names_the_photographs_and_belongs_to_them(folder, tmp_path):
    def render(name, backgrounds=folder, **change):
        settings = {"counts": {"train": 12}, "size": 128, "progress": False} | change
        return render_dataset(tmp_path / name, backgrounds=backgrounds, **settings)

    paths = render("one")
    report = check_instances(str(paths["train"]), str(tmp_path / "one/train"))
    assert {w.code for w in report.warnings} <= {"image_blank"} and report.num_annotations > 12
    coco = json.loads(paths["train"].read_text())
    used = {image["background"] for image in coco["images"]}
    assert used == {"a.jpg", "c.tif", "sub/b.PNG"}
    assert {image["filter"] for image in coco["images"]} == {"photograph"}
    manifest = json.loads((tmp_path / "one/synthetic.json").read_text())
    assert manifest["backgrounds"] == {"images": 3, "sha256": find_blanks(folder).sha256}
    render("two", workers=1)
    for name in ("train/train_000003.jpg", "annotations/instances_train.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    stamp = (tmp_path / "one/train/train_000000.jpg").stat().st_mtime_ns
    render("one")
    assert (tmp_path / "one/train/train_000000.jpg").stat().st_mtime_ns == stamp
    (folder / "c.tif").unlink()
    for backgrounds in (folder, None):
        with pytest.raises(UserError, match="holds another rendering .backgrounds"):
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
def test_blur_and_noise_are_found_out(filter_name, blur, noise):
    plain = render_filter((3, filter_name), 400, {filter_name: 1.0}).canvas[..., 1]
    taken = cv2.GaussianBlur(plain, (0, 0), blur)
    taken += np.random.default_rng(0).normal(0, noise, plain.shape).astype(np.float32)
    found = camera_of(taken)
    assert found[0] == pytest.approx(blur, abs=0.65)
    assert found[1] == pytest.approx(noise, rel=0.25)


def test_a_flat_photograph_has_no_noise():
    assert camera_of(np.full((64, 64), 0.5, np.float32))[1] < 1e-3


def test_what_is_wrong_is_said(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image: put blank filter images there"):
        find_blanks(tmp_path / "empty")
    with pytest.raises(UserError, match="a.jpg is not a folder: give a folder"):
        find_blanks(folder / "a.jpg")
    with pytest.raises(UserError, match="a.jpg is 200 x 150 px, too small .* a --size of at most"):
        check_blanks(find_blanks(folder), 301)
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(UserError, match="pipe.png is not a file"):
        find_blanks(folder)
    (folder / "pipe.png").unlink()
    with pytest.raises(UserError, match="lies in the folder of backgrounds: choose another"):
        render_dataset(folder / "out", {"train": 1}, 64, backgrounds=folder, progress=False)


def test_a_broken_photograph_is_named_before_anything_is_written(folder, tmp_path):
    whole = (folder / "sub/b.PNG").read_bytes()
    (folder / "sub/b.PNG").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="b.PNG cannot be read as an image"):
        render_dataset(tmp_path / "out", {"train": 1}, 64, backgrounds=folder, progress=False)
    assert not (tmp_path / "out").exists()
