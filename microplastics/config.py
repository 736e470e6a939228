"""Config keys that the project adds to Detectron2's."""

import contextlib
import difflib
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as _detectron2_get_cfg

from microplastics import model_zoo
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, parse_yaml, read_text

_MAX_FILES = 100


def add_microplastics_config(cfg: CfgNode) -> None:
    """Add the project's keys, with their defaults, to a Detectron2 config in place.

    The defaults leave plain Detectron2 behaviour as it is, except that the validation loss is
    computed at each evaluation, training images are resized by torch (INPUT.FAST_RESIZE), and
    burnt-in scale bars are painted over (INPUT.PAINT_SCALE_BAR).
    """
    for add in (
        _add_input,
        _add_augmentation,
        _add_model,
        _add_mask_head,
        _add_dynamic_mask_head,
        _add_nms,
        _add_box_branch,
        _add_ladder,
        _add_solver,
        _add_optimizer,
        _add_test,
        _add_counting,
    ):
        add(cfg)
    # Optional event writers beside the terminal, metrics.json and TensorBoard.
    cfg.WRITERS = CfgNode()
    cfg.WRITERS.WANDB = CfgNode({"ENABLED": False, "PROJECT": "microplastics", "NAME": ""})
    cfg.WRITERS.MLFLOW = CfgNode(
        {"ENABLED": False, "TRACKING_URI": "", "EXPERIMENT": "microplastics"}
    )


def _add_input(cfg: CfgNode) -> None:
    """Add the keys of reading, tiling, sampling and of the image cache."""
    # Maximum number of pixels of an image file: a guard against decompression bombs.
    cfg.INPUT.MAX_PIXELS = 178_956_970

    # Resize training images by torch instead of Pillow: half the time, and 2 of 10,000 values
    # differ by one grey level. Validation and prediction always have Detectron2's pixels.
    cfg.INPUT.FAST_RESIZE = True
    # Particles with less than this visible fraction, or fewer pixels, after augmentation and
    # tiling are dropped and counted. See docs/training_input.md.
    cfg.INPUT.MIN_VISIBLE_SHARE = 0.1
    cfg.INPUT.MIN_MASK_PIXELS = 4
    # Paint burnt-in scale bars and their labels over, in training, validation and prediction alike.
    # See docs/calibration.md.
    cfg.INPUT.PAINT_SCALE_BAR = True
    # Train on overlapping windows of this side, in px of the photograph; 0: on whole images.
    cfg.INPUT.TILE = CfgNode()
    cfg.INPUT.TILE.SIZE = 0
    # Minimum overlap of neighbouring windows, in px.
    cfg.INPUT.TILE.OVERLAP = 64
    # Fraction of the windows without a particle that is kept.
    cfg.INPUT.TILE.EMPTY_SHARE = 1.0

    # One weight for each data set of DATASETS.TRAIN: how often its images are drawn, relative to
    # the others. Empty draws every image of all sets equally often.
    cfg.DATASETS.TRAIN_WEIGHTS = []
    # Classes whose length is measured along the centreline; empty: those whose name or
    # supercategory says fibre (fiber, Faser, filament, thread, …). Checkpoints keep them.
    cfg.DATASETS.FIBER_CLASSES = []

    # Megabytes of decoded images kept in memory by all workers of a process; 0 keeps none.
    cfg.DATALOADER.CACHE_MB = 0


def _add_model(cfg: CfgNode) -> None:
    """Add the keys of weights, memory order and PointRend."""
    # Imported here: it brings PointRend's heads into Detectron2's registries, and all of modeling.
    from detectron2.projects.point_rend import add_pointrend_config

    add_pointrend_config(cfg)
    # Expected sha256 of the file of MODEL.WEIGHTS; empty accepts any.
    cfg.MODEL.WEIGHTS_SHA256 = ""
    # Prefixes of parameter names that may be missing, unexpected or of another shape in
    # MODEL.WEIGHTS. Class-dependent layers of another shape are always allowed.
    cfg.MODEL.WEIGHTS_ALLOW_MISMATCH = []
    # Keep convolutions in NHWC memory order: a fifth faster on the CPU in bf16.
    cfg.MODEL.CHANNELS_LAST = False
    # The network of MODEL.BACKBONE.NAME build_timm_fpn_backbone, by its name in timm. With
    # MODEL.WEIGHTS imagenet://<the name> it starts from ImageNet (docs/model_zoo.md).
    cfg.MODEL.TIMM = CfgNode({"NAME": "resnet18"})


