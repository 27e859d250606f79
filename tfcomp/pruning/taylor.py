"""What the cost would be without a channel: to first order, and in truth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcomp.errors import TfcompError
from tfcomp.graph.feature_maps import Tap, tapped_model
from tfcomp.profiling.macs import UncountedError, call_macs
from tfcomp.pruning.candidates import Candidates, Scores
from tfcomp.pruning.cost import Loss, check_outputs, loss_function, told
from tfcomp.pruning.data_criterion import DataCriterion, Maps

Taps = dict[str, list[Tap]]


class _CostCriterion(DataCriterion):
    """A criterion that looks at the cost of samples."""

    comparable = True

    def __init__(self, loss: Loss, data: Any, batch_size: int) -> None:
        super().__init__(data, batch_size)
        loss_function(loss)  # refuses what is none
        self.loss = loss

    def _cost(self, labels: Any, predictions: Any) -> Any:
        """The sum of the samples' costs."""
        function = loss_function(self.loss)
        function = getattr(function, "call", function)  # that of keras.losses.Loss: no mean yet
        cost = tf.cast(tf.convert_to_tensor(function(labels, predictions)), tf.float32)
        size = tf.shape(tf.nest.flatten(predictions)[0])[0]
        if cost.shape.rank == 0:
            # The mean over the batch: nothing else is known of it.
            return cost * tf.cast(size, tf.float32)
        return tf.reduce_sum(tf.reduce_mean(tf.reshape(cost, (size, -1)), axis=1))

    def _tapped(self, candidates: Candidates, maps: Maps) -> tuple[keras.Model, Taps]:
        """The model with a tap at each of the feature maps.

        Raises:
            TfcompError: If a layer's maps are read by nothing, or the loss does not fit.
        """
        graph, leaving = candidates.graph, set(candidates.graph.output_tensors)
        unread = [
            name
            for name, found in maps.items()
            if not any(graph.consumers(tensor) or tensor in leaving for tensor in found)
        ]
        if unread:
            raise TfcompError(
                f"{type(self).__name__} expects layers whose output is read. Received: "
                f"{', '.join(map(repr, unread))}, of which states are read alone. Spare these, or "
                "use another criterion."
            )
        model, taps = tapped_model(graph, maps)
        check_outputs(self.loss, model, type(self).__name__)
        return model, taps


