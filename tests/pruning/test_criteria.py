"""Criteria against loops over single weights, and their round trip."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from tfcomp.errors import TfcompError
from tfcomp.pruning import Candidates, Criterion, L1Norm, L2Norm, Random, shrink


def model_of_every_kind():
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    y = layers.DepthwiseConv2D(3, name="depthwise")(y)
    y = layers.Conv2DTranspose(5, 2, name="transposed")(y)
    y = layers.SeparableConv2D(6, 3, name="separable")(y)
    y = layers.Dense(3, name="dense")(layers.GlobalMaxPooling2D()(y))
    return keras.Model(x, y)


def norm_by_hand(layer, order):
    """The norm of each filter, weight by weight."""
    kernel = np.asarray(getattr(layer, "pointwise_kernel", getattr(layer, "kernel", None)))
    axis = kernel.ndim - (2 if isinstance(layer, layers.Conv2DTranspose) else 1)
    totals = [0.0] * kernel.shape[axis]
    for index in np.ndindex(*kernel.shape):
        totals[index[axis]] += abs(float(kernel[index])) ** order
    return [total ** (1 / order) for total in totals]


@pytest.mark.parametrize("criterion, order", [(L1Norm(), 1), (L2Norm(), 2)])
def test_norms_of_each_kind_of_layer(criterion, order):
    model = model_of_every_kind()
    scores = criterion.scores(Candidates.of_kernels(model))
    kernels = ["conv/kernel", "transposed/kernel", "separable/pointwise_kernel", "dense/kernel"]
    assert list(scores) == kernels
    channels = criterion.scores(Candidates.of_channels(model))
    assert list(channels) == ["conv", "transposed", "separable"]
    for path, values in scores.items():
        name = path.split("/")[0]
        if name != "dense":  # an output of the model
            np.testing.assert_array_equal(np.sort(channels[name]), np.sort(values))
        np.testing.assert_allclose(values, norm_by_hand(model.get_layer(name), order), rtol=1e-6)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99), st.sampled_from([1e-6, 1.0, 1e6]))
@settings(deadline=None, max_examples=15)
def test_norms_of_any_values(units, inputs, seed, scale):
    layer = layers.Dense(units, name="dense")
    model = keras.Sequential([keras.Input((inputs,)), layer])
    layer.kernel.assign(np.random.default_rng(seed).normal(size=(inputs, units)) * scale)
    for criterion, order in ((L1Norm(), 1), (L2Norm(), 2)):
        (values,) = criterion.scores(Candidates.of_kernels(model)).values()
        np.testing.assert_allclose(values, norm_by_hand(layer, order), rtol=1e-5)


def test_random_scores_follow_the_seed():
    found = Candidates.of_channels(model_of_every_kind())
    first, again, other = (Random(seed).scores(found) for seed in (1, 1, 2))
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        assert not np.array_equal(values, other[name])
        assert ((values >= 0) & (values < 1)).all()


@pytest.mark.parametrize("criterion", [L1Norm(), L2Norm(), Random(), Random(7)])
def test_round_trip(criterion):
    config = json.loads(json.dumps(criterion.get_config()))
    assert type(criterion).from_config(config).get_config() == criterion.get_config()
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(criterion))
    assert repr(restored) == repr(criterion)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", None, True])
def test_bad_seed_is_refused(seed):
    with pytest.raises(TfcompError, match="`seed` must be an integer"):
        Random(seed)


def test_a_criterion_of_ones_own_decides():
    class Largest(Criterion):
        def scores(self, candidates):
            return {name: np.abs(k.filters()).max(axis=1) for name, k in candidates.items()}

    layer = layers.Dense(4, name="hidden")
    model = keras.Sequential([keras.Input((2,)), layer, layers.Dense(2, name="out")])
    layer.kernel.assign([[3.0, 0.1, 2.0, 2.0], [0.0, 0.2, -5.0, 2.0]])
    small, report = shrink(model, 0.5, Largest())
    np.testing.assert_array_equal(
        np.asarray(small.get_layer("hidden").kernel), [[3.0, 2.0], [0.0, -5.0]]
    )
    assert "Largest()" in str(report)
