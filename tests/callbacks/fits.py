"""Short trainings on random data, and what may happen within them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

_rng = np.random.default_rng(0)
X = _rng.normal(size=(48, 8)).astype("float32")
Y = _rng.normal(size=(48, 3)).astype("float32")
STEPS = 6  # in one epoch of batches of 8


def fit(
    model: Any, *callbacks: Any, epochs: int = 2, x: Any = X, y: Any = Y, **options: Any
) -> Any:
    options = {"batch_size": 8, "verbose": 0, **options}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **options)


class At(keras.callbacks.Callback):
    """Calls a function at the end of batch number `step`, counted over all epochs."""

    def __init__(self, step: int, function: Any) -> None:
        super().__init__()
        self.step, self.function, self.done = step, function, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.done += 1
        if self.done == self.step:
            self.function(self.model)


def interrupt(model: Any) -> None:
    raise KeyboardInterrupt
