"""microplastics/engine/evaluate.py."""

import json

import numpy as np
import torch
from PIL import Image

from microplastics.data.images import read_image
from microplastics.data.loader import check_datasets
from microplastics.engine import Trainer
from microplastics.engine.evaluate import _test_with_augmentation


def test_test_time_augmentation_sees_16_bit_images_as_prediction_does(
    tiny_cfg, rendered, tmp_path, monkeypatch
):
    data = json.loads((rendered / "annotations" / "instances_val.json").read_text())
    for image in data["images"]:
        grey = np.asarray(Image.open(rendered / "val" / image["file_name"]).convert("L"))
        image["file_name"] = f"{image['id']}.png"
        Image.fromarray(grey.astype(np.uint16) * 200).save(tmp_path / image["file_name"])
    (tmp_path / "deep.json").write_text(json.dumps(data))
    cfg = tiny_cfg(
        *("DATASETS.TEST", repr((f"{tmp_path}/deep.json:{tmp_path}",))),
        *("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(96,)"),
    )
    cfg = check_datasets(cfg)
    seen = []

    def record(_model, loader, _evaluator):
        seen.extend(item for batch in loader for item in batch)

    monkeypatch.setitem(_test_with_augmentation.__globals__, "inference_on_dataset", record)
    _test_with_augmentation(cfg, Trainer.build_model(cfg), Trainer)
    assert len(seen) == len(data["images"])
    for item in seen:
        expected = torch.from_numpy(read_image(item["file_name"]).transpose(2, 0, 1).copy())
        assert torch.equal(item["image"], expected)
