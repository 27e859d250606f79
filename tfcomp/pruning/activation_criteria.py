"""How much each channel says: statistics of activations on data."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import tensorflow as tf

from tfcomp.errors import TfcompError
from tfcomp.graph.feature_maps import feature_model
from tfcomp.pruning.candidates import Candidates, Scores
from tfcomp.pruning.data_criterion import DataCriterion


class _ActivationCriterion(DataCriterion):
    """Accumulates moments of each channel over samples, positions and calls of a shared layer."""

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """The statistic of each channel.

        Raises:
            TfcompError: If the data is not as described, or the criterion does not apply.
        """
        maps = self._maps(candidates, through_sums=True)
        moments = {name: _Moments(len(candidates.producers[name].units)) for name in maps}
        if maps:
            model = feature_model(candidates.graph, maps)
            step = tf.function(
                lambda x: tf.nest.map_structure(self._batch, model(x, training=False)),
                reduce_retracing=True,
            )
            for x, _ in self._batches(candidates.graph):
                for name, calls in step(x).items():
                    for count, mean, square in calls:
                        moments[name].add(int(count), mean.numpy(), square.numpy())
        self._check(candidates, moments)
        return {name: self._score(found) for name, found in moments.items()}

    def _batch(self, feature_map: Any) -> tuple[Any, Any, Any]:
        """Number of values per channel, their mean, and their mean square about it."""
        values = self._values(tf.cast(feature_map, tf.float32))
        values = tf.reshape(values, (-1, values.shape[-1]))
        mean, variance = tf.nn.moments(values, axes=[0])
        return tf.shape(values)[0], mean, variance

    def _values(self, feature_map: Any) -> Any:
        return feature_map

    def _check(self, candidates: Candidates, moments: dict[str, _Moments]) -> None:
        """Raises where the statistic tells nothing."""

    @abc.abstractmethod
    def _score(self, moments: _Moments) -> Scores: ...


class _Moments:
    """Mean and variance of what is added batch by batch, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = np.zeros(channels)
        self._squares = np.zeros(channels)

    def add(self, count: int, mean: Scores, variance: Scores) -> None:
        """Adds `count` values of each channel (Chan, Golub and LeVeque 1979)."""
        if not count:
            return
        total = self.count + count
        gap = mean.astype(np.float64) - self.mean
        self._squares += variance.astype(np.float64) * count + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    @property
    def variance(self) -> Scores:
        """Of the population, not of a sample."""
        return self._squares / max(self.count, 1)


class APoZ(_ActivationCriterion):
    """score(c) = 1 − APoZ(c), the share of activations that are not zero.

    The average percentage of zeros is taken over samples, positions and calls, behind the
    BatchNormalization and the activation that follow the layer, and behind the addition where a
    residual block ends: what the layers behind it read. Channels are compared within a layer.

    Hu, Peng, Tai and Tang 2016, "Network Trimming: A Data-Driven Neuron Pruning Approach towards
    Efficient Deep Architectures", arXiv:1607.03250.

    Args:
        data: Inputs as the model takes them (an array, or a list or dict of arrays), a tuple
            (inputs, labels) of which labels are not used, or a batched `tf.data.Dataset` of
            either.
        batch_size: Size of a batch where `data` is not a dataset. Default 32.

    Raises:
        TfcompError: In `scores`, if no activation of a whole group of coupled layers is zero:
            there is no ReLU then, and its channels cannot be told apart.

    Example:
        >>> import keras
        >>> from tfcomp.pruning import Candidates
        >>> dense = keras.layers.Dense(2, "relu", name="d")
        >>> model = keras.Sequential([keras.Input((1,)), dense, keras.layers.Dense(1)])
        >>> dense.set_weights([np.array([[1.0, 1.0]]), np.array([0.0, 9.0])])
        >>> data = np.array([[-1.0], [-2.0], [-3.0], [4.0]])
        >>> APoZ(data).scores(Candidates.of_channels(model))["d"].tolist()
        [0.25, 1.0]
    """

    def _values(self, feature_map: Any) -> Any:
        return tf.cast(tf.not_equal(feature_map, 0.0), tf.float32)

    def _score(self, moments: _Moments) -> Scores:
        return moments.mean

    def _check(self, candidates: Candidates, moments: dict[str, _Moments]) -> None:
        coupled = [group.layers for group in candidates.groups]
        alone = set(moments) - {name for layers in coupled for name in layers}
        for layers in (*coupled, *((name,) for name in sorted(alone))):
            if all((moments[name].mean == 1.0).all() for name in layers):
                names = ", ".join(map(repr, layers))
                raise TfcompError(
                    f"APoZ expects activations of which some are zero, as behind ReLU. Received "
                    f"none behind {names}. Spare these, or use ActivationMean."
                )


class ActivationMean(_ActivationCriterion):
    """score(c) = mean |h_c| over samples, positions and calls.

    h is taken where `APoZ` takes it. Behind ReLU it is the mean activation of the paper; the
    absolute value makes it a criterion behind other activations too.

    Molchanov, Tyree, Karras, Aila and Kautz 2016, "Pruning Convolutional Neural Networks for
    Resource Efficient Inference", arXiv:1611.06440, section 2.2.

    Args:
        data: As in `APoZ`.
        batch_size: Size of a batch where `data` is not a dataset. Default 32.

    Example:
        >>> import keras
        >>> from tfcomp.pruning import Candidates
        >>> dense = keras.layers.Dense(2, "relu", name="d")
        >>> model = keras.Sequential([keras.Input((1,)), dense, keras.layers.Dense(1)])
        >>> dense.set_weights([np.array([[1.0, 1.0]]), np.array([0.0, 9.0])])
        >>> data = np.array([[-1.0], [-2.0], [-3.0], [4.0]])
        >>> ActivationMean(data).scores(Candidates.of_channels(model))["d"].tolist()
        [1.0, 8.5]
    """

    def _values(self, feature_map: Any) -> Any:
        return tf.abs(feature_map)

    def _score(self, moments: _Moments) -> Scores:
        return moments.mean


class ActivationStandardDeviation(_ActivationCriterion):
    """score(c) = √(mean h_c² − (mean h_c)²) over samples, positions and calls.

    h is taken where `APoZ` takes it. A channel that hardly varies is as good as a bias.

    Molchanov, Tyree, Karras, Aila and Kautz 2016, "Pruning Convolutional Neural Networks for
    Resource Efficient Inference", arXiv:1611.06440, section 2.2.

    Args:
        data: As in `APoZ`.
        batch_size: Size of a batch where `data` is not a dataset. Default 32.

    Example:
        >>> import keras
        >>> from tfcomp.pruning import Candidates
        >>> dense = keras.layers.Dense(2, name="d")
        >>> model = keras.Sequential([keras.Input((1,)), dense, keras.layers.Dense(1)])
        >>> dense.set_weights([np.array([[1.0, 0.0]]), np.array([0.0, 9.0])])
        >>> data = np.array([[-1.0], [1.0]])
        >>> ActivationStandardDeviation(data).scores(Candidates.of_channels(model))["d"].tolist()
        [1.0, 0.0]
    """

    def _score(self, moments: _Moments) -> Scores:
        return np.sqrt(moments.variance)
