"""Units of weight pruning, against loops over single weights."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.errors import TfcompError
from tfcomp.pruning import (
    NM,
    Blocks,
    Filters,
    Kernels,
    Layers,
    Unit,
    Weights,
    find_kernels,
    keep_masks,
)
from tfcomp.pruning.masks import keep_masks_of_size
from tfcomp.pruning.sparsity import Kernel


def kernel_of(shape: tuple[int, ...], input_axis: int | None, window_axes: int = 0) -> Kernel:
    return Kernel(
        "m/k/kernel", keras.Variable(np.zeros(shape, np.float32)), input_axis, window_axes
    )


def members(unit: Unit, kernel: Kernel) -> list[list[tuple[int, ...]]]:
    """The indices of the weights of each part, in the order of parts, by loops."""
    shape = tuple(kernel.variable.shape)
    places = list(itertools.product(*map(range, shape)))
    axis = len(shape) - 2 if kernel.input_axis is None else kernel.input_axis
    last = axis == len(shape) - 1
    before = shape[:-2] if last else shape[:axis]
    found: dict[tuple[Any, ...], list[tuple[int, ...]]] = {}
    for place in places:
        stack = place[: len(before)]
        outputs = place[-2:-1] if last else place[axis + 1 :]
        flat = int(np.ravel_multi_index(outputs, shape[-2:-1] if last else shape[axis + 1 :]))
        entry = place[axis]
        if isinstance(unit, NM):
            key: tuple[Any, ...] = (*stack, entry // unit.m, flat)
        elif isinstance(unit, Blocks):
            key = (*stack, entry // unit.inputs, flat // unit.outputs)
        elif isinstance(unit, Kernels):
            key = place[kernel.window_axes :]
        elif isinstance(unit, Filters):
            key = place[kernel.window_axes :] if kernel.input_axis is None else (flat,)
        elif isinstance(unit, Layers):
            key = ()
        else:
            key = place
        found.setdefault(key, []).append(place)
    return [found[key] for key in sorted(found)]


LAYOUTS = [
    ((5, 7), 0, 0),
    ((3, 2, 6, 5), 2, 2),
    ((3, 2, 5, 6), 3, 2),  # transposed convolution
    ((6, 2, 3), 0, 0),  # attention's query
    ((2, 6, 5), 1, 0),  # attention's output
    ((3, 3, 4, 2), None, 2),  # depthwise
]
UNITS: list[Unit] = [
    Weights(), NM(2, 4), NM(1, 3), Blocks(2, 3), Blocks(4, 1), Kernels(), Filters(), Layers()
]  # fmt: skip
CASES = [
    (unit, layout)
    for unit in UNITS
    for layout in LAYOUTS
    if not (isinstance(unit, NM) and layout[1] is None)
]


@pytest.mark.parametrize(("unit", "layout"), CASES, ids=str)
def test_split_and_join_are_as_loops_have_it(unit: Unit, layout: Any) -> None:
    kernel = kernel_of(*layout)
    values = np.arange(1, kernel.size + 1).reshape(layout[0])
    rows = unit.split(kernel, values, 0)
    expected = [[int(values[place]) for place in part] for part in members(unit, kernel)]
    assert [sorted(row[row > 0].tolist()) for row in rows] == [sorted(part) for part in expected]
    np.testing.assert_array_equal(unit.join(kernel, rows), values)
    assert unit.count(kernel) == len(expected)
    sizes = [1] * len(expected) if isinstance(unit, NM) else [len(part) for part in expected]
    assert np.broadcast_to(unit.sizes(kernel), len(expected)).tolist() == sizes


@pytest.mark.parametrize(("unit", "layout"), CASES, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_the_right_parts_go(unit: Unit, layout: Any, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    kernel = kernel_of(*layout)
    shape = layout[0]
    scores = rng.permutation(kernel.size).reshape(shape).astype(np.float32) + 1
    keep = rng.random(shape) > 0.3
    parts = members(unit, kernel)
    count = max(round(share * len(parts)), unit.n_removed(kernel, keep))
    # By loops: the score of each part, those that are removed already first of all.
    worth = []
    for part in parts:
        left = [place for place in part if keep[place]]
        if isinstance(unit, NM):
            spare = len(part) - unit.n
            padded = [0.0] * (unit.m - len(part))
            lowest = sorted([*padded, *(float(scores[p]) if keep[p] else 0.0 for p in part)])
            worth.append(-np.inf if len(left) <= unit.n else sum(lowest[: unit.m - unit.n]))
            assert spare >= 0 or len(left) <= unit.n
        else:
            total = sum(float(scores[place]) for place in left)
            worth.append(total / len(part) if left else -np.inf)
    np.testing.assert_allclose(unit.scores(kernel, scores, keep), worth, rtol=1e-6)
    expected = keep.copy()
    for index in np.argsort(worth, kind="stable")[:count]:
        part = parts[index]
        if isinstance(unit, NM):
            ranked = sorted(part, key=lambda p: (keep[p], float(scores[p]) if keep[p] else 0.0))
            for place in ranked[: max(len(part) - unit.n, 0)]:
                expected[place] = False
        else:
            for place in part:
                expected[place] = False
    stay = keep_masks([unit.scores(kernel, scores, keep)], count)[0]
    new = unit.remove(kernel, scores, keep, stay)
    np.testing.assert_array_equal(new, expected)
    assert unit.n_removed(kernel, new) >= count
    assert not (new & ~keep).any()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1), min_size=1),
    st.floats(0, 1),
)
def test_sizes_come_as_near_as_they_can(pairs: list[list[tuple[int, int]]], share: float) -> None:
    """Tried one count after the other."""
    scores = [np.array([score for score, _ in part], np.float32) for part in pairs]
    sizes = [np.array([size for _, size in part]) for part in pairs]
    flat = np.concatenate(sizes)[np.argsort(np.concatenate(scores), kind="stable")]
    wanted = int(share * flat.sum())
    misses = [abs(int(flat[:count].sum()) - wanted) for count in range(len(flat))]
    best = max(count for count, miss in enumerate(misses) if miss == min(misses))
    gone = ~np.concatenate(keep_masks_of_size(scores, list(sizes), wanted))
    assert (
        sorted(np.argsort(np.concatenate(scores), kind="stable")[:best])
        == np.flatnonzero(gone).tolist()
    )
    assert keep_masks_of_size([np.ones(1)], [16], 8)[0].all()  # one entry stays
    alike = keep_masks_of_size(scores, [3] * len(scores), 3 * best)
    np.testing.assert_array_equal(np.concatenate(alike), ~gone)


def test_of_equal_weights_the_first_go() -> None:
    kernel = kernel_of((4, 2), 0)
    ones = np.ones((4, 2), np.float32)
    keep = np.ones((4, 2), np.bool_)
    new = NM(2, 4).remove(kernel, ones, keep, np.array([False, False]))
    assert new.tolist() == [[False, False], [False, False], [True, True], [True, True]]


def test_axes_of_the_kernels_that_keras_makes() -> None:
    x = keras.Input((8, 8, 4))
    y = keras.layers.Conv2D(6, 3, name="conv")(x)
    y = keras.layers.Conv2DTranspose(5, 3, name="transposed")(y)
    y = keras.layers.DepthwiseConv2D(3, name="depthwise")(y)
    y = keras.layers.SeparableConv2D(7, 3, name="separable")(y)
    y = keras.layers.Reshape((-1, 7))(y)
    y = keras.layers.MultiHeadAttention(2, 3, name="attention")(y, y)
    y = keras.layers.LSTM(3, name="lstm")(y)
    y = keras.layers.Dense(2, name="dense")(y)
    kernels, _ = find_kernels(keras.Model(x, y, name="m"), depthwise=True)
    axes = {
        kernel.name.removeprefix("m/"): (kernel.input_axis, kernel.window_axes)
        for kernel in kernels
    }
    for kernel in kernels:  # what the axes say against the sizes there are
        if kernel.name.endswith("transposed/kernel"):
            assert kernel.variable.shape[kernel.input_axis or 0] == 6
    assert axes == {
        "conv/kernel": (2, 2),
        "transposed/kernel": (3, 2),
        "depthwise/kernel": (None, 2),
        "separable/depthwise_kernel": (None, 2),
        "separable/pointwise_kernel": (2, 2),
        "attention/query/kernel": (0, 0),
        "attention/key/kernel": (0, 0),
        "attention/value/kernel": (0, 0),
        "attention/attention_output/kernel": (1, 0),
        "lstm/lstm_cell/kernel": (0, 0),
        "lstm/lstm_cell/recurrent_kernel": (0, 0),
        "dense/kernel": (0, 0),
    }


@pytest.mark.parametrize("make", [lambda: NM(4, 4), lambda: NM(0, 2), lambda: Blocks(0, 4)])
def test_refusals(make: Any) -> None:
    with pytest.raises(TfcompError, match="Received"):
        make()


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_configurations(unit: Unit) -> None:
    data = keras.saving.serialize_keras_object(unit)
    assert keras.saving.deserialize_keras_object(data) == unit
