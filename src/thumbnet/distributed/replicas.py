"""This process among its peers: which share is its own, what all of them say, and whether one has failed."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from thumbnet.distributed.place import Place
from thumbnet.errors import PeerLostError, ThumbnetError, UsageError

PREPARATION_S = 3600.0
"""How long replicas wait for one that fetches or decodes its data."""
POLL_S = 0.02
_FAREWELL_S = 5.0
_NETWORK_WORDS = ("gloo", "NCCL", "c10d", "Connection", "caused pair closure")
"""What is in the messages of connections that fail."""
_FAILED = "failed"


class Replicas:
    """This process and its peers; a process on its own is the only one of 1."""

    def __init__(self, place: Place | None = None, store: Store | None = None, timeout_s: float = 0.0) -> None:
        """Refer to replicas that have met; use `thumbnet.distributed.join`."""
        self.rank = place.rank if place else 0
        """Number of this replica, from 0. Replica 0 alone writes and prints."""
        self.count = place.count if place else 1
        """Replicas in all."""
        self.sharers = 1
        """Replicas that started out on the cores of this one, itself included."""
        self.timeout_s = timeout_s
        self.store = store
        """What all replicas of this start share; None for one alone."""

    def share(self, count: int) -> slice:
        """Return which of `count` things are this replica's: contiguous, as equal as can be, none left out."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all replicas; it may be overwritten."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, content: bytes) -> bytes:
        """Return replica 0's content on all."""
        if self.count == 1:
            return content
        size = torch.tensor([len(content)])
        dist.broadcast(size, src=0)
        values = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == 0 and content:
            values = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        dist.broadcast(values, src=0)
        return values.numpy().tobytes()

    def gather(self, name: str, text: str, *, wait_s: float | None = None) -> list[str]:
        """Return what each replica says, in order.

        Args:
            name: of this exchange, each used once.
            text: what this one says.
            wait_s: how long to wait for the others; the time that a silent replica has if None.
        """
        if self.store is None:
            return [text]
        self.store.set(f"{name}/{self.rank}", text)
        if self.rank == 0:
            said = [self._get(f"{name}/{rank}", wait_s) for rank in range(self.count)]
            self.store.set(name, json.dumps(said))
        everything: list[str] = json.loads(self._get(name, wait_s))
        return everything

    def announce(self, name: str, text: str) -> str:
        """Return what replica 0 says, as long as its preparations may take."""
        if self.store is None:
            return text
        if self.rank == 0:
            self.store.set(name, text)
        return self._get(name, PREPARATION_S)

    def insist_same(self, name: str, text: str, complaint: str, *, wait_s: float | None = None) -> None:
        """Make sure that all replicas say the same.

        Raises:
            UsageError: they do not; `complaint` tells of what, and what to do.
        """
        said = self.gather(name, text, wait_s=wait_s)
        other = next((rank for rank, value in enumerate(said) if value != said[0]), None)
        if other is not None:
            raise UsageError(f"replica {other} {complaint}")

    def _get(self, key: str, wait_s: float | None = None) -> str:
        """Wait for a key; ends early when a replica has failed."""
        assert self.store is not None
        wait_s = self.timeout_s if wait_s is None else wait_s
        deadline = time.monotonic() + wait_s
        while not self.store.check([key]):
            if self.store.check([_FAILED]):
                raise _PeerFailedError
            if time.monotonic() > deadline:
                raise PeerLostError(f"replica {self.rank}: the others were silent for {wait_s:g} s (waiting for {key})")
            time.sleep(POLL_S)
        said: str = self.store.get(key).decode()
        return said

    def end(self, error: BaseException, *, lost: bool) -> BaseException:
        """Tell the others of a failure, unless it is theirs; return what this replica is to raise.

        The first that fails tells the user; the others end silently, with the same exit code.

        Args:
            error: what has happened here.
            lost: whether that is the loss of another replica (`is_loss`).
        """
        assert self.store is not None
        try:
            if lost:
                # A peer that fails says so before it closes its connections.
                with contextlib.suppress(RuntimeError):
                    self.store.wait([_FAILED], timedelta(seconds=1))
            if self.store.check([_FAILED]):
                return SystemExit(int(self.store.get(_FAILED)))
            if self.store.add("failures", 1) > 1:
                # Not `_get`, to which the very word that is waited for here is a reason to end.
                self.store.wait([_FAILED], timedelta(seconds=self.timeout_s))
                return SystemExit(int(self.store.get(_FAILED)))
            self.store.set(_FAILED, str(exit_code(PeerLostError("") if lost else error)))
        except (RuntimeError, ThumbnetError):
            pass  # the store went with the machine that held it: this replica speaks for itself
        if lost and not isinstance(error, PeerLostError):
            # gloo words it otherwise where another of its exchanges ran out of time first.
            silent = any(words in str(error).lower() for words in ("timed out", "timeout"))
            return PeerLostError(
                f"replica {self.rank}: another of the {self.count} replicas "
                + (f"was silent for {self.timeout_s:g} s" if silent else "is gone")
                + "\na resume goes on from the last checkpoint"
            )
        return error

    def say_farewell(self, *, holds_store: bool) -> None:
        """Leave; the one that holds the store stays until the others have read what it holds."""
        assert self.store is not None
        with contextlib.suppress(RuntimeError):
            left = self.store.add("left", 1)
            deadline = time.monotonic() + _FAREWELL_S
            while holds_store and left < self.count and time.monotonic() < deadline:
                time.sleep(POLL_S)
                left = self.store.add("left", 0)


class _PeerFailedError(Exception):
    """A peer has failed and told the user."""


ALONE = Replicas()


def is_loss(error: BaseException) -> bool:
    """Tell whether an error means that another replica does not answer: gloo has no type of its own for that."""
    if isinstance(error, _PeerFailedError | PeerLostError | dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(word in text for word in _NETWORK_WORDS)


def exit_code(error: BaseException) -> int:
    """Return the exit code that the program gives an error."""
    if isinstance(error, ThumbnetError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return int(error.args[0]) if error.args else 130
    return int(error.code) if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
