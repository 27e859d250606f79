"""Small models and data for the tests of distillation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def _oracle_gradient(oracle: Callable[..., np.ndarray], teacher: Any, student: Any) -> list[Any]:
    """d(Σ values)/d(student's features) by central differences, in the features' structure."""

    def total() -> float:
        return float(np.sum(oracle(teacher, student)))

    def of(features: np.ndarray) -> np.ndarray:
        gradient = np.zeros_like(features)
        for index in np.ndindex(features.shape):
            kept, sides = features[index], []
            for shift in (1e-6, -1e-6):
                features[index] = kept + shift
                sides.append(total())
            features[index] = kept
            gradient[index] = (sides[0] - sides[1]) / 2e-6
        return gradient

    return [of(features) for features in keras.tree.flatten(student)]


@pytest.fixture(scope="session")
def assert_agrees() -> Callable[..., None]:
    """Holds a loss on layers against an oracle: values per sample, and the gradient."""

    def check(
        loss: Any, oracle: Callable[..., np.ndarray], teacher: Any, student: Any, rtol: float = 1e-3
    ) -> None:
        as_tensor = keras.ops.convert_to_tensor
        tensors = keras.tree.map_structure(lambda a: as_tensor(a, "float32"), [teacher, student])
        loss.validate_outputs(*tensors)
        with tf.GradientTape() as tape:
            tape.watch(keras.tree.flatten(tensors[1]))
            values = loss.per_sample(*tensors)
            total = keras.ops.sum(values)
        expected = oracle(teacher, student)
        np.testing.assert_allclose(values, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
        received = tape.gradient(total, keras.tree.flatten(tensors[1]))
        for one, of_oracle in zip(
            received, _oracle_gradient(oracle, teacher, student), strict=True
        ):
            largest = max(np.abs(of_oracle).max(), 1e-6)
            np.testing.assert_allclose(one, of_oracle, rtol=rtol, atol=5 * rtol * largest)

    return check
