"""Which weights stay: masks of an exact count, and the constraint that keeps to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError

Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[Any]

# How many scores tell where about the threshold is.
_SAMPLE = 1 << 16


def pruned_count(size: int, sparsity: float) -> int:
    """How many of `size` weights are zero at `sparsity`: ⌊sparsity·size + ½⌋, but never all.

    Rounding to the nearest whole weight is proof against fractions such as 1 − 0.9, which is
    a little less than 0.1. The last weight stays, since a layer of zeros cannot learn.

    Args:
        size: Number of weights.
        sparsity: Fraction in [0, 1).

    Returns:
        The number of weights to remove.

    Example:
        >>> pruned_count(100, 0.29), pruned_count(3, 0.5), pruned_count(4, 0.99)
        (29, 2, 3)
    """
    return min(math.floor(sparsity * size + 0.5), max(size - 1, 0))


def keep_masks(scores: Sequence[Scores], count: int) -> list[Mask]:
    """Masks that leave out the `count` lowest scores of all the arrays taken together.

    Exact at any count: among equal scores the first are left out, in the order of the arrays
    and then of their flat (C order) index. NaN ranks above everything. Takes O(n) time, and
    memory for some masks: but a few of many scores are copied.

    Args:
        scores: Arrays of any shape, higher for what matters more.
        count: How many entries to leave out, from 0 to all.

    Returns:
        For each array a boolean one of its shape: True stays, False goes.

    Raises:
        TfcompError: If `count` is not between 0 and the number of scores.

    Example:
        >>> first, second = keep_masks([np.array([3.0, 1.0]), np.array([1.0, 2.0])], 1)
        >>> first.tolist(), second.tolist()
        ([True, False], [True, True])
    """
    total = sum(array.size for array in scores)
    if not 0 <= count <= total:
        raise TfcompError(
            f"`count` must be between 0 and the number of scores, {total}. Received: count={count}."
        )
    if count == 0:
        return [np.ones(array.shape, np.bool_) for array in scores]
    dtype = np.result_type(np.float32, *(array.dtype for array in scores))
    # At least float32, since NumPy cannot partition bfloat16.
    ranked = [array.astype(dtype, copy=False) for array in scores]
    threshold = _threshold(ranked, count, total)
    if np.isnan(threshold):  # even of these some are to go: the first
        ranked = [np.where(np.isnan(array), np.inf, array) for array in ranked]
        threshold = _threshold(ranked, count, total)
    # Not `array > threshold`, which does not hold for NaN.
    masks: list[Mask] = [np.logical_not(array <= threshold) for array in ranked]
    spare = total - sum(int(np.count_nonzero(mask)) for mask in masks) - count
    for array, mask in zip(reversed(ranked), reversed(masks), strict=True):
        if spare:  # the last of those equal to the threshold stay
            equal = np.flatnonzero(array == threshold)
            mask.flat[equal[max(equal.size - spare, 0) :]] = True
            spare -= min(spare, equal.size)
    return masks


def keep_masks_of_size(
    scores: Sequence[Scores], sizes: Sequence[int | Scores], wanted: int
) -> list[Mask]:
    """Masks that leave out the lowest scores, as many as come nearest to a size in all.

    k minimises |Σ_{i≤k} z_(i) − wanted|, z_(i) being the size of the i-th lowest score; of two
    that are as near the larger is taken, and one entry stays.

    Args:
        scores: As in `keep_masks`.
        sizes: For each array the sizes of its entries, or one size of them all.
        wanted: Sum of the sizes to be left out.

    Returns:
        As `keep_masks`.

    Example:
        >>> (mask,) = keep_masks_of_size([np.array([1.0, 2.0, 3.0])], [np.array([4, 1, 1])], 3)
        >>> mask.tolist()
        [False, True, True]
    """
    total = sum(array.size for array in scores)
    alike = {size if isinstance(size, int) else None for size in sizes}
    if len(alike) == 1 and None not in alike:
        size = alike.pop()
        assert size is not None
        count = math.floor(wanted / size + 0.5)
        # All may go, should that be wanted: groups of N:M keep some weights.
        return keep_masks(scores, min(count, total if wanted >= total * size else total - 1))
    each = [np.broadcast_to(z, array.shape) for z, array in zip(sizes, scores, strict=True)]
    flat = np.concatenate([array.reshape(-1) for array in scores])
    order = np.argsort(flat, kind="stable")
    gone = np.cumsum(np.concatenate([z.reshape(-1) for z in each])[order], dtype=np.int64)
    after = int(np.searchsorted(gone, wanted))  # the first sum that is not less
    over = gone[after] - wanted if after < total else math.inf
    under = wanted - (gone[after - 1] if after else 0)
    count = after + 1 if over <= under else after
    return keep_masks(scores, min(count, total - 1))


def keep_mask(scores: Scores, count: int) -> Mask:
    """`keep_masks` of one array: leaves out its `count` lowest scores.

    Args:
        scores: Array of any shape, higher for what matters more.
        count: How many entries to leave out, from 0 to all.

    Returns:
        Boolean array of the same shape: True stays, False goes.

    Raises:
        TfcompError: If `count` is not between 0 and the number of scores.

    Example:
        >>> keep_mask(np.array([[0.5, -1.0], [0.5, 2.0]]), 2).tolist()
        [[False, False], [True, True]]
    """
    return keep_masks([scores], count)[0]


def _threshold(scores: Sequence[Scores], count: int, total: int) -> Any:
    """The `count`-th lowest score; NaN ranks last."""
    low, high = _bracket(scores, count, total)
    below = 0
    between = []
    for array in scores:
        flat = array.reshape(-1)
        less = flat < low
        below += int(np.count_nonzero(less))
        between.append(flat[less ^ (flat <= high)])
    if not below < count <= below + sum(part.size for part in between):  # the sample misled
        below, between = 0, [array.reshape(-1) for array in scores]
    near = np.concatenate(between)
    near.partition(count - below - 1)
    return near[count - below - 1]


def _bracket(scores: Sequence[Scores], count: int, total: int) -> tuple[Any, Any]:
    """Two values that the `count`-th lowest score most likely lies between.

    From a sample, so that but a few scores of many need to be copied and partitioned.
    """
    if total < 4 * _SAMPLE:
        return -np.inf, np.inf
    rng = np.random.default_rng(0)
    taken = [rng.integers(array.size, size=_SAMPLE * array.size // total) for array in scores]
    sample = np.concatenate([a.reshape(-1)[at] for a, at in zip(scores, taken, strict=True)])
    sample.sort()
    share = count / total
    # Five standard deviations of a share among so many.
    margin = 5 * math.sqrt(sample.size * share * (1 - share)) + 5
    first, last = math.floor(share * sample.size - margin), math.ceil(share * sample.size + margin)
    # NaN, which sorts last, would compare as neither.
    low = sample[first] if first >= 0 else -np.inf
    high = sample[last] if last < sample.size else np.inf
    return -np.inf if np.isnan(low) else low, np.inf if np.isnan(high) else high


class Masked(keras.constraints.Constraint):
    """Constraint w ← m(c(m(w))): m zeroes what the mask leaves out, c is the layer's own.

    Optimizers apply a variable's constraint inside the compiled step. The inner m lets a norm
    that c imposes be one of the weights that stay. Never part of a saved model.

    Args:
        mask: Boolean variable of the kernel's shape, True where weights stay.
        constraint: The constraint that the kernel has already, or None.

    Example:
        >>> mask = keras.Variable([True, False, True], dtype="bool", trainable=False)
        >>> Masked(mask, keras.constraints.NonNeg())(np.float32([1, 2, 3])).numpy().tolist()
        [1.0, 0.0, 3.0]
    """

    def __init__(self, mask: Any, constraint: Callable[[Any], Any] | None = None) -> None:
        self.mask = mask
        self.constraint = constraint

    def __call__(self, w: Any) -> Any:
        if self.constraint is not None:
            w = self.constraint(self.zeroed(w))
        return self.zeroed(w)

    def zeroed(self, w: Any) -> Any:
        """`w` with zeros where the mask leaves out; what stays is bitwise the same."""
        # A product would leave -0.0, which compresses badly, and NaN.
        return keras.ops.where(self.mask, w, 0)
