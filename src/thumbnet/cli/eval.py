"""`thumbnet eval`: how good the checkpoints of a run are, once or for as long as it trains."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from thumbnet.cli.flags import (
    add_data_flags,
    add_engine_flags,
    add_out_flag,
    add_use_fp16_flag,
    boolean,
    checkpoint,
    duration,
    half_precision,
    note,
    user_path,
    whole_number,
)
from thumbnet.errors import UsageError

if TYPE_CHECKING:
    from thumbnet.evaluation.evaluator import Evaluation, Evaluator, Split
    from thumbnet.monitor.event_file import EventFile
    from thumbnet.runs.run import Run

Checkpoint = Literal["latest", "best", "all"] | int

EVERY_S = 300.0
"""Seconds between looks for new checkpoints, as in the tutorial."""
FIND_EVERY_S = 5.0
"""Seconds between looks for a run that has yet to begin."""


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "eval",
        help="evaluate the checkpoints of a run",
        description="Evaluate a checkpoint of a run on every image of a split: averaged and raw weights side by side.",
        epilog="With --watch, --json prints one object a line, and plots are drawn only if --plots is given. With "
        "--checkpoint all it prints a list of objects, one for each.",
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("run", nargs="?", metavar="RUN", help="name or folder of a run (the newest in --out)")
    add_out_flag(parser)
    what = parser.add_argument_group("what to evaluate")
    what.add_argument("--checkpoint", type=checkpoint_or_all, metavar="latest|best|STEP|all", help="which one (latest)")
    what.add_argument("--weights", choices=("average", "raw", "both"), default="both", help="which weights (both)")
    what.add_argument("--split", choices=("test", "val", "train"), help="which images (test)")
    what.add_argument(
        "--data", metavar="NAME", help="where the pictures are now, or others of the same classes (the run's)"
    )
    what.add_argument("--skip-bad", action="store_true", help="go on without pictures of a folder that are damaged")
    what.add_argument("--limit", "--num_examples", type=whole_number, metavar="N", help="only the first N images")
    add_data_flags(what)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--batch-size",
        "--batch_size",
        type=whole_number,
        metavar="N",
        help="images of one pass (500, fewer of more than 64x64 pixels)",
    )
    how.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="arithmetic (that of the run)")
    add_engine_flags(how)
    how.add_argument("--watch", action="store_true", help="follow a run that is training until it ends")
    how.add_argument(
        "--every",
        "--eval_interval_secs",
        type=duration,
        metavar="300s",
        help="look for checkpoints this often; watches",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the result as one JSON object")
    output.add_argument("--plots", action=argparse.BooleanOptionalAction, help="draw PNG plots")
    output.add_argument(
        "--eval-dir",
        "--eval_dir",
        type=user_path,
        metavar="DIR",
        help="where results go (RUN/evaluation, RUN/tensorboard/eval)",
    )
    old = parser.add_argument_group("names of 2015")
    old.add_argument("--checkpoint_dir", metavar="RUN", help="as RUN")
    old.add_argument("--eval_data", choices=("test", "train_eval"), help="as --split test, --split train")
    old.add_argument("--run_once", type=boolean, nargs="?", const=True, metavar="BOOL", help="false: as --watch")
    add_use_fp16_flag(old)


def checkpoint_or_all(text: str) -> Checkpoint:
    """Parse `latest`, `best`, `all` or a step."""
    if text == "all":
        return "all"
    try:
        return checkpoint(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}' is none of latest, best, all, and no step such as 1000") from None


def run(args: argparse.Namespace) -> int:
    """Evaluate and report; returns the exit code."""
    watching = wants_watch(args)
    if args.run and args.checkpoint_dir:
        raise UsageError(f"'{args.run}' and --checkpoint_dir {args.checkpoint_dir}: give the run once")

    split = chosen_split(args)

    from thumbnet import engine
    from thumbnet.evaluation.watch import watch

    engine.prepare(args.threads)
    this_run, step = _find_run(args, watching=watching)
    if step is not None and (args.checkpoint is not None or watching):
        name = args.run or args.checkpoint_dir
        raise UsageError(f"{name} is one checkpoint: name its run, {this_run.path}, to watch it or to choose another")
    which: Checkpoint = step if step is not None else "latest" if args.checkpoint is None else args.checkpoint
    if not watching and which != "all":
        this_run.checkpoints.path(which)  # before the data: tells at once of a checkpoint that is not there
    results = args.eval_dir or this_run.path / "evaluation"
    _make_writable(results)
    # The figures of all checkpoints side by side are those of a single view.
    evaluator = _evaluator(args, this_run, split, views=which != "all")
    events_folder = args.eval_dir or this_run.path / "tensorboard" / "eval"
    with contextlib.closing(_open_events(events_folder)) as events:
        if watching:
            for evaluation in watch(evaluator, every_s=args.every or EVERY_S, note=note):
                _report(evaluation, args, results, events, watching=True)
        elif which == "all":
            _report_all(evaluator.evaluate_all(note), args, results, events)
        else:
            evaluation = evaluator.evaluate_latest(note) if which == "latest" else evaluator.evaluate(which)
            _report(evaluation, args, results, events, watching=False)
    if events.failure:
        note(f"warning: {events_folder}: TensorBoard's files are not complete: {events.failure}")
    return 0


def wants_watch(args: argparse.Namespace) -> bool:
    """Return whether to follow the run: an interval means it, unless `--run_once` says otherwise.

    Raises:
        UsageError: flags contradict each other.
    """
    if args.run_once and args.watch:
        raise UsageError("--watch and --run_once: give one of the two")
    watching = not args.run_once and bool(args.watch or args.every or args.run_once is False)
    if watching and args.checkpoint is not None:
        raise UsageError("--checkpoint names one checkpoint and --watch evaluates every new one: give one of the two")
    return watching


def chosen_split(args: argparse.Namespace) -> Split | None:
    """Return the split that is asked for, by its name of now or of 2015.

    Raises:
        UsageError: the two disagree.
    """
    by_old_name: dict[str | None, Split | None] = {"test": "test", "train_eval": "train", None: None}
    old = by_old_name[args.eval_data]
    if old and args.split and old != args.split:
        raise UsageError(f"--split {args.split} and --eval_data {args.eval_data}: give one of the two")
    return args.split or old


def _find_run(args: argparse.Namespace, *, watching: bool) -> tuple[Run, int | None]:
    """Return the run, and the step if one of its checkpoints was named; to watch a run, wait for it to begin."""
    from thumbnet.runs.find import find_checkpoint

    waiting = False
    while True:
        try:
            return find_checkpoint(args.out, args.run or args.checkpoint_dir)
        except UsageError as error:
            if not watching:
                raise
            if not waiting:
                note(f"{error}\nwaiting for it to begin; Ctrl-C ends")
            waiting = True
        time.sleep(min(args.every or EVERY_S, FIND_EVERY_S))


def _evaluator(args: argparse.Namespace, this_run: Run, split: Split | None, *, views: bool) -> Evaluator:
    """Load the data and build the network of a run."""
    from thumbnet import engine
    from thumbnet.evaluation.evaluator import Evaluator, choose_weights, load_for
    from thumbnet.evaluation.predict import own_precision

    recipe = this_run.recipe
    weights = choose_weights(recipe, args.weights)
    if args.weights == "both" and weights == ("raw",):
        note("this run keeps no average of its weights: the raw ones are evaluated alone")
    asked_for = args.precision or (half_precision() if args.use_fp16 else None)
    precision = engine.resolve_precision(asked_for or own_precision(this_run))
    splits, split = load_for(
        this_run,
        split,
        data=args.data,
        skip_bad=args.skip_bad,
        data_dir=args.data_dir,
        offline=args.offline,
        note=note,
    )
    evaluator = Evaluator(
        this_run,
        splits,
        split,
        weights=weights,
        precision=precision,
        limit=args.limit,
        batch_size=args.batch_size,
        views=views,
    )
    if args.limit and args.limit > len(evaluator.dataset):
        note(f"--limit {args.limit}: the {split} split has {len(evaluator.dataset):,} images, all are evaluated")
    return evaluator


def _make_writable(folder: Path) -> None:
    """Make the folder of the results before any work is done for it."""
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _open_events(folder: Path) -> EventFile:
    from thumbnet.monitor.event_file import EventFile

    with _writing_to(folder):
        return EventFile(folder)


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Tell of a folder that cannot be written to, and of the flag that chooses another."""
    from thumbnet.files import write_error

    try:
        yield
    except OSError as error:
        raise write_error(folder, error, flag="--eval-dir") from error


