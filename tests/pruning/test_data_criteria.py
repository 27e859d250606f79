"""Criteria that look at data against NumPy, finite differences, and the true change of the cost."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import stats

from tfcomp.errors import TfcompError
from tfcomp.graph import dependencies
from tfcomp.pruning import (
    ActivationMean,
    ActivationStandardDeviation,
    APoZ,
    Candidates,
    HRank,
    L1Norm,
    Oracle,
    Random,
    Taylor,
    shrink,
)

rng = np.random.default_rng(2)
X = rng.normal(size=(7, 6, 6, 2)).astype("float32")
Y = rng.integers(0, 3, size=7)


def randomise(model: keras.Model, seed: int = 0) -> keras.Model:
    """Every weight and every statistic."""
    weights = np.random.default_rng(seed)
    for variable in model.weights:
        value = weights.normal(size=variable.shape) * 0.5
        variable.assign(np.abs(value) + 0.1 if "variance" in variable.name else value)
    return model


def network() -> keras.Model:
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(4, 3, padding="same", name="plain")(x)
    y = layers.ReLU(name="plain_relu")(layers.BatchNormalization(name="bn")(y))
    z = layers.Conv2D(4, 3, padding="same", activation="relu", name="inner")(y)
    y = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([y, z]))
    y = layers.Flatten()(layers.AveragePooling2D(3)(y))
    y = layers.Dense(5, activation="elu", name="hidden")(y)
    return randomise(keras.Model(x, layers.Dense(3, name="logits")(y), name="m"))


def values(model: keras.Model, layer: str) -> np.ndarray:
    """What a layer gives, by Keras alone, as (values, channels)."""
    found = keras.Model(model.input, model.get_layer(layer).output).predict(X, verbose=0)
    return np.asarray(found, np.float64).reshape(-1, found.shape[-1])


# Where the channels of each layer are read, an addition followed where it is the only reader.
READ = {"plain": "plain_relu", "inner": "inner", "hidden": "hidden"}
FORMULAS: dict[type, Any] = {
    APoZ: lambda v: (v != 0).mean(axis=0),
    ActivationMean: lambda v: np.abs(v).mean(axis=0),
    ActivationStandardDeviation: lambda v: v.std(axis=0),
}


@pytest.mark.parametrize("criterion", FORMULAS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("form", ["array", "pair", "dataset", "uneven"])
def test_activation_statistics(criterion: Any, form: str) -> None:
    model = network()
    data: Any = {
        "array": X,
        "pair": (X, Y),
        "dataset": tf.data.Dataset.from_tensor_slices((X, Y)).batch(3),
        "uneven": tf.data.Dataset.from_tensor_slices(X).batch(2),
    }[form]
    spare = ["hidden"] if criterion is APoZ else []  # an ELU is never zero
    scores = criterion(data).scores(Candidates.of_channels(model, dependencies(model, spare)))
    for name in ("plain", "inner"):
        expected = FORMULAS[criterion](values(model, READ[name]))
        np.testing.assert_allclose(scores[name], expected, rtol=1e-5, atol=1e-7)
    if not spare:
        expected = FORMULAS[criterion](values(model, "hidden"))
        np.testing.assert_allclose(scores["hidden"], expected, rtol=1e-5)
    assert "logits" not in scores  # an output is never cut


def test_the_map_behind_an_addition() -> None:
    x = keras.Input((6, 6, 2))
    trunk = layers.Conv2D(3, 1, name="trunk")(x)
    branch = layers.Conv2D(3, 3, padding="same", name="branch")(x)
    y = layers.ReLU(name="relu")(layers.Add()([trunk, branch]))
    model = randomise(keras.Model(x, layers.Dense(2)(layers.Flatten()(y))))
    scores = ActivationMean(X).scores(Candidates.of_channels(model))
    expected = np.abs(values(model, "relu")).mean(axis=0)
    np.testing.assert_allclose(scores["trunk"], expected, rtol=1e-5)
    np.testing.assert_allclose(scores["branch"], expected, rtol=1e-5)


def test_hrank() -> None:
    model = network()
    scores = HRank(X, batch_size=3).scores(Candidates.of_channels(model))
    for name in ("plain", "inner"):
        maps = values(model, READ[name]).reshape(7, 6, 6, 4)
        ranks = np.zeros((7, 4))
        for sample in range(7):
            for channel in range(4):
                s = np.linalg.svd(maps[sample, :, :, channel], compute_uv=False)
                ranks[sample, channel] = (s > s[0] * 6 * np.finfo(np.float32).eps).sum()
        np.testing.assert_allclose(scores[name], ranks.mean(axis=0))
    expected = (values(model, "hidden") != 0).mean(axis=0)
    np.testing.assert_allclose(scores["hidden"], expected)


def cross_entropy(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    high = logits.max(axis=1, keepdims=True)
    log_z = high[:, 0] + np.log(np.exp(logits - high).sum(axis=1))
    return log_z - logits[np.arange(len(Y)), Y]


def tail(model: keras.Model) -> Any:
    """From what `plain_relu` gives to the cost of each sample, in NumPy's float64."""
    inner, hidden, logits = (model.get_layer(n) for n in ("inner", "hidden", "logits"))
    k, b = (np.asarray(w, np.float64) for w in (inner.kernel, inner.bias))

    def cost(h: np.ndarray) -> np.ndarray:
        padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
        z = sum(padded[:, i : i + 6, j : j + 6] @ k[i, j] for i in range(3) for j in range(3)) + b
        y = np.maximum(h + np.maximum(z, 0), 0)
        flat = y.reshape(7, 2, 3, 2, 3, 4).mean(axis=(2, 4)).reshape(7, -1)
        y = flat @ np.asarray(hidden.kernel, np.float64) + np.asarray(hidden.bias, np.float64)
        y = np.where(y > 0, y, np.expm1(y))
        return cross_entropy(
            y @ np.asarray(logits.kernel, np.float64) + np.asarray(logits.bias, np.float64)
        )

    return cost