def _add_mask_head(cfg: CfgNode) -> None:
    """Add the keys of the mask branch; see docs/heads.md."""
    head = cfg.MODEL.ROI_MASK_HEAD
    # Factor by which a box grows around its centre for the mask head, whose mask is pasted on the
    # grown box; for the ROI heads ParticleROIHeads and ParticleCascadeROIHeads.
    head.BOX_SCALE = 1.0
    # Factor by which a proposal grows for the box head, so that it sees whether a fibre goes on
    # beyond it; for the same ROI heads.
    cfg.MODEL.ROI_BOX_HEAD.BOX_SCALE = 1.0
    # Weights of all losses of the mask head and of the classification, for the same ROI heads.
    # Detectron2 has MODEL.RPN.LOSS_WEIGHT and two BBOX_REG_LOSS_WEIGHT for the other losses.
    head.LOSS_WEIGHT = 1.0
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT = 1.0

    # What follows is for MODEL.ROI_MASK_HEAD.NAME ParticleMaskHead. Number of times that the mask
    # head doubles POOLER_RESOLUTION by a transposed convolution: 14 becomes 14, 28, 56, 112 by 0
    # to 3.
    head.UPSAMPLINGS = 1
    # Pairs of a name (bce, gce, sdt, dice or lovasz) and a weight; their sum is loss_mask.
    head.LOSSES = [["bce", 1.0]]
    # q of gce: towards 0 it is bce, 1 the absolute error.
    head.GCE_Q = 0.7
    # Cells over which the soft targets of sdt rise on either side of the outline.
    head.SDT_RADIUS = 3
    # A branch that predicts the boundaries of masks, with loss_boundary.
    head.BOUNDARY = CfgNode({"ENABLED": False, "LOSS_WEIGHT": 1.0})
    # Mask Scoring R-CNN: a head that predicts the IoU of each mask, by which the detection's score
    # is multiplied, with loss_mask_iou.
    head.IOU_HEAD = CfgNode({"ENABLED": False, "LOSS_WEIGHT": 1.0, "CONV_DIM": 256, "FC_DIM": 1024})


def _add_ladder(cfg: CfgNode) -> None:
    """Add the keys of the cascade, the semantic segmentor and the vision transformer."""
    # With MODEL.ROI_HEADS.NAME ParticleCascadeROIHeads: a mask head at every stage, whose masks are
    # averaged, instead of one on the boxes of the first.
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.MASK_AT_EVERY_STAGE = False
    # A ParticleSegmentor drops components smaller than this, in px of the image.
    cfg.MODEL.SEM_SEG_HEAD.MIN_PIXELS = 4
    # The transformer of MODEL.BACKBONE.NAME build_vit_fpn_backbone; ViT-B by default.
    vit = cfg.MODEL.VIT = CfgNode()
    vit.PATCH_SIZE = 16
    vit.EMBED_DIM = 768
    vit.DEPTH = 12
    vit.NUM_HEADS = 12
    # The blocks, counted from 0, whose attention stays within windows of WINDOW_SIZE patches.
    vit.WINDOW_BLOCKS = [0, 1, 3, 4, 6, 7, 9, 10]
    vit.WINDOW_SIZE = 14
    # Side in px of the images for which the other blocks learn relative positions; those of other
    # sizes are interpolated.
    vit.IMAGE_SIZE = 1024
    # Probability with which the last block is skipped in training; earlier ones less often.
    vit.DROP_PATH = 0.1


def _add_nms(cfg: CfgNode) -> None:
    """Add the keys of non-maximum suppression, for ParticleROIHeads; see docs/heads.md."""
    heads = cfg.MODEL.ROI_HEADS
    # box (Detectron2's, by NMS_THRESH_TEST), mask, soft_linear (from NMS_THRESH_TEST on) or
    # soft_gaussian.
    heads.NMS = "box"
    heads.SOFT_NMS_SIGMA = 0.5
    # Of two masks of a class whose IoU is above THRESH, the worse-scored one goes. Masks are
    # predicted for at most CANDIDATES boxes of an image, which box NMS at CANDIDATE_THRESH leaves.
    heads.MASK_NMS = CfgNode({"THRESH": 0.5, "CANDIDATE_THRESH": 0.9, "CANDIDATES": 400})


