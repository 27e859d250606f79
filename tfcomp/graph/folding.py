"""BatchNormalization folded into the layer before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcomp.graph.rebuild import clone_op, rebuild
from tfcomp.graph.trace import Graph, Node, trace

# For each foldable layer: its kernel, and the dimensions of the kernel that together are the
# output channels.
_KERNELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "Conv1D": ("kernel", (-1,)),
    "Conv2D": ("kernel", (-1,)),
    "Conv3D": ("kernel", (-1,)),
    "Conv1DTranspose": ("kernel", (-2,)),
    "Conv2DTranspose": ("kernel", (-2,)),
    "Dense": ("kernel", (-1,)),
    "DepthwiseConv1D": ("kernel", (-2, -1)),
    "DepthwiseConv2D": ("kernel", (-2, -1)),
    "SeparableConv1D": ("pointwise_kernel", (-1,)),
    "SeparableConv2D": ("pointwise_kernel", (-1,)),
}


def is_keras_own(op: Any) -> bool:
    """Whether the class of `op` is Keras's, so that its name tells what it computes."""
    return type(op).__module__.partition(".")[0] == "keras"


def batch_norm_pairs(graph: Graph) -> dict[Node, Node]:
    """Layers and the BatchNormalization that alone follows each and can be folded into it.

    Neither may be shared, the layer must have no activation, its output no other reader, and
    the normalised axis must be the channels, last.

    Returns:
        The call of the BatchNormalization for each call of the layer before it.
    """
    pairs = {}
    outputs = set(graph.output_tensors)
    for node in graph.nodes:
        if node.kind not in _KERNELS or not is_keras_own(node.op) or len(graph.calls(node.op)) > 1:
            continue
        readers = graph.consumers(node.outputs[0])
        linear = node.op.activation is keras.activations.linear
        if len(readers) == 1 and linear and node.outputs[0] not in outputs:
            reader = readers[0]
            last = len(node.outputs[0].shape) - 1
            if (
                reader.kind == "BatchNormalization"
                and is_keras_own(reader.op)
                and len(graph.calls(reader.op)) == 1
                and reader.op.axis in (-1, last)
                and getattr(node.op, "data_format", "channels_last") == "channels_last"
            ):
                pairs[node] = reader
    return pairs


def affine(batch_norm: keras.layers.BatchNormalization) -> tuple[Any, Any]:
    """What the layer does in inference, y = a·x + c: a = γ / √(σ² + ε), c = β − a·μ.

    Returns:
        a and c as float64 arrays, one entry per channel.
    """
    variance = np.asarray(batch_norm.moving_variance, "float64")
    slope = 1.0 / np.sqrt(variance + batch_norm.epsilon)
    if batch_norm.scale:
        slope = slope * np.asarray(batch_norm.gamma, "float64")
    offset = -slope * np.asarray(batch_norm.moving_mean, "float64")
    if batch_norm.center:
        offset = offset + np.asarray(batch_norm.beta, "float64")
    return slope, offset


def fold_batch_norm(
    model: keras.Model, where: Callable[[Node], bool] = lambda node: True
) -> keras.Model:
    """Multiplies each BatchNormalization into the convolution or dense layer before it.

    W' = a·W per output channel, b' = a·b + c, with a = γ / √(σ² + ε) and c = β − a·μ. In
    inference the new model computes the same; in training it no longer normalises.

    A BatchNormalization that does not alone follow an unshared linear layer is left alone.

    Args:
        model: A functional or Sequential model.
        where: Says for the call of a layer whether to fold what follows; all by default.

    Returns:
        A new model. The layers keep their names; those that had no bias have one.

    Raises:
        UnsupportedModelError: If the model cannot be walked.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((8, 8, 3)),
        ...     keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
        ...     keras.layers.BatchNormalization()])
        >>> [layer.name for layer in fold_batch_norm(model).layers[1:]]
        ['conv']

    Jacob et al. 2017, arXiv:1712.05877, section 3.2.
    """
    graph = trace(model)
    pairs = {node: norm for node, norm in batch_norm_pairs(graph).items() if where(node)}
    if not pairs:
        return rebuild(graph)
    norms = set(pairs.values())
    folded: dict[str, keras.layers.Layer] = {}

    def clone(name: str, op: Any) -> Any:
        if not any(node.name == name for node in pairs):
            return None
        folded[name] = clone_op(op, name, {"use_bias": True})
        return folded[name]

    def call(new_op: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0] if node in norms else new_op(*args, **kwargs)

    result = rebuild(graph, clone, call)
    for node, norm in pairs.items():
        _set_folded(folded[node.name], node, norm)
    return result


def _set_folded(layer: keras.layers.Layer, node: Node, norm: Node) -> None:
    slope, offset = affine(norm.op)
    kernel_name, axes = _KERNELS[node.kind]
    kernel = np.asarray(getattr(node.op, kernel_name), "float64")
    shape = [size if axis - kernel.ndim in axes else 1 for axis, size in enumerate(kernel.shape)]
    bias = np.asarray(node.op.bias, "float64") if node.op.use_bias else 0.0
    if kernel_name == "pointwise_kernel":
        layer.depthwise_kernel.assign(node.op.depthwise_kernel)
    getattr(layer, kernel_name).assign(kernel * slope.reshape(shape))
    layer.bias.assign(slope * bias + offset)
