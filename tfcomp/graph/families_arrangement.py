"""What concatenating, reshaping and transposing do to channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers

from tfcomp.graph.channels import Barrier, Call, Flow, Ids, handles, unite_all


@handles(layers.Concatenate, "Concatenate")
def _concatenate(call: Call) -> Flow | None:
    flows, inputs = call.flows, call.node.inputs
    tracked = {flow.axis for flow in flows if flow}
    if not tracked:
        return None
    if len(tracked) > 1:
        raise Barrier("joins tensors whose channels are on different axes")
    axis = tracked.pop()
    parts = [
        flow.ids if flow else call.frozen(tensor.shape[axis])
        for tensor, flow in zip(inputs, flows, strict=True)
    ]
    if call.op.get_config()["axis"] % len(inputs[0].shape) == axis:
        return Flow(axis, np.concatenate(parts))
    return Flow(axis, unite_all(call.walk, parts))


@handles(layers.Flatten)
def _flatten(call: Call) -> Flow | None:
    flow, shape = call.flow, call.tensor.shape
    if flow is None or len(shape) == 2:
        return flow
    places = _everywhere(flow, shape)
    # With channels_first the layer moves the first axis behind the others before it flattens.
    places = places if call.data_axis == len(shape) - 1 else np.moveaxis(places, 0, -1)
    return Flow(1, places.ravel())


@handles(layers.Reshape)
def _reshape(call: Call) -> Flow | None:
    return _reshaped(call, "target_shape", call.op.target_shape, 1)


@handles("Reshape")
def _reshape_operation(call: Call) -> Flow | None:
    shape = call.op.get_config()["newshape"]
    if call.flow and (shape[0] != -1 or call.tensor.shape[0] is not None):
        raise Barrier("may mix the batch into channels")
    return _reshaped(call, "newshape", shape, 0)


def _reshaped(call: Call, entry: str, target: tuple[int, ...], first_axis: int) -> Flow | None:
    flow = call.flow
    made = flow and _reshaped_flow(call, flow)
    if made is None:
        for index, size in enumerate(target):
            if size > 0:
                call.counts(entry, call.frozen(size), index)
        return None
    index = made.axis - first_axis
    if target[index] != -1:
        call.counts(entry, made.ids, index)
    return made


def _reshaped_flow(call: Call, flow: Flow) -> Flow:
    old, new = call.tensor.shape, call.node.outputs[0].shape
    kept = _same_place(flow, old, new)
    if kept is not None:
        return Flow(kept, flow.ids)
    if None in new[1:]:
        raise Barrier("reshapes channels with a size that is unknown")
    ids = _everywhere(flow, old).reshape([size or 0 for size in new[1:]])
    for axis in reversed(range(ids.ndim)):
        rows = np.moveaxis(ids, axis, -1).reshape(-1, ids.shape[axis])
        if (rows == rows[:1]).all():
            return Flow(axis + 1, rows[0])
    # Channels are laid out over several axes, as by Dense → Reshape((7, 7, 64)): what becomes
    # one channel has to go together.
    return Flow(ids.ndim, unite_all(call.walk, ids.reshape(-1, ids.shape[-1])))


def _same_place(flow: Flow, old: tuple[Any, ...], new: tuple[Any, ...]) -> int | None:
    """The axis of `new` that is still the channels, with as many values behind it as before."""
    behind = old[flow.axis + 1 :]
    for axis in range(1, len(new)):
        after = new[axis + 1 :]
        if new[axis] == len(flow.ids) and None not in (*behind, *after):  # noqa: SIM102
            if math.prod(after) == math.prod(behind):
                return axis
    return None


@handles(layers.Permute)
def _permute(call: Call) -> Flow | None:
    return transposed(call, (0, *call.op.dims))


@handles(layers.RepeatVector)
def _repeat_vector(call: Call) -> Flow | None:
    return Flow(2, call.flow.ids) if call.flow else None


@handles("Transpose")
def _transpose(call: Call) -> Flow | None:
    axes = call.op.get_config()["axes"] or tuple(reversed(range(call.rank)))
    return transposed(call, tuple(axis % call.rank for axis in axes))


@handles("ExpandDims")
def _expand_dims(call: Call) -> Flow | None:
    if call.flow is None:
        return None
    axes = np.atleast_1d(call.op.get_config()["axis"])
    made = {int(axis) % (call.rank + len(axes)) for axis in axes}
    if 0 in made:
        raise Barrier("makes another axis the batch")
    places = [axis for axis in range(call.rank + len(axes)) if axis not in made]
    return Flow(places[call.flow.axis], call.flow.ids)


@handles("Squeeze")
def _squeeze(call: Call) -> Flow | None:
    flow, shape, axis = call.flow, call.tensor.shape, call.op.get_config()["axis"]
    if flow is None:
        return None
    axes = [i for i, size in enumerate(shape) if size == 1] if axis is None else np.atleast_1d(axis)
    gone = {int(one) % call.rank for one in axes}
    if flow.axis in gone or 0 in gone:
        raise Barrier("drops the axis of channels, or the batch")
    return Flow(flow.axis - sum(one < flow.axis for one in gone), flow.ids)


def transposed(call: Call, axes: tuple[int, ...]) -> Flow | None:
    """The flow behind a permutation of axes."""
    if call.flow is None:
        return None
    axis = axes.index(call.flow.axis)
    if axis == 0:
        raise Barrier("makes channels the batch")
    return Flow(axis, call.flow.ids)


def _everywhere(flow: Flow, shape: tuple[int | None, ...]) -> Ids:
    """The id at every position of one sample, an array of shape `shape[1:]`."""
    if None in shape[1:]:
        raise Barrier("rearranges channels with a size that is unknown")
    line = [1] * (len(shape) - 1)
    line[flow.axis - 1] = len(flow.ids)
    sizes = tuple(size for size in shape[1:] if size is not None)
    return np.broadcast_to(flow.ids.reshape(line), sizes)
