"""Event files of TensorBoard, written by a thread of their own."""

from __future__ import annotations

import itertools
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

# What encodes itself on the writing thread: called there, returns the values of one summary.
LateValues = Callable[[], "list[Summary.Value]"]


class EventFile:
    """One new event file; encoding, checksums and disk stay off the training thread.

    A write that fails (disk full) gives the file up: `failure` says why, later events are dropped, training goes on.

    Args:
        folder: created if need be; TensorBoard reads all event files of a folder as one run.
        purge_step: hide what earlier files of the folder say of this step and later ones; None hides nothing.

    Raises:
        OSError: the file cannot be created.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        # Imported here: TensorBoard's modules take a tenth of a second, which a training without summaries can save.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        # TensorBoard reads the files in the order of their names, so these start with the time, or more where a clock
        # has gone back; the counter keeps two files of one process and second apart.
        folder.mkdir(parents=True, exist_ok=True)
        stamps = (re.match(r"events\.out\.tfevents\.(\d{10})\.", entry.name) for entry in folder.iterdir())
        stamp = max([time.time_ns() // 10**9, *(int(found[1]) + 1 for found in stamps if found)])
        stem = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        self.path = next(path for i in itertools.count() if not (path := folder / f"{stem}.{i}").exists())
        self._file = self.path.open("xb")
        self._records = RecordWriter(self._file)
        self._event_class = Event
        self.failure: Exception | None = None
        self._queue: queue.SimpleQueue[Callable[[], Event] | None] = queue.SimpleQueue()
        self._put(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._put(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        self._thread = threading.Thread(target=self._write_all, name="tensorboard", daemon=True)
        self._thread.start()

    def add_values(self, step: int, values: LateValues) -> None:
        """Add one summary of a step; `values` is called on the writing thread."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        now = time.time()
        self._queue.put(lambda: self._event_class(step=step, wall_time=now, summary=Summary(value=values())))

    def add_graph(self, graph: bytes) -> None:
        """Add a serialized GraphDef."""
        self._put(self._event_class(graph_def=graph))

    def close(self) -> None:
        """Write what is queued and close the file."""
        self._queue.put(None)
        self._thread.join()

    def _put(self, event: Event) -> None:
        """Queue an event that is whole already."""
        event.wall_time = time.time()
        self._queue.put(lambda: event)

    def _write_all(self) -> None:
        """Write events until None comes; flush whenever the queue is empty, so that TensorBoard can follow."""
        try:
            while (build := self._queue.get()) is not None:
                self._records.write(build().SerializeToString())
                if self._queue.empty():
                    self._file.flush()
        except Exception as error:  # from the disk's to memory's
            self.failure = error
            while self._queue.get() is not None:
                pass
        try:
            self._file.close()  # which writes what is left, and may fail for that
        except OSError as error:
            self.failure = self.failure or error
