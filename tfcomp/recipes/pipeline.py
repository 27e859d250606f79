"""Training data as `tf.data`: shuffled and augmented, the same for the same seed."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfcomp.datasets import Dataset
from tfcomp.recipes.recipe import Data


def training_batches(dataset: Dataset, settings: Data, seed: int) -> Any:
    """Batches of training examples, drawn anew in each epoch.

    Args:
        dataset: The examples.
        settings: Batch size and augmentation.
        seed: Fixes the order and the augmentation of every epoch.

    Returns:
        A `tf.data.Dataset` of (inputs, labels).
    """
    x = dataset.x_train
    batches = (
        tf.data.Dataset.from_tensor_slices((x, dataset.y_train.astype("int32")))
        .shuffle(len(x), seed=seed)
        .batch(settings.batch_size)
    )
    if settings.flip or settings.shift or settings.erase:
        seeds = tf.data.Dataset.random(seed=seed + 1, rerandomize_each_iteration=True).batch(2)
        batches = tf.data.Dataset.zip(batches, seeds).map(
            lambda example, pair: (augment(example[0], pair, settings), example[1]),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
    return batches.prefetch(tf.data.AUTOTUNE)


def augment(images: Any, seed: Any, settings: Data) -> Any:
    """Mirrors, moves and partly erases each image of a batch at random; what is new is black.

    Args:
        images: Shape (N, height, width, channels).
        seed: Two integers, as `tf.random.stateless_uniform` takes them.
        settings: `flip`, `shift` and `erase`.

    Returns:
        Images of the same shape and dtype.
    """
    shape = tf.shape(images)
    count, height, width = shape[0], shape[1], shape[2]
    if settings.flip:
        mirrored = tf.random.stateless_uniform([count, 1, 1, 1], seed) < 0.5
        images = tf.where(mirrored, tf.reverse(images, [2]), images)
    if settings.shift:
        reach = settings.shift
        padded = tf.pad(images, [[0, 0], [reach, reach], [reach, reach], [0, 0]])
        start = tf.random.stateless_uniform(
            [2, count, 1], seed + 1, 0, 2 * reach + 1, dtype=tf.int32
        )
        padded = tf.gather(padded, start[0] + tf.range(height), axis=1, batch_dims=1)
        images = tf.gather(padded, start[1] + tf.range(width), axis=2, batch_dims=1)
    if settings.erase:
        erased = tf.random.stateless_uniform([count, 1, 1, 1], seed + 2) < settings.erase
        rectangle = (
            _side(count, height, seed + 3)[:, :, None] & _side(count, width, seed + 4)[:, None]
        )
        images = tf.where(erased & rectangle[..., None], tf.zeros_like(images), images)
    return images


def _side(count: Any, length: Any, seed: Any) -> Any:
    """For each image, which of `length` rows or columns a rectangle covers: up to a half."""
    middle, reach = tf.unstack(tf.random.stateless_uniform([2, count, 1], seed))
    position = (tf.range(length, dtype="float32") + 0.5) / tf.cast(length, "float32")
    return tf.abs(position - middle) < 0.05 + 0.2 * reach
