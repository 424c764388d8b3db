"""Starting on a folder of one's own pictures: how long the first start takes, which decodes them, and the second.

    python benchmarks/folder.py --folder /var/tmp

Writes two sets of JPEG files: many small ones, 64 to 256 pixels on the short side, as collections of thumbnails have
them, and some of 1600x1200, as cameras give them. Each is loaded twice, as `thumbnet train --data FOLDER` does, and
fully: listing, decoding, splits, class balance. For each set, the first load must take no longer than its budget. All
files are deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thumbnet.config import DataConfig
from thumbnet.data import load_splits

CLASSES = 10
RESULT = Path(__file__).parent / "results" / "folder.json"


def main() -> int:
    """Write the pictures, load them, report; returns 1 if a first start was slower than its budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room")
    parser.add_argument("--small", type=int, default=60_000, help="small pictures (60,000)")
    parser.add_argument("--small-budget-s", type=float, default=30.0, help="seconds they may take (30)")
    parser.add_argument("--large", type=int, default=1_000, help="pictures of 1600x1200 (1,000)")
    parser.add_argument("--large-budget-s", type=float, default=30.0, help="seconds they may take (30)")
    parser.add_argument("--image-size", type=int, default=32, help="side they are decoded to (32)")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file of the result")
    args = parser.parse_args()
    sets = {
        "small": (args.small, (64, 256), args.small_budget_s),
        "large": (args.large, (1200, 1200), args.large_budget_s),
    }
    result: dict[str, Any] = {"benchmark": "folder", "image_size": args.image_size}
    for name, (count, sides, budget_s) in sets.items():
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="thumbnet-folder-") as work:
            write_pictures(Path(work) / "pictures", count, sides)
            result[name] = measure(Path(work), count, args.image_size) | {"budget_s": budget_s}
        result[name]["within_budget"] = result[name]["first_start_s"] <= budget_s
    result["machine"] = machine()
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0 if all(result[name]["within_budget"] for name in sets) else 1


def write_pictures(root: Path, count: int, sides: tuple[int, int]) -> None:
    """Write JPEG files, 4:3 or 3:4, with the short side between two sizes, in folders of classes."""
    for label in range(CLASSES):
        (root / f"class{label}").mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        numbers = range(count)
        done = sum(pool.map(_write_picture, [root] * count, numbers, [sides] * count, chunksize=100))
    assert done == count


def _write_picture(root: Path, number: int, sides: tuple[int, int]) -> bool:
    """Write one picture: blobs of colour with grain, which take about as many bytes as photographs do."""
    rng = np.random.default_rng(number)
    short = int(rng.integers(sides[0], sides[1] + 1))
    size = (short * 4 // 3, short) if rng.integers(2) else (short, short * 4 // 3)
    blobs = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(blobs).astype(np.int16) + rng.integers(-6, 7, (size[1], size[0], 1), dtype=np.int16)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    picture.save(root / f"class{number % CLASSES}" / f"{number:06}.jpg", quality=85)
    return True


def measure(work: Path, count: int, image_size: int) -> dict[str, Any]:
    """Load the pictures twice, and return how long that took."""
    config = DataConfig(name=str(work / "pictures"), image_size=image_size)
    seconds, busy_s, examples = [], [], []
    for _ in range(2):
        started_s, busy_from_s = time.perf_counter(), processor_s()
        splits = load_splits(config, data_dir=work / "cache", offline=True)
        seconds.append(time.perf_counter() - started_s)
        busy_s.append(processor_s() - busy_from_s)
        assert splits.test is not None
        examples.append((len(splits.train), len(splits.test)))
    assert examples[0] == examples[1]
    assert sum(examples[0]) == count
    size_bytes = sum(path.stat().st_size for path in (work / "pictures").rglob("*.jpg"))
    return {
        "pictures": count,
        "kib_per_picture": round(size_bytes / count / 1024, 1),
        "first_start_s": round(seconds[0], 2),
        "pictures_per_second": round(count / seconds[0]),
        "cpu_us_per_picture": round(busy_s[0] / count * 1e6),
        "second_start_s": round(seconds[1], 3),
        "second_start_cpu_s": round(busy_s[1], 3),
    }


def processor_s() -> float:
    """Return the processor time of this process and of those it has waited for, in seconds."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def machine() -> dict[str, Any]:
    """Return on what this was measured."""
    import PIL

    from thumbnet import engine

    load = os.getloadavg()[0]
    return {
        "cpu": engine.cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_at_the_end": round(load, 1),
        "python": sys.version.split()[0],
        "pillow": PIL.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
