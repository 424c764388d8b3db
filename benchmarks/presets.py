"""Presets trained from scratch over several seeds: accuracy with its spread, time, and how much of the machine is used.

    python benchmarks/presets.py quick fast --seeds 3

Every training is a `thumbnet train` in a process of its own, whose one look at the test set gives the figure. Around
them, in the same run, the machine's limit (a bfloat16 matrix product, or float32 where that is what it trains in) and
one training step with and without the compiled kernels are measured, alternating: without them the same network runs in
plain eager PyTorch, channels-last, with the same allocator settings. Each preset gets a file under benchmarks/results/.

A preset that trains for an hour need not have all its seeds in one sitting, nor one after the other: `--add` keeps the
runs that its file has in the end. Accuracies are of all of them, times of those that had the most threads; steps and
limit are measured anew, which is all that `--add --seeds 0` does. With `--runs DIR` the runs are kept there, and one
that was interrupted goes on from its last checkpoint when the same command is given again.

On a processor without bf16 and AVX-512, whose figures stand apart, and as if on one:

    python benchmarks/presets.py quick --out benchmarks/results/avx2
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/presets.py quick --out build
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
STEP_SECONDS, MATMUL_SECONDS = 5.0, 0.5
"""Of one round of the step measurement."""
ROUNDS = 3
VIEWS = {"one": 0, "mirror": 2, "shifts": 6, "corners": 10}
"""Passes that the multi-view figure takes."""


def main() -> int:
    """Train, measure, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each preset, seeds 0, 1, ... (3)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--add", action="store_true", help="keep the runs of the file that is there, of other seeds")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep the runs there, and go on with those that are")
    parser.add_argument("--data-dir", type=Path, help="where the data is kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--measure-step", metavar="PRESET", help=argparse.SUPPRESS)  # the subprocess
    args = parser.parse_args()
    if args.measure_step:
        print(json.dumps(measure_step(args.measure_step)))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    for preset in args.presets:
        path = args.out / f"preset-{preset}.json"
        if again := {run["seed"] for run in earlier_runs(path, args)}.intersection(seeds_of(args)):
            parser.error(f"{path} has seed {min(again)} already: give another --first-seed")
        result = benchmark(preset, args, path)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"{path}\n{json.dumps({key: result[key] for key in result if key not in ('runs', 'machine')}, indent=2)}")
    return 0


def seeds_of(args: argparse.Namespace) -> range:
    """Return the seeds to train with."""
    return range(args.first_seed, args.first_seed + args.seeds)


