"""shrink over generated models of all families: hundreds, each compared with its masked model.

No index comes from the code under test. Which channels were removed is read off the values that
the smaller model still holds. Which inputs of which consumers they reach is found by running the
model: every layer with a kernel is replaced by noise, once more with the removed channels
disturbed, and an input that differs is one that they reach. The masked model is a copy of full
size that is run with zeros at those inputs, which is what zero weights there amount to.

All is computed in float64, so that equality is told to nine digits however deep a model is.
"""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers, ops

from tests.pruning.oracle import double_precision
from tfcomp.errors import TfcompError
from tfcomp.graph import dependencies, rebuild, removal, trace
from tfcomp.graph.trace import substitute
from tfcomp.pruning import FPGM, L1Norm, L2Norm, Random, shrink

TOLERANCE = 1e-9
HEIGHT, WIDTH = 2, 3
STEPS = HEIGHT * WIDTH


# --- The oracle -------------------------------------------------------------------------------

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
GATES = {layers.LSTM: 4, layers.GRU: 3, layers.SimpleRNN: 1}


def is_source(op):
    """Whether the layer mixes what it reads by a kernel, and so makes channels of its own."""
    if type(op) in CONVOLUTIONS and op.groups > 1 and op.kernel.shape[-2] == 1:
        return False  # Depthwise by another name.
    kinds = (*CONVOLUTIONS, *TRANSPOSED, *SEPARABLE, *GATES)
    others = (layers.Dense, layers.Embedding, layers.MultiHeadAttention)
    return type(op) in (*kinds, *others, layers.Bidirectional, layers.TimeDistributed)


def kernels(op):
    """For each set of channels that a layer makes: its kernel, the axis, how often they repeat."""
    if type(op) in TRANSPOSED:
        return [(op.kernel, -2, 1)]
    if type(op) in SEPARABLE:
        return [(op.pointwise_kernel, -1, 1)]
    if type(op) is layers.Embedding:
        return [(op.embeddings, -1, 1)]
    if type(op) in GATES:
        return [(op.cell.kernel, -1, GATES[type(op)])]
    if type(op) is layers.Bidirectional:
        return kernels(op.forward_layer) + kernels(op.backward_layer)
    if type(op) is layers.TimeDistributed:
        return kernels(op.layer)
    if type(op) is layers.MultiHeadAttention:
        return [(op.output_dense.kernel, -1, 1)]
    return [(op.kernel, -1, 1)]


def removed_rows(old, new):
    """Which entries of the axis are not in the smaller kernel, by the values that it holds."""
    (before, axis, gates), (after, _, _) = old, new
    rows, left = (
        np.moveaxis(np.asarray(kernel), axis, 0).reshape(gates, -1, kernel_rest(kernel, axis))
        for kernel in (before, after)
    )
    gone = np.ones(rows.shape[1], bool)
    for index in range(left.shape[1]):
        holders = [r for r in range(len(gone)) if np.isin(left[:, index], rows[:, r]).all()]
        assert len(holders) == 1, "a kept channel has the weights of one that there was"
        gone[holders] = False
    return gone


def kernel_rest(kernel, axis):
    return math.prod(kernel.shape) // kernel.shape[axis]


def removed_of(model, small):
    """For each source the removed channels of its output, and the heads or units within."""
    outer, inner = {}, {}
    for name, op in trace(model).ops.items():
        if not is_source(op):
            continue
        new = small.get_layer(name)
        sets = [removed_rows(a, b) for a, b in zip(kernels(op), kernels(new), strict=True)]
        joined = type(op) is layers.Bidirectional and op.merge_mode == "concat"
        if not joined:
            assert all((one == sets[0]).all() for one in sets), "directions that are merged differ"
        outer[name] = np.concatenate(sets) if joined else sets[0]
        inner[name] = sets
        if type(op) is layers.MultiHeadAttention:
            heads = [(layer.value_dense.kernel, 1, 1) for layer in (op, new)]
            inner[name] = [removed_rows(*heads)]
    return outer, inner


def random_inputs(model, batch, seed=1):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 9, (batch, *tensor.shape[1:])).astype("int32")
        if "int" in tensor.dtype
        else rng.normal(size=(batch, *tensor.shape[1:]))
        for tensor in model.inputs
    ]


