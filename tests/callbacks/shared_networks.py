"""A network of few values, and whether they are still as few."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcomp.sharing import cluster_array


def clustered(values: int = 5, sparsity: float = 0.4, **kernel: Any) -> keras.Model:
    """Two kernels of few values, each with zeros."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(11, activation="tanh", name="a", **kernel),
            keras.layers.Dense(3, name="b", **kernel),
        ],
        name="m",
    )
    for layer in model.layers:
        w = np.asarray(layer.kernel).copy()
        w[np.abs(w) < np.quantile(np.abs(w), sparsity)] = 0
        layer.kernel.assign(cluster_array(w, values))
    return model


def compiled(model: keras.Model | None = None, optimizer: Any = None, **options: Any) -> Any:
    model = clustered() if model is None else model
    options = {"jit_compile": False, **options}
    model.compile(optimizer or keras.optimizers.SGD(0.002), "mse", **options)
    return model


def kernels(model: Any) -> list[np.ndarray]:
    return [np.asarray(v).copy() for v in model.weights if v.name == "kernel"]


def check(before: list[np.ndarray], model: Any) -> None:
    """Which weights are equal, and which are zero, is as it was; and they were trained."""
    for old, new in zip(before, kernels(model), strict=True):
        assert np.isfinite(new).all()
        np.testing.assert_array_equal(old == 0, new == 0)
        for value in np.unique(old):
            assert np.unique(new[old == value]).size == 1
    assert any((a != b).any() for a, b in zip(before, kernels(model), strict=True))


class Watch(keras.callbacks.Callback):
    """Checks after each batch."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.before = kernels(self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        check(self.before, self.model)
