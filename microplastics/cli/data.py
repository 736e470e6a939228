"""Commands for data sets: convert, check, split, view, render, export-dataset."""

import json
from pathlib import Path
from typing import Any

import click

from microplastics.cli.parsing import FILE, Command, command, config_file, option, placing
from microplastics.utils.errors import UserError

READERS = ("coco", "yolo", "labelme", "labelstudio", "via", "masks", "blanks")
EXPORT_FORMATS = ("yolo", "labelme", "masks", "coco")
PRESETS = ("default", "glass-filter", "cellulose", "darkfield", "dense", "blank", "beads")
CLASSES = "Fiber,Fragment,Film"

_limit = option("--limit", type=click.IntRange(1), metavar="N", help="Draw only the first N.")
_show = option("--show", is_flag=True, help="Show the pictures in a window instead.")
# Detectron2's scripts have the second names.
_folder = option(
    *("--output", "--output-dir"),
    default="./",
    type=FILE,
    metavar="DIR",
    help="Folder of the pictures.",
)


def _place(copy: bool, link: bool) -> str:
    return "copy" if copy else "link" if link else "keep"


@command(
    exclusive=[("copy", "link")], short_help="Turn annotations of other tools into a COCO data set."
)
@option("--input", required=True, type=FILE, metavar="PATH", help="File or folder to read.")
@option("--output", required=True, type=FILE, metavar="DIR", help="Folder of the new data set.")
@option(
    "--from",
    "format_name",
    type=click.Choice(READERS),
    help="Format of the input; found by itself, except blanks: images without a particle.",
)
@option(
    "--classes",
    metavar="A,B,...",
    help="Classes of --from blanks: the same names in the same order as in the data set that "
    f"they are used with ({CLASSES} if not given).",
)
@option(
    "--categories",
    metavar="old=New,...",
    help="Rename classes; classes of one new name are merged, one without a name (old=) is left "
    "out.",
)
@placing
@option("--images", type=FILE, metavar="DIR", help="Folder of the images if they are not found.")
@option("--line-width", type=float, metavar="PX", help="Width that lines get.")
@option(
    "--crowd-as-instances",
    is_flag=True,
    help="Take crowd regions as particles (CVAT exports brush masks as crowds).",
)
@option("--skip-broken", is_flag=True, help="Leave out missing and broken files, listed.")
def convert(input: str, output: str, format_name: str | None, **given: Any) -> None:
    """Convert annotations of other tools into a COCO data set.

    Writes DIR/annotations/instances_SPLIT.json and DIR/conversion.json. docs/formats.md says what
    is read, changed and left out.

    \b
    microplastics convert --input export --output data/lab --link
    """
    from microplastics.data.formats.base import ReadOptions
    from microplastics.data.formats.convert import convert_dataset, describe

    classes = given["classes"]
    options = ReadOptions(
        skip_broken=given["skip_broken"],
        line_width=given["line_width"],
        images=_path(given["images"]),
        crowd_as_instances=given["crowd_as_instances"],
        classes=None if classes is None else tuple(map(str.strip, classes.split(","))),
    )
    conversion = convert_dataset(
        Path(input),
        Path(output),
        format_name,
        categories=given["categories"],
        place=_place(given["copy"], given["link"]),
        options=options,
    )
    print(describe(conversion))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


