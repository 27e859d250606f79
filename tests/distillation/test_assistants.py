"""AssistantChain: which models are taught by which, what is kept, and what is refused."""

from __future__ import annotations

import itertools
import json
import pathlib
import signal
import subprocess
import sys
import textwrap
import types
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcomp.distillation import (
    AssistantChain,
    CourseReport,
    Distiller,
    FactorTransfer,
    FitNetsHint,
    KnowledgeDistillation,
    cache_teacher,
)
from tfcomp.distillation.digests import architecture, data_digest, model_digest
from tfcomp.distillation.lesson import Lesson, copy_model
from tfcomp.errors import DamagedFileError, TfcompError

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FIT: dict[str, Any] = {"batch_size": 8, "epochs": 2, "verbose": 0}


def vectors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 5)).astype("float32")
    return x, (x[:, 0] > 0).astype("int64") + (x[:, 1] > 0)


def net(width: int, activation: str | None = None) -> keras.Model:
    inputs = keras.Input((5,), name="inputs")
    hidden = keras.layers.Dense(width, "relu", name="hidden")(inputs)
    outputs = keras.layers.Dense(3, activation, name="head")(hidden)
    return keras.Model(inputs, outputs, name=f"net{width}")


def models(seed: int = 1) -> tuple[keras.Model, list[keras.Model], keras.Model]:
    keras.utils.set_random_seed(seed)
    return net(16), [net(12), net(8)], net(4)


def chain(seed: int = 1, **kwargs: Any) -> AssistantChain:
    made = AssistantChain(*models(seed), **kwargs)
    made.compile(keras.optimizers.Adam(0.02), loss=CE, metrics=["accuracy"], run_eagerly=True)
    return made


class KilledError(Exception):
    """As if the process had ended."""


class KillIn(keras.callbacks.Callback):
    """Ends the process in a lesson, the first being 0; -1 never."""

    def __init__(self, lesson: int) -> None:
        super().__init__()
        self.lesson, self.seen = lesson, -1

    def on_train_begin(self, logs: Any = None) -> None:
        self.seen += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.seen == self.lesson:
            raise KilledError


