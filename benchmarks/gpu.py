"""What a GPU does: its tests, training in mixed precision, inference and memory in one table."""

import gc
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultPredictor
from tabulate import tabulate

from benchmarks.agreement import Check
from benchmarks.infer import our_contestant, plain_contestant
from benchmarks.infer_agreement import difference
from benchmarks.setting import machine, prepare, require_positive, seeded_model, with_keys
from benchmarks.timing import Report, readable, timed
from benchmarks.train import SteppedOurs, all_hooks
from microplastics.config import load_config
from microplastics.data.images import read_image
from microplastics.engine.defaults import cpu_has_bf16
from microplastics.engine.trainer import Trainer
from microplastics.inference.predictor import Predictor
from microplastics.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BATCH = 8
# Least fraction of detections that two sides find alike: those of random weights have ties.
_ALIKE = 0.9


@dataclass
class Row:
    """One line of the table.

    Attributes:
        config: its name.
        what: training or inference, precision, images at a time.
        images: images of an iteration, or 1.
        seconds: of an iteration or an image, each turn.
        data: median seconds of an iteration spent waiting for its batch, or None.
        memory: peak of the allocated GPU memory in bytes, weights included, or None.
    """

    config: str
    what: str
    images: int
    seconds: list[float]
    data: float | None = None
    memory: int | None = None

    @property
    def cells(self) -> list[str]:
        """The line as it is printed."""
        median, low = statistics.median(self.seconds), min(self.seconds)
        return [
            self.config,
            self.what,
            f"{readable(median)} ({readable(low)} – {readable(max(self.seconds))})",
            "" if self.data is None else readable(self.data),
            f"{self.images / median:.3g}",
            "" if self.memory is None else f"{self.memory / 2**30:.2f} GiB",
        ]


@dataclass
class GpuReport(Report):
    """The table, with what had to agree and what was left out."""

    rows: list[Row] = field(default_factory=list)

    def __str__(self) -> str:
        headers = ["config", "what", "time", "waiting for data", "images a second", "peak memory"]
        table = tabulate(
            [row.cells for row in self.rows], headers, tablefmt="pipe", disable_numparse=True
        )
        lines = [f"- {name}: {value}" for name, value in self.settings.items()]
        for check in self.checks:
            lines.append(f"- {check.name}: {'good' if check.agrees else 'BAD'} ({check.detail})")
        lines += [f"- Note: {note}" for note in self.notes]
        return "\n".join([*lines, "", table])

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "settings": self.settings,
            "rows": [vars(row) for row in self.rows],
            "checks": [vars(check) for check in self.checks],
            "notes": self.notes,
        }


def benchmark(
    config_file: Sequence[str] = ("r50", "demo"),
    opts: Sequence[str] = (),
    *,
    folder: Path,
    device: str = "cuda",
    images: int = 24,
    size: int | None = None,
    iterations: int = 8,
    repeat: int = 4,
    minutes: float = 8.0,
    tests: Sequence[str] = ("tests",),
    seed: int = 1,
) -> GpuReport:
    """Run the tests marked ``gpu``, then train and predict with each config.

    Each step is run once before it is measured. What has not begun when the time is over, or needs
    more memory than there is, is left out and named.

    Args:
        config_file: names or paths of configs.
        opts: KEY VALUE pairs for all of them.
        folder: takes the rendered data and the trainings.
        device: ``cuda``, or ``cpu`` to try the same without a GPU.
        images: number of images to render for each config.
        size: their side in px; the config's INPUT.MIN_SIZE_TEST if None.
        iterations: of a turn of training.
        repeat: turns.
        minutes: after which nothing new begins.
        tests: files or folders of tests below the checkout.
        seed: of data, weights and order.

    Raises:
        UserError: ``device_unavailable``, or a config does not fit.
    """
    require_positive(images=images, iterations=iterations, repeat=repeat)
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "There is no GPU that torch can use here; add --device cpu to try the same on the "
            "processor.",
            code="device_unavailable",
        )
    end = time.monotonic() + 60 * minutes
    report = GpuReport(_settings(device))
    report.checks.append(_run_tests(tests, max(60.0, 30 * minutes)))
    for number, name in enumerate(config_file):
        place = folder / f"{number}"
        place.mkdir()
        on_cpu = ("SOLVER.AMP.ON_CPU", True) if torch.device(device).type == "cpu" else ()
        own = ("MODEL.DEVICE", device, "SOLVER.AMP.ENABLED", True, *on_cpu, *opts)
        side = size or load_config(name, own).INPUT.MIN_SIZE_TEST
        shared = {"split": "train", "dataset": None, "images": images, "weights": ""}
        cfg = prepare(place, name, own, size=side, seed=seed, **shared)
        torch.save({"model": seeded_model(cfg).state_dict()}, place / "weights.pth")
        short = Path(name).stem.removeprefix("microplastics_")
        steps = [*_trainings(cfg, place, iterations, repeat), *_predictions(cfg, place, repeat)]
        found: dict[str, list[dict]] = {}
        for what, step in steps:
            if time.monotonic() > end:
                report.notes.append(f"{short}, {what} was left out: {minutes:g} minutes were over")
                continue
            try:
                row, results = step()
            except torch.OutOfMemoryError:
                report.notes.append(f"{short}, {what} needs more memory than there is")
                continue
            finally:
                _forget(device)
            row.config, row.what = short, what
            report.rows.append(row)
            found[what] = results
        _compare(short, found, report)
    return report


