"""Decodes pictures into records: a process of its own that is fed through its standard input.

`python -m thumbnet.data.decode_worker` reads a job and then chunks of pictures, each a line of JSON, and answers each
chunk with a line: the pictures that could not be decoded, or why the disk refuses. Records and digests go straight into
the files. It ends when its input does, so it does not outlive the process that feeds it, however that ends.

A process started like this, rather than with `multiprocessing`, works from a notebook and from scripts without a main
guard, and shares no threads or locks with the process that trains.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from thumbnet.data.decode import PictureError, UnreadPictureError, decode_picture
from thumbnet.data.records import RecordFormat

DIGEST_BYTES = 8
"""Tell pictures apart: among a million, the chance that any two different ones share a digest is 3 in 10^8."""

READY = "ready"
"""First line of a worker."""

Chunk = Sequence[tuple[int, int, str]]
"""(record number, label, path below the root) of each picture."""
Bad = list[tuple[int, str, bool]]
"""(record number, reason, whether it may pass by itself) of each picture that could not be decoded."""


def record_layout(size: int) -> RecordFormat:
    """Return the layout of the records of one's own pictures, as squares of this side."""
    return RecordFormat(image_shape=(size, size, 3), label_bytes=2, wide=True)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where the pictures are, and where records go."""

    root: str
    """Folder that the paths are relative to."""
    records: str
    """File of the records, of its final size."""
    digests: str
    """File of the digests: `DIGEST_BYTES` for each record, a hash of its pixels."""
    size: int
    """Side of the squares."""


class Decoder:
    """Writes the records of pictures into their places in the files of a job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._layout = record_layout(job.size)
        self._records = os.open(job.records, os.O_WRONLY)
        self._digests = os.open(job.digests, os.O_WRONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._records)
        os.close(self._digests)

    def decode(self, chunk: Chunk) -> Bad:
        """Decode some pictures.

        Returns:
            Those that cannot be; their records stay as they are.

        Raises:
            OSError: the disk refuses.
        """
        bad: Bad = []
        for number, label, path in chunk:
            try:
                image_HWC = decode_picture(Path(self._job.root, path), self._job.size)
            except PictureError as error:
                bad.append((number, str(error), isinstance(error, UnreadPictureError)))
                continue
            record = self._layout.pack(image_HWC[None], np.array([label]))
            digest = hashlib.blake2b(record[0, self._layout.label_bytes :].data, digest_size=DIGEST_BYTES).digest()
            os.pwrite(self._records, record.data, number * self._layout.record_bytes)
            os.pwrite(self._digests, digest, number * DIGEST_BYTES)
        return bad


def main() -> int:
    """Serve chunks until the input ends."""
    with Decoder(Job(**json.loads(sys.stdin.readline()))) as decoder:
        print(READY, flush=True)
        for line in sys.stdin:
            try:
                answer: object = decoder.decode(json.loads(line))
            except OSError as error:
                answer = {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
            print(json.dumps(answer), flush=True)
    return 0


def job_line(job: Job) -> str:
    """Return what a worker is to read first."""
    return json.dumps(asdict(job)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
