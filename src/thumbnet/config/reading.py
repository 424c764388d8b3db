"""Recipes from presets, TOML files and nested mappings, with entries overridden, and back."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from thumbnet.config.sections import ModelConfig, Recipe
from thumbnet.errors import UsageError, did_you_mean


def preset_names() -> list[str]:
    """Return the names of the built-in presets, sorted."""
    folder = resources.files("thumbnet") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_preset(name: str, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Return a preset's recipe with overrides (dotted key -> value) applied.

    Raises:
        UsageError: the preset, a key or a value is unknown or impossible.
    """
    if name not in preset_names():
        raise UsageError(f"unknown preset '{name}'{did_you_mean(name, preset_names())}")
    text = (resources.files("thumbnet") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return recipe_from_dict(tomllib.loads(text) | {"preset": name}, overrides, where=f"preset {name}")


def load_recipe(path: Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Return the recipe in a TOML file, with overrides (dotted key -> value) applied.

    One that does not say which preset it started from goes by the name of its file.

    Raises:
        UsageError: the file cannot be read, is not TOML, or a key or value is unknown or impossible.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot read this recipe: {error}") from error
    return recipe_from_dict({"preset": path.stem} | values, overrides, where=str(path))


def recipe_from_dict(
    values: Mapping[str, Any], overrides: Mapping[str, object] | None = None, *, where: str = "recipe"
) -> Recipe:
    """Build a checked recipe from nested mappings and overrides (dotted key -> value).

    Raises:
        UsageError: names `where`, the key, and what was expected.
    """
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    overrides = overrides or {}
    if "model.name" in overrides:
        _leave_network(merged, overrides["model.name"])
    for key, value in overrides.items():
        _set(merged, key.split("."), value)
    recipe = _build(Recipe, merged, where)
    assert isinstance(recipe, Recipe)
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as nested dictionaries of plain values, the inverse of `recipe_from_dict`."""
    return dataclasses.asdict(recipe)


def _leave_network(values: dict[str, Any], name: object) -> None:
    """Take out of a recipe what it says for its network alone, where another one is chosen.

    That is its options and layers, and smaller pictures, which not every network takes.
    """
    model, optimizer, schedule = (values.get(key, {}) for key in ("model", "optimizer", "schedule"))
    decay = optimizer.get("weight_decay", {}) if isinstance(optimizer, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(decay, Mapping) or not isinstance(schedule, Mapping):
        return  # what is wrong there is told when the recipe is built
    if model.get("name", ModelConfig.name) == name:
        return
    values["model"] = {}
    for key in optimizer.keys() & {"rates", "freeze_after"}:
        optimizer[key] = {}
    optimizer["weight_decay"] = {layer: cost for layer, cost in decay.items() if layer in ("default", "biases")}
    values["optimizer"] = optimizer
    values["schedule"] = {key: value for key, value in schedule.items() if key != "resize"}


def _set(values: dict[str, Any], path: list[str], value: object) -> None:
    """Put a value at a dotted path; choosing a length in steps or epochs replaces the other."""
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UsageError(f"recipe key '{'.'.join(path)}': '{part}' is a value and has no keys of its own")
        values = inner
    values[path[-1]] = value
    if path == ["train", "steps"] and value:
        values["epochs"] = 0.0
    if path == ["train", "epochs"] and value:
        values["steps"] = 0


def _build(kind: type, values: Mapping[str, Any], where: str, prefix: str = "") -> object:
    """Build a dataclass from a mapping, checking keys and types; `prefix` is the dotted path so far."""
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise UsageError(f"{where}: unknown key '{prefix}{key}'{did_you_mean(key, hints)}")
    return kind(**{key: _convert(hints[key], value, where, f"{prefix}{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """Return `value` as `hint` asks, or raise `UsageError`; integers are accepted for floats, lists for tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hasattr(value, "dtype") and hasattr(value, "item") and not getattr(value, "ndim", 1):
        value = value.item()  # a number of NumPy's or torch's
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return _build(hint, value, where, f"{key}.")
    if origin is Literal:
        if value in arguments:
            return value
        raise UsageError(f"{where}: {key} is {value!r}{did_you_mean(str(value), map(str, arguments))}")
    if origin is dict and isinstance(value, Mapping):
        return {str(name): _convert(arguments[1], entry, where, f"{key}.{name}") for name, entry in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(_convert(kind, entry, where, key) for kind, entry in zip(kinds, value, strict=True))
    if hint is Any:
        if not _is_plain(value):
            raise UsageError(
                f"{where}: {key} is {value}, expected text, a number, true or false, or a list of these: "
                "put a date into quotes"
            )
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is None and type(value) is hint:
        return value
    expected = "keys of its own" if dataclasses.is_dataclass(hint) else getattr(hint, "__name__", hint)
    raise UsageError(f"{where}: {key} is {value!r}, expected {expected}")


def _is_plain(value: Any) -> bool:
    """Tell whether a value can be kept in a recipe whatever its key is: None and dates, for two, cannot."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    return isinstance(value, str | int | float)
