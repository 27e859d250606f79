"""ShareWeights in `fit`: the rule of the paper, what else holds weights, and what is refused."""

from __future__ import annotations

import doctest
import gc
import json
import pathlib
import sys
import weakref
from typing import Any

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from tests.callbacks.fits import At, X, Y, fit
from tests.callbacks.shared_networks import check, clustered, compiled, kernels
from tfcomp.callbacks import PruneWeights, ShareWeights, training_hooks
from tfcomp.conversion import convert
from tfcomp.errors import TfcompError
from tfcomp.pruning import ConstantSparsity, Masked
from tfcomp.quantization import quantize_aware
from tfcomp.sharing import Shared, cluster_array, cluster_weights

pytestmark = pytest.mark.usefixtures("strict")

rng = np.random.default_rng(1)


# First, since collecting garbage takes long where many graphs were made before.
def test_models_are_not_kept_alive() -> None:
    model = compiled()
    fit(model, ShareWeights(), epochs=1)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


# ---- the rule of the paper, by NumPy


def linear(w: np.ndarray, optimizer: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, use_bias=False)])
    model.layers[0].kernel.assign(w)
    return compiled(model, optimizer)


def oracle(w: np.ndarray, rate: float, momentum: float, reduction: str) -> np.ndarray:
    """Centroids trained on the mean square error of x·w, whose gradient is written out."""
    values, codes = np.unique(w.astype(np.float64), return_inverse=True)
    codes = codes.reshape(w.shape)
    speed = np.zeros_like(values)
    for start in range(0, len(X), 8):
        x, y = X[start : start + 8].astype(np.float64), Y[start : start + 8]
        gradient = 2 * x.T @ (x @ values[codes] - y) / y.size
        for j in range(values.size):
            of_j = gradient[codes == j]
            g = of_j.sum() if reduction == "sum" else of_j.mean()
            speed[j] = momentum * speed[j] - rate * g
        values = np.where(values == 0, 0, values + speed)
    return values[codes]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradients_are_summed_per_centroid(reduction: Any, momentum: float) -> None:
    w = cluster_array(np.where(rng.random((8, 3)) < 0.3, 0, rng.normal(size=(8, 3))), 4)
    w = w.astype("float32")
    model = linear(w, keras.optimizers.SGD(0.02, momentum=momentum))
    fit(model, ShareWeights(reduction=reduction), epochs=1, shuffle=False)
    expected = oracle(w, 0.02, momentum, reduction)
    np.testing.assert_allclose(kernels(model)[0], expected, rtol=2e-5, atol=1e-6)
    assert np.abs(expected - w).max() > 0.02


