"""Fetch the data set pickled in one file into a cache: the body of a process that tests start, and sometimes kill."""

import pickle
import sys
from pathlib import Path

from thumbnet.data.sources import find_or_fetch

dataset = pickle.loads(Path(sys.argv[1]).read_bytes())
find_or_fetch(dataset, Path(sys.argv[2]), offline=False, note=lambda text: print(text, flush=True))
