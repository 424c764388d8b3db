"""Writes the figures of README.md from the files under benchmarks/results/.

    python benchmarks/readme.py            # writes
    python benchmarks/readme.py --check    # exits with 1 if the README says something else

Everything between `<!-- results -->` and `<!-- end of results -->` is generated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import readme_figures
from readme_figures import TARGETS, load, minutes, percent
from readme_peers import about_peers, peer_table, trained_resnet18

FOLDER = Path(__file__).parent
PRESETS = FOLDER.parent / "src" / "thumbnet" / "presets"
README = FOLDER.parent / "README.md"
TRAINED_ONCE = ("classic", *(f"cuda-convnet/{net}" for net in ("80sec", "18pct", "13pct", "11pct")))
"""Folders of the results of presets that were trained once, at length."""
VIEWS = {"mirror": 2, "shifts": 6, "corners": 10}
"""Passes over a picture that the figure over several views takes."""
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


def main() -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    written = with_results(text)
    if args.check:
        return int(written != text)
    README.write_text(written, encoding="utf-8")
    return 0


def with_results(text: str) -> str:
    """Return the README with the results of today's files."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    insist_one_processor("")
    parts = [
        first_run(),
        ["### With AMX"],
        [*preset_table(), "", *about_presets()],
        times_to(),
        figures(),
        [*peer_table(), "", *about_peers()],
        machine_times(),
        without_bf16(),
    ]
    return before + BEGIN + "\n" + "\n\n".join("\n".join(part) for part in parts if part) + "\n" + END + after


def first_run() -> list[str]:
    """Return what `make train` said, as a block."""
    lines = (readme_figures.RESULTS / "make_train.txt").read_text(encoding="utf-8").splitlines()
    head = "What `make train` says once the data is there, on the processor without AMX:"
    return [head, "", *(f"    {line}".rstrip() for line in lines)]


def insist_one_processor(folder: str) -> str:
    """Return the processor that the results of a folder, "" or "avx2/", were measured on, and how many of its cores.

    Raises:
        ValueError: some are of another processor.
    """
    names = ("preset-*.json", "peers.json", "machine.json", "classic_system.json", "resnet18.json")
    found: dict[str, str] = {}
    for path in sorted(path for name in names for path in (readme_figures.RESULTS / folder).glob(name)):
        result = json.loads(path.read_text(encoding="utf-8"))
        machine = result.get("machine", result)  # the script of the ResNet-18 knows nothing of thumbnet
        found[path.name] = f"{machine.get('cores', machine.get('threads'))} cores of an {machine['cpu']}"
        if folder == "avx2/" and set(machine.get("features", [])) - {"avx2"}:
            raise ValueError(f"avx2/{path.name} is of {machine['cpu']} with {', '.join(machine['features'])}")
    if len(set(found.values())) > 1:
        each = "; ".join(f"{name}: {machine}" for name, machine in found.items())
        raise ValueError(
            f"{readme_figures.RESULTS / folder}: results of several machines, measure those anew together\n{each}"
        )
    return next(iter(found.values()), "")


def preset_table(folder: str = "") -> list[str]:
    """Return the table of presets: accuracy, time, speed, work, command."""
    found = [load(f"{folder}{path.name}") for path in (readme_figures.RESULTS / folder).glob("preset-*.json")]
    return [
        "| preset | test accuracy | training time | start-up, evaluation | images/s | PFLOP | memory | command |",
        "|---|---|---|---|---|---|---|---|",
        *(preset_row(preset) for preset in sorted(found, key=training_time)),
        *(
            run_row(run)
            for run in TRAINED_ONCE
            if not folder and (readme_figures.RESULTS / run / "result.json").exists()
        ),
    ]


def about_presets() -> list[str]:
    """Return what the columns of these tables mean."""
    return [
        "Training time: wall clock from the first step to the last, mean and range, on both cores where nothing else "
        "is said; start-up before it and evaluation after it are beside it. Plain: the same step in eager PyTorch "
        "without the compiled kernels, channels-last, in the same arithmetic. The limit is what a matrix product "
        "reaches there; Winograd's filtering, in float32, surpasses it, since it makes fewer products than a "
        "convolution counts. PFLOP are of training and evaluation. Views of the unsure: the test pictures whose single "
        "view is least sure are looked at again, shifted and mirrored, and the answers averaged; the others keep that "
        "of their single view.",
    ]


def training_time(preset: dict[str, Any]) -> float:
    """Return what presets are ordered by."""
    return float(preset["train_seconds"]["mean"])


def accuracy_of(preset: dict[str, Any]) -> str:
    """Return mean and deviation of the test accuracy with a single view and, if there are any, with several."""

    def spread(found: dict[str, Any]) -> str:
        return percent(found["mean"]) + (f" ± {100 * found['deviation']:.2f}" if preset["n"] > 1 else "")

    weights = next(iter(preset["accuracy"]))
    accuracy = spread(preset["accuracy"][weights])
    if preset["view_accuracy"]:
        views = f"{VIEWS[preset['views']]} views"
        if preset.get("views_share", 1.0) < 1:
            views += f" of the unsure {100 * preset['views_share']:.0f} %"
        accuracy += f"; over {views} {spread(preset['view_accuracy'][weights])}"
    return accuracy


