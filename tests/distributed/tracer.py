"""Measures a few steps as a replica; replica 0 leaves a trace."""

import json
import os
import sys
from pathlib import Path

from thumbnet import engine
from thumbnet.config import load_preset
from thumbnet.data.shapes import draw_shapes
from thumbnet.distributed.join import joined
from thumbnet.distributed.place import place_of
from thumbnet.training import measure_devices

measure_devices.WARMUP_STEPS, measure_devices.TRACED_STEPS = 3, 4
recipe = load_preset("classic", {"input.batch_size": 32, "train.grain": int(sys.argv[2])})
with joined(place_of(os.environ), 60) as replicas:
    engine.prepare(1)
    figures = measure_devices.measure_steps(
        recipe,
        draw_shapes()[0],
        replicas,
        precision=engine.resolve_precision("fp32"),
        steps=2,
        trace=Path(sys.argv[1]),
    )
print(json.dumps(figures))
