"""thumbnet itself: `thumbnet train --preset classic` as anybody starts it, then its step and its input alone.

The whole is the command with all that it does: input, step lines, checks for finite values, moving averages,
TensorBoard summaries every 100 steps. Its window is counted in steps, two summaries long.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from measure import (
    BATCH,
    CROP,
    WARM_UP_BATCHES,
    WARM_UP_STEPS,
    Task,
    images_per_second,
    read_task,
    say,
    say_memory,
    say_versions,
)

WARM_UP, COUNTED = 20, 200
"""Steps of the whole that do not count, and that do: those hold the summaries of steps 100 and 200."""


def main() -> None:
    """Measure what was asked for."""
    task = read_task()
    from thumbnet.cli.main import main as thumbnet

    if "whole" in task.measures:
        result, rows = train(thumbnet, task)
        say("start", seconds=result["start_seconds"] + rows[0]["train_s"])
        say("whole", images_per_second=speed_between(rows, WARM_UP, WARM_UP + COUNTED))
        say_memory()
    import torch

    from thumbnet import __version__, engine

    say_versions(thumbnet=__version__, torch=torch.__version__)
    engine.prepare()
    if "step" in task.measures:
        say("step", images_per_second=step_speed(task))
    if "input" in task.measures:
        say("input", images_per_second=input_speed(task))


def train(thumbnet: Any, task: Task) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train and return the result and the lines of metrics."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        flags = ["--steps", str(WARM_UP + COUNTED), "--out", folder, "--data-dir", str(task.data.parent)]
        code = thumbnet(["train", "--preset", "classic", "--offline", "--no-test", "--json", *flags])
        if code:
            raise SystemExit(code)
        result = json.loads(printed.getvalue())
        lines = (Path(result["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return result, [json.loads(line) for line in lines]


def speed_between(rows: list[dict[str, Any]], first: int, last: int) -> float:
    """Return the images per second between two steps of the metrics."""
    seconds: dict[int, float] = {row["step"]: row["train_s"] for row in rows}
    return (last - first) * BATCH / (seconds[last] - seconds[first])


def step_speed(task: Task) -> float:
    """Measure the training step on one batch over and over."""
    import numpy as np
    import torch

    from thumbnet import engine
    from thumbnet.config import load_preset
    from thumbnet.input.pipeline import Batch
    from thumbnet.monitor.health import GradientCheck
    from thumbnet.training.state import new_state
    from thumbnet.training.step import train_step

    state = new_state(load_preset("classic"), num_classes=10, channels=3)
    images = torch.randn(BATCH, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
    batch = Batch(images=images, labels=torch.arange(BATCH) % 10, indices=np.arange(BATCH))
    check, precision = GradientCheck(state.model), engine.resolve_precision()
    return images_per_second(
        lambda: train_step(state, batch, check=check, precision=precision), task.seconds, warm_up=WARM_UP_STEPS
    )


def input_speed(task: Task) -> float:
    """Measure batches made and thrown away."""
    from thumbnet.config import load_preset
    from thumbnet.data import load_splits
    from thumbnet.input.pipeline import TrainingInput

    recipe = load_preset("classic")
    dataset = load_splits(recipe.data, data_dir=task.data.parent, offline=True).train
    with TrainingInput(dataset, recipe.distort, recipe.input, seed=0) as batches:
        return images_per_second(lambda: next(batches), task.seconds, warm_up=WARM_UP_BATCHES)


if __name__ == "__main__":
    main()
