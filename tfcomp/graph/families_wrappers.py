"""What wrappers of a layer do to channels: what the layer within does."""

from __future__ import annotations

from keras import layers

from tfcomp.graph.channels import Barrier, Call, Flow, handles
from tfcomp.graph.families import handled
from tfcomp.graph.trace import Node, Tensor, is_graph_model


@handles(layers.TimeDistributed)
def _time_distributed(call: Call) -> Flow | None:
    inner, flow = call.op.layer, call.flow
    if is_graph_model(inner):
        raise Barrier("wraps a model, which is not opened up there")
    if flow is not None and flow.axis == 1:
        raise Barrier("calls a layer for each channel")
    step, made = (_step(tensor) for tensor in (call.tensor, call.node.outputs[0]))
    node = Node(inner, call.node.name, (step,), {}, (step,), (made,), made)
    if flow is not None:
        call.walk.flows[step] = Flow(flow.axis - 1, flow.ids)
    flows = handled(call.within("layer", "layer", node))
    result = flows[0] if isinstance(flows, tuple) else flows
    return None if result is None else Flow(result.axis + 1, result.ids)


def _step(tensor: Tensor) -> Tensor:
    """What a layer within sees of a tensor at one step of time."""
    return Tensor((tensor.shape[0], *tensor.shape[2:]), tensor.dtype)


@handles(layers.SpectralNormalization)
def _spectral_normalization(call: Call) -> Flow | None:
    # Only training divides the kernel by its norm, once and for all: a call takes it as it is.
    made = handled(call.within("layer", "layer"))
    kernel = "layer.kernel" if hasattr(call.op.layer, "kernel") else "layer.embeddings"
    ids = call.walk.bound.get(call.key(kernel, len(call.op.kernel.shape) - 1))
    if ids is not None:
        call.reads("vector_u", 1, ids)
    return made[0] if isinstance(made, tuple) else made
