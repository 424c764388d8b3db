"""The classic system's promises about time, memory and arithmetic, measured on CIFAR-10.

    python benchmarks/classic.py

* how long `thumbnet --help` and the start of a training take;
* what TensorBoard's summaries cost at their default interval: the same training with and without, alternating;
* how long the evaluation of 10,000 images takes;
* whether the loss in bf16 stays within noise of fp32: the same steps in both, over several seeds.

Writes benchmarks/results/classic_system.json and classic_precision.png. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thumbnet import engine
from thumbnet.config import DataConfig, load_preset
from thumbnet.data import load_splits
from thumbnet.evaluation.evaluate import evaluate_weights
from thumbnet.evaluation.plots import COLORS, GRID, empty_figure, png_of
from thumbnet.models import build_model
from thumbnet.training.measure import spread

RESULTS = Path(__file__).parent / "results"
THUMBNET = [sys.executable, "-m", "thumbnet.cli.main"]
SMOOTH_STEPS = 100


def main() -> int:
    """Measure everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 is kept")
    parser.add_argument("--rounds", type=int, default=3, help="alternating trainings of each kind (3)")
    parser.add_argument("--summary-steps", type=int, default=600, help="steps of a training with or without summaries")
    parser.add_argument("--precision-steps", type=int, default=1000, help="steps of a training in each arithmetic")
    parser.add_argument("--seeds", type=int, default=2, help="trainings in each arithmetic (2)")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"--seeds is {args.seeds}: the distance between two seeds takes two")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        result = {
            "benchmark": "classic_system",
            "help_seconds": spread([time_help() for _ in range(7)]),
            "summaries": summary_cost(args, out),
            "evaluation": evaluation_time(args.data_dir),
            "precision": precision_curves(args, out),
            "machine": {
                "cpu": engine.cpu_name(),
                "cores": engine.usable_cores(),
                "torch": torch.__version__,
            },
        }
    path = RESULTS / "classic_system.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0


def time_help() -> float:
    """Return the seconds that `thumbnet --help` takes, the start of Python included."""
    started = time.perf_counter()
    subprocess.run([*THUMBNET, "--help"], check=True, capture_output=True)
    return time.perf_counter() - started


def train(args: argparse.Namespace, out: Path, *flags: str) -> dict[str, Any]:
    """Train the classic preset in a process of its own and return its result."""
    data = ["--data-dir", str(args.data_dir)] if args.data_dir else []
    command = [*THUMBNET, "train", "--preset", "classic", "--json", "--out", str(out), *data, *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def summary_cost(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Train with summaries every 100 steps and without, in turn, and compare the time."""
    flags = ["--steps", str(args.summary_steps), "--checkpoint-every", "1000000", "--summary-every"]
    rounds = [(train(args, out, *flags, "100"), train(args, out, *flags, "0")) for _ in range(args.rounds)]
    shares = [with_["train_seconds"] / without["train_seconds"] - 1 for with_, without in rounds]
    with_summaries = [with_ for with_, _ in rounds]
    return {
        "interval_steps": 100,
        "steps": args.summary_steps,
        "share_of_training_time": spread(shares),
        "images_per_second_with": spread([result["images_per_second"] for result in with_summaries]),
        "images_per_second_without": spread([without["images_per_second"] for _, without in rounds]),
        "start_seconds": spread([result["start_seconds"] for result in with_summaries]),
        "memory_mib": spread([result["memory_mib"] for result in with_summaries]),
        "input_wait_fraction": spread([result["input_wait_fraction"] for result in with_summaries]),
    }


def evaluation_time(data_dir: Path | None) -> dict[str, Any]:
    """Evaluate the 10,000 test images with the classic network, reading and preparing included."""
    engine.prepare()
    recipe = load_preset("classic")
    test = load_splits(DataConfig(name="cifar10"), data_dir=data_dir).test
    assert test is not None
    model = build_model(recipe.model, num_classes=10, crop=recipe.distort.crop)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = engine.resolve_precision()
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        metrics = evaluate_weights(model, test, recipe.distort, precision=precision)
        seconds.append(time.perf_counter() - started)
        assert metrics.examples == len(test)
    return {"examples": len(test), "precision": precision.name, "seconds": spread(seconds[1:])}


def precision_curves(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Train the same steps in bf16 and fp32 over several seeds; compare the curves with the spread between seeds."""
    curves = {name: [loss_curve(args, out, name, seed) for seed in range(args.seeds)] for name in ("fp32", "bf16")}
    mean = {name: np.mean(values, axis=0) for name, values in curves.items()}
    between_seeds = np.abs(curves["fp32"][0] - curves["fp32"][1])
    RESULTS.joinpath("classic_precision.png").write_bytes(plot(curves))
    return {
        "steps": args.precision_steps,
        "seeds": args.seeds,
        "smoothed_over_steps": SMOOTH_STEPS,
        "last_loss": {name: [round(float(curve[-1]), 4) for curve in values] for name, values in curves.items()},
        "mean_distance_bf16_fp32_same_seed": round(
            float(np.mean([np.abs(b - f).mean() for b, f in zip(curves["bf16"], curves["fp32"], strict=True)])), 4
        ),
        "mean_distance_fp32_two_seeds": round(float(between_seeds.mean()), 4),
        "mean_signed_difference_bf16_fp32": round(float((mean["bf16"] - mean["fp32"]).mean()), 4),
    }


def loss_curve(args: argparse.Namespace, out: Path, precision: str, seed: int) -> np.ndarray:
    """Return the training loss of every step, averaged over the last `SMOOTH_STEPS` steps, float64 [steps - 99]."""
    flags = ["--steps", str(args.precision_steps), "--precision", precision, "--seed", str(seed)]
    result = train(args, out, *flags, "--log-every", "1", "--summary-every", "0", "--checkpoint-every", "1000000")
    lines = (Path(result["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    return np.convolve(losses, np.full(SMOOTH_STEPS, 1 / SMOOTH_STEPS), mode="valid")


def plot(curves: dict[str, list[np.ndarray]]) -> bytes:
    """Draw the curves of both arithmetics."""
    figure = empty_figure(8, 4.5, "classic network: training loss in fp32 and bf16")
    axes = figure.add_subplot()
    for (name, values), color in zip(curves.items(), COLORS.values(), strict=True):
        for seed, curve in enumerate(values):
            steps = np.arange(len(curve)) + SMOOTH_STEPS
            axes.plot(steps, curve, color=color, alpha=0.9 - 0.3 * seed, linewidth=1.1, label=f"{name}, seed {seed}")
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, mean of {SMOOTH_STEPS} steps")
    axes.grid(color=GRID)
    axes.legend(frameon=False)
    return png_of(figure)


if __name__ == "__main__":
    sys.exit(main())
