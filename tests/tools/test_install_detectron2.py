import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("install_detectron2")
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def mends(tool):
    return sys.modules["detectron2_mends"]


# The lines of the release that the mends look for, one small text a file.
RELEASE_LINES = {
    "detectron2/layers/deform_conv.py": "from detectron2 import _C\n",
    "detectron2/layers/roi_align_rotated.py": "from detectron2 import _C\n",
    "detectron2/layers/rotated_boxes.py": "from detectron2 import _C\n",
    "detectron2/layers/nms.py": "from torchvision.ops import nms  # BC-compat\n"
    "def nms_rotated(boxes, scores, iou_threshold):\n"
    "    return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)\n",
    "detectron2/evaluation/fast_eval_api.py": "from detectron2 import _C\n",
    "detectron2/evaluation/coco_evaluation.py": "from detectron2.evaluation.fast_eval_api import"
    " COCOeval_opt\nfrom .evaluator import DatasetEvaluator\n"
    'kind = "unofficial" if self._use_fast_impl else "official"\n'
    "self._logger.warn(1)\nself._logger.warn(2)\n",
    "detectron2/evaluation/lvis_evaluation.py": "self._logger.warn(1)\nlogger.warn(2)\n",
    "detectron2/evaluation/sem_seg_evaluation.py": "np.int, np.int, np.int64, np.float32\n"
    "np.float, np.float, np.float, np.float, np.float\nlogger.warn(1)\nlogger.warn(2)\n",
    "detectron2/evaluation/pascal_voc_evaluation.py": "np.bool, np.bool\n",
    "detectron2/utils/collect_env.py": "try:\n    import detectron2._C as _C\n"
    "except ImportError as e:\n"
    '    data.append(("detectron2._C", f"not built correctly: {e}"))\n'
    "    cxx = subprocess.check_output(\"'{}' --version\".format(cxx), shell=True)\n",
    "detectron2/utils/visualizer.py": "np.bool, np.bool, np.bool\n",
    "detectron2/utils/video_visualizer.py": "np.bool\n",
    "detectron2/export/__init__.py": "from .api import *\n",
    "detectron2/model_zoo/model_zoo.py": "import pkg_resources\n"
    "cfg_file = pkg_resources.resource_filename(\n"
    '        "detectron2.model_zoo", os.path.join("configs", config_path)\n    )\n',
    "detectron2/data/transforms/transform.py": "def f(src_rect, interp=Image.LINEAR, fill=0): 0\n",
    "detectron2/data/build.py": "np.int, np.int\n",
    "detectron2/data/detection_utils.py": "target.gt_boxes = Boxes(boxes)\n",
    "detectron2/data/datasets/pascal_voc.py": "np.str\n",
    "detectron2/data/datasets/coco.py": "logger.warn(1)\nlogger.warn(2)\n",
    "detectron2/structures/masks.py": "np.bool, np.bool\n",
    "detectron2/modeling/anchor_generator.py": "y, x = torch.meshgrid(shifts_y, shifts_x)\n",
    "detectron2/projects/panoptic_deeplab/post_processing.py": "    y_coord, x_coord = "
    "torch.meshgrid(\n        torch.arange(height),\n        torch.arange(width),\n    )\n",
    "detectron2/engine/train_loop.py": "from torch.cuda.amp import GradScaler\n"
    "from torch.cuda.amp import autocast\nwith autocast():\n    pass\n",
    "detectron2/engine/defaults.py": "logger.warn(1)\n",
}
GONE = ("pkg_resources", "Image.LINEAR", "np.int,", "np.float,", "np.bool", "np.str", ".warn(")


def release() -> dict:
    return {path: text.encode() for path, text in RELEASE_LINES.items()}


