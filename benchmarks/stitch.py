"""Putting windows together: perfect masks of each window, ours beside sahi's merging."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from benchmarks.agreement import Check
from benchmarks.setting import machine, require_positive
from benchmarks.timing import Measurement, Report, alternate, timed
from microplastics.data.tiling import Window, windows_of
from microplastics.inference.stitching.matching import union
from microplastics.inference.stitching.stitcher import Stitcher
from microplastics.measurement import Item, measure_many
from microplastics.structures.view import View, box_of, clip, common_pixels, tight
from microplastics.utils.errors import UserError

SAHI, OURS = "sahi GREEDYNMM", "ours"
TARGET = 1 / 8
_FIBER, _FRAGMENT, _DISC = range(3)
_SHARES = (0.3, 0.4, 0.3)
_NO_SAHI = (
    "sahi is not installed, so there is nothing to compare with: pip install sahi==0.12.8 into an "
    "environment of its own, and put that on PYTHONPATH."
)


class Particle(NamedTuple):
    """A true particle: its mask in the image, and its class."""

    view: View
    kind: int


class Found(NamedTuple):
    """What one contestant made of the windows.

    Attributes:
        views: masks.
        areas: px² that it says they have.
    """

    views: list[View]
    areas: np.ndarray


def benchmark(
    *,
    size: int = 10_000,
    particles: int = 10_000,
    tile: int = 512,
    overlap: int = 64,
    repeat: int = 3,
    seed: int = 0,
) -> Report:
    """Render particles, cut their masks by windows and let both put them together.

    Ours begins at the windows' masks and ends at one mask a particle. sahi merges polygons: making
    them of the masks is measured apart. Neither time holds reading images or a model.

    Args:
        size: side of the image in px.
        particles: discs, fragments and fibres on it; fibres up to 1,500 px long.
        tile: side of the windows in px.
        overlap: px that neighbours share.
        repeat: turns of each.
        seed: of the layout.

    Raises:
        UserError: the numbers do not fit together.
    """
    require_positive(size=size, particles=particles, tile=tile, repeat=repeat)
    if not 0 < overlap < tile:
        raise UserError(
            f"The overlap is {overlap} px and the tile {tile} px; the overlap must be at least 1 "
            "and smaller than the tile."
        )
    truth = draw_layout(size, particles, seed)
    windows = cut_by_windows(truth, size, tile, overlap)
    settings = machine()
    fragments = sum(len(views) for _, views, _ in windows)
    settings["Image"] = f"{size} px a side, {len(truth)} particles (seed {seed})"
    settings["Windows"] = f"{len(windows)} of {tile} px, overlap {overlap}: {fragments} fragments"
    report = Report(settings)
    found: dict[str, Found] = {}
    contestants = {OURS: lambda: _ours(windows, size, found)}
    if importlib.util.find_spec("sahi"):
        contestants = {SAHI: lambda: _sahi(windows, size, found), **contestants}
    else:
        report.notes.append(_NO_SAHI)
    seconds = alternate(contestants, repeat)
    reference = next(iter(contestants))
    targets = {OURS: TARGET} if reference == SAHI else {}
    report.measurements += [
        Measurement("masks put together", seconds["merge"], reference, targets),
        Measurement("with making polygons of masks", seconds["whole"], reference),
    ]
    lengths = _lengths([p.view for p in truth if p.kind == _FIBER])
    for name, result in found.items():
        _judge(name, truth, lengths, result, report)
    return report


def draw_layout(size: int, particles: int, seed: int) -> list[Particle]:
    """Particles at random places: discs, angular fragments, and bent fibres that may cross.

    Args:
        size: side of the image in px.
        particles: how many, each with at least 20 px in the image and in one piece.
        seed: of the layout.
    """
    rng = np.random.default_rng(seed)
    drawn: list[Particle] = []
    while len(drawn) < particles:
        kind = int(rng.choice(3, p=_SHARES))
        view = (_draw_fiber, _draw_fragment, _draw_disc)[kind](rng, size)
        view = tight(*clip(view, (0, 0, size, size)))
        mask = np.ascontiguousarray(view.mask)
        if mask.sum() < 20 or cv2.connectedComponents(mask.view(np.uint8), connectivity=4)[0] > 2:
            continue
        drawn.append(Particle(View(mask, view.x, view.y), kind))
    return drawn


def _draw_disc(rng: np.random.Generator, size: int) -> View:
    radius, (x, y) = rng.uniform(3, 25), rng.uniform(0, size, 2)
    side = int(radius) + 2
    columns = np.arange(int(x) - side, int(x) + side + 1)
    rows = np.arange(int(y) - side, int(y) + side + 1)
    inside = (columns + 0.5 - x) ** 2 + (rows[:, None] + 0.5 - y) ** 2 <= radius**2
    return View(inside, int(columns[0]), int(rows[0]))


def _draw_fragment(rng: np.random.Generator, size: int) -> View:
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(5, 45) * rng.uniform(0.6, 1, 9)
    corners = rng.uniform(0, size, 2) + radii[:, None] * np.stack(
        [np.cos(angles), np.sin(angles)], 1
    )
    return _raster(corners, 1, lambda canvas, points: cv2.fillPoly(canvas, [points], 1, shift=4))


def _draw_fiber(rng: np.random.Generator, size: int) -> View:
    length, width = np.exp(rng.uniform(np.log(40), np.log(1500))), int(rng.integers(3, 9))
    steps = np.full(int(length / 4) + 1, 4.0)
    bends = rng.normal(0, 0.02, len(steps)).cumsum() * 0.2
    ways = rng.uniform(0, 2 * np.pi) + bends.cumsum()
    points = np.stack([steps * np.cos(ways), steps * np.sin(ways)], 1).cumsum(axis=0)
    points += rng.uniform(0, size, 2) - points[len(points) // 2]
    return _raster(
        points,
        width,
        lambda canvas, line: cv2.polylines(canvas, [line], False, 1, width, cv2.LINE_8, 4),
    )


def _raster(points: np.ndarray, margin: int, draw: Callable) -> View:
    low = np.floor(points.min(axis=0)).astype(int) - margin - 1
    high = np.ceil(points.max(axis=0)).astype(int) + margin + 2
    canvas = np.zeros((high - low)[::-1], np.uint8)
    draw(canvas, np.round((points - low) * 16).astype(np.int32))
    return View(canvas.view(bool), *low.tolist())


def cut_by_windows(
    truth: Sequence[Particle], size: int, tile: int, overlap: int
) -> list[tuple[Window, list[View], list[int]]]:
    """What a perfect model shows in each window: one fragment a particle, and its class."""
    windows = windows_of(size, size, tile, overlap)
    corners = np.array([(x, y, x + width, y + height) for x, y, width, height in windows])
    shown: list[tuple[Window, list[View], list[int]]] = [(window, [], []) for window in windows]
    for particle in truth:
        x0, y0, x1, y1 = box_of(particle.view)
        meets = (corners[:, :2] < (x1, y1)).all(axis=1) & (corners[:, 2:] > (x0, y0)).all(axis=1)
        for number in np.flatnonzero(meets).tolist():
            view = tight(*clip(particle.view, corners[number].tolist()))
            if view.mask.size:
                shown[number][1].append(View(view.mask.copy(), view.x, view.y))
                shown[number][2].append(particle.kind)
    return shown


def _ours(windows: list, size: int, found: dict[str, Found]) -> Mapping[str, float]:
    def stitch() -> Any:
        stitcher = Stitcher((size, size))
        for window, views, kinds in windows:
            offsets = [(view.x, view.y) for view in views]
            masks = [view.mask for view in views]
            stitcher.add(window, masks, offsets, kinds, np.ones(len(views)))
        return stitcher.finish()

    seconds, result = timed(stitch)
    places = zip(result.masks, result.offsets.tolist(), strict=True)
    views = [View(mask, x, y) for mask, (x, y) in places]
    found[OURS] = Found(views, np.array([view.mask.sum() for view in views]))
    return {"merge": seconds, "whole": seconds}


def _sahi(windows: list, size: int, found: dict[str, Found]) -> Mapping[str, float]:
    from sahi.postprocess.combine import GreedyNMMPostprocess
    from sahi.prediction import ObjectPrediction
    from sahi.utils.cv import get_coco_segmentation_from_bool_mask

    def convert() -> list[Any]:
        predictions = []
        for _, views, kinds in windows:
            for view, kind in zip(views, kinds, strict=True):
                polygons = get_coco_segmentation_from_bool_mask(view.mask)
                if polygons:
                    predictions.append(
                        ObjectPrediction(
                            segmentation=polygons,
                            category_id=kind,
                            category_name=str(kind),
                            score=1.0,
                            shift_amount=[view.x, view.y],
                            full_shape=[size, size],
                        ).get_shifted_object_prediction()
                    )
        return predictions

    # What sahi takes by default for windows.
    merge = GreedyNMMPostprocess(match_threshold=0.5, match_metric="IOS", class_agnostic=False)
    converting, predictions = timed(convert)
    merging, merged = timed(lambda: merge(predictions))
    views = [_of_polygons(prediction.mask.segmentation) for prediction in merged]
    areas = [_polygon_area(prediction.mask.segmentation) for prediction in merged]
    found[SAHI] = Found(views, np.array(areas))
    return {"merge": merging, "whole": converting + merging}


def _of_polygons(polygons: list[list[float]]) -> View:
    rings = [np.array(polygon).reshape(-1, 2).astype(np.int32) for polygon in polygons]
    views = []
    for ring in rings:
        low, high = ring.min(axis=0), ring.max(axis=0) + 1
        canvas = np.zeros((high - low)[::-1], np.uint8)
        cv2.fillPoly(canvas, [ring - low], 1)
        views.append(View(canvas.view(bool), *low.tolist()))
    return union(views)


def _polygon_area(polygons: list[list[float]]) -> float:
    return sum(
        cv2.contourArea(np.array(polygon, dtype=np.float32).reshape(-1, 2)) for polygon in polygons
    )


def _lengths(views: Sequence[View]) -> np.ndarray:
    return np.array([s.length for s in measure_many([Item(v.mask, kind="fiber") for v in views])])


def _judge(
    name: str, truth: list[Particle], lengths: np.ndarray, found: Found, report: Report
) -> None:
    """Match each particle with the mask of most IoU and tell how far off it is."""
    boxes = np.array([box_of(view) for view in found.views]).reshape(-1, 4)
    partners, ious = [], []
    for view, _ in truth:
        box = box_of(view)
        meets = (boxes[:, :2] < box[2:]).all(axis=1) & (boxes[:, 2:] > box[:2]).all(axis=1)
        best = (0.0, -1)
        for number in np.flatnonzero(meets).tolist():
            other = found.views[number].mask
            common = common_pixels(view, found.views[number])
            best = max(best, (common / (view.mask.sum() + other.sum() - common), number))
        ious.append(best[0])
        partners.append(best[1])
    iou, partner = np.array(ious), np.array(partners)
    kinds = np.array([particle.kind for particle in truth])
    areas = np.array([particle.view.mask.sum() for particle in truth])
    fibers = np.flatnonzero((kinds == _FIBER) & (partner >= 0))
    measured = _lengths([found.views[k] for k in partner[fibers].tolist()])
    true = lengths[np.isin(np.flatnonzero(kinds == _FIBER), fibers)]
    errors = np.abs(measured - true) / true
    matched = partner >= 0
    lost = 1 - found.areas[partner[matched]] / areas[matched]
    count = len(found.views) - len(truth)
    detail = (
        f"count error {count:+d}, {int((iou <= 0.98).sum())} particles with IoU of 0.98 or less, "
        f"mean IoU {iou.mean():.4f}, length error mean {errors.mean() if len(errors) else 0:.2%} "
        f"max {errors.max(initial=0):.2%}, area lost median {np.median(lost):.2%}, of discs "
        f"{np.median(lost[kinds[matched] == _DISC]):.2%}"
    )
    if name == OURS:
        right = count == 0 and (iou > 0.98).all() and (errors < 0.01).all()
        report.checks.append(Check(f"{name}: every particle once and whole", bool(right), detail))
    else:
        report.notes.append(f"{name}: {detail}.")
