"""What this machine can do, and how near to that the presets come: for `thumbnet bench` and `benchmarks/check.py`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from thumbnet import engine
from thumbnet.config import Recipe, load_preset, preset_names
from thumbnet.data.dataset import ImageDataset
from thumbnet.data.records import RecordFormat, RecordPart
from thumbnet.errors import ThumbnetError
from thumbnet.input.pipeline import TrainingInput
from thumbnet.kernels import load_library
from thumbnet.models.grid import amx_ready
from thumbnet.monitor.machine import describe_machine
from thumbnet.training.measure import matmul_tflops, measure_input, spread, step_flops, training_flops
from thumbnet.training.progress import length_of

MEASURED = ("classic", "quick", "fast")
"""Presets whose step is measured; the time of others with the same network follows from their arithmetic."""
ROUNDS = 2
LONG_TURN_S = 15.0
"""What takes longer is measured in the first round alone: slow machines, too, are measured in minutes."""
CIFAR10_IMAGES = 50_000


def measure_machine(seconds: float, *, threads: int | None, note: Callable[[str], None]) -> dict[str, Any]:
    """Return limit, input, steps and the presets' estimated times.

    Args:
        seconds: length of each measurement.
        threads: processor threads; None for every core.
        note: gets a line for each measurement.
    """
    started = time.monotonic()
    engine.prepare(threads)
    machine = describe_machine(None)
    names = ["fp32", *([machine["precision"]] if machine["precision"] != "fp32" else [])]
    limits = {}
    for name in names:
        limits[name] = matmul_tflops(name, seconds=seconds / 2)
        note(f"matrix product, {name}: {limits[name]:.3f} TFLOP/s")
    speed = input_speed(seconds)
    note(f"input of classic: {speed:,.0f} images/s")
    recipes = {name: load_preset(name) for name in MEASURED}
    steps = measure_steps(recipes, seconds, threads=threads, note=note)
    summed = {name: sum_up(recipes[name], found, limits[machine["precision"]]) for name, found in steps.items()}
    return {
        "benchmark": "machine",
        "matmul_tflops": limits,
        "input_images_per_second": speed,
        "steps": summed,
        "presets": estimates(summed),
        "bench_seconds": time.monotonic() - started,
        "machine": machine,
    }


def input_speed(seconds: float) -> float:
    """Return the speed of the classic input on random pictures, in images per second."""
    recipe, layout = load_preset("classic"), RecordFormat()
    records = np.random.default_rng(0).integers(0, 256, (CIFAR10_IMAGES, layout.record_bytes), np.uint8)
    records[:, 0] %= 10
    part = RecordPart(name="random", where="random pictures", records=records)
    dataset = ImageDataset("random pictures", [str(label) for label in range(10)], layout, [part])
    with TrainingInput(dataset, recipe.distort, recipe.input, seed=0) as batches:
        return float(measure_input(batches, recipe.input.batch_size, seconds)["images_per_second"]["median"])


def measure_steps(
    recipes: dict[str, Recipe], seconds: float, *, threads: int | None, note: Callable[[str], None]
) -> dict[str, dict[str, list[float]]]:
    """Return images/s of each preset's step, with kernels and in plain PyTorch, round by round, in processes apart.

    What takes long has one round (`LONG_TURN_S`).
    """
    found: dict[str, dict[str, list[float]]] = {name: {"kernels": [], "plain": []} for name in recipes}
    turns = [
        (name, form)
        for name, recipe in recipes.items()
        for form in (("kernels", "plain") if has_kernels(recipe) else ("plain",))
    ]
    for number in range(ROUNDS):
        short = []
        for name, form in turns:
            started = time.monotonic()
            speed = step_apart(name, seconds, kernels=form == "kernels", threads=threads)
            if time.monotonic() - started < LONG_TURN_S:
                short.append((name, form))
            found[name][form].append(speed)
            note(f"round {number + 1} of {ROUNDS}, step of {name}, {form}: {speed:,.0f} images/s")
        turns = short
    return found


def has_kernels(recipe: Recipe) -> bool:
    """Tell whether compiled kernels take part in this recipe's step here."""
    if recipe.model.name == "speed" and engine.resolve_precision(recipe.train.precision).name == "bf16":
        return amx_ready()
    return load_library().handle is not None


def step_apart(preset: str, seconds: float, *, kernels: bool, threads: int | None = None) -> float:
    """Measure a preset's step in a process of its own and return images per second.

    Raises:
        ThumbnetError: the process failed, and has said why.
    """
    command = [sys.executable, "-m", "thumbnet.cli.main", "bench", "step", "--preset", preset, "--json"]
    command += ["--seconds", str(seconds), *(["--threads", str(threads)] if threads else [])]
    environment = os.environ | ({} if kernels else {"THUMBNET_KERNELS": "0"})
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ThumbnetError(f"measuring the step of {preset} ended with {done.returncode}; see above")
    return float(json.loads(done.stdout)["images_per_second"])


def sum_up(recipe: Recipe, found: dict[str, list[float]], limit_tflops: float) -> dict[str, Any]:
    """Return what the rounds of one preset come to.

    Args:
        recipe: what was trained.
        found: images/s by round, of `kernels` (none where there are none for this network) and `plain`.
        limit_tflops: speed of a matrix product in the same arithmetic.
    """
    used = found["kernels"] or found["plain"]
    tflops = statistics.median(used) * step_flops(recipe) / 1e12
    return {
        "batch_size": recipe.input.batch_size,
        "images_per_second": spread(used),
        "plain_images_per_second": spread(found["plain"]),
        "kernels": bool(found["kernels"]),
        "times_plain": statistics.median(used) / statistics.median(found["plain"]),
        "tflops": tflops,
        "share_of_limit": tflops / limit_tflops,
    }


def estimates(steps: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return how long presets of CIFAR-10 would train here, if their network was measured: the steps alone.

    Args:
        steps: what was measured, by preset. A preset that was not counts with the arithmetic speed of the largest
            measured one with the same network, unless its batch is much smaller: single pictures are far slower.
    """
    flops = {name: step_flops(load_preset(name)) for name in steps}
    found = {}
    for name in preset_names():
        recipe = load_preset(name)
        alike = [other for other in steps if _speeds_compare(load_preset(other), recipe)]
        length = length_of(recipe, CIFAR10_IMAGES)
        if recipe.data.name != "cifar10" or not alike or length.steps is None:
            continue
        after = name if name in steps else max(alike, key=flops.__getitem__)
        speed = steps[after]["tflops"] * 1e12 / training_flops(recipe)
        images = length.steps * recipe.input.batch_size
        found[name] = {"images": images, "images_per_second": speed, "seconds": images / speed, "after": after}
    return found


def _speeds_compare(measured: Recipe, recipe: Recipe) -> bool:
    """Tell whether the steps of one recipe say how fast another's are."""
    return measured.model.name == recipe.model.name and measured.input.batch_size <= 4 * recipe.input.batch_size
