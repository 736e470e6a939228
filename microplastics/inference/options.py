"""What a run of ``tools/predict.py`` or ``tools/measure.py`` is asked to do, and its arguments."""

import argparse
import dataclasses
from typing import Any

from microplastics.errors import UserError
from microplastics.inference.writers import FORMATS, check_formats

# What the summary alone depends on, and what decides whether an image is read at all: a run may go
# on with others.
_OF_THE_RUN = frozenset(
    ("edge", "group_by", "sampled_volume", "counted_fraction", "filter_area_mm2", "blanks")
    + ("allow_large", "max_pixels")
)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How particles become tables and files, whoever found them.

    Attributes:
        output: folder of the run.
        formats: what is written, of ``writers.FORMATS``; summary.csv and run.json always are.
        um_per_px: scale of all images in µm per pixel.
        calibration: CSV with the scale of each image.
        scale_bar_um: length in µm of the bar that is burnt into each image.
        ignore_metadata: leave the files' own word on their scale aside.
        size_classes: name of a set of size classes, or their bounds in µm.
        min_size: particles of a smaller largest Feret diameter are not counted, in µm, or in px
            without a calibration.
        region: where particles count: ``circle``, a file or a folder, as
            :class:`microplastics.measurement.region_files.RegionSource` takes it; everywhere if
            None.
        edge: what becomes of particles that touch the image's border: count, exclude or weight.
        group_by: what sums images of one sample: ``folder``, a CSV (image, group) or a regex.
        sampled_volume: that was filtered, as ``2 L`` or ``0.5 m3``, for each sample; or a CSV
            (sample, volume).
        counted_fraction: share of the filter that the images of a sample show.
        filter_area_mm2: area of the filter on which particles lie, in place of that share.
        blanks: images, by name or glob, that are procedural blanks.
        allow_large: lift the limit on the pixels of a file that must be decoded whole.
        max_pixels: that limit.
        resume, overwrite: go on with what the folder holds, or forget it.
    """

    output: str
    formats: tuple[str, ...] = tuple(FORMATS)
    um_per_px: float | None = None
    calibration: str | None = None
    scale_bar_um: float | None = None
    ignore_metadata: bool = False
    size_classes: str = "default"
    min_size: float | None = None
    region: str | None = None
    edge: str = "count"
    group_by: str | None = None
    sampled_volume: str | None = None
    counted_fraction: float = 1.0
    filter_area_mm2: float | None = None
    blanks: tuple[str, ...] = ()
    allow_large: bool = False
    max_pixels: int | None = None
    resume: bool = False
    overwrite: bool = False

    def settings(self) -> dict[str, Any]:
        """The options that the results of an image depend on."""
        return {name: value for name, value in self.as_dict().items() if name not in _OF_THE_RUN}

    def as_dict(self) -> dict[str, Any]:
        """All options that results depend on, those of the summary too."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("output", "resume", "overwrite")
        }


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`RunOptions` to a parser, in groups."""
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of all results")
    parser.add_argument(
        "--formats",
        type=_formats,
        default=tuple(FORMATS),
        metavar="A,B",
        help=f"what to write, of {', '.join(FORMATS)} (default: all; docs/outputs.md)",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    again.add_argument("--overwrite", action="store_true", help="begin the run in DIR anew")
    add = parser.add_argument_group("scale (docs/calibration.md)").add_argument
    add("--um-per-px", type=float, metavar="X", help="micrometres per pixel of all images")
    add("--calibration", metavar="CSV", help="table with the columns image and um_per_px")
    add("--scale-bar-um", type=float, metavar="L", help="find the burnt-in bar of L µm")
    add("--ignore-metadata", action="store_true", help="do not use the scale in the files")
    _add_count_arguments(parser)
    add = parser.add_argument_group("large files").add_argument
    add("--allow-large", action="store_true", help="decode files of any number of pixels")


def _add_count_arguments(parser: argparse.ArgumentParser) -> None:
    counts = parser.add_argument_group("counts (docs/counts.md)")
    add = counts.add_argument
    add(
        "--size-classes",
        default="default",
        metavar="WHAT",
        help="default, msfd, iso24187 or mm, or bounds in µm such as 20,100,500",
    )
    add("--min-size", type=float, metavar="S", help="least size that is counted, in µm")
    add(
        "--region",
        metavar="WHAT",
        help="where particles count (docs/region.md): circle, which finds a round membrane, a "
        "mask, QuPath GeoJSON or ImageJ ROI, or a folder with one for each image",
    )
    add(
        "--edge",
        choices=("count", "exclude", "weight"),
        default="count",
        help="particles that touch the border: counted, left out, or made up for by weights",
    )
    add("--group-by", metavar="WHAT", help="sum samples: folder, a CSV (image, group), or a REGEX")
    add(
        "--sampled-volume",
        metavar="V",
        help="filtered for each sample, such as '2 L', or a CSV (sample, volume with its unit)",
    )
    share = counts.add_mutually_exclusive_group()
    share.add_argument(
        "--counted-fraction",
        type=float,
        default=1.0,
        metavar="F",
        help="share of the filter that a sample's images show (default: 1)",
    )
    share.add_argument(
        "--filter-area-mm2",
        type=float,
        metavar="A",
        help="area of the whole filter: the share is the images' (or the region's) area over it",
    )
    add("--blanks", nargs="+", default=(), metavar="GLOB", help="images that are blanks, by name")


def run_options(args: argparse.Namespace, **more: Any) -> RunOptions:
    """The options of a parsed command line."""
    names = {field.name for field in dataclasses.fields(RunOptions)}
    given = {name: value for name, value in vars(args).items() if name in names}
    return RunOptions(**{**given, "blanks": tuple(given["blanks"]), **more})


def _formats(text: str) -> tuple[str, ...]:
    try:
        return tuple(check_formats(part.strip() for part in text.split(",") if part.strip()))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
