"""The base of the losses that give one value per sample."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from tfcomp.errors import TfcompError


class PerSampleLoss(keras.distillation.DistillationLoss):
    """A distillation loss with one value per sample; its scalar is their mean over the batch.

    `tfcomp.distillation.Distiller` asks for the values per sample, so that it can honour sample
    weights, class weights and several replicas. `keras.distillation.Distiller` asks for the
    scalar. A subclass defines `per_sample`.

    Attributes:
        teacher_layer_name: Layer whose output is `teacher_outputs`, or a nested structure of
            names; None for the model's own outputs.
        student_layer_name: Likewise for the student.
        layers: Layers that the loss trains along with the student, regressors for one.
        batch_relational: Whether a sample's value depends on the other samples of the batch.
            Such a loss defines `compute_loss`. It is refused together with sample weights, which
            it cannot honour.
        needs_step: Whether `per_sample` (or `compute_loss`) takes a third argument, a `Step`.
        needs_input_gradients: Whether it will ask the step for gradients with respect to inputs.

    Example:
        >>> import keras
        >>> class Distance(PerSampleLoss):
        ...     def per_sample(self, teacher_outputs, student_outputs):
        ...         return keras.ops.norm(teacher_outputs - student_outputs, axis=-1)
        >>> float(Distance().compute_loss(keras.ops.zeros((2, 2)), keras.ops.ones((2, 2)) * 3**0.5))
        2.4494898319244385
    """

    name: str | None = None
    teacher_layer_name: Any = None
    student_layer_name: Any = None
    layers: tuple[keras.layers.Layer, ...] = ()
    batch_relational: ClassVar[bool] = False
    needs_step: ClassVar[bool] = False
    needs_input_gradients: ClassVar[bool] = False

    def per_sample(self, teacher_outputs: Any, student_outputs: Any, *step: Any) -> Any:
        """Values of shape (batch,) from outputs that have passed `validate_outputs`."""
        raise NotImplementedError(f"{type(self).__name__} must define per_sample().")

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, *step: Any, **kwargs: Any
    ) -> Any:
        """The mean of `per_sample` over the batch, a scalar."""
        if self.needs_step and not step:
            raise TfcompError(
                f"{type(self).__name__} needs to know the step of training: expected "
                "tfcomp.distillation.Distiller, received Keras's. Use ours."
            )
        return keras.ops.mean(self.per_sample(teacher_outputs, student_outputs, *step))

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raises `TfcompError` unless structures and known dimensions agree."""
        check_same_shapes(teacher_outputs, student_outputs)

    def prepare(self, teacher: keras.Model, x: Any, **kwargs: Any) -> None:
        """Learns what must be known of the teacher before training; here nothing.

        `AssistantChain` and `BornAgain` call it at the start of each lesson, after the
        `Distiller` was made. A subclass that has something to learn redefines it.

        Args:
            teacher: The teacher of the lesson.
            x: Data as `fit` takes them, the labels apart where they are arrays.
            **kwargs: Those of `fit` that say how to read the data: `batch_size`, `verbose`, ….
        """

    def __reduce__(self) -> Any:
        # Copied and pickled by configuration: variables are not picklable.
        return _from_config, (type(self), self.get_config())

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {} if self.name is None else {"name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PerSampleLoss:
        """The loss that `get_config` described."""
        return cls(**config)


def check_same_shapes(teacher_outputs: Any, student_outputs: Any) -> None:
    """Raises unless two nested structures of tensors agree in structure and known dimensions.

    Args:
        teacher_outputs: Tensors, symbolic or not, alone or nested.
        student_outputs: Likewise.

    Raises:
        TfcompError: Names the first difference.
    """
    teacher_shapes, student_shapes = shapes(teacher_outputs), shapes(student_outputs)
    if list(teacher_shapes) != list(student_shapes):
        raise TfcompError(
            "Teacher and student must have outputs of the same structure: expected "
            f"{describe(teacher_outputs)} as the teacher's, received {describe(student_outputs)} "
            "from the student. Give one loss per output, or make the models alike with "
            "keras.Model(inputs, outputs)."
        )
    for path, expected in teacher_shapes.items():
        received = student_shapes[path]
        if len(expected) != len(received) or any(
            a != b for a, b in zip(expected, received, strict=True) if a and b
        ):
            place = "".join(f"[{key!r}]" for key in path)
            raise TfcompError(
                f"Teacher and student outputs{place} must have the same shape: expected "
                f"{expected} as the teacher's, received {received} from the student. Change the "
                "student's last layer, or compare layers of different width with FitNetsHint."
            )


def shapes(structure: Any) -> dict[tuple[Any, ...], tuple[int | None, ...]]:
    """Shapes by path; lists and tuples count as the same."""
    return {
        tuple(path): tuple(leaf.shape) for path, leaf in keras.tree.flatten_with_path(structure)
    }


def describe(structure: Any) -> str:
    """A structure of tensors in a few characters: `{'a': (None, 3)}`."""
    described = keras.tree.map_structure(lambda leaf: str(tuple(leaf.shape)), structure)
    return str(described).replace("'(", "(").replace(")'", ")")


def _from_config(cls: type[PerSampleLoss], config: dict[str, Any]) -> PerSampleLoss:
    return cls.from_config(config)
