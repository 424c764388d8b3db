import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "large_file.py"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_an_epoch_from_a_file_larger_than_the_pool(tmp_path: Path) -> None:
    """The real benchmark on a small file, which would be mapped whole if pages were not given back."""
    out = tmp_path / "result.json"
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--out", str(out)]
    command += ["--gigabytes", "0.2", "--pool-mib", "16", "--budget-mb", "450"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(out.read_text())
    assert result["within_budget"]
    assert result["examples"] == 200_000_000 // 3073
    assert list(tmp_path.iterdir()) == [out]  # the large file is gone
    # Beside the 16 MiB pool: draws of the examples, a few batches, and at most some blocks of mapped pages.
    assert result["peak_rss_mb"] - result["rss_before_mb"] < 120


def test_too_little_room_is_told(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--gigabytes", "1e9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "GB free, 1e+09 needed; choose another with --folder" in done.stderr
    assert "Traceback" not in done.stderr
