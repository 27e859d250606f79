"""Decoupled distillation: the labelled class apart from the others."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from tfcomp.distillation.losses.arguments import weight
from tfcomp.distillation.losses.per_sample import describe
from tfcomp.distillation.losses.response_loss import (
    Pair,
    SoftenedLoss,
    sigmoid_kl,
    softmax_kl,
    total,
)
from tfcomp.errors import TfcompError

# A logit that stands for "not among the classes": its probability is exactly 0 in any float.
_ABSENT = -1e30


@keras.saving.register_keras_serializable(package="tfcomp")
class DecoupledKD(SoftenedLoss):
    """What the teacher says of the labelled class, and of the others, weighed apart.

    T²·(α·TCKD + β·NCKD), with p_t and p_s the softmax of z_t/T and z_s/T, and y the label:

    - TCKD = KL(Bernoulli(p_t,y) ‖ Bernoulli(p_s,y)), whether it is the labelled class
    - NCKD = KL(p̂_t ‖ p̂_s), where p̂ is the softmax over all classes but y

    T²·(TCKD + (1 − p_t,y)·NCKD) would be `KnowledgeDistillation`. It needs labels: class indices,
    or one value per class, of which the largest is the label (one-hot, smoothed or mixed). Axes
    between the first and the last are averaged, several outputs are summed, each with its label.
    With two classes NCKD is 0. Samples that `mix_unlabelled` marked as unlabelled count as 0.

    In the paper's total, CE + this loss, set `student_loss_weight=0.5` and twice the learning
    rate. The released code raises the weight of this loss from 0 to 1 over the first 20 epochs
    (1 epoch on ImageNet): use `tfcomp.callbacks.LossWeightSchedule`.

    Args:
        alpha: α ≥ 0, the weight of the labelled class.
        beta: β ≥ 0, the weight of the others. The released code has 0.5 on ImageNet and 2 to 8
            on CIFAR-100, the more the surer the teacher is.
        temperature: T > 0, no unit; the paper has 4 on CIFAR-100 and 1 on ImageNet. It may be
            assigned during training.
        teacher_from_logits: Whether the teacher's outputs are logits. None: read from the
            teacher's last layer when a `Distiller` is made, logits where there is no model.
        student_from_logits: The same for the student.
        name: Name of its metric; by default `decoupled_kd`.

    Raises:
        TfcompError: If an argument is out of range; at construction of the `Distiller`, if a
            model's ending cannot be read or is neither logits nor softmax; in `fit`, if there
            are no labels, or none that fit the outputs.

    Example:
        >>> import keras
        >>> from tfcomp.distillation.losses.step import Step
        >>> teacher, student = keras.ops.log([[0.5, 0.25, 0.25]]), keras.ops.log([[0.5, 0.4, 0.1]])
        >>> loss = DecoupledKD(temperature=1.0)
        >>> step = Step(inputs=None, labels=keras.ops.array([0]))
        >>> print(f"{float(loss.per_sample(teacher, student, step)[0]):.4f}")
        1.7851

    Reference:
        Zhao, Cui, Song, Qiu, Liang (2022), Decoupled Knowledge Distillation, arXiv:2203.08679.
    """

    needs_step: ClassVar[bool] = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(temperature, teacher_from_logits, student_from_logits, name)
        self.alpha = weight("alpha", alpha)
        self.beta = weight("beta", beta)

    def per_sample(self, teacher_outputs: Any, student_outputs: Any, *step: Any) -> Any:
        """Values of shape (batch,); `step` has the labels."""
        pairs = self.pairs(teacher_outputs, student_outputs)
        labels = keras.tree.flatten(step[0].labels)
        if step[0].labels is None or len(labels) != len(pairs):
            received = "none" if step[0].labels is None else describe(step[0].labels)
            raise TfcompError(
                f"DecoupledKD needs the label of each output that it compares: expected "
                f"{len(pairs)} in data of (x, y), received {received}. Use KnowledgeDistillation "
                "where there are no labels."
            )
        values = total(
            self._decoupled(pair, label) for pair, label in zip(pairs, labels, strict=True)
        )
        if step[0].labelled is None:
            return values
        return values * keras.ops.cast(step[0].labelled, values.dtype)

    def _decoupled(self, pair: Pair, label: Any) -> Any:
        """Values per sample and position."""
        teacher, student = self.soften(pair.teacher), self.soften(pair.student)
        labelled = _one_hot(label, student)
        of_label = sigmoid_kl(_margin(teacher, labelled), _margin(student, labelled))
        of_others = softmax_kl(_others(teacher, labelled), _others(student, labelled))
        return self.scale(self.alpha * of_label + self.beta * of_others)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with the temperature now in force."""
        return {"alpha": self.alpha, "beta": self.beta, **super().get_config()}


def _margin(logits: Any, labelled: Any) -> Any:
    """The logit of p_y: log p_y − log(1 − p_y), which loses no digits where p_y is near 1."""
    ops = keras.ops
    own = ops.sum(ops.where(labelled, logits, 0.0), axis=-1)
    return own - ops.logsumexp(_others(logits, labelled), axis=-1)


def _others(logits: Any, labelled: Any) -> Any:
    return keras.ops.where(labelled, _ABSENT, logits)


def _one_hot(label: Any, logits: Any) -> Any:
    """Where the label is, of the shape of the logits."""
    ops = keras.ops
    expected, received = tuple(logits.shape), tuple(label.shape)
    if len(received) == len(expected) and received[-1] == expected[-1]:
        indices = ops.argmax(label, axis=-1)
    elif len(received) == len(expected) and received[-1] == 1:
        indices = ops.squeeze(label, axis=-1)
    elif len(received) == len(expected) - 1:
        indices = label
    else:
        raise TfcompError(
            f"Labels must be class indices or one value per class: expected shape {expected[:-1]} "
            f"or {expected}, received {received}."
        )
    return ops.one_hot(ops.cast(indices, "int32"), expected[-1], axis=-1, dtype="bool")