class Taylor(_CostCriterion):
    """score(c) = Θ(c) / √Σ_d Θ(d)² − λ·F, where Θ(c) = meanₛ |meanₚ ∂C/∂h_c · h_c|.

    The first-order change of the cost C of sample s when channel c is zero, the mean being over
    positions p, and the root over the channels d of the same layer. h is taken behind the
    BatchNormalization and the activation that follow the layer (not behind an addition). F are
    the layer's MFLOPs (2 per multiply-add) for each channel. A shared layer's calls are added up
    within |·|, since the channel goes in all of them. The model runs in inference.

    Scores are comparable between layers: shrink with scope="global", as the paper does, and
    rather in several rounds with training between than at once.

    Molchanov, Tyree, Karras, Aila and Kautz 2016, "Pruning Convolutional Neural Networks for
    Resource Efficient Inference", arXiv:1611.06440, equations 8, 9 and 11.

    Args:
        loss: A Keras loss, its name, or `loss(labels, predictions)` that returns one value for
            each sample, or their mean.
        data: (inputs, labels) as arrays, or a batched `tf.data.Dataset` of such pairs.
        flops_weight: λ, at least 0. The paper takes 1e-3. Default 0.
        batch_size: Size of a batch where `data` is not a dataset. Default 32.

    Raises:
        TfcompError: If an argument is not as described; in `scores`, if the data has no labels,
            if no feature map changes the cost, or λ is not 0 and the multiply-adds of a layer are
            not known.

    Example:
        >>> from tfcomp.pruning import Candidates
        >>> hidden, out = keras.layers.Dense(2, name="h"), keras.layers.Dense(1)
        >>> model = keras.Sequential([keras.Input((1,)), hidden, out])
        >>> hidden.set_weights([np.array([[3.0, 1.0]]), np.zeros(2)])
        >>> out.set_weights([np.array([[1.0], [4.0]]), np.zeros(1)])
        >>> data = np.array([[1.0]]), np.array([[0.0]])
        >>> Taylor("mse", data).scores(Candidates.of_channels(model))["h"].round(4).tolist()
        [0.6, 0.8]
    """

    def __init__(
        self, loss: Loss, data: Any, flops_weight: float = 0.0, batch_size: int = 32
    ) -> None:
        super().__init__(loss, data, batch_size)
        is_number = isinstance(flops_weight, (int, float)) and not isinstance(flops_weight, bool)
        if not (is_number and np.isfinite(flops_weight) and flops_weight >= 0):
            raise TfcompError(f"`flops_weight` must be a number ≥ 0. Received: {flops_weight!r}.")
        self.flops_weight = float(flops_weight)

    def _settings(self) -> dict[str, Any]:
        return {"flops_weight": self.flops_weight} if self.flops_weight else {}

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """Θ, normalised and regularised."""
        maps = self._maps(candidates)
        scores = {name: np.zeros(len(candidates.producers[name].units)) for name in maps}
        if not maps:
            return scores
        model, taps = self._tapped(candidates, maps)
        step = tf.function(lambda x, y: self._step(model, taps, x, y), reduce_retracing=True)
        moves = False
        for x, y in self._batches(candidates.graph, labels=True):
            with told("Taylor"):
                found, moved = step(x, y)
            moves = moves or bool(moved)
            for name, values in found.items():
                # A sum in place of the mean over samples: normalising makes them the same.
                scores[name] += values.numpy().astype(np.float64)
        if not moves:
            raise TfcompError(
                "Taylor expects a cost that changes with the feature maps. Received: one whose "
                f"gradient is 0 in all of {', '.join(maps)}. Pass a loss of the predictions."
            )
        for name in maps:
            norm = np.linalg.norm(scores[name])
            scores[name] /= norm if norm > 0 else 1.0
            if self.flops_weight:
                scores[name] -= self.flops_weight * _mflops(candidates, name)
        return scores

    def _step(self, model: keras.Model, taps: Taps, x: Any, y: Any) -> tuple[dict[str, Any], Any]:
        """Σₛ |Σ meanₚ ∂C/∂h·h| of each channel, the inner sum being over calls; any ∂C/∂h ≠ 0."""
        with tf.GradientTape() as tape:
            maps: dict[str, list[Any]] = {name: [] for name in taps}

            def keep(name: str) -> Callable[[Any], Any]:
                def watched(feature_map: Any) -> Any:
                    tape.watch(feature_map)
                    maps[name].append(feature_map)
                    return feature_map

                return watched

            with _tapping(taps, keep):
                cost = self._cost(y, model(x, training=False))
        slopes = tape.gradient(cost, maps, unconnected_gradients="zero")
        changes = {
            name: tf.add_n([_mean(h, g) for h, g in zip(maps[name], slopes[name], strict=True)])
            for name in maps
        }
        sums = {name: tf.reduce_sum(tf.abs(change), axis=0) for name, change in changes.items()}
        moved = [tf.reduce_any(slope != 0) for slope in tf.nest.flatten(slopes)]
        return sums, tf.reduce_any(tf.stack(moved))


