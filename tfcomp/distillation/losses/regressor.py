"""Layers that lead from a student's features to the shape of a teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from tfcomp.errors import TfcompError

_CONVOLUTIONS = {3: keras.layers.Conv1D, 4: keras.layers.Conv2D, 5: keras.layers.Conv3D}


def make_regressor(
    student_shape: Sequence[int | None], teacher_shape: Sequence[int | None], name: str
) -> keras.Layer:
    """A layer that predicts a teacher's features from a student's, built.

    For vectors it is a dense layer; for maps, channels last, a convolution: 1×1 where the sizes
    are equal; without padding and with a kernel that makes the sizes match where the student's
    map is larger; 1×1 on a bilinearly enlarged map where it is smaller. It computes in float32
    whatever the global policy, so that it is the same when it is made anew.

    Args:
        student_shape: (batch, …, channels) of what goes in; batch may be None.
        teacher_shape: (batch, …, channels) of what is to come out.
        name: Name of the layer.

    Returns:
        The layer, with weights.

    Raises:
        TfcompError: If one is a vector and the other a map, or a size is unknown.

    Example:
        >>> make_regressor((None, 8, 8, 16), (None, 8, 8, 64), "r").kernel.shape
        TensorShape([1, 1, 16, 64])
        >>> make_regressor((None, 9, 9, 16), (None, 5, 5, 64), "r").kernel.shape
        TensorShape([5, 5, 16, 64])

    Reference:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio (2014), FitNets: Hints for Thin Deep
        Nets, arXiv:1412.6550.
    """
    received, expected = tuple(student_shape), tuple(teacher_shape)
    rank = len(expected)
    known = None not in (*expected[1:], *received[1:])
    if len(received) != rank or not known or (rank != 2 and rank not in _CONVOLUTIONS):
        raise TfcompError(
            f"No regressor leads from features of shape {received} to {expected}: expected two "
            "vectors or two maps of known sizes, received these. Choose other layers."
        )
    if rank == 2:
        layer: keras.Layer = keras.layers.Dense(expected[-1], name=name, dtype="float32")
    else:
        sizes = [(s or 0, t or 0) for s, t in zip(received[1:-1], expected[1:-1], strict=True)]
        larger = all(s >= t for s, t in sizes)
        kernel = tuple(s - t + 1 for s, t in sizes) if larger else 1
        layer = _CONVOLUTIONS[rank](
            expected[-1], kernel, data_format="channels_last", name=name, dtype="float32"
        )
        if not larger:
            layer = _Enlarged(layer, [t for _, t in sizes], name=f"{name}_enlarged")
    layer.build(received)
    return layer


@keras.saving.register_keras_serializable(package="tfcomp")
class _Enlarged(keras.layers.Layer):
    """A layer applied to a map that has been resized bilinearly."""

    def __init__(self, layer: keras.Layer, sizes: Sequence[int], name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self.layer = layer
        self.sizes = tuple(sizes)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the inner layer's weights."""
        if not self.layer.built:
            self.layer.build((input_shape[0], *self.sizes, input_shape[-1]))

    def call(self, inputs: object) -> object:
        """The inner layer's output on the resized map."""
        return self.layer(resize(inputs, self.sizes))


def resize(maps: object, sizes: Sequence[int]) -> object:
    """Maps of features of (batch, …, channels) resized bilinearly to `sizes`.

    Args:
        maps: Channels last, with one or two axes of positions.
        sizes: The size of each of these axes.

    Returns:
        The resized maps; the same ones where nothing changes.

    Raises:
        TfcompError: If there are more than two axes of positions.
    """
    shape = tuple(maps.shape)  # type: ignore[attr-defined]
    if shape[1:-1] == tuple(sizes):
        return maps
    if len(shape) == 3:
        image = keras.ops.expand_dims(maps, 2)
        resized = keras.ops.image.resize(image, (sizes[0], 1), data_format="channels_last")
        return keras.ops.squeeze(resized, 2)
    if len(shape) != 4:
        raise TfcompError(
            f"Maps of shape {shape} cannot be resized: expected one or two axes between batch and "
            f"channels, received {len(shape) - 2}. Choose layers of equal size."
        )
    return keras.ops.image.resize(maps, tuple(sizes), data_format="channels_last")
