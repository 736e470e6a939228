#!/usr/bin/env python
"""Installs Detectron2 where none is usable: release 0.5 from PyPI, as a pure-Python wheel.

Where a usable Detectron2 can be imported (for instance GitHub main, installed as its own INSTALL
page says) it is kept. Else the sdist `detectron2-cdo` 0.5 is got with pip, checked against its
sha256, mended for today's libraries (detectron2_mends.py) and installed: no compiler needed. Mask
R-CNN uses none of the compiled ops that this build lacks.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import detectron2_mends
from detectron2_mends import MendError, mend

SDIST = "detectron2-cdo"
RELEASE = "0.5"
SDIST_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"
# Two and a half times what is in it: a file that unpacks to more is not that release.
MAX_UNPACKED_BYTES = 8_000_000
OUR_LOCAL_VERSION = "+microplastics."
INSTALL_PAGE = "https://github.com/facebookresearch/detectron2/blob/main/INSTALL.md"
# Where the release's setup.py maps its small projects to (PROJECTS there).
PROJECTS = {
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}
REQUIRES = (
    "Pillow>=9.1",  # Image.BILINEAR and NEAREST are there in every version from here on
    "matplotlib>=3.5",
    "pycocotools>=2.0.6",  # the first without np.float
    "termcolor>=1.1",
    "yacs>=0.1.6",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",  # the release's own bound
    "iopath>=0.1.7",  # the release says <0.1.10, which no current fvcore installation meets
    "omegaconf>=2.1",
    "hydra-core>=1.1",
)

# Runs in a fresh interpreter, so that a Detectron2 that crashes while importing is only reported.
PROBE = r"""
import importlib.util, json, sys, traceback
sys.path = [p for p in sys.path if p]
found = {"state": "absent"}
def say(**more):
    found.update(more)
    print("\nPROBE" + json.dumps(found))
    sys.exit(0)
try:
    import torch, torchvision
except Exception as e:
    say(state="no-torch", error=f"{type(e).__name__}: {e}")
spec = importlib.util.find_spec("detectron2")
if spec is None or spec.origin is None:
    say()
found["where"] = spec.origin
import importlib.metadata as metadata
try:
    found["dist_version"] = metadata.version("detectron2")
except metadata.PackageNotFoundError:
    pass  # a checkout on sys.path: usable all the same
try:
    import detectron2
    found["version"] = detectron2.__version__
    found["compiled"] = importlib.util.find_spec("detectron2._C") is not None
    if found["compiled"]:
        import detectron2._C
    from detectron2.layers import ROIAlign, batched_nms
    from detectron2.modeling import build_model
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    ROIAlign(2, 1.0, 0)(torch.ones(1, 1, 8, 8), torch.cat([torch.zeros(1, 1), boxes], 1))
    batched_nms(boxes, torch.ones(1), torch.zeros(1), 0.5)
    try:
        from detectron2 import model_zoo
        model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    except ModuleNotFoundError as e:
        if e.name != "pkg_resources":
            raise
        found["note"] = "its model_zoo needs pkg_resources: pip install 'setuptools<82'"
except Exception as e:
    last = traceback.extract_tb(e.__traceback__)[-1]
    say(state="broken", error=f"{type(e).__name__}: {e} ({last.filename}:{last.lineno})")
say(state="usable")
"""

# Asks pip's own finder and session, so that its indexes, mirrors, proxies and certificates count,
# for the file alone: `pip download` would also run the sdist's setup.py.
FETCH_UNKNOWN_PIP = 3
FETCH = r"""
import hashlib, sys
name, version, sha256, path = sys.argv[1:]
try:
    from pip._internal.commands import create_command
    command = create_command("download")
    with command.main_context():
        options, _ = command.parse_args(["--no-binary", name, name])
        session = command.get_default_session(options)
        candidates = command._build_package_finder(options, session).find_all_candidates(name)
        links = [c.link for c in candidates if str(c.version) == version and not c.link.is_wheel]
        error = "no such release on any index that pip is configured for, or none can be reached"
        for link in links:
            # Without this a server may pack the .tar.gz once more, and it arrives unpacked.
            answer = session.get(link.url_without_fragment, headers={"Accept-Encoding": "identity"})
            digest = hashlib.sha256(answer.content).hexdigest()
            if answer.ok and digest == sha256:
                with open(path, "wb") as file:
                    file.write(answer.content)
                sys.exit(0)
            error = f"HTTP status {answer.status_code}, sha256 {digest} instead of {sha256}"
