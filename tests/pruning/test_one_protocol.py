"""Every criterion in every place: channels scored while training, weights scored in surgery."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from tfcomp.callbacks import PruneWeights
from tfcomp.errors import TfcompError, UnsupportedModelError
from tfcomp.graph import dependencies
from tfcomp.pruning import (
    FPGM,
    NM,
    SNIP,
    ActivationMean,
    ActivationStandardDeviation,
    APoZ,
    BatchNormScale,
    Candidates,
    ConstantSparsity,
    Criterion,
    EnergyAware,
    Filters,
    GraSP,
    HRank,
    L1Norm,
    L2Norm,
    Layers,
    Magnitude,
    Oracle,
    Random,
    RandomWeights,
    SynFlow,
    Taylor,
    find_kernels,
    prune_at_initialization,
    sensitivity,
    shrink,
)

rng = np.random.default_rng(3)
X = rng.normal(size=(24, 8, 8, 3)).astype("float32")
Y = rng.normal(size=(24, 4)).astype("float32")

OF_CHANNELS: dict[str, Any] = {
    "l1": L1Norm,
    "l2": L2Norm,
    "fpgm": FPGM,
    "random": lambda: Random(5),
    "scale": BatchNormScale,
    "apoz": lambda: APoZ(X),
    "mean": lambda: ActivationMean(X),
    "deviation": lambda: ActivationStandardDeviation(X),
    "hrank": lambda: HRank(X),
    "taylor": lambda: Taylor("mse", (X, Y)),
    "oracle": lambda: Oracle("mse", (X, Y)),
}
OF_WEIGHTS: dict[str, Any] = {
    "magnitude": Magnitude,
    "random": lambda: RandomWeights(5),
    "snip": lambda: SNIP((X, Y), "mse"),
    "grasp": lambda: GraSP((X, Y), "mse"),
    "synflow": SynFlow,
    "energy": lambda: EnergyAware(X),
}


def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    x = y = keras.Input((8, 8, 3))
    for name, filters in (("a", 6), ("b", 8), ("c", 4)):
        y = layers.Conv2D(filters, 3, padding="same", name=name)(y)
        y = layers.ReLU()(layers.BatchNormalization(name=f"{name}_norm")(y))
    model = keras.Model(x, layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(y)))
    for weight in model.weights:
        if weight.name != "moving_variance":
            weight.assign(rng.normal(size=weight.shape))
    return model


def train(model: keras.Model, prune: PruneWeights, rate: float = 0.0) -> None:
    model.compile(keras.optimizers.SGD(rate), "mse")
    model.fit(X, Y, batch_size=12, epochs=1, verbose=0, callbacks=[prune], shuffle=False)


def empty(model: keras.Model, name: str) -> list[int]:
    kernel = np.asarray(model.get_layer(name).kernel)
    return np.flatnonzero((kernel == 0).all(axis=(0, 1, 2))).tolist()


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", OF_CHANNELS)
def test_filters_of_lowest_score_go_while_training(name: str, scope: Any) -> None:
    model = network()
    criterion = OF_CHANNELS[name]()
    # What `shrink` would be told of the same model.
    scores = criterion.scores(Candidates.of_channels(model))
    assert list(scores) == ["a", "b", "c"]
    prune = PruneWeights(
        ConstantSparsity(0.5), unit=Filters(), criterion=criterion, scope=scope, first=True
    )
    train(model, prune)
    assert prune.report is not None
    if scope == "local":
        for layer in scores:
            order = np.argsort(scores[layer], kind="stable")
            assert empty(model, layer) == sorted(order[: len(order) // 2].tolist())
        assert prune.report.sparsity == 0.5
        return
    sizes = {n: math.prod(model.get_layer(n).kernel.shape[:-1]) for n in scores}
    entries = [
        (value / (1 if criterion.comparable else np.abs(scores[layer]).mean()), layer, index)
        for layer in scores
        for index, value in enumerate(scores[layer])
    ]
    entries.sort(key=lambda entry: entry[0])  # stable: ties by layer and index
    wanted = math.floor(0.5 * sum(sizes[layer] for _, layer, _ in entries) + 0.5)
    gone, removed = 0, {layer: [] for layer in scores}
    for _, layer, index in entries:
        # As many as come nearest.
        if abs(gone + sizes[layer] - wanted) > abs(gone - wanted):
            break
        gone += sizes[layer]
        removed[layer].append(index)
    assert {layer: empty(model, layer) for layer in scores} == {
        layer: sorted(indices) for layer, indices in removed.items()
    }


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_scores_of_weights_are_averaged_over_a_filter(name: str) -> None:
    model = network()
    found = OF_WEIGHTS[name]().scores(Candidates.of_channels(model))
    small, report = shrink(model, 0.5, OF_WEIGHTS[name]())
    gone = {row.name: list(row.removed) for row in report.layers}
    for layer, scores in found.items():
        assert scores.shape == model.get_layer(layer).kernel.shape
        means = scores.astype(np.float64).mean(axis=(0, 1, 2))
        expected = np.argsort(means, kind="stable")[: len(means) // 2]
        assert gone[layer] == sorted(expected.tolist())
    assert small.get_layer("b").filters == 4


def test_a_filter_that_is_gone_is_what_shrink_cuts_first() -> None:
    model = network()
    train(model, PruneWeights(ConstantSparsity(0.5), unit=Filters(), criterion=FPGM()), rate=1e-3)
    zeros = empty(model, "b")
    assert len(zeros) == 4
    _, report = shrink(model, 0.5, "l1", spare=["a", "c"])
    assert [list(row.removed) for row in report.layers if row.name == "b"] == [zeros]


def test_units_of_a_recurrent_layer_go_in_all_gates() -> None:
    x = keras.Input((5, 3))
    y = layers.LSTM(6, name="r", return_sequences=True)(x)
    model = keras.Model(x, layers.Dense(2, name="y")(layers.Flatten()(y)))
    data = rng.normal(size=(16, 5, 3)).astype("float32")
    scores = ActivationMean(data).scores(Candidates.of_channels(model))["r"]
    paths = [kernel.name for kernel in find_kernels(model)[0]]
    skip = [path for path in paths if "recurrent" in path or path.startswith("y")]
    pruned, _ = prune_at_initialization(
        model, 0.5, ActivationMean(data), unit=Filters(), scope="local", skip=skip
    )
    kernel = np.asarray(pruned.get_layer("r").cell.kernel).reshape(3, 4, 6)
    gone = np.argsort(scores, kind="stable")[:3]
    # Of equal scores the first columns go: the gates are in front of each other.
    columns = (kernel == 0).all(axis=0)
    assert set(np.flatnonzero(columns.any(axis=0)).tolist()) == set(gone.tolist())
    assert columns[:, gone].all()


def test_whole_layers_by_channels() -> None:
    model = network()
    means = {n: s.mean() for n, s in L1Norm().scores(Candidates.of_channels(model)).items()}
    lowest = min(means, key=lambda name: means[name])
    share = math.prod(model.get_layer(lowest).kernel.shape) / 882
    prune = PruneWeights(
        ConstantSparsity(share), unit=Layers(), criterion=ByNorm(), scope="global", first=True
    )
    with pytest.warns(UserWarning, match="no way leads"):
        train(model, prune)
    whole = {name: len(empty(model, name)) == model.get_layer(name).filters for name in means}
    assert [name for name, gone in whole.items() if gone] == [lowest]


class ByNorm(L1Norm):
    """The same, compared as it is."""

    comparable = True


class Own(Criterion):
    def scores(self, candidates: Candidates) -> Any:
        return {name: kernel.filters()[:, 0] ** 2 for name, kernel in candidates.items()}


def test_one_of_ones_own_in_all_places() -> None:
    model = network()
    squares = {n: np.asarray(model.get_layer(n).kernel)[0, 0, 0] ** 2 for n in "abc"}
    expected = {n: sorted(np.argsort(s, kind="stable")[: len(s) // 2]) for n, s in squares.items()}
    _, report = shrink(model, 0.5, Own())
    assert {row.name: list(row.removed) for row in report.layers if row.removed} == expected
    pruned, _ = prune_at_initialization(
        model, 0.5, Own(), unit=Filters(), scope="local", skip=["logits"]
    )
    assert {name: empty(pruned, name) for name in "abc"} == expected
    table = sensitivity(
        model, lambda m: m.count_params(), unit="channels", sparsities=[0.5], criterion=Own()
    )
    assert set(table.scores) == {"a", "b", "c"}
    train(model, PruneWeights(ConstantSparsity(0.5), unit=Filters(), criterion=Own(), first=True))
    assert {name: empty(model, name) for name in "abc"} == expected


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layers.Dense(6, "relu", name="one"), layers.Dense(4, name="two")

    def call(self, x: Any) -> Any:
        return self.two(self.one(keras.ops.mean(x, axis=(1, 2))))


def test_subclassed_models_take_criteria_on_weights_and_filters() -> None:
    model = Subclassed()
    model(X[:1])
    prune = PruneWeights(
        ConstantSparsity(0.5), unit=Filters(), criterion=FPGM(), overrides={"two": 0.25}
    )
    train(model, prune)
    assert (np.asarray(model.one.kernel) == 0).all(axis=0).sum() == 3
    assert (np.asarray(model.two.kernel) == 0).all(axis=0).sum() == 1
    with pytest.raises(UnsupportedModelError, match="subclassed") as error:
        train(model, PruneWeights(ConstantSparsity(0.75), unit=Filters(), criterion=HRank(X)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("criterion", [L1Norm(), Taylor("mse", (X, Y)), Own()])
@pytest.mark.parametrize("unit", [None, NM(2, 4)])
def test_channels_have_no_scores_for_single_weights(criterion: Criterion, unit: Any) -> None:
    with pytest.raises(TfcompError, match="whole filters") as error:
        train(network(), PruneWeights(ConstantSparsity(0.5), criterion=criterion, unit=unit))
    assert "\n" not in str(error.value)
    with pytest.raises(TfcompError, match="whole filters"):
        prune_at_initialization(network(), 0.5, criterion, unit=unit)


def test_a_unit_that_does_not_fit_is_refused_before_training() -> None:
    prune = PruneWeights(ConstantSparsity(0.5, begin_step=1000), criterion=FPGM())
    with pytest.raises(TfcompError, match="whole filters"):
        train(network(), prune)


def test_kernels_without_channels_of_their_own_are_told() -> None:
    x = keras.Input((8, 8, 3))
    y = layers.SeparableConv2D(4, 3, activation="relu", name="s")(x)
    model = keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling2D()(y)))
    arguments: Any = {"unit": Filters(), "criterion": APoZ(X), "first": True}
    with pytest.raises(TfcompError, match=r"'s/depthwise_kernel'.*Received: none") as error:
        train(model, PruneWeights(ConstantSparsity(0.5), depthwise=True, **arguments))
    assert "\n" not in str(error.value)
    prune = PruneWeights(ConstantSparsity(0.5), **arguments)
    train(model, prune)
    assert prune.report is not None
    assert prune.report.sparsity == 0.5


@pytest.mark.parametrize(
    "bad", [[1, [2, 3]], "scores", np.array(["a"] * 6), np.ones(6) * 1j, np.ones(6, object), 3.0]
)
def test_what_is_no_array_of_scores_is_told_in_one_line(bad: Any) -> None:
    class Bad(Criterion):
        def scores(self, candidates: Candidates) -> Any:
            return dict.fromkeys(candidates, bad)

    model = network()
    calls: list[Any] = [
        lambda: shrink(model, 0.5, Bad()),
        lambda: train(model, PruneWeights(ConstantSparsity(0.5), criterion=Bad())),
        lambda: prune_at_initialization(model, 0.5, Bad()),
    ]
    for call in calls:
        with pytest.raises(TfcompError, match=r"Bad\(\) must give '\w+") as error:
            call()
        assert "\n" not in str(error.value)
    assert all(w.constraint is None for w in model.trainable_weights)  # no mask is left


def test_masks_of_a_fit_that_was_interrupted_are_not_kept() -> None:
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    model = network()
    before = model.get_weights()
    model.compile("sgd", "mse")
    prune = PruneWeights(ConstantSparsity(0.5), first=True, last=True)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, verbose=0, callbacks=[prune, Stop()])
    model.set_weights(before)
    train(model, PruneWeights(ConstantSparsity(0.25), skip=["a"], last=True), rate=1e-3)
    assert (np.asarray(model.get_layer("a").kernel) != 0).all()
    assert all(w.constraint is None for w in model.trainable_weights)


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
def test_embeddings_are_scored_by_weights_too(name: str) -> None:
    tokens = rng.integers(0, 9, (16, 4)).astype("int32")
    stack = [layers.Embedding(9, 8, name="e"), layers.GlobalAveragePooling1D(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,), dtype="int32"), *stack])
    data = (tokens, rng.normal(size=(16, 3)).astype("float32"))
    made: dict[str, Any] = {
        "snip": SNIP(data, "mse"),
        "grasp": GraSP(data, "mse"),
        "synflow": SynFlow(),
    }
    criterion = made[name]
    scores = criterion.scores(Candidates.of_channels(model))["e"]
    _, report = shrink(model, 0.5, criterion)
    expected = np.argsort(scores.mean(axis=0), kind="stable")[:4]
    assert list(report.layers[0].removed) == sorted(expected.tolist())


@pytest.mark.parametrize("kind", [Taylor, Oracle])
def test_layers_of_which_states_alone_are_read_are_told(kind: Any) -> None:
    x = keras.Input((6, 5))
    _, _, state = layers.LSTM(8, return_state=True, name="encoder")(x)
    model = keras.Model(x, layers.Dense(3)(state))
    data = (rng.normal(size=(8, 6, 5)), rng.normal(size=(8, 3)))
    with pytest.raises(TfcompError, match="'encoder', of which states are read alone") as error:
        shrink(model, 0.4, kind("mse", data))
    assert "\n" not in str(error.value)


def test_scores_of_two_networks_are_refused() -> None:
    found = Candidates.of_kernels(network())
    assert found.producers.keys() == {"a", "b", "c", "logits"}
    assert found.graph.name == found.model.name
    assert list(Candidates.of_channels(network(), dependencies(network(), ["b"]))) == ["a", "c"]
