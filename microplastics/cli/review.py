"""The command for checking what was found: review."""

import getpass
from typing import Any

import click

from microplastics.cli.parsing import command, flag, option, path


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may give its user no name
        return "reviewer"


@command(short_help="Check what was found, in the browser.")
@click.argument("source", metavar="RUN")
@path("--images=DIR", "The photographs, of a COCO JSON or if they have moved.")
@path("--output=DIR", "Folder of the decisions (RUN/reviewed if not given).")
@option(
    "--reviewer=NAME",
    "Name that stands with each decision (your login if not given).",
    default=_user,
    show_default=False,
)
@flag("--read-only", "Only look.")
@option(
    "--port=N", "Port of the page; 0 finds a free one.", default=0, type=click.IntRange(0, 65535)
)
@option(
    "--host=ADDRESS",
    "Address to listen on; another one lets other machines in.",
    default="127.0.0.1",
)
@flag("--no-browser", "Do not open the page.")
def review(source: str, images: str, output: str, no_browser: bool, **given: Any) -> None:
    """Check particles one by one in the browser: accept, reject, correct, draw.

    RUN is the folder of predict or measure, or a COCO JSON with --images.

    \b
    microplastics review results
    """
    from microplastics.review import Review
    from microplastics.review.server import check_installed, serve

    check_installed()
    with Review.open(source, images=images, output=output) as opened:
        serve(opened, browser=not no_browser, **given)