@pytest.mark.parametrize("weight", [0.0, 1e-3])
def test_taylor_against_finite_differences(weight: float) -> None:
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    criterion = Taylor(loss, (X, Y), flops_weight=weight, batch_size=3)
    scores = criterion.scores(Candidates.of_channels(model))
    cost = tail(model)
    h = values(model, "plain_relu").reshape(7, 6, 6, 4)
    np.testing.assert_allclose(cost(h), cross_entropy(model.predict(X, verbose=0)), rtol=1e-5)
    change = np.zeros((7, 4))
    for i, j, c in np.ndindex(6, 6, 4):
        step = np.zeros_like(h)
        step[:, i, j, c] = 1e-6
        slope = (cost(h + step) - cost(h - step)) / 2e-6
        change[:, c] += slope * h[:, i, j, c] / 36
    theta = np.abs(change).mean(axis=0)
    theta /= np.sqrt((theta**2).sum())
    # The convolution: 36 places, 9·2 weights for each channel, 2 operations each.
    expected = theta - weight * 36 * 9 * 2 * 2 / 1e6
    np.testing.assert_allclose(scores["plain"], expected, rtol=1e-4)


@pytest.mark.parametrize("loss", ["mean", "each", "name"])
def test_losses_of_all_forms_agree(loss: str) -> None:
    model = network()
    one_hot = np.eye(3, dtype=np.float32)[Y]
    forms: dict[str, Any] = {
        "mean": lambda y, p: tf.reduce_mean(tf.square(y - p)),
        "each": lambda y, p: tf.reduce_mean(tf.square(y - p), axis=-1),
        "name": "mse",
    }
    channels = Candidates.of_channels(model)
    found = Taylor(forms[loss], (X, one_hot)).scores(channels)
    expected = Taylor(keras.losses.MeanSquaredError(), (X, one_hot)).scores(channels)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-7)


