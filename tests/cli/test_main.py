"""microplastics/cli/__init__.py, and what importing the package imports."""

import errno
import os
import subprocess
import sys

import click
import pytest
from support import ROOT

import microplastics
from microplastics.cli import commands, run
from microplastics.utils.errors import UserError


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "words"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raising(UserError("Mend it.")), 2, "error: Mend it.\n"),
        (raising(KeyboardInterrupt()), 130, "Ctrl-C"),
        (raising(MemoryError()), 2, "memory"),
        (raising(UserError("\x1b[2J\ud800.png\nis")), 2, r"\x1b[2J\ud800.png" + "\nis"),
        (
            raising(PermissionError(errno.EACCES, "no", "/x/log.txt")),
            2,
            "Cannot read or write /x/log.txt: no;",
        ),
    ],
)
def test_tools_end_with_a_code_and_a_line(main, code, words, capsys):
    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == code
    assert words in capsys.readouterr().err


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


def test_a_reader_that_left_is_no_error():
    script = (
        "from microplastics.cli import run\n"
        "run(lambda: [print('x' * 1000) for _ in range(10000)] and None)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert "Traceback" not in errors and "Broken" not in errors


HEAVY = ("torch", "detectron2", "numpy", "pandas", "cv2", "matplotlib", "scipy")


def light(script, **env):
    """Runs a script in a process of its own; returns what it printed, if it stayed light."""
    check = f"\nimport sys\nheavy = {{*sys.modules}} & {set(HEAVY)}\nassert not heavy, heavy"
    done = subprocess.run(
        [sys.executable, "-c", script + check],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CALL = """
import microplastics.cli
try:
    microplastics.cli.main({arguments})
except SystemExit as end:
    assert not end.code, end.code
"""


def all_commands():
    context = click.Context(commands)
    for name in commands.list_commands(context):
        command = commands.get_command(context, name)
        modes = getattr(command, "commands", {})
        yield from ([name, mode] for mode in modes) if modes else [[name]]


def test_help_and_version_import_nothing_heavy():
    lines = [*all_commands(), ["render"], ["view"], []]
    script = "".join(CALL.format(arguments=[*line, "--help"]) for line in lines)
    printed = light(script + CALL.format(arguments=["--version"]))
    for line in lines:
        assert f"Usage: {' '.join(['microplastics', *line])} [OPTIONS]" in printed
    assert f"microplastics {microplastics.__version__}\n" in printed


def test_the_help_fits_one_screen(cli):
    lines = cli("--help").stdout.splitlines()
    assert len(lines) <= 36 and max(map(len, lines)) <= 80
    assert cli().stdout.splitlines() == lines
    assert "render dataset" not in lines and "dataset" in cli("render").stdout


def complete(*words):
    line = " ".join(["microplastics", *words])
    script = CALL.format(arguments=[])
    env = {"_MICROPLASTICS_COMPLETE": "bash_complete", "COMP_WORDS": line}
    printed = light(script, **env, COMP_CWORD=str(len(words)))
    return [item.partition(",")[2] for item in printed.splitlines()]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["pred"], ["predict"]),
        (["render", "d"], ["dataset"]),
        (["predict", "--weights", "a.pth", "--um"], ["--um-per-px"]),
        (["train", "--config-file", "quick_mask"], ["quick_mask112", "quick_mask56"]),
        (["sweep", "mask_c"], ["mask_classes", "mask_convs"]),
        (["train", "MODEL.DEVICE", "cpu", "--res"], ["--resume"]),
        (["thresholds", "--metric", "c"], ["count"]),
    ],
)
def test_completion(words, found):
    assert complete(*words) == found


def test_the_script_of_completion():
    assert "_MICROPLASTICS_COMPLETE" in light(
        CALL.format(arguments=[]), _MICROPLASTICS_COMPLETE="zsh_source"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predcit"], ["'predcit'", "'predict'"]),
        (["predict", "--reprot", "x"], ["'--reprot'", "microplastics predict --help"]),
        (["render", "datset"], ["'datset'", "microplastics render --help"]),
        (["plot"], ["Missing option '--input'"]),
        (["split", "--input", "a", "--images", "b", "--output", "c", "d"], ["d"]),
    ],
)
def test_misuse_is_one_line(cli, arguments, words):
    done = cli(*arguments)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line


IMPORTS = [
    "import microplastics; from detectron2.data import DatasetCatalog",
    "from detectron2.data import DatasetCatalog; import microplastics",
    "import microplastics, detectron2.engine; from detectron2.data import DatasetCatalog",
    "import microplastics.data.catalog; from detectron2.data import DatasetCatalog",
]


@pytest.mark.parametrize("imports", IMPORTS)
def test_data_sets_are_registered_whatever_is_imported_first(imports):
    script = f"{imports}; assert 'microplastics_train' in DatasetCatalog.list()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, cwd=ROOT)


def test_data_sets_are_registered_in_a_spawned_process(tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "import microplastics\n"
        "def registered():\n"
        "    from detectron2.data import DatasetCatalog\n"
        "    sys.exit(0 if 'microplastics_val' in DatasetCatalog.list() else 9)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=registered)\n"
        "    process.start()\n"
        "    process.join()\n"
        "    sys.exit(process.exitcode)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run([sys.executable, script], check=True, timeout=120, env=env)


def test_the_names_of_the_package_are_found_on_first_use():
    printed = light("import microplastics\nprint(dir(microplastics))")
    for name in microplastics.__all__:
        assert f"'{name}'" in printed and getattr(microplastics, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        microplastics.Predicter  # noqa: B018
