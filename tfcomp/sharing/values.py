"""How many different values the kernels of a model hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from tfcomp.pruning import Kernel


def as_float64(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The same values as float64; NumPy does not sort or search bfloat16."""
    return np.asarray(values).astype(np.float64)


def count_values(values: npt.NDArray[Any]) -> int:
    """How many different values an array holds; 0.0 and -0.0 are one.

    Args:
        values: Array of any shape.

    Returns:
        Their number.

    Example:
        >>> count_values(np.array([[0.5, -0.0], [0.0, 0.5]]))
        2
    """
    return int(np.unique(as_float64(values)).size)


def index_bits(values: int) -> int:
    """⌈log₂ v⌉: bits that tell which of `values` values a weight has."""
    return max(values - 1, 0).bit_length()


@dataclasses.dataclass(frozen=True)
class KernelValues:
    """Different values of one kernel, zero among them, and its zeros.

    Attributes:
        name: The variable's path.
        shape: Of the kernel.
        size: Number of weights.
        values: How many different values they have.
        zeros: How many of them are exactly zero.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    values: int
    zeros: int

    @property
    def index_bits(self) -> int:
        """Bits that tell which of the values a weight has."""
        return index_bits(self.values)


def measure_values(kernels: Iterable[Kernel]) -> tuple[KernelValues, ...]:
    """The values that each kernel holds now.

    Args:
        kernels: As `tfcomp.pruning.find_kernels` finds them.

    Returns:
        A row for each.
    """
    rows = []
    for kernel in kernels:
        value = kernel.value()
        zeros = value.size - int(np.count_nonzero(value))
        shape = tuple(kernel.variable.shape)
        rows.append(KernelValues(kernel.name, shape, kernel.size, count_values(value), zeros))
    return tuple(rows)
