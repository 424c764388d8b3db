"""The checkpoints of one run: which are kept, which is newest, which is best. Order is by step, never by clock."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from thumbnet.errors import CheckpointError
from thumbnet.printing import silent
from thumbnet.runs.checkpoint import (
    Checkpoint,
    NewerFormatError,
    folder_name,
    load_checkpoint,
    missing_files,
    read_manifest,
    save_checkpoint,
)

_STEP_FOLDER = re.compile(r"step-(\d{8,18})")

T = TypeVar("T")


class CheckpointStore:
    """A folder of checkpoints, of which the newest few and the best are kept."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        """Look after `folder` (it need not exist yet), keeping the newest `keep` checkpoints, 1 or more."""
        self.folder = folder
        self.keep = keep
        self._doubtful: set[int] = set()  # steps that `newest` could not load

    def save(
        self, checkpoint: Checkpoint, metric: float | None = None, *, note: Callable[[str], None] = silent
    ) -> Path:
        """Save a checkpoint; once it is committed, delete those that are neither among the newest nor the best.

        Args:
            checkpoint: what to save.
            metric: what the best is chosen by, larger is better; None, NaN and infinities never become best.
            note: gets a line for each checkpoint that could not be deleted; that is no error.

        Raises:
            CheckpointError: the disk refuses, or a weight is not finite; what was saved before is as it was.
        """
        path = save_checkpoint(self.folder, checkpoint, metric=metric)
        self._doubtful.discard(checkpoint.step)
        self._prune(checkpoint.step, note)
        return path

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, rising; whether they are damaged is not looked at."""
        return [step for step in self._folders() if not missing_files(self._path(step))]

    def is_empty(self) -> bool:
        """Tell whether nothing was ever saved: no checkpoint, complete or not, nor one that a killed save has moved."""
        return not self._folders() and not self._has_moved()

    def is_begun(self) -> bool:
        """Tell whether there is something to go on from: a complete checkpoint, or one that tidying puts back."""
        return bool(self.steps()) or self._has_moved()

    def best_step(self) -> int | None:
        """Return the step with the largest metric (the earliest of equals), or None when no metric was measured."""
        return self._best(self.steps())

    def latest(self, note: Callable[[str], None] = silent) -> Checkpoint:
        """Load all of the newest checkpoint that is whole; arguments and errors are those of `newest`."""
        return self.newest(load_checkpoint, note)[1]

    def newest(self, load: Callable[[Path], T], note: Callable[[str], None]) -> tuple[int, T]:
        """Return the step of the newest checkpoint that can be loaded, and what was loaded.

        Args:
            load: reads what is wanted from a checkpoint's folder; raises `CheckpointError` if it cannot be used.
            note: gets lines for each newer one that is damaged or not complete; one that a training which goes on
                deletes meanwhile is passed over.

        Raises:
            CheckpointError: there is none, none can be used, or one that would be used has a newer format.
        """
        tried: set[int] = set()
        # Looked up anew every time: when the one just found is deleted, a newer one was saved before.
        while untried := [step for step in self._folders() if step not in tried]:
            step = untried[-1]
            tried.add(step)
            path = self._path(step)
            try:
                if (held := read_manifest(path).step) != step:
                    raise CheckpointError(f"{path}: damaged: it holds step {held}, not {step}")
                return step, load(path)
            except NewerFormatError:
                raise
            except CheckpointError as error:
                if path.exists():
                    self._doubtful.add(step)
                    older = "\nThe one before it is tried instead" if len(untried) > 1 else ""
                    note(f"warning: {error}{older}")
        if tried:
            raise CheckpointError(
                f"{self.folder}: none of the {len(tried)} checkpoints can be used, all are damaged or not complete\n"
                "Restore one from a backup, or start again with a new run"
            )
        raise CheckpointError(
            f"{self.folder}: there is no checkpoint yet: wait for the first, or, if nothing trains, start a new run"
        )

    def path(self, which: Literal["latest", "best"] | int) -> Path:
        """Return the folder of the newest, the best or a given step's checkpoint; its digests are not checked yet.

        Raises:
            CheckpointError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.folder}: there is no checkpoint yet")
        if which == "latest":
            return self._path(steps[-1])
        if which == "best":
            self._insist_best_is_known()
            best = self.best_step()
            if best is None:
                raise CheckpointError(
                    f"{self.folder}: there is no best checkpoint, since none was validated: use the latest, "
                    "or train with --validation N"
                )
            return self._path(best)
        if which not in steps:
            raise CheckpointError(f"{self.folder}: there is no checkpoint of step {which} - there are: {steps}")
        return self._path(which)

    def _insist_best_is_known(self) -> None:
        """Raise `CheckpointError` if a checkpoint is not complete: it may have been the best."""
        for step in self._folders():
            path = self._path(step)
            try:
                read_manifest(path)
                missing = missing_files(path)
                trouble = f"{path}: {', '.join(missing)} missing" if missing else ""
            except CheckpointError as error:
                trouble = str(error)
            if trouble and path.exists():  # one that a training deletes meanwhile is none
                raise CheckpointError(f"{trouble}\nit may have been the best: name another by its step, or the latest")

    def _has_moved(self) -> bool:
        """Tell whether a killed save has left a checkpoint under the name from which `tidy_folder` puts it back."""
        return any(self.folder.glob(".replaced-step-*"))

    def _path(self, step: int) -> Path:
        return self.folder / folder_name(step)

    def _folders(self) -> list[int]:
        """Return the steps that have a folder, complete or not, rising."""
        if not self.folder.is_dir():
            return []
        matches = (_STEP_FOLDER.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir())
        steps = [int(match[1]) for match in matches if match]
        return sorted(step for step in steps if self._path(step).is_dir())

    def _best(self, steps: list[int]) -> int | None:
        metrics = {step: metric for step in steps if (metric := self._metric(step)) is not None}
        return max(metrics, key=lambda step: (metrics[step], -step), default=None)

    def _metric(self, step: int) -> float | None:
        try:
            return read_manifest(self._path(step)).metric
        except CheckpointError:
            return None

    def _is_whole(self, step: int) -> bool:
        try:
            load_checkpoint(self._path(step))
        except NewerFormatError:
            return True
        except CheckpointError:
            return False
        return True

    def _prune(self, saved: int, note: Callable[[str], None]) -> None:
        """Delete what is not kept, in one rename each, so that nobody meets half of a checkpoint."""
        # What a resume fell back from must not take the place of a checkpoint that can be used.
        usable = [step for step in self.steps() if step not in self._doubtful or self._is_whole(step)]
        best = self._best(usable)
        kept = {saved, *usable[-self.keep :], *([] if best is None else [best])}
        for step in self._folders():
            if step in kept:
                continue
            path = self._path(step)
            deleted = path.with_name(f".deleted-{path.name}")
            try:
                if deleted.exists():
                    shutil.rmtree(deleted)
                path.rename(deleted)
                shutil.rmtree(deleted)
            except OSError as error:
                note(f"warning: cannot delete the old checkpoint {path}: {error}: training goes on, delete it by hand")
