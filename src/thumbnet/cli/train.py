"""`thumbnet train`: trains a network, evaluates it, and says where everything is."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.cli.flags import (
    add_data_flags,
    add_engine_flags,
    add_out_flag,
    boolean,
    duration,
    note,
    setting,
    whole_number,
)
from thumbnet.errors import UsageError

if TYPE_CHECKING:
    from thumbnet.config import Recipe
    from thumbnet.data.dataset import Splits
    from thumbnet.runs.run import Run
    from thumbnet.training.loop import Outcome, Training

DEFAULT_PRESET = "quick"

# Flag, its 2015 name if any, recipe key, parser of its value, help.
RECIPE_FLAGS: tuple[tuple[str, str | None, str, Callable[[str], object], str], ...] = (
    ("--data", None, "data.name", str, "cifar10, cifar100, svhn, svhn-extra, shapes, or a folder or .csv of pictures"),
    ("--validation", None, "data.validation", float, "images kept for validation: how many, or which share, as 0.1"),
    ("--image-size", None, "data.image_size", whole_number, "side that pictures of a folder are resized to (32)"),
    ("--model", None, "model.name", str, "network, see `thumbnet info --help`"),
    ("--steps", "--max_steps", "train.steps", whole_number, "steps to train"),
    ("--epochs", None, "train.epochs", float, "epochs to train"),
    ("--batch-size", "--batch_size", "input.batch_size", whole_number, "images of one step, over all devices"),
    ("--pool", None, "input.pool", float, "shuffling pool, as a fraction of an epoch (0 none, 1 all)"),
    ("--lr", "--learning-rate", "optimizer.learning_rate", float, "peak learning rate"),
    ("--seed", None, "seed", int, "seed of weights, order and distortions"),
    ("--precision", None, "train.precision", str, "auto, fp32, bf16 or fp16"),
    ("--log-every", "--log_frequency", "train.log_every", whole_number, "steps between step lines"),
    ("--summary-every", None, "train.summary_every", int, "steps between TensorBoard summaries, 0 for none"),
    ("--keep", None, "train.keep", whole_number, "newest checkpoints kept, beside the best"),
)

METAVARS: dict[Callable[[str], object], str] = {str: "NAME", float: "X"}


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "train",
        help="train a network",
        description="Train a network and evaluate it once on the test set. Runs are never overwritten.",
        epilog="Any entry of the recipe can be set: --set distort.flip=none --set optimizer.momentum=0.9",
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("--preset", help=f"recipe to start from ({DEFAULT_PRESET}); `thumbnet info` lists them")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="recipe.toml to start from, such as that of a run")
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="RUN", help="go on with a run, exactly (the newest in --out)"
    )
    recipe = parser.add_argument_group("recipe")
    for flag, old_name, key, kind, text in RECIPE_FLAGS:
        names = (flag, old_name) if old_name else (flag,)
        recipe.add_argument(*names, type=kind, dest=key, metavar=METAVARS.get(kind, "N"), help=text)
    recipe.add_argument("--skip-bad", action="store_true", help="go on without pictures of a folder that are damaged")
    recipe.add_argument("--time", type=duration, metavar="10m", help="train for this long, schedule included")
    recipe.add_argument("--checkpoint-every", metavar="500|60s", help="steps, or seconds, between checkpoints")
    recipe.add_argument("--set", type=setting, action="append", default=[], metavar="KEY=VALUE", help="any entry")
    run = parser.add_argument_group("run")
    add_out_flag(run)
    run.add_argument("--name", help="name of the run's folder (preset and time)")
    run.add_argument("--log-format", choices=("default", "tutorial"), default="default", help="form of the step line")
    run.add_argument("--no-test", action="store_true", help="leave the test set alone, as while choosing a recipe")
    run.add_argument("--json", action="store_true", help="print the result as one JSON object")
    add_data_flags(run)
    add_engine_flags(run)
    old = parser.add_argument_group("names of 2015")
    old.add_argument("--devices", "--num_gpus", type=whole_number, default=1, help="devices to train on")
    old.add_argument("--use_fp16", type=boolean, nargs="?", const=True, help="half precision: bf16, or fp16 on a GPU")
    old.add_argument("--log_device_placement", type=boolean, nargs="?", const=True, help="as `thumbnet doctor`")


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, report; returns the exit code."""
    from thumbnet import engine
    from thumbnet.cli.doctor import describe_machine, machine_lines
    from thumbnet.errors import DivergedError
    from thumbnet.monitor.console import Console
    from thumbnet.monitor.signals import StopSignal
    from thumbnet.training.session import conclude, open_training

    engine.prepare(args.threads)
    if args.log_device_placement:
        note("\n".join(machine_lines(describe_machine(args.data_dir))))
    if args.devices > 1:
        note(f"--devices {args.devices}: training uses one device, {engine.device()}")
    this_run, recipe, load = _begin(args)
    if args.resume is not None:
        _keep_threads(this_run, args.threads)
    with this_run.lock(), Console(args.log_format, log_path=this_run.path / "log.txt") as console:
        if args.resume is not None:
            # Under the lock: the recipe of a run that another process trains must not change.
            this_run.change_recipe(recipe)
        start_seconds: list[float] = []
        with _no_empty_run(this_run, new=args.resume is None):
            training = open_training(this_run, load(), console, resume=args.resume is not None)
            for line in _opening_lines(training):
                console.note(line)
            # Not before: while data is fetched, a Ctrl-C should end the program rather than wait for a step.
            with StopSignal() as stop:
                try:
                    outcome = training.fit(stop, lambda: start_seconds.append(engine.process_age_s()))
                except DivergedError as error:
                    raise DivergedError(f"{error}\nrun: {this_run.path}") from error
        if outcome.stopped_by:
            console.note(f"stopped at step {outcome.steps}, saved; to go on: {this_run.resume_command}")
            return stop.exit_code
        try:
            result = conclude(training, outcome, start_seconds[0], look_at_test=not args.no_test)
        except KeyboardInterrupt:
            console.note(f"stopped in the final evaluation, all steps are saved; to go on: {this_run.resume_command}")
            raise
        console.note(_speed_line(outcome, result))
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(_result_lines(this_run, result)))
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
        from thumbnet import engine

        overrides.setdefault("train.precision", "bf16" if engine.device().type == "cpu" else "fp16")
    if args.checkpoint_every:
        overrides |= _checkpoint_interval(args.checkpoint_every)
    return overrides | dict(args.set)


