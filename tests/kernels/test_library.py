import ctypes
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from thumbnet import engine
from thumbnet.engine import cpu_flags
from thumbnet.kernels import library

PROGRAM = """
import torch
from thumbnet.kernels import load_library
from thumbnet.models.layers import SameMaxPool
print(load_library().handle is not None, '|', load_library().why)
print(SameMaxPool(3, 2)(torch.arange(16.).reshape(1, 1, 4, 4)).flatten().tolist())
"""


def run(tmp_path: Path, **environment: str) -> list[str]:
    """Load the library in a fresh process with an empty cache."""
    variables = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(library.load_library().handle is None, reason=library.load_library().why)
def test_compiles_once_into_the_cache(tmp_path: Path) -> None:
    assert run(tmp_path)[0].startswith("True | compiled C kernels")
    (built,) = (tmp_path / "thumbnet").glob("kernels-*.so")
    written = built.stat().st_mtime_ns
    assert run(tmp_path, PATH="/nowhere")[0].startswith("True"), "the second start needs no compiler"
    assert built.stat().st_mtime_ns == written


def test_everything_works_without(tmp_path: Path) -> None:
    first, pooled = run(tmp_path, THUMBNET_KERNELS="0")
    assert first.startswith("False")
    assert "turned off by THUMBNET_KERNELS=0" in first
    assert pooled == "[10.0, 11.0, 14.0, 15.0]"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., library.Library]:
    """Load the library anew in this process, with an empty cache and variables of the environment."""

    def load_with(**environment: str) -> library.Library:
        for name, value in ({"XDG_CACHE_HOME": str(tmp_path)} | environment).items():
            monkeypatch.setenv(name, value)
        found: library.Library = library.load_library.__wrapped__()
        return found

    return load_with


def test_every_c_file_is_compiled() -> None:
    assert set(library.SOURCES) == {path.name for path in Path(library.__file__).parent.glob("*.c")}


def test_arguments_are_counted_as_the_sources_declare_them() -> None:
    wanted = library.arguments_wanted()
    folder = Path(library.__file__).parents[1]
    called = {name for file in folder.rglob("*.py") for name in re.findall(r'\.call\(\s*"(\w+)"', file.read_text())}
    assert called == wanted.keys()
    assert (wanted["winograd_pack"], wanted["lrn_forward"], wanted["crop"]) == (7, 8, 12)
    other = library.Library(handle=ctypes.CDLL(None), why="test")
    with pytest.raises(TypeError, match="kernel winograd_pack takes 7 arguments, not 3"):
        other.call("winograd_pack", torch.zeros(1), torch.zeros(1), 8)


def test_a_machine_without_a_compiler_is_told_so(load: Callable[..., library.Library]) -> None:
    found = load(PATH="/nowhere")
    assert found.handle is None
    assert "no C compiler" in found.why


