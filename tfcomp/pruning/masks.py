"""Which weights stay: masks of an exact count, and the constraint that keeps to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcomp.errors import TfcompError

Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[Any]

# How many scores tell where about the threshold is.
_SAMPLE = 1 << 16
# Entries looked at together: what is made of so many stays in a processor's cache, and is not
# memory that the system has to find anew for each array.
PART = 1 << 16
# By the bytes of a type, the integers that its bits can be taken for.
_INTEGERS = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}


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


def keep_masks(
    scores: Sequence[Scores], count: int, there: Sequence[Mask | None] | None = None
) -> list[Mask]:
    """Masks that leave out the `count` lowest scores of all the arrays taken together.

    Exact at any count: among equal scores the first are left out, in the order of the arrays
    and then of their flat (C order) index. NaN ranks above everything. Takes O(n) time, and
    memory for the masks: but a few of many scores are copied.

    Args:
        scores: Arrays of any shape, higher for what matters more.
        count: How many entries to leave out, from 0 to all.
        there: For each array, if not all of it is there, a mask of what is. The score of the
            rest counts as −∞.

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
    parts = _Parts(ranked, there)
    threshold = _threshold(parts, count)
    if np.isnan(threshold):  # even of these some are to go: the first
        parts = _Parts([np.where(np.isnan(array), np.inf, array) for array in ranked], there)
        threshold = _threshold(parts, count)
    masks: list[Mask] = [np.empty(array.shape, np.bool_) for array in scores]
    places = [mask.reshape(-1) for mask in masks]
    spare = total - count
    for which, part in parts.slices():
        stays = places[which][part]
        # Not `scores > threshold`, which does not hold for NaN.
        np.less_equal(parts.values(which, part), threshold, out=stays)
        np.logical_not(stays, out=stays)
        spare -= int(np.count_nonzero(stays))
    _let_last_stay(parts, threshold, spare, places)
    return masks


def _let_last_stay(parts: _Parts, threshold: Any, spare: int, masks: list[Mask]) -> None:
    """The last `spare` of those equal to the threshold stay."""
    for which, part in reversed(list(parts.slices())):
        if not spare:
            return
        equal = np.flatnonzero(parts.values(which, part) == threshold)
        last = equal[max(equal.size - spare, 0) :]
        masks[which][part][last] = True
        spare -= last.size


