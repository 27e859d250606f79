"""Distillation in several lessons."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcomp.distillation.copies import copy_stateful
from tfcomp.distillation.digests import data_digest, digest, model_digest, unnamed
from tfcomp.distillation.distiller import Distiller
from tfcomp.distillation.inputs import DistillationInputs, is_absent, unpack
from tfcomp.distillation.lesson import Lesson, LessonFiles, Source
from tfcomp.distillation.losses import PerSampleLoss
from tfcomp.errors import TfcompError


@dataclasses.dataclass(frozen=True, eq=False)
class CourseReport:
    """What a course of lessons has brought.

    Attributes:
        lessons: All lessons in the order in which they were given.
        path: Names of the models that lead to the result, the teacher first.
        evaluations: Metrics on the validation data, by name of model: the teacher, those on the
            path, and the ensemble where there is one. Empty without such data.
    """

    lessons: tuple[Lesson, ...]
    path: tuple[str, ...]
    evaluations: dict[str, dict[str, float]]

    def __str__(self) -> str:
        taught = {lesson.student for lesson in self.lessons}
        rows = [(name, values) for name, values in self.evaluations.items() if name not in taught]
        rows += [(f"{x.student} (taught by {x.teacher})", x.evaluation) for x in self.lessons]
        lines = [
            f"{name}: {', '.join(f'{key} {value:.4f}' for key, value in values.items())}"
            for name, values in rows
        ]
        return "\n".join([f"path: {' → '.join(self.path)}", *lines])


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """What is the same in all lessons of one `fit`.

    Attributes:
        x: As `keras.Model.fit` takes it.
        y: Likewise.
        validation_data: Likewise; None for none.
        directory: Where lessons are kept; None for nowhere.
        seed: What the random numbers of each lesson start from; None to leave them.
        options: Other arguments of `fit`.
        key: What a lesson in the directory must have been given with; empty without a directory.
    """

    x: Any
    y: Any
    validation_data: Any
    directory: pathlib.Path | None
    seed: int | None
    options: dict[str, Any]
    key: dict[str, str]


class Course:
    """Distillation in several lessons, each with a `Distiller` of its own.

    The base of `AssistantChain` and `BornAgain`.

    Args:
        teacher: A built model; not changed.
        distillation_losses: As for `Distiller`; copied for each lesson, and told its teacher
            and data by `prepare`.
        distillation_loss_weights: As for `Distiller`.
        student_loss_weight: As for `Distiller`.

    Raises:
        TfcompError: If the teacher is not a built model.
    """

    def __init__(
        self,
        teacher: keras.Model,
        distillation_losses: Any,
        distillation_loss_weights: Any,
        student_loss_weight: float,
    ) -> None:
        if not isinstance(teacher, keras.Model) or not teacher.built:
            raise TfcompError(f"The teacher must be a built keras.Model. Received: {teacher!r}.")
        self.teacher = teacher
        self.distillation_losses = distillation_losses
        self.distillation_loss_weights = distillation_loss_weights
        self.student_loss_weight = student_loss_weight
        self._compiled: dict[str, Any] | None = None
        self._report: CourseReport | None = None

    @property
    def report(self) -> CourseReport:
        """What the last `fit` returned."""
        if self._report is None:
            raise TfcompError("There is no result yet: expected a call of fit before.")
        return self._report

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """As `Distiller.compile`, for every lesson.

        Args:
            optimizer: A name or an optimizer; copied for each lesson.
            loss: The students' own loss; not needed where `student_loss_weight` is 0.
            **kwargs: As in Keras. Metrics are copied for each lesson.
        """
        self._compiled = {"optimizer": optimizer, "loss": loss, **kwargs}

    def _settings(self) -> dict[str, Any]:
        if self._compiled is None:
            raise TfcompError("Expected a call of compile before fit, received none.")
        return self._compiled

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        *,
        validation_data: Any = None,
        directory: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        data_key: str | None = None,
        **kwargs: Any,
    ) -> CourseReport:
        """Gives all lessons that the directory does not have.

        Args:
            x: As in Keras: arrays, or a dataset of (x, y), the same in every lesson.
            y: The labels, where x is arrays.
            validation_data: What models are evaluated on; needed to choose by a metric:
                for the best path, or for generations until they stop improving.
            directory: Where finished lessons are kept.
            seed: Each lesson starts from random numbers of its own that follow from it, so that
                a run that was resumed ends as one that was not. It seeds Python, NumPy and
                TensorFlow.
            data_key: A name for the data, to be changed when they change. By default the data
                are told apart by their content, for which a dataset is read twice; random
                augmentation or endless data need a name. Only with a directory.
            **kwargs: Further arguments of `keras.Model.fit`. Callbacks serve all lessons, and
                their settings do not count among those that must be the same. With
                `keras.callbacks.BackupAndRestore` a run goes on within a lesson, too; this needs
                a directory, because a backup does not tell which lesson it is of.

        Returns:
            The lessons, the path, and the metrics of every model on it; for `BornAgain` those of
            the ensemble too, where the teacher is a functional or Sequential classifier with
            one output.

        Raises:
            TfcompError: If the directory holds lessons that were given with anything else, if
                the data hold one teacher's answers or backups are to be made without a
                directory, or if the metric to choose by is not there.
        """
        return self._give(self._training(x, y, validation_data, directory, seed, data_key, kwargs))

    def _give(self, training: Training) -> CourseReport:
        """All lessons of the course."""
        raise NotImplementedError(f"{type(self).__name__} must define _give().")

    def _training(
        self,
        x: Any,
        y: Any,
        validation_data: Any,
        directory: str | os.PathLike[str] | None,
        seed: int | None,
        data_key: str | None,
        options: dict[str, Any],
    ) -> Training:
        """What `fit` was called with; data are read for their digest only if lessons are kept."""
        self._settings()
        _check_answers(x)
        if directory is None:
            _check_backups(options)
            return Training(x, y, validation_data, None, seed, options, {})
        folder = pathlib.Path(directory)
        if folder.exists() and not folder.is_dir():
            raise TfcompError(f"`directory` must be a folder. Received: {folder}, a file.")
        key = {
            "settings": digest(self._settings_text(), repr(seed), _options_digest(options)),
            "data": data_key or data_digest((x, y)),
            "validation data": data_key or data_digest(validation_data),
        }
        return Training(x, y, validation_data, folder, seed, options, key)

    def _settings_text(self) -> str:
        """Losses, weights and what `compile` was called with."""
        serialize = keras.saving.serialize_keras_object
        weights = (self.distillation_loss_weights, self.student_loss_weight)
        settings = unnamed(serialize(self._settings()))
        return json.dumps(
            [serialize(self.distillation_losses), weights, settings], sort_keys=True, default=str
        )

    def _teach(
        self, training: Training, number: int, teacher: Lesson | None, source: Source
    ) -> Lesson:
        """Gives a lesson, unless the directory has it; `teacher` is None for the first one's."""
        by = "teacher" if teacher is None else teacher.student
        key: dict[str, str] = {}
        files = None
        if training.directory is not None:
            identity = model_digest(self.teacher) if teacher is None else teacher.identity()
            key = {**training.key, "teacher": identity, "student": source.key()}
            files = LessonFiles(training.directory, f"{source.name}-by-{by}")
            kept = files.read(source.name, by, key, source.make)
            if kept is not None:
                return kept
        if training.seed is not None:
            keras.utils.set_random_seed(training.seed + number)
        student = source.make()
        distiller = Distiller(
            self.teacher if teacher is None else teacher.model,
            student,
            copy.deepcopy(self.distillation_losses),
            self.distillation_loss_weights,
            self.student_loss_weight,
        )
        distiller.compile(**copy_stateful(self._settings()))
        _prepare(distiller, training)
        logs = distiller.fit(
            training.x, training.y, validation_data=training.validation_data, **training.options
        ).history
        history = {name: [float(value) for value in values] for name, values in logs.items()}
        lesson = Lesson(
            source.name, by, student, _evaluated(distiller, training), history, False, key
        )
        if files is not None:
            files.keep(lesson)
        return lesson

    def _judge(self, model: keras.Model, training: Training) -> dict[str, float]:
        """A model's metrics on the validation data."""
        # A distiller that never distils, so that the model itself is not compiled.
        judge = Distiller(None, model, _Nothing(), student_loss_weight=self.student_loss_weight)
        judge.compile(**copy_stateful(self._settings()))
        return _evaluated(judge, training)

    def _reported(
        self,
        training: Training,
        lessons: Sequence[Lesson],
        path: Sequence[str],
        **others: keras.Model,
    ) -> CourseReport:
        """The report, with the evaluation of the teacher and of others by name."""
        evaluations: dict[str, dict[str, float]] = {}
        if training.validation_data is not None:
            evaluations["teacher"] = self._judge(self.teacher, training)
            steps = set(itertools.pairwise(path))
            on_path = [x for x in lessons if (x.teacher, x.student) in steps]
            evaluations |= {x.student: x.evaluation for x in on_path}
            evaluations |= {name: self._judge(model, training) for name, model in others.items()}
        self._report = CourseReport(tuple(lessons), tuple(path), evaluations)
        return self._report


