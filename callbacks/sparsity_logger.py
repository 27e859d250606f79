"""The sparsity of a model, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import keras

from tfcomp.pruning.sparsity import find_kernels, measure, total_sparsity


@keras.saving.register_keras_serializable(package="tfcomp")
class SparsityLogger(keras.callbacks.Callback):
    """Adds the share of zeros in the kernels to the logs of each epoch.

    `logs["sparsity"]` is zeros / weights of all the kernels together, and
    `logs["sparsity/<kernel>"]` that of each: they are in `fit`'s History, and in whatever
    other callback reads logs and is listed later (TensorBoard, CSVLogger, ModelCheckpoint).

    Args:
        per_layer: Whether to log each kernel beside the total. Default True.
        verbose: 1 prints a line at the end of each epoch. Default 0.
        skip: Layers to leave out, as in `PruneWeights`.
        depthwise: Whether depthwise kernels count, as in `PruneWeights`. Default False.

    Raises:
        TfcompError: In `fit`, if a layer in `skip` is not in the model.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0,
        ...                     callbacks=[SparsityLogger(per_layer=False)])
        >>> history.history["sparsity"]
        [0.0]
    """

    def __init__(
        self,
        *,
        per_layer: bool = True,
        verbose: int = 0,
        skip: Iterable[Any] = (),
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        self.per_layer = per_layer
        self.verbose = verbose
        self.skip: tuple[Any, ...] = (skip,) if isinstance(skip, str) else tuple(skip)
        self.depthwise = depthwise

    def get_config(self) -> dict[str, Any]:
        """The arguments, layers given as objects by their names."""
        return {
            "per_layer": self.per_layer,
            "verbose": self.verbose,
            "skip": [item if isinstance(item, str) else item.name for item in self.skip],
            "depthwise": self.depthwise,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The callback whose `get_config()` is `config`."""
        return cls(**config)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        kernels, _ = find_kernels(self.model, skip=self.skip, depthwise=self.depthwise)
        rows = measure(kernels)
        total = total_sparsity(rows)
        if logs is not None:
            logs["sparsity"] = total
            if self.per_layer:
                logs.update({f"sparsity/{row.name}": row.sparsity for row in rows})
        if self.verbose:
            zeros, size = sum(row.zeros for row in rows), sum(row.size for row in rows)
            print(f"Epoch {epoch + 1}: sparsity {total:.4f} ({zeros:,} of {size:,} weights)")