def test_each_value_by_itself_is_plain_training() -> None:
    w = rng.normal(size=(8, 3)).astype("float32")
    w[0, 0] = w[1, 0] = 0
    model, free = (linear(w, keras.optimizers.SGD(0.02)) for _ in range(2))
    fit(model, ShareWeights(), epochs=1, shuffle=False)
    fit(free, PruneWeights.from_zeros(), epochs=1, shuffle=False)
    np.testing.assert_allclose(kernels(model)[0], kernels(free)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_without_an_update_nothing_changes_and_equal_values_are_taken_exactly(
    dtype: str, reduction: Any
) -> None:
    few = rng.normal(size=7)[rng.integers(0, 7, (50, 40))]
    few[rng.random(few.shape) < 0.3] = 0
    w = keras.ops.cast(few, dtype)
    shared = Shared(keras.ops.convert_to_numpy(w), reduction)
    for _ in range(3):
        assert keras.ops.all(shared(w) == w)
    other = keras.ops.cast(keras.ops.where(few != 0, few * 0.3 + 1e-3, 0), dtype)
    means = shared.means(other)
    assert keras.ops.all(shared.spread(means, other) == other)


# ---- what else holds the weights


def test_saved_and_loaded_it_goes_on(tmp_path: pathlib.Path) -> None:
    model = compiled()
    fit(model, ShareWeights())
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert all(v.constraint is None for v in loaded.trainable_variables)
    before = kernels(loaded)
    fit(loaded, ShareWeights())
    check(before, loaded)


def test_a_model_trained_before_is_traced_again_and_free_afterwards() -> None:
    model = compiled()
    plain = compiled(clustered())
    fit(plain, epochs=1)  # traced without sharing
    plain.set_weights(model.get_weights())
    before = kernels(model)
    fit(plain, ShareWeights())
    check(before, plain)
    assert all(v.constraint is None for v in plain.trainable_variables)
    fit(plain, epochs=1)
    assert np.unique(kernels(plain)[0]).size > 20


def test_the_layers_own_constraint_is_kept_and_restored() -> None:
    own = keras.constraints.NonNeg()
    model = compiled(clustered(kernel_constraint=own), keras.optimizers.SGD(0.01))
    groups, inside = kernels(model), []
    fit(model, ShareWeights(), At(2, lambda m: inside.append(m.layers[0].kernel.constraint)))
    assert isinstance(inside[0], Shared)
    assert inside[0].constraint is own
    assert model.layers[0].kernel.constraint is own
    for old, new in zip(groups, kernels(model), strict=True):
        assert (new >= 0).all()
        assert all(np.unique(new[old == value]).size == 1 for value in np.unique(old))
    assert any((new > 0).any() for new in kernels(model))


@pytest.mark.parametrize(
    "own",
    [keras.constraints.UnitNorm(axis=0), keras.constraints.MaxNorm(30.0)],
    ids=["unit", "max"],
)
def test_a_constraint_that_sets_equal_weights_apart_is_refused(own: Any) -> None:
    model = compiled(clustered(kernel_constraint=own))
    with pytest.raises(TfcompError, match=r"equal weights equal.*Norm.*a/kernel.*`skip`"):
        fit(model, ShareWeights())
    assert model.layers[0].kernel.constraint is own


def test_a_norm_of_the_whole_kernel_is_kept() -> None:
    own = keras.constraints.UnitNorm(axis=(0, 1))
    model = compiled(clustered(kernel_constraint=own))
    before = kernels(model)
    fit(model, ShareWeights())
    check(before, model)
    for w in kernels(model):
        assert np.linalg.norm(w) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("ema", [True, False], ids=["ema", "plain"])
def test_beside_pruning_from_zeros(first: bool, ema: bool) -> None:
    own = keras.constraints.NonNeg() if first else None
    optimizer = keras.optimizers.SGD(0.002, use_ema=ema, ema_momentum=0.5)
    model = compiled(clustered(kernel_constraint=own), optimizer)
    if first:
        for layer in model.layers:
            layer.kernel.assign(np.abs(layer.kernel))
    before, seen = kernels(model), []

    def look(model: Any) -> None:
        constraint = model.layers[0].kernel.constraint
        seen.extend([type(constraint), type(constraint.constraint)])

    share, prune = ShareWeights(), PruneWeights.from_zeros()
    stop = keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True)
    order = [share, prune] if first else [prune, share]
    fit(model, *order, stop, At(1, look))
    assert seen == [Shared, Masked]
    check(before, model)
    assert all(v.constraint is own for v in model.trainable_variables if v.name == "kernel")
    assert "on_train_end" not in vars(model.history)
    assert prune.report is not None
    assert [r.zeros for r in prune.report.kernels] == [int((w == 0).sum()) for w in before]


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_pruning_on_beside_it_is_refused(first: bool) -> None:
    model = compiled()
    share, prune = ShareWeights(), PruneWeights.from_zeros(ConstantSparsity(0.8))
    with pytest.raises(TfcompError, match=r"schedule removes more. Prune first, cluster then"):
        fit(model, *([share, prune] if first else [prune, share]))


def test_what_has_no_shared_values_is_left_alone() -> None:
    model = clustered()
    w = rng.normal(size=(8, 11))
    w[0] = 0
    model.layers[0].kernel.assign(w)
    fit(compiled(model), share := ShareWeights(max_values=40))
    report = share.report
    assert report is not None
    assert [row.name for row in report.kernels] == ["m/b/kernel"]
    assert report.skipped["m/a/kernel"] == "78 different values, more than max_values=40"
    assert report.skipped["m/a/bias"] == "not a kernel"
    text = str(report)
    assert text.startswith("33 weights in 1 kernels share at most 5 values each; updates by their")
    assert "left alone  m/a/kernel: 78" in text
    stored = json.loads(json.dumps(report.to_dict()))
    assert stored["kernels"][0]["index_bits"] == 3
    model.layers[0].kernel.assign(rng.normal(size=(8, 11)))
    fit(model, share := ShareWeights())
    assert share.report is not None
    assert share.report.skipped["m/a/kernel"] == "no two of its weights are equal"