def test_each_is_taught_by_the_one_before_and_the_caller_s_models_stay() -> None:
    x, y = vectors()
    teacher, assistants, student = models()
    before = [model.get_weights() for model in (teacher, *assistants, student)]
    made = AssistantChain(
        teacher, assistants, student, KnowledgeDistillation(2.0), student_loss_weight=0.3
    )
    made.compile(keras.optimizers.SGD(0.1), loss=CE, metrics=["accuracy"])
    report = made.fit(x, y, validation_data=(x, y), seed=7, **FIT)
    for model, weights in zip((teacher, *assistants, student), before, strict=True):
        assert all((a == b).all() for a, b in zip(model.get_weights(), weights, strict=True))
        assert model.trainable
    # The same by hand, a distiller for each.
    said = teacher
    for number, model in enumerate([*assistants, student]):
        keras.utils.set_random_seed(7 + number)
        distiller = Distiller(said, model, KnowledgeDistillation(2.0), student_loss_weight=0.3)
        distiller.compile(keras.optimizers.SGD(0.1), loss=CE)
        distiller.fit(x, y, **FIT)
        said = model
        for a, b in zip(
            report.lessons[number].model.get_weights(), model.get_weights(), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert report.path == ("teacher", "assistant_1", "assistant_2", "student")
    assert [(x.teacher, x.student) for x in report.lessons] == list(itertools.pairwise(report.path))
    assert made.student is report.lessons[-1].model
    assert made.report is report
    right = (np.asarray(made.student(x)).argmax(-1) == y).mean()
    assert report.evaluations["student"]["accuracy"] == pytest.approx(right)
    right = (np.asarray(teacher(x)).argmax(-1) == y).mean()
    assert report.evaluations["teacher"]["accuracy"] == pytest.approx(right)
    assert set(report.evaluations) == set(report.path)
    assert len(report.lessons[0].history["distillation_loss"]) == 2
    assert "assistant_2 (taught by assistant_1): " in str(report)
    with pytest.raises(ValueError, match="compile"):
        made.student.evaluate(x, y, verbose=0)


def test_killed_in_the_middle_it_goes_on_to_the_same_weights(tmp_path: pathlib.Path) -> None:
    x, y = vectors()
    told: dict[str, Any] = {"seed": 3, "validation_data": (x, y), **FIT}
    whole = chain()
    whole.fit(x, y, **told, callbacks=[KillIn(-1)])
    for lesson in (0, 2):
        with pytest.raises(KilledError):
            chain().fit(x, y, **told, directory=tmp_path / "run", callbacks=[KillIn(lesson)])
        kept = sorted(path.name for path in (tmp_path / "run").iterdir()) if lesson else []
        if lesson:
            names = ["assistant_1-by-teacher", "assistant_2-by-assistant_1"]
            assert kept == [f"{name}.{kind}" for name in names for kind in ("json", "keras")]
    resumed = chain()
    report = resumed.fit(x, y, **told, directory=tmp_path / "run", callbacks=[KillIn(-1)])
    assert [lesson.reused for lesson in report.lessons] == [True, True, False]
    again = chain().fit(x, y, **told, directory=tmp_path / "run", callbacks=[KillIn(0)])
    assert [lesson.reused for lesson in again.lessons] == [True] * 3
    assert again.evaluations == report.evaluations == whole.report.evaluations
    for a, b, c in zip(whole.report.lessons, report.lessons, again.lessons, strict=True):
        assert a.history == b.history == c.history
        for u, v, w in zip(*(lesson.model.get_weights() for lesson in (a, b, c)), strict=True):
            np.testing.assert_array_equal(u, v)
            np.testing.assert_array_equal(u, w)
    loaded = keras.saving.load_model(tmp_path / "run" / "student-by-assistant_2.keras")
    np.testing.assert_array_equal(loaded(x), resumed.student(x))


def test_what_is_kept_is_used_again_for_the_same_alone(tmp_path: pathlib.Path) -> None:
    x, y = vectors()
    parts: dict[str, Any] = {
        "data": (x, y),
        "validation_data": (x, y),
        "seed": 3,
        "directory": tmp_path / "run",
    }

    def fit(made: AssistantChain, **changes: Any) -> list[bool]:
        told = {**parts, "callbacks": [KillIn(0)], **FIT, **changes}
        return [lesson.reused for lesson in made.fit(*told.pop("data"), **told).lessons]

    assert fit(chain(), callbacks=[KillIn(-1)]) == [False] * 3
    assert fit(chain()) == [True] * 3
    assert fit(chain(), verbose=2) == [True] * 3
    adam = chain()
    adam.compile(keras.optimizers.Adam(0.01), loss=CE, metrics=["accuracy"], run_eagerly=True)
    moved = models()
    moved[0].layers[1].bias.assign_add(np.full(16, 1e-3))
    other_teacher = AssistantChain(*moved)
    other_teacher.compile(
        keras.optimizers.Adam(0.02), loss=CE, metrics=["accuracy"], run_eagerly=True
    )
    other_y = y.copy()
    other_y[3] = (y[3] + 1) % 3
    cases: list[tuple[AssistantChain, dict[str, Any], str]] = [
        (chain(), {"epochs": 3}, "differs in settings:"),
        (chain(), {"seed": 4}, "differs in settings:"),
        (chain(), {"class_weight": {0: 1.0, 1: 2.0, 2: 1.0}}, "differs in settings:"),
        (chain(), {"data": (x, other_y)}, "differs in data:"),
        (chain(), {"validation_data": (x[:8], y[:8])}, "differs in validation data:"),
        (chain(student_loss_weight=0.2), {}, "differs in settings:"),
        (chain(distillation_losses=KnowledgeDistillation(3.0)), {}, "differs in settings:"),
        (adam, {}, "differs in settings:"),
        (other_teacher, {}, "differs in teacher:"),
        (chain(seed=2), {}, "differs in student, teacher:"),
    ]
    for made, changes, told in cases:
        with pytest.raises(TfcompError, match=told) as error:
            fit(made, **changes)
        assert "\n" not in str(error.value)
    assert fit(chain()) == [True] * 3


def test_functions_make_models_of_other_weights_each_time(tmp_path: pathlib.Path) -> None:
    x, y = vectors()

    def fit(width: int = 4) -> list[Lesson]:
        teacher = models()[0]
        # Not seeded: the weights of assistants and student are other ones each time.
        keras.utils.set_random_seed(int(np.random.default_rng().integers(2**31)))
        made = AssistantChain(teacher, [lambda: net(8)], lambda: net(width))
        made.compile("sgd", loss=CE, run_eagerly=True)
        return list(made.fit(x, y, directory=tmp_path, **FIT).lessons)

    first, second = fit(), fit()
    assert [x.reused for x in first + second] == [False, False, True, True]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.model(x), b.model(x))
    with pytest.raises(TfcompError, match="differs in student:"):
        fit(width=5)
    same = net(4)
    made = AssistantChain(models()[0], [lambda: same], lambda: net(4))
    made.compile("sgd", loss=CE)
    with pytest.raises(TfcompError, match="new model each time"):
        made.fit(x, y, **FIT)


