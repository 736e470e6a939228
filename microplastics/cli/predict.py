"""Commands for particles, and the export of a model: predict, measure, export."""

import argparse
from typing import Any

import click

from microplastics.cli.parsing import FILE, command, config_file, option, processes, section
from microplastics.utils.errors import UserError

RUN_FORMATS = ("csv", "parquet", "coco", "overlays", "labels", "rois", "geojson")
EXPORT_FORMATS = ("onnx", "torchscript")
EXCLUSIVE = [("resume", "overwrite"), ("counted_fraction", "filter_area_mm2")]

_threshold = option(
    "--confidence-threshold",
    type=float,
    metavar="S",
    help="Lowest score of a particle (the checkpoint's own if not given, else 0.5).",
)


def _formats(ctx: click.Context, param: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in RUN_FORMATS]
    if unknown:
        raise click.BadParameter(
            f"{', '.join(unknown)} is unknown; choose from {', '.join(RUN_FORMATS)}."
        )
    return tuple(name for name in RUN_FORMATS if name in names)


# The options of inference.options.RunOptions, which predict and measure have in common.
run_options = section(
    "",
    option("--output", required=True, type=FILE, metavar="DIR", help="Folder of all results."),
    option(
        "--formats",
        callback=_formats,
        default=",".join(RUN_FORMATS),
        show_default=False,
        metavar="A,B",
        help=f"What to write (docs/outputs.md); all if not given: {', '.join(RUN_FORMATS)}.",
    ),
    option("--resume", is_flag=True, help="Go on with the run in DIR."),
    option("--overwrite", is_flag=True, help="Begin the run in DIR again."),
    section(
        "Scale (docs/calibration.md)",
        option("--um-per-px", type=float, metavar="UM", help="µm per pixel of all images."),
        option(
            "--calibration",
            type=FILE,
            metavar="CSV",
            help="Table with the columns image and um_per_px.",
        ),
        option("--scale-bar-um", type=float, metavar="UM", help="Find the burnt-in bar of UM µm."),
        option("--ignore-metadata", is_flag=True, help="Do not use the scale in the files."),
    ),
    section(
        "Counts (docs/counts.md)",
        option(
            "--size-classes",
            default="default",
            metavar="WHAT",
            help="default, msfd, iso24187 or mm, or bounds in µm such as 20,100,500.",
        ),
        option("--min-size", type=float, metavar="UM", help="Smallest size that is counted."),
        option(
            "--region",
            metavar="WHAT",
            help="Where particles count (docs/region.md): circle, which finds a round membrane; "
            "a mask, QuPath GeoJSON or ImageJ ROI; or a folder with one for each image.",
        ),
        option(
            "--edge",
            type=click.Choice(["count", "exclude", "weight"]),
            default="count",
            help="Particles that touch the border: counted, left out, or made up for by weights.",
        ),
        option(
            "--group-by",
            metavar="WHAT",
            help="Sum samples: folder, a CSV (image, group), or a regular expression.",
        ),
        option(
            "--sampled-volume",
            metavar="VOLUME",
            help="Filtered for each sample, such as '2 L', or a CSV (sample, volume with unit).",
        ),
        option(
            "--counted-fraction",
            type=float,
            default=1.0,
            metavar="F",
            help="Fraction of the filter that a sample's images show.",
        ),
        option(
            "--filter-area-mm2",
            type=float,
            metavar="AREA",
            help="Area of the whole filter; the fraction is the area of the images, or of their "
            "regions, divided by it.",
        ),
        option(
            "--blanks", several=True, metavar="GLOB", help="Images that are blanks, by their names."
        ),
    ),
    section(
        "Large files",
        option("--allow-large", is_flag=True, help="Decode files of any number of pixels."),
    ),
)