def test_without_shared_values_it_is_refused() -> None:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, name="d")], name="n")
    with pytest.raises(TfcompError, match=r"no kernel.*d/kernel: no two of.*cluster_weights"):
        fit(compiled(model), ShareWeights())
    with pytest.raises(TfcompError, match="found no kernel with shared values in the model 'm'"):
        fit(compiled(), ShareWeights(skip=["a", "b"]))
    with pytest.raises(TfcompError, match="not built"):
        fit(compiled(keras.Sequential([keras.layers.Dense(3)])), ShareWeights())


def test_weights_that_are_not_finite_are_refused() -> None:
    model = clustered()
    model.layers[0].kernel.assign(np.full((8, 11), np.nan))
    with pytest.raises(TfcompError, match=r"finite weights\. Received: others in m/a/kernel"):
        fit(compiled(model), ShareWeights())


def test_sums_are_warned_of_where_updates_are_scaled() -> None:
    model = compiled(optimizer=keras.optimizers.Adam(1e-4))
    before = kernels(model)
    with pytest.warns(UserWarning, match='With Adam a centroid.*Use reduction="mean", or SGD'):
        fit(model, ShareWeights(), epochs=1)
    fit(model, ShareWeights(reduction="mean"), epochs=1)
    check(before, model)


def test_averages_of_one_among_several_optimizers_are_refused() -> None:
    ema = keras.optimizers.SGD(0.002, use_ema=True, ema_overwrite_frequency=2)

    class Several:
        optimizers = (ema, ema)

    from tfcomp.callbacks import sharing_session

    with pytest.raises(TfcompError, match=r"one optimizer where.*Received: 2"):
        sharing_session.averages(Several())


def test_a_training_step_that_ignores_constraints_is_found() -> None:
    class Custom(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            for variable in self.trainable_variables:
                variable.assign_add(keras.random.normal(variable.shape) * 0.01)
            return {"loss": 0.0}

    model = compiled(Custom([keras.Input((8,)), keras.layers.Dense(3, name="d")], name="c"))
    model.layers[0].kernel.assign(np.ones((8, 3)))
    with pytest.raises(TfcompError, match=r"ignores variable constraints.*24 weights of c/d/kern"):
        fit(model, ShareWeights())
    assert model.layers[0].kernel.constraint is None


def test_values_set_apart_after_all_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the weights could not be written: the values are read back, not believed.
    monkeypatch.setattr(Shared, "__call__", lambda self, w: w)
    monkeypatch.setattr(Shared, "differing", lambda self, w: 0)
    with pytest.raises(TfcompError, match=r"do not share the values they did: m/a/kernel has \d\d"):
        fit(compiled(), ShareWeights())


def test_two_at_once_are_refused() -> None:
    model = compiled()
    with pytest.raises(TfcompError, match="Two ShareWeights callbacks in one fit"):
        fit(model, ShareWeights(), ShareWeights())
    assert model.layers[0].kernel.constraint is None
    before = kernels(model)
    fit(model, ShareWeights())
    check(before, model)


def test_no_step_left_is_said() -> None:
    with pytest.warns(UserWarning, match="no step left, so that no value was trained"):
        fit(compiled(), ShareWeights(), initial_epoch=2, epochs=2)


# ---- the object


def test_round_trips() -> None:
    share = ShareWeights(reduction="mean", max_values=16, skip=["a", keras.layers.ReLU(name="r")])
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(share)))
    clone = keras.saving.deserialize_keras_object(stored)
    assert isinstance(clone, ShareWeights)
    expected = {"reduction": "mean", "max_values": 16, "skip": ["a", "r"]}
    assert clone.get_config() == share.get_config() == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"reduction": "max"}, r'`reduction` must be "sum" or "mean"\. Received: \'max\''),
        ({"max_values": 0}, r"whole number of at least 1\. Received: 0"),
        ({"max_values": True}, r"whole number of at least 1\. Received: True"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TfcompError, match=message):
        ShareWeights(**arguments)


