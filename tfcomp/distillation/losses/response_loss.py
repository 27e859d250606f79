"""The bases of the losses that compare what models say: their outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras

from tfcomp.distillation.losses.ending import Ending, endings, softmax_logits
from tfcomp.distillation.losses.per_sample import PerSampleLoss
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model, trace

# Softened outputs need both tails of a float; half precision is lifted to this.
_MIN_DTYPE = "float32"
# The gradient of log p is 1/p: below this its products would leave float32.
_LEAST_PROBABILITY = 1e-30


class Pair(NamedTuple):
    """One output of both models, as logits of shape (batch, ..., classes).

    Attributes:
        teacher: The teacher's logits, float32 at least.
        student: The student's.
        teacher_gave_logits: False where they were made from probabilities: those of a softmax
            are known up to a constant per sample.
        student_gave_logits: The same for the student.
    """

    teacher: Any
    student: Any
    teacher_gave_logits: bool
    student_gave_logits: bool


class ResponseLoss(PerSampleLoss):
    """A distillation loss on the models' outputs, logits or probabilities, each its own way.

    What a model ends in is read from its last layer when a `Distiller` is made. A subclass
    defines `compare`, which sees logits. Axes between the first and the last (pixels, time
    steps) are averaged, several outputs are summed.

    Attributes:
        probabilities: What models may end in instead of logits; None to take outputs as they are.

    Args:
        teacher_from_logits: Whether the teacher's outputs are logits. None: read from the
            teacher's last layer when a `Distiller` is made, logits where there is no model.
        student_from_logits: The same for the student.
        name: Name of its metric; by default that of the class.

    Raises:
        TfcompError: If a flag is no bool; at construction of the `Distiller`, if a model's
            ending cannot be read or does not fit.

    Example:
        >>> import keras
        >>> class Distance(ResponseLoss):
        ...     def compare(self, pair):
        ...         return keras.ops.norm(pair.teacher - pair.student, axis=-1)
        >>> loss = Distance(teacher_from_logits=False)
        >>> teacher, student = keras.ops.array([[1.0, 1.0]]), keras.ops.array([[3.0, 4.0]])
        >>> float(loss.per_sample(teacher, student)[0])
        5.0
    """

    probabilities: Ending | None = "softmax"

    def __init__(
        self,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        name: str | None = None,
    ) -> None:
        flags = {
            "teacher_from_logits": teacher_from_logits,
            "student_from_logits": student_from_logits,
        }
        for argument, flag in flags.items():
            if flag is not None and not isinstance(flag, bool):
                raise TfcompError(f"`{argument}` must be True, False or None. Received: {flag!r}.")
        self.teacher_from_logits = teacher_from_logits
        self.student_from_logits = student_from_logits
        self.name = name
        # Per output: do teacher and student give logits? Known once the models are.
        self._from_logits: tuple[list[bool], list[bool]] | None = None

    def validate_model_compatibility(
        self, teacher: keras.Model | None, student: keras.Model
    ) -> None:
        """Reads what both models end in; `teacher` is None where its outputs are cached."""
        _check_not_masked(student)
        if self.probabilities is None:
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
        found = endings(model)
        for ending in found:
            if ending not in ("logits", self.probabilities):
                task = "multi-label" if ending == "sigmoid" else "multi-class"
                raise TfcompError(
                    f"The {role} of this {type(self).__name__} must end in logits or "
                    f"{self.probabilities}. Received: {model.name!r}, which ends in {ending}. Use "
                    f'KnowledgeDistillation(task="{task}").'
                )
        return [ending == "logits" for ending in found]

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raises `TfcompError` unless the outputs agree and have classes to compare."""
        super().validate_outputs(teacher_outputs, student_outputs)
        for output in keras.tree.flatten(student_outputs):
            shape = tuple(output.shape)
            if self.probabilities == "softmax" and (len(shape) < 2 or shape[-1] == 1):
                raise TfcompError(
                    "Multi-class distillation must have two classes or more on the last axis. "
                    f"Received: outputs of shape {shape}. For one sigmoid unit use "
                    'KnowledgeDistillation(task="multi-label").'
                )

    def pairs(self, teacher_outputs: Any, student_outputs: Any) -> list[Pair]:
        """Both models' logits, output by output."""
        teachers = keras.tree.flatten(teacher_outputs)
        students = keras.tree.flatten(student_outputs)
        of_teacher, of_student = self._from_logits or (
            [self.teacher_from_logits is not False],
            [self.student_from_logits is not False],
        )
        return [
            self._pair(t, s, of_teacher[i % len(of_teacher)], of_student[i % len(of_student)])
            for i, (t, s) in enumerate(zip(teachers, students, strict=True))
        ]

    def _pair(self, teacher: Any, student: Any, of_teacher: bool, of_student: bool) -> Pair:
        ops = keras.ops
        dtype = keras.backend.result_type(teacher.dtype, student.dtype, _MIN_DTYPE)
        teacher, student = ops.cast(teacher, dtype), ops.cast(student, dtype)
        if len(student.shape) == 1:
            teacher, student = teacher[:, None], student[:, None]
        return Pair(
            teacher if of_teacher else self.to_logits(teacher),
            student if of_student else self.to_logits(student),
            of_teacher,
            of_student,
        )

    def to_logits(self, probabilities: Any) -> Any:
        """Logits of probabilities; those below 1e-30 count as that."""
        return softmax_logits(probabilities, _LEAST_PROBABILITY)

    def compare(self, pair: Pair) -> Any:
        """Values of shape (batch, ...): per sample and position."""
        raise NotImplementedError(f"{type(self).__name__} must define compare().")

    def per_sample(self, teacher_outputs: Any, student_outputs: Any, *step: Any) -> Any:
        """Values of shape (batch,)."""
        return total(self.compare(pair) for pair in self.pairs(teacher_outputs, student_outputs))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
            "name": self.name,
        }


