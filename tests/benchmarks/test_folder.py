import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "folder.py"


def test_the_benchmark_on_few_pictures(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [
        sys.executable,
        str(SCRIPT),
        "--folder",
        str(tmp_path),
        "--out",
        str(out),
        "--small",
        "60",
        "--large",
        "20",
    ]
    command += ["--small-budget-s", "60", "--large-budget-s", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(out.read_text())
    assert json.loads(done.stdout) == result
    assert (result["small"]["pictures"], result["large"]["pictures"]) == (60, 20)
    assert result["small"]["second_start_s"] > 0
    assert list(tmp_path.iterdir()) == [out]  # the pictures are gone


def test_a_start_slower_than_its_budget_fails(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--out", str(tmp_path / "result.json")]
    command += ["--small", "60", "--large", "20", "--large-budget-s", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert not json.loads(done.stdout)["large"]["within_budget"]
