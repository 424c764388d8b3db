import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thumbnet.monitor.neighbours import Neighbours

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
pytestmark = pytest.mark.skipif(not CORES, reason="the system has no affinity of processes")


def counted(path: Path, *, user: int = 0, idle: int = 0, steal: int = 0, cores: set[int] = CORES) -> Path:
    """Write what the kernel would count of each core, in hundredths of a second."""
    rows = [f"cpu{core} {user} 0 0 {idle} 0 0 0 {steal} 0 0" for core in sorted(cores)]
    path.write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *rows, "intr 1 2 3", "ctxt 4", ""]))
    return path


def test_the_work_of_others_is_told_in_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    own = iter([os.times_result((1.0, 0.0, 2.0, 0.0, 0.0)), os.times_result((3.0, 1.0, 2.0, 1.0, 0.0))])
    monkeypatch.setattr(os, "times", lambda: next(own))
    tick = os.sysconf("SC_CLK_TCK")
    neighbours = Neighbours(counted(tmp_path / "stat", user=7 * tick, idle=5 * tick))
    counted(tmp_path / "stat", user=11 * tick, idle=900 * tick, steal=2 * tick)
    # 6 s of every core in 10 s, of which this process and its children took 4.
    assert neighbours.busy_cores() == pytest.approx((6 * len(CORES) - 4) / 10)
    assert neighbours.cores == len(CORES)


def test_a_moment_tells_nothing(tmp_path: Path) -> None:
    assert Neighbours(counted(tmp_path / "stat")).busy_cores() is None


def test_cores_of_others_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stat = counted(tmp_path / "stat")
    neighbours = Neighbours(stat)
    with stat.open("a") as file:
        file.write(f"cpu{max(CORES) + 1} 99999 0 0 0 0 0 0 0 0 0\n")
    assert neighbours.busy_cores() == 0


@pytest.mark.parametrize("text", [None, "", "cpu 1 2 3 4 5 6 7 8 9 10\n"], ids=["none", "empty", "no cores"])
def test_a_system_that_does_not_tell_is_no_error(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "stat").write_text(text)
    assert Neighbours(tmp_path / "stat").busy_cores() is None


def test_a_busy_program_is_seen() -> None:
    spin = [sys.executable, "-c", "while True: pass"]
    neighbours = Neighbours()
    with subprocess.Popen(spin) as program:
        try:
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                pass
            seen = neighbours.busy_cores()
        finally:
            program.kill()
    if not seen:
        pytest.skip("this system does not tell how busy its cores are")
    assert seen > 0.2, "it had a core, or a share of one"
