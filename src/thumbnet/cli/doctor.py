"""`thumbnet doctor`: what this machine has, and what was chosen for it, and why."""

from __future__ import annotations

import argparse
import json
from typing import Any

from thumbnet.cli.flags import add_data_dir_flag, add_engine_flags


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine has, and what is chosen for it",
        description="Show the processor, the arithmetic and kernels chosen for it and why, and where data is kept.",
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_data_dir_flag(parser)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print the machine's description; returns the exit code."""
    from thumbnet import engine
    from thumbnet.monitor.machine import describe_machine, machine_lines

    engine.prepare(args.threads)
    machine = describe_machine(args.data_dir)
    print(json.dumps(machine) if args.json else "\n".join(machine_lines(machine)))
    return 0
