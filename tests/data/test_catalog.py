import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from support import user_error

from microplastics.data.catalog import (
    register_builtin,
    register_microplastics_instances,
    resolve_datasets,
)


@pytest.fixture(autouse=True)
def catalogs_as_before():
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    yield
    DatasetCatalog.data, MetadataCatalog.data = before


@pytest.fixture
def without_builtin():
    for name in [name for name in DatasetCatalog if name.startswith("microplastics_")]:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


@pytest.fixture
def paths(tmp_path):
    return _write(tmp_path / "own.json", tmp_path / "images")


def _write(json_file, image_root, names=("Foam", "Fiber")):
    image_root.mkdir(parents=True)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(image_root / "a.png")
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": i + 1,
                "bbox": [4, 4, 8, 8],
                "area": 64,
                "iscrowd": 0,
                "segmentation": [[4, 4, 12, 4, 12, 12, 4, 12]],
            }
            for i in range(len(names))
        ],
    }
    json_file.write_text(json.dumps(data))
    return str(json_file), str(image_root)


def test_metadata_is_there_before_the_data_set_is_loaded(paths):
    register_microplastics_instances("own", *paths)
    metadata = MetadataCatalog.get("own")
    assert (metadata.json_file, metadata.image_root) == paths
    assert metadata.evaluator_type == "coco" and metadata.name == "own"
    assert "thing_classes" not in metadata.__dict__  # nothing was read yet
    assert metadata.thing_classes == ["Foam", "Fiber"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}
    assert metadata.thing_colors == [[0, 114, 178], [213, 94, 0]]
    (image,) = DatasetCatalog.get("own")
    assert [a["category_id"] for a in image["annotations"]] == [0, 1]
    assert image["file_name"] == os.path.join(paths[1], "a.png")


def test_metadata_can_be_listed_copied_and_pickled(paths):
    register_microplastics_instances("own", *paths)
    metadata = MetadataCatalog.get("own")
    for twin in (copy.deepcopy(metadata), pickle.loads(pickle.dumps(metadata))):
        assert twin.thing_classes == ["Foam", "Fiber"]
    assert metadata.get("stuff_classes", "none") == "none"
    with pytest.raises(AttributeError, match="stuff_classes"):
        metadata.stuff_classes  # noqa: B018


def test_registering_again(paths, tmp_path):
    register_microplastics_instances("own", *paths)
    register_microplastics_instances("own", os.path.relpath(paths[0]), paths[1] + "/")
    with user_error("dataset_conflict", "'own'", paths[0], "x.json"):
        register_microplastics_instances("own", "x.json", paths[1])
    DatasetCatalog.register("foreign", lambda: [])
    with user_error("dataset_conflict", "'foreign'"):
        register_microplastics_instances("foreign", *paths)


def test_attributes_set_before_the_registration_are_kept(paths):
    MetadataCatalog.get("own").set(thing_classes=["Foam", "Fiber"], thing_colors=[[1] * 3] * 2)
    register_microplastics_instances("own", *paths)
    DatasetCatalog.get("own")
    assert MetadataCatalog.get("own").thing_colors == [[1] * 3] * 2
    MetadataCatalog.get("other").json_file = "elsewhere.json"
    with user_error("dataset_conflict", "'other'", "elsewhere.json"):
        register_microplastics_instances("other", *paths)


def test_classes_that_are_not_those_of_the_json(paths):
    register_microplastics_instances("own", *paths)
    MetadataCatalog.get("own").thing_classes = ["Fiber"]
    with user_error("classes_mismatch", paths[0], "'own' is ['Fiber']"):
        DatasetCatalog.get("own")


def test_a_missing_json_fails_only_when_it_is_needed(tmp_path):
    register_microplastics_instances("own", str(tmp_path / "none.json"), str(tmp_path))
    with user_error("file_missing", "none.json"):
        MetadataCatalog.get("own").thing_classes  # noqa: B018
    with user_error("file_missing", "none.json"):
        DatasetCatalog.get("own")
    assert MetadataCatalog.get("own").as_dict()["evaluator_type"] == "coco"


