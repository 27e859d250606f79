"""Multiply-adds against a count that needs no formula.

With a kernel of ones, an input of ones, no bias and no padding, every multiply-add contributes
exactly 1 to the sum of the outputs: that sum is the count.
"""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.conversion import audit
from tfcomp.profiling import profile

layers = keras.layers
PLAIN = {"use_bias": False, "kernel_initializer": "ones"}


def sum_of_ones(layer, shape):
    return float(keras.ops.sum(layer(np.ones((1, *shape), "float32"))))


def macs_of(layer, *shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    return profile(keras.Model(inputs, layer(*inputs)))


LINEAR = [
    (layers.Conv1D(4, 3, strides=2, **PLAIN), (11, 3)),
    (layers.Conv1D(4, 3, dilation_rate=2, **PLAIN), (11, 3)),
    (layers.Conv2D(4, (3, 2), **PLAIN), (8, 7, 3)),
    (layers.Conv2D(4, 3, strides=(2, 1), **PLAIN), (9, 8, 3)),
    (layers.Conv2D(6, 3, groups=3, **PLAIN), (8, 8, 9)),
    (layers.Conv2D(4, 3, dilation_rate=2, **PLAIN), (9, 9, 2)),
    (layers.Conv3D(2, 2, **PLAIN), (5, 4, 3, 2)),
    (layers.DepthwiseConv1D(3, use_bias=False, depthwise_initializer="ones"), (9, 4)),
    (
        layers.DepthwiseConv2D(
            3, strides=2, depth_multiplier=2, use_bias=False, depthwise_initializer="ones"
        ),
        (9, 8, 4),
    ),
    (layers.Conv1DTranspose(4, 3, strides=2, **PLAIN), (5, 3)),
    (layers.Conv2DTranspose(4, 3, strides=2, **PLAIN), (5, 4, 3)),
    (layers.Conv3DTranspose(2, 2, strides=2, **PLAIN), (3, 3, 2, 2)),
    (layers.Dense(5, **PLAIN), (7,)),
    (layers.Dense(5, **PLAIN), (4, 3, 7)),
    (layers.EinsumDense("abc,cde->abde", (None, 2, 6), kernel_initializer="ones"), (5, 4)),
    (layers.EinsumDense("...x,xy->...y", 6, kernel_initializer="ones"), (5, 3, 4)),
    (layers.TimeDistributed(layers.Dense(5, **PLAIN)), (4, 7)),
    (layers.TimeDistributed(layers.Conv2D(2, 3, **PLAIN)), (3, 6, 6, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), LINEAR, ids=lambda v: getattr(v, "name", ""))
def test_linear_layers(layer, shape):
    expected = sum_of_ones(layer, shape)
    assert expected > 0
    assert macs_of(layer, shape).macs == expected


@settings(deadline=None, max_examples=20)
@given(
    side=st.integers(5, 9),
    channels=st.integers(1, 3),
    filters=st.integers(1, 3),
    kernel=st.integers(1, 3),
    groups=st.integers(1, 3),
    stride=st.integers(1, 3),
)
def test_any_convolution(side, channels, filters, kernel, groups, stride):
    layer = layers.Conv2D(filters * groups, kernel, strides=stride, groups=groups, **PLAIN)
    shape = (side, side + 1, channels * groups)
    assert macs_of(layer, shape).macs == sum_of_ones(layer, shape)


def test_separable_is_depthwise_and_pointwise():
    separable = macs_of(layers.SeparableConv2D(6, 3, depth_multiplier=2), (8, 8, 4)).macs
    depthwise = macs_of(layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4)).macs
    pointwise = macs_of(layers.Conv2D(6, 1), (6, 6, 8)).macs
    assert separable == depthwise + pointwise


@pytest.mark.parametrize(
    ("layer", "gates"), [(layers.LSTM(4), 4), (layers.GRU(4), 3), (layers.SimpleRNN(4), 1)]
)
def test_recurrent_layers(layer, gates):
    # Per step and gate: an input matrix 3 × 4 and a recurrent one 4 × 4.
    assert macs_of(layer, (5, 3)).macs == 5 * gates * (3 * 4 + 4 * 4)
    both = layers.Bidirectional(type(layer)(4))
    assert macs_of(both, (5, 3)).macs == 2 * 5 * gates * (3 * 4 + 4 * 4)


def test_multi_head_attention():
    layer = layers.MultiHeadAttention(num_heads=2, key_dim=3, value_dim=5)
    query, value = keras.Input((6, 8)), keras.Input((7, 4))
    model = keras.Model([query, value], layer(query, value))
    projections = 6 * 8 * 2 * 3 + 7 * 4 * 2 * 3 + 7 * 4 * 2 * 5 + 6 * 2 * 5 * 8
    attention = 2 * 6 * 7 * 3 + 2 * 6 * 7 * 5
    assert profile(model).macs == projections + attention


def test_group_query_attention():
    layer = layers.GroupQueryAttention(head_dim=3, num_query_heads=4, num_key_value_heads=2)
    query, value = keras.Input((6, 8)), keras.Input((7, 8))
    model = keras.Model([query, value], layer(query, value))
    projections = 6 * 8 * 4 * 3 + 2 * 7 * 8 * 2 * 3 + 6 * 4 * 3 * 8
    assert profile(model).macs == projections + 2 * 4 * 6 * 7 * 3


@pytest.mark.parametrize("layer", [layers.Attention(), layers.AdditiveAttention()])
def test_attention_without_projections(layer):
    query, value, key = keras.Input((6, 5)), keras.Input((7, 3)), keras.Input((7, 5))
    model = keras.Model([query, value, key], layer([query, value, key]))
    assert profile(model).macs == 6 * 7 * 5 + 6 * 7 * 3


@pytest.mark.parametrize("axes", [2, (2, 2), (1, 1)])
def test_dot_products(axes):
    a, b = keras.Input((4, 4)), keras.Input((4, 4))
    model = keras.Model([a, b], layers.Dot(axes)([a, b]))
    assert profile(model).macs == 4 * 4 * 4
    wide = keras.Input((9, 4))
    model = keras.Model([a, wide], layers.Dot((2, 2))([a, wide]))
    assert profile(model).macs == 4 * 9 * 4


def test_stacked_cells():
    cells = [layers.LSTMCell(4), layers.GRUCell(6)]
    expected = 5 * (4 * (3 * 4 + 4 * 4) + 3 * (4 * 6 + 6 * 6))
    assert macs_of(layers.RNN(cells), (5, 3)).macs == expected


def test_matmul_and_elementwise_operations():
    a, b = keras.Input((5, 4)), keras.Input((4, 3))
    product = keras.ops.matmul(a, b)
    assert profile(keras.Model([a, b], product + 1.0)).macs == 5 * 4 * 3


def test_what_has_no_rule_is_named():
    @keras.saving.register_keras_serializable(package="test_macs")
    class Scale(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],))

        def call(self, x):
            return x * self.scale

    inputs = keras.Input((4,))
    x = layers.Dense(3, name="known")(inputs)
    x = Scale(name="mine")(x)
    model = keras.Model(inputs, layers.Lambda(lambda t: t + 1.0, name="opaque")(x))
    found = profile(model)
    assert found.macs is None
    assert found.counted_macs == 12
    assert set(found.not_counted) == {"mine", "opaque"}
    assert "Scale" in found.not_counted["mine"]
    assert "≥ 12" in str(found)


