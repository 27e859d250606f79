"""Thresholds of q standard deviations: what PruneWeights removes is what lies below them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from tfcomp.callbacks import PruneWeights
from tfcomp.errors import TfcompError
from tfcomp.pruning import ConstantSparsity, threshold_ratios

X, Y = np.ones((8, 5), np.float32), np.ones((8, 2), np.float32)


@settings(max_examples=8, deadline=None)
@given(st.floats(0, 3), st.integers(0, 10**6))
def test_what_lies_below_goes(quality: float, seed: int) -> None:
    model = keras.Sequential([keras.Input((5,)), layers.Dense(7, name="a"), layers.Dense(2)])
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0.2, 1, w.shape) for w in model.get_weights()])
    expected = []
    for index in (0, 2):
        kernel = model.get_weights()[index].astype(np.float64)
        below = np.abs(kernel) < quality * np.sqrt(np.mean((kernel - kernel.mean()) ** 2))
        expected.append(below)
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    prune = PruneWeights(ConstantSparsity(0.0), overrides=threshold_ratios(model, quality))
    model.fit(X, Y, verbose=0, callbacks=[prune])
    for index, below in zip((0, 2), expected, strict=True):
        if not below.all():  # the last weight stays
            np.testing.assert_array_equal(model.get_weights()[index] == 0, below)


def test_the_last_weight_stays() -> None:
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2, name="a")])
    assert threshold_ratios(model, 100.0) == {"a/kernel": 0.9}
    assert threshold_ratios(model, 0) == {"a/kernel": 0.0}


@pytest.mark.parametrize("quality", [-1, float("nan"), "1", True])
def test_refusals(quality: Any) -> None:
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    with pytest.raises(TfcompError, match="`quality` must be a number"):
        threshold_ratios(model, quality)
    with pytest.raises(TfcompError, match="no kernel to prune"):
        threshold_ratios(keras.Sequential([keras.Input((5,)), layers.ReLU()]), 1.0)
