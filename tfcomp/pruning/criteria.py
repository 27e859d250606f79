"""How much weights and channels matter: what every criterion has in common, and the simple ones."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError
from tfcomp.pruning.candidates import Candidates, Scores
from tfcomp.pruning.configured import Configured


class Criterion(Configured, abc.ABC):
    """Says how much weights or channels matter; those of the lowest score are removed first.

    `PruneWeights`, `prune_at_initialization`, `shrink` and `sensitivity` take any. Subclass it and
    define `scores`. Whatever it needs (data, a loss) goes into its constructor. Channels are scored
    where whole filters go, in `shrink` or with the units `Filters()` and `Layers()`; weights are
    scored for every use, and averaged over what goes together.

    Attributes:
        comparable: Whether scores of different layers are on one scale, so that scope="global"
            may compare them as they are. Where not, they are divided by their mean over the
            kernel first; in `shrink` over the group of coupled layers.
        of_channels: Whether scores are known to be of channels, so that `PruneWeights` can refuse
            another unit before it trains. Where not, their shape tells.

    Example:
        >>> class FarFromMean(Criterion):
        ...     def scores(self, candidates):
        ...         values = {name: kernel.value() for name, kernel in candidates.items()}
        ...         return {name: np.abs(w - w.mean()) for name, w in values.items()}
        >>> class LargestWeight(Criterion):
        ...     def scores(self, candidates):
        ...         kernels = candidates.items()
        ...         return {name: np.abs(k.filters()).max(axis=1) for name, k in kernels}
        >>> LargestWeight().comparable
        False
    """

    comparable: ClassVar[bool] = False
    of_channels: ClassVar[bool] = False
    # NaN among weights is not the criterion's fault, and to look for it takes time.
    _unchecked: ClassVar[bool] = False

    @abc.abstractmethod
    def scores(self, candidates: Candidates) -> Mapping[str, npt.NDArray[Any]]:
        """Scores the weights or the channels.

        Args:
            candidates: The kernels to be judged, by name, each with its `value()` as it is and as
                `filters()`; `candidates.model` is theirs, `candidates.graph` its calls and
                `candidates.producers` the layers that create the channels. Not to be changed.

        Returns:
            For each of them, by its name or that of its layer in the graph, a finite array of the
            kernel's shape or of shape [channels]; what has a lower score is removed earlier.
        """


class HoldsData(Criterion):
    """A criterion that was given data: it is equal to itself alone, and not to be written down."""

    def get_config(self) -> dict[str, Any]:
        """Refuses: data is not part of a configuration."""
        raise TfcompError(
            f"{type(self).__name__} holds data, which cannot be written to a configuration. "
            "Make it anew where it is needed."
        )

    def _settings(self) -> dict[str, Any]:
        """The arguments that it prints."""
        return {}

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self._settings().items())
        return f"{type(self).__name__}({settings})"


@keras.saving.register_keras_serializable(package="tfcomp")
class L1Norm(Criterion):
    """score(c) = Σ|w_c|, the sum of the absolute weights of filter c, bias not included.

    Li et al. 2016, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="d")], name="m")
        >>> _ = model.layers[0].kernel.assign([[1.0, 3.0], [-2.0, 0.0]])
        >>> L1Norm().scores(Candidates.of_kernels(model))["m/d/kernel"].tolist()
        [3.0, 3.0]
    """

    of_channels = True

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """The L1 norm of each filter."""
        return {
            name: np.abs(kernel.filters()).sum(axis=1, dtype=np.float64)
            for name, kernel in candidates.items()
        }


@keras.saving.register_keras_serializable(package="tfcomp")
class L2Norm(Criterion):
    """score(c) = √Σw_c², the Euclidean norm of filter c, bias not included.

    Li et al. 2016, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, which finds it
    as good as the L1 norm.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="d")], name="m")
        >>> _ = model.layers[0].kernel.assign([[3.0, 1.0], [-4.0, 0.0]])
        >>> L2Norm().scores(Candidates.of_kernels(model))["m/d/kernel"].tolist()
        [5.0, 1.0]
    """

    of_channels = True

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """The L2 norm of each filter."""
        return {
            name: np.linalg.norm(kernel.filters().astype(np.float64), axis=1)
            for name, kernel in candidates.items()
        }


@keras.saving.register_keras_serializable(package="tfcomp")
class Random(Criterion):
    """score(c) uniform in [0, 1) for each channel: what any other criterion has to beat.

    Args:
        seed: The same seed gives the same scores.

    Example:
        >>> Random(seed=1)
        Random(seed=1)
    """

    comparable = True
    of_channels = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = checked_seed(seed)

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """Independent uniform numbers."""
        rng = np.random.default_rng(self.seed)
        return {name: rng.uniform(size=kernel.channels) for name, kernel in candidates.items()}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"seed": self.seed}


@keras.saving.register_keras_serializable(package="tfcomp")
class RandomWeights(Criterion):
    """score(w) uniform in [0, 1) for each weight: the control of every other criterion.

    Args:
        seed: Of the scores. Default 0. Each call draws new ones, so that rounds are independent:
            only a criterion that is as often asked gives the same, and training that was
            interrupted goes on with others.

    Example:
        >>> RandomWeights(seed=3)
        RandomWeights(seed=3)
    """

    comparable = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = checked_seed(seed)
        self._generator = np.random.default_rng(seed)

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """Independent uniform numbers, new ones in each call."""
        return {
            name: self._generator.random(kernel.shape, dtype=np.float32)
            for name, kernel in candidates.items()
        }

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"seed": self.seed}


@keras.saving.register_keras_serializable(package="tfcomp")
class Magnitude(Criterion):
    """score(w) = |w|.

    Han, Pool, Tran and Dally 2015, "Learning both Weights and Connections for Efficient Neural
    Networks", arXiv:1506.02626.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, name="d")], name="m")
        >>> _ = model.layers[0].kernel.assign([[3.0, -4.0]])
        >>> Magnitude().scores(Candidates.of_kernels(model))["m/d/kernel"].tolist()
        [[3.0, 4.0]]
    """

    comparable = True
    _unchecked = True

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """The absolute values."""
        return {name: np.abs(kernel.value()) for name, kernel in candidates.items()}


def checked_seed(seed: Any) -> int:
    """A seed as it was passed.

    Raises:
        TfcompError: If it is no integer of at least 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise TfcompError(f"`seed` must be an integer of at least 0. Received: seed={seed!r}.")
    return seed
