"""Randomness as a function of where the training stands, not of what ran before.

A stateful generator would have to be saved at the very moment of a kill to resume bit for bit.
Seeding each sample and each iteration from ``(SEED, rank, position)`` needs no saved state.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def derive_seeds(*key: int) -> tuple[int, int, int]:
    """Three independent 32-bit seeds (``random``, numpy, torch) from non-negative integers."""
    state = np.random.SeedSequence(key).generate_state(3)
    return int(state[0]), int(state[1]), int(state[2])


def seed_all(*key: int) -> None:
    """Seed ``random``, numpy and torch (CPU and CUDA) from ``key``."""
    for_random, for_numpy, for_torch = derive_seeds(*key)
    random.seed(for_random)
    np.random.seed(for_numpy)
    torch.manual_seed(for_torch)


@contextlib.contextmanager
def seeded(*key: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Run a block under seeds derived from ``key`` and give the generators back as they were.

    Args:
        key: non-negative integers.
        device: a CUDA device whose generator is restored as well.
    """
    device = torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=cuda):
        seed_all(*key)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
