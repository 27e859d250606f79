"""What attention does to channels: its heads are units."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

from tfcomp.graph.channels import Barrier, Call, Flow, Ids, handles, unite_all
from tfcomp.graph.trace import Tensor

_PUBLIC = {
    part: {name: f"{part}_dense.{name}" for name in ("kernel", "bias")}
    for part in ("query", "key", "value", "output")
}


@handles(layers.MultiHeadAttention)
def _multi_head_attention(call: Call) -> Flow | None:
    config, read = call.op.get_config(), _read(call)
    key = call.key("value_dense.kernel", 1)
    heads = call.walk.bound.get(key)
    if heads is None:
        heads = call.walk.fresh(config["num_heads"])
    for part, flow in read.items():
        _project(call, _PUBLIC[part], flow, heads)
    if config.get("use_gate"):
        _project(call, _weights(call, "gate"), read["query"], heads)
    call.counts("num_heads", heads)
    call.walk.created[call.node.name] = key
    # Unless told otherwise it makes as many channels as the query has: these go together.
    query = read["query"] if config["output_shape"] is None else None
    return _give(call, _PUBLIC["output"], query, heads)


@handles(layers.GroupQueryAttention)
def _grouped_query_attention(call: Call) -> Flow | None:
    """A head of keys and values goes with all the heads of queries that share it."""
    config, read = call.op.get_config(), _read(call)
    names = {part: _weights(call, part) for part in ("query", "key", "value", "attention_output")}
    key = call.key(names["value"]["kernel"], 1)
    heads = call.walk.bound.get(key)
    if heads is None:
        heads = call.walk.fresh(config["num_key_value_heads"])
    many = np.repeat(heads, config["num_query_heads"] // len(heads))
    # The layer insists on as many channels of its values as of its queries.
    same = [flow for flow in (read["query"], read["value"]) if flow is not None]
    if same:
        unite_all(call.walk, [*(flow.ids for flow in same), *_fixed(call, same)])
    _project(call, names["query"], read["query"], many)
    _project(call, names["key"], read["key"], heads)
    _project(call, names["value"], read["value"], heads)
    if config.get("use_gate"):
        _project(call, _weights(call, "gate"), read["query"], many)
    call.counts("num_key_value_heads", heads)
    call.counts("num_query_heads", many)
    call.walk.created[call.node.name] = key
    return _give(call, names["attention_output"], read["query"], many)


def _fixed(call: Call, flows: list[Flow]) -> list[Ids]:
    """What the channels of a query meet in those of values that cannot be cut, or they in it."""
    return [call.frozen(len(flows[0].ids))] if len(flows) == 1 else []


def _weights(call: Call, part: str) -> dict[str, str]:
    """How the weights of a projection are found that has no public attribute."""
    paths = [weight.path.split("/")[-2:] for weight in call.op.weights]
    return {name: f"weights.{i}" for i, (owner, name) in enumerate(paths) if owner == part}


def _project(call: Call, weights: dict[str, str], flow: Flow | None, heads: Ids) -> None:
    """Binds a projection onto heads."""
    call.reads(weights["kernel"], 0, None if flow is None else flow.ids)
    call.reads(weights["kernel"], 1, heads)
    if call.op.get_config()["use_bias"]:
        call.reads(weights["bias"], 0, heads)


def _give(call: Call, weights: dict[str, str], query: Flow | None, heads: Ids) -> Flow | None:
    """Binds the projection of all heads onto the output, whose channels are those of the query."""
    call.reads(weights["kernel"], 0, heads)
    made = call.reads(weights["kernel"], -1, None if query is None else query.ids)
    if call.op.get_config()["use_bias"]:
        call.reads(weights["bias"], -1, made)
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
