import errno
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thumbnet import engine
from thumbnet.data import decode_pool
from thumbnet.data.decode_pool import CHUNK_PICTURES, decode_all
from thumbnet.data.decode_worker import DIGEST_BYTES, Decoder, Job, record_layout
from thumbnet.errors import DataError

SIDE, COUNT = 4, 3 * CHUNK_PICTURES + 5
LAYOUT = record_layout(SIDE)


@pytest.fixture
def pictures(tmp_path: Path) -> np.ndarray:
    """Pictures 0.bmp, 1.bmp, ...; every 50th is no picture."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    (tmp_path / "img").mkdir()
    for number, image in enumerate(images):
        path = tmp_path / "img" / f"{number}.bmp"
        if number % 50 == 49:
            path.write_bytes(b"no picture")
        else:
            Image.fromarray(image).save(path)
    return images


@pytest.fixture
def job(tmp_path: Path, pictures: np.ndarray) -> Job:
    (tmp_path / "records").write_bytes(bytes(COUNT * LAYOUT.record_bytes))
    (tmp_path / "digests").write_bytes(bytes(COUNT * DIGEST_BYTES))
    return Job(
        root=str(tmp_path / "img"), records=str(tmp_path / "records"), digests=str(tmp_path / "digests"), size=SIDE
    )


def chunk_of_all() -> list[tuple[int, int, str]]:
    """Picture n goes to record COUNT - 1 - n, with a label above 255."""
    return [(COUNT - 1 - number, 300 + number, f"{number}.bmp") for number in range(COUNT)]


@pytest.mark.parametrize("processes", [1, 2])
def test_records_labels_digests_and_bad_files(
    processes: int, job: Job, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(decode_pool, "WORTH_A_PROCESS", COUNT // processes)
    monkeypatch.setattr(engine, "usable_cores", lambda: processes)
    done: list[int] = []
    bad = decode_all(job, chunk_of_all(), lambda chunk: done.append(len(chunk)))
    assert sum(done) == COUNT
    expected_bad = [COUNT - 1 - number for number in range(49, COUNT, 50)][::-1]
    reason = "not a JPEG, PNG, WebP or BMP, or damaged at its beginning"
    assert bad == [(number, reason, False) for number in expected_bad]
    records = np.fromfile(job.records, np.uint8).reshape(COUNT, -1)[::-1]
    good = np.setdiff1d(np.arange(COUNT), np.arange(49, COUNT, 50))
    assert np.array_equal(LAYOUT.images(records)[good], pictures[good])
    assert np.array_equal(LAYOUT.labels(records)[good], 300 + good)
    digests = np.fromfile(job.digests, np.uint64)
    assert len(np.unique(digests)) == len(good) + 1  # those of bad files stay 0
    assert not digests[expected_bad].any()


def test_the_same_pixels_have_the_same_digest_whatever_the_label(job: Job, tmp_path: Path):
    with Decoder(job) as decoder:
        decoder.decode([(0, 1, "7.bmp"), (1, 2, "7.bmp"), (2, 2, "8.bmp")])
    first, second, third = np.fromfile(job.digests, np.uint64)[:3]
    assert first == second != third


def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(engine, "usable_cores", lambda: 2)


FATAL = """
import os, sys, thumbnet.data.decode_worker as worker
real = worker.decode_picture
def decode(path, size):
    if path.name == "100.bmp":
        os.kill(os.getpid(), 11)
    return real(path, size)
worker.decode_picture = decode
worker.main()
"""


def test_a_picture_that_kills_the_decoder_is_bad_and_the_others_are_not(job: Job, monkeypatch: pytest.MonkeyPatch):
    two_processes(monkeypatch)
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: popen([sys.executable, "-c", FATAL], **how))
    bad = {number: reason for number, reason, _ in decode_all(job, chunk_of_all(), lambda _: None)}
    assert bad[COUNT - 1 - 100] == "the decoder crashes on it (exit code -11)"
    assert len(bad) == 1 + COUNT // 50


def test_a_process_that_does_not_start_is_an_error(job: Job, monkeypatch: pytest.MonkeyPatch):
    two_processes(monkeypatch)
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: popen([sys.executable, "-c", "exit(7)"], **how))
    with pytest.raises(DataError, match="cannot be started: exit code 7"):
        decode_all(job, chunk_of_all(), lambda _: None)


def test_a_process_that_the_system_refuses_is_an_error(job: Job, monkeypatch: pytest.MonkeyPatch):
    two_processes(monkeypatch)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(DataError, match=r"cannot be started: Resource temporarily unavailable\nend other programs"):
        decode_all(job, chunk_of_all(), lambda _: None)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_fault_that_may_pass_is_told_as_one(processes: int, job: Job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode_pool, "WORTH_A_PROCESS", COUNT // processes)
    monkeypatch.setattr(engine, "usable_cores", lambda: processes)
    (Path(job.root) / "7.bmp").unlink()
    bad = decode_all(job, chunk_of_all(), lambda _: None)
    assert [number for number, _, passing in bad if passing] == [COUNT - 1 - 7]


FULL = """
import errno, os, thumbnet.data.decode_worker as worker
def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
os.pwrite = full
worker.main()
"""


def test_a_full_disk_is_told(job: Job, monkeypatch: pytest.MonkeyPatch):
    two_processes(monkeypatch)
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: popen([sys.executable, "-c", FULL], **how))
    with pytest.raises(OSError, match="No space left on device"):
        decode_all(job, chunk_of_all(), lambda _: None)


def test_an_error_stops_the_other_processes(job: Job, monkeypatch: pytest.MonkeyPatch):
    two_processes(monkeypatch)
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def start(*arguments: object, **how: object) -> subprocess.Popen[str]:
        started.append(popen(*arguments, **how))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_all(job, chunk_of_all(), interrupted)
    assert started
    assert all(process.poll() is not None for process in started)


def test_an_error_of_one_worker_stops_the_others(job: Job, monkeypatch: pytest.MonkeyPatch):
    two_processes(monkeypatch)
    monkeypatch.setattr(decode_pool, "CHUNK_PICTURES", 1)
    failed = threading.Event()
    decoded: list[str] = []

    class Worker(decode_pool._Worker):
        def decode(self, chunk):
            name = chunk[0][2]
            if name == "1.bmp":
                failed.set()
                raise OSError(errno.ENOSPC, "full")
            if name == "0.bmp":  # the second picture is the other worker's, whom nobody waits for yet
                failed.wait(60)
            time.sleep(0.01)
            decoded.append(name)
            return []

    monkeypatch.setattr(decode_pool, "_Worker", Worker)
    with pytest.raises(OSError, match="full"):
        decode_all(job, chunk_of_all(), lambda _: None)
    assert len(decoded) < COUNT - 1


def test_a_worker_ends_with_the_process_that_feeds_it(job: Job):
    feeder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from thumbnet.data.decode_pool import _Worker\n"
            "from thumbnet.data.decode_worker import Job\n"
            f"worker = _Worker(Job(root={job.root!r}, records={job.records!r}, digests={job.digests!r}, size={SIDE}))\n"
            "print(worker._start().pid, flush=True)\n"
            "time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with feeder:
        assert feeder.stdout is not None
        worker = int(feeder.stdout.readline())
        feeder.kill()
    for _ in range(200):
        status = Path(f"/proc/{worker}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")
