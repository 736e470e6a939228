"""tools/draw_augmentations.py."""

import numpy as np
from PIL import Image
from support import ROOT, dataset_entry

from microplastics.config import get_cfg

QUICK = ("--config-file", str(ROOT / "configs" / "microplastics_quick.yaml"))


def test_every_augmentation_has_a_panel(tool_here, rendered, tmp_path):
    path = tmp_path / "new" / "sheet.png"
    train = ("DATASETS.TRAIN", repr((dataset_entry(rendered, "train"),)))
    size = ("INPUT.MIN_SIZE_TRAIN", "(96,)")
    options = ("--output", path, "--side", 64, *train, *size)
    done = tool_here("draw_augmentations", *QUICK, *options)
    assert done.returncode == 0, done.stderr
    count = 1 + len(get_cfg().INPUT.AUG)
    assert f"{count} panels in {path}" in done.stdout
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 4 * 64 + 3 * 8
    assert sheet.shape[0] > -(-count // 4) * 64


def test_mistakes_are_sentences(tool_here, rendered, tmp_path):
    train = ("DATASETS.TRAIN", repr((dataset_entry(rendered, "train"),)))
    done = tool_here("draw_augmentations", *QUICK, "--output", tmp_path / "a.jpg", "--side", 3)
    assert done.returncode == 2 and "--side is 3" in done.stderr
    hue = ("INPUT.AUG.HUE.MAX_SHIFT", "200.0")
    done = tool_here("draw_augmentations", *QUICK, "--output", tmp_path / "a.jpg", *train, *hue)
    assert done.returncode == 2 and "INPUT.AUG.HUE.MAX_SHIFT is 200.0" in done.stderr
    assert not list(tmp_path.iterdir())