@command(
    "export-dataset",
    exclusive=[("copy", "link", "no_images")],
    short_help="Write a data set as YOLO, LabelMe, masks or COCO.",
)
@option(
    "--input",
    required=True,
    type=FILE,
    metavar="PATH",
    help="COCO JSON, or the folder of a data set with all its splits.",
)
@option("--to", required=True, type=click.Choice(EXPORT_FORMATS), help="Format to write.")
@option("--output", required=True, type=FILE, metavar="DIR", help="A new folder.")
@option("--images", type=FILE, metavar="DIR", help="Folder of the images if they are not found.")
@option("--copy", is_flag=True, help="Copy the images, which is the default.")
@option("--link", is_flag=True, help="Link the images instead.")
@option("--no-images", is_flag=True, help="Write only the annotations.")
@option("--polygons", is_flag=True, help="Outline RLE masks along their pixels.")
@option("--skip-broken", is_flag=True, help="Leave out missing and broken images, listed.")
def export_dataset(input: str, to: str, output: str, **given: Any) -> None:
    """Write a data set as YOLO, LabelMe, masks or COCO for other tools.

    Writes the annotations and images as the format wants them, and DIR/export.json, which lists
    what was changed and what the format cannot hold.

    \b
    microplastics export-dataset --input data/lab --to yolo --output lab_yolo
    """
    from microplastics.data.formats.base import ReadOptions
    from microplastics.data.formats.convert import describe, export_dataset

    export = export_dataset(
        Path(input),
        Path(output),
        to,
        place="link" if given["link"] else "none" if given["no_images"] else "copy",
        polygons=given["polygons"],
        options=ReadOptions(images=_path(given["images"]), skip_broken=given["skip_broken"]),
    )
    print(describe(export))


@command(pairs=True, short_help="Find what is wrong in an annotated data set, and fix it.")
@click.argument("annotations", nargs=-1, required=True, metavar="ANNOTATIONS...")
@option(
    "--images",
    several=True,
    metavar="DIR",
    help="Image folder: one for all, or one for each JSON (beside the JSON if not given).",
)
@config_file("Check the data against the classes and the model of this config.")
@option(
    "--group-regex",
    metavar="REGEX",
    help=r"Its one group names the sample or filter in a file name: (S\d+)_",
)
@option(
    "--fix",
    type=FILE,
    metavar="OUT",
    help="Write a fixed copy to this file (a folder for several JSONs) and list the changes.",
)
@option("--report", type=FILE, metavar="DIR", help="Write report.json and a page to look at.")
@option("--workers", type=int, metavar="W", help="Processes (chosen by itself if not given).")
def check(annotations: tuple[str, ...], opts: list[str], **given: Any) -> int:
    """Find what is wrong in an annotated data set, and fix what can be fixed.

    ANNOTATIONS are COCO JSON files, JSON:IMAGES, or names of registered data sets. The exit code
    is 0 for a clean set or only warnings, 1 for problems, 2 for a command that cannot be done.

    \b
    microplastics check train.json test.json --images data/train data/test --report look
    microplastics check train.json --images data/train --fix fixed.json
    """
    from microplastics.config import load_config
    from microplastics.data.doctor import diagnose, fix_datasets
    from microplastics.data.doctor.findings import describe, describe_fixed
    from microplastics.data.doctor.fix import check_output

    config, fix = given["config_file"], given["fix"]
    if opts and not config:
        raise UserError(
            f"{opts[0]} changes a config; name it with --config-file.", code="option_missing"
        )
    json_files, image_roots = _resolve(list(annotations), given["images"])
    if fix:
        check_output(json_files, fix)
    cfg = load_config(config, opts) if config else None
    diagnosis = diagnose(
        json_files,
        image_roots,
        cfg=cfg,
        config_file=config,
        group_regex=given["group_regex"],
        workers=given["workers"],
        max_pixels=None if cfg is None else cfg.INPUT.MAX_PIXELS,
    )
    print(describe(diagnosis))
    if given["report"]:
        from microplastics.report.dataset import write_report

        print(f"\nReport: {write_report(diagnosis, Path(given['report']))}")
    if fix:
        print(f"\n{describe_fixed(fix_datasets(diagnosis, fix))}")
    return int(diagnosis.has_problems)


def _resolve(annotations: list[str], images: list[str]) -> tuple[list[str], list[str]]:
    """Turn the entries of the command line into annotation files and image folders."""
    if images:
        return annotations, images
    from detectron2.data import MetadataCatalog

    from microplastics.data.catalog import resolve_datasets

    found = [MetadataCatalog.get(name) for name in resolve_datasets(annotations)]
    return [data.json_file for data in found], [data.image_root for data in found]


