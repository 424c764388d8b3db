"""TensorFlow 2 in graph mode: the training step is one `tf.function`, the input tf.data.

With `--precision bf16` its graph optimizer may compute in bfloat16 wherever its rules allow it.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from typing import Any

import tensorflow as tf
from measure import (
    AVERAGE_DECAY,
    BATCH,
    CROP,
    DROP_FACTOR,
    DROP_STEPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    read_task,
    say_speeds,
    say_versions,
)
from tutorial_tf import distorted_inputs

# Name, shape of the weights, their initial deviation, initial bias, weight decay.
LAYERS: tuple[tuple[str, tuple[int, ...], float, float, float], ...] = (
    ("conv1", (5, 5, 3, 64), 0.05, 0.0, 0.0),
    ("conv2", (5, 5, 64, 64), 0.05, 0.1, 0.0),
    ("local3", (2304, 384), 0.04, 0.1, WEIGHT_DECAY),
    ("local4", (384, 192), 0.04, 0.1, WEIGHT_DECAY),
    ("softmax_linear", (192, 10), 1 / 192, 0.0, 0.0),
)


def main() -> None:
    """Measure what was asked for."""
    task = read_task()
    say_versions(tensorflow=tf.__version__)
    if task.precision == "bf16":
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})
    step = Step()
    train = tf.function(step)
    batches = iter(distorted_inputs(task))
    say_speeds(task, train, batches, lambda: (tf.random.normal([BATCH, CROP, CROP, 3]), tf.range(BATCH) % 10))


class Step:
    """The tutorial's network, loss, gradient descent and moving averages."""

    def __init__(self) -> None:
        self.weights = {
            name: tf.Variable(tf.random.truncated_normal(shape, stddev=std), name=name)
            for name, shape, std, _, _ in LAYERS
        }
        self.biases = {name: tf.Variable(tf.fill([shape[-1]], bias)) for name, shape, _, bias, _ in LAYERS}
        self.variables = [*self.weights.values(), *self.biases.values()]
        self.step = tf.Variable(0, dtype=tf.int64)
        self.average = tf.train.ExponentialMovingAverage(AVERAGE_DECAY, num_updates=self.step)

    def __call__(self, images: Any, labels: Any) -> Any:
        """Train on a batch and return the loss."""
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=self.logits(images))
            )
            for name, _, _, _, decay in LAYERS:
                if decay:
                    loss += decay * tf.nn.l2_loss(self.weights[name])
        gradients = tape.gradient(loss, self.variables)
        rate = LEARNING_RATE * DROP_FACTOR ** tf.cast(self.step // DROP_STEPS, tf.float32)
        for variable, gradient in zip(self.variables, gradients, strict=True):
            variable.assign_sub(rate * gradient)
        self.step.assign_add(1)
        self.average.apply(self.variables)
        return loss

    def logits(self, images: Any) -> Any:
        """Return the logits [128, 10] of images [128, 24, 24, 3]."""
        x = tf.nn.relu(self._convolve("conv1", images))
        x = _normalize(_pool(x))
        x = tf.nn.relu(self._convolve("conv2", x))
        x = _pool(_normalize(x))
        x = tf.reshape(x, [BATCH, 2304])
        x = tf.nn.relu(self._multiply("local3", x))
        x = tf.nn.relu(self._multiply("local4", x))
        return self._multiply("softmax_linear", x)

    def _convolve(self, name: str, x: Any) -> Any:
        return tf.nn.bias_add(tf.nn.conv2d(x, self.weights[name], 1, "SAME"), self.biases[name])

    def _multiply(self, name: str, x: Any) -> Any:
        return tf.matmul(x, self.weights[name]) + self.biases[name]


def _pool(x: Any) -> Any:
    return tf.nn.max_pool2d(x, 3, 2, "SAME")


def _normalize(x: Any) -> Any:
    return tf.nn.local_response_normalization(x, depth_radius=4, bias=1.0, alpha=0.001 / 9, beta=0.75)


if __name__ == "__main__":
    main()
