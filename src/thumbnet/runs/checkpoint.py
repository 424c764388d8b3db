"""A checkpoint: a folder of safetensors files and a manifest that exists whole or not at all.

    step-00001000/
      model.safetensors      weights and buffers as trained
      average.safetensors    their moving average; absent when none is kept
      state.safetensors      optimizer
      manifest.json          format version, step, metric, SHA-256 of each file and of itself, numbers of the run

It is written under another name, every file and the folder are synced to the disk, and one rename gives it its name.
Its tensors are never pickled: whatever the bytes are, loading them runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from thumbnet.errors import CheckpointError
from thumbnet.files import read_regular_file, remedy, sync, write_new_file

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL, AVERAGE, STATE = "model.safetensors", "average.safetensors", "state.safetensors"

_MANIFEST_LIMIT_BYTES = 2**24
_DIGEST_KEY = "manifest_sha256"
_FLOAT_KEY = "$float"


class NewerFormatError(CheckpointError):
    """A whole checkpoint that a newer version wrote: not damaged, so nothing may fall back from it."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything a training needs to go on as if it had never stopped."""

    step: int
    """Steps done, 0 or more."""
    model: dict[str, Tensor]
    """Weights and buffers, by their name in the network."""
    average: dict[str, Tensor] | None
    """Moving average of the same, or None when none is kept."""
    state: dict[str, Tensor]
    """Tensors of the optimizer."""
    info: dict[str, Any]
    """Numbers of the run: None, booleans, integers, floats (NaN and infinities too), text, lists, and dicts of them."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int
    """Steps done."""
    metric: float | None
    """What the best checkpoint is chosen by, larger is better; None when it was not measured."""
    files: dict[str, tuple[int, str]]
    """File name -> (bytes, SHA-256 in hex)."""
    info: dict[str, Any]
    """As in `Checkpoint`."""


def folder_name(step: int) -> str:
    """Return the name of a step's checkpoint folder."""
    return f"step-{step:08d}"


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, metric: float | None = None) -> Path:
    """Save a checkpoint as `folder/step-00001000`, whole or not at all, and return that path.

    One of the same step is replaced. Equal tensors give byte-identical files: there is no time or place in them.
    Tensors may share memory, lie in any memory format and on any device.

    Args:
        folder: where checkpoints are kept; made if missing.
        checkpoint: what to save.
        metric: what the best is chosen by, larger is better; NaN and infinities count as not measured.

    Raises:
        CheckpointError: the disk refuses, or a weight is not finite. Earlier checkpoints are as they were.
    """
    final = folder / folder_name(checkpoint.step)
    _refuse_non_finite(checkpoint.model, final / MODEL)
    _refuse_non_finite(checkpoint.average or {}, final / AVERAGE)
    files = {MODEL: _to_bytes(checkpoint.model), STATE: _to_bytes(checkpoint.state)}
    if checkpoint.average is not None:
        files[AVERAGE] = _to_bytes(checkpoint.average)
    files[MANIFEST] = _manifest_bytes(
        {
            "format_version": FORMAT_VERSION,
            "step": checkpoint.step,
            "metric": metric if metric is not None and math.isfinite(metric) else None,
            "files": {
                name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
            },
            "info": _encode(checkpoint.info, "info"),
        }
    )
    beside = folder / f".tmp-{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if beside.exists():
            shutil.rmtree(beside)
        beside.mkdir()
        try:
            for name, data in files.items():
                write_new_file(beside / name, [data])
            sync(beside)
            _commit(beside, final)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync(folder)
    except OSError as error:
        size_mib = sum(map(len, files.values())) / 2**20
        state, then = "There is none before it", "start again"
        if any(folder.glob("step-*")):
            resume = f"thumbnet train --resume {shlex.quote(str(folder.parent))}"
            state, then = "The checkpoints before it are intact", f"`{resume}` goes on"
        raise CheckpointError(
            f"{folder}: cannot save the checkpoint of step {checkpoint.step} ({size_mib:.1f} MiB): {error}\n"
            f"{state}: {remedy(error)}, then {then}"
        ) from error
    return final


