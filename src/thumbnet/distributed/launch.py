"""Starting replicas on this machine, with torch's own launcher."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from thumbnet import engine
from thumbnet.distributed.worker import EXIT_FOLDER
from thumbnet.errors import PeerLostError


def available(asked: int, note: Callable[[str], None]) -> int:
    """Return how many replicas to start: those asked for, as far as there are GPUs, or else cores.

    Args:
        asked: devices asked for.
        note: gets a line where there are fewer.
    """
    import torch

    if torch.cuda.is_available():
        there, what = torch.cuda.device_count(), "GPU"
    elif engine.device().type != "cpu":
        there, what = 1, f"{engine.device().type} device"
    else:
        there, what = engine.usable_cores(), "core"
    if asked > there:
        note(f"--devices {asked}: this machine has {there} {what}{'s' * (there > 1)} to use, one for each replica")
    return min(asked, there)


def launch(words: Sequence[str], *, count: int, max_restarts: int) -> int:
    """Run a command as replicas on this machine; torch's agent starts them all again when one dies.

    Args:
        words: the command, without `thumbnet`.
        count: replicas.
        max_restarts: how often they are started again.

    Returns:
        The command's exit code.

    Raises:
        PeerLostError: replicas died more often than that.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="thumbnet-") as folder, _environment(folder), _signals_kept(), _no_logs():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="127.0.0.1",
            max_restarts=max_restarts,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle="SIGTERM,SIGINT",
        )
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "thumbnet.distributed.worker", *words)
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
            raise PeerLostError(f"replica {rank} {how}, after {max_restarts} restarts") from error
        return _exit_code(Path(folder))


def _exit_code(folder: Path) -> int:
    """Return the exit code that the replicas of the last start have left."""
    codes: dict[int, list[int]] = {}
    for path in folder.glob("exit-*"):
        _, start, _ = path.name.split("-")
        codes.setdefault(int(start), []).append(int(path.read_text()))
    return max(codes[max(codes)], default=1) if codes else 1


@contextlib.contextmanager
def _environment(folder: str) -> Iterator[None]:
    """Set what the replicas inherit."""
    wanted = {EXIT_FOLDER: folder, "TORCH_CPP_LOG_LEVEL": "FATAL"}
    if sys.platform == "linux":
        # Nothing leaves the machine, whatever its name resolves to.
        wanted["GLOO_SOCKET_IFNAME"] = "lo"
    before = {name: os.environ.get(name) for name in (*wanted, "TORCHELASTIC_SIGNALS_TO_HANDLE")}
    os.environ |= wanted
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back the signal handlers that torch's agent replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _no_logs() -> Iterator[None]:
    """Silence the agent: the replicas tell the user what there is to tell."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
