"""The network that a command's flags choose; several commands ask for one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from thumbnet.cli.flags import note

if TYPE_CHECKING:
    from thumbnet.config import PrecisionName
    from thumbnet.evaluation.predict import Predictor


def predictor_of(args: argparse.Namespace, precision: PrecisionName | None = None) -> Predictor:
    """Return the network of the run and checkpoint that `args` names, on as many threads as it says.

    Args:
        args: `run_name`, and what `add_out_flag`, `add_checkpoint_flags` and `add_engine_flags` give.
        precision: its arithmetic; None for that of the run.

    Raises:
        UsageError: there is no such run, or no such weights.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    from thumbnet import engine
    from thumbnet.evaluation.predict import Predictor
    from thumbnet.runs.find import choose_checkpoint

    engine.prepare(args.threads)
    run, which = choose_checkpoint(args.out, args.run_name, args.checkpoint)
    return Predictor(run, checkpoint=which, weights=args.weights, precision=precision, note=note)
