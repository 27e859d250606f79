"""Activation boundaries: which neurons are on matters, not how much."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import keras

from tfcomp.distillation.losses.arguments import choice
from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.distillation.losses.maps import float32, rest
from tfcomp.distillation.losses.regressor import make_regressor
from tfcomp.errors import TfcompError

Variant = Literal["paper", "code"]


@keras.saving.register_keras_serializable(package="tfcomp")
class ActivationBoundaries(FeatureLoss):
    """The student's neurons learn to be on where the teacher's are, by a margin.

    d = ‖1[A_t > 0] ⊙ σ(μ − r(A_s)) + 1[A_t ≤ 0] ⊙ σ(μ + r(A_s))‖², σ = ReLU, summed over all
    axes but the batch, with the *pre*-activations A: a layer with a fused activation is split.
    By `variant`, with n layers i = 1 … n, the n-th the deepest:

    - `"code"`: Σᵢ 2^(i−n) · 3/1000 · dᵢ, with which the published figures were made.
    - `"paper"`: Σᵢ dᵢ.

    The connector r leads to the teacher's channels and size and is trained along with the
    student: a 1×1 convolution (a sized one, or a dense layer: `make_regressor`) and batch
    normalisation by the batch's own statistics, which replicas share. Where the shapes are equal
    there is none. The value is never negative; it is zero once every neuron of the student lies
    beyond the margin on the teacher's side.

    The method initialises the student with this loss alone, then distils the responses:
    `tfcomp.callbacks.DistillationStage` does both in one `fit`.

    Args:
        teacher_layer: Names or indices of the teacher's layers, from the input on. None for
            both: the last map of each common resolution.
        student_layer: As many of the student's layers.
        margin: μ ≥ 0.
        variant: The weights of the layers, see above.
        name: Name of its metric.

    Raises:
        TfcompError: If an argument is out of range; at construction of the `Distiller`, if no
            connector leads from a student's layer to the teacher's.

    Example:
        >>> import keras
        >>> loss = ActivationBoundaries("block3", "block2", variant="paper")
        >>> on_and_off, student = keras.ops.array([[2.0, -3.0]]), keras.ops.array([[0.5, 0.5]])
        >>> loss.validate_outputs([on_and_off], [student])
        >>> float(loss.per_sample([on_and_off], [student])[0])  # (1 - 0.5)² + (1 + 0.5)²
        2.5

    Reference:
        Heo, Lee, Yun, Choi (2018), Knowledge Transfer via Distillation of Activation Boundaries
        Formed by Hidden Neurons, arXiv:1811.03233.
    """

    several: ClassVar[bool] = True
    pre_activation: ClassVar[bool] = True

    def __init__(
        self,
        teacher_layer: Any = None,
        student_layer: Any = None,
        margin: float = 1.0,
        variant: Variant = "code",
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name)
        if isinstance(margin, bool) or not isinstance(margin, (int, float)):
            raise TfcompError(f"`margin` must be a number. Received: {margin!r}.")
        if not 0 <= margin < math.inf:
            raise TfcompError(f"`margin` must be ≥ 0. Received: {margin}.")
        self.margin = float(margin)
        self.variant = choice("variant", variant, Variant)
        # For each layer what its features pass through, nothing where the shapes are equal.
        self._connectors: list[tuple[keras.Layer, ...]] = []

    def pair(self, teacher: keras.Model, student: keras.Model) -> tuple[Any, Any]:
        """The last maps of each common resolution, from the input on."""
        teachers, students = super().pair(teacher, student)
        return teachers[::-1], students[::-1]

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Makes the connectors."""
        shapes = zip(student_shapes, teacher_shapes, strict=True)
        self._connectors = [_connector(s, t, index) for index, (s, t) in enumerate(shapes)]
        self.layers = tuple(layer for connector in self._connectors for layer in connector)

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Values of shape (batch,)."""
        count = len(student_outputs)
        pairs = zip(teacher_outputs, student_outputs, strict=True)
        values = [self._one_layer(t, s, index) for index, (t, s) in enumerate(pairs)]
        if self.variant == "code":
            values = [0.003 * 2.0 ** (i + 1 - count) * value for i, value in enumerate(values)]
        return sum(values)

    def _one_layer(self, teacher: Any, student: Any, index: int) -> Any:
        ops = keras.ops
        for layer in self._connectors[index]:
            normalizes = isinstance(layer, keras.layers.BatchNormalization)
            student = layer(student, training=True) if normalizes else layer(student)
        student = float32(student)
        wanted = ops.where(teacher > 0, student, -student)
        gap = ops.relu(self.margin - wanted)
        return ops.sum(ops.square(gap), axis=rest(gap))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "margin": self.margin, "variant": self.variant}


def _connector(student: Any, teacher: Any, index: int) -> tuple[keras.Layer, ...]:
    if tuple(student[1:]) == tuple(teacher[1:]):
        return ()
    regressor = make_regressor(student, teacher, f"connector_{index}")
    # Kept in float32: its statistics are those of whole batches.
    norm = keras.layers.BatchNormalization(
        synchronized=True, dtype="float32", name=f"connector_norm_{index}"
    )
    norm.build(tuple(teacher))
    return regressor, norm