def test_the_oracle_is_the_true_change() -> None:
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    scores = Oracle(loss, (X, Y), batch_size=4).scores(Candidates.of_channels(model))
    before = cross_entropy(model.predict(X, verbose=0)).mean()
    cost, h = tail(model), values(model, "plain_relu").reshape(7, 6, 6, 4)
    for channel in range(4):
        without = h.copy()
        without[..., channel] = 0
        expected = abs(cost(without).mean() - before)
        np.testing.assert_allclose(scores["plain"][channel], expected, rtol=1e-3, atol=1e-6)
    start = model.get_weights()
    for channel in range(4):  # silenced by its own weights
        kernel, bias = start[6].copy(), start[7].copy()
        assert kernel.shape == (3, 3, 4, 4)
        kernel[..., channel], bias[channel] = 0, 0
        model.get_layer("inner").set_weights([kernel, bias])
        expected = abs(cross_entropy(model.predict(X, verbose=0)).mean() - before)
        np.testing.assert_allclose(scores["inner"][channel], expected, rtol=1e-3, atol=1e-6)


def trained(seed: int = 1) -> tuple[keras.Model, Any]:
    """A small network that has learned to tell four patterns apart."""
    keras.utils.set_random_seed(seed)
    made = np.random.default_rng(seed)
    patterns = made.normal(size=(4, 8, 8, 1))
    y = made.integers(0, 4, 512)
    x = (patterns[y] + made.normal(size=(512, 8, 8, 1))).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu", name="a"),
            layers.Conv2D(24, 3, activation="relu", name="b"),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss, metrics=["accuracy"], jit_compile=False)
    model.fit(x, y, batch_size=32, epochs=5, verbose=0)
    return model, (x[:256], y[:256])


def test_taylor_ranks_as_the_oracle_does() -> None:
    """Spearman's correlation by layer, as in the paper, where Taylor is ahead of norms."""
    found: dict[str, list[float]] = {"taylor": [], "l1": [], "noise": []}
    for seed in range(3):
        model, data = trained(seed)
        graph = Candidates.of_channels(model)
        truth = Oracle(model.loss, data, batch_size=256).scores(graph)
        scores = {
            "taylor": Taylor(model.loss, data, batch_size=256).scores(graph),
            "l1": L1Norm().scores(graph),
            "noise": Random(seed).scores(graph),
        }
        for name, of_layer in scores.items():
            for layer in ("a", "b"):
                found[name].append(stats.spearmanr(of_layer[layer], truth[layer]).statistic)
    means = {name: np.mean(values) for name, values in found.items()}
    assert means["taylor"] > 0.8
    assert means["taylor"] > means["l1"] > means["noise"]


# ---- in shrink


SAYING = ["apoz", "activation_mean", "activation_standard_deviation", "hrank", "taylor", "oracle"]
NAMES = [*SAYING, "energy_aware"]


@pytest.mark.parametrize("name", NAMES)
def test_criteria_by_name(name: str) -> None:
    model, (x, y) = trained()
    before = model.get_weights()
    small, report = shrink(model, 0.5, name, data=(x[:32], y[:32]))
    assert {row.name: row.after for row in report.layers}["a"] == 8
    assert small.predict(x[:4], verbose=0).shape == (4, 4)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_channels_that_say_nothing_go() -> None:
    model, (x, y) = trained()
    kernel, bias = model.get_layer("a").get_weights()
    dead = [1, 5, 6, 13]
    bias[dead] = -100.0  # large, and never above zero
    model.get_layer("a").set_weights([kernel, bias])
    expected = model.predict(x, verbose=0)
    for name in SAYING:
        ratio = {"a": 0.25}
        small, _ = shrink(model, ratio, name, data=(x[:64], y[:64]))
        np.testing.assert_allclose(small.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("criterion", "options", "message"),
    [
        ("apoz", {}, "expects `data`"),
        ("l1", {"data": X}, "Leave `data` out"),
        (APoZ(X), {"data": X}, "Leave `data` out"),
        ("taylor", {"data": (X, Y)}, "compiled with a loss"),
        ("hrank", {"data": X[0]}, "axes"),
        ("hrank", {"data": X[:0]}, "of one length"),
        ("appoz", {"data": X}, "Did you mean 'apoz'"),
    ],
)
def test_refusals(criterion: Any, options: Any, message: str) -> None:
    with pytest.raises(TfcompError, match=message) as error:
        shrink(network(), 0.5, criterion, **options)
    assert "\n" not in str(error.value)


