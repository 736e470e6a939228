"""What Detectron2 0.5 needs changed to run on today's Python, numpy, Pillow and torch.

One small function a mend: it takes the text of a file of the release and returns it mended, or
raises `MendError` when the text it expects is not there, so that a mend can never be lost in
silence. `MENDS` says which functions go over which file. Nothing here imports Detectron2.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Mend = Callable[[str], str]


class MendError(Exception):
    """The text that a mend expects is not in the file."""


NO_COMPILED_OPS = "detectron2/utils/no_compiled_ops.py"
NO_COMPILED_OPS_TEXT = '''\
"""Stands where the compiled ops would be (added by microplastics: this build has none)."""


class _NoCompiledOps:
    """Any op that is asked for ends in a sentence, at the time of its use, not of its import."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(
            f"this build of Detectron2 has no compiled ops, and {name} is one: it is the "
            "pure-Python build of 0.5 that microplastics installs. Install Detectron2 from "
            "https://github.com/facebookresearch/detectron2 as its INSTALL page says to get them."
        )


_C = _NoCompiledOps()
'''


def _swap(text: str, old: str, new: str, count: int = 1) -> str:
    """Replaces `old`, which has to be there exactly `count` times."""
    found = text.count(old)
    if found != count:
        raise MendError(f"expected {old!r} {count} times, found it {found} times")
    return text.replace(old, new)


def _swap_alias(text: str, name: str, new: str, count: int) -> str:
    """Replaces the numpy alias `np.<name>`, and not names that only begin like it."""
    mended, found = re.subn(rf"\bnp\.{name}\b", new, text)
    if found != count:
        raise MendError(f"expected 'np.{name}' {count} times, found it {found} times")
    return mended


# --- the compiled ops are not there ---------------------------------------------------------


def ops_refuse_when_used(text: str) -> str:
    """Importing the module works; calling an op that has to be compiled says what is missing."""
    return _swap(
        text,
        "from detectron2 import _C\n",
        "from detectron2.utils.no_compiled_ops import _C\n",
    )


def rotated_nms_refuses_when_used(text: str) -> str:
    """The same for rotated NMS, which is reached through torch.ops."""
    text = _swap(
        text,
        "return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)",
        "return _C.nms_rotated(boxes, scores, iou_threshold)",
    )
    return _swap(
        text,
        "from torchvision.ops import nms  # BC-compat\n",
        "from torchvision.ops import nms  # BC-compat\n\n"
        "from detectron2.utils.no_compiled_ops import _C\n",
    )


def fast_eval_says_why_it_is_missing(text: str) -> str:
    """Stays an ImportError, on which callers fall back to pycocotools, but a clear one."""
    return _swap(
        text,
        "from detectron2 import _C\n",
        "try:\n"
        "    from detectron2 import _C\n"
        "except ImportError as e:\n"
        "    raise ImportError(\n"
        '        "this build of Detectron2 has no compiled ops, so COCOeval_opt is not here: "\n'
        '        "use pycocotools.cocoeval.COCOeval"\n'
        "    ) from e\n",
    )


def coco_evaluator_falls_back(text: str) -> str:
    """COCOEvaluator with its default arguments takes pycocotools, and its log says so."""
    text = _swap(
        text,
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "",
    )
    text = _swap(
        text,
        "from .evaluator import DatasetEvaluator\n",
        "from .evaluator import DatasetEvaluator\n\n"
        "try:\n"
        "    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
        "except ImportError:\n"
        "    COCOeval_opt = COCOeval\n",
    )
    return _swap(
        text,
        '"unofficial" if self._use_fast_impl else "official"',
        '"unofficial" if self._use_fast_impl and COCOeval_opt is not COCOeval else "official"',
    )


def env_names_this_build(text: str) -> str:
    """collect_env: having no `_C` is how this build is, and not a failure of a compiler."""
    text = _swap(
        text,
        'data.append(("detectron2._C", f"not built correctly: {e}"))',
        'data.append(("detectron2._C", "not built (pure Python build by microplastics)"))',
    )
    text = _swap(text, "except ImportError as e:\n", "except ImportError:\n")
    return _swap(
        text,
        "cxx = subprocess.check_output(\"'{}' --version\".format(cxx), shell=True)",
        "cxx = subprocess.check_output(\n"
        "                    \"'{}' --version\".format(cxx), shell=True, "
        "stderr=subprocess.DEVNULL\n"
        "                )",
    )


# --- caffe2 is gone from torch ---------------------------------------------------------------


def export_without_caffe2(text: str) -> str:
    """Tracing and scripting stay; what needs caffe2 is there only where caffe2 is."""
    return _swap(
        text,
        "from .api import *\n",
        "try:\n"
        "    from caffe2.proto import caffe2_pb2 as _caffe2_pb2\n"
        "except ImportError:\n"
        "    pass\n"
        "else:\n"
        "    from .api import *\n",
    )


# --- setuptools, Pillow, numpy ----------------------------------------------------------------


def configs_without_pkg_resources(text: str) -> str:
    """model_zoo: pkg_resources left setuptools in version 82."""
    text = _swap(text, "import pkg_resources\n", "")
    return _swap(
        text,
        "cfg_file = pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )",
        "cfg_file = os.path.join(\n"
        '        os.path.dirname(os.path.abspath(__file__)), "configs", config_path\n'
        "    )",
    )


def bilinear_by_its_name(text: str) -> str:
    """Image.LINEAR, an alias of BILINEAR, left Pillow in version 10."""
    return _swap(text, "interp=Image.LINEAR,", "interp=Image.BILINEAR,")


def plain_int(count: int) -> Mend:
    """np.int, an alias of int, left numpy in version 1.24."""

    def plain_int(text: str) -> str:
        return _swap_alias(text, "int", "int", count)

    return plain_int


def plain_float(count: int) -> Mend:
    """np.float, an alias of float, left numpy in version 1.24."""

    def plain_float(text: str) -> str:
        return _swap_alias(text, "float", "float", count)

    return plain_float


def plain_bool(count: int) -> Mend:
    """np.bool, an alias of bool, left numpy in version 1.24."""

    def plain_bool(text: str) -> str:
        return _swap_alias(text, "bool", "bool", count)

    return plain_bool


def plain_str(text: str) -> str:
    """np.str, an alias of str, left numpy in version 1.24."""
    return _swap_alias(text, "str", "str", 1)


# --- torch and Python ---------------------------------------------------------------------------


def meshgrid_with_indexing(text: str) -> str:
    """torch.meshgrid warns where its indexing is not named; "ij" is what it always did."""
    return _swap(
        text,
        "torch.meshgrid(shifts_y, shifts_x)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
    )


def meshgrid_with_indexing_in_panoptic(text: str) -> str:
    """The same in Panoptic-DeepLab."""
    mended, found = re.subn(
        r"(y_coord, x_coord = torch\.meshgrid\(\n(?: {8}.*\n)+?)( {4}\)\n)",
        r'\1        indexing="ij",' + "\n" + r"\2",
        text,
    )
    if found != 1:
        raise MendError(f"expected one torch.meshgrid over y_coord, x_coord, found {found}")
    return mended


def boxes_through_one_array(text: str) -> str:
    """torch warns where it is given a list of arrays, which the mapper does for every image."""
    return _swap(
        text,
        "target.gt_boxes = Boxes(boxes)\n",
        "target.gt_boxes = Boxes(np.asarray(boxes, dtype=np.float64).reshape(-1, 4))\n",
    )


def amp_by_device(text: str) -> str:
    """torch.cuda.amp is deprecated in favour of torch.amp, which is told the device."""
    text = _swap(text, "from torch.cuda.amp import GradScaler", "from torch.amp import GradScaler")
    text = _swap(text, "from torch.cuda.amp import autocast", "from torch.amp import autocast")
    return _swap(text, "with autocast():", 'with autocast("cuda"):')


def logger_warning(count: int) -> Mend:
    """Logger.warn is deprecated in favour of Logger.warning."""

    def logger_warning(text: str) -> str:
        return _swap(text, "logger.warn(", "logger.warning(", count)

    return logger_warning


_EVAL = "detectron2/evaluation"
MENDS: dict[str, tuple[Mend, ...]] = {
    "detectron2/layers/deform_conv.py": (ops_refuse_when_used,),
    "detectron2/layers/roi_align_rotated.py": (ops_refuse_when_used,),
    "detectron2/layers/rotated_boxes.py": (ops_refuse_when_used,),
    "detectron2/layers/nms.py": (rotated_nms_refuses_when_used,),
    f"{_EVAL}/fast_eval_api.py": (fast_eval_says_why_it_is_missing,),
    f"{_EVAL}/coco_evaluation.py": (coco_evaluator_falls_back, logger_warning(2)),
    f"{_EVAL}/lvis_evaluation.py": (logger_warning(2),),
    f"{_EVAL}/sem_seg_evaluation.py": (plain_int(2), plain_float(5), logger_warning(2)),
    f"{_EVAL}/pascal_voc_evaluation.py": (plain_bool(2),),
    "detectron2/utils/collect_env.py": (env_names_this_build,),
    "detectron2/utils/visualizer.py": (plain_bool(3),),
    "detectron2/utils/video_visualizer.py": (plain_bool(1),),
    "detectron2/export/__init__.py": (export_without_caffe2,),
    "detectron2/model_zoo/model_zoo.py": (configs_without_pkg_resources,),
    "detectron2/data/transforms/transform.py": (bilinear_by_its_name,),
    "detectron2/data/build.py": (plain_int(2),),
    "detectron2/data/detection_utils.py": (boxes_through_one_array,),
    "detectron2/data/datasets/pascal_voc.py": (plain_str,),
    "detectron2/data/datasets/coco.py": (logger_warning(2),),
    "detectron2/structures/masks.py": (plain_bool(2),),
    "detectron2/modeling/anchor_generator.py": (meshgrid_with_indexing,),
    "detectron2/projects/panoptic_deeplab/post_processing.py": (
        meshgrid_with_indexing_in_panoptic,
    ),
    "detectron2/engine/train_loop.py": (amp_by_device,),
    "detectron2/engine/defaults.py": (logger_warning(1),),
}


def mend(files: dict[str, bytes]) -> dict[str, bytes]:
    """Applies every mend.

    Args:
        files: path inside the package to content, as in the release.

    Returns:
        The same files with the mends, each changed file saying on its first line that it was
        changed and by what (the licence asks for that), and one file more.

    Raises:
        MendError: a file is missing, or a mend does not find the text that it expects; the
            message names the file and the mend.
    """
    mended = dict(files)
    for path, mends in MENDS.items():
        if path not in files:
            raise MendError(f"{path}: not in this release of Detectron2")
        text = files[path].decode("utf-8")
        for function in mends:
            try:
                text = function(text)
            except MendError as e:
                raise MendError(f"{path}: {function.__name__}: {e}") from None
        names = ", ".join(function.__name__ for function in mends)
        notice = f"# Changed by microplastics (tools/detectron2_mends.py): {names}\n"
        mended[path] = (notice + text).encode("utf-8")
    mended[NO_COMPILED_OPS] = NO_COMPILED_OPS_TEXT.encode("utf-8")
    return mended
