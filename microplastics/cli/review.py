"""The command review: people check what the model found."""

import getpass
from collections import Counter
from typing import Any

import click

from microplastics.cli.parsing import command, flag, option, path, section
from microplastics.cli.predict import scale_options
from microplastics.utils.errors import UserError


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may give its user no name
        return "reviewer"


page_options = section(
    "Page (docs/review.md)",
    flag("--no-browser", "Do not open the page."),
    option(
        "--port=N", "Of the page; 0 finds a free one.", type=click.IntRange(0, 65535), default=0
    ),
    option(
        "--host=ADDRESS",
        "Address to listen on; any but this machine's own lets other machines in.",
        default="127.0.0.1",
    ),
)


@command(
    exclusive=[("export", "agreement", "statistics")],
    short_help="Check and correct the particles found, in the browser.",
)
@click.argument("source", metavar="RUN", type=click.Path())
@path("--images=DIR", "The photographs, of annotations or of a run whose images have moved.")
@path("--output=DIR", "Folder of decisions and corrected files (RUN/reviewed if not given).")
@flag("--export", "Write the corrected tables and annotations, and end.")
@flag("--all every", "Unfinished images in annotations.json, too.")
@flag("--statistics", "Print precision and recall by the decisions, and end.")
@path("--agreement=DIR", "Compare with the review in this folder, and end.")
@option(
    "--reviewer=NAME",
    "Who decides, unless the page is given another name (your login if not given).",
    default=_login,
    show_default=False,
)
@flag("--read-only", "Look at the page of a review that has begun; decide nothing.")
@page_options
@scale_options
def review(source: str, images: str | None, output: str | None, **given: Any) -> int:
    """Check what the model found on a page in the browser: accept, reject, correct, draw.

    RUN is the folder of predict or measure, or a COCO JSON. Every decision is kept at once in
    review.jsonl; what the model wrote stays as it is.

    \b
    microplastics review results
    microplastics review results --export
    microplastics review results --output results/ben
    microplastics review results --agreement results/ben
    """
    from microplastics.review import Review

    opened = {"images": images, "output": output, "options": _scale(source, given)}
    if given["agreement"] is not None:
        with (
            Review.open(source, **opened, read_only=True) as one,
            Review.open(
                source, **{**opened, "output": given["agreement"]}, read_only=True
            ) as other,
        ):
            _print_agreement(one, other)
    elif given["statistics"]:
        with Review.open(source, **opened, read_only=True) as reviewed:
            _print_quality(reviewed)
    elif given["export"]:
        with Review.open(source, **opened) as reviewed:
            code = _export(reviewed, given["every"])
            _print_progress(reviewed)
            return code
    else:
        _serve(source, opened, given)
    return 0


def _serve(source: str, opened: dict[str, Any], given: dict[str, Any]) -> None:
    from microplastics.review import Review
    from microplastics.review.server import check_installed, serve

    check_installed()
    names = ("reviewer", "host", "port", "read_only")
    with Review.open(source, **opened, read_only=given["read_only"]) as reviewed:
        _print_progress(reviewed)
        serve(reviewed, browser=not given["no_browser"], **{name: given[name] for name in names})
        _print_progress(reviewed)


def _scale(source: str, given: dict[str, Any]) -> Any:
    """The options by which annotations are measured; a run has its own."""
    from pathlib import Path

    from microplastics.runs.images import RunOptions

    names = ("um_per_px", "calibration", "scale_bar_um", "scale_bar", "ignore_metadata")
    if Path(source).is_dir() and any(given[name] for name in names):
        raise UserError(
            "The scale of a run is known; leave out --um-per-px, --calibration, --scale-bar-um, "
            "--scale-bar and --ignore-metadata, or run measure with them.",
            code="option_conflict",
        )
    return RunOptions(output="", **{name: given[name] for name in names})


def _export(reviewed: Any, every: bool) -> int:
    from microplastics.review.export import export
    from microplastics.runs.store import FAILED_FILE
    from microplastics.runs.summaries import SOME_FAILED
    from microplastics.writers.registry import ANNOTATIONS_FILE

    folder = export(reviewed, every)
    left = sum(not image.finished for image in reviewed.images)
    if left:
        where = "are in" if every else "are left out of"
        print(f"The particles of {left} unfinished images count, and {where} annotations.json")
    path = folder / ANNOTATIONS_FILE
    if path.exists():  # an image is finished
        print(f"To train: microplastics train … DATASETS.TRAIN {path}:IMAGES")
    return SOME_FAILED if (folder / FAILED_FILE).exists() else 0


def _print_progress(reviewed: Any) -> None:
    from microplastics.review.session import STATES

    for message in reviewed.messages:
        print(message)
    images = reviewed.images
    states = Counter(e.state for image in images for e in reviewed.particles(image.name))
    print(
        f"{sum(image.finished for image in images)} of {len(images)} images finished; particles: "
        + (", ".join(f"{states[state]} {state}" for state in STATES if states[state]) or "none")
    )


def _print_quality(reviewed: Any) -> None:
    from microplastics.review.statistics import model_quality

    table = model_quality(reviewed)
    print(_markdown(table[table["score_low"].isna()].drop(columns=["score_low", "score_high"])))
    by_score = table[table["score_low"].notna()]
    if len(by_score):  # annotations have no scores
        print("By score:")
        print(_markdown(by_score.drop(columns=table.filter(regex="^(present|found|recall)"))))


def _print_agreement(one: Any, other: Any) -> None:
    from microplastics.review.statistics import agreement
    from microplastics.writers.tables import write_csv

    found = agreement(one, other)
    print(_markdown(found.decisions))
    if len(found.sizes):
        print(_markdown(found.sizes))
    for name, table in found._asdict().items():
        write_csv(table, one.output / f"agreement_{name}.csv")
    print(f"Tables in {one.output}")


def _markdown(table: Any) -> str:
    rows = table.astype(object).where(table.notna(), None)
    return rows.to_markdown(index=False, floatfmt=".3g", disable_numparse=[0])
