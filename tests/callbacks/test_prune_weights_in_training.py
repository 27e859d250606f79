"""PruneWeights in `fit`: the zeros asked for, in each way that training can go."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.callbacks.fits import STEPS, At, X, Y, fit, interrupt
from tests.callbacks.pruned_networks import Recorder, compiled, dense, ramp, rounded, zeros
from tfcomp.callbacks import PruneWeights
from tfcomp.errors import TfcompError
from tfcomp.pruning import ConstantSparsity, Masked, PolynomialDecay

pytestmark = pytest.mark.usefixtures("strict")

rng = np.random.default_rng(2)


# ---- how a model may be trained


@pytest.mark.parametrize(
    "options",
    [
        {"run_eagerly": True},
        {"steps_per_execution": 4},
        {"steps_per_execution": 4, "unknown": True},
        {"jit_compile": True},
        {"unknown": True},
    ],
    ids=["eager", "grouped", "grouped of unknown number", "xla", "unknown number"],
)
def test_ways_to_run_a_step(options: dict[str, Any]) -> None:
    unknown = options.pop("unknown", False)
    model = compiled(**options)
    prune = PruneWeights(ramp(end=STEPS))
    if unknown:
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda x, y: True)
        model.fit(data, epochs=2, verbose=0, shuffle=False, callbacks=[prune])
    else:
        fit(model, prune)
    assert zeros(model) == rounded(model, 0.8)
    assert prune.report is not None
    assert prune.report.finished


def test_grouped_steps_are_counted_as_steps() -> None:
    prune = PruneWeights(ramp(end=2 * STEPS))
    fit(compiled(steps_per_execution=4), prune)
    assert prune.report is not None
    assert prune.report.step == 2 * STEPS


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_precision(policy: str) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled()
    finally:
        keras.config.set_dtype_policy(before)
    fit(model, PruneWeights(ramp()))
    assert zeros(model) == rounded(model, 0.8)


def test_a_rise_at_the_last_batch_is_carried_out() -> None:
    model = compiled()
    fit(model, PruneWeights(ConstantSparsity(0.9, begin_step=2 * STEPS)))
    assert zeros(model) == rounded(model, 0.9)


def test_averages_that_keras_puts_back_when_training_ends() -> None:
    model = compiled(optimizer=keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9))
    prune = PruneWeights(ramp())
    fit(model, prune)
    assert zeros(model) == rounded(model, 0.8)
    assert prune.report is not None
    assert prune.report.rezeroed > 0


def test_swapped_averages_are_sparse_where_they_are_evaluated_and_saved(
    tmp_path: pathlib.Path,
) -> None:
    seen: list[list[int]] = []

    class Watch(keras.callbacks.Callback):
        def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
            seen.append(zeros(self.model))

    model = compiled(optimizer=keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9))
    callbacks = [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        PruneWeights(ConstantSparsity(0.5)),
        keras.callbacks.ModelCheckpoint(tmp_path / "m.keras"),
        Watch(),
    ]
    fit(model, *callbacks, validation_data=(X, Y))
    assert seen
    assert all(each == rounded(model, 0.5) for each in seen)
    assert zeros(keras.saving.load_model(tmp_path / "m.keras")) == rounded(model, 0.5)
    assert zeros(model) == rounded(model, 0.5)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_early_stopping_that_restores_denser_weights(first: bool) -> None:
    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            logs["score"] = float(epoch)

    model = compiled()
    prune = PruneWeights(ramp(end=3 * STEPS))
    stop = keras.callbacks.EarlyStopping("score", mode="min", patience=3, restore_best_weights=True)
    order = [prune, Worse(), stop] if first else [Worse(), stop, prune]
    fit(model, *order, epochs=9)
    assert stop.best_epoch == 0
    assert stop.stopped_epoch == 3
    assert zeros(model) == rounded(model, 0.8)
    assert prune.report is not None
    assert [row.zeros for row in prune.report.kernels] == zeros(model)
    assert prune.report.rezeroed > 0


def test_history_is_left_as_it_was() -> None:
    model = compiled()
    history = fit(model, PruneWeights(ConstantSparsity(0.5)))
    assert "on_train_end" not in vars(history)
    assert len(history.history["loss"]) == 2


def test_checkpoints_hold_the_zeros_of_their_epoch(tmp_path: pathlib.Path) -> None:
    schedule = ramp()
    model = compiled()
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(model, save, PruneWeights(schedule))
    for epoch in (1, 2):
        saved = keras.saving.load_model(tmp_path / f"{epoch}.keras")
        assert zeros(saved) == rounded(model, schedule(epoch * STEPS))
        assert saved.layers[0].kernel.constraint is None


# ---- constraints of the layers' own


def test_the_layers_own_constraint_is_kept_and_restored() -> None:
    own = keras.constraints.NonNeg()
    model = compiled(dense(kernel_constraint=own))
    inside: list[Any] = []
    prune = PruneWeights(ConstantSparsity(0.7))
    fit(model, prune, At(3, lambda m: inside.append(m.layers[0].kernel.constraint)))
    kernel = model.layers[0].kernel
    assert isinstance(inside[0], Masked)
    assert inside[0].constraint is own
    assert kernel.constraint is own
    weights = model.layers[0].get_weights()[0]
    assert (weights >= 0).all()
    # NonNeg makes zeros of its own, beside those asked for.
    assert all(got >= asked for got, asked in zip(zeros(model), rounded(model, 0.7), strict=True))
    assert (weights > 0).any()
    fit(model, epochs=1)  # no mask is left in the compiled step
    assert zeros(model)[1] < rounded(model, 0.7)[1]


def test_a_norm_is_kept_beside_exact_zeros() -> None:
    model = compiled(dense(kernel_constraint=keras.constraints.UnitNorm(axis=0)))
    fit(model, PruneWeights(ConstantSparsity(0.5)))
    assert zeros(model) == rounded(model, 0.5)
    np.testing.assert_allclose(np.linalg.norm(model.get_weights()[0], axis=0), 1, atol=1e-5)


def test_constraints_are_gone_after_training_and_zeros_may_grow_back() -> None:
    model = compiled()
    fit(model, PruneWeights(ConstantSparsity(0.5)))
    assert all(v.constraint is None for v in model.trainable_variables)
    fit(model, epochs=1)
    assert sum(zeros(model)) == 0


# ---- more than one fit


def test_a_model_trained_before_is_traced_again_and_begins_at_step_0() -> None:
    model = compiled()
    fit(model, epochs=1)
    schedule, recorder = ramp(), Recorder()
    fit(model, PruneWeights(schedule), recorder)
    assert recorder.zeros == [rounded(model, schedule(t)) for t in range(1, 2 * STEPS + 1)]


@pytest.mark.parametrize("same", [True, False], ids=["same object", "new object"])
def test_another_fit_goes_on_with_the_schedule(same: bool) -> None:
    schedule = ramp(end=3 * STEPS)
    model, recorder = compiled(), Recorder()
    prune = PruneWeights(schedule)
    with pytest.warns(UserWarning, match=r"ended at step 6 of the 18 .* 0\.8 asked in the end"):
        fit(model, prune, recorder, epochs=1)
    if not same:
        prune = PruneWeights(PolynomialDecay.from_config(schedule.get_config()))
    fit(model, prune, recorder, epochs=2)
    assert recorder.zeros == [rounded(model, schedule(t)) for t in range(1, 3 * STEPS + 1)]
    assert prune.report is not None
    assert (prune.report.start_step, prune.report.step) == (STEPS, 3 * STEPS)
    fit(model, prune, recorder, epochs=1)
    assert recorder.zeros[-STEPS:] == [rounded(model, 0.8)] * STEPS
    assert model.layers[0].kernel.constraint is None


def test_another_schedule_begins_anew_and_gives_no_zero_back() -> None:
    model, recorder = compiled(), Recorder()
    fit(model, PruneWeights(ConstantSparsity(0.5)), epochs=1)
    gone = model.layers[0].get_weights()[0] == 0
    fit(model, PruneWeights(ramp()), recorder)
    least = rounded(model, 0.5)
    assert recorder.zeros == [
        [max(a, b) for a, b in zip(least, rounded(model, ramp()(t)), strict=True)]
        for t in range(1, 2 * STEPS + 1)
    ]
    assert (model.layers[0].get_weights()[0][gone] == 0).all()


def test_a_lower_sparsity_than_before_is_said() -> None:
    model = compiled()
    fit(model, PruneWeights(ConstantSparsity(0.5)), epochs=1)
    with pytest.warns(UserWarning, match=r"is 0\.5041, not the 0\.2 asked now"):
        fit(model, PruneWeights(ConstantSparsity(0.2)), epochs=1)
    assert zeros(model) == rounded(model, 0.5)


def test_weights_set_anew_are_a_new_beginning() -> None:
    model = compiled()
    fresh = model.get_weights()
    fit(model, PruneWeights(ramp()))
    model.set_weights(fresh)
    recorder = Recorder()
    fit(model, PruneWeights(ramp()), recorder)
    assert recorder.zeros[0] == [0, 0]
    assert zeros(model) == rounded(model, 0.8)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_backup_and_restore_goes_on_where_it_was(tmp_path: pathlib.Path, first: bool) -> None:
    schedule = ramp(end=3 * STEPS)

    def run(*more: Any) -> tuple[Any, PruneWeights]:
        model, prune = compiled(), PruneWeights(schedule)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        order = [prune, backup] if first else [backup, prune]
        fit(model, *order, *more, epochs=3)
        return model, prune

    with pytest.raises(KeyboardInterrupt):
        run(At(2 * STEPS + 1, interrupt))
    recorder = Recorder()
    model, prune = run(recorder)
    assert recorder.zeros == [
        rounded(model, schedule(t)) for t in range(2 * STEPS + 1, 3 * STEPS + 1)
    ]
    assert prune.report is not None
    assert prune.report.start_step == 2 * STEPS


@pytest.mark.parametrize("accumulated", [None, 4])
def test_it_goes_on_where_it_was_with_data_of_unknown_length(
    tmp_path: pathlib.Path, accumulated: int | None
) -> None:
    schedule = ramp(end=3 * STEPS, frequency=1)

    def run(*more: Any) -> tuple[Any, PruneWeights]:
        prune = PruneWeights(schedule)
        model = compiled()
        model.compile(keras.optimizers.Adam(gradient_accumulation_steps=accumulated), "mse")
        batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda x, y: True)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        callbacks = [prune, backup, *more]
        model.fit(batches, epochs=3, verbose=0, shuffle=False, callbacks=callbacks)
        return model, prune

    with pytest.raises(KeyboardInterrupt):
        run(At(2 * STEPS + 1, interrupt))
    recorder = Recorder()
    model, prune = run(recorder)
    assert prune.report is not None
    assert prune.report.start_step == 2 * STEPS
    assert recorder.zeros == [
        rounded(model, schedule(t)) for t in range(2 * STEPS + 1, 3 * STEPS + 1)
    ]


def test_a_later_first_epoch_of_a_dense_model_begins_at_step_0() -> None:
    model = compiled()
    fit(model, epochs=2)
    recorder = Recorder()
    fit(model, PruneWeights(ramp()), recorder, initial_epoch=2, epochs=4)
    assert recorder.zeros[0] == [0, 0]
    assert zeros(model) == rounded(model, 0.8)


def test_ctrl_c_leaves_nothing_stacked() -> None:
    own = keras.constraints.MaxNorm(3)
    model = compiled(dense(kernel_constraint=own))
    schedule = ramp()
    with pytest.raises(KeyboardInterrupt):
        fit(model, PruneWeights(schedule), At(5, interrupt))
    inside: list[Any] = []
    prune = PruneWeights(schedule)
    fit(model, prune, At(1, lambda m: inside.append(m.layers[0].kernel.constraint)))
    assert inside[0].constraint is own
    assert model.layers[0].kernel.constraint is own
    assert zeros(model) == rounded(model, 0.8)
    assert prune.report is not None
    assert prune.report.start_step == 5


def test_no_epoch_left_to_train_is_said() -> None:
    model = compiled()
    with pytest.warns(UserWarning, match="no epoch left to train, so that nothing was pruned"):
        fit(model, PruneWeights(ConstantSparsity(0.5)), initial_epoch=2, epochs=2)
    assert model.layers[0].kernel.constraint is None
    fit(model, PruneWeights(ConstantSparsity(0.5)))
    with pytest.warns(UserWarning, match="no epoch left"):
        fit(model, PruneWeights(ConstantSparsity(0.5)), initial_epoch=2, epochs=2)
    assert zeros(model) == rounded(model, 0.5)


def test_training_that_ends_before_the_schedule_begins_is_said() -> None:
    model = compiled()
    with pytest.warns(UserWarning, match=r"step 12 of the 500 .*sparsity 0\.0000 reached, 0\.9"):
        fit(model, PruneWeights(ConstantSparsity(0.9, begin_step=500)))


# ---- zeros as masks


def test_zeros_of_a_reloaded_model_stay(tmp_path: pathlib.Path) -> None:
    model = compiled()
    fit(model, PruneWeights(ConstantSparsity(0.6)))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    gone = loaded.get_weights()[0] == 0
    prune = PruneWeights.from_zeros()
    fit(loaded, prune)
    np.testing.assert_array_equal(loaded.get_weights()[0] == 0, gone)
    assert zeros(loaded) == rounded(model, 0.6)
    assert prune.report is not None
    assert prune.report.sparsity == pytest.approx(0.6, abs=0.01)


def test_zeros_of_a_reloaded_model_stay_while_more_are_made(tmp_path: pathlib.Path) -> None:
    model = compiled()
    fit(model, PruneWeights(ConstantSparsity(0.5)))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    gone = loaded.get_weights()[0] == 0
    recorder = Recorder()
    fit(loaded, PruneWeights.from_zeros(ramp(0.9)), recorder)
    assert (loaded.get_weights()[0][gone] == 0).all()
    assert recorder.zeros[0] == rounded(model, 0.5)
    assert zeros(loaded) == rounded(model, 0.9)


def test_zeros_that_would_grow_back_are_said(tmp_path: pathlib.Path) -> None:
    model = compiled()
    fit(model, PruneWeights(ConstantSparsity(0.6)))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    with pytest.warns(UserWarning, match=r"^60\.3% of the weights .*from_zeros\(schedule\)\.$"):
        fit(loaded, PruneWeights(ramp()))
    assert zeros(loaded) == rounded(model, 0.8)


def test_from_zeros_without_zeros_is_refused() -> None:
    with pytest.raises(TfcompError, match="found no zero weight to keep in the model 'm'"):
        fit(compiled(), PruneWeights.from_zeros())
