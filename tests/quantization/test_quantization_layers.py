"""The two layers that round, and the observer, against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.quantization import FakeQuantize, FakeQuantizeWeights, MovingAverageRange


def round_trip(layer):
    return type(layer).from_config(layer.get_config())


@settings(deadline=None, max_examples=25)
@given(
    batches=st.lists(st.lists(st.floats(-9, 9, width=16), min_size=3, max_size=3), min_size=1),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    freeze_step=st.sampled_from([None, 1, 3]),
)
def test_observer_against_numpy(batches, momentum, freeze_step):
    observer = MovingAverageRange(momentum, freeze_step)
    observer.build((3,))
    low = high = 0.0
    for n, batch in enumerate(batches):
        keep = 1.0 if freeze_step is not None and n >= freeze_step else min(momentum, n / (n + 1))
        low = keep * low + (1 - keep) * min(0.0, *batch)
        high = keep * high + (1 - keep) * max(0.0, *batch)
        got = observer.update(np.array(batch, "float32"))
        assert [float(v) for v in got] == pytest.approx([low, high], abs=1e-5)
    assert int(observer.count) == len(batches)


def test_first_batch_sets_the_range_and_inference_does_not_move_it():
    layer = FakeQuantize()
    x = np.linspace(-1, 3, 50, dtype="float32")
    assert layer.range is None
    assert np.array_equal(layer(x), x)  # nothing seen, nothing rounded
    rounded = np.asarray(layer(x, training=True))
    assert layer.range == (-1.0, 3.0)
    assert not np.array_equal(rounded, x)
    assert np.abs(rounded - x).max() <= 4 / 255 * 0.501
    assert np.array_equal(layer(x, training=False), rounded)
    layer(10 * x, training=False)
    assert layer.range == (-1.0, 3.0)


def test_delay_only_observes_and_freeze_holds():
    layer = FakeQuantize(delay=2, freeze_step=3, momentum=0.0)
    x = np.array([0.1, 0.7004, 1.0], "float32")
    for factor in (1, 2):
        assert np.array_equal(layer(factor * x, training=True), np.float32(factor) * x)
    assert layer.range is None
    assert not np.array_equal(layer(4 * x, training=True), 4 * x)
    assert layer.range == (0.0, 4.0)
    layer(9 * x, training=True)
    assert layer.range == (0.0, 4.0)


def test_a_dead_tensor_gets_a_range_that_runtimes_take():
    layer = FakeQuantize(non_negative=True)
    assert np.array_equal(layer(np.zeros((2, 3), "f"), training=True), np.zeros((2, 3)))
    assert layer.range == (0.0, 1.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_passes_in_its_own_dtype(dtype):
    x = keras.ops.cast([0.25, 1.5, -3.0], dtype)
    layer = FakeQuantize(dtype=f"mixed_{dtype}")
    assert keras.backend.standardize_dtype(layer(x, training=True).dtype) == dtype
    assert layer.range == (-3.0, 1.5)
    assert layer.observer.high.dtype == "float32"


@pytest.mark.parametrize(
    "layer",
    [
        FakeQuantize(num_bits=4, momentum=0.5, delay=3, freeze_step=9, non_negative=True),
        FakeQuantize(fixed_range=(0.0, 1.0)),
        MovingAverageRange(0.3, 7, True),
        FakeQuantizeWeights(keras.layers.Dense(3, name="d"), {"kernel": (-1,)}, num_bits=4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_configurations_go_round(layer):
    assert round_trip(layer).get_config() == layer.get_config()


def hand_written(x, kernel, axes):
    scale = np.abs(kernel).max(axis=axes, keepdims=True) / 127
    return np.round(kernel / scale) * scale, x


def test_wrapped_layer_computes_and_learns_as_written_by_hand():
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    layer = FakeQuantizeWeights(keras.layers.Conv2D(5, 3), {"kernel": (-1,)})
    layer.build(x.shape)
    rounded, _ = hand_written(x, np.asarray(layer.kernel), (0, 1, 2))
    variable = tf.Variable(rounded)
    with tf.GradientTape() as tape:
        by_hand = tf.reduce_sum(tf.nn.conv2d(x, variable, 1, "VALID") ** 2)
    expected = tape.gradient(by_hand, variable)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(x) ** 2)
    got = tape.gradient(total, layer.kernel.value)
    assert float(total) == pytest.approx(float(by_hand), rel=1e-5)
    assert np.allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_depthwise_kernel_has_a_scale_for_each_of_its_channels():
    layer = FakeQuantizeWeights(
        keras.layers.DepthwiseConv2D(1, depth_multiplier=2), {"kernel": (-2, -1)}
    )
    layer.build((None, 4, 4, 3))
    # One weight per channel: with a scale each, none of them is changed by rounding.
    kernel = np.arange(1, 7, dtype="float32").reshape(1, 1, 3, 2) ** 3
    layer.kernel.assign(kernel)
    assert np.allclose(layer.rounded("kernel"), kernel, rtol=1e-6)


def test_regularisers_of_the_wrapped_layer_count():
    inner = keras.layers.Dense(2, kernel_regularizer="l2", activity_regularizer="l1")
    layer = FakeQuantizeWeights(inner, {"kernel": ()})
    x = np.ones((3, 4), "float32")
    y = layer(x)
    expected = [0.01 * np.abs(y).sum(), 0.01 * (np.asarray(layer.kernel) ** 2).sum()]
    assert sorted(map(float, layer.losses)) == pytest.approx(sorted(expected), rel=0.7)
    assert len(layer.losses) == 2


def test_weights_are_rounded_in_float32_under_mixed_precision():
    inner = keras.layers.Dense(64, use_bias=False, dtype="mixed_bfloat16")
    inputs = keras.Input((32,))
    wrapped = FakeQuantizeWeights(inner, {"kernel": (-1,)})
    model = keras.Model(inputs, wrapped(inputs))
    # One-hot inputs give back the kernel that was computed with.
    got = np.asarray(keras.ops.cast(model(np.eye(32, dtype="float32")), "float32"))
    expected, _ = hand_written(None, np.asarray(inner.kernel), (0,))
    assert np.array_equal(
        got, np.asarray(keras.ops.cast(keras.ops.cast(expected, "bfloat16"), "float32"))
    )
