"""Exceptions for user errors, with stable codes."""

import re
import sys

_STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

CODES = {
    "annotations_invalid": "an annotation file has content that cannot be used",
    "checkpoint_invalid": "a checkpoint is damaged, unsafe or not a checkpoint",
    "checkpoint_mismatch": "a checkpoint does not fit the model, the classes or the config",
    "classes_mismatch": "class names or their number disagree between two places",
    "config_invalid": "an unknown config key or a value that does not fit it",
    "dataset_conflict": "one data set name stands for two different sources",
    "dataset_empty": "a data set has nothing to train, evaluate or draw",
    "dataset_unknown": "a data set name is not registered",
    "dependency_missing": "an optional package is not installed",
    "device_unavailable": "a device or the number of processes asked for is not available",
    "export_unsupported": "a model cannot be exported in the way asked for",
    "file_invalid": "a file is damaged or has another format than expected",
    "file_missing": "a file or folder does not exist",
    "format_unknown": "the format of a data set is not recognised or is ambiguous",
    "image_invalid": "an image is damaged, not an image or of an unsupported kind",
    "image_missing": "an image that an annotation names does not exist",
    "image_size": "the size of an image differs from its annotations",
    "image_too_large": "an image is larger than the limit",
    "input_empty": "nothing matches the input given",
    "interrupted": "the command was stopped",
    "metric_unknown": "a metric name is not one that evaluation yields",
    "name_clash": "two things that need different names share one",
    "not_writable": "a file cannot be written",
    "option_conflict": "two options exclude or contradict each other",
    "option_invalid": "the value of an option or argument does not fit",
    "option_missing": "an option is needed and not given",
    "output_exists": "the output exists and is not overwritten without being asked",
    "region_invalid": "a region of interest cannot be read or found",
    "review_conflict": "somebody has changed what a decision was made on",
    "run_invalid": "the files of a run are missing, changed or damaged",
    "run_mismatch": "a run cannot be resumed or merged with other settings",
    "scale_conflict": "two sources give different scales",
    "scale_invalid": "a scale cannot be read or is not plausible",
    "scale_missing": "sizes in µm are asked for and the scale is not known",
    "split_impossible": "the images cannot be divided as asked",
    "table_invalid": "a table (CSV) has missing columns or values that do not fit",
    "training_exists": "the output folder holds another training",
    "training_failed": "training diverged or ran out of memory",
}
"""Codes and their meaning. Messages may change, codes do not."""


class UserError(Exception):
    """An error that the user caused and can fix: one sentence, and as code a key of :data:`CODES`.

    The command line prints it without a traceback and exits with code 2
    (:func:`microplastics.cli.run`). Anything else that is raised is a bug and keeps its traceback.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class WriteError(UserError):
    """A file cannot be written; the same is likely to happen for the next file."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "not_writable")


def check_option(
    valid: bool, option: str, value: object, expected: str, code: str = "option_invalid"
) -> None:
    """Raise ``UserError`` for an option, or a key of a config, with an invalid value."""
    if not valid:
        raise UserError(f"{option} is {value}; expected {expected}.", code=code)


def report_error(message: str) -> None:
    """Print ``error: message`` on stderr; what steers a terminal, in names from files, as text."""
    sys.stdout.flush()
    message = _STEERING.sub(lambda found: repr(found[0])[1:-1], message)
    print(f"error: {message}", file=sys.stderr, flush=True)
