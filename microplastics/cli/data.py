"""Commands for data sets: convert, check, anchors, split, view, render, export-dataset."""

import difflib
import json
import re
from pathlib import Path
from typing import Any

import click

from microplastics.cli.parsing import Command, command, config_file, flag, option, path, section
from microplastics.cli.review import page_options
from microplastics.utils.errors import UserError, check_option

READERS = ("coco", "yolo", "labelme", "labelme_web", "labelstudio", "via", "cvat", "supervisely")
READERS += ("qupath", "imagej", "masks", "voc", "dsb2018", "cellpose", "sam", "blanks")
EXPORT_FORMATS = ("yolo", "labelme", "masks", "labelstudio", "cvat", "coco")
PRESETS = (
    "default",
    "glass-filter",
    "cellulose",
    "darkfield",
    "dense",
    "blank",
    "dish",
    "gridded",
    "beads",
)
CLASSES = "Fiber,Fragment,Film"

_copy = flag("--copy", "Copy the images into DIR.")
_link = flag("--link", "Link the images into DIR.")
_images = option(
    "--images=DIR", "Folder of the images if they are not found.", type=click.Path(path_type=Path)
)
_seed = option("--seed=K", "Same seed, same bytes.", default=0)
_workers = option(
    "--workers=W", "Processes (chosen by itself if not given).", type=click.IntRange(1)
)
_limit = option("--limit=N", "Draw only the first N.", type=click.IntRange(1))
_drawing = section(
    "",
    config_file(),
    # Detectron2's scripts have the second name.
    path("--output --output-dir=DIR", "Folder of the pictures.", default="./"),
    _limit,
    flag("--show", "Show the pictures in a window instead."),
)


def _place(given: dict[str, Any]) -> str:
    """Take --copy and --link out of the given options."""
    copy, link = given.pop("copy"), given.pop("link")
    return "copy" if copy else "link" if link else "keep"


@command(
    exclusive=[("copy", "link")], short_help="Turn annotations of other tools into a COCO data set."
)
@path("--input=PATH", "File or folder to read.", required=True)
@path("--output=DIR", "Folder of the new data set.", required=True)
@option(
    "--from format_name",
    "Format of the input; found by itself, except blanks: images without a particle.",
    type=click.Choice(READERS),
)
@option(
    "--classes=A,B,...",
    "Classes of --from blanks: the same names in the same order as in the data set that they are "
    f"used with ({CLASSES} if not given).",
)
@option(
    "--categories=old=New,...",
    "Rename classes; classes of one new name are merged, one without a name (old=) is left out.",
)
@_copy
@_link
@_images
@option("--line-width=PX", "Width that lines get.", type=float)
@flag(
    "--crowd-as-instances", "Take crowd regions as particles (CVAT exports brush masks as crowds)."
)
@flag("--skip-broken", "Leave out missing and broken files, listed.")
def convert(input: str, output: str, format_name: str | None, **given: Any) -> None:
    """Convert annotations of other tools into a COCO data set.

    Writes DIR/annotations/instances_SPLIT.json and DIR/conversion.json. docs/formats.md says what
    is read, changed and left out.

    \b
    microplastics convert --input export --output data/lab --link
    """
    from microplastics.data.formats.base import ReadOptions
    from microplastics.data.formats.convert import convert_dataset, describe

    if given["classes"] is not None:
        given["classes"] = tuple(map(str.strip, given["classes"].split(",")))
    categories, place = given.pop("categories"), _place(given)
    options = ReadOptions(**given)
    conversion = convert_dataset(
        Path(input), Path(output), format_name, categories=categories, place=place, options=options
    )
    print(describe(conversion))


