"""thumbnet beside its peers: the tutorial's network and input, the same records, batch 128, in one run, taking turns.

    python benchmarks/peers.py                      # about 12 minutes on two cores that do nothing else
    python benchmarks/peers.py --rounds 1 --seconds 0.5 --only torch timm --out /tmp

Every peer has a virtual environment of its own, made on first use from benchmarks/peers/*.txt, and a script,
benchmarks/peers/run_*.py; thumbnet runs where this script does. In each round every peer has its turn, in an order that
rotates: a fresh process on all cores, then one on a single core. It is measured from the start of the process to the
end of the first training step; training as a whole from the record files; its memory after that; the training step
alone; the input alone. Beside them the step of a ResNet-18 in plain PyTorch.

Written are benchmarks/results/peers.json and peers.png; `python benchmarks/readme.py` puts the figures into the README.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
VENVS = FOLDER.parent / "build" / "peers"
MEASURES = ("whole", "step", "input")
TIME_LIMIT_S = 300
RESNET18_96_PFLOP = 32.3
"""Work of the usual training of ResNet-18 to 96 % on CIFAR-10, as the table of airbench gives it (arXiv:2404.00498)."""
RESNET18_MULTIPLY_ADDS = 555_422_720
"""Of its convolutions and its dense layer, forward, one 32x32 picture."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Something that is measured."""

    title: str
    script: str
    requirements: str | None
    """File of pinned packages, or None for the environment of this script."""
    precision: str = "fp32"
    measures: tuple[str, ...] = MEASURES

    @property
    def trains(self) -> bool:
        """Whether it trains from the record files, rather than being a step alone."""
        return "whole" in self.measures


PEERS = {
    "thumbnet": Peer(
        title="thumbnet, preset classic, summaries on",
        script="run_thumbnet.py",
        requirements=None,
        precision="auto",
    ),
    "tensorflow": Peer(
        title="TensorFlow, graph mode, tf.data", script="run_tensorflow.py", requirements="tensorflow.txt"
    ),
    "tensorflow-bf16": Peer(
        title="TensorFlow, the same with automatic bf16",
        script="run_tensorflow.py",
        requirements="tensorflow.txt",
        precision="bf16",
    ),
    "keras": Peer(title="Keras, `fit` on TensorFlow, tf.data", script="run_keras.py", requirements="keras.txt"),
    "torch": Peer(title="plain PyTorch, DataLoader, torchvision", script="run_torch.py", requirements="torch.txt"),
    "timm": Peer(
        title="timm's training loop, bf16 and channels-last",
        script="run_timm.py",
        requirements="timm.txt",
        precision="bf16",
    ),
    "resnet18": Peer(
        title="ResNet-18, plain PyTorch fp32",
        script="run_resnet18.py",
        requirements="torch.txt",
        measures=("step",),
    ),
    "resnet18-bf16": Peer(
        title="ResNet-18, plain PyTorch bf16 and channels-last",
        script="run_resnet18.py",
        requirements="torch.txt",
        precision="bf16",
        measures=("step",),
    ),
}


