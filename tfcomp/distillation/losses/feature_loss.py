"""The base of the losses that compare what is inside of two models."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from tfcomp.distillation.losses.per_sample import PerSampleLoss
from tfcomp.distillation.pairing import (
    check_channels_last,
    embedding_layer,
    layer_name,
    pair_layers,
)
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model


class FeatureLoss(PerSampleLoss):
    """A distillation loss on the outputs of layers.

    Layers are given by name, by index into `model.layers`, or not at all: then a `Distiller`
    pairs them, maps of the same resolution, the deepest first (`pair_layers`). A subclass
    defines `per_sample`, or `compute_loss` where it is `batch_relational`; what it trains along
    with the student (regressors for one) it makes in `build`.

    Attributes:
        several: Whether it takes lists of layers. Tensors and shapes then come as lists.
        pre_activation: Whether it wants the values before the layers' activations.

    Args:
        teacher_layer: Name or index; a list of them where the loss takes several.
        student_layer: The student's, as many.
        name: Name of its metric; by default that of the class.

    Raises:
        TfcompError: If only one side is given, or a list where one layer is wanted.

    Example:
        >>> import keras
        >>> class Distance(FeatureLoss):
        ...     def per_sample(self, teacher_outputs, student_outputs):
        ...         return keras.ops.norm(teacher_outputs - student_outputs, axis=-1)
        >>> Distance(teacher_layer="embedding", student_layer=-2).get_config()
        {'teacher_layer': 'embedding', 'student_layer': -2, 'name': None}
    """

    several: ClassVar[bool] = False
    pre_activation: ClassVar[bool] = False

    def __init__(
        self, teacher_layer: Any = None, student_layer: Any = None, name: str | None = None
    ) -> None:
        if (teacher_layer is None) != (student_layer is None):
            raise TfcompError(
                f"{type(self).__name__} compares layers in pairs: expected teacher_layer and "
                f"student_layer or neither, received {teacher_layer!r} and {student_layer!r}."
            )
        if self.several and teacher_layer is not None:
            teacher_layer, student_layer = _listed(teacher_layer), _listed(student_layer)
        nested = [keras.tree.is_nested(layer) for layer in (teacher_layer, student_layer)]
        if not self.several and any(nested):
            raise TfcompError(
                f"{type(self).__name__} compares one layer of each model. Received: "
                f"{teacher_layer!r} and {student_layer!r}. Give one such loss for each pair."
            )
        if (
            self.several
            and teacher_layer is not None
            and _sizes(teacher_layer) != _sizes(student_layer)
        ):
            raise TfcompError(
                f"{type(self).__name__} must be given as many layers of the teacher as of the "
                f"student. Received: {teacher_layer!r} and {student_layer!r}."
            )
        self.teacher_layer = teacher_layer
        self.student_layer = student_layer
        self.name = name
        self._built_for: Any = None
        if all(isinstance(one, str) for one in keras.tree.flatten([teacher_layer, student_layer])):
            self.teacher_layer_name, self.student_layer_name = teacher_layer, student_layer

    def pair(self, teacher: keras.Model, student: keras.Model) -> tuple[Any, Any]:
        """Chooses the layers when the caller named none; (teacher's, student's) by name."""
        pairs = pair_layers(teacher, student)
        if not self.several:
            return pairs[0]
        return [t for t, _ in pairs], [s for _, s in pairs]

    def resolve(self, teacher: keras.Model | None, student: keras.Model) -> None:
        """Finds the names of the layers; called when a `Distiller` is made.

        Raises:
            TfcompError: If there is no such layer, or none that can be paired.
        """
        if self.teacher_layer is None:
            if teacher is None:
                raise TfcompError(
                    f"{type(self).__name__} cannot pair layers without a teacher: expected one, "
                    "received None. Pass the teacher to the Distiller; with cached data it is "
                    "not run."
                )
            self.teacher_layer_name, self.student_layer_name = self.pair(teacher, student)
            return
        of = {"teacher": teacher, "student": student}
        for role, layers in (("teacher", self.teacher_layer), ("student", self.student_layer)):
            model = of[role]
            if model is not None:
                names = keras.tree.map_structure(
                    lambda layer, m=model, r=role: layer_name(m, layer, r), layers
                )
                setattr(self, f"{role}_layer_name", names)
                if is_graph_model(model) and _any_map(model, names):
                    check_channels_last(model, role)

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Makes what is trained along with the student, and puts it into `self.layers`.

        Args:
            teacher_shapes: Shape of the teacher's features, batch first; a list where `several`.
            student_shapes: The student's.
        """

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Builds the loss for features of these shapes, once."""
        shapes = (_shapes(teacher_outputs), _shapes(student_outputs))
        if self._built_for is None:
            self.build(*shapes)
            self._built_for = shapes
        elif not _agree(self._built_for, shapes):
            raise TfcompError(
                f"This {type(self).__name__} was made for other features: expected "
                f"{self._built_for}, received {shapes}. Make one for each Distiller."
            )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "teacher_layer": self.teacher_layer,
            "student_layer": self.student_layer,
            "name": self.name,
        }


class EmbeddingLoss(FeatureLoss):
    """A feature loss that by default compares what the last dense layers read.

    Example:
        >>> class Distance(EmbeddingLoss):
        ...     def per_sample(self, teacher_outputs, student_outputs):
        ...         return keras.ops.norm(teacher_outputs - student_outputs, axis=-1)
        >>> Distance().get_config()
        {'teacher_layer': None, 'student_layer': None, 'name': None}
    """

    def pair(self, teacher: keras.Model, student: keras.Model) -> tuple[Any, Any]:
        """The embeddings of both models."""
        names = embedding_layer(teacher, "teacher"), embedding_layer(student, "student")
        return ([names[0]], [names[1]]) if self.several else names


def _any_map(model: keras.Model, names: Any) -> bool:
    wanted = set(keras.tree.flatten(names))
    outputs = [keras.tree.flatten(one.output) for one in model.layers if one.name in wanted]
    return any(len(tensor.shape) > 2 for tensors in outputs for tensor in tensors)


def _listed(layers: Any) -> list[Any]:
    return list(layers) if isinstance(layers, (list, tuple)) else [layers]


def _sizes(layers: Any) -> Any:
    return keras.tree.map_structure(lambda _: None, layers)


def _shapes(structure: Any) -> Any:
    """Shapes in place of tensors; lists stay lists, shapes are tuples."""
    if isinstance(structure, (list, tuple)) and not hasattr(structure, "shape"):
        return [_shapes(one) for one in structure]
    return tuple(structure.shape)


def _agree(made: Any, received: Any) -> bool:
    """Whether known dimensions are the same."""
    if made is None or received is None or isinstance(made, int) or isinstance(received, int):
        return made is None or received is None or made == received
    return len(made) == len(received) and all(map(_agree, made, received))
