"""`thumbnet train` whose replica 0 waits less long for others that have gone."""

import sys

from thumbnet.cli.main import main
from thumbnet.distributed import replicas

replicas._FAREWELL_S = 2.0
sys.exit(main(sys.argv[1:]))
