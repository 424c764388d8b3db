"""`thumbnet bench machine`: what this machine can do, and how near to that the presets come, in about two minutes."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from typing import Any

from thumbnet.cli.flags import add_engine_flags, duration, make_writable, note, tell_result, user_path
from thumbnet.errors import UsageError

INSTRUCTION_SETS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"},
}
"""What holds PyTorch, oneDNN and our kernels back to older processors' instructions."""


def add_parts(parts: Any) -> None:
    """Add the parsers of `bench machine` and `bench step`."""
    machine = parts.add_parser(
        "machine",
        help="all of it in two minutes: limit, input, steps, and how long training takes here (`bench` without PART)",
        description="Measure the limit of this machine, the input, and training steps of three presets, and tell how\n"
        "long those and the others with the same networks would train here: quick, fast, strong, best, classic.\n"
        "Steps are measured with and without the compiled kernels, in turn.",
    )
    machine.set_defaults(parser=machine)
    machine.add_argument(
        "--isa",
        choices=sorted(INSTRUCTION_SETS),
        help="as on a processor with no more than these instructions",
    )
    machine.add_argument("--seconds", type=duration, default=3.0, metavar="N", help="length of each measurement (3)")
    machine.add_argument("--json", action="store_true", help="print one JSON object")
    machine.add_argument("--out", type=user_path, metavar="FILE", help="also write that object to a file")
    add_engine_flags(machine)
    step = parts.add_parser(
        "step",
        help="training steps of one preset on random pictures: images/s",
        description="Take training steps on one batch of random pictures, without input, summaries and checkpoints.",
    )
    step.set_defaults(parser=step)
    step.add_argument("--preset", default="classic", help="recipe whose step is measured (classic)")
    step.add_argument("--seconds", type=duration, default=3.0, metavar="N", help="how long to measure (3)")
    step.add_argument("--json", action="store_true", help="print one JSON object")
    add_engine_flags(step)


def run_step(args: argparse.Namespace) -> int:
    """Measure one preset's step; returns the exit code."""
    from thumbnet import engine
    from thumbnet.config import load_preset
    from thumbnet.data import known_class_names
    from thumbnet.training.measure import step_seconds

    engine.prepare(args.threads)
    recipe = load_preset(args.preset)
    took = step_seconds(recipe, seconds=args.seconds, classes=len(known_class_names(recipe.data.name) or ()))
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
    from thumbnet.training.measure_machine import measure_machine

    result = measure_machine(args.seconds, threads=args.threads, note=note) | {"isa": args.isa}
    lines = machine_table(result)
    # They tell where things are on this machine, which is nobody else's business.
    for name in ("cache", "kernels_why", "compiler"):
        del result["machine"][name]
    tell_result(result, lines, as_json=args.json, out=args.out)
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


def machine_table(result: dict[str, Any]) -> list[str]:
    """Return the measurement as a person reads it."""
    from thumbnet.monitor.console import format_duration
    from thumbnet.monitor.machine import machine_lines

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
    filtered = any(step["share_of_limit"] > 1 for step in result["steps"].values())
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
        *(["Over 100 %: Winograd's filtering makes fewer products than a convolution counts."] if filtered else []),
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
