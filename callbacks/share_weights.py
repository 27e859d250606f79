"""Clustered weights that stay clustered while `model.fit` trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Self

import keras

from tfcomp.callbacks.pruning_session import SESSIONS
from tfcomp.callbacks.sharing_session import SharingReport, SharingSession, sharing_kernels
from tfcomp.callbacks.training_hooks import after_all_callbacks
from tfcomp.errors import TfcompError
from tfcomp.pruning import find_kernels
from tfcomp.sharing.shared import Reduction


@keras.saving.register_keras_serializable(package="tfcomp")
class ShareWeights(keras.callbacks.Callback):
    """Trains the values that weights share: weights that are equal stay equal, zeros stay zero.

    Weights of a kernel that are equal when training begins are a cluster, so that it works on
    what `tfcomp.sharing.cluster_weights` returns and on that saved and loaded. After each update
    u of the optimizer each centroid moves by the updates of all its weights:

        c_j ← c_j + Σ_{i∈j} u_i

    With SGD, which has u = −η·∂L/∂w, that is the paper's c_j ← c_j − η·Σ_{i∈j} ∂L/∂w_i; momentum,
    Nesterov's too, keeps this exact. Other optimizers scale the update of each weight by itself,
    and a centroid of n weights would move about n times as far: take reduction="mean" there, which
    puts Σ u_i / n in place of Σ u_i. The sum is warned of.

    The centroids move by the variables' constraints inside the compiled step, around constraints
    of the layers' own. When training ends these are taken away again; the values are read back
    into `report`. `PruneWeights.from_zeros()` may be used beside it, in any order.

    List it before `EarlyStopping` and `ModelCheckpoint`, and after `SwapEMAWeights`; the
    clusters in the end do not depend on the order. A cluster of which averages are put in place
    of the weights gets their mean.

    Han, Mao and Dally 2015, "Deep Compression", arXiv:1510.00149.

    Args:
        reduction: "sum" (the default, as in the paper) or "mean".
        max_values: A kernel with more different values than this is left alone, and listed in
            the report. Default 256, 8 bits.
        skip: Layers to spare, as objects or names, nested models and blocks among them.

    Attributes:
        report: A report of each kernel's values, from the first step on, brought up to date when
            training ends.

    Raises:
        TfcompError: If an argument is not as described; in `fit`, if no kernel has weights that
            are equal, if weights are not finite, if a layer's own constraint sets equal weights
            apart, if a `PruneWeights` beside it would remove more, if the training step ignores
            constraints, or if there are more values in the end than in the beginning.

    Example:
        >>> import numpy as np
        >>> layer = keras.layers.Dense(1, use_bias=False)
        >>> model = keras.Sequential([keras.Input((4,)), layer])
        >>> layer.set_weights([np.array([[1.0], [1.0], [0.0], [3.0]])])
        >>> model.compile(keras.optimizers.SGD(0.5), lambda y, z: z)  # ∂L/∂w = x
        >>> share = ShareWeights()
        >>> _ = model.fit(np.array([[0.25, 0.5, 1.0, 1.0]]), np.zeros((1, 1)), verbose=0,
        ...               callbacks=[share])
        >>> layer.get_weights()[0].reshape(-1).tolist(), share.report.kernels[0].values
        ([0.625, 0.625, 0.0, 2.5], 3)
    """

    def __init__(
        self,
        *,
        reduction: Reduction = "sum",
        max_values: int = 256,
        skip: Iterable[Any] = (),
    ) -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise TfcompError(f'`reduction` must be "sum" or "mean". Received: {reduction!r}.')
        if isinstance(max_values, bool) or not isinstance(max_values, int) or max_values < 1:
            raise TfcompError(
                f"`max_values` must be a whole number of at least 1. Received: {max_values!r}."
            )
        self.reduction: Reduction = reduction
        self.max_values = max_values
        self.skip: tuple[Any, ...] = (skip,) if isinstance(skip, str) else tuple(skip)
        self.report: SharingReport | None = None
        self._session: SharingSession | None = None
        self._begins = False

    def get_config(self) -> dict[str, Any]:
        """The arguments, layers given as objects by their names."""
        return {
            "reduction": self.reduction,
            "max_values": self.max_values,
            "skip": [item if isinstance(item, str) else item.name for item in self.skip],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The callback whose `get_config()` is `config`."""
        return cls(**config)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._session is not None:
            self._session.release()  # left by a fit that was interrupted
        self._session = self.report = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._begins = True

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Here rather than when training or the epoch begins: by now every callback has put back
        # what it puts back, and the masks of pruning are in force.
        if self._session is None:
            self._session = self._opened()
            self.report = self._session.report()
        elif self._begins:
            self._session.tie()

    def _opened(self) -> SharingSession:
        model = self.model
        if not model.built:
            raise TfcompError(
                f"ShareWeights expects a model whose weights are clustered. Received: "
                f"{model.name!r}, which is not built."
            )
        pruning = SESSIONS.get(model)
        if pruning is not None and pruning.removes_more_in(getattr(model, "history", None)):
            raise TfcompError(
                "ShareWeights expects zeros that are there already. Received: a PruneWeights "
                "beside it whose schedule removes more. Prune first, cluster then, and use "
                "PruneWeights.from_zeros() without a schedule."
            )
        found, left = find_kernels(model, skip=self.skip, depthwise=True)
        kernels, skipped = sharing_kernels(found, left, self.max_values)
        if not kernels:
            reasons = [f"{kernel.name}: {skipped[kernel.name]}" for kernel in found]
            raise TfcompError(
                f"ShareWeights found no kernel with shared values in the model {model.name!r}"
                + (f" ({'; '.join(reasons)})" if reasons else "")
                + ". Cluster it first, with tfcomp.sharing.cluster_weights(model)."
            )
        self._warn_of_sums()
        return SharingSession(model, kernels, skipped, self.reduction)

    def _warn_of_sums(self) -> None:
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if self.reduction == "sum" and not isinstance(optimizer, keras.optimizers.SGD):
            name = type(optimizer).__name__
            warnings.warn(
                f"With {name} a centroid that moves by the sum of its weights' updates moves about "
                'as many times too far as it has weights. Use reduction="mean", or SGD.',
                stacklevel=2,
            )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._begins and self._session is not None:
            self._begins = False
            self._session.check_constraints_hold()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        # Averaged weights may have been swapped in, to be evaluated or saved.
        if self._session is not None and self._session.installed:
            self._session.tie()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.on_test_begin()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._session is None:
            warnings.warn("`fit` had no step left, so that no value was trained.", stacklevel=2)
            return
        self._end(self._session)
        # Once more when EarlyStopping, if listed later, has put its best weights back.
        session = self._session
        after_all_callbacks(getattr(self.model, "history", None), lambda: self._end(session))

    def _end(self, session: SharingSession) -> None:
        session.end()
        self.report = session.report()
