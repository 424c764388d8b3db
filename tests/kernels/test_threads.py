import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from thumbnet.kernels import load_library, on_own_cores

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
pytestmark = [
    pytest.mark.skipif(load_library().handle is None, reason=load_library().why),
    pytest.mark.skipif(len(CORES) != 2, reason="teams of other sizes than two are left alone"),
]


@pytest.fixture
def team_of_all() -> Iterator[None]:
    """As many threads as cores, all of them started."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(CORES))
    torch.ones(2**20 * len(CORES)).add_(1)
    yield
    torch.set_num_threads(before)


def cores_of_threads() -> dict[str, set[int]]:
    """Return the cores that each thread of this process may use, by its number, as the kernel tells."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            (line,) = re.findall(r"^Cpus_allowed_list:\s*(.*)", (task / "status").read_text(), re.MULTILINE)
            ranges = [part.partition("-") for part in line.split(",")]
            found[task.name] = {core for first, _, last in ranges for core in range(int(first), int(last or first) + 1)}
    return found


@pytest.mark.usefixtures("team_of_all")
def test_each_thread_has_a_core_of_its_own_inside_and_all_of_them_outside() -> None:
    before = cores_of_threads()
    with on_own_cores():
        inside = cores_of_threads()
        held = {task: cores for task, cores in inside.items() if cores != before.get(task, CORES)}
        assert sorted(held.values(), key=min) == [{core} for core in sorted(CORES)]
        assert os.sched_getaffinity(0) == {min(CORES)}
        torch.ones(2**20 * len(CORES)).add_(1)
        torch.ones(8).add_(1)
        torch.ones(2**20 * len(CORES)).add_(1)
        assert {task: cores_of_threads()[task] for task in held} == held, "the same team, whatever it had to do"
    after = cores_of_threads()
    assert {task: after[task] for task in held} == dict.fromkeys(held, CORES)


@pytest.mark.usefixtures("team_of_all")
def test_a_thread_started_before_may_use_all_and_so_may_one_started_afterwards() -> None:
    seen = []
    end = threading.Event()
    early = threading.Thread(target=lambda: (end.wait(), seen.append(os.sched_getaffinity(0))))
    early.start()
    with on_own_cores():
        end.set()
        early.join()
    late = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
    late.start()
    late.join()
    assert seen == [CORES, CORES]


@pytest.mark.usefixtures("team_of_all")
def test_once_more_inside_changes_nothing() -> None:
    with on_own_cores():
        with on_own_cores():
            assert len(os.sched_getaffinity(0)) == 1
        assert len(os.sched_getaffinity(0)) == 1, "held until the outer one ends"
    assert os.sched_getaffinity(0) == CORES


@pytest.mark.usefixtures("team_of_all")
def test_an_error_lets_go() -> None:
    with pytest.raises(RuntimeError), on_own_cores():
        raise RuntimeError
    assert os.sched_getaffinity(0) == CORES


@pytest.mark.usefixtures("team_of_all")
def test_fewer_threads_than_cores_run_where_the_system_finds_best() -> None:
    torch.set_num_threads(len(CORES) - 1)
    with on_own_cores():
        assert os.sched_getaffinity(0) == CORES
