"""Prediction and measurement runs over many images."""

import argparse
import contextlib
import dataclasses
import datetime
import logging
import os
import platform
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
from tabulate import tabulate
from tqdm import tqdm

import microplastics
from microplastics.calibration import Calibration
from microplastics.calibration.sources import check_scale, read_calibration_csv
from microplastics.config import load_config
from microplastics.data.tiling import Tiling, choose_tiling
from microplastics.engine.defaults import check_output_dir
from microplastics.engine.weights import choose_weights, sha256_of
from microplastics.inference.predictor import Predictor, to_particles
from microplastics.inference.tiled import particle_pixels, predict_tiled
from microplastics.measurement.size_classes import parse_size_classes
from microplastics.measurement.table import (
    combine_tables,
    images_table,
    particle_table,
    with_size_classes,
)
from microplastics.modeling.postprocessing import drop_duplicates
from microplastics.roi.region import CIRCLE, RegionSource
from microplastics.runs.images import (
    ArrayImage,
    ImageOpener,
    InputImage,
    MaskedImage,
    PaintedRegions,
    RunImage,
    RunOptions,
    find_images,
    read_masks,
    run_options,
    within,
    without_boxes,
)
from microplastics.runs.store import (
    FAILED_FILE,
    RUN_FILE,
    SAMPLES_FILE,
    SUMMARY_FILE,
    RunStore,
    forget_image,
    forget_run,
)
from microplastics.runs.summaries import (
    PARTICLES_FILE,
    blank_names,
    check_samples,
    make_summaries,
    merge_runs,
)
from microplastics.structures.particles import Particles
from microplastics.utils.errors import UserError, WriteError
from microplastics.utils.io import read_json, write_json
from microplastics.writers import (
    check_formats,
    output_names,
    write_csv,
    write_image,
    write_parquet,
    write_run,
)
from microplastics.writers.base import ImageResult
from microplastics.writers.parts import read_part

logger = logging.getLogger(__name__)

SOME_FAILED = 3
"""Exit code of a run in which images failed."""

# Of the columns and their texts: a run does not go on in another one's.
_TABLE_VERSION = 2
_SHOWN = 20  # rows of the summary on the terminal
_PATIENCE = datetime.timedelta(days=30)

DEFAULT_THRESHOLD = 0.5
"""Lowest score of a particle if neither the command line nor the checkpoint has one."""
# Images whose files are written while the model is at work on the next ones.
_BEHIND = 3
_OF_IMAGES = ("um_per_px", "calibration", "scale_bar_um", "ignore_metadata", "region", "resume")
# What found the particles must be the same, or the counts cannot be added up.
_OF_MODEL = ("checkpoint_sha256", "score_thresholds", "mask_threshold", "join", "max_overlap")
_SAME = (*_OF_MODEL, "min_score")


