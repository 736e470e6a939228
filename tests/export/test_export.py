"""Exported models beside the predictor, and the example of docs/export.md."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys

import cv2
import detectron2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from detectron2.structures import ROIMasks
from support import ROOT, TINY, user_error
from support import barred_image as image

import microplastics
from microplastics.config import load_config
from microplastics.engine.checkpoint import TrainingCheckpointer
from microplastics.engine.trainer import Trainer
from microplastics.export import export
from microplastics.export.export import ExportNetwork, export_model, to_predictions
from microplastics.inference.predictor import Predictor, read_input
from microplastics.utils.errors import UserError

NAMES = ["Fiber", "Fragment", "Film"]
# Thin, and with both rules of ROIAlign's sampling.
OPTS = (
    *("DATASETS.TEST", "()", "INPUT.MAX_SIZE_TEST", "160"),
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", "0", "TEST.DETECTIONS_PER_IMAGE", "60"),
)
SIZES = [(96, 96), (60, 130), (300, 200), (97, 101), (40, 400)]
SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts"}


def make_checkpoint(folder, *opts):
    """A tiny seeded model whose scores spread, as training writes it."""
    cfg = load_config(f"{ROOT}/configs/microplastics_quick.yaml", [*TINY, *OPTS, *opts])
    cfg.OUTPUT_DIR = str(folder)
    torch.manual_seed(5)
    model = Trainer.build_model(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    heads = model.roi_heads
    weight = torch.nn.init.normal_(heads.box_predictor.cls_score.weight, std=0.15)
    # What all boxes have in common must not choose the class of all.
    weight.data -= weight.data.mean(dim=1, keepdim=True)
    if heads.mask_on:
        torch.nn.init.normal_(heads.mask_head.predictor.weight, std=0.5)
    TrainingCheckpointer(model, cfg, NAMES[: cfg.MODEL.ROI_HEADS.NUM_CLASSES]).save("model")
    return str(folder / "model.pth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor.from_checkpoint(make_checkpoint(folder))


@pytest.fixture(scope="module")
def exports(folder, predictor):
    """Path and description of an exported file of any input size, by format."""
    paths = {name: folder / f"{name}{suffix}" for name, suffix in SUFFIXES.items()}
    return {name: (path, export_model(predictor, path, name)) for name, path in paths.items()}


@pytest.fixture(params=["onnx", "torchscript"])
def exported(request, exports):
    """Format, path and description of one of them."""
    return request.param, *exports[request.param]


def load(path):
    """The exported file as a function of one tensor."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: [torch.from_numpy(y) for y in session.run(None, {"image": x.numpy()})]
    return torch.jit.load(path)