def _fractions(
    ctx: click.Context, param: click.Parameter, text: str | None
) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.7,0.3.") from None


@command(
    exclusive=[
        ("shares", "folds", "fold_lists"),
        ("group_regex", "groups"),
        ("copy", "link"),
    ],
    short_help="Divide a data set by filter into train, val and test.",
)
@option(
    "--input",
    required=True,
    several=True,
    metavar="JSON",
    help="COCO instance JSON; several are put together first.",
)
@option(
    "--images",
    required=True,
    several=True,
    metavar="DIR",
    help="Image folder: one for all, or one for each JSON.",
)
@option("--output", required=True, type=FILE, metavar="DIR", help="Folder of the splits.")
@option(
    "--shares",
    callback=_fractions,
    metavar="A,B[,C]",
    help="Fractions of train, val and test (0.7,0.15,0.15 if not given).",
)
@option("--folds", type=int, metavar="K", help="Folds of equal size instead.")
@option(
    "--fold-lists",
    several=True,
    metavar="FILE",
    help="Folds that exist already: a text file of names for each, or one CSV image,fold.",
)
@option(
    "--group-regex",
    metavar="REGEX",
    help="Its one group names the filter in a file name; a filter stays whole.",
)
@option("--groups", type=FILE, metavar="CSV", help="Table with the columns image and group.")
@option(
    "--by-similarity",
    is_flag=True,
    help="Keep copies of one photograph together, found by their pixels; also with the others.",
)
@option(
    "--split-roboflow-copies",
    is_flag=True,
    help="Do not keep Roboflow's augmented copies of one image together.",
)
@option("--seed", type=int, default=0, metavar="N", help="Same seed, same splits.")
@placing
def split(input: list[str], images: list[str], output: str, **given: Any) -> None:
    """Divide a data set by filter or sample into train, val and test, or into folds.

    Writes DIR/annotations/instances_{train,val,test}.json, or DIR/fold1/annotations/... and so
    on, and DIR/splits.json. docs/splits.md says how the groups are formed and what splits.json
    holds.

    \b
    microplastics split --input all.json --images photographs --output data/splits \\
        --group-regex '^(F\\d+)_'
    """
    from microplastics.data.splits.split import SplitOptions, split_dataset

    options = SplitOptions(
        shares=given["shares"],
        folds=given["folds"],
        fold_lists=tuple(given["fold_lists"]),
        group_regex=given["group_regex"],
        groups_csv=given["groups"],
        by_similarity=given["by_similarity"],
        join_roboflow_copies=not given["split_roboflow_copies"],
        seed=given["seed"],
    )
    print(split_dataset(input, images, output, options, _place(given["copy"], given["link"])))


class Modes(click.Group):
    """A command with several modes, such as ``render dataset``; without one it prints its help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; an empty line asks for help."""
        return super().parse_args(ctx, args or ([] if ctx.resilient_parsing else ["--help"]))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the modes in the order of their definition."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the modes with their whole first sentences."""
        with formatter.section("Modes"):
            formatter.write_dl(
                [(name, mode.get_short_help_str(200)) for name, mode in self.commands.items()]
            )


@click.group(
    cls=Modes,
    no_args_is_help=False,
    short_help="Render data sets or whole filters with annotations.",
)
def render() -> None:
    """Render data sets or whole filters with exact annotations.

    docs/synthetic.md shows what is drawn.
    """