def _checkpoint_interval(text: str) -> dict[str, object]:
    """Parse `500` (steps) or `60s` (seconds)."""
    try:
        if text[-1:].isalpha():
            return {"train.checkpoint_every_s": duration(text), "train.checkpoint_every_steps": 0}
        return {"train.checkpoint_every_steps": whole_number(text), "train.checkpoint_every_s": 0.0}
    except argparse.ArgumentTypeError:
        raise UsageError(f"--checkpoint-every {text}: neither steps such as 500 nor a time such as 60s") from None


def _begin(args: argparse.Namespace) -> tuple[Run, Recipe, Callable[[], Splits]]:
    """Make the new run, or find the one to resume; gives the run, its recipe from here on, and what loads its data."""
    from thumbnet.data import load_splits
    from thumbnet.runs.run import find_checkpoint
    from thumbnet.training.session import resumed_recipe, start_run

    def load(recipe: Recipe) -> Splits:
        return load_splits(recipe.data, data_dir=args.data_dir, offline=args.offline, note=note)

    overrides = overrides_of(args)
    if args.resume is None:
        new, splits = start_run(_new_recipe(args, overrides), args.out, args.name, load)
        return new, new.recipe, lambda: splits
    for flag in ("preset", "recipe", "name"):
        if getattr(args, flag):
            raise UsageError(f"--{flag} and --resume: a resumed run keeps its own; start a new one without --resume")
    found, step = find_checkpoint(args.out, args.resume or None)
    if step is not None:
        raise UsageError(
            f"--resume {args.resume}: a run goes on from its newest checkpoint: give the run, {found.path}"
        )
    return found, resumed_recipe(found, overrides), lambda: load(found.recipe)


