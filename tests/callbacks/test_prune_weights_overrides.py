"""PruneWeights with overrides by patterns of names, and what is spared without them."""

from __future__ import annotations

import json
import math
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from tests.callbacks.convolutional_networks import X, everywhere, fit, kernels, network, obeying
from tfcomp.callbacks import PruneWeights
from tfcomp.errors import TfcompError
from tfcomp.pruning import (
    NM,
    ConstantSparsity,
    IterativeSparsity,
    PolynomialDecay,
    Weights,
)

# The first kernel has three inputs, so that its groups of four are short.
pytestmark = pytest.mark.usefixtures("strict", "short_groups")

rng = np.random.default_rng(0)


def shares_of_zeros(model: Any) -> dict[str, float]:
    return {name: float((kernel == 0).mean()) for name, kernel in kernels(model).items()}


@pytest.mark.parametrize("scope", ["local", "global"])
def test_overrides(scope: Any) -> None:
    prune = everywhere(
        PolynomialDecay(0.0, 0.75, 0, 8, frequency=1),
        scope=scope,
        overrides={"st*": None, "conv": 0.5, "con?": NM(2, 4)},
    )
    model = fit(prune)
    found = shares_of_zeros(model)
    assert found["stem"] == 0
    assert obeying(kernels(model)["conv"], 2, 4) == (180, 180)
    assert found["logits"] == math.floor(0.75 * 120 + 0.5) / 120
    report = prune.report
    assert report is not None
    assert list(report.overrides.values()) == [(0.5, "NM(n=2, m=4)")]
    assert "None" in next(why for name, why in report.skipped.items() if "stem/kernel" in name)
    expected = (0.5 * 720 + 0.75 * 120) / 840
    assert report.asked == pytest.approx(expected)
    assert "asked 0.5000, NM" in str(report)
    json.dumps(report.to_dict())


def test_an_override_follows_the_course_of_the_schedule() -> None:
    class Zeros(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[list[int]] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.found.append([int((k == 0).sum()) for k in kernels(self.model).values()])

    schedule = PolynomialDecay(0.0, 0.8, 0, 8, frequency=1)
    zeros = Zeros()
    fit(everywhere(schedule, overrides={"logits": 0.4}), zeros)
    for t, (stem, _, logits) in enumerate(zeros.found, 1):
        assert stem == math.floor(schedule(t) * 216 + 0.5)
        assert logits == math.floor(schedule(t) / 2 * 120 + 0.5)


def test_the_ends_of_a_network_with_convolutions_are_spared() -> None:
    prune = PruneWeights(ConstantSparsity(0.5))
    found = shares_of_zeros(fit(prune))
    assert found == {"stem": 0, "conv": 0.5, "logits": 0}
    assert prune.report is not None
    assert "`first=True` takes it" in next(
        why for name, why in prune.report.skipped.items() if "stem/kernel" in name
    )
    # One who names an end, or says it outright, means it.
    assert shares_of_zeros(fit(PruneWeights(ConstantSparsity(0.5), last=True)))["logits"] == 0.5
    named = PruneWeights(ConstantSparsity(0.5), overrides={"st?m": 0.25})
    assert shares_of_zeros(fit(named)) == {"stem": 0.25, "conv": 0.5, "logits": 0}
    # What was pruned is held, at the ends too.
    model = fit(everywhere(ConstantSparsity(0.5)))
    fit(PruneWeights.from_zeros(), model=model)
    assert shares_of_zeros(model) == {"stem": 0.5, "conv": 0.5, "logits": 0.5}


def test_zeros_at_the_ends_are_not_given_back() -> None:
    model = fit(everywhere(ConstantSparsity(0.5)))
    fit(PruneWeights(ConstantSparsity(0.5)), model=model)
    assert shares_of_zeros(model) == {"stem": 0.5, "conv": 0.5, "logits": 0.5}
    fit(PruneWeights(ConstantSparsity(0.6), keep_zeros=True), model=model)
    shares = {"stem": 130 / 216, "conv": 0.6, "logits": 0.6}
    assert shares_of_zeros(model) == pytest.approx(shares)


def test_from_zeros_prunes_on_where_zeros_are_or_would_be() -> None:
    x = keras.Input((6, 6, 3))
    y = layers.DepthwiseConv2D(3, name="depth")(layers.Conv2D(4, 1, name="stem")(x))
    y = layers.Flatten()(layers.Conv2D(4, 1, name="conv")(y))
    model = keras.Model(x, layers.Dense(3, name="logits")(y))
    fit(PruneWeights(ConstantSparsity(0.25)), model=model)
    prune = PruneWeights.from_zeros(ConstantSparsity(0.5), unit=NM(2, 4), overrides={"log*": 0.5})
    fit(prune, model=model)
    assert shares_of_zeros(model) == {"stem": 0, "depth": 0, "conv": 0.5, "logits": 0.5}
    assert prune.report is not None
    assert "without zeros to keep" in prune.report.skipped["depth/kernel"]


def test_each_peer_has_ends() -> None:
    distillation = pytest.importorskip("tfcomp.distillation")
    peers = [network(), network()]
    both = distillation.MutualLearning(peers, from_logits=True)
    both.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    prune = PruneWeights(ConstantSparsity(0.5))
    both.fit(X, np.arange(32) % 3, verbose=0, callbacks=[prune])
    for peer in peers:
        assert shares_of_zeros(peer) == {"stem": 0, "conv": 0.5, "logits": 0}


def test_patterns_are_of_paths_and_of_parts_of_them() -> None:
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(8, name="a")], name="inner")
    hidden = [inner, layers.Dense(8, name="b")]
    model = keras.Sequential([keras.Input((4,)), *hidden, layers.Dense(3, name="c")], name="whole")
    model.compile("sgd", "mse")
    for pattern in ("a", "inner/a/kernel", "inner/a", "inn*", "[a]/kernel"):
        prune = PruneWeights(ConstantSparsity(0.0), overrides={pattern: 0.5})
        model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0, callbacks=[prune])
        assert prune.report is not None
        assert [row.sparsity for row in prune.report.kernels] == [0.5, 0, 0]
    with pytest.raises(TfcompError, match="which is of none"):
        fit(PruneWeights(ConstantSparsity(0.5), overrides={"kernel": 0.5}))