def test_damaged_lessons_are_told(tmp_path: pathlib.Path) -> None:
    x, y = vectors()
    chain().fit(x, y, directory=tmp_path, **FIT)
    path = tmp_path / "assistant_1-by-teacher.keras"
    whole = path.read_bytes()
    other = net(12)
    other.save(path)
    with pytest.raises(DamagedFileError, match="must be the model"):
        chain().fit(x, y, directory=tmp_path, **FIT)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedFileError, match="must be the model"):
        chain().fit(x, y, directory=tmp_path, **FIT)
    path.unlink()
    with pytest.raises(DamagedFileError, match="or none"):
        chain().fit(x, y, directory=tmp_path, **FIT)
    # Without its description, what is there is what a killed run left.
    path.write_bytes(b"half a model")
    description = path.with_suffix(".json")
    kept = json.loads(description.read_text())
    description.unlink()
    chain().fit(x, y, directory=tmp_path / "other", **FIT)
    description.write_text(json.dumps(kept)[:-9])
    with pytest.raises(DamagedFileError):
        chain().fit(x, y, directory=tmp_path, **FIT)


class Fixed(AssistantChain):
    """Teaching is looked up in a table of accuracies, (teacher, student) → accuracy."""

    table: dict[tuple[str, ...], float]

    def _teach(self, training: Any, number: int, teacher: Any, source: Any) -> Lesson:
        by = () if teacher is None else teacher.way
        way = (*by, source.name)
        lesson = Lesson(
            source.name,
            by[-1] if by else "teacher",
            source.make(),
            {"accuracy": self.table[way[-2:] if by else ("teacher", source.name)]},
            {},
            False,
            {},
        )
        object.__setattr__(lesson, "way", way)
        self._setup.progress.finish(lesson)
        return lesson


@pytest.mark.parametrize("seed", range(4))
def test_best_path_by_dynamic_programming_is_the_best_of_all(seed: int) -> None:
    # Where an accuracy depends on the last pair alone, the recurrence must find the path whose
    # last pair is best among pairs of a greedy way to it: compared with the written recursion.
    x, y = vectors()
    names = ["teacher", "assistant_1", "assistant_2", "assistant_3", "student"]
    rng = np.random.default_rng(seed)
    table = {pair: float(rng.random()) for pair in itertools.combinations(names, 2)}
    made = Fixed(net(16), [net(8), net(7), net(6)], net(4), path="best")
    made.compile("sgd", loss=CE, metrics=["accuracy"])
    made.table = table
    report = made.fit(x, y, validation_data=(x, y))
    assert len(report.lessons) == 4 + 3 + 2 + 1

    def best(name: str) -> tuple[str, ...]:
        if name == "teacher":
            return (name,)
        before = names[: names.index(name)]
        return (*best(max(before, key=lambda other: table[(other, name)])), name)

    assert report.path == best("student")
    assert report.evaluations["student"]["accuracy"] == max(
        value for pair, value in table.items() if pair[1] == "student"
    )


@pytest.mark.long
def test_best_path_trains_every_pair_once_and_resumes(tmp_path: pathlib.Path) -> None:
    x, y = vectors()
    told: dict[str, Any] = {"validation_data": (x, y), "seed": 5, "directory": tmp_path, **FIT}
    with pytest.raises(KilledError):
        chain(path="best").fit(x, y, **told, callbacks=[KillIn(4)])
    made = chain(path="best", monitor="loss")
    report = made.fit(x, y, **told, callbacks=[KillIn(-1)])
    assert [lesson.reused for lesson in report.lessons] == [True] * 4 + [False] * 2
    pairs = [(lesson.teacher, lesson.student) for lesson in report.lessons]
    assert sorted(pairs) == sorted(
        itertools.combinations(["teacher", "assistant_1", "assistant_2", "student"], 2)
    )
    ends = [lesson for lesson in report.lessons if lesson.student == "student"]
    lowest = min(ends, key=lambda lesson: lesson.evaluation["loss"])
    assert report.path[-2] == lowest.teacher
    assert made.student is lowest.model
    unknown = chain(path="best", monitor="auc")
    with pytest.raises(TfcompError, match="'auc'"):
        unknown.fit(x, y, **told, callbacks=[KillIn(-1)])


