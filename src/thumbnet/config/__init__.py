"""A recipe: everything that decides what a training computes, as plain data.

A recipe is read from TOML (a preset, or the `recipe.toml` of a run), changed by command-line overrides, checked section
by section, and written whole into the run, so that a run can be started again from its own file.
"""

from thumbnet.config.reading import load_preset, load_recipe, preset_names, recipe_from_dict, recipe_to_dict
from thumbnet.config.sections import (
    AverageConfig,
    DataConfig,
    DistortConfig,
    EvaluationConfig,
    InputConfig,
    LogFormat,
    ModelConfig,
    OptimizerConfig,
    PrecisionName,
    Recipe,
    ScheduleConfig,
    TrainConfig,
    insist_within,
)

__all__ = [
    "AverageConfig",
    "DataConfig",
    "DistortConfig",
    "EvaluationConfig",
    "InputConfig",
    "LogFormat",
    "ModelConfig",
    "OptimizerConfig",
    "PrecisionName",
    "Recipe",
    "ScheduleConfig",
    "TrainConfig",
    "insist_within",
    "load_preset",
    "load_recipe",
    "preset_names",
    "recipe_from_dict",
    "recipe_to_dict",
]
