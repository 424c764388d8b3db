import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thumbnet import engine
from thumbnet.cli import bench, bench_machine
from thumbnet.cli.flags import Parser
from thumbnet.errors import UsageError
from thumbnet.training import measure, measure_machine

MACHINE = {
    "thumbnet": "0.1.0",
    "python": "3.11",
    "torch": "2.13",
    "cpu": "a processor",
    "features": ["avx2"],
    "cores": 2,
    "cores_visible": 2,
    "threads": 2,
    "device": "cpu",
    "precision": "fp32",
    "why": "it is enough",
    "kernels": True,
    "kernels_why": "compiled, /somewhere",
    "amx_kernels": False,
    "compiler": "/usr/bin/cc",
    "timm": None,
    "onnx": {"onnx": "1.23"},
    "serve": {"fastapi": "0.165"},
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

    def step_apart(preset: str, _seconds: float, *, kernels: bool, threads: int | None) -> float:
        assert threads in (None, 1)
        turns.append((preset, kernels))
        return {"classic": 1000.0, "quick": 400.0, "fast": 200.0}[preset] * (1.5 if kernels else 1.0)

    monkeypatch.setattr(measure_machine, "step_apart", step_apart)
    monkeypatch.setattr(measure_machine, "input_speed", lambda _seconds: 50_000.0)
    monkeypatch.setattr(measure_machine, "matmul_tflops", lambda name, *, seconds: {"fp32": 0.5, "bf16": 2.0}[name])
    monkeypatch.setattr(measure_machine, "has_kernels", lambda recipe: recipe.model.name == "classic")
    monkeypatch.setattr(measure_machine, "describe_machine", lambda _folder: dict(MACHINE))
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
    # 1.8 epochs of 50,000 images at 400 a second, half of them pictures with 0.531 of the multiply-adds.
    assert "quick 2m52s" in lines[-1]
    assert "round 2 of 2, step of fast, plain: 200 images/s" in printed.err


def test_more_than_the_limit_is_explained(
    quick_measures: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run() == 0
    assert "Over 100 %" not in capsys.readouterr().out
    monkeypatch.setattr(measure_machine, "matmul_tflops", lambda name, *, seconds: 0.1)
    assert run() == 0
    assert "Over 100 %: Winograd's filtering makes fewer products" in capsys.readouterr().out


def test_flags_go_without_the_part_too(
    quick_measures: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    assert run("--json", "--seconds", "1", "--threads", "1", "--out", str(tmp_path / "machine.json")) == 0
    torch.set_num_threads(threads)
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "machine.json").read_text())
    assert quick_measures
    with pytest.raises(SystemExit):
        run("--help")
    assert "PART" in capsys.readouterr().out


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
        "images": 90_000,
        "images_per_second": pytest.approx(400 * 2 / (1 + 28_810_784 / 54_223_904)),
        "seconds": 0,
        "after": "quick",
    }
    assert "svhn" not in result["presets"]  # not trained on CIFAR-10


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
