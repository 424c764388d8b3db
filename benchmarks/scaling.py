"""How long a training step would take on more machines than there are here: a simulation from measured parts.

    python benchmarks/scaling.py                  # reads benchmarks/results/, measures nothing

Synchronous training with one all-reduce of the gradients a step, as DDP does it: gradients go into buckets in the order
in which backward makes them, and a bucket is summed over a ring of the replicas while backward goes on. The batch of a
step stays what the recipe says, so each of N replicas gets 1/N of it: the training is the same, only its speed differs.

Writes benchmarks/results/scaling.json and scaling.png, and the tables of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
DOC = FOLDER.parent / "docs" / "scaling.md"

FIRST_BUCKET_BYTES, BUCKET_BYTES = 2**20, 25 * 2**20
"""DDP's defaults: the first bucket is small, so that the network starts early."""
PAYLOAD_SHARE = 1448 / 1514
"""Payload in a full frame of Ethernet with TCP/IP headers and time stamps; what `tc` counts is the frame."""
CORES = 2
"""Cores of the machine whose throughput the results files give."""
WIRE_LATENCY_S = {"1 Gbit/s": 20e-6, "10 Gbit/s": 10e-6, "100 Gbit/s": 5e-6}
"""Assumed, not measured: network card, cable and switch, one way."""
BITS_PER_S = {"1 Gbit/s": 1e9, "10 Gbit/s": 1e10, "100 Gbit/s": 1e11}

GPU = {
    "images_per_second": 8 * 50_000 / 2.59,
    "batch_size": 2000,
    "parameters": 1_970_000,
    "least_step_s": 3e-3,
    "gpus_per_machine": 8,
    "message_latency_s": 10e-6,
    "inside_bytes_per_s": 200e9,
    "failures_per_day": 419 / (54 * 16_384),
    "restart_s": 90.0,
}
"""An A100: airbench94's published 8 epochs in 2.59 s with Muon at batch 2,000; the failures are those published for a
training on 16,384 GPUs over 54 days. The least time of a step, the message's latency, the speed inside a machine and
the time of a restart are assumed."""
GPU_COUNTS = (1, 8, 64, 1000)
PICTURES, RECORD_BYTES = 10**9, 3073


@dataclass(frozen=True, kw_only=True)
class Link:
    """What joins two neighbours of the ring."""

    latency_s: float
    """From one program to the other, without the bytes."""
    bytes_per_s: float
    """Payload, each way at once."""


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """What one parameter's gradient needs."""

    bytes: int
    ready: float
    """Share of the step after which backward has made it, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A training step of one replica."""

    batch_size: int
    """Images of a step over all replicas."""
    seconds: tuple[tuple[int, float], ...]
    """Images on a replica, rising, and the time of a step with them, nothing sent."""
    gradients: tuple[Gradient, ...]
    """In the order in which they are ready."""
    processor_s_per_byte: float = 0.0
    """Work of a replica's cores, all together, for each byte that it sends and receives in an all-reduce."""

    def step_s(self, images: float) -> float:
        """Return the time of a step on so many images: measured points, straight lines between and before them."""
        counts, times = zip(*self.seconds, strict=True)
        if images >= counts[0] or len(counts) == 1:
            return float(np.interp(images, counts, times))
        slope = max(0.0, (times[1] - times[0]) / (counts[1] - counts[0]))
        return float(times[0] - slope * (counts[0] - images))


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where the time of a step goes, in seconds."""

    compute: float
    processor: float
    """The cores' work for the all-reduce, which computing has to wait for."""
    exposed: float
    """Time in which only the network works."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.processor + self.exposed


def ring_s(size: float, replicas: int, link: Link) -> float:
    """Return the time of a ring all-reduce: 2 (N - 1) rounds, in each of which everybody sends 1/N of the message."""
    return 2 * (replicas - 1) * (link.latency_s + size / replicas / link.bytes_per_s)


def fill_buckets(
    gradients: Sequence[Gradient], first: int = FIRST_BUCKET_BYTES, others: int = BUCKET_BYTES
) -> list[Gradient]:
    """Return the buckets that gradients go into: one is full as soon as it holds its limit or more."""
    buckets: list[Gradient] = []
    size, limit = 0, first
    for number, gradient in enumerate(gradients):
        size += gradient.bytes
        if size >= limit or number + 1 == len(gradients):
            buckets.append(Gradient(bytes=size, ready=gradient.ready))
            size, limit = 0, others
    return buckets


def simulate(work: Work, replicas: int, link: Link, *, images: int | None = None) -> Step:
    """Return the step of the slowest replica.

    Args:
        work: the step of a replica.
        replicas: how many there are.
        link: what joins them.
        images: of each replica; without it, its part of the batch.
    """
    compute = work.step_s(math.ceil(work.batch_size / replicas) if images is None else images)
    if replicas == 1:
        return Step(compute=compute, processor=0.0, exposed=0.0)
    moved = 2 * (replicas - 1) / replicas * sum(gradient.bytes for gradient in work.gradients)
    processor = work.processor_s_per_byte * moved
    busy, ends = compute + processor, 0.0
    for bucket in fill_buckets(work.gradients):
        ends = max(ends, bucket.ready * busy) + ring_s(bucket.bytes, replicas, link)
    return Step(compute=compute, processor=processor, exposed=max(0.0, ends - work.gradients[-1].ready * busy))


def half_efficient(totals: Sequence[float]) -> int:
    """Return the most replicas up to which each does at least half of what one alone does; entry 0 is one replica."""
    for number, seconds in enumerate(totals, 1):
        if totals[0] / (number * seconds) < 0.5:
            return number - 1
    return len(totals)


def load(name: str) -> Any:
    """Return the content of a results file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def throughput_file(preset: str) -> str:
    """Return the results file with a preset's measured speed."""
    return "classic_system.json" if preset == "classic" else f"preset-{preset}.json"


