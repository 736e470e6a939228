"""Parameters, FLOPs, memory and time of the configs, as the table of docs/model_zoo.md."""

import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.analysis import FlopCountAnalysis
from tabulate import tabulate

from benchmarks.setting import machine, require_positive, set_frozen_norms
from microplastics import model_zoo
from microplastics.engine.trainer import Trainer
from microplastics.inference.detector import Detector, inference_copy
from microplastics.modeling.interface import num_classes
from microplastics.modeling.postprocessing import to_image
from microplastics.synthetic import render_image
from microplastics.utils.errors import UserError
from microplastics.utils.system import seed_all

_ROOT = Path(__file__).resolve().parent.parent
_COLUMNS = {
    "parameters": ("parameters, M", 1e6),
    "flops": ("GFLOPs", 1e9),
    "memory": ("memory, MB", 2**20),
    "seconds": ("CPU time, s", 1),
}


@dataclass
class ZooTable:
    """What the configs cost.

    Attributes:
        settings: what was run on what, by name.
        rows: a dict for each config: ``config``, ``parameters``, ``flops`` (multiplications with
            their additions), ``memory`` (bytes, at most, beyond what the process had before the
            model), ``seconds`` (of all cores, median) and ``detections``.
    """

    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    disagreements: Sequence = ()

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.settings.items()]
        headers = ["config", *(header for header, _ in _COLUMNS.values()), "detections"]
        cells = [
            [
                f"`{row['config']}`",
                *(_three_digits(row[key] / unit) for key, (_, unit) in _COLUMNS.items()),
                row["detections"],
            ]
            for row in self.rows
        ]
        return "\n".join([*lines, "", tabulate(cells, headers, "github", disable_numparse=True)])

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"settings": self.settings, "rows": self.rows}


def benchmark(
    *,
    configs: Sequence[str] = (),
    opts: Sequence[str] = (),
    size: int = 512,
    repeat: int = 3,
    seed: int = 1,
) -> ZooTable:
    """Measure each config in a process of its own, with random weights, on the CPU.

    Args:
        configs: names of the model zoo; those with different models if empty.
        opts: config KEY VALUE pairs for all of them.
        size: side of the square image in px, which the network gets as it is.
        repeat: images whose median time counts; one before them does not.
        seed: of the weights and the image.

    Raises:
        UserError: a config does not exist or cannot be measured.
    """
    require_positive(size=size, repeat=repeat)
    rows = []
    for name in configs or different_models():
        model_zoo.config_file(name)
        options = {"name": name, "opts": list(opts), "size": size, "repeat": repeat, "seed": seed}
        options["threads"] = torch.get_num_threads()
        command = [sys.executable, "-m", "benchmarks.zoo", json.dumps(options)]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            problem = (done.stderr.strip() or "no message").splitlines()[-1]
            raise UserError(f"{name} cannot be measured: {problem}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr)  # all are lost if the run is stopped before its end
    settings = {
        **machine(),
        "Image": f"{size} x {size} px, fp32, all detections up to the cap of the config",
        "Weights": f"random (seed {seed})",
        "Turns": repeat,
    }
    return ZooTable(settings, sorted(rows, key=lambda row: row["parameters"]))


def different_models() -> list[str]:
    """The configs of the zoo, of those with equal models the first one."""
    names: dict[str, str] = {}
    for name in sorted(model_zoo.config_names(), key=len):
        model = model_zoo.get_config(name).MODEL.clone()
        model.WEIGHTS = ""
        names.setdefault(model.dump(), name)
    return list(names.values())


def measure(
    name: str, opts: Sequence[str], size: int, repeat: int, seed: int, threads: int
) -> dict[str, Any]:
    """Measure one config in this process, which must have done nothing else."""
    torch.set_num_threads(threads)
    before = _peak_memory()
    cfg = _config(name, opts)
    seed_all(seed)
    model = Trainer.build_model(cfg).eval()
    image = torch.from_numpy(
        render_image(("zoo", seed), size, um_per_px=2.0)[0].transpose(2, 0, 1).copy()
    )
    set_frozen_norms(model, image)
    detector = Detector(
        inference_copy(model),
        [0.0] * num_classes(cfg),
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
    )

    seconds = []
    for _ in range(repeat + 1):
        # Other programs on the machine do not change the processor time, but the clock's.
        start = time.process_time()
        (found,) = detector([image], [(size, size)])
        found = to_image(found, (size, size), detector.staged)
        seconds.append(time.process_time() - start)
    memory = _peak_memory() - before
    with torch.no_grad():
        flops = FlopCountAnalysis(model, [{"image": image}]).unsupported_ops_warnings(False)
        total = flops.uncalled_modules_warnings(False).total()
    return {
        "config": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": total,
        "memory": memory,
        "seconds": statistics.median(seconds[1:]),
        "detections": len(found),
    }


def _peak_memory() -> int:
    """Greatest memory of this process so far, in bytes."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        # In Linux ru_maxrss begins with that of the process which started this one.
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def _config(name: str, opts: Sequence[str]) -> CfgNode:
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    # Random weights score nothing high: the heads get the full load that the caps let through.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.merge_from_list([str(opt) for opt in opts])
    cfg.freeze()
    return cfg


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
