"""``tools/measure.py --merge-runs``: the tables of finished runs as those of one."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import microplastics
from microplastics.data.coco_load import read_json
from microplastics.errors import UserError
from microplastics.files import write_json
from microplastics.inference.options import RunOptions
from microplastics.inference.output_files import FAILED_FILE, RUN_FILE, SUMMARY_FILE, forget_run
from microplastics.inference.run import SOME_FAILED, counted, print_summary, write_summaries
from microplastics.inference.samples import check_samples, make_summaries
from microplastics.inference.writers import write_csv, write_parquet
from microplastics.measurement.merge import PARTICLES_FILE, merge_runs
from microplastics.measurement.size_classes import parse_size_classes
from microplastics.measurement.table import with_size_classes

_OF_IMAGES = ("um_per_px", "calibration", "scale_bar_um", "ignore_metadata", "region", "resume")
# What found the particles must be the same, or the counts cannot be added up.
_OF_MODEL = ("checkpoint_sha256", "score_thresholds", "mask_threshold", "join", "max_overlap")
_SAME = (*_OF_MODEL, "min_score")


def merge_into(runs: Sequence[str], options: RunOptions) -> int:
    """Write the tables of several finished runs, and count them anew by the options.

    Args:
        runs: their folders.
        options: of the summary, and the folder for the new tables.

    Returns:
        0, or 3 where images failed in one of the runs.

    Raises:
        UserError: the runs do not go together, the folder is one of them, or an option is for
            images alone.
    """
    for name in _OF_IMAGES:
        if getattr(options, name):
            raise UserError(
                f"--{name.replace('_', '-')} has no part in --merge-runs, which measures nothing "
                "anew; leave it out."
            )
    output = Path(options.output)
    if output.resolve() in [Path(run).resolve() for run in runs]:
        raise UserError(f"--output {output} is one of the runs; choose another folder.")
    if (output / SUMMARY_FILE).exists() and not options.overwrite:
        raise UserError(
            f"{output} holds a run already; add --overwrite, or choose another --output."
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
        print(f"{counted(number, 'image')} failed in {run}, without a share in the counts")
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
                    f"Cannot read {path} ({error}); take it as the tools wrote it."
                ) from error
    return failed


def _classes(runs: Sequence[str]) -> list[str]:
    names: dict[str, None] = {}
    for run in runs:
        path = Path(run, RUN_FILE)
        record = read_json(path) if path.is_file() else {}
        listed = record.get("class_names", [])
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise UserError(f"{path} has class names that are none; take it as the tools wrote it.")
        names.update(dict.fromkeys(listed))
    return list(names)
