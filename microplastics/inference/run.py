"""A run over many images: each is measured, written and kept by itself, then all together."""

import contextlib
import dataclasses
import datetime
import logging
import platform
import shlex
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from detectron2.utils import comm
from tabulate import tabulate

import microplastics
from microplastics.compat import detectron2_build
from microplastics.engine.weights import sha256_of
from microplastics.errors import UserError, WriteError
from microplastics.files import write_json
from microplastics.inference.image_list import InputImage
from microplastics.inference.opened import ArrayImage, Opened, within, without_boxes
from microplastics.inference.options import RunOptions
from microplastics.inference.output_files import (
    FAILED_FILE,
    RUN_FILE,
    SAMPLES_FILE,
    SUMMARY_FILE,
    forget_image,
)
from microplastics.inference.samples import blank_names, check_samples, make_summaries
from microplastics.inference.store import RunStore
from microplastics.inference.writers import check_formats, output_names, write_image, write_run
from microplastics.inference.writers.base import ImageResult
from microplastics.inference.writers.parts import read_part
from microplastics.inference.writers.tables import write_csv
from microplastics.measurement.calibration import Calibration
from microplastics.measurement.calibration_table import check_scale, read_calibration_csv
from microplastics.measurement.particles import Particles
from microplastics.measurement.region_files import RegionSource
from microplastics.measurement.size_classes import parse_size_classes
from microplastics.measurement.table import combine_tables, images_table, particle_table

logger = logging.getLogger(__name__)

SOME_FAILED = 3
"""Exit code of a run in which images failed."""

# Of the columns and their texts: a run does not go on in another one's.
_TABLE_VERSION = 2
_SHOWN = 20  # rows of the summary on the terminal
_PATIENCE = datetime.timedelta(days=30)


class Run:
    """The images of a run, from their particles to its files; shared by several processes.

    Attributes:
        images: all of the run.
        options: of it.
        region_source: where particles count; None is everywhere.
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
            options: of it.
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
        # One process looks for all: what another one finishes meanwhile must not shift the shares.
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
        self, opened: Opened, particles: Particles, record: dict[str, Any], start: float
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
            0, or 3 where images failed.

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
                f"Not one of the {len(self.images)} images could be worked on; {failures[0][2]}"
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
                    f"The blank {blanks[0]} failed, see {self._output / FAILED_FILE}; mend it and "
                    "add --resume, or leave it out of --blanks."
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
            "detectron2": detectron2_build(),
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
    """Write summary.csv, and samples.csv where images are summed."""
    write_csv(summary, output / SUMMARY_FILE)
    if samples is not None:
        write_csv(samples, output / SAMPLES_FILE)
    else:
        (output / SAMPLES_FILE).unlink(missing_ok=True)


def print_summary(
    output: Path, summary: pd.DataFrame, samples: pd.DataFrame | None, classes: Sequence[str]
) -> None:
    """Print how many particles were found, and where everything lies."""
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


def image_in_memory(opened: Opened, pixels: Any) -> Opened:
    """The same image with all its pixels in memory, its file closed."""
    return dataclasses.replace(opened, regions=ArrayImage(pixels))


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
