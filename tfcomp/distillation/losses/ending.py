"""What a model's outputs are: logits, or probabilities from a softmax or sigmoid; and back."""

from __future__ import annotations

from typing import Any, Literal

import keras

from tfcomp.errors import TfcompError
from tfcomp.graph import Graph, Node, Tensor, trace

Ending = Literal["logits", "softmax", "sigmoid"]


def endings(model: keras.Model) -> list[Ending]:
    """For each output of a functional or Sequential model, what it ends in.

    Layers that change no value are looked through: a softmax followed by a cast, an identity
    or a reshape that keeps the last axis still ends in softmax.

    Args:
        model: A built functional or Sequential model.

    Returns:
        One ending per output, in Keras's flattening order.

    Raises:
        UnsupportedModelError: If the model cannot be walked.
        TfcompError: If a softmax runs over another axis than the last.

    Example:
        >>> import keras
        >>> layers = [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Softmax()]
        >>> endings(keras.Sequential(layers))
        ['softmax']
    """
    graph = trace(model)
    return [_ending(graph, tensor) for tensor in graph.output_tensors]


def softmax_logits(probabilities: Any, least: float | None = None) -> Any:
    """log p, which are logits of a softmax, of float32 or float64 probabilities.

    Args:
        probabilities: What a softmax gave, of shape (batch, ..., classes).
        least: Probabilities below count as this; the smallest normal number by default.
    """
    least = _tiny(probabilities) if least is None else least
    return keras.ops.log(keras.ops.maximum(probabilities, least))


def sigmoid_logits(probabilities: Any) -> Any:
    """log p − log(1−p), the logits of a sigmoid, of float32 or float64 probabilities."""
    ops = keras.ops
    one = 1.0 - epsilon(probabilities) / 2
    probabilities = ops.clip(probabilities, _tiny(probabilities), one)
    return ops.log(probabilities) - ops.log1p(-probabilities)


def epsilon(tensor: Any) -> float:
    """The distance from 1 to the next number of the tensor's type, float32 or float64."""
    return 2.0**-52 if keras.backend.standardize_dtype(tensor.dtype) == "float64" else 2.0**-23


def _tiny(tensor: Any) -> float:
    """The smallest normal number of the tensor's type."""
    return 2.3e-308 if keras.backend.standardize_dtype(tensor.dtype) == "float64" else 1.2e-38


def _ending(graph: Graph, tensor: Tensor) -> Ending:
    node = graph.producer(tensor)
    while node is not None and _passes_values(node):
        node = graph.producer(node.inputs[0])
    if node is None:
        return "logits"
    if node.kind == "Softmax":
        _check_axis(node)
        return "softmax"
    activation = getattr(node.op, "activation", None)
    if activation is keras.activations.softmax:
        return "softmax"
    if activation is keras.activations.sigmoid or node.kind == "Sigmoid":
        return "sigmoid"
    return "logits"


def _passes_values(node: Node) -> bool:
    if node.kind in {"Identity", "Cast", "StopGradient"}:
        return True
    if node.kind == "Activation":
        return node.op.activation is keras.activations.linear
    if node.kind == "Reshape":
        return node.inputs[0].shape[-1:] == node.outputs[0].shape[-1:]
    return False


def _check_axis(node: Node) -> None:
    axis: Any = getattr(node.op, "axis", -1)
    rank = len(node.outputs[0].shape)
    if axis not in (-1, rank - 1):
        raise TfcompError(
            f"The softmax {node.name!r} must run over the last axis for its classes to be "
            f"compared: expected axis -1, received {axis}. Permute the axes before it."
        )
