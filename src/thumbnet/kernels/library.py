"""Compiles the C kernels once per machine, loads them, and says why when it cannot."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import platformdirs
import torch

from thumbnet.engine import LEVEL_OF_CAP, cpu_flags, cpu_name, has_level, isa_cap, usable_cores
from thumbnet.files import write_new_file

# One rounding for a product and a sum, where that is not to give the same bits as NumPy or plain loops.
CONTRACT = ("-ffp-contract=fast",)
SOURCES = {
    "pool_norm.c": (),
    "speed_net.c": (),
    "local.c": (),
    "conv_pool.c": (),
    "conv_pool_dense.c": CONTRACT,
    "winograd.c": CONTRACT,
    "norm_gelu.c": CONTRACT,
    "distort.c": (),
    "threads.c": (),
}
"""The kernels, all C files beside this one, and what each is compiled with beside `FLAGS`."""
FLAGS = (
    "-std=c11",
    "-O3",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
)
DIGEST_BYTES = 32
"""Of SHA-256, behind the compiled kernels in their file; the system's loader does not look there."""
COMPILE_TIMEOUT_S = 300
"""Some seconds on a free core; but on one that is shared with much else, a minute has not been enough."""
SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.uint8: "u8"}


@dataclass(frozen=True, kw_only=True)
class Library:
    """The compiled kernels, or the reason why there are none."""

    handle: ctypes.CDLL | None
    why: str
    version: str = ""
    """Tells kernels of these sources and flags from others."""

    def call(self, name: str, tensor: torch.Tensor, *arguments: torch.Tensor | np.ndarray | int | float | None) -> None:
        """Call the kernel `name` for the element type of `tensor`, which is its first argument.

        Tensors and arrays are passed as pointers, None as NULL, floats as C floats, integers as C longs; memory layouts
        are up to the caller.

        Raises:
            TypeError: too few or too many arguments, which C would not notice.
        """
        assert self.handle is not None
        if (given := 1 + len(arguments)) != (wanted := arguments_wanted()[name]):
            raise TypeError(f"kernel {name} takes {wanted} arguments, not {given}")
        function = getattr(self.handle, f"{name}_{SUFFIXES[tensor.dtype]}")
        function(*(_c_argument(argument) for argument in (tensor, *arguments)))


@functools.cache
def arguments_wanted() -> dict[str, int]:
    """Return how many arguments each kernel takes, by its name without the element type, as the sources say."""
    prototype = re.compile(r"^void (?:NAME\((\w+)\)|(\w+)_(?:fp32|bf16|u8))\(([^)]*)\) \{", re.MULTILINE)
    found = {}
    for content in _sources():
        for of_any_type, of_one, arguments in prototype.findall(content.decode()):
            found[of_any_type or of_one] = 1 + arguments.count(",")
    return found


def _c_argument(
    argument: torch.Tensor | np.ndarray | int | float | None,
) -> ctypes.c_void_p | ctypes.c_float | ctypes.c_long:
    # Numbers first: they are most, and asking whether something is a tensor takes longest.
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    if argument is None:
        return ctypes.c_void_p()
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return ctypes.c_void_p(argument.ctypes.data if isinstance(argument, np.ndarray) else argument.data_ptr())


@functools.cache
def load_library() -> Library:
    """Compile the kernels if this machine has not yet, and load them; `THUMBNET_KERNELS=0` does without."""
    if os.environ.get("THUMBNET_KERNELS") == "0":
        return Library(handle=None, why="turned off by THUMBNET_KERNELS=0")
    openmp = _loaded_openmp()
    if openmp is None:
        return Library(handle=None, why="PyTorch's OpenMP runtime was not found")
    path = library_path(openmp)
    try:
        return _open(path)
    except OSError:  # not compiled yet, damaged, or compiled where the C library is newer
        reason = _compile(path, openmp)
    if reason:
        return Library(handle=None, why=reason)
    try:
        return _open(path)
    except OSError as error:
        return Library(handle=None, why=f"the compiled kernels do not load: {error}")


def library_path(openmp: str) -> Path:
    """Return where the compiled kernels are kept; the name tells of sources, flags, OpenMP runtime and processor."""
    # -march=native makes the result fit this processor alone, so all that it can do is part of the name.
    facts = [cpu_name(), *sorted(cpu_flags()), _version(), openmp]
    key = hashlib.sha256("\n".join(facts).encode())
    return platformdirs.user_cache_path("thumbnet") / f"kernels-{key.hexdigest()[:16]}.so"


