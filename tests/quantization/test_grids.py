"""Rounding to integer grids against NumPy, written from the papers' formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfcomp.errors import TfcompError
from tfcomp.quantization.grids import (
    fake_quantize,
    fake_quantize_symmetric,
    nudged_range,
    symmetric_scale,
)

RANGES = st.tuples(st.floats(-50, 0, width=32), st.floats(0, 50, width=32)).filter(
    lambda r: r[1] - r[0] > 1e-2
)
VALUES = hnp.arrays(np.float32, (37,), elements=st.floats(-100, 100, width=32))


def asymmetric_grid(low, high, bits):
    """All points of the grid, zero among them, in float64."""
    levels = 2**bits - 1
    step = (high - low) / levels
    zero = min(max(round(-low / step), 0), levels)
    return (np.arange(levels + 1) - zero) * step


@settings(deadline=None, max_examples=60)
@given(values=VALUES, bounds=RANGES, bits=st.sampled_from([2, 4, 8]))
def test_activations_go_to_the_nearest_grid_point(values, bounds, bits):
    grid = asymmetric_grid(*map(float, bounds), bits)
    got = np.asarray(fake_quantize(values, *bounds, num_bits=bits), "float64")
    step = grid[1] - grid[0]
    # On the grid, and no other point of it nearer than by rounding errors of float32.
    off_grid = np.abs(got[:, None] - grid[None]).min(1)
    nearest = np.abs(values.astype("float64")[:, None] - grid[None]).min(1)
    # A zero point that falls halfway between two integers may be rounded to either.
    shift = step if abs((-bounds[0] / step) % 1 - 0.5) < 1e-3 else 0.0
    assert off_grid.max() <= 1e-4 * step * len(grid) + 1e-6
    assert np.all(np.abs(got - values) <= nearest + 1e-3 * step + 1e-5 + shift)
    assert np.asarray(fake_quantize(np.zeros(3, "f"), *bounds, num_bits=bits)).tolist() == [0] * 3


@settings(deadline=None, max_examples=60)
@given(bounds=RANGES, bits=st.sampled_from([2, 4, 8, 16]))
def test_nudged_range_holds_zero_and_keeps_its_width(bounds, bits):
    low, high, scale, zero_point = nudged_range(*map(float, bounds), bits)
    assert abs(low + zero_point * scale) <= 1e-9 * scale * 2**bits
    assert high - low == pytest.approx(float(bounds[1]) - float(bounds[0]))
    assert 0 <= zero_point < 2**bits
    assert abs(low - bounds[0]) <= scale / 2 * (1 + 1e-6)


def test_nudged_range_worked_example():
    # s = 4/255, z = round(63.75) = 64: low = −64·4/255.
    low, high, scale, zero_point = nudged_range(-1.0, 3.0)
    assert (zero_point, scale) == (64, 4 / 255)
    assert (low, high) == pytest.approx((-64 * 4 / 255, 191 * 4 / 255))


@pytest.mark.parametrize("bounds", [(0.5, 1.0), (-2.0, -1.0), (0.0, 0.0)])
def test_a_range_without_zero_is_refused(bounds):
    with pytest.raises(TfcompError, match="expected low <= 0 <= high"):
        nudged_range(*bounds)


def test_gradient_of_activations_is_one_inside_and_zero_outside():
    x = tf.constant([-3.0, -0.9, -0.2, 0.0, 0.7, 1.9, 2.5])
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(fake_quantize(x, -1.0, 2.0) * [1.0, 2, 3, 4, 5, 6, 7])
    assert tape.gradient(total, x).numpy().tolist() == [0, 2, 3, 4, 5, 6, 0]


WEIGHTS = hnp.arrays(np.float32, (3, 2, 4, 5), elements=st.floats(-4, 4, width=16))
AXES = st.sampled_from([(), (-1,), (-2,), (-2, -1), (0, 2)])


@settings(deadline=None, max_examples=60)
@given(weights=WEIGHTS, axes=AXES, bits=st.sampled_from([2, 4, 8]))
def test_weights_against_numpy(weights, axes, bits):
    reduced = tuple(i for i in range(4) if i not in {a % 4 for a in axes})
    levels = 2 ** (bits - 1) - 1
    exact = weights.astype("float64")
    scale = np.abs(exact).max(axis=reduced, keepdims=True) / levels
    got = np.asarray(fake_quantize_symmetric(weights, axes, bits), "float64")
    assert np.allclose(symmetric_scale(weights, axes, bits), np.maximum(scale, 1e-30), rtol=1e-6)
    units = np.divide(got, scale, out=np.zeros_like(got), where=scale > 0)
    assert np.abs(units - np.round(units)).max() < 1e-3
    assert np.abs(units).max() <= levels + 1e-3
    assert np.all(np.abs(got - exact) <= scale * 0.501)
    assert np.all(got[exact == 0] == 0)


@settings(deadline=None, max_examples=30)
@given(weights=WEIGHTS, axes=AXES)
def test_weights_on_the_grid_stay_where_they_are(weights, axes):
    once = np.asarray(fake_quantize_symmetric(weights, axes))
    twice = np.asarray(fake_quantize_symmetric(once, axes))
    assert np.allclose(once, twice, rtol=0, atol=1e-6 * np.abs(once).max(initial=1e-9))


def test_gradient_of_weights_is_one_everywhere_and_of_zero_channels_finite():
    weights = tf.constant([[5.0, 0.0], [-1.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(weights)
        total = tf.reduce_sum(fake_quantize_symmetric(weights, (-1,)) * [[1.0, 2.0], [3.0, 4.0]])
    assert tape.gradient(total, weights).numpy().tolist() == [[1, 2], [3, 4]]
    assert keras.ops.convert_to_numpy(fake_quantize_symmetric(weights, (-1,)))[:, 1].tolist() == [
        0,
        0,
    ]
