import re
from pathlib import Path

import pytest

from thumbnet.distributed.place import DEFAULT_PORT, Place, first_host, is_launched, job_of, place_of
from thumbnet.errors import UsageError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "1234"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[03-06]",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
}


def test_a_process_that_nobody_started_as_a_replica_is_none() -> None:
    assert place_of({}) is None
    # The batch script itself has the variables of its job, and is not a step of it.
    assert place_of({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77"}) is None
    assert place_of(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_variables_of_torchrun_and_kubernetes() -> None:
    expected = Place(rank=3, count=4, local_rank=1, address="node7", port=1234)
    assert place_of(TORCHRUN) == expected
    place = place_of(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert place is not None
    assert place.agent_store
    place = place_of({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "master-0"})
    assert place == Place(rank=1, count=2, local_rank=0, address="master-0", port=DEFAULT_PORT)
    assert place_of({"RANK": "0", "WORLD_SIZE": "1"}) is not None  # one replica needs no meeting place


def test_variables_of_slurm() -> None:
    place = place_of(SLURM)
    assert place is not None
    assert (place.rank, place.count, place.local_rank, place.address) == (5, 8, 1, "gpu03")
    assert 1024 < place.port < 65536
    other = place_of(SLURM | {"SLURM_STEP_ID": "1"})
    assert other is not None
    assert other.port != place.port
    # torchrun started by srun, once on each machine, tells more than SLURM.
    assert place_of(SLURM | TORCHRUN) == place_of(TORCHRUN)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "MASTER_ADDR": "node7"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "node7"}, "RANK is not set"),
        (TORCHRUN | {"RANK": "4"}, "RANK is 4: it must be below WORLD_SIZE, which is 4"),
        (TORCHRUN | {"RANK": "-1"}, "RANK is '-1'"),
        (TORCHRUN | {"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        (TORCHRUN | {"MASTER_PORT": ""}, "MASTER_PORT is ''"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, "MASTER_ADDR is not set, and SLURM_STEP_NODELIST names no machine"),
    ],
)
def test_a_variable_that_is_missing_or_impossible_is_named(variables: dict[str, str], expected: str) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)):
        place_of(variables)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[03-05,9],login1", "gpu03"),
        ("a,b[1-2]", "a"),
        ("rack[1-2]x,other", "rack1x"),
        ("n[7]", "n7"),
        ("", ""),
    ],
)
def test_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_job_keeps_its_name_over_restarts() -> None:
    assert job_of({}) is None
    assert job_of(TORCHRUN) is None
    elastic = {"TORCHELASTIC_RUN_ID": "abc", "TORCHELASTIC_RESTART_COUNT": "0"}
    assert job_of(elastic) is not None
    assert job_of(elastic) == job_of(elastic | {"TORCHELASTIC_RESTART_COUNT": "2"})
    assert job_of(SLURM) is None, "nothing restarts it, and two trainings in one step are two"
    nameless = job_of({"TORCHELASTIC_RUN_ID": "none"})
    assert nameless is not None
    assert "process" in nameless
    assert nameless == job_of({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"})


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="when a process began is read from /proc")
def test_another_launcher_with_the_same_number_is_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = iter(["101", "101", "202"])
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"1 (a) b) S {' 0' * 18} {next(begun)} 0 0")
    first, again, later = (job_of({"TORCHELASTIC_RUN_ID": "none"}) for _ in range(3))
    assert first == again
    assert first is not None
    assert first.endswith("begun at 101")
    assert later != first


def test_what_torchs_launcher_starts_knows_it() -> None:
    assert is_launched({"TORCHELASTIC_RUN_ID": "none"})
    assert not is_launched(TORCHRUN)
