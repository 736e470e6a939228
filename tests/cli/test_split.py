import json
import re
import shlex

import cv2
import numpy as np
import pytest

CATEGORIES = [{"id": 1, "name": "Fiber", "color": "red"}, {"id": 2, "name": "Film"}]


def annotation(id_, image_id, category_id, **extra):
    x = id_ % 20
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, 4, 10, 10],
        "area": 100,
        "iscrowd": 0,
        "segmentation": [[x, 4, x + 10, 4, x + 10, 14, x, 14]],
        **extra,
    }


def write_set(folder, names, per_image=2, first=1, categories=CATEGORIES):
    """Noise images and their annotations; every fourth image is blank."""
    images, annotations = [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        rng = np.random.default_rng(first * 1000 + n)
        pixels = cv2.resize(rng.integers(0, 256, (8, 10, 3), np.uint8), (40, 32))
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / name), pixels)
        images.append(
            {"id": 10 * n + first, "file_name": name, "width": 40, "height": 32, "lab": 7}
        )
        for k in range(per_image if n % 4 else 0):
            id_ = len(annotations) + first
            annotations.append(annotation(id_, images[-1]["id"], 1 + (n + k) % 2, by="eve"))
    data = {"info": {"year": 2024}, "images": images, "annotations": annotations}
    path = folder / "all.json"
    path.write_text(json.dumps({**data, "categories": categories}))
    return path


@pytest.fixture
def filters(tmp_path):
    """24 images of 8 filters."""
    return write_set(tmp_path, [f"F{n // 3}_{n % 3}.png" for n in range(24)])


@pytest.fixture
def split(cli, filters, tmp_path):
    def call(*options, output="out"):
        images = () if "--images" in options else ("--images", tmp_path / "images")
        where = (*images, "--output", tmp_path / output)
        return cli("split", "--input", filters, *where, *options)

    return call


def load(path):
    return json.loads(path.read_text())


def test_filters_stay_whole_and_entries_as_they_are(split, filters, tmp_path):
    result = split("--group-regex", r"^(F\d+)_", "--shares", "0.5,0.25,0.25", "--seed", "3")
    assert result.returncode == 0, result.stderr
    manifest = load(tmp_path / "out/splits.json")
    whole, seen = load(filters), []
    for name in ("train", "val", "test"):
        part = load(tmp_path / f"out/annotations/instances_{name}.json")
        assert part["categories"] == CATEGORIES and part["info"] == {"year": 2024}
        ids = {image["id"] for image in part["images"]}
        assert part["annotations"] == [a for a in whole["annotations"] if a["image_id"] in ids]
        names = [image["file_name"] for image in part["images"]]
        seen += part["images"]
        figures = manifest["splits"][name]
        assert figures["images"] == len(names) == 3 * figures["groups"]
        assert sum(figures["particles"].values()) == len(part["annotations"])
        assert figures["blanks"] == len(ids - {a["image_id"] for a in part["annotations"]})
        for file_name in names:
            place = {"group": file_name.partition("_")[0], "split": name}
            assert manifest["images"][file_name] == place
    assert sorted(seen, key=lambda image: image["id"]) == whole["images"]
    assert manifest["groups"] == 8 and manifest["seed"] == 3 and manifest["notes"] == []
    assert manifest["splits"]["train"]["groups"] == 4 and manifest["deviation"] < 0.1
    assert manifest["settings"]["group_regex"] == r"^(F\d+)_"
    entry = f'("{tmp_path}/out/annotations/instances_train.json:{tmp_path}/images",)'
    assert shlex.split(result.stdout.splitlines()[-3]) == ["DATASETS.TRAIN", entry]
    assert re.search(r"\| train +\| +12 \| +4 \| +3 \| +9 \| +9 \|", result.stdout), result.stdout


