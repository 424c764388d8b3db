"""What the parts of the README's results share: where files are, and how figures are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TARGETS = (0.86, 0.94, 0.95, 0.96)
"""Test accuracies whose times are told."""


def load(name: str) -> Any:
    """Return the content of a results file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.2f} %"


def minutes(seconds: float) -> str:
    """Return a duration in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
