"""Distillation in several lessons."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcomp.distillation.copies import copy_stateful
from tfcomp.distillation.course_callbacks import (
    callback_names,
    callbacks_of,
    check_backups,
    check_checkpoints,
)
from tfcomp.distillation.course_report import CourseReport
from tfcomp.distillation.digests import data_digest, digest, model_digest, unnamed, unshared
from tfcomp.distillation.distiller import Distiller
from tfcomp.distillation.inputs import DistillationInputs, is_absent, unpack
from tfcomp.distillation.lesson import Lesson, LessonFiles, Source
from tfcomp.distillation.losses import PerSampleLoss
from tfcomp.distillation.progress import Pair, Progress, RunningLesson, check_key
from tfcomp.errors import TfcompError


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


class Course(keras.Model):
    """Distillation in several lessons, each with a `Distiller` of its own.

    The base of `AssistantChain` and `BornAgain`. Saved as `.keras` by a callback at the end of an
    epoch, or after `fit`, it has its finished lessons and the one that is being given, with its
    optimizer. Loaded, its `fit` goes on from there.

    Args:
        teacher: A built model; not changed.
        distillation_losses: As for `Distiller`; copied for each lesson, and told its teacher
            and data by `prepare`.
        distillation_loss_weights: As for `Distiller`.
        student_loss_weight: As for `Distiller`.
        name: Name of the model.
        **kwargs: Passed to `keras.Model`.

    Raises:
        TfcompError: If the teacher is not a built model.
    """

    _models_in_config: tuple[str, ...] = ("teacher", "distillation_losses")

    def __init__(
        self,
        teacher: keras.Model,
        distillation_losses: Any,
        distillation_loss_weights: Any,
        student_loss_weight: float,
        name: str,
        **kwargs: Any,
    ) -> None:
        if not isinstance(teacher, keras.Model) or not teacher.built:
            raise TfcompError(f"The teacher must be a built keras.Model. Received: {teacher!r}.")
        # Precision is each model's affair.
        super().__init__(name=name, **{"autocast": False, "dtype": "float32", **kwargs})
        self.teacher = teacher
        self.optimizer = None
        self._setup = _Setup(distillation_losses, distillation_loss_weights, student_loss_weight)
        self.built = True

    @property
    def report(self) -> CourseReport:
        """What the last `fit` returned."""
        progress = self._setup.progress
        report = None if progress.lacks_weights else progress.report
        if report is None:
            raise TfcompError("There is no result yet: expected a call of fit before.")
        return report

    @property
    def student(self) -> keras.Model:
        """The model at the end of the path of the last `fit`: a plain model."""
        by, name = self.report.path[-2:]
        return next(x.model for x in self.report.lessons if (x.teacher, x.student) == (by, name))

    # By these Keras finds the weights that it saves. It does not see them as layers: those of
    # a new fit replace them.

    @property
    def _models_to_start_from(self) -> list[keras.Model]:
        return []

    @property
    def _running(self) -> Distiller | None:
        running = self._setup.progress.running
        return None if running is None else running[1].distiller

    @property
    def _taught(self) -> list[keras.Model]:
        return [lesson.model for lesson in self._setup.progress.lessons.values()]

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """As `Distiller.compile`, for every lesson.

        Args:
            optimizer: A name or an optimizer; copied for each lesson.
            loss: The students' own loss; not needed where `student_loss_weight` is 0.
            **kwargs: As in Keras. Metrics are copied for each lesson.
        """
        self._setup.compiled = {"optimizer": optimizer, "loss": loss, **kwargs}
        self.compiled = True
        if self._running is not None:
            self._compile_lesson(self._running)

    def get_compile_config(self) -> dict[str, Any] | None:
        """What `compile` was called with."""
        compiled = self._setup.compiled
        return None if compiled is None else keras.saving.serialize_keras_object(compiled)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as it was compiled when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def _compile_lesson(self, distiller: Distiller) -> None:
        distiller.compile(**copy_stateful(self._settings()))
        if distiller.optimizer is not None:
            # Now, so that a file's memory of the gradients finds its place.
            with self.distribute_strategy.scope():
                distiller.optimizer.build(distiller.trainable_variables)

    def _settings(self) -> dict[str, Any]:
        if self._setup.compiled is None:
            raise TfcompError("Expected a call of compile before fit, received none.")
        return self._setup.compiled

    def build(self, input_shape: Any = None) -> None:
        """Nothing to do: the models are built."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The student's outputs."""
        return self.student(inputs, training=training)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`, of the student.

        Args:
            *args: As in Keras.
            **kwargs: As in Keras.
        """
        return self._judge(self.student).evaluate(*args, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Not for courses, whose steps are their lessons'."""
        raise TfcompError("A course has no steps of its own: expected a call of fit.")

    def test_step(self, data: Any) -> dict[str, Any]:
        """Not for courses, whose steps are their lessons'."""
        raise TfcompError("A course has no steps of its own: expected a call of evaluate.")

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
        """Gives all lessons that the directory, or the file that this was loaded from, lacks.

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
            **kwargs: Further arguments of `keras.Model.fit`. Callbacks serve all lessons. Of
                those that must be the same with a directory they count by their class, but for
                Keras' own that save, write or call functions (`LambdaCallback`).
                `ModelCheckpoint`, which would write one lesson's model over another's, is refused.
                With `keras.callbacks.BackupAndRestore` a run goes on within a lesson, too; this
                needs a directory, because a backup does not tell which lesson it is of.

        Returns:
            The lessons, the path, and the metrics of every model on it; for `BornAgain` those of
            the ensemble too, where the teacher is a functional or Sequential classifier with
            one output.

        Raises:
            TfcompError: If the directory holds lessons that were given with anything else, if
                the file that this was loaded from was told anything else but data, if the data
                hold one teacher's answers or backups are to be made without a directory, or if
                the metric to choose by is not there.
        """
        training = self._training(x, y, validation_data, directory, seed, data_key, kwargs)
        told = functools.partial(self._told, seed, directory is not None, dict(kwargs))
        if self._setup.progress.is_read:
            self._setup.progress.check(told())
        else:
            self._setup.progress = Progress(told)
        with self.distribute_strategy.scope():
            return self._give(training)

    def save_own_variables(self, store: Any) -> None:
        """A mark, by which a file is told from a description without weights."""
        store["lessons"] = np.array(len(self._setup.progress.lessons))

    def load_own_variables(self, store: Any) -> None:
        """The weights of all lessons follow."""
        self._setup.progress.weights_are_read()

    def save_weights(self, *args: Any, **kwargs: Any) -> None:
        """Not for courses, of which weights are but a part."""
        raise TfcompError(
            "Weights alone do not tell how far a course is: expected save(), received "
            "save_weights(). Save the course as .keras, or the weights of `student`."
        )

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        """Not for courses, of which weights are but a part."""
        raise TfcompError(
            "Weights alone do not tell how far a course is: expected keras.saving.load_model, "
            "received load_weights(). Load the course's file."
        )

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Not for courses, whose teacher stays as it is."""
        raise TfcompError(
            "A course is not quantised itself: expected a model, received the course. Quantise "
            "its `student`, see tfcomp.quantization."
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, and how far the course is."""
        serialize = keras.saving.serialize_keras_object
        setup = self._setup
        config = super().get_config()
        config.pop("autocast", None)
        return {
            **config,
            "teacher": serialize(self.teacher),
            "distillation_losses": serialize(setup.losses),
            "distillation_loss_weights": setup.weights,
            "student_loss_weight": setup.student_weight,
            "progress": setup.progress.get_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Course:
        """What `get_config` described, with models of its own.

        How far it is counts when the weights are read from a file as well; else it has not begun.
        """
        config = copy.deepcopy(config)
        progress = config.pop("progress")
        for part in cls._models_in_config:
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        course = cls(**config)
        course._setup.progress = Progress.from_config(progress, course.teacher, custom_objects)
        return course

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
        check_checkpoints(options)
        if seed is not None and not isinstance(seed, int):
            raise TfcompError(f"`seed` must be a whole number. Received: {seed!r}.")
        if "initial_epoch" in options:
            raise TfcompError(
                "Every lesson has epochs of its own: expected no initial_epoch, received "
                f"{options['initial_epoch']!r}. A course that was loaded goes on by itself."
            )
        if directory is None:
            check_backups(options)
            return Training(x, y, validation_data, None, seed, options, {})
        folder = pathlib.Path(directory)
        if folder.exists() and not folder.is_dir():
            raise TfcompError(f"`directory` must be a folder. Received: {folder}, a file.")
        key = {
            **self._told(seed, True, options),
            "data": data_key or data_digest((x, y)),
            "validation data": data_key or data_digest(validation_data),
        }
        return Training(x, y, validation_data, folder, seed, options, key)

    def _told(self, seed: int | None, kept: bool, options: dict[str, Any]) -> dict[str, str]:
        """What must be the same when a course goes on, data apart."""
        return {
            "settings": digest(self._settings_text(), repr(seed), _options_digest(options)),
            "callbacks": callback_names(options),
            "directory": "one" if kept else "",
        }

    def _settings_text(self) -> str:
        """Losses, weights and what `compile` was called with."""
        serialize = keras.saving.serialize_keras_object
        setup = self._setup
        weights = (setup.weights, setup.student_weight)
        losses, settings = unshared(serialize(setup.losses)), unnamed(serialize(self._settings()))
        return json.dumps([losses, weights, settings], sort_keys=True, default=str)

    def _teach(
        self, training: Training, number: int, teacher: Lesson | None, source: Source
    ) -> Lesson:
        """Gives a lesson, unless it was given before; `teacher` is None for the first one's."""
        by = "teacher" if teacher is None else teacher.student
        pair = (source.name, by)
        key: dict[str, str] = {}
        files = None
        if training.directory is not None:
            identity = model_digest(self.teacher) if teacher is None else teacher.identity()
            key = {**training.key, "teacher": identity, "student": source.key()}
            files = LessonFiles(training.directory, f"{source.name}-by-{by}")
        progress = self._setup.progress
        lesson = progress.lessons.get(pair)
        if lesson is not None:
            check_key(lesson.key, key)
        elif files is not None:
            lesson = files.read(source.name, by, key, source.make)
        if lesson is None:
            if training.seed is not None:
                keras.utils.set_random_seed(training.seed + number)
            lesson = self._give_lesson(training, pair, teacher, source, key)
        if files is not None and not lesson.reused:
            files.keep(lesson)
        progress.finish(lesson)
        return lesson

    def _give_lesson(
        self,
        training: Training,
        pair: Pair,
        teacher: Lesson | None,
        source: Source,
        key: dict[str, str],
    ) -> Lesson:
        """Trains a student, from the epoch on that was reached when the course was saved."""
        setup = self._setup
        running = setup.progress.resumed(pair)
        if running is None:
            distiller = Distiller(
                self.teacher if teacher is None else teacher.model,
                source.make(),
                copy.deepcopy(setup.losses),
                setup.weights,
                setup.student_weight,
            )
            self._compile_lesson(distiller)
            _prepare(distiller, training)
            running = RunningLesson(distiller, key)
            setup.progress.begin(pair, running)
        check_key(running.key, key)
        setup.progress.is_read = False
        callbacks = [running, *callbacks_of(training.options)]
        try:
            running.distiller.fit(
                training.x,
                training.y,
                validation_data=training.validation_data,
                initial_epoch=running.epochs,
                **{**training.options, "callbacks": callbacks},
            )
        except BaseException:
            if running.within_epoch:
                # What an interrupted epoch leaves is not to be gone on from.
                setup.progress.running = None
            raise
        evaluation = _evaluated(running.distiller, training)
        student = running.distiller.student
        return Lesson(*pair, student, evaluation, running.history(), False, key)

    def _judge(self, model: keras.Model) -> Distiller:
        """Evaluates a model."""
        # A distiller that never distils, so that the model itself is not compiled.
        judge = Distiller(None, model, _Nothing(), student_loss_weight=self._setup.student_weight)
        judge.compile(**copy_stateful(self._settings()))
        return judge

    def _reported(
        self, training: Training, path: Sequence[str], **others: keras.Model
    ) -> CourseReport:
        """The report, with the evaluation of the teacher and of others by name."""
        progress, lessons = self._setup.progress, self._setup.progress.lessons.values()
        evaluations: dict[str, dict[str, float]] = {}
        if training.validation_data is not None:
            steps = set(itertools.pairwise(path))
            on_path = [x for x in lessons if (x.teacher, x.student) in steps]
            evaluations["teacher"] = _evaluated(self._judge(self.teacher), training)
            evaluations |= {x.student: x.evaluation for x in on_path}
            for name, model in others.items():
                evaluations[name] = _evaluated(self._judge(model), training)
        progress.is_read = False
        progress.report = CourseReport(tuple(lessons), tuple(path), evaluations)
        return progress.report


@dataclasses.dataclass(eq=False)
class _Setup:
    """What Keras is not to look into, and what changes from one `fit` to the next."""

    losses: Any
    weights: Any
    student_weight: float
    compiled: dict[str, Any] | None = None
    progress: Progress = dataclasses.field(default_factory=Progress)


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
    """All but the bar of progress, and callbacks."""
    apart = ("verbose", "callbacks")
    counted = {name: value for name, value in options.items() if name not in apart}
    return data_digest(_text_keys(counted))


def _text_keys(value: Any) -> Any:
    """Class weights have numbers as keys."""
    if isinstance(value, dict):
        return {str(key): _text_keys(item) for key, item in value.items()}
    return value
