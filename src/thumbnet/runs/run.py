"""The folder of a run, never overwritten: made, locked, filled and finished.

runs/quick-20260102-030405/
  recipe.toml      everything that decides what the training computes
  run.json         command, where data sets are kept, whether the test set is left alone, versions, machine, time of
                   creation
  data.json        what the pictures were, see `thumbnet.runs.facts`
  metrics.jsonl    one line of numbers for each report
  log.txt          the lines of the console
  checkpoints/     see `thumbnet.runs.checkpoint`
  tensorboard/  evaluation/
  result.json      when the training has finished
  model.onnx       when it has been exported
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch

import thumbnet
from thumbnet import engine
from thumbnet.config import Recipe, load_recipe, recipe_to_dict
from thumbnet.distributed.place import job_of
from thumbnet.errors import CheckpointError, ThumbnetError, UsageError
from thumbnet.files import clear_leftovers, expand_home, is_disk_full, remedy, replace_file, write_error
from thumbnet.kernels import load_library
from thumbnet.models.grid import amx_ready
from thumbnet.printing import printable
from thumbnet.runs.checkpoint import tidy_folder
from thumbnet.runs.facts import DATA_FILE
from thumbnet.runs.lock import hold_run, is_held
from thumbnet.runs.store import CheckpointStore

RUN_FILE, RECIPE_FILE, RESULT_FILE = "run.json", "recipe.toml", "result.json"
METRICS_FILE = "metrics.jsonl"
ARITHMETIC = ("torch", "device", "cpu", "kernels", "ONEDNN_MAX_CPU_ISA")
"""Entries of `run.json`."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}")


