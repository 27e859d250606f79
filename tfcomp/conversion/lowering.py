"""Rewritings before conversion: layers in the forms of which the converter makes one op."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcomp.graph import Node, clone_op, rebuild, trace
from tfcomp.graph.folding import affine, fold_batch_norm, is_keras_own
from tfcomp.quantization import FakeQuantizeWeights, tflite8
from tfcomp.quantization.grids import fake_quantize


def dense_axes(model: keras.Model) -> set[tuple[int, ...]]:
    """The axes along which a quantisation-aware model's Dense kernels have scales: `()` where
    it has learnt one for the whole kernel."""
    return {
        op.axes["kernel"]
        for op in trace(model).ops.values()
        if isinstance(op, FakeQuantizeWeights) and isinstance(op.layer, keras.layers.Dense)
    }


def in_float32(model: keras.Model) -> keras.Model:
    """The model, or, where a layer computes in half precision, a copy that does not."""
    graph = trace(model)

    def is_float32(op: Any) -> bool:
        return not isinstance(op, keras.layers.Layer) or op.compute_dtype == "float32"

    if all(is_float32(op) for op in graph.ops.values()):
        return model

    def clone(name: str, op: Any) -> Any:
        return None if is_float32(op) else clone_op(op, name, {"dtype": "float32"})

    return rebuild(graph, clone)


def for_integers(model: keras.Model) -> keras.Model:
    """The model in float32, with every layer in a form that has integer ops.

    BatchNormalization is folded into the layer before it. Where there is none, it is what
    Rescaling is, too: y = a·x + c per channel, a depthwise convolution of 1×1, whose weights
    have a scale each and so lose nothing by rounding.

    Args:
        model: A float model whose ranges are constant, as `with_fixed_ranges` makes it.

    Returns:
        A new model that computes the same.
    """
    graph = trace(fold_batch_norm(in_float32(model)))
    lines = {node.name: line for node in graph.nodes if (line := _line(node)) is not None}
    lowered: dict[str, Any] = {node.name: _lowered(node) for node in graph.nodes}
    result = rebuild(graph, lambda name, op: lowered[name])
    for name, (slope, offset) in lines.items():
        lowered[name].set_weights([slope.reshape(1, 1, -1, 1), offset])
    return result


def _lowered(node: Node) -> keras.layers.Layer | None:
    """The form in which a layer is converted; None for as it is.

    In float32 by name, whatever policy is in force when a model is converted.
    """
    # `Any`, since a shape that reaches the lines below it has no None.
    shape: Any = node.outputs[0].shape
    activation = tflite8.activation_of(node)
    if _line(node) is not None:
        depthwise = keras.layers.DepthwiseConv2D(1, name=node.name, dtype="float32")
        if len(shape) == 4:
            return depthwise
        image = (1, math.prod(shape[1:-1]), shape[-1])
        before = keras.layers.Reshape(image, dtype="float32")
        chain = [before, depthwise, keras.layers.Reshape(shape[1:], dtype="float32")]
        return keras.Sequential(chain, name=f"{node.name}_reshaped")
    if activation == "bounded_relu":
        # The range that follows it ends at or below its bound, and so bounds as well.
        return keras.layers.ReLU(name=node.name, dtype="float32")
    if activation == "hard_sigmoid":
        return _HardSigmoid(name=node.name, dtype="float32")
    if node.kind == "UpSampling2D" and node.op.interpolation == "nearest" and None not in shape[1:]:
        return _NearestResize((shape[1], shape[2]), name=node.name, dtype="float32")
    return None


def _line(node: Node) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """a and c of a layer that computes a·x + c per channel and has to become a convolution."""
    shape: Any = node.outputs[0].shape
    if not is_keras_own(node.op) or len(shape) < 2 or None in shape[1:]:
        return None
    if node.kind == "BatchNormalization" and node.op.axis in (-1, len(shape) - 1):
        return affine(node.op)
    if node.kind == "Rescaling":
        ones = np.ones(shape[-1])
        return ones * np.asarray(node.op.scale), ones * np.asarray(node.op.offset)
    return None


class _HardSigmoid(keras.layers.Layer):
    """ReLU6(x + 3) / 6 with the range between the two, which makes three integer ops."""

    def call(self, inputs: Any) -> Any:
        return fake_quantize(tf.nn.relu6(inputs + 3.0), 0.0, 6.0) * (1.0 / 6.0)


class _NearestResize(keras.layers.Layer):
    """Repeats rows and columns in one op, where Keras's own way takes several."""

    def __init__(self, size: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def call(self, inputs: Any) -> Any:
        return tf.image.resize(inputs, self.size, method="nearest")
