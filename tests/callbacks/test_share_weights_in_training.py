"""ShareWeights in `fit`: equal weights stay equal, zeros stay zero, in each way to train."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap
from typing import Any

import keras
import numpy as np
import pytest

from tests.callbacks.fits import STEPS, At, X, Y, fit, interrupt
from tests.callbacks.shared_networks import Watch, check, clustered, compiled, kernels
from tfcomp.callbacks import PruneWeights, ShareWeights

pytestmark = pytest.mark.usefixtures("strict")

rng = np.random.default_rng(2)


# ---- how a model may be trained


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.002, momentum=0.9, nesterov=True),
        keras.optimizers.SGD(0.002, weight_decay=0.01),
        keras.optimizers.SGD(0.01, gradient_accumulation_steps=2),
        keras.optimizers.SGD(0.002, ema_momentum=0.5, use_ema=True, ema_overwrite_frequency=3),
        keras.optimizers.SGD(0.002, ema_momentum=0.5, use_ema=True),
    ],
    ids=["momentum", "decay", "accumulation", "ema within", "ema"],
)
def test_optimizers(optimizer: Any, reduction: Any) -> None:
    model = compiled(optimizer=type(optimizer).from_config(optimizer.get_config()))
    before, share = kernels(model), ShareWeights(reduction=reduction)
    watch = [Watch()] if not optimizer.gradient_accumulation_steps else []
    fit(model, share, *watch, epochs=3)
    check(before, model)
    report = share.report
    assert report is not None
    assert [row.values for row in report.kernels] == [np.unique(w).size for w in kernels(model)]
    assert (report.retied > 0) == optimizer.use_ema  # averages are put back when training ends


def test_averages_are_the_means_of_their_clusters() -> None:
    optimizer = keras.optimizers.SGD(0.002, use_ema=True, ema_momentum=0.9)
    model = compiled(optimizer=optimizer)
    before, seen = kernels(model), []
    ends = At(2 * STEPS, lambda m: seen.extend(kernels(m)))
    fit(model, ShareWeights(), ends)
    check(before, model)
    # Between where training began and where it ended, and not at either.
    for old, last, now in zip(before, seen, kernels(model), strict=True):
        step, lag = np.abs(last - old).max(), np.abs(now - old).max()
        assert 0 < lag < step


def test_averages_put_in_within_training_do_not_run_away() -> None:
    def run(**options: Any) -> float:
        model = compiled(optimizer=keras.optimizers.SGD(0.002, **options))
        fit(model, ShareWeights(), epochs=4)
        return float(np.abs(model.get_weights()[0]).max())

    ema = run(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=4)
    assert ema == pytest.approx(run(), rel=0.2)


@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"steps_per_execution": 2}, {"jit_compile": True}],
    ids=["eager", "grouped", "xla"],
)
def test_ways_to_run_a_step(options: dict[str, Any]) -> None:
    plain, model = compiled(), compiled(**options)
    model.set_weights(plain.get_weights())
    before = kernels(model)
    fit(plain, ShareWeights(), shuffle=False)
    fit(model, ShareWeights(), shuffle=False)
    check(before, model)
    for one, two in zip(kernels(plain), kernels(model), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_precision(policy: str) -> None:
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = clustered()
    finally:
        keras.config.set_dtype_policy(usual)
    before = [w.astype("float32") for w in kernels(model)]
    fit(compiled(model, keras.optimizers.SGD(0.01)), ShareWeights())
    for old, new in zip(before, kernels(model), strict=True):
        new = new.astype("float32")
        np.testing.assert_array_equal(old == 0, new == 0)
        assert all(np.unique(new[old == value]).size == 1 for value in np.unique(old))
    assert any(
        (a != b.astype("float32")).any() for a, b in zip(before, kernels(model), strict=True)
    )


def test_a_step_of_infinite_gradients_moves_nothing() -> None:
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = clustered()
    finally:
        keras.config.set_dtype_policy(usual)
    compiled(model, keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), 1e30))
    before = kernels(model)
    fit(model, ShareWeights(), epochs=1)
    for old, new in zip(before, kernels(model), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_early_stopping_that_restores_other_weights(first: bool) -> None:
    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            logs["score"] = float(epoch)
            if epoch == 0:  # what is restored is not shared
                for variable in self.model.trainable_variables:
                    variable.assign_add(rng.normal(size=variable.shape) * 1e-3)

    model = compiled()
    before, share = kernels(model), ShareWeights()
    stop = keras.callbacks.EarlyStopping("score", mode="min", patience=2, restore_best_weights=True)
    fit(model, *([share, Worse(), stop] if first else [Worse(), stop, share]), epochs=9)
    assert (stop.best_epoch, stop.stopped_epoch) == (0, 2)
    check(before, model)
    assert share.report is not None
    assert share.report.retied > 0


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_swapped_averages_are_put_back(first: bool, tmp_path: pathlib.Path) -> None:
    optimizer = keras.optimizers.SGD(0.002, use_ema=True, ema_momentum=0.5)
    model, plain = compiled(optimizer=optimizer), compiled()
    plain.set_weights(model.get_weights())
    before = kernels(model)
    swap, share = keras.callbacks.SwapEMAWeights(swap_on_epoch=True), ShareWeights()
    save = keras.callbacks.ModelCheckpoint(tmp_path / "m.keras")
    order = [share, swap] if first else [swap, share]
    fit(model, *order, save, epochs=3, shuffle=False, validation_data=(X, Y))
    fit(plain, ShareWeights(), epochs=3, shuffle=False)
    check(before, model)
    if not first:
        check(before, keras.saving.load_model(tmp_path / "m.keras"))
    # Had a swap been taken for an update, the centroids would be far from here.
    for one, two in zip(kernels(plain), kernels(model), strict=True):
        np.testing.assert_allclose(one, two, atol=0.05)


def test_backup_and_restore(tmp_path: pathlib.Path) -> None:
    model = compiled()
    before, start = kernels(model), model.get_weights()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        fit(model, ShareWeights(), backup, At(STEPS + 1, interrupt), shuffle=False)
    again = compiled(clustered(values=9))  # other values, which the backup takes the place of
    fit(again, ShareWeights(), keras.callbacks.BackupAndRestore(tmp_path / "b"), shuffle=False)
    check(before, again)
    whole = compiled()
    whole.set_weights(start)
    fit(whole, ShareWeights(), shuffle=False)
    for one, two in zip(kernels(whole), kernels(again), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_two_replicas_hold_the_same_values() -> None:
    code = """
        import numpy as np, tensorflow as tf, keras
        from tfcomp.callbacks import ShareWeights
        from tfcomp.sharing import cluster_array

        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

        def built():
            layers = [keras.Input((8,)), keras.layers.Dense(10), keras.layers.Dense(3)]
            model = keras.Sequential(layers)
            model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", jit_compile=False)
            return model

        keras.utils.set_random_seed(0)
        one = built()
        for layer in one.layers:
            layer.kernel.assign(cluster_array(np.array(layer.kernel), 4))
        with strategy.scope():
            model = built()
        model.set_weights(one.get_weights())

        class Watch(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                for layer in model.layers:
                    values = [layer.kernel.value, layer.kernel.constraint.codebook.value]
                    for value in values:
                        a, b = strategy.experimental_local_results(value)
                        assert a.device != b.device and np.array_equal(a.numpy(), b.numpy())
                    assert np.unique(values[0].numpy()).size <= 4

        x, y = np.random.randn(64, 8), np.random.randn(64, 3)
        options = dict(batch_size=16, epochs=2, verbose=0, shuffle=False)
        model.fit(x, y, **options, callbacks=[ShareWeights(), Watch()])
        one.fit(x, y, **options, callbacks=[ShareWeights()])
        for a, b in zip(one.get_weights(), model.get_weights()):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        print("equal", np.unique(one.layers[0].kernel).size)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-2:] == ["equal", "4"]


# ---- training that was interrupted


def test_ctrl_c_leaves_nothing_stacked() -> None:
    own = keras.constraints.NonNeg()
    model, share = compiled(clustered(kernel_constraint=own)), ShareWeights()
    with pytest.raises(KeyboardInterrupt):
        fit(model, share, At(2, interrupt))
    inside: list[Any] = []
    again = ShareWeights()
    fit(model, again, At(1, lambda m: inside.append(m.layers[0].kernel.constraint)))
    assert inside[0].constraint is own
    assert model.layers[0].kernel.constraint is own


@pytest.mark.parametrize("pruning", [False, True], ids=["plain", "pruning"])
def test_after_ctrl_c_weights_set_anew_are_trained_as_they_are(pruning: bool) -> None:
    model, other = compiled(), compiled(clustered(values=30))
    with pytest.raises(KeyboardInterrupt):
        fit(model, ShareWeights(), At(2, interrupt))
    model.set_weights(other.get_weights())
    more = [PruneWeights.from_zeros()] if pruning else []
    fit(model, *more, epochs=1, shuffle=False)
    fit(other, *more, epochs=1, shuffle=False)
    for one, two in zip(kernels(model), kernels(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    if not pruning:
        assert all(v.constraint is None for v in model.trainable_variables)
