"""What stands in a dataset where a model's inputs stood."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


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
        labelled: Whether each sample's label counts; where it does not, the student's own loss
            and the metrics leave the sample out.
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
