"""Which replica this process is, as torchrun, SLURM or Kubernetes tell it in the environment."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from thumbnet.errors import UsageError

DEFAULT_PORT = 29500
"""Where replica 0 listens unless told otherwise: the default of torchrun."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of one replica among all."""

    rank: int
    """Number of this replica, from 0."""
    count: int
    """Replicas in all."""
    local_rank: int
    """Number of this replica on its machine, from 0: its GPU."""
    address: str
    """Machine on which the replicas meet: that of replica 0."""
    port: int
    agent_store: bool = False
    """Whether torchrun itself already listens there."""


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Return the place of this process, or None when nobody started it as a replica.

    Variables of torchrun and Kubernetes (RANK, WORLD_SIZE, MASTER_ADDR...) come before those of a SLURM job step, since
    torchrun may itself be started by srun.

    Raises:
        UsageError: a variable is missing or impossible.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _from_torchrun(environment)
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        return _from_slurm(environment)
    return None


def _from_torchrun(environment: Mapping[str, str]) -> Place:
    for name in ("RANK", "WORLD_SIZE"):
        if name not in environment:
            raise UsageError(_missing(name))
    rank, count = _number(environment, "RANK", 0), _number(environment, "WORLD_SIZE", 1)
    if rank >= count:
        raise UsageError(f"RANK is {rank}: it must be below WORLD_SIZE, which is {count}")
    if count > 1 and not environment.get("MASTER_ADDR"):
        raise UsageError(_missing("MASTER_ADDR"))
    return Place(
        rank=rank,
        count=count,
        local_rank=_number(environment, "LOCAL_RANK", 0) if "LOCAL_RANK" in environment else 0,
        address=environment.get("MASTER_ADDR", ""),
        port=_number(environment, "MASTER_PORT", 0) if "MASTER_PORT" in environment else DEFAULT_PORT,
        agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _missing(name: str) -> str:
    return (
        f"{name} is not set, and other variables of a training on several devices are: start replicas with torchrun, "
        "srun or `thumbnet train --devices N`,\nor set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each; for a "
        "training on one device unset RANK and WORLD_SIZE"
    )


def _from_slurm(environment: Mapping[str, str]) -> Place:
    address = environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", ""))
    if not address:
        raise UsageError("MASTER_ADDR is not set, and SLURM_STEP_NODELIST names no machine: set MASTER_ADDR")
    # Jobs that share a machine must not meet at one port.
    job, step = (_number(environment, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = 20000 + (31 * job + step) % 20000
    return Place(
        rank=_number(environment, "SLURM_PROCID", 0),
        count=_number(environment, "SLURM_STEP_NUM_TASKS", 1),
        local_rank=_number(environment, "SLURM_LOCALID", 0),
        address=address,
        port=_number(environment, "MASTER_PORT", 0) if "MASTER_PORT" in environment else port,
    )


def first_host(nodes: str) -> str:
    """Return the first machine of a SLURM list such as `gpu[03-05,9],login1`; empty for an empty list."""
    match = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    assert match is not None
    prefix, first, suffix = match.groups(default="")
    return prefix + first + suffix


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    """Return a variable as a whole number."""
    text = environment.get(name, "")
    if not text.isdecimal() or int(text) < least:
        raise UsageError(f"{name} is {text!r}: it must be a whole number of {least} or more")
    return int(text)


def is_launched(environment: Mapping[str, str]) -> bool:
    """Tell whether torch's launcher, that of `--devices` or torchrun, has started this process."""
    return "TORCHELASTIC_RUN_ID" in environment


def job_of(environment: Mapping[str, str]) -> str | None:
    """Return what names this job over restarts, so that it finds its own run again; None where nothing restarts it."""
    run_id = environment.get("TORCHELASTIC_RUN_ID", "")
    if run_id not in ("", "none"):
        return f"torchrun {run_id}"
    if run_id:
        # torchrun without an id: whatever restarts its replicas is this very process. Another one may have its number
        # later, as the first process of a container that is started again.
        launcher = os.getppid()
        return f"torchrun on {socket.gethostname()}, process {launcher}{_begun(launcher)}"
    return None


def _begun(process: int) -> str:
    """Return when a process began, in ticks since the system did; "" where that is not told."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return f" begun at {text.rpartition(')')[2].split()[19]}"  # field 22, behind the name, which may hold anything
