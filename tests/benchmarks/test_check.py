import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from thumbnet.training import measure_machine

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "check.py"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", ["check.py"])
    monkeypatch.setattr(measure_machine, "has_kernels", lambda recipe: recipe.model.name == "classic")
    return module


def measured_as(monkeypatch: pytest.MonkeyPatch, speeds: list[float]) -> list[bool]:
    """Let the kernels have these speeds, one after the other, and plain PyTorch always 100; gives who was measured."""
    remaining, turns = iter(speeds), []

    def step_apart(_preset: str, _seconds: float, *, kernels: bool) -> float:
        turns.append(kernels)
        return next(remaining) if kernels else 100.0

    monkeypatch.setattr(measure_machine, "step_apart", step_apart)
    return turns


def test_one_slow_turn_is_no_regression(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = measured_as(monkeypatch, [190, 30, 180])
    assert check.main() == 0
    assert turns == [False, True, True, False, False, True]
    out = capsys.readouterr().out
    assert "1.80 times as fast as plain PyTorch (rounds: 1.90, 0.30, 1.80): fine" in out
    assert "quick: there are no kernels for it here" in out


def test_a_busy_machine_gets_a_second_longer_measurement(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = measured_as(monkeypatch, [90, 190, 80, *[170] * 7])
    assert check.main() == 0
    assert len(turns) == 6 + 14


def test_a_regression_fails(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_as(monkeypatch, [150] * 10)
    assert check.main() == 1
    assert "1.50 times as fast as plain PyTorch" in capsys.readouterr().out