def test_taylor_needs_labels_and_a_loss() -> None:
    with pytest.raises(TfcompError, match="inputs alone"):
        Taylor("mse", X).scores(Candidates.of_channels(network()))
    with pytest.raises(TfcompError, match="`loss` must be"):
        Taylor("no such loss", (X, Y))
    with pytest.raises(TfcompError, match="flops_weight"):
        Taylor("mse", (X, Y), flops_weight=-1.0)


CROSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize("weight", [0.0, 1e-3])
def test_a_cost_that_no_channel_changes_is_refused(weight: float) -> None:
    constant = Taylor(lambda labels, predictions: tf.reduce_mean(labels), (X, Y), weight)
    with pytest.raises(TfcompError, match="a cost that changes with the feature maps"):
        constant.scores(Candidates.of_channels(network()))


@pytest.mark.parametrize("kind", [Taylor, Oracle])
@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        ("mse", np.zeros((7, 5)), "they refuse: .*Dimensions must be equal"),
        (CROSS, Y + 9, "they refuse: Received a label value of"),
        ("mse", np.full((7, 3), np.nan), "`data` must be finite numbers"),
        ("mse", np.array([["a", "b", "c"]] * 7), "they refuse"),
        (lambda y, p: 1 / 0, Y, "they refuse: .*division by zero"),
    ],
)
def test_labels_that_a_loss_does_not_take(kind: Any, loss: Any, labels: Any, message: str) -> None:
    with pytest.raises(TfcompError, match=message) as error:
        kind(loss, (X, labels)).scores(Candidates.of_channels(network()))
    assert "\n" not in str(error.value)


def test_data_without_an_end_are_refused() -> None:
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat()
    with pytest.raises(TfcompError, match="repeats for ever"):
        Taylor(CROSS, data).scores(Candidates.of_channels(network()))


def test_several_outputs_need_one_cost_of_all() -> None:
    x = keras.Input((6, 6, 2))
    y = layers.Flatten()(layers.Conv2D(4, 3, name="c")(x))
    model = keras.Model(x, [layers.Dense(3)(y), layers.Dense(2)(y)])
    labels = (rng.normal(size=(7, 3)), rng.normal(size=(7, 2)))

    def both(y: Any, found: Any) -> Any:
        parts = [keras.ops.mean((p - t) ** 2, axis=-1) for t, p in zip(y, found, strict=True)]
        return parts[0] + parts[1]

    with pytest.raises(TfcompError, match="a loss for one output, and 2 outputs"):
        shrink(model, 0.5, Taylor("mse", (X, labels)))
    with pytest.raises(TfcompError, match="2 of them, one for each output"):
        Taylor(["mse", "mse"], (X, labels))  # type: ignore[arg-type]
    scores = [
        kind(both, (X, labels)).scores(Candidates.of_channels(model))["c"]
        for kind in (Taylor, Oracle)
    ]
    assert all((score > 0).all() for score in scores)


def test_a_list_for_several_inputs_is_no_pair_with_labels() -> None:
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    y = layers.Dense(5, "relu", name="d")(layers.Concatenate()([a, b]))
    model = keras.Model([a, b], layers.Dense(2)(y))
    x = [rng.normal(size=(9, 4)).astype("float32"), rng.normal(size=(9, 3)).astype("float32")]
    found = [
        ActivationMean(data).scores(Candidates.of_channels(model))["d"]
        for data in (x, (x, np.zeros(9)), {"a": x[0], "b": x[1]})
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_apoz_without_a_relu_is_refused() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2)])
    with pytest.raises(TfcompError, match="expects activations of which some are zero"):
        APoZ(rng.normal(size=(5, 4))).scores(Candidates.of_channels(model))


