"""The files of a run by name, and how those of an earlier one are taken away."""

from collections.abc import Iterable
from pathlib import Path

from microplastics.data.coco_load import read_json
from microplastics.errors import UserError
from microplastics.files import write_error
from microplastics.inference.writers import FORMATS, output_names

SUMMARY_FILE, SAMPLES_FILE = "summary.csv", "samples.csv"
RUN_FILE, FAILED_FILE = "run.json", "failed.csv"


def forget_image(output: Path, stem: str) -> None:
    """Delete the files of one image, which would tell of another state of it.

    Args:
        output: folder of the run.
        stem: of its files, by :func:`microplastics.inference.writers.output_names`.
    """
    for form in FORMATS.values():
        if form.write is not None:
            _delete(output / form.files[0].format(stem))


def forget_run(output: Path, names: Iterable[str]) -> None:
    """Delete the files of a run, so that none is taken for one of the run that begins.

    Args:
        output: its folder; what is not of the run stays.
        names: of its images, besides those in its run.json.
    """
    known = dict.fromkeys([*names, *_names_in(output / RUN_FILE)])
    for stem in output_names(list(known)).values():
        forget_image(output, stem)
    for form in FORMATS.values():
        for name in form.files if form.write is None else ():
            _delete(output / name)
    for name in (SUMMARY_FILE, SAMPLES_FILE, RUN_FILE, FAILED_FILE):
        _delete(output / name)


def _names_in(path: Path) -> list[str]:
    try:
        images = read_json(path).get("images")
    except UserError:
        return []
    entries = images if isinstance(images, list) else []
    names = [each.get("name") for each in entries if isinstance(each, dict)]
    return [name for name in names if isinstance(name, str)]


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
