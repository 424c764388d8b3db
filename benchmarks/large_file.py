"""Training batches from a record file much larger than the memory allowed: how much memory, how fast.

    python benchmarks/large_file.py --folder /var/tmp

Writes a file of random records (10 GB), puts it out of the system's cache, and streams a whole epoch of distorted
batches from it in a process of its own, which must stay within its memory budget (500 MB, PyTorch and all included) and
see every record exactly once. The file is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.config import DistortConfig, InputConfig
from thumbnet.data.dataset import open_records
from thumbnet.data.records import RecordFormat

LAYOUT = RecordFormat()
CLASSES = tuple(str(label) for label in range(10))
RECORDS_AT_A_TIME = 10_000
CLASSIC = DistortConfig(crop=24, brightness=63.0, contrast=(0.2, 1.8))
RESULT = Path(__file__).parent / "results" / "large_file.json"


def main() -> int:
    """Write the file, stream it in a subprocess, report; returns 1 if the budget was exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="size of the file (10)")
    parser.add_argument("--budget-mb", type=float, default=500.0, help="memory the process may take (500)")
    parser.add_argument("--pool-mib", type=int, default=128, help="of which for the shuffling pool (128)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file of the result")
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)  # the subprocess: stream this file
    args = parser.parse_args()
    if args.stream:
        print(json.dumps(stream(args.stream, args.pool_mib, args.batch_size)))
        return 0

    count = int(args.gigabytes * 1e9) // LAYOUT.record_bytes
    free = shutil.disk_usage(args.folder).free
    if free < count * LAYOUT.record_bytes:
        sys.exit(f"{args.folder}: {free / 1e9:.1f} GB free, {args.gigabytes:g} needed; choose another with --folder")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="thumbnet-large-file-") as folder:
        path = Path(folder) / "records.bin"
        write_records(path, count)
        result = run_apart(path, args)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0 if result["within_budget"] else 1


def write_records(path: Path, count: int) -> None:
    """Write random records, and put them out of the system's cache, so that reading them is reading the disk."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, count, RECORDS_AT_A_TIME):
            size = min(RECORDS_AT_A_TIME, count - start)
            records = np.frombuffer(bytearray(rng.bytes(size * LAYOUT.record_bytes)), np.uint8).reshape(size, -1)
            records[:, 0] %= len(CLASSES)
            file.write(records.tobytes())
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_apart(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Stream the file in a process of its own, watching its memory from outside."""
    command = [sys.executable, __file__, "--stream", str(path)]
    command += ["--pool-mib", str(args.pool_mib), "--batch-size", str(args.batch_size)]
    most = {"RssAnon": 0, "RssFile": 0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for name, kib in memory_kib(process.pid).items():
                if name in most:
                    most[name] = max(most[name], kib)
            time.sleep(0.05)
        assert process.stdout is not None
        streamed: dict[str, Any] = json.loads(process.stdout.read())
    peak_mb = streamed.pop("peak_kib") * 1024 / 1e6
    return {
        "benchmark": "large_file",
        "file_gb": round(path.stat().st_size / 1e9, 2),
        "budget_mb": args.budget_mb,
        "pool_mib": args.pool_mib,
        "batch_size": args.batch_size,
        "peak_rss_mb": round(peak_mb),
        "most_anonymous_mb": round(most["RssAnon"] * 1024 / 1e6),
        "most_file_mapped_mb": round(most["RssFile"] * 1024 / 1e6),
        "within_budget": peak_mb <= args.budget_mb,
        **streamed,
    }


def stream(path: Path, pool_mib: int, batch_size: int) -> dict[str, Any]:
    """Stream one epoch and return speed and memory."""
    from thumbnet import engine
    from thumbnet.input.pipeline import TrainingInput
    from thumbnet.monitor.machine import describe_machine

    engine.prepare()
    imported_kib = memory_kib("self")["VmRSS"]
    started_s, busy_from_s = time.perf_counter(), time.process_time()
    dataset = open_records("large", CLASSES, LAYOUT, [path])
    seen = np.zeros(len(dataset), np.uint8)
    steps = -(-len(dataset) // batch_size)
    config = InputConfig(batch_size=batch_size, pool_mib=pool_mib)
    with TrainingInput(dataset, CLASSIC, config, seed=0) as batches:
        first = next(batches)
        first_batch_s = time.perf_counter() - started_s
        seen[first.indices] += 1
        for _ in range(steps - 1):
            seen[next(batches).indices] += 1
        elapsed_s, busy_s = time.perf_counter() - started_s, time.process_time() - busy_from_s
    assert (seen >= 1).all(), "an example was left out"
    assert int(seen.sum(dtype=np.int64)) == steps * batch_size
    machine = describe_machine(None)
    return {
        "examples": len(dataset),
        "first_batch_s": round(first_batch_s, 3),
        "epoch_s": round(elapsed_s, 1),
        "images_per_second": round(steps * batch_size / elapsed_s),
        "read_mb_per_second": round(len(dataset) * LAYOUT.record_bytes / elapsed_s / 1e6),
        "cpu_us_per_image": round(busy_s / (steps * batch_size) * 1e6, 2),
        "rss_before_mb": round(imported_kib * 1024 / 1e6),
        "peak_kib": memory_kib("self")["VmHWM"],
        "machine": {key: machine[key] for key in ("cpu", "cores", "python", "torch")},
    }


def memory_kib(pid: int | str) -> dict[str, int]:
    """Return the Vm* and Rss* entries of a process's status, in KiB; empty when it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Vm", "Rss"))}


if __name__ == "__main__":
    sys.exit(main())
