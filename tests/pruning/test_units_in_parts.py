"""Units look at kernels in parts: the same as of the whole at once, and without copies of it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import keras
import numpy as np
import pytest

from tfcomp.pruning import NM, Blocks, Filters, Kernels, Layers, Unit, Weights
from tfcomp.pruning import kernel_parts as parts_of_kernels
from tfcomp.pruning import masks as pruning_masks
from tfcomp.pruning import units as pruning_units
from tfcomp.pruning.masks import filled
from tfcomp.pruning.sparsity import Kernel
from tfcomp.pruning.units import remove_lowest, removed_of, total_of

LAYOUTS = [
    ((23, 17), 0, 0),
    ((3, 2, 6, 5), 2, 2),
    ((3, 2, 5, 6), 3, 2),  # transposed convolution
    ((6, 2, 3), 0, 0),  # attention's query
    ((2, 6, 5), 1, 0),  # attention's output
    ((3, 3, 4, 2), None, 2),  # depthwise
]
SUMMED: list[Unit] = [Blocks(2, 3), Blocks(4, 1), Blocks(1, 20), Kernels(), Filters(), Layers()]


def kernel_of(shape: tuple[int, ...], input_axis: int | None = 0, window_axes: int = 0) -> Kernel:
    variable = keras.Variable(np.zeros(shape, np.float32))
    return Kernel("m/k/kernel", variable, input_axis, window_axes)


@pytest.fixture(params=[1, 7, 64])
def _small_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pruning_masks, parts_of_kernels, pruning_units):
        monkeypatch.setattr(module, "PART", request.param)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("unit", [*SUMMED, Weights(), NM(2, 4)], ids=str)
@pytest.mark.usefixtures("_small_parts")
def test_as_of_the_whole_at_once(unit: Unit, layout: Any) -> None:
    """What `Unit` makes of `split` and `join` alone, all in one, is what each does in parts."""
    if isinstance(unit, NM) and layout[1] is None:
        return
    rng = np.random.default_rng(5)
    kernel, shape = kernel_of(*layout), layout[0]
    scores = rng.integers(0, 50, shape).astype(np.float32)
    keep = rng.random(shape) > 0.7
    assert unit.count(kernel) == Unit.count(unit, kernel)
    stay = rng.random(unit.count(kernel)) > 0.5
    if isinstance(unit, NM):
        return
    np.testing.assert_array_equal(unit.removed(kernel, keep), Unit.removed(unit, kernel, keep))
    np.testing.assert_array_equal(unit.sizes(kernel), Unit.sizes(unit, kernel))
    expected = Unit.remove(unit, kernel, scores, keep, stay)
    np.testing.assert_array_equal(unit.remove(kernel, scores, keep, stay), expected)
    expected = Unit.scores(unit, kernel, scores, keep) if unit in SUMMED else None
    if expected is not None:
        np.testing.assert_array_equal(unit.scores(kernel, scores, keep), expected)
        ranks, there = unit.ranked(kernel, scores, keep)
        ranks = ranks if there is None else filled(there, ranks, -np.inf)
        np.testing.assert_array_equal(ranks, expected)


@pytest.mark.parametrize("unit", [*SUMMED, Weights(), NM(2, 4)], ids=str)
@pytest.mark.usefixtures("_small_parts")
def test_masks_do_not_depend_on_the_parts(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    kernels = [kernel_of(*layout) for layout in LAYOUTS[:5]]
    shapes = [layout[0] for layout in LAYOUTS[:5]]
    scores = [np.abs(rng.normal(size=shape)).astype(np.float32).round(1) for shape in shapes]
    keep = [rng.random(shape) > share for shape, share in zip(shapes, (0, 0.6) * 3, strict=False)]
    wanted = max(removed_of(unit, kernels, keep), unit.target(total_of(unit, kernels), 0.4))
    small = remove_lowest(unit, kernels, keep, scores, wanted)
    monkeypatch.undo()
    for mask, whole in zip(small, remove_lowest(unit, kernels, keep, scores, wanted), strict=True):
        np.testing.assert_array_equal(mask, whole)


@pytest.mark.parametrize("shape", [(700, 300), (40_000, 3), (3, 70_000), (9, 5, 64, 96)])
@pytest.mark.parametrize("unit", [Filters(), Blocks(3, 1), Blocks(64, 1)], ids=str)
def test_equal_parts_tie(unit: Unit, shape: tuple[int, ...]) -> None:
    """Sums in another order for some of them would tell equal filters apart."""
    column = np.abs(np.random.default_rng(7).normal(size=(*shape[:-1], 1))).astype(np.float32)
    kernel = kernel_of(shape, len(shape) - 2, len(shape) - 2)
    scores = np.ascontiguousarray(np.broadcast_to(column, shape))
    found = unit.scores(kernel, scores, np.ones(shape, np.bool_)).reshape(-1, shape[-1])
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1], found.shape))


def test_removed_weights_count_zero_whatever_their_score() -> None:
    kernel = kernel_of((2, 3))
    scores = np.array([[1, np.inf, 3], [np.nan, 2, 5]], np.float32)
    keep = np.array([[True, False, True], [False, True, False]])
    assert Filters().scores(kernel, scores, keep).tolist() == [0.5, 1.0, 1.5]
    assert Blocks(2, 1).scores(kernel, scores, keep).tolist() == [0.5, 1.0, 1.5]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble", "int16"])
def test_filled_is_where(dtype: str) -> None:
    values = np.array([1, -2, 3, 0], dtype)
    there = np.array([True, False, False, True])
    for fill in (0.0, -1.0):
        found = filled(there, values, fill)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, np.where(there, values, values.dtype.type(fill)))
    np.testing.assert_array_equal(values, np.array([1, -2, 3, 0], dtype))


def extra_bytes(unit: Unit, width: int, share: float) -> float:
    """The most that NumPy takes for a global update of two kernels, for each weight."""
    rng = np.random.default_rng(8)
    kernels = [kernel_of((width, width)) for _ in range(2)]
    scores = [rng.random((width, width), np.float32) for _ in kernels]
    keep = [rng.random((width, width)) > share for _ in kernels]
    wanted = unit.target(total_of(unit, kernels), 0.5)
    tracemalloc.start()
    remove_lowest(unit, kernels, keep, scores, wanted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / (2 * width**2)


@pytest.mark.parametrize("share", [0, 0.3])
@pytest.mark.parametrize(
    ("unit", "most"),
    [(Weights(), 2.5), (NM(2, 4), 6), (Blocks(4, 4), 3), (Kernels(), 2.5), (Filters(), 1.5),
     (Layers(), 1.5)],
    ids=str,
)  # fmt: skip
def test_memory_is_for_the_masks(unit: Unit, most: float, share: float) -> None:
    small, large = extra_bytes(unit, 700, share), extra_bytes(unit, 1400, share)
    assert large < most
    assert large < 1.1 * small
