"""Attention transfer: the student looks where the teacher looks."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import keras

from tfcomp.distillation.losses.arguments import choice
from tfcomp.distillation.losses.ending import endings
from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.distillation.losses.maps import check_maps, float32, norm, rest, same_sizes, unit
from tfcomp.distillation.losses.per_sample import PerSampleLoss
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model

Mapping = Literal["sum", "sum_p", "max_p"]
Variant = Literal["paper", "code"]


@keras.saving.register_keras_serializable(package="tfcomp")
class AttentionTransfer(FeatureLoss):
    """The student's maps of attention, summed over channels, become those of the teacher.

    With Q = vec(F(A)) over the positions of a map A and q = Q/‖Q‖₂, by `variant`:

    - `"code"`: Σ_layers mean over positions of (q_s − q_t)², with which the published figures
      were made (β = 1000 there).
    - `"paper"`: Σ_layers ½‖q_s − q_t‖₂.

    In the paper's total, CE + β · this loss, set `student_loss_weight=0.5`, the weight β and
    twice the learning rate. F is, by `mapping`,

    - `"sum"`: Σ_c |A_c|
    - `"sum_p"`: Σ_c |A_c|^p
    - `"max_p"`: max_c |A_c|^p

    Nothing is trained but the student: the channels may differ in number, and where the sizes of
    two maps do, the larger Q is shrunk bilinearly before it is divided by its norm. The value
    does not depend on the scale of either map, is never negative, and zero for equal attention.
    A map of zeros has q = 0.

    Args:
        teacher_layer: Names or indices of the teacher's layers, whose outputs are maps,
            channels last. None for both: the last map of each common resolution.
        student_layer: As many of the student's layers.
        p: Power ≥ 1, for `"sum_p"` and `"max_p"`.
        mapping: F.
        variant: The formula, see above.
        name: Name of its metric.

    Raises:
        TfcompError: If an argument is out of range; at construction of the `Distiller`, if the
            layers do not give maps.

    Example:
        >>> import numpy as np
        >>> loss = AttentionTransfer("block3", "block2")
        >>> maps = np.random.rand(2, 4, 4, 8).astype("float32")
        >>> bool((loss.per_sample([maps], [100 * maps]) < 1e-9).numpy().all())
        True

    Reference:
        Zagoruyko, Komodakis (2016), Paying More Attention to Attention: Improving the
        Performance of Convolutional Neural Networks via Attention Transfer, arXiv:1612.03928.
    """

    several: ClassVar[bool] = True

    def __init__(
        self,
        teacher_layer: Any = None,
        student_layer: Any = None,
        p: float = 2.0,
        mapping: Mapping = "sum_p",
        variant: Variant = "code",
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name)
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 1 <= p < math.inf:
            raise TfcompError(f"`p` must be a number ≥ 1. Received: {p!r}.")
        if mapping == "sum" and p != 2.0:
            raise TfcompError(
                f"The mapping 'sum' has no power: expected no `p`, received {p}. Leave it out, or "
                "use mapping='sum_p'."
            )
        self.p = float(p)
        self.mapping = choice("mapping", mapping, Mapping)
        self.variant = choice("variant", variant, Variant)

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Checks that there are maps to compare."""
        check_maps(type(self).__name__, teacher_shapes, student_shapes)

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Values of shape (batch,)."""
        pairs = zip(teacher_outputs, student_outputs, strict=True)
        return sum(self._one_layer(teacher, student) for teacher, student in pairs)

    def _one_layer(self, teacher: Any, student: Any) -> Any:
        ops = keras.ops
        teacher, student = same_sizes(self._attention(teacher), self._attention(student))
        gap = unit(student, rest(student)) - unit(teacher, rest(teacher))
        if self.variant == "code":
            return ops.mean(ops.square(gap), axis=rest(gap))
        return 0.5 * norm(gap, rest(gap))

    def _attention(self, maps: Any) -> Any:
        """F of shape (batch, …, 1), up to a factor for each sample."""
        ops = keras.ops
        # Any factor will do; this one keeps the powers from overflowing.
        magnitude = ops.abs(unit(float32(maps), rest(maps)))
        if self.mapping == "max_p":
            return ops.power(ops.max(magnitude, axis=-1, keepdims=True), self.p)
        if self.mapping == "sum_p":
            magnitude = ops.power(magnitude, self.p)
        return ops.sum(magnitude, axis=-1, keepdims=True)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"p": self.p, "mapping": self.mapping, "variant": self.variant}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="tfcomp")
class GradientAttentionTransfer(PerSampleLoss):
    """The student is sensitive to its input where the teacher is.

    ½‖J_s − J_t‖₂ with J = ∂CE(model(x), y)/∂x, the norm over all of the input's axes.

    In the paper's total, CE + β · this loss, set `student_loss_weight=0.5`, the weight β and
    twice the learning rate.

    It needs labels, integers or one-hot, and classifiers with one output, logits or softmax,
    each its own way; samples that `mix_unlabelled` marked as unlabelled count as 0. One step
    costs a further backward pass through each model and, for the student, the gradient of that
    gradient. Where the models' inputs differ in size, the larger gradient is shrunk bilinearly.
    The value is never negative, and zero if the two models are one.

    Args:
        teacher_from_logits: Whether the teacher's output is logits. None: read from its last
            layer when a `Distiller` is made.
        student_from_logits: The same for the student.
        name: Name of its metric.

    Raises:
        TfcompError: If there are no labels, or a model's ending cannot be read.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import Distiller
        >>> def net(units):
        ...     layers = [keras.layers.Dense(units, "tanh"), keras.layers.Dense(3)]
        ...     return keras.Sequential([keras.Input((4,)), *layers])
        >>> distiller = Distiller(net(32), net(4), GradientAttentionTransfer())
        >>> distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> x, y = np.random.rand(64, 4), np.random.randint(3, size=64)
        >>> sorted(distiller.fit(x, y, verbose=0).history)
        ['distillation_loss', 'loss', 'student_loss']

    Reference:
        Zagoruyko, Komodakis (2016), Paying More Attention to Attention: Improving the
        Performance of Convolutional Neural Networks via Attention Transfer, arXiv:1612.03928.
    """

    needs_step: ClassVar[bool] = True
    needs_input_gradients: ClassVar[bool] = True

    def __init__(
        self,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        name: str | None = None,
    ) -> None:
        for role, flag in [("teacher", teacher_from_logits), ("student", student_from_logits)]:
            if flag is not None and not isinstance(flag, bool):
                raise TfcompError(
                    f"`{role}_from_logits` must be True, False or None. Received: {flag!r}."
                )
        self.teacher_from_logits = teacher_from_logits
        self.student_from_logits = student_from_logits
        self.name = name
        self._from_logits = (teacher_from_logits is not False, student_from_logits is not False)

    def validate_model_compatibility(
        self, teacher: keras.Model | None, student: keras.Model
    ) -> None:
        """Reads what both models end in."""
        self._from_logits = (
            _gives_logits(teacher, self.teacher_from_logits, "teacher"),
            _gives_logits(student, self.student_from_logits, "student"),
        )

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raises `TfcompError` unless both are one output of the same classes."""
        super().validate_outputs(teacher_outputs, student_outputs)
        for output in [teacher_outputs, student_outputs]:
            if keras.tree.is_nested(output) or len(output.shape) != 2 or output.shape[-1] == 1:
                raise TfcompError(
                    "Gradients of the cross-entropy need classifiers: expected one output of shape "
                    f"(batch, classes), received {keras.tree.map_structure(_shape, output)}. Name "
                    "the output with distillation_losses={output: loss}."
                )

    def per_sample(self, teacher_outputs: Any, student_outputs: Any, *step: Any) -> Any:
        """Values of shape (batch,)."""
        batch = step[0]
        if batch.labels is None:
            raise TfcompError(
                "GradientAttentionTransfer compares gradients of the labels' cross-entropy: "
                "expected data of (x, y), received no labels. Train on a labelled dataset."
            )
        teacher_logits, student_logits = self._from_logits
        of_teacher = _cross_entropy(teacher_outputs, batch.labels, teacher_logits)
        of_student = _cross_entropy(student_outputs, batch.labels, student_logits)
        teachers = keras.tree.flatten(batch.teacher_gradient(of_teacher))
        students = keras.tree.flatten(batch.student_gradient(of_student))
        gaps = [_gap(t, s) for t, s in zip(teachers, students, strict=True)]
        values = 0.5 * norm(keras.ops.concatenate(gaps, axis=1), 1)
        return values if batch.labelled is None else values * float32(batch.labelled)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
            "name": self.name,
        }


