"""A penalty on the scales of BatchNormalization while `model.fit` trains."""

from __future__ import annotations

import math
from typing import Any

import keras

from tfcomp.errors import TfcompError
from tfcomp.pruning.sparsity import find_scales


@keras.saving.register_keras_serializable(package="tfcomp")
class NetworkSlimming(keras.callbacks.Callback):
    """Adds λ·Σ|γ| over the scales of all BatchNormalizations to the loss.

    The sum is part of the compiled step and of the `loss` that `fit` shows. When training ends
    the model is as it was, but for its weights: `tfcomp.pruning.shrink` with the criterion
    `BatchNormScale()` and scope="global" then removes the channels whose scales have become small.

    Args:
        strength: λ, at least 0. The paper takes 1e-4 for VGG and 1e-5 for ResNets and DenseNets
            on CIFAR. Default 1e-4.

    Raises:
        TfcompError: If `strength` is not such a number; in `fit`, if no BatchNormalization of the
            model has a scale that is trained.

    Example:
        >>> import numpy as np
        >>> norm = keras.layers.BatchNormalization()
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), norm])
        >>> model.compile(keras.optimizers.SGD(0.1), "mse")
        >>> _ = model.fit(np.zeros((8, 4)), np.zeros((8, 8)), verbose=0,
        ...               callbacks=[NetworkSlimming(strength=0.5)])
        >>> round(float(norm.gamma[0]), 4), norm.gamma.regularizer is None
        (0.95, True)

    Reference:
        Liu, Li, Shen, Huang, Yan and Zhang 2017, "Learning Efficient Convolutional Networks
        through Network Slimming", arXiv:1708.06519.
    """

    def __init__(self, strength: float = 1e-4) -> None:
        super().__init__()
        is_number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
        if not (is_number and math.isfinite(strength) and strength >= 0):
            raise TfcompError(f"`strength` must be a number ≥ 0. Received: {strength!r}.")
        self.strength = float(strength)
        self._own: list[tuple[Any, Any]] = []

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"strength": self.strength}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NetworkSlimming:
        """The callback that `get_config` was taken from."""
        return cls(**config)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        scales = find_scales(self.model)
        if not scales:
            raise TfcompError(
                f"NetworkSlimming expects a BatchNormalization with a trainable scale in "
                f"{self.model.name!r}. Received none."
            )
        self._restore()
        self._own = [(variable, _own(variable.regularizer)) for variable in scales]
        for variable, own in self._own:
            variable.regularizer = _Slimming(self.strength, own)
        # The function may have been traced in an earlier fit, without the penalty.
        self.model.make_train_function(force=True)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._restore()
        self.model.make_train_function(force=True)

    def _restore(self) -> None:
        for variable, own in self._own:
            variable.regularizer = own
        self._own = []


class _Slimming(keras.regularizers.Regularizer):
    """λ·Σ|w|, beside the regulariser that the variable has already."""

    def __init__(self, strength: float, own: Any) -> None:
        self.own = own
        self.slim = keras.regularizers.L1(strength)

    def __call__(self, x: Any) -> Any:
        penalty = self.slim(x)
        return penalty if self.own is None else penalty + self.own(x)


def _own(regularizer: Any) -> Any:
    """The variable's own, where a fit that was interrupted left the penalty behind."""
    return regularizer.own if isinstance(regularizer, _Slimming) else regularizer
