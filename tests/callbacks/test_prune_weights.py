"""PruneWeights in `fit`: how much is pruned of which models, and what is refused."""

from __future__ import annotations

import doctest
import gc
import json
import math
import sys
import warnings
import weakref
from typing import Any

import keras
import numpy as np
import pytest

from tests.callbacks.fits import STEPS, X, fit
from tests.callbacks.pruned_networks import Recorder, compiled, dense, ramp, rounded, sizes, zeros
from tfcomp.callbacks import PruneWeights, pruning_session
from tfcomp.errors import TfcompError
from tfcomp.pruning import ConstantSparsity, CosineDecay, Masked, PolynomialDecay

pytestmark = pytest.mark.usefixtures("strict")

rng = np.random.default_rng(1)


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
