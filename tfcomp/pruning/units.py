"""What is removed together: single weights, N:M groups, blocks, or kernels of a convolution."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError
from tfcomp.pruning.masks import Mask, keep_masks_of_size, pruned_count
from tfcomp.pruning.sparsity import Kernel

Array = npt.NDArray[Any]

_PART = 1 << 14


class Unit(abc.ABC):
    """Divides a kernel into parts that are removed together.

    A subclass says how an array of the kernel's shape is cut into rows, one row for each part.

    Attributes:
        plural: What is counted, in messages.
        groups_inputs: Whether kernels must have an axis of inputs, which depthwise ones have not.
        only_sparsity: The one sparsity that it can end at, if there is but one.
        whole: Whether a part is a whole kernel, so that kernels must be compared with each other.
    """

    plural = "units"
    groups_inputs = False
    only_sparsity: float | None = None
    whole = False

    @abc.abstractmethod
    def split(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        """Values of the kernel's shape as rows, one for each part, filled up with `fill`."""

    @abc.abstractmethod
    def join(self, kernel: Kernel, rows: Array) -> Array:
        """What `split` gives, in the kernel's shape again."""

    def check(self, kernel: Kernel) -> None:
        """Raises where the kernel cannot be divided in this way."""
        if self.groups_inputs and kernel.input_axis is None:
            raise TfcompError(
                f"{self!r} groups weights along the input axis, which the depthwise kernel "
                f"{kernel.name!r} does not have. Leave depthwise kernels out."
            )

    def why_idle(self, kernel: Kernel) -> str | None:
        """Why nothing can ever be removed from the kernel, if that is so."""
        return None

    def check_sparsity(self, sparsity: float) -> None:
        """Raises where the unit cannot have this sparsity in the end; 0 leaves all as it is."""
        only = self.only_sparsity
        if sparsity and only is not None and not math.isclose(sparsity, only, abs_tol=1e-9):
            raise TfcompError(
                f"{self!r} is one sparsity: expected a schedule that ends at {only:g}, received "
                f"one that ends at {sparsity:g}. Choose another end, or another unit."
            )

    def count(self, kernel: Kernel) -> int:
        """How many parts the kernel has."""
        return len(self.split(kernel, np.broadcast_to(np.True_, _shape(kernel)), fill=False))

    def sizes(self, kernel: Kernel) -> int | Array:
        """What each part counts for, its weights: one number where all are alike."""
        ones = np.broadcast_to(np.uint8(1), _shape(kernel))
        found = self.split(kernel, ones, 0).sum(axis=1, dtype=np.int64)
        return int(found[0]) if found.size and (found == found[0]).all() else found

    def target(self, total: int, sparsity: float) -> int:
        """What the parts removed at a sparsity count for together, of `total`."""
        return pruned_count(total, sparsity)

    def removed(self, kernel: Kernel, keep: Mask) -> Mask:
        """Which of the parts a mask has removed, shape [count]."""
        gone: Mask = np.logical_not(np.any(self.split(kernel, keep, fill=False), axis=1))
        return gone

    def n_removed(self, kernel: Kernel, keep: Mask) -> int:
        """How many of the parts a mask has removed."""
        return int(np.count_nonzero(self.removed(kernel, keep)))

    def scores(self, kernel: Kernel, scores: Array, keep: Mask) -> Array:
        """One score for each part: the mean over its weights, of which those removed count 0.

        Args:
            kernel: The kernel.
            scores: A score for each weight, in the kernel's shape.
            keep: Its mask as it is.

        Returns:
            Scores, shape [count]; −∞ for the parts that are removed already.
        """
        sums = self.split(kernel, np.where(keep, scores, 0), 0).sum(axis=1, dtype=np.float64)
        sums /= self.sizes(kernel)
        sums[self.removed(kernel, keep)] = -np.inf
        return sums

    def remove(self, kernel: Kernel, scores: Array, keep: Mask, stay: Mask) -> Mask:
        """A mask less the parts that do not stay.

        Args:
            kernel: The kernel.
            scores: A score for each weight, in the kernel's shape.
            keep: Its mask as it is.
            stay: Which parts stay, shape [count].

        Returns:
            The mask, in the kernel's shape.
        """
        rows = self.split(kernel, keep, fill=False)
        return self.join(kernel, rows & stay[:, None])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Unit:
        """The unit that `get_config` was taken from."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.get_config() == self.get_config()

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


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
        return rows.reshape(_shape(kernel))

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
        self.n, self.m = _whole("n", n), _whole("m", m)
        if self.n >= self.m:
            raise TfcompError(f"NM expects 1 <= n < m, as in NM(2, 4). Received: n={n}, m={m}.")
        self.only_sparsity: float = 1 - self.n / self.m

    def why_idle(self, kernel: Kernel) -> str | None:
        inputs = _matrix_shape(kernel)[1]
        if kernel.input_axis is None or inputs > self.n:
            return None
        return f"of {inputs} inputs, of which {self!r} lets {self.n} stay"

    def split(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        return np.swapaxes(self._grouped(kernel, values, fill), 1, 2).reshape(-1, self.m)

    def join(self, kernel: Kernel, rows: Array) -> Array:
        outputs = _matrix_shape(kernel)[2]
        return self._joined(kernel, np.swapaxes(rows.reshape(-1, outputs, self.m), 1, 2))

    def _grouped(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        """Values in the shape (stack·groups, m, outputs), where nothing has to be moved."""
        stack = _matrices(kernel, values)
        if stack.shape[1] % self.m:
            padding = ((0, 0), (0, -stack.shape[1] % self.m), (0, 0))
            stack = np.pad(stack, padding, constant_values=fill)
        return stack.reshape(-1, self.m, stack.shape[2])

    def _joined(self, kernel: Kernel, groups: Array) -> Array:
        """What `_grouped` gives, in the kernel's shape again."""
        stack, inputs, outputs = _matrix_shape(kernel)
        return _in_kernel_shape(kernel, groups.reshape(stack, -1, outputs)[:, :inputs])

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
        sums = np.empty((self.count(kernel) // _matrix_shape(kernel)[2], _matrix_shape(kernel)[2]))
        for part, columns in self._columns(kernel, scores, keep):
            lost = _lowest(columns, self.m - self.n) & np.isfinite(columns)
            sums[part] = np.where(lost, columns, 0).sum(axis=0, dtype=np.float64)
        flat = sums.reshape(-1)
        flat[self.removed(kernel, keep)] = -np.inf
        return flat

    def remove(self, kernel: Kernel, scores: Array, keep: Mask, stay: Mask) -> Mask:
        outputs = _matrix_shape(kernel)[2]
        new = np.repeat(stay.reshape(-1, 1, outputs), self.m, axis=1)
        for part, columns in self._columns(kernel, scores, keep):
            new[part] |= np.swapaxes(~_lowest(columns, self.m - self.n), 0, 1)
        return keep & self._joined(kernel, new)

    def _columns(self, kernel: Kernel, scores: Array, keep: Mask) -> Iterator[tuple[slice, Array]]:
        """Scores of some groups at a time, shape [m, groups, outputs]; −∞ for what is not there."""
        dtype = np.result_type(np.float32, scores.dtype)
        gone = dtype.type(-np.inf)
        known = self._grouped(kernel, scores, 0)
        there = self._grouped(kernel, keep, fill=False)
        # So many that they stay in a processor's cache.
        step = max(_PART // known.shape[2], 1)
        for start in range(0, len(known), step):
            part = slice(start, start + step)
            found = np.where(there[part], known[part].astype(dtype, copy=False), gone)
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
        self.inputs, self.outputs = _whole("inputs", inputs), _whole("outputs", outputs)

    def split(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        stack = _matrices(kernel, values)
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
        stack, inputs, outputs = _matrix_shape(kernel)
        down, across = math.ceil(inputs / self.inputs), math.ceil(outputs / self.outputs)
        tiles = rows.reshape(stack, down, across, self.inputs, self.outputs).swapaxes(2, 3)
        whole = tiles.reshape(stack, down * self.inputs, across * self.outputs)
        return _in_kernel_shape(kernel, whole[:, :inputs, :outputs])

    def sizes(self, kernel: Kernel) -> int | Array:
        _, inputs, outputs = _matrix_shape(kernel)
        even = inputs % self.inputs == 0 and outputs % self.outputs == 0
        return self.inputs * self.outputs if even else super().sizes(kernel)

    def get_config(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "outputs": self.outputs}


@keras.saving.register_keras_serializable(package="tfcomp")
class Kernels(Unit):
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

    def sizes(self, kernel: Kernel) -> int | Array:
        return math.prod(_shape(kernel)[: kernel.window_axes])

    def scores(self, kernel: Kernel, scores: Array, keep: Mask) -> Array:
        if self.sizes(kernel) == 1:
            return _each(scores, keep)  # no sums of one weight each
        return super().scores(kernel, scores, keep)

    def split(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        window = math.prod(_shape(kernel)[: kernel.window_axes])
        return values.reshape(window, -1).T

    def join(self, kernel: Kernel, rows: Array) -> Array:
        return rows.T.reshape(_shape(kernel))


@keras.saving.register_keras_serializable(package="tfcomp")
class Filters(Unit):
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

    def sizes(self, kernel: Kernel) -> int | Array:
        return kernel.size // self.count(kernel)

    def why_idle(self, kernel: Kernel) -> str | None:
        return "of one filter, which stays" if self.count(kernel) == 1 else None

    def split(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        if kernel.input_axis is None:
            return values.reshape(math.prod(_shape(kernel)[: kernel.window_axes]), -1).T
        _, _, outputs = _matrix_shape(kernel)
        return np.moveaxis(_matrices(kernel, values), 2, 0).reshape(outputs, -1)

    def join(self, kernel: Kernel, rows: Array) -> Array:
        if kernel.input_axis is None:
            return rows.T.reshape(_shape(kernel))
        stack, inputs, outputs = _matrix_shape(kernel)
        matrices = np.moveaxis(rows.reshape(outputs, stack, inputs), 0, 2)
        return _in_kernel_shape(kernel, matrices)


@keras.saving.register_keras_serializable(package="tfcomp")
class Layers(Unit):
    """Whole kernels, for networks whose blocks can be left out, such as residual ones.

    score = mean of the kernel's scores. Kernels are compared with each other, so that it needs
    scope "global".

    Example:
        >>> Layers()
        Layers()
    """

    plural = "zeros in whole layers"
    whole = True

    def split(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        return values.reshape(1, -1)

    def join(self, kernel: Kernel, rows: Array) -> Array:
        return rows.reshape(_shape(kernel))


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
    by_part = [unit.scores(kernel, score, mask) for kernel, score, mask in together]
    stays = keep_masks_of_size(by_part, [unit.sizes(kernel) for kernel in kernels], wanted)
    return [
        unit.remove(kernel, score, mask, stay)
        for (kernel, score, mask), stay in zip(together, stays, strict=True)
    ]


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


def _lowest(columns: Array, count: int) -> Mask:
    """Which entries are the `count` lowest of their group; of equal ones the first.

    Args:
        columns: Scores, shape [entries of a group, groups].
        count: How many of each group.

    Returns:
        Boolean array of the same shape.
    """
    # By comparing each two: for the few entries of a group much faster than to sort.
    ranks = np.zeros(columns.shape, np.uint16)
    for i, j in itertools.combinations(range(len(columns)), 2):
        later_goes_first = columns[j] < columns[i]
        ranks[i] += later_goes_first
        ranks[j] += ~later_goes_first
    lowest: Mask = ranks < count
    return lowest


def _shape(kernel: Kernel) -> tuple[int, ...]:
    return tuple(kernel.variable.shape)


def _axis(kernel: Kernel) -> int:
    """Of the inputs. In depthwise kernels the channels take that place."""
    return len(_shape(kernel)) - 2 if kernel.input_axis is None else kernel.input_axis


def _matrix_shape(kernel: Kernel) -> tuple[int, int, int]:
    shape, axis = _shape(kernel), _axis(kernel)
    if axis == len(shape) - 1:  # transposed convolutions have their inputs last
        return math.prod(shape[:-2]), shape[-1], shape[-2]
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _matrices(kernel: Kernel, values: Array) -> Array:
    """Values as matrices (stack, inputs, outputs)."""
    if _axis(kernel) == values.ndim - 1:
        values = np.swapaxes(values, -1, -2)
    return values.reshape(_matrix_shape(kernel))


def _in_kernel_shape(kernel: Kernel, matrices: Array) -> Array:
    shape = _shape(kernel)
    if _axis(kernel) == len(shape) - 1:
        turned = matrices.reshape((*shape[:-2], shape[-1], shape[-2]))
        return np.ascontiguousarray(np.swapaxes(turned, -1, -2))
    return np.ascontiguousarray(matrices).reshape(shape)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise TfcompError(
            f"`{name}` must be a whole number of at least 1. Received: {name}={value!r}."
        )
    return int(value)
