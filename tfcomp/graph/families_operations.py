"""What the operations of keras.ops do to channels, those that are not as well layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfcomp.graph.channels import Barrier, Call, Flow, handles, unite_all
from tfcomp.graph.families import elementwise
from tfcomp.graph.families_arrangement import transposed
from tfcomp.graph.trace import Tensor

_REDUCTIONS = (
    "All", "Amax", "Amin", "Any", "Argmax", "Argmin", "CountNonzero", "Logsumexp", "Max", "Mean",
    "Median", "Min", "Nanmax", "Nanmean", "Nanmin", "Nanprod", "Nanstd", "Nansum", "Nanvar", "Norm",
    "Prod", "Ptp", "Std", "Sum", "Var",
)  # fmt: skip
# What comes out has the axes of what came in, and every line along one axis is made of that line.
_ALONG_AXES = (
    "Argsort", "Cumprod", "Cumsum", "Diff", "LogSoftmax", "Nancumprod", "Nancumsum", "Normalize",
    "Roll", "Softmax", "Sort", "Sparsemax",
)  # fmt: skip

_NORMALISING = ("LogSoftmax", "Normalize", "Softmax", "Sparsemax")


def axes_of(call: Call, axis: Any) -> set[int]:
    """The axes that an entry of a configuration names, counted from the front; None for all."""
    axes = range(call.rank) if axis is None else np.atleast_1d(axis)
    return {int(one) % call.rank for one in axes}


@handles(*_REDUCTIONS)
def _reduction(call: Call) -> Flow | None:
    flow, config = call.flow, call.op.get_config()
    if flow is None:
        return None
    reduced = axes_of(call, config["axis"])
    if flow.axis in reduced:
        raise Barrier("reduces over channels")
    if config.get("keepdims"):
        return flow
    return Flow(flow.axis - sum(axis < flow.axis for axis in reduced), flow.ids)


@handles(*_ALONG_AXES)
def _along_axes(call: Call) -> Flow | None:
    flow = call.flow
    if flow is not None and flow.axis in axes_of(call, call.op.get_config()["axis"]):
        normalises = type(call.op).__name__ in _NORMALISING
        raise Barrier(f"{'normalises' if normalises else 'works'} over channels")
    return flow


@handles(layers.LayerNormalization, layers.UnitNormalization)
def _normalization_along(call: Call) -> Flow | None:
    flow = call.flow
    if flow is not None and flow.axis in axes_of(call, call.op.axis):
        raise Barrier("normalises over channels: without one of them the others would change")
    return flow


@handles(layers.RMSNormalization)
def _root_mean_square(call: Call) -> Flow | None:
    flow = _normalization_along(call)
    if flow is not None:
        # Keras on TensorFlow does not bring the scale to the axis that it belongs to.
        raise Barrier("scales the last axis, whichever it normalises")
    return None


@handles("Flip")
def _flip(call: Call) -> Flow | None:
    flow = call.flow
    if flow is None or flow.axis not in axes_of(call, call.op.get_config()["axis"]):
        return flow
    return Flow(flow.axis, flow.ids[::-1])


@handles("Glu")
def _glu(call: Call) -> Flow | None:
    flow = call.flow
    if flow is None or flow.axis not in axes_of(call, call.op.get_config()["axis"]):
        return flow
    # One half gates the other: a channel goes with its gate, so that the middle stays the middle.
    first, second = np.split(flow.ids, 2)
    return Flow(flow.axis, call.walk.unite(first, second))


@handles("Moveaxis")
def _moveaxis(call: Call) -> Flow | None:
    config = call.op.get_config()
    ends = zip(*(np.atleast_1d(config[key]) for key in ("destination", "source")), strict=True)
    moves = sorted((int(end) % call.rank, int(start) % call.rank) for end, start in ends)
    order = [axis for axis in range(call.rank) if axis not in [start for _, start in moves]]
    for end, start in moves:
        order.insert(end, start)
    return transposed(call, tuple(order))


@handles("Swapaxes")
def _swapaxes(call: Call) -> Flow | None:
    config, order = call.op.get_config(), list(range(call.rank))
    first, second = config["axis1"], config["axis2"]
    order[first], order[second] = order[second], order[first]
    return transposed(call, tuple(order))


@handles("Stack")
def _stack(call: Call) -> Flow | None:
    flows, inputs = call.flows, call.node.inputs
    tracked = {flow.axis for flow in flows if flow}
    if not tracked:
        return None
    if len(tracked) > 1:
        raise Barrier("stacks tensors whose channels are on different axes")
    axis = tracked.pop()
    place = call.op.get_config()["axis"] % (len(inputs[0].shape) + 1)
    if place == 0:
        raise Barrier("makes another axis the batch")
    if any(shape for shape in call.constants()):
        raise Barrier("combines channels with a constant that has a value for each")
    parts = [
        flow.ids if flow else call.frozen(tensor.shape[axis])
        for tensor, flow in zip(inputs, flows, strict=True)
    ]
    return Flow(axis + (place <= axis), unite_all(call.walk, parts))


@handles("Unstack")
def _unstack(call: Call) -> tuple[Flow | None, ...]:
    flow = call.flow
    if flow is None:
        return ()
    (axis,) = axes_of(call, call.op.get_config()["axis"])
    if axis == flow.axis:
        raise Barrier("takes channels apart")
    if axis == 0:
        raise Barrier("makes another axis the batch")
    return tuple(Flow(flow.axis - (axis < flow.axis), flow.ids) for _ in call.node.outputs)


@handles("Repeat")
def _repeat(call: Call) -> Flow | None:
    flow, config = call.flow, call.op.get_config()
    if flow is None:
        return None
    if config["axis"] is None:
        raise Barrier("mixes the batch into channels")
    if flow.axis not in axes_of(call, config["axis"]):
        return flow
    if np.size(config["repeats"]) != 1:
        raise Barrier("repeats each channel by a number of its own")
    return Flow(flow.axis, np.repeat(flow.ids, int(np.ravel(config["repeats"])[0])))


@handles("Tile")
def _tile(call: Call) -> Flow | None:
    flow = call.flow
    if flow is None:
        return None
    repeats = [int(one) for one in np.atleast_1d(call.op.get_config()["repeats"])]
    if len(repeats) > call.rank:
        raise Barrier("makes another axis the batch")
    repeats = [1] * (call.rank - len(repeats)) + repeats
    return Flow(flow.axis, np.tile(flow.ids, repeats[flow.axis]))


@handles("BroadcastTo")
def _broadcast_to(call: Call) -> Flow | None:
    flow, shape = call.flow, call.op.get_config()["shape"]
    if flow is None:
        return None
    axis = flow.axis + len(shape) - call.rank
    if shape[axis] != len(flow.ids):
        raise Barrier("repeats a channel")
    call.counts("shape", flow.ids, axis)
    return Flow(axis, flow.ids)


@handles("Pad")
def _pad(call: Call) -> Flow | None:
    flow, config = call.flow, call.op.get_config()
    if flow is None:
        return None
    widths = config["pad_width"]
    if np.shape(widths) != (call.rank, 2) or isinstance(widths, np.ndarray):
        raise Barrier("pads by numbers that are not a pair for each axis")
    before, after = widths[flow.axis]
    if not before and not after:
        return flow
    if config["mode"] != "constant":
        raise Barrier("pads channels with others")
    parts = [call.walk.fresh(before), flow.ids, call.walk.fresh(after)]
    for place in (0, 2):
        if len(parts[place]):
            call.counts(f"pad_width.{flow.axis}.{place // 2}", parts[place])
            call.walk.unmade.append((parts[place], "is a constant that no layer makes"))
    return Flow(flow.axis, np.concatenate(parts))


@handles("Where")
def _where(call: Call) -> Flow | None:
    if call.argument("x1", 1) is None:
        raise Barrier("gives places, not channels")
    return elementwise(call)


@handles("Take")
def _take(call: Call) -> Flow | None:
    values, indices = call.argument("x", 0), call.argument("indices", 1)
    if isinstance(indices, Tensor) and indices in call.walk.flows:
        raise Barrier("takes channels for indices")
    if not isinstance(values, Tensor):
        return None
    whole, axis = call.on(values), call.op.get_config()["axis"]
    flow = whole.flow
    if flow is None:
        return None
    if axis is None or axis % whole.rank == 0:
        raise Barrier("picks from the batch")
    if axis % whole.rank == flow.axis:
        raise Barrier("picks channels by an index that is not a slice")
    added = len(call.node.outputs[0].shape) - whole.rank
    return Flow(flow.axis + (added if axis % whole.rank < flow.axis else 0), flow.ids)


@handles("MaxPool", "AveragePool", "AdaptiveMaxPool", "AdaptiveAveragePool")
def _pool(call: Call) -> Flow | None:
    return call.flow_on(1 if _channels_first(call) else -1)


@handles("Resize", "PadImages", "CropImages")
def _image(call: Call) -> Flow | None:
    # An image may come without a batch.
    return call.flow_on(-3 if _channels_first(call) else -1)


@handles("DepthToSpace")
def _depth_to_space(call: Call) -> Flow | None:
    flow, places = _image(call), call.op.get_config()["block_size"] ** 2
    if flow is None:
        return None
    # Each block of channels is one place of what comes out: all lose the same.
    return Flow(flow.axis, unite_all(call.walk, flow.ids.reshape(places, -1)))


@handles("SpaceToDepth")
def _space_to_depth(call: Call) -> Flow | None:
    flow, places = _image(call), call.op.get_config()["block_size"] ** 2
    return None if flow is None else Flow(flow.axis, np.tile(flow.ids, places))


def _channels_first(call: Call) -> bool:
    data_format = call.op.get_config()["data_format"] or keras.config.image_data_format()
    return data_format == "channels_first"
