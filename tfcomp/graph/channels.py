"""Which channels flow where: the state of a walk, and what one call may say to it.

Every output channel that a layer creates gets an *id*. A tensor's `Flow` names the axis that
carries channels and the id at each position of it: adding two tensors unites their ids,
concatenating joins the arrays, flattening repeats them, and a weight axis that reads a tensor
is bound to the ids it reads. Ids that are united are one unit, removed together or not at all.
What a model looks like then no longer matters: any topology comes down to ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.graph.trace import Graph, Node, Tensor, tensors

Ids = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """The axis of a tensor that carries channels, and the id at each of its positions.

    A tensor without a flow is one of which no axis is ever cut.
    """

    axis: int
    ids: Ids


@dataclasses.dataclass(frozen=True)
class AxisKey:
    """An axis of a weight: `AxisKey("conv1", "kernel", 3)`, `AxisKey("lstm", "cell.kernel", 1)`."""

    layer: str
    weight: str
    axis: int


@dataclasses.dataclass(frozen=True)
class SizeKey:
    """An entry of a configuration that counts channels; `index` where it is a list of numbers.

    Dots and numbers lead into the configuration of a wrapped layer: `"layer.config.units"`.
    """

    layer: str
    entry: str
    index: int | None = None


class Barrier(Exception):  # noqa: N818 (not an error: an answer that a handler gives)
    """Raised by a handler whose call does not keep channels apart; says so as a verb phrase."""


class Walk:
    """Ids, how they are united, which are frozen and why, and what is bound to them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.flows: dict[Tensor, Flow] = {}
        self.bound: dict[AxisKey | SizeKey, Ids] = {}
        self.created: dict[str, AxisKey] = {}
        # Where the axis has the channels several times over, once for each gate.
        self.gates: dict[str, int] = {}
        # For each call of x[...] that slices channels: which entry, and the ids before its ends.
        self.bounds: dict[Node, tuple[int, Ids, Ids]] = {}
        # Pieces of tensors that must not become empty.
        self.parts: list[tuple[Ids, str]] = []
        # Channels that go only with those of a layer that they are united with.
        self.unmade: list[tuple[Ids, str]] = []
        # Channels that must not become so many.
        self.avoided: list[tuple[Ids, int]] = []
        self.frozen: list[tuple[Ids, str]] = []
        self.barred: dict[str, str] = {}
        self.noted: dict[str, str] = {}
        self._parents: list[int] = []

    def fresh(self, count: int) -> Ids:
        """`count` ids that nothing else has."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, identifier: int) -> int:
        """The smallest id that is united with this one."""
        parents = self._parents
        while parents[identifier] != identifier:
            parents[identifier] = parents[parents[identifier]]
            identifier = parents[identifier]
        return identifier

    def roots(self) -> Ids:
        """The root of every id."""
        return np.array([self.root(i) for i in range(len(self._parents))], dtype=np.int64)

    def unite(self, first: Ids, second: Ids) -> Ids:
        """Makes the ids at equal positions one; returns `first`."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self.root(a), self.root(b)))
            self._parents[high] = low
        return first

    def freeze(self, ids: Ids, reason: str) -> Ids:
        """Forbids the removal of `ids`, and of all that is or will be united with them."""
        self.frozen.append((ids, reason))
        return ids

    def bind(self, key: AxisKey | SizeKey, ids: Ids) -> Ids:
        """Ties a weight axis to ids; a second call of a shared layer unites its own with them."""
        return self.unite(self.bound.setdefault(key, ids), ids)

    def channels(self, name: str) -> Ids:
        """The ids of the channels that a layer creates, each position once."""
        ids = self.bound[self.created[name]]
        return ids[: len(ids) // self.gates.get(name, 1)]


class Call:
    """One call as a handler sees it: what comes in, and what it reads, creates and passes on.

    Args:
        walk: Where ids are kept.
        node: The call.
        op: The layer that is asked about, where a wrapper passes on one within.
        weights: How the weights of `op` are found from the layer of the node, `"layer."` for one.
        entries: How its configuration is found in that of the node, `"layer.config."` for one.
        tensor: The input that counts, where there are others.
    """

    def __init__(
        self,
        walk: Walk,
        node: Node,
        op: Any = None,
        weights: str = "",
        entries: str = "",
        tensor: Tensor | None = None,
    ) -> None:
        self.walk, self.node = walk, node
        self.op = node.op if op is None else op
        self._weights, self._entries, self._tensor = weights, entries, tensor

    def within(self, weights: str, entry: str = "", node: Node | None = None) -> Call:
        """The same call for a layer within this one.

        Args:
            weights: The attribute that holds it; dots and numbers lead further in.
            entry: The entry of the configuration that holds its own; none if it has none.
            node: How that layer is called, if otherwise than this one.
        """
        entries = f"{self._entries}{entry}.config." if entry else self._entries
        op, tensor = weight_of(self.op, weights), None if node else self._tensor
        return Call(self.walk, node or self.node, op, f"{self._weights}{weights}.", entries, tensor)

    def on(self, tensor: Tensor) -> Call:
        """The same call, of whose inputs this one counts."""
        return Call(self.walk, self.node, self.op, self._weights, self._entries, tensor)

    def argument(self, name: str, position: int) -> Any:
        """An argument of the call, by position or by name; None where it is not given."""
        args = self.node.args
        return args[position] if position < len(args) else self.node.kwargs.get(name)

    @property
    def flows(self) -> list[Flow | None]:
        """The flow of each input tensor."""
        return [self.walk.flows.get(tensor) for tensor in self.node.inputs]

    @property
    def tensor(self) -> Tensor:
        """The only input tensor, a mask that has no channels aside; or the one that counts."""
        if self._tensor is not None:
            return self._tensor
        mask = self.node.kwargs.get("mask")
        inputs = [
            tensor for tensor in self.node.inputs if tensor is not mask or tensor in self.walk.flows
        ]
        if len(inputs) != 1:
            raise Barrier(f"takes {len(inputs)} tensors where one was expected")
        return inputs[0]

    @property
    def flow(self) -> Flow | None:
        """The flow of the only input tensor."""
        return self.walk.flows.get(self.tensor)

    @property
    def rank(self) -> int:
        """Number of axes of the only input tensor, the batch included."""
        return len(self.tensor.shape)

    @property
    def data_axis(self) -> int:
        """The axis that the layer's own `data_format` calls channels."""
        first = getattr(self.op, "data_format", None) == "channels_first"
        return 1 if first else self.rank - 1

    def flow_on(self, axis: int) -> Flow | None:
        """The only input's flow, which has to be on `axis`."""
        flow = self.flow
        if flow is not None and flow.axis != axis % self.rank:
            raise Barrier(f"works on axis {axis % self.rank}, the channels being on {flow.axis}")
        return flow

    def frozen(self, count: int | None) -> Ids:
        """Ids for channels that come from where nothing is cut."""
        if count is None:
            raise Barrier("meets an axis of unknown size")
        reason = f"meets in {self.node.name!r} ({self.node.kind}) channels that cannot be cut"
        return self.walk.freeze(self.walk.fresh(count), reason)

    def reads(self, weight: str, axis: int, ids: Ids | None) -> Ids:
        """Says that position i of a weight's axis belongs to ids[i]; None where nothing is cut."""
        shape = weight_of(self.op, weight).shape
        axis %= len(shape)
        if ids is None:
            ids = self.frozen(shape[axis])
        if len(ids) != shape[axis]:
            raise Barrier(f"has {shape[axis]} entries in its {weight} for {len(ids)} channels")
        return self.walk.bind(self.key(weight, axis), ids)

    def reads_bias(self, ids: Ids) -> None:
        """Says that the bias, if there is one, belongs to `ids`."""
        if getattr(self.op, "bias", None) is None:
            return
        if getattr(self.op, "data_format", None) == "channels_first":
            # Keras on TensorFlow adds such a bias along the width wherever that equals the number
            # of channels. A cut must neither bring this about nor end it.
            width = self.node.outputs[0].shape[-1]
            if width in (None, len(ids)):
                raise Barrier(
                    f"has data_format='channels_first', a bias for {len(ids)} channels and a width "
                    f"of {width}, which Keras mistakes for them where both are equal"
                )
            self.walk.avoided.append((ids, width))
        self.reads("bias", 0, ids)

    def key(self, weight: str, axis: int) -> AxisKey:
        """The key of a weight's axis, counted from the front."""
        return AxisKey(self.node.name, self._weights + weight, axis)

    def counts(self, entry: str, ids: Ids, index: int | None = None) -> Ids:
        """Says that an entry of the configuration is the number of `ids`."""
        return self.walk.bind(SizeKey(self.node.name, self._entries + entry, index), ids)

    def creates(self, entry: str, kernel: str, axis: int, output_axis: int) -> Flow:
        """Says that the layer makes new channels, along `axis` of its kernel and its bias."""
        ids = self.makes(kernel, axis)
        self.reads_bias(ids)
        return Flow(output_axis, self.counts(entry, ids))

    def makes(self, kernel: str, axis: int) -> Ids:
        """Says that the layer makes new channels along `axis` of its kernel; their ids."""
        shape = weight_of(self.op, kernel).shape
        key = self.key(kernel, axis % len(shape))
        ids = self.walk.bound.get(key)
        if ids is None:
            ids = self.walk.fresh(shape[axis])
        self.walk.created[self.node.name] = key
        return self.reads(kernel, axis, ids)

    def notes(self, reason: str) -> None:
        """Says that a part of what the layer makes is left alone, as a verb phrase."""
        name = type(self.op).__name__
        self.walk.noted.setdefault(self.node.name, f"{name} {reason}")

    def constants(self) -> Iterator[tuple[int, ...]]:
        """Shapes of the arguments that are values, not tensors of the model."""
        for argument in (*self.node.args, *self.node.kwargs.values()):
            is_list = isinstance(argument, (list, tuple)) and any(tensors(argument))
            for item in argument if is_list else [argument]:
                if not isinstance(item, Tensor):
                    yield tuple(item.shape) if hasattr(item, "shape") else np.shape(item)


def weight_of(layer: Any, weight: str) -> Any:
    """A weight by its name as an attribute; dots and numbers lead into layers within."""
    for name in weight.split("."):
        layer = layer[int(name)] if name.isdigit() else getattr(layer, name)
    return layer


Flows = Flow | None | tuple[Flow | None, ...]
Handler = Callable[[Call], Flows]
H = TypeVar("H", bound=Handler)

_HANDLERS: dict[type | str, Handler] = {}


def handles(*kinds: type | str) -> Callable[[H], H]:
    """Registers a function for layers of exactly these classes, or operations of these names.

    A subclass is not covered by its base class's handler: its `call` may do anything. Keras
    gives the classes of operations (`a + b`, `keras.ops.relu`) no public names, hence strings;
    nor those of layers that only keras.applications uses, as "applications.MODULE.CLASS".
    """

    def register(handler: H) -> H:
        for kind in kinds:
            if kind in _HANDLERS:
                raise KeyError(f"{kind} already has a handler")
            _HANDLERS[kind] = handler
        return handler

    return register


def handler_of(op: Any) -> Handler | None:
    """The function registered for this layer or operation, if there is one."""
    kind = type(op)
    if not isinstance(op, keras.layers.Layer):
        return _HANDLERS.get(kind.__name__)
    return _HANDLERS.get(kind) or _HANDLERS.get(application_name(kind))


def application_name(kind: type) -> str:
    """What a layer of keras.applications is registered by; of another layer nothing."""
    parts = kind.__module__.split(".")
    if parts[0] != "keras" or parts[-2:-1] != ["applications"]:
        return ""
    return f"applications.{parts[-1]}.{kind.__name__}"


def unite_all(walk: Walk, arrays: Iterable[Ids]) -> Ids:
    """Unites arrays of equal length, position by position."""
    first, *rest = arrays
    for ids in rest:
        walk.unite(first, ids)
    return first
