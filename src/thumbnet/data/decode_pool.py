"""Decodes many pictures at once, in several processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import thumbnet
from thumbnet import engine
from thumbnet.data.decode_worker import READY, Bad, Chunk, Decoder, Job, job_line
from thumbnet.errors import DataError

CHUNK_PICTURES = 64
"""Pictures a process gets at a time: few enough to share the work evenly, enough that asking costs nothing."""
WORTH_A_PROCESS = 512
"""Pictures that take about as long as starting a process does."""


def decode_all(job: Job, pictures: Chunk, done: Callable[[Chunk], None]) -> Bad:
    """Decode pictures into the files of a job, on all processors.

    Args:
        job: where from and where to.
        pictures: which.
        done: gets each chunk that is finished, from any thread, one at a time.

    Returns:
        Those that cannot be decoded, by record number.

    Raises:
        OSError: the disk refuses.
        DataError: no process can be started.
    """
    chunks = [pictures[start : start + CHUNK_PICTURES] for start in range(0, len(pictures), CHUNK_PICTURES)]
    processes = min(engine.usable_cores(), len(pictures) // WORTH_A_PROCESS)
    bad: Bad = []
    if processes < 2:
        with Decoder(job) as decoder:
            for chunk in chunks:
                bad += decoder.decode(chunk)
                done(chunk)
    else:
        _in_processes(job, chunks, processes, bad, done)
    return sorted(bad)


def _in_processes(job: Job, chunks: Sequence[Chunk], processes: int, bad: Bad, done: Callable[[Chunk], None]) -> None:
    """Decode chunks in several processes, each fed by a thread; adds to `bad`."""
    rest = iter(chunks)
    turn, stopped = threading.Lock(), threading.Event()

    def feed() -> None:
        try:
            with _Worker(job) as worker:
                for chunk in _shared(rest, turn, stopped):
                    failed = worker.decode(chunk)
                    with turn:
                        bad.extend(failed)
                        done(chunk)
        except BaseException:
            stopped.set()  # the other threads finish their chunk, and no more
            raise

    with ThreadPoolExecutor(processes, thread_name_prefix="thumbnet-decode") as pool:
        try:
            for future in [pool.submit(feed) for _ in range(processes)]:
                future.result()
        finally:
            stopped.set()  # Ctrl-C


def _shared(rest: Iterator[Chunk], turn: threading.Lock, stopped: threading.Event) -> Iterator[Chunk]:
    """Yield chunks from an iterator that several threads share."""
    while not stopped.is_set():
        with turn:
            chunk = next(rest, None)
        if chunk is None:
            return
        yield chunk


class _DiedError(Exception):
    """The process ended without an answer."""


class _Worker:
    """A decoding process, started anew should it die."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def decode(self, chunk: Chunk) -> Bad:
        """Decode some pictures; a picture that kills the process is one that cannot be decoded.

        Raises:
            OSError: the disk refuses.
            DataError: the process does not start.
        """
        try:
            return self._ask(chunk)
        except _DiedError as died:
            if len(chunk) == 1:
                return [(chunk[0][0], f"the decoder crashes on it ({died})", False)]
        return [failed for picture in chunk for failed in self.decode([picture])]

    def _ask(self, chunk: Chunk) -> Bad:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(chunk) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):
            raise _DiedError(f"exit code {self._end()}")
        told = json.loads(answer)
        if isinstance(told, dict):
            raise OSError(told["errno"], told["strerror"], told["filename"])
        return [(number, reason, passing) for number, reason, passing in told]

    def _start(self) -> subprocess.Popen[str]:
        """Start the process with this Python and this package, wherever it was imported from."""
        source = str(Path(thumbnet.__file__).parents[1])
        search = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        try:
            self._process = process = subprocess.Popen(
                # -P: no module in the current folder may stand in for one of ours.
                [sys.executable, "-P", "-m", "thumbnet.data.decode_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": search, "OPENBLAS_NUM_THREADS": "1"},
                process_group=0,  # a Ctrl-C in the terminal is for the parent alone
            )
        except OSError as error:
            raise DataError(
                f"a process that decodes pictures cannot be started: {error.strerror or error}\n"
                "end other programs, or ask for more processes and memory (ulimit)"
            ) from error
        assert process.stdin is not None
        assert process.stdout is not None
        ready = ""
        try:
            process.stdin.write(job_line(self._job))
            process.stdin.flush()
            ready = process.stdout.readline()
        except BrokenPipeError:
            pass
        if ready.strip() != READY:
            raise DataError(f"a process that decodes pictures cannot be started: exit code {self._end()}, see above")
        return process

    def _end(self) -> int:
        """Let the process end, which it does when its input does; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(BrokenPipeError), process:  # closes its pipes, whatever is left in them, and waits
            pass
        return process.wait()