def test_builtin_names(tmp_path, monkeypatch, without_builtin):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_builtin()
    folder = tmp_path / "microplastics"
    metadata = MetadataCatalog.get("microplastics_val")
    assert metadata.json_file == str(folder / "annotations/instances_val.json")
    assert metadata.image_root == str(folder / "val")
    assert metadata.thing_classes == ["Fiber", "Fragment", "Film"]  # while there is no JSON
    assert metadata.thing_colors == [[213, 94, 0], [0, 114, 178], [0, 158, 115]]
    with user_error("file_missing", "instances_val.json", "DETECTRON2_DATASETS"):
        DatasetCatalog.get("microplastics_val")
    _write(folder / "annotations/instances_val.json", folder / "val")
    assert len(DatasetCatalog.get("microplastics_val")) == 1
    assert metadata.thing_classes == ["Foam", "Fiber"]
    render = f"microplastics render dataset --output {tmp_path}/microplastics_synthetic"
    with user_error("file_missing", render):
        DatasetCatalog.get("microplastics_synthetic_train")


def test_builtin_names_leave_those_of_others(monkeypatch, caplog, without_builtin):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    DatasetCatalog.register("microplastics_test", lambda: [])
    register_builtin()
    path = "datasets/microplastics_synthetic/annotations/instances_train.json"
    assert MetadataCatalog.get("microplastics_synthetic_train").json_file == path
    assert "'microplastics_test' is registered by other code" in caplog.messages[0]
    assert DatasetCatalog.get("microplastics_test") == []


def test_importing_reads_nothing(tmp_path):
    for split in ("train", "val", "test"):
        path = tmp_path / f"microplastics/annotations/instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{broken")
    code = (
        "import microplastics; from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "print(sorted(n for n in DatasetCatalog if n.startswith('microplastics')))\n"
        "try:\n    MetadataCatalog.get('microplastics_train').thing_classes\n"
        "except microplastics.UserError as error: print(error)"
    )
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.count("microplastics_synthetic_") == 3 and "is not JSON" in output


def test_entries_of_datasets_train(paths, tmp_path):
    json_file, image_root = paths
    register_microplastics_instances("own", *paths)
    entry = f"{json_file}:{image_root}"
    assert resolve_datasets(["own", entry]) == ("own", entry) == resolve_datasets(["own", entry])
    assert len(DatasetCatalog.get(entry)) == 1
    assert MetadataCatalog.get(entry).thing_classes == ["Foam", "Fiber"]
    assert resolve_datasets(entry) == (entry,)
    # Roboflow lays the JSON beside the images.
    beside = os.path.join(image_root, "_annotations.coco.json")
    os.rename(json_file, beside)
    assert resolve_datasets([beside]) == (beside,)
    assert MetadataCatalog.get(beside).image_root == image_root


def test_entry_relative_to_the_working_folder(paths, monkeypatch):
    monkeypatch.chdir(os.path.dirname(paths[0]))
    assert resolve_datasets(["own.json:images"]) == ("own.json:images",)
    assert resolve_datasets(["own.json"]) == ("own.json",)
    assert MetadataCatalog.get("own.json").image_root == "."


def test_unknown_entries(paths):
    register_microplastics_instances("own_train", *paths)
    with user_error("dataset_unknown", "'own_trian'", "Did you mean 'own_train'?"):
        resolve_datasets(["own_trian"])
    (entry,) = resolve_datasets([f"x.json:{paths[1]}"])
    with user_error("file_missing", "x.json"):
        DatasetCatalog.get(entry)
    with user_error("dataset_unknown"):
        resolve_datasets([""])
    folder = os.path.dirname(paths[0])  # such as an export of another tool
    with user_error("dataset_unknown", f"microplastics convert --input {folder}"):
        resolve_datasets([folder])