def test_chains_of_constraints() -> None:
    class Link:
        def __init__(self, constraint: Any = None) -> None:
            self.constraint = constraint

    class Other(Link):
        pass

    last = Other(keras.constraints.NonNeg())
    middle = Link(last)
    variable = Link(Other(middle))
    training_hooks.unlink(variable, Link())  # not in it
    training_hooks.unlink(variable, middle)
    assert variable.constraint.constraint is last
    assert training_hooks.without(variable, Other) is variable.constraint is last.constraint
    training_hooks.unlink(Link(), middle)


def test_functions_after_all_callbacks_are_called_in_order() -> None:
    history, called = keras.callbacks.History(), []
    training_hooks.after_all_callbacks(None, lambda: called.append(0))
    for number in (1, 2, 3):
        training_hooks.after_all_callbacks(history, lambda n=number: called.append(n))
    history.on_train_end()
    history.on_train_end()
    assert called == [1, 2, 3]
    assert "on_train_end" not in vars(history)


def test_examples_run() -> None:
    # Collected here: callbacks/ lies outside the package's folder, where pytest looks.
    result = doctest.testmod(sys.modules["tfcomp.callbacks.share_weights"])
    assert result.attempted > 4
    assert result.failed == 0


# ---- the whole way


def convolutions() -> keras.Model:
    x = keras.Input((6, 6, 4))
    y = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(x)
    y = keras.layers.Dense(12, activation="relu", name="hidden")(keras.layers.Flatten()(y))
    return keras.Model(x, keras.layers.Dense(4, name="logits")(y))


def in_file(path: pathlib.Path) -> dict[tuple[int, ...], np.ndarray]:
    """The integer tensors of a file, by shape."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    return {
        tuple(detail["shape"].tolist()): interpreter.get_tensor(detail["index"])
        for detail in interpreter.get_tensor_details()
        if detail["dtype"] is np.int8 and len(detail["shape"]) > 1 and detail["shape"][0] > 1
    }


def test_pruned_saved_clustered_shared_quantised_converted(tmp_path: pathlib.Path) -> None:
    x = rng.normal(size=(32, 6, 6, 4)).astype("float32")
    y = rng.normal(size=(32, 4)).astype("float32")

    def train(model: Any, optimizer: Any, *callbacks: Any) -> None:
        fit(compiled(model, optimizer), *callbacks, x=x, y=y)

    model = convolutions()
    train(model, keras.optimizers.Adam(0.01), PruneWeights(ConstantSparsity(0.6)))
    zeros = [w == 0 for w in kernels(model)]
    model.save(tmp_path / "m.keras")
    few, report = cluster_weights(keras.saving.load_model(tmp_path / "m.keras"), 8)
    assert [row.zeros for row in report.kernels] == [int(mask.sum()) for mask in zeros]
    before = kernels(few)
    train(few, keras.optimizers.SGD(1e-3), ShareWeights())
    check(before, few)
    assert all(np.unique(w).size <= 8 for w in kernels(few))
    few.save(tmp_path / "few.keras")

    # Zeros alone, and zeros and clusters, each through quantisation-aware training.
    for share in (None, ShareWeights()):
        aware = quantize_aware(keras.saving.load_model(tmp_path / "few.keras"))
        callbacks = [PruneWeights.from_zeros(), *([] if share is None else [share])]
        train(aware, keras.optimizers.SGD(1e-3), *callbacks)
        trained = kernels(aware)
        for mask, w in zip(zeros, trained, strict=True):
            np.testing.assert_array_equal(w == 0, mask)
            assert (np.unique(w).size <= 8) == (share is not None)
        convert(aware, tmp_path / "m.tflite", dtype="int8")
        found = in_file(tmp_path / "m.tflite")
        for mask, w in zip(zeros, trained, strict=True):
            stored = found[np.moveaxis(w, -1, 0).shape]
            assert (stored[np.moveaxis(mask, -1, 0)] == 0).all()
            assert np.count_nonzero(stored) >= 0.9 * np.count_nonzero(~mask)
            # Scales are per channel, so that a channel has the few values.
            if share is not None:
                assert all(np.unique(channel).size <= 8 for channel in stored)
