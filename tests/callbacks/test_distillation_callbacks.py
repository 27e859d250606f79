"""Schedules and stages of distillation, in one `fit` each."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tfcomp.callbacks import DistillationStage, LossWeightSchedule, TemperatureSchedule
from tfcomp.distillation import Distiller, FitNetsHint, KnowledgeDistillation
from tfcomp.errors import TfcompError

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X, Y = RNG.random((24, 6)).astype("float32"), RNG.integers(0, 3, 24)


def net(width: int) -> keras.Model:
    decay = keras.regularizers.L2(0.01)
    layers = [
        keras.layers.Dense(width, "tanh", kernel_regularizer=decay, name="guided"),
        keras.layers.Dense(5, "tanh", kernel_regularizer=decay, name="middle"),
        keras.layers.Dense(3, kernel_regularizer=decay, name="head"),
    ]
    return keras.Sequential([keras.Input((6,)), *layers])


def make(share: float = 0.5, optimizer=None) -> Distiller:
    keras.utils.set_random_seed(1)
    losses = [KnowledgeDistillation(4.0), FitNetsHint("guided", "guided")]
    distiller = Distiller(net(8), net(4), losses, student_loss_weight=share)
    distiller.compile(optimizer or keras.optimizers.AdamW(0.01, weight_decay=0.1), loss=CE)
    return distiller


def fit(distiller: Distiller, *callbacks, epochs=4, **kwargs):
    history = distiller.fit(
        X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **kwargs
    )
    return history.history


class Weights(keras.callbacks.Callback):
    """The student's and the regressor's weights after each epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        hint = self.model.distillation_losses[1]
        layers = [*self.model.student.layers, *hint.layers]
        self.epochs.append([layer.get_weights()[0] for layer in layers])


def changed(before, after):
    return [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]


def test_a_stage_trains_up_to_the_guided_layer_and_rests_afterwards():
    distiller, weights = make(), Weights()
    start = [layer.get_weights()[0] for layer in distiller.student.layers]
    logs = fit(distiller, DistillationStage("fitnets_hint", epochs=2), weights)
    first, second, third, fourth = weights.epochs
    # Neither weight decay nor the regularisers move what the hint does not reach.
    assert changed(start, first[:3]) == [True, False, False]
    assert changed(first, second) == [True, False, False, True]
    assert changed(second, third) == [True, True, True, False]
    assert changed(third, fourth) == [True, True, True, False]
    assert logs["fitnets_hint"][1] < logs["fitnets_hint"][0]
    assert all(np.isfinite(values).all() for values in logs.values())
    # A later fit knows of no stage.
    fit(distiller, weights, epochs=1)
    assert changed(fourth, weights.epochs[-1]) == [True] * 4


