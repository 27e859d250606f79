"""Integer grids: which real numbers a quantised tensor can hold, and rounding to them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcomp.errors import TfcompError

# Below this a channel counts as all zeros; its scale only has to keep the division finite.
_TINY = 1e-30


def nudged_range(low: float, high: float, num_bits: int = 8) -> tuple[float, float, float, int]:
    """Moves a range so that zero is exactly one of its 2^b grid points.

    s = (high − low) / (2^b − 1);  z = clip(round(−low / s), 0, 2^b − 1);
    the nudged range is [−z·s, (2^b − 1 − z)·s].

    Args:
        low: Lower end, at most 0.
        high: Upper end, at least 0.
        num_bits: b, from 2 to 16.

    Returns:
        Nudged low, nudged high, scale s, and zero point z of the unsigned grid 0 … 2^b − 1.

    Raises:
        TfcompError: If the range does not hold zero or is empty.

    Example:
        >>> low, high, scale, zero_point = nudged_range(-1.0, 3.0)
        >>> zero_point, round(low + zero_point * scale, 6)
        (64, 0.0)

    Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2017, arXiv:1712.05877, section 3.
    """
    if not low <= 0.0 <= high or low == high:
        raise TfcompError(
            f"A range to quantise must hold zero and not be empty: expected low <= 0 <= high and "
            f"low < high, received [{low}, {high}]. Widen it to take zero in."
        )
    levels = 2**num_bits - 1
    scale = (high - low) / levels
    zero_point = int(np.clip(np.floor(-low / scale + 0.5), 0, levels))
    return -zero_point * scale, (levels - zero_point) * scale, scale, zero_point


def fake_quantize(inputs: Any, low: Any, high: Any, num_bits: int = 8) -> Any:
    """Rounds to the asymmetric grid of [low, high] with 2^b points, zero among them.

    x̂ = s·(clip(round(x/s) + z, 0, 2^b − 1) − z), with s and z of `nudged_range`.

    Gradient: that of x̂ with respect to x is taken as 1 inside the nudged range and 0 outside
    (straight-through estimator, Bengio et al. 2013, arXiv:1308.3432).

    Args:
        inputs: Float tensor of any shape. Computed in float32 and returned in its own dtype.
        low: Scalar, at most 0.
        high: Scalar, at least 0 and greater than `low`.
        num_bits: b, from 2 to 16.

    Returns:
        A tensor as `inputs`.

    Example:
        >>> import keras
        >>> x = keras.ops.convert_to_tensor([-1.0, 0.1, 0.5, 2.0])
        >>> [round(float(v), 4) for v in fake_quantize(x, 0.0, 1.0, num_bits=2)]
        [0.0, 0.0, 0.6667, 1.0]
    """
    outputs = tf.quantization.fake_quant_with_min_max_vars(
        tf.cast(inputs, tf.float32), low, high, num_bits=num_bits
    )
    return tf.cast(outputs, inputs.dtype)


def symmetric_scale(weights: Any, axes: tuple[int, ...] = (), num_bits: int = 8) -> Any:
    """s = max|w| / (2^(b−1) − 1), over all dimensions but `axes`.

    Args:
        weights: Float tensor.
        axes: Dimensions that keep a scale for each index, `(-1,)` for one per output channel of
            a convolution; none for one scale for the whole tensor.
        num_bits: b, from 2 to 16.

    Returns:
        Scales, of `weights`' rank with length 1 where reduced, so that they broadcast. A slice
        of zeros has a scale that is tiny, not zero.

    Example:
        >>> import keras
        >>> w = keras.ops.convert_to_tensor([[127.0, -2.54], [0.0, 1.0]])
        >>> [[round(float(s), 4) for s in row] for row in symmetric_scale(w, (-1,))]
        [[1.0, 0.02]]
    """
    rank = len(weights.shape)
    kept = {axis % rank for axis in axes}
    reduced = tuple(axis for axis in range(rank) if axis not in kept)
    largest = keras.ops.max(keras.ops.abs(weights), axis=reduced, keepdims=True)
    return keras.ops.maximum(largest / (2 ** (num_bits - 1) - 1), _TINY)


def fake_quantize_symmetric(weights: Any, axes: tuple[int, ...] = (), num_bits: int = 8) -> Any:
    """ŵ = s·round(w / s), s = max|w| / (2^(b−1) − 1): the grid −q … q, q = 2^(b−1) − 1.

    Zero stays exactly zero, so that a pruned weight stays pruned. Nothing is ever clipped.

    Gradient: ∂ŵ/∂w is taken as 1 everywhere (straight-through estimator, arXiv:1308.3432).

    Args:
        weights: Float tensor.
        axes: Dimensions with a scale for each index, as in `symmetric_scale`.
        num_bits: b, from 2 to 16.

    Returns:
        A tensor as `weights`.

    Example:
        >>> import keras
        >>> w = keras.ops.convert_to_tensor([[1.0], [0.3], [0.0]])
        >>> [round(float(v), 4) for v in fake_quantize_symmetric(w, num_bits=2)[:, 0]]
        [1.0, 0.0, 0.0]
    """

    def on_grid(values: Any) -> Any:
        scale = symmetric_scale(values, axes, num_bits)
        return keras.ops.round(values / scale) * scale

    return tf.grad_pass_through(on_grid)(weights)
