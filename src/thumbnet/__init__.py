"""thumbnet: train a classifier of thumbnail-sized pictures from scratch, in minutes, on the machine at hand.

The functions here do what the commands do: `load_dataset`, `train`, `evaluate`, `load`, `export` (docs/python.md).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thumbnet.api import evaluate, export, load, load_dataset, train
    from thumbnet.errors import CheckpointError, DataError, DivergedError, ThumbnetError, UsageError

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DataError",
    "DivergedError",
    "ThumbnetError",
    "UsageError",
    "__version__",
    "evaluate",
    "export",
    "load",
    "load_dataset",
    "train",
]

_IN_API = ("evaluate", "export", "load", "load_dataset", "train")


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for: PyTorch takes a second, which `--help` has not."""
    if name not in __all__:
        raise AttributeError(f"module 'thumbnet' has no attribute '{name}'")
    module = importlib.import_module("thumbnet.api" if name in _IN_API else "thumbnet.errors")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