def _prepare(distiller: Distiller, training: Training) -> None:
    """Has losses learn what they need of a lesson's teacher."""
    names = ("batch_size", "steps_per_epoch", "shuffle", "verbose")
    options = {name: training.options[name] for name in names if name in training.options}
    for loss in distiller.distillation_losses:
        if isinstance(loss, PerSampleLoss):
            loss.prepare(distiller.teacher, training.x, **options)


def _check_answers(x: Any) -> None:
    """Raises if the data hold what one teacher says: each lesson has a teacher of its own."""
    if not isinstance(x, tf.data.Dataset):
        return
    element = x.element_spec
    alone = not isinstance(element, tuple) or isinstance(element, DistillationInputs)
    if not is_absent(unpack(element if alone else element[0]).teacher_outputs):
        raise TfcompError(
            "Every lesson has a teacher of its own: expected plain inputs, received the answers of "
            "one teacher from cache_teacher. Pass the dataset itself."
        )


def _callbacks(options: dict[str, Any]) -> list[keras.callbacks.Callback]:
    """The callbacks among the arguments of `fit`, which takes a single one as well."""
    given = options.get("callbacks") or []
    given = getattr(given, "callbacks", given)
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _check_backups(options: dict[str, Any]) -> None:
    """Raises if one lesson might be restored from the backup of another."""
    if any(isinstance(one, keras.callbacks.BackupAndRestore) for one in _callbacks(options)):
        raise TfcompError(
            "BackupAndRestore does not tell lessons apart: expected a `directory` that keeps the "
            "finished ones, received None. Pass directory=... to fit, or leave the callback out."
        )