def throughput(preset: str) -> float:
    """Return a preset's measured speed in images/s."""
    found = load(throughput_file(preset))
    if preset == "classic":
        return float(found["summaries"]["images_per_second_with"]["median"])
    return float(found["images_per_second"]["mean"])


def measured_work(preset: str, inputs: dict[str, Any]) -> Work:
    """Return a preset's step: proportions from `scaling_inputs.json`, scaled to the measured speed of training."""
    part = inputs["presets"][preset]
    by_images = sorted((entry["images"], entry["processor_s"]) for entry in part["steps"])
    whole_s = part["batch_size"] / throughput(preset)
    return Work(
        batch_size=part["batch_size"],
        seconds=tuple((images, seconds / by_images[-1][1] * whole_s) for images, seconds in by_images),
        gradients=tuple(Gradient(bytes=entry["bytes"], ready=entry["ready"]) for entry in part["gradients"]),
        processor_s_per_byte=processor_s_per_byte(inputs) / CORES,
    )


def processor_s_per_byte(inputs: dict[str, Any]) -> float:
    """Return one core's time for a byte of an all-reduce's traffic, from the largest message of two processes."""
    largest = inputs["all_reduce"]["loopback"][0]["messages"][-1]
    return float(largest["processor_s"] / largest["bytes"])  # two replicas send the message once each


def measured_latency_s(inputs: dict[str, Any]) -> float:
    """Return gloo's and the kernel's part of a message's latency, from the smallest message of two processes."""
    return float(inputs["all_reduce"]["loopback"][0]["messages"][0]["seconds"] / 2)


def links(inputs: dict[str, Any]) -> dict[str, Link]:
    """Return the networks, by name; no core sends faster than it can copy and add."""
    software_s, core_bytes_per_s = measured_latency_s(inputs), 1 / processor_s_per_byte(inputs)
    return {
        name: Link(
            latency_s=software_s + WIRE_LATENCY_S[name],
            bytes_per_s=min(bits / 8 * PAYLOAD_SHARE, core_bytes_per_s),
        )
        for name, bits in BITS_PER_S.items()
    }


