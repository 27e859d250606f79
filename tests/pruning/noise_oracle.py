"""Equality of a smaller model with its masked model, whose indices are found by noise."""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcomp.graph import rebuild, trace
from tfcomp.graph.trace import substitute

TOLERANCE = 1e-9

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
GATES = {layers.LSTMCell: 4, layers.GRUCell: 3, layers.SimpleRNNCell: 1}
RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN, layers.RNN, layers.ConvLSTM2D)
WRAPPERS = (layers.TimeDistributed, layers.SpectralNormalization)


def is_source(op):
    """Whether the layer mixes what it reads by a kernel, and so makes channels of its own."""
    if type(op) in CONVOLUTIONS and op.groups > 1 and op.kernel.shape[-2] == 1:
        return False  # Depthwise by another name.
    if type(op) in WRAPPERS:
        return is_source(op.layer)
    kinds = (*CONVOLUTIONS, *TRANSPOSED, *SEPARABLE, *RECURRENT, layers.Bidirectional)
    others = (layers.Dense, layers.EinsumDense, layers.Embedding, layers.MultiHeadAttention)
    return type(op) in (*kinds, *others)


def channel_axis(op):
    """Where a source reads and makes channels, from the end."""
    return -1 - len(op.kernel_size) if is_channels_first(op) else -1


def is_channels_first(op):
    return getattr(op, "data_format", None) == "channels_first"


def kernels(op):
    """For each set of channels that a layer makes: its kernel, the axis, how often they repeat."""
    if type(op) in TRANSPOSED:
        return [(op.kernel, -2, 1)]
    if type(op) in SEPARABLE:
        return [(op.pointwise_kernel, -1, 1)]
    if type(op) is layers.Embedding:
        return [(op.embeddings, -1, 1)]
    if type(op) in RECURRENT:
        # A cell of no public class is that of a ConvLSTM.
        return [(op.cell.kernel, -1, GATES.get(type(op.cell), 4))]
    if type(op) is layers.Bidirectional:
        return kernels(op.forward_layer) + kernels(op.backward_layer)
    if type(op) in WRAPPERS:
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
    op = node.op
    if is_channels_first(op):
        # Which TensorFlow knows on CPUs only where it compiles.
        op = tf.function(op, jit_compile=True, autograph=False)
    result = op(*substitute(node.args, values), **substitute(kwargs, values))
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
                    lines = np.moveaxis(noise, channel_axis(node.op), 0)
                    # A state of one direction has the channels of one.
                    gone = removed[node.name][: len(lines)]
                    lines[gone] = 30.0 * rng.normal(size=lines[gone].shape)
                values[tensor] = tf.constant(noise)
        runs.append((seen, [np.asarray(values[tensor]) for tensor in graph.output_tensors]))
    (calm, calm_out), (wild, wild_out) = runs
    for a, b in zip(calm_out, wild_out, strict=True):
        np.testing.assert_array_equal(a, b, "a removed channel reaches an output directly")
    reached = {}
    for index, inputs in calm.items():
        axis = channel_axis(graph.nodes[index].op)
        masks = [changed(a, b, axis) for a, b in zip(inputs, wild[index], strict=True)]
        known = reached.setdefault(graph.nodes[index].name, masks)
        assert all((a == b).all() for a, b in zip(known, masks, strict=True)), (
            "calls of a shared layer differ"
        )
    return reached


def changed(before, after, axis):
    """Which channels differ, in a shape that suits the whole tensor."""
    axis %= before.ndim
    others = tuple(i for i in range(before.ndim) if i != axis)
    mask = (before != after).any(axis=others, keepdims=True)
    return mask[0] if others and others[0] == 0 else mask


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
        np.moveaxis(value, 0 if cell is None else -2, 0)[gone] = 0.0
        variable.assign(value)


def masked_outputs(model, arrays, reached, inner):
    copy = rebuild(model)
    for name, gone in inner.items():
        layer = copy.get_layer(name)
        if type(layer) in (*RECURRENT, layers.Bidirectional, layers.MultiHeadAttention):
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
    if any(map(is_channels_first, trace(model).ops.values())):
        return masked_outputs(model, arrays, {}, {})
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
