"""`thumbnet bench`: measures parts of the system on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.cli.flags import add_data_flags, duration, note, whole_number
from thumbnet.errors import UsageError

if TYPE_CHECKING:
    from thumbnet.input.pipeline import TrainingInput

ROUNDS = 5
"""Rounds a measurement is cut into; the median is the result, the slowest and the fastest show how steady it is."""


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "bench",
        help="measure parts of the system on this machine",
        description="Measure parts of the system on this machine.",
    )
    parser.set_defaults(parser=parser)
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    part = parts.add_parser(
        "input",
        help="training batches without a network: images/s, processor time, memory",
        description="Make training batches as `train` does, in one background thread, and throw them away.",
    )
    part.set_defaults(parser=part)
    part.add_argument("--preset", default="classic", help="recipe whose input is measured (classic)")
    part.add_argument("--data", metavar="NAME", help="data set (the preset's)")
    part.add_argument("--batch-size", "--batch_size", type=whole_number, metavar="N", help="images (the preset's)")
    part.add_argument("--seconds", type=duration, default=5.0, metavar="N", help="how long to measure (5)")
    part.add_argument("--json", action="store_true", help="print one JSON object")
    part.add_argument("--out", type=Path, metavar="FILE", help="also write that object to a file")
    add_data_flags(part)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    return {"input": _run_input}[args.part](args)


def _run_input(args: argparse.Namespace) -> int:
    from thumbnet import engine
    from thumbnet.cli.doctor import describe_machine
    from thumbnet.config import load_preset
    from thumbnet.data import load_splits
    from thumbnet.input.pipeline import TrainingInput

    if args.out is not None:
        _make_writable(args.out)
    wanted = {"data.name": args.data, "input.batch_size": args.batch_size}
    recipe = load_preset(args.preset, {key: value for key, value in wanted.items() if value is not None})
    engine.prepare()
    dataset = load_splits(recipe.data, data_dir=args.data_dir, offline=args.offline, note=note).train
    with TrainingInput(dataset, recipe.distort, recipe.input, seed=recipe.seed) as batches:
        measured = measure_input(batches, recipe.input.batch_size, args.seconds)
    machine = describe_machine(args.data_dir)
    result = {
        "benchmark": "input",
        "preset": args.preset,
        "data": recipe.data.name,
        "batch_size": recipe.input.batch_size,
        "crop": recipe.distort.crop,
        **measured,
        "machine": {key: machine[key] for key in ("cpu", "cores", "python", "torch")},
    }
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result) if args.json else "\n".join(_input_lines(result)))
    return 0


def measure_input(batches: TrainingInput, batch_size: int, seconds: float) -> dict[str, float]:
    """Take batches for some seconds and return speed, processor time and memory.

    Start-up is left out: the clock starts when the first batches have been taken.
    """
    import resource
    import statistics
    import sys
    import time

    for _ in range(10):
        next(batches)
    speeds: list[float] = []
    images, busy_from_s = 0, time.process_time()
    for _ in range(ROUNDS):
        taken, started_s = 0, time.perf_counter()
        while (elapsed_s := time.perf_counter() - started_s) < seconds / ROUNDS or not taken:
            next(batches)
            taken += batch_size
        speeds.append(taken / elapsed_s)
        images += taken
    busy_s = time.process_time() - busy_from_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "images_per_second": round(statistics.median(speeds)),
        "slowest_round": round(min(speeds)),
        "fastest_round": round(max(speeds)),
        "cpu_us_per_image": round(busy_s / images * 1e6, 2),
        "peak_memory_mib": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),  # macOS counts in bytes
    }


def _input_lines(result: dict[str, Any]) -> list[str]:
    """Return the measurement as a person reads it."""
    machine = result["machine"]
    return [
        f"input of {result['preset']}: {result['data']}, {result['crop']}x{result['crop']},"
        f" batches of {result['batch_size']}",
        f"images/s    {result['images_per_second']:,} (rounds: {result['slowest_round']:,} to"
        f" {result['fastest_round']:,})",
        f"processor   {result['cpu_us_per_image']} us per image ({machine['cpu']}, {machine['cores']} cores)",
        f"memory      {result['peak_memory_mib']:,} MiB at most, the data set's mapped pages included",
    ]


def _make_writable(path: Path) -> None:
    """Make sure that a result can be written before it takes time to measure it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UsageError(f"--out {path}: cannot write this file: {error.strerror or error}") from error
