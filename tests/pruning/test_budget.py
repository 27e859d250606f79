"""shrink to a budget: kept, and not by more than it takes."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcomp.conversion import convert
from tfcomp.errors import TfcompError
from tfcomp.graph import dependencies, remove_units
from tfcomp.profiling import profile
from tfcomp.pruning import Budget, L1Norm, Random, budget_search, shrink
from tfcomp.pruning.selection import select
from tfcomp.pruning.shrink import importances


def network(width=12):
    x = keras.Input((8, 8, 3))
    a = layers.Conv2D(width, 3, padding="same", name="a")(x)
    b = layers.Conv2D(width, 3, padding="same", activation="relu", name="b")(a)
    c = layers.Conv2D(2 * width, 3, name="c")(layers.Add()([a, b]))
    return keras.Model(x, layers.Dense(5, name="y")(layers.GlobalAveragePooling2D()(c)), name="m")


def macs_by_hand(model):
    """Of the network above: positions of the output times kernel entries."""
    positions = {"a": 64, "b": 64, "c": 36, "y": 1}
    return sum(
        positions[layer.name] * int(np.prod(layer.kernel.shape))
        for layer in model.layers
        if layer.name in positions
    )


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize(
    ("budget", "cost"),
    [
        (Budget(macs=0.5), macs_by_hand),
        (Budget(parameters=0.3), keras.Model.count_params),
        (Budget(macs=60_000), macs_by_hand),
    ],
)
def test_no_fewer_removals_would_do(budget, cost, scope):
    model = network()
    small, report = shrink(model, scope=scope, budget=budget)
    limit = budget.limit * cost(model) if budget.relative else budget.limit
    assert cost(small) <= limit
    assert report.budget.before == cost(model)
    assert report.budget.after == cost(small)
    assert report.budget.limit == limit
    found = dependencies(model)
    importance = importances(model, found, L1Norm())
    less = select(found, importance, report.asked - 1 / found.n_units, scope)
    assert len(less) < report.removed
    assert cost(remove_units(found, less)) > limit
    again, _ = shrink(model, ratio=report.asked, scope=scope)
    assert again.count_params() == small.count_params()
    assert "budget" in report.to_dict()
    assert f"at most {limit:,.0f}" in str(report)


def sequences(width=8):
    x = keras.Input((6, 5))
    y = layers.Bidirectional(layers.LSTM(width, return_sequences=True), name="r")(x)
    y = layers.Dense(width, name="d")(y)
    y = y + layers.MultiHeadAttention(4, 3, value_dim=2, name="mha")(y, y)
    y = layers.TimeDistributed(layers.Dense(width, activation="relu"), name="t")(y)
    y = layers.SeparableConv1D(width, 3, depth_multiplier=2, padding="same", name="s")(y)
    y = layers.Conv1D(width, 3, groups=2, padding="same", name="g")(y)
    y = layers.Conv1DTranspose(width, 3, strides=2, name="up")(layers.BatchNormalization()(y))
    y = layers.GRU(width, name="last")(layers.DepthwiseConv1D(3)(y))
    return keras.Model(x, layers.Dense(3, name="y")(y), name="sequences")


def by_making_every_model(model, budget, scope, round_to):
    """The search as it is meant: halving, with each model made and measured."""
    found = dependencies(model)
    importance = importances(model, found, L1Norm())

    def made(count):
        chosen = select(found, importance, count / found.n_units, scope, round_to)
        return remove_units(found, chosen)

    low, high, limit = -1, found.n_units - 1, budget.allowance(budget.cost(model))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if budget.cost(made(middle)) <= limit else (middle, high)
    return high / found.n_units, made(high)


@pytest.mark.parametrize("make", [network, sequences])
@pytest.mark.parametrize("limit", [{"macs": 0.5}, {"parameters": 0.6}, {"macs": 0.999}])
@pytest.mark.parametrize(("scope", "round_to"), [("local", None), ("global", None), ("global", 4)])
def test_counting_leads_where_making_every_model_does(make, limit, scope, round_to, monkeypatch):
    model, budget = make(), Budget(**limit)
    ratio, expected = by_making_every_model(model, budget, scope, round_to)
    made, right = [], budget_search.remove_units
    monkeypatch.setattr(budget_search, "remove_units", lambda *a: made.append(1) or right(*a))
    small, report = shrink(model, budget=budget, scope=scope, round_to=round_to)
    assert len(made) <= 1
    assert report.asked == ratio
    for a, b in zip(expected.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [network, sequences])
def test_ledger_counts_what_the_smaller_model_has(make):
    found, rng = dependencies(make()), np.random.default_rng(0)
    ledger = budget_search.Ledger(found)
    for _ in range(5):
        units = select(found, rng.random(found.n_units), rng.uniform(0, 0.9), "global")
        small = remove_units(found, units)
        assert ledger.parameters(units) == small.count_params()
        assert ledger.macs(units) == profile(small).macs


def test_a_ledger_that_is_wrong_is_not_trusted(monkeypatch):
    model, budget = network(), Budget(parameters=0.4)
    right = budget_search.Ledger.parameters
    monkeypatch.setattr(
        budget_search.Ledger, "parameters", lambda ledger, units: right(ledger, units) * 1.1
    )
    _, report = shrink(model, budget=budget)
    ratio, small = by_making_every_model(model, budget, "local", None)
    assert (report.asked, report.budget.after) == (ratio, small.count_params())


def test_bytes_need_few_files(monkeypatch):
    # As a file is: in proportion to parameters, rounded up, with a header.
    asked = []

    def cost(budget, model):
        asked.append(model.count_params())
        return 3000 + -(-4 * model.count_params() // 16) * 16 + 40 * (model.count_params() % 3)

    model, budget = network(64), Budget(file_bytes=0.5)
    monkeypatch.setattr(Budget, "cost", cost)
    ratio, _ = by_making_every_model(model, budget, "global", None)
    asked.clear()
    _, report = shrink(model, budget=budget, scope="global")
    assert report.budget.after <= report.budget.limit
    assert abs(report.asked - ratio) <= 2 / report.prunable
    assert len(asked) <= 7


def test_a_model_within_its_budget_stays_whole():
    model = network(4)
    small, report = shrink(model, budget=Budget(parameters=model.count_params()))
    assert report.removed == 0
    assert small.count_params() == model.count_params()


def test_bytes_are_those_of_the_file(tmp_path):
    model = network()
    small, report = shrink(model, budget=Budget(file_bytes=0.6, dtype="float16"), round_to=4)
    path = tmp_path / "small.tflite"
    convert(small, path, dtype="float16")
    assert path.stat().st_size == report.budget.after <= 0.6 * report.budget.before
    assert all(layer.after % 4 == 0 for layer in report.layers if layer.name != "y")


def test_latency_is_measured_on_files(monkeypatch):
    # A clock that goes by the number of parameters: the search is tested, not this machine.
    asked = []

    def cost(budget, model):
        asked.append(model.count_params())
        return model.count_params() / 1000

    monkeypatch.setattr(Budget, "cost", cost)
    small, report = shrink(network(), budget=Budget(latency_ms=2.0))
    assert 1960 <= small.count_params() <= 2000
    assert report.budget.kind == "latency_ms"
    assert len(asked) == len(set(asked)) <= 6


def test_latency_of_a_file_is_a_time():
    assert 0 < Budget(latency_ms=1.0).cost(network(2)) < 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "exactly one"),
        ({"macs": 0.5, "parameters": 0.5}, "Received: macs, parameters"),
        ({"macs": 0}, "above 0"),
        ({"latency_ms": float("nan")}, "above 0"),
        ({"file_bytes": "small"}, "above 0"),
        ({"parameters": True}, "above 0"),
        ({"parameters": 0.5, "dtype": "int9"}, "Received: 'int9'"),
    ],
)
def test_bad_budgets_are_told_in_one_line(arguments, words):
    with pytest.raises(TfcompError, match=words) as error:
        Budget(**arguments)
    assert "\n" not in str(error.value)


def test_what_cannot_be_honoured_is_refused():
    model = network()
    with pytest.raises(TfcompError, match="cannot be shrunk to at most 10 parameters"):
        shrink(model, budget=Budget(parameters=10))
    with pytest.raises(TfcompError, match="takes the place of `ratio`"):
        shrink(model, 0.5, budget=Budget(macs=0.5))
    with pytest.raises(TfcompError, match=r"must be a tfcomp\.pruning\.Budget"):
        shrink(model, budget=0.5)
    x = keras.Input((4,))
    y = layers.Dense(2)(layers.Dense(8)(x))
    opaque = keras.Model(x, layers.Lambda(lambda t: t * 2, name="opaque")(y))
    with pytest.raises(TfcompError, match="opaque"):
        shrink(opaque, budget=Budget(macs=0.5))


def test_a_ratio_for_each_layer():
    model = network()
    small, report = shrink(model, {"a": 0.5, "b": 0.25, "c": 0.5}, criterion=Random())
    widths = {layer.name: layer.after for layer in report.layers}
    # a and b are added up: the smaller of their ratios counts.
    assert widths == {"a": 9, "b": 9, "c": 12, "y": 5}
    assert report.asked == pytest.approx((0.25 * 12 + 0.5 * 24) / 36)
    assert shrink(model, {"a + b": 0.25, "c": 0.5}, criterion=Random())[1] == report
    with pytest.raises(TfcompError, match="Did you mean 'c'"):
        shrink(model, {"cc": 0.5})
    with pytest.raises(TfcompError, match='needs scope="local"'):
        shrink(model, {"c": 0.5}, scope="global")
    with pytest.raises(TfcompError, match=r"Did you mean 0\.5"):
        shrink(model, {"c": 50})
    with pytest.raises(TfcompError, match="'y' is an output of the model"):
        shrink(model, {"c": 0.5, "y": 0.5})
    with pytest.raises(TfcompError, match="by the names of layers"):
        shrink(model, {})
    removed = {layer.name: layer.removed for layer in report.layers}
    assert removed["a"] == removed["b"]
    kept = np.delete(np.asarray(model.get_layer("c").kernel), removed["c"], axis=-1)
    found = np.asarray(small.get_layer("c").kernel)
    np.testing.assert_array_equal(found, np.delete(kept, removed["b"], axis=-2))
    assert small.count_params() < model.count_params()
