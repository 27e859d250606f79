"""Ensemble: what several teachers say together, against SciPy's formulas."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from tfcomp.distillation import (
    AssistantChain,
    Distiller,
    Ensemble,
    KnowledgeDistillation,
    cache_teacher,
    pseudo_labels,
)
from tfcomp.distillation.losses.ending import endings
from tfcomp.errors import TfcompError, UnsupportedModelError
from tfcomp.graph import rebuild

Make = Callable[..., keras.Model]
Data = tuple[np.ndarray, np.ndarray]


def told(logits: np.ndarray, ending: str = "linear", name: str = "teacher") -> keras.Model:
    """A model that says its inputs' rows of `logits`: the input is the number of a row."""
    inputs = keras.Input((1,), dtype="int32")
    table = keras.layers.Embedding(*logits.shape)
    rows = keras.layers.Flatten()(table(inputs))
    model = keras.Model(inputs, keras.layers.Activation(ending)(rows), name=name)
    table.set_weights([logits])
    return model


def geometric_mean(values: list[np.ndarray], shares: np.ndarray) -> np.ndarray:
    return np.prod([v**share for v, share in zip(values, shares, strict=True)], axis=0)


def combine_oracle(
    logits: list[np.ndarray], weights: list[float], combine: str, task: str
) -> np.ndarray:
    """The combined probabilities in double precision, from the definition."""
    shares = np.array(weights) / np.sum(weights)
    if combine == "probabilities":
        to_p = special.expit if task == "multi-label" else lambda z: special.softmax(z, axis=-1)
        return np.average([to_p(z) for z in logits], axis=0, weights=shares)
    if task == "multi-label":
        on = geometric_mean([special.expit(z) for z in logits], shares)
        off = geometric_mean([special.expit(-z) for z in logits], shares)
        return on / (on + off)
    together = geometric_mean([special.softmax(z, axis=-1) for z in logits], shares)
    return together / together.sum(-1, keepdims=True)


@st.composite
def cases(draw: st.DrawFn) -> Any:
    seed, count = draw(st.integers(0, 999)), draw(st.integers(1, 4))
    rng = np.random.default_rng(seed)
    shape = (draw(st.integers(1, 5)), draw(st.integers(2, 6)))
    scale = draw(st.sampled_from([0.1, 3.0, 12.0]))
    logits = [scale * rng.standard_normal(shape).astype("float32") for _ in range(count)]
    weights = rng.uniform(0.1, 5, count).tolist() if draw(st.booleans()) else None
    return logits, weights, rng.integers(0, 2, count)


@settings(deadline=None, max_examples=15)
@given(
    case=cases(),
    combine=st.sampled_from(["probabilities", "geometric"]),
    task=st.sampled_from(["multi-class", "multi-label"]),
)
def test_probabilities_are_those_of_the_formula(case: Any, combine: Any, task: Any) -> None:
    logits, weights, kinds = case
    if task == "multi-label":
        # A sigmoid in single precision keeps few digits of 1 − p.
        logits = [np.clip(z, -8, 8) for z in logits]
    ending = "softmax" if task == "multi-class" else "sigmoid"
    # All of one name, and with layers of the same names.
    teachers = [told(z, (ending, "linear")[k]) for z, k in zip(logits, kinds, strict=True)]
    ensemble = Ensemble(teachers, combine, weights, task)
    rows = np.arange(len(logits[0]))[:, None]
    said = np.asarray(ensemble(rows), np.float64)
    got = special.softmax(said, axis=-1) if task == "multi-class" else special.expit(said)
    exact = [np.asarray(z, np.float64) for z in logits]
    expected = combine_oracle(exact, weights or [1.0] * len(logits), combine, task)
    rtol = 2e-4 if task == "multi-class" else 2e-3
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-7)
    if task == "multi-class":
        np.testing.assert_allclose(special.logsumexp(said, axis=-1), 0, atol=2e-5)


