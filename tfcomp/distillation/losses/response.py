"""Losses on a model's responses: what its last layer says."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import keras

from tfcomp.distillation.losses.ending import Ending, endings
from tfcomp.distillation.losses.per_sample import PerSampleLoss
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model, trace

Task = Literal["multi-class", "multi-label", "regression"]

# What the last layer may be when it is not logits.
_PROBABILITIES: dict[str, Ending] = {"multi-class": "softmax", "multi-label": "sigmoid"}
# Softened outputs need both tails of a float; half precision is lifted to this.
_MIN_DTYPE = "float32"


@keras.saving.register_keras_serializable(package="tfcomp")
class KnowledgeDistillation(PerSampleLoss):
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
        for argument, flag in [
            ("teacher_from_logits", teacher_from_logits),
            ("student_from_logits", student_from_logits),
        ]:
            if flag is not None and (not isinstance(flag, bool) or task == "regression"):
                raise TfcompError(
                    f"`{argument}` must be True, False or None, and None for regression. "
                    f"Received: {flag!r} for {task}."
                )
        if task == "regression" and temperature != 4.0:
            raise TfcompError(
                f"Regression has no temperature: expected none, received {temperature}. "
                "Leave it out."
            )
        self.teacher_from_logits = teacher_from_logits
        self.student_from_logits = student_from_logits
        self.name = name
        # A variable, so that a schedule changes it without a new trace.
        self._temperature = keras.Variable(
            _positive(temperature), trainable=False, dtype="float32", name="temperature"
        )
        # Per output: do teacher and student give logits? Known once the models are.
        self._from_logits: tuple[list[bool], list[bool]] | None = None

    @property
    def temperature(self) -> float:
        """The temperature in force; assign to change it."""
        return float(keras.ops.convert_to_numpy(self._temperature))

    @temperature.setter
    def temperature(self, value: float) -> None:
        if self.task == "regression":
            raise TfcompError(f"Regression has no temperature to set. Received: {value}.")
        self._temperature.assign(_positive(value))

    def validate_model_compatibility(
        self, teacher: keras.Model | None, student: keras.Model
    ) -> None:
        """Reads what both models end in; `teacher` is None where its outputs are cached."""
        _check_not_masked(student)
        if self.task == "regression":
            return
        found = (
            self._read(teacher, self.teacher_from_logits, "teacher"),
            self._read(student, self.student_from_logits, "student"),
        )
        if self._from_logits is not None and self._from_logits != found:
            raise TfcompError(
                f"This {type(self).__name__} already serves models that end differently: expected "
                f"logits as {self._from_logits} for teacher and student, received {found}. Make "
                "one loss for each Distiller."
            )
        self._from_logits = found

    def _read(self, model: keras.Model | None, flag: bool | None, role: str) -> list[bool]:
        """For each output, whether it is logits; one entry where a flag says so for all."""
        if flag is not None:
            return [flag]
        if model is None or not is_graph_model(model):
            reason = "there is no teacher" if model is None else f"{model.name!r} is subclassed"
            raise TfcompError(
                f"Cannot read whether the {role}'s outputs are logits, because {reason}: expected "
                f"`{role}_from_logits=True` or False, received None. Pass it to "
                f"{type(self).__name__}."
            )
        expected = _PROBABILITIES[self.task]
        found = endings(model)
        for ending in found:
            if ending not in ("logits", expected):
                raise TfcompError(
                    f"A {self.task} {role} must end in logits or {expected}. Received: "
                    f"{model.name!r}, which ends in {ending}. Choose another `task`, or pass "
                    f"{role}_from_logits."
                )
        return [ending == "logits" for ending in found]

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raises `TfcompError` unless the outputs agree and have classes to compare."""
        super().validate_outputs(teacher_outputs, student_outputs)
        for output in keras.tree.flatten(student_outputs):
            shape = tuple(output.shape)
            if self.task == "multi-class" and (len(shape) < 2 or shape[-1] == 1):
                raise TfcompError(
                    "Multi-class distillation must have two classes or more on the last axis. "
                    f"Received: outputs of shape {shape}. For one sigmoid unit use "
                    'task="multi-label".'
                )

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Values of shape (batch,)."""
        teachers = keras.tree.flatten(teacher_outputs)
        students = keras.tree.flatten(student_outputs)
        of_teacher, of_student = self._from_logits or (
            [self.teacher_from_logits is not False],
            [self.student_from_logits is not False],
        )
        values = [
            self._one_output(t, s, of_teacher[i % len(of_teacher)], of_student[i % len(of_student)])
            for i, (t, s) in enumerate(zip(teachers, students, strict=True))
        ]
        return sum(values[1:], start=values[0])

    def _one_output(
        self, teacher: Any, student: Any, teacher_logits: bool, student_logits: bool
    ) -> Any:
        ops = keras.ops
        dtype = keras.backend.result_type(teacher.dtype, student.dtype, _MIN_DTYPE)
        teacher, student = ops.cast(teacher, dtype), ops.cast(student, dtype)
        if len(student.shape) == 1:
            teacher, student = teacher[:, None], student[:, None]
        if self.task == "regression":
            return _over_positions(0.5 * ops.sum(ops.square(student - teacher), axis=-1))
        to_logits = _softmax_logits if self.task == "multi-class" else _sigmoid_logits
        divergence = _softmax_kl if self.task == "multi-class" else _sigmoid_kl
        temperature = ops.cast(self._temperature, dtype)
        teacher = (teacher if teacher_logits else to_logits(teacher)) / temperature
        student = (student if student_logits else to_logits(student)) / temperature
        kl = _over_positions(divergence(teacher, student))
        # Rounding may leave −1e-8; the gradient stays that of the formula.
        kl = kl + ops.stop_gradient(ops.relu(-kl))
        return ops.square(temperature) * kl

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with the temperature now in force."""
        return {
            "temperature": self.temperature,
            "task": self.task,
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
            "name": self.name,
        }


