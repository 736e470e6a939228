"""``tools/predict.py``: from images to tables of measured particles."""

import argparse
import dataclasses
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from microplastics.config import load_config
from microplastics.engine.evaluate import choose_weights
from microplastics.engine.setup import check_output_dir
from microplastics.errors import UserError, WriteError
from microplastics.inference.image_list import InputImage, find_images
from microplastics.inference.mosaic import predict_mosaic
from microplastics.inference.opened import Opened, Opener, PaintedRegions
from microplastics.inference.options import run_options
from microplastics.inference.predictions import to_particles
from microplastics.inference.predictor import Predictor
from microplastics.inference.run import Run, image_in_memory
from microplastics.inference.tiling import Tiling, choose_tiling
from microplastics.modeling.duplicates import drop_duplicates

logger = logging.getLogger(__name__)

DEFAULT_THRESHOLD = 0.5
"""Least score of a particle where neither the command line nor the checkpoint has one."""

# Images whose files are written while the model is at work on the next ones.
_BEHIND = 3


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """What of a prediction is not the model's.

    Attributes:
        tile, overlap, largest, coarse: how images are cut; see
            :func:`microplastics.inference.tiling.choose_tiling`.
        join: put pieces of broken fibres together, in windows.
        max_overlap: of two detections, as of :func:`modeling.duplicates.distinct`; 1 keeps all.
    """

    tile: int | None = None
    overlap: int | None = None
    largest: float | None = None
    coarse: bool = True
    join: bool = True
    max_overlap: float = 0.5

    def tiling(self) -> dict[str, Any]:
        """The arguments of ``choose_tiling``."""
        names = ("tile", "overlap", "largest", "coarse")
        return {name: getattr(self, name) for name in names}


def predict_run(args: argparse.Namespace) -> int:
    """Do what the command line of ``tools/predict.py`` says, in each of its processes.

    Args:
        args: of :func:`microplastics.inference.arguments.parse_predict`.

    Returns:
        0, or 3 where images failed.

    Raises:
        UserError: an argument is wrong, the model cannot be loaded, or no image was finished.
    """
    options = run_options(args)
    images = find_images(args.input, exclude=options.output)
    check_output_dir(options.output)
    setup_logger(options.output, distributed_rank=comm.get_rank(), name="microplastics")
    predictor = make_predictor(args)
    max_overlap = args.max_overlap
    if max_overlap is None:
        max_overlap = predictor.cfg.TEST.COUNTING.MAX_OVERLAP
    if not 0 <= max_overlap <= 1:
        raise UserError(f"--max-overlap is {max_overlap:g}; give a share from 0 to 1.")
    how = PredictOptions(args.tile, args.overlap, args.largest, args.coarse, args.join, max_overlap)
    # Wrong numbers are told now, not once for each image.
    choose_tiling(predictor.cfg, (1, 1), **how.tiling())
    options = dataclasses.replace(options, max_pixels=predictor.cfg.INPUT.MAX_PIXELS)
    about = about_predictor(predictor, how)
    settings = {key: value for key, value in about.items() if key not in ("checkpoint", "device")}
    settings.update(config_settings(predictor.cfg))
    run = Run(images, options, predictor.class_names, about, settings)
    predict_images(predictor, run.begin(), run, how)
    return run.end()


def make_predictor(args: argparse.Namespace) -> Predictor:
    """The model that a command line names.

    Raises:
        UserError: it names none, or one that cannot be loaded.
    """
    if not (args.weights or args.config_file):
        raise UserError("Name a checkpoint with --weights, such as output/…/model_best.pth.")
    more = {
        "mask_threshold": args.mask_threshold,
        "precision": args.precision,
        "batch_size": args.batch_size,
        "score_threshold": args.confidence_threshold,
    }
    opts = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", str(DEFAULT_THRESHOLD), *args.opts]
    if not args.config_file:
        return Predictor.from_checkpoint(args.weights, opts, **more)
    cfg = load_config(args.config_file, opts)
    if args.weights:
        cfg.MODEL.WEIGHTS = args.weights
    cfg.freeze()
    return Predictor(choose_weights(cfg, weights_given=bool(args.weights)), **more)


def about_predictor(predictor: Predictor, how: PredictOptions) -> dict[str, Any]:
    """What run.json says of the model, plain values."""
    return {
        "checkpoint": os.path.abspath(predictor.cfg.MODEL.WEIGHTS),
        "checkpoint_sha256": predictor.weights_sha256,
        "score_thresholds": dict(
            zip(predictor.class_names, predictor.score_thresholds.tolist(), strict=True)
        ),
        "mask_threshold": predictor.mask_threshold,
        "precision": predictor.precision,
        "device": str(predictor.cfg.MODEL.DEVICE),
        "min_size_test": predictor.cfg.INPUT.MIN_SIZE_TEST,
        "max_size_test": predictor.cfg.INPUT.MAX_SIZE_TEST,
        "tiling": how.tiling(),
        "join": how.join,
        "max_overlap": how.max_overlap,
    }


def config_settings(cfg: CfgNode) -> dict[str, Any]:
    """Every value of a config that predictions may depend on, by its dotted key."""
    found: dict[str, Any] = {}
    nodes = [(section, cfg[section]) for section in ("MODEL", "INPUT", "TEST")]
    while nodes:
        key, value = nodes.pop()
        if isinstance(value, CfgNode):
            nodes += [(f"{key}.{name}", each) for name, each in value.items()]
        elif key not in ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.WEIGHTS_SHA256"):
            found[key] = value
    return found


