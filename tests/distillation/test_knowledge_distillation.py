"""KnowledgeDistillation against SciPy, finite differences, and its own promises."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfcomp.distillation import KnowledgeDistillation
from tfcomp.distillation.losses.ending import endings
from tfcomp.errors import TfcompError

TEMPERATURES = st.sampled_from([0.5, 1.0, 2.0, 4.0, 20.0])
SHAPES = hnp.array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=5)
Pair = tuple[np.ndarray, np.ndarray]


@st.composite
def pairs(draw: Any, bound: float = 12.0) -> Pair:
    shape = draw(SHAPES)
    values = hnp.arrays(np.float64, shape, elements=st.floats(-bound, bound, width=32))
    return draw(values), draw(values)


def softmax_oracle(teacher: np.ndarray, student: np.ndarray, temperature: float) -> np.ndarray:
    p = scipy.special.softmax(teacher / temperature, axis=-1)
    q = scipy.special.softmax(student / temperature, axis=-1)
    kl = scipy.stats.entropy(p, q, axis=-1)
    return temperature**2 * kl.reshape(len(kl), -1).mean(axis=1)


def sigmoid_oracle(teacher: np.ndarray, student: np.ndarray, temperature: float) -> np.ndarray:
    p = scipy.special.expit(teacher / temperature)
    q = scipy.special.expit(student / temperature)
    kl = scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)
    kl = kl.sum(axis=-1)
    return temperature**2 * kl.reshape(len(kl), -1).mean(axis=1)


def regression_oracle(teacher: np.ndarray, student: np.ndarray, _: float) -> np.ndarray:
    squares = 0.5 * np.linalg.norm(student - teacher, axis=-1) ** 2
    return squares.reshape(len(squares), -1).mean(axis=1)


ORACLES = {
    "multi-class": softmax_oracle,
    "multi-label": sigmoid_oracle,
    "regression": regression_oracle,
}
TASKS = pytest.mark.parametrize("task", list(ORACLES))


def make(task: str, temperature: float, **kwargs: Any) -> KnowledgeDistillation:
    return KnowledgeDistillation(4.0 if task == "regression" else temperature, task, **kwargs)


def values(loss: KnowledgeDistillation, pair: Pair, dtype: str = "float64") -> np.ndarray:
    teacher, student = (tf.constant(outputs, dtype) for outputs in pair)
    return loss.per_sample(teacher, student).numpy()


@TASKS
@settings(deadline=None, max_examples=40)
@given(pair=pairs(), temperature=TEMPERATURES)
def test_value_is_the_papers(task: str, pair: Pair, temperature: float) -> None:
    loss = make(task, temperature)
    expected = ORACLES[task](*pair, temperature)
    np.testing.assert_allclose(values(loss, pair), expected, rtol=1e-6, atol=1e-9)
    single = values(loss, pair, "float32")
    assert single.dtype == np.float32
    assert single.shape == (len(pair[0]),)
    np.testing.assert_allclose(single, expected, rtol=1e-3, atol=2e-4 * temperature**2)
    scalar = loss.compute_loss(*(tf.constant(outputs) for outputs in pair))
    assert float(scalar) == pytest.approx(expected.mean(), rel=1e-6, abs=1e-9)


@TASKS
@settings(deadline=None, max_examples=20)
@given(pair=pairs(4.0), temperature=TEMPERATURES, seed=st.integers(0, 999))
def test_gradient_is_that_of_finite_differences(
    task: str, pair: Pair, temperature: float, seed: int
) -> None:
    loss, (teacher, student) = make(task, temperature), pair
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(loss.per_sample(tf.constant(teacher), variable))
    gradient = tape.gradient(value, variable).numpy()
    direction = np.random.default_rng(seed).standard_normal(student.shape)
    step = 1e-5
    ahead, behind = (
        ORACLES[task](teacher, student + sign * step * direction, temperature).sum()
        for sign in (1, -1)
    )
    expected = (ahead - behind) / (2 * step)
    assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@TASKS
@settings(deadline=None, max_examples=30)
@given(pair=pairs(60.0), temperature=TEMPERATURES)
def test_never_negative_and_zero_when_equal(task: str, pair: Pair, temperature: float) -> None:
    loss, (teacher, student) = make(task, temperature), pair
    assert (values(loss, (teacher, student), "float32") >= 0).all()
    nearly = (teacher, teacher + 1e-6 * np.sign(student))
    assert (values(loss, nearly, "float32") >= 0).all()
    assert values(loss, (teacher, teacher), "float32") == pytest.approx(0, abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(pair=pairs(30.0), temperature=TEMPERATURES)
@pytest.mark.parametrize("soft_teacher, soft_student", [(True, False), (False, True), (True, True)])
def test_probabilities_give_the_loss_of_their_logits(
    soft_teacher: bool, soft_student: bool, pair: Pair, temperature: float
) -> None:
    loss = KnowledgeDistillation(
        temperature, teacher_from_logits=not soft_teacher, student_from_logits=not soft_student
    )
    teacher, student = (tf.constant(outputs, "float32") for outputs in pair)
    given_ = (
        tf.nn.softmax(teacher) if soft_teacher else teacher,
        tf.nn.softmax(student) if soft_student else student,
    )
    expected = softmax_oracle(*pair, temperature)
    np.testing.assert_allclose(
        loss.per_sample(*given_), expected, rtol=2e-3, atol=2e-4 * temperature**2
    )


@settings(deadline=None, max_examples=30)
@given(pair=pairs(6.0), temperature=TEMPERATURES)
def test_sigmoid_probabilities_give_the_loss_of_their_logits(
    pair: Pair, temperature: float
) -> None:
    loss = KnowledgeDistillation(
        temperature, "multi-label", teacher_from_logits=False, student_from_logits=False
    )
    given_ = [tf.sigmoid(tf.constant(outputs, "float32")) for outputs in pair]
    expected = sigmoid_oracle(*pair, temperature)
    np.testing.assert_allclose(loss.per_sample(*given_), expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("task", ["multi-class", "multi-label"])
def test_certain_probabilities_give_finite_values_and_gradients(task: str) -> None:
    loss = KnowledgeDistillation(1.0, task, teacher_from_logits=False, student_from_logits=False)
    student = tf.Variable([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    with tf.GradientTape() as tape:
        value = loss.per_sample(tf.constant([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), student)
    assert value[0].numpy() == pytest.approx(0, abs=1e-5)
    assert 15 < value[1].numpy() < 110
    assert np.isfinite(tape.gradient(value, student)).all()


def test_half_precision_is_computed_in_single() -> None:
    teacher, student = np.array([[8.0, -8.0, 0.0]]), np.array([[7.5, -7.0, 0.5]])
    half = KnowledgeDistillation(4.0).per_sample(
        tf.constant(teacher, "float16"), tf.constant(student, "float16")
    )
    assert half.dtype == tf.float32
    assert half.numpy() == pytest.approx(softmax_oracle(teacher, student, 4.0), rel=1e-4)


def test_several_outputs_are_summed() -> None:
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.standard_normal((3, 4)) for _ in range(4))
    loss = KnowledgeDistillation(2.0)
    together = loss.per_sample(
        {"x": tf.constant(a), "y": tf.constant(b)}, {"x": tf.constant(c), "y": tf.constant(d)}
    )
    expected = softmax_oracle(a, c, 2.0) + softmax_oracle(b, d, 2.0)
    np.testing.assert_allclose(together, expected)


def test_temperature_changes_without_a_new_trace() -> None:
    loss = KnowledgeDistillation(4.0)
    traces = []
    rng = np.random.default_rng(0)
    pair = rng.standard_normal((2, 3, 5))

    @tf.function
    def run(teacher: Any, student: Any) -> Any:
        traces.append(1)
        return loss.per_sample(teacher, student)

    for temperature in (4.0, 1.0, 10.0):
        loss.temperature = temperature
        assert loss.temperature == temperature
        expected = softmax_oracle(*pair, temperature)
        np.testing.assert_allclose(run(tf.constant(pair[0]), tf.constant(pair[1])), expected)
    assert len(traces) == 1


@pytest.mark.parametrize(
    "loss",
    [
        KnowledgeDistillation(2.5, "multi-label", teacher_from_logits=True, name="soft"),
        KnowledgeDistillation(task="regression"),
    ],
)
def test_round_trips(loss: KnowledgeDistillation) -> None:
    config = json.loads(json.dumps(loss.get_config()))
    serialized = keras.saving.serialize_keras_object(loss)
    for clone in [
        KnowledgeDistillation.from_config(config),
        keras.saving.deserialize_keras_object(json.loads(json.dumps(serialized))),
        pickle.loads(pickle.dumps(loss)),
        copy.deepcopy(loss),
    ]:
        assert type(clone) is KnowledgeDistillation
        assert clone is not loss
        assert clone.get_config() == loss.get_config()


def test_config_holds_the_temperature_in_force() -> None:
    loss = KnowledgeDistillation(4.0)
    loss.temperature = 2.0
    assert KnowledgeDistillation.from_config(loss.get_config()).temperature == 2.0


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
        ({"temperature": -1}, "above 0"),
        ({"task": "multiclass"}, "'multi-class'"),
        ({"task": "regression", "temperature": 2.0}, "no temperature"),
        ({"task": "regression", "teacher_from_logits": True}, "None for regression"),
        ({"student_from_logits": "auto"}, "True, False or None"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(TfcompError, match=words) as caught:
        KnowledgeDistillation(**arguments)
    assert "\n" not in str(caught.value)
    assert "eceived" in str(caught.value)


def test_temperature_of_regression_cannot_be_set() -> None:
    with pytest.raises(TfcompError, match="no temperature"):
        KnowledgeDistillation(task="regression").temperature = 2.0


def net(*last: keras.layers.Layer, units: int = 3) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units), *last])


def fused(activation: str) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation)])


def branches() -> keras.Model:
    inputs = keras.Input((4,))
    inner = fused("softmax")
    soft = keras.layers.Identity()(inner(inputs))
    logits = keras.layers.Dense(2)(inputs)
    label = keras.ops.sigmoid(keras.layers.Dense(5)(inputs))
    return keras.Model(inputs, {"soft": soft, "logits": logits, "label": label})


@pytest.mark.parametrize(
    "model, expected",
    [
        (lambda: net(), ["logits"]),
        (lambda: net(keras.layers.Softmax()), ["softmax"]),
        (lambda: net(keras.layers.Activation("softmax")), ["softmax"]),
        (lambda: fused("softmax"), ["softmax"]),
        (lambda: fused("sigmoid"), ["sigmoid"]),
        (lambda: fused("log_softmax"), ["logits"]),
        (lambda: fused("relu"), ["logits"]),
        (lambda: net(keras.layers.Softmax(), keras.layers.Activation("linear")), ["softmax"]),
        (lambda: net(keras.layers.Softmax(), keras.layers.Reshape((1, 3))), ["softmax"]),
        (lambda: net(keras.layers.Softmax(), keras.layers.Reshape((3, 1))), ["logits"]),
        (lambda: net(keras.layers.Softmax(), keras.layers.Dense(3)), ["logits"]),
        (lambda: keras.Sequential([keras.Input((4,)), fused("softmax")]), ["softmax"]),
        (branches, ["sigmoid", "logits", "softmax"]),
    ],
)
def test_endings_are_read_from_the_graph(model: Any, expected: list[str]) -> None:
    assert endings(model()) == expected


def test_softmax_over_another_axis_is_refused() -> None:
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, keras.layers.Softmax(axis=1)(inputs))
    with pytest.raises(TfcompError, match="last axis"):
        endings(model)


@pytest.mark.parametrize(
    "task, activation, words",
    [("multi-class", "sigmoid", "ends in sigmoid"), ("multi-label", "softmax", "ends in softmax")],
)
def test_ending_of_another_task_is_refused(task: str, activation: str, words: str) -> None:
    with pytest.raises(TfcompError, match=words):
        make(task, 1.0).validate_model_compatibility(net(), fused(activation))


def test_loss_of_models_that_end_differently_is_not_shared() -> None:
    loss = KnowledgeDistillation()
    loss.validate_model_compatibility(net(), fused("softmax"))
    loss.validate_model_compatibility(net(), fused("softmax"))
    with pytest.raises(TfcompError, match="one loss for each"):
        loss.validate_model_compatibility(net(), net())


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 7, 1)])
def test_one_class_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TfcompError, match="two classes or more"):
        KnowledgeDistillation().validate_outputs(np.zeros(shape), np.zeros(shape))
    KnowledgeDistillation(task="multi-label").validate_outputs(np.zeros(shape), np.zeros(shape))


def test_works_in_the_distiller_of_keras() -> None:
    keras.utils.set_random_seed(0)
    teacher, student = net(), fused("softmax")
    distiller = keras.distillation.Distiller(
        teacher, student, KnowledgeDistillation(2.0), student_loss_weight=0.0
    )
    distiller.compile("sgd", loss="sparse_categorical_crossentropy")
    x = np.random.default_rng(0).standard_normal((8, 4)).astype("float32")
    student_logits = np.log(student.predict(x, verbose=0))
    expected = softmax_oracle(teacher.predict(x, verbose=0), student_logits, 2.0).mean()
    history = distiller.fit(x, np.zeros(8), batch_size=8, verbose=0).history
    assert history["distillation_loss"][0] == pytest.approx(expected, rel=1e-4)
