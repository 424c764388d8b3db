"""The errors a user can cause; each says what is wrong, where, and what to do, and knows its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ThumbnetError(Exception):
    """A failure that is told to the user in one to three lines, without a traceback."""

    exit_code = 1


class UsageError(ThumbnetError):
    """A command, flag, preset, recipe key or value that cannot be used."""

    exit_code = 2


class DataError(ThumbnetError):
    """Data that is missing, damaged or not what it should be."""

    exit_code = 3


class CheckpointError(ThumbnetError):
    """A checkpoint or run that is missing, damaged or does not fit."""


class DivergedError(ThumbnetError):
    """Training met a loss or gradient that is not finite."""


class PeerLostError(ThumbnetError):
    """Another replica of a training on several devices is gone or silent; a restart goes on from the checkpoint."""

    exit_code = 4


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` - did you mean 'x'?`` for the closest known name, or the list of known names when none is close."""
    names = sorted(known)
    return close_match(name, names) or f" - known: {', '.join(names)}"


def close_match(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return `` - did you mean 'x'?`` for the closest known name, `prefix` before it; empty when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" - did you mean '{prefix}{close[0]}'?" if close else ""
