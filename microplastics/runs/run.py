"""Prediction and measurement runs over many images."""

import argparse
import contextlib
import dataclasses
import datetime
import json
import logging
import math
import os
import platform
import shlex
import sys
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

import microplastics
from microplastics.calibration.sources import check_scale
from microplastics.config import leaves, load_config
from microplastics.data.large_images import ImageReader
from microplastics.data.tiling import Tiling, choose_tiling
from microplastics.engine.checkpoint import ORIGIN_KEY, SCORE_THRESHOLDS, choose_weights
from microplastics.inference.predictor import Predictor, to_particles
from microplastics.inference.tiled import particle_pixels, predict_tiled
from microplastics.measurement.shape import choose_fiber_classes
from microplastics.measurement.table import (
    IMAGE_COLUMNS,
    combine_tables,
    parse_size_classes,
    particle_table,
)
from microplastics.modeling.postprocessing import drop_duplicates
from microplastics.roi.region import CIRCLE, RegionSource
from microplastics.runs.images import (
    ImageOpener,
    InputImage,
    Load,
    RunImage,
    RunOptions,
    find_images,
    output_names,
    read_masks,
    run_options,
    within,
    without_boxes,
)
from microplastics.runs.store import FAILED_FILE, RUN_FILE, RunStore, forget_image
from microplastics.runs.summaries import (
    SOME_FAILED,
    check_samples,
    counted,
    differing_bars,
    make_summaries,
    matching,
    merge_into,
    print_summary,
    write_summaries,
)
from microplastics.structures.particles import Particles
from microplastics.utils.errors import UserError, WriteError
from microplastics.utils.io import check_output_dir, sha256_of, write_json
from microplastics.writers.registry import write_image, write_run
from microplastics.writers.tables import ImageResult, read_part, write_csv

logger = logging.getLogger(__name__)

# Of the columns, their texts and the parts: a run does not go on in another one's.
_TABLE_VERSION = 4
_PATIENCE = datetime.timedelta(days=30)

DEFAULT_THRESHOLD = 0.5
"""Lowest score of a particle if neither the command line nor the checkpoint has one."""
# A class is of fibres, by its particles, if at least these many and most are so many times as long
# as wide.
_MANY, _THIN = 5, 8
_OUTSIDE = "outside of the region"
# Images whose files are written while the model is at work on the next ones.
_BEHIND = 3


