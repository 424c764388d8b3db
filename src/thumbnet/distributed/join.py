"""How replicas find each other at the start, and leave each other at the end."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from thumbnet.distributed.cores import take_share
from thumbnet.distributed.place import Place
from thumbnet.distributed.replicas import ALONE, POLL_S, Replicas, exit_code, first_line, is_loss
from thumbnet.errors import PeerLostError, UsageError


@contextlib.contextmanager
def joined(place: Place | None, timeout_s: float) -> Iterator[Replicas]:
    """Meet the other replicas, and leave them at the end; a failure of one ends all.

    Args:
        place: of this process; None for a training on its own.
        timeout_s: how long a replica may be silent before it counts as lost.

    Raises:
        UsageError: there is no GPU for this replica where others of its machine have one.
        PeerLostError: the others did not come, or one was lost.
        SystemExit: a peer has failed; it has told why.
    """
    if place is None or place.count == 1:
        yield ALONE
        return
    holds_store = place.rank == 0 and not place.agent_store
    store = _meet(place, timeout_s, holds_store=holds_store)
    replicas = Replicas(place, store, timeout_s)
    try:
        take_share(replicas)
        _connect(replicas, place.local_rank)
        yield replicas
    except BaseException as error:
        lost = is_loss(error)
        failure = replicas.end(error, lost=lost)
        if lost:
            atexit.register(_exit_at_once, exit_code(failure))
        else:
            _disconnect()
        replicas.say_farewell(holds_store=holds_store)
        if failure is error:
            raise
        raise failure from error
    _disconnect()
    replicas.say_farewell(holds_store=holds_store)


def _disconnect() -> None:
    """Close the connections, on which the others may be waiting."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _exit_at_once(code: int) -> None:
    """End without the library's own farewell, which would wait for exchanges that nobody answers any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _connect(replicas: Replicas, local_rank: int) -> None:
    """Open the connections for tensors: NCCL between GPUs, gloo between processors.

    Threads of the connections run on the cores that this process has by now.

    Raises:
        UsageError: there is no GPU for this replica where others of its machine have one.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"replica {replicas.rank} is number {local_rank} on its machine, which has "
                f"{torch.cuda.device_count()} GPUs: start as many replicas as there are"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend,
        store=replicas.store,
        rank=replicas.rank,
        world_size=replicas.count,
        timeout=timedelta(seconds=replicas.timeout_s),
    )


def _meet(place: Place, timeout_s: float, *, holds_store: bool) -> Store:
    """Return a store that exactly the replicas of this start share.

    A store that torchrun keeps over restarts still holds the words of replicas that are gone. So each replica
    introduces itself by a new name, and replica 0 answers to it with the name of this start.
    """
    where = f"{place.address}:{place.port}"
    deadline = time.monotonic() + timeout_s
    try:
        store = TCPStore(
            place.address, place.port, None, holds_store, timedelta(seconds=timeout_s), wait_for_workers=False
        )
        name = uuid.uuid4().hex
        store.set(f"thumbnet/hello/{place.rank}", name)
        if place.rank == 0:
            _welcome(store, name, place.count, deadline, where)
        else:
            while not store.check([f"thumbnet/welcome/{name}"]):
                if time.monotonic() > deadline:
                    raise PeerLostError(f"replica {place.rank}: replica 0 has not come to {where} in {timeout_s:g} s")
                time.sleep(POLL_S)
            name = store.get(f"thumbnet/welcome/{name}").decode()
            store.set(f"thumbnet/{name}/here/{place.rank}", "")
    except RuntimeError as error:
        raise PeerLostError(
            f"replica {place.rank}: cannot {'listen at' if holds_store else 'reach'} {where} within {timeout_s:g} s: "
            "is MASTER_ADDR right, the port free, and no firewall between?\n"
            f"({first_line(error)})"
        ) from error
    return PrefixStore(f"thumbnet/{name}", store)


def _welcome(store: Store, name: str, count: int, deadline: float, where: str) -> None:
    """Answer the other replicas until all of them have come."""
    missing, answered = set(range(1, count)), set()
    while missing:
        for rank in sorted(missing):
            if store.check([f"thumbnet/{name}/here/{rank}"]):
                missing.remove(rank)
            elif store.check([f"thumbnet/hello/{rank}"]):
                theirs = store.get(f"thumbnet/hello/{rank}").decode()
                if theirs not in answered:
                    answered.add(theirs)
                    store.set(f"thumbnet/welcome/{theirs}", name)
        if missing and time.monotonic() > deadline:
            raise PeerLostError(
                f"replica 0: {len(missing)} of {count} replicas have not come to {where} in time: "
                f"{', '.join(map(str, sorted(missing)[:8]))}"
            )
        time.sleep(POLL_S / 4)
