"""Small models and data for the tests of distillation."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

Data = tuple[np.ndarray, np.ndarray]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(7)


@pytest.fixture
def data() -> Data:
    """Sixteen images of 6×6 and their labels of three classes."""
    rng = np.random.default_rng(3)
    return rng.standard_normal((16, 6, 6, 1)).astype("float32"), rng.integers(0, 3, 16)


@pytest.fixture
def make_net() -> Callable[..., keras.Model]:
    """A small image classifier with BatchNorm, its layers named."""

    def make(
        width: int = 4, activation: str | None = None, batch_norm: bool = True, classes: int = 3
    ) -> keras.Model:
        x = inputs = keras.Input((6, 6, 1))
        x = keras.layers.Conv2D(width, 3, name="conv")(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(name="norm")(x)
        x = keras.layers.ReLU(name="relu")(x)
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        return keras.Model(inputs, keras.layers.Dense(classes, activation, name="head")(x))

    return make


@keras.saving.register_keras_serializable(package="tests")
class CountCalls(keras.layers.Layer):
    """Passes its inputs on and counts how often that is executed, not traced."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        # No variable of Keras, so that it is not among the weights.
        self.count = tf.Variable(0, trainable=False)

    def call(self, inputs: object) -> object:
        self.count.assign_add(1)
        return inputs


@pytest.fixture
def counting() -> type[CountCalls]:
    return CountCalls