def _add_dynamic_mask_head(cfg: CfgNode) -> None:
    """Add the keys of MODEL.ROI_MASK_HEAD.NAME DynamicMaskHead and of the image it looks at."""
    # The backbone of MODEL.BACKBONE.NAME build_backbone_with_image, which passes on the image.
    cfg.MODEL.BACKBONE.INNER = "build_resnet_fpn_backbone"
    head = cfg.MODEL.DYNAMIC_MASK_HEAD = CfgNode()
    # Px of the network's input between the values of a mask: 4, 2 or 1.
    head.STRIDE = 2
    # Channels inside the branch that makes the mask features, and the norm of its layers on the
    # feature map and on the image, whose scales differ.
    head.CONV_DIM = 16
    head.NORM = "BN"
    # Channels of the mask features and of a particle's network.
    head.CHANNELS = 16
    # Width of the layer before the weights of that network.
    head.FC_DIM = 128
    # Layers of the network.
    head.NUM_LAYERS = 3
    # Masks are drawn in a window around the box: a factor on its sides, and px that it reaches
    # beyond the box at least.
    head.WINDOW = 1.2
    head.MARGIN = 4.0
    # Boxes of an image that the mask losses are computed of.
    head.MAX_INSTANCES = 32
    # Weight of the Dice loss beside the cross entropy.
    head.DICE_WEIGHT = 1.0


def _add_box_branch(cfg: CfgNode) -> None:
    """Add the keys of ParticleBoxHead and of the pyramid's top; see docs/heads.md."""
    # Share of the values after each linear layer that training drops.
    cfg.MODEL.ROI_BOX_HEAD.DROPOUT = 0.0
    # Widths of the linear layers; empty for NUM_FC layers of FC_DIM.
    cfg.MODEL.ROI_BOX_HEAD.FC_DIMS = []
    # What P6 is made by: maxpool of P5, or a convolution, conv_p5 or conv_c5. Of
    # build_timm_fpn_backbone and build_particle_resnet_fpn_backbone.
    cfg.MODEL.FPN.TOP_BLOCK = "maxpool"


def _add_solver(cfg: CfgNode) -> None:
    """Add the keys of epochs, precision, and of the hooks that watch the evaluation."""
    # Maximum number of passes over the training set; 0 leaves SOLVER.MAX_ITER as it is.
    cfg.SOLVER.MAX_EPOCHS = 0
    # Warm-up lasts at most this fraction of the training, however small the data set.
    cfg.SOLVER.WARMUP_MAX_SHARE = 0.1
    # Epochs between checkpoints; 0 leaves SOLVER.CHECKPOINT_PERIOD as it is.
    cfg.SOLVER.CHECKPOINT_PERIOD_EPOCHS = 0.0
    # Number of periodic checkpoints that are kept, the newest ones.
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 3
    # Train on fewer CPU threads while other processes compute (docs/training.md); without
    # effect if OMP_NUM_THREADS is set. Results then differ in their last bits.
    cfg.SOLVER.ADAPT_THREADS = False

    # Lower the LR by FACTOR when METRIC has not improved for more than PATIENCE evaluations
    # (torch's ReduceLROnPlateau), within warm-up and the schedule of LR_SCHEDULER_NAME.
    cfg.SOLVER.PLATEAU = CfgNode()
    cfg.SOLVER.PLATEAU.ENABLED = False
    # Any flattened metric of the evaluation: validation/total_loss, segm/AP50, bbox/AP-Fiber, …
    # Losses (validation/…), false positives on blanks (blank/…) and mean absolute errors
    # (counting/count_MAE, …) are minimised, all others maximised.
    cfg.SOLVER.PLATEAU.METRIC = "validation/total_loss"
    cfg.SOLVER.PLATEAU.FACTOR = 0.1
    cfg.SOLVER.PLATEAU.PATIENCE = 5
    # Relative change that counts as an improvement.
    cfg.SOLVER.PLATEAU.THRESHOLD = 1e-4
    # Lowest factor on the scheduled LR.
    cfg.SOLVER.PLATEAU.MIN_SCALE = 1e-4

    # Stop when METRIC has not improved for PATIENCE evaluations.
    cfg.SOLVER.EARLY_STOPPING = CfgNode(
        {"ENABLED": False, "METRIC": "validation/total_loss", "PATIENCE": 10, "THRESHOLD": 1e-4}
    )

    # Keep the weights of the evaluation with the best METRIC as model_best.pth.
    cfg.SOLVER.BEST_CHECKPOINT = CfgNode({"ENABLED": True, "METRIC": "segm/AP50"})

    # Mixed precision is used on CUDA; on the CPU only if this is set as well and the processor
    # has bf16 instructions.
    cfg.SOLVER.AMP.ON_CPU = False
    # auto (bf16 if the card has it, else fp16), bfloat16 or float16.
    cfg.SOLVER.AMP.DTYPE = "auto"


