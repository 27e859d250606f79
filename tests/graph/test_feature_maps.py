"""Where layers have the channels that they make, for criteria that look at activations."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.graph.masked import inputs_of, randomize
from tfcomp.graph import dependencies
from tfcomp.graph.feature_maps import feature_maps, feature_model
from tfcomp.pruning import ActivationMean, Taylor, shrink

# Layers of six channels, and the axis of the output that these are on.
MADE = {
    "heads": (lambda: layers.EinsumDense("abc,cde->abde", (5, 6, 4)), -2),
    "in front": (lambda: layers.EinsumDense("abc,cd->adb", (6, 5)), 1),
    "last": (lambda: layers.EinsumDense("...x,xy->...y", 6), -1),
    "over time": (lambda: layers.TimeDistributed(layers.EinsumDense("ab,bcd->acd", (6, 2))), -2),
    "wrapped": (lambda: layers.SpectralNormalization(layers.Dense(6)), -1),
    "cells": (lambda: layers.RNN(layers.GRUCell(6), return_sequences=True), -1),
}


@pytest.mark.parametrize("kind", MADE)
def test_channels_of_feature_maps_are_last_and_can_be_scored(kind):
    make, axis = MADE[kind]
    x = keras.Input((5, 4))
    layer = make()
    y = layers.Dense(3, name="out")(layers.Flatten()(layer(x)))
    model = keras.Model(x, y)
    randomize(model)
    found = dependencies(model)
    assert len(found.producers[layer.name].units) == 6
    maps = {layer.name: feature_maps(found.graph, layer.name)}
    arrays = inputs_of(model)
    (seen,) = feature_model(found.graph, maps)(arrays)[layer.name]
    given = np.asarray(keras.Model(x, layer.output)(arrays))
    np.testing.assert_array_equal(np.asarray(seen), np.moveaxis(given, axis, -1))
    labelled = (arrays[0], np.arange(4) % 3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for criterion in (ActivationMean(arrays[0]), Taylor(loss, labelled)):
        small, report = shrink(model, 0.5, criterion)
        assert next((one.name, one.after) for one in report.layers) == (layer.name, 3)
        assert small.count_params() < model.count_params()


def test_filters_written_with_channels_in_front_are_scored_over_time():
    x = keras.Input((2, 3, 4, 5))
    conv = layers.Conv2D(6, 2, data_format="channels_first", use_bias=False)
    y = layers.TimeDistributed(conv, name="t")(x)
    model = keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))
    found = dependencies(model)
    maps = {"t": feature_maps(found.graph, "t")}
    assert [group.layers for group in found.groups] == [("t",)]
    assert feature_model(found.graph, maps).output["t"][0].shape == (None, 2, 3, 4, 6)
