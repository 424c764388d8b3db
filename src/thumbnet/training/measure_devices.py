"""Speed of training steps over replicas, and how much of the gradients' all-reduce hides behind the backward pass."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from thumbnet.config import Recipe
from thumbnet.data.dataset import ImageDataset
from thumbnet.distributed.exact import team_for
from thumbnet.distributed.replicas import Replicas
from thumbnet.engine import Precision, device
from thumbnet.input.pipeline import Batch, TrainingInput
from thumbnet.kernels import on_own_cores
from thumbnet.monitor.health import GradientCheck
from thumbnet.training.optimizers import set_rates
from thumbnet.training.state import new_state
from thumbnet.training.step import train_step

WARMUP_STEPS = 20
TRACED_STEPS = 10
STEP_MARK = "thumbnet step"
_BACKWARD = "autograd::engine::evaluate_function"
_ALL_REDUCES = ("gloo:all_reduce", "nccl:all_reduce")


def measure_steps(
    recipe: Recipe, dataset: ImageDataset, replicas: Replicas, *, precision: Precision, steps: int, trace: Path | None
) -> dict[str, float]:
    """Train some steps, input included, and return images a second over all replicas.

    Args:
        recipe: what to train.
        dataset: training images.
        replicas: those that train together.
        precision: arithmetic of the network.
        steps: steps to time.
        trace: where replica 0 writes a trace of a few more steps, in the format of chrome://tracing; None for none.
    """
    state = new_state(recipe, num_classes=len(dataset.class_names), channels=dataset.image_shape[2])
    batch_size = recipe.input.batch_size
    team = team_for(replicas, state.model, batch_size=batch_size, grain=recipe.train.grain, seconds=time.perf_counter)
    check = GradientCheck(state.model)

    def train(batches: Iterator[Batch], count: int) -> None:
        for _ in range(count):
            set_rates(state.optimizer, factor=1.0, progress=0.0)
            with torch.profiler.record_function(STEP_MARK):
                result = train_step(state, next(batches), check=check, precision=precision, team=team)
        result.figures.tolist()  # waits for a GPU, which computes behind the program's back

    with (
        TrainingInput(
            dataset, recipe.distort, recipe.input, seed=recipe.seed, share=team.share, device=device()
        ) as batches,
        on_own_cores(),
    ):
        train(batches, WARMUP_STEPS)
        waited_s, started_s = batches.wait_s, time.perf_counter()
        train(batches, steps)
        seconds = time.perf_counter() - started_s
        measured = {
            "images_per_second": steps * batch_size / seconds,
            "wait_fraction": (batches.wait_s - waited_s) / seconds,
        }
        if trace is not None:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            with torch.profiler.profile(activities=activities) as profiler:
                train(batches, TRACED_STEPS)
            if replicas.rank == 0:
                profiler.export_chrome_trace(str(trace))
    return measured


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a trace tells of one step, in milliseconds."""

    step_ms: float
    backward_ms: float
    """From the first to the last function of the backward pass."""
    all_reduce_ms: float
    """While one or more gradient all-reduces were under way."""
    exposed_ms: float
    """Part of that time after the backward pass: what the step is longer for it."""
    lead_ms: float
    """From the start of the first gradient all-reduce to the end of the backward pass; below 0 without an overlap."""


def read_overlaps(trace: Path) -> list[Overlap]:
    """Return what a trace of `measure_steps` tells of each step."""
    events = [event for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"] if event.get("ph") == "X"]
    marks = [event for event in events if event["name"] == STEP_MARK and event.get("cat") == "user_annotation"]
    return [_overlap(events, mark) for mark in sorted(marks, key=lambda mark: float(mark["ts"]))]


def _overlap(events: list[dict[str, Any]], mark: dict[str, Any]) -> Overlap:
    """Read one step."""
    begin, end = _span(mark)
    inside = [event for event in events if begin <= float(event["ts"]) < end]
    backward = [_span(event) for event in inside if event["name"].startswith(_BACKWARD)]
    first, last = min(start for start, _ in backward), max(stop for _, stop in backward)
    # Figures and batch statistics are added up before the backward begins.
    reduces = sorted(_span(event) for event in inside if event["name"] in _ALL_REDUCES and float(event["ts"]) >= first)
    busy, until = 0.0, first
    for start, stop in reduces:
        busy += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return Overlap(
        step_ms=(end - begin) / 1000,
        backward_ms=(last - first) / 1000,
        all_reduce_ms=busy / 1000,
        exposed_ms=max(0.0, until - last) / 1000,
        lead_ms=(last - reduces[0][0]) / 1000 if reduces else 0.0,
    )


def _span(event: dict[str, Any]) -> tuple[float, float]:
    """Return when an event starts and ends, in microseconds."""
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])