@pytest.mark.parametrize(
    ("network", "macs_m", "parameters_m"),
    [(keras.applications.MobileNet, 569, 4.2), (keras.applications.MobileNetV2, 300, 3.5)],
)
def test_published_figures(network, macs_m, parameters_m):
    """MobileNet (1704.04861, table 4) and MobileNetV2 (1801.04381, table 4) at 224 and α = 1."""
    found = profile(network(weights=None))
    assert found.macs / 1e6 == pytest.approx(macs_m, abs=1)
    assert found.parameters / 1e6 == pytest.approx(parameters_m, abs=0.06)


def test_layer_scale_costs_nothing():
    """ConvNeXt-T (2201.03545, table 1): 4.5 G multiply-adds, 28.6 M parameters (29 M there)."""
    found = profile(keras.applications.ConvNeXtTiny(weights=None))
    assert found.macs / 1e9 == pytest.approx(4.5, abs=0.05)
    assert found.parameters / 1e6 == pytest.approx(28.6, abs=0.05)


def test_width_multiplier_follows_the_papers_formula():
    """D_K²·αM·D_F² + αM·αN·D_F² for one depthwise-separable block, BatchNorm not counted."""
    kernel, side, narrow, wide = 3, 14, 24, 48
    inputs = keras.Input((side, side, narrow))
    x = layers.DepthwiseConv2D(kernel, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    model = keras.Model(inputs, layers.Conv2D(wide, 1, use_bias=False)(x))
    assert profile(model).macs == (kernel**2 * narrow + narrow * wide) * side**2


def test_file_and_model_agree(tiny_files):
    expected = profile(tiny_files.model).macs
    assert audit(tiny_files["int8"]).macs == audit(tiny_files["float32"]).macs == expected
    assert audit(tiny_files["heads"]).macs == profile(tiny_files.heads).macs