def _version() -> str:
    """Return a digest of the kernels' sources and of what they are compiled with."""
    key = hashlib.sha256("\n".join([*compiler_flags(), str(SOURCES)]).encode())
    for content in _sources():
        key.update(content)
    return key.hexdigest()[:16]


@functools.cache
def _sources() -> list[bytes]:
    """Return the content of the kernels' C files and headers, in the order of their names."""
    return [file.read_bytes() for file in sorted(_folder().iterdir()) if file.suffix in (".c", ".h")]


def _folder() -> Path:
    return Path(str(resources.files("thumbnet.kernels")))


def _open(path: Path) -> Library:
    """Load compiled kernels.

    Raises:
        OSError: they are not there, damaged, or do not load.
    """
    file = path.read_bytes()
    content, digest = file[:-DIGEST_BYTES], file[-DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:  # to load a part of a library can end the process
        raise OSError(f"{path} is damaged")
    return Library(handle=ctypes.CDLL(str(path)), why=f"compiled C kernels, {path}", version=_version())


def find_compiler() -> str | None:
    """Return the C compiler's path, or None where there is none.

    It has to be GCC: what clang compiles calls an OpenMP runtime of its own (`__kmpc_barrier`), PyTorch brings GCC's.
    """
    return shutil.which("gcc")


def compiler_flags() -> tuple[str, ...]:
    """Return what the kernels are compiled with; a cap on oneDNN's instruction sets holds for them, too.

    It is a ceiling: where the processor does not reach it, they are compiled for the processor.
    """
    level = LEVEL_OF_CAP.get(isa_cap())
    march = level if level is not None and has_level(level) else "native"
    # Compilers for other processors refuse this option.
    width = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
    return (f"-march={march}", *width, *FLAGS)


def _compile(path: Path, openmp: str) -> str:
    """Compile to `path`, atomically, with a digest behind it; return why not, or nothing."""
    compiler = find_compiler()
    if compiler is None:
        return "no C compiler (gcc) was found"
    command = [compiler, *compiler_flags()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.statvfs(path.parent).f_flag & os.ST_NOEXEC:  # else they would be compiled in vain at every start
            return f"{path.parent} is on a disk that is mounted noexec"
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            compiled, whole = Path(folder) / "compiled.so", Path(folder) / "kernels.so"
            built = {source: str(Path(folder) / f"{source}.o") for source in SOURCES}
            sources = [[*command, *SOURCES[name], "-c", str(_folder() / name), "-o", built[name]] for name in SOURCES]
            _run_all(sources)
            # Linking PyTorch's own OpenMP keeps one pool of threads: two would spin against each other.
            _run_all([[compiler, "-shared", *built.values(), openmp, "-lm", "-o", str(compiled)]])
            content = compiled.read_bytes()
            write_new_file(whole, [content, hashlib.sha256(content).digest()])
            whole.rename(path)
    except subprocess.CalledProcessError as error:
        first_line = (error.stderr or "").strip().splitlines()[:1]
        return f"{compiler} failed: {first_line[0] if first_line else error.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"compiling failed: {error}"
    return ""


def _run_all(commands: list[list[str]]) -> None:
    """Run the compiler, as often at once as there are cores; nothing of it stays behind when one fails.

    Raises:
        CalledProcessError: one failed; holds what it said.
        TimeoutExpired: one took too long.
    """
    waiting, running = list(commands), list[subprocess.Popen[str]]()
    try:
        while waiting or running:
            while waiting and len(running) < usable_cores():
                command = waiting.pop(0)
                running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
            oldest = running[0]
            _, said = oldest.communicate(timeout=COMPILE_TIMEOUT_S)
            if oldest.returncode:
                raise subprocess.CalledProcessError(oldest.returncode, oldest.args, stderr=said)
            running.pop(0)
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _loaded_openmp() -> str | None:
    """Return the path of the GNU OpenMP runtime that PyTorch brings; other packages may have loaded their own."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    folder = str(Path(torch.__file__).resolve().parent)  # as the system names what is loaded: without symbolic links
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
        path = line.split(maxsplit=5)[-1]
        # Beside `torch` is `torch.libs`, where some builds keep it.
        if path.startswith(folder) and Path(path).name.startswith("libgomp"):
            return path
    return None