def preset_row(preset: dict[str, Any]) -> str:
    """Return the row of a preset that was trained over several seeds."""
    seconds = preset["train_seconds"]
    spread = f" ({minutes(seconds['lowest'])} to {minutes(seconds['highest'])})" if preset["n"] > 1 else ""
    if seconds["n"] < preset["n"]:
        spread = f" ({seconds['n']} of {preset['n']} timed, the others had fewer cores)"
    return (
        f"| {preset['preset']} | {accuracy_of(preset)} (n = {preset['n']}) "
        f"| {minutes(seconds['mean'])}{spread} "
        f"| {preset['start_seconds']['mean']:.1f} s, {preset['test_seconds']['mean']:.1f} s "
        f"| {preset['images_per_second']['mean']:,.0f}, {preset['step_ratio_to_plain']:.1f} x plain, "
        f"{100 * preset['share_of_limit']:.0f} % of the limit "
        f"| {preset['pflop']:.3g} | {preset['memory_mib'] / 1024:.1f} GiB "
        f"| `{command_of_preset(preset)}` |"
    )


def command_of_preset(preset: dict[str, Any]) -> str:
    """Return the command that trains as was measured, where the preset resized its pictures otherwise than today."""
    recipe = tomllib.loads((PRESETS / f"{preset['preset']}.toml").read_text(encoding="utf-8"))
    measured, today = preset.get("resize", []), recipe["schedule"].get("resize", [])
    changed = f" --set 'schedule.resize={json.dumps(measured)}'" if measured != today else ""
    return f"thumbnet train --preset {preset['preset']}{changed}"


def run_row(folder: str) -> str:
    """Return the row of a preset that was trained once, with its log and curve in a folder of the results."""
    result = load(f"{folder}/result.json")
    recipe = tomllib.loads((readme_figures.RESULTS / folder / "recipe.toml").read_text(encoding="utf-8"))
    test = result["test"]
    first = test.get("average", test["raw"])
    accuracy = percent(first["accuracy"])
    if "view_accuracy" in first:
        accuracy += f"; over {VIEWS[recipe['evaluation']['views']]} views {percent(first['view_accuracy'])}"
    raw = f"raw weights {percent(test['raw']['accuracy'])}; " if "average" in test else ""
    # Over all of its sessions: the result's own figure is that of the last one.
    images_per_second = result["epochs"] * 50_000 / result["train_seconds"]
    return (
        f"| {result['preset']} | {accuracy} ({raw}n = 1) "
        f"| {minutes(result['train_seconds'])}, {result['steps']:,} steps "
        f"| {result['start_seconds']:.1f} s, {result['test_seconds']:.1f} s "
        f"| {images_per_second:,.0f}, {cores_of(readme_figures.RESULTS / folder / 'log.txt.gz')} | "
        f"| {result['memory_mib'] / 1024:.1f} GiB "
        f"| `{command_of(recipe)}` |"
    )


def cores_of(log: Path) -> str:
    """Return on how many cores a run was trained, session by session, by what its log says of the engine."""
    text = gzip.decompress(log.read_bytes()).decode()
    counts = sorted({int(count) for count in re.findall(r"^engine: .*?(\d+) (?:thread|core)s?,", text, re.MULTILINE)})
    return f"on {' or '.join(map(str, counts))} core{'s' * (counts != [1])}"


def command_of(recipe: dict[str, Any]) -> str:
    """Return the command that trains as a run was trained, whose length may not be its preset's."""
    name, epochs = recipe["preset"], recipe["train"]["epochs"]
    preset = tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    command = f"thumbnet train --preset {name}"
    if epochs != preset["train"].get("epochs", 0):
        stairs = ",".join(f"{epoch:g}" for epoch in recipe["schedule"]["at_epochs"])
        command += f" --epochs {epochs:g} --set 'schedule.at_epochs=[{stairs}]'"
    return command


def times_to() -> list[str]:
    """Return how long the quickest preset takes whose mean test accuracy is at least that, by either way of looking."""
    presets = sorted((load(path.name) for path in readme_figures.RESULTS.glob("preset-*.json")), key=training_time)
    if not presets:
        return []
    ways = {"from a single view": "accuracy", "over several views": "view_accuracy"}
    told = [f"{way}: {', '.join(time_to(target, key, presets) for target in TARGETS)}" for way, key in ways.items()]
    return [f"Test accuracy reached, by the means of these seeds, {'; '.join(told)}."]


