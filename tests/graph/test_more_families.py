"""Families of layers beyond convolutions: the smaller model equals the masked model."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.graph.masked import check
from tfcomp.graph import SizeKey, dependencies, remove_units, removed_channels


def conv(filters, name, size=1, **kwargs):
    return layers.Conv2D(filters, size, padding="same", name=name, **kwargs)


def head(y):
    return layers.Dense(3, name="out")(layers.GlobalAveragePooling2D()(y))


def test_grouped_convolution():
    x = keras.Input((5, 5, 3))
    y = layers.BatchNormalization()(conv(8, "a", activation="relu")(x))
    y = layers.BatchNormalization()(conv(12, "g", 3, groups=2, activation="tanh")(y))
    model = keras.Model(x, head(y))

    def zeros(removed):
        a, g = removed["a"], removed["g"]
        assert [c % 4 for c in a[: len(a) // 2]] == [c % 4 for c in a[len(a) // 2 :]]
        return [("g", "kernel", 2, sorted({c % 4 for c in a})), ("out", "kernel", 0, g)]

    found, small, _ = check(model, zeros)
    assert [(g.layers, len(g.units)) for g in found.groups] == [(("a",), 4), (("g",), 6)]
    assert small.get_layer("g").groups == 2
    assert small.get_layer("g").filters == 6


def test_grouped_convolution_with_a_group_for_each_channel():
    x = keras.Input((5, 5, 3))
    y = conv(12, "g", 3, groups=6, activation="tanh")(conv(6, "a", activation="relu")(x))
    model = keras.Model(x, head(y))

    def zeros(removed):
        return [("out", "kernel", 0, [2 * c + i for c in removed["a"] for i in (0, 1)])]

    _, small, _ = check(model, zeros)
    assert (small.get_layer("g").groups, small.get_layer("g").filters) == (3, 6)


@pytest.mark.parametrize("groups", [4, 8])
def test_group_normalization_goes_by_whole_groups(groups):
    x = keras.Input((5, 5, 3))
    y = layers.GroupNormalization(groups, name="norm")(conv(8, "a")(x))
    model = keras.Model(x, head(layers.ReLU()(y)))

    def zeros(removed):
        assert {c // (8 // groups) for c in range(8)} - {c // (8 // groups) for c in removed["a"]}
        return [("out", "kernel", 0, removed["a"])]

    found, small, _ = check(model, zeros)
    assert found.n_units == groups
    assert small.get_layer("norm").groups == groups // 2


@pytest.mark.parametrize("sections", [2, [3, 5]])
def test_split(sections):
    x = keras.Input((5, 5, 3))
    parts = keras.ops.split(conv(8, "a", activation="tanh")(x), sections, axis=-1)
    sizes = [part.shape[-1] for part in parts]
    ends = [conv(4, f"b{i}")(part) for i, part in enumerate(parts)]
    model = keras.Model(x, head(layers.ReLU()(layers.Add()(ends))))

    def zeros(removed):
        result, start = [("out", "kernel", 0, removed["b0"])], 0
        for i, size in enumerate(sizes):
            places = [c - start for c in removed["a"] if start <= c < start + size]
            result.append((f"b{i}", "kernel", 2, places))
            start += size
        return result

    found, _, _ = check(model, zeros)
    assert "from being empty" in found.skipped["a"]
    # Whatever is asked, no part becomes empty.
    tiny = remove_units(found, found.groups[0].units)
    assert [tiny.get_layer(f"b{i}").kernel.shape[2] for i in range(len(sizes))] == [1] * len(sizes)


def test_slices_of_channels_and_of_other_axes():
    x = keras.Input((5, 5, 3))
    y = conv(8, "a", activation="tanh")(x)
    first, second = y[..., :3], y[:, 1:, 1:-1, 3:]
    second = layers.ZeroPadding2D(((0, 1), (1, 1)))(second)
    row = conv(4, "row")(y[:, 2][:, None])
    model = keras.Model(x, head(conv(4, "b")(first) + conv(4, "c")(second) + row))

    def zeros(removed):
        a = removed["a"]
        return [
            ("b", "kernel", 2, [c for c in a if c < 3]),
            ("c", "kernel", 2, [c - 3 for c in a if c >= 3]),
            ("row", "kernel", 2, a),
            ("out", "kernel", 0, removed["b"]),
        ]

    check(model, zeros)


def test_gated_linear_unit_by_slices():
    x = keras.Input((6,))
    y = layers.Dense(8, name="a")(x)
    y = y[:, :4] * keras.ops.sigmoid(y[:, 4:])
    model = keras.Model(x, layers.Dense(3, name="out")(y))

    def zeros(removed):
        return [("out", "kernel", 0, [c for c in removed["a"] if c < 4])]

    found, _, _ = check(model, zeros)
    assert found.n_units == 4, "halves that are multiplied need no channel spared"


def test_heads_of_attention():
    x = keras.Input((6, 5))
    y = layers.BatchNormalization()(layers.Dense(8, activation="relu", name="a")(x))
    memory = layers.Dense(7, activation="tanh", name="memory")(x)
    y = y + layers.MultiHeadAttention(4, 3, value_dim=2, name="mha")(y, memory)
    y = layers.GlobalAveragePooling1D()(layers.ReLU()(y))
    model = keras.Model(x, layers.Dense(3, name="out")(y))

    def zeros(removed):
        a, memory = removed["a"], removed["memory"]
        return [
            ("mha", "attention_output/kernel", 0, removed["mha"]),
            ("mha", "query/kernel", 0, a),
            ("mha", "key/kernel", 0, memory),
            ("mha", "value/kernel", 0, memory),
            ("out", "kernel", 0, a),
        ]

    found, small, _ = check(model, zeros)
    assert len(found.producers["mha"].units) == 4
    assert small.get_layer("mha").get_config()["num_heads"] == 2
    assert found.producers["mha"].filters().shape == (4, 7 * 2)
    assert "mha" not in removed_channels(dependencies(model, spare=["mha"]), [0])


def test_attention_with_a_width_of_its_own_keeps_it():
    x = keras.Input((6, 5))
    y = layers.Dense(8, name="a")(x)
    y = layers.MultiHeadAttention(4, 3, output_shape=6, use_bias=False, name="mha")(y, y)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Flatten()(y)))

    def zeros(removed):
        parts = [("mha", f"{part}/kernel", 0, removed["a"]) for part in ("query", "key", "value")]
        return [*parts, ("mha", "attention_output/kernel", 0, removed["mha"])]

    check(model, zeros)


RECURRENT = {
    "LSTM": lambda **kwargs: layers.LSTM(6, **kwargs),
    "GRU": lambda **kwargs: layers.GRU(6, **kwargs),
    "GRU of the paper": lambda **kwargs: layers.GRU(6, reset_after=False, **kwargs),
    "SimpleRNN": lambda **kwargs: layers.SimpleRNN(6, use_bias=False, **kwargs),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_units(kind):
    x = keras.Input((5, 4))
    y = layers.Dense(6, activation="tanh", name="a")(x)
    y = RECURRENT[kind](return_sequences=True, name="r1")(y)
    y = RECURRENT[kind](name="r2")(y)
    model = keras.Model(x, layers.Dense(3, name="out")(y))

    def zeros(removed):
        return [
            ("r1", "cell/kernel", 0, removed["a"]),
            ("r1", "recurrent_kernel", 0, removed["r1"]),
            ("r2", "cell/kernel", 0, removed["r1"]),
            ("r2", "recurrent_kernel", 0, removed["r2"]),
            ("out", "kernel", 0, removed["r2"]),
        ]

    found, small, _ = check(model, zeros)
    assert small.get_layer("r1").units == small.get_layer("r2").units == 3
    assert [len(group.units) for group in found.groups] == [6, 6, 6]


def test_filter_of_a_recurrent_unit_has_the_columns_of_all_gates():
    model = keras.Sequential([keras.Input((5, 2)), layers.LSTM(3, name="r"), layers.Dense(1)])
    kernel = np.array(model.get_layer("r").cell.kernel)
    filters = dependencies(model).producers["r"].filters()
    for unit in range(3):
        assert sorted(filters[unit]) == sorted(kernel[:, unit::3].ravel())


def test_states_are_followed_and_stateful_layers_are_left_alone():
    x = keras.Input((5, 4))
    output, h, c = layers.LSTM(6, return_state=True, name="r")(x)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Concatenate()([h, output, c])))

    def zeros(removed):
        r = removed["r"]
        places = [*r, *(u + 6 for u in r), *(u + 12 for u in r)]
        return [("r", "recurrent_kernel", 0, r), ("out", "kernel", 0, places)]

    check(model, zeros)
    x = keras.Input((5, 4), batch_size=4)
    y = layers.Dense(3)(layers.LSTM(6, stateful=True, name="r")(x))
    assert "from batch to batch" in dependencies(keras.Model(x, y)).skipped["r"]


@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_bidirectional(merge):
    x = keras.Input((5, 4))
    y = layers.Dense(6, activation="tanh", name="a")(x)
    y = layers.Bidirectional(layers.GRU(6, return_sequences=True), merge, name="r")(y)
    y = layers.GlobalAveragePooling1D()(y)
    model = keras.Model(x, layers.Dense(3, name="out")(y))

    def zeros(removed):
        r = removed["r"]
        result = [("out", "kernel", 0, [*r, *(u + 6 for u in r)] if merge == "concat" else r)]
        for one in model.get_layer("r").weights:
            suffix = "/".join(one.path.split("/")[-3:])
            if suffix.endswith("recurrent_kernel"):
                result.append(("r", suffix, 0, r))
            elif suffix.endswith("kernel"):
                result.append(("r", suffix, 0, removed["a"]))
        return result

    check(model, zeros)


def test_time_distributed_and_embedding():
    x = keras.Input((5,), dtype="int32")
    y = layers.Embedding(9, 8, name="e")(x)
    y = layers.TimeDistributed(layers.Dense(6, activation="tanh"), name="t")(y)
    y = layers.Conv1D(4, 3, name="c")(y)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Flatten()(y)))

    def zeros(removed):
        c = [place * 4 + channel for place in range(3) for channel in removed["c"]]
        return [
            ("t", "kernel", 0, removed["e"]),
            ("c", "kernel", 1, removed["t"]),
            ("out", "kernel", 0, c),
        ]

    found, small, _ = check(model, zeros)
    assert found.sizes[SizeKey("t", "layer.config.units")].shape == (6,)
    assert small.get_layer("t").layer.units == 3


@pytest.mark.parametrize("wrap", [lambda r: r, layers.Bidirectional])
def test_masks_of_tokens_go_with_what_is_cut(wrap):
    x = keras.Input((5,), dtype="int32")
    y = layers.Embedding(9, 8, mask_zero=True, name="e")(x)
    y = layers.GlobalAveragePooling1D()(wrap(layers.LSTM(6, return_sequences=True))(y))
    model = keras.Model(x, layers.Dense(3, name="out")(y))
    kinds = (layers.LSTM, layers.Bidirectional)
    recurrent = next(layer for layer in model.layers if isinstance(layer, kinds))

    def zeros(removed):
        r = removed[recurrent.name]
        both = [*r, *(u + 6 for u in r)] if wrap is layers.Bidirectional else r
        result = [("out", "kernel", 0, both)]
        for one in recurrent.weights:
            suffix = "/".join(one.path.split("/")[-3:])
            if suffix.endswith("recurrent_kernel"):
                result.append((recurrent.name, suffix, 0, r))
            elif suffix.endswith("kernel"):
                result.append((recurrent.name, suffix, 0, removed["e"]))
        return result

    check(model, zeros)


def test_repeated_vectors():
    x = keras.Input((4,))
    y = layers.RepeatVector(5)(layers.Dense(6, name="a")(x))
    y = layers.Conv1D(4, 3, activation="tanh", name="c")(y)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.GlobalMaxPooling1D()(y)))

    def zeros(removed):
        return [("c", "kernel", 1, removed["a"]), ("out", "kernel", 0, removed["c"])]

    check(model, zeros)


def test_axes_of_size_one_come_and_go():
    """Squeeze-and-excitation as it is written with operations."""
    x = keras.Input((6, 5, 3))
    y = conv(6, "a", activation="tanh")(x)
    gate = layers.Dense(6, activation="sigmoid", name="gate")(keras.ops.mean(y, axis=(1, 2)))
    y = y * keras.ops.expand_dims(gate, axis=(1, -2))
    y = keras.ops.squeeze(keras.ops.expand_dims(y, 1), 1)
    y = conv(8, "b", 5, activation="tanh")(layers.MaxPooling2D((6, 1))(y))
    y = keras.ops.squeeze(y, axis=1)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.GlobalMaxPooling1D()(y)))

    def zeros(removed):
        assert removed["a"] == removed["gate"]
        return [
            ("gate", "kernel", 0, removed["a"]),
            ("b", "kernel", 2, removed["a"]),
            ("out", "kernel", 0, removed["b"]),
        ]

    check(model, zeros)


def test_axes_that_may_be_the_batch_or_the_channels_are_barriers():
    x = keras.Input((5, 4))
    y = layers.Dense(6, name="a")(x)
    one = layers.Dense(1, name="one")(y)
    model = keras.Model(x, [keras.ops.squeeze(one, -1), keras.ops.expand_dims(y, 0)])
    found = dependencies(model)
    assert found.n_units == 0
    assert any("another axis the batch" in reason for reason in found.skipped.values())


@pytest.mark.skipif(
    not hasattr(layers, "AdaptiveAveragePooling2D"), reason="a later version of Keras has it"
)
def test_adaptive_pooling():
    x = keras.Input((6, 6, 3))
    y = layers.AdaptiveAveragePooling2D((2, 3))(conv(6, "a", activation="tanh")(x))
    y = layers.AdaptiveMaxPooling2D(2)(y)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Flatten()(y)))

    def zeros(removed):
        return [("out", "kernel", 0, [c + 6 * i for i in range(4) for c in removed["a"]])]

    check(model, zeros)


def test_normalization_of_channels():
    x = keras.Input((5, 4))
    y = layers.Normalization(name="n")(layers.Dense(6, name="a")(x))
    model = keras.Model(x, layers.Dense(3, name="out")(layers.GlobalMaxPooling1D()(y)))
    check(model, lambda removed: [("out", "kernel", 0, removed["a"])])


def test_layer_normalization_is_listed_with_what_flows_into_it():
    x = keras.Input((5, 4))
    y = layers.LayerNormalization(name="norm")(layers.Dense(6, name="a")(x))
    found = dependencies(keras.Model(x, layers.Dense(3, name="out")(y)))
    assert "without one of them the others would change" in found.skipped["norm"]
    assert "flows into 'norm'" in found.skipped["a"]
    assert found.n_units == 0