def _settings(device: str) -> dict[str, Any]:
    settings = machine(device)
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        settings["GPU"] = (
            f"{properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, {bf16} bf16, "
            f"TF32 in convolutions {'on' if torch.backends.cudnn.allow_tf32 else 'off'}"
        )
    return settings


def _run_tests(tests: Sequence[str], seconds: float) -> Check:
    """Run the tests marked gpu in a process of their own."""
    options = ("-q", "-m", "gpu", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *options, *tests]
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return Check("tests on the GPU", False, f"not done after {seconds:.0f} s")
    lines = [line for line in done.stdout.splitlines() if line.strip()] or [done.stderr[-200:]]
    failed = [line for line in lines if re.match("(FAILED|ERROR) ", line)]
    return Check("tests on the GPU", done.returncode == 0, "; ".join([lines[-1], *failed]))


# A step measures itself: a row, and the predictions if it makes some.
Step = tuple[str, Callable[[], tuple[Row, list[dict]]]]


def _trainings(cfg: CfgNode, folder: Path, iterations: int, repeat: int) -> Iterator[Step]:
    """Training in the precisions that the device has."""
    cuda = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    dtypes = ("bfloat16", "float16") if cuda else ("bfloat16",) * cpu_has_bf16()
    for name in ("fp32", *dtypes):
        keys = ("SOLVER.AMP.ENABLED", name != "fp32", "OUTPUT_DIR", str(folder / name))
        keys += ("SOLVER.AMP.DTYPE", "auto" if name == "fp32" else name)
        own = all_hooks(with_keys(cfg, *keys))
        words = f"training, {name}, {cfg.SOLVER.IMS_PER_BATCH} images"
        yield words, lambda own=own: (_train(own, folder, iterations, repeat), [])


def _train(cfg: CfgNode, folder: Path, iterations: int, repeat: int) -> Row:
    stepped = SteppedOurs(Trainer(cfg))
    trainer = stepped.trainer
    state = torch.load(folder / "weights.pth", map_location="cpu", weights_only=True)["model"]
    trainer.model.load_state_dict(state)
    stepped.start()
    stepped.advance(iterations)
    _reset_peak(cfg.MODEL.DEVICE)
    seconds = [stepped.advance(iterations)["iteration"] for _ in range(repeat)]
    waits = [value for value, _ in trainer.storage.history("data_time").values()]
    memory = _peak(cfg.MODEL.DEVICE)
    stepped.stop()
    data = statistics.median(waits[-iterations * repeat :])
    return Row("", "", cfg.SOLVER.IMS_PER_BATCH, seconds, data, memory)


def _predictions(cfg: CfgNode, folder: Path, repeat: int) -> Iterator[Step]:
    """Inference by Detectron2's predictor and ours, one image or several at a time."""
    dicts = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    pictures = [read_image(each["file_name"]) for each in dicts]
    weights = str(folder / "weights.pth")
    own = with_keys(cfg, "MODEL.WEIGHTS", weights)

    def plain() -> Callable[[], list[dict]]:
        predictor = DefaultPredictor(with_keys(cfg, "MODEL.WEIGHTS", ""))
        state = torch.load(weights, map_location="cpu", weights_only=True)["model"]
        predictor.model.load_state_dict(state)
        return plain_contestant(predictor, pictures)

    def ours(precision: str, batch: int) -> Callable[[], list[dict]]:
        names = [f"class {number}" for number in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
        predictor = Predictor(own, names, precision=precision, batch_size=batch)
        return our_contestant(predictor, pictures)

    def step(build: Callable[[], Callable[[], list[dict]]]) -> Step:
        def measure() -> tuple[Row, list[dict]]:
            run, device = build(), cfg.MODEL.DEVICE
            # Compared without TF32, whose errors let detections of random weights change places.
            with torch.backends.cudnn.flags(allow_tf32=False):
                results = run()
            run()
            _reset_peak(device)
            seconds = [timed(run, device)[0] / len(pictures) for _ in range(repeat)]
            return Row("", "", 1, seconds, memory=_peak(device)), results

        return measure

    yield _PLAIN, step(plain)
    for precision in ("fp32", "bf16"):
        for batch in (1, BATCH):
            words = _OURS.format(precision, batch)
            yield words, step(lambda p=precision, b=batch: ours(p, b))


_PLAIN, _OURS = "inference, DefaultPredictor", "inference, ours, {}, {} at a time"


def _compare(config: str, found: dict[str, list[dict]], report: GpuReport) -> None:
    """Our predictions in fp32 must be those of DefaultPredictor, one at a time and together."""
    for batch in (1, BATCH):
        ours = _OURS.format("fp32", batch)
        if _PLAIN in found and ours in found:
            name = f"{config}, fp32, {batch} at a time, beside DefaultPredictor"
            both = difference(found[ours], found[_PLAIN])
            agree = both.alike >= _ALIKE * max(both.counts)
            report.checks.append(Check(name, agree, str(both)))


def _forget(device: str) -> None:
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def _reset_peak(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> int | None:
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
