"""Packages that only some commands need, and that are installed as an extra."""

from __future__ import annotations

import importlib
from types import ModuleType

from thumbnet.errors import UsageError

ONNX = ("onnx", "onnxscript", "onnxruntime")
"""Packages of the extra `onnx`."""
SERVE = ("fastapi", "uvicorn", "python_multipart")
"""Packages that the extra `serve` has beside those."""


def import_extra(name: str, extra: str, purpose: str) -> ModuleType:
    """Return a package of an extra.

    Args:
        name: what is imported.
        extra: name of the extra that installs it.
        purpose: what needs it, in the plural.

    Raises:
        UsageError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # a library that does not load raises whatever it stumbles over
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        raise UsageError(
            f"{purpose} need the package {name}, which is not installed\n"
            f"install the extra: pip install --editable '.[{extra}]' where thumbnet was installed from"
            if missing
            else f"the package {name} is installed, but cannot be imported: {error}\nto install it anew: "
            f"pip install --force-reinstall {name}"
        ) from error