def check_ring(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return measured all-reduces beside the model, for links of a known speed: nothing is fitted to them."""
    rows = []
    for measured in inputs["all_reduce"]["links"]:
        link = Link(latency_s=measured_latency_s(inputs), bytes_per_s=measured["link_mbit"] * 1e6 / 8 * PAYLOAD_SHARE)
        for message in measured["messages"]:
            model_s = ring_s(message["bytes"], measured["replicas"], link)
            rows.append(
                {
                    "replicas": measured["replicas"],
                    "link_mbit": measured["link_mbit"],
                    "bytes": message["bytes"],
                    "measured_s": message["seconds"],
                    "model_s": round(model_s, 6),
                    "measured_to_model": round(message["seconds"] / model_s, 3),
                }
            )
    return rows


def strong_scaling(work: Work, link: Link) -> dict[str, Any]:
    """Return the same training on one replica, two, and so on up to one for every image of the batch."""
    steps = [simulate(work, replicas, link) for replicas in range(1, work.batch_size + 1)]
    totals = [step.total for step in steps]
    fastest = int(np.argmin(totals)) + 1
    shown = sorted({2**power for power in range(work.batch_size.bit_length())} | {fastest, half_efficient(totals)})
    return {
        "half_efficient_replicas": half_efficient(totals),
        "fastest_replicas": fastest,
        "fastest_images_per_second": round(work.batch_size / totals[fastest - 1], 1),
        "steps": [
            {
                "replicas": replicas,
                "compute_s": round(steps[replicas - 1].compute, 6),
                "processor_s": round(steps[replicas - 1].processor, 6),
                "exposed_s": round(steps[replicas - 1].exposed, 6),
                "images_per_second": round(work.batch_size / totals[replicas - 1], 1),
                "efficiency": round(totals[0] / (replicas * totals[replicas - 1]), 3),
            }
            for replicas in shown
        ],
    }


def gpu_work() -> Work:
    """Return the step of one GPU: in proportion to its images, but never shorter than launching its kernels takes."""
    least, rate = GPU["least_step_s"], GPU["images_per_second"]
    even = round(least * rate)
    many = 1_000_000
    return Work(
        batch_size=int(GPU["batch_size"]),
        seconds=((1, least), (even, least), (many, many / rate)),
        # Backward is two thirds of the step; the gradients come evenly over it.
        gradients=tuple(
            Gradient(bytes=int(GPU["parameters"] * 4 / 8), ready=1 / 3 + part / 12) for part in range(1, 9)
        ),
    )


def gpu_rows() -> list[dict[str, Any]]:
    """Return what 8, 64 and 1,000 GPUs do with the recipe's batch, and with the recipe's batch on each of them."""
    work, per_machine = gpu_work(), int(GPU["gpus_per_machine"])
    outside = BITS_PER_S["100 Gbit/s"] / 8 * PAYLOAD_SHARE
    rows = []
    for count in GPU_COUNTS:
        speed = GPU["inside_bytes_per_s"] if count <= per_machine else outside
        link = Link(latency_s=GPU["message_latency_s"], bytes_per_s=speed)
        same = simulate(work, count, link)
        grown = simulate(work, count, link, images=work.batch_size)
        alone = simulate(work, 1, link).total
        rows.append(
            {
                "gpus": count,
                "same_batch": {
                    "images_each": math.ceil(work.batch_size / count),
                    "step_ms": round(1e3 * same.total, 2),
                    "images_per_second": round(work.batch_size / same.total),
                    "efficiency": round(alone / (count * same.total), 5),
                },
                "grown_batch": {
                    "batch_size": count * work.batch_size,
                    "step_ms": round(1e3 * grown.total, 2),
                    "images_per_second": round(count * work.batch_size / grown.total),
                    "efficiency": round(alone / grown.total, 5),
                },
            }
        )
    return rows


def billion_rows(gpus: list[dict[str, Any]], inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a data set of a billion pictures asks for, at the speed of the batch that grows."""
    streamed = load("large_file.json")
    rows = []
    for row in gpus:
        rate, machines = row["grown_batch"]["images_per_second"], math.ceil(row["gpus"] / GPU["gpus_per_machine"])
        between_failures_s = 86_400 / (GPU["failures_per_day"] * row["gpus"])
        interval_s = math.sqrt(2 * inputs["checkpoint"]["seconds"] * between_failures_s)
        lost = inputs["checkpoint"]["seconds"] / interval_s + (interval_s / 2 + GPU["restart_s"]) / between_failures_s
        rows.append(
            {
                "gpus": row["gpus"],
                "epoch_hours": round(PICTURES / rate / 3600, 3),
                "read_gb_per_s": round(rate * RECORD_BYTES / 1e9, 2),
                "read_gb_per_s_of_a_machine": round(rate * RECORD_BYTES / 1e9 / machines, 2),
                "input_cores_of_a_machine": round(rate * streamed["cpu_us_per_image"] / 1e6 / machines, 1),
                "failures_per_day": round(GPU["failures_per_day"] * row["gpus"], 3),
                "best_checkpoint_interval_s": round(interval_s),
                "share_lost_to_failures": round(lost, 5),
            }
        )
    return rows


def main() -> int:
    """Simulate and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help="default: all that were measured")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of scaling.json and scaling.png")
    parser.add_argument("--doc", type=Path, default=DOC, help="document whose tables are written")
    args = parser.parse_args()
    from scaling_report import plot, with_tables

    inputs = load("scaling_inputs.json")
    presets = args.presets or [name for name in inputs["presets"] if (RESULTS / throughput_file(name)).exists()]
    result = simulate_all(presets, inputs)
    (args.out / "scaling.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (args.out / "scaling.png").write_bytes(plot(result))
    args.doc.write_text(with_tables(args.doc.read_text(encoding="utf-8"), result), encoding="utf-8")
    print(args.out / "scaling.json")
    return 0


def simulate_all(presets: list[str], inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the whole result."""
    gpus = gpu_rows()
    networks = links(inputs)
    return {
        "benchmark": "scaling",
        "inputs": {
            "proportions": "scaling_inputs.json",
            "presets": {preset: describe_input(preset, inputs) for preset in presets},
            "message_latency_s": {name: round(link.latency_s, 7) for name, link in networks.items()},
            "bytes_per_s": {name: round(link.bytes_per_s) for name, link in networks.items()},
            "processor_s_per_gb": round(1e9 * processor_s_per_byte(inputs), 3),
            "gpu_assumed": GPU,
        },
        "all_reduce": {"links": check_ring(inputs), "one_core": one_core(inputs)},
        "presets": {
            preset: {name: strong_scaling(measured_work(preset, inputs), link) for name, link in networks.items()}
            for preset in presets
        },
        "gpus": gpus,
        "billion_pictures": {
            "records_tb": round(PICTURES * RECORD_BYTES / 1e12, 2),
            "draws_gb_of_a_process": round(PICTURES * inputs["epoch"]["draw_bytes_per_example"] / 1e9, 1),
            "order_gb_of_a_process": round(PICTURES * inputs["epoch"]["order_bytes_per_example"] / 1e9, 1),
            "draws_and_order_s": round(PICTURES * inputs["epoch"]["processor_us_per_example"] / 1e6),
            "rows": billion_rows(gpus, inputs),
        },
    }


def describe_input(preset: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return where a preset's figures are from, and what they are."""
    work = measured_work(preset, inputs)
    return {
        "file": throughput_file(preset),
        "images_per_second": round(throughput(preset), 1),
        "batch_size": work.batch_size,
        "gradient_bytes": sum(gradient.bytes for gradient in work.gradients),
        "bucket_bytes": [bucket.bytes for bucket in fill_buckets(work.gradients)],
        "bucket_ready": [bucket.ready for bucket in fill_buckets(work.gradients)],
        "last_gradient_ready": work.gradients[-1].ready,
        "smallest_step_to_whole": round(work.seconds[0][1] / work.seconds[-1][1], 4),
        "images_of_smallest_step": work.seconds[0][0],
    }


def one_core(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return how processes that share a core compare: their work adds up, which a ring of machines has not."""
    two, three = (entry["messages"][-1] for entry in inputs["all_reduce"]["loopback"])
    return {
        "bytes": two["bytes"],
        "two_processes_s": two["seconds"],
        "three_processes_s": three["seconds"],
        "ratio": round(three["seconds"] / two["seconds"], 3),
        "ratio_of_a_ring": round(4 / 3, 3),
        "ratio_of_work_on_one_core": 2.0,
    }


if __name__ == "__main__":
    sys.exit(main())
