"""Writing files so that a crash, a kill or a full disk never leaves half of one under its final name."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from thumbnet.errors import ThumbnetError, UsageError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
_ABANDONED_S = 3600.0
"""A file that is being written is written to more often than this."""

Pieces = Iterable[bytes | memoryview]
"""Content of a file; the views are of bytes."""


def write_new_file(path: Path, pieces: Pieces) -> None:
    """Write a file that does not exist yet, piece by piece, and wait until it is on the disk.

    Raises:
        OSError: the file exists, or the disk refuses.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:  # a disk that is nearly full takes a part, and refuses the next write
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: a rename is not durable before its folder is.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, pieces: Pieces) -> None:
    """Give a file new content: readers see the old one or the new one, never a part; of several writers the last wins.

    Raises:
        OSError: the disk refuses; the old content stands.
    """
    clear_leftovers(path.parent, path.name, idle_s=_ABANDONED_S)
    beside = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        write_new_file(beside, pieces)
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def clear_leftovers(folder: Path, name: str | None = None, *, idle_s: float = 0.0) -> None:
    """Delete what killed processes have left of the files they were replacing.

    Args:
        folder: where the files are.
        name: of the file; None for any.
        idle_s: spare what was written to in the last so many seconds; 0 only where nobody else can be writing.
    """
    of = "*" if name is None else glob.escape(name)
    for left in folder.glob(f".tmp-{of}-{'[0-9a-f]' * 8}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime >= idle_s:
                left.unlink()


def expand_home(path: Path) -> Path:
    """Return a path with the home folder in place of a `~` or `~user` it begins with.

    Raises:
        UsageError: there is no such user, nor a file or folder of that name.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        home = path.parts[0]
        if os.path.lexists(home):
            return path
        raise UsageError(f"{path}: there is no user whose home is {home}: write the path from / on") from error


def expand_home_in(path: str) -> str:
    """Return a path as text as `expand_home` does; one that begins otherwise comes back as it is.

    Raises:
        UsageError: as there.
    """
    return str(expand_home(Path(path))) if path.startswith("~") else path


def read_regular_file(path: Path, limit_bytes: int) -> bytes:
    """Return a file's content.

    Raises:
        OSError: there is no such file, it is not a regular one (a pipe would block for ever), it is larger than
            `limit_bytes`, or the disk refuses.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if status.st_size > limit_bytes:
        raise OSError(errno.EFBIG, f"{status.st_size} bytes, expected at most {limit_bytes}", str(path))
    with path.open("rb") as file:
        return file.read(limit_bytes)


def is_disk_full(error: OSError) -> bool:
    """Return whether a write failed for want of space: disk, quota or file-size limit."""
    return error.errno in _DISK_FULL


def remedy(error: OSError, flag: str = "--out") -> str:
    """Return what to do about a failed write, in the imperative; `flag` chooses another folder."""
    if is_disk_full(error):
        return "free some space on that disk"
    if error.errno in _NOT_WRITABLE:
        return f"make the folder writable, or choose another with {flag}"
    return f"check that disk, or choose another with {flag}"


def write_error(path: Path, error: OSError, flag: str = "--out") -> ThumbnetError:
    """Return the error to raise when a file or folder cannot be written; `flag` chooses another one."""
    return ThumbnetError(f"{path}: cannot write: {error}\nTo go on: {remedy(error, flag)}")
