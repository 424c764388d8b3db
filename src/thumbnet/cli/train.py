"""`thumbnet train`: trains a network, evaluates it, and says where everything is."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from thumbnet.cli.flags import (
    add_data_flags,
    add_engine_flags,
    add_out_flag,
    add_use_fp16_flag,
    boolean,
    duration,
    half_precision,
    note,
    number_above_0,
    setting,
    user_path,
    whole_number,
)
from thumbnet.errors import PeerLostError, UsageError

if TYPE_CHECKING:
    from thumbnet.config import Recipe
    from thumbnet.distributed.replicas import Replicas
    from thumbnet.runs.run import Run

# Flag, its 2015 name if any, recipe key, parser of its value, help.
RECIPE_FLAGS: tuple[tuple[str, str | None, str, Callable[[str], object], str], ...] = (
    (
        "--data",
        None,
        "data.name",
        str,
        "cifar10, cifar100, cifar100-coarse, svhn, svhn-extra, shapes, or a folder or .csv",
    ),
    ("--validation", None, "data.validation", float, "images kept for validation: how many, or which share, as 0.1"),
    ("--image-size", None, "data.image_size", whole_number, "side that pictures of a folder are resized to (32)"),
    ("--model", None, "model.name", str, "classic, speed ... or timm/NAME, any network of timm"),
    ("--steps", "--max_steps", "train.steps", whole_number, "steps to train"),
    ("--epochs", None, "train.epochs", number_above_0, "epochs to train"),
    ("--batch-size", "--batch_size", "input.batch_size", whole_number, "images of one step, over all devices"),
    ("--pool", None, "input.pool", float, "shuffling pool, as a fraction of an epoch (0 none, 1 all)"),
    ("--lr", "--learning-rate", "optimizer.learning_rate", float, "peak learning rate"),
    ("--seed", None, "seed", int, "seed of weights, order and distortions"),
    ("--precision", None, "train.precision", str, "auto, fp32, bf16 or fp16"),
    ("--grain", None, "train.grain", whole_number, "images of one gradient: same bits on any number of devices"),
    ("--log-every", "--log_frequency", "train.log_every", whole_number, "steps between step lines"),
    ("--log-format", None, "train.log_format", str, "what is told: default, tutorial or book"),
    ("--summary-every", None, "train.summary_every", int, "steps between TensorBoard summaries, 0 for none"),
    ("--keep", None, "train.keep", whole_number, "newest checkpoints kept, beside the best"),
)

METAVARS: dict[Callable[[str], object], str] = {str: "NAME", float: "X", number_above_0: "X"}


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "train",
        help="train a network",
        description="Train a network and evaluate it once on the test set. Runs are never overwritten.",
        epilog="Any entry of the recipe can be set: --set distort.flip=none --set optimizer.momentum=0.9",
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("--preset", help="recipe to start from (quick, or that of --model); `thumbnet info` lists them")
    parser.add_argument(
        "--recipe", type=user_path, metavar="FILE", help="recipe.toml to start from, such as that of a run"
    )
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="RUN", help="go on with a run, exactly (the newest in --out)"
    )
    recipe = parser.add_argument_group("recipe")
    for flag, old_name, key, kind, text in RECIPE_FLAGS:
        names = (flag, old_name) if old_name else (flag,)
        recipe.add_argument(*names, type=kind, dest=key, metavar=METAVARS.get(kind, "N"), help=text)
    recipe.add_argument("--skip-bad", action="store_true", help="go on without pictures of a folder that are damaged")
    recipe.add_argument(
        "--time", type=duration, metavar="10m", help="train for this long, to the end of a piecewise schedule"
    )
    recipe.add_argument("--checkpoint-every", metavar="500|60s", help="steps, or seconds, between checkpoints")
    recipe.add_argument("--set", type=setting, action="append", default=[], metavar="KEY=VALUE", help="any entry")
    run = parser.add_argument_group("run")
    add_out_flag(run)
    run.add_argument("--name", help="name of the run's folder (preset and time)")
    run.add_argument("--no-test", action="store_true", help="leave the test set alone, in resumes too")
    run.add_argument("--json", action="store_true", help="print the result as one JSON object")
    add_data_flags(run)
    add_engine_flags(run)
    devices = parser.add_argument_group("several devices")
    names = ("--devices", "--num_gpus")
    devices.add_argument(
        *names, type=whole_number, default=1, metavar="N", help="replicas on this machine: GPUs or cores"
    )
    devices.add_argument(
        "--timeout",
        type=duration,
        default=120.0,
        metavar="2m",
        help="silence after which a replica counts as lost (2m)",
    )
    devices.add_argument(
        "--max-restarts",
        type=restarts,
        default=3,
        metavar="N",
        help="restarts from the last checkpoint when one dies (3)",
    )
    old = parser.add_argument_group("names of 2015")
    add_use_fp16_flag(old)
    old.add_argument("--log_device_placement", type=boolean, nargs="?", const=True, help="as `thumbnet doctor`")


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, report; returns the exit code."""
    from thumbnet.distributed.place import place_of

    place = place_of(os.environ)
    if place is None and args.devices > 1:
        from thumbnet.distributed.launch import available, launch

        if (replicas := available(args.devices, note)) > 1:
            try:
                return launch(args.words, count=replicas, max_restarts=args.max_restarts)
            except PeerLostError as error:
                raise PeerLostError(f"{error}\nto go on from the last checkpoint: --resume") from error
    # PyTorch would tell of every attempt to connect, and follow an error with the stack of its own code.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from thumbnet.distributed.join import joined

    with joined(place, args.timeout) as peers:
        return _train(args, peers)


