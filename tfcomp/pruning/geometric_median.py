"""Which filters the others could replace."""

from __future__ import annotations

import keras
import numpy as np

from tfcomp.pruning.candidates import Candidates, Scores
from tfcomp.pruning.criteria import Criterion

# Rows compared at a time: bounds the memory of a layer with thousands of filters.
_ROWS = 256


@keras.saving.register_keras_serializable(package="tfcomp")
class FPGM(Criterion):
    """score(c) = Σ_d ‖w_c − w_d‖₂ over the filters d of the same layer, bias not included.

    A filter near the geometric median of its layer is one that the others stand in for, however
    large its norm is.

    He, Liu, Wang, Hu and Yang 2018, "Filter Pruning via Geometric Median for Deep Convolutional
    Neural Networks Acceleration", arXiv:1811.00250.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="d")], name="m")
        >>> _ = model.layers[0].kernel.assign([[0.0, 3.0, 0.0], [0.0, 4.0, 1.0]])
        >>> FPGM().scores(Candidates.of_kernels(model))["m/d/kernel"].round(3).tolist()
        [6.0, 9.243, 5.243]
    """

    of_channels = True

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """The sum of the distances to all filters of the layer."""
        return {
            name: _distances(kernel.filters().astype(np.float64))
            for name, kernel in candidates.items()
        }


def _distances(filters: Scores) -> Scores:
    """Σ_d ‖w_c − w_d‖ for each row c of a matrix."""
    squares = np.square(filters).sum(axis=1)
    sums = np.empty(len(filters))
    for start in range(0, len(filters), _ROWS):
        rows = filters[start : start + _ROWS]
        gaps = squares[start : start + _ROWS, None] + squares - 2 * rows @ filters.T
        # The expanded square falls a little below zero where two filters are the same.
        sums[start : start + _ROWS] = np.sqrt(np.maximum(gaps, 0)).sum(axis=1)
    return sums
