"""Distiller: what a step computes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcomp.distillation import (
    DistillationInputs,
    Distiller,
    FitNetsHint,
    KnowledgeDistillation,
    PerSampleLoss,
)
from tfcomp.errors import TfcompError

Make = Callable[..., keras.Model]
Data = tuple[np.ndarray, np.ndarray]
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
GAP = {"teacher_layer_name": "pool", "student_layer_name": "pool"}


def numpy_kd(teacher: np.ndarray, student: np.ndarray, temperature: float) -> np.ndarray:
    log_p, log_q = (z / temperature for z in (teacher, student))
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    log_q = log_q - np.log(np.exp(log_q).sum(-1, keepdims=True))
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1)


def numpy_ce(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_q[np.arange(len(labels)), labels]


def outputs(model: keras.Model, x: Any, training: bool = False) -> Any:
    """Outputs as a step sees them, the model left as it was."""
    weights = model.get_weights()
    result = keras.tree.map_structure(np.asarray, model(x, training=training))
    model.set_weights(weights)
    return result


def logs_of_one_step(distiller: Distiller, *arguments: Any, **kwargs: Any) -> dict[str, float]:
    history = distiller.fit(*arguments, batch_size=64, verbose=0, shuffle=False, **kwargs).history
    return {name: values[0] for name, values in history.items()}


@pytest.mark.parametrize("eager", [False, True])
def test_loss_is_the_mixture(make_net: Make, data: Data, eager: bool) -> None:
    (x, y), teacher, student = data, make_net(8), make_net()
    expected_kd = numpy_kd(outputs(teacher, x), outputs(student, x, True), 3.0).mean()
    expected_ce = numpy_ce(y, outputs(student, x, True)).mean()
    distiller = Distiller(
        teacher, student, [KnowledgeDistillation(3.0)], [0.7], student_loss_weight=0.2
    )
    distiller.compile("sgd", loss=CE, metrics=["accuracy"], run_eagerly=eager)
    logs = logs_of_one_step(distiller, x, y)
    assert set(logs) == {"accuracy", "distillation_loss", "loss", "student_loss"}
    assert logs["student_loss"] == pytest.approx(expected_ce, rel=1e-5)
    assert logs["distillation_loss"] == pytest.approx(0.7 * expected_kd, rel=1e-4)
    assert logs["loss"] == pytest.approx(0.2 * expected_ce + 0.8 * 0.7 * expected_kd, rel=1e-5)


def test_update_is_that_of_the_gradient(make_net: Make, data: Data) -> None:
    (x, y), teacher, student = data, make_net(8), make_net()
    copy = keras.models.clone_model(student)
    copy.set_weights(student.get_weights())
    with tf.GradientTape() as tape:
        z_s, z_t = copy(x, training=True), teacher(x, training=False)
        p, q = tf.nn.softmax(z_t / 4), tf.nn.softmax(z_s / 4)
        kd = 16 * tf.reduce_mean(tf.reduce_sum(p * tf.math.log(p / q), axis=-1))
        loss = 0.3 * CE(y, z_s) + 0.7 * kd
    gradients = tape.gradient(loss, copy.trainable_variables)
    expected = [
        v.numpy() - 0.1 * g for v, g in zip(copy.trainable_variables, gradients, strict=True)
    ]
    distiller = Distiller(teacher, student, KnowledgeDistillation(4.0), student_loss_weight=0.3)
    distiller.compile(keras.optimizers.SGD(0.1), loss=CE)
    logs_of_one_step(distiller, x, y)
    for variable, value in zip(student.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-4, atol=1e-6)


def test_learns_from_the_teacher_alone(make_net: Make, data: Data) -> None:
    (x, _), teacher, student = data, make_net(8), make_net(8)
    distiller = Distiller(teacher, student, KnowledgeDistillation(2.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    dataset = tf.data.Dataset.from_tensor_slices((x,)).batch(16).repeat(150)
    history = distiller.fit(dataset, verbose=0, epochs=1).history
    assert set(history) == {"loss", "distillation_loss", "student_loss"}
    gap = numpy_kd(outputs(teacher, x), outputs(student, x, True), 2.0).mean()
    assert gap < 0.2 * history["loss"][0]


def test_several_losses_are_reported_each(make_net: Make, data: Data) -> None:
    (x, y), teacher, student = data, make_net(), make_net()
    losses = [
        KnowledgeDistillation(2.0),
        KnowledgeDistillation(4.0),
        keras.distillation.FeatureDistillation(**GAP),
    ]
    kd = [numpy_kd(outputs(teacher, x), outputs(student, x, True), t).mean() for t in (2.0, 4.0)]
    distiller = Distiller(teacher, student, losses, [1.0, 0.5, 0.25])
    distiller.compile("sgd", loss=CE)
    logs = logs_of_one_step(distiller, x, y)
    assert logs["knowledge_distillation"] == pytest.approx(kd[0], rel=1e-4)
    assert logs["knowledge_distillation_2"] == pytest.approx(kd[1], rel=1e-4)
    total = kd[0] + 0.5 * kd[1] + 0.25 * logs["feature_distillation"]
    assert logs["distillation_loss"] == pytest.approx(total, rel=1e-4)
    assert logs["loss"] == pytest.approx(0.5 * logs["student_loss"] + 0.5 * total, rel=1e-4)


def counted(counting: Any, make_net: Make) -> keras.Model:
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(counting(name="counter")(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def test_both_models_run_once_per_step_with_feature_losses(
    make_net: Make, data: Data, counting: Any
) -> None:
    x, y = data
    teacher, student = counted(counting, make_net), counted(counting, make_net)
    losses = [KnowledgeDistillation(), keras.distillation.FeatureDistillation(**GAP)]
    distiller = Distiller(teacher, student, losses)
    distiller.compile("sgd", loss=CE, metrics=["accuracy"])
    distiller.fit(x, y, batch_size=4, epochs=3, verbose=0)
    for model in (teacher, student):
        assert int(model.get_layer("counter").count.numpy()) == 4 * 3


def test_sample_weights_weigh_both_losses(make_net: Make, data: Data) -> None:
    (x, y), teacher, student = data, make_net(8), make_net()
    weights = np.random.default_rng(0).random(len(x)).astype("float32")
    kd = numpy_kd(outputs(teacher, x), outputs(student, x, True), 4.0)
    ce = numpy_ce(y, outputs(student, x, True))
    distiller = Distiller(teacher, student, KnowledgeDistillation(4.0))
    distiller.compile("sgd", loss=CE)
    logs = logs_of_one_step(distiller, x, y, sample_weight=weights)
    assert logs["student_loss"] == pytest.approx((weights * ce).mean(), rel=1e-4)
    assert logs["distillation_loss"] == pytest.approx((weights * kd).mean(), rel=1e-4)


def test_class_weights_weigh_both_losses(make_net: Make, data: Data) -> None:
    (x, y), teacher, student = data, make_net(8), make_net()
    class_weight = {0: 0.0, 1: 2.0, 2: 0.5}
    weights = np.array([class_weight[label] for label in y])
    kd = numpy_kd(outputs(teacher, x), outputs(student, x, True), 4.0)
    distiller = Distiller(teacher, student, KnowledgeDistillation(4.0))
    distiller.compile("sgd", loss=CE)
    logs = logs_of_one_step(distiller, x, y, class_weight=class_weight)
    assert logs["distillation_loss"] == pytest.approx((weights * kd).mean(), rel=1e-4)


class Relational(PerSampleLoss):
    batch_relational = True

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        gap = keras.ops.mean(teacher_outputs - student_outputs, axis=0)
        return keras.ops.sum(gap**2) * keras.ops.ones_like(student_outputs[:, 0])


class Scalar(keras.distillation.DistillationLoss):
    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        return keras.ops.mean((teacher_outputs - student_outputs) ** 2)


class Vector(keras.distillation.DistillationLoss):
    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        return keras.ops.mean((teacher_outputs - student_outputs) ** 2, axis=-1)


class PerClass(keras.distillation.DistillationLoss):
    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        return (teacher_outputs - student_outputs) ** 2


@pytest.mark.parametrize("loss", [Relational(), Scalar()])
@pytest.mark.parametrize("kind", ["sample_weight", "class_weight"])
def test_batch_losses_with_weights_are_refused(
    make_net: Make, data: Data, loss: Any, kind: str
) -> None:
    x, y = data
    distiller = Distiller(make_net(), make_net(), loss)
    distiller.compile("sgd", loss=CE)
    distiller.fit(x, y, verbose=0)
    weights = np.ones(16) if kind == "sample_weight" else {0: 1.0, 1: 1.0, 2: 2.0}
    with pytest.raises(TfcompError, match="one value for the whole batch") as caught:
        distiller.fit(x, y, verbose=0, **{kind: weights})
    assert "\n" not in str(caught.value)


def test_own_loss_with_one_value_per_sample_is_weighted(make_net: Make, data: Data) -> None:
    (x, y), teacher, student = data, make_net(8), make_net()
    gap = ((outputs(teacher, x) - outputs(student, x, True)) ** 2).mean(-1)
    weights = np.arange(16.0)
    distiller = Distiller(teacher, student, Vector())
    distiller.compile("sgd", loss=CE)
    logs = logs_of_one_step(distiller, x, y, sample_weight=weights)
    assert logs["distillation_loss"] == pytest.approx((weights * gap).mean(), rel=1e-4)


def test_loss_of_another_shape_is_refused(make_net: Make, data: Data) -> None:
    distiller = Distiller(make_net(), make_net(), PerClass())
    distiller.compile("sgd", loss=CE)
    with pytest.raises(TfcompError, match="one value per sample"):
        distiller.fit(*data, verbose=0)


def test_weights_per_position_are_refused() -> None:
    def net() -> keras.Model:
        return keras.Sequential([keras.Input((5, 2)), keras.layers.Dense(3)])

    distiller = Distiller(net(), net(), KnowledgeDistillation())
    distiller.compile("sgd", loss=CE)
    x, y = np.zeros((4, 5, 2)), np.zeros((4, 5))
    distiller.fit(x, y, verbose=0, sample_weight=np.ones((4, 1)))
    with pytest.raises(TfcompError, match="one weight per sample"):
        distiller.fit(x, y, verbose=0, sample_weight=np.ones((4, 5)))


def test_softmax_and_logits_models_give_the_same_loss(make_net: Make, data: Data) -> None:
    x, y = data
    logs = []
    for teacher_end, student_end in [(None, None), ("softmax", None), ("softmax", "softmax")]:
        keras.utils.set_random_seed(1)
        teacher, student = make_net(8, teacher_end), make_net(4, student_end)
        distiller = Distiller(teacher, student, KnowledgeDistillation(3.0))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=student_end is None)
        distiller.compile("sgd", loss=loss)
        logs.append(logs_of_one_step(distiller, x, y) | {"kernel": student.get_weights()[0].sum()})
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
    assert logs[2] == pytest.approx(logs[0], rel=1e-4)


def two_heads(structure: str, width: int) -> keras.Model:
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(width, "relu")(inputs)
    kind = keras.layers.Dense(3, "softmax", name="kind")(hidden)
    place = keras.layers.Dense(2, name="place")(hidden)
    heads = {"dict": {"kind": kind, "place": place}, "list": [kind, place]}
    return keras.Model(inputs, heads[structure])


@pytest.mark.parametrize(
    "structure, how",
    [
        ("dict", "by name"),
        ("list", "by name"),
        ("list", "by position"),
        pytest.param("dict", "one of them", marks=pytest.mark.long),
        pytest.param("list", "one of them", marks=pytest.mark.long),
    ],
)
def test_several_outputs_each_with_its_loss(structure: str, how: str) -> None:
    rng = np.random.default_rng(0)
    x, kinds, places = rng.random((8, 4)), rng.integers(0, 3, 8), rng.random((8, 2))
    teacher, student = two_heads(structure, 8), two_heads(structure, 4)
    z_t, z_s = outputs(teacher, x), outputs(student, x)
    if structure == "list":
        z_t, z_s = (dict(zip(["kind", "place"], z, strict=True)) for z in (z_t, z_s))
    kd = numpy_kd(np.log(z_t["kind"]), np.log(z_s["kind"]), 4.0).mean()
    mse = 0.5 * ((z_t["place"] - z_s["place"]) ** 2).sum(-1).mean()
    losses: Any = {
        "kind": KnowledgeDistillation(),
        "place": KnowledgeDistillation(task="regression"),
    }
    if how == "by position":
        losses = [list(losses.values())]
    if how == "one of them":
        losses, mse = {"kind": losses["kind"], "place": None}, 0.0
    distiller = Distiller(teacher, student, losses, student_loss_weight=0.25)
    distiller.compile("sgd", loss={"kind": "sparse_categorical_crossentropy", "place": "mse"})
    y = {"kind": kinds, "place": places}
    logs = logs_of_one_step(distiller, x, y if structure == "dict" else [kinds, places])
    assert logs["distillation_loss"] == pytest.approx(kd + mse, rel=1e-4)
    assert logs["loss"] == pytest.approx(0.25 * logs["student_loss"] + 0.75 * (kd + mse), rel=1e-4)
    if mse:
        assert logs["kind_knowledge_distillation"] == pytest.approx(kd, rel=1e-4)
        assert logs["place_knowledge_distillation"] == pytest.approx(mse, rel=1e-4)
    evaluated = distiller.evaluate(
        x, y if structure == "dict" else [kinds, places], verbose=0, return_dict=True
    )
    assert {"loss", "kind_loss", "place_loss"} == set(evaluated)


def test_one_loss_sums_over_outputs_and_weights_go_by_output() -> None:
    def net(width: int) -> keras.Model:
        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(width)(inputs)
        return keras.Model(inputs, [keras.layers.Dense(n)(hidden) for n in (3, 2)])

    rng = np.random.default_rng(0)
    x, y = rng.random((8, 4)), [rng.integers(0, 3, 8), rng.integers(0, 2, 8)]
    teacher, student = net(8), net(4)
    z_t, z_s = outputs(teacher, x), outputs(student, x)
    kds = [numpy_kd(z_t[i], z_s[i], 4.0) for i in range(2)]
    distiller = Distiller(teacher, student, KnowledgeDistillation())
    distiller.compile(keras.optimizers.SGD(0.0), loss=CE)
    logs = logs_of_one_step(distiller, x, y)
    assert logs["distillation_loss"] == pytest.approx(sum(kds).mean(), rel=1e-4)
    weights = [rng.random(8), rng.random(8)]
    with pytest.raises(TfcompError, match="one loss per output"):
        logs_of_one_step(distiller, x, y, sample_weight=weights)
    each = Distiller(teacher, student, [[KnowledgeDistillation(), KnowledgeDistillation()]])
    each.compile(keras.optimizers.SGD(0.0), loss=CE)
    logs = logs_of_one_step(each, x, y, sample_weight=weights)
    expected = sum((w * kd).mean() for w, kd in zip(weights, kds, strict=True))
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)


def test_segmentation_has_one_value_per_sample() -> None:
    def net(width: int) -> keras.Model:
        layers = [keras.layers.Conv2D(width, 1), keras.layers.Conv2D(3, 1)]
        return keras.Sequential([keras.Input((None, None, 1)), *layers])

    x = np.random.default_rng(0).random((4, 5, 6, 1)).astype("float32")
    y, weights = np.zeros((4, 5, 6)), np.array([0.0, 1.0, 2.0, 3.0])
    teacher, student = net(8), net(2)
    kd = numpy_kd(outputs(teacher, x), outputs(student, x), 4.0).mean(axis=(1, 2))
    distiller = Distiller(teacher, student, KnowledgeDistillation(), student_loss_weight=0.0)
    distiller.compile("sgd")
    dataset = tf.data.Dataset.from_tensors((x, y, weights))
    history = distiller.fit(dataset, verbose=0).history
    assert history["loss"][0] == pytest.approx((weights * kd).mean(), rel=1e-4)


def test_evaluate_and_predict_are_the_students(make_net: Make, data: Data) -> None:
    (x, y), teacher, student = data, make_net(8), make_net()
    distiller = Distiller(teacher, student, KnowledgeDistillation())
    distiller.compile("adam", loss=CE, metrics=["accuracy"], weighted_metrics=["accuracy"])
    distiller.fit(x, y, verbose=0)
    student.compile("adam", loss=CE, metrics=["accuracy"], weighted_metrics=["accuracy"])
    weights = np.arange(16.0)
    mine, its = (
        model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
        for model in (distiller, student)
    )
    assert list(mine) == list(its)
    # Some values are tensors in Keras 3.12.
    np.testing.assert_allclose(list(mine.values()), list(its.values()), rtol=1e-6)
    mine, its = (model.evaluate(x, y, verbose=0) for model in (distiller, student))
    np.testing.assert_allclose(mine, its, rtol=1e-6)
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), student.predict(x, verbose=0))
    np.testing.assert_array_equal(distiller(x), student(x))


def test_validation_during_fit_reports_the_student(make_net: Make, data: Data) -> None:
    distiller = Distiller(make_net(8), make_net(), KnowledgeDistillation())
    distiller.compile("adam", loss=CE, metrics=["accuracy"])
    history = distiller.fit(*data, validation_data=data, verbose=0).history
    assert {name for name in history if name.startswith("val_")} == {"val_loss", "val_accuracy"}


def test_teacher_is_no_part_of_the_model(make_net: Make, data: Data) -> None:
    teacher, student = make_net(8), make_net()
    distiller = Distiller(teacher, student, [KnowledgeDistillation(), FitNetsHint("relu", "relu")])
    assert distiller.teacher is teacher
    assert distiller.student is student
    before = teacher.get_weights()
    distiller.compile("adam", loss=CE)
    distiller.fit(*data, verbose=0)
    ours = {id(variable) for variable in [*distiller.variables, *distiller.optimizer.variables]}
    assert not ours & {id(variable) for variable in teacher.variables}
    regressor = distiller.loss_layers[0].trainable_variables
    trained = [*student.trainable_variables, *regressor]
    assert [id(v) for v in distiller.trainable_variables] == [id(v) for v in trained]
    sizes = sum(int(np.prod(variable.shape)) for variable in trained)
    held = sum(int(np.prod(variable.shape)) for variable in distiller.optimizer.variables)
    assert held == 2 * sizes + 2
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "share", [0.25, *(pytest.param(end, marks=pytest.mark.long) for end in (0.0, 1.0))]
)
def test_regularisation_counts_once(data: Data, share: float) -> None:
    x, y = data

    def net(strength: float) -> keras.Model:
        keras.utils.set_random_seed(5)
        layers = [
            keras.layers.Flatten(),
            keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(strength), name="a"),
            keras.layers.ActivityRegularization(l1=strength),
            keras.layers.Dense(3),
        ]
        return keras.Sequential([keras.Input((6, 6, 1)), *layers])

    def loss(strength: float, teacher_strength: float) -> float:
        teacher, student = net(teacher_strength), net(strength)
        hint = keras.distillation.FeatureDistillation(
            teacher_layer_name="a", student_layer_name="a"
        )
        distiller = Distiller(
            teacher, student, [KnowledgeDistillation(), hint], student_loss_weight=share
        )
        distiller.compile("sgd", loss=CE)
        return logs_of_one_step(distiller, x, y)["loss"]

    student = net(0.1)
    student(x)
    expected = sum(float(extra) for extra in student.losses)
    assert expected > 0.1
    assert loss(0.1, 0.0) - loss(0.0, 0.0) == pytest.approx(expected, rel=1e-4)
    assert loss(0.1, 0.5) == pytest.approx(loss(0.1, 0.0), rel=1e-6)


def test_mixed_precision_follows_the_student(data: Data) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((6, 6, 1))
        hidden = keras.layers.Conv2D(3, 3, kernel_regularizer="l2")(inputs)
        features = keras.layers.Flatten(name="flat")(hidden)
        output = keras.layers.Dense(3, dtype="float32")(features)
        student = keras.Model(inputs, output)
        teacher = keras.models.clone_model(student)
    finally:
        keras.config.set_dtype_policy("float32")
    layer = {"teacher_layer_name": "flat", "student_layer_name": "flat"}
    losses = [KnowledgeDistillation(), keras.distillation.FeatureDistillation(**layer)]
    distiller = Distiller(teacher, student, losses)
    distiller.compile("adam", loss=CE)
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    kernel = student.get_weights()[0]
    history = distiller.fit(*data, epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert student.get_weights()[0].dtype == np.float32
    assert np.abs(student.get_weights()[0] - kernel).max() > 0


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_a_schedule_changes_the_temperature_without_a_new_trace(
    make_net: Make, data: Data, steps_per_execution: int
) -> None:
    traces = []

    class Traced(KnowledgeDistillation):
        def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
            traces.append(1)
            return super().per_sample(teacher_outputs, student_outputs)

    class Anneal(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            loss.temperature = 4.0 / (epoch + 1)

    loss = Traced(4.0)
    (x, y), teacher, student = data, make_net(8), make_net(batch_norm=False)
    z_t, z_s = outputs(teacher, x), outputs(student, x)
    distiller = Distiller(teacher, student, loss)
    distiller.compile(keras.optimizers.SGD(0.0), loss=CE, steps_per_execution=steps_per_execution)
    history = distiller.fit(x, y, batch_size=4, epochs=3, verbose=0, callbacks=[Anneal()]).history
    expected = [numpy_kd(z_t, z_s, 4.0 / (epoch + 1)).mean() for epoch in range(3)]
    assert history["distillation_loss"] == pytest.approx(expected, rel=1e-4)
    assert len(traces) <= 2


def test_saved_and_loaded_it_goes_on(make_net: Make, data: Data, tmp_path: pathlib.Path) -> None:
    x, y = data
    losses = [
        KnowledgeDistillation(2.0),
        FitNetsHint("relu", "relu"),
        keras.distillation.LogitsDistillation(loss=keras.losses.KLDivergence()),
        keras.distillation.FeatureDistillation(**GAP),
    ]
    distiller = Distiller(make_net(4), make_net(4), losses, [1.0, 0.1, 0.2, 0.3], 0.4)
    distiller.compile("adam", loss=CE, metrics=["accuracy"])
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert isinstance(loaded, Distiller)
    ours, theirs = distiller.get_config(), loaded.get_config()
    for key in ("distillation_losses", "distillation_loss_weights", "student_loss_weight", "name"):
        assert theirs[key] == ours[key]
    for ours, theirs in [
        (distiller.teacher, loaded.teacher),
        (distiller.student, loaded.student),
        (distiller.loss_layers[0], loaded.loss_layers[0]),
    ]:
        for old, new in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
    first, second = (
        model.fit(x, y, verbose=0, shuffle=False).history for model in (distiller, loaded)
    )
    assert set(second) == set(first)
    for name in first:
        assert second[name] == pytest.approx(first[name], rel=1e-5)


def test_losses_per_output_are_saved(tmp_path: pathlib.Path) -> None:
    losses = {"kind": KnowledgeDistillation(2.0), "place": KnowledgeDistillation(task="regression")}
    distiller = Distiller(two_heads("dict", 4), two_heads("dict", 2), losses)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert [loss.get_config() for loss in loaded.distillation_losses] == [
        loss.get_config() for loss in losses.values()
    ]
    assert loaded.distillation_loss_weights == [1.0, 1.0]


def test_jit_compile_is_off_unless_asked(make_net: Make) -> None:
    distiller = Distiller(make_net(), make_net(), KnowledgeDistillation())
    distiller.compile("sgd", loss=CE)
    assert distiller.jit_compile is False
    distiller.compile("sgd", loss=CE, jit_compile=True)
    assert distiller.jit_compile is True


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, width: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden, self.head = keras.layers.Dense(width, "relu"), keras.layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        return self.head(self.hidden(keras.ops.reshape(inputs, (-1, 36))))


def test_subclassed_models_work_with_response_losses(data: Data) -> None:
    (x, y), teacher, student = data, Subclassed(8), Subclassed()
    with pytest.raises(TfcompError, match="no weights yet"):
        Distiller(teacher, student, KnowledgeDistillation())
    teacher(x), student(x)
    with pytest.raises(TfcompError, match="teacher_from_logits=True"):
        Distiller(teacher, student, KnowledgeDistillation())
    hint = keras.distillation.FeatureDistillation(student_layer_name="hidden")
    with pytest.raises(TfcompError, match=r"Layer 'hidden' cannot be reached.*subclassed"):
        Distiller(teacher, student, hint)
    loss = KnowledgeDistillation(teacher_from_logits=True, student_from_logits=True)
    distiller = Distiller(teacher, student, loss)
    kd = numpy_kd(outputs(teacher, x), outputs(student, x), 4.0).mean()
    distiller.compile("sgd", loss=CE)
    assert logs_of_one_step(distiller, x, y)["distillation_loss"] == pytest.approx(kd, rel=1e-4)


def test_inputs_given_by_name() -> None:
    def net(width: int) -> keras.Model:
        inputs = {name: keras.Input((2,), name=name) for name in ("left", "right")}
        joined = keras.layers.Concatenate()(list(inputs.values()))
        hidden = keras.layers.Dense(width, name="hidden")(joined)
        return keras.Model(inputs, keras.layers.Dense(3)(hidden))

    losses = [KnowledgeDistillation(), FitNetsHint("hidden", "hidden")]
    distiller = Distiller(net(8), net(4), losses)
    distiller.compile("sgd", loss=CE)
    x = {name: np.random.rand(8, 2) for name in ("left", "right")}
    logs_of_one_step(distiller, x, np.zeros(8))
    assert distiller.predict(x, verbose=0).shape == (8, 3)


def refused(*arguments: Any, **kwargs: Any) -> str:
    with pytest.raises(TfcompError) as caught:
        Distiller(*arguments, **kwargs)
    assert "\n" not in str(caught.value)
    assert "eceived" in str(caught.value) or "nearest" in str(caught.value)
    return str(caught.value)


def test_models_that_do_not_fit_are_refused(make_net: Make) -> None:
    teacher, kd = make_net(), KnowledgeDistillation
    assert "expected (None, 3)" in refused(teacher, make_net(classes=4), kd())
    wide = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    assert "same inputs" in refused(teacher, wide, kd())
    assert "same structure" in refused(two_heads("dict", 2), two_heads("list", 2), kd())
    assert "two models" in refused(teacher, teacher, kd())
    assert "keras.Model" in refused("teacher.keras", teacher, kd())
    assert "no weights yet" in refused(teacher, keras.Sequential([keras.layers.Dense(3)]), kd())


def test_losses_that_do_not_fit_are_refused(make_net: Make) -> None:
    teacher, student, kd = make_net(8), make_net(), KnowledgeDistillation
    feature = keras.distillation.FeatureDistillation
    assert "DistillationLoss" in refused(teacher, student, "kl_divergence")
    assert "at least one" in refused(teacher, student, [])
    assert "received 1 for 2 losses" in refused(teacher, student, [kd(), kd()], [1.0])
    assert "≥ 0" in refused(teacher, student, [kd()], [-1.0])
    assert "[0, 1]" in refused(teacher, student, kd(), student_loss_weight=1.5)
    assert "nearest first: relu" in refused(
        teacher, student, feature(teacher_layer_name="relu", student_layer_name="rleu")
    )
    assert "FitNetsHint" in refused(
        teacher, student, feature(teacher_layer_name="relu", student_layer_name="relu")
    )
    assert "no output 'kin'" in refused(two_heads("dict", 2), two_heads("dict", 2), {"kin": kd()})
    assert "one loss per output" in refused(two_heads("list", 2), two_heads("list", 2), [[kd()]])
    assert "by itself" in refused(
        two_heads("dict", 2), two_heads("dict", 2), {"kind": feature(teacher_layer_name="kind")}
    )


def test_layers_that_cannot_be_meant_are_refused(make_net: Make) -> None:
    inner = make_net()
    inputs = keras.Input((6, 6, 1))
    nested = keras.Model(inputs, keras.layers.Dense(3)(inner(inputs)))
    message = refused(make_net(), nested, FitNetsHint("pool", "pool"))
    assert f"nested model {inner.name!r}" in message
    layer = keras.layers.Conv2D(1, 3, padding="same", name="twice")
    twice = keras.layers.Flatten()(layer(layer(inputs)))
    shared = keras.Model(inputs, keras.layers.Dense(3)(twice))
    assert "called 2 times" in refused(make_net(), shared, FitNetsHint("relu", "twice"))
    reused = keras.layers.Conv2D(1, 3, name="reused")
    reused(keras.layers.Rescaling(2.0)(inputs))
    elsewhere = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(reused(inputs))))
    assert "another model" in refused(make_net(), elsewhere, FitNetsHint("relu", "reused"))


def test_own_call_of_a_functional_model_is_not_passed_over(make_net: Make) -> None:
    class Doubled(keras.Model):
        def call(self, inputs: Any, training: Any = None) -> Any:
            return 2 * super().call(inputs, training=training)

    inputs = keras.Input((6, 6, 1))
    pool = keras.layers.GlobalAveragePooling2D(name="pool")(inputs)
    doubled = Doubled(inputs, keras.layers.Dense(3)(pool))
    assert "own call()" in refused(make_net(), doubled, FitNetsHint("pool", "pool"))


def test_compile_needs_a_loss_unless_labels_are_not_used(make_net: Make) -> None:
    with pytest.raises(TfcompError, match=r"student_loss_weight=0\.0"):
        Distiller(make_net(), make_net(), KnowledgeDistillation()).compile("adam")
    Distiller(make_net(), make_net(), KnowledgeDistillation(), student_loss_weight=0.0).compile(
        "adam"
    )


def test_labels_are_needed_unless_they_are_not_used(make_net: Make, data: Data) -> None:
    distiller = Distiller(make_net(), make_net(), KnowledgeDistillation())
    distiller.compile("adam", loss=CE)
    with pytest.raises(TfcompError, match="received x alone"):
        distiller.fit(data[0], verbose=0)


def test_no_teacher_needs_cached_outputs(make_net: Make, data: Data) -> None:
    student = make_net()
    loss = KnowledgeDistillation(teacher_from_logits=True)
    distiller = Distiller(None, student, loss)
    distiller.compile("sgd", loss=CE)
    with pytest.raises(TfcompError, match="cache_teacher"):
        distiller.fit(*data, verbose=0)
    assert "teacher_from_logits" in refused(None, make_net(), KnowledgeDistillation())
    assert "expected a teacher" in refused(None, make_net(), FitNetsHint("pool", "pool"))


def test_layers_of_a_cached_teacher_are_refused(make_net: Make, data: Data) -> None:
    x, y = data
    distiller = Distiller(make_net(), make_net(), FitNetsHint("pool", "pool"))
    distiller.compile("sgd", loss=CE)
    inputs = DistillationInputs(x, np.zeros((16, 3), "float32"))
    dataset = tf.data.Dataset.from_tensor_slices((inputs, y)).batch(16)
    with pytest.raises(TfcompError, match="cache_teacher with outputs and the layers"):
        distiller.fit(dataset, verbose=0)


def test_masked_time_steps_are_refused() -> None:
    def net(every_step: bool) -> keras.Model:
        layers = [
            keras.layers.Embedding(9, 4, mask_zero=True),
            keras.layers.GRU(3, return_sequences=every_step),
        ]
        return keras.Sequential([keras.Input((5,), dtype="int32"), *layers])

    assert "masks" in refused(net(True), net(True), KnowledgeDistillation())
    Distiller(net(False), net(False), KnowledgeDistillation())


def test_frozen_student_is_refused(make_net: Make, data: Data) -> None:
    student = make_net()
    student.trainable = False
    distiller = Distiller(make_net(), student, KnowledgeDistillation())
    distiller.compile("sgd", loss=CE)
    with pytest.raises(TfcompError, match="cannot learn"):
        distiller.fit(*data, verbose=0)


def test_metrics_keep_their_names_apart(make_net: Make, data: Data) -> None:
    losses = [KnowledgeDistillation(name="loss"), KnowledgeDistillation(name="student_loss")]
    distiller = Distiller(make_net(), make_net(), losses)
    distiller.compile("sgd", loss=CE)
    names = {"loss", "student_loss", "distillation_loss", "loss_2", "student_loss_2"}
    assert set(logs_of_one_step(distiller, *data)) == names


def test_weights_are_saved_and_loaded(make_net: Make, data: Data, tmp_path: pathlib.Path) -> None:
    distillers = [Distiller(make_net(8), make_net(), FitNetsHint("relu", "relu")) for _ in "ab"]
    distillers[0].save_weights(tmp_path / "d.weights.h5")
    distillers[1].load_weights(tmp_path / "d.weights.h5")
    for part in ("teacher", "student"):
        models = [getattr(distiller, part) for distiller in distillers]
        for a, b in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_compiled_by_xla_it_computes_the_same(make_net: Make, data: Data) -> None:
    logs = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(1)
        distiller = Distiller(make_net(8), make_net(), KnowledgeDistillation())
        distiller.compile("sgd", loss=CE, jit_compile=jit_compile)
        logs.append(logs_of_one_step(distiller, *data))
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def test_nothing_warns(make_net: Make, data: Data) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [KnowledgeDistillation(), FitNetsHint("pool", "pool")]
        distiller = Distiller(make_net(8), make_net(), losses)
        distiller.compile("adam", loss=CE, metrics=["accuracy"])
        distiller.fit(*data, verbose=0)
        distiller.evaluate(*data, verbose=0)
        distiller.summary(print_fn=lambda *_, **__: None)


def test_without_a_loss_it_is_judged_by_its_metrics(make_net: Make, data: Data) -> None:
    x, y = data
    distiller = Distiller(make_net(8), make_net(), KnowledgeDistillation(), student_loss_weight=0.0)
    distiller.compile("sgd", metrics=["accuracy"])
    logs = distiller.fit(x, y, verbose=0, validation_data=(x, y)).history
    expected = np.mean(distiller.student.predict(x, verbose=0).argmax(-1) == y)
    assert logs["val_accuracy"] == [pytest.approx(expected)]
    assert not any(name.startswith("val_") for name in logs if name != "val_accuracy")


def test_half_precision_of_the_students_layers_scales_the_loss(make_net: Make) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = make_net()
    finally:
        keras.config.set_dtype_policy(before)
    student = keras.Model.from_config(half.get_config())
    distiller = Distiller(make_net(8), student, KnowledgeDistillation())
    distiller.compile("sgd", loss=CE)
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
