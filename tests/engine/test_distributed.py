import argparse
import os
import signal
import socket

import pytest
import torch
from support import user_error

from microplastics.engine import distributed, launch

ARGUMENTS = argparse.Namespace(
    num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto", victim=1
)


@pytest.fixture
def torchrun(monkeypatch):
    """This process as the only one of torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **place}.items():
        monkeypatch.setenv(name, value)


def lose_peer(_):
    raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] closed by peer")


def get_sigterm(_):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


@pytest.mark.parametrize("main", [lose_peer, get_sigterm])
def test_the_end_of_another_process_is_one_sentence(torchrun, main):
    before = signal.getsignal(signal.SIGTERM)
    with user_error("interrupted", "Another process", "--resume"):
        launch(main, ARGUMENTS)
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_errors_keep_their_traceback(torchrun):
    with pytest.raises(ZeroDivisionError):
        launch(lambda _: 1 / 0, ARGUMENTS)


def die_or_wait(arguments):
    if torch.distributed.get_rank() == arguments.victim:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


def run_rank(rank, store, main, args):
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)
    main(*args)


@pytest.mark.slow
def test_one_process_killed_under_detectron2s_launcher(monkeypatch, tmp_path):
    # Its own needs GPUs; the processes, and how it waits for them, are the same here.
    def two_processes(main, number, num_machines, machine_rank, dist_url, args):
        store = f"file://{tmp_path}/store"
        torch.multiprocessing.start_processes(run_rank, (store, main, args), number)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "_detectron2_launch", two_processes)
    with user_error("interrupted", "Process 1", "SIGKILL", "--resume"):
        launch(die_or_wait, ARGUMENTS)