def test_the_same_settings_again_give_the_same_files_and_others_are_refused(split, tmp_path):
    group = ("--group-regex", r"^(F\d+)_")
    assert split(*group).returncode == 0
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json")}
    assert split(*group).returncode == 0
    assert files == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json")}
    result = split(*group, "--seed", "1")
    assert result.returncode == 2
    assert "holds splits made with other settings (seed); choose another --output" in result.stderr
    (tmp_path / "out/splits.json").unlink()
    (tmp_path / "out/annotations/instances_test.json").write_text("{}")
    result = split(*group)
    assert result.returncode == 2 and "without a splits.json" in result.stderr
    assert files.keys() - set((tmp_path / "out").rglob("*")) == {tmp_path / "out/splits.json"}


def test_a_run_that_was_stopped_is_finished(split, tmp_path):
    assert split("--link").returncode == 0
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    (tmp_path / "out/annotations/instances_test.json").unlink()
    assert split("--link").returncode == 0
    assert files == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}


def test_a_changed_input_moves_no_image_in_silence(split, filters, tmp_path):
    assert split().returncode == 0
    before = load(tmp_path / "out/splits.json")
    data = load(filters)
    data["annotations"][0]["by"] = "adam"  # of no influence on the splits
    filters.write_text(json.dumps(data))
    assert split().returncode == 0
    after = load(tmp_path / "out/splits.json")
    assert after["images"] == before["images"] and after["inputs"] != before["inputs"]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] < 150]
    filters.write_text(json.dumps(data))
    result = split()
    assert result.returncode == 2 and "splits of an earlier input" in result.stderr
    assert load(tmp_path / "out/splits.json") == after


def test_entries_of_one_file_are_one_group(split, filters, tmp_path):
    data = load(filters)
    again = [
        {**i, "id": 1000 + i["id"], "file_name": f"./{i['file_name']}"} for i in data["images"]
    ]
    data["images"] += again
    filters.write_text(json.dumps(data))
    assert split().returncode == 0
    images = load(tmp_path / "out/splits.json")["images"]
    assert all(images[name] == images[f"./{name}"] for name in images if name[0] == "F")


def test_folds_with_linked_images_can_be_loaded(split, tmp_path):
    from microplastics.data.coco import check_instances

    result = split("--folds", "4", "--group-regex", r"^(F\d+)_", "--link")
    assert result.returncode == 0, result.stderr
    commands = [
        shlex.split(line)
        for line in result.stdout.splitlines()
        if line.startswith("microplastics ")
    ]
    assert len(commands) == 4 and commands[2][-1] == "output/fold3"
    validated = []
    for command in commands:
        parts = []
        for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
            (entry,) = eval(command[command.index(key) + 1])
            json_file, images = entry.split(":")
            assert images == str(tmp_path / "out/images")
            checked = check_instances(json_file, images)
            assert len(checked.images) in (6, 18) and len(checked.classes) == 2
            parts.append({image["file_name"] for image in load(tmp_path / json_file)["images"]})
        assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 24
        validated += parts[1]
    assert len(validated) == len(set(validated)) == 24


def test_copies_lie_in_the_folders_of_their_splits(split, tmp_path):
    assert split("--copy", "--shares", "0.5,0.5").returncode == 0
    for name in ("train", "val"):
        part = load(tmp_path / f"out/annotations/instances_{name}.json")
        for image in part["images"]:
            copy = tmp_path / "out" / name / image["file_name"]
            assert copy.read_bytes() == (tmp_path / "images" / image["file_name"]).read_bytes()
    assert not (tmp_path / "out/annotations/instances_test.json").exists()


def test_without_groups_a_warning_says_what_may_leak(split):
    result = split()
    assert result.returncode == 0
    assert "warning: the images are split one by one, without groups" in result.stdout


def test_a_table_of_groups_as_excel_writes_it(split, tmp_path):
    rows = [f"F{n // 3}_{n % 3};Probe {n // 6}" for n in range(24)]
    (tmp_path / "g.csv").write_text("\ufeffImage;Group\r\n" + "\r\n".join(rows), "utf-8")
    assert split("--groups", tmp_path / "g.csv", "--folds", "2").returncode == 0
    images = load(tmp_path / "out/splits.json")["images"]
    assert images["F7_2.png"]["group"] == "Probe 3" and images["F6_0.png"] == images["F7_2.png"]