@command(
    "export-dataset",
    exclusive=[("copy", "link", "no_images")],
    short_help="Write a data set for YOLO, LabelMe, CVAT and others.",
)
@path("--input=PATH", "COCO JSON, or the folder of a data set with all its splits.", required=True)
@option("--to", "Format to write.", required=True, type=click.Choice(EXPORT_FORMATS))
@path("--output=DIR", "A new folder.", required=True)
@_images
@flag("--copy", "Copy the images, which is the default.")
@flag("--link", "Link the images instead.")
@flag("--no-images", "Write only the annotations.")
@flag("--polygons", "Outline RLE masks along their pixels.")
@flag("--skip-broken", "Leave out missing and broken images, listed.")
def export_dataset(input: str, to: str, output: str, **given: Any) -> None:
    """Write a data set as YOLO, LabelMe, masks or COCO, or for Label Studio or CVAT.

    Writes the annotations and images as the format wants them, and DIR/export.json, which lists
    what was changed and what the format cannot hold.

    \b
    microplastics export-dataset --input data/lab --to yolo --output lab_yolo
    """
    from microplastics.data.formats.base import ReadOptions
    from microplastics.data.formats.convert import describe, export_dataset

    place = "link" if given["link"] else "none" if given["no_images"] else "copy"
    options = ReadOptions(images=given["images"], skip_broken=given["skip_broken"])
    export = export_dataset(
        Path(input), Path(output), to, place=place, polygons=given["polygons"], options=options
    )
    print(describe(export))


@command(pairs=True, short_help="Find what is wrong in an annotated data set, and fix it.")
@click.argument("annotations", nargs=-1, required=True, metavar="ANNOTATIONS...")
@option(
    "--images=DIR",
    "Image folder: one for all, or one for each JSON (beside the JSON if not given).",
    multiple=True,
)
@config_file("Check the data against the classes and the model of this config.")
@option("--group-regex=REGEX", r"Its one group names the sample or filter in a file name: (S\d+)_")
@path(
    "--fix=OUT",
    "Write a fixed copy to this file (a folder for several JSONs) and list the changes.",
)
@path("--report=DIR", "Write report.json and a page to look at.")
@_workers
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


@command(pairs=True, short_help="Fit the anchors of a config to the boxes of a data set.")
@config_file("Name or path of the config whose anchors are fitted.", required=True)
@path("--output=FILE", "Config to write (.yaml); it derives from the other one.", required=True)
@option(
    "--sizes=N", "Anchor sizes on each feature level (as in the config).", type=click.IntRange(1)
)
@option(
    "--ratios=N", "Aspect ratios on each feature level (as in the config).", type=click.IntRange(1)
)
@path("--plot=FILE", "Draw boxes, anchors and the IoU of the best one (.png, .pdf, .svg, .jpg).")
@option("--seed=K", "Same seed, same anchors.", default=0, type=click.IntRange(0))
def anchors(
    config_file: str,
    opts: list[str],
    output: str,
    sizes: int | None,
    ratios: int | None,
    plot: str | None,
    seed: int,
) -> None:
    """Fit the anchors of a config to the boxes of DATASETS.TRAIN as training sees them.

    Prints how well the anchors fit before and after, and writes a config with the new ones.

    \b
    microplastics anchors --config-file quick --output anchors.yaml \\
        DATASETS.TRAIN '("train.json:photos",)'
    microplastics train --config-file anchors.yaml DATASETS.TRAIN '("train.json:photos",)'
    """
    from tabulate import tabulate

    from microplastics.config import check_derived, load_config
    from microplastics.data.anchors import describe, find_anchors, write_anchors

    cfg = load_config(config_file, opts)
    cfg.freeze()
    check_derived(output, config_file)
    search = find_anchors(cfg, config_file, num_sizes=sizes, num_ratios=ratios, seed=seed)
    rows, upper = describe(search), cfg.MODEL.RPN.IOU_THRESHOLDS[-1]
    print(f"{len(search.data)} boxes; without an anchor: none of IoU {upper:g} or more")
    print(tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True))
    write_anchors(search, cfg, config_file, output)
    print(f"The anchors of {search.chosen!r} are in {output}")
    if plot:
        from microplastics.visualization.curves import plot_anchors

        plot_anchors(search, plot)


def _resolve(annotations: list[str], images: list[str]) -> tuple[list[str], list[str]]:
    """Turn the entries of the command line into annotation files and image folders."""
    if images:
        return annotations, images
    from detectron2.data import MetadataCatalog

    from microplastics.data.catalog import resolve_datasets

    found = [MetadataCatalog.get(name) for name in resolve_datasets(annotations)]
    return [data.json_file for data in found], [data.image_root for data in found]