def predict_images(
    predictor: Predictor, images: Sequence[InputImage], run: Run, how: PredictOptions
) -> None:
    """Predict images, those first that go through the network whole, and finish each.

    Images that cannot be read or finished are noted; the others go on.

    Args:
        predictor: the model.
        images: of this process.
        run: takes the particles.
        how: of what is not the model's.
    """
    opener, mosaics = Opener(run.options, run.region_source), []
    quiet = None if comm.is_main_process() else True
    with (
        tqdm(total=len(images), desc="Images", unit="image", disable=quiet) as progress,
        Behind(progress.update) as behind,
    ):
        for opened, predictions, start in _whole(predictor, images, run, opener, how, mosaics):
            behind.submit(
                _finish_whole, predictor, run, how.max_overlap, opened, predictions, start
            )
        progress.update(len(images) - len(mosaics) - behind.submitted)  # those that failed
        for image in mosaics:
            with run.attempt(image):
                _one_mosaic(predictor, image, run, opener, how, quiet)
            progress.update()


def _tiling_of(predictor: Predictor, opened: Opened, how: PredictOptions) -> Tiling | None:
    return choose_tiling(
        predictor.cfg,
        (opened.regions.height, opened.regions.width),
        predictor.info.get("training_side"),
        **how.tiling(),
    )


def _whole(
    predictor: Predictor,
    images: Iterable[InputImage],
    run: Run,
    opener: Opener,
    how: PredictOptions,
    mosaics: list[InputImage],
) -> Iterator[tuple[Opened, Any, float]]:
    """Predictions of the images that are not cut; the others are listed in ``mosaics``."""
    order: deque[tuple[Opened, float]] = deque()

    def pixels() -> Iterator[np.ndarray]:
        for image in images:
            # The predictor draws from this in a thread of its own, ahead of the model.
            with run.attempt(image), opener.open(image) as opened:
                start = time.perf_counter()
                if _tiling_of(predictor, opened, how) is not None:
                    mosaics.append(image)
                    continue
                size = (opened.regions.width, opened.regions.height)
                held = image_in_memory(opened, opened.regions.read(0, 0, *size))
                painted = _painted(held)
                order.append((held, start))
                yield painted

    source, again = pixels(), True
    while again:
        again = False
        try:
            for predictions in predictor.predict_many(source):
                opened, start = order.popleft()
                yield opened, predictions, start
        except WriteError:
            raise
        except Exception as error:
            # Such as an image too large for the memory: which one it was shows each alone.
            logger.warning("%s; trying the images of that batch one by one.", _first_line(error))
            again = bool(order)
        while order and again:
            opened, start = order.popleft()
            with run.attempt(opened.image):
                (predictions,) = predictor.predict_many([_painted(opened)])
                yield opened, predictions, start


def _painted(held: Opened) -> np.ndarray:
    size = (held.regions.width, held.regions.height)
    return PaintedRegions(held.regions, held.boxes).read(0, 0, *size)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _finish_whole(
    predictor: Predictor,
    run: Run,
    max_overlap: float,
    opened: Opened,
    predictions: Any,
    start: float,
) -> None:
    with run.attempt(opened.image):
        distinct = drop_duplicates(predictions, max_overlap)
        particles, empty = to_particles(
            distinct, opened.image.name, predictor.class_names, opened.regions.pixels
        )
        duplicates = len(predictions) - len(distinct)
        record = {"tile": None, "duplicates": duplicates, "empty_masks": empty}
        run.finish(opened, particles, record, start)


def _one_mosaic(
    predictor: Predictor,
    image: InputImage,
    run: Run,
    opener: Opener,
    how: PredictOptions,
    quiet: bool | None,
) -> None:
    start = time.perf_counter()
    cut_short = predictor.windows_cut_short
    with opener.open(image) as opened:
        tiling = _tiling_of(predictor, opened, how)
        regions = PaintedRegions(opened.regions, opened.boxes)
        particles, counts = predict_mosaic(
            predictor,
            regions,
            image.name,
            tiling,
            max_overlap=how.max_overlap,
            join=how.join,
            region=opened.region,
            quiet=quiet,
        )
        # Tables and pictures need memory now, and read little.
        opened.regions.release()
        record = {
            **dataclasses.asdict(tiling),
            **dataclasses.asdict(counts),
            "windows_cut_short": predictor.windows_cut_short - cut_short,
        }
        run.finish(opened, particles, record, start)


class Behind:
    """Finishes images in a thread while the model is at work on the next; a few at a time."""

    def __init__(self, done: Callable[[], Any]):
        """
        Args:
            done: called after each.
        """
        self.submitted = 0
        self._done = done
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="files")
        self._waiting: deque[Future] = deque()

    def submit(self, function: Callable, *args: Any) -> None:
        """Call a function in the thread; an error of an earlier one is raised here."""
        self.submitted += 1
        self._waiting.append(self._pool.submit(function, *args))
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > _BEHIND):
            self._take()

    def _take(self) -> None:
        self._waiting.popleft().result()
        self._done()

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, error_type: type | None, *_: Any) -> None:
        try:
            while self._waiting and error_type is None:
                self._take()
        finally:
            self._pool.shutdown(cancel_futures=True)
