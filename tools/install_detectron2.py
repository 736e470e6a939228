#!/usr/bin/env python
"""Installs Detectron2 main as a pure-Python package unless one can be imported already.

The Python files come from the PyPI wheel sal-detectron2 0.7.2, unchanged; docs/detectron2.md
says what that wheel is and what is missing without compiled operators.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

UPLOAD, UPLOAD_VERSION = "sal-detectron2", "0.7.2"
UPLOAD_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# Its tags fit the compiled file, which is left out: it needs CPython 3.10 and one torch.
PLATFORM = ("--python-version=3.10", "--implementation=cp", "--platform=manylinux_2_28_x86_64")
OURS = "microplastics"
REQUIRES = (
    *("torch", "torchvision", "numpy", "packaging", "tabulate", "cloudpickle", "tensorboard"),
    *("Pillow>=9.1", "matplotlib", "pycocotools>=2.0.6", "termcolor>=1.1", "yacs>=0.1.8"),
    *("tqdm>4.29.0", "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7", "omegaconf>=2.1,<2.4"),
    *("hydra-core>=1.1", "setuptools<82"),  # pkg_resources, which its model_zoo imports
)
# Upstream's version and commit, and a digest that changes with what is built from them.
DIGEST = hashlib.sha256(repr((UPLOAD_SHA256, REQUIRES)).encode()).hexdigest()[:8]
VERSION = f"0.6+a59f056.{OURS}.h{DIGEST}"

# Runs in a fresh interpreter, so that a Detectron2 that crashes while importing is only reported.
PROBE = r"""
import importlib.metadata, importlib.util, json, pathlib, sys
sys.path = [p for p in sys.path if p]
found = {"state": "absent", "place": "", "version": ""}
def end(state, error=None):
    error = error and " ".join(f"{type(error).__name__}: {error}".split())
    print("\nPROBE" + json.dumps({**found, "state": state, "error": error}))
    sys.exit()
try:
    import torch, torchvision
except Exception as e:
    end("no torch", e)
spec = importlib.util.find_spec("detectron2")
if spec is None or spec.origin is None:
    end("absent")
place = pathlib.Path(spec.origin).parent
found["place"] = str(place)
for dist in importlib.metadata.distributions(name="detectron2"):
    # Else it is of another copy, which a checkout on the path hides.
    if pathlib.Path(dist.locate_file("detectron2")).resolve() == place.resolve():
        found["version"] = dist.version
try:
    import detectron2
    found["version"] = found["version"] or detectron2.__version__
    found["compiled"] = importlib.util.find_spec("detectron2._C") is not None
    import detectron2.checkpoint, detectron2.engine, detectron2.evaluation, detectron2.modeling
except Exception as e:
    end("broken", e)
end("usable")
"""


class InstallError(Exception):
    """One sentence that names the thing and the fix."""


def probe() -> dict[str, str]:
    """Import Detectron2 in a new interpreter; return its state, place, version and error."""
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("PROBE")]
    if lines:
        return json.loads(lines[-1].removeprefix("PROBE"))
    last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
    return {"state": "broken", "place": "an unknown place", "version": "", "error": last}


def pip(task: str, *arguments: str) -> None:
    """Run this interpreter's pip with the indexes and proxies that it is configured for."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        lines = (run.stdout + run.stderr).strip().splitlines() or ["no message"]
        last = [line for line in lines if line.startswith("ERROR:")][-1:] or lines[-1:]
        raise InstallError(f"pip could not {task} ({last[0].removeprefix('ERROR: ')})")


def download(folder: Path) -> Path:
    """Download the upload into a folder; return its path."""
    options = ("--no-deps", "--only-binary=:all:", *PLATFORM, f"--dest={folder}")
    pip(f"download {UPLOAD}", "download", *options, f"{UPLOAD}=={UPLOAD_VERSION}")
    return next(folder.glob("*.whl"))


def build_wheel(upload: Path, folder: Path) -> Path:
    """Write the upload's Python files as a wheel of the name detectron2; return its path."""
    try:
        digest = hashlib.sha256(upload.read_bytes()).hexdigest()
    except OSError as e:
        raise InstallError(f"{upload} cannot be read: {e.strerror}") from None
    if digest != UPLOAD_SHA256:
        raise InstallError(f"{upload} has the sha256 {digest}; expected {UPLOAD_SHA256}")
    info = f"detectron2-{VERSION}.dist-info"
    files = {}
    with zipfile.ZipFile(upload) as archive:
        for name in archive.namelist():
            if name.startswith("detectron2/") and not name.startswith("detectron2/_C."):
                files[name] = archive.read(name)
            elif name.endswith(".dist-info/LICENSE"):
                files[f"{info}/LICENSE"] = archive.read(name)
    summary = f"Summary: Detectron2 main a59f056, Python files of {UPLOAD} {UPLOAD_VERSION}"
    metadata = ["Metadata-Version: 2.1", "Name: detectron2", f"Version: {VERSION}", summary]
    metadata += ["License: Apache-2.0", *(f"Requires-Dist: {need}" for need in REQUIRES), ""]
    tag = f"Wheel-Version: 1.0\nGenerator: {OURS}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/METADATA"] = "\n".join(metadata).encode()
    files[f"{info}/WHEEL"] = tag.encode()
    record = ""
    for name, content in files.items():
        code = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={code},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def install(upload: Path | None) -> dict[str, str]:
    """Build and install the wheel; return what can be imported then."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(upload or download(Path(folder)), Path(folder))
        options = ("--no-deps", "--no-index", "--force-reinstall")
        pip("install the wheel of Detectron2", "install", *options, str(wheel))
    found = probe()
    if found["state"] != "usable":
        raise InstallError(f"Detectron2 is installed but not usable ({found['error']})")
    return found


def main(argv: list[str] | None = None) -> int:
    """Return 0 if a usable Detectron2 is there at the end, else 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, help=f"a copy of {UPLOAD} {UPLOAD_VERSION}")
    parser.add_argument("--reinstall", action="store_true", help="replace what is there")
    arguments = parser.parse_args(argv)
    try:
        found = probe()
        ours = OURS in found["version"]
        if found["state"] == "no torch":
            raise InstallError(
                f"torch and torchvision cannot be imported by {sys.executable} ({found['error']}); "
                "run pip install -r requirements.txt first"
            )
        if found["state"] == "broken" and not ours and not arguments.reinstall:
            raise InstallError(
                f"Detectron2 in {found['place']} cannot be imported ({found['error']}); repair it, "
                "or replace it with tools/install_detectron2.py --reinstall"
            )
        current = found["state"] == "usable" and (not ours or found["version"] == VERSION)
        if arguments.reinstall or not current:
            found = install(arguments.wheel)
    except InstallError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    ops = "with" if found["compiled"] else "without"
    print(f"Detectron2 {found['version']} ({ops} compiled operators): {found['place']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