except (ImportError, AttributeError, TypeError) as e:
    print(f"ERROR: this pip is not known: {e}")
    sys.exit(3)
except Exception as e:
    error = f"{type(e).__name__}: {e}"
print("ERROR: " + error.replace("\n", " "))
sys.exit(1)
"""


class InstallError(Exception):
    """What a person can mend; its text is one sentence."""


def our_version() -> str:
    """Returns the version of the wheel: the release, and which state of the mends is in it."""
    source = Path(detectron2_mends.__file__).read_text(encoding="utf-8")
    # The letter keeps a digest of digits alone from being read as a number.
    return RELEASE + OUR_LOCAL_VERSION + "h" + hashlib.sha256(source.encode()).hexdigest()[:8]


def probe(python: str = sys.executable) -> dict:
    """Tries the Detectron2 that `python` imports.

    Returns:
        `state` ("absent", "no-torch", "broken" or "usable") and, where known, `where`, `version`,
        `compiled`, `dist_version` of the installed distribution, `note`, `error`.
    """
    run = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("PROBE")]
    if lines:
        return json.loads(lines[-1][len("PROBE") :])
    words = (run.stderr.strip().splitlines() or ["no message"])[-1]
    return {"state": "broken", "error": f"Python ended with code {run.returncode}: {words}"}


def pip(*arguments: str) -> subprocess.CompletedProcess:
    """Runs this interpreter's pip, with whatever indexes and proxies it is configured for."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def _last_error(run: subprocess.CompletedProcess) -> str:
    lines = [line.strip() for line in (run.stdout + run.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["it ended without a word"])[-1]
    return last.removeprefix("ERROR: ").split(". ")[0]


def check_sha256(data: bytes, origin: str) -> None:
    """Refuses anything but the pinned release."""
    digest = hashlib.sha256(data).hexdigest()
    if digest != SDIST_SHA256:
        raise InstallError(
            f"{origin} is not {SDIST} {RELEASE}: its sha256 is {digest} and should be "
            f"{SDIST_SHA256}; nothing was installed, get the file from another index"
        )


def _fetch(folder: Path) -> Path:
    """Gets the sdist into `folder` through pip and returns its path."""
    path = folder / f"{SDIST}-{RELEASE}.tar.gz"
    fetch = [sys.executable, "-c", FETCH, SDIST, RELEASE, SDIST_SHA256, str(path)]
    run = subprocess.run(fetch, capture_output=True, text=True)
    if run.returncode == FETCH_UNKNOWN_PIP:
        # The public way: it prepares the metadata, for which it runs the sdist's setup.py (after it
        # has compared the sha256), and pip 26.3 refuses it for an optional requirement by URL.
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{SDIST}=={RELEASE} --hash=sha256:{SDIST_SHA256}\n")
        run = pip(
            *("download", "--no-deps", "--no-build-isolation", "--no-binary", SDIST),
            *("--require-hashes", "--dest", str(folder), "--requirement", str(wanted)),
        )
        path = next(folder.glob("*.tar.gz"), path)
    if run.returncode != 0 or not path.exists():
        raise InstallError(
            f"pip could not get {SDIST} {RELEASE} ({_last_error(run)}); check the network and "
            "pip's index settings, or pass the file you have with --sdist"
        )
    return path


def get_sdist(path: str | None) -> bytes:
    """Returns the checked sdist, from `path` or else through pip."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = (Path(path) if path else _fetch(Path(folder))).read_bytes()
    except OSError as e:
        raise InstallError(f"cannot read {path or SDIST}: {e.strerror}") from None
    check_sha256(data, path or f"the {SDIST} of pip's index")
    return data


def read_sdist(data: bytes) -> dict[str, bytes]:
    """Reads the files of an sdist into memory; nothing is unpacked to the disk.

    Returns:
        Path below the archive's one top folder to content.

    Raises:
        InstallError: a member is a link or a device, would lie outside the folder, or the whole
            is larger than the release.
    """
    files, total = {}, 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                bad_path = path.is_absolute() or ".." in path.parts or "\\" in member.name
                if bad_path or not (member.isfile() or member.isdir()):
                    raise InstallError(f"the sdist holds {member.name!r}, which is refused")
                total += member.size
                if total > MAX_UNPACKED_BYTES:
                    raise InstallError(f"the sdist unpacks to more than {MAX_UNPACKED_BYTES} bytes")
                if member.isfile():
                    files["/".join(path.parts[1:])] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as e:
        raise InstallError(f"the sdist cannot be read: {e}") from None
    return files


def package_files(sdist: dict[str, bytes]) -> dict[str, bytes]:
    """Picks what belongs into the package, where the release's setup.py puts it, and mends it."""
    package = {}
    for path, content in sdist.items():
        for source, target in {"detectron2/": "detectron2/", **PROJECTS}.items():
            if path.startswith(source):
                package[target + path[len(source) :]] = content
    return mend(package)


def _metadata() -> str:
    lines = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {our_version()}",
        "Summary: Detectron2 0.5, its Python part alone, mended by microplastics",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "Requires-Python: >=3.8",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
    ]
    return "\n".join(lines) + "\n"


