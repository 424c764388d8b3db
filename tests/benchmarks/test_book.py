import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from thumbnet.cli.main import main
from thumbnet.config import load_preset
from thumbnet.runs.run import Run

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "book.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("book_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "shapes", "--batch-size", "20", "--steps", "3", "--threads", "1", "--summary-every", "0"]
    command = ["train", "--preset", "book", *arguments, "--out", str(tmp_path), "--name", "run", "--no-test"]
    assert main(command) == 0
    assert main(["eval", "run", "--out", str(tmp_path), "--json", "--no-plots", "--threads", "1"]) == 0
    evaluation = json.loads(capsys.readouterr().out.splitlines()[-1])
    run = Run.open(tmp_path / "run")
    load_script().write_results(run, evaluation, tmp_path / "results")
    files = {path.name: path for path in (tmp_path / "results").iterdir()}
    assert set(files) == {"log.txt", "recipe.toml", "result.json", "first_picture.txt", "first_picture.png"}
    assert files["log.txt"].read_text() == (run.path / "log.txt").read_text()
    assert files["first_picture.png"].read_bytes().startswith(b"\x89PNG")
    table = files["first_picture.txt"].read_text().splitlines()
    assert table[1].split() == ["before"]
    assert len(table) == 12
    figures = json.loads(files["result.json"].read_text())
    assert figures["result"]["steps"] == 3
    assert figures["evaluation"]["accuracy"] == evaluation["raw"]["accuracy"]
    assert [row["epoch"] for row in figures["first_picture"]] == [0]
    assert set(figures["machine"]) == {"cpu", "cores", "threads", "torch"}


@pytest.mark.parametrize("preset", ["classic", "book"])
def test_a_run_that_is_another_or_not_finished_is_refused(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Run.create(tmp_path, load_preset(preset), preset)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path / preset)])
    with pytest.raises(SystemExit) as stop:
        load_script().main()
    assert stop.value.code == 2
    assert "is no finished run of the preset book" in capsys.readouterr().err
