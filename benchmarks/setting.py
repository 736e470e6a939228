"""The same data, weights and settings for both sides, and the machine they run on."""

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.data import DatasetCatalog
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import ImageList
from torch import nn

from microplastics.config import load_config
from microplastics.data.images import read_image
from microplastics.engine.checkpoint import TrainingCheckpointer
from microplastics.engine.defaults import amp_dtype, finalize_config
from microplastics.engine.trainer import FULL_MODEL, Trainer
from microplastics.synthetic import render_dataset
from microplastics.utils.errors import UserError
from microplastics.utils.io import write_json
from microplastics.utils.system import seed_all

# What plain Detectron2 has not, and the value that is like it: memory order, cache, bf16, resize.
COMPARABLE = {
    "MODEL.CHANNELS_LAST": False,
    "DATALOADER.CACHE_MB": 0,
    "SOLVER.AMP.ON_CPU": False,
    "INPUT.FAST_RESIZE": False,
}
_LOGGERS = ("detectron2", "fvcore", "microplastics")


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A temporary folder that also takes the log lines of both sides.

    They cost as much there as on the terminal, and the table stays readable.
    """
    with tempfile.TemporaryDirectory(prefix="microplastics-benchmark-") as folder:
        handler = logging.FileHandler(os.path.join(folder, "log.txt"), encoding="utf-8")
        handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s]: %(message)s"))
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        before = [(each.level, each.propagate, each.handlers) for each in loggers]
        for each in loggers:
            each.handlers, each.propagate = [handler], False
            each.setLevel(logging.INFO)
        try:
            yield Path(folder)
        finally:
            for each, (level, propagate, handlers) in zip(loggers, before, strict=True):
                each.handlers, each.propagate = handlers, propagate
                each.setLevel(level)
            handler.close()


def require_positive(**options: int) -> None:
    """Refuse numbers below 1 by the name of their option.

    Raises:
        UserError: names the option.
    """
    for name, value in options.items():
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give 1 or more.")


def prepare(
    folder: Path,
    config_file: str,
    opts: Sequence[str],
    *,
    split: str,
    dataset: str | None,
    images: int,
    size: int,
    weights: str,
    seed: int,
) -> CfgNode:
    """The config of a benchmark, on rendered data unless a data set is named.

    Args:
        folder: takes the rendered data and OUTPUT_DIR.
        config_file: YAML.
        opts: KEY VALUE pairs.
        split: ``"train"`` or ``"val"``: what is rendered.
        dataset: ``JSON:IMAGES`` or a registered name.
        images: number of images to render.
        size: side of the rendered images, in pixels.
        weights: MODEL.WEIGHTS; empty for random ones.
        seed: of data, weights and order.

    Returns:
        A frozen config whose DATASETS.TRAIN and DATASETS.TEST are this data set.

    Raises:
        UserError: config, data set or device are wrong.
    """
    require_positive(images=images)
    # Rendered images are not blown up to the size of a config for larger ones.
    own_size = () if dataset is not None else ("INPUT.MIN_SIZE_TEST", size)
    cfg = load_config(config_file, (*own_size, *opts))
    if dataset is None:
        dataset = _render(folder / "data", split, images, size, seed)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.INPUT.PAINT_SCALE_BAR = False  # Detectron2 sees the bars
    cfg.MODEL.WEIGHTS = weights
    cfg.SEED = seed
    cfg.OUTPUT_DIR = str(folder / "output")
    cfg.freeze()
    return finalize_config(cfg)


def _render(folder: Path, split: str, images: int, size: int, seed: int) -> str:
    spare = images // 2 + 4  # for those that are left out below
    paths = render_dataset(folder, {split: images + spare}, size=size, seed=seed)
    with open(paths[split], encoding="utf-8") as file:
        coco = json.load(file)
    # Rings are RLE, which Detectron2's polygon format, its fastest, cannot hold.
    ringed = {a["image_id"] for a in coco["annotations"] if isinstance(a["segmentation"], dict)}
    coco["images"] = [i for i in coco["images"] if i["id"] not in ringed][:images]
    kept = {i["id"] for i in coco["images"]}
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] in kept]
    if not coco["annotations"]:
        raise UserError(f"{images} rendered images are too few to measure on; raise --images.")
    path = folder / "benchmark.json"
    write_json(path, coco)
    return f"{path}:{folder / split}"


def with_keys(cfg: CfgNode, *opts: Any) -> CfgNode:
    """A frozen copy of a config with some keys of other values."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    return cfg


