"""How replicas on one machine share its cores."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from thumbnet.distributed.replicas import Replicas


def take_share(replicas: Replicas) -> None:
    """Pin this process to its share of the cores; replicas that may use the same cores get one part each.

    A launcher that has given each replica cores of its own, as srun and taskset do, is left to it. Call it before torch
    starts its threads: those that run already are not moved.
    """
    if replicas.count == 1 or not hasattr(os, "sched_setaffinity"):
        return
    mine = sorted(os.sched_getaffinity(0))
    places = replicas.gather("cores", json.dumps([socket.gethostname(), mine]))
    sharers = [rank for rank, place in enumerate(places) if place == places[replicas.rank]]
    replicas.sharers = len(sharers)
    if len(sharers) <= len(mine):
        os.sched_setaffinity(0, share_of(by_neighbourhood(mine), sharers.index(replicas.rank), len(sharers)))


def share_of(cores: list[int], index: int, count: int) -> list[int]:
    """Return part `index` of `count` parts of the cores, as equal as can be."""
    return cores[len(cores) * index // count : len(cores) * (index + 1) // count]


def by_neighbourhood(cores: list[int], root: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """Return cores so that those of one socket, and the two halves of one physical core, stand together."""

    def position(core: int) -> tuple[int, int, int]:
        try:
            topology = root / f"cpu{core}" / "topology"
            package, physical = (int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
        except (OSError, ValueError):
            return 0, core, core
        return package, physical, core

    return sorted(cores, key=position)
