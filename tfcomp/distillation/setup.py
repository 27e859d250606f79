"""What a `Distiller` works with: both models, the losses and their weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfcomp.distillation.coefficients import Coefficient, LossSelection
from tfcomp.distillation.extractor import FeatureExtractor
from tfcomp.distillation.inputs import image_size
from tfcomp.distillation.losses.per_sample import shapes
from tfcomp.distillation.terms import Term
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model


@dataclasses.dataclass(eq=False)
class Setup:
    """What a distiller works with. Keras does not look into it, so it tracks none of it: the
    teacher's weights are not the distiller's, nor are the extractors saved beside the models.
    """

    teacher: FeatureExtractor | None
    student: FeatureExtractor
    terms: tuple[Term, ...]
    losses: Any
    weights: list[float]
    share: Coefficient
    selection: LossSelection
    # Whether a step without labels has been traced, which cannot be given a share later.
    unlabelled: bool = False

    def __post_init__(self) -> None:
        self.teacher_size = None if self.teacher is None else image_size(self.teacher.model)
        self.student_size = image_size(self.student.model)

    def entry_weights(self) -> list[float]:
        """The weights now in force, as the caller gave them: one for each entry."""
        weights = list(self.weights)
        for term in self.terms:
            weights[term.entry] = term.weight.number
        return weights


def fraction(weight: Any) -> float:
    """`student_loss_weight` as a float; raises `TfcompError` unless it is in [0, 1]."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise TfcompError(f"`student_loss_weight` must be in [0, 1]. Received: {weight!r}.")
    return float(weight)


def check_models(teacher: Any, student: Any) -> None:
    """Raises `TfcompError` unless both are built models, two of them, for the same inputs."""
    for model, role in [(student, "student"), (teacher, "teacher")]:
        if model is None and role == "teacher":
            continue
        if not isinstance(model, keras.Model):
            raise TfcompError(f"The {role} must be a keras.Model. Received: {model!r}.")
        if not model.built:
            raise TfcompError(
                f"The {role} {model.name!r} has no weights yet: expected a built model, received "
                "an unbuilt one. Start it with keras.Input(shape), or call it on a batch."
            )
    if teacher is student:
        raise TfcompError(
            f"Teacher and student must be two models. Received: {student.name!r} as both. Copy it "
            "with keras.models.clone_model."
        )
    if teacher is not None and is_graph_model(teacher) and is_graph_model(student):
        _check_inputs(teacher, student)


def _check_inputs(teacher: keras.Model, student: keras.Model) -> None:
    expected, received = shapes(list(teacher.inputs)), shapes(list(student.inputs))
    if image_size(teacher) is not None and image_size(student) is not None:
        # Images are resized, hence only their channels must agree.
        expected, received = ({k: v[3:] for k, v in one.items()} for one in (expected, received))
    same = list(expected) == list(received) and all(
        len(a) == len(b) and all(m == n or None in (m, n) for m, n in zip(a, b, strict=True))
        for a, b in zip(expected.values(), received.values(), strict=True)
    )
    if not same:
        raise TfcompError(
            f"Teacher and student must take the same inputs: expected "
            f"{list(shapes(list(teacher.inputs)).values())} as the teacher's, received "
            f"{list(shapes(list(student.inputs)).values())} from the student. Images may differ "
            "in size alone; put a layer in front of one of them."
        )
