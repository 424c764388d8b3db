"""What the machine decides: threads, arithmetic, allocator. `thumbnet doctor` prints what was chosen and why.

PyTorch is imported only by what needs it: cores and instruction sets are asked for without it, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from thumbnet.config import PrecisionName, insist_within
from thumbnet.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

# Caps on oneDNN (ONEDNN_MAX_CPU_ISA) that leave out AMX, and the architecture level that a compiler knows them by.
LEVEL_OF_CAP = {
    "SSE41": "x86-64-v2",
    "AVX": "x86-64-v2",
    "AVX2": "x86-64-v3",
    "AVX2_VNNI": "x86-64-v3",
    "AVX2_VNNI_2": "x86-64-v3",
    "AVX512_CORE": "x86-64-v4",
    "AVX512_CORE_VNNI": "x86-64-v4",
    "AVX512_CORE_BF16": "x86-64-v4",
    "AVX512_CORE_FP16": "x86-64-v4",
    "AVX10_1_512": "x86-64-v4",
}
CAPS_WITH_BF16 = frozenset({"AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"})

# What the levels ask of a processor, in the kernel's names (System V ABI for AMD64, "micro-architecture levels").
_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
LEVELS = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The arithmetic of the network, and the reason for it."""

    name: PrecisionName
    """fp32, bf16 or fp16."""
    why: str

    @property
    def loss_scale(self) -> float:
        """Factor on the loss before backward: fp16 would lose small gradients (its smallest normal number is 6e-5)."""
        return 1024.0 if self.name == "fp16" else 1.0

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run convolutions and matrix products in this arithmetic; weights stay float32."""
        import torch

        with torch.autocast(device().type, dtype=dtype_of(self.name), enabled=self.name != "fp32"):
            yield


def dtype_of(precision: str) -> torch.dtype:
    """Return the type of numbers of fp32, bf16 or fp16."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def place(model: nn.Module) -> nn.Module:
    """Return a network, moved to that device and into the memory layout that its convolutions are fastest in."""
    import torch

    return model.to(device=device(), memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def resolve_precision(requested: PrecisionName = "auto") -> Precision:
    """Choose the arithmetic: as requested, or by what the hardware does fast.

    Raises:
        UsageError: fp16 on a CPU, which has no fast training arithmetic for it.
    """
    if requested == "fp16" and device().type == "cpu":
        raise UsageError("--precision fp16 needs a GPU; on a processor use bf16, fp32 or auto")
    if requested != "auto":
        return Precision(name=requested, why="asked for")
    if device().type == "cuda":
        import torch

        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision(name="bf16" if fast else "fp32", why="the GPU " + ("has" if fast else "lacks") + " bf16")
    if device().type != "cpu":
        return Precision(name="fp32", why=f"bf16 has not been measured on {device().type}")
    cap = isa_cap()
    if cap in LEVEL_OF_CAP and cap not in CAPS_WITH_BF16:
        return Precision(name="fp32", why=f"ONEDNN_MAX_CPU_ISA={cap} has no bf16")
    features = cpu_features()
    if "amx_bf16" in features and cap not in LEVEL_OF_CAP:
        return Precision(name="bf16", why="the processor has AMX bf16 matrix units")
    if "avx512_bf16" in features:
        return Precision(name="bf16", why="the processor has AVX-512 bf16 instructions")
    return Precision(name="fp32", why="the processor has no bf16 instructions, and emulated bf16 is slower than fp32")


def isa_cap() -> str:
    """Return the instruction set that the user holds oneDNN to, such as AVX2; empty for no such cap."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()


def has_level(level: str) -> bool:
    """Tell whether the processor has all that an architecture level, such as x86-64-v3, asks for."""
    return LEVELS[level] <= cpu_flags()


def cpu_flags() -> frozenset[str]:
    """Return all the processor's instruction sets, in the kernel's names; empty where it does not tell."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())  # the latter on Arm


def cpu_features() -> frozenset[str]:
    """Return the instruction sets among them that decide the arithmetic."""
    return cpu_flags() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}


def cpu_name() -> str:
    """Return the processor's name as the system gives it; of Arm's, maker and part by their numbers."""
    numbers = [f"{field} {_cpuinfo(field)}" for field in ("CPU implementer", "CPU part") if _cpuinfo(field)]
    return _cpuinfo("model name") or ", ".join([platform.processor() or platform.machine(), *numbers])


def _cpuinfo(field: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def usable_cores(sharers: int = 1) -> int:
    """Return the number of cores this process may keep busy: those it may run on, within the quota of its container.

    Args:
        sharers: processes, this one among them, that share the quota.
    """
    cores, quota = visible_cores(), cpu_quota()
    return cores if quota is None else min(cores, max(math.ceil(quota / sharers), 1))


def visible_cores() -> int:
    """Return the number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return how many cores' time the control groups of this process allow it, as `docker --cpus` sets; None for any.

    Threads beyond that are stopped until the next period, in the middle of a step.

    Args:
        root: the file system.
    """
    quotas = []
    for line in _lines_of(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # cgroup v2 has one tree of all controllers, v1 one for each. Every group above limits, too; a container may see
        # its own as the uppermost.
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            folder = top / str(group).lstrip("/")
            if controllers:
                texts = _lines_of(folder / "cpu.cfs_quota_us") + _lines_of(folder / "cpu.cfs_period_us")
            else:
                texts = " ".join(_lines_of(folder / "cpu.max")).split()
            if len(texts) == 2 and all(text.isdecimal() for text in texts):  # not `max`, nor -1
                quotas.append(int(texts[0]) / int(texts[1]))
    return min(quotas, default=None)


def _lines_of(path: Path) -> list[str]:
    """Return the lines of a file of the system; none where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def prepare(threads: int | None = None, *, sharers: int = 1) -> None:
    """Set up this process for training or evaluation: threads and allocator.

    Args:
        threads: processor threads; None for every core it may use.
        sharers: processes, this one among them, that train on one machine.

    Raises:
        UsageError: fewer than one thread is asked for.
    """
    if threads is not None:
        insist_within("threads", threads, 1)
    import torch

    torch.set_num_threads(threads or usable_cores(sharers))
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Tell glibc not to hand large freed blocks back to the kernel.

    A training step frees and allocates the same tensors every time, and the page faults of fresh memory cost some 7 %
    of the step. The constants are glibc's mallopt parameters M_TRIM_THRESHOLD and M_MMAP_MAX.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, 2**30)
    libc.mallopt(mmap_max, 0)


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def process_memory_mib() -> float:
    """Return the resident memory of this process in MiB; 0 where the system does not tell."""
    path = Path("/proc/self/status")
    if not path.exists():
        return 0.0
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def process_age_s() -> float:
    """Return the seconds since this process began, start of the interpreter included; 0 where it is not told."""
    path = Path("/proc/self/stat")
    if not path.exists():
        return 0.0
    # Field 22 is the start in clock ticks since boot; it is the 20th after the command's name, which may hold spaces.
    ticks = int(path.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
