"""How busy other programs keep the cores that a training uses."""

from __future__ import annotations

import os
import time
from pathlib import Path

WORTH_TELLING = 0.5
"""Cores: a step waits for its slowest thread, so half a core is felt; what a desktop does on the side is not."""
LEAST_S = 0.5
"""Of a measurement: the system counts in hundredths of a second, on each core."""


class Neighbours:
    """The time that other programs have taken of this process's cores since this was made, by Linux's own count."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        """Begin.

        Args:
            stat: the system's count of what its cores have done.
        """
        self._stat = stat
        self._cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._since = self._now()

    @property
    def cores(self) -> int:
        """Cores that this process may use; 0 where the system does not tell."""
        return len(self._cores)

    def busy_cores(self) -> float | None:
        """Return how many cores' worth of time others have taken on average, from 0; None where it cannot be told yet.

        The processes that this one has started count as its own when they have ended.
        """
        if self._since is None or (now := self._now()) is None:
            return None
        seconds, all_s, own_s = (after - before for before, after in zip(self._since, now, strict=True))
        return None if seconds < LEAST_S else min(max(all_s - own_s, 0.0) / seconds, float(self.cores))

    def _now(self) -> tuple[float, float, float] | None:
        """Return the time, and the processor time that all programs and this one have used, in seconds."""
        try:
            rows = [line.split() for line in self._stat.read_text(encoding="ascii").splitlines()]
        except OSError:
            return None
        # user, nice, system, idle, iowait, irq, softirq, steal (proc(5)): all but the fourth and fifth are work, the
        # last that of other virtual machines.
        ticks = {
            row[0]: sum(int(value) for i, value in enumerate(row[1:9]) if i not in (3, 4))
            for row in rows
            if row and row[0].startswith("cpu")
        }
        mine = [f"cpu{core}" for core in self._cores]
        if not mine or not ticks.keys() >= set(mine):  # containers may number cores anew
            return None
        used = os.times()
        own_s = used.user + used.system + used.children_user + used.children_system
        return time.monotonic(), sum(ticks[core] for core in mine) / os.sysconf("SC_CLK_TCK"), own_s
