"""Generations of one architecture, each taught by the one before."""

from __future__ import annotations

from typing import Any

import keras

from tfcomp.distillation.course import Course, Training, score
from tfcomp.distillation.course_report import CourseReport
from tfcomp.distillation.ensemble import Ensemble
from tfcomp.distillation.lesson import Lesson, Source, copy_model
from tfcomp.distillation.losses import KnowledgeDistillation
from tfcomp.distillation.losses.ending import endings
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model


@keras.saving.register_keras_serializable(package="tfcomp")
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

    `save` as `.keras`, in a callback when an epoch has ended, keeps the finished generations and
    the one that learns; `fit` of what `keras.saving.load_model` returns goes on from there to the
    same weights, told what it was told before. As with any Keras model the file does not hold the
    order of shuffled data, nor what callbacks have counted; what is drawn after it needs a `seed`
    to be drawn again, and data are compared with a `directory` only. Otherwise, `fit` begins anew.

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
        name: Name of the model.
        **kwargs: Passed to `keras.Model`.

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
        name: str = "born_again",
        **kwargs: Any,
    ) -> None:
        if distillation_losses is None:
            distillation_losses = KnowledgeDistillation(temperature=1.0)
        super().__init__(
            teacher,
            distillation_losses,
            distillation_loss_weights,
            student_loss_weight,
            name,
            **kwargs,
        )
        whole = isinstance(generations, int) and not isinstance(generations, bool)
        if generations is not None and not (whole and generations >= 1):
            raise TfcompError(f"`generations` must be 1 or more. Received: {generations!r}.")
        self.generation_count = generations
        self.monitor = monitor

    @property
    def generations(self) -> list[keras.Model]:
        """All models that the last `fit` trained, in order: plain models."""
        if not self._taught or self._setup.progress.lacks_weights:
            raise TfcompError("There are no generations yet: expected a call of fit before.")
        return self._taught

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
        lessons: list[Lesson] = []
        while not self._done(lessons):
            number = len(lessons) + 1
            source = Source(self._reborn, f"generation_{number}")
            teacher = lessons[-1] if lessons else None
            lessons.append(self._teach(training, number, teacher, source))
        kept = len(lessons) - (self.generation_count is None)
        path = ["teacher", *(lesson.student for lesson in lessons[:kept])]
        others = {"ensemble": self.ensemble} if self._are_classifiers() else {}
        return self._reported(training, path, **others)

    def _done(self, lessons: list[Lesson]) -> bool:
        if self.generation_count is not None:
            return len(lessons) == self.generation_count
        scores = [score(lesson, self.monitor) for lesson in lessons]
        return len(scores) > 1 and not scores[-1] > scores[-2]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, and how far the course is."""
        return {
            **super().get_config(),
            "generations": self.generation_count,
            "monitor": self.monitor,
        }

    def _reborn(self) -> keras.Model:
        return copy_model(self.teacher, new_weights=True)

    def _are_classifiers(self) -> bool:
        return is_graph_model(self.teacher) and endings(self.teacher) in (["logits"], ["softmax"])