def _train(args: argparse.Namespace, replicas: Replicas) -> int:
    """Train as one of the replicas, or alone."""
    from thumbnet import engine
    from thumbnet.config import recipe_to_dict
    from thumbnet.training.together import insist_same_command
    from thumbnet.training.whole import Options, Stopped, follow, train_new, train_on

    if args.log_device_placement and not replicas.rank:
        from thumbnet.monitor.machine import describe_machine, machine_lines

        engine.prepare(args.threads)
        note("\n".join(machine_lines(describe_machine(args.data_dir))))
    overrides = overrides_of(args)
    options = Options(
        data_dir=args.data_dir,
        offline=args.offline,
        threads=args.threads,
        look_at_test=not args.no_test,
        quiet=replicas.rank > 0,
        replicas=replicas,
    )
    try:
        recipe = None if args.resume is not None else _new_recipe(args, overrides)
        insist_same_command(replicas, [args.resume, recipe and recipe_to_dict(recipe), overrides])
        if replicas.rank:
            follow(options)
            return 0
        if recipe is None:
            result = train_on(_run_to_resume(args), overrides, options)
        else:
            result = train_new(recipe, options, out=args.out, name=args.name, given=overrides.keys())
    except Stopped as stopped:
        return stopped.exit_code
    print(json.dumps(result.figures) if args.json else result)
    return 0


def overrides_of(args: argparse.Namespace) -> dict[str, object]:
    """Return what the flags change in the recipe, by dotted key.

    Raises:
        UsageError: a value cannot be used.
    """
    overrides: dict[str, object] = {}
    if args.time:
        # Time alone decides the length, unless steps or epochs are given too.
        overrides |= {"train.time_limit_s": args.time, "train.steps": 0, "train.epochs": 0.0}
    if getattr(args, "train.steps") is not None and getattr(args, "train.epochs") is not None:
        raise UsageError("--steps and --epochs: give one of the two")
    for _, _, key, _, _ in RECIPE_FLAGS:
        if getattr(args, key) is not None:
            overrides[key] = getattr(args, key)
    if args.skip_bad:
        overrides["data.skip_bad"] = True
    if args.use_fp16:
        overrides.setdefault("train.precision", half_precision())
    if args.checkpoint_every:
        overrides |= _checkpoint_interval(args.checkpoint_every)
    return overrides | dict(args.set)


def restarts(text: str) -> int:
    """Parse a whole number of 0 or more."""
    return 0 if text == "0" else whole_number(text)


def _checkpoint_interval(text: str) -> dict[str, object]:
    """Parse `500` (steps) or `60s` (seconds)."""
    try:
        if text[-1:].isalpha():
            return {"train.checkpoint_every_s": duration(text), "train.checkpoint_every_steps": 0}
        return {"train.checkpoint_every_steps": whole_number(text), "train.checkpoint_every_s": 0.0}
    except argparse.ArgumentTypeError:
        raise UsageError(f"--checkpoint-every {text}: neither steps such as 500 nor a time such as 60s") from None


def _run_to_resume(args: argparse.Namespace) -> Run:
    """Return the run to go on with."""
    from thumbnet.training.whole import run_to_resume

    for flag in ("preset", "recipe", "name"):
        if getattr(args, flag):
            raise UsageError(f"--{flag} and --resume: a resumed run keeps its own; start a new one without --resume")
    return run_to_resume(args.out, args.resume or None, note)


def _new_recipe(args: argparse.Namespace, overrides: dict[str, object]) -> Recipe:
    """Return the recipe of a new run: a preset or a file, with what the flags change."""
    from thumbnet.config import load_preset, load_recipe
    from thumbnet.training.adapt import preset_for

    if args.preset and args.recipe:
        raise UsageError("--preset and --recipe: give one of the two")
    if args.recipe:
        return load_recipe(args.recipe, overrides)
    model = overrides.get("model.name")
    return load_preset(args.preset or preset_for(None if model is None else str(model)), overrides)
