"""Courses of lessons as `.keras` files: saved within a lesson, loaded, and taught to the end."""

from __future__ import annotations

import copy
import functools
import pathlib
from typing import Any

import keras
import numpy as np
import pytest

from tfcomp.distillation import (
    AssistantChain,
    BornAgain,
    CourseReport,
    FactorTransfer,
    FitNetsHint,
    KnowledgeDistillation,
)
from tfcomp.errors import TfcompError

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 5)).astype("float32")
Y = (X[:, 0] > 0).astype("int64") + (X[:, 1] > 0)
FIT: dict[str, Any] = {
    "batch_size": 8, "epochs": 3, "verbose": 0, "shuffle": False, "validation_data": (X, Y),
}  # fmt: skip
Course = AssistantChain | BornAgain


def net(width: int) -> keras.Model:
    inputs = keras.Input((5,), name="inputs")
    hidden = keras.layers.Dense(width, "relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(hidden), name=f"net{width}")


@keras.saving.register_keras_serializable(package="tests")
def eight() -> keras.Model:
    return net(8)


def compiled(course: Course) -> Course:
    course.compile(keras.optimizers.Adam(0.02), loss=CE, metrics=["accuracy"], run_eagerly=True)
    return course


def losses() -> list[Any]:
    """With a regressor that is trained along."""
    return [KnowledgeDistillation(2.0), FitNetsHint("hidden", "hidden")]


def chain(path: str = "given") -> Course:
    keras.utils.set_random_seed(1)
    start = [net(16), [net(12), net(6)], net(4)]
    return compiled(AssistantChain(*start, losses(), [1.0, 0.1], 0.3, path=path))


def best_chain() -> Course:
    return chain("best")


def generations() -> Course:
    keras.utils.set_random_seed(1)
    return compiled(BornAgain(net(8), 3))


def better_generations() -> Course:
    keras.utils.set_random_seed(1)
    return compiled(BornAgain(net(8), None, monitor="loss"))


class CountEpochs(keras.callbacks.Callback):
    """The epochs that were given, by lesson."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[list[int]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.given.append([])

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.given[-1].append(epoch)


class StoppedError(Exception):
    """As if the process had ended."""


class SaveIn(keras.callbacks.Callback):
    """Saves the course after an epoch of a lesson, both counted from 0, and ends the process."""

    def __init__(self, course: Course, path: pathlib.Path, lesson: int, epoch: int) -> None:
        super().__init__()
        self.course, self.path, self.place, self.seen = course, path, (lesson, epoch), -1

    def on_train_begin(self, logs: Any = None) -> None:
        self.seen += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (self.seen, epoch) == self.place:
            self.course.save(self.path)
            raise StoppedError


def onlooker(callback: keras.callbacks.Callback) -> keras.callbacks.Callback:
    """Of a class that a course goes on without."""
    names = ("on_train_begin", "on_epoch_begin", "on_epoch_end")
    return keras.callbacks.LambdaCallback(**{name: getattr(callback, name) for name in names})


def stopped(course: Course, path: pathlib.Path, lesson: int, epoch: int, **told: Any) -> None:
    saver = onlooker(SaveIn(course, path, lesson, epoch))
    with pytest.raises(StoppedError):
        course.fit(X, Y, callbacks=[saver], **{**FIT, **told})


def going_on(lessons: int, lesson: int, epoch: int) -> list[list[int]]:
    """The epochs that are left, by lesson, after a file of this place."""
    begun = list(range(epoch + 1, FIT["epochs"]))
    return [begun, *[list(range(FIT["epochs"]))] * (lessons - lesson - 1)]


def is_same(received: CourseReport, expected: CourseReport) -> None:
    assert received.path == expected.path
    assert received.evaluations == expected.evaluations
    for a, b in zip(received.lessons, expected.lessons, strict=True):
        assert (a.student, a.teacher, a.history, a.evaluation) == (
            b.student, b.teacher, b.history, b.evaluation,
        )  # fmt: skip
        for u, v in zip(a.model.get_weights(), b.model.get_weights(), strict=True):
            np.testing.assert_array_equal(u, v)


@pytest.mark.parametrize(
    ("make", "lesson", "epoch"),
    [
        pytest.param(chain, 0, 0, marks=pytest.mark.long),
        (chain, 1, 1),
        pytest.param(chain, 2, 2, marks=pytest.mark.long),
        pytest.param(best_chain, 4, 0, marks=pytest.mark.long),
        pytest.param(best_chain, 5, 1, marks=pytest.mark.long),
        (generations, 2, 0),
        pytest.param(better_generations, 1, 1, marks=pytest.mark.long),
    ],
)
def test_saved_within_a_lesson_it_goes_on_to_the_same_weights(
    make: Any, lesson: int, epoch: int, tmp_path: pathlib.Path
) -> None:
    whole = make().fit(X, Y, seed=3, **FIT)
    course = make()
    before = course.teacher.get_weights()
    stopped(course, tmp_path / "middle.keras", lesson, epoch, seed=3)
    # What the process goes on to do does not count: the file is all that is left.
    course.teacher.set_weights([weight + 1 for weight in before])
    keras.utils.set_random_seed(99)
    loaded = keras.saving.load_model(tmp_path / "middle.keras")
    assert type(loaded) is type(course)
    count = CountEpochs()
    report = loaded.fit(X, Y, seed=3, callbacks=[onlooker(count)], **FIT)
    is_same(report, whole)
    assert count.given == going_on(len(whole.lessons), lesson, epoch)
    assert [x.reused for x in report.lessons] == [i < lesson for i in range(len(whole.lessons))]
    for u, v in zip(loaded.teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(u, v)


def test_the_lesson_that_is_given_goes_on_without_a_seed(tmp_path: pathlib.Path) -> None:
    # Its student was drawn before the file was written.
    keras.utils.set_random_seed(7)
    whole = generations().fit(X, Y, **FIT)
    keras.utils.set_random_seed(7)
    stopped(generations(), tmp_path / "middle.keras", 2, 1)
    keras.utils.set_random_seed(99)
    is_same(keras.saving.load_model(tmp_path / "middle.keras").fit(X, Y, **FIT), whole)


@pytest.mark.parametrize(
    "make", [chain, pytest.param(best_chain, marks=pytest.mark.long), generations]
)
def test_a_finished_course_is_loaded_with_its_report(make: Any, tmp_path: pathlib.Path) -> None:
    course = make()
    report = course.fit(X, Y, **FIT)
    course.save(tmp_path / "whole.keras")
    loaded = keras.saving.load_model(tmp_path / "whole.keras")
    is_same(loaded.report, report)
    assert str(loaded.report) == str(report)
    np.testing.assert_array_equal(loaded(X), course.student(X))
    np.testing.assert_array_equal(
        loaded.predict(X, verbose=0), course.student.predict(X, verbose=0)
    )
    if make is generations:
        np.testing.assert_array_equal(loaded.ensemble(X), course.ensemble(X))
    told = loaded.evaluate(X, Y, verbose=0, return_dict=True)
    assert told == pytest.approx(report.evaluations[report.path[-1]])
    before = course.student.get_weights()
    second = loaded.fit(X, Y, **{**FIT, "epochs": 1})
    assert not any(lesson.reused for lesson in second.lessons)
    assert all(len(lesson.history["loss"]) == 1 for lesson in second.lessons)
    for u, v in zip(course.student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(u, v)


@pytest.mark.long
def test_what_a_lesson_learnt_of_its_teacher_is_kept(tmp_path: pathlib.Path) -> None:
    def maps(width: int) -> keras.Model:
        layers: list[keras.layers.Layer] = [
            keras.layers.Reshape((5, 1, 1)),
            keras.layers.Conv2D(width, 1, name="hidden"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
        return keras.Sequential([keras.Input((5,)), *layers])

    def made() -> Course:
        keras.utils.set_random_seed(1)
        loss = FactorTransfer("hidden", "hidden", paraphraser_epochs=1)
        start = [maps(8), [maps(6)], maps(4)]
        return compiled(AssistantChain(*start, loss, student_loss_weight=0.3))

    whole = made().fit(X, Y, seed=3, **FIT)
    stopped(made(), tmp_path / "middle.keras", 1, 0, seed=3)
    is_same(keras.saving.load_model(tmp_path / "middle.keras").fit(X, Y, seed=3, **FIT), whole)


def test_functions_are_kept_by_their_name(tmp_path: pathlib.Path) -> None:
    course = compiled(AssistantChain(net(16), [eight], eight))
    stopped(course, tmp_path / "middle.keras", 0, 1)
    report = keras.saving.load_model(tmp_path / "middle.keras").fit(X, Y, **FIT)
    counts = [lesson.model.count_params() for lesson in report.lessons]
    assert counts == [eight().count_params()] * 2
    partial = compiled(AssistantChain(net(16), [eight], functools.partial(net, 8)))
    with pytest.raises(TfcompError, match="by its name alone") as error:
        partial.save(tmp_path / "partial.keras")
    assert "\n" not in str(error.value)


def test_a_course_goes_on_as_it_was_begun(tmp_path: pathlib.Path) -> None:
    kept = {"directory": tmp_path / "run"}
    stopped(chain(), tmp_path / "kept.keras", 1, 0, seed=3, **kept)
    stopped(chain(), tmp_path / "alone.keras", 1, 0, seed=3)

    def go_on(name: str, **told: Any) -> CourseReport:
        loaded = keras.saving.load_model(tmp_path / name)
        report: CourseReport = loaded.fit(X, Y, **{"seed": 3, **FIT, **told})
        return report

    counted = {"callbacks": [CountEpochs()]}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("kept.keras", {}, r"other directory \(one before, none now\): expected"),
        ("alone.keras", kept, r"other directory \(none before, one now\): expected"),
        ("kept.keras", {**kept, "epochs": 4}, "begun with other settings:"),
        ("alone.keras", {"epochs": 4}, "begun with other settings:"),
        ("alone.keras", {"seed": 4}, "begun with other settings:"),
        ("alone.keras", counted, r"other callbacks \(none before, CountEpochs now\):"),
        ("kept.keras", {**kept, "validation_data": (X[:8], Y[:8])}, "with other validation data:"),
        ("alone.keras", {"initial_epoch": 1}, "no initial_epoch"),
    ]
    for name, told, match in cases:
        with pytest.raises(TfcompError, match=match) as error:
            go_on(name, **told)
        assert "\n" not in str(error.value)
    # A call that was refused changes nothing.
    loaded = keras.saving.load_model(tmp_path / "kept.keras")
    with pytest.raises(TfcompError, match="other directory"):
        loaded.fit(X, Y, seed=3, **FIT)
    count = CountEpochs()
    report = loaded.fit(X, Y, seed=3, callbacks=[onlooker(count)], **FIT, **kept)
    assert count.given == going_on(3, 1, 0)
    is_same(report, chain().fit(X, Y, seed=3, **FIT))
    again = chain().fit(X, Y, seed=3, **FIT, **kept)
    assert [lesson.reused for lesson in again.lessons] == [True] * 3


@pytest.mark.parametrize(
    "told",
    [
        {"optimizer": "adam", "loss": "sparse_categorical_crossentropy"},
        {
            "optimizer": keras.optimizers.SGD(
                keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.9), momentum=0.9
            ),
            "loss": keras.losses.sparse_categorical_crossentropy,
            "metrics": [keras.metrics.SparseTopKCategoricalAccuracy(2, name="best")],
            "weighted_metrics": ["accuracy"],
        },
    ],
)
def test_what_it_was_compiled_with_is_known_again(
    told: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    def made() -> Course:
        keras.utils.set_random_seed(1)
        course = AssistantChain(net(8), [net(6)], net(4))
        course.compile(**told, run_eagerly=True)
        return course

    fit = {**FIT, "class_weight": {0: 1.0, 1: 2.0, 2: 1.0}, "validation_data": None}
    whole = made().fit(X, Y, seed=3, **fit)
    stopped(made(), tmp_path / "middle.keras", 1, 1, seed=3, **fit)
    is_same(keras.saving.load_model(tmp_path / "middle.keras").fit(X, Y, seed=3, **fit), whole)


def test_saved_before_it_has_begun_it_begins(tmp_path: pathlib.Path) -> None:
    whole = generations().fit(X, Y, seed=3, **FIT)
    course = generations()
    course.save(tmp_path / "fresh.keras")
    loaded = keras.saving.load_model(tmp_path / "fresh.keras")
    is_same(loaded.fit(X, Y, seed=3, **FIT), whole)


def test_a_description_without_weights_has_not_begun(tmp_path: pathlib.Path) -> None:
    course = generations()
    course.fit(X, Y, **FIT)
    config = course.get_config()
    for made in (
        BornAgain.from_config(config),
        BornAgain.from_config(config),
        keras.models.clone_model(course),
        keras.models.model_from_json(course.to_json()),
    ):
        for call in (lambda made=made: made.report, lambda made=made: made.generations):
            with pytest.raises(TfcompError, match="expected a call of fit"):
                call()
    compiled(made)
    assert [lesson.reused for lesson in made.fit(X, Y, **FIT).lessons] == [False] * 3
    copied = copy.deepcopy(course)
    np.testing.assert_array_equal(copied(X), course(X))
    assert copied.teacher is not course.teacher


@pytest.mark.parametrize("when", ["on_train_batch_end", "on_epoch_begin", "on_test_end"])
def test_within_an_epoch_it_is_not_saved(when: str, tmp_path: pathlib.Path) -> None:
    course = generations()
    saver = keras.callbacks.LambdaCallback()
    setattr(saver, when, lambda *_, **__: course.save(tmp_path / "middle.keras"))
    with pytest.raises(TfcompError, match="expected a call in on_epoch_end") as error:
        course.fit(X, Y, callbacks=[saver], **FIT)
    assert "\n" not in str(error.value)


def test_interrupted_within_an_epoch_it_keeps_the_finished_lessons(tmp_path: pathlib.Path) -> None:
    whole = generations().fit(X, Y, seed=3, **FIT)
    course, batches = generations(), []

    def stop(batch: int, logs: Any) -> None:
        batches.append(batch)
        if len(batches) == 4 * 3 + 6:  # in the second epoch of the second lesson
            raise KeyboardInterrupt

    interrupt = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        course.fit(X, Y, seed=3, callbacks=[interrupt], **FIT)
    course.save(tmp_path / "interrupted.keras")
    count = CountEpochs()
    loaded = keras.saving.load_model(tmp_path / "interrupted.keras")
    is_same(loaded.fit(X, Y, seed=3, callbacks=[onlooker(count)], **FIT), whole)
    assert count.given == [[0, 1, 2], [0, 1, 2]]


def test_compiled_anew_it_forgets_the_optimizer_alone(tmp_path: pathlib.Path) -> None:
    stopped(chain(), tmp_path / "middle.keras", 1, 0)
    loaded = keras.saving.load_model(tmp_path / "middle.keras", compile=False)
    with pytest.raises(TfcompError, match="call of compile"):
        loaded.fit(X, Y, **FIT)
    compiled(loaded)
    report = loaded.fit(X, Y, **FIT)
    assert [lesson.reused for lesson in report.lessons] == [True, False, False]
    assert [len(lesson.history["loss"]) for lesson in report.lessons] == [3, 3, 3]


def test_what_a_course_does_not_do_is_told(tmp_path: pathlib.Path) -> None:
    course = chain()
    course.summary(print_fn=lambda *_, **__: None)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True)
    for call, match in (
        (lambda: course.save_weights(tmp_path / "a.weights.h5"), r"expected save\(\)"),
        (lambda: course.load_weights(tmp_path / "a.weights.h5"), "load_model"),
        (lambda: course.quantize("int8"), "Quantise its `student`"),
        (lambda: course.fit(X, Y, callbacks=[checkpoint], **FIT), "ModelCheckpoint"),
        (lambda: course.fit(X, Y, **FIT, seed="a"), "`seed` must be a whole number"),
    ):
        with pytest.raises(TfcompError, match=match) as error:
            call()
        assert "\n" not in str(error.value)
    for call in (
        lambda: course(X),
        lambda: course.evaluate(X, Y, verbose=0),
        lambda: course.train_on_batch(X, Y),
        lambda: course.test_on_batch(X, Y),
    ):
        with pytest.raises(TfcompError, match="expected a call of"):
            call()
