"""Where the threads that compute run."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import numpy as np
import torch

from thumbnet.engine import device
from thumbnet.kernels.library import load_library


@contextlib.contextmanager
def on_own_cores() -> Iterator[None]:
    """Hold the calling thread and the other one of its OpenMP team on a core each, where there are two cores for two.

    A team waits for its slowest thread at the end of every operation. Beside another busy program Linux's scheduler may
    put both threads on one core, where each waits for the other to be given time: the classic step was seen to take 70
    times as long. On cores of their own only one of them has to share. What is computed stays the same.

    Threads and processes that are started inside get the calling thread's one core: start them before. That is why
    larger teams are left alone: OpenMP ends threads that an operation has no work for, and later starts others.
    Without compiled kernels, on an accelerator, or where a process cannot choose its cores, nothing is done either.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    # The kernels last: they may have to be compiled.
    team = len(cores) == 2 == torch.get_num_threads() and device().type == "cpu"
    if not team or load_library().handle is None:
        yield
        return
    try:
        _place(np.array([[core] for core in cores]))
        yield
    finally:
        _place(np.array([cores for _ in cores]))


def _place(cores_of_threads: np.ndarray) -> None:
    """Let thread i of the team run on the cores of row i, int64 [threads, cores]."""
    handle = load_library().handle
    assert handle is not None
    handle.place_threads(cores_of_threads.ctypes, *map(ctypes.c_long, cores_of_threads.shape))
