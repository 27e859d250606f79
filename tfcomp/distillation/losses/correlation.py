"""Correlation of predictions: the student's rankings follow the teacher's."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from tfcomp.distillation.losses.arguments import choice, weight
from tfcomp.distillation.losses.ending import epsilon
from tfcomp.distillation.losses.relation import Variant
from tfcomp.distillation.losses.response_loss import Pair, SoftenedLoss


@keras.saving.register_keras_serializable(package="tfcomp")
class DIST(SoftenedLoss):
    """Predictions need not agree, only correlate, over the classes and over the samples.

    c·(β·inter + γ·intra), with p_t and p_s the softmax of z_t/τ and z_s/τ, matrices of samples
    by classes, and ρ Pearson's correlation:

    - inter = mean over samples i of 1 − ρ(p_t[i, :], p_s[i, :]), relations between classes
    - intra = mean over classes j of 1 − ρ(p_t[:, j], p_s[:, j]), relations within a class

    By `variant`, c is

    - `"code"`: τ², so that gradients keep their size whatever τ is, as in the authors' release,
      which reproduces the published figures;
    - `"paper"`: 1, as in its formulas. At τ = 1 it is the same.

    Vectors without variation have no ρ: 1 − ρ counts as 0 between two of them, and as 1, without
    a gradient, between one of them and another vector. So the loss is 0 where the student equals
    the teacher. Positions (pixels, time steps) count as samples; several outputs are summed.

    The value belongs to the batch: sample weights are refused, and under several replicas the
    relation within a class is that within each replica's share. Batches should hold many
    samples; in a batch of one there is no intra.

    With CE + this loss as total, as in the paper, set `student_loss_weight=0.5` and twice the
    learning rate.

    Args:
        beta: β ≥ 0.
        gamma: γ ≥ 0.
        temperature: τ > 0, no unit. It may be assigned during training.
        teacher_from_logits: Whether the teacher's outputs are logits. None: read from the
            teacher's last layer when a `Distiller` is made, logits where there is no model.
        student_from_logits: The same for the student.
        variant: `"code"` or `"paper"`, see above.
        name: Name of its metric; by default `dist`.

    Raises:
        TfcompError: If an argument is out of range; at construction of the `Distiller`, if a
            model's ending cannot be read or is neither logits nor softmax.

    Example:
        >>> import keras
        >>> teacher = keras.ops.log([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
        >>> student = keras.ops.log([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2]])
        >>> print(f"{float(DIST(beta=1.0, gamma=0.0).compute_loss(teacher, student)):.4f}")
        0.0354

    Reference:
        Huang, You, Wang, Qian, Xu (2022), Knowledge Distillation from A Stronger Teacher,
        arXiv:2205.10536.
    """

    batch_relational: ClassVar[bool] = True

    def __init__(
        self,
        beta: float = 2.0,
        gamma: float = 2.0,
        temperature: float = 1.0,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        variant: Variant = "code",
        name: str | None = None,
    ) -> None:
        super().__init__(temperature, teacher_from_logits, student_from_logits, name)
        self.beta = weight("beta", beta)
        self.gamma = weight("gamma", gamma)
        self.variant = choice("variant", variant, Variant)

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        """The scalar of the batch."""
        values = [self._relations(pair) for pair in self.pairs(teacher_outputs, student_outputs)]
        return sum(values[1:], start=values[0])

    def _relations(self, pair: Pair) -> Any:
        ops = keras.ops
        teacher, student = (
            ops.reshape(ops.log_softmax(self.soften(logits), axis=-1), (-1, logits.shape[-1]))
            for logits in (pair.teacher, pair.student)
        )
        inter = ops.mean(_distance(teacher, student, axis=-1))
        intra = ops.mean(_distance(teacher, student, axis=0))
        value = self.beta * inter + self.gamma * intra
        return self.scale(value) if self.variant == "code" else value

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with the temperature now in force."""
        own = {"beta": self.beta, "gamma": self.gamma, "variant": self.variant}
        return {**own, **super().get_config()}


def _distance(teacher: Any, student: Any, axis: int) -> Any:
    """1 − ρ of exp(teacher) and exp(student) along an axis, as ½‖â − b̂‖² of unit vectors.

    It is never negative, and loses no digits where ρ is near 1.
    """
    ops = keras.ops
    (a, a_varies), (b, b_varies) = (_standardised(values, axis) for values in (teacher, student))
    one_alone = ops.cast(ops.logical_xor(a_varies, b_varies), a.dtype)
    return 0.5 * (ops.sum(ops.square(a - b), axis=axis) + ops.squeeze(one_alone, axis=axis))


def _standardised(logarithms: Any, axis: int) -> tuple[Any, Any]:
    """exp(logarithms) with mean 0 and norm 1 along an axis, and whether it varies."""
    ops = keras.ops
    # ρ knows no scale: with the largest at 1, rare classes do not vanish below a float's reach.
    largest = ops.stop_gradient(ops.max(logarithms, axis=axis, keepdims=True))
    values = ops.exp(logarithms - largest)
    values = values - ops.mean(values, axis=axis, keepdims=True)
    variance = ops.mean(ops.square(values), axis=axis, keepdims=True)
    varies = variance > (4 * epsilon(values)) ** 2  # what rounding leaves of none
    squares = ops.sum(ops.square(values), axis=axis, keepdims=True)
    norm = ops.sqrt(ops.where(varies, squares, 1.0))
    return ops.where(varies, values / norm, 0.0), varies
