import errno
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
from tensorboard.compat.proto.summary_pb2 import Summary

from thumbnet.monitor.event_file import EventFile

# Files of this process may not grow beyond 20 kB: a disk that fills up, as far as the program can tell.
FULL_DISK = """
import resource, sys
from pathlib import Path
from thumbnet.monitor.event_file import EventFile
file = EventFile(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for _ in range(50):
    file.add_graph(b"x" * 10_000)
file.close()
print(file.failure.strerror)
"""


def test_a_full_disk_does_not_end_the_training(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout == "File too large\n"
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size <= 20_000


@pytest.mark.parametrize("events", [0, 1])
def test_a_close_that_fails_is_a_failure_like_others(tmp_path: Path, events: int) -> None:
    """What is left in a buffer is written by it, and a network's disk may tell of an early write only then."""
    file = EventFile(tmp_path)
    for _ in range(events):
        file.add_graph(b"x")

    class Failing:
        def __init__(self, real: BinaryIO) -> None:
            self.write, self.flush, self._close = real.write, real.flush, real.close

        def close(self) -> None:
            self._close()
            raise OSError(errno.EIO, "Input/output error")

    file._file = Failing(file._file)  # type: ignore[assignment]
    file.close()
    assert "Input/output error" in str(file.failure)


def test_an_event_that_cannot_be_built_gives_the_file_up(tmp_path: Path) -> None:
    file = EventFile(tmp_path)

    def fail() -> list[Summary.Value]:
        raise MemoryError

    file.add_values(1, fail)
    file.add_graph(b"x")
    file.close()
    assert isinstance(file.failure, MemoryError)


def test_the_newest_file_is_the_last_by_name_though_the_clock_went_back(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.9000000000.other.1.0").touch()
    (tmp_path / "notes.txt").touch()
    file = EventFile(tmp_path)
    file.close()
    assert max(path.name for path in tmp_path.glob("events*")) == file.path.name


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file/tensorboard"):
        EventFile(tmp_path / "file" / "tensorboard")


def test_two_files_of_one_second_are_two_files(tmp_path: Path) -> None:
    files = [EventFile(tmp_path), EventFile(tmp_path)]
    for file in files:
        file.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert all(path.name.startswith("events.out.tfevents.") for path in tmp_path.iterdir())


def test_what_a_program_without_summaries_imports_is_light() -> None:
    code = (
        "import sys, thumbnet.monitor.console, thumbnet.monitor.event_file, thumbnet.monitor.signals\n"
        "print([name for name in ('tensorboard', 'google.protobuf', 'rich', 'torch') if name in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout == "[]\n"
