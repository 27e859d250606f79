"""Arithmetic on maps of features, (batch, …, channels), that has finite gradients everywhere."""

from __future__ import annotations

from typing import Any

import keras

from tfcomp.distillation.losses.regressor import resize
from tfcomp.errors import TfcompError

# Below this a map counts as zero: 1 / its size would overflow.
_TINY = 1e-30


def float32(tensor: Any) -> Any:
    """The tensor in float32, in which the losses calculate whatever the models' precision."""
    return keras.ops.cast(tensor, "float32")


def unit(tensor: Any, axis: int | list[int]) -> Any:
    """The tensor divided by its L2 norm over `axis`; zero, with no gradient, where that is zero.

    Scaled by the largest entry first, so that no square overflows or vanishes.
    """
    ops = keras.ops
    largest = ops.stop_gradient(ops.max(ops.abs(tensor), axis=axis, keepdims=True))
    known = largest > _TINY
    scaled = ops.where(known, tensor, 0.0) / ops.where(known, largest, 1.0)
    squares = ops.sum(ops.square(scaled), axis=axis, keepdims=True)
    return scaled / ops.sqrt(ops.where(known, squares, 1.0))


def norm(tensor: Any, axis: int | list[int]) -> Any:
    """The L2 norm over `axis`, with gradient zero where it is zero."""
    ops = keras.ops
    squares = ops.sum(ops.square(tensor), axis=axis)
    known = squares > _TINY
    return ops.where(known, ops.sqrt(ops.where(known, squares, 1.0)), 0.0)


def rest(tensor: Any) -> list[int]:
    """All axes but the first."""
    return list(range(1, len(tensor.shape)))


def at_positions(maps: Any) -> Any:
    """Maps of (batch, …, channels) as (batch, positions, channels)."""
    positions = 1
    for size in maps.shape[1:-1]:
        positions *= size
    return keras.ops.reshape(maps, (-1, positions, maps.shape[-1]))


def same_sizes(teacher: Any, student: Any) -> tuple[Any, Any]:
    """Both maps at the smaller of their sizes along each axis: the larger is shrunk bilinearly."""
    pairs = zip(teacher.shape[1:-1], student.shape[1:-1], strict=True)
    sizes = [min(pair) for pair in pairs]
    return resize(teacher, sizes), resize(student, sizes)


def check_maps(owner: str, teacher_shapes: Any, student_shapes: Any) -> None:
    """Raises `TfcompError` unless both lists hold maps of known sizes and, pairwise, of one rank.

    Args:
        owner: Name of the loss, for the message.
        teacher_shapes: A list of shapes, batch first.
        student_shapes: A list of as many.
    """
    for expected, received in zip(teacher_shapes, student_shapes, strict=True):
        known = None not in (*expected[1:], *received[1:])
        if not known or len(expected) != len(received) or not 3 <= len(expected) <= 5:
            raise TfcompError(
                f"{owner} compares maps of features: expected two of known size, (batch, …, "
                f"channels), received {tuple(expected)} of the teacher and {tuple(received)} of "
                "the student. Choose convolutional layers."
            )
        if len(expected) == 5 and expected[1:-1] != received[1:-1]:
            raise TfcompError(
                f"{owner} cannot resize maps with three axes of positions: expected the size "
                f"{tuple(expected[1:-1])}, received {tuple(received[1:-1])}. Choose other layers."
            )
