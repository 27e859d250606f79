"""Models of all families, made from a plan of numbers: each step adds a tensor to earlier ones."""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers, ops

HEIGHT, WIDTH = 2, 3
STEPS = HEIGHT * WIDTH

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


def first(kind, *args, **kwargs):
    return kind(*args, data_format="channels_first", **kwargs)


def channels_first(b, x, y, n):
    """Channels in front; where the width is not larger than their number, no bias."""
    x, bias = layers.Permute((3, 1, 2))(x), n % 2 == 0
    if n % 3 == 0:
        x = first(layers.DepthwiseConv2D, 3, padding="same", depth_multiplier=1 + n % 2)(x)
    x = first(layers.Conv2D, 2 + n, 1 + n % 3, padding="same", use_bias=bias)(x)
    x = layers.BatchNormalization(axis=1)(x)
    x = first(layers.MaxPooling2D, 2, 1, padding="same")(x) if n > 4 else layers.ReLU()(x)
    if n == 7:
        return layers.Reshape((HEIGHT, WIDTH, 2 + n))(first(layers.Flatten)(x))
    return ops.moveaxis(x, 1, -1) if n % 4 else layers.Permute((2, 3, 1))(x)


def translate(b, x, y, n):
    """The states of an encoder go to a decoder, in one direction or in both."""
    kind, units = RECURRENT[n % 3], 2 + n % 4
    encoder, decoder = (kind(units, return_state=i == 0, return_sequences=True) for i in (0, 1))
    if n > 4:
        encoder, decoder = layers.Bidirectional(encoder), layers.Bidirectional(decoder, "mul")
    whole, *states = encoder(x)
    return layers.Concatenate()([decoder(y, initial_state=states), whole])


def run_cells(b, x, y, n):
    cell = [layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell][n % 3](2 + n % 4)
    if n > 4:
        return layers.Bidirectional(layers.RNN(cell, return_sequences=True), "sum")(x)
    return layers.RNN(cell, return_sequences=True, go_backwards=n == 4)(x)


def convolve_in_time(b, x, y, n):
    return layers.ConvLSTM2D(2 + n % 4, 1 + n % 2, padding="same", return_sequences=True)(x)


def einsum(b, x, y, n):
    if len(x.shape) == 3 and n % 2:
        return layers.EinsumDense("abc,cd->abd", (STEPS, 2 + n), bias_axes=["d", "bd"][n % 3 > 0])(
            x
        )
    if len(x.shape) == 4:
        # With an ellipsis for several axes Keras tells their sizes in reverse.
        shape = (HEIGHT, WIDTH, 2 + n)
        return layers.EinsumDense("abcd,de->abce", shape, activation=ACTIVATIONS[n])(x)
    return layers.EinsumDense("...x,xy->...y", 2 + n, activation=ACTIVATIONS[n])(x)


def wrapped(b, x, y, n):
    """Layers within others, and a normalisation over places alone."""
    return [
        lambda: layers.TimeDistributed(layers.BatchNormalization())(x),
        lambda: layers.TimeDistributed(layers.Conv2D(2 + n, 1))(x),
        lambda: layers.TimeDistributed(layers.MaxPooling2D(2, 1, padding="same"))(x),
        lambda: layers.TimeDistributed(layers.DepthwiseConv2D(3, padding="same"))(x),
        lambda: layers.TimeDistributed(layers.PReLU(shared_axes=[1, 2]))(x),
        lambda: layers.SpectralNormalization(layers.Dense(2 + n, activation="tanh"))(x),
        lambda: layers.SpectralNormalization(layers.Conv3D(2 + n, 1))(x),
        lambda: layers.LayerNormalization(axis=(2, 3))(x),
    ][n]()


def operate(b, x, y, n):
    y = fitted(y, x)
    return [
        lambda: ops.flip(x, axis=-1),
        lambda: ops.max(ops.stack([x, y], axis=1), axis=1),
        lambda: ops.where(x > y, x, 0.1 * y),
        lambda: ops.repeat(x, 2, axis=-1),
        lambda: ops.pad(x, [*[(0, 0)] * (len(x.shape) - 1), (1, 2)]),
        lambda: ops.tile(x, [2]) + ops.sin(ops.concatenate([y, y], axis=-1)),
        lambda: ops.glu(ops.concatenate([x, y], axis=-1)),
        lambda: ops.swapaxes(ops.logaddexp(ops.swapaxes(x, 1, -1), ops.swapaxes(y, -1, 1)), 1, -1),
    ][n]()


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
    (["map"], channels_first),
    (["seq"], translate),
    (["seq"], run_cells),
    (["volume"], convolve_in_time),
    (["volume"], wrapped),
    (["seq", "map"], einsum),
    (ANY, operate),
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
