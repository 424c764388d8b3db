"""Tables and plot of benchmarks/scaling.py."""

from __future__ import annotations

from typing import Any

from thumbnet.evaluation.plots import BLUE, GRID, INK, MUTED, ORANGE, empty_figure, png_of

BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->\n"
_COLORS = (ORANGE, BLUE, INK)


def with_tables(text: str, result: dict[str, Any]) -> str:
    """Return a document with the tables of a result between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    blocks = (inputs_table, scaling_table, check_table, gpu_table, billion_table)
    return before + BEGIN + "\n" + "\n\n".join("\n".join(block(result)) for block in blocks) + "\n\n" + END + after


def inputs_table(result: dict[str, Any]) -> list[str]:
    """Return what was measured."""
    rows = [
        f"| {name} | {part['images_per_second']:,.0f} images/s (`{part['file']}`) | {part['batch_size']:,} "
        f"| {part['gradient_bytes'] / 1e6:.2f} MB in {len(part['bucket_bytes'])} bucket"
        f"{'s' * (len(part['bucket_bytes']) > 1)} | {100 * part['smallest_step_to_whole']:.1f} % "
        f"with {part['images_of_smallest_step']} images |"
        for name, part in result["inputs"]["presets"].items()
    ]
    return [
        "| preset | one machine | batch | gradients | smallest step, of a whole one |",
        "|---|---|---|---|---|",
        *rows,
    ]


def scaling_table(result: dict[str, Any]) -> list[str]:
    """Return where the same training stops gaining."""
    rows = []
    for preset, networks in result["presets"].items():
        for name, found in networks.items():
            shown = {step["replicas"]: step for step in found["steps"]}
            cells = [
                f"{shown[count]['images_per_second']:,.0f} ({100 * shown[count]['efficiency']:.0f} %)"
                for count in (2, 4, 8, 16)
            ]
            rows.append(
                f"| {preset} | {name} | {' | '.join(cells)} | {found['half_efficient_replicas']} "
                f"| {found['fastest_images_per_second']:,.0f} with {found['fastest_replicas']} |"
            )
    return [
        "| preset | network | 2 replicas, images/s | 4 | 8 | 16 | half efficient up to | fastest |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def check_table(result: dict[str, Any]) -> list[str]:
    """Return measured all-reduces beside the model's."""
    rows = [
        f"| {row['replicas']} | {row['link_mbit']} Mbit/s | {row['bytes'] / 2**20:g} MiB "
        f"| {1e3 * row['measured_s']:.1f} ms | {1e3 * row['model_s']:.1f} ms | {row['measured_to_model']:.3f} |"
        for row in result["all_reduce"]["links"]
    ]
    return ["| hosts | links | message | measured | model | ratio |", "|---|---|---|---|---|---|", *rows]


def gpu_table(result: dict[str, Any]) -> list[str]:
    """Return the step on GPUs."""
    rows = [
        f"| {row['gpus']:,} | {row['same_batch']['images_each']} | {row['same_batch']['images_per_second']:,} "
        f"({100 * row['same_batch']['efficiency']:.3g} %) | {row['grown_batch']['batch_size']:,} "
        f"| {row['grown_batch']['images_per_second']:,} ({100 * row['grown_batch']['efficiency']:.3g} %) |"
        for row in result["gpus"]
    ]
    return [
        "| GPUs | images on each of a batch of 2,000 | images/s | batch of 2,000 on each | images/s |",
        "|---|---|---|---|---|",
        *rows,
    ]


def billion_table(result: dict[str, Any]) -> list[str]:
    """Return what a billion pictures ask for."""
    rows = [
        f"| {row['gpus']:,} | {row['epoch_hours'] * 60:.1f} min | {row['read_gb_per_s']:g} GB/s "
        f"| {row['read_gb_per_s_of_a_machine']:g} GB/s, {row['input_cores_of_a_machine']:g} cores "
        f"| {row['failures_per_day']:g} | {row['best_checkpoint_interval_s'] / 60:.0f} min "
        f"| {100 * row['share_lost_to_failures']:.3f} % |"
        for row in result["billion_pictures"]["rows"]
    ]
    return [
        "| GPUs | epoch | read | of a machine | failures a day | best checkpoint interval | time lost to failures |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def plot(result: dict[str, Any]) -> bytes:
    """Draw images/s against replicas for each preset and network, and the check of the ring, as a PNG file."""
    presets = result["presets"]
    figure = empty_figure(4.2 * (len(presets) + 1), 4.4, "The same training on more machines: simulation")
    panels = figure.subplots(1, len(presets) + 1, squeeze=False)[0]
    for axes, (preset, networks) in zip(panels, presets.items(), strict=False):
        for (name, found), color in zip(networks.items(), _COLORS, strict=True):
            counts = [step["replicas"] for step in found["steps"]]
            speeds = [step["images_per_second"] for step in found["steps"]]
            axes.plot(counts, speeds, color=color, marker=".", label=name)
            half = found["half_efficient_replicas"]
            axes.plot(half, speeds[counts.index(half)], color=color, marker="o", markersize=9, fillstyle="none")
        axes.plot(counts, [speeds[0] * count for count in counts], color=MUTED, linestyle=(0, (4, 3)), label="ideal")
        axes.set_ylim(speeds[0] / 4, speeds[0] * 64)
        axes.set_title(f"{preset}, batch {result['inputs']['presets'][preset]['batch_size']:,}", fontsize=10, color=INK)
        axes.set_xlabel("machines of two cores")
        axes.set_ylabel("images/s")
        axes.legend(frameon=False, fontsize=8.5, title="circle: half efficient", title_fontsize=8.5)
    rows = result["all_reduce"]["links"]
    check = panels[-1]
    for replicas, marker in ((2, "o"), (3, "s")):
        points = [(row["model_s"], row["measured_s"]) for row in rows if row["replicas"] == replicas]
        if points:
            check.scatter(*zip(*points, strict=True), marker=marker, color=BLUE, label=f"{replicas} hosts")
    ends = [0.01, 1.0]
    check.plot(ends, ends, color=MUTED, linestyle=(0, (4, 3)), label="equal")
    check.set_title("all-reduce by gloo between hosts", fontsize=10, color=INK)
    check.set_xlabel("ring model, s")
    check.set_ylabel("measured, s")
    check.legend(frameon=False, fontsize=8.5)
    for axes in panels:
        axes.set_xscale("log", base=2 if axes is not check else 10)
        axes.set_yscale("log")
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return png_of(figure)
