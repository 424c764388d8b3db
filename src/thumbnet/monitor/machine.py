"""What this machine has, and what was chosen for it, and why."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from thumbnet import __version__, engine
from thumbnet.data import cache_dir
from thumbnet.extras import ONNX, SERVE
from thumbnet.kernels import find_compiler, load_library
from thumbnet.models.grid import amx_ready


def describe_machine(data_dir: Path | None) -> dict[str, Any]:
    """Return what this machine has and what was chosen for it."""
    precision = engine.resolve_precision()
    return {
        "thumbnet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": engine.cpu_name(),
        "features": sorted(engine.cpu_features()),
        "cores": engine.usable_cores(),
        "cores_visible": engine.visible_cores(),
        "threads": torch.get_num_threads(),
        "device": str(engine.device()),
        "precision": precision.name,
        "why": precision.why,
        "kernels": load_library().handle is not None,
        "kernels_why": load_library().why,
        "amx_kernels": amx_ready() and precision.name == "bf16",
        "compiler": find_compiler(),
        "timm": engine.version_of("timm"),
        "onnx": {package: engine.version_of(package) for package in ONNX},
        "serve": {package: engine.version_of(package) for package in SERVE},
        "cache": str(cache_dir(data_dir)),
    }


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """Return the description as a person reads it."""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    if machine["cores"] < machine["cores_visible"]:
        cores += f" of {machine['cores_visible']} (CPU quota)"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return [
        f"thumbnet   {machine['thumbnet']}, Python {machine['python']}, PyTorch {machine['torch']}",
        f"processor  {machine['cpu']}, {cores}, {', '.join(machine['features']) or 'no AVX2'}",
        f"device     {machine['device']}, {threads}",
        f"precision  {machine['precision']}: {machine['why']}",
        f"kernels    {'C' if machine['kernels'] else 'plain PyTorch'}: {machine['kernels_why']}",
        *(f"           {line}" for line in _kernel_uses(machine)),
        f"compiler   {machine['compiler'] or 'none: gcc would compile the kernels'}",
        f"timm       {machine['timm'] or _missing('timm', '--model timm/NAME')}",
        f"onnx       {_versions(machine['onnx']) or _missing('onnx', '`thumbnet export`')}",
        f"serve      {_versions(machine['serve']) or _missing('serve', '`thumbnet serve`')}",
        f"data       {machine['cache']}",
    ]


def _versions(packages: dict[str, str | None]) -> str | None:
    """Return the versions of packages in words; None unless all of them are there."""
    return ", ".join(f"{name} {version}" for name, version in packages.items()) if all(packages.values()) else None


def _missing(extra: str, wanted_for: str) -> str:
    return f"not installed; for {wanted_for}: pip install --editable '.[{extra}]' where thumbnet came from"


def _kernel_uses(machine: dict[str, Any]) -> list[str]:
    """Return which parts of the networks run on kernels of our own."""
    crops = f"distortions of the input: {'fused C kernels' if machine['kernels'] else 'NumPy'}"
    if machine["device"] != "cpu":
        return [crops, f"all networks: PyTorch's own, on {machine['device']}"]
    fused = "fused C kernels" if machine["kernels"] else "plain PyTorch"
    if machine["amx_kernels"]:
        products = "AMX kernels"
    elif not machine["kernels"]:
        products = "PyTorch's own"
    elif machine["precision"] != "bf16":
        products = f"PyTorch's own, the AMX kernels are for bf16 and not {machine['precision']}"
    else:
        products = "PyTorch's own, there is no AMX or the system does not let this process use it"
    winograd = machine["kernels"] and machine["precision"] == "fp32"
    return [
        crops,
        f"pooling, response normalization{'' if machine['amx_kernels'] else ', patches of local layers'}: {fused}",
        *(["3x3 and 5x5 convolutions, first convolutions, all of the speed network: C kernels"] if winograd else []),
        f"{'' if winograd else 'first convolutions, all of the speed network, '}local layers: {products}",
    ]
