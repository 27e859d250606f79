"""PruneWeights in `fit`: the zeros asked for, in each way that training can go."""

from __future__ import annotations

import doctest
import gc
import json
import math
import pathlib
import sys
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from tfcomp.callbacks import PruneWeights, pruning_session
from tfcomp.errors import TfcompError
from tfcomp.pruning import ConstantSparsity, CosineDecay, Masked, PolynomialDecay

rng = np.random.default_rng(0)
X = rng.normal(size=(48, 8)).astype("float32")
Y = rng.normal(size=(48, 3)).astype("float32")
STEPS = 6  # in one epoch of batches of 8


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    keras.utils.set_random_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*ran out of data", UserWarning)
        yield


def dense(**kernel: Any) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(11, activation="relu", name="a", **kernel),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3, name="b", **kernel),
        ],
        name="m",
    )


def compiled(model: keras.Model | None = None, optimizer: Any = None, **options: Any) -> Any:
    model = dense() if model is None else model
    options = {"jit_compile": False, **options}
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **options)
    return model


def fit(
    model: Any, *callbacks: Any, epochs: int = 2, x: Any = X, y: Any = Y, **options: Any
) -> Any:
    options = {"batch_size": 8, "verbose": 0, **options}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **options)


def zeros(model: Any) -> list[int]:
    """Zeros of each kernel, by NumPy alone."""
    return [int((w == 0).sum()) for w in model.get_weights() if w.ndim > 1]


def sizes(model: Any) -> list[int]:
    return [w.size for w in model.get_weights() if w.ndim > 1]


def rounded(model: Any, sparsity: float) -> list[int]:
    return [min(math.floor(sparsity * size + 0.5), size - 1) for size in sizes(model)]


def ramp(last: float = 0.8, end: int = 2 * STEPS, **options: Any) -> PolynomialDecay:
    return PolynomialDecay(0.0, last, 0, end, **{"frequency": 2, **options})


