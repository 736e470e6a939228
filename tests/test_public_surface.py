"""What other people's scripts rely on: names, config keys, commands, output files, columns.

``public_surface.txt`` is the frozen surface. To change it on purpose, run this test with
``UPDATE_PUBLIC_SURFACE=1`` and say in the commit message what changes for users.
"""

import csv
import difflib
import json
import os
import re
from pathlib import Path

import click
import detectron2.config
import pytest
from support import ROOT

import microplastics
from microplastics.cli import commands
from microplastics.utils.errors import CODES

SNAPSHOT = Path(__file__).with_suffix("").with_name("public_surface.txt")
# What repeats for each image, class and size is written once; what Detectron2 logs is its own.
REPEATS = {
    r"(test|val)_\d+\.jpg": "NAME",
    r"\b(Fiber|Film|Fragment)\b": "CLASS",
    r"-(<32|32-96|>=96)px": "-SIZE",
    r"_(below_20|\d+_\d+|from_5000)_um": "_BOUNDS_um",
}
DETECTRON2 = ("fast_rcnn/", "mask_rcnn/", "roi_head/", "rpn/")
DETECTRON2 += ("data_time", "rank_data_time", "time", "eta_seconds")
QUICK = ("--config-file", f"{ROOT}/configs/microplastics_quick.yaml")


def names():
    yield from (f"microplastics.{name}" for name in sorted(microplastics.__all__))


def _leaves(cfg, prefix=""):
    for key, value in cfg.items():
        if hasattr(value, "items"):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def error_codes():
    yield from sorted(CODES)


def config_keys():
    plain = dict(_leaves(detectron2.config.get_cfg()))
    for key, value in sorted(_leaves(microplastics.get_cfg())):
        if key not in plain or plain[key] != value:
            yield f"{key} = {value!r}"


def _options(name, command):
    for mode, each in getattr(command, "commands", {}).items():
        yield from _options(f"{name} {mode}", each)
    for param in command.params:
        words = [
            " ".join(param.opts) if isinstance(param, click.Option) else param.human_readable_name
        ]
        if getattr(param, "multiple", False) or param.nargs != 1:
            words.append("...")
        if isinstance(param.type, click.Choice):
            words.append("|".join(param.type.choices))
        if param.required:
            words.append("required")
        elif not getattr(param, "is_flag", False) and isinstance(
            param.default, str | int | float | list
        ):
            words.append(f"= {param.default!r}")
        yield f"{name} {' '.join(words)}"
    if getattr(command, "pairs", False):
        yield f"{name} [KEY VALUE]..."


def command_line():
    context = click.Context(commands)
    for name in commands.list_commands(context):
        yield from _options(name, commands.get_command(context, name))


def _contents(folder):
    """Files of a folder, with the columns of tables and the keys of metrics.json and run.json."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith(("parts/", "events")):
            continue
        yield name
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                yield from (f"{name}: {column}" for column in next(csv.reader(file)))
        elif path.name in ("metrics.json", "run.json"):
            keys = sorted(_keys(path.read_text()))
            yield from (f"{name}: {key}" for key in keys if not key.startswith(DETECTRON2))


def _once(lines):
    """The lines with what repeats written once."""
    found = {}
    for line in lines:
        for pattern, word in REPEATS.items():
            line = re.sub(pattern, word, line)
        found[line] = True
    return list(found)


def _keys(text):
    try:
        return set(json.loads(text))
    except json.JSONDecodeError:  # a record a line
        return {key for line in text.splitlines() for key in json.loads(line)}


def measured(cli, rendered, folder):
    """What ``measure`` writes with every option that adds a file or a column."""
    data = json.loads((rendered / "annotations" / "instances_test.json").read_text())
    blank = data["images"][0]["file_name"]
    done = cli(
        *("measure", "--masks", rendered / "annotations" / "instances_test.json"),
        *("--images", rendered / "test", "--output", folder, "--um-per-px", "2"),
        *("--edge", "weight", "--group-by", r"(.+)\.jpg", "--sampled-volume", "1 L"),
        *("--blanks", blank),
    )
    assert done.returncode == 0, done.stderr
    return _once(_contents(folder))


def trained(cli, rendered, tiny_opts, folder):
    """What ``train`` and ``evaluate`` write into OUTPUT_DIR."""
    keys = (
        *QUICK,
        *tiny_opts,
        "OUTPUT_DIR",
        folder,
        "SOLVER.MAX_ITER",
        "2",
        "TEST.EVAL_PERIOD",
        "2",
    )
    for command in ("train", "evaluate"):
        done = cli(command, *keys)
        assert done.returncode == 0, done.stderr
    return _once(_contents(folder))


def test_the_public_surface_stays(cli, rendered, tiny_opts, tmp_path):
    parts = {
        "names": names(),
        "codes of UserError": error_codes(),
        "config keys, added or with other defaults than Detectron2's": config_keys(),
        "command line": command_line(),
        "files and columns of measure": measured(cli, rendered, tmp_path / "run"),
        "files, columns and metrics of train and evaluate": trained(
            cli, rendered, tiny_opts, tmp_path / "model"
        ),
    }
    found = "".join(
        f"[{title}]\n" + "".join(f"{line}\n" for line in part) + "\n"
        for title, part in parts.items()
    )
    if os.environ.get("UPDATE_PUBLIC_SURFACE"):
        SNAPSHOT.write_text(found, encoding="utf-8")
    frozen = SNAPSHOT.read_text(encoding="utf-8")
    if found != frozen:
        lines = difflib.unified_diff(
            frozen.splitlines(), found.splitlines(), SNAPSHOT.name, "now", lineterm="", n=0
        )
        pytest.fail("\n".join(["The public surface has changed.", __doc__, *lines]), pytrace=False)