class Run:
    """The images of a run, from their particles to its files; shared by several processes.

    Attributes:
        images: all of the run.
        options: of the run.
        opener: opens the images by the options.
    """

    def __init__(
        self,
        images: Sequence[InputImage],
        options: RunOptions,
        class_names: Sequence[str],
        fiber_classes: Sequence[str],
        about: dict[str, Any],
        settings: dict[str, Any],
    ):
        """
        Args:
            images, options: kept as attributes.
            class_names: of model or data set, in order.
            fiber_classes: those of them that are fibres, unless the options name others.
            about: what run.json says of what found the particles.
            settings: what of that the particles depend on.

        Raises:
            UserError: an option makes no sense.
        """
        if options.um_per_px is not None:
            check_scale(options.um_per_px, "--um-per-px")
        if options.fiber_classes is not None:
            fiber_classes = choose_fiber_classes(options.fiber_classes, class_names)
        self._fiber_classes = list(fiber_classes)
        names = [image.name for image in images]
        check_samples(options, names)
        self.images, self.options = list(images), options
        self._class_names, self._about = list(class_names), about
        self._names = output_names(names)
        self._output = Path(options.output)
        self._start = time.time()
        settings = {**settings, **options.settings(), "class_names": self._class_names}
        settings["fiber_classes"] = self._fiber_classes
        settings["table_version"] = _TABLE_VERSION
        source = None
        if options.region is not None:
            source = RegionSource(options.region)
            source.check(names, {each.name: each.path for each in images})
            self.images = [
                dataclasses.replace(image, region_path=str(source.path_of(image.name) or ""))
                for image in images
            ]
            self._about = {**about, "region_sha256": source.fingerprint()}
            if source.needs_image:
                settings["circle_finder"] = source.fingerprint()[:8]
        self.opener = ImageOpener(options, source)
        if options.calibration is not None:
            settings["calibration"] = sha256_of(options.calibration)
        self._store = RunStore(options.output, settings)
        self._patient: dist.ProcessGroup | None = None

    def begin(self) -> list[InputImage]:
        """Claim the folder, and give the images that this process has to do.

        Raises:
            UserError: the folder cannot be used.
        """
        if comm.is_main_process():
            self._store.claim(self.options.resume, self.options.overwrite)
        if comm.get_world_size() > 1:
            # A process may wait for hours for the one that got the largest images.
            self._patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        comm.synchronize()
        # One process looks for all: what another one finishes meanwhile must not shift the parts.
        looked_at = self.images if comm.is_main_process() else []
        numbers = [n for n, each in enumerate(looked_at) if not self._store.is_finished(each)]
        left = [self.images[number] for number in comm.all_gather(numbers)[0]]
        if len(left) < len(self.images):
            logger.info("%d images are finished already.", len(self.images) - len(left))
        return left[comm.get_rank() :: comm.get_world_size()]

    @contextlib.contextmanager
    def attempt(self, image: InputImage) -> Iterator[None]:
        """Note an image that fails in the block, so that the rest of the run goes on.

        Raises:
            WriteError: a file could not be written; all other images would fail alike.
        """
        try:
            yield
        except WriteError:
            raise
        except UserError as error:
            logger.error("%s", error)
            self._fail(image, str(error))
        except MemoryError:
            words = "needs more memory than there is; cut it into smaller images"
            logger.error("%s %s.", image.path or image.name, words)
            self._fail(image, f"{image.path or image.name} {words}.")
        except Exception as error:
            # One odd image must not cost a night's run; its traceback is in the log.
            logger.exception("%s failed", image.path or image.name)
            words = " ".join(str(error).split())
            self._fail(image, f"{type(error).__name__}: {words} (see log.txt)")

    def _fail(self, image: InputImage, error: str) -> None:
        self._store.fail(image, error)
        forget_image(self._output, self._names[image.name])

    def finish(
        self, opened: RunImage, particles: Particles, record: dict[str, Any], start: float
    ) -> None:
        """Measure the particles of one image, write its files and keep it.

        Args:
            opened: the image; its regions are read for the overlay.
            particles: found on it.
            record: what run.json says of how.
            start: ``time.perf_counter()`` when work on it began.
        """
        options, image = self.options, opened.image
        calibration, region = opened.calibration, opened.region
        everywhere, on_bar = without_boxes(particles, opened.boxes)
        table = particle_table(
            everywhere,
            calibration,
            size_classes=parse_size_classes(options.size_classes),
            min_size=options.min_size,
            fiber_classes=self._fiber_classes,
            processes=1,
        )
        particles, table = within(everywhere, table, region)
        result = ImageResult(
            particles, table, self._class_names, calibration, opened.regions, region
        )
        left_out = {
            **write_image(result, self._output, options.formats, self._names[image.name]),
            "on_scale_bar": on_bar,
            "outside_region": len(everywhere) - len(particles),
        }
        height, width = particles.image_size
        self._store.save(
            image,
            result,
            {
                "name": image.name,
                "path": image.path,
                "sha256": sha256_of(image.path) if image.path else None,
                "region": region.source if region else None,
                "region_px": region.area_px if region else width * height,
                "calibration_notes": opened.notes,
                "scale_bars": [{"px": round(bar.px, 2), "um": bar.um} for bar in opened.bars],
                "no_particles_in": [list(box) for box in opened.boxes],
                "particles": len(particles),
                "left_out": {what: int(number) for what, number in left_out.items() if number},
                **record,
                "seconds": round(time.perf_counter() - start, 3),
            },
        )

    def end(self) -> int:
        """Write the files of the whole run, on one process after all have done their images.

        Returns:
            0, or 3 if images failed.

        Raises:
            UserError: not one image was finished, or a file cannot be written.
        """
        if self._patient is not None:
            dist.barrier(group=self._patient)
        if not comm.is_main_process():
            return 0
        output, options, classes = self._output, self.options, self._class_names
        finished = [image for image in self.images if self._store.is_finished(image)]
        done = {image.name for image in finished}
        failures = [
            {"image": each.name, "path": each.path, "error": self._store.failure(each)}
            for each in self.images
            if each.name not in done
        ]
        if failures:
            write_csv(pd.DataFrame(failures), output / FAILED_FILE)
        else:
            (output / FAILED_FILE).unlink(missing_ok=True)
        if not finished:
            raise UserError(
                f"All {len(self.images)} images failed: {failures[0]['error']}", code="input_empty"
            )
        for pattern in options.blanks:
            if not matching(done, pattern):
                raise UserError(
                    f"The blanks {pattern} failed, see {output / FAILED_FILE}; fix them and add "
                    "--resume, or leave them out of --blanks.",
                    code="run_invalid",
                )
        parts = [self._store.part(image) for image in finished]
        left_out = write_run(parts, output, options.formats, classes, self._fiber_classes)
        records = [self._store.record(image) for image in finished]
        table = combine_tables(read_part(part).table.to_pandas() for part in parts)
        summaries = make_summaries(table, _images_table(records), classes, options)
        write_summaries(output, *summaries)
        self._write_record(records, len(failures), left_out)
        print_summary(output, *summaries, classes)
        _warn_of_thin(table, self._fiber_classes)
        for name, words in (("on_scale_bar", "on scale bars"), ("outside_region", _OUTSIDE)):
            number = sum(record["left_out"].get(name, 0) for record in records)
            if number:
                print(f"{counted(number, 'particle')} {words} left out")
        warning = differing_bars(records, options)
        # With --um-per-px such bars may just have several numbers: only the report says it.
        if warning and options.scale_bar_um is not None:
            logger.warning("%s", warning)
        if failures:
            print(f"{counted(len(failures), 'image')} failed, see {output / FAILED_FILE}")
        return SOME_FAILED if failures else 0

    def _write_record(
        self, records: list[dict[str, Any]], failed: int, left_out: dict[str, int]
    ) -> None:
        data = {
            "microplastics": microplastics.__version__,
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "command": shlex.join(sys.argv),
            "began": _time(self._start),
            "ended": _time(time.time()),
            "seconds": round(time.time() - self._start, 1),
            "processes": comm.get_world_size(),
            **self._about,
            "options": self.options.as_dict(),
            "class_names": self._class_names,
            "fiber_classes": self._fiber_classes,
            "particles": sum(record["particles"] for record in records),
            "left_out": left_out,
            "failed": failed,
            "images": [
                {key: value for key, value in each.items() if key not in ("files", "image")}
                for each in records
            ],
        }
        write_json(self._output / RUN_FILE, data, indent=1)


