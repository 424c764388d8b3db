"""The tutorial's input in tf.data: records, shuffling pool, distortions."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from measure import BATCH, BRIGHTNESS, CONTRAST, CROP, POOL, RECORD_BYTES, SIDE, Task


def distorted_inputs(task: Task) -> Any:
    """Return the endless data set of batches: images [128, 24, 24, 3] float32, labels [128] int32."""
    records = tf.data.FixedLengthRecordDataset([str(path) for path in task.files], RECORD_BYTES)
    examples = records.shuffle(POOL).repeat().map(distorted, num_parallel_calls=tf.data.AUTOTUNE)
    return examples.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def distorted(record: Any) -> tuple[Any, Any]:
    """Return the distorted image and the label of a record."""
    values = tf.io.decode_raw(record, tf.uint8)
    label = tf.cast(values[0], tf.int32)
    image = tf.transpose(tf.reshape(values[1:], [3, SIDE, SIDE]), [1, 2, 0])
    image = tf.cast(image, tf.float32)
    image = tf.image.random_crop(image, [CROP, CROP, 3])
    image = tf.image.random_flip_left_right(image)
    image = tf.image.random_brightness(image, BRIGHTNESS)
    image = tf.image.random_contrast(image, *CONTRAST)
    return tf.image.per_image_standardization(image), label
