"""Hints: a layer of the student predicts a layer of the teacher."""

from __future__ import annotations

from typing import Any

import keras

from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.distillation.losses.maps import float32, rest
from tfcomp.distillation.losses.regressor import make_regressor


@keras.saving.register_keras_serializable(package="tfcomp")
class FitNetsHint(FeatureLoss):
    """A student's layer learns to predict a teacher's layer of any width.

    ½‖A_t(x) − r(A_s(x))‖², summed over all axes but the batch.

    The regressor r is trained along with the student and thrown away: a dense layer for
    vectors, else a convolution without padding whose kernel makes the sizes match, 1×1 where
    they are equal. Where the student's map is the smaller one it is enlarged bilinearly first.
    Features are channels-last.

    The paper uses it alone first (`student_loss_weight=0.0`), then distils the responses:
    `tfcomp.callbacks.DistillationStage` does both in one `fit`.

    Args:
        teacher_layer: The teacher's layer, the hint: its name or index. None for both layers:
            the deepest maps of a resolution that both models have.
        student_layer: The student's layer, the guided one.
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

    def __init__(
        self,
        teacher_layer: str | int | None = None,
        student_layer: str | int | None = None,
        name: str | None = "fitnets_hint",
    ) -> None:
        super().__init__(teacher_layer, student_layer, name)

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Makes the regressor."""
        name = f"{self.name or 'fitnets_hint'}_regressor"
        self.layers = (make_regressor(student_shapes, teacher_shapes, name),)

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Values of shape (batch,)."""
        gap = float32(self.layers[0](student_outputs)) - float32(teacher_outputs)
        return 0.5 * keras.ops.sum(keras.ops.square(gap), axis=rest(gap))
