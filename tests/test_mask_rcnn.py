"""microplastics/mask_rcnn.py: torchvision's tensors in and out, and the project's files."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from support import TINY, dataset_entry, user_error
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.transforms.v2.functional import resize

from microplastics import MaskRCNN, Predictor
from microplastics.config import load_config
from microplastics.data.catalog import resolve_datasets
from microplastics.data.mapper import MicroplasticsDatasetMapper
from microplastics.mask_rcnn import Losses
from microplastics.structures.crop_masks import CropMasks

SMALL = [*TINY, "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0", "SOLVER.WARMUP_ITERS", "0"]


class Rendered:
    """The rendered set as torchvision's references write their data sets."""

    def __init__(self, folder, split):
        self.folder = folder / split
        data = json.loads((folder / f"annotations/instances_{split}.json").read_text())
        self.images = data["images"]
        self.annotations = [
            [a for a in data["annotations"] if a["image_id"] == image["id"]]
            for image in self.images
        ]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = cv2.imread(str(self.folder / self.images[index]["file_name"]))[:, :, ::-1]
        rows = self.annotations[index]
        size = image.shape[:2]
        masks = CropMasks.from_coco([a["segmentation"] for a in rows], size).to_bitmasks().byte()
        boxes = torch.tensor([a["bbox"] for a in rows])
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": boxes,
            "labels": torch.tensor([a["category_id"] for a in rows]),
            "masks": masks,
        }
        return torch.from_numpy(image.copy()).permute(2, 0, 1) / 255, target