def main() -> int:
    """Make the environments, measure, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each peer (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a window (2)")
    parser.add_argument("--only", nargs="+", choices=PEERS, metavar="PEER", help=f"some of {', '.join(PEERS)}")
    parser.add_argument("--data-dir", type=Path, help="where the data is kept")
    parser.add_argument("--venvs", type=Path, default=VENVS, help="where the peers' environments are (build/peers)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    most = all_cores()
    peers = suited({name: PEERS[name] for name in args.only or PEERS})
    pythons = {name: python_of(peer, args.venvs) for name, peer in peers.items()}

    from thumbnet.config import DataConfig
    from thumbnet.data import cache_dir, load_splits

    load_splits(DataConfig(name="cifar10"), data_dir=args.data_dir, note=tell)
    command = functools.partial(
        command_of, data=cache_dir(args.data_dir) / "cifar-10-batches-bin", seconds=args.seconds
    )
    started = time.monotonic()
    lines: dict[str, dict[int, list[list[dict[str, Any]]]]] = {}
    for name, cores in turns(list(peers), args.rounds, most):
        scaling = cores != most
        if not scaling or peers[name].trains:
            found = run(command(peers[name], pythons[name], scaling=scaling), cores)
            lines.setdefault(name, {}).setdefault(len(cores), []).append(found)
            tell(f"{time.monotonic() - started:4.0f} s  {name}, {len(cores)} cores: {in_short(found)}")
    result = result_of(peers, lines, args.rounds, args.seconds) | {"machine": machine(args.data_dir)}
    result["run_seconds"] = round(time.monotonic() - started)
    args.out.mkdir(parents=True, exist_ok=True)
    args.out.joinpath("peers.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    args.out.joinpath("peers.png").write_bytes(plot(result))
    print(args.out / "peers.json")
    return 0


def suited(peers: dict[str, Peer]) -> dict[str, Peer]:
    """Return the peers in arithmetic that this processor has: emulated bf16 is slower than fp32."""
    from thumbnet import engine

    if engine.resolve_precision().name == "bf16":
        return peers
    if "timm" in peers:
        timm = dataclasses.replace(peers["timm"], precision="fp32", title="timm's training loop, channels-last")
        peers = peers | {"timm": timm}
    return {name: peer for name, peer in peers.items() if peer.precision != "bf16"}


def tell(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def all_cores() -> list[int]:
    """Return the numbers of the cores that this process may run on.

    Raises:
        SystemExit: the system cannot hold a process to some of its cores.
    """
    if not hasattr(os, "sched_getaffinity") or shutil.which("taskset") is None:
        sys.exit("peers take turns on cores of their own, which takes Linux and the program taskset")
    return sorted(os.sched_getaffinity(0))


def python_of(peer: Peer, venvs: Path) -> str:
    """Return the interpreter of a peer, whose environment is made or renewed if it is not what its file asks for."""
    if peer.requirements is None:
        return sys.executable
    requirements = FOLDER / "peers" / peer.requirements
    folder = venvs / requirements.stem
    stamp, digest = folder / "made-from", hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        tell(f"{folder}: installing {requirements.name}")
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", "--requirement", requirements], check=True)
        stamp.write_text(digest)
    return str(folder / "bin" / "python")


def turns(names: list[str], rounds: int, cores: list[int]) -> Iterable[tuple[str, list[int]]]:
    """Yield who has its turn, and on which cores; each round begins with another peer."""
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            yield name, cores
            if len(cores) > 1:
                yield name, cores[-1:]


def command_of(peer: Peer, python: str, *, data: Path, seconds: float, scaling: bool) -> list[str]:
    """Return the command of one turn; for scaling, on one of several cores, the whole alone is measured."""
    measures = ",".join(peer.measures[:1] if scaling else peer.measures)
    flags = ["--data", str(data), "--seconds", str(seconds), "--measures", measures, "--precision", peer.precision]
    return [python, str(FOLDER / "peers" / peer.script), *flags]


def run(command: list[str], cores: list[int]) -> list[dict[str, Any]]:
    """Run a peer on some cores and return the lines that it printed."""
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command, "--started", str(time.monotonic())]
    # Its cores decide how many threads each takes, not what this shell may have been told.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}\nended with {done.returncode}")
    return parse(done.stdout)


def parse(text: str) -> list[dict[str, Any]]:
    """Return the results among a peer's lines; frameworks may print others."""
    found = []
    for line in text.splitlines():
        if line.startswith('{"measure"'):
            found.append(json.loads(line))
    return found


def in_short(lines: list[dict[str, Any]]) -> str:
    """Return the results of one turn on one line."""
    values = values_of(lines)
    return ", ".join(f"{name} {value:,.4g}" for name, value in values.items())


