"""What each family of layers does to channels: one small function per family.

A handler tells the `Call` which weight axes read or create which channels, and returns the flow
of the output. It raises `Barrier` where the call does not keep channels apart. A layer of no
family here is a barrier, so that a missing handler costs compression, never correctness.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfcomp.graph.channels import (
    Barrier,
    Call,
    Flow,
    Flows,
    Ids,
    handler_of,
    handles,
    unite_all,
)

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
    "Abs", "Absolute", "Add", "Arccos", "Arccosh", "Arcsin", "Arcsinh", "Arctan", "Arctan2",
    "Arctanh", "BitwiseAnd", "BitwiseInvert", "BitwiseLeftShift", "BitwiseNot", "BitwiseOr",
    "BitwiseRightShift", "BitwiseXor", "Cast", "Cbrt", "Ceil", "Celu", "Clip", "ConvertToTensor",
    "Copy", "Cos", "Cosh", "Deg2rad", "Divide", "DivideNoNan", "Elu", "Equal", "Erf", "Erfc",
    "Erfinv", "Exp", "Exp2", "Expm1", "Fabs", "Floor", "FloorDivide", "Fmax", "Fmin", "Fmod",
    "FullLike", "Gcd", "Gelu", "Greater", "GreaterEqual", "HardShrink", "HardSigmoid", "HardSilu",
    "HardTanh", "Heaviside", "Hypot", "I0", "Isclose", "Isfinite", "Isinf", "Isnan", "Isneginf",
    "Isposinf", "Lcm", "Ldexp", "LeakyRelu", "LeftShift", "Less", "LessEqual", "Log", "Log10",
    "Log1p", "Log2", "LogSigmoid", "Logaddexp", "Logaddexp2", "LogicalAnd", "LogicalNot",
    "LogicalOr", "LogicalXor", "Maximum", "Minimum", "Mish", "Mod", "Multiply", "NanToNum",
    "Negative", "Nextafter", "NotEqual", "OnesLike", "Power", "Rad2deg", "Reciprocal", "Relu",
    "Relu6", "RightShift", "Round", "Rsqrt", "SaturateCast", "Selu", "Sigmoid", "Sign", "Signbit",
    "Silu", "Sin", "Sinc", "Sinh", "SoftShrink", "Softplus", "Softsign", "SparsePlus",
    "SparseSigmoid", "Sqrt", "Square", "Squareplus", "StopGradient", "Subtract", "Tan", "Tanh",
    "TanhShrink", "Threshold", "TrueDivide", "Trunc", "ZerosLike",
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
    call.reads("kernel", inputs, ids_of(call.flow_on(call.data_axis)))
    return call.creates("filters", "kernel", outputs, call.data_axis)


def _grouped(call: Call, groups: int) -> Flow:
    """Every group loses the same places, so that all stay of one size."""
    read = ids_of(call.flow_on(call.data_axis))
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
    read = call.reads("depthwise_kernel", -2, ids_of(call.flow_on(call.data_axis)))
    call.reads("pointwise_kernel", -2, np.repeat(read, call.op.depth_multiplier))
    return call.creates("filters", "pointwise_kernel", -1, call.data_axis)


@handles(layers.Dense)
def _dense(call: Call) -> Flow | None:
    flow = call.flow
    if flow is None or flow.axis == call.rank - 1:
        call.reads("kernel", 0, ids_of(flow))
        return call.creates("units", "kernel", 1, call.rank - 1)
    # It mixes places, not channels, as between the steps of time: these pass.
    call.notes("makes channels beside those that it passes on, on another axis than these")
    call.reads("kernel", 0, None)
    made = call.reads("kernel", 1, None)
    call.reads_bias(made)
    call.counts("units", made)
    return flow


# --- Layers with weights, one channel by itself ----------------------------------------------


@handles(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise(call: Call) -> Flow | None:
    read = call.reads("kernel", -2, ids_of(call.flow_on(call.data_axis)))
    # Output channel c·m + j comes from input channel c.
    made = np.repeat(read, call.op.depth_multiplier)
    call.reads_bias(made)
    return Flow(call.data_axis, made)


@handles(layers.BatchNormalization)
def _batch_normalization(call: Call) -> Flow | None:
    flow = call.flow_on(call.op.axis)
    for weight in ("gamma", "beta", "moving_mean", "moving_variance"):
        if getattr(call.op, weight) is not None:
            call.reads(weight, 0, ids_of(flow))
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
            call.reads("alpha", axis, ids_of(flow))
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


def ids_of(flow: Flow | None) -> Ids | None:
    """The ids of a flow, if there is one."""
    return None if flow is None else flow.ids


# --- What is known not to keep channels apart, said better than "unknown" ---------------------

_OVER_CHANNELS = "normalises over channels: without one of them the others would change"
_KNOWN_BARRIERS: dict[str, str] = {
    "LayerNorm": _OVER_CHANNELS,
    "RMSNorm": _OVER_CHANNELS,
    "FakeQuantize": "is of quantisation-aware training, before which channels are cut",
    "FakeQuantizeWeights": "is of quantisation-aware training, before which channels are cut",
    "Lambda": "is a function that cannot be looked into",
    "Masking": "tells from all channels together which steps are masked",
}


def barrier_reason(op: Any) -> str:
    """Why channels that flow into an operation without a handler are left alone."""
    return _KNOWN_BARRIERS.get(type(op).__name__, "is not known to keep channels apart")


def handled(call: Call) -> Flows:
    """What a call does to channels, by the handler of its layer.

    Raises:
        Barrier: If the layer does not keep channels apart, or is not known to.
    """
    op, handler = call.op, handler_of(call.op)
    if getattr(op, "quantization_mode", None) or getattr(op, "lora_enabled", False):
        raise Barrier("holds its weights quantised or with LoRA")
    if handler is None:
        raise Barrier(barrier_reason(op))
    made = handler(call)
    activation = getattr(op, "activation", None)
    if not is_elementwise(activation):
        name = getattr(activation, "__name__", type(activation).__name__)
        reason = f"has the activation {name} in {call.node.name!r}, which may mix channels"
        for flow in made if isinstance(made, tuple) else (made,):
            if flow is not None:
                call.walk.freeze(flow.ids, reason)
    return made
