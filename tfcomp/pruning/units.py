"""What is removed together: single weights, N:M groups, blocks, or kernels of a convolution."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.pruning.kernel_parts import (
    Array,
    block_reduced,
    column_sums,
    in_kernel_shape,
    lowest,
    matrices,
    matrix_shape,
    shape_of,
)
from tfcomp.pruning.masks import PART, Mask, filled, keep_masks_of_size
from tfcomp.pruning.sparsity import Kernel
from tfcomp.pruning.unit_base import Unit as Unit  # units are found in one place


@keras.saving.register_keras_serializable(package="tfcomp")
class Weights(Unit):
    """Each weight by itself: unstructured sparsity.

    Han, Pool, Tran and Dally 2015, arXiv:1506.02626.

    Example:
        >>> Weights()
        Weights()
    """

    plural = "zeros"

    # All weights are looked at, so that none of the copies above is made.

    def split(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        return values.reshape(-1, 1)

    def join(self, kernel: Kernel, rows: Array) -> Array:
        return rows.reshape(shape_of(kernel))

    def count(self, kernel: Kernel) -> int:
        return kernel.size

    def sizes(self, kernel: Kernel) -> int | Array:
        return 1

    def removed(self, kernel: Kernel, keep: Mask) -> Mask:
        return ~keep.reshape(-1)

    def n_removed(self, kernel: Kernel, keep: Mask) -> int:
        return keep.size - int(np.count_nonzero(keep))

    def scores(self, kernel: Kernel, scores: Array, keep: Mask) -> Array:
        return _each(scores, keep)

    def ranked(self, kernel: Kernel, scores: Array, keep: Mask) -> tuple[Array, Mask | None]:
        return scores.reshape(-1), keep.reshape(-1)

    def remove(self, kernel: Kernel, scores: Array, keep: Mask, stay: Mask) -> Mask:
        return keep & stay.reshape(keep.shape)


@keras.saving.register_keras_serializable(package="tfcomp")
class NM(Unit):
    """N:M sparsity: of m weights that follow each other on the input axis at most n are not zero.

    What sparse matrix units read: 2:4 is one sparsity, 0.5. A schedule that ends at 1 − n/m ramps
    the share of groups that obey: at s, the ⌊s/(1 − n/m)·G + ½⌋ of the G groups whose m − n
    lowest scores have the smallest sum. Groups at the end of an axis that m does not divide are
    filled up with zeros, so that they keep up to n weights. Of a kernel with several input axes,
    the output projection of attention, groups are along the last: within each head.

    Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun and Li 2021, "Learning N:M Fine-grained Structured Sparse
    Neural Networks From Scratch", arXiv:2102.04010; Mishra et al. 2021, "Accelerating Sparse Deep
    Neural Networks", arXiv:2104.08378.

    Args:
        n: How many of a group may stay, 1 or more. Default 2.
        m: Weights in a group, more than n. Default 4.

    Raises:
        TfcompError: If not 1 ≤ n < m; if a schedule ends at another sparsity; if a kernel is
            depthwise, which has no input axis to be grouped.

    Example:
        >>> NM(2, 4).only_sparsity
        0.5
    """

    plural = "N:M groups"
    groups_inputs = True

    def __init__(self, n: int = 2, m: int = 4) -> None:
        self.n, self.m = checked_whole("n", n), checked_whole("m", m)
        if self.n >= self.m:
            raise TfcompError(f"NM expects 1 <= n < m, as in NM(2, 4). Received: n={n}, m={m}.")
        self.only_sparsity: float = 1 - self.n / self.m

    def why_idle(self, kernel: Kernel) -> str | None:
        inputs = matrix_shape(kernel)[1]
        if kernel.input_axis is None or inputs > self.n:
            return None
        return f"of {inputs} inputs, of which {self!r} lets {self.n} stay"

    def split(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        return np.swapaxes(self._grouped(kernel, values, fill), 1, 2).reshape(-1, self.m)

    def join(self, kernel: Kernel, rows: Array) -> Array:
        outputs = matrix_shape(kernel)[2]
        return self._joined(kernel, np.swapaxes(rows.reshape(-1, outputs, self.m), 1, 2))

    def _grouped(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        """Values in the shape (stack·groups, m, outputs), where nothing has to be moved."""
        stack = matrices(kernel, values)
        if stack.shape[1] % self.m:
            padding = ((0, 0), (0, -stack.shape[1] % self.m), (0, 0))
            stack = np.pad(stack, padding, constant_values=fill)
        return stack.reshape(-1, self.m, stack.shape[2])

    def _joined(self, kernel: Kernel, groups: Array) -> Array:
        """What `_grouped` gives, in the kernel's shape again."""
        stack, inputs, outputs = matrix_shape(kernel)
        return in_kernel_shape(kernel, groups.reshape(stack, -1, outputs)[:, :inputs])

    def count(self, kernel: Kernel) -> int:
        stack, inputs, outputs = matrix_shape(kernel)
        return stack * math.ceil(inputs / self.m) * outputs

    def sizes(self, kernel: Kernel) -> int | Array:
        return 1  # it is groups that obey or do not, those at the end of an axis too

    def target(self, total: int, sparsity: float) -> int:
        return min(math.floor(sparsity / self.only_sparsity * total + 0.5), total)

    def removed(self, kernel: Kernel, keep: Mask) -> Mask:
        """Which of the groups obey, shape [count]."""
        groups = self._grouped(kernel, keep, fill=False)
        # One after the other: NumPy sums along short axes slowly.
        stays = groups[:, 0].astype(np.uint16)
        for place in range(1, self.m):
            stays += groups[:, place]
        obeys: Mask = stays.reshape(-1) <= self.n
        return obeys

    def scores(self, kernel: Kernel, scores: Array, keep: Mask) -> Array:
        """What each group loses by obeying: the sum of its m − n lowest scores."""
        outputs = matrix_shape(kernel)[2]
        sums = np.empty((self.count(kernel) // outputs, outputs))
        for part, columns in self._columns(kernel, scores, keep):
            lost = lowest(columns, self.m - self.n) & np.isfinite(columns)
            sums[part] = filled(lost, columns, 0).sum(axis=0, dtype=np.float64)
        flat = sums.reshape(-1)
        flat[self.removed(kernel, keep)] = -np.inf
        return flat

    def remove(self, kernel: Kernel, scores: Array, keep: Mask, stay: Mask) -> Mask:
        outputs = matrix_shape(kernel)[2]
        new = np.repeat(stay.reshape(-1, 1, outputs), self.m, axis=1)
        for part, columns in self._columns(kernel, scores, keep):
            new[part] |= np.swapaxes(~lowest(columns, self.m - self.n), 0, 1)
        joined: Mask = self._joined(kernel, new)
        return np.logical_and(joined, keep, out=joined)

    def _columns(self, kernel: Kernel, scores: Array, keep: Mask) -> Iterator[tuple[slice, Array]]:
        """Scores of some groups at a time, shape [m, groups, outputs]; −∞ for what is not there."""
        dtype = np.result_type(np.float32, scores.dtype)
        known = self._grouped(kernel, scores, 0)
        there = self._grouped(kernel, keep, fill=False)
        # What is made of them is several times as large.
        step = max(PART // 4 // known.shape[2], 1)
        for start in range(0, len(known), step):
            part = slice(start, start + step)
            found = filled(there[part], known[part].astype(dtype, copy=False), -np.inf)
            yield part, np.ascontiguousarray(np.swapaxes(found, 0, 1))

    def get_config(self) -> dict[str, Any]:
        return {"n": self.n, "m": self.m}


@keras.saving.register_keras_serializable(package="tfcomp")
class Blocks(Unit):
    """Blocks of the matrix from inputs to outputs, one matrix for each place of a convolution.

    score(b) = mean of the scores of the block's weights. Blocks at the edges are smaller where
    the sizes do not divide, so that the sparsity in weights is exact to one block.

    Narang, Undersander and Diamos 2017, "Block-Sparse Recurrent Neural Networks",
    arXiv:1711.02782, which takes the largest magnitude of a block in place of the mean.

    Args:
        inputs: Size of a block along the inputs. Default 4.
        outputs: Size of a block along the outputs. Default 4.

    Raises:
        TfcompError: If a size is no whole number of at least 1.

    Example:
        >>> Blocks(1, 16)
        Blocks(inputs=1, outputs=16)
    """

    plural = "zeros in whole blocks"

    def __init__(self, inputs: int = 4, outputs: int = 4) -> None:
        self.inputs, self.outputs = (
            checked_whole("inputs", inputs),
            checked_whole("outputs", outputs),
        )

    def split(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        stack = matrices(kernel, values)
        padding = ((0, 0), (0, -stack.shape[1] % self.inputs), (0, -stack.shape[2] % self.outputs))
        if any(after for _, after in padding):
            stack = np.pad(stack, padding, constant_values=fill)
        tiles = stack.reshape(
            len(stack),
            stack.shape[1] // self.inputs,
            self.inputs,
            stack.shape[2] // self.outputs,
            self.outputs,
        )
        return tiles.swapaxes(2, 3).reshape(-1, self.inputs * self.outputs)

    def join(self, kernel: Kernel, rows: Array) -> Array:
        stack, inputs, outputs = matrix_shape(kernel)
        down, across = math.ceil(inputs / self.inputs), math.ceil(outputs / self.outputs)
        tiles = rows.reshape(stack, down, across, self.inputs, self.outputs).swapaxes(2, 3)
        whole = tiles.reshape(stack, down * self.inputs, across * self.outputs)
        return in_kernel_shape(kernel, whole[:, :inputs, :outputs])

    def count(self, kernel: Kernel) -> int:
        return math.prod(self._grid(kernel))

    def sizes(self, kernel: Kernel) -> int | Array:
        stack, inputs, outputs = matrix_shape(kernel)
        if inputs % self.inputs == 0 and outputs % self.outputs == 0:
            return self.inputs * self.outputs
        down = np.minimum(inputs - np.arange(0, inputs, self.inputs), self.inputs)
        across = np.minimum(outputs - np.arange(0, outputs, self.outputs), self.outputs)
        sizes = np.tile((down[:, None] * across).reshape(-1), stack)
        return int(sizes[0]) if (sizes == sizes[0]).all() else sizes

    def removed(self, kernel: Kernel, keep: Mask) -> Mask:
        alive = np.empty(self._grid(kernel), np.bool_)
        for part, rows in self._stripes(kernel):
            known = matrices(kernel, keep)[rows]
            alive[part] = block_reduced(known, self.inputs, self.outputs, np.logical_or)
        return np.logical_not(alive, out=alive).reshape(-1)

    def scores(self, kernel: Kernel, scores: Array, keep: Mask) -> Array:
        sums = np.empty(self._grid(kernel))
        for part, rows in self._stripes(kernel):
            there, known = matrices(kernel, keep)[rows], matrices(kernel, scores)[rows]
            known = filled(there, known, 0).astype(np.float64)
            sums[part] = block_reduced(known, self.inputs, self.outputs, np.add)
        flat = sums.reshape(-1)
        flat /= self.sizes(kernel)
        flat[self.removed(kernel, keep)] = -np.inf
        return flat

    def remove(self, kernel: Kernel, scores: Array, keep: Mask, stay: Mask) -> Mask:
        _, inputs, outputs = matrix_shape(kernel)
        wide = np.repeat(stay.reshape(self._grid(kernel)), self.outputs, axis=2)[..., :outputs]
        new: Mask = in_kernel_shape(kernel, np.repeat(wide, self.inputs, axis=1)[:, :inputs])
        return np.logical_and(new, keep, out=new)

    def _grid(self, kernel: Kernel) -> tuple[int, int, int]:
        stack, inputs, outputs = matrix_shape(kernel)
        return stack, math.ceil(inputs / self.inputs), math.ceil(outputs / self.outputs)

    def _stripes(self, kernel: Kernel) -> Iterator[tuple[Any, Any]]:
        """Some rows of blocks at a time: their place among blocks, and among weights."""
        stack, down, _ = self._grid(kernel)
        step = max(PART // (self.inputs * matrix_shape(kernel)[2]), 1)
        for which, top in itertools.product(range(stack), range(0, down, step)):
            rows = slice(top * self.inputs, (top + step) * self.inputs)
            yield np.s_[which, top : top + step], np.s_[which, rows]

    def get_config(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "outputs": self.outputs}


class _Columns(Unit):
    """Units that are the columns of a matrix that all weights of a kernel can be seen as."""

    @abc.abstractmethod
    def matrix(self, kernel: Kernel, values: Array) -> Array:
        """Values of the kernel's shape, a column for each part."""

    def split(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        return self.matrix(kernel, values).T

    def count(self, kernel: Kernel) -> int:
        return kernel.size // self._size(kernel)

    def sizes(self, kernel: Kernel) -> int | Array:
        return self._size(kernel)

    @abc.abstractmethod
    def _size(self, kernel: Kernel) -> int:
        """The weights of a part."""

    def removed(self, kernel: Kernel, keep: Mask) -> Mask:
        gone: Mask = np.logical_not(self.matrix(kernel, keep).any(axis=0))
        return gone

    def scores(self, kernel: Kernel, scores: Array, keep: Mask) -> Array:
        sums = column_sums(self.matrix(kernel, scores), self.matrix(kernel, keep))
        sums /= self._size(kernel)
        sums[self.removed(kernel, keep)] = -np.inf
        return sums


@keras.saving.register_keras_serializable(package="tfcomp")
class Kernels(_Columns):
    """The k×k weights from one input channel of a convolution to one output channel.

    score = mean of the scores of these weights. Where there is no window, in Dense for one, each
    weight is a unit of its own.

    Mao, Han, Pool, Li, Liu, Wang and Dally 2017, "Exploring the Regularity of Sparse Structure in
    Convolutional Neural Networks", arXiv:1705.08922: the two-dimensional granularity.

    Example:
        >>> Kernels()
        Kernels()
    """

    plural = "zeros in whole kernels"

    def matrix(self, kernel: Kernel, values: Array) -> Array:
        return values.reshape(self._size(kernel), -1)

    def join(self, kernel: Kernel, rows: Array) -> Array:
        return rows.T.reshape(shape_of(kernel))

    def _size(self, kernel: Kernel) -> int:
        return math.prod(shape_of(kernel)[: kernel.window_axes])

    def removed(self, kernel: Kernel, keep: Mask) -> Mask:
        return ~keep.reshape(-1) if self._size(kernel) == 1 else super().removed(kernel, keep)

    def scores(self, kernel: Kernel, scores: Array, keep: Mask) -> Array:
        if self._size(kernel) == 1:
            return _each(scores, keep)  # no sums of one weight each
        return super().scores(kernel, scores, keep)

    def ranked(self, kernel: Kernel, scores: Array, keep: Mask) -> tuple[Array, Mask | None]:
        if self._size(kernel) == 1:
            return scores.reshape(-1), keep.reshape(-1)
        return super().ranked(kernel, scores, keep)


@keras.saving.register_keras_serializable(package="tfcomp")
class Filters(_Columns):
    """All weights into one output: the filters of a convolution, the neurons of a dense layer.

    score = mean of the scores of these weights; with `Magnitude` the L1 norm over the size. The
    network stays as large as it is, but filters can be pruned while it trains, by any schedule;
    `shrink` then cuts those of zeros first. In depthwise kernels a filter is of one channel.

    Li, Kadav, Durdanovic, Samet and Graf 2016, "Pruning Filters for Efficient ConvNets",
    arXiv:1608.08710, by its norm.

    Example:
        >>> Filters()
        Filters()
    """

    plural = "zeros in whole filters"

    def why_idle(self, kernel: Kernel) -> str | None:
        return "of one filter, which stays" if self.count(kernel) == 1 else None

    def matrix(self, kernel: Kernel, values: Array) -> Array:
        if kernel.input_axis is None:
            return values.reshape(self._size(kernel), -1)
        return matrices(kernel, values).reshape(self._size(kernel), -1)

    def _size(self, kernel: Kernel) -> int:
        if kernel.input_axis is None:
            return math.prod(shape_of(kernel)[: kernel.window_axes])
        stack, inputs, _ = matrix_shape(kernel)
        return stack * inputs

    def join(self, kernel: Kernel, rows: Array) -> Array:
        if kernel.input_axis is None:
            return rows.T.reshape(shape_of(kernel))
        stack, inputs, outputs = matrix_shape(kernel)
        matrices = np.moveaxis(rows.reshape(outputs, stack, inputs), 0, 2)
        return in_kernel_shape(kernel, matrices)


@keras.saving.register_keras_serializable(package="tfcomp")
class Layers(_Columns):
    """Whole kernels, for networks whose blocks can be left out, such as residual ones.

    score = mean of the kernel's scores. Kernels are compared with each other, so that it needs
    scope "global".

    Example:
        >>> Layers()
        Layers()
    """

    plural = "zeros in whole layers"
    whole = True

    def matrix(self, kernel: Kernel, values: Array) -> Array:
        return values.reshape(-1, 1)

    def _size(self, kernel: Kernel) -> int:
        return kernel.size

    def join(self, kernel: Kernel, rows: Array) -> Array:
        return rows.reshape(shape_of(kernel))


def remove_lowest(
    unit: Unit,
    kernels: Sequence[Kernel],
    masks: Sequence[Mask],
    scores: Sequence[Array],
    wanted: int,
) -> list[Mask]:
    """Masks of kernels less the parts of lowest score of all of them together.

    Args:
        unit: What is removed together.
        kernels: The kernels.
        masks: Their masks as they are, True where weights stay.
        scores: A score for each weight.
        wanted: What the parts removed are to count for in all, those of `masks` included.

    Returns:
        The new masks.
    """
    together = list(zip(kernels, scores, masks, strict=True))
    by_part = [unit.ranked(kernel, score, mask) for kernel, score, mask in together]
    stays = keep_masks_of_size(
        [ranks for ranks, _ in by_part],
        [unit.sizes(kernel) for kernel in kernels],
        wanted,
        [there for _, there in by_part],
    )
    del by_part
    new = []
    for kernel, score, mask in together:
        # Given back one after the other, so that not all are held beside the new masks.
        new.append(unit.remove(kernel, score, mask, stays.pop(0)))
    return new


def total_of(unit: Unit, kernels: Iterable[Kernel]) -> int:
    """What all parts of kernels count for."""
    total = 0
    for kernel in kernels:
        sizes = unit.sizes(kernel)
        total += sizes * unit.count(kernel) if isinstance(sizes, int) else int(sizes.sum())
    return total


def removed_of(unit: Unit, kernels: Iterable[Kernel], masks: Iterable[Mask]) -> int:
    """What the parts of kernels count for that masks have removed."""
    found = 0
    for kernel, mask in zip(kernels, masks, strict=True):
        sizes = unit.sizes(kernel)
        if isinstance(sizes, int):
            found += sizes * unit.n_removed(kernel, mask)
        else:
            found += int(sizes[unit.removed(kernel, mask)].sum())
    return found


def _each(scores: Array, keep: Mask) -> Array:
    """The scores of single weights, −∞ for those that are removed, shape [weights]."""
    if keep.all():
        return scores.reshape(-1)
    # Below every score: what was removed stays so, beside weights that happen to be zero.
    # A float would not do: NumPy 1 knows no common type of it and bfloat16.
    return np.where(keep, scores, scores.dtype.type(-np.inf)).reshape(-1)


def checked_whole(name: str, value: Any) -> int:
    """A whole number of at least 1 as it was passed.

    Raises:
        TfcompError: If it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise TfcompError(
            f"`{name}` must be a whole number of at least 1. Received: {name}={value!r}."
        )
    return int(value)
