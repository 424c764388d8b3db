"""`python -m thumbnet` is the command `thumbnet`, also where that is not on the path."""

import sys

from thumbnet.cli.main import main

sys.argv[0] = "thumbnet"  # for the command that a run keeps
sys.exit(main())
