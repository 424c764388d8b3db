"""`thumbnet bench devices`: several devices with a part of the batch each, against one device with all of it."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.cli.flags import add_data_flags, make_writable, note, tell_result, user_path, whole_number
from thumbnet.errors import ThumbnetError, UsageError

if TYPE_CHECKING:
    from thumbnet.distributed.place import Place

PEER_TIMEOUT_S = 120.0


def add_part(parts: Any) -> None:
    """Add the parser of this part."""
    part = parts.add_parser(
        "devices",
        help="2 devices x 64 images against 1 x 128: speed, efficiency, time of the all-reduce",
        description="Train the same batches on several devices and on one, in turn, each time in new processes: GPUs "
        "where there are, else cores, of which the one process gets all.",
    )
    part.set_defaults(parser=part)
    part.add_argument("--devices", "--num_gpus", type=whole_number, default=2, metavar="N", help="replicas (2)")
    part.add_argument("--preset", default="classic", help="recipe that is trained (classic)")
    part.add_argument("--data", metavar="NAME", help="data set (the preset's)")
    part.add_argument("--batch-size", "--batch_size", type=whole_number, metavar="N", help="images over all devices")
    part.add_argument("--precision", default="auto", metavar="NAME", help="auto, fp32, bf16 or fp16")
    part.add_argument(
        "--grain", type=whole_number, metavar="N", help="images of one gradient, as `train --grain` has it"
    )
    part.add_argument("--steps", type=whole_number, default=200, metavar="N", help="steps of a round (200)")
    part.add_argument("--rounds", type=whole_number, default=5, metavar="N", help="rounds (5)")
    part.add_argument(
        "--trace", type=user_path, metavar="FILE", help="also keep a trace of some steps, for chrome://tracing"
    )
    part.add_argument("--json", action="store_true", help="print one JSON object")
    part.add_argument("--out", type=user_path, metavar="FILE", help="also write that object to a file")
    # Where a replica leaves its figures, and its trace in a round that has one.
    part.add_argument("--measured", type=Path, help=argparse.SUPPRESS)
    part.add_argument("--traced", type=Path, help=argparse.SUPPRESS)
    add_data_flags(part)


def run_devices(args: argparse.Namespace) -> int:
    """Measure and print, or measure as one of the replicas; returns the exit code."""
    from thumbnet.distributed.place import place_of

    place = place_of(os.environ)
    if args.measured is not None and place is not None:
        _measure_as_replica(args, place)
        return 0
    result = _compare(args)
    tell_result(result, _lines(result), as_json=args.json, out=args.out)
    return 0


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measure both, in turn."""
    from thumbnet import engine
    from thumbnet.config import load_preset
    from thumbnet.data import load_splits
    from thumbnet.distributed.launch import available
    from thumbnet.monitor.machine import describe_machine
    from thumbnet.training.measure import spread

    count = available(args.devices, note)
    if count < 2:
        raise UsageError("bench devices compares several devices with one, and this machine has one to use")
    recipe = load_preset(args.preset, _overrides(args))
    if count > recipe.input.batch_size:
        raise UsageError(f"{count} devices, and --batch-size {recipe.input.batch_size} has no image for each")
    engine.resolve_precision(recipe.train.precision)  # tells of one that is not to be had here
    if args.out is not None:
        make_writable(args.out)
    if args.trace is not None:
        if args.trace.suffix == ".gz":
            raise UsageError(f"--trace {args.trace}: it is written as it is: give a name without .gz")
        make_writable(args.trace, "--trace")
    load_splits(recipe.data, data_dir=args.data_dir, offline=args.offline, note=note)  # fetched once, before the clock
    with tempfile.TemporaryDirectory(prefix="thumbnet-") as folder:
        trace = args.trace or Path(folder) / "trace.json"
        one: list[dict[str, Any]] = []
        several: list[dict[str, Any]] = []
        for number in range(args.rounds):
            note(f"round {number + 1} of {args.rounds}")
            # The second of a pair meets another machine than the first: each is first in turn.
            for replicas, rounds in ((1, one), (count, several))[:: -1 if number % 2 else 1]:
                wanted = trace if replicas > 1 and number == args.rounds - 1 else None
                rounds.append(_measure_round(args, replicas, Path(folder) / "measured.json", wanted))
        overlap = _describe_overlap(trace)
    # One process has all the cores that the replicas share; one GPU is a part of the GPUs.
    ideal = count if engine.device().type == "cuda" else 1
    speed, alone = ([figures["images_per_second"] for figures in rounds] for rounds in (several, one))
    ratios = [together / (ideal * whole) for together, whole in zip(speed, alone, strict=True)]
    machine = describe_machine(args.data_dir)
    return {
        "benchmark": "devices",
        "preset": args.preset,
        "data": recipe.data.name,
        "batch_size": recipe.input.batch_size,
        "grain": recipe.train.grain,
        "precision": several[0]["precision"],
        "steps_per_round": args.steps,
        "one": {"devices": 1, "threads": one[0]["threads"], "images_per_second": spread(alone, digits=0)},
        "several": {"devices": count, "threads": several[0]["threads"], "images_per_second": spread(speed, digits=0)},
        "efficiency": spread(ratios, digits=3),
        "all_reduce": overlap,
        "machine": {key: machine[key] for key in ("cpu", "cores", "python", "torch")},
    }