def sdist_of(files: dict, extra: list = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"detectron2_cdo-0.5/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def whole_sdist() -> dict:
    """What a release looks like in the archive: the projects lie outside the package there."""
    files = {"LICENSE": b"Apache License", "setup.py": b"raise SystemExit('never run')"}
    for path, content in release().items():
        path = path.replace("detectron2/projects/pan", "projects/Panoptic-DeepLab/pan")
        files[path] = content
    files["detectron2/__init__.py"] = b'__version__ = "0.5"\n'
    files["detectron2/model_zoo/configs/Base-RCNN-FPN.yaml"] = b"MODEL: {}\n"
    files["projects/PointRend/point_rend/__init__.py"] = b""
    return files


def test_mends_leave_nothing_of_the_old(mends):
    mended = mends.mend(release())
    for path in RELEASE_LINES:
        notice, text = mended[path].decode().split("\n", 1)
        assert notice.startswith("# Changed by microplastics (tools/detectron2_mends.py): ")
        assert not [word for word in GONE if word in text], path
    assert (
        "int, int, np.int64, np.float32\n"
        in mended["detectron2/evaluation/sem_seg_evaluation.py"].decode()
    )
    assert (
        'indexing="ij",\n    )'
        in mended["detectron2/projects/panoptic_deeplab/post_processing.py"].decode()
    )


@pytest.mark.parametrize("path", sorted(RELEASE_LINES))
def test_each_mend_fails_loudly_without_its_text(mends, path):
    for function in mends.MENDS[path]:
        with pytest.raises(mends.MendError, match="expected .* found"):
            function("nothing of the kind\n")
    with pytest.raises(mends.MendError, match=rf"^{path}: {mends.MENDS[path][0].__name__}: exp"):
        mends.mend({**release(), path: b"nothing of the kind\n"})


def test_every_mended_file_has_its_lines_here(mends):
    assert set(mends.MENDS) == set(RELEASE_LINES)


def test_mend_names_a_missing_file(mends):
    files = release()
    del files["detectron2/layers/nms.py"]
    with pytest.raises(mends.MendError, match="layers/nms.py: not in this release"):
        mends.mend(files)


def test_compiled_ops_refuse_when_used_and_not_before(mends):
    module = {}
    exec(mends.NO_COMPILED_OPS_TEXT, module)
    ops = module["_C"]
    with pytest.raises(NotImplementedError, match="no compiled ops, and box_iou_rotated is one"):
        ops.box_iou_rotated(1, 2)
    assert not hasattr(ops, "__wrapped__")


def test_wheel_is_the_same_bytes_each_time(tool, tmp_path):
    files = whole_sdist()
    backwards = dict(reversed(list(files.items())))
    wheels = []
    for name, content in {"a": files, "b": backwards}.items():
        (tmp_path / name).mkdir()
        wheels.append(tool.build_wheel(content, tmp_path / name))
    assert wheels[0].name == wheels[1].name == f"detectron2-{tool.our_version()}-py3-none-any.whl"
    assert wheels[0].read_bytes() == wheels[1].read_bytes()


def test_wheel_holds_package_projects_configs_and_record(tool, tmp_path):
    path = tool.build_wheel(whole_sdist(), tmp_path)
    info = f"detectron2-{tool.our_version()}.dist-info"
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(f"{info}/METADATA").decode()
        record = wheel.read(f"{info}/RECORD").decode()
        assert names[-1] == f"{info}/RECORD"
        for line in record.splitlines()[:-1]:
            name, _, size = line.split(",")
            assert len(wheel.read(name)) == int(size)
    assert len(record.splitlines()) == len(names)
    for name in ("projects/point_rend/__init__.py", "model_zoo/configs/Base-RCNN-FPN.yaml"):
        assert f"detectron2/{name}" in names
    assert f"{info}/LICENSE" in names
    assert not [n for n in names if n.startswith(("projects/", "setup", "detectron2/_C"))]
    assert f"Version: {tool.our_version()}\n" in metadata
    assert "Requires-Dist: iopath>=0.1.7\n" in metadata
    assert "black" not in metadata and "future" not in metadata


def test_another_sha256_is_refused(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "probe", lambda: {"state": "absent"})
    other = tmp_path / "detectron2_cdo-0.5.tar.gz"
    other.write_bytes(sdist_of(whole_sdist()))
    with pytest.raises(tool.InstallError, match="its sha256 is .* nothing was installed"):
        tool.get_sdist(str(other))
    assert tool.main(["--sdist", str(other)]) == 2
    assert hashlib.sha256(other.read_bytes()).hexdigest() in capsys.readouterr().err


def test_a_missing_sdist_is_one_sentence(tool, tmp_path):
    with pytest.raises(tool.InstallError, match="cannot read .*gone.tar.gz: No such file"):
        tool.get_sdist(str(tmp_path / "gone.tar.gz"))


def hostile(name: str, kind: bytes = tarfile.REGTYPE, size: int = 1) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    "member",
    [
        hostile("detectron2_cdo-0.5/../../evil.py"),
        hostile("/etc/evil"),
        hostile("detectron2_cdo-0.5\\..\\evil.py"),
        hostile("detectron2_cdo-0.5/link", tarfile.SYMTYPE, 0),
        hostile("detectron2_cdo-0.5/hard", tarfile.LNKTYPE, 0),
        hostile("detectron2_cdo-0.5/fifo", tarfile.FIFOTYPE, 0),
    ],
)
def test_hostile_members_are_refused(tool, member):
    with pytest.raises(tool.InstallError, match="which is refused"):
        tool.read_sdist(sdist_of(whole_sdist(), [member]))


