"""Corrected files, and what a review can be opened on."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from review_support import box
from support import user_error

from microplastics.cli import main
from microplastics.data.coco import load_instances
from microplastics.review import Review
from microplastics.review.export import export

BOB = {"reviewer": "bob"}


def command(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(each) for each in arguments])
    return end.value.code or 0


@pytest.fixture(scope="module")
def measured(annotations, tmp_path_factory):
    """A run of ``measure`` with a region and samples, whose photographs it saw."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "regions").mkdir()
    region = np.full((60, 80), 255, np.uint8)
    region[:, :15] = 0
    for name in "ab":
        cv2.imwrite(str(folder / "regions" / f"{name}.png"), region)
    code = command(
        *("measure", "--masks", annotations, "--images", annotations.parent / "images"),
        *(
            "--um-per-px",
            2.5,
            "--region",
            folder / "regions",
            "--size-classes",
            "20,30",
            "--min-size",
            10,
        ),
        *("--group-by", "(.)", "--blanks", "b.png", "--formats", "csv,coco"),
        *("--output", folder / "run"),
    )
    assert code == 0
    return folder / "run"


@pytest.fixture
def run(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "run")


def correct(review):
    review.reject({"a.png": [2]}, **BOB, version=0)
    review.draw("a.png", box(40.2, 5, 12, 3), "Fiber", **BOB, version=1)
    review.draw("a.png", box(2, 40), "Film", **BOB, version=2)  # outside of the region
    review.set_outline("a.png", 3, box(50, 20, 8, 20), **BOB, version=3)
    review.set_class({"a.png": [3]}, "Pellet", **BOB, version=4)
    review.finish(["a.png", "b.png"], **BOB, version=5)


def rows(path):
    table = pd.read_csv(path)
    return table.drop(columns=["particle", "score"], errors="ignore")


def test_tables_are_those_of_measure(run, annotations, tmp_path, capsys):
    own = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with Review.open(run) as review:
        assert [each.id for each in review.particles("a.png")] == [2, 3]
        correct(review)
        live, summary = review.table(), review.summary()
        output = export(review)
    assert output == run / "reviewed" and {p: p.read_bytes() for p in own} == own
    code = command(
        *("measure", "--masks", output / "annotations.json", "--um-per-px", 2.5),
        *(
            "--images",
            annotations.parent / "images",
            "--region",
            json.loads((run / "run.json").read_text())["options"]["region"],
        ),
        *("--size-classes", "20,30", "--min-size", 10, "--group-by", "(.)", "--blanks", "b.png"),
        *("--output", tmp_path / "again", "--formats", "csv"),
    )
    assert code == 0
    expected = rows(tmp_path / "again/particles.csv")
    pd.testing.assert_frame_equal(rows(output / "particles.csv"), expected, check_exact=True)
    assert live["particle"].tolist() == [3, 4, 4]  # of a.png, a.png, b.png
    for name in "summary", "samples":
        left, right = (folder / f"{name}.csv" for folder in (output, tmp_path / "again"))
        assert left.read_bytes() == right.read_bytes()
    assert summary[0]["count"].tolist() == pd.read_csv(output / "summary.csv")["count"].tolist()
    pd.testing.assert_frame_equal(
        live.drop(columns=["particle", "score"]).reset_index(drop=True),
        expected,
        check_dtype=False,
        rtol=1e-5,
    )


def test_annotations_are_a_data_set_of_finished_images(review):
    review.reject({"a.png": [1]}, **BOB, version=0)
    review.comment({"a.png": [2]}, "dirt", **BOB, version=1)
    review.merge("a.png", [2, 3], **BOB, version=2)
    review.finish(["a.png"], **BOB, version=3)
    data = json.loads((export(review) / "annotations.json").read_text())
    (image,), (merged,), (rejected,) = (data[key] for key in ("images", "annotations", "rejected"))
    assert image["file_name"] == "a.png" and image["finished"] and image["reviewer"] == "bob"
    assert (merged["particle"], merged["origin"], merged["state"]) == (4, "merged", "accepted")
    assert (rejected["particle"], rejected["score"]) == (1, 0.9)
    path = export(review, every=True) / "annotations.json"
    items = load_instances(path, "")
    assert [len(item["annotations"]) for item in items] == [1, 1]
    data = json.loads(path.read_text())
    assert [image["finished"] for image in data["images"]] == [True, False]
    assert [each["state"] for each in data["annotations"]] == ["accepted", "unseen"]


def test_the_report_says_who_checked(review):
    review.reject({"a.png": [1]}, **BOB, version=0)
    review.finish(["a.png"], **BOB, version=1)
    page = " ".join((export(review) / "report.html").read_text().split())
    assert "checked by bob, all of them on 1 of 2 photographs (2 accepted, 1 rejected" in page
    assert "1 of 2 images are not finished in the review: 1 particle that nobody" in page


def test_an_export_is_a_run_that_can_be_reviewed(review):
    correct(review)
    output = export(review)
    again = Review.open(output)
    with again:
        first, second = (each.table().drop(columns="particle") for each in (review, again))
        pd.testing.assert_frame_equal(first, second)
        assert again.particle("a.png", 4).given_class == "Fiber"


def test_a_run_without_its_parts(run):
    with Review.open(run, read_only=False) as review:
        expected = [(p.id, p.score, p.mask.tolist()) for p in review.particles("a.png")]
        table = review.table()
    shutil.rmtree(run / "parts")
    with Review.open(run) as review:  # with the same log
        assert [(p.id, p.mask.tolist()) for p in review.particles("a.png")] == [
            (id_, mask) for id_, _, mask in expected
        ]
        pd.testing.assert_frame_equal(review.table(), table)
    (run / "annotations.json").unlink()
    with user_error("file_missing", "annotations.json"):
        Review.open(run)