def tidy_folder(folder: Path) -> None:
    """Clear away what killed saves left in a folder of checkpoints; only the process that trains the run may do so."""
    for left in folder.glob(".replaced-*"):
        final = folder / left.name.removeprefix(".replaced-")
        if final.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # it stays, and is tried again
                left.rename(final)
    for pattern in (".tmp-*", ".deleted-*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint folder, every byte of it checked; tensors come on the CPU, in the default memory format.

    Raises:
        CheckpointError: it is missing, damaged, holds weights that are not finite, or has a newer format.
    """
    manifest = read_manifest(path)
    return Checkpoint(
        step=manifest.step,
        model=_finite(path / MODEL, _load_tensors(path, MODEL, manifest)),
        average=_finite(path / AVERAGE, _load_tensors(path, AVERAGE, manifest)) if AVERAGE in manifest.files else None,
        state=_load_tensors(path, STATE, manifest),
        info=manifest.info,
    )


def load_weights(path: Path, weights: Literal["average", "raw"]) -> dict[str, Tensor]:
    """Load only the weights of a checkpoint folder, averaged or as trained, checked like all of it.

    Raises:
        CheckpointError: as `load_checkpoint`; or averaged weights are asked for and none were kept.
    """
    manifest = read_manifest(path)
    if weights == "average" and AVERAGE not in manifest.files:
        raise CheckpointError(f"{path}: this run keeps no average of its weights; use --weights raw")
    name = AVERAGE if weights == "average" else MODEL
    return _finite(path / name, _load_tensors(path, name, manifest))


def read_manifest(path: Path) -> Manifest:
    """Read what a checkpoint folder says of itself; its tensors are not read.

    Raises:
        CheckpointError: it is missing or damaged, or the checkpoint has a newer format.
    """
    where = path / MANIFEST
    data = _read(where, _MANIFEST_LIMIT_BYTES)
    try:
        fields = json.loads(data)
        # Compared as bytes, not as values, so that any change of any byte shows. The digest is checked before the
        # version, and future formats keep it: a flipped bit in the version is damage, not news.
        digest = fields.pop(_DIGEST_KEY)
        intact = isinstance(digest, str) and _manifest_bytes(fields) == data
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise _damaged(where, "its content does not have the SHA-256 it states")
    version = fields.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{path}: checkpoint format {version} is newer than this thumbnet reads (up to {FORMAT_VERSION}): "
            "update thumbnet, or use the version that wrote it"
        )
    try:
        return _parse_manifest(fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(where, f"a field is missing or not what it should be ({error!r})") from error


def missing_files(path: Path) -> list[str]:
    """Return the names of the files that a checkpoint folder should hold and does not; [] when it was committed."""
    try:
        expected = [MANIFEST, *read_manifest(path).files]
    except CheckpointError:
        expected = [MANIFEST, MODEL, STATE]
    return [name for name in expected if not (path / name).is_file()]


def fit_state(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load tensors into a network that has exactly these names, shapes and types.

    Args:
        module: the network; on an error nothing of it has changed.
        tensors: its state by name.
        where: where the tensors are from, for the message.

    Raises:
        CheckpointError: names a tensor that differs, what the network expects, and what was found.
    """
    expected = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    problems = [
        f"tensor '{name}': expected {_describe(expected.get(name))}, found {_describe(tensors.get(name))}"
        for name in sorted(expected.keys() | tensors.keys())
        if _describe(expected.get(name)) != _describe(tensors.get(name))
    ]
    if problems:
        more = f" (and {len(problems) - 1} more that differ)" if len(problems) > 1 else ""
        raise CheckpointError(
            f"{where}: does not fit the network of this recipe\n{problems[0]}{more}\n"
            "Use the recipe.toml of the run that wrote it"
        )
    module.load_state_dict(dict(tensors))


def _describe(tensor: Tensor | None) -> str:
    """Return type and shape for a message, such as `float32 [64, 3, 5, 5]`."""
    return "none" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _commit(beside: Path, final: Path) -> None:
    """Give a written folder its final name; one that has the name is only deleted after."""
    if not final.exists():
        beside.rename(final)
        return
    # A folder that is not empty cannot be replaced by a rename. Between these two renames a kill leaves the old one
    # under a name from which `tidy_folder` puts it back.
    replaced = final.with_name(f".replaced-{final.name}")
    if replaced.exists():
        shutil.rmtree(replaced)
    final.rename(replaced)
    try:
        beside.rename(final)
    except BaseException:
        replaced.rename(final)
        raise
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors in the safetensors format, each with memory of its own in the default layout.

    Only a constant stands in the metadata: several keys would be written in an order that changes from call to call.
    """
    plain = {
        name: tensor.detach().to(device="cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return safetensors.torch.save(plain, metadata={"format": "pt"})


def _load_tensors(path: Path, name: str, manifest: Manifest) -> dict[str, Tensor]:
    """Read, check and parse one file of a checkpoint; the very bytes that were checked are the ones parsed."""
    size, digest = manifest.files[name]
    data = _read(path / name, size)
    if len(data) != size:
        raise _damaged(path / name, f"{len(data)} bytes, expected {size}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(path / name, f"its SHA-256 is not the one in {MANIFEST}")
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise _damaged(path / name, f"not a safetensors file ({error})") from error


def _read(path: Path, limit_bytes: int) -> bytes:
    """Read a file of a checkpoint, or raise `CheckpointError`."""
    try:
        return read_regular_file(path, limit_bytes)
    except NotADirectoryError as error:
        raise CheckpointError(
            f"{path.parent}: this is a file; a checkpoint is a folder such as step-00001000, and pickles are never read"
        ) from error
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            raise CheckpointError(f"{path.parent}: there is no such checkpoint") from error
        raise CheckpointError(
            f"{path}: this file is missing, so the checkpoint is not complete: use another"
        ) from error
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged: {why}: use another checkpoint of the run")


def _finite(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    _refuse_non_finite(tensors, path)
    return tensors


def _refuse_non_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise `CheckpointError` when a tensor holds NaN or an infinity: nothing good can start from such weights."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path}: tensor '{name}' holds NaN or infinity: use an earlier checkpoint of the run"
            )


def _manifest_bytes(fields: dict[str, Any]) -> bytes:
    """Return the manifest's exact bytes, its own SHA-256 (taken without that entry) as the last entry."""
    body = json.dumps(fields, indent=1, allow_nan=False)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return (json.dumps(fields | {_DIGEST_KEY: digest}, indent=1, allow_nan=False) + "\n").encode()


def _parse_manifest(fields: dict[str, Any]) -> Manifest:
    """Build a manifest from JSON; raises KeyError, TypeError, ValueError or AttributeError when it is not one."""
    files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in fields["files"].items()}
    step, metric, info = fields["step"], fields["metric"], _decode(fields["info"])
    if fields["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format_version {fields['format_version']!r}")
    if type(step) is not int or step < 0:
        raise ValueError(f"step {step!r}")
    if metric is not None and type(metric) not in (int, float):
        raise ValueError(f"metric {metric!r}")
    if not {MODEL, STATE} <= files.keys() <= {MODEL, AVERAGE, STATE} or min(size for size, _ in files.values()) < 0:
        raise ValueError(f"files {fields['files']!r}")
    if not isinstance(info, dict):
        raise TypeError("info")
    return Manifest(step=step, metric=metric, files=files, info=info)


def _encode(value: Any, where: str) -> Any:
    """Return a value as JSON keeps it: JSON has no NaN or infinity, so these become `{"$float": "nan"}` and so on.

    Raises:
        TypeError: JSON would lose the value; `where` tells which one.
    """
    if isinstance(value, dict):
        if not all(isinstance(key, str) and key != _FLOAT_KEY for key in value):
            raise TypeError(f"{where}: keys must be text other than '{_FLOAT_KEY}', found {list(value)}")
        return {key: _encode(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT_KEY: str(float(value))}
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{where}: {type(value).__name__} cannot be kept in a checkpoint's info")


def _decode(value: Any) -> Any:
    """Undo `_encode`."""
    if isinstance(value, dict):
        if value.keys() == {_FLOAT_KEY}:
            return float(value[_FLOAT_KEY])
        return {key: _decode(entry) for key, entry in value.items()}
    return [_decode(entry) for entry in value] if isinstance(value, list) else value
