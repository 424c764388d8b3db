"""`thumbnet train` that validates 5 pictures at a time, and waits after each time."""

import sys
import time

from thumbnet.cli.main import main
from thumbnet.evaluation import evaluate

batches = evaluate.evaluation_batches


def slow_batches(*arguments):
    for batch in batches(*arguments):
        yield batch
        time.sleep(0.2)


evaluate.batch_size_for = lambda side: 5
evaluate.evaluation_batches = slow_batches
sys.exit(main(sys.argv[1:]))
