"""What each family of layers does to channels: one small function per family.

A handler tells the `Call` which weight axes read or create which channels, and returns the flow
of the output. It raises `Barrier` where the call does not keep channels apart. A layer of no
family here is a barrier, so that a missing handler costs compression, never correctness.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcomp.graph.channels import Barrier, Call, Flow, Ids, handles, unite_all

# Where a kernel has its input and its output channels.
KERNEL_AXES = {
    layers.Conv1D: (-2, -1),
    layers.Conv2D: (-2, -1),
    layers.Conv3D: (-2, -1),
    layers.Conv1DTranspose: (-1, -2),
    layers.Conv2DTranspose: (-1, -2),
    layers.Conv3DTranspose: (-1, -2),
}

_ELEMENTWISE_FUNCTIONS = (
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish",
    "tanh", "sigmoid", "exponential", "softplus", "softsign", "hard_sigmoid", "hard_silu",
    "hard_swish", "hard_tanh", "log_sigmoid", "squareplus", "hard_shrink", "soft_shrink",
    "tanh_shrink", "threshold", "sparse_plus", "sparse_sigmoid",
)  # fmt: skip
_ELEMENTWISE_ACTIVATIONS = [
    getattr(module, name)
    for module in (keras.activations, keras.ops)
    for name in _ELEMENTWISE_FUNCTIONS
    if hasattr(module, name)
]
_ELEMENTWISE_LAYERS = (layers.ReLU, layers.LeakyReLU, layers.ELU)

_ELEMENTWISE_OPS = (
    "Absolute", "Cast", "Celu", "Clip", "Elu", "Erf", "Exp", "Expm1", "Gelu", "HardShrink",
    "HardSigmoid", "HardSilu", "HardTanh", "LeakyRelu", "Log", "Log1p", "LogSigmoid", "Mish",
    "Negative", "Reciprocal", "Relu", "Relu6", "Round", "Rsqrt", "Selu", "Sigmoid", "Sign", "Silu",
    "SoftShrink", "Softplus", "Softsign", "SparsePlus", "SparseSigmoid", "Sqrt", "Square",
    "Squareplus", "Tanh", "TanhShrink", "Threshold", "StopGradient", "Add", "Subtract", "Multiply",
    "Divide", "TrueDivide", "Maximum", "Minimum", "Power",
)  # fmt: skip


def is_elementwise(activation: Any) -> bool:
    """Whether an activation is known to treat each value by itself."""
    return (
        activation is None
        or any(activation is function for function in _ELEMENTWISE_ACTIVATIONS)
        or type(activation) in _ELEMENTWISE_LAYERS
    )


# --- Layers that make channels ---------------------------------------------------------------


@handles(*KERNEL_AXES)
def _convolution(call: Call) -> Flow | None:
    inputs, outputs = KERNEL_AXES[type(call.op)]
    if getattr(call.op, "groups", 1) != 1:
        return _grouped(call, call.op.groups)
    call.reads("kernel", inputs, _ids(call.flow_on(call.data_axis)))
    return call.creates("filters", "kernel", outputs, call.data_axis)


def _grouped(call: Call, groups: int) -> Flow:
    """Every group loses the same places, so that all stay of one size."""
    read = _ids(call.flow_on(call.data_axis))
    size = call.op.kernel.shape[-2]
    if read is None:
        read = call.frozen(groups * size)
    if size == 1:
        # Depthwise: each channel is a group, and goes with the channels made from it.
        made = np.repeat(call.counts("groups", read), call.op.kernel.shape[-1] // groups)
        call.reads("kernel", -1, made)
        call.reads_bias(made)
        return Flow(call.data_axis, call.counts("filters", made))
    call.reads("kernel", -2, unite_all(call.walk, read.reshape(groups, -1)))
    flow = call.creates("filters", "kernel", -1, call.data_axis)
    unite_all(call.walk, flow.ids.reshape(groups, -1))
    return flow


@handles(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable(call: Call) -> Flow | None:
    read = call.reads("depthwise_kernel", -2, _ids(call.flow_on(call.data_axis)))
    call.reads("pointwise_kernel", -2, np.repeat(read, call.op.depth_multiplier))
    return call.creates("filters", "pointwise_kernel", -1, call.data_axis)


@handles(layers.Dense)
def _dense(call: Call) -> Flow | None:
    call.reads("kernel", 0, _ids(call.flow_on(-1)))
    return call.creates("units", "kernel", 1, call.rank - 1)


# --- Layers with weights, one channel by itself ----------------------------------------------


@handles(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise(call: Call) -> Flow | None:
    read = call.reads("kernel", -2, _ids(call.flow_on(call.data_axis)))
    # Output channel c·m + j comes from input channel c.
    made = np.repeat(read, call.op.depth_multiplier)
    call.reads_bias(made)
    return Flow(call.data_axis, made)


@handles(layers.BatchNormalization)
def _batch_normalization(call: Call) -> Flow | None:
    flow = call.flow_on(call.op.axis)
    for weight in ("gamma", "beta", "moving_mean", "moving_variance"):
        if getattr(call.op, weight) is not None:
            call.reads(weight, 0, _ids(flow))
    return flow


@handles(layers.GroupNormalization)
def _group_normalization(call: Call) -> Flow | None:
    flow, groups = call.flow_on(call.op.axis), call.op.groups
    if flow is None:
        return None
    if groups == 1:
        raise Barrier("normalises over all channels at once (groups=1)")
    # What is left of a group would be scaled otherwise: groups go whole.
    first = unite_all(call.walk, flow.ids.reshape(groups, -1).T)
    call.counts("groups", first)
    for weight in ("gamma", "beta"):
        if getattr(call.op, weight) is not None:
            call.reads(weight, 0, flow.ids)
    return flow


@handles(layers.Normalization)
def _normalization(call: Call) -> Flow | None:
    flow, op = call.flow, call.op
    if flow is None:
        return None
    kept = sorted(axis % call.rank for axis in op.axis)
    if op.input_mean is not None and kept:
        raise Barrier("scales channels by constants in its configuration")
    if flow.axis in kept:
        for weight in ("adapt_mean", "adapt_variance"):
            call.reads(weight, kept.index(flow.axis), flow.ids)
    return flow


@handles(layers.Embedding)
def _embedding(call: Call) -> Flow | None:
    if call.flow is not None:
        raise Barrier("takes channels for indices")
    return call.creates("output_dim", "embeddings", 1, call.rank)


@handles(layers.PReLU)
def _prelu(call: Call) -> Flow | None:
    flow, shape = call.flow, call.op.alpha.shape
    axes = [flow.axis - 1] if flow else range(len(shape))
    for axis in axes:
        if shape[axis] != 1:
            call.reads("alpha", axis, _ids(flow))
    return flow


# --- Elementwise: alone, or several tensors with broadcasting --------------------------------


@handles(
    *_ELEMENTWISE_LAYERS, *_ELEMENTWISE_OPS,
    layers.Activation, layers.ActivityRegularization, layers.Identity, "Identity",
    layers.GaussianDropout, layers.GaussianNoise,
    layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D,
    layers.Add, layers.Average, layers.Maximum, layers.Minimum, layers.Multiply, layers.Subtract,
)  # fmt: skip
def elementwise(call: Call) -> Flow | None:
    """Each value by itself; of several tensors those that broadcasting brings together."""
    flows = call.flows
    operands = list(zip(call.node.inputs, flows, strict=True))
    # Shapes are aligned at their ends, by the operators and by the merging layers alike.
    ends = {flow.axis - len(tensor.shape) for tensor, flow in operands if flow}
    if not ends:
        return None
    if len(ends) > 1:
        raise Barrier("merges tensors whose channels are on different axes")
    end = ends.pop()
    shape = call.node.outputs[0].shape
    _check_constants(call, end)
    united: list[Ids] = []
    for tensor, flow in operands:
        if -end > len(tensor.shape):
            continue
        if -end == len(tensor.shape):
            raise Barrier("aligns the channels of one tensor with the batch of another")
        if tensor.shape[end] == 1 and shape[end] != 1:
            if flow:
                call.walk.freeze(flow.ids, f"is broadcast in {call.node.name!r}")
            continue
        united.append(flow.ids if flow else call.frozen(tensor.shape[end]))
    return Flow(len(shape) + end, unite_all(call.walk, united)) if united else None


def _check_constants(call: Call, end: int) -> None:
    shapes = list(call.constants())
    if not isinstance(call.op, layers.Layer):
        shapes += [np.shape(value) for value in call.op.get_config().values() if value is not None]
    if any(len(shape) >= -end and shape[end] != 1 for shape in shapes):
        raise Barrier("combines channels with a constant that has a value for each")


@handles(layers.Dropout, layers.AlphaDropout)
def _dropout(call: Call) -> Flow | None:
    shape = call.op.noise_shape
    if call.flow and shape is not None and shape[call.flow.axis] not in (None, 1):
        raise Barrier("has a noise_shape that counts channels")
    return elementwise(call)


@handles(layers.Rescaling)
def _rescaling(call: Call) -> Flow | None:
    if np.ndim(call.op.scale) or np.ndim(call.op.offset):
        raise Barrier("rescales each channel by a constant of its own")
    return elementwise(call)


@handles(layers.Softmax)
def _softmax(call: Call) -> Flow | None:
    axes = np.atleast_1d(call.op.axis) % call.rank
    if call.flow and call.flow.axis in axes:
        raise Barrier("normalises over channels")
    return elementwise(call)


# Of later versions of Keras only.
_ADAPTIVE = [
    getattr(layers, f"Adaptive{kind}Pooling{rank}D")
    for kind in ("Average", "Max")
    for rank in (1, 2, 3)
    if hasattr(layers, f"Adaptive{kind}Pooling{rank}D")
]

# --- Space: pooling, padding, resizing -------------------------------------------------------


@handles(
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D,
    layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D,
    layers.Cropping1D, layers.Cropping2D, layers.Cropping3D, layers.CenterCrop,
    layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D, layers.Resizing, *_ADAPTIVE,
)  # fmt: skip
def _spatial(call: Call) -> Flow | None:
    return call.flow_on(call.data_axis)


@handles(
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D,
)  # fmt: skip
def _global_pooling(call: Call) -> Flow | None:
    flow = call.flow_on(call.data_axis)
    return flow if flow is None or call.op.keepdims else Flow(1, flow.ids)


@handles("Mean", "Max", "Min", "Sum")
def _reduction(call: Call) -> Flow | None:
    flow, config = call.flow, call.op.get_config()
    if flow is None:
        return None
    axes = range(call.rank) if config["axis"] is None else np.atleast_1d(config["axis"])
    reduced = {int(axis) % call.rank for axis in axes}
    if flow.axis in reduced:
        raise Barrier("reduces over channels")
    if config["keepdims"]:
        return flow
    return Flow(flow.axis - sum(axis < flow.axis for axis in reduced), flow.ids)


# --- Arrangement: concatenation, reshaping, transposing --------------------------------------


@handles(layers.Concatenate, "Concatenate")
def _concatenate(call: Call) -> Flow | None:
    flows, inputs = call.flows, call.node.inputs
    tracked = {flow.axis for flow in flows if flow}
    if not tracked:
        return None
    if len(tracked) > 1:
        raise Barrier("joins tensors whose channels are on different axes")
    axis = tracked.pop()
    parts = [
        flow.ids if flow else call.frozen(tensor.shape[axis])
        for tensor, flow in zip(inputs, flows, strict=True)
    ]
    if call.op.get_config()["axis"] % len(inputs[0].shape) == axis:
        return Flow(axis, np.concatenate(parts))
    return Flow(axis, unite_all(call.walk, parts))


@handles(layers.Flatten)
def _flatten(call: Call) -> Flow | None:
    flow, shape = call.flow, call.tensor.shape
    if flow is None or len(shape) == 2:
        return flow
    places = _everywhere(flow, shape)
    # With channels_first the layer moves the first axis behind the others before it flattens.
    places = places if call.data_axis == len(shape) - 1 else np.moveaxis(places, 0, -1)
    return Flow(1, places.ravel())


@handles(layers.Reshape)
def _reshape(call: Call) -> Flow | None:
    return _reshaped(call, "target_shape", call.op.target_shape, 1)


@handles("Reshape")
def _reshape_operation(call: Call) -> Flow | None:
    shape = call.op.get_config()["newshape"]
    if call.flow and (shape[0] != -1 or call.tensor.shape[0] is not None):
        raise Barrier("may mix the batch into channels")
    return _reshaped(call, "newshape", shape, 0)


def _reshaped(call: Call, entry: str, target: tuple[int, ...], first_axis: int) -> Flow | None:
    flow = call.flow
    made = flow and _reshaped_flow(call, flow)
    if made is None:
        for index, size in enumerate(target):
            if size > 0:
                call.counts(entry, call.frozen(size), index)
        return None
    index = made.axis - first_axis
    if target[index] != -1:
        call.counts(entry, made.ids, index)
    return made


def _reshaped_flow(call: Call, flow: Flow) -> Flow:
    old, new = call.tensor.shape, call.node.outputs[0].shape
    kept = _same_place(flow, old, new)
    if kept is not None:
        return Flow(kept, flow.ids)
    if None in new[1:]:
        raise Barrier("reshapes channels with a size that is unknown")
    ids = _everywhere(flow, old).reshape([size or 0 for size in new[1:]])
    for axis in reversed(range(ids.ndim)):
        rows = np.moveaxis(ids, axis, -1).reshape(-1, ids.shape[axis])
        if (rows == rows[:1]).all():
            return Flow(axis + 1, rows[0])
    # Channels are laid out over several axes, as by Dense → Reshape((7, 7, 64)): what becomes
    # one channel has to go together.
    return Flow(ids.ndim, unite_all(call.walk, ids.reshape(-1, ids.shape[-1])))


def _same_place(flow: Flow, old: tuple[Any, ...], new: tuple[Any, ...]) -> int | None:
    """The axis of `new` that is still the channels, with as many values behind it as before."""
    behind = old[flow.axis + 1 :]
    for axis in range(1, len(new)):
        after = new[axis + 1 :]
        if new[axis] == len(flow.ids) and None not in (*behind, *after):  # noqa: SIM102
            if math.prod(after) == math.prod(behind):
                return axis
    return None


@handles(layers.Permute)
def _permute(call: Call) -> Flow | None:
    return _transposed(call, (0, *call.op.dims))


@handles(layers.RepeatVector)
def _repeat_vector(call: Call) -> Flow | None:
    return Flow(2, call.flow.ids) if call.flow else None


@handles("Transpose")
def _transpose(call: Call) -> Flow | None:
    axes = call.op.get_config()["axes"] or tuple(reversed(range(call.rank)))
    return _transposed(call, tuple(axis % call.rank for axis in axes))


@handles("ExpandDims")
def _expand_dims(call: Call) -> Flow | None:
    if call.flow is None:
        return None
    axes = np.atleast_1d(call.op.get_config()["axis"])
    made = {int(axis) % (call.rank + len(axes)) for axis in axes}
    if 0 in made:
        raise Barrier("makes another axis the batch")
    places = [axis for axis in range(call.rank + len(axes)) if axis not in made]
    return Flow(places[call.flow.axis], call.flow.ids)


@handles("Squeeze")
def _squeeze(call: Call) -> Flow | None:
    flow, shape, axis = call.flow, call.tensor.shape, call.op.get_config()["axis"]
    if flow is None:
        return None
    axes = [i for i, size in enumerate(shape) if size == 1] if axis is None else np.atleast_1d(axis)
    gone = {int(one) % call.rank for one in axes}
    if flow.axis in gone or 0 in gone:
        raise Barrier("drops the axis of channels, or the batch")
    return Flow(flow.axis - sum(one < flow.axis for one in gone), flow.ids)


def _transposed(call: Call, axes: tuple[int, ...]) -> Flow | None:
    if call.flow is None:
        return None
    axis = axes.index(call.flow.axis)
    if axis == 0:
        raise Barrier("makes channels the batch")
    return Flow(axis, call.flow.ids)


def _everywhere(flow: Flow, shape: tuple[int | None, ...]) -> Ids:
    """The id at every position of one sample, an array of shape `shape[1:]`."""
    if None in shape[1:]:
        raise Barrier("rearranges channels with a size that is unknown")
    line = [1] * (len(shape) - 1)
    line[flow.axis - 1] = len(flow.ids)
    sizes = tuple(size for size in shape[1:] if size is not None)
    return np.broadcast_to(flow.ids.reshape(line), sizes)


def _ids(flow: Flow | None) -> Ids | None:
    return None if flow is None else flow.ids


# --- What is known not to keep channels apart, said better than "unknown" ---------------------

_KNOWN_BARRIERS: dict[str, str] = {
    "LayerNormalization": "normalises over channels: without one of them the others would change",
    "RMSNormalization": "normalises over channels: without one of them the others would change",
    "UnitNormalization": "normalises over channels: without one of them the others would change",
    "GroupedQueryAttention": "shares keys and values among heads, which are not cut",
    "FakeQuantize": "is of quantisation-aware training, before which channels are cut",
    "FakeQuantizeWeights": "is of quantisation-aware training, before which channels are cut",
    "Lambda": "is a function that cannot be looked into",
    "Softmax": "normalises over channels",
    "LogSoftmax": "normalises over channels",
}


def barrier_reason(op: Any) -> str:
    """Why channels that flow into an operation without a handler are left alone."""
    return _KNOWN_BARRIERS.get(type(op).__name__, "is not known to keep channels apart")
