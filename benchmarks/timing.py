"""Taking turns, and the figures that come of it.

Two runs one after the other differ by what else the machine does. Contestants that take turns
meet the same conditions, so each round gives one ratio, and the median of the ratios is told with
their spread.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.agreement import Check

# Seconds by what was measured; each call of a contestant returns the same keys.
Contestant = Callable[[], Mapping[str, float]]


def timed(function: Callable[[], Any], device: str | torch.device = "cpu") -> tuple[float, Any]:
    """Seconds that a call takes, until the device is done with it, and what it returned."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = function()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def alternate(
    contestants: Mapping[str, Contestant], rounds: int, warmup: int = 0
) -> dict[str, dict[str, list[float]]]:
    """Let contestants take turns; who begins changes from round to round.

    Args:
        contestants: by name; each call measures itself and returns seconds.
        rounds: that count.
        warmup: rounds before them that do not.

    Returns:
        What was measured, to contestant, to seconds round by round.
    """
    names = list(contestants)
    seconds: dict[str, dict[str, list[float]]] = {}
    for number in range(-warmup, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            for measure, value in contestants[name]().items():
                if number >= 0:
                    seconds.setdefault(measure, {n: [] for n in names})[name].append(float(value))
    return seconds


@dataclass(frozen=True)
class Spread:
    """Median and extremes of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Measurement:
    """One thing measured on several contestants.

    Attributes:
        label: what was measured, with its unit.
        seconds: by contestant, round by round.
        reference: the contestant that the others are compared with.
        targets: highest ratio to the reference that is wanted, by contestant.
    """

    label: str
    seconds: dict[str, list[float]]
    reference: str
    targets: dict[str, float] = field(default_factory=dict)

    def ratio(self, name: str) -> Spread:
        """Spread of the rounds' ratios, contestant / reference."""
        pairs = zip(self.seconds[name], self.seconds[self.reference], strict=True)
        return Spread.of([own / other for own, other in pairs])

    def met(self, name: str) -> bool | None:
        """Whether the median ratio keeps to the target; ``None`` where there is none."""
        return self.ratio(name).median <= self.targets[name] if name in self.targets else None

    def rows(self) -> list[list[str]]:
        """One row a contestant, for the table."""
        rows = []
        for name, values in self.seconds.items():
            spread, ratio = Spread.of(values), self.ratio(name)
            ratios, target = ["1", ""], ""
            if name != self.reference:
                ratios = [_ratio(ratio.median), f"{_ratio(ratio.low)} – {_ratio(ratio.high)}"]
            if name in self.targets:
                verdict = "met" if self.met(name) else "MISSED"
                target = f"at most {_ratio(self.targets[name])}: {verdict}"
            rows.append(
                [
                    "" if rows else self.label,
                    name,
                    readable(spread.median),
                    f"{readable(spread.low)} – {readable(spread.high)}",
                    *ratios,
                    target,
                ]
            )
        return rows

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        contestants = {}
        for name, values in self.seconds.items():
            contestants[name] = {"seconds": values, "median": statistics.median(values)}
            if name != self.reference:
                ratio = self.ratio(name)
                contestants[name]["ratio"] = vars(ratio)
                if name in self.targets:
                    contestants[name].update(target=self.targets[name], met=self.met(name))
        return {"label": self.label, "reference": self.reference, "contestants": contestants}


@dataclass
class Report:
    """What a benchmark has found.

    Attributes:
        settings: what was run on what, by name.
        measurements: the times.
        checks: what had to agree.
        notes: how the sides differ, for the reader's judgement.
    """

    settings: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def disagreements(self) -> list[Check]:
        """Checks that failed."""
        return [check for check in self.checks if not check.agrees]

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.settings.items()]
        rows = [row for measurement in self.measurements for row in measurement.rows()]
        headers = ["", "", "median", "min – max", "ratio", "min – max", "target"]
        lines += ["", tabulate(rows, headers, disable_numparse=True), ""]
        for check in self.checks:
            lines.append(f"{check.name}: {'agree' if check.agrees else 'DIFFER'} ({check.detail})")
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "settings": self.settings,
            "measurements": [measurement.as_dict() for measurement in self.measurements],
            "checks": [vars(check) for check in self.checks],
            "notes": self.notes,
        }


def readable(value: float) -> str:
    """Seconds as s or ms."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value > 0.5 else f"1/{1 / value:.3g}"