def _add_optimizer(cfg: CfgNode) -> None:
    """Add the keys of the optimizer, of averaged weights and of frozen parts."""
    # SGD or AdamW (Loshchilov and Hutter 2019), which takes LRs a hundred times lower.
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.ADAMW_BETAS = (0.9, 0.999)
    # Number of equal parts in which a batch goes through the model; gradients are averaged: an
    # iteration is still one step on IMS_PER_BATCH images, in a fraction of the memory.
    cfg.SOLVER.ACCUMULATE = 1
    # Factor on the LR of the network below the feature pyramid.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    # Factor on the LR for each block of a ViT between a weight and the heads; 0.7 for ViT-B.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # SOLVER.STEPS in epochs; empty leaves the iterations of SOLVER.STEPS as they are.
    cfg.SOLVER.STEPS_EPOCHS = []
    # Beginnings of the names of parameters that are not trained: backbone.bottom_up,
    # proposal_generator, roi_heads.mask_head, … Their norm layers keep their statistics.
    cfg.SOLVER.FREEZE = []
    # Evaluate and save an exponential moving average of the weights; each step keeps the share
    # DECAY of it.
    cfg.SOLVER.EMA = CfgNode({"ENABLED": False, "DECAY": 0.999})


def _add_test(cfg: CfgNode) -> None:
    """Add the keys of evaluation."""
    # Epochs between evaluations; 0 leaves TEST.EVAL_PERIOD (iterations) as it is.
    cfg.TEST.EVAL_PERIOD_EPOCHS = 0.0
    # The validation loss, of so many RoIs sampled per image.
    cfg.TEST.VAL_LOSS = CfgNode({"ENABLED": True, "BATCH_SIZE_PER_IMAGE": 128})
    # Images of the first test set whose predictions TensorBoard shows beside the truth, at each
    # evaluation.
    cfg.TEST.PICTURES = 4
    # Minimum score of the predicted masks whose union semantic IoU and Dice judge.
    cfg.TEST.SEMANTIC_SCORE_THRESH = 0.5
    # Proposals that RPN passes on for a crowded tile of a large image, before and after its NMS;
    # other tiles keep MODEL.RPN's own numbers. Heads whose boxes depend on each other, such as
    # Cascade's, get them for every tile. Detections of a tile are not capped.
    cfg.TEST.TILE_TOPK = 2000
    # Test-time augmentation sees each image upside down, too; TEST.AUG.FLIP is its mirror image.
    cfg.TEST.AUG.VERTICAL_FLIP = False
    # Detections of at least this score on images without annotations are its false positives.
    cfg.TEST.BLANK_SCORE_THRESH = 0.5


def _add_counting(cfg: CfgNode) -> None:
    """Add TEST.COUNTING: counts, matched F1 and size errors; see docs/counting.md."""
    counting = cfg.TEST.COUNTING = CfgNode()
    counting.ENABLED = True
    # A detection counts as a particle from this score on.
    counting.SCORE_THRESH = 0.5
    # One number for each class instead. If empty, evaluation takes the ones that microplastics
    # thresholds stored in the checkpoint, if any.
    counting.CLASS_SCORE_THRESH = []
    # A detection is not counted if a better-scored one covers more than this fraction of it; 1
    # counts all. microplastics predict does the same; AP is not affected.
    counting.MAX_OVERLAP = 0.5
    # Errors of length, Feret diameter and area, and counts by size class, take about 1 ms a
    # particle: "eval_only", "always" (in training's evaluations too) or "never".
    counting.SIZES = "eval_only"
    # Size classes by maximum Feret diameter: below the first bound, between each two, from the
    # last; in "px", or in "um" if every image of the JSON has its um_per_px.
    counting.SIZE_BOUNDS = [32.0, 96.0]
    counting.SIZE_UNIT = "px"


