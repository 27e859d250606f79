"""Masks against a slow sort, the constraint, and which variables are kernels."""

from __future__ import annotations

import tracemalloc
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfcomp.errors import TfcompError
from tfcomp.pruning import Masked, find_kernels, keep_mask, keep_masks, pruned_count
from tfcomp.pruning import masks as pruning_masks

# Few distinct values make many ties; wide ones, few.
values = st.sampled_from([0.0, 0.5, 1.0, 2.0]) | st.floats(
    0, 2.0**100, width=32, allow_subnormal=False
)
arrays = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=3, max_side=5, min_side=0), elements=values
)


def sorted_masks(scores: list[np.ndarray], count: int) -> list[np.ndarray]:
    """The same by a stable sort of (score, array, index)."""
    rows = [
        (bool(np.isnan(value)), 0.0 if np.isnan(value) else float(value), which, index)
        for which, array in enumerate(scores)
        for index, value in enumerate(array.reshape(-1))
    ]
    gone = {(which, index) for *_, which, index in sorted(rows)[:count]}
    return [
        np.array([(w, i) not in gone for i in range(a.size)], bool).reshape(a.shape)
        for w, a in enumerate(scores)
    ]


@given(st.lists(arrays, min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=200)
def test_masks_equal_those_of_a_sort(scores: list[np.ndarray], data: st.DataObject) -> None:
    total = sum(array.size for array in scores)
    count = data.draw(st.integers(0, total))
    before = [array.copy() for array in scores]
    masks = keep_masks(scores, count)
    for mask, expected in zip(masks, sorted_masks(scores, count), strict=True):
        np.testing.assert_array_equal(mask, expected)
        assert mask.dtype == np.bool_
    assert sum(int((~mask).sum()) for mask in masks) == count
    for array, old in zip(scores, before, strict=True):
        np.testing.assert_array_equal(array, old)


@given(arrays, st.data())
@settings(deadline=None, max_examples=50)
def test_masks_nest_as_the_count_grows(scores: np.ndarray, data: st.DataObject) -> None:
    few = data.draw(st.integers(0, scores.size))
    many = data.draw(st.integers(few, scores.size))
    assert not (keep_mask(scores, many) & ~keep_mask(scores, few)).any()


@given(st.lists(arrays, min_size=1, max_size=4), st.integers(1, 9), st.data())
@settings(deadline=None, max_examples=200)
def test_what_is_not_there_goes_first(
    scores: list[np.ndarray], part: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, sum(array.size for array in scores)))
    there = [data.draw(st.none() | hnp.arrays(np.bool_, array.shape)) for array in scores]
    known = [
        array if mask is None else np.where(mask, array, np.float32(-np.inf))
        for array, mask in zip(scores, there, strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning_masks, "PART", part)
        masks = keep_masks(scores, count, there)
    for mask, expected in zip(masks, sorted_masks(known, count), strict=True):
        np.testing.assert_array_equal(mask, expected)


LARGE = {
    "normal": lambda rng: rng.normal(size=(700, 500)),
    "few values": lambda rng: rng.integers(0, 3, size=(700, 500)),
    "one value": lambda rng: np.zeros((700, 500)),
    "NaN among them": lambda rng: np.where(rng.random((700, 500)) < 0.2, np.nan, rng.random()),
    "removed among them": lambda rng: np.where(
        rng.random((700, 500)) < 0.5, -np.inf, rng.random((700, 500))
    ),
    "one apart": lambda rng: np.arange(350_000.0)[::-1].reshape(700, 500) ** 3,
}


@pytest.mark.parametrize("share", [1e-6, 0.003, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("misled", [False, True])
@pytest.mark.parametrize("gone", [0, 0.4])
def test_many_scores(name: str, share: float, misled: bool, gone: float, monkeypatch: Any) -> None:
    if misled:
        monkeypatch.setattr(pruning_masks, "_bracket", lambda *_: (1e30, 1e31))
    rng = np.random.default_rng(3)
    scores = [LARGE[name](rng).astype(np.float32), rng.normal(size=1000).astype(np.float32)]
    count = max(round(share * 351_000), 1)
    there = [rng.random(array.shape) > gone for array in scores] if gone else None
    masks = keep_masks(scores, count, there)
    if there is not None:
        scores = [np.where(*pair, -np.inf) for pair in zip(there, scores, strict=True)]
    order = np.argsort(np.concatenate([a.reshape(-1) for a in scores]), kind="stable")
    expected = np.ones(351_000, np.bool_)
    expected[order[:count]] = False
    np.testing.assert_array_equal(np.concatenate([m.reshape(-1) for m in masks]), expected)


@pytest.mark.parametrize("share", [0, 1e-6, 0.003, 0.5, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("misled", [False, True])
def test_many_scores_of_several_sizes(
    name: str, share: float, misled: bool, monkeypatch: Any
) -> None:
    if misled:
        monkeypatch.setattr(pruning_masks, "_bracket", lambda *_: (1e30, 1e31))
    rng = np.random.default_rng(3)
    scores = [LARGE[name](rng).astype(np.float32), rng.normal(size=1000).astype(np.float32)]
    sizes = [rng.integers(1, 30, size=(700, 500)), 7]
    each = np.concatenate([sizes[0].reshape(-1), np.full(1000, 7)])
    wanted = round(share * each.sum())
    masks = pruning_masks.keep_masks_of_size(scores, sizes, wanted)
    order = np.argsort(np.concatenate([a.reshape(-1) for a in scores]), kind="stable")
    missed = np.abs(np.concatenate([[0], np.cumsum(each[order])]) - wanted)
    count = min(missed.size - 1 - int(np.argmin(missed[::-1])), each.size - 1)
    expected = np.ones(each.size, np.bool_)
    expected[order[:count]] = False
    np.testing.assert_array_equal(np.concatenate([m.reshape(-1) for m in masks]), expected)


@pytest.mark.parametrize("count", range(6))
def test_nan_ranks_above_everything(count: int) -> None:
    scores = [np.array([np.nan, 1.0, np.inf], np.float32), np.array([np.nan, 0.0], np.float32)]
    masks = keep_masks(scores, count)
    for mask, expected in zip(masks, sorted_masks(scores, count), strict=True):
        np.testing.assert_array_equal(mask, expected)
    assert np.isnan(scores[0][0])


def test_types_that_numpy_cannot_partition() -> None:
    bfloat16 = keras.ops.convert_to_numpy(keras.ops.cast([3.0, 1.0, 2.0], "bfloat16"))
    assert keep_mask(bfloat16, 2).tolist() == [True, False, False]
    assert keep_mask(np.array([3, 1, 2], np.float16), 1).tolist() == [True, False, True]
    near = np.array([1.0 + 1e-12, 1.0])
    assert keep_mask(near, 1).tolist() == [True, False]


@pytest.mark.parametrize("count", [-1, 4])
def test_a_count_that_is_not_there_is_refused(count: int) -> None:
    with pytest.raises(TfcompError, match=f"between 0 and the number of scores, 3.*count={count}"):
        keep_mask(np.ones(3), count)


def test_global_masks_take_two_copies_at_most() -> None:
    scores = [np.random.default_rng(i).random(250_000, np.float32) for i in range(8)]
    total_bytes = sum(array.nbytes for array in scores)
    tracemalloc.start()
    keep_masks(scores, 1_900_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * total_bytes


@given(st.integers(1, 10**6), st.integers(0, 9999))
def test_pruned_count_is_exact_to_one_weight(size: int, parts: int) -> None:
    count = pruned_count(size, parts / 10_000)
    exact_twice = 2 * size * parts  # in units of 1 / 20,000 weight
    assert count <= size - 1
    assert abs(20_000 * count - exact_twice) <= 10_000 or count == size - 1


def test_pruned_count_rounds_to_nearest() -> None:
    assert [pruned_count(10, s) for s in (0.0, 0.04, 0.05, 0.14, 1 - 0.9)] == [0, 0, 1, 1, 1]
    assert [pruned_count(size, 0.999) for size in (0, 1, 2, 1000)] == [0, 0, 1, 999]


def variable(mask: Any) -> Any:
    return keras.Variable(mask, dtype="bool", trainable=False)


class TestMasked:
    def test_zeros_are_plus_zero_and_swallow_nan(self) -> None:
        w = np.array([-1.0, np.nan, -2.0], np.float32)
        result = keras.ops.convert_to_numpy(Masked(variable([False, False, True]))(w))
        assert result.tobytes() == np.array([0.0, 0.0, -2.0], np.float32).tobytes()

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_type_is_kept(self, dtype: str) -> None:
        w = keras.Variable([1.0, 2.0], dtype=dtype)
        assert keras.backend.standardize_dtype(Masked(variable([True, False]))(w).dtype) == dtype

    @pytest.mark.parametrize("compiled", [False, True])
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_what_stays_is_the_same_bit_by_bit(self, dtype: str, compiled: bool) -> None:
        numbers = [-0.0, 1e-7, -3.5, np.inf, np.nan, 1e-45 if dtype == "float32" else 6e-8]
        w = tf.constant(numbers * 2, dtype)
        masked = Masked(variable([True] * 6 + [False] * 6))
        call = tf.function(masked, jit_compile=False) if compiled else masked
        found = keras.ops.convert_to_numpy(call(w))
        before = keras.ops.convert_to_numpy(w)
        assert found.tobytes() == before[:6].tobytes() + bytes(6 * before.itemsize)

    def test_integers_are_masked_too(self) -> None:
        result = Masked(variable([True, False]))(np.array([3, 4], np.int32))
        assert keras.ops.convert_to_numpy(result).tolist() == [3, 0]

    def test_a_norm_holds_for_what_stays(self) -> None:
        w = np.array([[3.0], [4.0], [5.0]], np.float32)
        unit = keras.constraints.UnitNorm(axis=0)
        result = Masked(variable([[True], [False], [True]]), unit)(w)
        np.testing.assert_allclose(np.linalg.norm(result, axis=0), 1, atol=1e-6)
        assert float(result[1, 0]) == 0

    def test_a_constraint_that_makes_weights_makes_none_where_masked(self) -> None:
        result = Masked(variable([True, False]), lambda w: w + 1.0)(np.zeros(2, np.float32))
        assert keras.ops.convert_to_numpy(result).tolist() == [1.0, 0.0]


class Block(keras.layers.Layer):
    """Sublayers in a list, a dict and an attribute, and a variable of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = [keras.layers.Dense(3, name="listed")]
        self.table = {"key": keras.layers.Dense(3, name="keyed")}
        self.conv = keras.layers.DepthwiseConv2D(2, name="depth")

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(3, 3), name="scale")
        super().build(shape)

    def call(self, x: Any) -> Any:
        return self.conv(self.table["key"](self.parts[0](x))) * self.scale[0, 0]


class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block = Block(name="block")
        self.head = keras.layers.Dense(2, name="head")

    def call(self, x: Any) -> Any:
        return self.head(self.block(x))


def subclassed() -> keras.Model:
    model = Subclassed(name="sub")
    model(np.zeros((1, 4, 4, 3), np.float32))
    return model


def names(kernels: Any) -> list[str]:
    return [kernel.name for kernel in kernels]


class TestFindKernels:
    def test_every_kind_of_layer(self) -> None:
        tokens = keras.Input((6,), dtype="int32")
        x = keras.layers.Embedding(5, 8)(tokens)
        x = keras.layers.LSTM(4, return_sequences=True, name="lstm")(x)
        x = keras.layers.MultiHeadAttention(2, 2, name="attention")(x, x)
        x = keras.layers.SeparableConv1D(4, 2, name="separable")(x)
        x = keras.layers.DepthwiseConv1D(2, name="depthwise")(x)
        x = keras.layers.Conv1DTranspose(4, 2, name="transpose")(x)
        x = keras.layers.LayerNormalization()(keras.layers.BatchNormalization()(x))
        model = keras.Model(tokens, keras.layers.Dense(2, name="dense")(x))
        kernels, skipped = find_kernels(model)
        found = {"/".join(name.split("/")[-2:]) for name in names(kernels)}
        assert found == {
            "lstm_cell/kernel",
            "lstm_cell/recurrent_kernel",
            "query/kernel",
            "key/kernel",
            "value/kernel",
            "attention_output/kernel",
            "separable/pointwise_kernel",
            "transpose/kernel",
            "dense/kernel",
        }
        assert len(kernels) + len(skipped) == len(model.weights)
        depthwise = {name for name, reason in skipped.items() if "depthwise" in reason}
        assert depthwise == {"depthwise/kernel", "separable/depthwise_kernel"}
        more, _ = find_kernels(model, depthwise=True)
        assert set(names(more)) - set(names(kernels)) == depthwise

    def test_subclassed_models_and_layers_in_containers(self) -> None:
        kernels, skipped = find_kernels(subclassed())
        assert {name.split("/")[-2] for name in names(kernels)} == {"listed", "keyed", "head"}
        assert skipped["sub/block/scale"] == "not a kernel"
        assert "depthwise" in skipped["sub/block/depth/kernel"]

    def test_skip_by_name_object_block_and_path(self) -> None:
        model = subclassed()
        for skip in (["block"], [model.block], "block"):
            kernels, skipped = find_kernels(model, skip=skip)
            assert names(kernels) == ["sub/head/kernel"]
            assert skipped["sub/block/listed/kernel"] == "spared by `skip`"
        kernels, _ = find_kernels(model, skip=["sub/head/kernel", "listed"])
        assert names(kernels) == ["sub/block/keyed/kernel"]

    def test_skip_that_is_not_there(self) -> None:
        with pytest.raises(TfcompError, match=r"'haed', which is not one\. Did you mean 'head'\?"):
            find_kernels(subclassed(), skip=["haed"])
        with pytest.raises(TfcompError, match="'elsewhere', which is not one"):
            find_kernels(subclassed(), skip=[keras.layers.Dense(1, name="elsewhere")])

    def test_shared_layers_count_once(self) -> None:
        shared = keras.layers.Dense(4)
        x = keras.Input((4,))
        inner = keras.Sequential([keras.Input((4,)), shared])
        kernels, _ = find_kernels(keras.Model(x, inner(shared(shared(x)))))
        assert len(kernels) == 1
        assert kernels[0].variable is shared.kernel

    def test_frozen_layers_are_left_and_said(self) -> None:
        model = subclassed()
        model.block.trainable = False
        kernels, skipped = find_kernels(model)
        assert names(kernels) == ["sub/head/kernel"]
        assert skipped["sub/block/listed/kernel"].startswith("frozen")

    def test_equal_paths_are_told_apart(self) -> None:
        def half(name: str) -> keras.Model:
            return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="d")], name=name)

        x = keras.Input((2,))
        one, two = half("same"), half("same")
        outer = keras.Model(x, keras.layers.Add()([one(x), keras.Model(x, two(x), name="o")(x)]))
        kernels, skipped = find_kernels(outer)
        assert names(kernels) == ["same/d/kernel", "same/d/kernel#2"]
        assert len(kernels) + len(skipped) == len(outer.weights)