def _check_not_masked(student: keras.Model) -> None:
    """Padding has no say in Keras's losses; here it would be averaged in without a word."""
    if not is_graph_model(student) or all(len(output.shape) < 3 for output in student.outputs):
        return
    for node in trace(student).nodes:
        if node.kind == "Masking" or getattr(node.op, "mask_zero", False):
            raise TfcompError(
                f"Masked time steps cannot be left out of the average: expected a student without "
                f"masks or with one output per sample, received {student.name!r}, whose layer "
                f"{node.name!r} masks. Pool over time, or drop the mask and weigh samples."
            )


def _positive(temperature: float) -> float:
    if isinstance(temperature, bool) or not (math.isfinite(temperature) and temperature > 0):
        raise TfcompError(f"`temperature` must be a number above 0. Received: {temperature}.")
    return float(temperature)


def _over_positions(values: Any) -> Any:
    """Mean over all axes but the first."""
    axes = list(range(1, len(values.shape)))
    return keras.ops.mean(values, axis=axes) if axes else values


def _softmax_logits(probabilities: Any) -> Any:
    return keras.ops.log(keras.ops.maximum(probabilities, _tiny(probabilities)))


def _sigmoid_logits(probabilities: Any) -> Any:
    ops = keras.ops
    one = 1.0 - _epsilon(probabilities) / 2
    probabilities = ops.clip(probabilities, _tiny(probabilities), one)
    return ops.log(probabilities) - ops.log1p(-probabilities)


def _softmax_kl(teacher: Any, student: Any) -> Any:
    ops = keras.ops
    log_p, log_q = ops.log_softmax(teacher, axis=-1), ops.log_softmax(student, axis=-1)
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def _sigmoid_kl(teacher: Any, student: Any) -> Any:
    ops = keras.ops
    on = ops.sigmoid(teacher) * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student))
    off = ops.sigmoid(-teacher) * (ops.log_sigmoid(-teacher) - ops.log_sigmoid(-student))
    return ops.sum(on + off, axis=-1)


def _tiny(tensor: Any) -> float:
    """The smallest normal number of the tensor's type."""
    return 2.3e-308 if keras.backend.standardize_dtype(tensor.dtype) == "float64" else 1.2e-38


def _epsilon(tensor: Any) -> float:
    """The distance from 1 to the next number of the tensor's type."""
    return 2.0**-52 if keras.backend.standardize_dtype(tensor.dtype) == "float64" else 2.0**-23
