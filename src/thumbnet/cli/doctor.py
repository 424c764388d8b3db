"""`thumbnet doctor`: what this machine has, and what was chosen for it, and why."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from thumbnet.cli.flags import add_data_dir_flag, add_engine_flags


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine has, and what is chosen for it",
        description="Show the processor, the arithmetic and kernels chosen for it and why, and where data is kept.",
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_data_dir_flag(parser)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print the machine's description; returns the exit code."""
    from thumbnet import engine

    engine.prepare(args.threads)
    machine = describe_machine(args.data_dir)
    print(json.dumps(machine) if args.json else "\n".join(machine_lines(machine)))
    return 0


def describe_machine(data_dir: Path | None) -> dict[str, Any]:
    """Return what this machine has and what was chosen for it."""
    import torch

    from thumbnet import __version__, engine
    from thumbnet.data import cache_dir
    from thumbnet.kernels import find_compiler, load_library
    from thumbnet.models import timm
    from thumbnet.models.grid import amx_ready

    precision = engine.resolve_precision()
    return {
        "thumbnet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": engine.cpu_name(),
        "features": sorted(engine.cpu_features()),
        "cores": engine.usable_cores(),
        "threads": torch.get_num_threads(),
        "device": str(engine.device()),
        "precision": precision.name,
        "why": precision.why,
        "kernels": load_library().handle is not None,
        "kernels_why": load_library().why,
        "amx_kernels": amx_ready() and precision.name == "bf16",
        "compiler": find_compiler(),
        "timm": timm.version(),
        "cache": str(cache_dir(data_dir)),
    }


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """Return the description as a person reads it."""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return [
        f"thumbnet   {machine['thumbnet']}, Python {machine['python']}, PyTorch {machine['torch']}",
        f"processor  {machine['cpu']}, {cores}, {', '.join(machine['features']) or 'no AVX2'}",
        f"device     {machine['device']}, {threads}",
        f"precision  {machine['precision']}: {machine['why']}",
        f"kernels    {'C' if machine['kernels'] else 'plain PyTorch'}: {machine['kernels_why']}",
        *(f"           {line}" for line in _kernel_uses(machine)),
        f"compiler   {machine['compiler'] or 'none: gcc would compile the kernels'}",
        f"timm       {machine['timm'] or 'not installed; for --model timm/NAME: pip install thumbnet[timm]'}",
        f"data       {machine['cache']}",
    ]


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
    return [
        crops,
        f"pooling, response normalization{'' if machine['amx_kernels'] else ', patches of local layers'}: {fused}",
        f"first convolutions, all of the speed network, local layers: {products}",
    ]
