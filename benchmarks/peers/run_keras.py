"""Keras 3 on its TensorFlow backend: `compile` and `fit`, with the same tf.data input as TensorFlow's own peer."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import time
from typing import Any

import keras
import tensorflow as tf
from keras import layers
from measure import (
    AVERAGE_DECAY,
    BATCH,
    CROP,
    DROP_FACTOR,
    DROP_STEPS,
    LEARNING_RATE,
    LEAST_CALLS,
    WARM_UP_BATCHES,
    WARM_UP_STEPS,
    WEIGHT_DECAY,
    Task,
    images_per_second,
    read_task,
    say,
    say_memory,
    say_started,
    say_versions,
)
from tutorial_tf import distorted_inputs


def main() -> None:
    """Measure what was asked for."""
    task = read_task()
    say_versions(keras=keras.__version__, tensorflow=tf.__version__)
    model = build_model()
    batches = distorted_inputs(task)
    if "whole" in task.measures:
        model.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)
        say_started(task)
        say("whole", images_per_second=fit_speed(model, batches, task))
        say_memory()
    if "step" in task.measures:
        batch = (tf.random.normal([BATCH, CROP, CROP, 3]), tf.range(BATCH) % 10)
        say("step", images_per_second=fit_speed(model, tf.data.Dataset.from_tensors(batch).repeat(), task))
    if "input" in task.measures:
        iterator = iter(batches)
        speed = images_per_second(lambda: next(iterator), task.seconds, warm_up=WARM_UP_BATCHES)
        say("input", images_per_second=speed)


def build_model() -> Any:
    """Return the compiled network of the tutorial."""
    model = keras.Sequential(
        [
            keras.Input((CROP, CROP, 3)),
            _layer(layers.Conv2D, 64, 5, padding="same", std=0.05, bias=0.0),
            layers.MaxPooling2D(3, 2, padding="same"),
            layers.Lambda(_normalize),
            _layer(layers.Conv2D, 64, 5, padding="same", std=0.05, bias=0.1),
            layers.Lambda(_normalize),
            layers.MaxPooling2D(3, 2, padding="same"),
            layers.Flatten(),
            _layer(layers.Dense, 384, std=0.04, bias=0.1, decay=WEIGHT_DECAY),
            _layer(layers.Dense, 192, std=0.04, bias=0.1, decay=WEIGHT_DECAY),
            _layer(layers.Dense, 10, std=1 / 192, bias=0.0, activation=None),
        ]
    )
    rate = keras.optimizers.schedules.ExponentialDecay(LEARNING_RATE, DROP_STEPS, DROP_FACTOR, staircase=True)
    model.compile(
        optimizer=keras.optimizers.SGD(rate, use_ema=True, ema_momentum=AVERAGE_DECAY),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def _layer(kind: Any, *sizes: int, std: float, bias: float, decay: float = 0.0, **options: Any) -> Any:
    """Return a layer with the tutorial's initial values and decay."""
    return kind(
        *sizes,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=std),
        bias_initializer=keras.initializers.Constant(bias),
        kernel_regularizer=keras.regularizers.L2(decay / 2) if decay else None,
        **({"activation": "relu"} | options),
    )


def _normalize(x: Any) -> Any:
    # Keras has no response normalization of its own.
    return tf.nn.local_response_normalization(x, depth_radius=4, bias=1.0, alpha=0.001 / 9, beta=0.75)


def fit_speed(model: Any, batches: Any, task: Task) -> float:
    """Train with `fit` until the time is over and return the images per second."""
    ends: list[float] = []

    def after_batch(batch: int, logs: Any = None) -> None:
        ends.append(time.perf_counter())
        counted = len(ends) - WARM_UP_STEPS
        if counted >= LEAST_CALLS and ends[-1] - ends[WARM_UP_STEPS - 1] >= task.seconds:
            model.stop_training = True

    stopwatch = keras.callbacks.LambdaCallback(on_train_batch_end=after_batch)
    model.fit(batches, steps_per_epoch=1_000_000, shuffle=False, verbose=0, callbacks=[stopwatch])
    return (len(ends) - WARM_UP_STEPS) * BATCH / (ends[-1] - ends[WARM_UP_STEPS - 1])


if __name__ == "__main__":
    main()