def _warn_of_thin(table: pd.DataFrame, fiber_classes: Collection[str]) -> None:
    """Name the classes whose particles look like fibres, but are not measured as such."""
    for name, circularity in table.groupby("class")["circularity"]:
        # A strip of length l and width w has a circularity of about π w / l.
        thin = np.pi / circularity >= _THIN
        if name not in fiber_classes and thin.sum() >= _MANY and thin.mean() > 0.5:
            logger.warning(
                "%d of %d particles of class %s are thin, but their length is the Feret diameter, "
                "which is too short for curled fibres; add --fiber-classes %s to measure along "
                "their centreline.",
                *(thin.sum(), len(thin), name, ",".join([*fiber_classes, str(name)])),
            )


def _images_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The images as :func:`microplastics.measurement.table.images_table` gives them."""
    keys = {"width_px": "width", "height_px": "height"}
    rows = [[each[keys.get(name, name)] for name in IMAGE_COLUMNS] for each in records]
    return pd.DataFrame(rows, columns=list(IMAGE_COLUMNS)).astype(IMAGE_COLUMNS)


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def predict_run(args: argparse.Namespace) -> int:
    """Do what the command line of ``microplastics predict`` says, in each of its processes.

    Args:
        args: options of the command ``predict``, in ``microplastics/cli/predict.py``.

    Returns:
        0, or 3 if images failed.

    Raises:
        UserError: an argument is wrong, the model cannot be loaded, or no image was finished.
    """
    options = run_options(args)
    images = find_images(args.input, exclude=options.output)
    check_output_dir(options.output)
    setup_logger(options.output, distributed_rank=comm.get_rank(), name="microplastics")
    predictor = make_predictor(args)
    cfg = predictor.cfg
    if not predictor.has_masks:
        raise UserError(
            f"{cfg.MODEL.WEIGHTS} predicts boxes only, which cannot be measured; expected a model "
            "with masks.",
            code="checkpoint_mismatch",
        )
    max_overlap = cfg.TEST.COUNTING.MAX_OVERLAP if args.max_overlap is None else args.max_overlap
    if not 0 <= max_overlap <= 1:
        raise UserError(
            f"--max-overlap is {max_overlap:g}; expected 0 to 1.", code="option_invalid"
        )
    tiling = {name: getattr(args, name) for name in ("tile", "overlap", "largest", "coarse")}
    # Wrong numbers are reported once, not for each image.
    choose_tiling(cfg, (1, 1), **tiling)
    how = {"tiling": tiling, "join": args.join, "max_overlap": max_overlap}
    about = {**predictor_metadata(predictor), **how}
    passing = ("checkpoint", "device", "training")
    settings = {key: value for key, value in about.items() if key not in passing}
    about["score_thresholds_from"] = thresholds_source(args, predictor)
    settings.update(config_settings(cfg))
    options = dataclasses.replace(options, max_pixels=cfg.INPUT.MAX_PIXELS)
    if not (cfg.INPUT.PAINT_SCALE_BAR or options.scale_bar or options.scale_bar_um):
        options = dataclasses.replace(options, scale_bar="ignore")
    names, fibers = predictor.class_names, predictor.fiber_classes
    run = Run(images, options, names, fibers, about, settings)
    ParticleFinder(predictor, run, **how).predict(run.begin())
    return run.end()


def make_predictor(args: argparse.Namespace) -> Predictor:
    """The model that a command line names.

    Raises:
        UserError: it names none, or one that cannot be loaded.
    """
    if not (args.weights or args.config_file):
        raise UserError(
            "--weights is missing; give a checkpoint such as output/…/model_best.pth.",
            code="option_missing",
        )
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


def predictor_metadata(predictor: Predictor) -> dict[str, Any]:
    """What run.json says of the model, plain values."""
    weights = predictor.cfg.MODEL.WEIGHTS
    return {
        # An address, such as https://…, stays as it was given.
        "checkpoint": os.path.abspath(weights) if os.path.exists(weights) else weights,
        "checkpoint_sha256": predictor.weights_sha256,
        "score_thresholds": dict(
            zip(predictor.class_names, predictor.score_thresholds.tolist(), strict=True)
        ),
        "mask_threshold": predictor.mask_threshold,
        "precision": predictor.precision,
        "device": str(predictor.cfg.MODEL.DEVICE),
        "min_size_test": predictor.cfg.INPUT.MIN_SIZE_TEST,
        "max_size_test": predictor.cfg.INPUT.MAX_SIZE_TEST,
        "training": _training(predictor),
    }


def thresholds_source(args: argparse.Namespace, predictor: Predictor) -> str:
    """Where the score thresholds come from: ``option``, ``config``, ``checkpoint``, ``default``."""
    if args.confidence_threshold is not None:
        return "option"
    if predictor.cfg.TEST.COUNTING.CLASS_SCORE_THRESH:
        return "config"
    return "checkpoint" if predictor.info.get(SCORE_THRESHOLDS) else "default"


def _training(predictor: Predictor) -> dict[str, Any]:
    """What a checkpoint says of its training: data, scores, how its thresholds were chosen."""
    cfg, info = predictor.cfg, predictor.info
    metrics, origin = info.get("metrics"), info.get(ORIGIN_KEY)
    return {
        "architecture": cfg.MODEL.META_ARCHITECTURE,
        "version": str(info.get("version", "")),
        "iteration": info["iteration"] if isinstance(info.get("iteration"), int) else None,
        "datasets": [str(name) for name in cfg.DATASETS.TRAIN],
        "validation_datasets": [str(name) for name in cfg.DATASETS.TEST],
        # Of the best checkpoint alone, on the validation images.
        "metrics": {
            str(name): round(value, 3)
            for name, value in (metrics.items() if isinstance(metrics, dict) else ())
            if isinstance(value, float)
            and math.isfinite(value)
            and str(name).startswith(("bbox/AP", "segm/AP", "counting/"))
        },
        "thresholds_origin": (
            json.loads(json.dumps(origin, default=str)) if isinstance(origin, dict) else None
        ),
    }


def config_settings(cfg: CfgNode) -> dict[str, Any]:
    """Every value of a config that predictions may depend on, by its dotted key."""
    found = dict(leaves({section: cfg[section] for section in ("MODEL", "INPUT", "TEST")}))
    for key in ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.WEIGHTS_SHA256"):
        del found[key]
    return found


class ParticleFinder:
    """Finds the particles of a run's images with a model."""

    def __init__(
        self,
        predictor: Predictor,
        run: Run,
        tiling: dict[str, Any],
        join: bool = True,
        max_overlap: float = 0.5,
    ):
        """
        Args:
            predictor: the model.
            run: takes the particles.
            tiling: arguments of :func:`microplastics.data.tiling.choose_tiling`.
            join: put pieces of broken fibres together, in windows.
            max_overlap: of :func:`microplastics.modeling.postprocessing.drop_duplicates`.
        """
        self._predictor, self._run = predictor, run
        self._tiling, self._join, self._max_overlap = tiling, join, max_overlap
        self._quiet = None if comm.is_main_process() else True

    def predict(self, images: Sequence[InputImage]) -> None:
        """Predict images, those first that go through the network whole, and finish each.

        Images that cannot be read or finished are noted; the others go on.
        """
        large: list[InputImage] = []
        with (
            tqdm(total=len(images), desc="Images", unit="image", disable=self._quiet) as progress,
            ThreadPoolExecutor(1, thread_name_prefix="files") as files,
        ):
            # Files are written while the model is at work on the next images.
            behind: deque[Future] = deque()
            for found in self._whole(images, large):
                behind.append(files.submit(self._finish_whole, *found))
                if len(behind) > _BEHIND:
                    behind.popleft().result()
                    progress.update()
            for job in behind:
                job.result()
            progress.update(len(images) - len(large) - progress.n)
            for image in large:
                with self._run.attempt(image):
                    self._find_in_windows(image)
                progress.update()

    def _whole(
        self, images: Iterable[InputImage], large: list[InputImage]
    ) -> Iterator[tuple[RunImage, Any, float]]:
        """Predictions of the images that are not cut; the others are listed in ``large``."""
        order: deque[tuple[RunImage, float]] = deque()

        def pixels() -> Iterator[np.ndarray]:
            for image in images:
                # The predictor draws from this in a thread of its own, ahead of the model.
                with self._run.attempt(image), self._run.opener.open(image) as opened:
                    start = time.perf_counter()
                    if self._choose_tiling(opened) is not None:
                        large.append(image)
                        continue
                    size = opened.regions.width, opened.regions.height
                    in_memory = ImageReader(image.path, *size)
                    in_memory.decoded = opened.regions.read(0, 0, *size)
                    opened = dataclasses.replace(opened, regions=in_memory)
                    painted = opened.painted.read(0, 0, *size)
                    order.append((opened, start))
                    yield painted

        source, again = pixels(), True
        while again:
            again = False
            try:
                for predictions in self._predictor.predict_many(source, paint=False):
                    opened, start = order.popleft()
                    yield opened, predictions, start
            except WriteError:
                raise
            except Exception as error:
                # Such as an image too large for memory: running each separately shows which.
                logger.warning("%r; trying the images of that batch one by one.", error)
                again = bool(order)
            while order and again:
                opened, start = order.popleft()
                size = opened.regions.width, opened.regions.height
                with self._run.attempt(opened.image):
                    painted = opened.painted.read(0, 0, *size)
                    (predictions,) = self._predictor.predict_many([painted], paint=False)
                    yield opened, predictions, start

    def _choose_tiling(self, opened: RunImage) -> Tiling | None:
        size = opened.regions.height, opened.regions.width
        side = self._predictor.training_side
        return choose_tiling(self._predictor.cfg, size, side, **self._tiling)

    def _finish_whole(self, opened: RunImage, predictions: Any, start: float) -> None:
        with self._run.attempt(opened.image):
            distinct = drop_duplicates(predictions, self._max_overlap)
            particles, empty = to_particles(
                distinct, opened.image.name, self._predictor.class_names, opened.regions.decoded
            )
            duplicates = len(predictions) - len(distinct)
            record = {"tile": None, "duplicates": duplicates, "empty_masks": empty}
            self._run.finish(opened, particles, record, start)

    def _find_in_windows(self, image: InputImage) -> None:
        start, cut_short = time.perf_counter(), self._predictor.windows_cut_short
        with self._run.opener.open(image) as opened:
            tiling = self._choose_tiling(opened)
            particles, counts = predict_tiled(
                self._predictor,
                opened.painted,
                image.name,
                tiling,
                max_overlap=self._max_overlap,
                join=self._join,
                region=opened.region,
                quiet=self._quiet,
            )
            # Tables and pictures need memory now, and read little.
            opened.regions.release()
            record = {
                **dataclasses.asdict(tiling),
                **dataclasses.asdict(counts),
                "windows_cut_short": self._predictor.windows_cut_short - cut_short,
            }
            self._run.finish(opened, particles, record, start)


