"""What sums over products do to channels: einsum, matrix products, and the layers made of them.

Where two tensors meet along their channels, these are coupled, and a sum over what is left of
them is the sum in which the removed ones are zero.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from tfcomp.graph.channels import Barrier, Call, Flow, Ids, handles, unite_all
from tfcomp.graph.families import ids_of
from tfcomp.graph.trace import Tensor, tensors

# A letter of an equation, or a number for what an ellipsis stands for, counted from its end.
Label = str | int
Labels = list[Label]


class Operand(NamedTuple):
    """A factor: a label for each of its axes, its sizes, and its channels if it has any."""

    labels: Labels
    shape: tuple[int | None, ...]
    flow: Flow | None


def operand(call: Call, value: Any, labels: Labels) -> Operand:
    """A factor from a tensor or a constant."""
    if isinstance(value, Tensor):
        return Operand(labels, value.shape, call.walk.flows.get(value))
    return Operand(labels, np.shape(value), None)


def contracted(call: Call, operands: Sequence[Operand], result: Labels) -> Flow | None:
    """The flow of the sum over products of `operands`, whose axes are labelled `result`."""
    made: list[Flow] = []
    for label in {one.labels[one.flow.axis]: None for one in operands if one.flow}:
        ids = _met(call, label, [one for one in operands if label in one.labels])
        if label in result:
            made.append(Flow(result.index(label), ids))
        elif sum(label in one.labels for one in operands) == 1:
            raise Barrier("sums over channels")
    if any(flow.axis == 0 for flow in made):
        raise Barrier("makes channels the batch")
    if len(made) > 1:
        raise Barrier("gives a tensor with channels on two axes")
    return made[0] if made else None


def _met(call: Call, label: Label, holders: Sequence[Operand]) -> Ids:
    """The ids along a label, those of all operands that have it made one."""
    arrays: list[Ids] = []
    for labels, shape, flow in holders:
        if labels.count(label) > 1:
            raise Barrier("takes the diagonal of an axis of channels")
        axis = labels.index(label)
        here = flow is not None and flow.axis == axis
        arrays.append(flow.ids if flow is not None and here else call.frozen(shape[axis]))
    if len({len(ids) for ids in arrays}) > 1:
        raise Barrier("repeats one of its tensors for each channel of another")
    return unite_all(call.walk, arrays)


def labelled(spec: str, rank: int | None = None) -> Labels:
    """The labels of one side of an equation; an ellipsis is written out for a known rank."""
    before, ellipsis, after = spec.replace(" ", "").partition("...")
    if not ellipsis or rank is None:
        return [*before, *after]
    elided = rank - len(before) - len(after)
    return [*before, *reversed(range(elided)), *after]


@handles("Einsum")
def _einsum(call: Call) -> Flow | None:
    sides = call.op.get_config()["subscripts"].split("->")
    if len(sides) != 2:
        raise Barrier("has an equation without a right side")
    specs, values = sides[0].split(","), call.node.args
    operands = [
        operand(call, value, labelled(spec, len(getattr(value, "shape", np.shape(value)))))
        for spec, value in zip(specs, values, strict=True)
    ]
    return contracted(call, operands, labelled(sides[1], len(call.node.outputs[0].shape)))


@handles("Matmul")
def _matmul(call: Call) -> Flow | None:
    first, second = call.argument("x1", 0), call.argument("x2", 1)
    ranks = [len(getattr(value, "shape", np.shape(value))) for value in (first, second)]
    if min(ranks) < 2:
        raise Barrier("multiplies with a vector")
    operands = [
        operand(call, value, labelled(f"...{letters}", rank))
        for value, letters, rank in zip((first, second), ("mk", "kn"), ranks, strict=True)
    ]
    return contracted(call, operands, labelled("...mn", max(ranks)))


@handles(layers.Dot)
def _dot(call: Call) -> Flow | None:
    first, second = call.node.inputs
    ranks, axes = (len(first.shape), len(second.shape)), call.op.axes
    pair = (axes, axes) if isinstance(axes, int) else axes
    ends = [axis % rank for axis, rank in zip(pair, ranks, strict=True)]
    operands = []
    for name, tensor, end in zip("xy", (first, second), ends, strict=True):
        labels: Labels = ["batch", *(f"{name}{axis}" for axis in range(1, len(tensor.shape)))]
        labels[end] = "sum"
        operands.append(operand(call, tensor, labels))
    rest = [label for one in operands for label in one.labels if label not in ("batch", "sum")]
    return contracted(call, operands, ["batch", *rest])


@handles(layers.Attention, layers.AdditiveAttention)
def _attention(call: Call) -> tuple[Flow | None, ...]:
    """Query and key are compared channel by channel; those of the values flow on."""
    inputs = call.argument("inputs", 0)
    query, value, key = inputs if len(inputs) == 3 else (*inputs, inputs[1])
    known = set(tensors(inputs))
    if any(tensor in call.walk.flows for tensor in call.node.inputs if tensor not in known):
        raise Barrier("takes a mask that is made of channels")
    places = [labelled(spec, len(query.shape)) for spec in ("...qc", "...kc")]
    compared = [operand(call, query, places[0]), operand(call, key, places[1])]
    if any(one.flow and one.labels[one.flow.axis] != "c" for one in compared):
        raise Barrier("attends over an axis of channels")
    contracted(call, compared, labelled("...qk", len(query.shape)))
    scale = getattr(call.op, "scale", None)
    if scale is not None and len(scale.shape) == 1:
        call.reads("scale", 0, ids_of(compared[0].flow or compared[1].flow))
    flow = operand(call, value, []).flow
    if flow is not None and flow.axis != len(value.shape) - 1:
        raise Barrier("attends over an axis of channels")
    return (flow,)


@handles("DotProductAttention")
def _dot_product_attention(call: Call) -> Flow | None:
    """Attention over tensors of the axes batch, step, head and channel."""
    names = ("query", "key", "value")
    given = [call.argument(name, index) for index, name in enumerate(names)]
    labels = [labelled(spec) for spec in ("bqhc", "bkhc", "bkhv")]
    operands = [operand(call, *pair) for pair in zip(given, labels, strict=True)]
    read = {one.labels[one.flow.axis] for one in operands if one.flow}
    if "c" in read and call.argument("scale", 5) is None:
        raise Barrier("scales its scores by the number of channels")
    extras = [call.argument("bias", 3), call.argument("mask", 4)]
    if "h" in read and any(extra is not None for extra in extras):
        raise Barrier("takes a bias or mask that may tell heads apart")
    return contracted(call, operands, labelled("bqhv"))


class Equation(NamedTuple):
    """The labels of an EinsumDense layer, and how many of its output it is not told the size of."""

    inputs: Labels
    kernel: Labels
    outputs: Labels
    untold: int

    @property
    def made(self) -> Labels:
        """The axes of the output that the kernel makes."""
        return [label for label in self.kernel if label not in self.inputs]


def made_axis(layer: keras.layers.Layer) -> int:
    """Where the output of an EinsumDense layer has the channels that it makes, from the end."""
    equation = equation_of(layer, layer.input_spec.ndim)
    made = equation.made or equation.outputs[-1:]
    return equation.outputs.index(made[0]) - len(equation.outputs)


def equation_of(layer: keras.layers.Layer, rank: int) -> Equation:
    """The equation of a layer that is called on tensors of a rank."""
    inputs, kernel, outputs = re.split(",|->", layer.equation)
    labels = labelled(inputs, rank)
    elided = rank - len(labelled(inputs))
    outputs_rank = len(labelled(outputs)) + elided
    # The batch, and what an ellipsis in front stands for.
    untold = elided if outputs.strip().startswith("...") else 1
    return Equation(labels, labelled(kernel), labelled(outputs, outputs_rank), untold)


@handles(layers.EinsumDense)
def _einsum_dense(call: Call) -> Flow | None:
    flow, equation = call.flow, equation_of(call.op, call.rank)
    carried = None if flow is None else equation.inputs[flow.axis]
    known: dict[Label, Ids | None] = {} if carried is None else {carried: ids_of(flow)}
    if carried is not None and carried not in (*equation.kernel, *equation.outputs):
        raise Barrier("sums over channels")
    passes = carried in equation.outputs
    if equation.made and not passes:
        carried = equation.made[0]
        known[carried] = call.makes("kernel", equation.kernel.index(carried))
    elif equation.made:
        call.notes("makes channels beside those that it passes on, on another axis than these")
    for axis, label in enumerate(equation.kernel):
        call.reads("kernel", axis, known.get(label))
    _einsum_bias(call, equation, known)
    _einsum_sizes(call, equation, known)
    if carried not in equation.outputs:
        return None
    ids = known[carried]
    assert ids is not None
    return Flow(equation.outputs.index(carried), ids)


def _einsum_bias(call: Call, equation: Equation, known: dict[Label, Ids | None]) -> None:
    if call.op.bias is None:
        return
    # The bias begins at the first axis that it has values for.
    start = min(equation.outputs.index(label) for label in call.op.bias_axes)
    for axis, label in enumerate(equation.outputs[start:]):
        if str(label) in call.op.bias_axes:
            call.reads("bias", axis, known.get(label))


def _einsum_sizes(call: Call, equation: Equation, known: dict[Label, Ids | None]) -> None:
    shape = call.node.outputs[0].shape
    for index, size in enumerate(call.op.get_config()["output_shape"]):
        axis = index + equation.untold
        if size is not None:
            ids = known.get(equation.outputs[axis])
            call.counts("output_shape", call.frozen(shape[axis]) if ids is None else ids, index)


@handles(*[getattr(layers, name) for name in ("ReversibleEmbedding",) if hasattr(layers, name)])
def _reversible_embedding(call: Call) -> Flow | None:
    if not call.argument("reverse", 1):
        if call.flow is not None:
            raise Barrier("takes channels for indices")
        flow = call.creates("output_dim", "embeddings", 1, call.rank)
        if not call.op.tie_weights:
            call.reads("reverse_embeddings", 0, flow.ids)
        return flow
    read, flow = call.flow_on(-1), call.creates("output_dim", "embeddings", 1, call.rank - 1)
    call.walk.unite(flow.ids, call.frozen(len(flow.ids)) if read is None else read.ids)
    if not call.op.tie_weights:
        call.reads("reverse_embeddings", 0, flow.ids)
    return None
