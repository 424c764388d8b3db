"""The packages that ONNX files need, which are an extra."""

from __future__ import annotations

from types import ModuleType

from thumbnet.extras import import_extra


def import_onnx(name: str) -> ModuleType:
    """Return onnx, onnxscript or onnxruntime.

    Raises:
        UsageError: it is not installed, or does not load.
    """
    return import_extra(name, "onnx", "ONNX files")
