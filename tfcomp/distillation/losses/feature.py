"""Losses on what is inside a model: the outputs of its layers."""

from __future__ import annotations

from typing import Any

import keras

from tfcomp.distillation.losses.per_sample import PerSampleLoss
from tfcomp.errors import TfcompError

_CONVOLUTIONS = {3: keras.layers.Conv1D, 4: keras.layers.Conv2D, 5: keras.layers.Conv3D}


@keras.saving.register_keras_serializable(package="tfcomp")
class FitNetsHint(PerSampleLoss):
    """A student's layer learns to predict a teacher's layer of any width.

    ½‖A_t(x) − r(A_s(x))‖², summed over all axes but the batch.

    The regressor r is trained along with the student and thrown away: a dense layer for
    vectors, else a convolution without padding whose kernel makes the sizes match, 1×1 where
    they are equal. Features are channels-last.

    The paper uses it alone first (`student_loss_weight=0.0`), then distils the responses.

    Args:
        teacher_layer: Name of the teacher's layer, the hint.
        student_layer: Name of the student's layer, the guided one. Its map must be at least as
            large as the teacher's.
        name: Name of its metric.

    Raises:
        TfcompError: At construction of the `Distiller`, if no such regressor exists.

    Example:
        >>> import keras
        >>> loss = FitNetsHint(teacher_layer="block3", student_layer="block2")
        >>> teacher, student = keras.ops.zeros((8, 4, 4, 32)), keras.ops.ones((8, 4, 4, 16))
        >>> loss.validate_outputs(teacher, student)
        >>> loss.per_sample(teacher, student).shape
        TensorShape([8])
        >>> loss.layers[0].kernel.shape
        TensorShape([1, 1, 16, 32])

    Reference:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio (2014), FitNets: Hints for Thin Deep
        Nets, arXiv:1412.6550.
    """

    def __init__(self, teacher_layer: str, student_layer: str, name: str = "fitnets_hint") -> None:
        self.teacher_layer_name = teacher_layer
        self.student_layer_name = student_layer
        self.name = name

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Makes the regressor for features of these shapes."""
        expected, received = tuple(teacher_outputs.shape), tuple(student_outputs.shape)
        if not self.layers:
            regressor = self._regressor(expected, received)
            regressor.build(received)
            self.layers = (regressor,)
        made = tuple(self.layers[0].compute_output_shape(received))
        if len(made) != len(expected) or made[1:] != expected[1:]:
            raise TfcompError(
                f"This FitNetsHint has a regressor for other features: expected to give {expected}"
                f", received {received}, of which it makes {made}. Make one for each Distiller."
            )

    def _regressor(
        self, expected: tuple[int | None, ...], received: tuple[int | None, ...]
    ) -> keras.layers.Layer:
        if len(expected) == len(received) and None not in (*expected[1:], *received[1:]):
            sizes = zip(expected[1:-1], received[1:-1], strict=True)
            kernel = tuple((s or 0) - (t or 0) + 1 for t, s in sizes)
            if not kernel:
                return keras.layers.Dense(expected[-1], name=f"{self.name}_regressor")
            if len(expected) in _CONVOLUTIONS and min(kernel) >= 1:
                layer = _CONVOLUTIONS[len(expected)]
                return layer(
                    expected[-1],
                    kernel,
                    data_format="channels_last",
                    name=f"{self.name}_regressor",
                )
        raise TfcompError(
            f"No regressor leads from {self.student_layer_name!r} to {self.teacher_layer_name!r}: "
            f"expected known sizes, the student's not below the teacher's {expected}, received "
            f"{received}. Choose other layers, an earlier one of the student for instance."
        )

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Values of shape (batch,)."""
        ops = keras.ops
        predicted = ops.cast(self.layers[0](student_outputs), "float32")
        gap = predicted - ops.cast(teacher_outputs, "float32")
        return 0.5 * ops.sum(ops.square(gap), axis=list(range(1, len(gap.shape))))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "teacher_layer": self.teacher_layer_name,
            "student_layer": self.student_layer_name,
            "name": self.name,
        }
