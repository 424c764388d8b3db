"""What a training says of itself when it begins and when it has ended, beside its step lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import torch

from thumbnet import engine
from thumbnet.kernels import load_library
from thumbnet.monitor.console import format_duration
from thumbnet.monitor.health import batch_statistics
from thumbnet.monitor.neighbours import WORTH_TELLING, Neighbours
from thumbnet.runs.checkpoint import read_manifest
from thumbnet.runs.run import Run
from thumbnet.training.loop import Outcome, Training


def opening_lines(training: Training) -> list[str]:
    """Say what is going to be trained, on what, with what."""
    recipe, splits, state = training.recipe, training.splits, training.state
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    validation = f", {len(splits.validation):,} for validation" if splits.validation is not None else ""
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' * (count > 1)}"
    kernels = "fused C kernels" if load_library().handle else f"no fused kernels ({load_library().why})"
    sides = ", then ".join(dict.fromkeys(f"{phase.side}x{phase.side}" for phase in training.length.phases))
    lines = [
        f"run {training.run.path}: preset {recipe.preset}, seed {recipe.seed}",
        f"data {recipe.data.name}: {len(splits.train):,} images to train on{validation}",
        f"network {recipe.model.name}: {parameters:,} parameters, input {sides}, batch {recipe.input.batch_size}",
        f"engine: {training.precision.name} ({training.precision.why}), {threads}, {kernels}",
    ]
    height, width, _ = splits.train.image_shape
    if 4 * recipe.distort.crop < 3 * min(height, width):
        lines.append(
            f"the network sees only {recipe.distort.crop}x{recipe.distort.crop} of the {height}x{width} pictures: "
            f"--set distort.crop={7 * min(height, width) // 8} shows it more"
        )
    if training.replicas.count > 1:
        lines.append(_devices_line(training))
    if state.step:
        lines.append(f"resumed after step {state.step}")
    return lines


def threads_advice(neighbours: Neighbours) -> str | None:
    """Say what to do where other programs leave fewer cores than there are threads."""
    busy, threads = neighbours.busy_cores(), torch.get_num_threads()
    if busy is None or busy < WORTH_TELLING or engine.device().type != "cpu":
        return None
    free = max(neighbours.cores - round(busy), 1)
    if threads <= free:
        return None
    return (
        f"other programs keep {busy:.1f} of {neighbours.cores} cores busy, and a step waits for its slowest thread: "
        f"--threads {free} may be several times as fast"
    )


def speed_line(outcome: Outcome, figures: Mapping[str, Any]) -> str:
    """Say how long a training took, how fast it was, and what slowed it down.

    Args:
        outcome: how it ended.
        figures: what `result.json` holds.
    """
    trained = f"{outcome.steps} steps ({outcome.epochs:.1f} epochs) in {format_duration(outcome.train_seconds)}"
    if outcome.images_per_second is None or outcome.wait_fraction is None:
        speed = ", all of them before this session"
    else:
        speed = (
            f", {outcome.images_per_second:,.0f} images/s, {100 * outcome.wait_fraction:.1f} % of it waiting for input"
        )
        if outcome.session_steps < outcome.steps:
            speed = f" over all sessions; the last {outcome.session_steps} of them, since the resume{speed}"
    busy, spare = outcome.cores_busy_elsewhere or 0.0, engine.visible_cores() - torch.get_num_threads()
    slowed = f"; other programs kept {busy:.1f} cores busy meanwhile" if busy - spare >= WORTH_TELLING else ""
    return (
        f"trained {trained}{speed}{slowed}; evaluation, not in this time, {figures.get('test_seconds', 0):.1f} s; "
        f"{figures['memory_mib']:,.0f} MiB resident"
    )


def best_line(run: Run) -> str | None:
    """Say which checkpoint was best on the validation split: the test figures are of the last weights."""
    step = run.checkpoints.best_step()
    accuracy = None if step is None else read_manifest(run.checkpoints.path(step)).metric
    if accuracy is None:
        return None
    command = f"thumbnet eval {shlex.quote(str(run.path))} --checkpoint best"
    return f"best on validation: step {step}, {100 * accuracy:.2f} %: {command}"


def _devices_line(training: Training) -> str:
    """Say how replicas share the work."""
    count, batch_size = training.replicas.count, training.recipe.input.batch_size
    grain = training.recipe.train.grain
    if grain:
        sizes = f"grains of {grain}"
    else:
        sizes = str(batch_size // count) + (f" or {batch_size // count + 1}" if batch_size % count else "")
        sizes += " images of each batch on each"
    backend = "NCCL" if engine.device().type == "cuda" else "gloo"
    line = f"devices: {count} replicas over {backend}, {sizes}"
    if batch_statistics(training.state.model):
        cut = "grain" if grain else "the images of each replica"
        line += f"; batch normalization by {cut}, its running statistics averaged over all"
    return line
