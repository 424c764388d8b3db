"""What docs/scaling.md computes with and no other benchmark measures: the step in parts, the all-reduce, a checkpoint.

    python benchmarks/scaling_inputs.py classic quick fast

* The time of a training step against the number of images in it, and when in the step each gradient is ready. On one
  thread and in processor time, so that other work on the machine shows little; only proportions are used of it.
* An all-reduce by gloo, of one to a few processes on one machine over its loopback, and of hosts that are network
  namespaces behind links of a given speed (benchmarks/hosts.py; left out where they cannot be made).
* How long saving a checkpoint takes and how large it is; memory for the order and the draws of an epoch.

Writes benchmarks/results/scaling_inputs.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts

RESULT = Path(__file__).parent / "results" / "scaling_inputs.json"
SIZES = tuple(4**power for power in range(5, 13))
"""Bytes of the messages, 1 KiB to 16 MiB."""
LINKS_MBIT = (100, 300)
"""Speeds that links between hosts are limited to, such that one core has time to spare."""
LIMITED_SIZES = tuple(size for size in SIZES if 2**20 <= size <= 2**22)
LEAST_S = 0.4
"""An all-reduce is repeated for at least this long."""
FEWEST_IMAGES = 4
ROUNDS = 5
EXAMPLES = 100_000


def main() -> int:
    """Measure and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["classic"], metavar="PRESET")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file of the result")
    parser.add_argument("--measure-step", metavar="PRESET", help=argparse.SUPPRESS)  # the subprocesses
    parser.add_argument("--replica", nargs=4, metavar=("RANK", "WORLD", "ADDRESS", "SIZES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure_step:
        print(json.dumps(measure_step(args.measure_step)))
        return 0
    if args.replica:
        rank, world, address, sizes = args.replica
        print(json.dumps(replica(int(rank), int(world), address, [int(size) for size in sizes.split(",")])))
        return 0
    from thumbnet import engine

    result = {
        "benchmark": "scaling_inputs",
        "presets": {preset: step_apart(preset) for preset in args.presets},
        "all_reduce": {"backend": "gloo", "loopback": [loopback(world) for world in (2, 3)], "links": links()},
        "checkpoint": save_time(),
        "epoch": epoch_memory(),
        "machine": {"cpu": engine.cpu_name(), "cores": engine.usable_cores()},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(args.out)
    return 0


def step_apart(preset: str) -> dict[str, Any]:
    """Measure a preset's step in a process of its own, with one thread."""
    found = run([sys.executable, __file__, "--measure-step", preset])
    return {"batch_size": found["batch_size"], "steps": found["steps"], "gradients": found["gradients"]}


def run(command: list[str]) -> dict[str, Any]:
    """Run one of the subprocesses and return what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure_step(preset: str) -> dict[str, Any]:
    """Return the step's time by number of images, and when its gradients are ready with all of them."""
    from thumbnet import engine
    from thumbnet.config import load_preset

    engine.prepare(1)
    recipe = load_preset(preset)
    batch_size = recipe.input.batch_size
    sizes = [batch_size >> halvings for halvings in range(int(math.log2(batch_size / FEWEST_IMAGES)) + 1)]
    step, named = prepare_step(recipe)
    steps = []
    for images in sizes:
        for _ in range(2):
            step(images)
        seconds = statistics.median(processor_seconds(lambda n=images: step(n)) for _ in range(ROUNDS))  # type: ignore[misc]
        steps.append({"images": images, "processor_s": round(seconds, 7)})
    return {"batch_size": batch_size, "steps": steps, "gradients": ready_times(lambda: step(batch_size), named)}


def prepare_step(recipe: Any) -> tuple[Callable[[int], None], list[tuple[str, Any]]]:
    """Return what trains a step on so many random pictures, and the network's parameters by name."""
    import numpy as np
    import torch

    from thumbnet import engine
    from thumbnet.input.pipeline import Batch
    from thumbnet.monitor.health import GradientCheck
    from thumbnet.training.optimizers import set_rates
    from thumbnet.training.state import new_state
    from thumbnet.training.step import train_step

    side, count = recipe.distort.crop, recipe.input.batch_size
    state = new_state(recipe, num_classes=10, channels=3, examples=lambda n: torch.randn(n, 3, side, side))
    set_rates(state.optimizer, factor=0.1, progress=0.0)
    precision = engine.resolve_precision(recipe.train.precision)
    check = GradientCheck(state.model)
    pictures = torch.randn(count, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(count) % 10

    def step(images: int) -> None:
        batch = Batch(images=pictures[:images], labels=labels[:images], indices=np.arange(images))
        train_step(state, batch, check=check, precision=precision)

    return step, [(name, value) for name, value in state.model.named_parameters() if value.requires_grad]


def processor_seconds(act: Callable[[], None]) -> float:
    """Return the processor time of this process that `act` takes."""
    started = time.process_time()
    act()
    return time.process_time() - started


def ready_times(step: Callable[[], None], named: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Return each gradient's size, and the share of the step after which it is ready, in the order of that."""
    shares: dict[str, list[float]] = {name: [] for name, _ in named}
    at: dict[str, float] = {}
    handles = [
        value.register_post_accumulate_grad_hook(lambda _, n=name: at.update({n: time.process_time()}))
        for name, value in named
    ]
    for _ in range(ROUNDS):
        started = time.process_time()
        step()
        seconds = time.process_time() - started
        for name, when in at.items():
            shares[name].append((when - started) / seconds)
    for handle in handles:
        handle.remove()
    gradients = [
        {"name": name, "bytes": value.numel() * 4, "ready": round(statistics.median(shares[name]), 4)}
        for name, value in named
    ]
    return sorted(gradients, key=lambda gradient: gradient["ready"])


def replica(rank: int, world: int, address: str, sizes: list[int]) -> list[dict[str, float]]:
    """Take part in all-reduces of float32 messages; returns seconds and processor seconds of each, by size."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=world)
    found = []
    for size in sizes:
        message = torch.full((size // 4,), float(rank))
        started = time.perf_counter()
        dist.all_reduce(message)
        if not torch.all(message == world * (world - 1) / 2):
            raise SystemExit(f"an all-reduce of {size} bytes over {world} replicas gave a wrong sum")
        message.zero_()
        # All must agree on the number: the slowest of the first ones decides.
        first = torch.tensor([time.perf_counter() - started])
        dist.all_reduce(first, dist.ReduceOp.MAX)
        repeats = max(5, math.ceil(LEAST_S / first.item()))
        dist.all_reduce(message)
        started, processor = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            dist.all_reduce(message)
        found.append(
            {
                "bytes": size,
                "seconds": (time.perf_counter() - started) / repeats,
                "processor_s": (time.process_time() - processor) / repeats,
            }
        )
    dist.destroy_process_group()
    return found


def replica_command(rank: int, world: int, address: str, sizes: tuple[int, ...]) -> list[str]:
    """Return the command line of one replica."""
    return [sys.executable, __file__, "--replica", str(rank), str(world), address, ",".join(map(str, sizes))]


def loopback(world: int) -> dict[str, Any]:
    """Measure processes of one machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    commands = [replica_command(rank, world, f"127.0.0.1:{port}", SIZES) for rank in range(world)]
    return {"replicas": world, "messages": gather([start(command, "lo") for command in commands])}


def links() -> list[dict[str, Any]]:
    """Measure hosts behind links of a given speed, if they can be made."""
    why = hosts.why_not()
    if why:
        print(f"links left out: {why}", file=sys.stderr)
        return []
    found = []
    for world in (2, 3):
        for mbit in LINKS_MBIT:
            with hosts.Lan(*(f"host{number}" for number in range(world))) as lan:
                for host in lan.hosts:
                    lan.limit(host, mbit * 10**6)
                address = f"{lan.hosts[0].address}:29500"
                processes = [
                    start(host.command(*replica_command(rank, world, address, LIMITED_SIZES)), "eth0")
                    for rank, host in enumerate(lan.hosts)
                ]
                found.append({"replicas": world, "link_mbit": mbit, "messages": gather(processes)})
    return found


def start(command: list[str], interface: str) -> subprocess.Popen[str]:
    """Start a replica that talks over one network interface."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": interface, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def gather(processes: list[subprocess.Popen[str]]) -> list[dict[str, float]]:
    """Return the messages' times, the mean of all replicas."""
    said = [process.communicate(timeout=600)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a replica failed, see above")
    tables = [json.loads(text) for text in said]
    return [
        {"bytes": rows[0]["bytes"]}
        | {key: round(statistics.mean(row[key] for row in rows), 7) for key in ("seconds", "processor_s")}
        for rows in zip(*tables, strict=True)
    ]


def save_time() -> dict[str, Any]:
    """Save checkpoints of the classic network and return how long that took and how large they are."""
    from thumbnet.config import load_preset
    from thumbnet.models import build_model
    from thumbnet.runs.checkpoint import Checkpoint, save_checkpoint

    recipe = load_preset("classic")
    weights = build_model(recipe.model, num_classes=10, crop=recipe.distort.crop).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for step in range(7):
            whole = Checkpoint(step=step, model=weights, average=weights, state={}, info={})
            started = time.perf_counter()
            path = save_checkpoint(Path(folder), whole)
            seconds.append(time.perf_counter() - started)
        size = sum(file.stat().st_size for file in path.iterdir())
    return {"preset": "classic", "bytes": size, "seconds": round(statistics.median(seconds), 4), "n": len(seconds)}


def epoch_memory() -> dict[str, Any]:
    """Return what the order and the draws of an epoch take for each example, in bytes and in time."""
    from dataclasses import fields

    from thumbnet.config import load_preset
    from thumbnet.input.distort import draw
    from thumbnet.input.order import epoch_order

    recipe = load_preset("classic")
    started = time.process_time()
    order = epoch_order(EXAMPLES, seed=0, epoch=0, pool=EXAMPLES)
    draws = draw(EXAMPLES, recipe.distort, (32, 32, 3), seed=0, epoch=0)
    seconds = time.process_time() - started
    # A draw that the recipe does not ask for is one number, shown once for each example: all its strides are 0.
    held = [array.nbytes for field in fields(draws) if any((array := getattr(draws, field.name)).strides)]
    return {
        "preset": "classic",
        "order_bytes_per_example": order.nbytes / EXAMPLES,
        "draw_bytes_per_example": sum(held) / EXAMPLES,
        "processor_us_per_example": round(1e6 * seconds / EXAMPLES, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
