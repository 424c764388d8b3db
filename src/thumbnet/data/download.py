"""One file over HTTP: resumed where it broke off, bounded in time, size and attempts."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from thumbnet.data.description import Archive, Limits
from thumbnet.errors import DataError

_CHUNK_BYTES = 2**16
_WORTH_A_RETRY = {408, 425, 429, 500, 502, 503, 504}


class _BrokenOffError(Exception):
    """A transfer that may succeed when it is taken up again."""


def download(
    archive: Archive, path: Path, limits: Limits, *, advance: Callable[[int], None], note: Callable[[str], None]
) -> None:
    """Fetch an archive into a file that may hold its beginning; its size is right afterwards, its hash not yet checked.

    A source that cannot be reached, refuses, or sends nothing is left at once. A transfer that breaks off or stalls
    on the way is taken up again where it stopped.

    Args:
        archive: what to fetch.
        path: where to; kept when the transfer fails, so that the next one goes on from there.
        limits: seconds, attempts, least speed.
        advance: gets the bytes that have arrived since it was last called; negative when the file starts over.
        note: gets a line for each new attempt.

    Raises:
        DataError: the server cannot be reached, refuses, sends something else, stalls, or is too slow.
        OSError: the file cannot be written.
    """
    if _size(path) > archive.size_bytes:
        path.unlink()
    advance(_size(path))
    for attempt in range(1, limits.attempts + 1):
        if _size(path) == archive.size_bytes:
            return
        try:
            _attempt(archive, path, limits, advance)
        except _BrokenOffError as error:
            if attempt == limits.attempts:
                raise DataError(f"{error}, {attempt} attempts") from error
            note(f"{archive.name}: {error}; trying again")
            time.sleep(limits.pause_s * 2 ** (attempt - 1))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(archive: Archive, path: Path, limits: Limits, advance: Callable[[int], None]) -> None:
    """Fetch what is missing of a file."""
    start = _size(path)
    headers = {"User-Agent": "thumbnet", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(archive.url, headers=headers), timeout=limits.timeout_s
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            path.unlink()
            advance(-start)
            raise _BrokenOffError("the server cannot go on from where the last transfer broke off") from error
        if error.code in _WORTH_A_RETRY:
            raise _BrokenOffError(f"the server answers {error.code} {error.reason}") from error
        raise DataError(f"the server answers {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise DataError(f"no answer within {limits.timeout_s:g} s") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise DataError(f"no answer within {limits.timeout_s:g} s") from error
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise DataError(f"cannot be reached ({reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(f"the connection broke ({error})") from error
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT and start:
            advance(-start)
            start = 0
        _check_answer(response, archive, start)
        with path.open("ab" if start else "wb") as output:
            for chunk in _chunks(response, archive.size_bytes - start, limits):
                output.write(chunk)
                advance(len(chunk))


def _check_answer(response: http.client.HTTPResponse, archive: Archive, start: int) -> None:
    """Raise `DataError` unless the server is about to send the rest of the archive."""
    kind, length = response.headers.get("Content-Type", "something"), response.length
    if kind.startswith("text/html") or (length is not None and length != archive.size_bytes - start):
        size = "" if length is None else f"{length:,} bytes of "
        raise DataError(f"the server sends {size}{kind}, expected {archive.size_bytes - start:,} bytes of the archive")
    if start:
        match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise DataError(f"the server does not go on from byte {start:,} as asked")


def _chunks(response: http.client.HTTPResponse, expected: int, limits: Limits) -> Iterator[bytes]:
    """Yield the body in pieces; ends when `expected` bytes have come."""
    left, since, in_window = expected, time.monotonic(), 0
    while left:
        try:
            chunk = response.read1(min(_CHUNK_BYTES, left))
        except TimeoutError as error:
            reason = f"no data for {limits.timeout_s:g} s, {left:,} bytes missing"
            raise (DataError if left == expected else _BrokenOffError)(reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenOffError(f"the connection broke, {left:,} bytes missing") from error
        if not chunk:
            raise _BrokenOffError(f"cut short, {left:,} bytes missing")
        left -= len(chunk)
        in_window += len(chunk)
        yield chunk
        seconds = time.monotonic() - since
        if seconds >= limits.slow_after_s:
            if in_window / seconds < limits.slow_bytes_per_s:
                raise DataError(f"too slow: {in_window / seconds / 1024:.1f} KiB/s over {seconds:.0f} s")
            since, in_window = time.monotonic(), 0
