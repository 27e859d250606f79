"""What recurrent layers, and wrappers over time, do to channels."""

from __future__ import annotations

import numpy as np
from keras import layers

from tfcomp.graph.channels import Barrier, Call, Flow, Ids, handler_of, handles
from tfcomp.graph.families import KERNEL_AXES, is_elementwise

# Blocks of `units` columns in the kernel.
_GATES = {layers.SimpleRNN: 1, layers.GRU: 3, layers.LSTM: 4}
_TIMED = (*KERNEL_AXES, layers.Dense, layers.DepthwiseConv1D, layers.DepthwiseConv2D)


@handles(*_GATES)
def _recurrent(call: Call) -> tuple[Flow | None, ...]:
    ids = _units(call)
    output = Flow(2 if call.op.return_sequences else 1, ids)
    return (output, *(Flow(1, ids) for _ in call.node.outputs[1:]))


def _units(call: Call) -> Ids:
    """Binds a unit's columns of every gate, its row of the recurrent kernel, and its biases."""
    op, cell, gates = call.op, call.op.cell, _GATES[type(call.op)]
    if op.stateful:
        raise Barrier("keeps its state from batch to batch")
    if not (is_elementwise(op.activation) and is_elementwise(_recurrent_activation(op))):
        raise Barrier("has an activation that may mix units")
    flow = call.flow_on(-1)
    key = call.key("cell.kernel", 1)
    known = call.walk.bound.get(key)
    ids = call.walk.fresh(op.units) if known is None else known[: op.units]
    columns = np.tile(ids, gates)
    call.reads("cell.kernel", 0, None if flow is None else flow.ids)
    call.reads("cell.kernel", 1, columns)
    call.reads("cell.recurrent_kernel", 0, ids)
    call.reads("cell.recurrent_kernel", 1, columns)
    if cell.bias is not None:
        # A GRU with reset_after has two rows of them.
        call.reads("cell.bias", -1, columns)
    call.walk.created[call.node.name] = key
    call.walk.gates[call.node.name] = gates
    return call.counts("units", ids)


def _recurrent_activation(layer: layers.Layer) -> object:
    return getattr(layer, "recurrent_activation", None)


@handles(layers.Bidirectional)
def _bidirectional(call: Call) -> Flow | tuple[Flow | None, ...]:
    op = call.op
    if any(type(one) not in _GATES for one in (op.forward_layer, op.backward_layer)):
        raise Barrier("wraps a layer whose units are not known")
    if op.forward_layer.return_state:
        raise Barrier("returns its states")
    backward = _units(Call(call.walk, call.node, "backward_layer", "backward_layer"))
    forward = _units(Call(call.walk, call.node, "forward_layer", "layer"))
    # One unit of each direction goes at a time.
    call.walk.unite(forward, backward)
    axis = 2 if op.forward_layer.return_sequences else 1
    if op.merge_mode is None:
        return Flow(axis, forward), Flow(axis, backward)
    joined = op.merge_mode == "concat"
    return Flow(axis, np.concatenate([forward, backward]) if joined else forward)


@handles(layers.TimeDistributed)
def _time_distributed(call: Call) -> Flow | None:
    inner = call.op.layer
    handler = handler_of(inner)
    if type(inner) not in _TIMED or handler is None:
        raise Barrier(f"wraps a {type(inner).__name__}, which is not followed over time")
    if not is_elementwise(inner.activation):
        raise Barrier("wraps an activation that may mix channels")
    flow = handler(Call(call.walk, call.node, "layer", "layer"))
    assert not isinstance(flow, tuple)
    return flow
