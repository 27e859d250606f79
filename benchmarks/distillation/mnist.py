"""MNIST as the benchmarks train on it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcomp import datasets

# Of the training images, the last.
HELD_OUT = 10_000
Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.generic]


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """What is trained on, and what judges."""

    x: Images
    y: Labels
    x_judge: Images
    y_judge: Labels

    def without(self, digit: int) -> tuple[Split, Images, Labels]:
        """Less the last `HELD_OUT` images, which come second, and less all of one digit."""
        x, y = self.x[:-HELD_OUT], self.y[:-HELD_OUT]
        kept = dataclasses.replace(self, x=x[y != digit], y=y[y != digit])
        return kept, self.x[-HELD_OUT:], self.y[-HELD_OUT:]


def load(validate: bool) -> Split:
    """MNIST in [0, 1], the test set out of reach where `validate` is set."""
    data = datasets.load("mnist")
    x, y = np.asarray(data.x_train[..., 0], np.float32) / 255, data.y_train
    if validate:
        return Split(x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:])
    return Split(x, y, np.asarray(data.x_test[..., 0], np.float32) / 255, data.y_test)


def batches(elements: Any, size: int, seed: int) -> tf.data.Dataset:
    """Batches in a new order every epoch from tensors whose first axis counts samples."""
    count = int(tf.nest.flatten(elements)[0].shape[0])
    order = tf.data.Dataset.range(count).shuffle(count, seed=seed).batch(size)
    # The tuner has nothing to tune here, and on one core its thread delays each epoch's end.
    options = tf.data.Options()
    options.autotune.enabled = False
    return order.map(
        lambda rows: tf.nest.map_structure(lambda part: tf.gather(part, rows), elements)
    ).with_options(options)


def jitter(images: Any, pixels: int) -> Any:
    """Each image (height, width) of a batch moved by up to `pixels` either way on both axes."""
    batch = tf.shape(images)[0]
    starts = [tf.random.uniform((batch, 1), 0, 2 * pixels + 1, tf.int32) for _ in range(2)]
    return shift(images, tf.concat(starts, axis=1), pixels)


def shift(images: Any, offsets: Any, pixels: int) -> Any:
    """Each image moved so that it begins at its offset, [samples, 2], of a margin of `pixels`."""
    height, width = images.shape[1:]
    padded = tf.pad(images, [[0, 0], [pixels, pixels], [pixels, pixels]])
    for axis, size in ((1, height), (2, width)):
        start = offsets[:, axis - 1 : axis]
        padded = tf.gather(padded, start + tf.range(size), axis=axis, batch_dims=1)
    return tf.ensure_shape(padded, [None, height, width])
