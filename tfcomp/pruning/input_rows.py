"""The inputs that go into a layer's multiply-adds, as a matrix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.pruning.energy import KERNEL_LAYERS

Matrix = npt.NDArray[np.float64]


def has_rows(op: Any) -> bool:
    """Whether it multiplies rows with its kernel: a convolution or Dense, channels last."""
    plain = getattr(op, "data_format", "channels_last") in (None, "channels_last")
    # With LoRA the kernel is a sum, which cannot be assigned to.
    return isinstance(op, KERNEL_LAYERS) and plain and not getattr(op, "lora_enabled", False)


def filters_by_group(op: Any, value: npt.NDArray[Any]) -> Matrix:
    """A kernel in the order of `sampled_rows`: [groups, weights of a filter, its filters]."""
    groups = getattr(op, "groups", 1)
    flat = value.reshape(-1, value.shape[-1]).astype(np.float64)
    return np.stack(np.split(flat, groups, axis=1))


def in_kernel_shape(filters: Matrix, shape: tuple[int, ...]) -> Matrix:
    """What `filters_by_group` gives, in the kernel's shape again."""
    return np.concatenate(list(filters), axis=1).reshape(shape)


def sampled_rows(op: Any, inputs: list[npt.NDArray[Any]], rows: int, seed: int) -> Matrix:
    """The inputs of the multiply-adds at some output positions: [rows, groups, weights].

    The same positions for the same shapes and seed; all if there are no more than `rows`.
    """
    if isinstance(op, keras.layers.Dense):
        flat = np.concatenate([array.reshape(-1, array.shape[-1]) for array in inputs])
        return flat[_drawn(len(flat), rows, seed)][:, None].astype(np.float64)
    parts = []
    for number, array in enumerate(inputs):
        share = rows // len(inputs) + (number < rows % len(inputs))
        if share:
            parts.append(_windows(op, array, share, seed + number))
    return np.concatenate(parts)


def _windows(op: Any, inputs: npt.NDArray[Any], rows: int, seed: int) -> Matrix:
    """Windows of a convolution, as its kernel is laid out: places first, then channels."""
    size, steps, holes = op.kernel_size, op.strides, op.dilation_rate
    padded = np.pad(inputs, list(_padding(op, inputs.shape)))
    reach = [(k - 1) * d + 1 for k, d in zip(size, holes, strict=True)]
    places = [
        (length - r) // s + 1 for length, r, s in zip(padded.shape[1:-1], reach, steps, strict=True)
    ]
    total = len(inputs) * math.prod(places)
    sample, *corner = np.unravel_index(_drawn(total, rows, seed), (len(inputs), *places))
    columns = []
    for offset in itertools.product(*map(range, size)):
        at = [c * s + o * d for c, s, o, d in zip(corner, steps, offset, holes, strict=True)]
        columns.append(padded[(sample, *at)])
    windows = np.stack(columns, axis=1)  # [rows, places, channels]
    grouped = windows.reshape(*windows.shape[:2], op.groups, -1).transpose(0, 2, 1, 3)
    return grouped.reshape(len(windows), op.groups, -1).astype(np.float64)


def _padding(op: Any, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    yield 0, 0
    axes = zip(shape[1:-1], op.kernel_size, op.strides, op.dilation_rate, strict=True)
    for length, k, s, d in axes:
        reach = (k - 1) * d
        if op.padding == "valid":
            yield 0, 0
        elif op.padding == "causal":
            yield reach, 0
        else:
            missing = max((-(-length // s) - 1) * s + reach + 1 - length, 0)
            yield missing // 2, missing - missing // 2
    yield 0, 0


def _drawn(total: int, rows: int, seed: int) -> npt.NDArray[np.int64]:
    if total <= rows:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, rows, replace=False))