def test_a_compiler_that_fails_is_reported_not_raised(load: Callable[..., library.Library], tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "gcc"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'gcc: out of order' >&2\nexit 1\n")
    fake.chmod(0o755)
    found = load(PATH=f"{fake.parent}:/usr/bin:/bin")
    assert found.handle is None
    assert "out of order" in found.why


def test_a_cache_that_cannot_be_written_is_reported_not_raised(
    load: Callable[..., library.Library], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    found = load(XDG_CACHE_HOME=str(blocked))
    assert found.handle is None
    assert "compiling failed" in found.why


def test_kernels_use_the_openmp_runtime_of_pytorch() -> None:
    """Two runtimes would spin against each other. Another package's, loaded before, must not be taken for it."""
    if library.load_library().handle is None:
        pytest.skip(library.load_library().why)
    program = """
import sklearn.cluster
from pathlib import Path
from thumbnet.engine import cpu_flags
from thumbnet.kernels import library
print(library.load_library().handle is not None)
print(library._loaded_openmp())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded, path = done.stdout.splitlines()
    assert loaded == "True"
    assert Path(path).is_relative_to(Path(torch.__file__).parents[1])
    assert Path(path).relative_to(Path(torch.__file__).parents[1]).parts[0].startswith("torch")


AGREE = """
import torch
from thumbnet.engine import cpu_flags
from thumbnet.kernels import library
from thumbnet.models import fused, layers
assert library.load_library().handle is not None, library.load_library().why
forms = (
    lambda: layers.SameMaxPool(3, 2, relu=True),
    lambda: layers.LocalResponseNorm(radius=4, bias=1.0, alpha=0.1, relu=True),
)
for build in forms:
    for channels in (64, 37):
        results = []
        for take in (True, False):
            fused.kernels_take = lambda _: take
            x = torch.randn(2, channels, 9, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
            y = build()(x)
            y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
            results.append((y.detach(), x.grad))
        for own, plain in zip(*results):
            torch.testing.assert_close(own, plain, rtol=2e-5, atol=2e-6)

import numpy as np
from thumbnet.config import DistortConfig
from thumbnet.input import distort
images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
config = DistortConfig(crop=30, pad=4, brightness=63.0, contrast=(0.2, 1.8))
draws = distort.draw(len(images), config, images.shape[1:], seed=0, epoch=0)
own = distort.distort(images, draws, config)
distort.load_library = lambda: library.Library(handle=None, why="left out")
assert torch.equal(own, distort.distort(images, draws, config)), "the input is another"
"""


AVX2 = engine.LEVELS["x86-64-v3"]
AMX = engine.LEVELS["x86-64-v4"] | {"avx512_bf16", "amx_bf16"}


@pytest.mark.parametrize(
    ("isa", "flags", "march"),
    [
        ("", AMX, "native"),
        ("AVX2", AMX, "x86-64-v3"),
        ("AVX512_CORE", AMX, "x86-64-v4"),
        ("avx512_core_bf16", AMX, "x86-64-v4"),  # which has no AMX
        ("AVX512_CORE_FP16", AMX, "x86-64-v4"),
        ("AVX512_CORE_AMX", AMX, "native"),
        # A cap is a ceiling: the processor may have less.
        ("AVX512_CORE", AVX2, "native"),
        ("AVX2", AVX2 - {"fma"}, "native"),
        ("AVX2", frozenset(), "native"),  # where it is not told
    ],
)
def test_a_cap_is_a_ceiling(isa: str, flags: frozenset[str], march: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    monkeypatch.setattr(engine, "cpu_flags", lambda: flags)
    assert library.compiler_flags()[0] == f"-march={march}"


@pytest.mark.parametrize(("machine", "width"), [("x86_64", True), ("AMD64", True), ("aarch64", False)])
def test_other_processors_get_no_option_of_x86(machine: str, width: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert ("-mprefer-vector-width=512" in library.compiler_flags()) == width


def test_only_gcc_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, found in (("clang", None), ("cc", None), ("gcc", str(tmp_path / "gcc"))):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert library.find_compiler() == found


@pytest.mark.parametrize(("isa", "flag", "march"), [("AVX2", "avx2", "v3"), ("AVX512_CORE", "avx512f", "v4")])
def test_kernels_for_older_instructions_agree_with_plain_torch(
    isa: str, flag: str, march: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library.load_library().handle is None or flag not in cpu_flags():
        pytest.skip(f"no kernels, or no {flag}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert f"-march=x86-64-{march}" in library.compiler_flags()
    done = subprocess.run([sys.executable, "-c", AGREE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pytorch_is_found_through_a_symbolic_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "linked").symlink_to(Path(torch.__file__).parents[1])
    found = library._loaded_openmp()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "linked" / "torch" / "__init__.py"))
    assert library._loaded_openmp() == found


@pytest.mark.parametrize("left", [0, 5000, -1], ids=["nothing", "a part", "nearly all"])
def test_a_damaged_library_is_compiled_again(left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openmp = library._loaded_openmp()
    if library.load_library().handle is None or openmp is None:
        pytest.skip(library.load_library().why)
    whole = library.library_path(openmp)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = library.library_path(openmp)
    path.parent.mkdir()
    path.write_bytes(whole.read_bytes()[:left])
    monkeypatch.setattr(library, "_compile", lambda path, openmp: "")
    assert library.load_library.__wrapped__().why.endswith(f"{path} is damaged")

    def compile_again(path: Path, openmp: str) -> str:
        shutil.copyfile(whole, path)
        return ""

    monkeypatch.setattr(library, "_compile", compile_again)
    assert library.load_library.__wrapped__().handle is not None


def test_a_cache_that_cannot_be_entered_is_reported_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if library._loaded_openmp() is None or library.find_compiler() is None:
        pytest.skip("no OpenMP runtime, or no compiler")
    closed = tmp_path / "closed" / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(closed))
    for name in ("stat", "mkdir"):
        refuse_below(closed, name, monkeypatch)
    assert "Permission denied" in library.load_library.__wrapped__().why


def refuse_below(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a function of `os` find that a folder is closed, which it never is for root."""
    function = getattr(os, name)

    def refuse(path: object, *arguments: object, **options: object) -> object:
        if str(path).startswith(str(folder)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return function(path, *arguments, **options)

    monkeypatch.setattr(os, name, refuse)


def test_nothing_is_compiled_for_a_disk_that_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "find_compiler", lambda: "/nowhere/gcc")
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    assert library._compile(tmp_path / "kernels.so", "libgomp.so").endswith("mounted noexec")
    assert not (tmp_path / "kernels.so").exists()


def test_kernels_for_one_processor_of_arm_are_not_those_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.processor", lambda: "aarch64")
    graviton = {"Features": "fp asimd", "CPU implementer": "0x41", "CPU part": "0xd0c"}
    paths = set()
    for cpuinfo in (graviton, graviton | {"CPU part": "0xd40"}, graviton | {"Features": "fp asimd sve"}):
        monkeypatch.setattr(engine, "_cpuinfo", lambda field, cpuinfo=cpuinfo: cpuinfo.get(field, ""))
        paths.add(library.library_path("libgomp.so"))
    assert len(paths) == 3
    assert engine.cpu_name() == "aarch64, CPU implementer 0x41, CPU part 0xd0c"
