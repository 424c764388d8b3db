"""The usual ResNet-18 trained on CIFAR-10 in plain PyTorch, as a yardstick for time to an accuracy.

    build/peers/torch/bin/python benchmarks/peers/train_resnet18.py --data ~/.cache/thumbnet/cifar-10-batches-bin

All 50,000 training images, cropped from a border of 4 reflected pixels and mirrored; batch 128, SGD with Nesterov
momentum, decay 5e-4, label smoothing 0.1, a rate that rises for a fifth of the training and then falls to 0; bfloat16
autocast, unless `--precision fp32`, and channels-last. Each number of epochs is a training of its own, with one look at
the test set when it is over; its time is the time to what it reaches. Distortions are of whole batches, so that the
input takes next to no time. Written: benchmarks/results/resnet18.json; lengths that are there already stay, unless they
are trained again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import BATCH, SIDE, TRAINING_IMAGES, read_records
from run_resnet18 import build_network
from torch import Tensor, nn

RESULT = Path(__file__).parents[1] / "results" / "resnet18.json"
PEAK_RATE, MOMENTUM, DECAY, SMOOTHING = 0.2, 0.9, 5e-4, 0.1
RISING = 0.2
"""Share of the steps in which the rate rises."""
BORDER = 4
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of the training images, by channel, as fractions of 255."""
TEST_BATCH = 500


def main() -> None:
    """Train, look at the test set, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the six record files")
    parser.add_argument("--epochs", type=int, nargs="+", default=[4, 18], help="lengths of the trainings (4 18)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="arithmetic (bf16)")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    train_set = load([args.data / f"data_batch_{number}.bin" for number in range(1, 6)])
    test_set = load([args.data / "test_batch.bin"])
    facts = conditions(args.precision)
    runs = earlier_runs(args.out, facts)
    for epochs in args.epochs:
        torch.manual_seed(args.seed)
        network = build_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        started = time.perf_counter()
        train(network, *train_set, epochs=epochs, precision=args.precision)
        seconds = time.perf_counter() - started
        run = {"epochs": epochs, "seed": args.seed, "train_seconds": seconds} | evaluate(
            network, *test_set, precision=args.precision
        )
        print(json.dumps(run), flush=True)
        runs = sorted([run, *(other for other in runs if other["epochs"] != epochs)], key=lambda one: one["epochs"])
        args.out.write_text(json.dumps(facts | {"runs": runs}, indent=1) + "\n", encoding="utf-8")


def conditions(precision: str) -> dict[str, Any]:
    """Return what all runs of a results file have in common."""
    return {
        "benchmark": "resnet18",
        "precision": precision,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def cpu_name() -> str:
    """Return what the system calls the processor, "" if it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def earlier_runs(path: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the runs of a results file, none if there is no such file yet.

    Raises:
        SystemExit: they were trained with other versions, in other arithmetic, or on another processor or number of
            threads.
    """
    if not path.exists():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    if {key: result.get(key) for key in facts} != facts:
        raise SystemExit(f"{path} is of other versions, arithmetic, processor or number of threads: give another --out")
    runs: list[dict[str, Any]] = result["runs"]
    return runs


def load(files: list[Path]) -> tuple[Tensor, Tensor]:
    """Return standardized images, float32 [n, 3, 32, 32], and labels, int64 [n]."""
    images, labels = read_records(files)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return (torch.from_numpy(images).float() / 255 - mean) / deviation, torch.from_numpy(labels)


def train(network: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, precision: str) -> None:
    """Train in place."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=PEAK_RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY
    )
    steps = epochs * (TRAINING_IMAGES // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps + 1, pct_start=RISING, anneal_strategy="linear", cycle_momentum=False
    )
    network.train()
    begun = time.perf_counter()
    for step, (batch, targets) in enumerate(batches(images, labels, epochs), start=1):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(network(batch), targets, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step == 1 or step % 100 == 0:
            speed = step * BATCH / (time.perf_counter() - begun)
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {speed:.0f} images/s", flush=True)


def batches(images: Tensor, labels: Tensor, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield distorted batches of every epoch in an order of chance; what does not fill a batch is left out."""
    padded = F.pad(images, (BORDER,) * 4, mode="reflect")
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            yield distort(padded[chosen]), labels[chosen]


def distort(padded: Tensor) -> Tensor:
    """Return a crop of each image, half of them mirrored, [n, 3, 32, 32], channels last."""
    top, left = torch.randint(0, 2 * BORDER + 1, (2, len(padded), 1, 1, 1))
    span = torch.arange(SIDE)
    columns = left + torch.where(torch.rand(len(padded), 1, 1, 1) < 0.5, span.flip(0), span)
    rows = (top + span.view(SIDE, 1)).expand(-1, padded.shape[1], SIDE, padded.shape[3])
    cropped = padded.gather(2, rows).gather(3, columns.expand(-1, padded.shape[1], SIDE, SIDE))
    return cropped.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def evaluate(network: nn.Module, images: Tensor, labels: Tensor, *, precision: str) -> dict[str, Any]:
    """Return the share of images classified right: from one view, and from the image and its mirror image."""
    network.eval()
    started = time.perf_counter()
    hits = {"accuracy": 0, "view_accuracy": 0}
    for batch, targets in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            one, mirrored = (
                network(view.contiguous(memory_format=torch.channels_last)) for view in (batch, batch.flip(3))
            )
        hits["accuracy"] += int((one.argmax(1) == targets).sum())
        hits["view_accuracy"] += int(((one + mirrored).argmax(1) == targets).sum())
    return {name: count / len(labels) for name, count in hits.items()} | {"test_seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