def test_a_bomb_and_a_torn_archive_are_refused(tool):
    bomb = sdist_of({}, [hostile("detectron2_cdo-0.5/big", size=tool.MAX_UNPACKED_BYTES + 1)])
    with pytest.raises(tool.InstallError, match="unpacks to more than"):
        tool.read_sdist(bomb)
    with pytest.raises(tool.InstallError, match="cannot be read"):
        tool.read_sdist(sdist_of(whole_sdist())[:400])


def found(**more):
    return {"state": "usable", "where": "/x/detectron2/__init__.py", "compiled": True, **more}


@pytest.fixture
def no_install(tool, monkeypatch):
    installed = []
    monkeypatch.setattr(tool, "install", installed.append)
    return installed


def test_a_usable_detectron2_is_kept(tool, no_install, monkeypatch, capsys):
    monkeypatch.setattr(tool, "probe", lambda: found(version="0.6", dist_version="0.6"))
    assert tool.main([]) == 0
    words = "Detectron2 0.6 is there already (with compiled ops): /x/detectron2\n"
    assert capsys.readouterr().out == words
    assert no_install == []
    assert tool.main(["--reinstall"]) == 0
    assert no_install == [None]


def test_main_without_pkg_resources_is_kept_with_a_note(tool, no_install, monkeypatch, capsys):
    monkeypatch.setattr(tool, "probe", lambda: found(version="0.6", note="its model_zoo needs x"))
    assert tool.main([]) == 0
    assert capsys.readouterr().err == "note: its model_zoo needs x\n"
    assert no_install == []


def test_none_is_installed_where_torch_is_missing(tool, no_install, monkeypatch, capsys):
    error = "ModuleNotFoundError: No module named 'torch'"
    monkeypatch.setattr(tool, "probe", lambda: {"state": "no-torch", "error": error})
    assert tool.main([]) == 2
    assert "torch and torchvision must be installed first" in capsys.readouterr().err
    assert no_install == []


def test_a_foreign_broken_one_is_left_and_named(tool, no_install, monkeypatch, capsys):
    broken = found(state="broken", error="ImportError: undefined symbol", dist_version="0.6")
    monkeypatch.setattr(tool, "probe", lambda: broken)
    assert tool.main([]) == 2
    words = capsys.readouterr().err
    assert words.count("\n") == 1
    assert "at /x/detectron2/__init__.py does not work: ImportError: undefined symbol" in words
    assert no_install == []


@pytest.mark.parametrize("version", [None, "0.5+microplastics.h00000000"])
@pytest.mark.parametrize("state", ["usable", "broken"])
def test_own_outdated_or_torn_build_is_replaced(tool, no_install, monkeypatch, version, state):
    where = Path(tool.sysconfig.get_path("purelib"), "detectron2", "__init__.py")
    ours = found(state=state, where=str(where), dist_version=version, error="", version="0.5")
    monkeypatch.setattr(tool, "probe", lambda: ours)
    assert tool.main([]) == 0
    assert no_install == [None]