def test_without_labels_and_with_layers(tmp_path: pathlib.Path) -> None:
    x, _ = vectors()
    dataset = tf.data.Dataset.from_tensor_slices((x,)).shuffle(32).batch(8)
    losses = [KnowledgeDistillation(2.0), FitNetsHint("hidden", "hidden")]
    made = AssistantChain(*models(), losses, [1.0, 0.1], student_loss_weight=0.0)
    made.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    report = made.fit(dataset, directory=tmp_path, epochs=1, verbose=0)
    assert [lesson.reused for lesson in report.lessons] == [False] * 3
    assert report.evaluations == {}
    assert report.lessons[0].evaluation == {}
    again = AssistantChain(*models(), losses, [1.0, 0.1], student_loss_weight=0.0)
    again.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    reshuffled = tf.data.Dataset.from_tensor_slices((x,)).shuffle(32).batch(8)
    report = again.fit(reshuffled, directory=tmp_path, epochs=1, verbose=0)
    assert [lesson.reused for lesson in report.lessons] == [True] * 3


def test_models_are_known_again_whatever_keras_numbers_them() -> None:
    def made(activation: str = "relu", units: int = 4, twice: bool = False) -> keras.Model:
        inputs = keras.Input((5,))
        first, second = (keras.layers.Dense(5, activation) for _ in range(2))
        x = first(second(inputs))
        x = keras.layers.Add()([first(x) if twice else x, inputs])
        return keras.Model(inputs, keras.layers.Dense(units)(x))

    one, two = made(), made()
    assert [layer.name for layer in one.layers] != [layer.name for layer in two.layers]
    assert architecture(one) == architecture(two)
    others = [made("tanh"), made(units=3), made(twice=True)]
    assert len({architecture(model) for model in [one, *others]}) == 4
    assert model_digest(one) != model_digest(two)
    two.set_weights(one.get_weights())
    assert model_digest(one) == model_digest(two)


def test_data_are_told_apart_by_content() -> None:
    x, y = vectors()
    dataset = tf.data.Dataset.from_tensor_slices({"a": x, "b": y})
    digest = data_digest(dataset.batch(8))
    assert digest == data_digest(dataset.shuffle(32).batch(8))
    assert digest != data_digest(dataset.take(31).batch(8))
    other = x.copy()
    other[0, 0] += 1e-3
    assert digest != data_digest(tf.data.Dataset.from_tensor_slices({"a": other, "b": y}).batch(8))
    assert data_digest((x, y)) == data_digest((x.copy(), tf.constant(y)))
    assert data_digest((x, y)) != data_digest((y, x)) != data_digest([x, (y,)])
    assert data_digest({"a": 1, "b": 2}) == data_digest({"b": 2, "a": 1})
    # Two iterators of one dataset whose samples come from a generator without a seed.
    spec = tf.TensorSpec((2,), tf.float64)
    random = tf.data.Dataset.from_generator(
        lambda: iter(np.random.default_rng().random((3, 2))), output_signature=spec
    )
    for data, told in [
        (random, "at each reading"),
        (dataset.repeat(), "repeats"),
        (iter([x]), "data_key"),
    ]:
        with pytest.raises(TfcompError, match=told) as error:
            data_digest(data)
        assert "data_key" in str(error.value)
        assert "\n" not in str(error.value)


def test_data_with_a_name_may_be_endless_and_random(tmp_path: pathlib.Path) -> None:
    x, y = vectors()

    def fit(name: str | None) -> list[bool]:
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
        noisy = dataset.map(lambda a, b: (a + tf.random.normal((5,)), b)).batch(8)
        report = chain().fit(
            noisy, directory=tmp_path, data_key=name, steps_per_epoch=2, epochs=1, verbose=0
        )
        return [lesson.reused for lesson in report.lessons]

    assert fit("noisy") == [False] * 3
    assert fit("noisy") == [True] * 3
    with pytest.raises(TfcompError, match="differs in data, validation data:"):
        fit("noisier")
    with pytest.raises(TfcompError, match="data_key"):
        fit(None)