def test_one_fit_is_two_trainings():
    """Stage 1 is a distiller with the hint alone, stage 2 one with the response alone."""
    sgd = keras.optimizers.SGD
    both = make(0.25, sgd(0.1))
    fit(both, DistillationStage("fitnets_hint", epochs=2))
    apart = make(0.25, sgd(0.1))
    hint = Distiller(
        apart.teacher, apart.student, FitNetsHint("guided", "guided"), student_loss_weight=0.0
    )
    hint.distillation_losses[0].layers[0].set_weights(
        make().distillation_losses[1].layers[0].get_weights()
    )
    for layer in apart.student.layers[1:]:
        layer.trainable = False
    hint.compile(sgd(0.1))
    hint.fit(X, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for layer in apart.student.layers:
        layer.trainable = True
    response = Distiller(
        apart.teacher, apart.student, KnowledgeDistillation(4.0), student_loss_weight=0.25
    )
    response.compile(sgd(0.1), loss=CE)
    fit(response, epochs=2)
    for expected, received in zip(
        apart.student.get_weights(), both.student.get_weights(), strict=True
    ):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


def test_an_interrupted_stage_goes_on(tmp_path):
    whole = make()
    fit(whole, DistillationStage("fitnets_hint", epochs=2))

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    parts = make()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    stage = DistillationStage("fitnets_hint", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        fit(parts, stage, Stop(), backup)
    # Without the callback, all losses train again, although the stage was never ended.
    assert parts.loss_selection.is_active("fitnets_hint")
    weights = Weights()
    fit(parts, weights, epochs=1)
    assert parts.loss_selection.active() == {"student", "knowledge_distillation", "fitnets_hint"}


def test_save_load_and_backup_reach_the_same_weights(tmp_path):
    def callbacks():
        decay = keras.optimizers.schedules.PolynomialDecay(4.0, decay_steps=12, end_learning_rate=1)
        return [
            DistillationStage("fitnets_hint", epochs=1),
            LossWeightSchedule(decay, "knowledge_distillation"),
            TemperatureSchedule(lambda epoch: 4.0 - epoch),
        ]

    whole = make()
    fit(whole, *callbacks())
    first = make()
    fit(first, *callbacks(), epochs=2)
    first.save(tmp_path / "middle.keras")
    second = keras.saving.load_model(tmp_path / "middle.keras")
    assert second.distillation_loss_weights == first.distillation_loss_weights
    assert second.distillation_losses[0].temperature == 3.0
    fit(second, *callbacks(), epochs=4, initial_epoch=2)
    for expected, received in zip(
        whole.student.get_weights(), second.student.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(received, expected)

    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError

    broken = make()
    with pytest.raises(RuntimeError):
        fit(broken, keras.callbacks.BackupAndRestore(tmp_path / "b"), *callbacks(), Crash())
    resumed = make()
    fit(resumed, keras.callbacks.BackupAndRestore(tmp_path / "b"), *callbacks())
    for expected, received in zip(
        whole.student.get_weights(), resumed.student.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(received, expected)


def test_schedules_take_effect_without_a_new_trace():
    """The logged losses are the weighted sums of the epoch's weights."""
    distiller = make(0.5, keras.optimizers.SGD(0.0))
    logs = fit(
        distiller,
        LossWeightSchedule(lambda epoch: 0.25 * epoch),
        LossWeightSchedule(lambda epoch: 3.0 - epoch, "knowledge_distillation"),
        LossWeightSchedule(lambda epoch: 0.0, "fitnets_hint"),
    )
    decay = sum(float(loss) for loss in distiller.student.losses)
    for epoch in range(4):
        soft = (3.0 - epoch) * logs["knowledge_distillation"][epoch]
        assert logs["distillation_loss"][epoch] == pytest.approx(soft, rel=1e-5)
        hard = logs["student_loss"][epoch] - decay
        expected = 0.25 * epoch * hard + (1 - 0.25 * epoch) * soft + decay
        assert logs["loss"][epoch] == pytest.approx(expected, rel=1e-5)


def test_temperature_changes_the_loss_and_by_step():
    distiller = make(0.0, keras.optimizers.SGD(0.0))
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(self.model.distillation_losses[0].temperature)

    linear = keras.optimizers.schedules.PolynomialDecay(8.0, decay_steps=6, end_learning_rate=2.0)
    fit(distiller, TemperatureSchedule(linear), Watch(), epochs=2)
    np.testing.assert_allclose(seen, [8, 7, 6, 5, 4, 3], rtol=1e-6)


def test_what_cannot_be_scheduled_is_refused():
    distiller = make()
    with pytest.raises(TfcompError, match="no loss 'hint'"):
        fit(distiller, DistillationStage("hint", epochs=1))
    with pytest.raises(TfcompError, match="no loss 'hint' to schedule"):
        fit(distiller, LossWeightSchedule(lambda _: 1.0, "hint"))
    names = ["fitnets_hint", "knowledge_distillation", "student"]
    with pytest.raises(TfcompError, match="No loss would train in epoch 1"):
        fit(distiller, DistillationStage(names, epochs=1))
    with pytest.raises(TfcompError, match=r"in \[0, 1\]"):
        fit(distiller, LossWeightSchedule(lambda _: 2.0))
    with pytest.raises(TfcompError, match="≥ 0"):
        fit(distiller, LossWeightSchedule(lambda _: -1.0, "fitnets_hint"))
    with pytest.raises(TfcompError, match="'fitnets_hint' does not have a temperature"):
        fit(distiller, TemperatureSchedule(lambda _: 1.0, "fitnets_hint"))
    with pytest.raises(TfcompError, match="whole number ≥ 1"):
        DistillationStage("fitnets_hint", epochs=0)
    plain = net(4)
    plain.compile("sgd", loss=CE)
    for callback in (DistillationStage("a", 1), TemperatureSchedule(lambda _: 1.0)):
        with pytest.raises(TfcompError, match=r"fit of a tfcomp\.distillation\.Distiller"):
            plain.fit(X, Y, verbose=0, callbacks=[callback])
    without = Distiller(net(8), net(4), KnowledgeDistillation(), student_loss_weight=0.0)
    without.compile("sgd", loss=CE)
    with pytest.raises(TfcompError, match="data with labels"):
        without.fit(X, epochs=2, verbose=0, callbacks=[LossWeightSchedule(lambda e: 0.5 * e)])


def test_config_round_trips():
    linear = keras.optimizers.schedules.PolynomialDecay(8.0, decay_steps=6)
    for callback in (
        DistillationStage(["a", "b"], epochs=3, begin=2),
        LossWeightSchedule(linear, "a"),
        TemperatureSchedule(linear),
    ):
        copy = type(callback).from_config(callback.get_config())
        assert copy.get_config() == callback.get_config()