def _add_augmentation(cfg: CfgNode) -> None:
    """Add INPUT.AUG, whose augmentations are all off."""
    # Each is applied to an image with its probability PROB, in the order of build_augmentations in
    # microplastics/data/mapper.py. INPUT.RANDOM_FLIP may also be "both".
    aug = cfg.INPUT.AUG = CfgNode()
    # A window (height, width) around a random particle, in px of the photograph, whose centre
    # lies off the particle's by at most SHIFT of the window's half.
    aug.CROP = CfgNode({"PROB": 0.0, "SIZE": (512, 512), "SHIFT": 0.5})
    # A turn by 90, 180 or 270 degrees.
    aug.RIGHT_ANGLES = CfgNode({"PROB": 0.0})
    # A turn by up to MAX_ANGLE degrees. FRAME: "same", "expand" or "inside" (no border in view);
    # BORDER: "reflect" (without the particles), "median" or "black".
    aug.ROTATION = CfgNode({"PROB": 0.0, "MAX_ANGLE": 180.0, "FRAME": "same", "BORDER": "reflect"})
    # A factor on the size that MIN_SIZE_TRAIN gives; MAX_SIZE_TRAIN still bounds it.
    aug.SCALE = CfgNode({"PROB": 0.0, "RANGE": (0.8, 1.25)})
    # Factors on the values, on their distance from the image's mean, and from each pixel's grey.
    aug.BRIGHTNESS = CfgNode({"PROB": 0.0, "RANGE": (0.8, 1.2)})
    aug.CONTRAST = CfgNode({"PROB": 0.0, "RANGE": (0.8, 1.2)})
    aug.SATURATION = CfgNode({"PROB": 0.0, "RANGE": (0.7, 1.3)})
    # All hues turned by up to MAX_SHIFT degrees.
    aug.HUE = CfgNode({"PROB": 0.0, "MAX_SHIFT": 10.0})
    # Standard deviation in px; KIND: "gaussian", "defocus" (a disc) or "both" (either).
    aug.BLUR = CfgNode({"PROB": 0.0, "SIGMA": (0.5, 1.5), "KIND": "both"})
    # Standard deviation in grey levels, and variance of the shot noise for each level of light.
    aug.NOISE = CfgNode({"PROB": 0.0, "SIGMA": (1.0, 6.0), "SHOT": (0.0, 0.3)})
    # Quality of the JPEG packing.
    aug.JPEG = CfgNode({"PROB": 0.0, "QUALITY": (40, 95)})
    # 1 to MAX_PARTICLES particles of another image, scaled, flipped and, with ROTATE, turned; they
    # cover at most MAX_COVER of any other; their surroundings fade over EDGE px. OCCLUSION:
    # "modal" cuts what they cover out of the masks below, "amodal" leaves those whole.
    aug.COPY_PASTE = CfgNode(
        {
            "PROB": 0.0,
            "MAX_PARTICLES": 10,
            "MAX_COVER": 0.3,
            "SCALE": (0.8, 1.25),
            "ROTATE": True,
            "EDGE": 1.0,
            "OCCLUSION": "modal",
        }
    )
    # Windows of four images, each scaled by SCALE, in the quarters of one.
    aug.MOSAIC = CfgNode({"PROB": 0.0, "SCALE": (0.5, 1.0)})