def test_own_current_build_is_kept(tool, no_install, monkeypatch, capsys):
    where = Path(tool.sysconfig.get_path("purelib"), "detectron2", "__init__.py")
    ours = found(where=str(where), dist_version=tool.our_version(), version="0.5", compiled=False)
    monkeypatch.setattr(tool, "probe", lambda: ours)
    assert tool.main([]) == 0
    assert f"{tool.our_version()} is there already (pure Python" in capsys.readouterr().out
    assert no_install == []


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index in a folder, to which pip is pointed; returns its folder of the project."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    project = tmp_path / "simple" / "detectron2-cdo"
    project.mkdir(parents=True)
    return project


def offer(project: Path, content: bytes) -> str:
    name = "detectron2_cdo-0.5.tar.gz"
    (project / name).write_bytes(content)
    (project / "index.html").write_text(f'<!DOCTYPE html><a href="{name}">{name}</a>')
    return hashlib.sha256(content).hexdigest()


def test_sdist_comes_from_the_index_of_pip(tool, index, monkeypatch):
    content = sdist_of(whole_sdist())
    monkeypatch.setattr(tool, "SDIST_SHA256", offer(index, content))
    assert tool.get_sdist(None) == content


def test_another_file_on_the_index_is_refused(tool, index):
    digest = offer(index, sdist_of(whole_sdist()))
    with pytest.raises(tool.InstallError, match=f"sha256 {digest} instead of {tool.SDIST_SHA256}"):
        tool.get_sdist(None)


def test_an_index_without_it_is_one_sentence(tool, index):
    with pytest.raises(tool.InstallError, match="^pip could not get detectron2-cdo 0.5 .no such"):
        tool.get_sdist(None)


def test_an_unknown_pip_falls_back_on_its_command(tool, monkeypatch):
    asked = []
    answer = subprocess.CompletedProcess([], 1, "", "WARNING: retry\nERROR: Nothing there\n")
    monkeypatch.setattr(tool, "FETCH", f"import sys; sys.exit({tool.FETCH_UNKNOWN_PIP})")
    monkeypatch.setattr(tool, "pip", lambda *arguments: asked.append(arguments) or answer)
    with pytest.raises(tool.InstallError) as caught:
        tool.get_sdist(None)
    assert "pip could not get detectron2-cdo 0.5 (Nothing there); check" in str(caught.value)
    assert asked[0][:2] == ("download", "--no-deps") and "--require-hashes" in asked[0]


def test_a_crashing_detectron2_is_reported_not_raised(tool, tmp_path, monkeypatch):
    for name, text in {
        "torch": "",
        "torchvision": "",
        "detectron2": "raise OSError('undefined symbol: x')",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = tool.probe()
    assert result["state"] == "broken"
    assert result["where"] == str(tmp_path / "detectron2" / "__init__.py")
    assert result["error"].startswith("OSError: undefined symbol: x (")


IMPORT_ALL = r"""
import importlib, json, pkgutil
import detectron2
missing = {}
for module in pkgutil.walk_packages(detectron2.__path__, "detectron2.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
    except Exception as e:
        missing[module.name] = f"{type(e).__name__}: {e}"
from detectron2 import model_zoo
config = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
from detectron2.utils.collect_env import collect_env_info
print("\nFOUND" + json.dumps([missing, config.MODEL.META_ARCHITECTURE, collect_env_info()]))
"""


def test_every_module_of_our_build_imports(tool):
    where = getattr(importlib.util.find_spec("detectron2"), "origin", "nowhere")
    version = importlib.metadata.version("detectron2")
    if not tool._is_ours({"where": where, "dist_version": version}):
        pytest.skip(f"another Detectron2 is installed: {where}")
    run = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    line = next(line for line in run.stdout.splitlines() if line.startswith("FOUND"))
    missing, architecture, environment = json.loads(line[len("FOUND") :])
    # caffe2 left torch; onnx and panopticapi are optional in the release as well.
    for package in ("caffe2", "onnx", "panopticapi"):
        words = f"ModuleNotFoundError: No module named '{package}'"
        missing = {name: error for name, error in missing.items() if not error.startswith(words)}
    assert list(missing) == ["detectron2.evaluation.fast_eval_api"]
    assert "has no compiled ops" in missing["detectron2.evaluation.fast_eval_api"]
    assert architecture == "GeneralizedRCNN"
    assert "not built (pure Python build by microplastics)" in environment
