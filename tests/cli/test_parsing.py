"""microplastics/cli/parsing.py: KEY VALUE pairs, options of several values, flags in any order."""

from pathlib import Path

import click
import pytest

from microplastics.cli.parsing import command, option


@command(pairs=True, exclusive=[("copy", "link")])
@option("--config-file", default="")
@option("--images", multiple=True)
@option("--seeds", multiple=True, type=int, default=[1, 2])
@option("--size", nargs=2, type=int)
@option("--copy", is_flag=True)
@option("--link", is_flag=True)
def pairs_only(**given):
    return given


@command(pairs=True)
@click.argument("files", nargs=-1)
@option("--report")
def files_and_pairs(**given):
    return given


def parse(function, *line):
    return function.main(list(line), standalone_mode=False)


@pytest.mark.parametrize(
    "line",
    [
        "--config-file r50 --copy SOLVER.MAX_ITER 10 MODEL.WEIGHTS a=b.pth",
        "SOLVER.MAX_ITER 10 --config-file r50 MODEL.WEIGHTS a=b.pth --copy",
        "SOLVER.MAX_ITER 10 MODEL.WEIGHTS a=b.pth --config-file=r50 --copy",
        "--copy --config-file r50 --opts SOLVER.MAX_ITER 10 MODEL.WEIGHTS a=b.pth",
        "--copy --config-file r50 -- SOLVER.MAX_ITER 10 MODEL.WEIGHTS a=b.pth",
    ],
)
def test_pairs_may_stand_anywhere(line):
    given = parse(pairs_only, *line.split())
    assert given["opts"] == ["SOLVER.MAX_ITER", "10", "MODEL.WEIGHTS", "a=b.pth"]
    assert given["config_file"] == "r50" and given["copy"] and not given["link"]


def test_values_may_begin_with_a_dash():
    given = parse(pairs_only, "SEED", "-1", "--size", "-3", "4", "X.Y", "-.5e-3", "--seeds", "-7")
    assert given["opts"] == ["SEED", "-1", "X.Y", "-.5e-3"]
    assert given["size"] == (-3, 4) and given["seeds"] == [-7]


def test_an_option_of_several_values_ends_at_a_flag_or_a_key():
    line = ("--images", "a.jpg", "b", "--copy", "--images=c", "MODEL.DEVICE", "cpu")
    given = parse(pairs_only, *line)
    assert given["images"] == ["a.jpg", "b", "c"] and given["opts"] == ["MODEL.DEVICE", "cpu"]
    assert parse(pairs_only)["images"] == [] and parse(pairs_only)["seeds"] == [1, 2]


def test_a_file_that_is_named_like_a_key_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = parse(files_and_pairs, "a.json", "TEST.JPG", "1", "--report", "r", "b.json")
    assert given["files"] == ("a.json", "b.json") and given["opts"] == ["TEST.JPG", "1"]
    Path("TEST.JPG").touch()
    assert parse(files_and_pairs, "TEST.JPG")["files"] == ("TEST.JPG",)


def test_a_key_without_a_value_does_not_swallow_a_flag():
    assert parse(pairs_only, "SOLVER.MAX_ITER", "--copy") == {
        **parse(pairs_only, "--copy"),
        "opts": ["SOLVER.MAX_ITER"],
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--imges a", ["--imges", "--images"]),
        ("SOLVER.MAX_ITER 3 --cpoy", ["--cpoy", "--copy"]),
        ("--config-file --copy", ["--config-file", "needs a value"]),
        ("--images --copy", ["--images", "needs a value"]),
        ("--size 3", ["--size", "needs 2 values"]),
        ("--seeds x", ["--seeds", "'x'"]),
        ("--copy --link", ["--copy and --link exclude each other"]),
    ],
)
def test_mistakes_name_the_option(line, words):
    with pytest.raises(click.UsageError) as error:
        parse(pairs_only, *line.split())
    for word in words:
        assert word in error.value.format_message()


def test_the_keys_of_the_config_are_known():
    from microplastics.cli.parsing import _KEY
    from microplastics.config import get_cfg

    for name, value in get_cfg().items():
        assert _KEY.fullmatch(f"{name}.X" if hasattr(value, "items") else name), name


def test_choices_are_those_of_the_package():
    from microplastics.cli import data, predict
    from microplastics.data.formats.base import READERS
    from microplastics.data.formats.convert import FORMATS, PROJECT_CLASSES
    from microplastics.data.splits.split import DEFAULT_SHARES
    from microplastics.export import export
    from microplastics.synthetic import PRESETS
    from microplastics.writers import registry

    assert set(data.READERS) == set(READERS) and data.EXPORT_FORMATS == FORMATS
    assert data.PRESETS == tuple(PRESETS) and data.CLASSES.split(",") == list(PROJECT_CLASSES)
    assert predict.RUN_FORMATS == tuple(registry.FORMATS)
    assert set(predict.EXPORT_FORMATS) == set(export.FORMATS)
    (shares,) = (param for param in data.split.params if param.name == "shares")
    assert ",".join(map(str, DEFAULT_SHARES)) in shares.help
