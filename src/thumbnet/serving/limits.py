"""What clients may ask of a server, so that none of them can exhaust it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats that are read over the network, by content."""
DECODERS = 2
"""Pictures decoded at the same time: more would only add to the memory, as the network needs the cores, too."""
RETRY_AFTER_S = 1
"""When to come again, for those who were sent away."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may take.

    The memory that clients can make the server use is bounded by twice `at_once` times `body_bytes`, and `DECODERS`
    times what `pixels` take while they are decoded, 15 bytes each for an animated WebP, the most of all kinds that were
    tried: 2 GiB with these values.
    """

    body_bytes: int = 10 * 2**20
    """Largest body of a request."""
    pixels: int = 50_000_000
    """Most pixels of a picture, whatever its file's size."""
    scans: int = 100
    """Most scans of a JPEG, whose every one may be over the whole picture and take but a few bytes; usual are 10."""
    at_once: int = 32
    """Pictures being received, waiting or looked at; who comes then is asked to come again."""
    connections: int = 512
    """Open connections; more are answered with 503."""
    head_seconds: float = 10.0
    """Time for the head of a request to arrive, for what is left of a body that was refused, and for an answer to be
    taken."""
    body_seconds: float = 30.0
    """Time for a body to arrive."""
    drain_seconds: int = 30
    """Time that requests in flight have to end when the server is stopped."""


class BusyError(Exception):
    """There are as many requests as may be."""


class Places:
    """A number of places, one for each picture that is being received, waits or is looked at."""

    def __init__(self, number: int) -> None:
        self._free = number

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            BusyError: there is none.
        """
        if not self._free:
            raise BusyError
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1