def test_copies_of_models() -> None:
    x, _ = vectors()

    @keras.saving.register_keras_serializable(package="tests")
    class Own(keras.Model):
        def __init__(self, units: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.units = units
            self.dense = keras.layers.Dense(units)

        def build(self, shape: Any) -> None:
            self.dense.build(shape)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "units": self.units}

    own = Own(3)
    own(x)
    np.testing.assert_array_equal(copy_model(own)(x), own(x))
    assert np.abs(np.asarray(copy_model(own, new_weights=True)(x)) - np.asarray(own(x))).max() > 0.1

    @keras.saving.register_keras_serializable(package="tests")
    class WithoutBuild(Own):
        build = keras.Model.build

    called = WithoutBuild(3)
    called(x)
    copied = copy_model(called)
    assert copied.built
    np.testing.assert_array_equal(copied(x), called(x))
    scale = keras.layers.Normalization()
    scale.adapt(x * 3 + 1)
    frozen = keras.layers.Dense(4, trainable=False)
    layers = [keras.Input((5,)), scale, frozen, keras.layers.Dense(3, name="head")]
    model = keras.Sequential(layers)
    reborn = copy_model(model, new_weights=True)
    learnt, other = model.get_layer("head"), reborn.get_layer("head")
    assert np.abs(np.asarray(learnt.kernel) - np.asarray(other.kernel)).max() > 0.1
    other.set_weights(learnt.get_weights())
    np.testing.assert_allclose(reborn(x), model(x), rtol=1e-5)
    model.trainable = False
    assert len(copy_model(model, new_weights=True).trainable_weights) == 4


