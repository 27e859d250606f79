"""Operations of keras.ops and layers that move or combine channels: smaller = masked model."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.graph.masked import check
from tfcomp.graph import dependencies
from tfcomp.pruning import shrink


def out(y):
    return layers.Dense(3, name="out")(layers.Flatten()(y) if len(y.shape) > 2 else y)


def first(y):
    return ops.swapaxes(y, 1, 3)


# What lies between convolutions a and b of six channels each, and a reader of them.
KEEPING = {
    "moveaxis": lambda a, b: ops.moveaxis(ops.moveaxis(a, -1, 1), (1, 2), (-1, 1)),
    "swapaxes": lambda a, b: ops.swapaxes(ops.swapaxes(a, 1, -1), 3, 1),
    "pad": lambda a, b: ops.pad(a, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=0.5),
    "pad by reflection": lambda a, b: ops.pad(a, [[0, 0], [1, 1], [0, 0], [0, 0]], "reflect"),
    "stack": lambda a, b: ops.max(ops.stack([a, b], axis=1), axis=1),
    "stack behind": lambda a, b: ops.min(ops.stack([a, b], axis=-1), axis=-1),
    "repeat elsewhere": lambda a, b: ops.repeat(ops.repeat(a, [1, 2, 1, 3], axis=1), 2, axis=2),
    "tile elsewhere": lambda a, b: ops.tile(a, (1, 2, 1, 1)),
    "where": lambda a, b: ops.where(a > 0.1, b, ops.less_equal(a, b) * 0.5),
    "max pool": lambda a, b: ops.max_pool(a, 2, 1, "same"),
    "average pool": lambda a, b: ops.average_pool(a, (2, 3), strides=1),
    "pool in front": lambda a, b: first(ops.max_pool(first(a), 2, data_format="channels_first")),
    "expand and squeeze": lambda a, b: ops.squeeze(ops.expand_dims(a, (1, -1)), (1, -1)),
    "clip": lambda a, b: ops.clip(a, -0.5, 0.4),
    "rounding": lambda a, b: ops.floor(a * 4) + ops.ceil(b * 3) - ops.trunc(a * 5) % 3,
    "trigonometry": lambda a, b: ops.sin(a) + ops.arctan2(b, a + 3) + ops.cosh(b),
    "two at a time": lambda a, b: ops.logaddexp(a, b) + ops.hypot(a, b) + ops.fmax(a, b),
    "logic": lambda a, b: ops.cast(ops.logical_and(a > 0, b > 0), "float32") + ops.nan_to_num(a),
    "std": lambda a, b: ops.std(a, axis=1, keepdims=True) + ops.var(a, axis=(1, 2), keepdims=True),
    "reductions": lambda a, b: ops.logsumexp(a, axis=2) + ops.prod(b, axis=1) + ops.amax(a, 1),
    "softmax over places": lambda a, b: ops.softmax(a, axis=2),
    "along places": lambda a, b: ops.cumsum(a, 1) + ops.roll(b, 1, 2) + ops.flip(a, 1),
    "sort": lambda a, b: ops.sort(a, axis=1) + ops.normalize(b, axis=2),
    "take": lambda a, b: ops.take(a, [2, 0, 0], axis=1),
    "take a table": lambda a, b: ops.mean(ops.take(a, [[2, 0], [1, 1]], axis=1), axis=2),
    "take one": lambda a, b: ops.take(a, 1, axis=1),
    "unstack": lambda a, b: ops.unstack(a, axis=1)[1] * ops.unstack(b, axis=2)[0],
    "resize": lambda a, b: ops.image.resize(a, (3, 5)),
    "pad images": lambda a, b: ops.image.pad_images(a, 1, 0, 2, 0),
    "normalised places": lambda a, b: layers.LayerNormalization(axis=(1, 2), name="n")(a),
    "normalised rows": lambda a, b: layers.UnitNormalization(axis=1)(a),
    "paddings": lambda a, b: layers.Cropping2D(1)(layers.UpSampling2D(2)(a)),
    "copies": lambda a, b: ops.stop_gradient(ops.copy(a)) + ops.ones_like(b) * b,
}


@pytest.mark.parametrize("kind", KEEPING)
def test_channels_stay_apart(kind):
    x = keras.Input((4, 4, 3))
    a, b = (layers.Conv2D(6, 1, activation="tanh", name=name)(x) for name in "ab")
    y = KEEPING[kind](a, b)
    y = layers.Dense(4, activation="tanh", name="reader")(y)
    model = keras.Model(x, out(y))

    def zeros(removed):
        places = int(np.prod(y.shape[1:-1]))
        read = removed["a"]
        assert removed.get("b", read) == read
        gone = [c + 4 * n for n in range(places) for c in removed["reader"]]
        return [("reader", "kernel", 0, read), ("out", "kernel", 0, gone)]

    found, _, _ = check(model, zeros)
    assert not set(found.skipped) - {"out"}


def test_a_shape_that_is_broadcast_to_counts_the_channels_that_are_left():
    x = keras.Input((4, 4, 3), batch_size=4)
    y = layers.Conv2D(6, 1, activation="tanh", name="a")(x)
    y = ops.broadcast_to(ops.mean(y, (1, 2), keepdims=True), (4, 2, 3, 6))
    y = layers.Dense(4, activation="tanh", name="reader")(y)
    model = keras.Model(x, out(layers.GlobalMaxPooling2D()(y)))

    def zeros(removed):
        return [("reader", "kernel", 0, removed["a"]), ("out", "kernel", 0, removed["reader"])]

    check(model, zeros)


# The same with channels that get other places; which of the reader's inputs come from channel c.
MOVING = {
    "flip": (lambda a: ops.flip(a, axis=-1), lambda c: [5 - c]),
    "flip of all": (lambda a: ops.flip(ops.flip(a), axis=0), lambda c: [5 - c]),
    "repeat": (lambda a: ops.repeat(a, 2, axis=-1), lambda c: [2 * c, 2 * c + 1]),
    "tile": (lambda a: ops.tile(a, (1, 1, 1, 3)), lambda c: [c, c + 6, c + 12]),
    "tile by few": (lambda a: ops.tile(a, [2, 2]), lambda c: [c, c + 6]),
    "pad": (lambda a: ops.pad(a, ((0, 0), (0, 0), (0, 0), (2, 1))), lambda c: [c + 2]),
    "space to depth": (
        lambda a: ops.nn.space_to_depth(a, 2),
        lambda c: [c, c + 6, c + 12, c + 18],
    ),
}


if not hasattr(ops.nn, "space_to_depth"):  # A later version of Keras has it.
    del MOVING["space to depth"]


@pytest.mark.parametrize("kind", MOVING)
def test_channels_get_other_places(kind):
    move, places = MOVING[kind]
    x = keras.Input((4, 4, 3))
    y = move(layers.Conv2D(6, 1, activation="tanh", name="a")(x))
    y = layers.Dense(4, activation="tanh", name="reader")(y)
    model = keras.Model(x, out(layers.GlobalMaxPooling2D()(y)))

    def zeros(removed):
        read = [place for c in removed["a"] for place in places(c)]
        return [("reader", "kernel", 0, read), ("out", "kernel", 0, removed["reader"])]

    check(model, zeros)


@pytest.mark.skipif(not hasattr(ops.nn, "depth_to_space"), reason="a later version of Keras has it")
def test_pixels_out_of_channels():
    x = keras.Input((3, 3, 3))
    y = layers.Conv2D(24, 1, activation="tanh", name="a")(x)
    y = layers.Dense(4, activation="tanh", name="reader")(ops.nn.depth_to_space(y, 2))
    model = keras.Model(x, out(layers.GlobalMaxPooling2D()(y)))

    def zeros(removed):
        gone = [c for c in removed["a"] if c < 6]
        assert removed["a"] == [c + 6 * n for n in range(4) for c in gone]
        return [("reader", "kernel", 0, gone), ("out", "kernel", 0, removed["reader"])]

    check(model, zeros)


def test_a_shortcut_with_channels_of_zeros():
    """As in the first residual networks, where zeros go with what they are added to."""
    x = keras.Input((4, 4, 3))
    a = layers.Conv2D(4, 1, activation="tanh", name="a")(x)
    b = layers.Conv2D(8, 1, activation="tanh", name="b")(a)
    y = b + ops.pad(a, ((0, 0), (0, 0), (0, 0), (3, 1)))
    model = keras.Model(x, out(layers.GlobalMaxPooling2D()(y)))

    def zeros(removed):
        assert [c for c in removed["b"] if 2 < c < 7] == [c + 3 for c in removed["a"]]
        return [("b", "kernel", 2, removed["a"]), ("out", "kernel", 0, removed["b"])]

    found, _, _ = check(model, zeros)
    assert [(group.layers, len(group.units)) for group in found.groups] == [
        (("a", "b"), 4),
        (("b",), 4),
    ]


def test_mixing_steps_passes_channels_on():
    x = keras.Input((5, 4))
    y = layers.Dense(6, activation="tanh", name="a")(x)
    y = ops.swapaxes(layers.Dense(3, "tanh", name="steps")(ops.swapaxes(y, 1, 2)), 1, 2)
    y = layers.Dense(4, activation="tanh", name="b")(y)
    model = keras.Model(x, out(layers.GlobalMaxPooling1D()(y)))

    def zeros(removed):
        return [("b", "kernel", 0, removed["a"]), ("out", "kernel", 0, removed["b"])]

    found, _, _ = check(model, zeros)
    assert "makes channels beside those that it passes on" in found.skipped["steps"]


def test_gated_halves():
    x = keras.Input((5,))

    model = keras.Model(x, out(ops.glu(layers.Dense(8, name="a")(x))))

    def zeros(removed):
        assert {c + 4 for c in removed["a"] if c < 4} == {c for c in removed["a"] if c > 3}
        return [("out", "kernel", 0, [c for c in removed["a"] if c < 4])]

    found, _, _ = check(model, zeros)
    assert found.n_units == 4


REASONS = {
    "normalises over channels": [
        lambda y: layers.LayerNormalization(axis=(2, -1))(y),
        lambda y: layers.RMSNormalization()(y),
        lambda y: layers.UnitNormalization()(y),
        lambda y: ops.softmax(y),
        lambda y: ops.normalize(y),
        lambda y: ops.layer_normalization(y),
    ],
    "works over channels": [
        lambda y: ops.cumsum(y, -1),
        lambda y: ops.roll(y, 1, axis=-1),
        lambda y: ops.sort(y),
    ],
    "reduces over channels": [lambda y: ops.std(y, -1), lambda y: ops.argmax(y, -1)],
    "scales the last axis": [lambda y: layers.RMSNormalization(axis=1)(y)],
    "tells from all channels together": [lambda y: layers.Masking()(y)],
    "takes channels apart": [lambda y: ops.unstack(y, axis=-1)[0]],
    "not a pair for each axis": [lambda y: ops.pad(y, 1)],
    "pads channels with others": [lambda y: ops.pad(y, ((0, 0), (0, 0), (1, 1)), "reflect")],
    "picks channels by an index": [lambda y: ops.take(y, [1, 0], axis=-1)],
    "takes channels for indices": [lambda y: ops.take(np.arange(9.0), ops.cast(y, "int32"), 0)],
    "repeats each channel by a number of its own": [
        lambda y: ops.repeat(y, [1, 2, 1, 1, 1, 1], -1)
    ],
    "mixes the batch into channels": [lambda y: ops.repeat(y, 2)],
    "makes another axis the batch": [
        lambda y: ops.stack([y, y]),
        lambda y: ops.tile(y, (2, 1, 1, 1)),
    ],
    "on different axes": [lambda y: ops.stack([y, ops.swapaxes(y, 1, 2)], 1)],
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_does_not_keep_channels_apart_says_why(reason):
    for build in REASONS[reason]:
        x = keras.Input((6, 4))
        y = build(layers.Dense(6, name="a")(x))
        found = dependencies(keras.Model(x, y))
        assert reason in found.skipped["a"]
        assert found.n_units == 0


def test_masks_of_steps_are_made_before_there_are_channels():
    x = keras.Input((6, 4))
    y = layers.LSTM(6, return_sequences=True, name="a")(layers.Masking()(x))
    y = layers.Conv1D(4, 2, name="b")(layers.Cropping1D(1)(layers.ZeroPadding1D(2)(y)))
    model = keras.Model(x, out(layers.UpSampling1D(2)(y)))

    def zeros(removed):
        places = model.get_layer("out").kernel.shape[0] // 4
        return [
            ("a", "recurrent_kernel", 0, removed["a"]),
            ("b", "kernel", 1, removed["a"]),
            ("out", "kernel", 0, [c + 4 * n for n in range(places) for c in removed["b"]]),
        ]

    check(model, zeros)


@pytest.mark.parametrize(
    "widths", [[[0, 0], [0, 0], [2, 2]], [(0, 0), (0, 0), (2, 2)], ((0, 0), (0, 0), (2, 2))]
)
def test_widths_of_padding_stay_the_callers(widths):
    x = keras.Input((6, 5))
    padded = keras.ops.pad(layers.Dense(4)(x), widths)
    model = keras.Model(x, layers.Dense(3)(padded + layers.Dense(8)(x)))
    before, text = model.to_json(), repr(widths)
    small, report = shrink(model, 0.5)
    assert report.removed
    assert (model.to_json(), repr(widths)) == (before, text)
    data = np.ones((4, 6, 5), "float32")
    assert model(data).shape == small(data).shape
    shrink(model, 0.5)