def assert_same(found, expected):
    """Boxes within 1e-3 px, scores within 1e-5, and hardly a pixel of the masks apart."""
    assert len(found) == len(expected) and found.image_size == expected.image_size
    boxes, others = found.pred_boxes.tensor, expected.pred_boxes.tensor
    torch.testing.assert_close(boxes, others, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert found.has("pred_masks") == expected.has("pred_masks")
    if found.has("pred_masks"):
        mine, theirs = (each.pred_masks.to_bitmasks() for each in (found, expected))
        assert (mine != theirs).sum() <= 1e-3 * theirs.sum() + 1


@pytest.mark.parametrize("height, width", SIZES)
def test_finds_what_the_predictor_finds_at_any_size(exported, predictor, height, width):
    picture = image(height, width)
    expected = predictor(picture)
    outputs = load(exported[1])(read_input(picture, predictor.cfg)[0])
    assert len(expected) > 3 and len(set(expected.pred_classes.tolist())) > 1
    assert_same(to_predictions(outputs, (height, width)), expected)


@pytest.mark.parametrize("file_format", ["onnx", "torchscript"])
def test_images_without_a_detection(predictor, tmp_path, file_format):
    pictures = [image(96, 96, seed) for seed in range(4)]
    best = sorted(float(predictor(picture).scores.max()) for picture in pictures)
    assert best[0] < best[-1] - 1e-3
    path = predictor.cfg.MODEL.WEIGHTS
    strict = Predictor.from_checkpoint(path, score_threshold=(best[0] + best[-1]) / 2)
    output = tmp_path / f"m{SUFFIXES[file_format]}"
    export_model(strict, output, file_format)
    run, counts = load(output), []
    for picture in pictures:
        outputs = run(read_input(picture, predictor.cfg, 1.0)[0])
        found = to_predictions(outputs, (96, 96))
        assert_same(found, strict(picture))
        assert outputs[3].shape == (len(found), 1, 28, 28)
        counts.append(len(found))
    assert 0 in counts and max(counts) > 0


def test_description(exported, predictor):
    file_format, path, about = exported
    content = path.read_bytes()
    assert about == json.loads(path.with_suffix(".json").read_text())
    assert about["file_sha256"] == hashlib.sha256(content).hexdigest()
    if file_format == "onnx":
        (entry,) = onnx.load(path).metadata_props
        inside = json.loads(entry.value)
    else:
        extra = {export.ABOUT_FILE: ""}
        torch.jit.load(io.BytesIO(content), _extra_files=extra)
        inside = json.loads(extra[export.ABOUT_FILE])
    assert inside == {key: value for key, value in about.items() if key != "file_sha256"}
    assert (about["file"], about["format"]) == (path.name, file_format)
    assert about["microplastics"] == microplastics.__version__
    assert about["detectron2"] == detectron2.__version__
    assert about["torchvision"] == torchvision.__version__
    weights = open(predictor.cfg.MODEL.WEIGHTS, "rb").read()
    assert about["checkpoint_sha256"] == hashlib.sha256(weights).hexdigest()
    assert about["class_names"] == NAMES
    assert about["score_thresholds"] == dict.fromkeys(NAMES, 0.05)
    assert about["input"]["shape"] == [3, "height", "width"]
    assert (about["resize"]["min_size"], about["resize"]["max_size"]) == (96, 160)
    assert about["inside_the_model"]["padding"]["multiple_of"] == 32
    np.testing.assert_allclose(
        about["inside_the_model"]["pixel_mean"], predictor.cfg.MODEL.PIXEL_MEAN, rtol=1e-6
    )
    check = about["check"]
    assert check["detections"] > 3 and check["unmatched"] == 0 and check["scores"] < 1e-5


def test_the_declared_inputs_and_outputs_are_the_true_ones(exported):
    file_format, path, about = exported
    if file_format == "torchscript":
        # One that names no device can be moved to another.
        assert 'torch.device("' not in torch.jit.load(path).code
        return
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    types = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}
    (given,) = session.get_inputs()
    assert (given.name, types[given.type]) == (about["input"]["name"], about["input"]["dtype"])
    assert given.shape == about["input"]["shape"]
    for output, declared in zip(session.get_outputs(), about["outputs"], strict=True):
        assert (output.name, types[output.type]) == (declared["name"], declared["dtype"])
        assert output.shape[:1] == declared["shape"][:1]
        assert len(output.shape) == len(declared["shape"])


def test_example_of_the_docs_runs_without_torch(predictor, exports, tmp_path):
    check_example(predictor, exports["onnx"][0], tmp_path)


def test_masks_in_boxes_of_their_own(tmp_path):
    grown = ("MODEL.ROI_HEADS.NAME", "ParticleROIHeads", "MODEL.ROI_MASK_HEAD.BOX_SCALE", "1.5")
    predictor = Predictor.from_checkpoint(make_checkpoint(tmp_path, *grown))
    about = export_model(predictor, tmp_path / "m.onnx", "onnx")
    assert [output["name"] for output in about["outputs"]][3:] == ["masks", "mask_boxes", "size"]
    check_example(predictor, tmp_path / "m.onnx", tmp_path)


