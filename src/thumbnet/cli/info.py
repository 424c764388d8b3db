"""`thumbnet info`: the presets, the layers of a network, or how a run went."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.cli.flags import add_out_flag, user_path, whole_number
from thumbnet.errors import UsageError
from thumbnet.printing import printable

if TYPE_CHECKING:
    from thumbnet.config import Recipe
    from thumbnet.models.describe import LayerInfo
    from thumbnet.runs.run import Run


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "info",
        help="the presets, or the layers of a network, preset or run, and how the run went",
        description="Without arguments: the presets. Else the layer table of a network: shapes, parameters, "
        "multiply-adds; of a run also how far it is, or what came out. Of an exported file what it says of itself.",
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("run", nargs="?", help="a run, or a file NAME.onnx")
    parser.add_argument("--model", help="a network, by name; timm/NAME for one of timm")
    parser.add_argument("--preset", help="a preset")
    parser.add_argument("--crop", type=whole_number, help="side of the input in pixels, with --model (its preset's)")
    parser.add_argument("--classes", type=whole_number, help="number of classes, with --model (10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_out_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table; returns the exit code."""
    if sum(value is not None for value in (args.run, args.model, args.preset)) > 1:
        raise UsageError("info: give one of RUN, --model and --preset")
    if args.model is None and (args.crop or args.classes):
        raise UsageError("info: --crop and --classes go with --model; a run and a preset have their own")
    if args.run is None and args.model is None and args.preset is None:
        return _print_presets(as_json=args.json)
    if args.run is not None and args.run.endswith(".onnx"):
        return _print_file(user_path(args.run), as_json=args.json)
    from thumbnet.config import ModelConfig, load_preset
    from thumbnet.models import build_model
    from thumbnet.models.describe import describe_layers
    from thumbnet.training.adapt import preset_for

    found = None
    if args.model is not None:
        crop = args.crop or load_preset(preset_for(args.model)).distort.crop
        config, classes = ModelConfig(name=args.model), args.classes or 10
    else:
        if args.run is not None:
            from thumbnet.runs.find import find_run

            found = find_run(args.out, args.run)
        recipe, classes = _preset(args) if found is None else _recipe_of(found)
        config, crop = recipe.model, recipe.distort.crop
    model = build_model(config, num_classes=classes, crop=crop)
    layers = describe_layers(model, (3, crop, crop))
    # Not the sum over the layers: some of timm's networks have weights outside of them.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if args.json:
        print(json.dumps(_as_dict(config.name, layers, parameters) | ({"run": _run_as_dict(found)} if found else {})))
    else:
        if found is not None:
            print("\n".join([*_run_lines(found), ""]))
        _print_table(config.name, crop, layers, parameters)
    return 0


def _print_file(path: Path, *, as_json: bool) -> int:
    """Print what an exported network says of itself; returns the exit code."""
    from thumbnet.exporting.read import OnnxClassifier

    facts, size = OnnxClassifier.open(path).facts, path.stat().st_size
    if as_json:
        print(json.dumps({"file": str(path), "size_bytes": size, **facts}))
        return 0
    height, width, channels = facts["image_shape"]
    said = {key: printable(value) for key, value in facts.items() if isinstance(value, str)}
    print(f"{path}: network {said['model']}, {size / 2**20:.1f} MiB, written by thumbnet {said['thumbnet']}")
    print(f"from run {said['run']}, step {facts['step']}, {said['weights']} weights; data {said['data']}")
    print(f"pictures uint8 [N, {height}, {width}, {channels}] -> probabilities float32 [N, {len(facts['classes'])}]")
    print("classes: " + printable(", ".join(facts["classes"])))
    return 0


def _preset(args: argparse.Namespace) -> tuple[Recipe, int]:
    """Return a preset's recipe, and how many classes its data has."""
    from thumbnet.config import load_preset
    from thumbnet.data import known_class_names

    recipe = load_preset(args.preset)
    return recipe, len(known_class_names(recipe.data.name) or ())


def _recipe_of(run: Run) -> tuple[Recipe, int]:
    """Return a run's recipe, and how many classes it was trained to tell apart."""
    from thumbnet.errors import CheckpointError
    from thumbnet.runs.facts import class_names_of, read_facts

    try:
        names = class_names_of(run.path, run.recipe.data.name)
    except CheckpointError as error:
        if run.is_training() and read_facts(run.path) is None:
            raise CheckpointError(f"{run.path}: its pictures are still being read: ask again once it trains") from error
        raise
    return run.recipe, len(names)


def _run_as_dict(run: Run) -> dict[str, Any]:
    """Return how far a run is, and its figures if it has come to its end."""
    return {
        "path": str(run.path),
        "preset": run.recipe.preset,
        "data": run.recipe.data.name,
        "created": run.created,
        "training": run.is_training(),
        "saved_step": max(run.checkpoints.steps(), default=None),
        "result": run.result,
    }


def _run_lines(run: Run) -> list[str]:
    """Say the same to a person."""
    from thumbnet.monitor.console import format_duration
    from thumbnet.training.whole import TrainResult

    told = _run_as_dict(run)
    result, step = told["result"], told["saved_step"]
    lines = [f"run {run.path}: preset {told['preset']}, data {told['data']}, begun {run.created[:16]} UTC"]
    if result is not None:
        took = format_duration(result["train_seconds"])
        lines.append(f"trained {result['steps']:,} steps ({result['epochs']:.1f} epochs) in {took}")
        return [*lines, str(TrainResult(run=run.path, figures=result))]
    saved = "nothing saved yet" if step is None else f"saved up to step {step:,}"
    if told["training"]:
        return [*lines, f"training now, {saved}"]
    if step is None:
        return [*lines, "ended before anything was saved: start a new run"]
    return [*lines, f"not finished, {saved}; to go on: {run.resume_command}"]


def _as_dict(name: str, layers: list[LayerInfo], parameters: int) -> dict[str, Any]:
    return {
        "model": name,
        "parameters": parameters,
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
        "layers": [dataclasses.asdict(layer) for layer in layers],
    }


def _print_table(name: str, crop: int, layers: list[LayerInfo], parameters: int) -> None:
    rows = [("layer", "kind", "output", "parameters", "multiply-adds")]
    for layer in layers:
        shape = "x".join(map(str, layer.output_shape))
        rows.append((layer.name, layer.kind, shape, f"{layer.parameters:,}", f"{layer.multiply_adds:,}"))
    multiply_adds = sum(layer.multiply_adds for layer in layers)
    rows.append(("total", "", "", f"{parameters:,}", f"{multiply_adds:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    print(f"{name}, input 3x{crop}x{crop}")
    for row in rows:
        left = [row[column].ljust(widths[column]) for column in range(3)]
        right = [row[column].rjust(widths[column]) for column in range(3, 5)]
        print("  ".join(left + right).rstrip())


def _print_presets(*, as_json: bool) -> int:
    """List the presets with the first line of each one's head comment, which says what it is."""
    from importlib import resources

    from thumbnet.config import preset_names

    folder = resources.files("thumbnet") / "presets"
    about = {
        name: (folder / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        for name in preset_names()
    }
    if as_json:
        print(json.dumps(about))
        return 0
    width = max(map(len, about))
    for name, text in about.items():
        print(f"{name:<{width}}  {text}")
    print("`thumbnet info --preset NAME` shows a preset's network; `thumbnet train --preset NAME` trains it.")
    return 0
