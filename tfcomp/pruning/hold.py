"""Removed weights that stay at their values while the others are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcomp.errors import TfcompError
from tfcomp.pruning.masks import Mask
from tfcomp.pruning.sparsity import find_kernels


class Held(keras.constraints.Constraint):
    """w ← c(w) where the mask keeps, and elsewhere what it was."""

    def __init__(self, mask: Any, values: Any, constraint: Callable[[Any], Any] | None) -> None:
        self.mask, self.values, self.constraint = mask, values, constraint

    def __call__(self, w: Any) -> Any:
        return self.held(w if self.constraint is None else self.constraint(self.held(w)))

    def held(self, w: Any) -> Any:
        """`w` with what is removed at its value."""
        return keras.ops.where(self.mask, w, keras.ops.cast(self.values, w.dtype))


class Hold(keras.callbacks.Callback):
    """Keeps removed weights at their values while `fit` trains, by constraints."""

    def __init__(self, masks: Mapping[str, Mask]) -> None:
        super().__init__()
        self.masks = dict(masks)
        self._held: list[tuple[Any, Held]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        kernels = {k.name: k for k in find_kernels(self.model, depthwise=True)[0]}
        for name, mask in self.masks.items():
            if name not in kernels or tuple(kernels[name].variable.shape) != mask.shape:
                raise TfcompError(
                    f"Masks are held on models with the kernels that they are of. Received: "
                    f"{self.model.name!r} without {name!r} of shape {mask.shape}."
                )
        for name, mask in self.masks.items():
            variable = kernels[name].variable
            fixed = keras.Variable(mask, dtype="bool", trainable=False)
            values = keras.Variable(variable, dtype=variable.dtype, trainable=False)
            held = Held(fixed, values, variable.constraint)
            variable.constraint = held
            self._held.append((variable, held))
        self.model.make_train_function(force=True)

    def on_train_end(self, logs: Any = None) -> None:
        for variable, held in self._held:
            variable.assign(held.held(variable))  # an average may have been put back
            variable.constraint = held.constraint
        self._held = []
