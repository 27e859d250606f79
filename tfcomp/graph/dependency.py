"""Which channels of which layers have to be removed together, and what may not be cut."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError
from tfcomp.graph import (  # noqa: F401
    families_applications,
    families_arrangement,
    families_attention,
    families_contractions,
    families_operations,
    families_recurrent,
    families_slices,
    families_wrappers,
)
from tfcomp.graph.channels import (
    AxisKey,
    Barrier,
    Call,
    Flow,
    Ids,
    SizeKey,
    Walk,
    weight_of,
)
from tfcomp.graph.families import handled
from tfcomp.graph.trace import Graph, Node, Tensor, trace

Units = npt.NDArray[np.int64]

FIXED = -1
"""Stands for a channel that is never removed."""

_OUTPUT = "is an output of the model"
_SPARED = "is to be spared"


@dataclasses.dataclass(frozen=True, eq=False)
class Producer:
    """A layer that creates channels.

    Attributes:
        name: Its name in the graph.
        layer: The caller's own layer.
        units: For each of its output channels the unit that it belongs to, or `FIXED`.
        kernel: Where its kernel has the output channels.
        gates: How many times over that axis has the channels: 4 in an LSTM.

    The channels of MultiHeadAttention are its heads, which are not an axis of its output.
    """

    name: str
    layer: keras.layers.Layer
    units: Units
    kernel: AxisKey
    gates: int = 1

    def filters(self) -> npt.NDArray[np.float32]:
        """The kernel as a matrix, [channels, weights of one filter], bias not included."""
        return self.rows(keras.ops.convert_to_numpy(weight_of(self.layer, self.kernel.weight)))

    def rows(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array of the kernel's shape as a matrix, [channels, weights of one filter]."""
        rows = np.moveaxis(values, self.kernel.axis, 0)
        by_gate = rows.reshape(self.gates, len(self.units), -1)
        return np.moveaxis(by_gate, 0, 1).reshape(len(self.units), -1)

    def spread(self, values: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """One number for each channel, [channels], in the kernel's shape."""
        along = [1] * len(shape)
        along[self.kernel.axis] = -1
        return np.broadcast_to(np.tile(values, self.gates).reshape(along), shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Layers whose output channels are coupled, and the units that couple them.

    A layer is in several groups where its channels are coupled with those of several others, as
    the convolution that is added to a concatenation: a share of each group is a share of it.

    Attributes:
        layers: Names of the producers, in order of first call.
        units: The units that take channels of just these layers; each can be removed by itself.
    """

    layers: tuple[str, ...]
    units: Units


@dataclasses.dataclass(frozen=True, eq=False)
class Dependencies:
    """What can be removed from a model, and what goes with it.

    A *unit* is a set of channels that are removed together or not at all: one filter of each
    convolution that is added up in a residual stage, for one, with the BatchNormalization
    entries behind them. Units are numbered from 0; `FIXED` (-1) marks what is never removed.

    Attributes:
        graph: The model's calls.
        producers: The layers that create channels, by name, in order of first call.
        groups: The coupled layers; each unit is in exactly one group.
        axes: For each weight axis whose entries belong to channels, the unit of each entry. An
            axis that reads a concatenation has the units of one part after those of the other;
            one that reads a flattened map repeats each unit for each position.
        sizes: The same for the entries of configurations that count channels.
        skipped: For each layer that is left alone, or in part, the reason.
        bounds: For each call of `x[...]` that slices channels, which entry of the index does so,
            the units before its start and those before its stop.
        avoided: Units of channels, and a number of them that must not be what is left.
        channels: For each tensor that has channels their axis, and the unit of each.
    """

    graph: Graph
    producers: Mapping[str, Producer]
    groups: tuple[Group, ...]
    axes: Mapping[AxisKey, Units]
    sizes: Mapping[SizeKey, Units]
    skipped: Mapping[str, str]
    bounds: Mapping[Node, tuple[int, Units, Units]] = dataclasses.field(default_factory=dict)
    avoided: tuple[tuple[Units, int], ...] = ()
    channels: Mapping[Tensor, tuple[int, Units]] = dataclasses.field(default_factory=dict)

    @property
    def n_units(self) -> int:
        """Number of units that can be removed."""
        return sum(len(group.units) for group in self.groups)


def dependencies(model: keras.Model | Graph, spare: Iterable[str] = ()) -> Dependencies:
    """Finds which channels are coupled, over any functional or Sequential model.

    Inputs and outputs of the model are never cut. A layer that does not keep channels apart,
    or is not known to, is left alone with every channel that flows into or out of it.

    Args:
        model: A built functional or Sequential model, or its `Graph`.
        spare: Names of layers whose output channels are to stay.

    Returns:
        The producers, their groups, the axes to be cut and the layers that are skipped.

    Raises:
        UnsupportedModelError: If the model is subclassed, unbuilt or no model.
        TfcompError: If `spare` names a layer that the model does not have.

    Example:
        >>> import keras
        >>> x = keras.Input((8, 8, 3))
        >>> a = keras.layers.Conv2D(4, 3, padding="same", name="a")(x)
        >>> b = keras.layers.Conv2D(4, 3, padding="same", name="b")(a)
        >>> y = keras.layers.Dense(2, name="y")(keras.layers.Flatten()(a + b))
        >>> found = dependencies(keras.Model(x, y))
        >>> [(group.layers, len(group.units)) for group in found.groups]
        [(('a', 'b'), 4)]
        >>> dict(found.skipped)
        {'y': 'is an output of the model'}
    """
    graph = model if isinstance(model, Graph) else trace(model)
    walk = Walk(graph)
    barriers: dict[str, str] = {}
    for node in graph.nodes:
        for tensor, flow in zip(node.outputs, _visit(walk, node, barriers), strict=False):
            if flow is not None:
                walk.flows[tensor] = flow
    _freeze_edges(walk, _checked_names(spare, graph))
    return _resolve(walk, barriers)


def _visit(walk: Walk, node: Node, barriers: dict[str, str]) -> tuple[Flow | None, ...]:
    """The flow of each of a call's outputs; None where none of its axes may be cut."""
    try:
        made = handled(Call(walk, node))
    except Barrier as barrier:
        reason = str(barrier)
        incoming = [walk.flows[tensor] for tensor in node.inputs if tensor in walk.flows]
        for read in incoming:
            walk.freeze(read.ids, f"flows into {node.name!r} ({node.kind}), which {reason}")
        if incoming or getattr(node.op, "weights", None):
            barriers.setdefault(node.name, f"{node.kind} {reason}")
        walk.barred.setdefault(node.name, f"{node.kind} {reason}")
        return ()
    return made if isinstance(made, tuple) else (made,)


def _checked_names(spare: Iterable[str], graph: Graph) -> list[str]:
    names = [spare] if isinstance(spare, str) else list(spare)
    for name in names:
        if name not in graph.ops:
            close = difflib.get_close_matches(str(name), graph.ops, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TfcompError(
                f"`spare` must hold names of layers of {graph.name!r}. Received: {name!r}.{hint}"
            )
    return names


def _freeze_edges(walk: Walk, spare: list[str]) -> None:
    """Freezes what leaves the model, what is spared, and all of a layer that met a barrier."""
    for tensor in walk.graph.output_tensors:
        if tensor in walk.flows:
            walk.freeze(walk.flows[tensor].ids, _OUTPUT)
    for node in walk.graph.nodes:
        if node.name in spare:
            for tensor in node.outputs:
                if tensor in walk.flows:
                    walk.freeze(walk.flows[tensor].ids, _SPARED)
            if node.name in walk.created:
                walk.freeze(walk.channels(node.name), _SPARED)
    for key, ids in walk.bound.items():
        if key.layer in walk.barred:
            walk.freeze(ids, walk.barred[key.layer])
    for name in walk.created:
        if len(walk.channels(name)) == 1:
            walk.freeze(walk.channels(name), "has only one channel")
    _keep_unmade(walk)
    _keep_parts(walk)


def _keep_unmade(walk: Walk) -> None:
    """Freezes channels that no layer makes, unless they are united with some that one does."""
    if not walk.unmade:
        return
    roots = walk.roots()
    made = np.concatenate([roots[walk.channels(name)] for name in walk.created] or [roots[:0]])
    for ids, reason in walk.unmade:
        walk.freeze(ids[~np.isin(roots[ids], made)], reason)


def _keep_parts(walk: Walk) -> None:
    """Freezes a channel of each part of a tensor that could otherwise become empty."""
    roots = walk.roots()
    wholes = [np.unique(roots[walk.channels(name)]) for name in walk.created]
    for ids, reason in walk.parts:
        # Of every layer a channel stays, and so does what is frozen.
        part = roots[ids]
        if any(np.isin(whole, part).all() for whole in wholes):
            continue
        if not any(np.isin(roots[frozen], part).any() for frozen, _ in walk.frozen):
            walk.freeze(ids[:1], reason)


def _resolve(walk: Walk, barriers: Mapping[str, str]) -> Dependencies:
    """Numbers the units, and writes everything in terms of them."""
    roots = walk.roots()
    reasons: dict[int, str] = {}
    # What the caller can see or has asked for tells more than what lies in between.
    for ids, reason in sorted(walk.frozen, key=lambda item: item[1] not in (_OUTPUT, _SPARED)):
        for root in np.unique(roots[ids]).tolist():
            reasons.setdefault(root, reason)
    units = np.full(len(roots), FIXED, dtype=np.int64)
    free = [root for root in np.unique(roots).tolist() if root not in reasons]
    units[free] = np.arange(len(free))
    units = units[roots]
    producers = {
        name: Producer(
            name, walk.graph.ops[name], units[walk.channels(name)], key, walk.gates.get(name, 1)
        )
        for name, key in walk.created.items()
    }
    bound = {key: units[ids] for key, ids in walk.bound.items()}
    skipped = {**walk.noted, **barriers}
    for name in walk.created:
        why = _why_fixed(roots[walk.channels(name)], reasons)
        if why:
            skipped.setdefault(name, why)
    order = [node.name for node in walk.graph.nodes]
    return Dependencies(
        graph=walk.graph,
        producers=producers,
        groups=_groups(producers, len(free)),
        axes={key: value for key, value in bound.items() if isinstance(key, AxisKey)},
        sizes={key: value for key, value in bound.items() if isinstance(key, SizeKey)},
        skipped={name: skipped[name] for name in sorted(skipped, key=order.index)},
        bounds={node: (i, units[a], units[b]) for node, (i, a, b) in walk.bounds.items()},
        avoided=tuple((units[ids], number) for ids, number in walk.avoided),
        channels={tensor: (flow.axis, units[flow.ids]) for tensor, flow in walk.flows.items()},
    )


def _why_fixed(roots: Ids, reasons: Mapping[int, str]) -> str | None:
    found = [reasons[root] for root in roots.tolist() if root in reasons]
    if not found:
        return None
    if len(found) == len(roots):
        return _OUTPUT if _OUTPUT in found else found[0]
    return f"{len(found)} of its {len(roots)} channels: {found[0]}"


def _groups(producers: Mapping[str, Producer], n_units: int) -> tuple[Group, ...]:
    """The units by the layers that they take channels of."""
    layers: list[list[str]] = [[] for _ in range(n_units)]
    for name, producer in producers.items():
        for unit in np.unique(producer.units[producer.units != FIXED]).tolist():
            layers[unit].append(name)
    members: dict[tuple[str, ...], list[int]] = {}
    for unit, names in enumerate(layers):
        members.setdefault(tuple(names), []).append(unit)
    return tuple(Group(names, np.array(units, dtype=np.int64)) for names, units in members.items())


def removal_mask(found: Dependencies, units: Iterable[int]) -> npt.NDArray[np.bool_]:
    """Which units go, as an array indexed by unit; the entry behind the last is for `FIXED`.

    Args:
        found: The dependencies of a model.
        units: Numbers of the units to be removed.

    Returns:
        A boolean array of shape [n_units + 1] whose last entry, index -1, is False.

    Raises:
        TfcompError: If a number is not that of a unit.
    """
    chosen = np.fromiter(units, dtype=np.int64)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= found.n_units):
        raise TfcompError(
            f"Units must be numbers from 0 to {found.n_units - 1}. Received: {chosen.tolist()}."
        )
    mask = np.zeros(found.n_units + 1, dtype=np.bool_)
    mask[chosen] = True
    return mask


def removed_channels(found: Dependencies, units: Iterable[int]) -> dict[str, list[int]]:
    """The output channels of each producer that go with `units`; layers losing none are left out.

    Args:
        found: The dependencies of a model.
        units: Numbers of the units to be removed.

    Returns:
        Indices of output channels, ascending, by layer.
    """
    gone = removal_mask(found, units)
    indices = {name: np.flatnonzero(gone[p.units]).tolist() for name, p in found.producers.items()}
    return {name: channels for name, channels in indices.items() if channels}


def changed_weights(found: Dependencies) -> dict[str, dict[str, list[AxisKey]]]:
    """The weight axes that channels are bound to, by layer and weight."""
    result: dict[str, dict[str, list[AxisKey]]] = {}
    for key in found.axes:
        result.setdefault(key.layer, {}).setdefault(key.weight, []).append(key)
    return result


def changed_entries(found: Dependencies, gone: npt.NDArray[np.bool_]) -> dict[str, dict[str, Any]]:
    """The configuration entries that are other once units are `gone`, by layer."""
    result: dict[str, dict[str, Any]] = {}
    for key, units in found.sizes.items():
        count = int((~gone[units]).sum())
        if count == len(units):
            continue
        entries = result.setdefault(key.layer, {})
        path = [int(name) if name.isdigit() else name for name in key.entry.split(".")]
        top, last = str(path[0]), path[-1]
        if top not in entries:
            value = found.graph.ops[key.layer].get_config()[top]
            entries[top] = value if len(path) == 1 else _changeable(value)
        place: Any = entries
        for step in path[:-1]:
            place = place[step]
        if key.index is None:
            place[last] = count
        else:
            numbers = _numbers(place[last], key, found.sizes)
            numbers[key.index : key.index + 1] = [count] if key.index < len(numbers) else []
            place[last] = tuple(numbers)
    return result


def _changeable(value: Any) -> Any:
    """A copy whose parts can be set, lists in place of tuples: the caller's own is not touched."""
    if isinstance(value, (list, tuple)):
        return [_changeable(item) for item in value]
    return copy.deepcopy(value)


def _numbers(value: Any, key: SizeKey, sizes: Mapping[SizeKey, Units]) -> list[int]:
    """An entry as a list; a number of equal sections as the places where they end."""
    if not isinstance(value, int):
        return list(value)
    keys = (SizeKey(key.layer, key.entry, index) for index in range(value - 1))
    return [len(sizes[key]) for key in keys]
