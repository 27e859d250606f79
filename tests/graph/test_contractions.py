"""Sums over products: einsum, matrix products, attention: smaller model = masked model."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.graph.masked import check, check_built
from tfcomp.graph import AxisKey, SizeKey, dependencies
from tfcomp.graph.feature_maps import channel_axis


def dense(units, name):
    return layers.Dense(units, activation="tanh", name=name)


def out(y):
    y = layers.Flatten()(y) if len(y.shape) > 2 else y
    return layers.Dense(3, name="out")(y)


# Equation, shape of what comes in, what the layer is told of its output, axes of the bias, and
# the axis of the kernel that reads channels; how many channels it makes, and on which axis.
PLAIN = {
    "abc,cd->abd": ((5, 6), (None, 8), "d", 0, 8, -1),
    "ab,bc->ac": ((6,), 8, "c", 0, 8, -1),
    "...x,xy->...y": ((4, 5, 6), 8, "y", 0, 8, -1),
    "abc,dc->abd": ((5, 6), (5, 8), None, 1, 8, -1),
    "abc,cd->adb": ((5, 6), (8, None), "d", 0, 8, 1),
    "abc,cde->abde": ((5, 6), (None, 4, 3), "de", 0, 4, 2),
    "abc,cd->abd and a bias everywhere": ((5, 6), (5, 8), "bd", 0, 8, -1),
    "abc,bcd->abd": ((5, 6), (5, 8), "d", 1, 8, -1),
}


@pytest.mark.parametrize("case", PLAIN)
def test_einsum_dense(case):
    shape, told, bias, read, made, axis = PLAIN[case]
    x = keras.Input(shape)
    y = dense(6, "a")(x)
    layer = layers.EinsumDense(case.split(" and")[0], told, bias_axes=bias, name="e")
    y = ops.tanh(layer(y))
    # What the layer is not told the size of, it does not tell either.
    y = ops.mean(y, [i for i, size in enumerate(y.shape) if i and size is None] or [], True)
    model = keras.Model(x, out(y))
    axis %= len(y.shape)

    def zeros(removed):
        numbers = np.arange(np.prod(y.shape[1:])).reshape(y.shape[1:])
        read_by_out = np.take(numbers, removed["e"], axis - 1).ravel().tolist()
        return [("e", "e/kernel", read, removed["a"]), ("out", "kernel", 0, read_by_out)]

    found, small, _ = check(model, zeros)
    assert [len(group.units) for group in found.groups] == [6, made]
    assert small.get_layer("e").output.shape[axis] == made // 2
    assert channel_axis(layer) == axis - len(y.shape)


def test_einsum_dense_with_an_ellipsis_behind():
    x = keras.Input((6, 4, 5))
    y = layers.Permute((3, 1, 2))(dense(6, "a")(layers.Permute((2, 3, 1))(x)))
    y = layers.EinsumDense("ab...,bc->ac...", 8, bias_axes="c", name="e")(y)
    y = layers.Permute((2, 3, 1))(layers.ReLU()(y))
    model = keras.Model(x, out(layers.GlobalAveragePooling2D()(y)))

    def zeros(removed):
        return [("e", "kernel", 0, removed["a"]), ("out", "kernel", 0, removed["e"])]

    check(model, zeros)


def test_einsum_dense_that_passes_channels_on():
    """Each channel by itself with weights of its own; mixing steps of time, not channels."""
    x = keras.Input((5, 6))
    y = dense(6, "a")(x)
    y = layers.EinsumDense("abc,bc->abc", (5, 6), bias_axes="c", name="scale")(y)
    mixed = layers.EinsumDense("abc,bd->adc", (4, 6), bias_axes="dc", name="mix")(y)
    model = keras.Model(x, out(ops.tanh(mixed)))

    def zeros(removed):
        places = [c + 6 * n for n in range(4) for c in removed["a"]]
        return [("out", "kernel", 0, places)]

    found, small, _ = check(model, zeros)
    assert "makes channels beside those that it passes on" in found.skipped["mix"]
    assert small.get_layer("mix").get_config()["output_shape"] == (4, 3)


def test_a_shared_einsum_dense_is_cut_as_far_as_all_of_its_calls_allow():
    x = keras.Input((5, 6))
    shared = layers.EinsumDense("abc,cd->abd", (5, 8), bias_axes="d", name="e")
    model = keras.Model(x, out(shared(x) + ops.tanh(shared(dense(6, "a")(x)))))
    found = dependencies(model)
    assert "channels that cannot be cut" in found.skipped["a"]
    assert [group.layers for group in found.groups] == [("e",)]


def test_heads_written_with_einsum():
    x = keras.Input((5, 7))

    def build(keep):
        y = dense(6, "a")(x)
        parts = [
            layers.EinsumDense("btd,dhe->bthe", (None, 4, 3), bias_axes="he", name=name)(
                keep(y, "a")
            )
            for name in ("query", "key", "value")
        ]
        query, key, value = parts
        scores = ops.softmax(ops.einsum("bqhe,bkhe->bhqk", query, key) / 3**0.5)
        y = ops.einsum("bhqk,bkhe->bqhe", scores, value)
        y = layers.EinsumDense("bqhe,hed->bqd", (None, 6), name="join")(y)
        return keras.Model(x, out(layers.GlobalAveragePooling1D()(y)))

    model = build(lambda tensor, name: tensor)

    def zeros(removed):
        heads = removed["query"]
        assert removed["value"] == removed["key"] == heads
        reads = [(name, "kernel", 0, removed["a"]) for name in ("query", "key", "value")]
        return [*reads, ("join", "kernel", 0, heads), ("out", "kernel", 0, removed["join"])]

    found, small, _ = check(model, zeros)
    assert found.sizes[SizeKey("value", "output_shape", 1)].shape == (4,)
    assert small.get_layer("query").kernel.shape == (3, 2, 3)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_as_an_operation(scale):
    x = keras.Input((5, 7))

    def build(keep):
        parts = []
        for name in ("query", "key", "value"):
            y = layers.EinsumDense("btd,dhe->bthe", (5, 4, 3), name=name)(x)
            # Heads are the axis before the last.
            parts.append(ops.swapaxes(keep(ops.swapaxes(y, 2, 3), name), 2, 3))
        y = ops.dot_product_attention(*parts, scale=scale)
        y = ops.swapaxes(keep(ops.swapaxes(y, 2, 3), "value"), 2, 3)
        return keras.Model(x, out(y))

    found, _, removed = check_built(build)
    assert removed["query"] == removed["key"] == removed["value"]
    assert found.n_units == 4
    y = ops.dot_product_attention(*(dense(6, name)(x)[:, :, None] for name in "qkv"), scale=scale)
    found = dependencies(keras.Model(x, out(y)))
    if scale is None:
        assert "scales its scores by the number of channels" in found.skipped["q"]
    else:
        assert [set(group.layers) for group in found.groups] == [{"q", "k"}, {"v"}]


def test_projections_compared_by_a_matrix_product():
    x = keras.Input((5, 7))

    def build(keep):
        query, key, value = (dense(6, name)(x) for name in ("query", "key", "value"))
        query, key = keep(query, "query"), keep(key, "key")
        scores = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 2, 1))))
        return keras.Model(x, out(keep(ops.matmul(scores, value), "value")))

    found, _, removed = check_built(build)
    assert removed["query"] == removed["key"]
    assert sorted(len(group.layers) for group in found.groups) == [1, 2]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("axes", [-1, (2, 2), (2, 1)])
def test_dot(axes, normalize):
    x, z = keras.Input((5, 7)), keras.Input((4, 7))

    def build(keep):
        a, b = keep(dense(6, "a")(x), "a"), keep(dense(6, "b")(z), "b")
        b = ops.swapaxes(b, 1, 2) if axes == (2, 1) else b
        return keras.Model([x, z], out(layers.Dot(axes, normalize=normalize, name="dot")([a, b])))

    found, _, removed = check_built(build)
    assert removed["a"] == removed["b"]
    assert found.n_units == 6


def test_dot_of_vectors_and_over_time():
    x, z = keras.Input((6,)), keras.Input((5, 6))

    def build(keep):
        score = layers.Dot(1)([keep(dense(6, "a")(x), "a"), keep(dense(6, "b")(x), "b")])
        weights = layers.Softmax()(layers.Dense(5, name="weights")(x))
        mixed = layers.Dot((1, 1), name="mix")([weights, dense(8, "c")(z)])
        return keras.Model([x, z], out(layers.Concatenate()([score, keep(mixed, "c")])))

    _, _, removed = check_built(build)
    assert removed["a"] == removed["b"]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Attention(use_scale=True, name="att"),
        lambda: layers.Attention(score_mode="concat", use_scale=True, name="att"),
        lambda: layers.AdditiveAttention(name="att"),
    ],
)
def test_attention(layer, apart):
    x, z = keras.Input((5, 7)), keras.Input((4, 7))

    def build(keep):
        query, key = keep(dense(6, "query")(x), "query"), keep(dense(6, "key")(z), "key")
        value = dense(8, "value")(z)
        given = [query, value, key] if apart else [query, key]
        y, scores = layer()(given, return_attention_scores=True)
        y = keep(y, "value" if apart else "key")
        return keras.Model([x, z], out(layers.Concatenate()([y, scores])))

    found, _, removed = check_built(build, seed=2)
    assert removed["query"] == removed["key"]
    assert found.n_units == (14 if apart else 6)
    if isinstance(layer(), layers.AdditiveAttention):
        assert len(found.axes[AxisKey("att", "scale", 0)]) == 6


HAS_GATE = "use_gate" in inspect.signature(layers.GroupQueryAttention).parameters


@pytest.mark.parametrize("gate", [False, True] if HAS_GATE else [False])
def test_heads_of_grouped_query_attention(gate):
    x = keras.Input((6, 5))
    y = layers.BatchNormalization()(layers.Dense(8, activation="relu", name="a")(x))
    value, key = (layers.Dense(8, activation="tanh", name=name)(x) for name in ("value", "key"))
    options = {"use_gate": True} if gate else {}
    y = y + layers.GroupQueryAttention(3, 8, 4, name="gqa", **options)(y, value, key)
    y = layers.GlobalAveragePooling1D()(layers.ReLU()(y))
    model = keras.Model(x, layers.Dense(3, name="out")(y))

    def zeros(removed):
        a = removed["a"]
        assert a == removed["value"], "the layer takes only as many channels of each"
        heads = [2 * head + i for head in removed["gqa"] for i in (0, 1)]
        return [
            ("gqa", "attention_output/kernel", 0, heads),
            *(("gqa", f"{part}/kernel", 0, a) for part in ("query", "gate")[: 1 + gate]),
            ("gqa", "key/kernel", 0, removed["key"]),
            ("gqa", "value/kernel", 0, a),
            ("out", "kernel", 0, a),
        ]

    # The bias of the keys is added to all scores alike.
    found, small, _ = check(model, zeros, silent=["weights.3"])
    assert len(found.producers["gqa"].units) == 4
    config = small.get_layer("gqa").get_config()
    assert (config["num_query_heads"], config["num_key_value_heads"]) == (4, 2)


def test_heads_of_attention_with_a_gate():
    x = keras.Input((6, 5))
    y = layers.Dense(8, activation="relu", name="a")(x)
    if "use_gate" not in inspect.signature(layers.MultiHeadAttention).parameters:
        pytest.skip("a later version of Keras has it")
    y = y + layers.MultiHeadAttention(4, 3, use_gate=True, name="mha")(y, y)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.GlobalAveragePooling1D()(y)))

    def zeros(removed):
        parts = ("query", "key", "value", "gate")
        return [
            ("mha", "attention_output/kernel", 0, removed["mha"]),
            *(("mha", f"{part}/kernel", 0, removed["a"]) for part in parts),
            ("out", "kernel", 0, removed["a"]),
        ]

    check(model, zeros)


@pytest.mark.skipif(
    not hasattr(layers, "ReversibleEmbedding"), reason="a later version of Keras has it"
)
def test_embeddings_read_in_reverse():
    tokens = keras.Input((5,), dtype="int32")
    shared = layers.ReversibleEmbedding(9, 8, name="e")
    y = layers.Conv1D(6, 3, padding="same", activation="tanh", name="c")(shared(tokens))
    y = layers.Dense(8, activation="tanh", name="d")(y)
    model = keras.Model(tokens, shared(y, reverse=True))

    def zeros(removed):
        assert removed["e"] == removed["d"]
        return [
            ("c", "kernel", 1, removed["e"]),
            ("d", "kernel", 0, removed["c"]),
            ("e", "embeddings", 1, removed["e"]),
        ]

    check(model, zeros)


BARRIERS = {
    "sums over channels": lambda x, y: ops.einsum("abc->ab", x),
    "channels on two axes": lambda x, y: ops.einsum("abc,abd->acd", x, y),
    "without a right side": lambda x, y: ops.einsum("abc,cd", x, np.ones((6, 2), "float32")),
    "makes channels the batch": lambda x, y: ops.einsum("abc->cba", x),
    "multiplies with a vector": lambda x, y: ops.matmul(x, np.ones(6, "float32")),
}


@pytest.mark.parametrize("reason", BARRIERS)
def test_products_that_mix_channels_say_why(reason):
    x = keras.Input((6, 5))
    y = BARRIERS[reason](layers.Dense(6, name="a")(x), layers.Dense(6, name="b")(x))
    found = dependencies(keras.Model(x, y))
    assert reason in found.skipped["a"], found.skipped


def test_a_constant_factor_with_a_value_for_each_channel_fixes_them():
    x = keras.Input((6, 5))
    y = ops.matmul(layers.Dense(6, name="a")(x), np.ones((6, 4), "float32"))
    assert "channels that cannot be cut" in dependencies(keras.Model(x, out(y))).skipped["a"]