@pytest.fixture(scope="module")
def photographs(rendered):
    """Two images of different sizes with their targets; neither needs to be resized."""
    (first, target), (second, other) = (Rendered(rendered, "train")[k] for k in (0, 1))
    wide = torch.cat([second, first[:, :, :50]], dim=2)
    other["masks"] = nn.functional.pad(other["masks"], (0, 50))
    return [first, wide], [target, other]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    opts = [*SMALL, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3"]
    model = MaskRCNN("quick", opts=opts).eval()
    with torch.no_grad():  # scores that lie apart
        model.network.proposal_generator.rpn_head.objectness_logits.weight.mul_(50)
        model.network.roi_heads.box_predictor.cls_score.weight.mul_(50)
    return model


def test_training_gives_the_five_losses_with_gradients(model, photographs):
    model.train()
    losses = model(*photographs)
    assert list(losses)[-1] == "total_loss" and losses.keys() == Losses.__annotations__.keys()
    total = losses.pop("total_loss")
    torch.testing.assert_close(total, sum(losses.values()))
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    model.zero_grad(set_to_none=True)
    with user_error("option_invalid", "targets", "list of 2 dicts"):
        model(photographs[0])
    model.eval()


def test_targets_are_those_of_the_projects_mapper(rendered, tiny_cfg):
    keys = ("INPUT.MIN_SIZE_TRAIN", "(130,)", "INPUT.RANDOM_FLIP", "none")
    cfg = tiny_cfg(*keys, "INPUT.MASK_FORMAT", "bitmask", "INPUT.FAST_RESIZE", "False")
    mapper = MicroplasticsDatasetMapper(cfg, is_train=True)
    (name,) = resolve_datasets([dataset_entry(rendered, "train")])
    expected = mapper(DatasetCatalog.get(name)[0])
    item = MaskRCNN(cfg).train()._item(*Rendered(rendered, "train")[0])
    assert item["image"].shape == expected["image"].shape == (3, 130, 130)
    assert (item["image"] - expected["image"]).abs().max() < 1  # Pillow rounds
    mine, theirs = item["instances"], expected["instances"]
    torch.testing.assert_close(mine.gt_boxes.tensor, theirs.gt_boxes.tensor)
    assert torch.equal(mine.gt_classes, theirs.gt_classes)
    assert torch.equal(mine.gt_masks.to_bitmasks(), theirs.gt_masks.to_bitmasks())


def test_detections_are_those_of_the_predictor(model, photographs):
    predictor = model.predictor(optimize=False)
    for image in photographs[0]:
        (found,) = model([image])
        count = len(found["scores"])
        assert count > 5 and found["masks"].shape == (count, 1, *image.shape[1:])
        assert found["labels"].dtype == torch.int64 and not found["boxes"].requires_grad
        pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()[:, :, ::-1]
        expected = predictor(pixels).to_dict()
        for name in ("scores", "boxes", "labels"):
            theirs = torch.from_numpy(expected[name])
            torch.testing.assert_close(found[name], theirs, rtol=1e-3, atol=1e-3)
        differing = (found["masks"][:, 0] >= 0.5).numpy() != expected["masks"]
        assert differing.mean() < 1e-3
        limit = float(found["scores"].median())
        (cut,) = model.train().predict([image], score_threshold=limit, mask_threshold=0.6)
        assert model.training and not model.eval().training
        assert 0 < len(cut["scores"]) == (found["scores"] > limit).sum() < count
        assert torch.equal(cut["masks"], found["masks"][: len(cut["masks"]), 0] >= 0.6)
    assert len(model(photographs[0])) == 2


def test_test_time_augmentation_is_that_of_the_predictor(model, photographs):
    views = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(96,)")
    augmented = MaskRCNN(model.cfg, opts=views).eval()
    augmented.load_state_dict(model.state_dict())
    image = photographs[0][0]
    pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()[:, :, ::-1]
    expected = augmented.predictor(optimize=False)(pixels).to_dict()
    (found,), (plain,) = augmented.predict([image], 0), model.predict([image], 0)
    torch.testing.assert_close(found["scores"], torch.from_numpy(expected["scores"]))
    assert (found["masks"].numpy() != expected["masks"]).mean() < 1e-3
    assert found["scores"].tolist() != plain["scores"].tolist()


def test_losses_and_predictions_of_one_pass(model, photographs):
    losses, found = model.get_loss(*photographs)
    again, _ = model.get_loss(*photographs)
    assert losses == again and losses.keys() == Losses.__annotations__.keys()
    for mine, image in zip(found, photographs[0], strict=True):
        (expected,) = model([image])
        assert len(expected["scores"]) > 0 and mine.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(mine[name], values, atol=1e-4, rtol=1e-4)
    image = photographs[0][0]
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    none["masks"] = torch.zeros(0, *image.shape[1:]).byte()
    losses, found = model.get_loss([image], [none])
    assert losses["total_loss"].isnan() and len(found) == 1
    assert model.train()([image], [none])["loss_mask"] == 0
    model.eval()


WRONG_IMAGES = {
    "empty list": [],
    "Tensor|(3, 9, 9) float32": torch.zeros(3, 9, 9),
    "images[0] is (3, 9, 9) uint8": [torch.zeros(3, 9, 9).byte()],
    "images[0] is (1, 9, 9) float32": [torch.zeros(1, 9, 9)],
    "images[0] is (3, 0, 9) float32": [torch.zeros(3, 0, 9)],
    "up to|0 to 255; expected 0 to 1": [torch.tensor([0.0, 255.0]).expand(3, 9, 2)],
    "nan": [torch.full((3, 9, 9), float("nan"))],
}


@pytest.mark.parametrize("words", WRONG_IMAGES)
def test_wrong_images_are_one_sentence(model, words):
    with user_error("option_invalid", words.split("|")[-1]) as caught:
        model(WRONG_IMAGES[words])
    assert str(caught.value).count(". ") == 0


def target(**changes):
    masks = torch.zeros(2, 20, 30, dtype=torch.uint8)
    masks[:, 2:9, 3:12] = 1
    whole = {
        "boxes": torch.tensor([[3.0, 2, 12, 9], [3, 2, 12, 9]]),
        "labels": torch.tensor([1, 3]),
        "masks": masks,
    }
    return {**whole, **changes}


BOX = torch.tensor([3.0, 2, 12, 9])
WRONG_TARGETS = {
    "no boxes and no masks": {"labels": torch.tensor([1])},
    "['labels'][0] is 0; expected 1 to 3": target(labels=torch.tensor([0, 1])),
    "['labels'][1] is 4": target(labels=torch.tensor([3, 4])),
    "['labels'] is (2,) float32": target(labels=torch.ones(2)),
    "['boxes'] is (1, 4) float32; expected (2, 4)": target(boxes=BOX[None]),
    "['boxes'] is (2, 4) int64": target(boxes=torch.stack([BOX, BOX]).long()),
    "['boxes'][1] is 3, 2, 31, 9": target(boxes=torch.stack([BOX, BOX + torch.eye(4)[2] * 19])),
    "['boxes'][0] is 3, 2, 3, 9": target(boxes=torch.stack([BOX - torch.eye(4)[2] * 9, BOX])),
    "['boxes'][0] is nan": target(boxes=torch.full((2, 4), float("nan"))),
    "['masks'] is (2, 20, 29) uint8; expected (2, 20, 30)": target(
        masks=torch.ones(2, 20, 29).byte()
    ),
    "['masks'] is (2, 20, 30) float32": target(masks=torch.ones(2, 20, 30)),
    "['masks'][0] has no pixel": target(masks=torch.zeros(2, 20, 30).bool()),
    "is list; expected a dict": [],
}


@pytest.mark.parametrize("words", WRONG_TARGETS)
def test_wrong_targets_are_one_sentence(model, words):
    with user_error("option_invalid", "targets[1]", words):
        model.get_loss([torch.rand(3, 20, 30)] * 2, [target(), WRONG_TARGETS[words]])


def test_train_is_that_of_every_module(model):
    assert model.train() is model and model.training and model.network.training
    assert not model.train(False).training
    with user_error("option_invalid", "fit(dataset)"):
        model.train("train.json:photos")


# Architecture


def test_arguments_are_the_layers(photographs):
    model = MaskRCNN(
        backbone="resnet18",
        num_classes=5,
        anchor_sizes=(8, 16, 32, 64, 128),
        aspect_ratios=(0.2, 1.0, 5.0),
        pool_size=5,
        hidden_dim=24,
        mask_pool_size=10,
        mask_hidden_channels=12,
        opts=["MODEL.FPN.OUT_CHANNELS", "32", "INPUT.MIN_SIZE_TEST", "96"],
    )
    network, heads = model.network, model.network.roi_heads
    assert type(network.backbone.bottom_up.body).__name__ == "FeatureListNet"
    assert model.class_names[4] == "class 5" and heads.num_classes == 5
    anchors = network.proposal_generator.anchor_generator
    assert anchors.num_anchors == [3] * 5
    widths = [(a[1, 2] - a[1, 0]).item() for a in anchors.cell_anchors]
    assert widths == [8, 16, 32, 64, 128]
    assert heads.box_head.fc1.weight.shape == (24, 32 * 5 * 5)
    assert heads.mask_pooler.output_size == (10, 10)
    assert heads.mask_head.deconv.weight.shape[1] == 12
    with torch.no_grad():
        assert heads.mask_head.layers(torch.rand(1, 32, 10, 10)).shape == (1, 5, 20, 20)
    losses, _ = model.get_loss(*photographs)
    assert losses["total_loss"].isfinite()


class OneMap(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())


class ThreeMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = OneMap()
        self.stages = nn.ModuleList([nn.Conv2d(16, 24, 3, 2, 1), nn.Conv2d(24, 32, 3, 2, 1)])

    def forward(self, x):
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]).relu())
        return maps


