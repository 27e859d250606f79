"""How much each weight matters: one score per entry of each kernel."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.pruning.sparsity import Kernel

Scores = npt.NDArray[Any]


class WeightCriterion(abc.ABC):
    """Gives each weight a score; weights of the lowest score are set to zero first.

    Subclass it and define `scores`. Whatever it needs (data, a loss) goes into its constructor.

    Example:
        >>> class FarFromMean(WeightCriterion):
        ...     def scores(self, model, kernels):
        ...         return [np.abs(k.value() - k.value().mean()) for k in kernels]
        >>> FarFromMean()
        FarFromMean()
    """

    @abc.abstractmethod
    def scores(self, model: keras.Model, kernels: Sequence[Kernel]) -> list[Scores]:
        """Scores the weights.

        Args:
            model: The model whose kernels are judged; not to be changed.
            kernels: The kernels, as `find_kernels` gives them.

        Returns:
            For each kernel a finite array of its shape; a weight of a lower score goes earlier.
        """

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightCriterion:
        """The criterion that `get_config` was taken from."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.get_config() == self.get_config()

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


@keras.saving.register_keras_serializable(package="tfcomp")
class Magnitude(WeightCriterion):
    """score(w) = |w|.

    Han, Pool, Tran and Dally 2015, "Learning both Weights and Connections for Efficient Neural
    Networks", arXiv:1506.02626.

    Example:
        >>> from tfcomp.pruning import find_kernels
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        >>> _ = model.layers[0].kernel.assign([[3.0, -4.0]])
        >>> Magnitude().scores(model, find_kernels(model)[0])[0].tolist()
        [[3.0, 4.0]]
    """

    def scores(self, model: keras.Model, kernels: Sequence[Kernel]) -> list[Scores]:
        """The absolute values."""
        return [np.abs(kernel.value()) for kernel in kernels]
