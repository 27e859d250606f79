"""Knowledge distillation: the student learns the teacher's softened outputs."""

from __future__ import annotations

from typing import Any, Literal, get_args

import keras

from tfcomp.distillation.losses.ending import Ending, sigmoid_logits, softmax_logits
from tfcomp.distillation.losses.response_loss import Pair, SoftenedLoss, sigmoid_kl, softmax_kl
from tfcomp.errors import TfcompError

Task = Literal["multi-class", "multi-label", "regression"]

# What the last layer may be when it is not logits.
_PROBABILITIES: dict[str, Ending | None] = {
    "multi-class": "softmax",
    "multi-label": "sigmoid",
    "regression": None,
}


@keras.saving.register_keras_serializable(package="tfcomp")
class KnowledgeDistillation(SoftenedLoss):
    """The student learns the teacher's softened outputs.

    By `task`, with logits z_t and z_s of teacher and student and the temperature T:

    - `"multi-class"`: T²·KL(softmax(z_t/T) ‖ softmax(z_s/T))
    - `"multi-label"`: T²·Σ_c KL(Bernoulli(σ(z_t,c/T)) ‖ Bernoulli(σ(z_s,c/T)))
    - `"regression"`: ½‖y_s − y_t‖²

    Sums run over the last axis. Axes between the first and the last (pixels, time steps) are
    averaged, so that there is one value per sample; several outputs are summed.

    Models may end in logits or in probabilities, each its own way: log p is a valid logit of a
    softmax, log p − log(1−p) that of a sigmoid. Probabilities are exact as far as their floats
    reach: below about 1e-38 they count as that, and a sigmoid at exactly 1 as a logit of 17.

    The paper's weight α of this loss is 1 − `student_loss_weight` of the `Distiller`.

    Args:
        temperature: T > 0, no unit. It may be assigned during training (`loss.temperature =
            2.0`) and takes effect with the next step, without a new trace. Not for regression.
        task: What the outputs mean, see above.
        teacher_from_logits: Whether the teacher's outputs are logits. None: read from the
            teacher's last layer when a `Distiller` is made, logits where there is no model.
        student_from_logits: The same for the student.
        name: Name of its metric.

    Raises:
        TfcompError: If an argument is out of range; at construction of the `Distiller`, if a
            model's ending cannot be read or does not fit the task.

    Example:
        >>> import keras
        >>> loss = KnowledgeDistillation(temperature=1.0)
        >>> teacher, student = keras.ops.log([[0.5, 0.5]]), keras.ops.log([[0.25, 0.75]])
        >>> print(f"{float(loss.per_sample(teacher, student)[0]):.4f}")
        0.1438

    Reference:
        Hinton, Vinyals, Dean (2015), Distilling the Knowledge in a Neural Network,
        arXiv:1503.02531. Regression: Ba, Caruana (2014), Do Deep Nets Really Need to be Deep?,
        arXiv:1312.6184.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        task: Task = "multi-class",
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        name: str = "knowledge_distillation",
    ) -> None:
        if task not in get_args(Task):
            raise TfcompError(
                f"`task` must be one of {', '.join(map(repr, get_args(Task)))}. Received: {task!r}."
            )
        self.task = task
        flags = (teacher_from_logits, student_from_logits)
        if task == "regression" and flags != (None, None):
            raise TfcompError(
                "`teacher_from_logits` and `student_from_logits` must be None for regression. "
                f"Received: {flags}."
            )
        if task == "regression" and temperature != 4.0:
            raise TfcompError(
                f"Regression has no temperature: expected none, received {temperature}. "
                "Leave it out."
            )
        self.probabilities = _PROBABILITIES[task]
        super().__init__(temperature, teacher_from_logits, student_from_logits, name)

    def check_temperature(self, value: Any) -> float:
        """Refuses any for regression."""
        if self.task == "regression":
            raise TfcompError(f"Regression has no temperature to set. Received: {value}.")
        return super().check_temperature(value)

    def to_logits(self, probabilities: Any) -> Any:
        """Logits of probabilities, exact as far as their floats reach."""
        invert = softmax_logits if self.task == "multi-class" else sigmoid_logits
        return invert(probabilities)

    def compare(self, pair: Pair) -> Any:
        """Values per sample and position."""
        if self.task == "regression":
            return 0.5 * keras.ops.sum(keras.ops.square(pair.student - pair.teacher), axis=-1)
        divergence = softmax_kl if self.task == "multi-class" else _several_labels_kl
        return self.scale(divergence(self.soften(pair.teacher), self.soften(pair.student)))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with the temperature now in force."""
        return {**super().get_config(), "task": self.task}


def _several_labels_kl(teacher: Any, student: Any) -> Any:
    return keras.ops.sum(sigmoid_kl(teacher, student), axis=-1)