@render.command("dataset", cls=Command)
@option("--output", required=True, type=FILE, metavar="DIR", help="Folder of the data set.")
@option("--train", type=int, default=240, metavar="N", help="Training images.")
@option("--val", type=int, default=60, metavar="N", help="Validation images.")
@option("--test", type=int, default=60, metavar="N", help="Test images.")
@option("--size", type=int, default=512, metavar="PX", help="Side of an image.")
@option("--um-per-px", type=float, default=4.0, metavar="UM", help="Scale in µm per pixel.")
@option("--seed", type=int, default=0, metavar="K", help="Same seed, same bytes.")
@option(
    "--preset",
    default="default",
    metavar="NAME",
    help=f"What is drawn: {', '.join(PRESETS)} (docs/synthetic.md).",
)
@option(
    "--backgrounds",
    type=FILE,
    metavar="DIR",
    help="Folder of blank filter images to draw particles on.",
)
@option("--workers", type=int, metavar="W", help="Processes (chosen by itself if not given).")
def render_dataset(output: str, train: int, val: int, test: int, **given: Any) -> None:
    """Render photographs of filters with fibres, fragments and films, or with beads.

    Writes images to DIR/train, DIR/val and DIR/test, and instances_SPLIT.json to DIR/annotations.

    \b
    microplastics render dataset --output data/rendered --train 400 --val 60 --test 24
    """
    from microplastics.synthetic import render_dataset

    counts = {"train": train, "val": val, "test": test}
    paths = render_dataset(output, counts, **given)
    for name, path in paths.items():
        print(f"{name}: {counts[name]} images, annotations in {path}")


@render.command("filter", cls=Command)
@option("--output", required=True, type=FILE, metavar="FILE.tif", help="The TIFF.")
@option("--size", type=int, default=10_000, metavar="PX", help="Side of the image.")
@option("--um-per-px", type=float, default=2.0, metavar="UM", help="Scale in µm per pixel.")
@option("--seed", type=int, default=0, metavar="K", help="Same seed, same bytes.")
@option("--particles", type=int, metavar="N", help="Particles (15 a megapixel if not given).")
@option(
    "--preset",
    default="default",
    metavar="NAME",
    help=f"What is drawn: {', '.join(name for name in PRESETS if name != 'beads')}.",
)
@option("--filter", metavar="NAME", help="The filter, such as cellulose (random if not given).")
@option("--jpeg-quality", type=int, default=92, metavar="Q", help="Of the tiles, 1 to 100.")
@option("--lossless", is_flag=True, help="Deflate instead of JPEG.")
@option("--workers", type=int, metavar="W", help="Processes (chosen by itself if not given).")
def render_filter(output: str, filter: str | None, lossless: bool, **given: Any) -> None:
    """Render a stitched photograph of a whole filter, as a tiled TIFF.

    Writes FILE.tif and FILE.json (COCO) beside it.

    \b
    microplastics render filter --output filter.tif --size 10000 --particles 1200
    """
    from microplastics.synthetic import render_mosaic

    quality = given.pop("jpeg_quality")
    path = render_mosaic(
        output, filter_name=filter, jpeg_quality=None if lossless else quality, **given
    )
    coco = json.loads(path.read_text(encoding="utf-8"))
    found, wanted = len(coco["annotations"]), coco["info"]["particles_wanted"]
    print(f"{output}: {found} particles, annotations in {path}")
    if found < wanted:
        print(f"{wanted - found} of {wanted} particles found no room or did not stand out")


@render.command("backgrounds", cls=Command)
@option("--input", required=True, type=FILE, metavar="JSON", help="All particles annotated.")
@option("--images", required=True, type=FILE, metavar="DIR", help="Image folder of the JSON.")
@option("--output", required=True, type=FILE, metavar="DIR", help="Folder of the squares.")
@option("--min-size", type=int, default=256, metavar="PX", help="Smallest side.")
@option("--margin", type=int, default=25, metavar="PX", help="Distance from particles.")
def render_backgrounds(input: str, images: str, output: str, min_size: int, margin: int) -> None:
    """Cut particle-free squares out of annotated photographs to render on.

    \b
    microplastics render backgrounds --input train.json --images train --output squares
    microplastics render dataset --backgrounds squares --output rendered
    """
    from microplastics.synthetic.filters import cut_blank_windows

    written, without = cut_blank_windows(input, images, output, min_size, margin)
    print(f"{len(written)} blank squares in {output}")
    if without:
        print(f"{len(without)} images have none of {min_size} px: {', '.join(without)}")