def test_masks_that_a_reader_could_not_paste_are_refused(predictor, tmp_path, monkeypatch):
    class OfAnotherKind(ROIMasks):
        pass

    heads = predictor.model.roi_heads
    inference = heads.forward_with_given_boxes

    def of_another_kind(features, found):
        (result,) = inference(features, found)
        result.pred_masks = OfAnotherKind(result.pred_masks[:, 0])
        return [result]

    monkeypatch.setattr(heads, "forward_with_given_boxes", of_another_kind)
    with user_error("export_unsupported", "OfAnotherKind"):
        export_model(predictor, tmp_path / "m.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def check_example(predictor, path, tmp_path):
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "argv" in block
    )
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    guard = (
        "import sys, numpy as np\n"
        "for name in ('torch', 'torchvision', 'detectron2', 'microplastics', 'cv2'):\n"
        "    sys.modules[name] = None\n"
        "import example\n"
        "session, about = example.load(sys.argv[1])\n"
        "for path in sys.argv[2:]:\n"
        "    boxes, scores, classes, masks = example.detect(session, about, path)\n"
        "    pixels = np.concatenate([crop.ravel() for crop, _ in masks])\n"
        "    places = [(*place, *crop.shape) for crop, place in masks]\n"
        "    np.savez(path + '.npz', boxes=boxes, scores=scores, classes=classes, pixels=pixels,\n"
        "             places=places)\n"
    )
    pictures = {str(tmp_path / f"{h}x{w}.png"): image(h, w) for h, w in SIZES}
    for name, picture in pictures.items():
        cv2.imwrite(name, picture)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", guard, str(path), *pictures]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=120)
    for name, picture in pictures.items():
        expected, found = predictor(picture), np.load(f"{name}.npz")
        boxes, masks = expected.pred_boxes.tensor.numpy(), expected.pred_masks
        np.testing.assert_allclose(found["boxes"], boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(found["scores"], expected.scores.numpy(), rtol=0, atol=1e-5)
        assert found["classes"].tolist() == [NAMES[k] for k in expected.pred_classes]
        start = differing = pixels = 0
        for (left, top, rows, columns), theirs in zip(found["places"], masks, strict=True):
            mine = np.zeros(expected.image_size, dtype=bool)
            crop = found["pixels"][start : start + rows * columns].reshape(rows, columns)
            mine[top : top + rows, left : left + columns] = crop
            start += rows * columns
            differing += np.count_nonzero(mine != theirs)
            pixels += np.count_nonzero(theirs)
        assert differing <= 1e-3 * pixels + 1


VARIANTS = {
    "agnostic": ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True")
    + ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True"),
    "one level": ("MODEL.ROI_HEADS.IN_FEATURES", "['p3']", "MODEL.RPN.IN_FEATURES", "['p3']")
    + ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32]]"),
    "first ROIAlign": ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign")
    + ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign"),
    "RGB, batch norm": ("INPUT.FORMAT", "RGB", "MODEL.FPN.NORM", "BN"),
    "no masks": ("MODEL.MASK_ON", "False"),
    "few": ("MODEL.RPN.PRE_NMS_TOPK_TEST", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "30")
    + ("TEST.DETECTIONS_PER_IMAGE", "4", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "12"),
    "one class": ("MODEL.ROI_HEADS.NUM_CLASSES", "1"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_network_is_the_model_of_any_config(tmp_path, variant):
    names = NAMES[:1] if variant == "one class" else NAMES
    thresholds = dict.fromkeys(names, 0.1) | {names[0]: 0.3}
    path = make_checkpoint(tmp_path, *VARIANTS[variant])
    predictor = Predictor.from_checkpoint(path, score_threshold=thresholds)
    network = ExportNetwork(predictor)
    for size in SIZES[:3]:
        picture = image(*size)
        with torch.inference_mode():
            outputs = network(read_input(picture, predictor.cfg)[0])
        expected = predictor(picture)
        assert len(expected) > 2
        assert_same(to_predictions(outputs, size), expected)


def test_onnx_of_one_size_takes_no_other(predictor, tmp_path):
    about = export_model(predictor, tmp_path / "m.onnx", "onnx", size=(64, 96))
    assert about["input"]["shape"] == [3, 64, 96] and about["check"]["pictures"] == 1
    run, picture = load(tmp_path / "m.onnx"), image(64, 96)
    (expected,) = predictor.predict_many([picture], scale=1.0)
    assert_same(to_predictions(run(read_input(picture, predictor.cfg, 1.0)[0]), (64, 96)), expected)
    with pytest.raises(Exception, match="(?i)invalid dimensions"):
        run(read_input(image(96, 96), predictor.cfg, 1.0)[0])


def test_model_without_masks_has_no_masks_in_its_file(tmp_path):
    path = make_checkpoint(tmp_path, "MODEL.MASK_ON", "False")
    about = export_model(Predictor.from_checkpoint(path), tmp_path / "m.onnx", "onnx")
    assert about["masks"] is None
    assert [output["name"] for output in about["outputs"]] == ["boxes", "scores", "classes", "size"]


@pytest.mark.parametrize(
    "name, file_format, size, code, words",
    [
        ("m.onnx", "coreml", None, "option_invalid", "onnx with .onnx, torchscript with .ts"),
        ("m.pth", "torchscript", None, "option_invalid", ".ts or .pt or .torchscript"),
        ("m.ts", "onnx", None, "option_invalid", ".onnx"),
        ("m.onnx", "onnx", (8, 96), "option_invalid", "8 x 96 px"),
        ("taken.onnx", "onnx", None, "output_exists", "taken.json"),
        ("odd.onnx", "onnx", None, "output_exists", "odd.json"),
    ],
)
def test_wrong_arguments(predictor, tmp_path, name, file_format, size, code, words):
    (tmp_path / "taken.json").write_text('{"file": "taken.ts"}')
    (tmp_path / "odd.json").write_bytes(b"\xff[[")
    with user_error(code, words):
        export_model(predictor, tmp_path / name, file_format, size)
    assert sorted(os.listdir(tmp_path)) == ["odd.json", "taken.json"]


def test_the_checkpoint_is_not_overwritten(predictor, tmp_path):
    os.symlink(predictor.cfg.MODEL.WEIGHTS, tmp_path / "m.pt")
    with user_error("output_exists", "m.pt"):
        export_model(predictor, tmp_path / "m.pt", "torchscript")


def test_missing_libraries_are_named(predictor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with user_error("dependency_missing", "onnxruntime"):
        export_model(predictor, tmp_path / "m.onnx", "onnx")


def test_a_file_that_finds_something_else_is_not_written(predictor, tmp_path, monkeypatch):
    forward = ExportNetwork.forward

    def shifted(self, picture):
        boxes, *others = forward(self, picture)
        return (boxes + 1, *others)

    monkeypatch.setattr(ExportNetwork, "forward", shifted)
    with user_error("export_unsupported", "unmatched"):
        export_model(predictor, tmp_path / "m.ts", "torchscript")
    assert not os.listdir(tmp_path)


def test_layers_that_cannot_be_traced_end_in_a_sentence(predictor, tmp_path, monkeypatch):
    forward = ExportNetwork.forward

    def unknown_to_onnx(self, picture):
        boxes, *others = forward(self, picture)
        return (torch.special.bessel_j0(boxes), *others)

    monkeypatch.setattr(ExportNetwork, "forward", unknown_to_onnx)
    with user_error("export_unsupported", "UnsupportedOperatorError", "--format torchscript"):
        export_model(predictor, tmp_path / "m.onnx", "onnx")
    assert not os.listdir(tmp_path)


def test_nothing_is_left_where_the_file_cannot_be_written(predictor, tmp_path):
    (tmp_path / "m.ts").mkdir()
    with pytest.raises(UserError, match="m.ts: it is a folder"):
        export_model(predictor, tmp_path / "m.ts", "torchscript")
    assert os.listdir(tmp_path) == ["m.ts"]