class Oracle(_CostCriterion):
    """score(c) = |C without c − C|: the true change of the cost when channel c's output is zero.

    C is the mean over samples. The output is taken where `Taylor` takes it, in all calls of a
    shared layer at once. The model runs, in inference, as many times as it has channels that can
    be removed: meant for small models and little data, to compare other criteria with.

    Molchanov, Tyree, Karras, Aila and Kautz 2016, "Pruning Convolutional Neural Networks for
    Resource Efficient Inference", arXiv:1611.06440, section 2.2 (oracle-abs).

    Args:
        loss: A Keras loss, its name, or `loss(labels, predictions)` that returns one value for
            each sample, or their mean.
        data: (inputs, labels) as arrays, or a batched `tf.data.Dataset` of such pairs.
        batch_size: Size of a batch where `data` is not a dataset. Default 32.

    Raises:
        TfcompError: If an argument is not as described; in `scores`, if the data has no labels.

    Example:
        >>> from tfcomp.pruning import Candidates
        >>> hidden, out = keras.layers.Dense(2, name="h"), keras.layers.Dense(1)
        >>> model = keras.Sequential([keras.Input((1,)), hidden, out])
        >>> hidden.set_weights([np.array([[3.0, 1.0]]), np.zeros(2)])
        >>> out.set_weights([np.array([[1.0], [4.0]]), np.zeros(1)])
        >>> data = np.array([[1.0]]), np.array([[0.0]])
        >>> channels = Candidates.of_channels(model)
        >>> Oracle("mse", data).scores(channels)["h"].tolist()  # |16 - 49|, |9 - 49|
        [33.0, 40.0]
    """

    def __init__(self, loss: Loss, data: Any, batch_size: int = 32) -> None:
        super().__init__(loss, data, batch_size)

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """The change of the cost for each channel; zeros for those that are never removed."""
        maps = self._maps(candidates)
        scores = {name: np.zeros(len(candidates.producers[name].units)) for name in maps}
        if not maps:
            return scores
        model, taps = self._tapped(candidates, maps)
        step = tf.function(
            lambda x, y, kept: self._step(model, taps, x, y, kept), reduce_retracing=True
        )
        ones = {name: tf.ones(len(scores[name])) for name in maps}
        channels = {name: candidates.judged(name).tolist() for name in maps}
        samples = 0
        for x, y in self._batches(candidates.graph, labels=True):
            samples += len(keras.tree.flatten(x)[0])
            with told("Oracle"):
                cost = float(step(x, y, ones))
            for name in maps:
                for channel in channels[name]:
                    kept = {**ones, name: 1.0 - tf.one_hot(channel, len(ones[name]))}
                    scores[name][channel] += float(step(x, y, kept)) - cost
        return {name: np.abs(values) / max(samples, 1) for name, values in scores.items()}

    def _step(self, model: keras.Model, taps: Taps, x: Any, y: Any, kept: dict[str, Any]) -> Any:
        """The summed cost with each feature map times the factors of its channels."""

        def mask(name: str) -> Callable[[Any], Any]:
            return lambda feature_map: feature_map * tf.cast(kept[name], feature_map.dtype)

        with _tapping(taps, mask):
            return self._cost(y, model(x, training=False))


@contextlib.contextmanager
def _tapping(taps: Taps, function: Callable[[str], Callable[[Any], Any]]) -> Iterator[None]:
    """Gives all taps of a layer the function for its name, for as long as the model is called."""
    for name, of_layer in taps.items():
        for tap in of_layer:
            tap.function = function(name)
    try:
        yield
    finally:
        for tap in (tap for of_layer in taps.values() for tap in of_layer):
            tap.function = keras.activations.linear


def _mean(feature_map: Any, slope: Any) -> Any:
    """The mean over positions of ∂C/∂h·h, [samples, channels]."""
    product = tf.cast(feature_map, tf.float32) * tf.cast(slope, tf.float32)
    return tf.reduce_mean(product, axis=list(range(1, product.shape.rank - 1)))


def _mflops(candidates: Candidates, name: str) -> float:
    """Millions of operations, 2 for each multiply-add, that one channel of a layer takes."""
    calls = [node for node in candidates.graph.nodes if node.name == name]
    try:
        macs = sum(
            call_macs(node.op, [t.shape for t in node.inputs], node.outputs[0].shape)
            for node in calls
        )
    except UncountedError as error:
        raise TfcompError(
            f"Taylor with a flops_weight expects multiply-adds that are known. Received: {name!r}, "
            f"of which {error}. Spare it, or leave flops_weight at 0."
        ) from error
    return 2e-6 * macs / len(candidates.producers[name].units)
