"""Predictor beside Detectron2's DefaultPredictor, and untrusted checkpoints."""

import functools
import threading

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.data import Metadata
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, TINY, user_error
from support import barred_image as image

import microplastics
from microplastics.config import load_config
from microplastics.data.images import read_image
from microplastics.data.painting import paint_scale_bars
from microplastics.engine.checkpoint import TrainingCheckpointer
from microplastics.engine.trainer import Trainer
from microplastics.inference.predictor import Predictions, Predictor, stream, to_particles
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import sha256_of

NAMES = ["Fiber", "Fragment", "Film"]
# Config keys that came to Detectron2 after release 0.5.
KEYS_AFTER_0_5 = (
    *("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"),
    *("MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER", "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES"),
    *("DATALOADER.REPEAT_SQRT", "SOLVER.BASE_LR_END", "SOLVER.NUM_DECAYS"),
    "SOLVER.RESCALE_INTERVAL",
)
# Thin: a checkpoint of half a megabyte.
OPTS = (
    *("DATASETS.TEST", "()", "INPUT.MAX_SIZE_TEST", "160"),
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A checkpoint of a tiny seeded model, as training writes it."""
    folder = tmp_path_factory.mktemp("model")
    cfg = load_config(f"{ROOT}/configs/microplastics_quick.yaml", [*TINY, *OPTS])
    cfg.OUTPUT_DIR = str(folder)
    torch.manual_seed(5)
    model = Trainer.build_model(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    TrainingCheckpointer(model, cfg, NAMES).save("model")
    return str(folder / "model.pth")


@pytest.fixture(scope="module")
def predictor(model_path):
    return Predictor.from_checkpoint(model_path)


@pytest.fixture
def altered(model_path, tmp_path):
    """Writes the checkpoint with something else in what it says of itself."""

    def write(**info):
        data = torch.load(model_path, weights_only=True)
        data["microplastics"].update(info)
        path = tmp_path / "altered.pth"
        torch.save(data, path)
        return str(path)

    return write


def fields(predictions):
    masks = predictions.pred_masks
    masks = masks.to_bitmasks() if hasattr(masks, "to_bitmasks") else masks
    return predictions.pred_boxes.tensor, predictions.scores, predictions.pred_classes, masks


SIZES = [(96, 96), (60, 130), (300, 200), (97, 101), (40, 400)]


@pytest.mark.parametrize("height, width", SIZES)
def test_equals_default_predictor_to_the_bit_without_optimizations(model_path, height, width):
    ours = Predictor.from_checkpoint(model_path, optimize=False)
    theirs = DefaultPredictor(ours.cfg)(image(height, width))["instances"]
    found = ours(image(height, width))
    assert len(theirs) > 3 and found.image_size == (height, width)
    for own, other in zip(fields(found), fields(theirs), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("colour", ["BGR", "RGB"])
def test_equals_default_predictor_in_fp32(model_path, height, width, colour):
    ours = Predictor.from_checkpoint(model_path, ("INPUT.FORMAT", colour))
    theirs = DefaultPredictor(ours.cfg)(image(height, width))["instances"]
    (boxes, scores, classes, masks), expected = fields(ours(image(height, width))), fields(theirs)
    torch.testing.assert_close(boxes, expected[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(scores, expected[1], rtol=0, atol=1e-5)
    assert torch.equal(classes, expected[2])
    # A probability within rounding of the threshold may fall to either side.
    assert (masks != expected[3]).sum() <= 1e-3 * expected[3].sum() + 1


def test_grey_deep_and_transparent_arrays_are_the_bgr_image(predictor):
    grey = image(80, 90)[:, :, 0]
    bgr = np.repeat(grey[:, :, None], 3, axis=2)
    alpha = np.concatenate([bgr, np.full((80, 90, 1), 7, np.uint8)], axis=2)
    deep = grey.astype(np.uint16) * 200
    expected = fields(predictor(bgr))
    for same in (grey, grey[:, :, None], alpha, np.asfortranarray(bgr), bgr[:, ::-1][:, ::-1]):
        for own, other in zip(fields(predictor(same)), expected, strict=True):
            assert torch.equal(own, other)
    assert len(predictor(deep)) and len(predictor(deep.astype(np.float32) / 7))


def test_paths_and_lists_in_order(predictor, tmp_path):
    names = []
    for number, size in enumerate(SIZES[:3]):
        names.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(names[-1]), image(*size, seed=number))
    found = predictor([names[0], str(names[1]), read_image(names[2])])
    assert [each.image_size for each in found] == SIZES[:3]
    for path, each in zip(names, found, strict=True):
        assert torch.equal(predictor(path).scores, each.scores)
    assert predictor([]) == []


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batches_of_mixed_sizes_keep_order_and_results(model_path, predictor, size):
    images = [image(*SIZES[number % 3], seed=number) for number in range(11)]
    batched = Predictor.from_checkpoint(model_path, batch_size=size)
    for own, each in zip(batched.predict_many(iter(images)), map(predictor, images), strict=True):
        assert own.image_size == each.image_size and len(own) == len(each)
        torch.testing.assert_close(own.scores, each.scores, rtol=0, atol=1e-5)


def test_fibre_classes_come_with_the_checkpoint(model_path, tmp_path):
    data = torch.load(model_path, weights_only=True)
    path = str(tmp_path / "model.pth")

    def fibers(stored, *opts):
        data["microplastics"]["fiber_classes"] = stored
        torch.save(data, path)
        return Predictor.from_checkpoint(path, opts).fiber_classes

    assert fibers(["Film"]) == ["Film"] and fibers(None) == ["Fiber"]
    assert fibers(["Film"], "DATASETS.FIBER_CLASSES", ["fragment"]) == ["Fragment"]
    with user_error("checkpoint_invalid", "Wool"):
        fibers(["Wool"])


def test_scale_bars_are_painted_over_as_in_training(model_path, predictor):
    picture = np.full((300, 400, 3), 170, np.uint8)
    picture[38:41, 250:380] = picture[31:47, 250:253] = picture[31:47, 377:380] = 0
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(picture, "750 um", (285, 27), font, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.circle(picture, (120, 180), 40, (40, 60, 120), -1)
    painted = paint_scale_bars(picture)
    assert (painted[:60] > 150).all() and (painted[100:] == picture[100:]).all()
    (expected,) = predictor.predict_many([painted], paint=False)
    (seen,) = predictor.predict_many([picture], paint=False)
    assert torch.equal(predictor(picture).scores, expected.scores)
    assert not torch.equal(seen.scores, expected.scores)
    left = Predictor.from_checkpoint(model_path, ("INPUT.PAINT_SCALE_BAR", "False"))
    assert torch.equal(left(picture).scores, seen.scores)


def test_a_demanded_digest_is_checked(model_path):
    digest = sha256_of(model_path)
    Predictor.from_checkpoint(model_path, ("MODEL.WEIGHTS_SHA256", digest.upper()))
    with user_error("checkpoint_mismatch", model_path, digest):
        Predictor.from_checkpoint(model_path, ("MODEL.WEIGHTS_SHA256", "0" * 64))


def test_a_thin_image_and_an_image_without_particles(model_path):
    strict = Predictor.from_checkpoint(model_path, score_threshold=1.0)
    for size in [(1, 1), (2, 900), (64, 64)]:
        found = strict(np.zeros(size, np.uint8))
        assert len(found) == 0 and found.to_dict()["masks"].shape == (0, *size)


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4), np.uint8), r"\(0, 4, 1\); expected .* with pixels"),
        (np.zeros((4,), np.uint8), r"\(4,\)"),
        (np.zeros((4, 4), np.complex64), "is complex64"),
        (np.array([["a"]]), "is <U1"),
        (7, "is int"),
    ],
)
def test_wrong_arrays_are_named(predictor, array, words):
    with pytest.raises(ValueError, match=words):
        predictor(array)


def test_an_error_comes_after_the_results_before_it(predictor, tmp_path):
    def images():
        yield image(60, 60)
        yield image(60, 60)
        yield tmp_path / "gone.png"

    found = []
    with pytest.raises(UserError, match="gone.png"):
        for each in predictor.predict_many(images()):
            found.append(each)
    assert len(found) == 2


def test_an_abandoned_stream_ends_its_threads(predictor):
    drawn = []

    def images():
        for number in range(1000):
            drawn.append(number)
            yield image(60, 60)

    before = threading.active_count()
    results = predictor.predict_many(images())
    next(results)
    results.close()
    assert len(drawn) < 10 and threading.active_count() == before


def test_test_time_augmentation_of_photographs_and_tiles(model_path, predictor):
    aug = ("TEST.AUG.ENABLED", "True", "TEST.AUG.FLIP", "False", "TEST.AUG.MIN_SIZES")
    picture = image(90, 120)
    only_itself = Predictor.from_checkpoint(model_path, (*aug, "(96,)"))
    found, expected = only_itself(picture), predictor(picture)
    assert torch.equal(found.scores, expected.scores) and len(found) > 5
    assert all(map(np.array_equal, found.pred_masks.crops, expected.pred_masks.crops))
    two = Predictor.from_checkpoint(model_path, (*aug, "(96, 144)"), precision="bf16")
    (tile,) = two.predict_many([picture], dense=True, scale=0.8)
    assert len(tile) and tile.image_size == (90, 120)
    assert tile.pred_boxes.tensor.max() > 60


def test_score_thresholds_are_defaults_floats_or_by_class(model_path, predictor, altered):
    picture = image(96, 96)
    everything = predictor(picture)
    middle = float(everything.scores.median())
    one = Predictor.from_checkpoint(model_path, score_threshold=middle)
    assert torch.equal(one(picture).scores, everything.scores[everything.scores > middle])
    by_class = {"Fiber": middle, "Film": 1.0}
    limits = torch.tensor([middle, 0.05, 1.0])[everything.pred_classes]
    for chosen in (
        Predictor.from_checkpoint(model_path, score_threshold=by_class),
        Predictor.from_checkpoint(altered(score_thresholds=by_class)),
    ):
        assert chosen.score_thresholds.tolist() == [middle, 0.05, 1.0]
        assert torch.equal(chosen(picture).scores, everything.scores[everything.scores > limits])
    assert predictor.score_thresholds.tolist() == [0.05] * 3
    key = "TEST.COUNTING.CLASS_SCORE_THRESH"  # evaluation's, which goes before the checkpoint's
    numbers = Predictor.from_checkpoint(altered(score_thresholds=by_class), (key, "[0.2, 0.3, 1]"))
    assert numbers.score_thresholds.tolist() == [0.2, 0.3, 1.0]
    with user_error("config_invalid", key, "Film"):
        Predictor.from_checkpoint(model_path, (key, "[0.2]"))


def test_mask_threshold_grows_and_shrinks_masks(model_path, predictor):
    picture = image(96, 96)
    areas = [
        Predictor.from_checkpoint(model_path, mask_threshold=t)(picture).pred_masks.area().sum()
        for t in (0.4, 0.5, 0.6)
    ]
    assert areas[1] == predictor(picture).pred_masks.area().sum()
    assert areas[0] > areas[2] and areas[0] >= areas[1] >= areas[2]


def test_bf16_finds_nearly_the_same(model_path, predictor):
    half = Predictor.from_checkpoint(model_path, precision="bf16")
    own, expected = half(image(200, 150)), predictor(image(200, 150))
    assert abs(len(own) - len(expected)) <= 2
    torch.testing.assert_close(own.scores[:3], expected.scores[:3], rtol=0, atol=0.02)


def test_dense_has_no_cap_and_scale_no_config(model_path):
    few = Predictor.from_checkpoint(model_path, ("TEST.DETECTIONS_PER_IMAGE", "2"))
    (dense,) = few.predict_many([image(96, 96)], dense=True)
    assert len(few(image(96, 96))) == 2 < len(dense)
    (scaled,) = few.predict_many([image(48, 48)], scale=2.0)
    assert torch.equal(scaled.scores, few(image(48, 48)).scores)  # 96 px, as MIN_SIZE_TEST says
    with pytest.raises(ValueError, match="scale is 0"):
        few.predict_many([image(48, 48)], scale=0)
    with user_error("image_too_large", "4800000 x 4800000 px"):
        list(few.predict_many([image(48, 48)], scale=1e5))


def test_results_are_plain_tensors_that_may_be_changed(predictor):
    found = predictor(image(96, 96))
    assert isinstance(found, Predictions)
    found.pred_boxes.scale(2, 2)
    found.scores.mul_(2)


def test_what_it_says_of_itself(model_path, predictor):
    assert microplastics.Predictor is Predictor
    assert predictor.class_names == NAMES and predictor.cfg.is_frozen()
    assert predictor.cfg.MODEL.DEVICE == "cpu" and predictor.precision == "fp32"
    assert len(predictor.weights_sha256) == 64 and predictor.batch_size == 1
    assert predictor.info["version"] == microplastics.__version__


def test_the_visualizer_draws_names_and_colours(predictor):
    found = predictor(image(64, 64))
    drawn = Visualizer(image(64, 64), predictor.metadata).draw_instance_predictions(found)
    texts = {text.get_text().split()[0] for text in drawn.ax.texts}
    assert len(found) and texts == {NAMES[number] for number in found.pred_classes}


def test_names_without_any_in_the_checkpoint(predictor, model_path, tmp_path):
    path = str(tmp_path / "bare.pth")
    torch.save({"model": torch.load(model_path, weights_only=True)["model"]}, path)
    with pytest.raises(UserError, match="bare.pth"):
        Predictor.from_checkpoint(path)
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = path
    assert Predictor(cfg).class_names == ["class 1", "class 2", "class 3"]
    cfg.DATASETS.TEST = ("microplastics_val",)
    assert Predictor(cfg).class_names == NAMES
    assert Predictor(cfg, ["a", "b", "c"]).class_names == ["a", "b", "c"]


@pytest.mark.parametrize(
    "arguments, code, name",
    [
        ({"score_threshold": 1.5}, "option_invalid", "Fiber is 1.5"),
        ({"score_threshold": float("nan")}, "option_invalid", "Fiber is nan"),
        ({"score_threshold": {"Foam": 0.5}}, "option_invalid", "Foam"),
        ({"mask_threshold": 0}, "option_invalid", "mask threshold"),
        ({"precision": "fp8"}, "option_invalid", "fp8"),
        ({"precision": "bf16", "optimize": False}, "option_conflict", "optimize"),
        ({"batch_size": 0}, "option_invalid", "batch size"),
        ({"class_names": ["a", "b"]}, "classes_mismatch", "a, b"),
        ({"opts": ("MODEL.ROI_HEADS.NUM_CLASSES", "2")}, "classes_mismatch", "2 classes"),
        ({"opts": ("MODEL.FPN.OUT_CHANNELS", "32")}, "checkpoint_mismatch", "fpn"),
        ({"opts": ("MODEL.META_ARCHITECTURE", "Nope")}, "config_invalid", "Nope"),
        ({"opts": ("MODEL.ROI_HEADS.NAME", "Nope")}, "config_invalid", "Nope"),
        ({"opts": ("MODEL.ROI_BOX_HEAD.FC_DIM", "9000000")}, "checkpoint_mismatch", "parameters"),
        ({"opts": ("INPUT.FORMAT", "L")}, "config_invalid", "INPUT.FORMAT"),
        ({"opts": ("TEST.TILE_TOPK", "0")}, "config_invalid", "TEST.TILE_TOPK"),
    ],
)
def test_wrong_arguments_are_named(model_path, arguments, code, name):
    with user_error(code, name):
        Predictor.from_checkpoint(model_path, **arguments)


@pytest.mark.parametrize("key, value", [("MODEL.NOPE", "1"), ("MODEL.DEVICE", "toaster")])
def test_wrong_config_keys_are_named(model_path, key, value):
    with pytest.raises(UserError, match=key):
        Predictor.from_checkpoint(model_path, (key, value))


def test_empty_weights_are_refused(predictor):
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    with user_error("option_missing", "MODEL.WEIGHTS"):
        Predictor(cfg)
    with user_error("file_missing", "/none.pth"):
        Predictor.from_checkpoint("/none.pth")


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "info, code, name",
    [
        ({"config": "MODEL:\n  NOPE: 1\n"}, "config_invalid", "MODEL.NOPE"),
        ({"config": "_BASE_: /etc/passwd\n"}, "checkpoint_invalid", "_BASE_"),
        ({"config": "!!python/object/apply:os.system ['touch x']\n"}, "checkpoint_invalid", "YAML"),
        ({"config": "MODEL: [1\n"}, "checkpoint_invalid", "YAML"),
        ({"config": "- 1\n"}, "checkpoint_invalid", "table"),
        ({"config": "VERSION: 1\n"}, "checkpoint_invalid", "VERSION"),
        ({"config": "MODEL:\n  MASK_ON: 3\n"}, "config_invalid", "MASK_ON"),
        ({"config": "MODEL: 3\n"}, "config_invalid", "MODEL"),
        ({"config": "OUTPUT_DIR: '" + "(" * 5000 + "'\n"}, None, ""),
        ({"config": "[" * 5000}, "checkpoint_invalid", "YAML"),
        ({"config": BOMB}, "checkpoint_invalid", "aliases"),
        ({"config": "a: &a [*a]\n"}, "checkpoint_invalid", "aliases"),
        ({"config": "SEED: !!bool x"}, "checkpoint_invalid", "YAML"),
        ({"config": 7}, "checkpoint_invalid", "config"),
        ({"config": "x" * 2_000_000}, "checkpoint_invalid", "config"),
        ({"class_names": "Fiber"}, "checkpoint_invalid", "class names"),
        ({"class_names": ["Fiber", "Fiber", "Film"]}, "checkpoint_invalid", "class names"),
        ({"class_names": ["Fiber"]}, "classes_mismatch", "Fiber"),
        ({"score_thresholds": {"Foam": 0.5}}, "classes_mismatch", "Foam"),
        ({"score_thresholds": {"Film": float("inf")}}, "checkpoint_invalid", "Film"),
        ({"score_thresholds": [0.5]}, "checkpoint_invalid", "class name"),
        ({"training_side": float("nan")}, "checkpoint_invalid", "nan"),
        ({"class_names": ["a", "b\x1b", "c"]}, "checkpoint_invalid", "class names"),
        ({"config": "MODEL: {ROI_MASK_HEAD: {NUM_CONV: 1001}}"}, "config_invalid", "NUM_CONV"),
    ],
)
def test_a_hostile_checkpoint_ends_in_a_sentence(altered, info, code, name):
    path = altered(**info)
    with pytest.raises(UserError, match=name) as caught:
        Predictor.from_checkpoint(path)
    assert code is None or caught.value.code == code
    assert len(str(caught.value)) < 1500


def test_the_config_of_a_newer_detectron2_is_read(model_path, altered):
    config = yaml.safe_load(torch.load(model_path, weights_only=True)["microplastics"]["config"])
    config["FLOAT32_PRECISION"] = ""
    path = altered(config=yaml.safe_dump(config))
    assert len(Predictor.from_checkpoint(path)(image(96, 96)))
    config["FLOAT99_PRECISION"] = ""
    with pytest.raises(UserError, match="FLOAT99_PRECISION"):
        Predictor.from_checkpoint(altered(config=yaml.safe_dump(config)))


def test_a_checkpoint_written_on_detectron2_0_5_loads(model_path, tmp_path):
    checkpoint = torch.load(model_path, weights_only=True)
    config = yaml.safe_load(checkpoint["microplastics"]["config"])
    config.pop("FLOAT32_PRECISION", None)
    for key in KEYS_AFTER_0_5:
        *parents, last = key.split(".")
        del functools.reduce(dict.__getitem__, parents, config)[last]
    config["SOLVER"]["WEIGHT_DECAY_BIAS"] = 1e-4
    checkpoint["microplastics"] |= {"config": yaml.safe_dump(config), "detectron2": "0.5"}
    for level in range(5):
        buffer = f"proposal_generator.anchor_generator.cell_anchors.{level}"
        checkpoint["model"][buffer] = torch.zeros(3, 4)
    torch.save(checkpoint, tmp_path / "old.pth")
    picture = image(96, 96)
    old = Predictor.from_checkpoint(str(tmp_path / "old.pth"))
    new = Predictor.from_checkpoint(model_path)
    assert old.cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE is False
    assert torch.equal(old(picture).scores, new(picture).scores) and len(new(picture))


def test_the_limit_on_pixels_is_not_the_checkpoints(altered, model_path):
    config = torch.load(model_path, weights_only=True)["microplastics"]["config"]
    assert "MAX_PIXELS: 178956970" in config
    huge = altered(config=config.replace("MAX_PIXELS: 178956970", "MAX_PIXELS: 999999999999"))
    assert Predictor.from_checkpoint(huge).cfg.INPUT.MAX_PIXELS == 178_956_970
    predictor = Predictor.from_checkpoint(model_path, ("INPUT.MAX_PIXELS", "100"))
    assert predictor.cfg.INPUT.MAX_PIXELS == 100


@pytest.fixture
def predictions():
    """Three particles on 40 x 60 px; the mask of the second is empty."""
    crops = [np.zeros((6, 9), bool), np.zeros((5, 5), bool), np.ones((3, 4), bool)]
    crops[0][1:5, 2:8] = True
    crops[0][1, 2] = False
    masks = CropMasks(crops, [(10, 20), (1, 1), (56, 37)], (40, 60))
    boxes = Boxes(torch.tensor([[11.5, 20.5, 18, 25], [1, 1, 6, 6], [56, 37, 60, 40]]))
    return Predictions(
        (40, 60),
        pred_boxes=boxes,
        scores=torch.tensor([0.9, 0.8, 0.7]),
        pred_classes=torch.tensor([2, 0, 1]),
        pred_masks=masks,
    )


def test_plain_arrays(predictions):
    arrays = predictions.to_dict()
    assert arrays["masks"].shape == (3, 40, 60) and arrays["masks"].dtype == bool
    assert arrays["masks"].sum(axis=(1, 2)).tolist() == [23, 0, 12]
    assert arrays["labels"].tolist() == [3, 1, 2] and arrays["labels"].dtype == np.int64
    assert arrays["boxes"].dtype == arrays["scores"].dtype == np.float32
    assert arrays["boxes"][0].tolist() == [11.5, 20.5, 18, 25]
    none = predictions[predictions.scores > 1].to_dict()
    assert none["masks"].shape == (0, 40, 60) and none["boxes"].shape == (0, 4)
    predictions.remove("pred_masks")
    assert "masks" not in predictions.to_dict()


def test_the_type_stays(predictions):
    picked = [
        predictions[0],
        predictions[1:],
        predictions[torch.tensor([True, False, True])],
        predictions[torch.tensor([2, 0])],
    ]
    assert all(type(each) is Predictions for each in picked)
    assert [len(each) for each in picked] == [1, 2, 2, 2]
    assert picked[3].scores.tolist() == pytest.approx([0.7, 0.9])
    assert picked[3].pred_masks.area().tolist() == [12, 23]
    assert len(Instances.cat([predictions, predictions]).pred_masks) == 6


@pytest.mark.parametrize("chosen", [slice(None), slice(0, 0)])
def test_the_visualizer_draws_them(predictions, chosen):
    canvas = np.full((40, 60, 3), 100, np.uint8)
    metadata = Metadata(name="drawn", thing_classes=NAMES)
    drawn = Visualizer(canvas, metadata).draw_instance_predictions(predictions[chosen])
    changed = (drawn.get_image() != 100).any(axis=2).sum()
    assert changed > 50 if chosen == slice(None) else changed == 0


def test_particles_leave_out_empty_masks_and_say_so(predictions):
    image = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
    particles, empty = to_particles(predictions, "a.png", NAMES, image)
    assert empty == 1 and len(particles) == 2
    assert (particles.image, particles.image_size) == ("a.png", (40, 60))
    assert [mask.shape for mask in particles.masks] == [(4, 6), (3, 4)]
    assert particles.offsets.tolist() == [[12, 21], [56, 37]]
    assert particles.classes == ["Film", "Fragment"] and particles.ids.tolist() == [1, 2]
    assert particles.scores.tolist() == pytest.approx([0.9, 0.7])
    full = predictions.pred_masks.to_bitmasks().numpy()
    for pixels, mask in zip(particles.pixels, full[[0, 2]], strict=True):
        assert np.array_equal(pixels, image[mask])
    assert to_particles(predictions, "a.png", NAMES)[0].pixels is None


def test_no_particles_at_all(predictions):
    particles, empty = to_particles(predictions[1], "a.png", NAMES, np.zeros((40, 60, 3), np.uint8))
    assert (len(particles), empty) == (0, 1)
    assert particles.offsets.shape == (0, 2) and particles.pixels == []


def run_through(items, batch_size, kinds=3, batches=None):
    def run(batch):
        if batches is not None:
            batches.append(batch)
        return [item + 1000 for item in batch]

    return stream(
        items,
        prepare=lambda item: item * 2,
        run=run,
        finish=lambda prepared, output: (prepared, output),
        kind=lambda prepared: prepared // 2 % kinds,
        batch_size=batch_size,
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 6), st.integers(1, 4))
def test_every_item_comes_once_and_in_order(items, batch_size, kinds):
    batches = []
    found = list(run_through(items, batch_size, kinds, batches))
    assert found == [(item * 2, item * 2 + 1000) for item in items]
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(len({item // 2 % kinds for item in batch}) == 1 for batch in batches)


def test_batches_are_filled_across_kinds():
    batches = []
    list(run_through([0, 1] * 8, 4, 2, batches))
    assert [len(batch) for batch in batches] == [4] * 4


def test_few_items_are_drawn_ahead():
    drawn = []

    def items():
        for number in range(10_000):
            drawn.append(number)
            yield number

    for count, _ in enumerate(run_through(items(), 2, 3), 1):
        assert len(drawn) - count <= 8 * 2 + 4
        if count == 200:
            break


def test_the_stages_run_in_threads_of_their_own():
    threads = {}

    def note(stage, value):
        threads[stage] = threading.get_ident()
        return value

    list(
        stream(
            [1, 2],
            prepare=lambda item: note("prepare", item),
            run=lambda batch: note("run", batch),
            finish=lambda _, output: note("finish", output),
            kind=lambda _: 0,
            batch_size=1,
        )
    )
    assert threads["run"] == threading.get_ident() and len(set(threads.values())) == 3


@pytest.mark.parametrize("stage", ["prepare", "run", "finish"])
def test_an_error_of_any_stage_surfaces(stage):
    def fail(*_):
        raise ZeroDivisionError(stage)

    stages = {"prepare": lambda i: i, "run": lambda batch: batch, "finish": lambda _, o: o}
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match=stage):
        list(stream(range(9), **{**stages, stage: fail}, kind=lambda _: 0, batch_size=2))
    assert threading.active_count() == before
