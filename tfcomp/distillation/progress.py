"""How far a course of lessons is, as its `.keras` file keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tfcomp.distillation.course_report import CourseReport
from tfcomp.distillation.distiller import Distiller
from tfcomp.distillation.lesson import Lesson, differences
from tfcomp.errors import TfcompError

# The names of a lesson's student and of its teacher.
Pair = tuple[str, str]


class RunningLesson(keras.callbacks.Callback):
    """A lesson that is being given, told of its epochs as the first of its callbacks.

    Args:
        distiller: What trains the student.
        key: What the lesson is given with.
        epochs: How many were given before.
        logs: Those of epochs that were given before, one by one.
    """

    def __init__(
        self,
        distiller: Distiller,
        key: dict[str, str],
        epochs: int = 0,
        logs: Sequence[dict[str, float]] = (),
    ) -> None:
        super().__init__()
        self.distiller = distiller
        self.key = key
        self.epochs = epochs
        self.within_epoch = False
        self._logs = list(logs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """From here on the student is between two states that count."""
        self.within_epoch = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Counts the epoch before another callback saves the course."""
        self.epochs = epoch + 1
        self.within_epoch = False
        # The dictionary itself: callbacks that come later may add to it.
        self._logs.append({} if logs is None else logs)

    def epoch_logs(self) -> list[dict[str, float]]:
        """The logs of each epoch."""
        return [{name: float(value) for name, value in one.items()} for one in self._logs]

    def history(self) -> dict[str, list[float]]:
        """The logs by name, as `fit` returns them."""
        history: dict[str, list[float]] = {}
        for logs in self.epoch_logs():
            for name, value in logs.items():
                history.setdefault(name, []).append(value)
        return history


class Progress:
    """The lessons that were given, in their order, and the one that is being given.

    Attributes:
        lessons: Those that are finished, by the names of student and teacher.
        running: The lesson between two of its epochs, by the same; None between lessons.
        report: What `fit` returned; None before the end.
        told: By parts, what `fit` is told beside data, found when it is asked for.
        is_read: Whether there are lessons to go on from, which come from a file.
        lacks_weights: Whether this is a description alone, whose weights were not read.
    """

    def __init__(self, told: Callable[[], dict[str, str]] = dict) -> None:
        self.lessons: dict[Pair, Lesson] = {}
        self.running: tuple[Pair, RunningLesson] | None = None
        self.report: CourseReport | None = None
        self.told = told
        self.is_read = False
        self.lacks_weights = False

    def check(self, told: dict[str, str]) -> None:
        """Raises `TfcompError` unless `fit` is told what it was told before the course was saved.

        Args:
            told: What it is told now, as `told` returns it.
        """
        check_key(self.told(), told)
        self.told = lambda: told

    def begin(self, pair: Pair, running: RunningLesson) -> None:
        """A lesson is being given."""
        self.running = (pair, running)

    def finish(self, lesson: Lesson) -> None:
        """A lesson was given."""
        pair = (lesson.student, lesson.teacher)
        self.lessons[pair] = lesson
        if self.resumed(pair) is not None:
            self.running = None

    def weights_are_read(self) -> None:
        """The weights of all models have come from a file."""
        self.lacks_weights = False
        self.is_read = self.report is None and bool(self.lessons or self.running)

    def resumed(self, pair: Pair) -> RunningLesson | None:
        """The lesson to go on within, if it is this one."""
        if self.running is None or self.running[0] != pair:
            return None
        return self.running[1]

    def get_config(self) -> dict[str, Any]:
        """All but weights.

        Raises:
            TfcompError: If a lesson is within an epoch.
        """
        serialize = keras.saving.serialize_keras_object
        running = None
        if self.running is not None:
            pair, lesson = self.running
            if lesson.within_epoch:
                raise TfcompError(
                    "A course is saved when an epoch has ended: expected a call in on_epoch_end, "
                    f"received one within epoch {lesson.epochs + 1} of {pair[0]!r}. Save there."
                )
            taught = {id(one.model): key for key, one in self.lessons.items()}
            running = {
                "pair": pair,
                "teacher": taught.get(id(lesson.distiller.teacher)),
                "key": lesson.key,
                "epochs": lesson.epochs,
                "logs": lesson.epoch_logs(),
                "distiller": {**lesson.distiller.get_config(), "teacher": None},
            }
        finished = [
            {
                **{field: getattr(lesson, field) for field in _FIELDS},
                "model": serialize(lesson.model),
            }
            for lesson in self.lessons.values()
        ]
        report = None
        if self.report is not None:
            report = {"path": self.report.path, "evaluations": self.report.evaluations}
        return {
            "lessons": finished,
            "running": running,
            "report": report,
            "told": self.told(),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], teacher: keras.Model, custom_objects: Any = None
    ) -> Progress:
        """What `get_config` described, with models whose weights are still to be read.

        Args:
            config: The description.
            teacher: The course's teacher.
            custom_objects: As in Keras.
        """

        def load(part: Any) -> Any:
            return keras.saving.deserialize_keras_object(part, custom_objects=custom_objects)

        progress = cls(lambda: config["told"])
        progress.lacks_weights = True
        for kept in config["lessons"]:
            fields = {field: kept[field] for field in _FIELDS}
            progress.finish(Lesson(**fields, model=load(kept["model"]), reused=True))
        if config["running"] is not None:
            progress.running = _running(config["running"], teacher, progress.lessons, load)
        if config["report"] is not None:
            path, evaluations = tuple(config["report"]["path"]), config["report"]["evaluations"]
            progress.report = CourseReport(tuple(progress.lessons.values()), path, evaluations)
        return progress


_FIELDS = ("student", "teacher", "evaluation", "history", "key")


def _running(
    config: Mapping[str, Any],
    teacher: keras.Model,
    lessons: Mapping[Pair, Lesson],
    load: Callable[[Any], Any],
) -> tuple[Pair, RunningLesson]:
    student, by = config["pair"]
    if config["teacher"] is not None:
        of, taught_by = config["teacher"]
        teacher = lessons[of, taught_by].model
    parts = {part: load(config["distiller"][part]) for part in ("student", "distillation_losses")}
    distiller = Distiller(**{**config["distiller"], **parts, "teacher": teacher})
    lesson = RunningLesson(distiller, config["key"], config["epochs"], config["logs"])
    return (student, by), lesson


def check_key(kept: dict[str, str], key: dict[str, str]) -> None:
    """Raises `TfcompError` if a loaded course was given with anything else.

    Args:
        kept: By parts, what it was given with.
        key: The same now.
    """
    other = differences(kept, key)
    if other:
        raise TfcompError(
            f"The course was begun with other {other}: expected the same. "
            "Call fit as it was called before the course was saved."
        )