def test_several_files_are_put_together(cli, tmp_path):
    one = write_set(tmp_path / "one", [f"{n}.png" for n in range(5)])
    two = write_set(tmp_path / "two", [f"{n}.png" for n in range(4)], per_image=1, first=3)
    images = ("--images", tmp_path / "one/images", tmp_path / "two/images")
    options = ("--output", tmp_path / "out", "--shares", "0.5,0.5")
    result = cli("split", "--input", one, two, *images, *options)
    assert result.returncode == 0, result.stderr
    parts = [load(tmp_path / f"out/annotations/instances_{name}.json") for name in ("train", "val")]
    merged = [image for part in parts for image in part["images"]]
    names = {image["file_name"]: image["id"] for image in merged}
    assert sorted(names.values()) == list(range(1, 10))
    assert names["one/images/4.png"] == 5 and names["two/images/0.png"] == 6
    annotations = [entry for part in parts for entry in part["annotations"]]
    assert sorted(entry["id"] for entry in annotations) == list(range(1, 10))
    of_last = [entry for entry in annotations if entry["image_id"] == names["two/images/3.png"]]
    assert [entry["by"] for entry in of_last] == ["eve"]

    other = write_set(tmp_path / "three", ["a.png"], categories=CATEGORIES[::-1][:1])
    images = ("--images", tmp_path / "one/images", tmp_path / "three/images")
    options = ("--output", tmp_path / "wrong")
    result = cli("split", "--input", one, other, *images, *options)
    assert result.returncode == 2 and "give all files the same ids and names" in result.stderr
    same = ("--images", tmp_path / "one/images")
    result = cli("split", "--input", one, one, *same, *options)
    assert result.returncode == 2 and "given twice" in result.stderr


def test_copies_of_one_image_are_one_group(cli, tmp_path):
    copies = [f"{n // 3}_jpg.rf.{'0123456789abcdef'[n] * 32}.jpg" for n in range(12)]
    path = write_set(tmp_path, copies)
    command = ("split", "--input", path, "--images", tmp_path / "images", "--output")
    result = cli(*command, tmp_path / "out")
    assert "8 groups were joined to others: Roboflow's copies of one image" in result.stdout
    images = load(tmp_path / "out/splits.json")["images"]
    for n in range(0, 12, 3):
        assert len({images[name]["split"] for name in copies[n : n + 3]}) == 1
    assert len({images[name]["group"] for name in copies}) == 4
    cli(*command, tmp_path / "singly", "--split-roboflow-copies")
    assert load(tmp_path / "singly/splits.json")["groups"] == 12


def test_copies_of_one_photograph_join_the_groups_of_the_regex(split, tmp_path):
    flipped = cv2.flip(cv2.imread(str(tmp_path / "images/F0_0.png")), 1)
    cv2.imwrite(str(tmp_path / "images/F5_1.png"), flipped)
    result = split("--by-similarity", "--group-regex", r"^(F\d+)_")
    assert "1 groups were joined to others: the same photograph by its pixels" in result.stdout
    manifest = load(tmp_path / "out/splits.json")
    assert manifest["groups"] == 7 and manifest["images"]["F5_2.png"]["group"] == "F0"


