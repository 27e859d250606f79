"""A kernel as matrices from inputs to outputs, and sums over parts of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tfcomp.pruning.masks import PART, Mask, filled
from tfcomp.pruning.sparsity import Kernel

Array = npt.NDArray[Any]

# Up to so many columns of a group are added one after the other: NumPy sums along short axes
# slowly.
_FEW = 16


def shape_of(kernel: Kernel) -> tuple[int, ...]:
    """The shape of its variable."""
    return tuple(kernel.variable.shape)


def matrix_shape(kernel: Kernel) -> tuple[int, int, int]:
    """Of `matrices`: how many, their inputs and outputs."""
    shape, axis = shape_of(kernel), _axis(kernel)
    if axis == len(shape) - 1:  # transposed convolutions have their inputs last
        return math.prod(shape[:-2]), shape[-1], shape[-2]
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def matrices(kernel: Kernel, values: Array) -> Array:
    """Values as matrices (stack, inputs, outputs)."""
    if _axis(kernel) == values.ndim - 1:
        values = np.swapaxes(values, -1, -2)
    return values.reshape(matrix_shape(kernel))


def in_kernel_shape(kernel: Kernel, stack: Array) -> Array:
    """What `matrices` gives, in the kernel's shape again."""
    shape = shape_of(kernel)
    if _axis(kernel) == len(shape) - 1:
        turned = stack.reshape((*shape[:-2], shape[-1], shape[-2]))
        return np.ascontiguousarray(np.swapaxes(turned, -1, -2))
    return np.ascontiguousarray(stack).reshape(shape)


def _axis(kernel: Kernel) -> int:
    """Of the inputs. In depthwise kernels the channels take that place."""
    return len(shape_of(kernel)) - 2 if kernel.input_axis is None else kernel.input_axis


def column_sums(values: Array, there: Mask) -> Array:
    """The sum of each column over what is there, in float64.

    Each column is summed in the same order, so that equal ones have equal sums. In parts that
    stay in a cache: no copy of the whole is made.

    Args:
        values: Floating-point matrix.
        there: Mask of its shape.

    Returns:
        One sum for each column.
    """
    rows, columns = values.shape
    sums = np.zeros(columns)
    wide = max(min(columns, PART), 1)
    step = max(PART // wide, 1)
    for left, top in itertools.product(range(0, columns, wide), range(0, rows, step)):
        part = np.s_[top : top + step, left : left + wide]
        known = filled(there[part], values[part], 0).astype(np.float64)
        sums[left : left + wide] += known.sum(axis=0)
    return sums


def block_reduced(values: Array, inputs: int, outputs: int, ufunc: np.ufunc) -> Array:
    """Blocks of a matrix, each reduced to one value; blocks at its edges are filled up with zeros.

    Args:
        values: Matrix.
        inputs: Size of a block along the first axis.
        outputs: Size of a block along the second.
        ufunc: `numpy.add` or `numpy.logical_or`, of which zero changes nothing.

    Returns:
        Matrix with an entry for each block.
    """
    if missing := -values.shape[0] % inputs:
        values = np.pad(values, ((0, missing), (0, 0)))
    flat = ufunc.reduce(values.reshape(-1, inputs, values.shape[1]), axis=1)
    if outputs > _FEW:
        flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % outputs)))
        reduced: Array = ufunc.reduce(flat.reshape(len(flat), -1, outputs), axis=2)
        return reduced
    total = flat[:, ::outputs].copy()
    for place in range(1, outputs):
        more = flat[:, place::outputs]  # one less where the last block is cut off
        ufunc(total[:, : more.shape[1]], more, out=total[:, : more.shape[1]])
    return total


def lowest(columns: Array, count: int) -> Mask:
    """Which entries are the `count` lowest of their group; of equal ones the first.

    Args:
        columns: Scores, shape [entries of a group, groups].
        count: How many of each group.

    Returns:
        Boolean array of the same shape.
    """
    # By comparing each two: for the few entries of a group much faster than to sort.
    small = len(columns) <= np.iinfo(np.uint8).max
    ranks = np.zeros(columns.shape, np.uint8 if small else np.uint16)
    for i, j in itertools.combinations(range(len(columns)), 2):
        later_goes_first = columns[j] < columns[i]
        ranks[i] += later_goes_first.view(np.uint8)
        ranks[j] += np.logical_not(later_goes_first).view(np.uint8)
    found: Mask = ranks < count
    return found
