"""Multiply-adds of one call of a layer, from its weights and the shapes around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfcomp.graph.channels import application_name, weight_of

Shape = tuple[int | None, ...]
WeightShape = Callable[[str], tuple[int, ...]]

# Each of these does work in proportion to its elements only, which is not counted: a
# BatchNormalization folds away, and the others are small beside the products around them.
_ELEMENTWISE = (
    keras.layers.BatchNormalization,
    keras.layers.Embedding,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
)
_LAYER_SCALE = "applications.convnext.LayerScale"
_OPAQUE = ("Einsum", "Lambda", "Tensordot", "Vdot")


DYNAMIC = "a dimension is dynamic"


class UncountedError(Exception):
    """The multiply-adds of this call are not known; the message is the reason."""


def call_macs(
    op: Any, inputs: Sequence[Shape], output: Shape, weight_shape: WeightShape | None = None
) -> int:
    """Multiply-adds of one call for one sample.

    Convolutions: output positions × kernel elements, which covers groups, strides and
    dilation; transposed ones: input positions × kernel elements. Dense: positions × kernel
    elements. Recurrent layers: steps × (kernel + recurrent kernel). Additions of a bias,
    activations, pooling and normalisation count 0, as in the papers.

    Args:
        op: The layer or operation.
        inputs: Shapes of its tensor arguments, batch in front.
        output: Shape of its (first) output, batch in front.
        weight_shape: Shapes that weights, by their names as attributes of `op`, are to be taken
            to have: with fewer channels in them, what the call would cost after the cut. By
            default those that they have.

    Returns:
        The count.

    Raises:
        UncountedError: If a dimension is dynamic or the kind has no rule.
    """
    shape = weight_shape or (lambda name: tuple(weight_of(op, name).shape))
    for kinds, rule in _RULES:
        if isinstance(op, kinds):
            return rule(op, inputs, output, shape)
    if isinstance(op, _ELEMENTWISE) or application_name(type(op)) == _LAYER_SCALE:
        return 0
    kind = type(op).__name__
    if kind in ("Matmul", "MatMul"):
        return _size(output) * _known(inputs[0][-1])
    if kind in _OPAQUE:
        raise UncountedError(f"no rule for {kind}")
    if isinstance(op, keras.layers.Wrapper):
        return call_macs(op.layer, inputs, output, _within("layer", shape))
    if isinstance(op, keras.layers.Layer) and op.trainable_weights:
        raise UncountedError(f"no rule for {kind}, which has weights")
    return 0


def _known(dim: int | None) -> int:
    if dim is None:
        raise UncountedError(DYNAMIC)
    return dim


def _size(shape: Shape) -> int:
    """Elements of one sample."""
    return math.prod(_known(dim) for dim in shape[1:])


def _within(part: str, shape: WeightShape) -> WeightShape:
    """Shapes of the weights of a layer inside of another."""
    return lambda name: shape(f"{part}.{name}")


# Positions are counted with the layer's own shapes, which go with `inputs` and `output`.


def _convolution(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    return _size(output) // op.filters * math.prod(shape("kernel"))


def _transposed(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    channels = op.kernel.shape[-1]
    return _size(inputs[0]) // channels * math.prod(shape("kernel"))


def _depthwise(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    channels = op.kernel.shape[-2] * op.kernel.shape[-1]
    return _size(output) // channels * math.prod(shape("kernel"))


def _separable(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    kernels = math.prod(shape("depthwise_kernel")) + math.prod(shape("pointwise_kernel"))
    return _size(output) // op.filters * kernels


def _dense(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    return _size(output) // op.units * math.prod(shape("kernel"))


def _einsum_dense(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    terms, _ = op.equation.split("->")
    first, second = terms.split(",")
    sizes: dict[str, int] = {}
    if "..." in first:
        head, tail = first.split("...")
        middle = inputs[0][len(head) : len(inputs[0]) - len(tail)]
        letters = [*head, *(f".{i}" for i in range(len(middle))), *tail]
    else:
        letters = list(first)
    for letter, dim in zip(letters[1:], inputs[0][1:], strict=True):
        sizes[letter] = _known(dim)
    sizes.update(zip(second, shape("kernel"), strict=True))
    return math.prod(sizes.values())


def _recurrent(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    cells = {"cell": op.cell}
    if isinstance(op.cell, keras.layers.StackedRNNCells):
        cells = {f"cell.cells.{i}": cell for i, cell in enumerate(op.cell.cells)}
    for cell in cells.values():
        if not hasattr(cell, "recurrent_kernel"):
            raise UncountedError(f"no rule for a cell of class {type(cell).__name__}")
    steps = _known(inputs[0][1])
    kernels = [f"{name}.{one}" for name in cells for one in ("kernel", "recurrent_kernel")]
    return steps * sum(math.prod(shape(name)) for name in kernels)


def _bidirectional(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    return sum(
        call_macs(getattr(op, part), inputs, output, _within(part, shape))
        for part in ("forward_layer", "backward_layer")
    )


def _time_distributed(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    steps = _known(inputs[0][1])
    inner = [(given[0], *given[2:]) for given in inputs]
    outer = (output[0], *output[2:])
    return steps * call_macs(op.layer, inner, outer, _within("layer", shape))


def _attention(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    config = op.get_config()
    key_dim = config["key_dim"]
    value_dim = config["value_dim"] or key_dim
    query, value = inputs[0], inputs[1]
    key = inputs[2] if len(inputs) > 2 else value
    queries = _size(query) // _known(query[-1])
    keys = _size(key) // _known(key[-1])
    rows = {"query": queries, "key": keys, "value": keys, "output": queries}
    if config.get("use_gate"):
        raise UncountedError("no rule for attention with a gate")
    projections = sum(n * math.prod(shape(f"{part}_dense.kernel")) for part, n in rows.items())
    heads = shape("query_dense.kernel")[1]
    return projections + heads * queries * keys * (key_dim + value_dim)


def _grouped_attention(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    query, value = inputs[:2]
    key = inputs[2] if len(inputs) > 2 else value
    rows = {"query": _known(query[1]), "key": _known(key[1]), "value": _known(key[1])}
    rows |= {"gate": rows["query"], "attention_output": rows["query"]}
    # Its projections have no public names.
    kernels = {
        weight.path.split("/")[-2]: shape(f"weights.{i}")
        for i, weight in enumerate(op.weights)
        if weight.path.endswith("/kernel")
    }
    projections = sum(rows[part] * math.prod(kernel) for part, kernel in kernels.items())
    _, heads, head_dim = kernels["query"]
    return projections + 2 * heads * rows["query"] * rows["key"] * head_dim


def _plain_attention(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    """Scores of all pairs, and values weighted by them; `AdditiveAttention` alike."""
    query, value = inputs[:2]
    pairs = _known(query[1]) * _known(value[1])
    return pairs * (_known(query[-1]) + _known(value[-1]))


def _dot(op: Any, inputs: Sequence[Shape], output: Shape, shape: WeightShape) -> int:
    axes = op.axes if isinstance(op.axes, int) else op.axes[0]
    return _size(output) * _known(inputs[0][axes])


_Rule = Callable[[Any, Sequence[Shape], Shape, WeightShape], int]
_RULES: tuple[tuple[Any, _Rule], ...] = (
    ((keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D), _depthwise),
    ((keras.layers.SeparableConv1D, keras.layers.SeparableConv2D), _separable),
    (
        (
            keras.layers.Conv1DTranspose,
            keras.layers.Conv2DTranspose,
            keras.layers.Conv3DTranspose,
        ),
        _transposed,
    ),
    ((keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D), _convolution),
    (keras.layers.Dense, _dense),
    (keras.layers.EinsumDense, _einsum_dense),
    (keras.layers.Bidirectional, _bidirectional),
    (keras.layers.TimeDistributed, _time_distributed),
    (keras.layers.MultiHeadAttention, _attention),
    (keras.layers.GroupQueryAttention, _grouped_attention),
    ((keras.layers.Attention, keras.layers.AdditiveAttention), _plain_attention),
    (keras.layers.Dot, _dot),
    (keras.layers.RNN, _recurrent),
)