def values_of(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Return the figures of one turn by name: whole, step, input (images/s), start_seconds, memory_mib."""
    names = {"images_per_second": "{}", "seconds": "{}_seconds", "mib": "{}_mib"}
    return {names[key].format(line["measure"]): value for line in lines for key, value in line.items() if key in names}


def result_of(
    peers: dict[str, Peer], lines: dict[str, dict[int, list[list[dict[str, Any]]]]], rounds: int, seconds: float
) -> dict[str, Any]:
    """Return everything that was measured, summed up.

    Args:
        peers: what was measured, by name.
        lines: by peer, by number of cores, by round: the lines of that turn.
        rounds: how many there were.
        seconds: length of a window.
    """
    most = max(cores for turns_of in lines.values() for cores in turns_of)
    found: dict[str, Any] = {}
    for name, peer in peers.items():
        values = {cores: [values_of(turn) for turn in turns_of] for cores, turns_of in lines[name].items()}
        entry: dict[str, Any] = {
            "title": peer.title,
            "precision": peer.precision,
            "versions": versions_of(lines[name][most][0]),
            "cores": {str(cores): spreads(rows) for cores, rows in values.items()},
        }
        if most > 1 and 1 in values:
            entry["scaling"] = over_rounds(ratios(column(values[most], "whole"), column(values[1], "whole")))
        if peer.trains and name != "thumbnet" and "thumbnet" in lines:
            own = [values_of(turn) for turn in lines["thumbnet"][most]]
            entry["thumbnet_times"] = {
                measure: over_rounds(ratios(column(own, measure), column(values[most], measure)))
                for measure in MEASURES
            }
        if not peer.trains:
            speed = entry["cores"][str(most)]["step"]["median"]
            entry["estimated_hours_to_96_percent"] = round(resnet18_hours(speed), 2)
        found[name] = entry
    return {"benchmark": "peers", "rounds": rounds, "window_seconds": seconds, "batch_size": 128, "peers": found}


def resnet18_hours(images_per_second: float) -> float:
    """Return how long the usual training of a ResNet-18 would take at this speed; it was not run."""
    images = RESNET18_96_PFLOP * 1e15 / (2 * 3 * RESNET18_MULTIPLY_ADDS)
    return images / images_per_second / 3600


def versions_of(lines: list[dict[str, Any]]) -> dict[str, str]:
    """Return the versions that a peer told."""
    (line,) = (line for line in lines if line["measure"] == "versions")
    return {name: version for name, version in line.items() if name != "measure"}


def spreads(rows: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Return each figure over the rounds."""
    return {name: over_rounds(column(rows, name)) for name in rows[0]}


def over_rounds(values: list[float]) -> dict[str, Any]:
    """Return median, range, number and the values themselves."""
    from thumbnet.training.measure import spread

    return spread(values) | {"values": values}


def column(rows: list[dict[str, float]], name: str) -> list[float]:
    """Return one figure of every round."""
    return [row[name] for row in rows]


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Return the ratio in each round: its two turns had about the same machine."""
    return [one / other for one, other in zip(above, below, strict=True)]


def machine(data_dir: Path | None) -> dict[str, Any]:
    """Describe the machine."""
    from thumbnet import engine
    from thumbnet.monitor.machine import describe_machine

    engine.prepare()
    described = describe_machine(data_dir)
    return {name: value for name, value in described.items() if name not in ("cache", "kernels_why", "compiler")}


def plot(result: dict[str, Any]) -> bytes:
    """Draw training as a whole, the step alone and the input alone, a panel each, a bar for each peer."""
    from thumbnet.evaluation.plots import empty_figure, png_of

    heading = f"images/s, batch {result['batch_size']}, medians and range of {result['rounds']} rounds; grey: one core"
    figure = empty_figure(11, 3.9, heading)
    titles = {"whole": "training as a whole", "step": "training step alone", "input": "input alone"}
    rows = {name: peer for name, peer in result["peers"].items() if "resnet" not in name}
    for axes, (measure, title) in zip(figure.subplots(1, 3, sharey=True), titles.items(), strict=True):
        draw_bars(axes, rows, measure)
        axes.set_title(title, fontsize=9.5)
    return png_of(figure)


def draw_bars(axes: Axes, rows: dict[str, Any], measure: str) -> None:
    """Draw one figure of all peers, on all cores and, where it was measured, on one."""
    from matplotlib.ticker import MaxNLocator

    from thumbnet.evaluation.plots import BLUE, GRID, INK, MUTED, ORANGE

    for position, (name, peer) in enumerate(rows.items()):
        counts = sorted(peer["cores"], key=int, reverse=True)
        for offset, cores in enumerate(counts):
            found = peer["cores"][cores].get(measure)
            if found is None:
                continue
            color = (ORANGE if name == "thumbnet" else BLUE) if offset == 0 else MUTED
            errors = [[found["median"] - found["lowest"]], [found["highest"] - found["median"]]]
            height = 0.42 if offset == 0 else 0.22
            at = position - 0.16 if offset == 0 else position + 0.2
            axes.barh(at, found["median"], height, color=color, xerr=errors, ecolor=INK)
            axes.annotate(
                f" {found['median']:,.0f}", (found["highest"], at), va="center", fontsize=8, color=INK, clip_on=False
            )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.grid(color=GRID, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.margins(x=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(labelsize=8.5)


if __name__ == "__main__":
    sys.exit(main())
