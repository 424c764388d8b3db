import errno
import os

import pytest

from thumbnet.errors import UsageError
from thumbnet.runs.lock import hold_run, is_held


@pytest.mark.parametrize("call", ["open", "ftruncate", "pwrite"])
def test_a_disk_that_refuses_is_told_and_the_lock_let_go(tmp_path, monkeypatch, call):
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, call, refuse)
        with pytest.raises(UsageError, match=r"cannot lock the run: .*\nTo go on: free some"), hold_run(tmp_path):
            pytest.fail("locked")
    assert not is_held(tmp_path)
    with hold_run(tmp_path):
        assert is_held(tmp_path)