def measure_run(args: argparse.Namespace) -> int:
    """Do what the command line of ``microplastics measure`` says.

    Args:
        args: options of the command ``measure``, in ``microplastics/cli/predict.py``.

    Returns:
        0, or 3 if images failed.

    Raises:
        UserError: an argument is wrong, the masks cannot be read, or no image was finished.
    """
    options = run_options(args)
    if args.merge_runs:
        return merge_into(args.merge_runs, options)
    for name, given in (
        ("--scale-bar-um", options.scale_bar_um is not None),
        ("--scale-bar auto", options.scale_bar == "auto"),
        ("--region circle", options.region == CIRCLE),
    ):
        if given and args.images is None:
            raise UserError(
                f"{name} needs the photographs; give their folder by --images.",
                code="option_missing",
            )
    check_output_dir(options.output)
    setup_logger(options.output, name="microplastics")
    given, classes, fibers = read_masks(
        args.masks, args.images, args.dataset, args.class_name, args.min_score
    )
    images, loads = [image for image, _ in given], {image.name: load for image, load in given}
    files = dict.fromkeys(image.masks_path or args.masks[0] for image in images)
    masks = {path: sha256_of(path) for path in files}
    about = {"masks": masks, "min_score": args.min_score}
    # Label images may come and go while the run is finished piece by piece.
    whole = [] if images[0].masks_path else list(masks.values())
    settings = {"masks_sha256": whole, "min_score": args.min_score}
    run = Run(images, options, classes, fibers, about, settings)
    for image in tqdm(run.begin(), desc="Images", unit="image", disable=None):
        with run.attempt(image):
            measure_image(image, loads[image.name], run)
    return run.end()


def measure_image(image: InputImage, load: Load, run: Run) -> None:
    """Measure the given masks of one image, and finish it.

    Args:
        image: of the run.
        load: gives its particles.
        run: takes them, and opens the image.

    Raises:
        UserError: the masks or the photograph cannot be used, or do not go together.
    """
    start = time.perf_counter()
    particles, left_out = load()
    masks_size = tuple(particles.image_size)
    with run.opener.open(image, masks_size) as opened:
        if opened.regions is not None:
            size = opened.regions.height, opened.regions.width
            if size != masks_size:
                raise UserError(
                    f"{image.path} is {size[1]} x {size[0]} px, its masks are {masks_size[1]} x "
                    f"{masks_size[0]} px; give the photograph that was annotated.",
                    code="image_size",
                )
            pixels = particle_pixels(opened.regions, particles.masks, particles.offsets)
            particles = dataclasses.replace(particles, pixels=pixels)
        record = {what: number for what, number in left_out.items() if number}
        run.finish(opened, particles, {"left_out_of_masks": record}, start)
