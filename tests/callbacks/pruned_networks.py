"""A network to prune, and its zeros as NumPy counts them."""

from __future__ import annotations

import math
from typing import Any

import keras

from tests.callbacks.fits import STEPS
from tfcomp.pruning import PolynomialDecay


def dense(**kernel: Any) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(11, activation="relu", name="a", **kernel),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3, name="b", **kernel),
        ],
        name="m",
    )


def compiled(model: keras.Model | None = None, optimizer: Any = None, **options: Any) -> Any:
    model = dense() if model is None else model
    options = {"jit_compile": False, **options}
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **options)
    return model


def zeros(model: Any) -> list[int]:
    """Zeros of each kernel, by NumPy alone."""
    return [int((w == 0).sum()) for w in model.get_weights() if w.ndim > 1]


def sizes(model: Any) -> list[int]:
    return [w.size for w in model.get_weights() if w.ndim > 1]


def rounded(model: Any, sparsity: float) -> list[int]:
    return [min(math.floor(sparsity * size + 0.5), size - 1) for size in sizes(model)]


def ramp(last: float = 0.8, end: int = 2 * STEPS, **options: Any) -> PolynomialDecay:
    return PolynomialDecay(0.0, last, 0, end, **{"frequency": 2, **options})


class Recorder(keras.callbacks.Callback):
    """Zeros after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros: list[list[int]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.zeros.append(zeros(self.model))
