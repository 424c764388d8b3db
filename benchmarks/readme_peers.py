"""The README's tables of thumbnet beside its peers, and what it says of a ResNet-18."""

from __future__ import annotations

from typing import Any

import readme_figures
from readme_figures import TARGETS, load, minutes, percent


def peer_table(folder: str = "") -> list[str]:
    """Return thumbnet beside its peers; nothing before they have been measured."""
    if not (readme_figures.RESULTS / folder / "peers.json").exists():
        return []
    result = load(f"{folder}peers.json")
    most = str(result["machine"]["cores"])
    trained = {name: peer for name, peer in result["peers"].items() if "whole" in peer["cores"][most]}
    plot = "![images per second of training, step and input](benchmarks/results/peers.png)"
    return [
        "Beside its peers: the tutorial's network, distortions, loss, decay and averages, batch "
        f"{result['batch_size']}, the same record files, {most} cores, {result['rounds']} rounds in turn: medians and "
        "ranges, those in the second column of the rounds' ratios.",
        "",
        "| | training, images/s | thumbnet is | step alone | input alone | memory | first step done after "
        f"| from 1 core to {most} |",
        "|---|---|---|---|---|---|---|---|",
        *(peer_row(peer, most) for peer in trained.values()),
        *(["", plot] if not folder else []),
        "",
        f"{arithmetic_of(result)} {versions(trained)}.",
        *resnet18_lines(result["peers"], most, "" if folder else trained_resnet18()),
    ]


def about_peers() -> list[str]:
    """Return what to know about the peers' figures."""
    step = load("machine.json")["steps"]["classic"]
    peers = load("peers.json")
    plain = peers["peers"]["torch"]["cores"][str(peers["machine"]["cores"])]["step"]["median"]
    return [
        "thumbnet trains with all that it does, step lines, checks for finite values, averages, TensorBoard summaries; "
        "the others do none of these but the averages. Nobody saves a checkpoint in the seconds that are measured. How "
        "far plain PyTorch is behind is not the kernels' doing alone: the step of `classic` in eager "
        "PyTorch, with bf16, channels-last and response normalization as a matrix product, makes "
        f"{step['plain_images_per_second']['median']:,.0f} images/s on AMX where the tutorial's in fp32 with "
        f"`nn.LocalResponseNorm` makes {plain:,.0f}, and the kernels are {step['times_plain']:.1f} times as fast as "
        "that. Keras' input is TensorFlow's; the low values are of its process, not of that input.",
    ]


def peer_row(peer: dict[str, Any], most: str) -> str:
    """Return one peer's row."""
    found = peer["cores"][most]
    whole = found["whole"]
    times = peer.get("thumbnet_times")
    scaling = f"{peer['scaling']['median']:.2f} x" if "scaling" in peer else ""
    return (
        f"| {peer['title']} | {whole['median']:,.0f} ({whole['lowest']:,.0f} to {whole['highest']:,.0f}) "
        f"| {times_of(times['whole']) if times else ''} | {found['step']['median']:,.0f} "
        f"| {found['input']['median']:,.0f} ({found['input']['lowest']:,.0f} to {found['input']['highest']:,.0f}) "
        f"| {found['memory_mib']['median']:,.0f} MiB "
        f"| {found['start_seconds']['median']:.1f} s | {scaling} |"
    )


def arithmetic_of(result: dict[str, Any]) -> str:
    """Say in what arithmetic the peers compute."""
    own = result["machine"]["precision"]
    if own == "fp32":
        return "All compute in fp32."
    return f"thumbnet computes in {own}, the others in fp32 where nothing else is said."


def times_of(found: dict[str, Any]) -> str:
    """Return how many times as fast thumbnet is, in the middle and at least and at most of the rounds."""
    return f"{found['median']:.1f} x as fast ({found['lowest']:.1f} to {found['highest']:.1f})"


def versions(peers: dict[str, Any]) -> str:
    """Return the versions of all frameworks, each once; all peers ran on the same Python."""
    found = {name: version for peer in peers.values() for name, version in peer["versions"].items()}
    return ", ".join(f"{name} {version}" for name, version in found.items() if name != "thumbnet")


def resnet18_lines(peers: dict[str, Any], most: str, trained: str) -> list[str]:
    """Return what a ResNet-18 would take, beside the presets' measured times, and what was trained of it."""
    measured = [
        f"{peer['cores'][most]['step']['median']:,.0f} images/s in {peer['precision']}, which would make "
        f"{peer['estimated_hours_to_96_percent']:.1f} h to 96 %"
        for peer in peers.values()
        if "estimated_hours_to_96_percent" in peer
    ]
    if not measured:
        return []
    return [
        "",
        f"The usual ResNet-18, its training step in plain PyTorch: {'; '.join(measured)}. These hours are estimated "
        "from the speed and the work of its usual training (32.3 PFLOP, arXiv:2404.00498). The presets' times, in the "
        f"table above, were measured.{trained}",
    ]


def trained_resnet18(name: str = "resnet18.json") -> str:
    """Return what a ResNet-18 reached that was trained here, for less long; nothing before it was.

    Args:
        name: of the results file.
    """
    if not (readme_figures.RESULTS / name).exists():
        return ""
    result = load(name)
    reached = "; ".join(
        f"{percent(run['accuracy'])}, with the mirror image {percent(run['view_accuracy'])}, after {run['epochs']} "
        f"epochs in {minutes(run['train_seconds'])}"
        for run in result["runs"]
    )
    most = max(max(run["accuracy"], run["view_accuracy"]) for run in result["runs"])
    missed = " and ".join(f"{100 * target:.0f} %" for target in TARGETS[:2] if target > most)
    return (
        f" Trained here in {result['precision']}, each length from the start (n = 1): {reached}."
        f"{f' It was not trained for as long as {missed} would take.' if missed else ''}"
    )