def keep_masks_of_size(
    scores: Sequence[Scores],
    sizes: Sequence[int | Scores],
    wanted: int,
    there: Sequence[Mask | None] | None = None,
) -> list[Mask]:
    """Masks that leave out the lowest scores, as many as come nearest to a size in all.

    k minimises |Σ_{i≤k} z_(i) − wanted|, z_(i) being the size of the i-th lowest score; of two
    that are as near the larger is taken, and one entry stays.

    Args:
        scores: As in `keep_masks`.
        sizes: For each array the sizes of its entries, or one size of them all.
        wanted: Sum of the sizes to be left out.
        there: As in `keep_masks`.

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
        most = total if wanted >= total * size else total - 1
        return keep_masks(scores, min(count, most), there)
    each = [np.broadcast_to(z, a.shape).reshape(-1) for z, a in zip(sizes, scores, strict=True)]
    parts = _Parts(scores, there)
    share = min(wanted / sum(int(z.sum()) for z in each), 1.0)
    bracket = _bracket(parts, share, each)
    below, near, held = _between(parts, bracket, each)
    if not 0 < wanted - int(held[0]) <= int(held[1].sum()):  # the sample misled
        below, near, held = 0, np.concatenate(parts.all_values()), (0, np.concatenate(each))
    gone = held[0] + np.cumsum(held[1][np.argsort(near, kind="stable")], dtype=np.int64)
    after = int(np.searchsorted(gone, wanted))  # the first sum that is not less
    over = gone[after] - wanted if after < gone.size else math.inf
    under = wanted - (gone[after - 1] if after else held[0])
    count = below + (after + 1 if over <= under else after)
    return keep_masks(scores, min(count, total - 1), there)


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


class _Parts:
    """Scores of several arrays, some at a time; −∞ for what is not there."""

    def __init__(self, scores: Sequence[Scores], there: Sequence[Mask | None] | None) -> None:
        self.flat = [array.reshape(-1) for array in scores]
        known = [None] * len(scores) if there is None else there
        self.there = [None if mask is None or mask.all() else mask.reshape(-1) for mask in known]
        self.total = sum(array.size for array in scores)

    def slices(self) -> Iterator[tuple[int, slice]]:
        """The number of an array, and a part of its flat index, in their order."""
        for which, array in enumerate(self.flat):
            for start in range(0, array.size, PART):
                yield which, slice(start, start + PART)

    def values(self, which: int, part: Any) -> Scores:
        """The scores of a part, or of places anywhere in an array."""
        values, there = self.flat[which][part], self.there[which]
        return values if there is None else filled(there[part], values, -np.inf)

    def all_values(self) -> list[Scores]:
        """All scores, copied."""
        return [self.values(*part) for part in self.slices()] or self.flat


def filled(there: Mask, values: Scores, fill: float) -> Scores:
    """`values` where they are there, bit by bit, and `fill` elsewhere.

    What `numpy.where` gives, but in the same time for any mask: that one guesses at each entry,
    which takes several times as long where it guesses wrong. Meant for arrays that fit a cache.

    Args:
        there: Mask of the shape of `values`.
        values: Array of numbers.
        fill: What stands where nothing is there.

    Returns:
        An array of the type of `values`, or `values` itself if all are there.
    """
    if there.all():
        return values
    integers = _INTEGERS.get(values.dtype.itemsize)
    if integers is None:
        return np.where(there, values, values.dtype.type(fill))
    bits: npt.NDArray[Any] = there.astype(integers)
    np.negative(bits, out=bits)  # all bits, or none
    other = np.array(fill, values.dtype).view(integers)
    bits &= values.view(integers) ^ other
    bits ^= other
    result: Scores = bits.view(values.dtype)
    return result


def _threshold(parts: _Parts, count: int) -> Any:
    """The `count`-th lowest score; NaN ranks last."""
    below, near, _ = _between(parts, _bracket(parts, count / parts.total))
    if not below < count <= below + near.size:  # the sample misled
        below, near = 0, np.concatenate(parts.all_values())
    near.partition(count - below - 1)
    return near[count - below - 1]


def _between(
    parts: _Parts, bracket: tuple[Any, Any], sizes: Sequence[Scores] | None = None
) -> tuple[int, Scores, tuple[int, Scores]]:
    """How many scores are below a bracket, those in it, and what they count for.

    Args:
        parts: The scores.
        bracket: The lowest and the highest value of interest.
        sizes: For each array, flat, what its entries count for, if that is asked.

    Returns:
        The number of scores below; the scores within in the order of their index; and the same
        two of the sizes, a sum and an array.
    """
    low, high = bracket
    below = gone = 0
    scores, held = [], []
    for which, part in parts.slices():
        values = parts.values(which, part)
        less = values < low
        below += int(np.count_nonzero(less))
        if sizes is not None:
            gone += int(sizes[which][part].sum(where=less, dtype=np.int64))
        less ^= values <= high
        within = np.flatnonzero(less)
        scores.append(values[within])
        if sizes is not None:
            held.append(sizes[which][part][within])
    within_sizes = np.concatenate(held) if held else np.empty(0, np.int64)
    return below, np.concatenate(scores or parts.flat), (gone, within_sizes)


def _bracket(parts: _Parts, share: float, sizes: Sequence[Scores] | None = None) -> tuple[Any, Any]:
    """Two values that the score most likely lies between up to which there is a share of all.

    From a sample, so that but a few scores of many need to be copied and sorted. The share is of
    the number of scores, or of the sum of their sizes.
    """
    total = parts.total
    if total < 4 * _SAMPLE:
        return -np.inf, np.inf
    rng = np.random.default_rng(0)
    taken = [rng.integers(a.size, size=_SAMPLE * a.size // total) for a in parts.flat]
    sample = np.concatenate([parts.values(which, at) for which, at in enumerate(taken)])
    n = sample.size
    if sizes is None:
        sample.sort()
        reached = np.arange(1, n + 1) / n
        effective = float(n)
    else:
        held = np.concatenate([z[at] for z, at in zip(sizes, taken, strict=True)]).astype(float)
        order = np.argsort(sample)
        sample, reached = sample[order], np.cumsum(held[order]) / held.sum()
        effective = held.sum() ** 2 / (held**2).sum()
    # Five standard deviations of a share among so many.
    margin = 5 * math.sqrt(share * (1 - share) / effective) + 5 / n
    first, last = np.searchsorted(reached, [share - margin, share + margin])
    # NaN, which sorts last, would compare as neither.
    low = sample[first] if share > margin else -np.inf
    high = sample[last] if last < n else np.inf
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
        w = tf.convert_to_tensor(w)
        integers = _INTEGERS.get(w.dtype.size) if w.dtype.is_floating else None
        if integers is None:
            return keras.ops.where(self.mask, w, 0)
        # A product of numbers would leave -0.0, which compresses badly, and NaN; that of their
        # bits with 0 or 1 does not, and takes two thirds of the time of `where`.
        bits = tf.bitcast(w, integers) * keras.ops.cast(self.mask, integers)
        return tf.bitcast(bits, w.dtype)
