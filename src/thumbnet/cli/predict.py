"""`thumbnet predict`: what pictures show, as a run has learnt it."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from typing import TYPE_CHECKING, Any

from thumbnet.cli.chosen import predictor_of
from thumbnet.cli.flags import (
    WEIGHTS_IN_WORDS,
    add_checkpoint_flags,
    add_engine_flags,
    add_out_flag,
    note,
    user_path,
    whole_number,
)
from thumbnet.errors import UsageError
from thumbnet.printing import padded, printable, width_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thumbnet.evaluation.classifier import Classifier, Prediction

_WIDEST_NAME = 60


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "predict",
        help="say what pictures show",
        description="Say what pictures show, by a checkpoint of a run: classes with their probabilities. "
        "JPEG, PNG, WebP and BMP of any size and mode. Files that cannot be read are named and passed over, and the "
        "exit code is then 3.",
        epilog="A folder stands for all pictures below it, '-' for one on standard input.",
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("pictures", nargs="+", metavar="IMAGE|FOLDER|GLOB|-", help="what to look at")
    parser.add_argument("--run", dest="run_name", metavar="RUN", help="name or folder of a run (the newest in --out)")
    parser.add_argument(
        "--model", type=user_path, metavar="FILE", help="a model of `thumbnet export` in place of a run"
    )
    add_out_flag(parser)
    add_checkpoint_flags(parser)
    parser.add_argument("--top", type=whole_number, default=3, metavar="N", help="likeliest classes to tell (3)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="arithmetic (that of the run)")
    add_engine_flags(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--csv", action="store_true", help="print a line of comma-separated values for each picture")


def run(args: argparse.Namespace) -> int:
    """Predict and print; returns the exit code."""
    from thumbnet.errors import DataError
    from thumbnet.evaluation.predict import find_pictures

    classifier, source = _exported(args) if args.model else _of_run(args)
    where = [WEIGHTS_IN_WORDS[value] if what == "weights" else f"{what} {value}" for what, value in source.items()]
    note(f"{', '.join(where)}, {len(classifier.class_names):,} classes")
    files = find_pictures(args.pictures)
    top = min(args.top, len(classifier.class_names))
    bad: list[Prediction] = []
    good = _good(classifier.predict_files(files, top=top, stdin=sys.stdin.buffer), bad)
    if args.json:
        print(json.dumps(source | _as_dict(list(good), bad)))
    elif args.csv:
        _print_csv(good, top)
    else:
        _print_lines(good, min(_WIDEST_NAME, max(width_of(printable(file)) for file in files)))
    if bad:
        raise DataError(f"{len(bad):,} of {len(files):,} pictures could not be read; they are named above")
    return 0


def _of_run(args: argparse.Namespace) -> tuple[Classifier, dict[str, Any]]:
    """Return the network of a run, and what says which it is."""
    predictor = predictor_of(args, args.precision)
    return predictor, {"run": str(predictor.run.path), "step": predictor.step, "weights": predictor.weights}


def _exported(args: argparse.Namespace) -> tuple[Classifier, dict[str, Any]]:
    """Return the network of a file, and what says which it is."""
    from thumbnet.exporting.read import OnnxClassifier

    of_runs = {"--run": args.run_name, "--weights": args.weights, "--precision": args.precision}
    of_runs["--checkpoint"] = None if args.checkpoint == "latest" else args.checkpoint
    for flag, value in of_runs.items():
        if value is not None:
            raise UsageError(f"--model and {flag}: a file is of one checkpoint, in fp32; give one of the two")
    classifier = OnnxClassifier.open(args.model, args.threads)
    return classifier, {"model": str(args.model), "step": classifier.step}


def _good(predictions: Iterator[Prediction], bad: list[Prediction]) -> Iterator[Prediction]:
    """Yield the predictions of pictures that could be read; name the others and add them to `bad`."""
    for prediction in predictions:
        if prediction.problem is None:
            yield prediction
        else:
            note(f"{printable(prediction.file)}: {printable(prediction.problem)}")
            bad.append(prediction)


def _as_dict(good: list[Prediction], bad: list[Prediction]) -> dict[str, Any]:
    return {
        "predictions": [
            {
                "file": prediction.file,
                "class": prediction.top[0][0],
                "probability": prediction.top[0][1],
                "top": [{"class": name, "probability": probability} for name, probability in prediction.top],
            }
            for prediction in good
        ],
        "unreadable": [{"file": prediction.file, "reason": prediction.problem} for prediction in bad],
    }


def _print_csv(good: Iterator[Prediction], top: int) -> None:
    """Print a table for other programs: the first class's columns have no number."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    numbers = ["", *(f"_{place}" for place in range(2, top + 1))]
    table.writerow(["file", *(f"{name}{number}" for number in numbers for name in ("class", "probability"))])
    for prediction in good:
        answers = [value for name, probability in prediction.top for value in (name, f"{probability:.6f}")]
        table.writerow([prediction.file, *answers])


def _print_lines(good: Iterator[Prediction], width: int) -> None:
    """Print a line for each picture, for a person."""
    for prediction in good:
        answers = "   ".join(f"{printable(name)} {100 * probability:.1f} %" for name, probability in prediction.top)
        print(f"{padded(printable(prediction.file), width)}  {answers}", flush=True)
