"""The packages that ONNX files need, which are an extra."""

from __future__ import annotations

import importlib
from types import ModuleType

from thumbnet.errors import UsageError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def import_onnx(name: str) -> ModuleType:
    """Return onnx, onnxscript or onnxruntime.

    Raises:
        UsageError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # a library that does not load raises whatever it stumbles over
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        raise UsageError(
            f"ONNX files need the package {name}, which is not installed\n"
            "install the extra: pip install --editable '.[onnx]' where thumbnet was installed from"
            if missing
            else f"the package {name} is installed, but cannot be imported: {error}\nto install it anew: "
            f"pip install --force-reinstall {name}"
        ) from error
