"""What recurrent layers do to channels: their units, or filters, go from every gate and state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcomp.graph.channels import Barrier, Call, Flow, Ids, handles, unite_all
from tfcomp.graph.families import ids_of, is_elementwise
from tfcomp.graph.trace import Tensor, tensors

# Blocks of `units` columns in the kernel of a cell, and how many states it has.
_CELLS: dict[type, tuple[int, int]] = {
    layers.SimpleRNNCell: (1, 1),
    layers.GRUCell: (3, 1),
    layers.LSTMCell: (4, 2),
}
_CONVOLUTIONAL = (layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
_RECURRENT = (layers.SimpleRNN, layers.GRU, layers.LSTM, layers.RNN, *_CONVOLUTIONAL)


@handles(*_RECURRENT)
def _recurrent(call: Call) -> tuple[Flow | None, ...]:
    sequence = call.on(_sequence(call))
    states = _units(sequence)
    _starts(sequence, states)
    axis = _state_axis(sequence)
    output = Flow(axis + 1 if call.op.return_sequences else axis, states[-1])
    return (output, *(Flow(axis, ids) for ids in states))


def _sequence(call: Call) -> Tensor:
    """What the layer runs over; of the other tensors states alone may have channels."""
    sequence: Tensor = call.argument("sequences", 0)
    known = {sequence, *tensors(_initial_states(call))}
    if any(tensor in call.walk.flows for tensor in call.node.inputs if tensor not in known):
        raise Barrier("takes a mask that is made of channels")
    return sequence


def _initial_states(call: Call) -> list[Any]:
    states = call.argument("initial_state", 1)
    return [] if states is None else keras.tree.flatten(states)


def _state_axis(call: Call) -> int:
    """Where a state has its channels: it is what comes in, without time."""
    first = getattr(call.op, "data_format", None) == "channels_first"
    return 1 if first else call.rank - 2


def _units(call: Call) -> list[Ids]:
    """Binds the units of each cell; the ids of each state, those of the output last."""
    op = call.op
    if op.stateful:
        raise Barrier("keeps its state from batch to batch, which a copy of it would not have")
    cells = _cells(call)
    flow = call.flow_on(_state_axis(call) + 1)
    read, states, made = ids_of(flow), [], []
    for cell, gates, count in cells:
        read = _cell(cell, read, gates)
        made.append(read)
        states += [read] * count
    if len({len(ids) for ids in made}) > 1:
        raise Barrier("stacks cells of different sizes, whose units do not go in pairs")
    # One unit of each cell goes at a time.
    unite_all(call.walk, made)
    call.walk.created[call.node.name] = cells[-1][0].key("kernel", cells[-1][0].op.kernel.ndim - 1)
    call.walk.gates[call.node.name] = cells[-1][1]
    return states


def _cells(call: Call) -> list[tuple[Call, int, int]]:
    """The cells that a layer runs, each with the numbers of its gates and its states."""
    op = call.op
    if isinstance(op, _CONVOLUTIONAL):
        return [(call.within("cell"), 4, 2)]
    # What is a layer of its own has the configuration of its cell for its own.
    entry = "cell" if type(op) is layers.RNN else ""
    whole = call.within("cell", entry)
    cells = [whole]
    if type(op.cell) is layers.StackedRNNCells:
        cells = [whole.within(f"cells.{i}", f"cells.{i}") for i in range(len(op.cell.cells))]
    for cell in cells:
        if type(cell.op) not in _CELLS:
            raise Barrier(f"runs a {type(cell.op).__name__}, whose units are not known")
    return [(cell, *_CELLS[type(cell.op)]) for cell in cells]


def _cell(call: Call, read: Ids | None, gates: int) -> Ids:
    """Binds a unit's columns of every gate, its row of the recurrent kernel, and its biases."""
    op = call.op
    if not (is_elementwise(op.activation) and is_elementwise(_recurrent_activation(op))):
        raise Barrier("has an activation that may mix units")
    size = op.recurrent_kernel.shape[-2]
    known = call.walk.bound.get(call.key("kernel", op.kernel.ndim - 1))
    ids = call.walk.fresh(size) if known is None else known[:size]
    columns = np.tile(ids, gates)
    call.reads("kernel", -2, read)
    call.reads("kernel", -1, columns)
    call.reads("recurrent_kernel", -2, ids)
    call.reads("recurrent_kernel", -1, columns)
    if op.bias is not None:
        # A GRU with reset_after has two rows of them.
        call.reads("bias", -1, columns)
    return call.counts("filters" if hasattr(op, "filters") else "units", ids)


def _recurrent_activation(cell: layers.Layer) -> object:
    return getattr(cell, "recurrent_activation", None)


def _starts(call: Call, states: Sequence[Ids]) -> None:
    """Unites the states that a layer begins with, an encoder's for one, with its own."""
    given, axis = _initial_states(call), _state_axis(call)
    if len(given) not in (0, len(states)):
        raise Barrier(f"is given {len(given)} states where it has {len(states)}")
    for state, ids in zip(given, states, strict=False):
        if not isinstance(state, Tensor):
            raise Barrier("begins with a state that is a constant")
        flow = call.walk.flows.get(state)
        if flow is not None and flow.axis != axis:
            raise Barrier("begins with a state whose channels are not its units")
        if state.shape[axis] != len(ids):
            raise Barrier("begins with a state of another size than its own")
        call.walk.unite(ids, call.frozen(len(ids)) if flow is None else flow.ids)


@handles(layers.Bidirectional)
def _bidirectional(call: Call) -> tuple[Flow | None, ...]:
    op, sequence = call.op, call.on(_sequence(call))
    directions = (op.forward_layer, op.backward_layer)
    if any(type(one) not in _RECURRENT for one in directions):
        raise Barrier("wraps a layer whose units are not known")
    if any(getattr(one, "data_format", None) == "channels_first" for one in directions):
        raise Barrier("wraps a layer with data_format='channels_first'")
    # The forward layer last: it stands for both.
    backward = _units(sequence.within("backward_layer", "backward_layer"))
    forward = _units(sequence.within("forward_layer", "layer"))
    if len(forward[-1]) != len(backward[-1]):
        raise Barrier("has directions of different sizes, whose units do not go in pairs")
    # One unit of each direction goes at a time.
    call.walk.unite(forward[-1], backward[-1])
    states = [*forward, *backward]
    _starts(sequence, states)
    axis = _state_axis(sequence)
    end = axis + 1 if op.forward_layer.return_sequences else axis
    outputs = [forward[-1], backward[-1]]
    if op.merge_mode is not None:
        outputs = [np.concatenate(outputs) if op.merge_mode == "concat" else forward[-1]]
    return (*(Flow(end, ids) for ids in outputs), *(Flow(axis, ids) for ids in states))
