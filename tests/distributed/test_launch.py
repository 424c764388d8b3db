"""Torch's launcher around the replicas: deaths, restarts, signals, exit codes."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from thumbnet import engine
from thumbnet.data.folder import list_pictures
from thumbnet.data.picture_cache import RECORDS, decode_listing
from thumbnet.distributed.launch import available
from thumbnet.runs.checkpoint import load_checkpoint
from thumbnet.runs.run import Run

LAUNCHER = Path(__file__).with_name("launcher.py")
WORDS = ["train", "--data", "shapes", "--preset", "classic", "--precision", "fp32", "--threads", "1", "--lr", "0.01"]
WORDS += ["--batch-size", "6", "--log-every", "1", "--summary-every", "0", "--checkpoint-every", "2", "--no-test"]


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started, oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def test_a_replica_that_is_killed_costs_a_checkpoint_interval_and_a_signal_to_the_launcher_stops_all(
    start: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    launcher = start(
        1, [*WORDS, "--steps", "100000", "--out", str(tmp_path), "--name", "run"], script=LAUNCHER, plain=True
    )
    launcher.wait_for_step(run, 5)
    replicas = children_of(launcher.pids[0])
    assert len(replicas) == 2
    os.kill(replicas[1], signal.SIGKILL)
    launcher.wait_for("goes on with its run")
    launcher.wait_for_step(run, 12)
    os.kill(launcher.pids[0], signal.SIGTERM)
    assert launcher.end() == [143], launcher.errors()
    error = launcher.errors()[0]
    # The launcher may end the other replica before it has noticed.
    assert error.count("thumbnet: error") == error.count("another of the 2 replicas is gone") <= 1
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    steps = [row["step"] for row in Run.open(run).read_metrics()]
    assert steps == list(range(1, steps[-1] + 1))
    checkpoint = Run.open(run).checkpoints.latest()
    assert checkpoint.step == steps[-1]

    alone = start(1, [*WORDS, "--steps", str(steps[-1]), "--out", str(tmp_path), "--name", "alone"])
    assert alone.end() == [0], alone.errors()
    expected = load_checkpoint(max((tmp_path / "alone" / "checkpoints").glob("step-*")))
    for name, value in checkpoint.model.items():
        torch.testing.assert_close(value, expected.model[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_signal_to_the_launcher_and_its_replicas_at_once_saves_the_last_step(start: Any, tmp_path: Path) -> None:
    """As systemd stops a service: the launcher passes on what its replicas have been sent already."""
    # All stop one step after the next, which takes longer than the pause below.
    words = [*WORDS, "--steps", "100000", "--batch-size", "1000", "--checkpoint-every", "100000"]
    launcher = start(1, [*words, "--out", str(tmp_path), "--name", "run"], script=LAUNCHER, plain=True)
    launcher.wait_for_step(tmp_path / "run", 3)
    for pid in children_of(launcher.pids[0]):
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.1)  # the system delivers two signals as one to a process that is busy
    os.kill(launcher.pids[0], signal.SIGTERM)
    assert launcher.end() == [143], launcher.errors()
    run = Run.open(tmp_path / "run")
    assert run.checkpoints.latest().step == run.read_metrics()[-1]["step"] > 0


def holder_of(lock: Path) -> int | None:
    """Return the process that holds a lock, as the kernel tells it."""
    if lock.exists():
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(f":{lock.stat().st_ino}"):
                return int(fields[4])
    return None


@pytest.mark.slow
def test_of_replicas_with_an_empty_cache_the_one_that_fills_it_is_killed(start: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(600):
        path = tmp_path / "pets" / f"kind{number % 10}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    words = [*WORDS, "--data", str(tmp_path / "pets"), "--data-dir", str(tmp_path / "cache"), "--steps", "3"]
    launcher = start(1, [*words, "--out", str(tmp_path / "out")], script=LAUNCHER, plain=True)
    cache = tmp_path / "cache" / "decoded"
    filling: list[int] = []

    def decodes() -> bool:
        if list(cache.glob(".tmp-*/new")) and (holder := holder_of(next(cache.glob(".lock-*")))):
            filling.append(holder)
        return bool(filling)

    launcher.wait_until(decodes)
    assert filling[0] in children_of(launcher.pids[0])
    os.kill(filling[0], signal.SIGKILL)
    assert launcher.end() == [0], launcher.errors()
    (filled,) = (path for path in cache.iterdir() if not path.name.startswith(".lock"))
    undisturbed = decode_listing(list_pictures(tmp_path / "pets"), 32, tmp_path / "other", lambda _: None)
    assert (filled / RECORDS).read_bytes() == undisturbed.part.records.tobytes()
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_an_error_that_no_restart_would_mend_ends_all_at_once(start: Any, tmp_path: Path) -> None:
    launcher = start(1, ["train", "--preset", "clasic", "--out", str(tmp_path)], script=LAUNCHER, plain=True)
    assert launcher.end() == [2], launcher.errors()
    assert launcher.errors()[0].startswith("thumbnet: error: unknown preset 'clasic'")
    assert launcher.errors()[0].count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("asked", "cores", "expected"), [(2, 4, 2), (4, 4, 4), (8, 3, 3), (2, 1, 1)])
def test_no_more_replicas_than_cores(asked: int, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "usable_cores", lambda: cores)
    monkeypatch.setattr(engine, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    notes: list[str] = []
    assert available(asked, notes.append) == expected
    if asked > cores:
        assert notes == [
            f"--devices {asked}: this machine has {cores} core{'s' * (cores > 1)} to use, one for each replica"
        ]
    else:
        assert not notes


def test_one_replica_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    notes: list[str] = []
    assert available(3, notes.append) == 2
    assert notes == ["--devices 3: this machine has 2 GPUs to use, one for each replica"]