@click.group(
    cls=Modes, no_args_is_help=False, short_help="Draw annotations, training batches, or results."
)
def view() -> None:
    """Draw annotations, training batches, augmentations or results."""


@view.command("annotations", cls=Command, pairs=True)
@config_file()
@_folder
@_limit
@_show
def view_annotations(**given: Any) -> None:
    """Draw the annotations of the training set.

    \b
    microplastics view annotations --output look DATASETS.TRAIN '("train.json:photos",)'
    """
    from microplastics.visualization.galleries import draw_annotations

    _view(draw_annotations, **given)


@view.command("batches", cls=Command, pairs=True)
@config_file()
@_folder
@_limit
@_show
def view_batches(**given: Any) -> None:
    """Draw the augmented batches that training will see, for one epoch.

    \b
    microplastics view batches --config-file output/mine/config.yaml --output look --limit 20
    """
    from microplastics.visualization.galleries import draw_batches

    _view(draw_batches, **given)


def _view(
    draw: Any, config_file: str, opts: list[str], output: str, limit: int | None, show: bool
) -> None:
    from microplastics.config import load_config

    cfg = load_config(config_file, opts)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.freeze()
    count = draw(cfg, output, limit, show)
    if not show:
        print(f"{count} pictures in {output}")


@view.command("augmentations", cls=Command, pairs=True)
@config_file()
@option("--output", required=True, type=FILE, metavar="FILE", help=".jpg or .png to write.")
@option("--side", type=int, default=280, metavar="PX", help="Side of a panel.")
@option("--seed", type=int, default=0, metavar="K", help="Of the random numbers.")
def view_augmentations(
    config_file: str, opts: list[str], output: str, side: int, seed: int
) -> None:
    """Draw on one picture what each augmentation does to a training image.

    \b
    microplastics view augmentations --output augmentation.jpg \\
        DATASETS.TRAIN '("train.json:photos",)' INPUT.AUG.HUE.MAX_SHIFT 30.0
    """
    from microplastics.config import load_config
    from microplastics.visualization.galleries import draw_augmentations

    cfg = load_config(config_file, opts)
    cfg.MODEL.MASK_ON = True
    cfg.freeze()
    counts = draw_augmentations(cfg, output, side, seed)
    print(f"{len(counts)} panels in {output}")


@view.command("results", cls=Command)
@option("--input", required=True, type=FILE, metavar="JSON", help="Predictions of a model.")
@option("--output", required=True, type=FILE, metavar="DIR", help="Folder of the pictures.")
@option(
    "--dataset",
    default="microplastics_val",
    metavar="NAME",
    help="Registered data set or path/to.json:path/to/images.",
)
@option(
    *("--min-score", "--conf-threshold"),
    default=0.5,
    type=click.FloatRange(0, 1),
    metavar="S",
    help="Lowest score that is drawn.",
)
@_limit
def view_results(
    input: str, output: str, dataset: str, min_score: float, limit: int | None
) -> None:
    """Draw photograph, truth and prediction side by side from an evaluation.

    \b
    microplastics view results --input output/mine/inference/coco_instances_results.json \\
        --dataset microplastics_val --output look
    """
    from microplastics.visualization.galleries import draw_results

    done = draw_results(input, dataset, output, min_score, limit)
    print(f"{done.pictures} pictures in {output}")
    if not done.predictions:
        print(f"{input} holds no predictions at all: the pictures show only the truth.")
    elif not done.drawn:
        print(
            f"None of the {done.predictions} predictions reaches --min-score {min_score:g}: the "
            f"pictures show only the truth. The highest score is {done.best_score:.2g}."
        )