def images(size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((16, size, size, 1)).astype("float32"), rng.integers(0, 3, 16)


def conv_net(size: int, width: int) -> keras.Model:
    inputs = keras.Input((size, size, 1))
    x = keras.layers.Conv2D(width, 3, 2, "same", activation="relu", name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


@pytest.mark.parametrize(
    ("sizes", "path"),
    [
        ((16, 12, 8), "given"),
        ((16, 16, 8), "given"),
        ((16, 12, 12), "best"),
        ((12, 8, 8), "given"),
    ],
)
def test_models_of_any_image_sizes_are_judged_on_images_of_their_own(
    sizes: tuple[int, ...], path: Any
) -> None:
    x, y = images()
    teacher, assistant, student = (
        conv_net(size, width) for size, width in zip(sizes, (6, 5, 4), strict=True)
    )
    made = AssistantChain(teacher, [assistant], student, path=path)
    made.compile("sgd", loss=CE, metrics=["accuracy"], run_eagerly=True)
    report = made.fit(x, y, validation_data=(x, y), **{**FIT, "epochs": 1})
    by_name = {"teacher": teacher, "student": made.student}
    for name, model in by_name.items():
        said = np.asarray(model(tf.image.resize(x, model.input_shape[1:3], antialias=True)))
        exact = keras.ops.mean(CE(y, said))
        assert report.evaluations[name]["loss"] == pytest.approx(float(exact), rel=1e-4)


def test_every_lesson_has_a_paraphraser_of_its_own_teacher(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = images()
    fitted: list[tuple[Any, ...]] = []
    fit_paraphraser = FactorTransfer.fit_paraphraser

    def fit(self: Any, teacher: keras.Model, data: Any, **kwargs: Any) -> Any:
        history = fit_paraphraser(self, teacher, data, **kwargs)
        fitted.append((self, teacher, data, len(history.history["loss"])))
        return history

    monkeypatch.setattr(FactorTransfer, "fit_paraphraser", fit)
    losses = [FactorTransfer("conv", "conv", paraphraser_epochs=3), KnowledgeDistillation()]

    def run() -> CourseReport:
        keras.utils.set_random_seed(1)
        teacher = conv_net(8, 6)
        made = AssistantChain(teacher, [conv_net(8, 5)], conv_net(8, 4), losses)
        made.compile("adam", loss=CE, run_eagerly=True)
        return made.fit(x, y, seed=2, directory=tmp_path, **FIT)

    report = run()
    first, second = fitted
    assert second[1] is report.lessons[0].model is not first[1]
    assert first[0] is not second[0]
    assert all(data is x and epochs == 3 for _, _, data, epochs in fitted)
    assert [one[0].paraphraser.made_for[-1] for one in fitted] == [6, 5]
    assert losses[0].paraphraser is None
    assert all(np.isfinite(lesson.history["factor_transfer"]).all() for lesson in report.lessons)
    assert [lesson.reused for lesson in run().lessons] == [True, True]
    assert len(fitted) == 2


def test_code_of_a_model_s_helpers_counts(tmp_path: pathlib.Path) -> None:
    x, y = vectors()

    def run(said: str) -> list[bool]:
        module = types.ModuleType("models")
        source = f"""
            import keras
            class Scale(keras.layers.Layer):
                def helper(self, h): return {said}
                def call(self, h): return self.helper(h)
        """
        exec(textwrap.dedent(source), module.__dict__)
        keras.utils.set_random_seed(1)
        inputs = keras.Input((5,), name="inputs")
        scaled = module.Scale(name="scale")(inputs)
        teacher = keras.Model(inputs, keras.layers.Dense(3, name="head")(scaled), name="teacher")
        made = AssistantChain(teacher, [net(8)], net(4))
        made.compile("sgd", loss=CE, run_eagerly=True)
        return [x.reused for x in made.fit(x, y, directory=tmp_path, **FIT).lessons]

    assert [run("h"), run("h")] == [[False, False], [True, True]]
    with pytest.raises(TfcompError, match="differs in teacher:"):
        run("h * h")


def backup(folder: pathlib.Path) -> keras.callbacks.Callback:
    return keras.callbacks.BackupAndRestore(folder / "backup")


def test_mistakes_are_told_in_one_line(tmp_path: pathlib.Path) -> None:
    x, y = vectors()
    (tmp_path / "file").write_text("")
    answers = cache_teacher(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), net(4))
    cases = [
        (lambda: AssistantChain(net(4), [], net(2)), "one or more"),
        (lambda: AssistantChain(net(4), net(3), net(2)), "must be a list"),
        (lambda: AssistantChain("teacher", [net(3)], net(2)), "The teacher"),
        (lambda: AssistantChain(net(4), [3], net(2)), "assistant_1"),
        (lambda: AssistantChain(net(4), [net(3)], lambda: None), "student"),
        (lambda: AssistantChain(net(4), [net(3)], net(2), path="short"), "`path`"),
        (lambda: AssistantChain(net(4), [net(3)], net(2)).fit(x, y), "compile"),
        (lambda: AssistantChain(net(4), [net(3)], net(2)).student, "no result"),
        (lambda: AssistantChain(net(4), [net(3)], net(2)).report, "no result"),
        (lambda: chain(path="best").fit(x, y), "validation_data"),
        (lambda: chain().fit(x, y, directory=tmp_path / "file"), "a folder"),
        (lambda: chain().fit(x, y, callbacks=[backup(tmp_path)], **FIT), "apart.*`directory`"),
        (lambda: chain().fit(x, y, callbacks=backup(tmp_path), **FIT), "apart.*`directory`"),
        (lambda: chain().fit(answers, **{**FIT, "batch_size": None}), "plain inputs"),
    ]
    for make, told in cases:
        with pytest.raises(TfcompError, match=told) as error:
            make()
        assert "\n" not in str(error.value)


SCRIPT = """
    import os, signal, sys
    import keras, numpy as np
    from tfcomp.distillation import AssistantChain
    from tfcomp.distillation.digests import weights_digest

    directory, kill = sys.argv[1], sys.argv[2] == "kill"
    if not kill:
        keras.layers.Dense(1)  # Keras numbers later layers otherwise than in the other process.
    keras.utils.set_random_seed(0)

    def net(units):
        layers = [keras.layers.Dense(units, "relu"), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((5,)), *layers])

    class Kill(keras.callbacks.Callback):
        begun = 0

        def on_train_begin(self, logs=None):
            Kill.begun += 1

        def on_epoch_end(self, epoch, logs=None):
            if kill and Kill.begun == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    x = np.random.default_rng(0).standard_normal((32, 5)).astype("float32")
    chain = AssistantChain(net(16), [net(8)], net(4), student_loss_weight=0.0)
    chain.compile("adam")
    report = chain.fit(x, directory=directory, seed=1, verbose=0, callbacks=[Kill()])
    print([lesson.reused for lesson in report.lessons], weights_digest(chain.student))
"""


@pytest.mark.long
def test_another_process_goes_on_where_one_was_killed(tmp_path: pathlib.Path) -> None:
    def run(folder: str, how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / folder), how]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("run", "kill").returncode == -signal.SIGKILL
    resumed, whole = run("run", "go on"), run("other", "go on")
    assert resumed.returncode == whole.returncode == 0, resumed.stderr[-2000:]
    assert resumed.stdout.startswith("[True, False]")
    assert whole.stdout.startswith("[False, False]")
    assert resumed.stdout.split()[-1] == whole.stdout.split()[-1]