@pytest.mark.parametrize(
    "attention",
    [layers.MultiHeadAttention(4, 2), layers.GroupQueryAttention(2, 8, 4, name="grouped")],
)
def test_heads_are_no_channels_of_an_output(attention: Any) -> None:
    x = keras.Input((5, 8))
    y = attention(x, x)
    model = keras.Model(x, layers.Dense(2)(layers.Flatten()(y)))
    data = rng.normal(size=(3, 5, 8)).astype("float32")
    with pytest.raises(TfcompError, match="Spare it"):
        shrink(model, 0.5, "activation_mean", data=data)


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_units_of_recurrent_layers(kind: Any) -> None:
    x = keras.Input((5, 3))
    y = kind(6, return_sequences=True, name="r")(x)
    model = keras.Model(x, layers.Dense(2)(layers.Flatten()(y)))
    data = rng.normal(size=(9, 5, 3)).astype("float32")
    scores = ActivationMean(data).scores(Candidates.of_channels(model))["r"]
    hidden = keras.Model(x, y).predict(data, verbose=0)
    np.testing.assert_allclose(scores, np.abs(hidden).mean(axis=(0, 1)), rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small, _ = shrink(model, 0.5, "activation_mean", data=data)
    assert small.get_layer("r").units == 3


@pytest.mark.parametrize("shape", [(4, 9, 9, 3), (4, 2, 2, 3), (4, 8, 8, 1)])
@pytest.mark.parametrize("name", ["apoz", "hrank"])
def test_data_of_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    convolution = layers.Conv2D(4, 3, activation="relu")
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), convolution, layers.Flatten(), layers.Dense(2)]
    )
    with pytest.raises(TfcompError, match=r"inputs of shape \(8, 8, 3\).*Received: \(") as caught:
        shrink(model, criterion=name, data=np.zeros(shape))
    assert "\n" not in str(caught.value)


def test_sizes_that_a_model_leaves_open_are_free() -> None:
    convolution = layers.Conv2D(4, 3, activation="relu")
    model = keras.Sequential(
        [keras.Input((None, None, 3)), convolution, layers.GlobalMaxPooling2D(), layers.Dense(2)]
    )
    images = np.random.default_rng(0).normal(size=(4, 9, 7, 3))
    assert shrink(model, criterion="hrank", data=images)[1].removed == 2


@pytest.mark.parametrize("name", ["apoz", "hrank"])
def test_data_that_are_not_finite_are_told(name: str) -> None:
    model = network()
    images = np.full((2, *model.input_shape[1:]), np.nan)
    with pytest.raises(TfcompError, match="`data` must be finite numbers"):
        shrink(model, criterion=name, data=images)


def test_maps_that_are_not_finite_have_no_rank() -> None:
    model = network()
    model.set_weights([np.full(w.shape, np.nan) for w in model.get_weights()])
    images = np.ones((2, *model.input_shape[1:]))
    with pytest.raises(TfcompError, match="HRank expects finite feature maps"):
        shrink(model, criterion="hrank", data=images)


def test_data_in_place_of_the_loss_is_not_printed() -> None:
    with pytest.raises(TfcompError, match="Received: 'tuple'") as caught:
        Taylor((np.zeros((50, 50)), np.zeros(50)), "mse")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["apoz", "activation_mean", "hrank", "taylor", "oracle"])
def test_channels_in_front_score_as_channels_behind(name: str) -> None:
    """As many places along the width as there are channels: axes that are mixed up stay unseen."""

    def model(data_format: str, axis: int) -> keras.Model:
        x = y = keras.Input((7, 6, 3) if axis == -1 else (3, 7, 6))
        for index in range(2):
            y = layers.Conv2D(
                6, 3, padding="same", use_bias=False, data_format=data_format, name=f"c{index}"
            )(y)
            y = layers.ReLU()(layers.BatchNormalization(axis=axis)(y))
        y = layers.Flatten(data_format=data_format)(y)
        return keras.Model(x, layers.Dense(2, name="logits")(y))

    behind, before = model("channels_last", -1), model("channels_first", 1)
    before.set_weights(behind.get_weights())
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(5, 7, 6, 3)).astype("float32"), np.ones((5, 2), "float32")
    found = []
    for network, images in ((behind, x), (before, x.transpose(0, 3, 1, 2))):
        made = {
            "apoz": lambda d: APoZ(d),
            "activation_mean": lambda d: ActivationMean(d),
            "hrank": lambda d: HRank(d),
            "taylor": lambda d: Taylor("mse", d),
            "oracle": lambda d: Oracle("mse", d),
        }[name]((images, y))
        found.append(made.scores(Candidates.of_channels(network)))
    for layer in ("c0", "c1"):
        assert np.ptp(found[0][layer]) > 0 or name == "hrank"
        np.testing.assert_allclose(found[1][layer], found[0][layer], rtol=1e-4, atol=1e-7)