@settings(deadline=None, max_examples=6)
@given(case=cases(), task=st.sampled_from(["multi-class", "multi-label"]))
def test_mean_of_logits_is_that_of_the_formula(case: Any, task: Any) -> None:
    logits, weights, _ = case
    ensemble = Ensemble([told(z) for z in logits], "logits", weights, task)
    expected = np.average(logits, axis=0, weights=weights)
    got = ensemble(np.arange(len(logits[0]))[:, None])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_mean_of_logits_of_sigmoid_teachers() -> None:
    logits = [np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([[-1.0, 4.0], [0.0, 1.0]])]
    teachers = [told(z, "sigmoid") for z in logits]
    got = Ensemble(teachers, "logits", task="multi-label")(np.arange(2)[:, None])
    np.testing.assert_allclose(got, np.mean(logits, axis=0), rtol=1e-5, atol=1e-5)


def test_certain_teachers_give_finite_logits() -> None:
    for ending, task in [("softmax", "multi-class"), ("sigmoid", "multi-label")]:
        sure = np.array([[200.0, -200.0, -200.0]])
        for combine in ("probabilities", "geometric"):
            teachers = [told(sure, ending), told(-sure, ending), told(sure)]
            said = Ensemble(teachers, combine, task=task)(np.zeros((1, 1)))  # type: ignore[arg-type]
            assert np.isfinite(said).all()


def test_geometric_distils_like_the_mean_of_logits_at_any_temperature() -> None:
    rng = np.random.default_rng(1)
    teachers = [told(rng.standard_normal((6, 4)) * 3) for _ in range(3)]
    rows = np.arange(6)[:, None]
    student = tf.constant(rng.standard_normal((6, 4)), "float32")
    for temperature in (1.0, 4.0):
        loss = KnowledgeDistillation(temperature)
        by_mean = loss.per_sample(Ensemble(teachers, "logits")(rows), student)
        by_geometric = loss.per_sample(Ensemble(teachers, "geometric")(rows), student)
        np.testing.assert_allclose(by_geometric, by_mean, rtol=1e-4)


def test_teachers_are_left_alone_and_always_asked(make_net: Make, data: Data) -> None:
    teachers = [make_net(4), make_net(3, "softmax")]
    before = [[w.copy() for w in t.get_weights()] for t in teachers]
    flags = [[layer.trainable for layer in t.layers] for t in teachers]
    names = [t.name for t in teachers]
    ensemble = Ensemble(teachers)
    ensemble(data[0], training=True)
    assert ensemble.trainable_variables == ensemble.trainable_weights == []
    assert len(ensemble.non_trainable_variables) == len(ensemble.variables)
    assert ensemble.count_params() == sum(t.count_params() for t in teachers)
    for teacher, weights in zip(teachers, before, strict=True):
        # BatchNorm has not learnt from training=True.
        for a, b in zip(teacher.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)
    assert [[layer.trainable for layer in t.layers] for t in teachers] == flags
    assert [t.name for t in teachers] == names
    assert all(t.trainable_variables for t in teachers)
    assert all(a is b for a, b in zip(ensemble.teachers, teachers, strict=True))
    # Shared, not copied.
    old = np.asarray(ensemble(data[0]))
    teachers[0].get_layer("head").bias.assign([5.0, 0.0, 0.0])
    assert np.abs(np.asarray(ensemble(data[0])) - old).max() > 0.1


def test_save_load_and_rebuild(make_net: Make, data: Data, tmp_path: pathlib.Path) -> None:
    ensemble = Ensemble([make_net(4), make_net(3, "softmax")], "geometric", [3, 1], name="both")
    nested = Ensemble([ensemble, make_net(2)])
    for model in (ensemble, nested):
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        assert isinstance(loaded, Ensemble)
        assert loaded.trainable_variables == []
        np.testing.assert_array_equal(loaded(data[0]), model(data[0]))
        np.testing.assert_array_equal(rebuild(model)(data[0]), model(data[0]))
        again = Ensemble.from_config(model.get_config())
        assert again.get_config().keys() == model.get_config().keys()
    assert (ensemble.combine, ensemble.name) == ("geometric", "both")


def test_images_of_other_sizes_are_resized_in_front(data: Data) -> None:
    def net(size: int) -> keras.Model:
        inputs = keras.Input((size, size, 1))
        return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))

    small, large = net(4), net(6)
    for teachers in ([small, large], [large, small]):
        ensemble = Ensemble(teachers, "logits")
        assert ensemble.input_shape == (None, 6, 6, 1)
        shrunk = tf.image.resize(data[0], (4, 4), antialias=True)
        expected = (np.asarray(large(data[0])) + np.asarray(small(shrunk))) / 2
        np.testing.assert_allclose(ensemble(data[0]), expected, rtol=1e-4, atol=1e-5)


