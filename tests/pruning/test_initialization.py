"""Pruning at initialisation against closed forms, conservation laws and counts."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcomp.callbacks import PruneWeights
from tfcomp.errors import TfcompError, UnsupportedModelError
from tfcomp.pruning import (
    NM,
    SNIP,
    Candidates,
    ConstantSparsity,
    Criterion,
    Filters,
    GraSP,
    Layers,
    Magnitude,
    RandomWeights,
    SynFlow,
    find_kernels,
    prune_at_initialization,
)

rng = np.random.default_rng(4)
X = rng.normal(size=(10, 4)).astype("float32")
Y = rng.normal(size=(10, 3)).astype("float32")


def linear() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), layers.Dense(3, use_bias=False, name="d")])


def data_of(form: str) -> Any:
    return (X, Y) if form == "arrays" else tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)


@pytest.mark.parametrize("form", ["arrays", "uneven batches"])
def test_snip_of_a_linear_model(form: str) -> None:
    model = linear()
    w = model.get_weights()[0].astype(np.float64)
    gradient = 2 / 30 * X.T @ (X @ w - Y)
    (found,) = SNIP(data_of(form), "mse").scores(Candidates.of_kernels(model)).values()
    np.testing.assert_allclose(found, np.abs(w * gradient), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("form", ["arrays", "uneven batches"])
def test_grasp_of_a_linear_model(temperature: float, form: str) -> None:
    model = linear()
    w, t = model.get_weights()[0].astype(np.float64), temperature
    gradient = 2 / 30 / t * X.T @ (X @ w / t - Y)
    product = 2 / 30 / t**2 * X.T @ X @ gradient
    (found,) = GraSP(data_of(form), "mse", t).scores(Candidates.of_kernels(model)).values()
    np.testing.assert_allclose(found, w * product, rtol=1e-4, atol=1e-7)


def network(activation: str = "tanh") -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation, name="a"),
            layers.Dense(3, name="b"),
        ]
    )


def flow(model: keras.Model, weights: list[np.ndarray], t: float) -> float:
    """gᵀg of the kernels, by differences in float64."""
    a, ab, b, bb = (w.astype(np.float64) for w in weights)

    def cost(a: np.ndarray, b: np.ndarray) -> float:
        return float((((np.tanh(X @ a + ab) @ b + bb) / t - Y) ** 2).mean())

    total = 0.0
    for which, kernel in enumerate((a, b)):
        for index in np.ndindex(kernel.shape):
            step = np.zeros_like(kernel)
            step[index] = 1e-5
            high, low = ([a, b], [a, b])
            high[which], low[which] = kernel + step, kernel - step
            total += ((cost(*high) - cost(*low)) / 2e-5) ** 2
    return total


def test_grasp_is_the_change_of_gradient_flow() -> None:
    """d(gᵀg)/dw = 2·Hg: differences of the flow along each weight."""
    model = network()
    found = [*GraSP((X, Y), "mse", 2.0).scores(Candidates.of_kernels(model)).values()]
    weights = model.get_weights()
    for which, index in ((0, (1, 2)), (0, (3, 4)), (2, (0, 0)), (2, (4, 1))):
        moved = [[w.astype(np.float64) for w in weights] for _ in range(2)]
        moved[0][which][index] += 1e-3
        moved[1][which][index] -= 1e-3
        slope = (flow(model, moved[0], 2.0) - flow(model, moved[1], 2.0)) / 2e-3
        expected = weights[which][index] * slope / 2
        np.testing.assert_allclose(found[which // 2][index], expected, rtol=1e-2, atol=1e-6)


def test_synflow_conserves_flow() -> None:
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(5, 3, activation="relu", use_bias=False)(x)
    y = layers.Conv2D(4, 3, activation="relu", use_bias=False)(y)
    y = layers.Dense(7, activation="relu", use_bias=False)(layers.Flatten()(y))
    model = keras.Model(x, layers.Dense(3, use_bias=False)(y))
    scores = [*SynFlow().scores(Candidates.of_kernels(model)).values()]
    value = np.ones((1, 6, 6, 2))
    for layer in model.layers:  # R itself, in NumPy
        if isinstance(layer, layers.Conv2D):
            k = np.abs(np.asarray(layer.kernel, np.float64))
            size = value.shape[1] - 2
            value = sum(
                value[:, i : i + size, j : j + size] @ k[i, j] for i in range(3) for j in range(3)
            )
        elif isinstance(layer, layers.Dense):
            value = value.reshape(1, -1) @ np.abs(np.asarray(layer.kernel, np.float64))
    for of_layer in scores:
        np.testing.assert_allclose(of_layer.sum(), value.sum(), rtol=1e-4)


def test_synflow_of_two_layers() -> None:
    model = network("relu")
    a, _, b, _ = (np.abs(w.astype(np.float64)) for w in model.get_weights())
    found = [*SynFlow().scores(Candidates.of_kernels(model)).values()]
    np.testing.assert_allclose(found[0], a * b.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found[1], b * a.sum(axis=0)[:, None], rtol=1e-5)


CRITERIA: dict[str, Any] = {
    "snip": lambda: SNIP((X, Y), "mse"),
    "grasp": lambda: GraSP((X, Y), "mse"),
    "synflow": SynFlow,
    "random": RandomWeights,
    "magnitude": Magnitude,
}


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("rounds", [None, 1, 5])
@pytest.mark.parametrize("name", CRITERIA)
def test_counts_are_exact_and_the_caller_s_model_stays(
    name: str, rounds: int | None, scope: Any
) -> None:
    x = keras.Input((4,))
    y = layers.BatchNormalization()(layers.Dense(6, name="a")(x))
    y = layers.Dropout(0.5, seed=1)(layers.ReLU()(y))
    model = keras.Model(x, layers.Dense(3, name="b")(y))
    model.compile("sgd", "mse")
    before = [np.array(v) for v in model.variables]
    pruned, report = prune_at_initialization(
        model, 0.6, CRITERIA[name](), rounds=rounds, scope=scope
    )
    for old, now in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, np.array(now))
    for old, now in zip(model.weights, pruned.weights, strict=True):
        kept = np.array(now) != 0
        np.testing.assert_array_equal(np.array(now)[kept], np.array(old)[kept])
    zeros = [int((w == 0).sum()) for w in pruned.get_weights() if w.ndim == 2]
    if scope == "global":
        assert sum(zeros) == math.floor(0.6 * 42 + 0.5)
    else:
        assert zeros == [math.floor(0.6 * 24 + 0.5), math.floor(0.6 * 18 + 0.5)]
    assert report.sparsity == sum(zeros) / 42
    assert report.rounds == (rounds or (100 if name == "synflow" else 1))


def test_the_lowest_scores_go() -> None:
    model = network()
    scores = [*SNIP((X, Y), "mse").scores(Candidates.of_kernels(model)).values()]
    flat = np.concatenate([s.reshape(-1) for s in scores])
    order = np.argsort(flat, kind="stable")
    expected = np.ones(35, bool)
    expected[order[:21]] = False
    pruned, _ = prune_at_initialization(model, 0.6, SNIP((X, Y), "mse"))
    kept = np.concatenate([w.reshape(-1) != 0 for w in pruned.get_weights() if w.ndim == 2])
    np.testing.assert_array_equal(kept, expected)


def test_the_zeros_are_kept_in_training() -> None:
    model = network("relu")
    model.compile("adam", "mse")
    pruned, _ = prune_at_initialization(model, 0.6, SNIP((X, Y)))
    before = [w == 0 for w in pruned.get_weights()]
    pruned.compile("adam", "mse")
    pruned.fit(X, Y, epochs=2, verbose=0, callbacks=[PruneWeights.from_zeros()])
    for zero, now in zip(before, pruned.get_weights(), strict=True):
        if now.ndim == 2:
            np.testing.assert_array_equal(zero, now == 0)


def collapsing() -> keras.Model:
    """A wide layer of small weights between narrow ones."""
    keras.utils.set_random_seed(0)
    sizes = {"first": 20, "wide": 200, "narrow": 4}
    hidden = [
        layers.Dense(units, "relu", use_bias=False, name=name) for name, units in sizes.items()
    ]
    model = keras.Sequential([keras.Input((8,)), *hidden, layers.Dense(2, name="last")])
    kernel = model.get_layer("wide").kernel
    kernel.assign(kernel * 1e-4)
    return model


def test_layer_collapse_is_reported() -> None:
    model = collapsing()
    with pytest.warns(UserWarning, match="Layer collapse: no weight is left in .*wide"):
        _, report = prune_at_initialization(model, 0.85, Magnitude())
    assert [name.split("/")[-2] for name in report.collapsed] == ["wide"]
    assert "collapsed" in str(report)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pruned, report = prune_at_initialization(model, 0.98, SynFlow())
    assert not report.collapsed
    assert np.abs(pruned.predict(np.abs(rng.normal(size=(64, 8))), verbose=0)).max() >= 0


def test_one_round_of_synflow_is_another_thing() -> None:
    model = collapsing()
    many, _ = prune_at_initialization(model, 0.9, SynFlow())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, _ = prune_at_initialization(model, 0.9, SynFlow(), rounds=1)
    assert any((a != b).any() for a, b in zip(many.get_weights(), one.get_weights(), strict=True))


def test_as_a_criterion_of_prune_weights() -> None:
    model = network("relu")
    model.compile(keras.optimizers.SGD(0.0), "mse")
    expected, _ = prune_at_initialization(model, 0.6, SNIP((X, Y), "mse"))
    prune = PruneWeights(ConstantSparsity(0.6), scope="global", criterion=SNIP((X, Y), "mse"))
    model.fit(X, Y, verbose=0, callbacks=[prune])
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_whole_filters(scope: Any) -> None:
    model = network("relu")
    pruned, report = prune_at_initialization(
        model, 0.5, SNIP((X, Y), "mse"), unit=Filters(), scope=scope
    )
    scores = [*SNIP((X, Y), "mse").scores(Candidates.of_kernels(model)).values()]
    found = [np.asarray(k.variable) for k in find_kernels(pruned)[0]]
    lost = [(kernel == 0).all(axis=0) for kernel in found]
    for kernel, columns in zip(found, lost, strict=True):
        assert (kernel != 0).all(axis=0).sum() == (~columns).sum()  # whole ones, or none of it
    means = [score.mean(axis=0) for score in scores]
    if scope == "local":
        for mean, columns in zip(means, lost, strict=True):
            count = (len(mean) + 1) // 2 if len(mean) > 1 else 0
            np.testing.assert_array_equal(np.sort(mean)[:count], np.sort(mean[columns]))
    else:
        highest = max(m[c].max() for m, c in zip(means, lost, strict=True) if c.any())
        assert all((m[~c] >= highest).all() for m, c in zip(means, lost, strict=True))
        assert report.sparsity == pytest.approx(0.5, abs=0.1)


def test_whole_layers_need_others_to_be_compared_with() -> None:
    with pytest.raises(TfcompError, match='expects scope="global"'):
        prune_at_initialization(network("relu"), 0.5, Magnitude(), unit=Layers(), scope="local")
    with pytest.raises(TfcompError, match="one sparsity"):
        prune_at_initialization(network("relu"), 0.3, Magnitude(), unit=NM(2, 4))


def test_whole_layers_without_which_nothing_passes_are_told() -> None:
    with pytest.warns(UserWarning, match="no way leads from an input"):
        _, report = prune_at_initialization(collapsing(), 0.8, Magnitude(), unit=Layers())
    assert report.disconnected
    assert not report.collapsed
    assert [name.split("/")[-2] for name in report.removed_layers] == ["wide"]
    assert "wide/kernel  removed as a whole" in str(report)


class Ends(Criterion):
    """Keeps one weight of each kernel: no two of them follow each other."""

    def scores(self, candidates: Candidates) -> dict[str, np.ndarray]:
        scores = {name: np.zeros(k.shape) for name, k in candidates.items()}
        for index, score in enumerate(scores.values()):
            score[0 if index % 2 else -1, 0 if index % 2 else -1] = 1
        return scores


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_a_network_without_a_way_through_it_is_told(activation: Any) -> None:
    hidden = [layers.Dense(4, "relu"), layers.BatchNormalization(), layers.Dense(5, activation)]
    model = keras.Sequential([keras.Input((4,)), *hidden])
    with pytest.warns(UserWarning, match="no way leads from an input"):
        _, report = prune_at_initialization(model, 34 / 36, Ends())
    assert report.disconnected
    assert not report.collapsed
    assert "no output depends on any input" in str(report)
    _, report = prune_at_initialization(model, 0.5, RandomWeights())
    assert not report.disconnected


class Wrong(Criterion):
    def scores(self, candidates: Candidates) -> dict[str, np.ndarray]:
        return {name: np.full(k.shape, np.nan) for name, k in candidates.items()}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: prune_at_initialization(m, 95, Magnitude()), "Did you mean 0.95"),
        (lambda m: prune_at_initialization(m, 0.5, "snip"), "must be a Criterion"),
        (lambda m: prune_at_initialization(m, 0.5, Magnitude(), rounds=0), "`rounds`"),
        (lambda m: prune_at_initialization(m, 0.5, Magnitude(), scope="all"), "`scope`"),
        (lambda m: prune_at_initialization(m, 0.5, Wrong()), "not finite"),
        (lambda m: prune_at_initialization(m, 0.5, SNIP((X, Y))), "expects a loss"),
        (lambda m: prune_at_initialization(m, 0.5, SNIP(X, "mse")), "inputs, labels"),
        (lambda m: prune_at_initialization(m, 0.5, SNIP((X[:, :2], Y), "mse")), "they refuse"),
        (lambda m: prune_at_initialization(m, 0.5, SNIP((X, Y[:, [0] * 7]), "mse")), "they refuse"),
        (lambda m: prune_at_initialization(m, 0.5, SNIP((X * np.nan, Y), "mse")), "finite"),
        (lambda m: prune_at_initialization(m, 0.5, SNIP((X, Y), ["mse"])), "one cost"),
        (lambda m: SNIP((X, Y), "foo"), "`loss` must be"),
        (lambda m: prune_at_initialization(m, 0.5, Magnitude(), unit="weights"), "`unit`"),
        (lambda m: GraSP((X, Y), "mse", 0.0), "temperature"),
        (lambda m: SNIP((X, Y)).get_config(), "holds data"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(TfcompError, match=message) as error:
        call(network())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [SNIP, GraSP])
def test_a_cost_that_no_weight_changes_is_refused(kind: Any) -> None:
    criterion = kind((X, Y), lambda labels, predictions: tf.reduce_mean(labels))
    with pytest.raises(TfcompError, match="a cost that depends on the weights") as error:
        prune_at_initialization(network(), 0.5, criterion)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [SNIP, GraSP])
def test_kernels_that_do_not_change_the_cost_are_no_fault(kind: Any) -> None:
    x = keras.Input((X.shape[1],))
    idle = layers.Dense(4, "relu", name="idle", bias_initializer=keras.initializers.Constant(-99))
    body = layers.Dense(4, "tanh", name="body")(x)
    joined = layers.Concatenate()([idle(x), body])
    model = keras.Model(x, layers.Dense(Y.shape[1])(joined))
    criterion = kind((X, Y), "mse")
    found, _ = find_kernels(model)
    scores = criterion.scores(Candidates.of_kernels(model, found))
    assert not scores["idle/kernel"].any()
    assert scores["body/kernel"].any()
    alone = [kernel for kernel in found if kernel.name == "idle/kernel"]
    assert not criterion.scores(Candidates.of_kernels(model, alone))["idle/kernel"].any()


class Own(keras.Model):
    def call(self, x: Any) -> Any:
        return x


def test_several_outputs_need_one_cost_of_all() -> None:
    x = keras.Input((X.shape[1],))
    model = keras.Model(x, [layers.Dense(3)(x), layers.Dense(2)(x)])
    labels = (np.zeros((len(X), 3)), np.ones((len(X), 2)))

    def both(y: Any, predictions: Any) -> Any:
        return sum(keras.ops.mean((p - t) ** 2) for t, p in zip(y, predictions, strict=True))

    with pytest.raises(TfcompError, match="a loss for one output, and 2 outputs") as error:
        prune_at_initialization(model, 0.5, SNIP((X, labels), "mse"))
    assert "\n" not in str(error.value)
    assert prune_at_initialization(model, 0.5, SNIP((X, labels), both))[1].sparsity == 0.5


def test_models_that_cannot_be_pruned_are_refused() -> None:
    free = keras.Sequential([keras.Input((None, 3)), layers.Conv1D(2, 1)])
    with pytest.raises(TfcompError, match="fixed shape"):
        prune_at_initialization(free, 0.5, SynFlow())
    with pytest.raises(UnsupportedModelError, match="subclassed"):
        prune_at_initialization(Own(), 0.5, Magnitude())


def test_synflow_behind_a_softmax_is_refused() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1), layers.Softmax()])
    with pytest.raises(TfcompError, match="A softmax at the end gives 0"):
        prune_at_initialization(model, 0.5, SynFlow())
