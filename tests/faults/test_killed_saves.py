import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thumbnet.runs.checkpoint import Checkpoint, tidy_folder
from thumbnet.runs.store import CheckpointStore

SCRIPT = Path(__file__).with_name("kill_saves.py")


@pytest.fixture(scope="module")
def killed_saves(tmp_path_factory):
    """The folder of what killed saves left, and for each kind of save the calls before which it was killed."""
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    new, same = map(json.loads, done.stdout.splitlines())
    return root, new, same


def take_of(checkpoint: Checkpoint) -> int:
    """Return which of the two saves this is, after checking that all of it is of one save."""
    take = checkpoint.info["take"]
    assert checkpoint.average is not None
    for part in (checkpoint.model, checkpoint.average, checkpoint.state):
        assert part.keys() == {"w", "b"}
        assert all(torch.equal(value, torch.full_like(value, take)) for value in part.values())
    return int(take)


def test_every_stage_was_killed(killed_saves):
    _, calls, _ = killed_saves
    commit = calls.index("rename")
    # Before the commit four files are written and synced, and their folder; after it the folder is synced and the
    # old checkpoint is renamed and deleted.
    assert calls[:commit].count("write") == 4
    assert calls[:commit].count("fsync") == 5
    assert calls[commit:].count("fsync") == 1
    assert calls[commit + 1 :].count("rename") == 1
    assert calls[commit:].count("unlink") == 4


def test_training_goes_on_after_a_killed_save(killed_saves, tmp_path):
    root, calls, _ = killed_saves
    for kill_at in range(len(calls)):
        again = tmp_path / str(kill_at)
        shutil.copytree(root / "new" / str(kill_at), again)  # not tidied: whoever saves next must cope
        store = CheckpointStore(again, keep=1)
        store.save(Checkpoint(step=20, model={}, average=None, state={}, info={"take": 3}))
        store.save(Checkpoint(step=30, model={}, average=None, state={}, info={"take": 4}))
        assert store.latest().info == {"take": 4}
        tidy_folder(again)
        assert store.steps()[-1] == 30


def test_a_killed_save_of_a_new_step_loses_at_most_itself(killed_saves):
    root, calls, _ = killed_saves
    commit = calls.index("rename")
    for kill_at in range(len(calls)):
        store = CheckpointStore(root / "new" / str(kill_at), keep=1)
        notes: list[str] = []
        for look in ("reader beside it", "resume"):
            if look == "resume":
                tidy_folder(store.folder)
            latest = store.latest(notes.append)
            assert (latest.step, take_of(latest)) == ((10, 1) if kill_at <= commit else (20, 2)), (look, calls[kill_at])
        assert notes == []
        assert all(entry.name.startswith("step-") for entry in store.folder.iterdir())


def test_a_killed_save_over_the_only_checkpoint_loses_nothing(killed_saves):
    root, _, calls = killed_saves
    renames = [index for index, name in enumerate(calls) if name == "rename"]
    assert len(renames) == 2
    for kill_at in range(len(calls)):
        store = CheckpointStore(root / "same" / str(kill_at), keep=1)
        tidy_folder(store.folder)
        latest = store.latest()
        assert (latest.step, take_of(latest)) == (10, 1 if kill_at <= renames[1] else 2), calls[kill_at]
        assert [entry.name for entry in store.folder.iterdir()] == ["step-00000010"]
