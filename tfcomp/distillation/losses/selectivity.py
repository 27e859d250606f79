"""Neuron selectivity: what the channels of a map respond to, as a distribution."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.distillation.losses.maps import at_positions, check_maps, float32, same_sizes, unit


@keras.saving.register_keras_serializable(package="tfcomp")
class NeuronSelectivityTransfer(FeatureLoss):
    """The student's channels become distributed over the image as the teacher's are.

    Σ_layers mean k(t, t′) + mean k(s, s′) − 2 mean k(s, t), k(a, b) = (a·b)²

    This is the squared maximum mean discrepancy of one sample, with t and s the channels of
    teacher and student, each a vector over the positions and divided by its norm. The paper's
    figures use this polynomial kernel (d = 2, c = 0). In its total, CE + λ/2 · this loss, set
    `student_loss_weight=0.5`, the weight λ/2 and twice the learning rate.

    Nothing is trained but the student: the channels may differ in number, and where the sizes of
    two maps do, the larger map is shrunk bilinearly. The value is never negative, zero for equal
    maps, and does not depend on the scale or the order of channels.

    Args:
        teacher_layer: Names or indices of the teacher's layers, whose outputs are maps,
            channels last. None for both: the last map of each common resolution.
        student_layer: As many of the student's layers.
        name: Name of its metric.

    Raises:
        TfcompError: At construction of the `Distiller`, if the layers do not give maps.

    Example:
        >>> import numpy as np
        >>> loss = NeuronSelectivityTransfer("block3", "block2")
        >>> maps = np.random.rand(2, 4, 4, 8).astype("float32")
        >>> bool((loss.per_sample([maps], [2 * maps[..., ::-1]]) < 1e-6).numpy().all())
        True

    Reference:
        Huang, Wang (2017), Like What You Like: Knowledge Distill via Neuron Selectivity
        Transfer, arXiv:1707.01219.
    """

    several: ClassVar[bool] = True

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Checks that there are maps to compare."""
        check_maps(type(self).__name__, teacher_shapes, student_shapes)

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Values of shape (batch,)."""
        pairs = zip(teacher_outputs, student_outputs, strict=True)
        return sum(_discrepancy(teacher, student) for teacher, student in pairs)


def _discrepancy(teacher: Any, student: Any) -> Any:
    ops = keras.ops
    teacher, student = same_sizes(float32(teacher), float32(student))
    teacher, student = (unit(at_positions(maps), 1) for maps in (teacher, student))
    value = _kernel(teacher, teacher) + _kernel(student, student) - 2 * _kernel(teacher, student)
    # Rounding may leave −1e-8; the gradient stays that of the formula.
    return value + ops.stop_gradient(ops.relu(-value))


def _kernel(left: Any, right: Any) -> Any:
    """The mean of (a·b)² over the channels of two (batch, positions, channels)."""
    ops = keras.ops
    products = ops.matmul(ops.transpose(left, (0, 2, 1)), right)
    return ops.mean(ops.square(products), axis=(1, 2))
