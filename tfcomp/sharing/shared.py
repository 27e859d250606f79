"""The constraint that lets weights of one value move together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcomp.sharing.values import as_float64

Reduction = Literal["sum", "mean"]


class Shared(keras.constraints.Constraint):
    """Constraint that moves each centroid by the updates of its weights: w_i ← c_{j(i)}.

    c_j ← c_j + Σ_{i∈j} (w_i − c_j) for "sum", and the mean in place of the sum for "mean". What
    was zero stays zero. Optimizers apply a variable's constraint inside the compiled step, after
    their update, so that w_i − c_j is the update of one weight; without one nothing changes. The
    layer's own constraint comes after that: c_j is then the mean of what it makes of the w_i.
    Never part of a saved model.

    Args:
        values: The kernel with its shared values; which are equal says which weights belong
            together.
        reduction: "sum" or "mean".
        constraint: The constraint that the kernel has already, or None.
        averaged: Says within a step whether this step has put averages in the weights' place,
            whose mean is then taken; None for never.
        is_live: Says when a step is traced whether this constraint is in use still.

    Example:
        >>> shared = Shared(np.float32([0, 2, 2, 5]), "sum")
        >>> shared(np.float32([9, 2.5, 2.25, 4])).numpy().tolist()
        [0.0, 2.75, 2.75, 4.0]
    """

    def __init__(
        self,
        values: npt.NDArray[Any],
        reduction: Reduction,
        constraint: Callable[[Any], Any] | None = None,
        averaged: Callable[[], Any] | None = None,
        is_live: Callable[[], bool] = lambda: True,
    ) -> None:
        self.reduction, self.constraint = reduction, constraint
        self.averaged, self.is_live = averaged, is_live
        self.dtype = "float64" if values.dtype == np.float64 else "float32"
        flat = as_float64(values).reshape(-1)
        book, first, codes = np.unique(flat, return_index=True, return_inverse=True)
        self.size = int(book.size)
        self.codes = _fixed(codes.reshape(-1), "int32")
        self.first = _fixed(first, "int32")
        self.moves = _fixed(book != 0, "bool")
        # float64, in which also more than 2²⁴ are exact.
        self.counts = _fixed(np.bincount(codes.reshape(-1)), "float64")
        self.codebook = _fixed(book, self.dtype)

    def __call__(self, w: Any) -> Any:
        if not self.is_live():
            return w if self.constraint is None else self.constraint(w)
        centroids = self.moved(w)
        if self.constraint is not None:
            centroids = self.means(self.constraint(self.spread(centroids, w)))
        self.codebook.assign(centroids)
        return self.spread(centroids, w)

    def moved(self, w: Any) -> Any:
        """The centroids after an update that made `w` of the weights, [values]."""
        if self.reduction == "mean":
            return self.means(w)
        before = keras.ops.cast(self.codebook, w.dtype)  # as the weights held it
        change = keras.ops.cast(self._change(w, before), self.dtype)
        centroids = self.codebook + change
        if self.averaged is not None:
            centroids = keras.ops.where(self.averaged(), self.means(w), centroids)
        return keras.ops.where(self.moves, centroids, 0)

    def means(self, w: Any) -> Any:
        """The mean of the weights of each centroid; where they are equal, exactly that."""
        first = keras.ops.take(keras.ops.reshape(w, (-1,)), self.first)
        change = keras.ops.cast(self._change(w, first) / self.counts, self.dtype)
        return keras.ops.where(self.moves, keras.ops.cast(first, self.dtype) + change, 0)

    def spread(self, centroids: Any, w: Any) -> Any:
        """Each weight's centroid, in the shape and dtype of `w`."""
        at = keras.ops.take(centroids, self.codes)
        return keras.ops.cast(keras.ops.reshape(at, tuple(w.shape)), w.dtype)

    def differing(self, w: Any) -> int:
        """How many weights are not their centroids."""
        return int(keras.ops.count_nonzero(keras.ops.not_equal(w, self.spread(self.codebook, w))))

    def _change(self, w: Any, before: Any) -> Any:
        """Σ_{i∈j} (w_i − before_j), [values]; exactly zero where the weights are `before`."""
        flat = keras.ops.cast(keras.ops.reshape(w, (-1,)), "float64")
        before = keras.ops.cast(before, "float64")
        if self.dtype == "float64":
            return self._sums(flat - keras.ops.take(before, self.codes))
        # float64 sums equal float32 numbers exactly, and needs no difference of each.
        return self._sums(flat) - self.counts * before

    def _sums(self, flat: Any) -> Any:
        # Keras has this operation too, but not with a size that XLA can tell. Adding up by
        # segments takes some twenty times as long on a CPU.
        codes = keras.ops.convert_to_tensor(self.codes)
        return tf.raw_ops.DenseBincount(
            input=codes, size=self.size, weights=flat, binary_output=False
        )


def _fixed(value: Any, dtype: str) -> Any:
    """A variable that is the same on all replicas."""
    return keras.Variable(value, dtype=dtype, trainable=False, aggregation="only_first_replica")