def torchvision_pyramid():
    return _resnet_fpn_extractor(resnet18(), 5)


GIVEN = {
    "one map": (OneMap, {"anchor_sizes": (8, 16, 32)}, ["0"]),
    "pyramid built on it": (ThreeMaps, {}, ["p3", "p4", "p5", "p6"]),
    "torchvision's pyramid": (torchvision_pyramid, {}, ["0", "1", "2", "3", "pool"]),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_a_module_is_trained_saved_and_loaded(kind, photographs, rendered, tmp_path):
    build, arguments, names = GIVEN[kind]
    torch.manual_seed(0)
    body = build().train()
    width = "256" if kind.startswith("torchvision") else "16"
    opts = [*SMALL, "MODEL.FPN.OUT_CHANNELS", width, "MODEL.FPN.NORM", ""]
    model = MaskRCNN("quick", backbone=body, opts=opts, **arguments)
    assert body.training and model.cfg.MODEL.RPN.IN_FEATURES == names
    before = [p.detach().clone() for p in body.parameters()]
    model.fit(dataset_entry(rendered, "train"), output_dir=tmp_path / "out")
    assert not model.training
    assert any(not torch.equal(a, b) for a, b in zip(before, body.parameters(), strict=True))
    model.save(tmp_path / "own.pth")
    with user_error("option_missing", "backbone"):
        MaskRCNN.load(tmp_path / "own.pth")
    with user_error("config_invalid", "MaskRCNN.load"):
        Predictor.from_checkpoint(tmp_path / "own.pth")
    again = MaskRCNN.load(tmp_path / "own.pth", backbone=build())
    loss, found = model.get_loss(*photographs)
    same, expected = again.get_loss(*photographs)
    assert loss == same
    assert torch.equal(found[0]["boxes"], expected[0]["boxes"])
    predictor = model.predictor(score_threshold=0.01)
    assert len(predictor(np.zeros((70, 90, 3), np.uint8))) >= 0
    assert predictor.model.backbone is not model.network.backbone


@pytest.mark.parametrize(
    ("module", "arguments", "code", "words"),
    [
        (nn.Sequential(OneMap(), nn.Flatten()), {}, "option_invalid", "leave out pooling"),
        (nn.Conv2d(3, 4, 3, 3), {}, "option_invalid", "power of 2"),
        (OneMap(), {"use_fpn": True}, "option_conflict", "at least two"),
        (ThreeMaps(), {"use_fpn": False}, "option_conflict", "[16, 24, 32]"),
        (OneMap(), {"weights": "x.pth"}, "option_conflict", "MaskRCNN.load"),
        (None, {"num_classes": 0}, "option_invalid", "without the background"),
        (None, {"class_names": ["a", "a"]}, "classes_mismatch", "one name"),
        (None, {"mask_out_size": 40, "mask_pool_size": 14}, "option_conflict", "eight times"),
        (None, {"anchor_sizes": (8, 16)}, "option_invalid", "p2, p3, p4, p5, p6"),
        (None, {"aspect_ratios": ((1,), (1, 2))}, "option_invalid", "aspect_ratios"),
        (None, {"hidden_dim": 0}, "option_invalid", "hidden_dim"),
        (None, {"dropout": 1.0}, "option_invalid", "dropout"),
        ("resnet81", {}, "config_invalid", "did you mean"),
    ],
)
def test_arguments_that_do_not_fit_are_one_sentence(module, arguments, code, words):
    with user_error(code, words):
        MaskRCNN("quick", backbone=module, opts=SMALL, **arguments)


@pytest.mark.parametrize("backbone", [None, "resnet18"])
def test_no_pyramid(backbone, photographs):
    model = MaskRCNN("quick", backbone=backbone, use_fpn=False, opts=SMALL, mask_out_size=20)
    (shape,) = model.network.backbone.output_shape().values()
    assert shape.stride == 16
    assert model.network.proposal_generator.anchor_generator.num_anchors == [25]
    assert model.get_loss(*photographs)[0]["total_loss"].isfinite()
    assert model.network.roi_heads.mask_pooler.output_size == (10, 10)


@pytest.mark.parametrize(("size", "pooled"), [(14, 14), (56, 14), (48, 6)])
def test_masks_of_any_doubled_size(size, pooled, photographs):
    arguments = {"mask_out_size": size, "mask_pool_size": None if pooled == 14 else pooled}
    model = MaskRCNN("quick", opts=SMALL, **arguments)
    heads = model.network.roi_heads
    with torch.no_grad():
        masks = heads.mask_head.layers(torch.rand(1, 16, *heads.mask_pooler.output_size))
    assert heads.mask_pooler.output_size == (pooled, pooled) and masks.shape[-1] == size
    assert model.get_loss(*photographs)[0]["loss_mask"].isfinite()


def test_another_backbone_still_passes_on_the_image():
    for arguments in ({"backbone": "resnet10t"}, {"weights": "", "use_fpn": False}):
        network = MaskRCNN("quick_dynamic", opts=SMALL, **arguments).network
        assert "image" in network.backbone.output_shape()
        assert hasattr(network.backbone, "fpn_output2") == ("backbone" in arguments)


def test_arguments_go_before_the_finer_keys_of_a_config():
    head, box_head = "MODEL.ROI_MASK_HEAD", "MODEL.ROI_BOX_HEAD"
    opts = (f"{head}.NAME", "ParticleMaskHead", f"{head}.UPSAMPLINGS", 2)
    opts += (f"{box_head}.NAME", "ParticleBoxHead", f"{box_head}.FC_DIMS", [8, 8])
    cfg = load_config("quick", [*SMALL, *opts])
    heads = MaskRCNN(cfg, mask_out_size=28, hidden_dim=12).network.roi_heads
    with torch.no_grad():
        assert heads.mask_head.layers(torch.rand(1, 16, 14, 14)).shape[-1] == 28
    assert [layer.out_features for layer in heads.box_head.fcs] == [12, 12]
    with user_error("option_conflict", "mask_out_size is 28", "DynamicMaskHead"):
        MaskRCNN("quick_dynamic", mask_out_size=28)


def test_dropout_is_in_the_box_head(photographs):
    head = MaskRCNN("quick", opts=SMALL, dropout=0.4).network.roi_heads.box_head
    assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == [0.4, 0.4]


# Files and training


def test_a_set_of_torchvisions_kind_is_trained_and_scored(rendered, tmp_path):
    torch.manual_seed(2)
    model = MaskRCNN("quick", opts=SMALL)
    start = {name: value.clone() for name, value in model.network.state_dict().items()}
    metrics = model.fit(
        Rendered(rendered, "train"),
        Rendered(rendered, "val"),
        learning_rate=0.01,
        batch_size=2,
        output_dir=tmp_path,
    )
    assert {"validation/total_loss", "segm/AP50"} <= metrics.keys()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.json", "model_final.pth"} <= names
    # The same particles by their file as by their tensors.
    scored = model.evaluate(dataset_entry(rendered, "val"), output_dir=tmp_path / "scores")
    for key in ("validation/total_loss", "bbox/AP50"):
        assert scored[key] == pytest.approx(metrics[key], rel=0.02, abs=0.5)
    with user_error("training_exists", "model_final.pth"):
        model.fit(Rendered(rendered, "train"), output_dir=tmp_path)

    final = MaskRCNN.load(tmp_path / "model_final.pth")
    trained = model.network.state_dict()
    for name, value in final.network.state_dict().items():
        assert torch.equal(value, trained[name]), name
    assert final.class_names == ["Fiber", "Fragment", "Film"]
    assert any(not torch.equal(value, start[name]) for name, value in trained.items())
    model.reset_weights()
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, start[name]), name


def test_a_saved_model_is_a_checkpoint_of_the_project(model, photographs, tmp_path):
    model.save(tmp_path / "mine.pth")
    again = MaskRCNN.load(str(tmp_path / "mine.pth")).eval()
    for mine, theirs in zip(model(photographs[0]), again(photographs[0]), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert Predictor.from_checkpoint(tmp_path / "mine.pth").class_names == model.class_names
    about = model.export(tmp_path / "mine.ts", score_threshold=0.2)
    assert about["check"]["unmatched"] <= 1 and (tmp_path / "mine.ts").is_file()
    with user_error("option_invalid", "mine.pt"):
        model.save(tmp_path / "mine.pt")
    torch.save({"a.weight": torch.ones(1)}, tmp_path / "other.pth")
    with user_error("checkpoint_invalid", "name a config"):
        MaskRCNN.load(tmp_path / "other.pth")


def test_the_resizing_is_pillows(photographs):
    from microplastics.data.targets import resized_image

    image = photographs[0][0]
    expected = resize(image, [61, 77], antialias=True)
    torch.testing.assert_close(resized_image(image, (61, 77)), expected)
