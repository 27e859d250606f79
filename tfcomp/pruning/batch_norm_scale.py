"""The scale that a BatchNormalization gives each channel, as its importance."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.graph import FIXED, Dependencies
from tfcomp.pruning.criteria import Criterion, Scores


@keras.saving.register_keras_serializable(package="tfcomp")
class BatchNormScale(Criterion):
    """score(c) = |γ_c| of the BatchNormalization that reads a layer's output.

    Train with `tfcomp.callbacks.NetworkSlimming` first, which drives scales of channels that are
    not needed to zero; then shrink with scope="global", which is the paper's percentile over all
    layers. Layers without such a normalisation have to be spared.

    Liu, Li, Shen, Huang, Yan and Zhang 2017, "Learning Efficient Convolutional Networks through
    Network Slimming", arXiv:1708.06519.

    Example:
        >>> import keras
        >>> from tfcomp.graph import dependencies
        >>> layers = [keras.layers.Dense(3, name="d"), keras.layers.BatchNormalization(name="n")]
        >>> model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1)])
        >>> _ = model.get_layer("n").gamma.assign([0.5, -2.0, 0.0])
        >>> BatchNormScale().scores(dependencies(model))["d"].tolist()
        [0.5, 2.0, 0.0]
    """

    comparable: ClassVar[bool] = True

    def scores(self, dependencies: Dependencies) -> dict[str, Scores]:
        """|γ| of each channel; zeros for layers of which nothing can be removed anyway.

        Raises:
            TfcompError: If channels could be removed behind which there is no γ.
        """
        made, without = {}, []
        for name, producer in dependencies.producers.items():
            gammas = self._gammas(dependencies, producer.layer)
            if gammas:
                made[name] = np.sum(gammas, axis=0)
                continue
            made[name] = np.zeros(len(producer.units))
            if (producer.units != FIXED).any():
                without.append(name)
        if without:
            raise TfcompError(
                "BatchNormScale expects a BatchNormalization with a scale right behind each layer "
                f"that is cut. Received none behind {', '.join(map(repr, without))}. Name these in "
                "`spare`, or use another criterion."
            )
        return made

    def _gammas(self, dependencies: Dependencies, layer: Any) -> list[Scores]:
        readers = {
            reader.name: reader.op
            for node in dependencies.graph.calls(layer)
            for reader in dependencies.graph.consumers(node.outputs[0])
            if isinstance(reader.op, keras.layers.BatchNormalization) and reader.op.scale
        }
        values = (keras.ops.convert_to_numpy(op.gamma) for op in readers.values())
        return [np.abs(value.astype(np.float64)) for value in values]
