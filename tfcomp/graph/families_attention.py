"""What attention does to channels: its heads are units."""

from __future__ import annotations

from typing import Any

from keras import layers

from tfcomp.graph.channels import Barrier, Call, Flow, handles
from tfcomp.graph.trace import Tensor


@handles(layers.MultiHeadAttention)
def _multi_head_attention(call: Call) -> Flow | None:
    config, read = call.op.get_config(), _read(call)
    if config.get("use_gate"):
        raise Barrier("has a gate (use_gate=True), which is not followed")
    key = call.key("value_dense.kernel", 1)
    heads = call.walk.bound.get(key)
    if heads is None:
        heads = call.walk.fresh(config["num_heads"])
    for part, flow in read.items():
        call.reads(f"{part}_dense.kernel", 0, None if flow is None else flow.ids)
        call.reads(f"{part}_dense.kernel", 1, heads)
        if config["use_bias"]:
            call.reads(f"{part}_dense.bias", 0, heads)
    call.reads("output_dense.kernel", 0, heads)
    call.counts("num_heads", heads)
    call.walk.created[call.node.name] = key
    # Unless told otherwise it makes as many channels as the query has: these go together.
    query = read["query"] if config["output_shape"] is None else None
    made = call.reads("output_dense.kernel", -1, None if query is None else query.ids)
    if config["use_bias"]:
        call.reads("output_dense.bias", -1, made)
    return None if query is None else Flow(query.axis, made)


def _read(call: Call) -> dict[str, Flow | None]:
    """The flows of query, key and value, which have to be on the last axis."""
    node = call.node
    given: dict[str, Any] = {**dict(zip(("query", "value", "key"), node.args, strict=False))}
    given.update(node.kwargs)
    if given.get("return_attention_scores"):
        raise Barrier("returns the scores of its heads")
    if given.get("key") is None:
        given["key"] = given["value"]
    read: dict[str, Flow | None] = {}
    for part in ("query", "key", "value"):
        flow = call.walk.flows.get(given[part])
        if flow is not None and flow.axis != len(given[part].shape) - 1:
            raise Barrier("attends over an axis of channels")
        read[part] = flow
    others = {tensor for tensor in node.inputs if tensor not in [given[part] for part in read]}
    if any(_may_tell_heads_apart(call, tensor) for tensor in others):
        raise Barrier("takes a mask that may tell heads apart")
    return read


def _may_tell_heads_apart(call: Call, mask: Tensor) -> bool:
    return len(mask.shape) > 3 or mask in call.walk.flows