def comparable(cfg: CfgNode) -> CfgNode:
    """Our config without what makes the same arithmetic faster (:data:`COMPARABLE`)."""
    return with_keys(cfg, *itertools.chain.from_iterable(COMPARABLE.items()))


def plain_config(cfg: CfgNode) -> tuple[CfgNode, list[str]]:
    """Detectron2's own config with all that it shares with ours.

    Args:
        cfg: our config, its data sets registered.

    Returns:
        The config, and sentences on where it could not be the same.
    """
    plain, notes = detectron2_get_cfg(), []
    _copy_shared(cfg, plain)
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED and cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == FULL_MODEL:
        plain.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
        notes.append(
            "ours clips the norm of all gradients together, Detectron2, which cannot, that of "
            "each parameter by itself"
        )
    plain.SOLVER.AMP.ENABLED = amp_dtype(cfg) is not None and cfg.MODEL.DEVICE != "cpu"
    segmentations = [
        annotation["segmentation"]
        for name in cfg.DATASETS.TRAIN
        for item in DatasetCatalog.get(name)
        for annotation in item["annotations"]
    ]
    if any(isinstance(segmentation, dict) for segmentation in segmentations):
        plain.INPUT.MASK_FORMAT = "bitmask"
        notes.append("the data holds RLE masks, so Detectron2 runs with MASK_FORMAT bitmask")
    plain.freeze()
    return plain, notes


def _copy_shared(source: CfgNode, target: CfgNode) -> None:
    for key in target:
        if isinstance(target[key], CfgNode):
            _copy_shared(source[key], target[key])
        else:
            target[key] = source[key]


def seeded_model(cfg: CfgNode) -> nn.Module:
    """Our model with MODEL.WEIGHTS, or with random weights that SEED decides."""
    seed_all(cfg.SEED)
    model = Trainer.build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        TrainingCheckpointer(model, cfg, ()).load_weights()
    else:
        picture = read_image(DatasetCatalog.get(cfg.DATASETS.TEST[0])[0]["file_name"])
        set_frozen_norms(model, torch.from_numpy(picture.transpose(2, 0, 1).copy()))
    return model


def set_frozen_norms(model: nn.Module, image: torch.Tensor) -> None:
    """Give frozen batch norms the statistics of a (3, H, W) image.

    With none, random weights end in features so large that the heads find nothing at all, or
    boxes as large as the image, which is no model to measure on.
    """

    def take(norm: FrozenBatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))

    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(take) for norm in norms]
    if hooks:
        pixels = (image.to(model.device) - model.pixel_mean) / model.pixel_std
        images = ImageList.from_tensors([pixels], model.backbone.size_divisibility)
        with torch.no_grad():
            model.backbone(images.tensor)
    for hook in hooks:
        hook.remove()


def describe(cfg: CfgNode, config_file: str) -> dict[str, Any]:
    """Settings of a report that all benchmarks with a model share."""
    name = cfg.DATASETS.TEST[0]
    rendered = cfg.OUTPUT_DIR == str(Path(name.split(":")[0]).parents[1] / "output")
    dicts = DatasetCatalog.get(name)
    return {
        **machine(cfg.MODEL.DEVICE),
        "Config": config_file,
        "Data": f"{len(dicts)} images {'rendered' if rendered else f'of {name}'}, "
        f"{sum(len(d['annotations']) for d in dicts) / len(dicts):.1f} particles each",
        "Weights": cfg.MODEL.WEIGHTS or "random",
        "Shorter side": f"{cfg.INPUT.MIN_SIZE_TRAIN} px in training, "
        f"{cfg.INPUT.MIN_SIZE_TEST} px in test",
    }


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine(device: str = "cpu") -> dict[str, str]:
    """What the figures depend on, by name."""
    compiled = importlib.util.find_spec("detectron2._C") is not None
    row = {
        "Machine": f"{_processor()}, {cores()} cores, {torch.get_num_threads()} threads",
        "Software": f"torch {torch.__version__}, Detectron2 {detectron2.__version__} "
        f"({'with' if compiled else 'without'} compiled ops), "
        f"pycocotools {importlib.metadata.version('pycocotools')}, "
        f"faster-coco-eval {_version('faster-coco-eval')}",
    }
    if torch.device(device).type == "cuda":
        row["Device"] = torch.cuda.get_device_name(device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        row["Warning"] = f"other processes kept {load:.1f} cores busy: expect noise"
    return row


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