@command(
    pairs=True,
    exclusive=EXCLUSIVE,
    short_help="Find, count and measure the particles on photographs.",
)
@option(
    "--input",
    several=True,
    required=True,
    metavar="PATH",
    help="Images, folders, globs, or .txt lists of images.",
)
@option("--weights", type=FILE, metavar="FILE", help="Checkpoint of a training.")
@config_file("Name or path of a config (the checkpoint's own if not given).")
@_threshold
@option(
    "--mask-threshold",
    type=float,
    default=0.5,
    metavar="P",
    help="Lowest probability of a pixel of a mask.",
)
@option(
    "--max-overlap",
    type=float,
    metavar="F",
    help="Fraction of a particle that a better-scored one may cover (the config's if not given).",
)
@option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    help="bf16 takes about 0.6 of the time on processors that have it.",
)
@option(
    "--batch-size",
    type=int,
    metavar="N",
    help="Images at once (1 if not given, 8 on a GPU).",
)
@run_options
@section(
    "Windows of large images (docs/stitching.md)",
    option(
        "--tile",
        type=int,
        metavar="PX",
        help="Side of the windows; 0 never cuts an image (chosen by itself if not given).",
    ),
    option(
        "--overlap",
        type=int,
        metavar="PX",
        help="Overlap of neighbouring windows (chosen by itself if not given).",
    ),
    option("--largest", type=float, metavar="PX", help="Length of the largest particle expected."),
    option(
        "--no-coarse",
        "coarse",
        is_flag=True,
        flag_value=False,
        default=True,
        show_default=False,
        help="No pass for particles larger than a window.",
    ),
    option(
        "--no-join",
        "join",
        is_flag=True,
        flag_value=False,
        default=True,
        show_default=False,
        help="Leave broken fibres in pieces.",
    ),
)
@processes
def predict(**given: Any) -> Any:
    """Find, count and measure the particles on photographs, up to whole stitched filters.

    Exit code 3: some images failed (DIR/failed.csv), and the others are done.

    \b
    microplastics predict --weights best.pth --input photos --output results --um-per-px 2.5
    """
    from microplastics.engine import launch
    from microplastics.runs.run import predict_run

    return launch(predict_run, argparse.Namespace(**given))


@command(
    exclusive=[("masks", "merge_runs"), *EXCLUSIVE],
    short_help="Measure particles whose masks are given.",
)
@option(
    "--masks",
    several=True,
    metavar="FILE",
    help="COCO JSON, COCO results JSON, or label TIFFs or PNGs (a folder of them).",
)
@option(
    "--merge-runs",
    several=True,
    metavar="DIR",
    help="Put the tables of finished runs together instead.",
)
@option(
    "--images",
    type=FILE,
    metavar="DIR",
    help="The photographs, for colours, overlays and their scale.",
)
@option(
    "--dataset",
    type=FILE,
    metavar="JSON",
    help="COCO JSON that names images and classes of results.",
)
@option("--class-name", default="Particle", metavar="NAME", help="Class of all label images.")
@option("--min-score", type=float, default=0.0, metavar="S", help="Lowest score of results.")
@run_options
def measure(**given: Any) -> int:
    """Measure given masks: annotations, predictions of any model, or label images.

    \b
    microplastics measure --masks annotations.json --images photos --um-per-px 2.5 \\
        --output results
    microplastics measure --merge-runs monday tuesday --group-by folder --output both
    """
    from microplastics.runs.run import measure_run

    if not (given["masks"] or given["merge_runs"]):
        raise UserError(
            "--masks and --merge-runs are missing; give one of them.", code="option_missing"
        )
    return measure_run(argparse.Namespace(**given))


@command(pairs=True, short_help="Write a model as an ONNX or TorchScript file.")
@option("--weights", required=True, type=FILE, metavar="FILE", help="Checkpoint of a training.")
@config_file("Name or path of a config (the checkpoint's own if not given).")
@option(
    "--format",
    "format_name",
    required=True,
    type=click.Choice(EXPORT_FORMATS),
    help="Format to write.",
)
@option(
    "--output",
    required=True,
    type=FILE,
    metavar="FILE",
    help=".onnx; or .ts, .pt or .torchscript.",
)
@option(
    "--size",
    type=int,
    nargs=2,
    metavar="H W",
    help="The one size in px of an ONNX file's input (any if not given).",
)
@option("--dynamic", is_flag=True, help="Any size in spite of --size.")
@_threshold
def export(
    format_name: str,
    output: str,
    size: tuple[int, int] | None,
    dynamic: bool,
    opts: list[str],
    **given: Any,
) -> None:
    """Write a model as an ONNX or TorchScript file that runs without Detectron2.

    \b
    microplastics export --weights best.pth --format onnx --output model.onnx
    """
    from microplastics.export.export import export_model
    from microplastics.runs.run import make_predictor

    args = argparse.Namespace(
        mask_threshold=0.5,
        precision="fp32",
        batch_size=1,
        opts=[*opts, "MODEL.DEVICE", "cpu"],
        **given,
    )
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
