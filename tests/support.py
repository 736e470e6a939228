"""What fixtures and tests share."""

import contextlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from microplastics.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

# The quick config, shrunk until an iteration takes a tenth of a second.
TINY = [
    *("MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.RPN.CONV_DIMS", "[16]"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
    *("MODEL.DEVICE", "cpu"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)"),
    *("INPUT.MIN_SIZE_TEST", "96"),
    *("DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.MAX_ITER", "6"),
    *("SOLVER.CHECKPOINT_PERIOD", "3"),
    *("TEST.EVAL_PERIOD", "3"),
    *("TEST.DETECTIONS_PER_IMAGE", "20"),
    *("TEST.PICTURES", "0"),
]


def dataset_entry(folder, split):
    """``JSON:IMAGES`` of one split of a rendered set."""
    return f"{folder}/annotations/instances_{split}.json:{folder}/{split}"


def barred_image(height, width, seed=0):
    """Dim noise with bright bars, uint8 BGR."""
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    for _ in range(6):
        start = tuple(rng.integers(0, (width, height)).tolist())
        end = tuple(rng.integers(0, (width, height)).tolist())
        cv2.line(array, start, end, (250, 240, 200), 5)
    return array


@contextlib.contextmanager
def chromium():
    """A Chromium driven by Playwright, whose pages may ask nobody but this machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("There is no Chromium on this machine: pages are not tested.")
    quiet = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=quiet)
        yield started
        started.close()


def find_barriers(tab):
    """Run axe-core on a page of :func:`chromium`, in light and dark: schemes, rules, elements.

    The inner parts of Bokeh's plots are left out, which take it a minute.
    """
    axe = pytest.importorskip("axe_playwright_python", reason="axe is not installed")
    (script,) = Path(axe.__file__).parent.rglob("axe.min.js")
    found = []
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        tab.evaluate(script.read_text(encoding="utf-8"))
        for each in tab.evaluate("axe.run({exclude: ['.plot > div']})")["violations"]:
            found += [(scheme, each["id"], node["html"][:300]) for node in each["nodes"]]
    return found


@contextlib.contextmanager
def user_error(code, *names):
    """Expects a ``UserError`` of this code whose message holds every one of ``names``."""
    with pytest.raises(UserError) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    for name in names:
        assert str(name) in str(caught.value)