class _Nothing(PerSampleLoss):
    """Asks nothing of any model."""

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        return keras.ops.zeros((keras.ops.shape(keras.tree.flatten(student_outputs)[0])[0],))


def score(lesson: Lesson, monitor: str) -> float:
    """The metric that a lesson is judged by, higher is better.

    Args:
        lesson: A lesson with an evaluation.
        monitor: Name of the metric; of one that ends in "loss" or "error", less is better.

    Raises:
        TfcompError: If the metric was not measured.
    """
    if monitor not in lesson.evaluation:
        measured = ", ".join(map(repr, lesson.evaluation)) or "none"
        raise TfcompError(
            f"Lessons are judged by {monitor!r} on the validation data: expected it among the "
            f"metrics, received {measured}. Pass validation_data to fit and "
            "metrics to compile, or choose another `monitor`."
        )
    value = lesson.evaluation[monitor]
    return -value if monitor.endswith(("loss", "error")) else value


def _evaluated(distiller: Distiller, training: Training) -> dict[str, float]:
    data = training.validation_data
    if data is None:
        return {}
    parts = data if isinstance(data, tuple) else (data,)
    told = {"verbose": 0, "return_dict": True}
    if "batch_size" in training.options and not _batches_itself(parts[0]):
        told["batch_size"] = training.options["batch_size"]
    names = dict(zip(("x", "y", "sample_weight"), parts, strict=False))
    logs = distiller.evaluate(**names, **told)
    return {name: float(value) for name, value in logs.items()}


def _batches_itself(data: Any) -> bool:
    return hasattr(data, "element_spec") or isinstance(data, keras.utils.PyDataset)


def _options_digest(options: dict[str, Any]) -> str:
    """Callbacks count by their class, the bar of progress does not."""
    counted = {name: value for name, value in options.items() if name != "verbose"}
    callbacks = [type(callback).__qualname__ for callback in _callbacks(options)]
    return data_digest({**_text_keys(counted), "callbacks": callbacks})


def _text_keys(value: Any) -> Any:
    """Class weights have numbers as keys."""
    if isinstance(value, dict):
        return {str(key): _text_keys(item) for key, item in value.items()}
    return value
