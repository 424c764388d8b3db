"""`thumbnet train` on the record files of a folder, its first argument, in blocks of 20 records."""

import sys
from pathlib import Path

from thumbnet.cli.main import main
from thumbnet.data.dataset import Splits, open_records
from thumbnet.data.records import RecordFormat
from thumbnet.input import pipeline
from thumbnet.training import whole

LAYOUT = RecordFormat()
pipeline.BLOCK_BYTES = 20 * LAYOUT.image_bytes
train = open_records("shards", tuple("abcdefghij"), LAYOUT, sorted(Path(sys.argv[1]).glob("*.bin")))
whole.load_splits = lambda *_, **__: Splits(train=train, validation=None, test=None)
sys.exit(main(sys.argv[2:]))
