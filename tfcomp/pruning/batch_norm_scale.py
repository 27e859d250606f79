"""The scale that a BatchNormalization gives each channel, as its importance."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.graph import Graph
from tfcomp.pruning.candidates import Candidates, Scores
from tfcomp.pruning.criteria import Criterion


@keras.saving.register_keras_serializable(package="tfcomp")
class BatchNormScale(Criterion):
    """score(c) = |γ_c| of the BatchNormalization that reads a layer's output.

    Train with `tfcomp.callbacks.NetworkSlimming` first, which drives scales of channels that are
    not needed to zero; then shrink with scope="global", which is the paper's percentile over all
    layers. Layers without such a normalisation have to be spared.

    Liu, Li, Shen, Huang, Yan and Zhang 2017, "Learning Efficient Convolutional Networks through
    Network Slimming", arXiv:1708.06519.

    Example:
        >>> layers = [keras.layers.Dense(3, name="d"), keras.layers.BatchNormalization(name="n")]
        >>> model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1)])
        >>> _ = model.get_layer("n").gamma.assign([0.5, -2.0, 0.0])
        >>> BatchNormScale().scores(Candidates.of_channels(model))["d"].tolist()
        [0.5, 2.0, 0.0]
    """

    comparable = True
    of_channels = True

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """|γ| of each channel.

        Raises:
            TfcompError: If there is no γ behind a layer.
        """
        gammas = {
            name: self._gammas(candidates.graph, producer.layer)
            for name, producer in candidates.producers.items()
        }
        without = [name for name, found in gammas.items() if not found]
        if without:
            raise TfcompError(
                "BatchNormScale expects a BatchNormalization with a scale right behind each layer "
                f"that is cut. Received none behind {', '.join(map(repr, without))}. Spare these, "
                "or use another criterion."
            )
        return {name: np.sum(found, axis=0) for name, found in gammas.items()}

    def _gammas(self, graph: Graph, layer: Any) -> list[Scores]:
        readers = {
            reader.name: reader.op
            for node in graph.calls(layer)
            for reader in graph.consumers(node.outputs[0])
            if isinstance(reader.op, keras.layers.BatchNormalization) and reader.op.scale
        }
        values = (keras.ops.convert_to_numpy(op.gamma) for op in readers.values())
        return [np.abs(value.astype(np.float64)) for value in values]