def call(node, values):
    kwargs = {key: value for key, value in node.kwargs.items() if value is not None}
    result = node.op(*substitute(node.args, values), **substitute(kwargs, values))
    return keras.tree.flatten(result)


def reached_inputs(graph, arrays, removed):
    """For each source, by name, and each of its inputs: the channels that a removed one reaches."""
    runs = []
    for disturbed in (False, True):
        values = dict(zip(graph.input_tensors, map(tf.constant, arrays), strict=True))
        seen = {}
        for index, node in enumerate(graph.nodes):
            if not is_source(node.op):
                values.update(zip(node.outputs, call(node, values), strict=True))
                continue
            seen[index] = [np.asarray(values[tensor]) for tensor in node.inputs]
            for place, tensor in enumerate(node.outputs):
                rng = np.random.default_rng((index, place))
                noise = rng.normal(size=(len(arrays[0]), *tensor.shape[1:]))
                if disturbed:
                    gone = removed[node.name]
                    noise[..., gone] = 30.0 * rng.normal(size=noise[..., gone].shape)
                values[tensor] = tf.constant(noise)
        runs.append((seen, [np.asarray(values[tensor]) for tensor in graph.output_tensors]))
    (calm, calm_out), (wild, wild_out) = runs
    for a, b in zip(calm_out, wild_out, strict=True):
        np.testing.assert_array_equal(a, b, "a removed channel reaches an output directly")
    reached = {}
    for index, inputs in calm.items():
        masks = [
            (a != b).reshape(-1, a.shape[-1]).any(axis=0)
            for a, b in zip(inputs, wild[index], strict=True)
        ]
        known = reached.setdefault(graph.nodes[index].name, masks)
        assert all((a == b).all() for a, b in zip(known, masks, strict=True)), (
            "calls of a shared layer differ"
        )
    return reached


def silence(layer, inner):
    """Zeros where a layer reads what it removed of itself: recurrent units, attention heads."""
    parts = {
        layers.Bidirectional: lambda: (layer.forward_layer, layer.backward_layer),
        layers.MultiHeadAttention: lambda: (layer.output_dense,),
    }.get(type(layer), lambda: (layer,))()
    for part, gone in zip(parts, inner, strict=True):
        cell = getattr(part, "cell", None)
        variable = part.kernel if cell is None else cell.recurrent_kernel
        value = np.array(variable)
        value[gone] = 0.0
        variable.assign(value)


def masked_outputs(model, arrays, reached, inner):
    copy = rebuild(model)
    for name, gone in inner.items():
        layer = copy.get_layer(name)
        if type(layer) in (*GATES, layers.Bidirectional, layers.MultiHeadAttention):
            silence(layer, gone)
    graph = trace(copy)
    values = dict(zip(graph.input_tensors, map(tf.constant, arrays), strict=True))
    for node in graph.nodes:
        given = dict(values)
        for tensor, mask in zip(node.inputs, reached.get(node.name, ()), strict=False):
            given[tensor] = tf.where(mask, tf.zeros_like(values[tensor]), values[tensor])
        values.update(zip(node.outputs, call(node, given), strict=True))
    return [np.asarray(values[tensor]) for tensor in graph.output_tensors]


def outputs(model, arrays):
    given = keras.tree.pack_sequence_as(model.input, [tf.constant(array) for array in arrays])
    return [np.asarray(value) for value in keras.tree.flatten(model(given, training=False))]


def assert_equal_to_masked(model, small):
    """Raises AssertionError unless equal; returns whether the outputs depend on what was cut."""
    outer, inner = removed_of(model, small)
    graph = trace(model)
    reached = reached_inputs(graph, random_inputs(model, 16, seed=2), outer)
    arrays = random_inputs(model, 4)
    expected = masked_outputs(model, arrays, reached, inner)
    full, received = outputs(model, arrays), outputs(small, arrays)
    lives = False
    for whole, y, z in zip(full, expected, received, strict=True):
        assert np.isfinite(y).all()
        largest = np.abs(y).max()
        np.testing.assert_allclose(z, y, rtol=0, atol=TOLERANCE * largest)
        lives |= np.ptp(y, axis=0).max() > 1e-3 * largest and np.abs(whole - y).max() > 1e-3
    return lives