def _gives_logits(model: keras.Model | None, flag: bool | None, role: str) -> bool:
    if flag is not None:
        return flag
    if model is None or not is_graph_model(model):
        raise TfcompError(
            f"Cannot read whether the {role}'s output is logits: expected `{role}_from_logits=True`"
            " or False, received None. Pass it to GradientAttentionTransfer."
        )
    ending = endings(model)[0]
    if ending == "sigmoid":
        raise TfcompError(
            f"The {role} of GradientAttentionTransfer must end in logits or softmax. Received: "
            f"{model.name!r}, which ends in sigmoid. Pass {role}_from_logits."
        )
    return ending == "logits"


def _cross_entropy(outputs: Any, labels: Any, from_logits: bool) -> Any:
    """The cross-entropy of each sample, shape (batch,)."""
    ops = keras.ops
    outputs = float32(outputs)
    log_p = ops.log_softmax(outputs, axis=-1) if from_logits else _log(outputs)
    labels = keras.tree.flatten(labels)[0]
    classes = outputs.shape[-1]
    if len(labels.shape) == 1 or labels.shape[-1] == 1:
        labels = ops.one_hot(ops.cast(ops.reshape(labels, (-1,)), "int32"), classes)
    return -ops.sum(float32(labels) * log_p, axis=-1)


def _log(probabilities: Any) -> Any:
    return keras.ops.log(keras.ops.maximum(probabilities, 1.2e-38))


def _gap(teacher: Any, student: Any) -> Any:
    """The difference of two gradients, of shape (batch, entries)."""
    teacher, student = float32(teacher), float32(student)
    if teacher.shape[1:] != student.shape[1:]:
        teacher, student = same_sizes(teacher, student)
    gap = student - teacher
    return keras.ops.reshape(gap, (-1, math.prod(gap.shape[1:])))


def _shape(tensor: Any) -> str:
    return str(tuple(tensor.shape))
