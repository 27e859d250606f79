"""Rewritings before conversion: layers in the forms of which the converter makes one op."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.graph import Node, rebuild, trace
from tfcomp.graph.folding import affine, fold_batch_norm, is_keras_own, with_config
from tfcomp.quantization import FakeQuantizeWeights


def has_per_tensor_dense(model: keras.Model) -> bool:
    """Whether a quantisation-aware model has learnt one scale for a whole Dense kernel."""
    return any(
        isinstance(op, FakeQuantizeWeights)
        and isinstance(op.layer, keras.layers.Dense)
        and op.axes.get("kernel") == ()
        for op in trace(model).ops.values()
    )


def in_float32(model: keras.Model) -> keras.Model:
    """The model, or, where a layer computes in half precision, a copy that does not."""
    graph = trace(model)

    def is_float32(op: Any) -> bool:
        return not isinstance(op, keras.layers.Layer) or op.compute_dtype == "float32"

    if all(is_float32(op) for op in graph.ops.values()):
        return model

    def clone(name: str, op: Any) -> Any:
        return None if is_float32(op) else with_config(op, name, dtype="float32")

    return rebuild(graph, clone)


def for_integers(model: keras.Model) -> keras.Model:
    """The model in float32, with every layer in a form that has one integer op.

    BatchNormalization is folded into the layer before it. Where there is none, it is what
    Rescaling is, too: y = a·x + c per channel, a depthwise convolution of 1×1, whose weights
    have a scale each and so lose nothing by rounding.

    Args:
        model: A float model whose ranges are constant, as `with_fixed_ranges` makes it.

    Returns:
        A new model that computes the same.
    """
    graph = trace(fold_batch_norm(in_float32(model)))
    lines = {node.name: _line(node) for node in graph.nodes}

    def clone(name: str, op: Any) -> Any:
        line = lines[name]
        if line is None:
            return None
        return keras.layers.DepthwiseConv2D(1, name=name)

    result = rebuild(graph, clone)
    for name, line in lines.items():
        if line is not None:
            slope, offset = line
            layer = result.get_layer(name)
            layer.set_weights([slope.reshape(1, 1, -1, 1), offset])
    return result


def _line(node: Node) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """a and c of a layer that computes a·x + c per channel of a 4-D tensor."""
    shape = node.outputs[0].shape
    if not is_keras_own(node.op) or len(shape) != 4 or shape[-1] is None:
        return None
    if node.kind == "BatchNormalization" and node.op.axis in (-1, 3):
        slope, offset = affine(node.op)
        return slope, offset
    if node.kind == "Rescaling":
        ones = np.ones(shape[-1])
        return ones * np.asarray(node.op.scale), ones * np.asarray(node.op.offset)
    return None