def _report_all(evaluations: list[Evaluation], args: argparse.Namespace, folder: Path, events: EventFile) -> None:
    """Print a line for each checkpoint, and write their accuracies over the steps as JSON and plot."""
    from thumbnet.evaluation import report
    from thumbnet.evaluation.curves import checkpoints_png, checkpoints_to_json

    rows = checkpoints_to_json(evaluations)
    for evaluation in evaluations:
        report.add_summaries(evaluation, events)
    if args.json:
        print(json.dumps(rows), flush=True)
    else:
        report.print_checkpoints(evaluations)
    stem = report.stem_of("checkpoints", evaluations[0])
    contents = {f"{stem}.json": (json.dumps(rows, indent=1) + "\n").encode()}
    if args.plots is not False:
        contents[f"{stem}.png"] = checkpoints_png(
            evaluations, f"{evaluations[0].run.absolute().name}, every checkpoint"
        )
    with _writing_to(folder):
        files = report.write_contents(contents, folder)
    note(f"written: {', '.join(map(str, files))}")


def _report(
    evaluation: Evaluation, args: argparse.Namespace, folder: Path, events: EventFile, *, watching: bool
) -> None:
    """Print an evaluation, then write its files and summaries."""
    from thumbnet.evaluation import report

    now = datetime.datetime.now().astimezone()
    if args.json:
        print(json.dumps(report.to_json(evaluation)), flush=True)
    elif watching:
        print(report.watch_line(evaluation, now), flush=True)
    else:
        report.print_tables(evaluation)
        print(report.tutorial_line(evaluation, now), flush=True)
    with_plots = not watching if args.plots is None else args.plots
    plots = report.draw_plots(evaluation) if with_plots else {}
    with _writing_to(folder):
        files = report.write_files(evaluation, folder, plots)
    report.add_summaries(evaluation, events, plots.get("confusion"))
    if not watching:
        note(f"written: {', '.join(str(file) for file in files[:1])} and {len(files) - 1} more beside it")
