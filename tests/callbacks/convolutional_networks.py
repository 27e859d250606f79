"""A network of convolutions, pruned at its ends too."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcomp.callbacks import PruneWeights

_rng = np.random.default_rng(0)
X = _rng.normal(size=(32, 6, 6, 3)).astype("float32")
Y = _rng.normal(size=(32, 3)).astype("float32")
STEPS = 4  # in one epoch of batches of 8


def network(**kernel: Any) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(8, 3, activation="relu", name="stem", **kernel),
            keras.layers.Conv2D(10, 3, activation="relu", name="conv", **kernel),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="logits", **kernel),
        ],
        name="m",
    )


def everywhere(schedule: Any, **options: Any) -> PruneWeights:
    """Prunes the ends of the network too."""
    return PruneWeights(schedule, first=True, last=True, **options)


def fit(prune: Any, *others: Any, epochs: int = 2, model: Any = None, **options: Any) -> Any:
    model = network() if model is None else model
    if not model.compiled:
        model.compile(options.pop("optimizer", None) or keras.optimizers.Adam(0.01), "mse")
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[prune, *others], **options)
    return model


def kernels(model: Any) -> dict[str, np.ndarray]:
    return {
        layer.name: np.asarray(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")
    }


def obeying(kernel: np.ndarray, n: int, m: int) -> tuple[int, int]:
    """How many groups of m along the inputs have at most n that are not zero, and of how many."""
    lines = np.moveaxis(kernel, -2, -1).reshape(-1, kernel.shape[-2])
    groups = [line[start : start + m] for line in lines for start in range(0, len(line), m)]
    return sum(int(np.count_nonzero(group)) <= n for group in groups), len(groups)
