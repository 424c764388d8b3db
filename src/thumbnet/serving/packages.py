"""The packages that the server needs, which are an extra."""

from __future__ import annotations

from thumbnet.extras import import_extra

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "onnxruntime")


def insist_installed() -> None:
    """Refuse to start without them.

    Raises:
        UsageError: one is not installed, or does not load; names it.
    """
    for package in PACKAGES:
        import_extra(package, "serve", "servers")
