"""Files made to attack: every command that reads them ends soon, in a sentence, and does no harm.

What a module makes of such files is tested beside it; here are whole commands, in a jail.
"""

import json
import os

import numpy as np
import pytest
from jail import SECRET, run_jailed
from PIL import Image

ANNOTATION = {
    **{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 10], "area": 200},
    **{"iscrowd": 0, "segmentation": [[5, 5, 25, 5, 25, 15, 5, 15]]},
}

# What reads a COCO JSON {json} and the photographs in {photos}.
MEASURE = "measure --masks {json} --images {photos} --um-per-px 2 --output {out}"
COCO = (
    "check {json} --images {photos}",
    "convert --input {json} --images {photos} --output {out}",
    "export-dataset --input {json} --images {photos} --to yolo --output {out}",
    "split --input {json} --images {photos} --shares 0.5,0.5 --output {out}",
    MEASURE,
    "review {json} --images {photos} --export --output {out}",
    'view annotations --output {out} DATASETS.TRAIN ("{json}:{photos}",)',
    "train --config-file quick OUTPUT_DIR {out} DATASETS.TEST () MODEL.DEVICE cpu "
    'DATASETS.TRAIN ("{json}:{photos}",)',
)


@pytest.fixture
def folder(tmp_path):
    """A folder with ``set.json`` and two photographs of 64 x 48 px, beside a secret one."""
    place = tmp_path / "stranger"
    (place / "photos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("photos/a.png", "photos/b.png", f"../{SECRET}"):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(place / name)
    write(place / "set.json", coco())
    return place


def coco(images=({"id": 1, "file_name": "a.png", "width": 64, "height": 48},), **fields):
    """A COCO JSON with one particle on one image."""
    categories = [{"id": 1, "name": "Fiber"}]
    return {"images": images, "categories": categories, "annotations": [ANNOTATION], **fields}


def write(path, content):
    """Write bytes, text, or a document as JSON."""
    if not isinstance(content, (bytes, str)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def run(folder, line):
    """Run a command line in the jail, with the places of ``folder`` in braces."""
    places = {"f": folder, "json": folder / "set.json", "photos": folder / "photos"}
    line = [part.format(**places, out=folder / "out") for part in line.split()]
    return run_jailed(*line, folder=folder)


def refused(folder, line, *names):
    """Run a command line, which must end in a sentence that has all ``names``.

    What the sentence is about may also be left out, which is said then, or be a finding.
    """
    outcome = run(folder, line)
    assert "Traceback" not in outcome.text, outcome
    if line.startswith("check"):
        assert outcome.code == 1, outcome
    elif outcome.code == 0 and line.startswith(("convert", "export-dataset")):
        assert "left out" in outcome.text, outcome
    else:
        assert outcome.code in (2, 3) and outcome.error, outcome
        assert all(name in outcome.error for name in names), outcome


# JSON


FULL = {"size": [46_000, 46_000], "counts": [0, 46_000**2]}
HUGE = ({"id": 1, "file_name": "a.png", "width": 46_000, "height": 46_000},)


@pytest.mark.parametrize(
    "content",
    [
        b'{"images":' + b"[" * 100_000,
        coco(images=({"id": 1, "file_name": "a.png", "width": 10**9, "height": 10**9},)),
        coco(HUGE, annotations=[ANNOTATION | {"segmentation": FULL, "id": n} for n in (1, 2)]),
        coco(annotations=[ANNOTATION | {"segmentation": [[1, 1, 9, 1, 9, 9] * 40_000]}]),
        coco(categories=[{"id": 1, "name": "x" * 10**6}]),
        coco(categories=[{"id": n, "name": f"c{n}"} for n in range(1, 20_000)]),
        coco(images=({"id": 1, "file_name": f"../{SECRET}", "width": 64, "height": 48},)),
    ],
    ids=["deep", "size", "runs", "points", "name", "categories", "outside"],
)
def test_json(folder, content):
    write(folder / "set.json", content)
    for line in COCO:
        refused(folder, line)


def test_masks_that_need_all_memory(folder):
    write(
        folder / "set.json",
        coco(
            HUGE, annotations=[ANNOTATION | {"segmentation": FULL, "id": n} for n in range(1, 500)]
        ),
    )
    refused(folder, "measure --masks {json} --output {out}", "a.png", "memory")


# Pipes and devices, which would be waited for or read without end


@pytest.mark.parametrize("place", ["pipe", "/dev/zero"])
@pytest.mark.parametrize(
    "line",
    [
        "split --input {pipe} --images {photos} --shares 0.5,0.5 --output {out}",
        "split --input {json} --images {photos} --groups {pipe} --output {out}",
        f"{MEASURE} --calibration {{pipe}}",
        "review {f}/pipe.json --images {photos} --export",
        "view annotations --config-file {f}/a.yaml --output {out}",
    ],
)
def test_pipes(folder, place, line):
    os.mkfifo(folder / "pipe")
    os.symlink(place, folder / "pipe.json")
    write(folder / "a.yaml", f"_BASE_: {place}")
    refused(folder, line.replace("{pipe}", str(folder / place)), "a pipe or a device")


# YAML


LAUGHS = "A: &a {x: 1}\n" + "".join(
    f"{n}: &{n} {{{', '.join(f'k{i}: *{m}' for i in range(10))}}}\n"
    for m, n in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content, name",
    [
        ("SEED: !!python/object/apply:os.system [ls]", "python/object"),
        (LAUGHS, "aliases"),
        (LAUGHS.replace("k0:", "<<:"), "aliases"),
        ("A: " + "[" * 50_000, "recursion"),
        ("_BASE_: a.yaml", "derives from itself"),
        ("_BASE_: https://127.0.0.1:9/a.yaml", "expected the path of a file"),
    ],
)
def test_configs(folder, content, name):
    write(folder / "a.yaml", content)
    refused(folder, "view annotations --config-file {f}/a.yaml --output {out}", name)


# Names


def test_names(folder):
    names = [
        "<img src=x onerror=alert(1)>",
        "=1+1",
        "a\nb",
        "\x1b[2J",
        "\udcff",
        "x" * 240,
        "{{7*7}}",
    ]
    (folder / "labels").mkdir()
    labels = np.zeros((48, 64), np.uint8)
    labels[5:15, 5:25] = 1
    for name in names:
        Image.fromarray(labels).save(os.fsencode(folder / "labels" / f"{name}.png"), "PNG")
    outcome = run(folder, "measure --masks {f}/labels --class-name <script>alert(2) --output {out}")
    assert outcome.code == 0, outcome
    page = (folder / "out/report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<script>alert" not in page and "49.png" not in page
    cells = (folder / "out/particles.csv").read_text(encoding="utf-8")
    assert all(f"\n{name}.png," in cells for name in ("'=1+1", "a\\nb", "\\x1b[2J", "\\udcff"))
    assert cells.count("\n") == 1 + len(names)