def test_a_network_of_dense_layers_is_pruned_as_a_whole() -> None:
    flat, dense = layers.Flatten(), [layers.Dense(8), layers.Dense(8), layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 6, 3)), flat, *dense])
    prune = PruneWeights(ConstantSparsity(0.5))
    fit(prune, model=model)
    assert prune.report is not None
    assert [row.sparsity for row in prune.report.kernels] == [0.5, 0.5, 0.5]


def test_a_network_of_two_kernels_has_no_ends_to_spare() -> None:
    head = [layers.Flatten(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(4, 3), *head])
    prune = PruneWeights(ConstantSparsity(0.5))
    fit(prune, model=model)
    assert prune.report is not None
    assert [row.sparsity for row in prune.report.kernels] == [0.5, 0.5]


def test_a_schedule_of_its_own_is_waited_for() -> None:
    prune = everywhere(ConstantSparsity(0.5), overrides={"conv": ConstantSparsity(0.25, 100)})
    with pytest.warns(UserWarning, match="of the 100 that"):
        model = fit(prune)
    assert shares_of_zeros(model)["conv"] == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"cnov*": 0.5}, "which is of none. There are: "),
        ({"conv": 80}, "Did you mean 0.8"),
        ({"conv": "half"}, "fraction"),
        ({3: 0.5}, "patterns"),
        ([("conv", 0.5)], "must be a dict"),
        ({"conv": NM(2, 4)}, "one sparsity"),
    ],
)
def test_wrong_overrides_are_refused(overrides: Any, message: str) -> None:
    with pytest.raises(TfcompError, match=message):
        fit(everywhere(ConstantSparsity(0.6), overrides=overrides))


def test_first_and_last_can_be_spared() -> None:
    prune = PruneWeights(ConstantSparsity(0.5), first=False, last=False)
    model = fit(prune)
    assert shares_of_zeros(model) == {"stem": 0, "conv": 0.5, "logits": 0}
    assert prune.report is not None
    reasons = set(prune.report.skipped.values())
    assert {"spared by `first=False`", "spared by `last=False`"} <= reasons


def test_configuration() -> None:
    prune = PruneWeights(
        IterativeSparsity(0.5, 2, 3),
        unit=NM(2, 4),
        first=False,
        overrides={"a": None, "b": 0.5, "c": Weights(), "d": ConstantSparsity(0.5, 3)},
    )
    data = json.loads(json.dumps(keras.saving.serialize_keras_object(prune)))
    again = keras.saving.deserialize_keras_object(data)
    assert again.get_config() == prune.get_config()
    assert again.unit == NM(2, 4)


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
    conv, separable = (
        layers.Conv2D(4, 3, name="conv"),
        layers.SeparableConv2D(3, 3, name="separable"),
    )
    mean = layers.GlobalAveragePooling2D()
    model = keras.Sequential([keras.Input((6, 6, 3)), conv, separable, mean])
    prune = everywhere(ConstantSparsity(0.5), overrides={pattern: 0.25})
    fit(prune, model=model)
    assert prune.report is not None
    rows = {row.name: row.sparsity for row in prune.report.kernels}
    short = [
        name.removeprefix(f"{model.name}/").removesuffix("kernel").strip("/_") for name in rows
    ]
    assert short == taken
    assert ("separable/depthwise_kernel" in " ".join(prune.report.skipped)) == (len(taken) == 2)
    assert all(share == 0.25 for name, share in rows.items() if "depthwise" in name)
