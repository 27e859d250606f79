"""Energy and energy-aware pruning against loops, greedy search and least squares in NumPy."""

from __future__ import annotations

import itertools
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
    Candidates,
    ConstantSparsity,
    EnergyAware,
    EnergyCosts,
    energy_aware,
    estimate_energy,
    find_kernels,
    prune_by_energy,
    shrink,
)
from tfcomp.pruning.energy_aware import restore

rng = np.random.default_rng(7)
IMAGES = rng.normal(size=(24, 8, 8, 3)).astype("float32")


def network() -> keras.Model:
    keras.utils.set_random_seed(5)
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="first")(x)
    x = layers.Conv2D(8, 3, strides=2, name="second")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    model = keras.Model(inputs, layers.Dense(4, name="logits")(layers.Flatten()(x)))
    for weight in model.weights:
        weight.assign(weight + rng.normal(0, 0.1, weight.shape).astype("float32") ** 2)
    return model


def reuse(uses: float) -> tuple[float, float, float]:
    d = min(uses, 16)
    c = min(uses / d, 14)
    return uses / c / d, c, d


def energy_by_hand(macs: int, weights: int, inputs: int, outputs: int) -> dict[str, float]:
    """Dense: the four levels written out, with the costs of the Eyeriss paper."""
    found = {"mac": float(macs), "register_file": 0.0, "array": 0.0, "buffer": 0.0, "dram": 0.0}
    for words in (weights, inputs):
        b, c, d = reuse(macs / words)
        found["dram"] += 200 * words
        found["buffer"] += 6 * words * b
        found["array"] += 2 * words * b * c
        found["register_file"] += 1 * words * b * c * d
    b, c, d = reuse(macs / outputs)
    found["dram"] += 200 * outputs
    found["buffer"] += 6 * outputs * 2 * (b - 1)
    found["array"] += 2 * outputs * b * (c - 1)
    found["register_file"] += outputs * 2 * b * c * (d - 1)
    return found


def test_energy_of_a_convolution_and_a_dense_layer() -> None:
    model = network()
    found = {layer.name: layer for layer in estimate_energy(model).layers}
    sizes = {
        "first": (8 * 8 * 6 * 27, 27 * 6, 8 * 8 * 3, 8 * 8 * 6),
        "second": (3 * 3 * 8 * 54, 54 * 8, 8 * 8 * 6, 3 * 3 * 8),
        "logits": (72 * 4, 72 * 4, 72, 4),
    }
    assert list(found) == list(sizes)
    for name, size in sizes.items():
        expected = energy_by_hand(*size)
        for level, value in expected.items():
            assert getattr(found[name], level) == pytest.approx(value), (name, level)
        assert found[name].total == pytest.approx(sum(expected.values()))


def test_zeros_are_skipped() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, use_bias=False, name="d")])
    kernel = np.ones((4, 8))
    kernel[:, 2:] = 0  # a quarter stays
    model.set_weights([kernel])
    x = np.ones((6, 4), np.float32)
    x[:, 2:] = 0  # half stays
    (layer,) = estimate_energy(model, x).layers
    assert (layer.nonzero, layer.input_density) == (8, 0.5)
    assert layer.mac == 32 / 4 / 2
    assert layer.dram == 200 * (8 + 2 + 8)
    # Weights are used once each, inputs by 8 outputs, sums are of 4 products.
    assert layer.register_file == (32 + 32 + 8 * 2 * 3) / 8
    assert layer.buffer == 6 * (8 * 1 + 2 * 1)
    dense = estimate_energy(model, np.ones((6, 4), np.float32)).layers[0]
    assert dense.total > layer.total


def test_bits_scale_words_and_products() -> None:
    model = network()
    whole, half = estimate_energy(model), estimate_energy(model, weight_bits=8, activation_bits=8)
    for a, b in zip(whole.layers, half.layers, strict=True):
        assert b.mac == pytest.approx(a.mac / 4)
        assert b.dram == pytest.approx(a.dram / 2)
        assert b.register_file == pytest.approx(a.register_file / 2)


