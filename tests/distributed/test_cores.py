from pathlib import Path

import pytest

from thumbnet.distributed.cores import by_neighbourhood, share_of


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_are_disjoint_and_leave_no_core_out(count: int) -> None:
    cores = [1, 2, 5, 6, 7]
    shares = [share_of(cores, index, count) for index in range(count)]
    assert [core for share in shares for core in share] == cores
    assert min(map(len, shares)) >= 1


def test_halves_of_a_core_and_cores_of_a_socket_stand_together(tmp_path: Path) -> None:
    # Two sockets of two cores of two threads, numbered as kernels do: all first threads come first.
    for core in range(8):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{core % 4 // 2}\n")
        (folder / "core_id").write_text(f"{core % 2}\n")
    assert by_neighbourhood(list(range(8)), tmp_path) == [0, 4, 1, 5, 2, 6, 3, 7]


def test_a_system_that_does_not_tell_keeps_the_order(tmp_path: Path) -> None:
    assert by_neighbourhood([4, 2, 9], tmp_path) == [2, 4, 9]