def _keep_threads(this_run: Run, asked: int | None) -> None:
    """Resume with the threads that the run began with: sums over another number of threads round otherwise."""
    from thumbnet import engine

    before = this_run.threads
    if before is None:
        return
    if asked is None:
        engine.prepare(before)
    elif asked != before:
        note(f"--threads {asked}: the run began with --threads {before}, so its weights may differ in the last digits")


def _new_recipe(args: argparse.Namespace, overrides: dict[str, object]) -> Recipe:
    """Return the recipe of a new run: a preset or a file, with what the flags change."""
    from thumbnet.config import load_preset, load_recipe

    if args.preset and args.recipe:
        raise UsageError("--preset and --recipe: give one of the two")
    if args.recipe:
        return load_recipe(args.recipe, overrides)
    return load_preset(args.preset or DEFAULT_PRESET, overrides)


@contextlib.contextmanager
def _no_empty_run(this_run: Run, *, new: bool) -> Iterator[None]:
    """Clear away a new run that ends before its first checkpoint: it holds nothing to go on with."""
    try:
        yield
    except BaseException:
        if new and not this_run.checkpoints.steps():
            shutil.rmtree(this_run.path, ignore_errors=True)
        raise


def _opening_lines(training: Training) -> list[str]:
    """Say what is going to be trained, on what, with what."""
    import torch

    from thumbnet.kernels import load_library

    recipe, splits, state = training.recipe, training.splits, training.state
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    validation = f", {len(splits.validation):,} for validation" if splits.validation is not None else ""
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' * (count > 1)}"
    kernels = "fused C kernels" if load_library().handle else f"no fused kernels ({load_library().why})"
    lines = [
        f"run {training.run.path}: preset {recipe.preset}, seed {recipe.seed}",
        f"data {recipe.data.name}: {len(splits.train):,} images to train on{validation}",
        f"network {recipe.model.name}: {parameters:,} parameters, input {recipe.distort.crop}x{recipe.distort.crop}, "
        f"batch {recipe.input.batch_size}",
        f"engine: {training.precision.name} ({training.precision.why}), {threads}, {kernels}",
    ]
    height, width, _ = splits.train.image_shape
    if 3 * recipe.distort.crop < 2 * min(height, width):
        lines.append(
            f"the network sees only {recipe.distort.crop}x{recipe.distort.crop} of the {height}x{width} pictures: "
            f"--set distort.crop={7 * min(height, width) // 8} shows it more"
        )
    if state.step:
        lines.append(f"resumed after step {state.step}")
    return lines


def _speed_line(outcome: Outcome, result: dict[str, Any]) -> str:
    from thumbnet.monitor.console import format_duration

    return (
        f"trained {outcome.steps} steps ({outcome.epochs:.1f} epochs) in {format_duration(outcome.train_seconds)}, "
        f"{outcome.images_per_second:,.0f} images/s, {100 * outcome.wait_fraction:.1f} % of it waiting for input; "
        f"evaluation, not in this time, {result.get('test_seconds', 0):.1f} s; {result['memory_mib']:,.0f} MiB resident"
    )


def _result_lines(this_run: Run, result: dict[str, Any]) -> list[str]:
    """Return the result as a person reads it."""
    lines = []
    for weights, metrics in result.get("test", {}).items():
        lines.append(
            f"test accuracy, {weights + ' weights:':<17} {100 * metrics['accuracy']:.2f} %   "
            f"(top-5 {100 * metrics['top5']:.2f} %, loss {metrics['loss']:.3f})"
        )
        if "view_accuracy" in metrics:
            lines.append(f"    over several views of each picture: {100 * metrics['view_accuracy']:.2f} %")
    path = shlex.quote(str(this_run.path))
    return [
        *lines,
        f"run folder:       {this_run.path}",
        f"evaluate again:   thumbnet eval {path}",
        f"curves:           tensorboard --logdir {path}/tensorboard",
    ]
