"""tools/install_detectron2.py, with a tiny wheel in place of the upload."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile

import pytest
from support import ROOT

TOOL = ROOT / "tools" / "install_detectron2.py"
UPLOAD_NAME = "sal_detectron2-0.7.2-cp310-none-any.whl"
UPLOAD_FILES = {
    "detectron2/__init__.py": "__version__ = '0.7.2'",
    "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "compiled",
    "detectron2/_Checks.py": "",
    "detectron2/model_zoo/configs/Base-RCNN-FPN.yaml": "MODEL: {}",
    **{f"detectron2/{n}.py": "" for n in ("checkpoint", "engine", "evaluation", "modeling")},
    "tools/train_net.py": "",
    "sal_detectron2-0.7.2.dist-info/LICENSE": "Apache License",
    "sal_detectron2-0.7.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: sal-detectron2\n"
    "Version: 0.7.2\n",
    "sal_detectron2-0.7.2.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: cp310-none-any\n",
    "sal_detectron2-0.7.2.dist-info/RECORD": "",
}
BROKEN = {"state": "broken", "error": "OSError: undefined symbol"}


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("install_detectron2", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def upload(tool, tmp_path, monkeypatch):
    """A tiny upload whose sha256 the tool expects."""
    path = tmp_path / UPLOAD_NAME
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in UPLOAD_FILES.items():
            archive.writestr(name, text)
    monkeypatch.setattr(tool, "UPLOAD_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_the_wheel_has_the_python_files_unchanged_and_nothing_else(tool, upload, tmp_path):
    info = f"detectron2-{tool.VERSION}.dist-info"
    with zipfile.ZipFile(tool.build_wheel(upload, tmp_path)) as wheel:
        names = [name for name in wheel.namelist() if not name.startswith(info)]
        for name in names:
            assert wheel.read(name).decode() == UPLOAD_FILES[name]
        record = wheel.read(f"{info}/RECORD").decode().splitlines()
        metadata = wheel.read(f"{info}/METADATA").decode()
    kept = [n for n in UPLOAD_FILES if n.startswith("detectron2/") and not n.endswith(".so")]
    assert names == kept
    assert [line.split(",")[0] for line in record][: len(kept)] == kept
    assert f"\nVersion: {tool.VERSION}\n" in metadata
    assert "\nRequires-Dist: fvcore>=0.1.5,<0.1.6\n" in metadata


def fails(tool, capsys, *arguments):
    """Runs the tool, expects exit code 2 and one line, and returns that."""
    assert tool.main([*map(str, arguments)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line


def test_another_file_is_refused(tool, upload, monkeypatch, capsys):
    monkeypatch.setattr(tool, "probe", lambda: {"state": "absent", "version": ""})
    there = tool.UPLOAD_SHA256
    monkeypatch.setattr(tool, "UPLOAD_SHA256", "0" * 64)
    line = fails(tool, capsys, "--wheel", upload)
    assert str(upload) in line and there in line and "0" * 64 in line
    assert "gone.whl cannot be read" in fails(tool, capsys, "--wheel", "gone.whl")


@pytest.mark.parametrize(
    ("found", "installs"),
    [
        ({"state": "absent", "version": ""}, True),
        ({"state": "usable", "version": "0.6", "compiled": True}, False),
        ({"state": "usable", "version": "0.6+cpu", "compiled": False}, False),
        ({"state": "usable", "version": "0.5+microplastics.h47749ba9"}, True),
        ({"state": "usable", "version": "0.6+a59f056.microplastics.h00000000"}, True),
        ({"state": "usable", "version": "VERSION", "compiled": False}, False),
        ({**BROKEN, "version": "VERSION"}, True),
    ],
)
def test_what_is_kept_and_what_is_replaced(tool, monkeypatch, capsys, found, installs):
    found = {"place": "/x/detectron2", **found}
    found["version"] = found["version"].replace("VERSION", tool.VERSION)
    new = {"place": "/new", "version": "new", "compiled": False}
    monkeypatch.setattr(tool, "probe", lambda: found)
    monkeypatch.setattr(tool, "install", lambda wheel: new)
    assert tool.main([]) == 0
    assert ("/new" if installs else "/x/detectron2") in capsys.readouterr().out
    assert tool.main(["--reinstall"]) == 0
    assert "/new" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({**BROKEN, "version": "0.6"}, ["/x/detectron2", "undefined symbol", "--reinstall"]),
        ({"state": "no torch", "version": "", "error": "gone"}, [sys.executable, "gone"]),
    ],
)
def test_what_it_cannot_repair_is_left(tool, monkeypatch, capsys, found, words):
    monkeypatch.setattr(tool, "probe", lambda: {"place": "/x/detectron2", **found})
    monkeypatch.setattr(tool, "install", lambda wheel: pytest.fail("installed"))
    line = fails(tool, capsys)
    assert all(word in line for word in words)


def test_the_upload_comes_from_the_index_of_pip(tool, upload, tmp_path, monkeypatch):
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    project = tmp_path / "simple" / "sal-detectron2"
    project.mkdir(parents=True)
    with pytest.raises(tool.InstallError, match="pip could not download sal-detectron2 .*No match"):
        tool.download(tmp_path)
    (project / "index.html").write_text(f'<!DOCTYPE html><a href="{upload.as_uri()}">wheel</a>')
    (tmp_path / "new").mkdir()
    assert tool.download(tmp_path / "new").read_bytes() == upload.read_bytes()


DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
import install_detectron2 as tool
tool.UPLOAD_SHA256 = sys.argv[2]
tool.VERSION = sys.argv[4] or tool.VERSION
sys.exit(tool.main(["--wheel", sys.argv[3]]))
"""


@pytest.mark.slow
def test_an_environment_from_nothing_over_release_0_5_to_uninstalled(tool, upload, tmp_path):
    modules = tmp_path / "modules"
    modules.mkdir()
    for name in ("torch", "torchvision"):
        (modules / f"{name}.py").write_text("")
    env = {**os.environ, "PYTHONPATH": str(modules)}

    def python(*arguments):
        command = [tmp_path / "venv/bin/python", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    driver = ("-c", DRIVER, TOOL.parent, tool.UPLOAD_SHA256, upload)
    assert "0.5+microplastics.h1 (without" in python(*driver, "0.5+microplastics.h1")
    for _ in range(2):
        assert f"{tool.VERSION} (without" in python(*driver, "")
    assert python("-c", "import detectron2; print(detectron2.__version__)") == "0.7.2\n"
    python("-m", "pip", "uninstall", "--yes", "detectron2")
    assert not list((tmp_path / "venv").glob("lib/*/site-packages/*detectron2*"))


def test_a_detectron2_that_crashes_is_reported(tool, tmp_path, monkeypatch):
    for name in ("torch", "torchvision"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "detectron2").mkdir()
    init = tmp_path / "detectron2" / "__init__.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    init.write_text("raise OSError('undefined symbol:\\n  x')")
    found = tool.probe()
    assert (found["state"], found["place"]) == ("broken", str(tmp_path / "detectron2"))
    assert found["error"] == "OSError: undefined symbol: x"
    init.write_text("import os; os._exit(3)")
    assert tool.probe()["error"] == "exit code 3"
