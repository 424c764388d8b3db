"""A regression check on ratios: the compiled kernels must be faster than plain PyTorch. Never an absolute time.

    python benchmarks/check.py             # `make bench-check`, about half a minute; exits with 1 on a regression

The step of the classic network and that of the quick preset are measured in processes of their own, with and without
kernels in turn. The median ratio of the rounds must be above 1.6 and 1.3, well below what a quiet machine measures:
with AMX 2.8 and 1.6 (`results/machine.json`), with AVX2 alone 2.7 and 2.7 (`results/avx2/machine.json`). If it is not,
the rounds are measured again, more of them and longer, before this fails: a busy machine hits one turn or another, a
regression hits all of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys

LEAST_RATIO = {"classic": 1.6, "quick": 1.3}
"""By preset."""
ROUNDS = 3
SECONDS = 1.0


def main() -> int:
    """Measure and judge; returns 1 if kernels are not clearly faster than plain PyTorch."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    from thumbnet.config import load_preset
    from thumbnet.training.measure_machine import has_kernels

    failed = False
    for preset in LEAST_RATIO:
        if not has_kernels(load_preset(preset)):
            print(f"{preset}: there are no kernels for it here, nothing to compare")
            continue
        found = ratios(preset, ROUNDS, SECONDS)
        if not fast_enough(preset, found):
            print(f"{preset}: {in_words(found)}; measuring again, longer")
            found = ratios(preset, 2 * ROUNDS + 1, 2 * SECONDS)
        verdict = "fine" if fast_enough(preset, found) else "a regression"
        print(f"{preset}: {in_words(found)}: {verdict}")
        failed = failed or not fast_enough(preset, found)
    return int(failed)


def ratios(preset: str, rounds: int, seconds: float) -> list[float]:
    """Return how many times plain PyTorch's speed the kernels reach, round by round; who begins alternates."""
    from thumbnet.training.measure_machine import step_apart

    found = []
    for number in range(rounds):
        order = (True, False) if number % 2 else (False, True)
        speeds = {kernels: step_apart(preset, seconds, kernels=kernels) for kernels in order}
        found.append(speeds[True] / speeds[False])
    return found


def fast_enough(preset: str, found: list[float]) -> bool:
    """Tell whether the median ratio is above the least that is allowed."""
    return statistics.median(found) > LEAST_RATIO[preset]


def in_words(found: list[float]) -> str:
    """Return the ratios as a person reads them."""
    each = ", ".join(f"{ratio:.2f}" for ratio in found)
    return f"kernels are {statistics.median(found):.2f} times as fast as plain PyTorch (rounds: {each})"


if __name__ == "__main__":
    sys.exit(main())