def test_several_inputs_and_outputs() -> None:
    def net(width: int) -> keras.Model:
        inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((3,), name="b")}
        x = keras.layers.Dense(width, "relu")(keras.layers.Concatenate()(list(inputs.values())))
        outputs = {"y": keras.layers.Dense(4)(x), "z": keras.layers.Dense(2, "softmax")(x)}
        return keras.Model(inputs, outputs)

    teachers = [net(3), net(8)]
    rng = np.random.default_rng(0)
    x = {"b": rng.random((5, 3)), "a": rng.random((5, 2))}
    got = Ensemble(teachers, weights=[1, 3])(x)
    assert list(got) == ["y", "z"]
    for key, to_p in (("y", lambda z: special.softmax(z, axis=-1)), ("z", np.asarray)):
        expected = np.average([to_p(t(x)[key]) for t in teachers], axis=0, weights=[1, 3])
        np.testing.assert_allclose(special.softmax(got[key], axis=-1), expected, rtol=1e-4)


def test_teaches_in_a_distiller(make_net: Make, data: Data, tmp_path: pathlib.Path) -> None:
    ensemble = Ensemble([make_net(4), make_net(5, "softmax")])
    assert endings(ensemble) == ["logits"]
    student = make_net(2)
    distiller = Distiller(ensemble, student, KnowledgeDistillation(1.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    p = special.softmax(ensemble(data[0]), axis=-1)
    q = special.softmax(student(data[0], training=True), axis=-1)
    expected = special.rel_entr(p, q).sum(-1).mean()
    history = distiller.fit(data[0], batch_size=16, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected, rel=1e-3)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    np.testing.assert_array_equal(loaded.teacher(data[0]), ensemble(data[0]))


def test_changed_member_is_asked_again(data: Data, tmp_path: pathlib.Path, counting: Any) -> None:
    def net(name: str) -> keras.Model:
        inputs = keras.Input((6, 6, 1))
        flat = keras.layers.Flatten()(counting(name="counter")(inputs))
        return keras.Model(inputs, keras.layers.Dense(3, name="head")(flat), name=name)

    dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
    first, second = net("first"), net("second")
    ensemble = Ensemble([first, second])
    count = second.get_layer("counter").count
    path = tmp_path / "cache"
    cache_teacher(dataset, ensemble, path)
    asked = int(count)
    assert asked == 2
    cached = cache_teacher(dataset, ensemble, path)
    assert int(count) == asked + 1
    for element, (x, _) in zip(cached, dataset, strict=True):
        np.testing.assert_allclose(element[0].teacher_outputs, ensemble(x), rtol=1e-4, atol=1e-5)
    asked = int(count)
    second.get_layer("head").bias.assign([1.0, 0.0, 0.0])
    cache_teacher(dataset, ensemble, path)
    assert int(count) == asked + 2
    cache_teacher(dataset, Ensemble([first, second], weights=[2, 1]), path)
    assert int(count) == asked + 4


def test_code_of_a_members_own_layer_counts(data: Data, tmp_path: pathlib.Path) -> None:
    class Scale(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs * 2.0

    class ScaleMore(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs * 3.0

    ScaleMore.__qualname__, ScaleMore.__name__ = Scale.__qualname__, Scale.__name__

    def ensemble(kind: type[keras.layers.Layer]) -> Ensemble:
        inputs = keras.Input((6, 6, 1), name="x")
        flat = keras.layers.Flatten(name="flat")(kind(name="scale")(inputs))
        return Ensemble([keras.Model(inputs, flat, name="teacher")], "logits")

    dataset = tf.data.Dataset.from_tensor_slices(data).batch(16)
    cache_teacher(dataset, ensemble(Scale), tmp_path / "t")
    (element, _) = next(iter(cache_teacher(dataset, ensemble(ScaleMore), tmp_path / "t")))
    np.testing.assert_allclose(element.teacher_outputs, data[0].reshape(16, -1) * 3, rtol=1e-6)


def test_members_of_two_image_sizes_work_wherever_a_teacher_does(tmp_path: pathlib.Path) -> None:
    def net(size: int) -> keras.Model:
        layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((size, size, 1)), *layers])

    rng = np.random.default_rng(0)
    x, y = rng.random((6, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 6)
    members = [net(16), net(8)]
    largest = np.asarray(tf.image.resize(x, (16, 16), antialias=True))
    smaller = np.asarray(tf.image.resize(largest, (8, 8), antialias=True))
    said = [np.asarray(m(part)) for m, part in zip(members, (largest, smaller), strict=True)]
    expected = np.mean([special.softmax(z, axis=-1) for z in said], axis=0)
    ensemble = Ensemble(members)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(6)
    (element, _) = next(
        iter(cache_teacher(dataset, ensemble, tmp_path / "t", layers=["teacher_0"]))
    )
    got = special.softmax(element.teacher_outputs, axis=-1)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    labels = next(iter(pseudo_labels(x, ensemble)))[1]
    np.testing.assert_allclose(labels, expected, rtol=1e-4)
    chain = AssistantChain(ensemble, [net(8)], net(8))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    chain.compile("sgd", loss=loss, run_eagerly=True)
    evaluation = chain.fit(x, y, validation_data=(x, y), verbose=0).evaluations["teacher"]
    assert evaluation["loss"] == pytest.approx(-np.log(expected[np.arange(6), y]).mean(), rel=1e-4)
    ensemble.save(tmp_path / "e.keras")
    loaded = keras.saving.load_model(tmp_path / "e.keras")
    np.testing.assert_allclose(special.softmax(loaded(largest), axis=-1), expected, rtol=1e-4)


def test_mixed_precision_teachers_are_combined_in_single(make_net: Make, data: Data) -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        half = make_net(4)
        ensemble = Ensemble([half, half_twin := make_net(4)], "geometric")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    got = np.asarray(ensemble(data[0]))
    assert got.dtype == np.float32
    logits = [np.asarray(t(data[0]), np.float64) for t in (half, half_twin)]
    expected = combine_oracle(logits, [1.0, 1.0], "geometric", "multi-class")
    np.testing.assert_allclose(special.softmax(got, axis=-1), expected, rtol=1e-2)


def subclassed() -> keras.Model:
    class Net(keras.Model):
        def call(self, inputs: Any) -> Any:
            return inputs

    return Net()


def dense(units: int = 3, ending: str = "linear", inputs: int = 4) -> keras.Model:
    return keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(units, ending)])


def twins() -> list[keras.Model]:
    inputs, shared = keras.Input((4,)), keras.layers.Dense(5)
    return [keras.Model(inputs, keras.layers.Dense(3)(shared(inputs))) for _ in range(2)]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Ensemble([]), "list of models"),
        (lambda: Ensemble(dense()), "list of models"),  # type: ignore[arg-type]
        (lambda: Ensemble([dense()] * 2), "share no weights"),
        (lambda: Ensemble(twins()), "share no weights"),
        (lambda: Ensemble([dense(), dense(4)]), "same outputs"),
        (lambda: Ensemble([dense(), dense(inputs=5)]), "same inputs"),
        (lambda: Ensemble([dense()], "vote"), "'geometric'"),  # type: ignore[arg-type]
        (lambda: Ensemble([dense()], task="regression"), "'multi-label'"),  # type: ignore[arg-type]
        (lambda: Ensemble([dense(), dense()], weights=[1.0]), "2 numbers above 0"),
        (lambda: Ensemble([dense(), dense()], weights=[1.0, 0.0]), "2 numbers above 0"),
        (lambda: Ensemble([dense(ending="softmax")], "logits"), "geometric"),
        (lambda: Ensemble([dense(ending="sigmoid")]), "ends in sigmoid"),
        (lambda: Ensemble([dense(ending="softmax")], task="multi-label"), "ends in softmax"),
        (lambda: Ensemble([dense(1)]), "two or more"),
        (lambda: Ensemble([subclassed()]), "subclassed"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(TfcompError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert "eceived" in str(caught.value)


def test_regression_averages_outputs() -> None:
    teachers = [dense(1), dense(1)]
    x = np.random.default_rng(0).random((5, 4))
    expected = (2 * np.asarray(teachers[0](x)) + np.asarray(teachers[1](x))) / 3
    got = Ensemble(teachers, "logits", [2, 1])(x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_subclassed_teacher_is_an_unsupported_model() -> None:
    with pytest.raises(UnsupportedModelError):
        Ensemble([subclassed()])
