"""`thumbnet export`: a run's network as a file for other programs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from typing import Any

from thumbnet.cli.chosen import predictor_of
from thumbnet.cli.flags import WEIGHTS_IN_WORDS, add_checkpoint_flags, add_engine_flags, add_out_flag


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "export",
        help="write a network as an ONNX file for other programs",
        description="Write the network of a run as one ONNX file: pictures as uint8 go in, probabilities come out; "
        "crop, standardization and class names are inside. It is written only if it answers as PyTorch does.",
        epilog="`thumbnet predict --model FILE` asks it; so does any ONNX runtime.",
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("run_name", nargs="?", metavar="RUN", help="name or folder of a run (the newest in --out)")
    parser.add_argument("--to", metavar="FILE", help="where to, or a folder/ (model.onnx in the run's folder)")
    add_out_flag(parser)
    add_checkpoint_flags(parser)
    add_engine_flags(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Export and say how well it agrees; returns the exit code."""
    from thumbnet.exporting.write import export_onnx

    predictor = predictor_of(args)
    done = export_onnx(predictor, predictor.run.path if args.to is None else args.to, args.threads)
    if args.json:
        print(json.dumps(dataclasses.asdict(done) | {"path": str(done.path), "step": predictor.step}))
        return 0
    weights = WEIGHTS_IN_WORDS[predictor.weights]
    height, width, channels = predictor.image_shape
    print(f"run {predictor.run.path}, step {predictor.step}, {weights}")
    print(
        f"{done.path}: {done.size_bytes / 2**20:.1f} MiB; pictures uint8 [N, {height}, {width}, {channels}] -> "
        f"probabilities float32 [N, {len(predictor.class_names)}], class names inside"
    )
    print(
        f"agrees with PyTorch: no probability differs by more than {done.difference:.1g} in fp32, "
        f"{done.difference_to_run:.1g} from the run's {done.precision}"
    )
    print(f"ask it: thumbnet predict --model {shlex.quote(str(done.path))} photo.jpg")
    return 0