def test_costs_are_those_given() -> None:
    costs = EnergyCosts(mac=0, register_file=0, array=0, buffer=0, dram=1)
    found = estimate_energy(network(), costs=costs)
    assert found.layers[2].total == 72 * 4 + 72 + 4


def direct(kernel: np.ndarray, x: np.ndarray, layer: Any) -> np.ndarray:
    """What the layer itself makes of its input, without bias and activation."""
    layer.kernel.assign(kernel)
    return np.asarray(layer(x))


CONVOLUTIONS = [
    (2, {"filters": 4, "kernel_size": 3}),
    (2, {"filters": 4, "kernel_size": (2, 3), "padding": "same", "strides": 2}),
    (2, {"filters": 4, "kernel_size": 3, "padding": "same", "dilation_rate": 2}),
    (2, {"filters": 4, "kernel_size": 3, "groups": 2}),
    (2, {"filters": 6, "kernel_size": (1, 2), "groups": 2, "padding": "same", "strides": (2, 1)}),
    (1, {"filters": 4, "kernel_size": 3, "padding": "causal", "dilation_rate": 2}),
    (1, {"filters": 4, "kernel_size": 4, "padding": "same", "strides": 3}),
    (3, {"filters": 4, "kernel_size": 2, "padding": "same"}),
    (3, {"filters": 4, "kernel_size": (1, 2, 3), "strides": 2}),
]


@pytest.mark.parametrize("rank, arguments", CONVOLUTIONS)
def test_windows_meet_their_weights(rank: int, arguments: dict[str, Any]) -> None:
    """From wrong windows the fit would find other outputs than the layer has."""
    shape = (7, 6, 5)[:rank]
    kind = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
    model = keras.Sequential([keras.Input((*shape, 4)), kind(**arguments, name="c")])
    x = rng.normal(size=(60, *shape, 4)).astype("float32")
    pruned, report = prune_by_energy(model, 0.4, x, rows=100_000)
    kernel = model.get_weights()[0]
    after = pruned.get_weights()[0]
    # The fit in terms of the layer itself: no step along any weight that stays lowers the error.
    layer = kind(**arguments, use_bias=False)
    y = direct_built(layer, x, kernel)
    residual = y - direct(after, x, layer)
    assert (residual**2).sum() / (y**2).sum() == pytest.approx(report.errors[0].tuned, rel=1e-3)
    with tf.GradientTape() as tape:
        cost = tf.reduce_sum((layer(x) - y) ** 2)
    slope = np.asarray(tape.gradient(cost, layer.kernel.value))
    scale = np.abs(slope[after == 0]).max()
    assert np.abs(slope[after != 0]).max() < 1e-3 * scale