def get_cfg() -> CfgNode:
    """Detectron2's default config with the project's keys added."""
    cfg = _detectron2_get_cfg()
    add_microplastics_config(cfg)
    return cfg


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read a YAML and apply trailing ``KEY VALUE`` pairs; the config is not frozen.

    Args:
        config_file: path of a yacs YAML, or a name of :mod:`microplastics.model_zoo` such as
            ``r50``; empty for the defaults.
        opts: alternating keys and values, as Detectron2's argument parser collects them.

    Raises:
        UserError: file_missing, config_invalid (not YAML, an unknown key, a value of another type).
    """
    cfg = get_cfg()
    if config_file:
        path = _path_of(config_file)
        with merging(cfg, config_file):
            _check_files(str(path), [])
            # Detectron2's default runs code that a YAML names.
            cfg.merge_from_file(str(path), allow_unsafe=False)
    merge_options(cfg, opts)
    return cfg


def _check_files(path: str, read: list[str]) -> None:
    """Refuse a YAML, or one that it derives from, that is a bomb, a circle or elsewhere.

    Args:
        path: of the YAML.
        read: those read so far, which grows.

    Raises:
        ValueError, UserError: it is refused.
    """
    read.append(path)
    if len(read) > _MAX_FILES:
        raise ValueError(f"it derives from itself, or from more than {_MAX_FILES} files")
    data = parse_yaml(read_text(path))
    bases = data.get("_BASE_", []) if isinstance(data, dict) else []
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or base.startswith(("http://", "https://")):
            raise ValueError(f"its _BASE_ is {base!r}; expected the path of a file")
        if base.startswith("~"):
            base = os.path.expanduser(base)
        _check_files(os.path.join(os.path.dirname(path), base), read)


def check_derived(output: str | os.PathLike, config_file: str) -> None:
    """Refuse an output that is no YAML, or is the config that it would derive from.

    Raises:
        UserError: ``option_invalid``, ``option_conflict``.
    """
    if Path(output).suffix not in (".yaml", ".yml"):
        raise UserError(
            f"{output} is no YAML; expected a name that ends in .yaml.", code="option_invalid"
        )
    if config_file and Path(output).resolve() == _path_of(config_file):
        raise UserError(
            f"{output} is the config itself; expected another file.", code="option_conflict"
        )


def write_derived(
    output: str | os.PathLike,
    config_file: str,
    values: Mapping[str, Any],
    comments: Sequence[str] = (),
) -> None:
    """Write a config that derives from another one, completely or not at all.

    Args:
        output: ``.yaml`` to write.
        config_file: path or name of the other one, for ``_BASE_``; empty for none.
        values: by dotted key.
        comments: lines above.

    Raises:
        UserError: as of :func:`check_derived`.
    """
    check_derived(output, config_file)
    tree: dict[str, Any] = {}
    if config_file:
        base = _path_of(config_file)
        tree["_BASE_"] = base.name if base.parent == Path(output).resolve().parent else str(base)
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = _plain(value)
    text = yaml.safe_dump(tree, default_flow_style=None, sort_keys=False, width=98)
    lines = [line for comment in comments for line in textwrap.wrap(comment, 98)]
    with atomic_write(output) as file:
        file.write("".join(f"# {line}\n" for line in lines) + text)


def _path_of(config_file: str) -> Path:
    found = config_file if os.path.isfile(config_file) else model_zoo.config_file(config_file)
    return Path(found).resolve()


def _plain(value: Any) -> Any:
    """Lists for tuples, which YAML has not."""
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def merge_options(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Apply ``KEY VALUE`` pairs to a config in place, or raise config_invalid."""
    opts = [str(opt) for opt in opts]
    if len(opts) % 2:
        raise UserError(
            f"Config options are KEY VALUE pairs, but {opts[-1]!r} has no partner; quote values "
            "that contain spaces.",
            code="config_invalid",
        )
    with merging(cfg, "the command line"):
        cfg.merge_from_list(opts)


@contextlib.contextmanager
def merging(cfg: CfgNode, source: str) -> Iterator[None]:
    """Translate the errors of a merge into config_invalid, or file_missing (a ``_BASE_``).

    Args:
        cfg: the config.
        source: where the values come from, for the messages.
    """
    try:
        yield
    except UserError as error:  # of a file that it derives from
        raise UserError(f"{source}: {error}", code=error.code) from error
    except OSError as error:
        raise UserError(
            f"{source} cannot be read: {error}; check its _BASE_.", code="file_missing"
        ) from error
    except Exception as error:
        # yacs, yaml and ast raise KeyError, AssertionError, SyntaxError and more.
        text = error.args[0] if isinstance(error, KeyError) else error
        problem = " ".join(str(text).split())
        if "on-existent" in problem:
            key = problem.rpartition(" ")[2]
            close = difflib.get_close_matches(
                key, [name for name, _ in leaves(cfg)], n=1, cutoff=0.5
            )
            hint = f"did you mean {close[0]}" if close else "see microplastics/config.py"
            problem = f"{source} sets {key}, which is not a config key; {hint}?"
        else:
            if len(problem) > 300:  # the values are in the middle, the key last
                problem = f"{problem[:150]} … {problem[-100:]}"
            problem = (
                f"{source} is not a valid config ({problem or type(error).__name__}); "
                "expected YAML with the keys and types of microplastics/config.py."
            )
        raise UserError(problem, code="config_invalid") from error


def leaves(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a config, or of nested options, by their dotted keys."""
    for key, value in node.items():
        if isinstance(value, dict):  # as a CfgNode is
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