def time_to(target: float, key: str, presets: list[dict[str, Any]]) -> str:
    """Say which of the presets, the quickest first, reaches an accuracy, and when."""
    for preset in presets:
        spreads = preset[key]
        if spreads and spreads[next(iter(spreads))]["mean"] >= target:
            return f"{100 * target:.0f} % in {minutes(training_time(preset))} ({preset['preset']})"
    return f"{100 * target:.0f} % not"


def figures() -> list[str]:
    """Return the other figures, a line each."""
    system, stream, large = load("classic_system.json"), load("input.json"), load("large_file.json")
    summaries, evaluation, precision = system["summaries"], system["evaluation"], system["precision"]
    return [
        f"* Classic training, batch 128, input, summaries and all: "
        f"{summaries['images_per_second_with']['median']:,.0f} images/s; first step "
        f"{summaries['start_seconds']['median']:.1f} s after the start of the process; "
        f"{summaries['memory_mib']['median']:,.0f} MiB resident.",
        f"* TensorBoard summaries every {summaries['interval_steps']} steps: "
        f"{100 * summaries['share_of_training_time']['median']:.1f} % of the training time "
        f"({100 * summaries['share_of_training_time']['lowest']:.1f} to "
        f"{100 * summaries['share_of_training_time']['highest']:.1f} % in "
        f"{summaries['share_of_training_time']['n']} pairs).",
        f"* Evaluation of {evaluation['examples']:,} images: {evaluation['seconds']['median']:.2f} s.",
        f"* The input alone: {stream['images_per_second']['median']:,} distorted 24x24 images/s.",
        f"* A {large['file_gb']:.0f} GB file of records, streamed in batches: {large['peak_rss_mb']} MB resident at "
        f"most, of {large['budget_mb']:.0f} allowed; {large['images_per_second']:,} images/s.",
        f"* bf16 against fp32, the first {precision['steps']:,} steps of the same seed: the loss curves are "
        f"{precision['mean_distance_bf16_fp32_same_seed']:.3f} apart, two seeds of fp32 "
        f"{precision['mean_distance_fp32_two_seeds']:.3f} (means over the curve).",
        f"* The book's trainer, two epochs of one picture at a time: "
        f"{percent(load('book/result.json')['evaluation']['accuracy'])} of the test set.",
        f"* `thumbnet --help`: {system['help_seconds']['median']:.2f} s.",
        *devices_lines(),
        "",
        f"Machine: {system['machine']['cores']} cores of an {system['machine']['cpu']} with AMX, PyTorch "
        f"{system['machine']['torch']}. Files: `benchmarks/results/`; what wrote them: `benchmarks/*.py`.",
    ]


def devices_lines() -> list[str]:
    """Return how fast several devices are against one that has all the cores, and what grains cost."""
    several, grained = load("devices.json"), load("devices-grain.json")
    shares = ", ".join(
        f"{100 * found['efficiency']['median']:.0f} % ({found['preset']}, {found['several']['devices']} x "
        f"{found['batch_size'] // found['several']['devices']})"
        for found in (several, load("devices-quick.json"))
    )
    costs = (
        1 - grained[part]["images_per_second"]["median"] / several[part]["images_per_second"]["median"]
        for part in ("one", "several")
    )
    return [
        f"* `--devices {several['several']['devices']}`, a core each, against one process with both: {shares} of its "
        f"speed. `--grain {grained['grain']}` costs {' and '.join(f'{100 * cost:.0f} %' for cost in costs)} of the "
        f"speed of {several['preset']} on one and on {several['several']['devices']}.",
    ]


def machine_times(folder: str = "") -> list[str]:
    """Return how long the presets take by the speed of their steps, which `thumbnet bench` tells of any machine."""
    if not (readme_figures.RESULTS / folder / "machine.json").exists():
        return []
    result = load(f"{folder}machine.json")
    times = ", ".join(f"{preset} {minutes(found['seconds'])}" for preset, found in by_time(result))
    return [f"By the speed of the steps alone (`thumbnet bench`) training takes: {times}."]


def without_bf16() -> list[str]:
    """Return what was measured on a processor that has neither bf16 nor AVX-512, if it has been."""
    machine = insist_one_processor("avx2/")
    if not machine:
        return []
    trained = trained_resnet18("avx2/resnet18.json")
    parts = [
        ["### Without bf16"],
        [f"On a processor without bf16 and AVX-512, {machine}, everything in float32 (`benchmarks/results/avx2/`):"],
        preset_table("avx2/"),
        peer_table("avx2/"),
        machine_times("avx2/"),
        [f"The usual ResNet-18 in plain PyTorch.{trained}"] if trained else [],
    ]
    return [line for part in parts if part for line in (*part, "")][:-1]


def by_time(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the presets whose time follows from a measured step, the quickest first."""
    known = [(preset, found) for preset, found in result["presets"].items() if found["after"] == preset]
    return sorted(known, key=lambda item: float(item[1]["seconds"]))


if __name__ == "__main__":
    sys.exit(main())
