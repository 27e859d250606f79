"""Criteria for channels against what their papers' formulas say, in loops."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from tfcomp.errors import TfcompError
from tfcomp.pruning import BatchNormScale, Candidates, shrink
from tfcomp.pruning.geometric_median import _distances


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 99))
def test_distances_to_all_filters(filters, weights, seed):
    rows = np.random.default_rng(seed).normal(size=(filters, weights))
    chosen = list(range(0, filters, max(1, filters // 7)))
    expected = [sum(np.linalg.norm(rows[c] - other) for other in rows) for c in chosen]
    np.testing.assert_allclose(_distances(rows)[chosen], expected, rtol=1e-6, atol=1e-5)


def test_fpgm_removes_the_filter_that_others_stand_in_for():
    kernel = np.zeros((1, 1, 2, 4), "float32")
    # Four filters; the last is the largest but for one, and lies between the others.
    kernel[0, 0] = np.array([[9.0, 0.0], [0.0, 9.0], [9.0, 9.0], [6.0, 6.0]]).T
    conv = layers.Conv2D(4, 1, use_bias=False, name="c")
    x = keras.Input((3, 3, 2))
    model = keras.Model(x, layers.Dense(1)(layers.Flatten()(conv(x))))
    conv.kernel.assign(kernel)
    small, _ = shrink(model, 0.25, "fpgm")
    np.testing.assert_array_equal(small.get_layer("c").kernel, kernel[..., :3])


def slim_net():
    x = keras.Input((6, 6, 3))
    a = layers.BatchNormalization(name="na")(layers.Conv2D(4, 3, padding="same", name="a")(x))
    b = layers.BatchNormalization(name="nb")(layers.Conv2D(4, 3, padding="same", name="b")(a))
    c = layers.BatchNormalization(name="nc")(layers.Conv2D(6, 3, name="c")(a + b))
    return keras.Model(x, layers.Dense(2, name="y")(layers.GlobalAveragePooling2D()(c)))


def test_scales_of_all_layers_are_compared_and_those_of_coupled_ones_added():
    model = slim_net()
    gammas = {"na": [1, -2, 3, 4], "nb": [0.1, 5, -0.2, 0.3], "nc": [-9, 0.05, 8, 7, 0.9, 6]}
    for name, values in gammas.items():
        model.get_layer(name).gamma.assign(values)
    scores = BatchNormScale().scores(Candidates.of_channels(model))
    for name, values in gammas.items():
        np.testing.assert_allclose(scores[name.removeprefix("n")], np.abs(values), rtol=1e-6)
    # Units: 1.1, 7, 3.2, 4.3 of a + b, and those of c; the three lowest of ten go.
    small, report = shrink(model, 0.3, "batch_norm_scale", scope="global")
    assert report.removed == 3
    np.testing.assert_allclose(small.get_layer("na").gamma, [-2, 3, 4])
    np.testing.assert_allclose(small.get_layer("nc").gamma, [-9, 8, 7, 6])


def test_layers_without_a_scale_are_refused_unless_spared():
    x = keras.Input((4,))
    a = layers.BatchNormalization(scale=False)(layers.Dense(4, name="a")(x))
    b = layers.BatchNormalization()(layers.Dense(4, name="b")(a))
    model = keras.Model(x, layers.Dense(2, name="y")(b))
    with pytest.raises(TfcompError, match="none behind 'a'") as error:
        shrink(model, 0.5, "batch_norm_scale")
    assert "\n" not in str(error.value)
    _, report = shrink(model, 0.5, "batch_norm_scale", spare=["a"])
    assert {layer.name: layer.after for layer in report.layers} == {"a": 4, "b": 2, "y": 2}
