"""The faults of keras.distillation 3.15 that users met, none of them here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tfcomp.distillation import Distiller, FitNetsHint, KnowledgeDistillation

Make = Callable[..., keras.Model]
Data = tuple[np.ndarray, np.ndarray]
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
Feature = keras.distillation.FeatureDistillation


def fitted(distiller: Distiller, *arguments: Any, **kwargs: Any) -> dict[str, float]:
    distiller.compile(keras.optimizers.SGD(0.1), loss=CE)
    history = distiller.fit(*arguments, verbose=0, **kwargs).history
    return {name: values[0] for name, values in history.items()}


def test_sample_weight_is_not_ignored(make_net: Make, data: Data) -> None:
    student = make_net()
    before = [variable.numpy() for variable in student.trainable_variables]
    distiller = Distiller(make_net(8), student, KnowledgeDistillation())
    logs = fitted(distiller, *data, sample_weight=np.zeros(16))
    assert logs["loss"] == logs["student_loss"] == logs["distillation_loss"] == 0
    for old, variable in zip(before, student.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_student_layer_name_given_alone_is_not_ignored(data: Data) -> None:
    def net() -> keras.Model:
        inputs = keras.Input((6, 6, 1))
        flat = keras.layers.Flatten()(inputs)
        hidden = keras.layers.Dense(3, name="hidden")(flat)
        return keras.Model(inputs, keras.layers.Dense(3)(hidden))

    (x, y), teacher, student = data, net(), net()
    hidden = keras.Model(student.inputs, student.get_layer("hidden").output)
    expected = np.mean((teacher.predict(x, verbose=0) - hidden.predict(x, verbose=0)) ** 2)
    logs = fitted(Distiller(teacher, student, Feature("mse", student_layer_name="hidden")), x, y)
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)


def test_teacher_layer_name_given_alone_is_not_ignored(data: Data) -> None:
    inputs = keras.Input((6, 6, 1))
    hidden = keras.layers.Dense(3, name="hidden")(keras.layers.Flatten()(inputs))
    teacher = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    student = keras.models.clone_model(teacher)
    x, y = data
    features = keras.Model(inputs, hidden).predict(x, verbose=0)
    expected = np.mean((features - student.predict(x, verbose=0)) ** 2)
    logs = fitted(Distiller(teacher, student, Feature("mse", teacher_layer_name="hidden")), x, y)
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)


def test_teacher_is_not_left_frozen(make_net: Make, data: Data) -> None:
    teacher = make_net(8)
    teacher.get_layer("conv").trainable = False
    flags = {layer.name: layer.trainable for layer in [teacher, *teacher.layers]}
    weights = teacher.get_weights()
    fitted(Distiller(teacher, make_net(), KnowledgeDistillation()), *data)
    assert flags == {layer.name: layer.trainable for layer in [teacher, *teacher.layers]}
    for old, new in zip(weights, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_evaluate_does_not_change_batch_norm_statistics(make_net: Make, data: Data) -> None:
    teacher, student = make_net(), make_net()
    losses = [KnowledgeDistillation(), Feature("mse", "relu", "relu")]
    distiller = Distiller(teacher, student, losses)
    distiller.compile("sgd", loss=CE)
    x, y = data
    before = [*teacher.get_weights(), *student.get_weights()]
    distiller.evaluate(x + 5, y, verbose=0)
    distiller.predict(x + 5, verbose=0)
    distiller.test_on_batch(x + 5, y)
    for old, new in zip(before, [*teacher.get_weights(), *student.get_weights()], strict=True):
        np.testing.assert_array_equal(old, new)


def test_student_does_not_run_twice_per_step(data: Data, counting: Any) -> None:
    def net() -> keras.Model:
        inputs = keras.Input((6, 6, 1))
        flat = keras.layers.Flatten(name="flat")(counting(name="counter")(inputs))
        return keras.Model(inputs, keras.layers.Dense(3)(flat))

    teacher, student = net(), net()
    losses = [KnowledgeDistillation(), Feature("mse", "flat", "flat")]
    fitted(Distiller(teacher, student, losses), *data, batch_size=4)
    assert int(student.get_layer("counter").count.numpy()) == 4
    assert int(teacher.get_layer("counter").count.numpy()) == 4


def test_batch_norm_statistics_move_once_per_step(make_net: Make, data: Data) -> None:
    (x, y), student = data, make_net()
    copy = keras.models.clone_model(student)
    copy.set_weights(student.get_weights())
    copy(x, training=True)
    losses = [KnowledgeDistillation(), Feature("mse", "relu", "relu")]
    fitted(Distiller(make_net(), student, losses), x, y)
    for mine, once in zip(
        student.get_layer("norm").non_trainable_variables,
        copy.get_layer("norm").non_trainable_variables,
        strict=True,
    ):
        np.testing.assert_allclose(mine.numpy(), once.numpy(), rtol=1e-5)


def test_different_widths_do_not_raise(make_net: Make, data: Data) -> None:
    x, y = data
    student = make_net(4)
    names = [layer.name for layer in student.layers]
    losses = [KnowledgeDistillation(), FitNetsHint("relu", "relu")]
    distiller = Distiller(make_net(8), student, losses, student_loss_weight=0.0)
    before = distiller.loss_layers[0].get_weights()
    distiller.compile(keras.optimizers.Adam(0.01), loss=CE)
    history = distiller.fit(x, y, epochs=30, verbose=0).history["fitnets_hint"]
    assert history[-1] < 0.7 * history[0]
    assert np.abs(distiller.loss_layers[0].get_weights()[0] - before[0]).max() > 0
    assert [layer.name for layer in student.layers] == names


def test_default_loss_is_softened_and_scaled() -> None:
    rng = np.random.default_rng(0)
    teacher, student = (6 * rng.standard_normal((5, 4)) for _ in range(2))
    for temperature in (1.0, 3.0):
        p, q = (scipy.special.softmax(z / temperature, axis=-1) for z in (teacher, student))
        expected = temperature**2 * scipy.stats.entropy(p, q, axis=-1).mean()
        loss = KnowledgeDistillation(temperature).compute_loss(
            keras.ops.convert_to_tensor(teacher), keras.ops.convert_to_tensor(student)
        )
        assert float(loss) == pytest.approx(expected)
        assert float(loss) > 0


def test_keras_loss_with_that_fault_is_warned_of(make_net: Make) -> None:
    with pytest.warns(UserWarning, match="neither softmax nor T²"):
        Distiller(make_net(), make_net(), keras.distillation.LogitsDistillation())


def test_weight_of_a_single_loss_is_not_ignored(make_net: Make, data: Data) -> None:
    logs = []
    for weight in (1.0, 0.25):
        keras.utils.set_random_seed(0)
        distiller = Distiller(make_net(8), make_net(), KnowledgeDistillation(), weight)
        logs.append(fitted(distiller, *data)["distillation_loss"])
    assert logs[1] == pytest.approx(0.25 * logs[0], rel=1e-4)
