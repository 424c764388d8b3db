import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from thumbnet import engine
from thumbnet.cli import bench, bench_machine
from thumbnet.cli.flags import Parser
from thumbnet.config import load_preset
from thumbnet.errors import ThumbnetError, UsageError
from thumbnet.models.grid import amx_ready
from thumbnet.training import measure

MACHINE = {
    "thumbnet": "0.1.0",
    "python": "3.11",
    "torch": "2.13",
    "cpu": "a processor",
    "features": ["avx2"],
    "cores": 2,
    "threads": 2,
    "device": "cpu",
    "precision": "fp32",
    "why": "it is enough",
    "kernels": True,
    "kernels_why": "compiled, /somewhere",
    "amx_kernels": False,
    "compiler": "/usr/bin/cc",
    "timm": None,
    "cache": "/home/somebody",
}


def run(*arguments: str) -> int:
    parser = Parser(prog="thumbnet")
    bench.add_parser(parser.add_subparsers(dest="command"))
    return bench.run(parser.parse_args(["bench", *arguments]))


@pytest.fixture
def quick_measures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Replace what takes its time; gives which steps were measured, in order."""
    turns: list[tuple[str, bool]] = []

    def step_apart(preset: str, _seconds: float, *, kernels: bool) -> float:
        turns.append((preset, kernels))
        return {"classic": 1000.0, "quick": 400.0, "fast": 200.0}[preset] * (1.5 if kernels else 1.0)

    monkeypatch.setattr(bench_machine, "step_apart", step_apart)
    monkeypatch.setattr(bench_machine, "input_speed", lambda _seconds: 50_000.0)
    monkeypatch.setattr(measure, "matmul_tflops", lambda name, *, seconds: {"fp32": 0.5, "bf16": 2.0}[name])
    monkeypatch.setattr(bench_machine, "has_kernels", lambda recipe: recipe.model.name == "classic")
    monkeypatch.setattr("thumbnet.cli.doctor.describe_machine", lambda _folder: dict(MACHINE))
    return turns


def test_bench_alone_measures_the_machine(
    quick_measures: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    printed = capsys.readouterr()
    # Forms take turns, and what has no kernels is measured once a round.
    assert quick_measures == 2 * [("classic", True), ("classic", False), ("quick", False), ("fast", False)]
    lines = printed.out.splitlines()
    (limit,) = (line for line in lines if line.startswith("limit"))
    assert "fp32 0.50 TFLOP/s" in limit
    (classic,) = (line.split("  ") for line in lines if line.startswith("classic"))
    cells = [cell.strip() for cell in classic if cell.strip()]
    # 18.5 M multiply-adds are 111 MFLOP a picture and step: 1,500 images/s are 0.167 TFLOP/s, a third of the limit.
    assert cells == ["classic", "128", "1,500", "1,500 to 1,500", "1,000", "1.50", "33 %"]
    assert any(line.startswith("quick") and "is used" in line for line in lines)
    # Two epochs of 50,000 images at 400 a second.
    assert "quick 4m10s" in lines[-1]
    assert "round 2 of 2, step of fast, plain: 200 images/s" in printed.err


def test_as_json_nothing_tells_where_things_are(
    quick_measures: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "machine.json"
    assert run("machine", "--json", "--out", str(path)) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads(path.read_text()) == result
    assert "somewhere" not in path.read_text()
    assert "somebody" not in path.read_text()
    assert result["isa"] is None
    assert result["steps"]["classic"]["images_per_second"] == {
        "median": 1500.0,
        "lowest": 1500.0,
        "highest": 1500.0,
        "n": 2,
    }
    assert result["presets"]["quick"] | {"seconds": 0} == {
        "images": 100_000,
        "images_per_second": pytest.approx(400.0),
        "seconds": 0,
        "after": "quick",
    }
    assert "svhn" not in result["presets"]  # not trained on CIFAR-10


def test_a_preset_that_was_not_measured_counts_by_its_arithmetic() -> None:
    flops = measure.training_flops(load_preset("quick"))
    found = bench_machine.estimates({"quick": {"tflops": 1000 * flops / 1e12}})
    assert "classic" not in found  # another network
    assert found["quick"]["images_per_second"] == pytest.approx(1000)
    fast = measure.training_flops(load_preset("fast"))
    assert found["fast"]["images_per_second"] == pytest.approx(1000 * flops / fast)
    assert found["fast"]["after"] == "quick"


def test_batches_do_not_tell_how_long_single_pictures_take() -> None:
    found = bench_machine.estimates({"classic": {"tflops": 1.0}})
    assert "classic" in found
    assert "book" not in found  # the same network, one picture at a time


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path: Path, quick_measures: list[tuple[str, bool]]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write this file"):
        run("machine", "--out", str(tmp_path / "file" / "result.json"))
    assert not quick_measures


def test_columns_line_up() -> None:
    lines = bench_machine.aligned([("preset", "n"), ("a", "1,000"), ("longer name", "2")])
    assert lines == ["preset           n", "a            1,000", "longer name      2"]


def test_the_instruction_set_reaches_the_steps(
    quick_measures: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in bench_machine.INSTRUCTION_SETS["avx2"]:
        monkeypatch.setenv(name, "")  # put back at the end, whatever happens inside
    monkeypatch.setattr(engine, "cpu_flags", lambda: engine.LEVELS["x86-64-v3"])
    assert run("machine", "--isa", "avx2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["isa"] == "avx2"
    assert (os.environ["ONEDNN_MAX_CPU_ISA"], os.environ["ATEN_CPU_CAPABILITY"]) == ("AVX2", "avx2")


def test_instructions_that_the_processor_lacks_are_refused(
    quick_measures: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "cpu_flags", lambda: engine.LEVELS["x86-64-v3"])
    with pytest.raises(UsageError, match=r"--isa avx512: this processor, .*, has no such instructions"):
        run("machine", "--isa", "avx512")
    assert not quick_measures


def test_processes_are_held_back_before_pytorch_is_loaded() -> None:
    program = """