def build_wheel(sdist: dict[str, bytes], folder: Path) -> Path:
    """Writes the wheel: the same bytes on every machine (stored, sorted, without times).

    Args:
        sdist: as `read_sdist` returns it.
        folder: where the wheel is written.

    Returns:
        The path of the wheel.
    """
    files = package_files(sdist)
    info = f"detectron2-{our_version()}.dist-info"
    wheel = "Wheel-Version: 1.0\nGenerator: microplastics\nRoot-Is-Purelib: true\nTag: py3-none-any"
    files[f"{info}/LICENSE"] = sdist["LICENSE"]
    files[f"{info}/METADATA"] = _metadata().encode()
    files[f"{info}/WHEEL"] = f"{wheel}\n".encode()
    files[f"{info}/top_level.txt"] = b"detectron2\n"
    record = ""
    for name in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=")
        record += f"{name},sha256={digest.decode()},{len(files[name])}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"detectron2-{our_version()}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        # RECORD last, as the wheel format advises.
        for name in sorted(files, key=lambda name: (name.endswith("/RECORD"), name)):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, files[name])
    return path


def install(sdist_path: str | None) -> None:
    """Gets, mends, builds, installs and tries the wheel."""
    sdist = read_sdist(get_sdist(sdist_path))
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(sdist, Path(folder))
        # --force-reinstall: an interrupted installation of the same version is written anew.
        run = pip("install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    if run.returncode != 0:
        raise InstallError(f"pip could not install the wheel of Detectron2: {_last_error(run)}")
    found = probe()
    if found["state"] != "usable":
        raise InstallError(
            f"Detectron2 was installed but does not work: {found.get('error', 'not found')}; "
            "install what it needs with: pip install -r requirements.txt"
        )
    _report("installed", found)


def _report(what: str, found: dict) -> None:
    ops = "with compiled ops" if found["compiled"] else "pure Python, without compiled ops"
    version = found.get("dist_version", "")
    version = version if version.startswith(found["version"]) else found["version"]
    print(f"Detectron2 {version} {what} ({ops}): {Path(found['where']).parent}")
    if "note" in found:
        print(f"note: {found['note']}", file=sys.stderr)


def _is_ours(found: dict) -> bool:
    """Whether what was found is a wheel of this tool, whole or left half-written."""
    here = Path(sysconfig.get_path("purelib")).resolve()
    if here not in Path(found.get("where", "/")).resolve().parents:
        return False
    version = found.get("dist_version")
    return version is None or OUR_LOCAL_VERSION in version


def main(argv: list[str] | None = None) -> int:
    """Returns 0 where a usable Detectron2 is there at the end, else 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", metavar="FILE", help=f"{SDIST}-{RELEASE}.tar.gz, got elsewhere")
    parser.add_argument(
        "--reinstall", action="store_true", help="replace the Detectron2 that is there"
    )
    arguments = parser.parse_args(argv)
    try:
        found = probe()
        if found["state"] == "no-torch":
            raise InstallError(
                f"torch and torchvision must be installed first in {sys.prefix} "
                f"({found['error']}): pip install -r requirements.txt"
            )
        outdated = _is_ours(found) and found.get("dist_version") != our_version()
        if found["state"] == "usable" and not outdated and not arguments.reinstall:
            _report("is there already", found)
        elif found["state"] == "broken" and not _is_ours(found) and not arguments.reinstall:
            raise InstallError(
                f"the Detectron2 at {found.get('where', 'an unknown place')} does not work: "
                f"{found['error']}; install it anew as {INSTALL_PAGE} says, or replace it by "
                "release 0.5 with: tools/install_detectron2.py --reinstall"
            )
        else:
            install(arguments.sdist)
    except (InstallError, MendError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
