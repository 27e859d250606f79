"""Which channels are coupled, which entries of which weights go with them, and what is skipped."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcomp.errors import TfcompError, UnsupportedModelError
from tfcomp.graph import (
    FIXED,
    AxisKey,
    SizeKey,
    dependencies,
    remove_units,
    removed_channels,
    trace,
)
from tfcomp.graph.channels import handles


def conv(filters, name, size=1, **kwargs):
    return layers.Conv2D(filters, size, padding="same", name=name, **kwargs)


def groups_of(found):
    return [(group.layers, len(group.units)) for group in found.groups]


def units_of(found, layer, weight="kernel", axis=-2):
    keys = [k for k in found.axes if k.layer == layer and k.weight == weight]
    ranks = max(key.axis for key in keys) + 1
    return found.axes[AxisKey(layer, weight, axis % ranks)].tolist()


def test_residual_addition_couples_what_is_added():
    x = keras.Input((8, 8, 3))
    stem = conv(4, "stem")(x)
    y = layers.Add()([stem, conv(4, "b")(conv(6, "a")(stem))])
    found = dependencies(keras.Model(x, layers.Dense(2, name="out")(layers.Flatten()(y))))
    assert groups_of(found) == [(("stem", "b"), 4), (("a",), 6)]
    assert units_of(found, "stem", axis=-1) == units_of(found, "b", axis=-1) == [0, 1, 2, 3]
    assert units_of(found, "stem", axis=-2) == [FIXED] * 3
    assert units_of(found, "a", axis=-2) == [0, 1, 2, 3]
    assert removed_channels(found, [1, 5]) == {"stem": [1], "a": [1], "b": [1]}


def test_offsets_behind_a_concatenation_and_blocks_behind_a_flatten():
    x = keras.Input((2, 2, 3))
    y = layers.Concatenate()([conv(2, "a")(x), x, conv(3, "b")(x)])
    z = conv(4, "reader")(y)
    found = dependencies(keras.Model(x, layers.Dense(2, name="out")(layers.Flatten()(z))))
    assert groups_of(found) == [(("a",), 2), (("b",), 3), (("reader",), 4)]
    assert units_of(found, "reader", axis=-2) == [0, 1, FIXED, FIXED, FIXED, 2, 3, 4]
    assert units_of(found, "out", axis=0) == [5, 6, 7, 8] * 4
    assert found.sizes[SizeKey("reader", "filters")].tolist() == [5, 6, 7, 8]


def test_depth_multiplier_repeats_and_batch_normalization_follows():
    x = keras.Input((8, 8, 3))
    y = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(conv(3, "a")(x))
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.GlobalAveragePooling2D()(y)
    found = dependencies(keras.Model(x, layers.Dense(2, name="out")(y)))
    assert found.axes[AxisKey("depth", "kernel", 2)].tolist() == [0, 1, 2]
    for layer, weight in [("depth", "bias"), ("norm", "moving_variance"), ("norm", "gamma")]:
        assert found.axes[AxisKey(layer, weight, 0)].tolist() == [0, 0, 1, 1, 2, 2]
    assert units_of(found, "out", axis=0) == [0, 0, 1, 1, 2, 2]
    assert list(found.producers) == ["a", "out"]


def test_a_convolution_added_to_a_concatenation_is_in_a_group_with_each_part():
    x = keras.Input((4, 4, 3))
    y = layers.Concatenate()([conv(2, "a")(x), conv(3, "b")(x)])
    y = y + conv(5, "c")(x)
    found = dependencies(keras.Model(x, layers.Dense(2, name="out")(layers.Flatten()(y))))
    assert groups_of(found) == [(("a", "c"), 2), (("b", "c"), 3)]
    assert removed_channels(found, [3]) == {"b": [1], "c": [3]}


def test_part_of_a_layer_may_be_fixed():
    x = keras.Input((4, 4, 3))
    y = layers.Concatenate(name="join")([conv(2, "a")(x), x])
    y = layers.Maximum()([y, conv(5, "c")(x)])
    found = dependencies(keras.Model(x, layers.Dense(2, name="out")(layers.Flatten()(y))))
    assert groups_of(found) == [(("a", "c"), 2)]
    assert units_of(found, "c", axis=-1) == [0, 1, FIXED, FIXED, FIXED]
    assert found.skipped["c"].startswith("3 of its 5 channels: meets in 'join'")


def test_dense_spread_over_a_map_goes_by_the_channels_of_the_map():
    x = keras.Input((4,))
    y = layers.Reshape((2, 2, 3), name="map")(layers.Dense(12, name="spread")(x))
    y = layers.GlobalMaxPooling2D()(y)
    found = dependencies(keras.Model(x, layers.Dense(2, name="out")(y)))
    assert groups_of(found) == [(("spread",), 3)]
    assert units_of(found, "spread", axis=-1) == [0, 1, 2] * 4
    assert found.sizes[SizeKey("map", "target_shape", 2)].tolist() == [0, 1, 2]
    small = remove_units(found, [1])
    assert small.get_layer("map").target_shape == (2, 2, 2)
    assert small.get_layer("spread").units == 8


def test_shared_layer_couples_what_it_reads():
    x = keras.Input((4, 4, 3))
    shared = conv(5, "shared")
    y = layers.Concatenate()([shared(conv(4, "a")(x)), shared(conv(4, "b")(x))])
    found = dependencies(keras.Model(x, layers.Dense(2, name="out")(layers.Flatten()(y))))
    assert groups_of(found) == [(("a", "b"), 4), (("shared",), 5)]
    assert units_of(found, "out", axis=0)[:10] == [4, 5, 6, 7, 8] * 2


@pytest.mark.parametrize(
    "layer, words",
    [
        (lambda: layers.GroupNormalization(1, name="odd"), "normalises over all channels at once"),
        (lambda: layers.LayerNormalization(name="odd"), "normalises over channels"),
        (lambda: layers.Lambda(lambda t: t, name="odd"), "cannot be looked into"),
        (lambda: layers.Softmax(name="odd"), "normalises over channels"),
        (lambda: layers.Dropout(0.1, (None, 1, 1, 4), name="odd"), "noise_shape"),
        (lambda: layers.RandomRotation(0.1, name="odd"), "not known to keep channels apart"),
    ],
)
def test_barriers_are_listed_with_what_flows_into_them(layer, words):
    x = keras.Input((4, 4, 3))
    y = layer()(conv(4, "before")(conv(4, "free")(x)))
    found = dependencies(keras.Model(x, layers.Dense(2, name="out")(layers.Flatten()(y))))
    assert words in found.skipped["odd"]
    assert words in found.skipped["before"]
    assert groups_of(found) == [(("free",), 4)]


def test_subclass_of_a_known_layer_is_a_barrier():
    class Mine(layers.Conv2D):
        def call(self, inputs):
            return super().call(inputs)[..., ::-1]

    x = keras.Input((4, 4, 3))
    y = Mine(4, 1, name="mine")(conv(4, "before")(x))
    found = dependencies(keras.Model(x, layers.Dense(2, name="out")(layers.Flatten()(y))))
    assert found.n_units == 0
    assert list(found.skipped) == ["before", "mine", "out"]


def test_outputs_spared_layers_and_single_channels_are_listed():
    x = keras.Input((4, 4, 3))
    y = conv(4, "seen")(conv(1, "one")(conv(4, "kept")(conv(4, "soft", activation="softmax")(x))))
    z = layers.Dense(2, name="out")(layers.Flatten()(conv(4, "free")(y)))
    found = dependencies(keras.Model(x, [y, z]), spare=["kept"])
    assert found.skipped == {
        "soft": "has the activation softmax in 'soft', which may mix channels",
        "kept": "is to be spared",
        "one": "has only one channel",
        "seen": "is an output of the model",
        "out": "is an output of the model",
    }
    with pytest.raises(TfcompError, match="Did you mean 'kept'"):
        dependencies(keras.Model(x, z), spare=["kep"])


def test_nothing_of_the_model_is_touched_and_wrong_units_are_refused():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="a"), layers.Dense(2)])
    before = [np.array(w) for w in model.get_weights()]
    found = dependencies(trace(model))
    small = remove_units(found, [3])
    assert small.get_layer("a").units == 3
    assert model.get_layer("a").units == 4
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    for units in ([4], [-1]):
        with pytest.raises(TfcompError, match="numbers from 0 to 3"):
            remove_units(found, units)
    with pytest.raises(UnsupportedModelError, match="at least one of its 4"):
        remove_units(found, range(4))


def test_a_second_handler_for_a_layer_is_refused():
    with pytest.raises(KeyError, match="already has a handler"):
        handles(layers.Dense)(lambda call: None)