def direct_built(layer: Any, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    layer.build(x.shape)
    return direct(kernel, x, layer)


def test_weights_come_back_in_greedy_order() -> None:
    """One at a time, against a search that tries each of them."""
    a, x = rng.normal(size=(1, 9, 3)), rng.normal(size=(40, 1, 9))
    a[0, 4, 1] = 0
    y = (x[:, 0] @ a[0])[None]
    mask = np.abs(a) > 1.2
    expected = mask.copy()
    for _ in range(6):
        errors = {}
        for j, i in itertools.product(range(9), range(3)):
            if not expected[0, j, i] and a[0, j, i]:
                trial = expected[0].copy()
                trial[j, i] = True
                errors[j, i] = np.abs(y[0] - x[:, 0] @ (trial * a[0])).sum()
        expected[(0, *min(errors, key=errors.__getitem__))] = True
    count = int(mask.sum()) + 6
    np.testing.assert_array_equal(restore(mask, a, y, x, count, rounds=6), expected)
    everything = restore(mask, a, y, x, 27, rounds=2)
    np.testing.assert_array_equal(everything, a != 0)


def test_restoring_is_by_outputs_not_by_magnitude() -> None:
    """A large weight behind a faint input goes, a small one behind a strong input comes back."""
    layer = layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.set_weights([np.array([[3.0], [1.0], [0.5], [0.4]])])
    x = rng.normal(size=(200, 4)).astype("float32") * [1, 0.01, 0.01, 5]
    pruned, _ = prune_by_energy(model, 0.5, x.astype("float32"), restored=0.5)
    np.testing.assert_array_equal(pruned.get_weights()[0][:, 0] != 0, [True, False, False, True])
    by_magnitude, _ = prune_by_energy(model, 0.5, x.astype("float32"), restored=0.0)
    kept = by_magnitude.get_weights()[0][:, 0] != 0
    np.testing.assert_array_equal(kept, [True, True, False, False])


def test_what_stays_is_the_least_squares_solution() -> None:
    model = keras.Sequential([keras.Input((12,)), layers.Dense(5, name="d")])
    mixing = rng.normal(size=(12, 12))
    x = (rng.normal(size=(300, 12)) @ mixing).astype("float32")
    pruned, report = prune_by_energy(model, 0.6, x)
    kernel, bias = model.get_weights()
    after, after_bias = pruned.get_weights()
    np.testing.assert_array_equal(after_bias, bias)
    y = x.astype(np.float64) @ kernel
    for i in range(5):
        kept = np.flatnonzero(after[:, i])
        best = np.linalg.lstsq(x[:, kept].astype(np.float64), y[:, i], rcond=None)[0]
        np.testing.assert_allclose(after[kept, i], best, rtol=1e-3, atol=1e-4)
    (error,) = report.errors
    assert error.tuned < error.restored < error.removed
    assert error.ridge == 1e-6


def test_samples_as_few_as_weights_do_not_ruin_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Least squares alone would meet these samples and lose all others."""
    generator = np.random.default_rng(1)
    kernel = generator.normal(size=(40, 6))
    model = keras.Sequential([keras.Input((40,)), layers.Dense(6, use_bias=False)])
    model.set_weights([kernel])
    x = generator.normal(size=(28, 40)).astype("float32")
    fresh = generator.normal(size=(500, 40))

    def errors() -> tuple[float, float]:
        after = prune_by_energy(model, 0.3, x, restored=0.0)[0].get_weights()[0]
        plain = np.where(after != 0, kernel, 0)
        return tuple(((fresh @ (k - kernel)) ** 2).sum() for k in (after, plain))

    fitted, plain = errors()
    assert fitted < 1.2 * plain
    monkeypatch.setattr(energy_aware, "_RIDGES", (1e-6,))
    fitted, plain = errors()
    assert fitted > 3 * plain


def test_directions_without_data_stay_as_trained() -> None:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2, use_bias=False)])
    x = rng.normal(size=(50, 6)).astype("float32")
    x[:, 3:] = 0
    before = model.get_weights()[0]
    pruned, _ = prune_by_energy(model, 0.3, x, restored=0.0)
    after = pruned.get_weights()[0]
    stays = after[3:] != 0
    assert stays.any()
    np.testing.assert_array_equal(after[3:][stays], before[3:][stays])


@pytest.mark.parametrize("sparsity", [0.0, 0.31, 0.5, 0.9])
def test_counts_are_exact_and_the_model_is_left_alone(sparsity: float) -> None:
    model = network()
    before = [weight.copy() for weight in model.get_weights()]
    pruned, report = prune_by_energy(model, sparsity, IMAGES)
    for kernel in find_kernels(pruned)[0]:
        assert kernel.zeros() == int(np.floor(sparsity * kernel.size + 0.5))
    for mine, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, now)
    others = [w for w in pruned.weights if not w.path.endswith("kernel")]
    theirs = [w for w in model.weights if not w.path.endswith("kernel")]
    for one, other in zip(others, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert report.after.total <= report.before.total * (1 + 1e-6)
    assert str(report).startswith("energy ")
    assert report.to_dict()["sparsity"] == report.sparsity


def test_layers_go_by_energy_and_outputs_beat_magnitude() -> None:
    model = network()
    pruned, report = prune_by_energy(model, 0.6, IMAGES)
    energies = {layer.name: layer.total for layer in report.before.layers}
    order = [error.name for error in report.errors]
    assert order == sorted(energies, key=lambda name: -energies[name])
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    for kernel in find_kernels(plain)[0]:
        value = kernel.value()
        least = np.sort(np.abs(value), axis=None)[int(np.floor(0.6 * value.size + 0.5))]
        kernel.variable.assign(np.where(np.abs(value) < least, 0, value))
    fresh = rng.normal(size=IMAGES.shape).astype("float32")
    wanted = model.predict(fresh, verbose=0)
    errors = [((m.predict(fresh, verbose=0) - wanted) ** 2).sum() for m in (pruned, plain)]
    assert errors[0] < errors[1]


def test_zeros_that_were_there_stay() -> None:
    model = network()
    kernel = model.get_layer("second").kernel
    zeros = rng.random(kernel.shape) < 0.7
    kernel.assign(np.where(zeros, 0, kernel))
    pruned, _ = prune_by_energy(model, 0.3, IMAGES)
    after = np.asarray(pruned.get_layer("second").kernel)
    np.testing.assert_array_equal(after == 0, zeros)


def test_training_on_keeps_the_zeros() -> None:
    pruned, report = prune_by_energy(network(), 0.5, IMAGES)
    zeros = [kernel.value() == 0 for kernel in find_kernels(pruned)[0]]
    pruned.compile("adam", "mse")
    pruned.fit(IMAGES, np.ones((24, 4)), verbose=0, callbacks=[PruneWeights.from_zeros()])
    for before, kernel in zip(zeros, find_kernels(pruned)[0], strict=True):
        np.testing.assert_array_equal(kernel.value() == 0, before)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)


def test_shared_layers_see_all_their_calls() -> None:
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    shared = layers.Dense(3, use_bias=False, name="shared")
    model = keras.Model({"a": a, "b": b}, layers.Concatenate()([shared(a), shared(b)]))
    x = {name: rng.normal(size=(80, 6)).astype("float32") for name in ("a", "b")}
    pruned, report = prune_by_energy(model, 0.5, x)
    both = np.concatenate([x["a"], x["b"]]).astype(np.float64)
    y, after = both @ model.get_weights()[0], pruned.get_weights()[0]
    for i in range(3):
        kept = np.flatnonzero(after[:, i])
        best = np.linalg.lstsq(both[:, kept], y[:, i], rcond=None)[0]
        np.testing.assert_allclose(after[kept, i], best, rtol=1e-3, atol=1e-4)
    assert report.before.layers[0].macs == 2 * 18


def test_datasets_and_seeds_give_the_same() -> None:
    model = network()
    data = tf.data.Dataset.from_tensor_slices((IMAGES, np.zeros(24))).batch(7)
    first, second = (prune_by_energy(model, 0.5, of, rows=50)[0] for of in (IMAGES, data))
    other = prune_by_energy(model, 0.5, IMAGES, rows=50, seed=1)[0]
    for one, two in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert any(
        (a != b).any() for a, b in zip(first.get_weights(), other.get_weights(), strict=True)
    )


def test_labels_beside_the_inputs_are_left_out() -> None:
    model = network()
    alone, both = (prune_by_energy(model, 0.5, of)[0] for of in (IMAGES, (IMAGES, np.zeros(24))))
    for one, two in zip(alone.get_weights(), both.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_is_left_alone_is_listed() -> None:
    inputs = keras.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, name="depth")(inputs)
    x = layers.Conv2DTranspose(4, 2, name="up")(x)
    x = layers.Conv2D(4, 1, name="spared")(x)
    x = layers.Dense(3, name="d")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    pruned, report = prune_by_energy(model, 0.5, IMAGES, skip=["spared"])
    assert [kernel.name.split("/")[-2] for kernel in report.kernels] == ["d"]
    reasons = {name.split("/")[-2]: why for name, why in report.skipped.items() if "kernel" in name}
    assert set(reasons) == {"depth", "up", "spared"}
    for name in reasons:
        for one, other in zip(
            pruned.get_layer(name).get_weights(), model.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"restored": 1.5}, "`restored` must be"),
        ({"rounds": 0}, "`rounds` must be"),
        ({"rows": True}, "`rows` must be"),
        ({"data": np.zeros((0, 8, 8, 3))}, "`data` must be"),
        ({"data": np.zeros((2, 8, 9, 3))}, r"inputs of shape \(8, 8, 3\).*Received: \(8, 9, 3\)"),
        ({"data": np.full((2, 8, 8, 3), np.nan)}, "finite"),
        ({"skip": ["first", "second", "logits"]}, "no kernel to prune in .*first"),
        ({"skip": ["frist"]}, "Did you mean 'first'"),
    ],
)
def test_refusals_are_one_line(arguments: dict[str, Any], words: str) -> None:
    given = {"sparsity": 0.5, "data": IMAGES, **arguments}
    with pytest.raises(TfcompError, match=words) as caught:
        prune_by_energy(network(), **given)
    assert "\n" not in str(caught.value)


def test_estimates_refuse_what_cannot_be_told() -> None:
    open_ended = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3, name="c")])
    with pytest.raises(TfcompError, match="'c' cannot be told"):
        estimate_energy(open_ended)
    with pytest.raises(TfcompError, match="weight_bits"):
        estimate_energy(network(), weight_bits=0)
    with pytest.raises(TfcompError, match="`dram` must be a number of at least 0"):
        EnergyCosts(dram=-1)
    with pytest.raises(UnsupportedModelError):
        estimate_energy(keras.Model())
    recurrent = keras.Sequential([keras.Input((5, 3)), layers.LSTM(4, name="r")])
    assert estimate_energy(recurrent).skipped == {"r": "no rule for a LSTM"}


# ---- the criterion


def by_leaving_out(model: keras.Model, layer: Any, x: np.ndarray) -> np.ndarray:
    """What the outputs lose without each weight, one by one, over the outputs; by the layer."""
    clone = type(layer).from_config({**layer.get_config(), "activation": None, "use_bias": False})
    clone.build(x.shape)
    kernel = np.asarray(layer.kernel)
    whole = direct(kernel, x, clone).astype(np.float64)
    lost = np.empty(kernel.shape)
    for place in np.ndindex(*kernel.shape):
        without = kernel.copy()
        without[place] = 0
        lost[place] = np.abs(direct(without, x, clone) - whole).sum()
    return lost / np.abs(whole).sum()


def test_scores_are_what_outputs_lose_over_the_energy_saved() -> None:
    model = network()
    kernel = np.array(model.get_layer("second").kernel)
    kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
    model.get_layer("second").kernel.assign(kernel)
    energy = estimate_energy(model, IMAGES)
    totals = {layer.name: layer for layer in energy.layers}
    scores = EnergyAware(IMAGES).scores(Candidates.of_channels(model))
    for name, given in (("first", model.input), ("second", model.get_layer("first").output)):
        layer = model.get_layer(name)
        x = keras.Model(model.input, given).predict(IMAGES, verbose=0)
        saved = totals[name].total / totals[name].nonzero / energy.total
        expected = by_leaving_out(model, layer, x) / saved
        np.testing.assert_allclose(scores[name], expected, rtol=2e-3, atol=1e-4 * expected.max())


def test_grouped_convolutions_are_scored_in_their_kernels_order() -> None:
    x = keras.Input((6, 6, 4))
    y = layers.Conv2D(6, 3, groups=2, padding="same", name="g")(x)
    model = keras.Model(x, layers.Conv2D(3, 1, name="y")(y))
    data = rng.normal(size=(10, 6, 6, 4)).astype("float32")
    (total,) = (row.total for row in estimate_energy(model, data).layers if row.name == "g")
    whole = estimate_energy(model, data).total
    found = EnergyAware(data).scores(Candidates.of_channels(model))["g"]
    layer = model.get_layer("g")
    expected = by_leaving_out(model, layer, data) * layer.kernel.shape.num_elements()
    np.testing.assert_allclose(found, expected / (total / whole), rtol=2e-3)


def test_layers_of_much_energy_lose_most_where_layers_are_compared() -> None:
    def zeros(costs: EnergyCosts) -> dict[str, float]:
        model = network()
        model.compile(keras.optimizers.SGD(0.0), "mse")
        prune = PruneWeights(
            ConstantSparsity(0.6),
            criterion=EnergyAware(IMAGES, costs=costs),
            scope="global",
            first=True,
            last=True,
        )
        model.fit(IMAGES, np.zeros((24, 4)), verbose=0, callbacks=[prune])
        assert prune.report is not None
        return {row.name.split("/")[-2]: row.sparsity for row in prune.report.kernels}

    # Where only arithmetic costs, convolutions take nearly all; where memory does, Dense too.
    arithmetic = zeros(EnergyCosts(register_file=0, array=0, buffer=0, dram=0))
    memory = zeros(EnergyCosts(mac=0, register_file=0, array=0, buffer=0))
    assert arithmetic["first"] > memory["first"]
    assert arithmetic["logits"] < memory["logits"]


def test_it_is_a_criterion_like_others() -> None:
    model = network()
    small, report = shrink(model, 0.5, "energy_aware", data=IMAGES)
    assert [row.after for row in report.layers] == [3, 4, 4]
    assert report.criterion == "EnergyAware(rows=4000, seed=0)"
    assert small.predict(IMAGES[:2], verbose=0).shape == (2, 4)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    prune = PruneWeights(ConstantSparsity(0.5), unit=NM(2, 4), criterion=EnergyAware(IMAGES))
    model.fit(IMAGES, np.zeros((24, 4)), verbose=0, callbacks=[prune])
    assert prune.report is not None
    assert prune.report.by_units == 0.5


def test_kernels_that_it_cannot_judge_are_told() -> None:
    x = keras.Input((5, 3))
    model = keras.Model(x, layers.Dense(2)(layers.LSTM(4, name="r")(x)))
    with pytest.raises(TfcompError, match=r"convolutions and Dense.*Received: 'r'") as error:
        shrink(model, 0.5, EnergyAware(rng.normal(size=(4, 5, 3))))
    assert "\n" not in str(error.value)
    with pytest.raises(TfcompError, match="`rows` must be"):
        EnergyAware(IMAGES, rows=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EnergyAware(IMAGES, costs={"dram": 50}), "`costs` must be an EnergyCosts"),
        (lambda: estimate_energy(network(), costs=3), "`costs` must be an EnergyCosts"),
        (lambda: prune_by_energy(network(), 0.5, IMAGES, costs=3), "`costs` must be"),
        (lambda: EnergyCosts(dram="a"), "`dram` must be a number of at least 0"),
        (lambda: EnergyAware(IMAGES, seed=-1), "`seed` must be"),
        (lambda: prune_by_energy(network(), 0.5, IMAGES, seed="x"), "`seed` must be"),
        (lambda: shrink(network(), 0.5, EnergyAware(IMAGES.tolist())), "numpy.asarray"),
        (
            lambda: shrink(network(), 0.5, EnergyAware(IMAGES, costs=EnergyCosts(0, 0, 0, 0, 0))),
            "a model that needs energy",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(TfcompError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_inputs_of_any_size_are_told_with_what_to_do() -> None:
    stack = [layers.Conv1D(8, 3), layers.GlobalAveragePooling1D(), layers.Dense(2)]
    model = keras.Sequential([keras.Input((None, 4)), *stack])
    with pytest.raises(TfcompError, match="dynamic: build the model with inputs of"):
        estimate_energy(model)
