"""What holds for every smaller model that shrink makes."""

import json

import keras
import numpy as np

from tests.pruning.oracle import assert_equal_to_masked, randomize
from tfcomp.graph import trace
from tfcomp.pruning import Random, shrink


def input_names(model):
    return [config["name"] for config in trace(model).input_configs.values()]


def check(model, seed=0, **arguments):
    """Shrinks a randomised model and compares; returns the smaller model and the report."""
    randomize(model, seed)
    before = [np.array(weight) for weight in model.get_weights()]
    small, report = shrink(model, **{"criterion": Random(seed), **arguments})
    assert_equal_to_masked(model, small)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    assert input_names(small) == input_names(model)
    if not isinstance(model, keras.Sequential):
        assert list(small.output_names) == list(model.output_names)
    assert report.parameters_after == small.count_params() < model.count_params()
    assert set(json.loads(json.dumps(report.to_dict()))["skipped"]) == set(report.skipped)
    for layer in report.layers:
        op = small.get_layer(layer.name)
        assert layer.after == getattr(op, "filters", getattr(op, "units", None)) >= 1
    return small, report
