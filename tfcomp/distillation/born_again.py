"""Generations of one architecture, each taught by the one before."""

from __future__ import annotations

from typing import Any

import keras

from tfcomp.distillation.course import Course, CourseReport, Training, score
from tfcomp.distillation.ensemble import Ensemble
from tfcomp.distillation.lesson import Lesson, Source, copy_model
from tfcomp.distillation.losses import KnowledgeDistillation
from tfcomp.distillation.losses.ending import endings
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model


class BornAgain(Course):
    """A model teaches one like itself with new weights, this one the next, and so on.

    θ_k = argmin_θ s·task(y, f_θ) + (1−s)·distillation(f_{θ_{k−1}}, f_θ),    k = 1 … K

    θ_0 are the teacher's weights and s is `student_loss_weight`. Each generation starts from
    weights drawn anew; layers that do not learn (frozen ones, a `Normalization`) keep theirs.
    The ensemble is the mean of the probabilities of generations 1 … K, as in the paper.

    With `generations=None` the course ends after the first generation that is not better on the
    validation data than the one before it, and the result is the one before it.

    With a `directory`, every finished generation is kept in it; `fit` with the same arguments,
    or with more generations, goes on after the last one, also when the process was killed. A
    generation is used again only if teacher, settings and data are the same; else `fit` raises.
    Of the teacher count weights, configuration, and the code of own classes and of functions that
    these name; of what lies elsewhere, in an imported package for one, a change is not noticed.

    Args:
        teacher: A built model, trained; functional, Sequential, or subclassed with a
            configuration. Not changed.
        generations: K; None for as long as validation improves.
        distillation_losses: As for `Distiller`, copied for each generation; by default
            `KnowledgeDistillation(temperature=1.0)`, the paper's.
        distillation_loss_weights: As for `Distiller`.
        student_loss_weight: As for `Distiller`; at 0 neither labels nor a loss are needed.
        monitor: The metric that must improve, as `evaluate` names it. Of one that ends in
            "loss" or "error", less is better.

    Raises:
        TfcompError: If the arguments do not fit together.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import BornAgain
        >>> layers = [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
        >>> born_again = BornAgain(keras.Sequential(layers), generations=2)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> born_again.compile("adam", loss=loss, metrics=["accuracy"])
        >>> x, y = np.random.rand(64, 4), np.random.randint(3, size=64)
        >>> report = born_again.fit(x, y, validation_data=(x, y), verbose=0)
        >>> list(report.evaluations)
        ['teacher', 'generation_1', 'generation_2', 'ensemble']
        >>> born_again.ensemble(x).shape
        TensorShape([64, 3])

    Reference:
        Furlanello, Lipton, Tschannen, Itti, Anandkumar (2018), Born-Again Neural Networks,
        arXiv:1805.04770.
    """

    def __init__(
        self,
        teacher: keras.Model,
        generations: int | None = 3,
        distillation_losses: Any = None,
        distillation_loss_weights: Any = None,
        student_loss_weight: float = 0.5,
        monitor: str = "accuracy",
    ) -> None:
        if distillation_losses is None:
            distillation_losses = KnowledgeDistillation(temperature=1.0)
        super().__init__(
            teacher, distillation_losses, distillation_loss_weights, student_loss_weight
        )
        whole = isinstance(generations, int) and not isinstance(generations, bool)
        if generations is not None and not (whole and generations >= 1):
            raise TfcompError(f"`generations` must be 1 or more. Received: {generations!r}.")
        self.generation_count = generations
        self.monitor = monitor
        self._lessons: list[Lesson] = []

    @property
    def generations(self) -> list[keras.Model]:
        """All models that the last `fit` trained, in order: plain models."""
        if not self._lessons:
            raise TfcompError("There are no generations yet: expected a call of fit before.")
        return [lesson.model for lesson in self._lessons]

    @property
    def student(self) -> keras.Model:
        """The last generation; the last that improved where `generations` is None."""
        number = len(self.report.path) - 1
        return self.generations[number - 1]

    @property
    def ensemble(self) -> keras.Model:
        """All generations as one model, which ends as they do: in logits or in softmax."""
        ensemble = Ensemble(self.generations)
        if endings(self.generations[0]) == ["logits"]:
            return ensemble
        return keras.Model(ensemble.input, keras.layers.Softmax()(ensemble.output), name="ensemble")

    def _give(self, training: Training) -> CourseReport:
        if self.generation_count is None and training.validation_data is None:
            raise TfcompError("`generations=None` needs validation_data. Received: None.")
        self._lessons = []
        while not self._done():
            number = len(self._lessons) + 1
            source = Source(self._reborn, f"generation_{number}")
            teacher = self._lessons[-1] if self._lessons else None
            self._lessons.append(self._teach(training, number, teacher, source))
        kept = len(self._lessons) - (self.generation_count is None)
        path = ["teacher", *(lesson.student for lesson in self._lessons[:kept])]
        others = {"ensemble": self.ensemble} if self._are_classifiers() else {}
        return self._reported(training, self._lessons, path, **others)

    def _done(self) -> bool:
        if self.generation_count is not None:
            return len(self._lessons) == self.generation_count
        scores = [score(lesson, self.monitor) for lesson in self._lessons]
        return len(scores) > 1 and not scores[-1] > scores[-2]

    def _reborn(self) -> keras.Model:
        return copy_model(self.teacher, new_weights=True)

    def _are_classifiers(self) -> bool:
        return is_graph_model(self.teacher) and endings(self.teacher) in (["logits"], ["softmax"])