def randomize(model, seed):
    """Every weight and every statistic, at a scale that keeps signals alive."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if not np.issubdtype(np.dtype(variable.dtype), np.floating):
            continue
        if "variance" in variable.path or "gamma" in variable.path:
            value = rng.uniform(0.5, 1.5, shape)
        elif "kernel" in variable.path:
            value = rng.normal(size=shape) * 1.5 / math.sqrt(max(math.prod(shape[:-1]), 1))
        else:
            value = rng.normal(size=shape) * 0.5
        variable.assign(value)
    return model


# --- The generator: each step adds a tensor made from earlier ones ------------------------------

ACTIVATIONS = [None, "relu", "tanh", "gelu", "sigmoid", "swish", "leaky_relu", "softmax"]


def channels(x):
    return x.shape[-1]


def divisor(x):
    return next((g for g in (3, 2) if channels(x) % g == 0), 1)


def pointwise(x, width):
    """Any layer that makes `width` channels at every position."""
    kinds = {3: layers.Conv1D, 4: layers.Conv2D, 5: layers.Conv3D}
    return kinds[len(x.shape)](width, 1)(x) if len(x.shape) > 2 else layers.Dense(width)(x)


def fitted(y, x):
    return y if channels(x) == channels(y) else pointwise(y, channels(x))


def dividing(x, n):
    """A tensor whose channels a number of groups divides, and that number."""
    groups = divisor(x)
    if groups > 1 and channels(x) > groups:
        return x, groups
    return pointwise(x, 4 + 2 * (n % 2)), 2


def convolve(kind):
    def step(b, x, y, n):
        padding = "causal" if kind is layers.Conv1D and n % 3 == 0 else "same"
        return kind(
            2 + n, 1 + n % 3, padding=padding, use_bias=n % 2 == 0, activation=ACTIVATIONS[n]
        )(x)

    return step


def convolve_groups(kind):
    def step(b, x, y, n):
        x, groups = dividing(x, n)
        return kind(groups * (1 + n % 4), 1 + n % 2 * 2, padding="same", groups=groups)(x)

    return step


def convolve_each(kind):
    def step(b, x, y, n):
        width = channels(x)
        return kind(width * (1 + n % 2), 3, padding="same", groups=width, activation="relu")(x)

    return step


def depthwise(kind):
    return lambda b, x, y, n: kind(3, padding="same", depth_multiplier=1 + n % 2)(x)


def separable(kind):
    return lambda b, x, y, n: kind(2 + n, 3, padding="same", depth_multiplier=1 + n % 2)(x)


def dense(b, x, y, n):
    return layers.Dense(2 + n, activation=ACTIVATIONS[n])(x)


def batch_norm(b, x, y, n):
    return layers.BatchNormalization(scale=n % 2 == 0, center=n % 3 > 0)(x)


def other_norm(b, x, y, n):
    if n % 4 == 0:
        return layers.LayerNormalization()(x)
    if n % 4 == 1:
        return layers.UnitNormalization()(x)
    x, groups = dividing(x, n)
    # A group of one value would be its own mean: nothing but beta would be left of a vector.
    x = x if len(x.shape) > 2 else pointwise(x, 6)
    return layers.GroupNormalization(groups if len(x.shape) > 2 else 3)(x)


def activate(b, x, y, n):
    spatial = list(range(1, len(x.shape) - 1))
    return [
        lambda: layers.ReLU(6.0)(x),
        lambda: layers.PReLU()(x),
        lambda: layers.PReLU(shared_axes=spatial)(x) if spatial else ops.silu(x),
        lambda: layers.Dropout(0.3)(layers.ELU()(x)),
        lambda: ops.sigmoid(x) * 2.0 - 1.0,
        lambda: ops.maximum(x, 0.1) / 3.0,
        lambda: layers.GaussianNoise(0.1)(x * x),
        lambda: layers.Activation("hard_tanh")(-x),
    ][n]()


def merge(b, x, y, n):
    y = fitted(y, x)
    kinds = [layers.Add, layers.Subtract, layers.Average, layers.Maximum, layers.Minimum]
    return kinds[n]()([x, y]) if n < 5 else [x + y, x * y, ops.maximum(x, y)][n - 5]


def join(b, x, y, n):
    parts = [x, y, x] if n == 0 else [x, b.image, y] if n == 1 and len(x.shape) == 4 else [x, y]
    return ops.concatenate(parts, axis=-1) if n % 2 else layers.Concatenate()(parts)


def join_elsewhere(b, x, y, n):
    """Along another axis than that of channels, and cut to size again."""
    if len(x.shape) == 2:
        return layers.Concatenate()([y, x])
    joined = layers.Concatenate(axis=1)([x, fitted(y, x)])
    return joined[:, : x.shape[1]] if n % 2 else joined[:, -x.shape[1] :]


def split(b, x, y, n):
    width = channels(x)
    if width < 2:
        return x
    at = 2 if width % 2 == 0 and n % 2 else [1 + n % (width - 1)]
    first, second = ops.split(x, at, axis=-1)
    return ops.concatenate([second, ops.tanh(first)], axis=-1)


def slices(b, x, y, n):
    start = n % channels(x)
    return x[..., start:] if n % 2 else x[..., : channels(x) - start]


def gated_halves(b, x, y, n):
    half = channels(x) // 2
    return x[..., :half] * ops.sigmoid(x[..., half : 2 * half]) if half else ops.sigmoid(x)


def squeeze_excite(b, x, y, n):
    if len(x.shape) == 2:
        return x * layers.Dense(channels(x), activation="sigmoid")(y)
    spatial = list(range(1, len(x.shape) - 1))
    gate = ops.mean(x, axis=spatial, keepdims=n % 2 == 0)
    gate = layers.Dense(1 + n, activation="relu")(gate)
    gate = layers.Dense(channels(x), activation="hard_sigmoid")(gate)
    gate = gate if n % 2 == 0 else layers.Reshape((*[1] * len(spatial), channels(x)))(gate)
    return layers.Multiply()([x, gate])


def barrier(b, x, y, n):
    return [
        lambda: x - ops.mean(x, axis=-1, keepdims=True),
        lambda: layers.Softmax()(x),
        lambda: x * np.arange(1.0, channels(x) + 1.0),
        lambda: layers.Lambda(lambda t: t * ops.mean(t, axis=-1, keepdims=True))(x),
        lambda: ops.flip(x, axis=-1),
        lambda: ops.cumsum(x, axis=-1),
        lambda: x[..., ::2],
        lambda: layers.RMSNormalization()(x),
    ][n]()


def shuffle(b, x, y, n):
    """Channels of two groups in turn, as in ShuffleNet."""
    if channels(x) % 2 or len(x.shape) == 2:
        return x[..., None, :][..., 0, :] if len(x.shape) > 2 else layers.Reshape((-1,))(x)
    inner, rank = x.shape[1:-1], len(x.shape)
    y = layers.Reshape((*inner, 2, channels(x) // 2))(x)
    y = layers.Permute((*range(1, rank - 1), rank, rank - 1))(y)
    return layers.Reshape((*inner, channels(x)))(y)


def space(b, x, y, n):
    return [
        lambda: layers.MaxPooling2D(3, 1, padding="same")(x),
        lambda: layers.AveragePooling2D(2, 1, padding="same")(x),
        lambda: layers.MaxPooling2D(2)(layers.UpSampling2D(2)(x)),
        lambda: layers.Cropping2D(1)(layers.ZeroPadding2D(1)(x)),
        lambda: layers.SpatialDropout2D(0.2)(x),
        lambda: ops.transpose(ops.transpose(x, (0, 3, 1, 2)), (0, 2, 3, 1)),
        lambda: layers.Permute((2, 1, 3))(layers.Permute((2, 1, 3))(x)),
        lambda: layers.Resizing(HEIGHT, WIDTH)(layers.UpSampling2D((2, 3))(x)),
    ][n]()


def volume_space(b, x, y, n):
    if n % 2:
        return layers.Cropping3D(1)(layers.ZeroPadding3D(1)(x))
    return layers.Conv3D(2 + n, (1, 2, 2), (1, 2, 2))(layers.UpSampling3D((1, 2, 2))(x))


def nested(b, x, y, n):
    """A functional block with a residual connection; called again, it is the same block."""
    key = ("block", len(x.shape), channels(x))
    if key not in b.made or n > 5:
        inside = keras.Input(x.shape[1:])
        z = layers.ReLU()(layers.BatchNormalization()(pointwise(inside, 3 + n)))
        b.made[key] = keras.Model(inside, layers.Add()([inside, pointwise(z, channels(x))]))
    return b.made[key](x)


def nested_sequential(b, x, y, n):
    chain = [layers.Dense(2 + n, activation="tanh"), layers.BatchNormalization(), layers.ReLU()]
    return keras.Sequential(chain)(x)


def shared(b, x, y, n):
    key = ("shared", len(x.shape), channels(x))
    if key not in b.made:
        b.made[key] = layers.Dense(2 + n, activation="relu")
    return b.made[key](x)


RECURRENT = [layers.LSTM, layers.GRU, layers.SimpleRNN]


def recurrent(b, x, y, n):
    kind = RECURRENT[n % 3]
    options = {"reset_after": n < 4} if kind is layers.GRU else {}
    return kind(2 + n % 4, return_sequences=True, use_bias=n != 6, **options)(x)


def recurrent_states(b, x, y, n):
    if n % 4 == 0:
        state = layers.GlobalAveragePooling1D()(y)
        return layers.GRU(channels(y), return_sequences=True)(x, initial_state=state)
    whole, *states = RECURRENT[n % 2](3 + n % 3, return_state=True, return_sequences=True)(x)
    return whole * layers.Reshape((1, -1))(states[-1])


def bidirectional(b, x, y, n):
    mode = ["concat", "sum", "mul", "ave"][n % 4]
    return layers.Bidirectional(RECURRENT[n % 3](2 + n % 4, return_sequences=True), mode)(x)


def attention(b, x, y, n):
    options = {"value_dim": 2} if n % 2 else {}
    if n > 5:
        options["output_shape"] = 4
    made = layers.MultiHeadAttention(2 + n % 3, 2, use_bias=n % 4 > 0, **options)
    if n % 3 == 0:
        return made(x, x)
    return made(x, y, use_causal_mask=n == 1) if n % 3 == 1 else made(x, y, key=b.pick("seq", n))


def over_time(b, x, y, n):
    return layers.TimeDistributed(layers.Dense(2 + n, activation=ACTIVATIONS[n]))(x)


def embed(b, x, y, n):
    if b.tokens is None:
        b.tokens = keras.Input((STEPS,), dtype="int32")
    return layers.Embedding(9, 2 + n, mask_zero=n % 2 == 0)(b.tokens)


def repeat(b, x, y, n):
    return layers.RepeatVector(STEPS)(x) if n % 2 else b.as_rank(x, 3, n)


ANY = ["vector", "seq", "map", "volume"]
# What is made, from a tensor of which kinds. What comes twice is drawn twice as often.
MOVES = [
    (["map"], convolve(layers.Conv2D)),
    (["map"], convolve(layers.Conv2D)),
    (["map"], convolve_groups(layers.Conv2D)),
    (["map"], convolve_each(layers.Conv2D)),
    (["map"], convolve(layers.Conv2DTranspose)),
    (["map"], depthwise(layers.DepthwiseConv2D)),
    (["map"], separable(layers.SeparableConv2D)),
    (["map"], space),
    (["seq"], convolve(layers.Conv1D)),
    (["seq"], convolve_groups(layers.Conv1D)),
    (["seq"], convolve(layers.Conv1DTranspose)),
    (["seq"], depthwise(layers.DepthwiseConv1D)),
    (["seq"], separable(layers.SeparableConv1D)),
    (["seq"], recurrent),
    (["seq"], recurrent_states),
    (["seq"], bidirectional),
    (["seq"], attention),
    (["seq"], attention),
    (["seq"], over_time),
    (["seq"], embed),
    (["vector"], repeat),
    (["vector"], dense),
    (["volume"], convolve(layers.Conv3D)),
    (["volume"], convolve_groups(layers.Conv3D)),
    (["volume"], convolve(layers.Conv3DTranspose)),
    (["volume"], volume_space),
    (ANY, dense),
    (ANY, batch_norm),
    (ANY, batch_norm),
    (ANY, other_norm),
    (ANY, activate),
    (ANY, merge),
    (ANY, merge),
    (ANY, join),
    (ANY, join_elsewhere),
    (ANY, split),
    (ANY, slices),
    (ANY, gated_halves),
    (ANY, squeeze_excite),
    (ANY, barrier),
    (ANY, shuffle),
    (ANY, nested),
    (ANY, nested_sequential),
    (ANY, shared),
]
RANKS = {"vector": 2, "seq": 3, "map": 4, "volume": 5}
SHAPES = {3: (STEPS,), 4: (HEIGHT, WIDTH), 5: (1, HEIGHT, WIDTH)}


class Builder:
    """A model from a plan of numbers: (which move, which tensor, which other tensor, how)."""

    def __init__(self, plan):
        self.image = keras.Input((HEIGHT, WIDTH, 3))
        self.tokens = None
        self.made = {}
        self.pool = [pointwise(self.image, 4)]
        for move, i, j, n in plan:
            kinds, step = MOVES[move]
            kind = kinds[i % len(kinds)]
            x, y = self.pick(kind, i), self.pick(kind, j + 1)
            self.pool.append(step(self, x, y, n))

    def pick(self, kind, index):
        """A tensor of this kind, the later the likelier; one of another kind is made into it."""
        x = self.pool[-1 - index % min(len(self.pool), 4)]
        return self.as_rank(x, RANKS[kind], index)

    def as_rank(self, x, rank, n):
        if len(x.shape) == rank:
            return x
        if rank == 2:
            return self.as_vector(x, n)
        if len(x.shape) == 2:
            x = layers.Dense(STEPS * (2 + n % 3))(x)
            return layers.Reshape((*SHAPES[rank], 2 + n % 3))(x)
        shape = (*SHAPES[rank], channels(x))
        return ops.reshape(x, (-1, *shape)) if n % 2 else layers.Reshape(shape)(x)

    def as_vector(self, x, n):
        if n % 4 == 0:
            return layers.Flatten()(x)
        if n % 4 == 1:
            # As with channels in front.
            rank = len(x.shape)
            return layers.Flatten()(layers.Permute((rank - 1, *range(1, rank - 1)))(x))
        if len(x.shape) == 3 and n % 8 == 6:
            return layers.Bidirectional(layers.LSTM(3))(x)
        pooling = {
            3: (layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D),
            4: (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D),
            5: (layers.GlobalAveragePooling3D, layers.GlobalMaxPooling3D),
        }
        return pooling[len(x.shape)][n % 2]()(x)

    def model(self, n):
        ends = self.pool[-1:] if len(self.pool) < 3 else [self.pool[-1], self.pool[-2]]
        y = layers.Concatenate()([self.as_rank(x, 2, n + i) for i, x in enumerate(ends)] * 2)
        made = [layers.Dense(3)(layers.Dense(5, activation="tanh")(y))]
        if n % 3 == 0:
            made.append(pointwise(self.pool[0], 2))
        if n % 5 == 0:
            made.append(self.pool[len(self.pool) // 2])
        inputs = [self.image] if self.tokens is None else [self.image, self.tokens]
        return keras.Model(inputs, made)


number = st.integers(0, 7)
plans = st.lists(
    st.tuples(st.integers(0, len(MOVES) - 1), number, number, number), min_size=2, max_size=9
)


# --- The comparison ---------------------------------------------------------------------------


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
    keras.utils.clear_session()
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
        results.append(compare(plan, seed))

    with double_precision():
        run()
    cut = [result for result in results if result is not None]
    assert len(cut) > 0.5 * len(results), "too many models of which nothing can be cut"
    assert np.mean(cut) > 0.6, "too many models whose outputs do not depend on what was cut"


def test_models_of_all_families():
    compare_many(120, derandomize=True)


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