def earlier_runs(path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the runs to keep of a results file; none if there is no such file yet."""
    if not args.add or not path.exists():
        return []
    runs: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return runs


def benchmark(preset: str, args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Return everything about one preset, whose earlier runs, of other seeds, are in a file."""
    from thumbnet import engine
    from thumbnet.config import load_preset
    from thumbnet.monitor.machine import describe_machine
    from thumbnet.training.measure import multiply_adds, training_flops

    recipe = load_preset(preset)
    steps: dict[str, list[dict[str, float]]] = {"kernels": [], "plain": []}
    for _ in range(ROUNDS):
        for engine_name, found in steps.items():
            found.append(step_apart(preset, kernels=engine_name == "kernels"))
    new = []
    for seed in seeds_of(args):
        new.append(train(preset, seed, args.data_dir, args.runs))
        print(f"{preset}, seed {seed}: {json.dumps(new[-1]['test'])}, {new[-1]['train_seconds']:.1f} s", flush=True)
    # Read now, not before: other seeds may have been trained meanwhile, on another core.
    runs = sorted([*earlier_runs(path, args), *new], key=lambda run: int(run["seed"]))
    limit = statistics.median(found["matmul_tflops"] for found in steps["kernels"])
    macs = multiply_adds(recipe, recipe.distort.crop)
    train_flops = training_flops(recipe) * runs[0]["steps"] * recipe.input.batch_size
    test_flops = 2 * macs * 10_000 * (1 + VIEWS[recipe.evaluation.views] * recipe.evaluation.views_share)
    most = max(run.get("threads", 0) for run in runs)
    timed = [run for run in runs if run.get("threads", 0) == most]
    seconds = spread([run["train_seconds"] for run in timed])
    engine.prepare()
    machine = describe_machine(args.data_dir)
    speeds = {name: spread([found["images_per_second"] for found in rounds]) for name, rounds in steps.items()}
    return {
        "benchmark": "presets",
        "preset": preset,
        "n": len(runs),
        "accuracy": accuracies(runs, "accuracy"),
        "view_accuracy": accuracies(runs, "view_accuracy") if recipe.evaluation.views != "one" else None,
        "views": recipe.evaluation.views,
        "views_share": recipe.evaluation.views_share,
        "resize": recipe.schedule.resize,
        "train_seconds": seconds,
        "start_seconds": spread([run["start_seconds"] for run in timed]),
        "test_seconds": spread([run["test_seconds"] for run in timed]),
        "images_per_second": spread([run["images_per_second"] for run in timed]),
        "memory_mib": max(run["memory_mib"] for run in runs),
        "multiply_adds": macs,
        "pflop": round((train_flops + test_flops) / 1e15, 4),
        "training_tflops": round(train_flops / seconds["mean"] / 1e12, 3),
        "matmul_limit_tflops": round(limit, 3),
        "share_of_limit": round(train_flops / seconds["mean"] / 1e12 / limit, 3),
        "step_images_per_second": speeds,
        "step_ratio_to_plain": round(speeds["kernels"]["median"] / speeds["plain"]["median"], 2),
        "runs": runs,
        "machine": {
            key: machine[key] for key in ("cpu", "features", "cores", "threads", "python", "torch", "precision")
        },
    }


def train(preset: str, seed: int, data_dir: Path | None, runs: Path | None) -> dict[str, Any]:
    """Train one seed, or what an interruption has left of it, and return its result."""
    from thumbnet.runs.run import Run

    with tempfile.TemporaryDirectory() as cleared:
        path = (runs or Path(cleared)) / f"{preset}-{seed}"
        command = [sys.executable, "-m", "thumbnet.cli.main", "train", "--json"]
        command += ["--data-dir", str(data_dir)] if data_dir else []
        if path.exists():
            insist_can_go_on(path, preset, seed)
            command += ["--resume", str(path)]
        else:
            command += ["--preset", preset, "--seed", str(seed), "--out", str(path.parent), "--name", path.name]
        if not (path / "result.json").exists():
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        result: dict[str, Any] = json.loads((path / "result.json").read_text(encoding="utf-8"))
        run = Run.open(path)
        threads, batch_size = run.threads, run.recipe.input.batch_size
    kept = {key: value for key, value in result.items() if key not in ("run", "preset")}
    # Over all sessions of a run that was interrupted; what the run keeps is of its last one.
    kept["images_per_second"] = kept["steps"] * batch_size / kept["train_seconds"]
    return {"seed": seed, "threads": threads} | kept


def insist_can_go_on(path: Path, preset: str, seed: int) -> None:
    """End the program if a run has no checkpoint, or is not of the preset as it is now with this seed."""
    from thumbnet.config import load_preset
    from thumbnet.runs.run import Run

    run, recipe = Run.open(path), load_preset(preset)
    found = run.recipe
    if not run.checkpoints.steps():
        sys.exit(f"{path}: ended before anything was saved: delete it, and it begins anew")
    train = dataclasses.replace(recipe.train, precision=found.train.precision)  # `auto` is resolved in a run
    if found != dataclasses.replace(recipe, seed=seed, train=train):
        sys.exit(f"{path}: another recipe than that of {preset} today with seed {seed}: give another --runs")


def step_apart(preset: str, *, kernels: bool) -> dict[str, float]:
    """Measure steps in a process of their own."""
    environment = os.environ | ({} if kernels else {"THUMBNET_KERNELS": "0"})
    command = [sys.executable, __file__, "--measure-step", preset]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure_step(preset: str) -> dict[str, float]:
    """Return the speed of training steps on random pictures, input left out, and that of a large matrix product."""
    from thumbnet import engine
    from thumbnet.config import load_preset
    from thumbnet.training.measure import matmul_tflops, step_seconds

    engine.prepare()
    recipe = load_preset(preset)
    precision = engine.resolve_precision(recipe.train.precision)
    return {
        "images_per_second": recipe.input.batch_size / statistics.median(step_seconds(recipe, seconds=STEP_SECONDS)),
        "matmul_tflops": matmul_tflops(precision.name, seconds=MATMUL_SECONDS),
    }


def accuracies(runs: list[dict[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """Return mean, deviation and range of an accuracy, by weights."""
    return {weights: spread([run["test"][weights][key] for run in runs]) for weights in runs[0]["test"]}


def spread(values: list[float]) -> dict[str, float]:
    """Return mean, sample deviation, median and range."""
    from thumbnet.training import measure

    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "deviation": deviation, **measure.spread(values)}


if __name__ == "__main__":
    sys.exit(main())
