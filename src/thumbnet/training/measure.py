"""How fast this machine trains, makes batches and multiplies matrices: for `thumbnet bench` and the benchmarks."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from thumbnet import engine
from thumbnet.config import Recipe
from thumbnet.input.pipeline import Batch, TrainingInput
from thumbnet.kernels import on_own_cores
from thumbnet.models import build_model
from thumbnet.models.describe import describe_layers
from thumbnet.monitor.health import GradientCheck
from thumbnet.training.optimizers import set_rates
from thumbnet.training.schedules import phases_of
from thumbnet.training.state import new_state
from thumbnet.training.step import train_step

MATRIX_SIDE = 4096
"""Large enough for the highest speed; a product takes half a second in float32 on two cores."""
LEAST_CALLS, LONGEST = 3, 4
"""At least so many calls are timed, unless they take `LONGEST` times as long as was asked for: of slow ones, one."""
INPUT_ROUNDS = 5
"""Rounds the input is measured in; the slowest and the fastest show how steady it is."""


def step_seconds(recipe: Recipe, *, seconds: float, classes: int = 10) -> list[float]:
    """Return how long training steps take, on one batch of random pictures, after one that warms up.

    Input, summaries and checkpoints are left out; layers that freeze on the way are frozen, and pictures as large as
    they become, as at the end of a training.

    Args:
        recipe: what is trained.
        seconds: how long to go on.
        classes: classes of the data set.
    """
    channels, side, count = 3, recipe.distort.crop, recipe.input.batch_size
    precision = engine.resolve_precision(recipe.train.precision)
    state = new_state(
        recipe, num_classes=classes, channels=channels, examples=lambda n: torch.randn(n, channels, side, side)
    )
    images = torch.randn(count, channels, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(count) % classes
    batch = Batch(images=images.to(engine.device()), labels=labels.to(engine.device()), indices=np.arange(count))
    check = GradientCheck(state.model)
    # A small rate: random pictures have nothing to learn, and the weights must stay finite.
    set_rates(state.optimizer, factor=1e-3, progress=0.99)
    smoothing = recipe.train.label_smoothing
    return _timed(
        # Reading a value waits for a GPU, which computes behind the program's back.
        lambda: train_step(state, batch, check=check, precision=precision, label_smoothing=smoothing).figures.tolist(),
        seconds,
    )


def matmul_tflops(precision: str, *, seconds: float) -> float:
    """Return the speed of a large square matrix product in TFLOP/s, the median of several.

    No network surpasses it whose convolutions make every product; those by Winograd's filtering leave most of them out.

    Args:
        precision: fp32, bf16 or fp16, of the factors.
        seconds: how long to go on.
    """
    matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE).to(device=engine.device(), dtype=engine.dtype_of(precision))

    def product() -> None:
        (matrix @ matrix)[0, 0].item()

    return 2 * MATRIX_SIDE**3 / statistics.median(_timed(product, seconds)) / 1e12


def multiply_adds(recipe: Recipe, side: int) -> int:
    """Return the multiply-adds of a recipe's network for a picture of CIFAR-10 of side x side pixels, forward."""
    model = build_model(recipe.model, num_classes=10, crop=recipe.distort.crop)
    return sum(layer.multiply_adds for layer in describe_layers(model, (3, side, side)))


def step_flops(recipe: Recipe) -> int:
    """Return the floating-point operations of a step for each picture: forward, and twice that back."""
    return 2 * 3 * multiply_adds(recipe, recipe.distort.crop)


def training_flops(recipe: Recipe) -> float:
    """Return the floating-point operations of a training for each picture, on average: some may be smaller ones."""
    phases = phases_of(recipe.schedule, recipe.distort.crop)
    return 2 * 3 * sum(phase.share * multiply_adds(recipe, phase.side) for phase in phases)


def spread(values: Sequence[float], digits: int | None = None) -> dict[str, Any]:
    """Return median, range and number of what was measured several times.

    Args:
        values: one figure of every round.
        digits: places after the decimal point; 0 gives whole numbers; without it nothing is rounded.
    """
    found = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    if digits is not None:
        found = {name: round(value, digits or None) for name, value in found.items()}
    return found | {"n": len(values)}


def measure_input(batches: TrainingInput, batch_size: int, seconds: float) -> dict[str, Any]:
    """Take batches for some seconds and return speed, processor time and memory.

    Start-up is left out: the clock starts when the first batches have been taken.
    """
    for _ in range(10):
        next(batches)
    speeds: list[float] = []
    images, busy_from_s = 0, time.process_time()
    for _ in range(INPUT_ROUNDS):
        taken, started_s = 0, time.perf_counter()
        while (elapsed_s := time.perf_counter() - started_s) < seconds / INPUT_ROUNDS or not taken:
            next(batches)
            taken += batch_size
        speeds.append(taken / elapsed_s)
        images += taken
    busy_s = time.process_time() - busy_from_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "images_per_second": spread(speeds, digits=0),
        "cpu_us_per_image": round(busy_s / images * 1e6, 2),
        "peak_memory_mib": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),  # macOS counts in bytes
    }


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Call until the time is over, see `LEAST_CALLS`, and return how long each took; the first does not count."""
    took: list[float] = []
    with on_own_cores():  # as in a training
        call()
        began = time.perf_counter()
        while (
            not took
            or (spent := time.perf_counter() - began) < seconds
            or (len(took) < LEAST_CALLS and spent < LONGEST * seconds)
        ):
            started = time.perf_counter()
            call()
            took.append(time.perf_counter() - started)
    return took
