"""Weights of a kernel made to share few values, by k-means."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, get_args

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError
from tfcomp.graph import rebuild, trace
from tfcomp.pruning import Kernel, find_kernels
from tfcomp.sharing.kmeans import SortedValues, Vector
from tfcomp.sharing.values import KernelValues, as_float64, count_values

Initialization = Literal["linear", "density", "forgy"]


@dataclasses.dataclass(frozen=True)
class KernelClusters(KernelValues):
    """What clustering made of one kernel.

    Attributes:
        values_before: How many different values the kernel had.
        zeros_before: How many zeros.
        mean_square_error: Of the weights as they are against those as they were.
    """

    values_before: int
    zeros_before: int
    mean_square_error: float


@dataclasses.dataclass(frozen=True)
class ClusteringReport:
    """What `cluster_weights` did, read back from the copy.

    Attributes:
        kernels: A row for each clustered kernel.
        skipped: For each weight that was left alone, the reason.
        clusters: Most values that were allowed in a kernel, zero among them.
        initialization: Where the centroids started.
    """

    kernels: tuple[KernelClusters, ...]
    skipped: dict[str, str]
    clusters: int
    initialization: str

    @property
    def mean_square_error(self) -> float:
        """Over the weights of all the kernels."""
        size = sum(row.size for row in self.kernels)
        return sum(row.mean_square_error * row.size for row in self.kernels) / max(size, 1)

    @property
    def index_bits(self) -> float:
        """Bits per weight that tell its value, mean over the weights of all the kernels."""
        size = sum(row.size for row in self.kernels)
        return sum(row.index_bits * row.size for row in self.kernels) / max(size, 1)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        rows = [
            {**dataclasses.asdict(row), "shape": list(row.shape), "index_bits": row.index_bits}
            for row in self.kernels
        ]
        totals = {"mean_square_error": self.mean_square_error, "index_bits": self.index_bits}
        return {**dataclasses.asdict(self), **totals, "kernels": rows}

    def __str__(self) -> str:
        size = sum(row.size for row in self.kernels)
        lines = [
            f"{size:,} weights in {len(self.kernels)} kernels share at most {self.clusters} values "
            f"each: {self.index_bits:.2f} bits per weight, mean square error "
            f"{self.mean_square_error:.3g}"
        ]
        lines += [
            f"  {row.values_before:>10,} -> {row.values:>4,} values, {row.zeros:>10,} zeros, "
            f"error {row.mean_square_error:.3g}  {row.name}"
            for row in self.kernels
        ]
        lines += [f"  left alone  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def cluster_array(
    weights: npt.NDArray[Any],
    clusters: int,
    *,
    initialization: Initialization = "linear",
    keep_zeros: bool = True,
    seed: int | tuple[int, ...] = 0,
) -> npt.NDArray[Any]:
    """The array with each weight replaced by the mean of its cluster.

    Args:
        weights: Finite, of any shape.
        clusters: Most different values of the result, at least 2; zero counts where it is kept.
        initialization: As in `cluster_weights`.
        keep_zeros: As in `cluster_weights`.
        seed: For "forgy".

    Returns:
        A new array of the same shape and dtype. One that has no more values than allowed has
        the same values.

    Raises:
        TfcompError: If an argument is not as described.

    Example:
        >>> cluster_array(np.array([0.0, 1.0, 1.5, 4.0, 6.0, 0.0]), 3).tolist()
        [0.0, 1.25, 1.25, 5.0, 5.0, 0.0]
    """
    _check(clusters, initialization)
    if (infinite := int(np.count_nonzero(~np.isfinite(as_float64(weights))))) > 0:
        raise TfcompError(
            f"Clustering expects finite weights. Received: {infinite} that are not finite. "
            "Look for where training diverged."
        )
    result = np.zeros(weights.shape, weights.dtype)
    free = weights != 0 if keep_zeros else np.ones(weights.shape, np.bool_)
    room = clusters - int(not free.all())
    if not free.any():
        return result
    line = SortedValues(weights[free])
    if line.distinct() <= room:
        result[free] = weights[free]
        return result
    means, lowest = line.kmeans(_start(line, room, initialization, seed))
    shared = means.astype(weights.dtype)
    if keep_zeros:
        for index in np.flatnonzero(shared == 0):
            shared[index] = _nearest_zero(line.values, lowest, int(index))
    at = np.searchsorted(lowest, as_float64(weights[free]), side="right") - 1
    result[free] = shared[at]
    return result


def _nearest_zero(values: Vector, lowest: Vector, index: int) -> Any:
    """The weight of a cluster that stands for it where their mean would be zero."""
    end = lowest[index + 1] if index + 1 < lowest.size else np.inf
    own = values[(values >= lowest[index]) & (values < end)]
    return own[np.argmin(np.abs(own))]


def _start(line: SortedValues, room: int, initialization: str, seed: Any) -> Vector:
    """Centroids to start from, [room]."""
    values = line.values
    if initialization == "linear":
        return np.linspace(values[0], values[-1], room)
    if initialization == "density":
        at = (np.arange(room) + 0.5) / room * values.size
        return values[np.minimum(at.astype(np.int64), values.size - 1)]
    return np.random.default_rng(seed).choice(values, room, replace=False)


def _check(clusters: int, initialization: str) -> None:
    if isinstance(clusters, bool) or not isinstance(clusters, int) or clusters < 2:
        raise TfcompError(
            f"`clusters` must be a whole number of at least 2, zero being one. Received: "
            f"{clusters!r}."
        )
    if initialization not in get_args(Initialization):
        raise TfcompError(
            '`initialization` must be "linear", "density" or "forgy". Received: '
            f"{initialization!r}."
        )


def cluster_weights(
    model: keras.Model,
    clusters: int = 16,
    *,
    initialization: Initialization = "linear",
    keep_zeros: bool = True,
    skip: Iterable[Any] = (),
    seed: int = 0,
) -> tuple[keras.Model, ClusteringReport]:
    """Makes the weights of each kernel of a copy share at most `clusters` values.

    k-means: min Σ_j Σ_{w∈C_j} (w − c_j)², each weight then being the mean c_j of its cluster.
    ⌈log₂ clusters⌉ bits tell which, in place of the 32 of a float. This is the first half of the
    paper's trained quantisation; the second is to train with `tfcomp.callbacks.ShareWeights`,
    which moves the c_j and keeps the clusters.

    Zeros are exact zeros still and belong to no centroid; no other weight becomes zero, so that a
    pruned model keeps its mask. Zero is one of the values: of 16 clusters a kernel with zeros has
    15 centroids, and one without has 16. Should the mean of a cluster be exactly zero, its
    weight of least magnitude takes the mean's place.

    Han, Mao and Dally 2015, "Deep Compression", arXiv:1510.00149.

    Args:
        model: A built functional or Sequential model, trained, pruned or not. It is not changed.
        clusters: Most values in a kernel, at least 2, zero among them. Default 16, 4 bits; the
            paper takes 256 for convolutions and 32 for dense layers.
        initialization: Where centroids start. "linear" (the default, and the paper's choice):
            evenly between the least and the greatest weight. "density": at the quantiles
            (j + ½)/k, evenly on the cumulative distribution. "forgy": at weights drawn at random.
        keep_zeros: Whether zeros stay zero. Default True. With False they are weights as others.
        skip: Layers to spare, as objects or names, nested models and blocks among them.
        seed: For "forgy". Default 0.

    Returns:
        The copy, uncompiled, and a report. Kernels are those that pruning takes, and depthwise
        ones.

    Raises:
        TfcompError: If an argument is not as described, there is no kernel, or weights are not
            finite.
        UnsupportedModelError: If the model is subclassed or not built.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10)])
        >>> clustered, report = cluster_weights(model, clusters=4)
        >>> len(np.unique(clustered.get_weights()[0])), report.index_bits
        (4, 2.0)
    """
    _check(clusters, initialization)
    copy = rebuild(trace(model))
    kernels, skipped = find_kernels(copy, skip=skip, depthwise=True)
    if not kernels:
        raise TfcompError(
            f"There is no kernel to cluster in the model {model.name!r}: "
            + "; ".join(f"{name} is {reason}" for name, reason in skipped.items())
            + "."
        )
    rows = []
    for index, kernel in enumerate(kernels):
        before = kernel.value()
        try:
            after = cluster_array(
                before,
                clusters,
                initialization=initialization,
                keep_zeros=keep_zeros,
                seed=(seed, index),
            )
        except TfcompError as error:
            raise TfcompError(f"{kernel.name}: {error}") from error
        kernel.variable.assign(after)
        rows.append(_row(kernel, before))
    return copy, ClusteringReport(tuple(rows), skipped, clusters, initialization)


def _row(kernel: Kernel, before: npt.NDArray[Any]) -> KernelClusters:
    after = kernel.value()
    errors = as_float64(after) - as_float64(before)
    return KernelClusters(
        name=kernel.name,
        shape=tuple(kernel.variable.shape),
        size=kernel.size,
        values=count_values(after),
        zeros=after.size - int(np.count_nonzero(after)),
        values_before=count_values(before),
        zeros_before=before.size - int(np.count_nonzero(before)),
        mean_square_error=float((errors**2).mean()),
    )
