"""Threads beside other processes: microplastics/__init__.py and microplastics/engine/hooks.py."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support import ROOT

from microplastics import SPIN_COUNT
from microplastics import _limit_spinning as limit_spinning
from microplastics.engine import hooks
from microplastics.engine.hooks import OtherProcesses, fitting_threads


def test_spinning_is_limited_before_torch_is_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    environ = {"PATH": "/bin"}
    limit_spinning(environ)
    assert environ == {"PATH": "/bin", "GOMP_SPINCOUNT": SPIN_COUNT}


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}])
def test_what_the_user_has_set_stays(monkeypatch, own):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    environ = dict(own)
    limit_spinning(environ)
    assert environ == own


def test_nothing_is_set_after_torch_was_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    environ = {}
    limit_spinning(environ)
    assert environ == {}


@pytest.mark.skipif(sys.platform != "linux", reason="other builds of torch load another OpenMP")
@pytest.mark.parametrize("given", [None, "77"])
def test_openmp_reads_the_setting_in_a_fresh_process(given):
    environ = {
        k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    environ |= {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": str(ROOT)}
    if given:
        environ["GOMP_SPINCOUNT"] = given
    code = "import microplastics, sys; assert 'torch' not in sys.modules; import torch"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert f"GOMP_SPINCOUNT = '{given or SPIN_COUNT}'" in done.stderr


@pytest.fixture
def system(monkeypatch, tmp_path):
    """Two cores of four are ours, with one data loader worker; what they have done can be set."""
    state = SimpleNamespace(now=0.0, cores=[0, 0, 0, 0], own=0.0, worker=0, ended=0.0)

    def fake_open(path, **_):
        if path == "/proc/stat":
            # user 1/2, nice 1/4, system 1/4; idle and iowait do not count.
            text = "cpu 0 0 0 0 0 0 0 0 0 0\n" + "".join(
                f"cpu{n} {t // 2} {t // 4} {t // 4} 999 999 0 0 0 0 0\n"
                for n, t in enumerate(state.cores)
            )
        else:
            assert path == "/proc/7/stat"
            text = f"7 (a) b) S {'0 ' * 10}{state.worker} 0 0"
        file = tmp_path / "stat"
        file.write_text(text)
        return file.open()

    second = SimpleNamespace(monotonic=lambda: state.now, process_time=lambda: state.own)
    monkeypatch.setattr(hooks, "open", fake_open, raising=False)
    monkeypatch.setattr(hooks, "time", second)
    workers = SimpleNamespace(active_children=lambda: [SimpleNamespace(pid=7)])
    monkeypatch.setattr(hooks, "multiprocessing", workers)
    fake_os = SimpleNamespace(
        sched_getaffinity=lambda _: {1, 2},
        sysconf=lambda _: 100,
        times=lambda: SimpleNamespace(children_user=state.ended, children_system=0.0),
    )
    monkeypatch.setattr(hooks, "os", fake_os)
    return state


def test_cores_of_other_processes_are_what_is_left_of_ours(system):
    others = OtherProcesses()
    system.now = 1.0
    assert others.cores() is None  # too early
    # 4 s on our two cores, 3 of them ours: 1.5 here, 1 in a worker, 0.5 in one that has ended.
    system.now, system.cores = 4.0, [400, 300, 100, 400]
    system.own, system.worker, system.ended = 1.5, 100, 0.5
    assert others.cores() == pytest.approx(0.25)
    system.now, system.own = 6.0, 2.5  # clocks that disagree
    assert others.cores() == 0.0


def test_cores_of_other_processes_are_unknown_without_proc(monkeypatch):
    def no_file(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(hooks, "open", no_file, raising=False)
    assert OtherProcesses().cores(seconds=0) is None


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the load is read on Linux only")
def test_a_busy_process_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        others = OtherProcesses()
        cores = None
        while cores is None:
            cores = others.cores(seconds=1.0)
        busy.kill()
    assert 0.2 < cores <= len(os.sched_getaffinity(0)) + 0.2


@pytest.mark.parametrize(
    ("most", "cores", "others", "expected"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.4, 2),
        (2, 2, 0.5, 1),
        (2, 2, 2.0, 1),
        (16, 16, 1.0, 15),
        (16, 16, 15.0, 8),  # half stays
        (8, 16, 3.0, 8),  # one thread a physical core
        (1, 2, 2.0, 1),
    ],
)
def test_threads_leave_other_processes_their_cores(most, cores, others, expected):
    assert fitting_threads(most, cores, others) == expected
