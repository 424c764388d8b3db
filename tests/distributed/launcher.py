"""Starts two replicas of a command, however many cores there are: `thumbnet train --devices 2` without its limits."""

import sys

from thumbnet.cli.flags import note
from thumbnet.distributed.launch import launch
from thumbnet.errors import ThumbnetError

try:
    code = launch(sys.argv[1:], count=2, max_restarts=1)
except ThumbnetError as error:
    note(f"thumbnet: error: {error}")
    code = error.exit_code
sys.exit(code)