def _lines(result: dict[str, Any]) -> list[str]:
    """Return the measurement as a person reads it."""
    grains = f", grains of {result['grain']}" if result["grain"] else ""
    lines = [f"{result['preset']}, {result['data']}, {result['precision']}{grains}"]
    batch_size = result["batch_size"]
    for part in (result["one"], result["several"]):
        speed, threads = part["images_per_second"], part["threads"]
        lines.append(
            f"{part['devices']} x {batch_size // part['devices']:<4} images/s  {speed['median']:,} (rounds: "
            f"{speed['lowest']:,} to {speed['highest']:,}), {threads} thread{'s' * (threads > 1)} each"
        )
    efficiency, reduce = result["efficiency"], result["all_reduce"]
    return [
        *lines,
        f"efficiency          {100 * efficiency['median']:.1f} % (rounds: {100 * efficiency['lowest']:.1f} to "
        f"{100 * efficiency['highest']:.1f} %)",
        f"all-reduce          {reduce['all_reduce_ms']:.1f} ms of a step of {reduce['step_ms']:.1f} ms; it begins "
        f"{reduce['lead_ms']:.1f} ms before the backward pass ends, {reduce['exposed_ms']:.1f} ms of it come after",
    ]


def _measure_round(args: argparse.Namespace, replicas: int, measured: Path, trace: Path | None) -> dict[str, Any]:
    """Measure in new processes."""
    from thumbnet.distributed.launch import launch

    words = [*args.words, "--measured", str(measured)] + (["--traced", str(trace)] if trace else [])
    measured.unlink(missing_ok=True)
    code = launch(words, count=replicas, max_restarts=0)
    if code > 128:
        raise KeyboardInterrupt(code)
    if code:
        raise ThumbnetError("a replica has failed: see above")
    figures: dict[str, Any] = json.loads(measured.read_text(encoding="utf-8"))
    return figures


def _measure_as_replica(args: argparse.Namespace, place: Place) -> None:
    """Measure as one of the replicas; replica 0 writes the figures."""
    # The profiler would tell that it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    import torch

    from thumbnet import engine
    from thumbnet.config import load_preset
    from thumbnet.data import load_splits
    from thumbnet.distributed.join import joined
    from thumbnet.training.measure_devices import measure_steps

    recipe = load_preset(args.preset, _overrides(args))
    with joined(place, PEER_TIMEOUT_S) as replicas:
        engine.prepare(sharers=replicas.sharers)
        precision = engine.resolve_precision(recipe.train.precision)
        dataset = load_splits(recipe.data, data_dir=args.data_dir, offline=args.offline).train
        figures: dict[str, Any] = {
            **measure_steps(recipe, dataset, replicas, precision=precision, steps=args.steps, trace=args.traced)
        }
    figures |= {"threads": torch.get_num_threads(), "precision": precision.name}
    if not place.rank:
        args.measured.write_text(json.dumps(figures), encoding="utf-8")


def _overrides(args: argparse.Namespace) -> dict[str, object]:
    wanted = {
        "data.name": args.data,
        "input.batch_size": args.batch_size,
        "train.precision": args.precision,
        "train.grain": args.grain,
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _describe_overlap(trace: Path) -> dict[str, float]:
    """Return the median step of a trace."""
    import dataclasses

    from thumbnet.training.measure_devices import read_overlaps

    steps = [dataclasses.asdict(overlap) for overlap in read_overlaps(trace)]
    return {name: round(statistics.median(step[name] for step in steps), 2) for name in steps[0]}
