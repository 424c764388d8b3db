"""Where the threads that compute run."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import numpy as np
import torch

from thumbnet.kernels.library import load_library


@contextlib.contextmanager
def on_own_cores() -> Iterator[None]:
    """Hold each of the calling thread's team of OpenMP threads on a core of its own, if they are as many as the cores.

    A team waits for its slowest thread at the end of every operation. Beside another busy program Linux's scheduler may
    put two of its threads on one core, each of which then waits for the other to be given time: the classic step was
    seen to take 70 times as long. On cores of their own only one of them has to share.

    What is computed stays the same. Threads and processes that are started inside get the calling thread's one core:
    start them before. Without compiled kernels, or where a process cannot choose its cores, nothing is done.
    """
    handle = load_library().handle
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if handle is None or len(cores) < 2 or torch.get_num_threads() != len(cores):
        yield
        return

    def place(each: np.ndarray) -> None:
        """Give thread i the cores of row i, int64 [threads, cores]."""
        threads, cores_of_one = each.shape
        handle.place_threads(each.ctypes, *map(ctypes.c_long, (threads, cores_of_one)))

    place(np.array(cores).reshape(-1, 1))
    try:
        yield
    finally:
        place(np.tile(cores, (len(cores), 1)))