@pytest.mark.parametrize(
    ("code", "images"), [("image_missing", "nowhere"), ("run_mismatch", "others")]
)
def test_another_photograph_is_refused(run, annotations, tmp_path, code, images):
    (tmp_path / "others").mkdir()
    for name in "ab":
        pixels = np.full((60, 80, 3), 9, np.uint8)
        cv2.imwrite(str(tmp_path / "others" / f"{name}.png"), pixels)
    with user_error(code, "--images" if code == "image_missing" else "a.png"):
        Review.open(run, images=str(tmp_path / images))
    copied = shutil.copytree(annotations.parent / "images", tmp_path / "copied")
    with Review.open(run, images=str(copied)) as review:
        assert review.images[0].path == str(copied / "a.png")


def change_record(**fields):
    def change(run):
        path = run / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def change_option(**fields):
    def change(run):
        options = json.loads((run / "run.json").read_text())["options"]
        change_record(options={**options, **fields})(run)

    return change


def change_part(head=None, **columns):
    """Change every part: fields of its head, and columns of its table (None leaves one out)."""

    def change(run):
        for path in (run / "parts").glob("*.parquet"):
            table = pq.read_table(path)
            ((key, text),) = table.schema.metadata.items()
            about = {**json.loads(text), **(head or {})}
            for name, value in columns.items():
                index = table.schema.names.index(name)
                table = table.remove_column(index)
                if value is not None:
                    table = table.add_column(index, name, pa.array([value] * len(table)))
            pq.write_table(table.replace_schema_metadata({key: json.dumps(about)}), path)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        change_record(images=3),
        change_record(images=[]),
        change_record(images=[{"name": 3}]),
        change_record(class_names=[3]),
        change_record(options=None),
        change_option(size_classes=5),
        change_option(formats=["exe"]),
        change_option(um_per_px="2"),
        change_option(blanks=[3]),
        change_part(head={"height": "60"}),
        change_part(head={"height": 6}),
        change_part(head={"image": None}),
        change_part(score=None),
        change_part(particle="x"),
        change_part(particle=0),
        change_part(**{"class": None}),
        change_part(**{"rle counts": "\x00"}),
        change_part(**{"rle counts": 5}),
        change_part(**{"rle counts": "PT1"}),  # 4800 pixels outside
    ],
)
def test_what_is_not_a_run(run, damage):
    damage(run)
    with user_error("run_invalid"):
        Review.open(run)


def test_a_run_of_fewer_measures_is_measured_again(run):
    with Review.open(run) as review:
        table = review.table()
    change_part(length_method=None)(run)
    with Review.open(run) as review:
        pd.testing.assert_frame_equal(review.table(), table)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_images_lie_below_their_folder(run, tmp_path, name):
    cv2.imwrite(str(tmp_path / "secret.png"), np.zeros((60, 80, 3), np.uint8))
    (tmp_path / "images").mkdir()
    change_part(head={"name": name, "sha256": None})(run)
    with user_error("image_missing"):
        Review.open(run, images=str(tmp_path / "images"))


def test_an_image_that_fails_is_told(run, tmp_path, annotations, capsys):
    images = shutil.copytree(annotations.parent / "images", tmp_path / "images")
    with Review.open(run, images=str(images)) as review:
        (images / "a.png").write_bytes(b"no image")
        output = export(review)
    assert "a.png" in (output / "failed.csv").read_text()
    assert pd.read_csv(output / "summary.csv")["image"].tolist() == ["b.png"]


def test_command(run, capsys):
    with Review.open(run) as review:
        correct(review)
    shutil.copytree(run / "reviewed", run / "ann")
    with Review.open(run, output=run / "ann") as review:
        review.set_class({"a.png": [3]}, "Film", reviewer="ann", version=6)
    capsys.readouterr()
    assert command("review", run, "--export") == 0
    assert "2 of 2 images finished; particles: 4 accepted, 1 rejected" in capsys.readouterr().out
    assert command("review", run, "--statistics") == 0
    assert "any particle" in capsys.readouterr().out
    assert command("review", run, "--agreement", run / "ann") == 0
    assert pd.read_csv(run / "reviewed/agreement_units.csv")["class_other"].tolist().count("Film")
    assert command("review", run, "--um-per-px", 3) == 2
    assert command("review", run, "--statistics", "--output", run / "none") == 2


def test_a_run_opens_from_any_folder(annotations, tmp_path, monkeypatch, capsys):
    shutil.copytree(annotations.parent, tmp_path / "data")
    (tmp_path / "scales.csv").write_text("image,um_per_px\na.png,2\nb.png,2\n")
    (tmp_path / "groups.csv").write_text("image,group\na.png,x\nb.png,y\n")
    (tmp_path / "volumes.csv").write_text("sample,volume\nx,1 L\ny,2 L\n")
    cv2.imwrite(str(tmp_path / "region.png"), np.full((60, 80), 255, np.uint8))
    monkeypatch.chdir(tmp_path)
    code = command(
        *("measure", "--masks", "data/set.json", "--images", "data/images", "--output", "run"),
        *("--calibration", "scales.csv", "--group-by", "groups.csv"),
        *("--sampled-volume", "volumes.csv", "--region", "region.png"),
    )
    assert code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("report", tmp_path / "run") == 0
    capsys.readouterr()
    assert command("review", tmp_path / "run", "--export") == 0
    # No image is finished: there is nothing to train on.
    assert "To train" not in capsys.readouterr().out
    assert not (tmp_path / "run/reviewed/annotations.json").exists()
    report = (tmp_path / "run/report.html").read_text("utf-8")
    assert "is gone" not in report and report.count("data:image/jpeg") > 2
