"""Recurrent layers, their states and the wrappers around layers: smaller model = masked model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.graph.masked import check, inputs_of, masked, randomize
from tfcomp.graph import AxisKey, SizeKey, dependencies, remove_units
from tfcomp.graph.feature_maps import channel_axis

STATES = {"LSTM": 2, "GRU": 1, "SimpleRNN": 1}
CELLS = {"LSTM": layers.LSTMCell, "GRU": layers.GRUCell, "SimpleRNN": layers.SimpleRNNCell}


def made(kind, units, name, **kwargs):
    return getattr(layers, kind)(units, name=name, **kwargs)


def of_cell(kind, units, name, **kwargs):
    return layers.RNN(CELLS[kind](units), name=name, **kwargs)


def reads_itself(model, name, gone, read=None):
    """Zeros in the rows of each recurrent kernel, and in those of kernels that read `read`."""
    for index, one in enumerate(model.get_layer(name).weights):
        if one.path.endswith("recurrent_kernel"):
            yield (name, index, -2, gone)
        elif one.path.endswith("/kernel") and read is not None:
            yield (name, index, -2, read)


@pytest.mark.parametrize("make", [made, of_cell])
@pytest.mark.parametrize("kind", STATES)
def test_states_of_an_encoder_are_those_of_the_decoder(kind, make):
    x, z = keras.Input((5, 4)), keras.Input((3, 2))
    _, *states = make(kind, 6, "encoder", return_state=True)(x)
    assert len(states) == STATES[kind]
    y = make(kind, 6, "decoder", return_sequences=True)(z, initial_state=states)
    y = layers.GlobalAveragePooling1D()(y)
    model = keras.Model([x, z], layers.Dense(3, name="out")(y))

    def zeros(removed):
        units = removed["encoder"]
        assert units == removed["decoder"]
        return [
            *reads_itself(model, "encoder", units),
            *reads_itself(model, "decoder", units),
            ("out", "kernel", 0, units),
        ]

    found, small, _ = check(model, zeros)
    assert [(group.layers, len(group.units)) for group in found.groups] == [
        (("encoder", "decoder"), 6)
    ]
    assert small.get_layer("decoder").cell.units == 3


def test_states_that_are_made_otherwise_or_come_from_outside():
    x, s = keras.Input((5, 4)), keras.Input((6,))
    start = layers.Dense(6, name="start")(s)
    y = layers.GRU(6, return_sequences=True, name="r1")(x, initial_state=start)
    y = layers.LSTM(6, name="r2")(y, [start, s])
    z = layers.SimpleRNN(6, name="r3")(x, initial_state=layers.Dense(6, name="free")(s))
    model = keras.Model([x, s], layers.Dense(3, name="out")(y + layers.Dense(6, name="fixed")(z)))
    found = dependencies(model)
    assert [group.layers for group in found.groups] == [("free", "r3")]
    assert "channels that cannot be cut" in found.skipped["r2"]
    assert "channels that cannot be cut" in found.skipped["r1"]


def test_a_constant_state_is_a_true_barrier():
    x = keras.Input((5, 4))
    a = layers.Dense(6, name="a")(x)
    y = layers.GRU(6, name="r")(a, initial_state=keras.ops.ones((1, 6)))
    found = dependencies(keras.Model(x, layers.Dense(3)(y)))
    assert "begins with a state that is a constant" in found.skipped["r"]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_stacked_cells(kind):
    x = keras.Input((5, 4))
    y = layers.Dense(6, activation="tanh", name="a")(x)
    cells = [CELLS[kind](6) for _ in range(2)]
    _, *states = layers.RNN(cells, return_state=True, name="r")(y)
    y = layers.Concatenate()(keras.tree.flatten(states))
    model = keras.Model(x, layers.Dense(3, name="out")(y))

    def zeros(removed):
        units = removed["r"]
        states = range(2 * STATES[kind])
        out = ("out", "kernel", 0, [unit + 6 * n for n in states for unit in units])
        # Three weights for each cell, of which the second reads what the first makes.
        kernels = [("r", 0, 0, removed["a"]), ("r", 3, 0, units)]
        return [out, *kernels, ("r", 1, 0, units), ("r", 4, 0, units)]

    found, small, _ = check(model, zeros)
    assert found.sizes[SizeKey("r", "cell.config.cells.1.config.units")].shape == (6,)
    assert [cell.units for cell in small.get_layer("r").cell.cells] == [3, 3]


def test_stacked_cells_of_different_sizes_are_left_alone():
    x = keras.Input((5, 4))
    y = layers.RNN([layers.GRUCell(6), layers.GRUCell(4)], name="r")(x)
    found = dependencies(keras.Model(x, layers.Dense(3)(y)))
    assert "stacks cells of different sizes" in found.skipped["r"]


def test_a_cell_of_ones_own_is_left_alone():
    class Cell(layers.SimpleRNNCell):
        pass

    x = keras.Input((5, 4))
    y = layers.RNN(Cell(6), name="r")(layers.Dense(4, name="a")(x))
    found = dependencies(keras.Model(x, layers.Dense(3)(y)))
    assert "runs a Cell, whose units are not known" in found.skipped["r"]
    assert "flows into 'r'" in found.skipped["a"]


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_bidirectional_with_states(kind, merge):
    x, z = keras.Input((5, 4)), keras.Input((3, 2))
    encoder = made(kind, 6, "one", return_state=True, return_sequences=True)
    given = layers.Bidirectional(encoder, merge, name="encoder")(x)
    count = 2 if merge is None else 1
    decoder = layers.Bidirectional(of_cell(kind, 6, "two"), "concat", name="decoder")
    y = decoder(z, initial_state=list(given[count:]))
    y = layers.Concatenate()([y, *map(layers.GlobalAveragePooling1D(), given[:count])])
    model = keras.Model([x, z], layers.Dense(3, name="out")(y))

    def zeros(removed):
        units = removed["encoder"]
        assert units == removed["decoder"]
        parts = 2 + (2 if merge in ("concat", None) else 1)
        return [
            *reads_itself(model, "encoder", units),
            *reads_itself(model, "decoder", units),
            ("out", "kernel", 0, [unit + 6 * n for n in range(parts) for unit in units]),
        ]

    found, small, _ = check(model, zeros)
    assert found.n_units == 6
    assert small.get_layer("decoder").backward_layer.cell.units == 3


def test_directions_of_different_sizes_are_left_alone():
    x = keras.Input((5, 4))
    back = layers.LSTM(3, go_backwards=True)
    y = layers.Bidirectional(layers.LSTM(6), backward_layer=back, name="r")(x)
    found = dependencies(keras.Model(x, layers.Dense(3)(y)))
    assert "directions of different sizes" in found.skipped["r"]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutional_lstm(rank):
    kind = getattr(layers, f"ConvLSTM{rank}D")
    size = (4, 3, 2)[:rank]
    x = keras.Input((3, *size, 2))
    y = layers.Dense(4, activation="tanh", name="a")(x)
    y, h, c = kind(4, 2, padding="same", name="r1", return_sequences=True, return_state=True)(y)
    y = kind(4, 2, padding="same", name="r2", use_bias=False)(y, initial_state=[h, c])
    y = getattr(layers, f"GlobalAveragePooling{rank}D")()(y)
    model = keras.Model(x, layers.Dense(3, name="out")(y))

    def zeros(removed):
        return [
            *reads_itself(model, "r1", removed["r1"], removed["a"]),
            *reads_itself(model, "r2", removed["r2"], removed["r1"]),
            ("out", "kernel", 0, removed["r2"]),
        ]

    _, small, removed = check(model, zeros)
    assert removed["r1"] == removed["r2"]
    assert small.get_layer("r1").filters == 2


def test_convolutional_lstm_with_channels_first():
    x = keras.Input((3, 2, 4, 5))
    y = layers.ConvLSTM2D(
        4, 2, padding="same", data_format="channels_first", return_sequences=True, name="r1"
    )(x)
    y = layers.TimeDistributed(layers.BatchNormalization(axis=1), name="norm")(y)
    first = layers.MaxPooling2D(2, data_format="channels_first")
    y = layers.TimeDistributed(first, name="pool")(y)
    y = layers.ConvLSTM2D(3, 2, data_format="channels_first", name="r2")(y)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Flatten()(y)))
    randomize(model)
    found = dependencies(model)
    assert [len(group.units) for group in found.groups] == [4, 3]
    assert len(found.axes[AxisKey("norm", "layer.gamma", 0)]) == 4
    small = remove_units(found, [1, 5])
    assert small.get_layer("r2").cell.kernel.shape == (2, 2, 3, 8)
    assert channel_axis(small.get_layer("r1")) == -3
    places = small.get_layer("out").kernel.shape[0] // 2
    reads = [*reads_itself(model, "r1", [1]), *reads_itself(model, "r2", [1], [1])]
    out = ("out", "kernel", 0, [places + n for n in range(places)])
    # Which TensorFlow knows on CPUs only where it compiles.
    expected, received = (
        np.asarray(tf.function(one, jit_compile=True)(inputs_of(model)))
        for one in (masked(model, [*reads, out]), small)
    )
    assert np.ptp(expected, axis=0).max() > 1e-2
    np.testing.assert_allclose(received, expected, atol=1e-5)


INNER = {
    "norm": lambda: layers.BatchNormalization(),
    "statistics": lambda: layers.Normalization(),
    "pool": lambda: layers.MaxPooling2D(2),
    "padding": lambda: layers.ZeroPadding2D(1),
    "activation": lambda: layers.PReLU(shared_axes=[1, 2]),
    "depthwise": lambda: layers.DepthwiseConv2D(2),
    "separable": lambda: layers.SeparableConv2D(6, 2, name="inner"),
}


@pytest.mark.parametrize("kind", INNER)
def test_layers_over_time(kind):
    x = keras.Input((3, 4, 4, 2))
    y = layers.TimeDistributed(layers.Conv2D(6, 2, activation="tanh"), name="a")(x)
    y = layers.TimeDistributed(INNER[kind](), name="t")(y)
    y = layers.TimeDistributed(layers.GlobalAveragePooling2D())(y)
    y = layers.TimeDistributed(layers.LSTM(4, return_sequences=True), name="r")(y[:, None])
    y = layers.TimeDistributed(layers.Flatten(), name="flat")(y)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Flatten()(y)))

    def zeros(removed):
        a, r = removed["a"], removed["r"]
        read = removed["t"] if kind == "separable" else a
        result = [
            *reads_itself(model, "r", r, read),
            ("out", "kernel", 0, [unit + 4 * n for n in range(3) for unit in r]),
        ]
        return [*result, ("t", "depthwise_kernel", -2, a)] if kind == "separable" else result

    check(model, zeros)


def test_a_reshape_over_time_counts_the_channels_that_are_left():
    x = keras.Input((3, 4))
    y = layers.TimeDistributed(layers.Dense(8, name="d"), name="a")(x)
    y = layers.TimeDistributed(layers.Reshape((2, 4)), name="t")(y)
    y = layers.TimeDistributed(layers.Conv1D(4, 2, name="c"), name="b")(y)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Flatten()(y)))

    def zeros(removed):
        places = [c + 4 * n for n in range(3) for c in removed["b"]]
        gone = sorted({c % 4 for c in removed["a"]})
        return [("b", "kernel", 1, gone), ("out", "kernel", 0, places)]

    _, small, _ = check(model, zeros)
    assert small.get_layer("t").layer.target_shape == (2, 2)


def test_what_is_not_followed_over_time_says_why():
    x = keras.Input((3, 4))
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5)])
    y = layers.TimeDistributed(inner, name="t")(layers.Dense(6, name="a")(x))
    y = layers.Permute((2, 1))(layers.Dense(6, name="b")(y))
    y = layers.TimeDistributed(layers.Dense(5), name="each")(y)
    found = dependencies(keras.Model(x, layers.Dense(3)(layers.Flatten()(y))))
    assert "wraps a model, which is not opened up there" in found.skipped["t"]
    assert "calls a layer for each channel" in found.skipped["each"]


SPECTRAL = {
    "Conv2D": lambda: layers.Conv2D(6, 2),
    "Dense": lambda: layers.Dense(6),
    "Conv2DTranspose": lambda: layers.Conv2DTranspose(6, 2),
    "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(2),
}


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_normalization(kind):
    x = keras.Input((4, 4, 3))
    y = layers.Conv2D(6, 1, activation="tanh", name="a")(x)
    y = layers.SpectralNormalization(SPECTRAL[kind](), name="s")(y)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.GlobalMaxPooling2D()(y)))
    axis = {"Conv2DTranspose": 3, "Dense": 0}.get(kind, 2)

    def zeros(removed):
        if kind == "DepthwiseConv2D":
            return [("out", "kernel", 0, removed["a"])]
        return [("s", "kernel", axis, removed["a"]), ("out", "kernel", 0, removed["s"])]

    # What has no part in inference: the vector from which training goes on.
    _, small, removed = check(model, zeros, silent=["vector_u"])
    u, new = (np.array(m.get_layer("s").vector_u)[0] for m in (model, small))
    gone = removed["a"] if kind == "Conv2DTranspose" else removed.get("s", [])
    np.testing.assert_array_equal(np.delete(u, gone), new)
    small.compile("sgd", "mse")
    small.fit(np.ones((2, 4, 4, 3)), np.ones((2, 3)), verbose=0)