import os, sys
from thumbnet import engine
from thumbnet.cli.bench_machine import hold_back
engine.cpu_flags = lambda: engine.LEVELS["x86-64-v3"]
hold_back("avx2")
print(os.environ["ATEN_CPU_CAPABILITY"], "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "avx2 False\n"


def test_a_step_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(measure, "LEAST_CALLS", 1)
    assert run("step", "--seconds", "0.01", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["preset"] == "classic"
    assert result["images_per_second"] > 0
    assert all(seconds > 0 for seconds in result["step_seconds"])
    assert run("step", "--seconds", "0.01") == 0
    assert "batch 128" in capsys.readouterr().out


def test_the_matrix_product_and_the_input_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MATRIX_SIDE", 64)
    monkeypatch.setattr(bench_machine, "CIFAR10_IMAGES", 1000)
    assert measure.matmul_tflops("fp32", seconds=0.01) > 0
    assert bench_machine.input_speed(0.05) > 0


def test_operations_of_a_picture_by_hand() -> None:
    # The table of the tutorial's layers: 24x24 and 12x12 pixels, 5x5 kernels, then the dense layers.
    macs = 576 * 75 * 64 + 144 * 1600 * 64 + 2304 * 384 + 384 * 192 + 192 * 10
    assert measure.training_flops(load_preset("classic")) == 6 * macs


CAPPED = """
import torch
from thumbnet import engine
from thumbnet.cli.bench_machine import has_kernels
from thumbnet.cli.doctor import describe_machine
from thumbnet.config import load_preset
from thumbnet.kernels import library
from thumbnet.models.grid import amx_ready, kernels_take
assert engine.resolve_precision().name == "fp32", engine.resolve_precision()
assert "-march=x86-64-v3" in library.compiler_flags(), library.compiler_flags()
assert not amx_ready()
with torch.autocast("cpu", torch.bfloat16):  # asked for all the same
    assert not kernels_take(torch.zeros(1, 3, 32, 32))
assert not has_kernels(load_preset("quick"))
assert torch.backends.cpu.get_cpu_capability() == "AVX2", torch.backends.cpu.get_cpu_capability()
print(describe_machine(None)["amx_kernels"], library.load_library().handle is not None)
"""


@pytest.mark.skipif(not engine.has_level("x86-64-v3"), reason="the processor has no AVX2 to be held to")
def test_under_a_cap_to_avx2_nothing_newer_is_used(tmp_path: Path) -> None:
    environment = os.environ | bench_machine.INSTRUCTION_SETS["avx2"] | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CAPPED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False")


def test_a_step_that_cannot_be_measured_is_told() -> None:
    with pytest.raises(ThumbnetError, match="measuring the step of nothing ended with 2"):
        bench_machine.step_apart("nothing", 0.1, kernels=True)


BELOW_AMX = """
from thumbnet.models.grid import amx_ready
from thumbnet.kernels import load_library
print(load_library().handle is not None, amx_ready())
"""


@pytest.mark.skipif(not amx_ready(), reason="there is no AMX to be held from")
def test_under_a_cap_below_amx_it_is_not_used(tmp_path: Path) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", BELOW_AMX], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True False\n"
