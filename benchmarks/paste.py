"""Masks of a large frame to COCO RLEs: Detectron2's frames beside crops, time and memory."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.layers import paste_masks_in_image

from benchmarks.agreement import Check
from benchmarks.timing import Measurement, Report, alternate, timed
from microplastics.structures.crop_masks import CropMasks

PLAIN, OURS = "Detectron2", "ours, CropMasks"
# Of issue 4, at 4000 px and 100 masks.
TIME_TARGET, MEMORY_TARGET = 1 / 100, 16e6


def measure(size: int, count: int, repeat: int, seed: int, report: Report) -> None:
    """Add time, memory and agreement to a report.

    Args:
        size: side of the frame, in px.
        count: masks of about 100 px.
        repeat: turns.
        seed: of masks and places.
        report: is added to.
    """
    probs, boxes = _inputs(size, count, seed)
    rles: dict[str, list] = {}

    def turn(name: str) -> dict[str, float]:
        seconds, rles[name] = timed(lambda: _SIDES[name](probs, boxes, size))
        return {"paste": seconds}

    sides = {name: lambda n=name: turn(n) for name in _SIDES}
    seconds = alternate(sides, repeat)["paste"]
    marked = size >= 4000
    report.measurements.append(
        Measurement(
            f"paste and encode {count} masks, {size} x {size} px",
            seconds,
            PLAIN,
            {OURS: TIME_TARGET} if marked else {},
        )
    )
    equal = rles[OURS] == rles[PLAIN]
    report.checks.append(Check("pasted RLEs", equal, f"{count} masks, byte for byte"))
    peaks = {name: peak_memory(name, size, count, seed) for name in _SIDES}
    words = ", ".join(f"{name} {bytes_ / 1e6:.1f} MB" for name, bytes_ in peaks.items())
    if marked:
        verdict = "met" if peaks[OURS] <= MEMORY_TARGET else "MISSED"
        words += f" (at most {MEMORY_TARGET / 1e6:.0f} MB: {verdict})"
    report.notes.append(f"peak memory of {count} masks in {size} x {size} px: {words}")


def peak_memory(name: str, size: int, count: int, seed: int) -> int:
    """Bytes that one side takes at most above what its process had before, in a process of its own.

    Raises:
        RuntimeError: the process failed.
    """
    arguments = [name, size, count, seed, torch.get_num_threads()]
    result = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"Measuring the memory of {name} failed: {result.stderr[-2000:]}")
    return int(result.stdout.splitlines()[-1])


def _inputs(size: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 28, 28) probabilities of discs, and their boxes in a frame of ``size`` px."""
    generator = torch.Generator().manual_seed(seed)
    extent = min(100.0, size / 2) * (0.5 + torch.rand(count, 2, generator=generator))
    corner = torch.rand(count, 2, generator=generator) * (size - extent)
    axis = torch.linspace(-1, 1, 28)
    disc = 1 - 0.6 * (axis[:, None] ** 2 + axis**2)
    probs = (disc + 0.1 * torch.randn(count, 28, 28, generator=generator)).clamp(0, 1)
    return probs, torch.cat([corner, corner + extent], dim=1)


def _plain(probs: torch.Tensor, boxes: torch.Tensor, size: int) -> list[dict]:
    return encode(paste_masks_in_image(probs, boxes, (size, size), threshold=0.5))


def _ours(probs: torch.Tensor, boxes: torch.Tensor, size: int) -> list[dict]:
    return CropMasks.paste(probs, boxes, (size, size)).to_rles()


_SIDES: dict[str, Callable[[torch.Tensor, torch.Tensor, int], list[dict]]] = {
    PLAIN: _plain,
    OURS: _ours,
}


def encode(masks: torch.Tensor) -> list[dict]:
    """COCO RLEs of full-frame masks, as Detectron2's evaluator makes them."""
    return [
        mask_util.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0]
        for mask in masks.numpy()
    ]


def _peak_of(name: str, size: int, count: int, seed: int, threads: int) -> int:
    torch.set_num_threads(threads)
    probs, boxes = _inputs(size, count, seed)
    # A small one first: what torch loads on first use is no part of the work.
    _SIDES[name](*_inputs(64, 2, seed), 64)
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # Linux: the peak starts again from what is resident now
    before = _peak_resident()
    _SIDES[name](probs, boxes, size)
    return _peak_resident() - before


def _peak_resident() -> int:
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # In kB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print(_peak_of(*json.loads(sys.argv[1])))
