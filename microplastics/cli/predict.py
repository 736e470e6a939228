"""Commands for particles, and the export of a model: predict, measure, export."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from microplastics.cli.parsing import command, config_file, flag, option, path, processes, section
from microplastics.utils.errors import UserError

RUN_FORMATS = ("csv", "parquet", "coco", "overlays", "labels", "rois", "geojson")
EXPORT_FORMATS = ("onnx", "torchscript")
EXCLUSIVE = [
    ("resume", "overwrite"),
    ("scale_bar", "scale_bar_um"),
    ("counted_fraction", "filter_area_mm2"),
]

_config_of_checkpoint = config_file("Name or path of a config (the checkpoint's own if not given).")
_threshold = option(
    "--confidence-threshold=S",
    "Lowest score of a particle (the checkpoint's own if not given, else 0.5).",
    type=float,
)


def _unless(names: str, text: str) -> Callable:
    """Make a flag that turns its parameter from true to false."""
    return flag(names, text, flag_value=False, default=True, show_default=False)


def _formats(ctx: click.Context, param: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in RUN_FORMATS]
    if unknown:
        raise click.BadParameter(
            f"{', '.join(unknown)} is unknown; choose from {', '.join(RUN_FORMATS)}."
        )
    return tuple(name for name in RUN_FORMATS if name in names)


def _fiber_classes(
    ctx: click.Context, param: click.Parameter, text: str | None
) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())


scale_options = section(
    "Scale (docs/calibration.md)",
    option("--um-per-px=UM", "µm per pixel of all images.", type=float),
    path("--calibration=CSV", "Table with the columns image and um_per_px."),
    option("--scale-bar-um=UM", "Find the burnt-in bar of UM µm.", type=float),
    option(
        "--scale-bar",
        "auto: find the burnt-in bar and read the number beside it; ignore: there is none, so "
        "that nothing is painted over.",
        type=click.Choice(["auto", "ignore"]),
    ),
    flag("--ignore-metadata", "Do not use the scale in the files."),
)

# What predict and measure have in common.
run_options = section(
    "",
    path("--output=DIR", "Folder of all results.", required=True),
    option(
        "--formats=A,B",
        f"What to write (docs/outputs.md); all if not given: {', '.join(RUN_FORMATS)}.",
        callback=_formats,
        default=",".join(RUN_FORMATS),
        show_default=False,
    ),
    flag("--resume", "Go on with the run in DIR."),
    flag("--overwrite", "Begin the run in DIR again."),
    scale_options,
    section(
        "Sizes (docs/measurement.md)",
        option(
            "--fiber-classes=A,B",
            "Classes measured along their centreline (those of the model, or whose name or "
            "supercategory says fibre, if not given; '' for none).",
            callback=_fiber_classes,
        ),
    ),
    section(
        "Counts (docs/counts.md)",
        option(
            "--size-classes=WHAT",
            "default, msfd, iso24187 or mm, or bounds in µm such as 20,100,500.",
            default="default",
        ),
        option("--min-size=UM", "Smallest size that is counted.", type=float),
        option(
            "--region=WHAT",
            "Where particles count (docs/region.md): circle, which finds a round membrane; "
            "a mask, QuPath GeoJSON or ImageJ ROI; or a folder with one for each image.",
        ),
        option(
            "--edge",
            "Particles that touch the border: counted, left out, or corrected for by weights.",
            type=click.Choice(["count", "exclude", "weight"]),
            default="count",
        ),
        option(
            "--group-by=WHAT", "Sum samples: folder, a CSV (image, group), or a regular expression."
        ),
        option(
            "--sampled-volume=VOLUME",
            "Filtered for each sample, such as '2 L', or a CSV (sample, volume with unit).",
        ),
        option(
            "--counted-fraction=F",
            "Fraction of the filter that a sample's images show.",
            default=1.0,
        ),
        option(
            "--filter-area-mm2=AREA",
            "Area of the whole filter; the fraction is the area of the images, or of their "
            "regions, divided by it.",
            type=float,
        ),
        option("--blanks=GLOB", "Images that are blanks, by their names.", multiple=True),
    ),
    _unless("--no-report report", "Leave report.html out (docs/report.md)."),
    section("Large files", flag("--allow-large", "Decode files of any number of pixels.")),
)


@command(
    pairs=True,
    exclusive=EXCLUSIVE,
    short_help="Find, count and measure the particles on photographs.",
)
@option(
    "--input=PATH", "Images, folders, globs, or .txt lists of images.", multiple=True, required=True
)
@path("--weights=FILE", "Checkpoint of a training.")
@_config_of_checkpoint
@_threshold
@option("--mask-threshold=P", "Lowest probability of a pixel of a mask.", default=0.5)
@option(
    "--max-overlap=F",
    "Fraction of a particle that a better-scored one may cover (the config's if not given).",
    type=float,
)
@option(
    "--precision",
    "bf16 takes about 0.6 of the time on processors that have it.",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
)
@option("--batch-size=N", "Images at once (1 if not given, 8 on a GPU).", type=int)
@run_options
@section(
    "Windows of large images (docs/stitching.md)",
    option(
        "--tile=PX",
        "Side of the windows; 0 never cuts an image (chosen by itself if not given).",
        type=int,
    ),
    option(
        "--overlap=PX", "Overlap of neighbouring windows (chosen by itself if not given).", type=int
    ),
    option("--largest=PX", "Length of the largest particle expected.", type=float),
    _unless("--no-coarse coarse", "No pass for particles larger than a window."),
    _unless("--no-join join", "Leave broken fibres in pieces."),
)
@processes
def predict(**given: Any) -> Any:
    """Find, count and measure the particles on photographs, up to whole stitched filters.

    Exit code 3: some images failed (DIR/failed.csv), and the others are done.

    \b
    microplastics predict --weights best.pth --input photos --output results --um-per-px 2.5
    """
    from microplastics.engine.distributed import launch

    return launch(_predict, argparse.Namespace(**given))


def _predict(args: argparse.Namespace) -> int:
    from detectron2.utils import comm

    from microplastics.report.run import after_run
    from microplastics.runs.run import predict_run

    code = predict_run(args)
    if comm.is_main_process():
        after_run(args.output, args.report)
    return code


@command(
    exclusive=[("masks", "merge_runs"), *EXCLUSIVE],
    short_help="Measure particles whose masks are given.",
)
@option(
    "--masks=FILE",
    "COCO JSON, COCO results JSON, or label TIFFs or PNGs (a folder of them).",
    multiple=True,
)
@option("--merge-runs=DIR", "Put the tables of finished runs together instead.", multiple=True)
@path("--images=DIR", "The photographs, for colours, overlays and their scale.")
@path("--dataset=JSON", "COCO JSON that names images and classes of results.")
@option("--class-name=NAME", "Class of all label images.", default="Particle")
@option("--min-score=S", "Lowest score of results.", default=0.0)
@run_options
def measure(**given: Any) -> int:
    """Measure given masks: annotations, predictions of any model, or label images.

    \b
    microplastics measure --masks annotations.json --images photos --um-per-px 2.5 \\
        --output results
    microplastics measure --merge-runs monday tuesday --group-by folder --output both
    """
    from microplastics.report.run import after_run
    from microplastics.runs.run import measure_run

    if not (given["masks"] or given["merge_runs"]):
        raise UserError(
            "--masks and --merge-runs are missing; give one of them.", code="option_missing"
        )
    code = measure_run(argparse.Namespace(**given))
    after_run(given["output"], given["report"])
    return code


@command(short_help="Make the report of a finished run again.")
@click.argument("run", type=click.Path())
def report(run: str) -> None:
    """Make RUN/report.html of a finished prediction or measurement again.

    Or evaluation.html, if RUN is the folder that microplastics evaluate wrote.

    \b
    microplastics report results
    microplastics report output/mine/inference
    """
    from microplastics.report.evaluation import ABOUT_FILE, write_evaluation_report
    from microplastics.report.run import write_run_report

    is_evaluation = Path(run, ABOUT_FILE).is_file()
    print(write_evaluation_report(run) if is_evaluation else write_run_report(run))


@command(pairs=True, short_help="Write a model as an ONNX or TorchScript file.")
@path("--weights=FILE", "Checkpoint of a training.", required=True)
@_config_of_checkpoint
@option(
    "--format format_name", "Format to write.", required=True, type=click.Choice(EXPORT_FORMATS)
)
@path("--output=FILE", ".onnx; or .ts, .pt or .torchscript.", required=True)
@option(
    "--size=H W",
    "The one size in px of an ONNX file's input (any if not given).",
    type=int,
    nargs=2,
)
@flag("--dynamic", "Any size in spite of --size.")
@_threshold
def export(
    format_name: str, output: str, size: tuple[int, int] | None, dynamic: bool, **given: Any
) -> None:
    """Write a model as an ONNX or TorchScript file that runs without Detectron2.

    \b
    microplastics export --weights best.pth --format onnx --output model.onnx
    """
    from microplastics.export.export import export_model
    from microplastics.runs.run import make_predictor

    given["opts"] += ["MODEL.DEVICE", "cpu"]
    args = argparse.Namespace(mask_threshold=0.5, precision="fp32", batch_size=1, **given)
    about = export_model(make_predictor(args), output, format_name, size, dynamic)
    check, (_, height, width) = about["check"], about["input"]["shape"]
    print(f"{output}: {format_name}, uint8 {about['input']['channels']} (3, {height}, {width})")
    print(
        f"{check['detections']} detections on {check['pictures']} rendered pictures as the "
        f"checkpoint has them: {check['unmatched']} unmatched, boxes within "
        f"{check['boxes_px']:.1g} px, scores within {check['scores']:.1g}, "
        f"{check['mask_pixels_share']:.1g} of the mask pixels differ"
    )
    if not check["detections"]:
        print("Nothing there was scored above the thresholds: compare on photographs of your own")
