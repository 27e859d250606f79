"""What splits and slices do to channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfcomp.graph.channels import Barrier, Call, Flow, Ids, handles


@handles("Split")
def _split(call: Call) -> tuple[Flow | None, ...]:
    flow, config = call.flow, call.op.get_config()
    if flow is None:
        return ()
    if config["axis"] % call.rank != flow.axis:
        return tuple(flow for _ in call.node.outputs)
    sections, count = config["indices_or_sections"], len(flow.ids)
    if isinstance(sections, int):
        places = [count // sections * index for index in range(1, sections)]
        # The sections have to be written as places whenever the whole is another.
        call.counts("indices_or_sections", flow.ids, sections - 1)
    else:
        places = [int(place) for place in sections]
    if any(low >= high for low, high in zip([0, *places], [*places, count], strict=True)):
        raise Barrier("splits channels at places that do not rise")
    for index, place in enumerate(places):
        call.counts("indices_or_sections", flow.ids[:place], index)
    parts = np.split(flow.ids, places)
    return tuple(Flow(flow.axis, _kept(call, part)) for part in parts)


@handles("GetItem")
def _get_item(call: Call) -> Flow | None:
    flow = call.flow
    if flow is None:
        return None
    if len(call.node.args) != 2:
        raise Barrier("picks values by an index given by name")
    index = call.node.args[1]
    items = index if isinstance(index, tuple) else (index,)
    rest = call.rank - sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis not in [item for item in items if item is None or item is Ellipsis]:
        items = (*items, Ellipsis)
    axis, made = 0, 0
    for position, item in enumerate(items):
        taken, given = _sizes(item, rest)
        if axis <= flow.axis < axis + taken:
            if not given:
                raise Barrier("picks one channel")
            ids = _sliced(call, flow.ids, position, item) if isinstance(item, slice) else flow.ids
            end = made + flow.axis - axis
            if end == 0:
                raise Barrier("makes channels the batch")
            return Flow(end, ids)
        axis, made = axis + taken, made + given
    raise Barrier("picks values by an index that cannot be followed")


def _sizes(item: Any, rest: int) -> tuple[int, int]:
    """How many axes an entry of an index takes, and how many it gives."""
    if item is Ellipsis:
        return rest, rest
    if item is None:
        return 0, 1
    if isinstance(item, slice):
        return 1, 1
    if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
        return 1, 0
    raise Barrier("picks values by more than slices and numbers")


def _sliced(call: Call, ids: Ids, position: int, item: slice) -> Ids:
    start, stop, step = item.indices(len(ids))
    if step != 1 or stop <= start:
        raise Barrier("picks channels in steps, or none")
    if stop - start == len(ids):
        return ids
    call.walk.bounds[call.node] = (position, ids[:start], ids[:stop])
    return _kept(call, ids[start:stop])


def _kept(call: Call, ids: Ids) -> Ids:
    call.walk.parts.append((ids, f"keeps a part in {call.node.name!r} from being empty"))
    return ids
