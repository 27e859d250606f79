"""What the layers that create channels give to the layers behind them, made visible."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcomp.graph.families_contractions import made_axis
from tfcomp.graph.rebuild import rebuild
from tfcomp.graph.trace import Graph, Node, Tensor

Maps = Mapping[str, tuple[Tensor, ...]]

_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
)
# Classes of keras.ops have no public names.
_ACTIVATION_OPS = (
    "Celu", "Elu", "Gelu", "HardSigmoid", "HardSilu", "HardTanh", "LeakyRelu", "Mish", "Relu",
    "Relu6", "Selu", "Sigmoid", "Silu", "Softplus", "Softsign", "Tanh",
)  # fmt: skip


def feature_maps(graph: Graph, name: str, *, through_sums: bool = False) -> tuple[Tensor, ...]:
    """What becomes of a layer's output before anything but a normalisation or activation reads it.

    From each call of the layer on, the BatchNormalization and the activation behind it are
    followed as long as nothing else reads what lies between, up to the first activation. A layer
    with an activation of its own is not followed at all.

    Args:
        graph: The calls of a model.
        name: Name of a layer in it.
        through_sums: Whether to follow an addition too, as at the end of a residual block.

    Returns:
        One tensor for each call, the layer's channels on its `channel_axis`.

    Example:
        >>> from tfcomp.graph import trace
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(4, 3, name="conv")(x)
        >>> y = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization()(y))
        >>> graph = trace(keras.Model(x, keras.layers.Flatten()(y)))
        >>> [graph.producer(tensor).name for tensor in feature_maps(graph, "conv")]
        ['relu']
    """
    calls = (node for node in graph.nodes if node.name == name)
    return tuple(_behind(graph, node, through_sums) for node in calls)


def channel_axis(layer: Any) -> int:
    """Where the output of a layer has its channels, counted from the end unless it is 1."""
    if isinstance(layer, keras.layers.EinsumDense):
        return made_axis(layer)
    if isinstance(layer, keras.layers.Wrapper):
        inner = channel_axis(layer.layer)
        return -1 - len(layer.layer.kernel_size) if inner == 1 else inner
    if getattr(layer, "data_format", None) != "channels_first":
        return -1
    # A ConvLSTM has an axis of time before that of channels, or has it not.
    return -1 - len(layer.kernel_size) if isinstance(layer, keras.layers.RNN) else 1


def _behind(graph: Graph, node: Node, through_sums: bool) -> Tensor:
    tensor = node.outputs[0]
    if getattr(node.op, "activation", None) not in (None, keras.activations.linear):
        return tensor
    leaving = set(graph.output_tensors)
    while tensor not in leaving and len(readers := graph.consumers(tensor)) == 1:
        reader = readers[0]
        if _is_activation(reader):
            return reader.outputs[0]
        if not _keeps_channels(reader, channel_axis(node.op), through_sums):
            break
        tensor = reader.outputs[0]
    return tensor


def _is_activation(node: Node) -> bool:
    if isinstance(node.op, keras.layers.Activation):
        # Over channels, it is what the logits are for.
        return node.op.activation is not keras.activations.softmax
    return isinstance(node.op, _ACTIVATIONS) or node.kind in _ACTIVATION_OPS


def _keeps_channels(node: Node, axis: int, through_sums: bool) -> bool:
    if isinstance(node.op, keras.layers.BatchNormalization):
        rank = len(node.inputs[0].shape)
        return node.op.axis % rank == axis % rank
    is_sum = isinstance(node.op, keras.layers.Add) or node.kind == "Add"
    same_shape = len({tensor.shape for tensor in (*node.inputs, *node.outputs)}) == 1
    return through_sums and is_sum and same_shape


def feature_model(graph: Graph, maps: Maps) -> keras.Model:
    """A copy of a model that returns feature maps.

    Args:
        graph: The calls of the model.
        maps: Tensors by name, those of `feature_maps` for one.

    Returns:
        A model of the same inputs and weights; its output is a dict of lists, as `maps` is, each
        feature map with its channels on the last axis.
    """
    seen: dict[Tensor, Any] = {}
    copy = _tapped(graph, maps, seen.setdefault)
    return keras.Model(copy.input, {name: [seen[t] for t in maps[name]] for name in maps})


class Tap(keras.layers.Layer):
    """Passes a feature map on through `function`, which is for the caller of the model to set.

    The function sees the channels on the last axis, and is to leave them there.
    """

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.function: Callable[[Any], Any] = keras.activations.linear

    def call(self, inputs: Any) -> Any:
        """What `function` makes of the feature map."""
        return self.function(inputs)


def tapped_model(graph: Graph, maps: Maps) -> tuple[keras.Model, dict[str, list[Tap]]]:
    """A copy of a model with a tap at each of the feature maps.

    Args:
        graph: The calls of the model.
        maps: Tensors by name, those of `feature_maps` for one; no tensor twice.

    Returns:
        A model of the same inputs, outputs and weights, and its taps by name, as `maps` is.
    """
    taps: dict[Tensor, Tap] = {}

    def insert(tensor: Tensor, value: Any) -> Any:
        taps[tensor] = Tap(dtype=tensor.dtype)
        return taps[tensor](value)

    copy = _tapped(graph, maps, insert)
    return copy, {name: [taps[tensor] for tensor in maps[name]] for name in maps}


def _tapped(graph: Graph, maps: Maps, tap: Callable[[Tensor, Any], Any]) -> keras.Model:
    """A copy of a model in which `tap(tensor, value)` takes the place of each feature map."""
    axes = {
        tensor: channel_axis(graph.ops[name]) for name, found in maps.items() for tensor in found
    }

    def tapped(tensor: Tensor, value: Any) -> Any:
        if tensor not in axes:
            return value
        axis = axes[tensor]
        if axis == -1:
            return tap(tensor, value)
        return keras.ops.moveaxis(tap(tensor, keras.ops.moveaxis(value, axis, -1)), -1, axis)

    def call(new_op: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = new_op(*args, **kwargs)
        pairs = zip(node.outputs, keras.tree.flatten(result), strict=True)
        return keras.tree.pack_sequence_as(result, [tapped(*pair) for pair in pairs])

    return rebuild(graph, call=call)
