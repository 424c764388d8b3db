"""`thumbnet bench machine`: what this machine can do, and how near to that the presets come, in about two minutes."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.cli.flags import duration, make_writable, note
from thumbnet.errors import ThumbnetError, UsageError

if TYPE_CHECKING:
    from thumbnet.config import Recipe

MEASURED = ("classic", "quick", "fast")
"""Presets whose step is measured; the time of others with the same network follows from their arithmetic."""
ROUNDS = 2
CIFAR10_IMAGES = 50_000
INSTRUCTION_SETS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"},
}
"""What holds PyTorch, oneDNN and our kernels back to older processors' instructions."""


def add_parts(parts: Any) -> None:
    """Add the parsers of `bench machine` and `bench step`."""
    machine = parts.add_parser(
        "machine",
        help="all of it in two minutes: limit, input, steps, how long each preset takes here (what `bench` alone does)",
        description="Measure the limit of this machine, the input, and training steps of the presets, and tell how\n"
        "long each would take here. Steps are measured with and without the compiled kernels, in turn.",
    )
    machine.set_defaults(parser=machine)
    machine.add_argument(
        "--isa",
        choices=sorted(INSTRUCTION_SETS),
        help="as on a processor with no more than these instructions",
    )
    machine.add_argument("--seconds", type=duration, default=3.0, metavar="N", help="length of each measurement (3)")
    machine.add_argument("--json", action="store_true", help="print one JSON object")
    machine.add_argument("--out", type=Path, metavar="FILE", help="also write that object to a file")
    step = parts.add_parser(
        "step",
        help="training steps of one preset on random pictures: images/s",
        description="Take training steps on one batch of random pictures, without input, summaries and checkpoints.",
    )
    step.set_defaults(parser=step)
    step.add_argument("--preset", default="classic", help="recipe whose step is measured (classic)")
    step.add_argument("--seconds", type=duration, default=3.0, metavar="N", help="how long to measure (3)")
    step.add_argument("--json", action="store_true", help="print one JSON object")


def run_step(args: argparse.Namespace) -> int:
    """Measure one preset's step; returns the exit code."""
    from thumbnet import engine
    from thumbnet.config import load_preset
    from thumbnet.training.measure import step_seconds

    engine.prepare()
    recipe = load_preset(args.preset)
    took = step_seconds(recipe, seconds=args.seconds)
    speed = recipe.input.batch_size / statistics.median(took)
    if args.json:
        print(json.dumps({"preset": args.preset, "images_per_second": speed, "step_seconds": took}))
    else:
        print(f"{args.preset}: {speed:,.0f} images/s, batch {recipe.input.batch_size}, {len(took)} steps")
    return 0


def run_machine(args: argparse.Namespace) -> int:
    """Measure everything and print; returns the exit code."""
    if args.out is not None:
        make_writable(args.out)
    if args.isa:
        hold_back(args.isa)
    result = measure_machine(args.seconds) | {"isa": args.isa}
    lines = machine_table(result)
    # They tell where things are on this machine, which is nobody else's business.
    for name in ("cache", "kernels_why", "compiler"):
        del result["machine"][name]
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if args.json else "\n".join(lines))
    return 0


def hold_back(isa: str) -> None:
    """Hold this process, which has not loaded PyTorch yet, and those that it starts to an instruction set.

    Raises:
        UsageError: the processor lacks it.
    """
    from thumbnet import engine

    held = INSTRUCTION_SETS[isa]
    if not engine.has_level(engine.LEVEL_OF_CAP[held["ONEDNN_MAX_CPU_ISA"]]):
        raise UsageError(f"--isa {isa}: this processor, {engine.cpu_name()}, has no such instructions; leave it out")
    os.environ.update(held)


def measure_machine(seconds: float) -> dict[str, Any]:
    """Return limit, input, steps and the presets' estimated times."""
    from thumbnet import engine
    from thumbnet.cli.doctor import describe_machine
    from thumbnet.config import load_preset
    from thumbnet.training.measure import matmul_tflops

    started = time.monotonic()
    engine.prepare()
    machine = describe_machine(None)
    names = ["fp32", *([machine["precision"]] if machine["precision"] != "fp32" else [])]
    limits = {}
    for name in names:
        limits[name] = matmul_tflops(name, seconds=seconds / 2)
        note(f"matrix product, {name}: {limits[name]:.3f} TFLOP/s")
    speed = input_speed(seconds)
    note(f"input of classic: {speed:,.0f} images/s")
    recipes = {name: load_preset(name) for name in MEASURED}
    steps = measure_steps(recipes, seconds)
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
    import numpy as np

    from thumbnet.config import load_preset
    from thumbnet.data.dataset import ImageDataset
    from thumbnet.data.records import RecordFormat, RecordPart
    from thumbnet.input.pipeline import TrainingInput
    from thumbnet.training.measure import measure_input

    recipe, layout = load_preset("classic"), RecordFormat()
    records = np.random.default_rng(0).integers(0, 256, (CIFAR10_IMAGES, layout.record_bytes), np.uint8)
    records[:, 0] %= 10
    part = RecordPart(name="random", where="random pictures", records=records)
    dataset = ImageDataset("random pictures", [str(label) for label in range(10)], layout, [part])
    with TrainingInput(dataset, recipe.distort, recipe.input, seed=0) as batches:
        return measure_input(batches, recipe.input.batch_size, seconds)["images_per_second"]


