"""Models of sizes in between, that pass on what a large teacher knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import keras

from tfcomp.distillation.course import Course, CourseReport, Training, score
from tfcomp.distillation.lesson import Lesson, Source
from tfcomp.distillation.losses import KnowledgeDistillation
from tfcomp.errors import TfcompError

Path = Literal["given", "best"]


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
    ) -> None:
        losses = KnowledgeDistillation() if distillation_losses is None else distillation_losses
        super().__init__(teacher, losses, distillation_loss_weights, student_loss_weight)
        if path not in get_args(Path):
            raise TfcompError(f'`path` must be "given" or "best". Received: {path!r}.')
        if not isinstance(assistants, (list, tuple)) or not assistants:
            raise TfcompError(
                f"`assistants` must be a list of one or more. Received: {assistants!r}. For none "
                "use a Distiller."
            )
        self.path: Path = path
        self.monitor = monitor
        self._sources = [Source(a, f"assistant_{i}") for i, a in enumerate(assistants, start=1)]
        self._sources.append(Source(student, "student"))
        self._student: keras.Model | None = None

    @property
    def student(self) -> keras.Model:
        """The student that the last `fit` trained: a plain model."""
        if self._student is None:
            raise TfcompError("There is no student yet: expected a call of fit before.")
        return self._student

    def _give(self, training: Training) -> CourseReport:
        if self.path == "best" and training.validation_data is None:
            raise TfcompError("The best path needs validation_data. Received: None.")
        lessons, chain = (self._search if self.path == "best" else self._follow)(training)
        self._student = chain[-1].model
        path = ["teacher", *(lesson.student for lesson in chain)]
        return self._reported(training, lessons, path)

    def _follow(self, training: Training) -> tuple[list[Lesson], list[Lesson]]:
        """All lessons, and those on the path: here the same."""
        chain: list[Lesson] = []
        for number, source in enumerate(self._sources):
            teacher = chain[-1] if chain else None
            chain.append(self._teach(training, number, teacher, source))
        return chain, chain

    def _search(self, training: Training) -> tuple[list[Lesson], list[Lesson]]:
        lessons: list[Lesson] = []
        # The best chain that ends in the teacher, which is empty, and in each model after it.
        chains: list[list[Lesson]] = [[]]
        for number, source in enumerate(self._sources):
            found = []
            for chain in chains:
                lesson = self._teach(training, number, chain[-1] if chain else None, source)
                lessons.append(lesson)
                found.append([*chain, lesson])
            # The first of equals: the shorter path.
            chains.append(max(found, key=lambda chain: score(chain[-1], self.monitor)))
        return lessons, chains[-1]
