"""What stands in a dataset where a model's inputs stood."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfcomp.errors import TfcompError


class DistillationInputs(NamedTuple):
    """A model's inputs together with what a `Distiller` should know about each sample.

    Datasets of these are made by `cache_teacher`, `with_indices` and `mix_unlabelled`, and a
    `Distiller` takes them apart. An absent part is the empty tuple. To augment:
    `data.map(lambda x, y: (x._replace(inputs=flip(x.inputs)), y))`.

    Attributes:
        inputs: The inputs.
        teacher_outputs: What the teacher says of them.
        teacher_layers: Outputs of the teacher's layers, by name.
        index: Each sample's position in its dataset, int64.
        labelled: Whether each sample's label counts, 1 or 0, uint8; where it does not, the
            student's own loss and the metrics leave the sample out.
    """

    inputs: Any
    teacher_outputs: Any = ()
    teacher_layers: Any = ()
    index: Any = ()
    labelled: Any = ()


def unpack(inputs: Any) -> DistillationInputs:
    """The inputs with what is known about them; plain inputs are wrapped."""
    return inputs if isinstance(inputs, DistillationInputs) else DistillationInputs(inputs)


def is_absent(part: Any) -> bool:
    """Whether a part of `DistillationInputs` is not there."""
    return not tf.nest.flatten(part)


def image_size(model: Any) -> tuple[int, int] | None:
    """Height and width that a model wants of its one input; None if it wants no certain ones."""
    inputs = tf.nest.flatten(getattr(model, "inputs", None) or [])
    shape = tuple(inputs[0].shape) if len(inputs) == 1 else ()
    return (shape[1], shape[2]) if len(shape) == 4 and None not in shape[1:3] else None


def fit_size(inputs: Any, size: tuple[int, int] | None) -> Any:
    """Images resized bilinearly to `size`, smoothed where they shrink; others as they are."""
    if size is None:
        return inputs

    def resized(images: Any) -> Any:
        if len(images.shape) != 4 or tuple(images.shape[1:3]) == size:
            return images
        images = keras.ops.cast(images, "float32")
        return keras.ops.image.resize(images, size, antialias=True, data_format="channels_last")

    return keras.tree.map_structure(resized, inputs)


@contextlib.contextmanager
def watched(inputs: Any, wanted: bool) -> Iterator[tuple[Any, Callable[[Any], Any] | None]]:
    """Inputs that values can be differentiated by, as long as the context lasts.

    Args:
        inputs: The inputs of a model; whole numbers become floats.
        wanted: Whether anything asks for gradients; if not, nothing is recorded.

    Yields:
        The inputs to use, and `gradient(values)`: d(Σ values)/d(inputs), itself differentiable.
    """
    if not wanted:
        yield inputs, None
        return
    inputs = keras.tree.map_structure(_as_float, inputs)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(inputs)

        def gradient(values: Any) -> Any:
            total = keras.ops.sum(values)
            # Recorded by the tape around this one alone, for gradients of gradients.
            with tape.stop_recording():
                gradients = tape.gradient(total, inputs)
            if any(one is None for one in keras.tree.flatten(gradients)):
                raise TfcompError(
                    "There is no gradient with respect to the inputs: expected a model that is "
                    "differentiable down to them, received one that is not (an Embedding layer "
                    "is none). Choose another loss."
                )
            return gradients

        yield inputs, gradient


def _as_float(tensor: Any) -> Any:
    is_float = keras.backend.is_float_dtype(tensor.dtype)
    return tensor if is_float else keras.ops.cast(tensor, "float32")
