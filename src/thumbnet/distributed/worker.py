"""What the launcher starts as each replica: `python -m thumbnet.distributed.worker train ...`.

The agent takes any exit code but 0 for an accident that a restart may mend. An end that no restart would change (done,
stopped on request, a wrong flag, a diverged training) is therefore written to a file, and the process exits with 0.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from thumbnet.errors import PeerLostError

EXIT_FOLDER = "THUMBNET_EXIT_FOLDER"
"""Environment variable with the folder of these files."""


def main() -> int:
    """Run the command; return what the agent is to see."""
    from thumbnet.cli.main import main as command

    _stop_with_launcher()
    try:
        code = command(sys.argv[1:])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    if code == PeerLostError.exit_code:
        return code
    name = f"exit-{os.environ['TORCHELASTIC_RESTART_COUNT']}-{os.environ['RANK']}"
    Path(os.environ[EXIT_FOLDER], name).write_text(str(code))
    return 0


def _stop_with_launcher() -> None:
    """Have the kernel send SIGTERM should the launcher be killed, so that no replica trains on unseen."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: after the loss of a replica the library would wait for exchanges that nobody answers.
    os._exit(status)