class Recorder(keras.callbacks.Callback):
    """Zeros after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros: list[list[int]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.zeros.append(zeros(self.model))


class At(keras.callbacks.Callback):
    """Calls a function at the end of batch number `step`, counted over all epochs."""

    def __init__(self, step: int, function: Any) -> None:
        super().__init__()
        self.step, self.function, self.done = step, function, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.done += 1
        if self.done == self.step:
            self.function(self.model)


def interrupt(model: Any) -> None:
    raise KeyboardInterrupt


# First, since collecting garbage takes long where many graphs were made before.
def test_models_are_not_kept_alive() -> None:
    model = compiled()
    fit(model, PruneWeights(ConstantSparsity(0.5)), epochs=1)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


# ---- what is pruned, and how much


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("sparsity", [0.0, 0.313, 0.5, 0.99])
def test_the_count_is_exact_to_one_weight(scope: Any, sparsity: float) -> None:
    model = compiled()
    prune = PruneWeights(ConstantSparsity(sparsity), scope=scope)
    warnings.filterwarnings("ignore", "Layer collapse", UserWarning)
    fit(model, prune)
    if scope == "local":
        assert zeros(model) == rounded(model, sparsity)
    else:
        assert sum(zeros(model)) == math.floor(sparsity * sum(sizes(model)) + 0.5)
    assert prune.report is not None
    assert prune.report.asked == sparsity
    assert [row.zeros for row in prune.report.kernels] == zeros(model)
    assert prune.report.sparsity == sum(zeros(model)) / sum(sizes(model))


def test_the_smallest_weights_go_and_the_first_among_equals() -> None:
    model = compiled(optimizer=keras.optimizers.SGD(0.0))
    a, b = (layer for layer in model.layers if layer.name in "ab")
    a.set_weights([np.tile([[1.0], [-1.0]], (4, 11)), a.get_weights()[1]])
    old = b.get_weights()[0]
    fit(model, PruneWeights(ConstantSparsity(0.25)), epochs=1)
    assert (a.get_weights()[0].reshape(-1) == 0).tolist() == [True] * 22 + [False] * 66
    smallest = np.argsort(np.abs(old).reshape(-1), kind="stable")[:8]
    assert set(np.flatnonzero(b.get_weights()[0] == 0)) == set(smallest)
    np.testing.assert_array_equal(
        b.get_weights()[0][b.get_weights()[0] != 0], np.delete(old, smallest)
    )


def test_global_scope_takes_the_smallest_wherever_they_are() -> None:
    model = compiled(optimizer=keras.optimizers.SGD(0.0))
    model.layers[0].set_weights([np.full((8, 11), -1000.0), np.zeros(11)])
    fit(model, PruneWeights(ConstantSparsity(0.25), scope="global"), epochs=1)
    assert zeros(model) == [0, 30]


def test_sparsity_follows_the_schedule_step_by_step() -> None:
    schedule = PolynomialDecay(0.1, 0.8, begin_step=3, end_step=10, frequency=3)
    model, recorder = compiled(), Recorder()
    fit(model, PruneWeights(schedule), recorder)
    assert recorder.zeros == [rounded(model, schedule(t)) for t in range(1, 2 * STEPS + 1)]


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        keras.optimizers.Adam(0.05),
        keras.optimizers.AdamW(0.05, weight_decay=0.1),
        keras.optimizers.Adam(0.05, gradient_accumulation_steps=2),
        keras.optimizers.Adam(0.05, ema_momentum=0.5, use_ema=True, ema_overwrite_frequency=3),
    ],
    ids=["momentum", "adam", "adamw", "accumulation", "ema within"],
)
def test_a_removed_weight_stays_removed(optimizer: Any) -> None:
    model = compiled(optimizer=type(optimizer).from_config(optimizer.get_config()))
    gone: list[np.ndarray] = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            now = model.layers[0].get_weights()[0] == 0
            assert not gone or not (gone[-1] & ~now).any()
            gone.append(now)

    fit(model, PruneWeights(ramp()), Watch(), epochs=3)
    assert zeros(model) == rounded(model, 0.8)
    assert gone[0].sum() < gone[-1].sum()


def test_weights_that_stay_are_trained() -> None:
    model = compiled()
    before = model.layers[0].get_weights()[0]
    fit(model, PruneWeights(ConstantSparsity(0.5)))
    after = model.layers[0].get_weights()[0]
    stay = after != 0
    assert stay.sum() == stay.size // 2
    assert (after != before)[stay].mean() > 0.5  # units that ReLU has silenced do not learn


def test_what_is_left_alone_is_said() -> None:
    x = keras.Input((6, 6, 2))
    y = keras.layers.Conv2D(4, 3, name="conv")(x)
    y = keras.layers.DepthwiseConv2D(2, name="depth")(y)
    y = keras.layers.Dense(3, name="head")(keras.layers.Flatten()(y))
    model = compiled(keras.Model(x, y, name="m"))
    before = {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}
    prune = PruneWeights(ConstantSparsity(0.5), skip=["head"])
    fit(model, prune, x=rng.normal(size=(8, 6, 6, 2)), y=np.zeros((8, 3)), epochs=1)
    report = prune.report
    assert report is not None
    assert [row.name for row in report.kernels] == ["conv/kernel"]
    assert set(report.skipped) == set(before) - {"conv/kernel"}
    assert "depthwise" in report.skipped["depth/kernel"]
    assert report.skipped["head/kernel"] == "spared by `skip`"
    assert not (model.get_layer("head").get_weights()[0] == 0).any()
    text = str(report)
    assert text.startswith("36 of 72 weights in 1 kernels are zero: 0.5000 (asked 0.5000) after 1")
    assert "left alone  head/kernel: spared by `skip`" in text
    assert json.loads(json.dumps(report.to_dict()))["kernels"][0]["sparsity"] == 0.5


def test_depthwise_kernels_if_asked() -> None:
    layers = [keras.Input((6, 6, 2)), keras.layers.DepthwiseConv2D(3), keras.layers.Flatten()]
    model = compiled(keras.Sequential(layers))
    options = {"x": rng.normal(size=(8, 6, 6, 2)), "y": np.zeros((8, 32)), "epochs": 1}
    with pytest.raises(TfcompError, match=r"no kernel to prune.*depthwise"):
        fit(model, PruneWeights(ConstantSparsity(0.5)), **options)
    fit(model, PruneWeights(ConstantSparsity(0.5), depthwise=True), **options)
    assert zeros(model) == [9]


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("separable/depthwise_kernel", ["conv", "separable/depthwise", "separable/pointwise"]),
        ("*/depthwise*", ["conv", "separable/depthwise", "separable/pointwise"]),
        # Of other kernels too: those are meant.
        ("separable", ["conv", "separable/pointwise"]),
        ("*", ["conv", "separable/pointwise"]),
    ],
)
def test_depthwise_kernels_that_an_override_is_for(pattern: str, taken: list[str]) -> None:
    hidden = [
        keras.layers.Conv2D(4, 3, name="conv"),
        keras.layers.SeparableConv2D(4, 3, name="separable"),
    ]
    model = compiled(keras.Sequential([keras.Input((6, 6, 2)), *hidden, keras.layers.Flatten()]))
    prune = PruneWeights(ConstantSparsity(0.5), first=True, last=True, overrides={pattern: 0.25})
    fit(model, prune, x=rng.normal(size=(8, 6, 6, 2)), y=np.zeros((8, 16)), epochs=1)
    assert prune.report is not None
    rows = {row.name: row.sparsity for row in prune.report.kernels}
    short = [
        name.removeprefix(f"{model.name}/").removesuffix("kernel").strip("/_") for name in rows
    ]
    assert short == taken
    assert ("separable/depthwise_kernel" in " ".join(prune.report.skipped)) == (len(taken) == 2)
    assert all(share == 0.25 for name, share in rows.items() if "depthwise" in name)


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
    import tensorflow as tf

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


# ---- models of other kinds


class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = [keras.layers.Dense(5, name="one"), dense()]

    def call(self, x: Any) -> Any:
        return self.parts[1](keras.ops.tile(self.parts[0](x)[:, :1], (1, 8)))


def test_subclassed_unbuilt_and_nested_models() -> None:
    schedule, recorder = ramp(), Recorder()
    model = compiled(Subclassed())
    prune = PruneWeights(schedule, skip=["b"])
    fit(model, prune, recorder)
    spared = [1, 1, 0]
    assert recorder.zeros == [
        [n * take for n, take in zip(rounded(model, schedule(t)), spared, strict=True)]
        for t in range(1, 2 * STEPS + 1)
    ]
    assert prune.report is not None
    assert len(prune.report.kernels) == 2
    assert prune.report.step == 2 * STEPS


class Lazy(keras.Model):
    def build(self, shape: Any) -> None:
        self.late = keras.layers.Dense(3, name="late")
        super().build(shape)

    def call(self, x: Any) -> Any:
        return self.late(x)


def test_layers_made_in_the_first_step() -> None:
    model = compiled(Lazy())
    fit(model, PruneWeights(ConstantSparsity(0.5)))
    assert zeros(model) == [12]
    with pytest.raises(TfcompError, match="no kernel to prune"):
        fit(compiled(Lazy()), PruneWeights(ConstantSparsity(0.5), skip=["late"]))
    with pytest.raises(TfcompError, match="Did you mean 'late'"):
        fit(compiled(Lazy()), PruneWeights(ConstantSparsity(0.5), skip=["lat"]))


def test_a_teacher_inside_is_left_alone() -> None:
    teacher, student = dense(), keras.models.clone_model(dense())
    before = teacher.get_weights()
    distiller = keras.distillation.Distiller(
        teacher, student, keras.distillation.LogitsDistillation()
    )
    distiller.compile("adam", "mse", jit_compile=False)
    prune = PruneWeights(ramp())
    fit(distiller, prune)
    assert zeros(student) == rounded(student, 0.8)
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert prune.report is not None
    assert len(prune.report.kernels) == 2
    frozen = [r for name, r in prune.report.skipped.items() if name.endswith("kernel")]
    assert len(frozen) == 2
    assert all(reason.startswith("frozen") for reason in frozen)


# ---- bad input


def test_a_training_step_that_ignores_constraints_is_found() -> None:
    class Custom(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            for variable in self.trainable_variables:
                variable.assign_add(keras.ops.ones_like(variable) * 0.01)
            return {"loss": 0.0}

    model = compiled(Custom([keras.Input((8,)), keras.layers.Dense(3, name="d")], name="c"))
    with pytest.raises(TfcompError, match=r"ignores variable constraints.*12 in c/d/kernel"):
        fit(model, PruneWeights(ConstantSparsity(0.5)))
    assert model.layers[0].kernel.constraint is None


def test_weights_put_back_after_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the weights could not be written: the zeros are read back, not believed.
    monkeypatch.setattr(Masked, "zeroed", lambda self, w: w)
    monkeypatch.setattr(pruning_session.Session, "check_constraints_hold", lambda self: None)
    with pytest.raises(TfcompError, match=r"not the 0\.5 asked for: m/a/kernel has 0 zeros of 44"):
        fit(compiled(), PruneWeights(ConstantSparsity(0.5)))


def test_two_at_once_are_refused() -> None:
    model = compiled()
    both = PruneWeights(ConstantSparsity(0.5)), PruneWeights(ConstantSparsity(0.7))
    with pytest.raises(TfcompError, match="Two PruneWeights callbacks in one fit"):
        fit(model, *both)
    assert model.layers[0].kernel.constraint is None
    fit(model, both[1])
    assert zeros(model) == rounded(model, 0.7)


@pytest.mark.parametrize("schedule", [0.9, None, "poly", ConstantSparsity])
def test_what_is_no_schedule_is_refused(schedule: Any) -> None:
    with pytest.raises(TfcompError, match=r"such as ConstantSparsity\(0\.8\)\. Received: "):
        PruneWeights(schedule)


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(TfcompError, match=r'must be "local" or "global"\. Received: \'layer\''):
        PruneWeights(ConstantSparsity(0.5), scope="layer")  # type: ignore[arg-type]


def test_an_unknown_layer_to_skip_is_refused() -> None:
    with pytest.raises(TfcompError, match="'c', which is not one"):
        fit(compiled(), PruneWeights(ConstantSparsity(0.5), skip=["c"]))


def test_outside_fit_it_says_so() -> None:
    with pytest.raises(TfcompError, match=r"in `model\.fit"):
        PruneWeights(ConstantSparsity(0.5)).on_epoch_begin(0)


def test_a_model_without_kernels_is_refused() -> None:
    layers = [keras.Input((8,)), keras.layers.BatchNormalization(name="n")]
    with pytest.raises(TfcompError, match=r"no kernel to prune.*n/gamma is not a kernel"):
        fit(compiled(keras.Sequential(layers)), PruneWeights(ConstantSparsity(0.5)), y=X)


# ---- the object


@pytest.mark.parametrize(
    "prune",
    [
        PruneWeights(CosineDecay(0.1, 0.5, 0, 10), scope="global", skip=["a"], depthwise=True),
        PruneWeights.from_zeros(),
    ],
    ids=["all arguments", "from zeros"],
)
def test_round_trips(prune: PruneWeights) -> None:
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(prune)))
    clone = keras.saving.deserialize_keras_object(stored)
    assert isinstance(clone, PruneWeights)
    assert clone.get_config() == prune.get_config()
    assert clone.schedule == prune.schedule


def test_layers_to_skip_are_stored_by_name() -> None:
    layer = keras.layers.Dense(1, name="x")
    assert PruneWeights(ConstantSparsity(0.5), skip=[layer, "y"]).get_config()["skip"] == ["x", "y"]


def test_the_same_seed_gives_the_same_weights() -> None:
    def run() -> list[np.ndarray]:
        keras.utils.set_random_seed(3)
        model = compiled()
        fit(model, PruneWeights(ramp(), scope="global"))
        weights: list[np.ndarray] = model.get_weights()
        return weights

    for one, two in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("module", ["prune_weights", "sparsity_logger"])
def test_examples_run(module: str) -> None:
    # Collected here: callbacks/ lies outside the package's folder, where pytest looks.
    result = doctest.testmod(sys.modules[f"tfcomp.callbacks.{module}"])
    assert result.attempted > 4
    assert result.failed == 0
