"""How much each channel matters: one score per output channel of each layer."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError
from tfcomp.graph import Dependencies

Scores = npt.NDArray[np.float64]


class Criterion(abc.ABC):
    """Gives each channel a score; `shrink` removes those of the lowest score.

    Subclass it and define `scores`. Whatever it needs (data, a loss) goes into its constructor;
    `dependencies.graph` tells what lies behind a layer.

    Attributes:
        comparable: Whether scores of different layers are on one scale, so that scope="global"
            may compare them as they are. Where not, `shrink` divides them by their mean over
            the group of coupled layers first.

    Example:
        >>> import numpy as np
        >>> class LargestWeight(Criterion):
        ...     def scores(self, dependencies):
        ...         producers = dependencies.producers.items()
        ...         return {name: np.abs(p.filters()).max(axis=1) for name, p in producers}
        >>> LargestWeight().comparable
        False
    """

    comparable: ClassVar[bool] = False

    @abc.abstractmethod
    def scores(self, dependencies: Dependencies) -> Mapping[str, npt.NDArray[Any]]:
        """Scores the channels.

        Args:
            dependencies: The model's producers, by name, and its graph; not to be changed.

        Returns:
            For each producer a finite array of shape [channels]; a channel of a lower score is
            removed earlier.
        """

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Criterion:
        """The criterion that `get_config` was taken from."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


@keras.saving.register_keras_serializable(package="tfcomp")
class L1Norm(Criterion):
    """score(c) = Σ|w_c|, the sum of the absolute weights of filter c, bias not included.

    Li et al. 2016, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710.

    Example:
        >>> import keras
        >>> from tfcomp.graph import dependencies
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="d")])
        >>> _ = model.layers[0].kernel.assign([[1.0, 3.0], [-2.0, 0.0]])
        >>> L1Norm().scores(dependencies(model))["d"].tolist()
        [3.0, 3.0]
    """

    def scores(self, dependencies: Dependencies) -> dict[str, Scores]:
        """The L1 norm of each filter."""
        return {
            name: np.abs(producer.filters()).sum(axis=1, dtype=np.float64)
            for name, producer in dependencies.producers.items()
        }


@keras.saving.register_keras_serializable(package="tfcomp")
class L2Norm(Criterion):
    """score(c) = √Σw_c², the Euclidean norm of filter c, bias not included.

    Li et al. 2016, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, which finds it
    as good as the L1 norm.

    Example:
        >>> import keras
        >>> from tfcomp.graph import dependencies
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="d")])
        >>> _ = model.layers[0].kernel.assign([[3.0, 1.0], [-4.0, 0.0]])
        >>> L2Norm().scores(dependencies(model))["d"].tolist()
        [5.0, 1.0]
    """

    def scores(self, dependencies: Dependencies) -> dict[str, Scores]:
        """The L2 norm of each filter."""
        return {
            name: np.linalg.norm(producer.filters().astype(np.float64), axis=1)
            for name, producer in dependencies.producers.items()
        }


@keras.saving.register_keras_serializable(package="tfcomp")
class Random(Criterion):
    """score(c) uniform in [0, 1): what any other criterion has to beat.

    Args:
        seed: The same seed gives the same scores.

    Example:
        >>> Random(seed=1)
        Random(seed=1)
    """

    comparable: ClassVar[bool] = True

    def __init__(self, seed: int = 0) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise TfcompError(f"`seed` must be an integer of at least 0. Received: seed={seed!r}.")
        self.seed = seed

    def scores(self, dependencies: Dependencies) -> dict[str, Scores]:
        """Independent uniform numbers."""
        rng = np.random.default_rng(self.seed)
        return {
            name: rng.uniform(size=len(producer.units))
            for name, producer in dependencies.producers.items()
        }

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"seed": self.seed}
