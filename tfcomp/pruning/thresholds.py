"""Sparsities of kernels from a threshold on their weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.pruning.sparsity import find_kernels


def threshold_ratios(
    model: keras.Model,
    quality: float,
    *,
    skip: Iterable[Any] = (),
    depthwise: bool = False,
) -> dict[str, float]:
    """The share of each kernel's weights that lie below a threshold of so many deviations.

    s_l = |{w in l : |w| < q·σ_l}| / n_l, where σ_l is the standard deviation of the n_l weights of
    kernel l. Pruned to these sparsities by magnitude, each kernel loses just the weights below
    its threshold; the last weight stays.

    Han, Pool, Tran and Dally 2015, "Learning both Weights and Connections for Efficient Neural
    Networks", arXiv:1506.02626, section 3, whose quality parameter q is.

    Args:
        model: A built model, trained; not changed.
        quality: q, at least 0.
        skip: Layers to leave out, as objects or names.
        depthwise: Whether depthwise kernels are taken as well. Default False.

    Returns:
        Fractions in [0, 1) by the paths of kernels, without the model's own name.
        `PruneWeights(ConstantSparsity(0.0), overrides=…)` takes them as they are.

    Raises:
        TfcompError: If `quality` is not a number of at least 0, or there is no kernel.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="d")])
        >>> model.layers[0].set_weights([np.array([[0.1], [-0.2], [2.0], [-3.0]]), np.zeros(1)])
        >>> threshold_ratios(model, 1.0)
        {'d/kernel': 0.5}
    """
    is_number = isinstance(quality, (int, float)) and not isinstance(quality, bool)
    if not (is_number and np.isfinite(quality) and quality >= 0):
        raise TfcompError(f"`quality` must be a number of at least 0. Received: {quality!r}.")
    kernels, skipped = find_kernels(model, skip=skip, depthwise=depthwise)
    if not kernels:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise TfcompError(f"There is no kernel to prune in {model.name!r}: {reasons}.")
    ratios = {}
    for kernel in kernels:
        weights = kernel.value().astype(np.float64)
        below = int(np.count_nonzero(np.abs(weights) < quality * weights.std()))
        ratios[kernel.name.removeprefix(f"{model.name}/")] = (
            min(below, kernel.size - 1) / kernel.size
        )
    return ratios