def measure_steps(recipes: dict[str, Recipe], seconds: float) -> dict[str, dict[str, list[float]]]:
    """Return images/s of each preset's step, with kernels and in plain PyTorch, round by round, in processes apart."""
    found: dict[str, dict[str, list[float]]] = {name: {"kernels": [], "plain": []} for name in recipes}
    for number in range(ROUNDS):
        for name, recipe in recipes.items():
            for form in ("kernels", "plain") if has_kernels(recipe) else ("plain",):
                speed = step_apart(name, seconds, kernels=form == "kernels")
                found[name][form].append(speed)
                note(f"round {number + 1} of {ROUNDS}, step of {name}, {form}: {speed:,.0f} images/s")
    return found


def has_kernels(recipe: Recipe) -> bool:
    """Tell whether compiled kernels take part in this recipe's step here."""
    from thumbnet import engine
    from thumbnet.kernels import load_library
    from thumbnet.models.grid import amx_ready

    if recipe.model.name == "speed":
        return amx_ready() and engine.resolve_precision(recipe.train.precision).name == "bf16"
    return load_library().handle is not None


def step_apart(preset: str, seconds: float, *, kernels: bool) -> float:
    """Measure a preset's step in a process of its own and return images per second."""
    command = [sys.executable, "-m", "thumbnet.cli.main", "bench", "step", "--preset", preset, "--json"]
    environment = os.environ | ({} if kernels else {"THUMBNET_KERNELS": "0"})
    done = subprocess.run(
        [*command, "--seconds", str(seconds)], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
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
    from thumbnet.training.measure import training_flops

    used = found["kernels"] or found["plain"]
    tflops = statistics.median(used) * training_flops(recipe) / 1e12
    return {
        "batch_size": recipe.input.batch_size,
        "images_per_second": spread(used),
        "plain_images_per_second": spread(found["plain"]),
        "kernels": bool(found["kernels"]),
        "times_plain": statistics.median(used) / statistics.median(found["plain"]),
        "tflops": tflops,
        "share_of_limit": tflops / limit_tflops,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return median and range."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "n": len(values)}


def estimates(steps: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return how long each preset of CIFAR-10 would train here: its steps alone, evaluation left out.

    Args:
        steps: what was measured, by preset. A preset that was not counts with the arithmetic speed of the largest
            measured one with the same network, unless its batch is much smaller: single pictures are far slower.
    """
    from thumbnet.config import load_preset, preset_names
    from thumbnet.training.loop import length_of
    from thumbnet.training.measure import training_flops

    flops = {name: training_flops(load_preset(name)) for name in steps}
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


def machine_table(result: dict[str, Any]) -> list[str]:
    """Return the measurement as a person reads it."""
    from thumbnet.cli.doctor import machine_lines
    from thumbnet.monitor.console import format_duration

    limits = ", ".join(f"{name} {value:.2f}" for name, value in result["matmul_tflops"].items())
    rows = [("preset", "batch", "images/s", "rounds", "plain PyTorch", "times", "of the limit")]
    for name, step in result["steps"].items():
        speed, plain = step["images_per_second"], step["plain_images_per_second"]
        rows.append(
            (
                name,
                f"{step['batch_size']:,}",
                f"{speed['median']:,.0f}",
                f"{speed['lowest']:,.0f} to {speed['highest']:,.0f}",
                f"{plain['median']:,.0f}" if step["kernels"] else "is used",
                f"{step['times_plain']:.2f}" if step["kernels"] else "",
                f"{100 * step['share_of_limit']:.0f} %",
            )
        )
    times = [
        f"{name} {format_duration(found['seconds'])}" + ("" if found["after"] == name else f" (from {found['after']})")
        for name, found in sorted(result["presets"].items(), key=lambda item: item[1]["seconds"])
    ]
    return [
        *machine_lines(result["machine"]),
        f"limit      {limits} TFLOP/s, a large matrix product",
        f"input      {result['input_images_per_second']:,.0f} images/s distorted as in the classic preset",
        "",
        "Training steps on random pictures:",
        *aligned(rows),
        "",
        f"Training, evaluation left out, would take: {', '.join(times)}.",
    ]


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows of a table as lines, the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *right]).rstrip())
    return lines