def test_external_folds_are_taken_as_they_are(split, tmp_path):
    lists = [tmp_path / f"fold{k}.txt" for k in range(3)]
    for k, path in enumerate(lists):
        path.write_text("\n".join(f"elsewhere/F{n // 3}_{n % 3}" for n in range(k, 24, 3)))
    result = split("--fold-lists", *lists, "--group-regex", r"^(F\d+)_")
    assert result.returncode == 0, result.stderr
    assert "warning: the fold lists have 8 groups in several folds: 'F0', 'F1'" in result.stdout
    val = load(tmp_path / "out/fold2/annotations/instances_val.json")
    assert [image["file_name"] for image in val["images"]] == [f"F{n}_1.png" for n in range(8)]
    assert load(tmp_path / "out/splits.json")["images"]["F3_2.png"]["fold"] == "fold3"

    rows = [f"F{n // 3}_{n % 3}.png,{10 if n % 2 else 9}" for n in range(24)]
    (tmp_path / "folds.csv").write_text("\n".join(["image,fold", *rows]))
    assert split("--fold-lists", tmp_path / "folds.csv", output="csv").returncode == 0
    val = load(tmp_path / "csv/fold1/annotations/instances_val.json")
    assert [image["file_name"] for image in val["images"]][:2] == ["F0_0.png", "F0_2.png"]

    whole = [path.read_text() for path in lists]
    lists[0].write_text("\n")
    lists[1].write_text("\n".join(whole[:2]))
    result = split("--fold-lists", *lists, output="wrong")
    assert result.returncode == 2 and "gives images to 2 folds" in result.stderr
    lists[1].write_text(whole[1])
    lists[0].write_text("F0_0\nF9_9\n")
    result = split("--fold-lists", *lists, output="wrong")
    assert result.returncode == 2 and "1 names match no image" in result.stderr
    assert "'F9_9'" in result.stderr
    lists[0].write_text("F0_0\n")
    result = split("--fold-lists", *lists, output="wrong")
    assert "7 names are missing ('F1_0.png'" in result.stderr
    lists[0].write_text("elsewhere/F0_1\n")
    result = split("--fold-lists", *lists, output="wrong")
    assert (
        "gives 'F0_1.png' two folds, '1' and '2'" in result.stderr
        and not (tmp_path / "wrong").exists()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shares", "0.7,0.4"), "--shares is 0.7, 0.4"),
        (("--shares", "0.4,0.2,0.2,0.2"), "--shares is 0.4, 0.2, 0.2, 0.2"),
        (("--shares", "half"), "'half' is not a list of numbers"),
        (("--folds", "25"), "The 24 groups are fewer than the 25 splits"),
        (("--folds", "1"), "1 is not in the range x>=2"),
        (("--folds", "3", "--shares", "0.5,0.5"), "--shares and --folds exclude each other"),
        (("--group-regex", "F"), "has 0 capture groups"),
        (("--group-regex", r"^(G\d+)"), "'F0_0.png' does not match"),
        (("--groups", "none.csv"), "Cannot read none.csv"),
        (("--seed", "-1"), "-1 is not in the range x>=0"),
        (("--images", "a", "b"), "--images names 2 folders for 1 annotation files"),
        (("--images", "nowhere"), "The image folder nowhere"),
    ],
)
def test_mistakes_end_in_a_sentence_and_write_nothing(split, tmp_path, options, words):
    result = split(*options)
    assert result.returncode == 2 and words in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_neither_inputs_nor_foreign_files_are_overwritten(split, filters, tmp_path, cli):
    annotations = tmp_path / "own/annotations"
    annotations.mkdir(parents=True)
    filters.rename(annotations / "instances_train.json")
    before = (annotations / "instances_train.json").read_bytes()
    command = ("--input", annotations / "instances_train.json", "--images", tmp_path / "images")
    result = cli("split", *command, "--output", tmp_path / "own")
    assert result.returncode == 2 and "without a splits.json" in result.stderr
    assert (annotations / "instances_train.json").read_bytes() == before
    assert list(annotations.iterdir()) == [annotations / "instances_train.json"]


def test_bad_annotations_are_refused_first(split, filters, tmp_path):
    data = load(filters)
    data["annotations"][3]["id"] = 0
    filters.write_text(json.dumps(data))
    result = split()
    assert result.returncode == 2 and "annotations with id 0" in result.stderr
    assert not (tmp_path / "out").exists()
