import os
import signal
import subprocess
import sys

import pytest

from thumbnet.config import load_preset
from thumbnet.errors import CheckpointError
from thumbnet.runs.run import Run

HOLD = """
import sys, time
from pathlib import Path
from thumbnet.runs.run import Run
with Run.open(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_second_process_is_refused_until_the_first_is_killed(tmp_path):
    run = Run.create(tmp_path, load_preset("classic"))
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        assert run.is_training()
        with (
            pytest.raises(CheckpointError, match=f"process {first.pid} on .* is training this run") as error,
            run.lock(),
        ):
            pytest.fail("two processes have the lock")
        assert "stop it first" in str(error.value)
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=60)
        assert not run.is_training()
        with run.lock():
            assert run.is_training()
    finally:
        first.kill()
        first.communicate(timeout=60)