class Run:
    """The images of a run, from their particles to its files; shared by several processes.

    Attributes:
        images: all of the run.
        options: of the run.
        region_source: regions of interest; None is the whole image.
    """

    def __init__(
        self,
        images: Sequence[InputImage],
        options: RunOptions,
        class_names: Sequence[str],
        about: dict[str, Any],
        settings: dict[str, Any],
    ):
        """
        Args:
            images: all of the run.
            options: of the run.
            class_names: of model or data set, in order.
            about: what run.json says of what found the particles.
            settings: what of that the particles depend on.

        Raises:
            UserError: an option makes no sense.
        """
        check_formats(options.formats)
        if options.um_per_px is not None:
            check_scale(options.um_per_px, "--um-per-px")
        names = [image.name for image in images]
        check_samples(options, names)
        self.images = list(images)
        self.options = options
        self._class_names = list(class_names)
        self._about = about
        self._names = output_names(names)
        self._output = Path(options.output)
        self._start = time.time()
        settings = {**settings, **options.settings(), "class_names": self._class_names}
        settings["table_version"] = _TABLE_VERSION
        if options.calibration is not None:
            read_calibration_csv(options.calibration)
            settings["calibration"] = sha256_of(options.calibration)
        self.region_source: RegionSource | None = None
        if options.region is not None:
            self.region_source = self._use_region(options.region)
            if self.region_source.needs_image:
                settings["circle_finder"] = self.region_source.fingerprint()[:8]
        self._store = RunStore(options.output, settings)
        self._patient: dist.ProcessGroup | None = None

    def _use_region(self, what: str) -> RegionSource:
        """Give each image the file of its region."""
        source = RegionSource(what)
        source.check(
            [image.name for image in self.images], {each.name: each.path for each in self.images}
        )
        self.images = [
            dataclasses.replace(image, region_path=str(source.path_of(image.name) or ""))
            for image in self.images
        ]
        self._about = {**self._about, "region_sha256": source.fingerprint()}
        return source

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
        options = self.options
        everywhere, on_bar = without_boxes(particles, opened.boxes)
        table = particle_table(
            everywhere,
            opened.calibration,
            size_classes=parse_size_classes(options.size_classes),
            min_size=options.min_size,
            processes=1,
        )
        particles, table = within(everywhere, table, opened.region)
        outside = len(everywhere) - len(particles)
        result = ImageResult(
            particles,
            table,
            self._class_names,
            opened.calibration,
            opened.regions,
            opened.region,
        )
        name = self._names[opened.image.name]
        notes = write_image(result, self._output, options.formats, name)
        left_out = {**notes, "on_scale_bar": on_bar, "outside_region": outside}
        calibration, region = opened.calibration, opened.region
        height, width = particles.image_size
        self._store.save(
            opened.image,
            result,
            {
                "name": opened.image.name,
                "path": opened.image.path,
                "sha256": sha256_of(opened.image.path) if opened.image.path else None,
                "width": width,
                "height": height,
                "region": region.source if region else None,
                "region_px": region.area_px if region else width * height,
                "um_per_px": calibration.um_per_px if calibration else None,
                "calibration_source": calibration.source if calibration else None,
                "calibration_notes": opened.notes,
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
        finished = [image for image in self.images if self._store.is_finished(image)]
        done = {image.name for image in finished}
        failed = [image for image in self.images if image.name not in done]
        failures = [(each.name, each.path, self._store.failure(each)) for each in failed]
        self._write_failed(failures)
        if not finished:
            raise UserError(
                f"All {len(self.images)} images failed: {failures[0][2]}", code="input_empty"
            )
        self._check_blanks(done)
        parts = [self._store.part(image) for image in finished]
        written = write_run(parts, self._output, self.options.formats, self._class_names)
        records = [self._store.record(image) for image in finished]
        table = combine_tables(read_part(part).table.to_pandas() for part in parts)
        summaries = make_summaries(table, _images_of(records), self._class_names, self.options)
        write_summaries(self._output, *summaries)
        self._write_record(records, failures, written.notes)
        print_summary(self._output, *summaries, self._class_names)
        outside = sum(record["left_out"].get("outside_region", 0) for record in records)
        if outside:
            print(f"{counted(outside, 'particle')} outside of the region left out")
        if failed:
            print(f"{counted(len(failed), 'image')} failed, see {self._output / FAILED_FILE}")
        return SOME_FAILED if failed else 0

    def _check_blanks(self, done: Collection[str]) -> None:
        for pattern in self.options.blanks:
            blanks = blank_names([image.name for image in self.images], [pattern])
            if not any(name in done for name in blanks):
                raise UserError(
                    f"The blank {blanks[0]} failed, see {self._output / FAILED_FILE}; fix it and "
                    "add --resume, or leave it out of --blanks.",
                    code="run_invalid",
                )

    def _write_failed(self, failures: Sequence[tuple[str, str, str]]) -> None:
        path = self._output / FAILED_FILE
        if failures:
            write_csv(pd.DataFrame(failures, columns=["image", "path", "error"]), path)
        else:
            path.unlink(missing_ok=True)

    def _write_record(
        self,
        records: Sequence[dict[str, Any]],
        failures: Sequence[tuple[str, str, str]],
        left_out: dict[str, int],
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
            "particles": sum(record["particles"] for record in records),
            "left_out": left_out,
            "failed": len(failures),
            "images": [{k: v for k, v in each.items() if k != "file"} for each in records],
        }
        write_json(self._output / RUN_FILE, data, indent=1)


def write_summaries(output: Path, summary: pd.DataFrame, samples: pd.DataFrame | None) -> None:
    """Write summary.csv, and samples.csv if images are summed."""
    write_csv(summary, output / SUMMARY_FILE)
    if samples is not None:
        write_csv(samples, output / SAMPLES_FILE)
    else:
        (output / SAMPLES_FILE).unlink(missing_ok=True)


def print_summary(
    output: Path, summary: pd.DataFrame, samples: pd.DataFrame | None, classes: Sequence[str]
) -> None:
    """Print the number of particles found and the output folder."""
    shown = summary if samples is None else samples
    median = next((c for c in ("feret_max_p50_um", "feret_max_p50_px") if c in shown), None)
    columns = {shown.columns[0]: shown.columns[0], "count": "particles"}
    columns.update({f"{name}.count": name for name in classes if f"{name}.count" in shown})
    if median is not None:
        columns[median] = f"median size, {'µm' if median.endswith('um') else 'px'}"
    rows = shown[list(columns)].rename(columns=columns)
    rows = rows.astype(object).where(rows.notna(), None)  # no median without particles
    print(
        tabulate(
            rows[:_SHOWN],
            headers="keys",
            tablefmt="pipe",
            floatfmt=".1f",
            showindex=False,
            disable_numparse=[0],
        )
    )
    if len(rows) > _SHOWN:
        print(f"… and {len(rows) - _SHOWN} more rows in {output}")
    found = counted(int(summary["count"].sum()), "particle")
    print(f"{found} on {counted(len(summary), 'image')}. Results in {output}")


def counted(number: int, thing: str) -> str:
    """Give ``1 image`` or ``2 images``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _images_of(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    def calibration(record: dict[str, Any]) -> Calibration | None:
        if record["um_per_px"] is None:
            return None
        return Calibration(record["um_per_px"], record["calibration_source"])

    return images_table(
        (each["name"], (each["height"], each["width"]), calibration(each), each["region_px"])
        for each in records
    )


def image_in_memory(opened: RunImage, pixels: Any) -> RunImage:
    """The same image with all its pixels in memory, its file closed."""
    return dataclasses.replace(opened, regions=ArrayImage(pixels))


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction that are not part of the model.

    Attributes:
        tile, overlap, largest, coarse: how images are cut; see
            :func:`microplastics.data.tiling.choose_tiling`.
        join: put pieces of broken fibres together, in windows.
        max_overlap: of two detections, see
            :func:`microplastics.modeling.postprocessing.drop_duplicates`; 1 keeps all.
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
    if not predictor.has_masks:
        raise UserError(
            f"{predictor.cfg.MODEL.WEIGHTS} predicts boxes only, which cannot be measured; "
            "expected a model with masks.",
            code="checkpoint_mismatch",
        )
    max_overlap = args.max_overlap
    if max_overlap is None:
        max_overlap = predictor.cfg.TEST.COUNTING.MAX_OVERLAP
    if not 0 <= max_overlap <= 1:
        raise UserError(
            f"--max-overlap is {max_overlap:g}; expected 0 to 1.", code="option_invalid"
        )
    how = PredictOptions(args.tile, args.overlap, args.largest, args.coarse, args.join, max_overlap)
    # Wrong numbers are reported once, not for each image.
    choose_tiling(predictor.cfg, (1, 1), **how.tiling())
    options = dataclasses.replace(options, max_pixels=predictor.cfg.INPUT.MAX_PIXELS)
    about = predictor_metadata(predictor, how)
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


def predictor_metadata(predictor: Predictor, how: PredictOptions) -> dict[str, Any]:
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
    opener, mosaics = ImageOpener(run.options, run.region_source), []
    quiet = None if comm.is_main_process() else True
    with (
        tqdm(total=len(images), desc="Images", unit="image", disable=quiet) as progress,
        BackgroundWriter(progress.update) as behind,
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


def _tiling_of(predictor: Predictor, opened: RunImage, how: PredictOptions) -> Tiling | None:
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
    opener: ImageOpener,
    how: PredictOptions,
    mosaics: list[InputImage],
) -> Iterator[tuple[RunImage, Any, float]]:
    """Predictions of the images that are not cut; the others are listed in ``mosaics``."""
    order: deque[tuple[RunImage, float]] = deque()

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
            # Such as an image too large for memory: running each separately shows which.
            logger.warning("%s; trying the images of that batch one by one.", _first_line(error))
            again = bool(order)
        while order and again:
            opened, start = order.popleft()
            with run.attempt(opened.image):
                (predictions,) = predictor.predict_many([_painted(opened)])
                yield opened, predictions, start


def _painted(held: RunImage) -> np.ndarray:
    size = (held.regions.width, held.regions.height)
    return PaintedRegions(held.regions, held.boxes).read(0, 0, *size)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _finish_whole(
    predictor: Predictor,
    run: Run,
    max_overlap: float,
    opened: RunImage,
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
    opener: ImageOpener,
    how: PredictOptions,
    quiet: bool | None,
) -> None:
    start = time.perf_counter()
    cut_short = predictor.windows_cut_short
    with opener.open(image) as opened:
        tiling = _tiling_of(predictor, opened, how)
        regions = PaintedRegions(opened.regions, opened.boxes)
        particles, counts = predict_tiled(
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


class BackgroundWriter:
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

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, error_type: type | None, *_: Any) -> None:
        try:
            while self._waiting and error_type is None:
                self._take()
        finally:
            self._pool.shutdown(cancel_futures=True)


def merge_into(runs: Sequence[str], options: RunOptions) -> int:
    """Write the tables of several finished runs, and count them again by the options.

    Args:
        runs: their folders.
        options: of the summary, and the folder for the new tables.

    Returns:
        0, or 3 if images failed in one of the runs.

    Raises:
        UserError: the runs do not go together, the folder is one of them, or an option is for
            images only.
    """
    for name in _OF_IMAGES:
        if getattr(options, name):
            raise UserError(
                f"--{name.replace('_', '-')} cannot be combined with --merge-runs, which does not "
                "measure again; leave it out.",
                code="option_conflict",
            )
    output = Path(options.output)
    if output.resolve() in [Path(run).resolve() for run in runs]:
        raise UserError(
            f"--output {output} is one of the runs; choose another folder.", code="option_conflict"
        )
    if (output / SUMMARY_FILE).exists() and not options.overwrite:
        raise UserError(
            f"{output} contains a run; add --overwrite, or choose another --output.",
            code="output_exists",
        )
    table, images = merge_runs(runs, _SAME)
    check_samples(options, images["image"].tolist())
    table = with_size_classes(table, parse_size_classes(options.size_classes), options.min_size)
    classes, failed = _classes(runs), _failed(runs)
    summaries = make_summaries(table, images, classes, options)
    forget_run(output, ())
    write_csv(table, output / PARTICLES_FILE)
    if "parquet" in options.formats:
        write_parquet(table, (output / PARTICLES_FILE).with_suffix(".parquet"))
    write_summaries(output, *summaries)
    about = {
        "microplastics": microplastics.__version__,
        "merged": [str(Path(run).resolve()) for run in runs],
        "options": {**dataclasses.asdict(options)},
        "class_names": classes,
        "particles": len(table),
        "failed": sum(failed.values()),
    }
    write_json(output / RUN_FILE, about, indent=1)
    print_summary(output, *summaries, classes)
    for run, number in failed.items():
        print(f"{counted(number, 'image')} failed in {run} and are not counted")
    return SOME_FAILED if failed else 0


def _failed(runs: Sequence[str]) -> dict[str, int]:
    """The runs in which images failed, and how many."""
    failed: dict[str, int] = {}
    for run in runs:
        path = Path(run, FAILED_FILE)
        if path.is_file():
            try:
                failed[run] = len(pd.read_csv(path, dtype=str))
            except (OSError, ValueError) as error:
                raise UserError(
                    f"Cannot read {path} ({error}); use the unmodified file.", code="run_invalid"
                ) from error
    return failed


def _classes(runs: Sequence[str]) -> list[str]:
    names: dict[str, None] = {}
    for run in runs:
        path = Path(run, RUN_FILE)
        record = read_json(path) if path.is_file() else {}
        listed = record.get("class_names", [])
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise UserError(
                f"{path} contains invalid class names; use the unmodified file.", code="run_invalid"
            )
        names.update(dict.fromkeys(listed))
    return list(names)


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
    if args.images is None and options.scale_bar_um is not None:
        raise UserError(
            "--scale-bar-um needs the photographs; give their folder by --images.",
            code="option_missing",
        )
    if args.images is None and options.region == CIRCLE:
        raise UserError(
            "--region circle needs the photographs; give their folder by --images.",
            code="option_missing",
        )
    check_output_dir(options.output)
    setup_logger(options.output, name="microplastics")
    given = read_masks(args.masks, args.images, args.dataset, args.class_name, args.min_score)
    masks = {
        path: sha256_of(path) for path in dict.fromkeys(each.masks_file for each in given.images)
    }
    about = {"masks": masks, "min_score": args.min_score}
    # Label images may come and go while the run is finished piece by piece.
    whole = [] if given.images[0].image.masks_path else list(masks.values())
    settings = {"masks_sha256": whole, "min_score": args.min_score}
    run = Run([each.image for each in given.images], options, given.class_names, about, settings)
    left = {image.name: image for image in run.begin()}
    opener = ImageOpener(options, run.region_source)
    todo = [
        dataclasses.replace(each, image=left[each.image.name])
        for each in given.images
        if each.image.name in left
    ]
    for each in tqdm(todo, desc="Images", unit="image", disable=None):
        with run.attempt(each.image):
            _measure_one(each, run, opener)
    return run.end()


def _measure_one(given: MaskedImage, run: Run, opener: ImageOpener) -> None:
    start = time.perf_counter()
    particles, left_out = given.load()
    with _opened(given, opener, particles.image_size) as opened:
        if opened.regions is not None:
            size = (opened.regions.height, opened.regions.width)
            if size != tuple(particles.image_size):
                raise UserError(
                    f"{opened.image.path} is {size[1]} x {size[0]} px, its masks are "
                    f"{particles.image_size[1]} x {particles.image_size[0]} px; give the "
                    "photograph that was annotated.",
                    code="image_size",
                )
            pixels = particle_pixels(opened.regions, particles.masks, particles.offsets)
            particles = dataclasses.replace(particles, pixels=pixels)
        run.finish(opened, particles, {"left_out_of_masks": left_out}, start)


@contextlib.contextmanager
def _opened(given: MaskedImage, opener: ImageOpener, size: tuple[int, int]) -> Iterator[RunImage]:
    if given.image.path:
        with opener.open(given.image) as opened:
            # Masks that are given are particles, wherever they lie.
            yield dataclasses.replace(opened, boxes=[])
        return
    calibration, boxes, notes = opener.scale(given.image.name)
    region = opener.region(given.image.name, tuple(size))
    yield RunImage(given.image, None, calibration, boxes, notes, region)
