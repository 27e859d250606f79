"""Models of sizes in between, that pass on what a large teacher knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import keras

from tfcomp.distillation.course import Course, Training, score
from tfcomp.distillation.course_report import CourseReport
from tfcomp.distillation.lesson import Lesson, Source
from tfcomp.distillation.losses import KnowledgeDistillation
from tfcomp.errors import TfcompError

Path = Literal["given", "best"]


@keras.saving.register_keras_serializable(package="tfcomp")
class AssistantChain(Course):
    """A teacher teaches an assistant, this one the next, and the last the student.

    Each lesson is the training of one model by a `Distiller`, with the losses, weights,
    optimizer and data that are the same in all of them.

    The path is the given one, teacher → assistants in their order → student, or the best that
    leads to the student: among all paths that keep the order and may leave assistants out.
    With A(j) the metric of model j when it was taught over its best path,

    A(j) = max_{i<j} A(i → j),    i → j: model j is taught by model i, which was taught best.

    So every model is taught once by each before it, (n+1)(n+2)/2 lessons for n assistants
    instead of 2ⁿ paths. Choose it on validation data that nothing else is judged by.

    With a `directory`, every finished lesson is kept in it; `fit` with the same arguments goes
    on after the last one, also when the process was killed. A lesson is used again only if
    teacher, student, settings and data are the same; else `fit` raises. Of models count weights,
    configuration, and the code of own classes and of functions that these name; of what lies
    elsewhere, in an imported package for one, a change is not noticed.

    `save` as `.keras`, in a callback when an epoch has ended, keeps the finished lessons and
    the one that learns; `fit` of what `keras.saving.load_model` returns goes on from there to the
    same weights, told what it was told before. As with any Keras model the file does not hold the
    order of shuffled data, nor what callbacks have counted; what is drawn after it needs a `seed`
    to be drawn again, and data are compared with a `directory` only. Otherwise, `fit` begins anew.

    Args:
        teacher: A built model, trained. Not changed.
        assistants: Models, or functions that make one, from large to small. A model is copied
            and starts from its weights; a function is called once to see what it makes, and
            once for each lesson.
        student: Likewise; `chain.student` afterwards.
        distillation_losses: As for `Distiller`, copied for each lesson; by default
            `KnowledgeDistillation()`.
        distillation_loss_weights: As for `Distiller`.
        student_loss_weight: As for `Distiller`; at 0 neither labels nor a loss are needed.
        path: `"given"` or `"best"`.
        monitor: The metric of the best path, as `evaluate` names it. Of one that ends in "loss"
            or "error", less is better.
        name: Name of the model.
        **kwargs: Passed to `keras.Model`.

    Raises:
        TfcompError: If the arguments do not fit together.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import AssistantChain
        >>> def net(units):
        ...     layers = [keras.layers.Dense(units, "relu"), keras.layers.Dense(3)]
        ...     return keras.Sequential([keras.Input((4,)), *layers])
        >>> chain = AssistantChain(net(64), [net(16)], net(4), student_loss_weight=0.1)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> chain.compile("adam", loss=loss, metrics=["accuracy"])
        >>> x, y = np.random.rand(64, 4), np.random.randint(3, size=64)
        >>> report = chain.fit(x, y, validation_data=(x, y), verbose=0)
        >>> report.path
        ('teacher', 'assistant_1', 'student')
        >>> sorted(report.evaluations["student"])
        ['accuracy', 'loss']

    Reference:
        Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh (2019), Improved Knowledge
        Distillation via Teacher Assistant, arXiv:1902.03393.
    """

    _models_in_config = (*Course._models_in_config, "assistants", "student")

    def __init__(
        self,
        teacher: keras.Model,
        assistants: Sequence[keras.Model | Callable[[], keras.Model]],
        student: keras.Model | Callable[[], keras.Model],
        distillation_losses: Any = None,
        distillation_loss_weights: Any = None,
        student_loss_weight: float = 0.5,
        path: Path = "given",
        monitor: str = "accuracy",
        name: str = "assistant_chain",
        **kwargs: Any,
    ) -> None:
        losses = KnowledgeDistillation() if distillation_losses is None else distillation_losses
        super().__init__(
            teacher, losses, distillation_loss_weights, student_loss_weight, name, **kwargs
        )
        if path not in get_args(Path):
            raise TfcompError(f'`path` must be "given" or "best". Received: {path!r}.')
        if not isinstance(assistants, (list, tuple)) or not assistants:
            raise TfcompError(
                f"`assistants` must be a list of one or more. Received: {assistants!r}. For none "
                "use a Distiller."
            )
        self.monitor = monitor
        # Keras has a `path` of its own.
        self._choice: Path = path
        self._sources = [Source(a, f"assistant_{i}") for i, a in enumerate(assistants, start=1)]
        self._sources.append(Source(student, "student"))

    @property
    def _models_to_start_from(self) -> list[keras.Model]:
        return [source.given for source in self._sources if isinstance(source.given, keras.Model)]

    def _give(self, training: Training) -> CourseReport:
        searched = self._choice == "best"
        if searched and training.validation_data is None:
            raise TfcompError("The best path needs validation_data. Received: None.")
        chain = self._search(training) if searched else self._follow(training)
        return self._reported(training, ["teacher", *(lesson.student for lesson in chain)])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, and how far the course is."""
        *assistants, student = [source.get_config() for source in self._sources]
        return {
            **super().get_config(),
            "assistants": assistants,
            "student": student,
            "path": self._choice,
            "monitor": self.monitor,
        }

    def _follow(self, training: Training) -> list[Lesson]:
        """All lessons."""
        chain: list[Lesson] = []
        for number, source in enumerate(self._sources):
            teacher = chain[-1] if chain else None
            chain.append(self._teach(training, number, teacher, source))
        return chain

    def _search(self, training: Training) -> list[Lesson]:
        """The lessons on the best path."""
        # The best chain that ends in the teacher, which is empty, and in each model after it.
        chains: list[list[Lesson]] = [[]]
        for number, source in enumerate(self._sources):
            found = []
            for chain in chains:
                lesson = self._teach(training, number, chain[-1] if chain else None, source)
                found.append([*chain, lesson])
            # The first of equals: the shorter path.
            chains.append(max(found, key=lambda chain: score(chain[-1], self.monitor)))
        return chains[-1]