class Run:
    """One training and everything it leaves, in a folder of its own."""

    def __init__(self, path: Path, recipe: Recipe, created: str) -> None:
        """Refer to an existing run; use `create` or `open`."""
        self.path = path
        self.recipe = recipe
        self.created = created
        self.checkpoints = CheckpointStore(path / "checkpoints", keep=recipe.train.keep)

    @classmethod
    def create(cls, out: Path, recipe: Recipe, name: str | None = None, *, data_dir: Path | None = None) -> Run:
        """Make the folder of a new run; none that exists is ever touched.

        Args:
            out: folder of the runs, made if missing.
            recipe: written whole into the run.
            name: name of the folder; without one, preset and local time, and a number if that is taken.
            data_dir: where data sets are kept, which a resume and an evaluation then need not be told again.

        Raises:
            UsageError: the name is taken or cannot be a name, the recipe has a text that is not UTF-8, or `out` cannot
                be written to.
            ThumbnetError: the disk is full or refuses.
        """
        if name is not None and (not _NAME.fullmatch(name) or name.endswith(".onnx")):
            raise UsageError(
                f"--name {name!r}: use 1 to 100 of A-Z, a-z, 0-9 and _.+=-, beginning with a letter, digit or _ "
                "and not ending in .onnx, as an exported file does"
            )
        recipe_bytes = _recipe_bytes(recipe)
        path: Path | None = None
        try:
            out.mkdir(parents=True, exist_ok=True)
            path = _make_folder(out, recipe, name)
            (path / "checkpoints").mkdir()
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
            replace_file(path / RECIPE_FILE, [recipe_bytes])
            # Last, since this file makes the folder a run.
            replace_file(path / RUN_FILE, [_json_bytes(_describe_run(path.name, recipe, created, data_dir))])
        except BaseException as error:
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            kind = ThumbnetError if is_disk_full(error) else UsageError
            raise kind(f"{out}: cannot make the folder of the run: {error}\nTo go on: {remedy(error)}") from error
        return cls(path, recipe, created)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Return the run in a folder.

        Raises:
            UsageError: it is not the folder of a run, or its recipe is not one.
            CheckpointError: its `run.json` is damaged.
        """
        if not (path / RUN_FILE).is_file():
            raise UsageError(f"{path}: not the folder of a run, it has no {RUN_FILE}")
        return cls(path, load_recipe(path / RECIPE_FILE), created_at(path))

    @property
    def threads(self) -> int | None:
        """Processor threads the run was made with, which decide how its sums round; None where it does not say."""
        threads = read_entry(self.path, "machine", "threads")
        return threads if type(threads) is int and threads > 0 else None

    @property
    def arithmetic(self) -> dict[str, str]:
        """What `arithmetic` told where the run began, as far as it was written down."""
        before = {name: read_entry(self.path, "machine", name) for name in ARITHMETIC}
        return {name: value for name, value in before.items() if isinstance(value, str)}

    @property
    def replicas(self) -> int:
        """Replicas the run was begun with."""
        replicas = read_entry(self.path, "machine", "replicas")
        return replicas if type(replicas) is int else 1

    @property
    def data_dir(self) -> Path | None:
        """Where data sets were kept for it, see `kept_data_dir`."""
        return kept_data_dir(self.path)

    @property
    def looks_at_test(self) -> bool:
        """Whether its training is to end with a look at the test set."""
        return read_entry(self.path, "looks_at_test") is not False

    def leave_test_alone(self) -> None:
        """Remember, through all resumes, that the training is not to look at the test set.

        Raises:
            ThumbnetError: the disk is full or refuses.
        """
        path = self.path / RUN_FILE
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            replace_file(path, [_json_bytes({**entries, "looks_at_test": False})])
        except OSError as error:
            raise write_error(path, error) from error

    @property
    def resume_command(self) -> str:
        """The command that goes on with this run."""
        return f"thumbnet train --resume {shlex.quote(str(self.path))}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for training, one process at a time.

        Also clears away what a killed save left.

        Raises:
            CheckpointError: another process trains this run, or the file system has no locks.
            UsageError: the folder cannot be written to.
        """
        with hold_run(self.path):
            for name in (RUN_FILE, RECIPE_FILE, METRICS_FILE, RESULT_FILE, DATA_FILE):  # an export is another's
                clear_leftovers(self.path, name)
            tidy_folder(self.checkpoints.folder)
            yield

    def is_training(self) -> bool:
        """Return whether a process holds the lock of this run."""
        return is_held(self.path)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row of numbers; it has the key `step`. NaN and infinities are written as null.

        Raises:
            ThumbnetError: the disk is full or refuses.
        """
        line = json.dumps(_finite_or_none(row), allow_nan=False) + "\n"
        try:
            with (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise ThumbnetError(
                f"{self.path / METRICS_FILE}: cannot write: {error}\n{remedy(error)}, then: {self.resume_command}"
            ) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows written so far; a last line that a kill tore is left out.

        Raises:
            CheckpointError: names another line that is not a row.
        """
        path = self.path / METRICS_FILE
        if not path.exists():
            return []
        lines = path.read_bytes().splitlines()
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                rows.append({**row, "step": int(row["step"])})
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise CheckpointError(f"{path}, line {number}: not a row of numbers: delete that line") from error
        return rows

    def rewind(self, step: int) -> None:
        """Get ready to train on from `step`: drop rows of later steps and the result, so that no step is told twice.

        Raises:
            CheckpointError: a row is damaged.
            ThumbnetError: the disk is full or refuses.
        """
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        try:
            replace_file(self.path / METRICS_FILE, [text.encode()])
            (self.path / RESULT_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise write_error(self.path, error) from error

    def change_recipe(self, recipe: Recipe) -> None:
        """Write another recipe into the run, such as a longer training to resume with.

        Raises:
            UsageError: the recipe has a text that is not UTF-8.
            ThumbnetError: the disk is full or refuses.
        """
        try:
            replace_file(self.path / RECIPE_FILE, [_recipe_bytes(recipe)])
        except OSError as error:
            raise write_error(self.path / RECIPE_FILE, error) from error
        self.recipe = recipe
        self.checkpoints.keep = recipe.train.keep

    @property
    def finished(self) -> bool:
        """Whether the training has come to its end."""
        return (self.path / RESULT_FILE).exists()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result; with it the run counts as finished. NaN and infinities are written as null.

        Raises:
            ThumbnetError: the disk is full or refuses.
        """
        try:
            replace_file(self.path / RESULT_FILE, [_json_bytes(_finite_or_none(result))])
        except OSError as error:
            raise write_error(self.path / RESULT_FILE, error) from error

    @property
    def result(self) -> dict[str, Any] | None:
        """What `finish` wrote; None before the training has come to its end.

        Raises:
            CheckpointError: it is damaged.
        """
        if not self.finished:
            return None
        path = self.path / RESULT_FILE
        try:
            result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}\n`thumbnet eval` measures the run again") from error
        return result


def read_entry(run: Path, *keys: str) -> Any:
    """Return an entry of a run's `run.json`, None where it does not say."""
    try:
        entry: Any = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
        for key in keys:
            entry = entry[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry


def kept_data_dir(run: Path) -> Path | None:
    """Return where data sets were kept for a run, if that was said and is still there; None for the user's cache."""
    folder = read_entry(run, "data_dir")
    # The method of a Path raises where a folder above it is closed (before Python 3.14).
    return Path(folder) if isinstance(folder, str) and os.path.isdir(folder) else None  # noqa: PTH112


def created_at(run: Path) -> str:
    """Return when a run was made, in ISO 8601, UTC, to the microsecond: such texts sort like the times.

    Raises:
        CheckpointError: its `run.json` is damaged.
    """
    created = read_entry(run, "created")
    if not isinstance(created, str):
        raise CheckpointError(f"{run / RUN_FILE}: damaged: restore it, or move this run away")
    return created


def _make_folder(out: Path, recipe: Recipe, name: str | None) -> Path:
    """Make a folder that did not exist; mkdir decides, so two processes never get the same one."""
    if name is not None:
        path = out / name
        try:
            path.mkdir()
        except FileExistsError:
            begun = (path / RUN_FILE).is_file() and not CheckpointStore(path / "checkpoints").is_empty()
            go_on = f", or go on with it: thumbnet train --resume {shlex.quote(str(path))}" if begun else ""
            raise UsageError(
                f"--name {name}: {path} exists, and runs are never overwritten: choose another name{go_on}"
            ) from None
        return path
    preset = re.sub(r"[^A-Za-z0-9_.+=-]", "-", recipe.preset)[:60]
    stem = f"{preset}-{datetime.datetime.now().astimezone():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        path = out / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def _recipe_bytes(recipe: Recipe) -> bytes:
    """Return what `recipe.toml` holds."""
    text = tomli_w.dumps(recipe_to_dict(recipe))
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        line = text[: error.end].splitlines()[-1]
        raise UsageError(f"the recipe cannot be kept, this is not UTF-8: {printable(line)}") from error


def arithmetic() -> dict[str, str]:
    """Return the entries of `ARITHMETIC`: what decides, beside recipe and threads, how sums round here."""
    library = load_library()
    kernels = f"{'AMX' if amx_ready() else 'C'} {library.version}" if library.handle else "none"
    values = (torch.__version__, engine.device().type, engine.cpu_name(), kernels, engine.isa_cap() or "none")
    return dict(zip(ARITHMETIC, values, strict=True))


def _describe_run(name: str, recipe: Recipe, created: str, data_dir: Path | None) -> dict[str, Any]:
    """Return what `run.json` holds."""
    return {
        "name": name,
        "preset": recipe.preset,
        "created": created,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "folder": str(Path.cwd()),
        "data_dir": None if data_dir is None else str(expand_home(data_dir).absolute()),
        "job": job_of(os.environ),
        "thumbnet": thumbnet.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            **arithmetic(),
            "cores": engine.usable_cores(),
            "threads": torch.get_num_threads(),
            "replicas": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
            "host": socket.gethostname(),
        },
    }


def _finite_or_none(value: Any) -> Any:
    """Return a value as JSON can say it: floats that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): _finite_or_none(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_none(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
