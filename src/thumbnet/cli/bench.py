"""`thumbnet bench`: measures parts of the system on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from thumbnet.cli import bench_devices, bench_machine
from thumbnet.cli.flags import (
    add_data_flags,
    add_engine_flags,
    duration,
    make_writable,
    note,
    tell_result,
    user_path,
    whole_number,
)


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "bench",
        help="measure this machine: its limit, the input, training steps, how long training takes",
        description="Measure the system on this machine. Without PART it is `thumbnet bench machine`, flags and all.",
    )
    parser.set_defaults(parser=parser)
    parser.usual_part = "machine"
    parts = parser.add_subparsers(dest="part", metavar="PART")
    bench_machine.add_parts(parts)
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
    part.add_argument("--out", type=user_path, metavar="FILE", help="also write that object to a file")
    add_data_flags(part)
    add_engine_flags(part)
    bench_devices.add_part(parts)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    parts = {
        "input": _run_input,
        "machine": bench_machine.run_machine,
        "step": bench_machine.run_step,
        "devices": bench_devices.run_devices,
    }
    return parts[args.part](args)


def _run_input(args: argparse.Namespace) -> int:
    from thumbnet import engine
    from thumbnet.config import load_preset
    from thumbnet.data import load_splits
    from thumbnet.input.pipeline import TrainingInput
    from thumbnet.monitor.machine import describe_machine
    from thumbnet.training.measure import measure_input

    wanted = {"data.name": args.data, "input.batch_size": args.batch_size}
    recipe = load_preset(args.preset, {key: value for key, value in wanted.items() if value is not None})
    if args.out is not None:
        make_writable(args.out)
    engine.prepare(args.threads)
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
    tell_result(result, _input_lines(result), as_json=args.json, out=args.out)
    return 0


def _input_lines(result: dict[str, Any]) -> list[str]:
    """Return the measurement as a person reads it."""
    machine, speed = result["machine"], result["images_per_second"]
    return [
        f"input of {result['preset']}: {result['data']}, {result['crop']}x{result['crop']},"
        f" batches of {result['batch_size']}",
        f"images/s    {speed['median']:,} (rounds: {speed['lowest']:,} to {speed['highest']:,})",
        f"processor   {result['cpu_us_per_image']} us per image ({machine['cpu']}, {machine['cores']} cores)",
        f"memory      {result['peak_memory_mib']:,} MiB at most, the data set's mapped pages included",
    ]