class SoftenedLoss(ResponseLoss):
    """A loss on outputs that a temperature T softens: it compares z/T.

    Args:
        temperature: T > 0, no unit. It may be assigned during training and takes effect with
            the next step, without a new trace.
        teacher_from_logits: As in `ResponseLoss`.
        student_from_logits: As in `ResponseLoss`.
        name: Name of its metric; by default that of the class.
    """

    def __init__(
        self,
        temperature: float,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_from_logits, student_from_logits, name)
        # A variable, so that a schedule changes it without a new trace.
        self._temperature = keras.Variable(
            _positive(temperature), trainable=False, dtype="float32", name="temperature"
        )

    @property
    def temperature(self) -> float:
        """The temperature in force; assign to change it."""
        return float(keras.ops.convert_to_numpy(self._temperature))

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature.assign(self.check_temperature(value))

    def check_temperature(self, value: Any) -> float:
        """The temperature as a float; raises `TfcompError` unless it may be set."""
        return _positive(value)

    def soften(self, logits: Any) -> Any:
        """z/T."""
        return logits / keras.ops.cast(self._temperature, logits.dtype)

    def scale(self, values: Any) -> Any:
        """T²·values, so that gradients keep their size whatever T is."""
        return keras.ops.square(keras.ops.cast(self._temperature, values.dtype)) * values

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with the temperature now in force."""
        return {"temperature": self.temperature, **super().get_config()}


def total(values: Iterable[Any]) -> Any:
    """Values per sample, shape (batch,), of values per output, sample and position."""
    outputs = [_over_positions(value) for value in values]
    return sum(outputs[1:], start=outputs[0])


def softmax_kl(teacher: Any, student: Any) -> Any:
    """KL(softmax(teacher) ‖ softmax(student)) over the last axis."""
    ops = keras.ops
    log_p, log_q = ops.log_softmax(teacher, axis=-1), ops.log_softmax(student, axis=-1)
    return not_negative(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1))


def sigmoid_kl(teacher: Any, student: Any) -> Any:
    """KL(Bernoulli(σ(teacher)) ‖ Bernoulli(σ(student))), element by element."""
    ops = keras.ops
    on = ops.sigmoid(teacher) * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student))
    off = ops.sigmoid(-teacher) * (ops.log_sigmoid(-teacher) - ops.log_sigmoid(-student))
    return not_negative(on + off)


def not_negative(values: Any) -> Any:
    """Values that only rounding makes negative, −1e-8 for one; their gradient is unchanged."""
    return values + keras.ops.stop_gradient(keras.ops.relu(-values))


def _over_positions(values: Any) -> Any:
    """Mean over all axes but the first."""
    axes = list(range(1, len(values.shape)))
    return keras.ops.mean(values, axis=axes) if axes else values


def _positive(temperature: Any) -> float:
    if isinstance(temperature, bool) or not (math.isfinite(temperature) and temperature > 0):
        raise TfcompError(f"`temperature` must be a number above 0. Received: {temperature}.")
    return float(temperature)


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
