"""shrink over generated models of all families: hundreds, each compared with its masked model.

No index comes from the code under test. Which channels were removed is read off the values that
the smaller model still holds. Which inputs of which consumers they reach is found by running the
model: every layer with a kernel is replaced by noise, once more with the removed channels
disturbed, and an input that differs is one that they reach. The masked model is a copy of full
size that is run with zeros at those inputs, which is what zero weights there amount to.

All is computed in float64, so that equality is told to nine digits however deep a model is.
"""

import json

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

from tests.pruning.generator import MOVES, Builder, plans
from tests.pruning.noise_oracle import assert_equal_to_masked, is_source, randomize, removed_of
from tests.pruning.oracle import double_precision
from tfcomp.errors import TfcompError
from tfcomp.graph import dependencies, removal, trace
from tfcomp.pruning import FPGM, L1Norm, L2Norm, Random, shrink


def arguments(model, seed):
    """What shrink is asked for: ratio or ratios, criterion, scope, rounding, what to spare."""
    rng = np.random.default_rng(seed)
    asked = {
        "ratio": float(rng.choice([0.3, 0.5, 0.8, 0.95])),
        "criterion": [Random(seed), L1Norm(), L2Norm(), FPGM()][seed % 4],
        "scope": str(rng.choice(["local", "global"])),
        "round_to": [None, None, 2, 4][rng.integers(4)],
    }
    names = [name for name, op in trace(model).ops.items() if is_source(op)]
    if seed % 5 == 0:
        asked["spare"] = [str(rng.choice(names))]
    groups = dependencies(model, asked.get("spare", ())).groups
    makers = list(dict.fromkeys(name for group in groups for name in group.layers))
    if seed % 7 == 0 and makers:
        chosen = rng.choice(makers, 1 + len(makers) // 2, replace=False)
        asked["ratio"] = {str(name): float(rng.choice([0.3, 0.6])) for name in chosen}
        asked["scope"] = "local"
    return asked


def assert_as_asked(model, small, report, asked):
    found = dependencies(model, asked.get("spare", ()))
    assert report.prunable == found.n_units
    wanted = asked["ratio"]
    if not isinstance(wanted, dict):
        assert report.removed <= wanted * found.n_units + 1e-6
    outer, inner = removed_of(model, small)
    for layer in report.layers:
        if layer.name not in outer:
            continue
        gone = inner[layer.name][0]
        assert (layer.before, layer.after) == (len(gone), np.count_nonzero(~gone))
        assert layer.after >= 1
        if layer.after == layer.before and wanted:
            assert layer.name in report.skipped
        if asked["round_to"] and layer.after < layer.before:
            assert layer.after % asked["round_to"] == 0
        if layer.name in asked.get("spare", ()):
            assert layer.after == layer.before
            assert layer.name in report.skipped
    if isinstance(wanted, dict):
        for group in found.groups:
            if not set(group.layers) & set(wanted):
                for name in group.layers:
                    mine = np.isin(found.producers[name].units, group.units)
                    assert not inner[name][0][mine].any()
    # Layers none of whose channels can be cut are listed, and so is what stopped them.
    for name, producer in found.producers.items():
        if (producer.units < 0).all():
            assert report.skipped[name]
    makers = {layer.name for layer in report.layers}
    for name, op in trace(model).ops.items():
        if is_source(op):
            assert name in makers or name in report.skipped


def weight_shapes(model):
    """By layer, since nested models are opened up."""
    return {
        name: [tuple(variable.shape) for variable in op.weights]
        for name, op in trace(model).ops.items()
        if isinstance(op, layers.Layer)
    }


def compare(plan, seed):
    """Cuts a generated model and compares; whether something was removed and mattered."""
    model = randomize(Builder(plan).model(seed), seed)
    before, config = model.get_weights(), json.dumps(model.get_config(), default=str)
    asked = arguments(model, seed)
    if not dependencies(model, asked.get("spare", ())).n_units:
        with pytest.raises(TfcompError, match="can be removed"):
            shrink(model, **{**asked, "ratio": 0.5})
        return None
    small, report = shrink(model, **asked)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert json.dumps(model.get_config(), default=str) == config
    assert_as_asked(model, small, report, asked)
    if not report.removed:
        assert weight_shapes(small) == weight_shapes(model)
        return None
    assert report.parameters_after == small.count_params() < model.count_params()
    new_shapes = weight_shapes(small)
    for name, old_shapes in weight_shapes(model).items():
        for old, new in zip(old_shapes, new_shapes[name], strict=True):
            assert all(a >= b for a, b in zip(old, new, strict=True))
    return assert_equal_to_masked(model, small)


def compare_many(count, **options):
    results = []

    @settings(deadline=None, max_examples=count, suppress_health_check=list(HealthCheck), **options)
    @given(plans, st.integers(0, 10_000))
    def run(plan, seed):
        # Not for each: it collects the garbage of whatever this process has done before.
        if len(results) % 25 == 0:
            keras.utils.clear_session()
        results.append(compare(plan, seed))

    with double_precision():
        run()
    cut = [result for result in results if result is not None]
    assert len(cut) > 0.5 * len(results), "too many models of which nothing can be cut"
    assert np.mean(cut) > 0.6, "too many models whose outputs do not depend on what was cut"


def test_models_of_all_families():
    compare_many(200, derandomize=True)


@pytest.mark.long
def test_hundreds_of_models_of_all_families():
    compare_many(400)


@pytest.mark.parametrize("move", range(len(MOVES)))
def test_each_move_makes_a_model_that_is_cut(move):
    with double_precision():
        rng = np.random.default_rng(move)
        results = []
        for n in rng.permutation(8).tolist():
            plan = [(0, 0, 0, 4), (move, *rng.integers(0, 8, 2).tolist(), n), (26, 0, 0, 5)]
            results.append(compare(plan, 1 + n))
            if results[-1] is not None:
                break
    assert any(result is not None for result in results)


def test_planted_wrong_indices_are_caught(monkeypatch):
    rng = np.random.default_rng(5)
    right, planted, caught = removal.sliced, [], 0

    def wrong(value, keep):
        axes = [axis for axis, marked in keep.items() if not marked.all() and value.ndim > 1]
        if not axes or len(planted) == 1 or rng.random() < 0.6:
            return right(value, keep)
        planted.append(value.shape)
        return right(value, {**keep, axes[0]: np.roll(keep[axes[0]], 1)})

    total = 0
    with double_precision():
        for trial in range(8):
            keras.utils.clear_session()
            plan = [tuple(rng.integers(0, (len(MOVES), 8, 8, 8)).tolist()) for _ in range(3)]
            model = randomize(Builder(plan).model(1), trial)
            if not dependencies(model).n_units:
                continue
            planted.clear()
            monkeypatch.setattr(removal, "sliced", wrong)
            small, _ = shrink(model, 0.5, Random(trial))
            monkeypatch.setattr(removal, "sliced", right)
            if not planted:
                continue
            total += 1
            try:
                assert_equal_to_masked(model, small)
            except AssertionError:
                caught += 1
    assert total >= 4
    assert caught >= 0.8 * total