def _fractions(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.7,0.3.") from None


@command(
    exclusive=[("shares", "folds", "fold_lists"), ("group_regex", "groups"), ("copy", "link")],
    short_help="Divide a data set by filter into train, val and test.",
)
@option(
    "--input=JSON",
    "COCO instance JSON; several are put together first.",
    required=True,
    multiple=True,
)
@option(
    "--images=DIR", "Image folder: one for all, or one for each JSON.", required=True, multiple=True
)
@path("--output=DIR", "Folder of the splits.", required=True)
@option(
    "--shares=A,B[,C]",
    "Fractions of train, val and test (0.7,0.15,0.15 if not given).",
    callback=_fractions,
)
@option("--folds=K", "Folds of equal size instead.", type=click.IntRange(2))
@option(
    "--fold-lists=FILE",
    "Folds that exist already: a text file of names for each, or one CSV image,fold.",
    multiple=True,
)
@option(
    "--group-regex=REGEX", "Its one group names the filter in a file name; a filter stays whole."
)
@path("--groups=CSV", "Table with the columns image and group.")
@flag(
    "--by-similarity",
    "Keep copies of one photograph together, found by their pixels; also with the others.",
)
@flag("--split-roboflow-copies", "Do not keep Roboflow's augmented copies of one image together.")
@option("--seed=N", "Same seed, same splits.", default=0, type=click.IntRange(0))
@_copy
@_link
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

    place = _place(given)
    options = SplitOptions(
        groups_csv=given.pop("groups"),
        join_roboflow_copies=not given.pop("split_roboflow_copies"),
        **given,
    )
    print(split_dataset(input, images, output, options, place))


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
@path("--output=DIR", "Folder of the data set.", required=True)
@option("--train=N", "Training images.", default=240)
@option("--val=N", "Validation images.", default=60)
@option("--test=N", "Test images.", default=60)
@option("--size=PX", "Side of an image, or both, such as 1000x750.", default="512")
@option("--um-per-px=UM", "Scale in µm per pixel.", default=4.0)
@_seed
@option(
    "--preset=NAME", f"What is drawn: {', '.join(PRESETS)} (docs/synthetic.md).", default="default"
)
@path("--backgrounds=DIR", "Folder of blank filter images to draw particles on.")
@_workers
def render_dataset(output: str, train: int, val: int, test: int, size: str, **given: Any) -> None:
    """Render photographs of filters with fibres, fragments and films, or with beads.

    Writes images to DIR/train, DIR/val and DIR/test, and instances_SPLIT.json to DIR/annotations.

    \b
    microplastics render dataset --output data/rendered --train 400 --val 60 --test 24
    """
    from microplastics.synthetic import render_dataset

    sides = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", size)
    check_option(sides is not None, "--size", size, "a number of px, or two such as 1000x750")
    frame = int(sides[1]), int(sides[2] or sides[1])
    counts = {"train": train, "val": val, "test": test}
    paths = render_dataset(output, counts, frame, **given)
    for name, json_file in paths.items():
        print(f"{name}: {counts[name]} images, annotations in {json_file}")


@render.command("filter", cls=Command)
@path("--output=FILE.tif", "The TIFF.", required=True)
@option("--size=PX", "Side of the image.", default=10_000)
@option("--um-per-px=UM", "Scale in µm per pixel.", default=2.0)
@_seed
@option("--particles=N", "Particles (15 a megapixel if not given).", type=int)
@option(
    "--preset=NAME",
    f"What is drawn: {', '.join(p for p in PRESETS if p not in ('dish', 'gridded', 'beads'))}.",
    default="default",
)
@option("--filter filter_name=NAME", "The filter, such as cellulose (random if not given).")
@option("--jpeg-quality=Q", "Of the tiles, 1 to 100.", default=92)
@flag("--lossless", "Deflate instead of JPEG.")
@_workers
def render_filter(output: str, lossless: bool, **given: Any) -> None:
    """Render a stitched photograph of a whole filter, as a tiled TIFF.

    Writes FILE.tif and FILE.json (COCO) beside it.

    \b
    microplastics render filter --output filter.tif --size 10000 --particles 1200
    """
    from microplastics.synthetic import render_mosaic

    if lossless:
        given["jpeg_quality"] = None
    path = render_mosaic(output, **given)
    coco = json.loads(path.read_text(encoding="utf-8"))
    found, wanted = len(coco["annotations"]), coco["info"]["particles_wanted"]
    print(f"{output}: {found} particles, annotations in {path}")
    if found < wanted:
        print(f"{wanted - found} of {wanted} particles found no room or did not stand out")


@render.command("backgrounds", cls=Command)
@path("--input=JSON", "All particles annotated.", required=True)
@path("--images=DIR", "Image folder of the JSON.", required=True)
@path("--output=DIR", "Folder of the squares.", required=True)
@option("--min-size=PX", "Smallest side.", default=256)
@option("--margin=PX", "Distance from particles.", default=25)
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


class PageUnlessMode(Modes):
    """Modes of which ``page`` may be left out: ``view val.json:photos``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; a line that does not begin with a mode, or what is close to one, is the page's."""
        first = args[0] if args else "--help"
        is_mode = first.isalpha() and difflib.get_close_matches(first, self.commands)
        return super().parse_args(
            ctx, args if is_mode or first in ("-h", "--help") else ["page", *args]
        )


@click.group(
    cls=PageUnlessMode,
    no_args_is_help=False,
    short_help="Look at annotations, predictions and training samples.",
)
def view() -> None:
    """Look at annotations, predictions beside them, and training samples.

    Without a mode, the page opens: microplastics view val.json:photos.
    """


@view.command("annotations", cls=Command, pairs=True)
@_drawing
def view_annotations(**given: Any) -> None:
    """Draw the annotations of the training set.

    \b
    microplastics view annotations --output look DATASETS.TRAIN '("train.json:photos",)'
    """
    from microplastics.visualization.galleries import draw_annotations

    _view(draw_annotations, **given)


@view.command("page", cls=Command, pairs=True, exclusive=[("predictions", "augmented")])
@click.argument("dataset", required=False)
@path(
    "--predictions=PATH",
    "Show what was found beside the annotations: the folder of an evaluation or of predict, "
    "coco_instances_results.json, or a COCO JSON.",
)
@option(
    "--min-score --conf-threshold=S",
    "Lowest score of --predictions that counts (the evaluation's if not given; else 0.5 for "
    "results, and all of predict).",
    type=click.FloatRange(0, 1),
)
@section(
    "Training samples",
    option(
        "--augmented=N",
        "Show the first N samples of a training instead (24 if only a config is given).",
        type=click.IntRange(1),
    ),
    config_file(),
    option("--seed=K", "Of the samples (SEED of the config if not given).", type=click.IntRange(0)),
)
@page_options
def view_page(dataset: str | None, no_browser: bool, host: str, port: int, **given: Any) -> None:
    """Look at a data set in the browser, on the page of microplastics review without decisions.

    DATASET is a registered name, or JSON:IMAGES. --predictions puts beside its annotations what
    was found, the images and particles that disagree most first. --augmented, or a config without
    DATASET, shows what training sees: crops, augmentations, painted scale bars.

    \b
    microplastics view page val.json:photos
    microplastics view page --predictions output/mine/inference
    microplastics view page val.json:photos --predictions results
    microplastics view page --config-file output/mine/config.yaml --augmented 24
    """
    import tempfile

    from microplastics.review import Review
    from microplastics.review.server import check_installed, serve

    check_installed()
    with tempfile.TemporaryDirectory() as folder:
        source, messages = _shown(Path(folder), dataset, **given)
        with Review(source, Path(folder)) as opened:
            opened.messages.extend(messages)
            for message in messages:
                print(message)
            shown = {"reviewer": "nobody", "read_only": True, "browser": not no_browser}
            serve(opened, host=host, port=port, **shown)


def _shown(
    folder: Path,
    dataset: str | None,
    predictions: str | None,
    min_score: float | None,
    augmented: int | None,
    config_file: str,
    seed: int | None,
    opts: list[str],
) -> tuple[Any, list[str]]:
    """What the page shows, and sentences about what it leaves out."""
    is_training = augmented is not None or bool(config_file or opts)
    if predictions and (is_training or seed is not None):
        raise UserError(
            "--predictions shows annotations as they are; leave out --config-file, --seed and "
            "KEY VALUE.",
            code="option_conflict",
        )
    if min_score is not None and not predictions:
        raise UserError("--min-score is of --predictions; give both.", code="option_missing")
    if predictions:
        from microplastics.review.comparison import open_comparison

        return open_comparison(dataset, predictions, min_score)
    if is_training:
        from microplastics.review.samples import training_samples

        cfg = _training(dataset, config_file, opts, seed)
        return training_samples(cfg, augmented or 24, folder), []
    if seed is not None:
        raise UserError(
            "--seed is of training samples; give --augmented or --config-file as well.",
            code="option_missing",
        )
    if dataset is None:
        raise UserError(
            "DATASET is missing; give JSON:IMAGES, --predictions of an evaluation, or "
            "--config-file for training samples.",
            code="option_missing",
        )
    from microplastics.review.source import open_source

    (json_file,), (root,) = _resolve([dataset], [])
    return open_source(json_file, root), []


def _training(dataset: str | None, config_file: str, opts: list[str], seed: int | None) -> Any:
    from microplastics.config import load_config

    cfg = load_config(config_file, opts)
    if dataset is not None:
        cfg.DATASETS.TRAIN = (dataset,)
    if seed is not None or cfg.SEED < 0:
        cfg.SEED = seed or 0
    return cfg


@view.command("batches", cls=Command, pairs=True)
@_drawing
def view_batches(**given: Any) -> None:
    """Draw the augmented batches that training will see, for one epoch.

    \b
    microplastics view batches --config-file output/mine/config.yaml --output look --limit 20
    """
    from microplastics.visualization.galleries import draw_batches

    _view(draw_batches, **given)


def _view(draw: Any, config_file: str, opts: list[str], output: str, **given: Any) -> None:
    from microplastics.config import load_config

    cfg = load_config(config_file, opts)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.freeze()
    count = draw(cfg, output, **given)
    if not given["show"]:
        print(f"{count} pictures in {output}")


@view.command("augmentations", cls=Command, pairs=True)
@config_file()
@path("--output=FILE", ".jpg or .png to write.", required=True)
@option("--side=PX", "Side of a panel.", default=280)
@option("--seed=K", "Of the random numbers.", default=0)
def view_augmentations(config_file: str, opts: list[str], output: str, **given: Any) -> None:
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
    print(f"{draw_augmentations(cfg, output, **given)} panels in {output}")


@view.command("results", cls=Command)
@path("--input=JSON", "Predictions of a model.", required=True)
@path("--output=DIR", "Folder of the pictures.", required=True)
@option(
    "--dataset=NAME",
    "Registered data set or path/to.json:path/to/images.",
    default="microplastics_val",
)
@option(
    "--min-score --conf-threshold=S",
    "Lowest score that is drawn.",
    type=click.FloatRange(0, 1),
    default=0.5,
)
@_limit
def view_results(input: str, output: str, min_score: float, **given: Any) -> None:
    """Draw photograph, truth and prediction side by side from an evaluation.

    \b
    microplastics view results --input output/mine/inference/coco_instances_results.json \\
        --dataset microplastics_val --output look
    """
    from microplastics.visualization.galleries import draw_results

    pictures, scores = draw_results(input, output_dir=output, threshold=min_score, **given)
    print(f"{pictures} pictures in {output}")
    if not scores:
        print(f"{input} holds no predictions at all: the pictures show only the truth.")
    elif max(scores) < min_score:
        print(
            f"None of the {len(scores)} predictions reaches --min-score {min_score:g}: the "
            f"pictures show only the truth. The highest score is {max(scores):.2g}."
        )
