"""A Keras model as a list of calls, read through its public configuration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from tfcomp.errors import UnsupportedModelError


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A value that flows through the model; two tensors are equal only if they are the same."""

    shape: tuple[int | None, ...]
    dtype: str


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer or operation. A shared layer has several nodes.

    Attributes:
        op: The caller's own layer or operation, never a copy.
        name: Name of `op`, unique in the graph; layers of nested models get the nested
            model's name in front where two would clash.
        args: Positional arguments of the call, `Tensor` wherever a tensor was.
        kwargs: Keyword arguments of the call, likewise.
        inputs: The tensors among the arguments, in order.
        outputs: The tensors that the call returned, flattened.
        structure: What the call returned, `Tensor` in place of each tensor.
    """

    op: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    structure: Any

    @property
    def kind(self) -> str:
        """Class name of the layer or operation, `"Conv2D"` for one."""
        return type(self.op).__name__


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """All calls of a model in an order in which they can be made, nested models opened up.

    Attributes:
        name: Name of the model.
        inputs: The model's inputs, structured as the model takes them.
        input_configs: For each input tensor, the configuration of its `keras.Input`.
        nodes: The calls in topological order.
        outputs: The model's outputs, structured as the model returns them.
    """

    name: str
    inputs: Any
    input_configs: Mapping[Tensor, dict[str, Any]]
    nodes: tuple[Node, ...]
    outputs: Any

    def __post_init__(self) -> None:
        consumers: dict[Tensor, list[Node]] = {}
        producer: dict[Tensor, Node] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(node.inputs):
                consumers.setdefault(tensor, []).append(node)
            for tensor in node.outputs:
                producer.setdefault(tensor, node)
        object.__setattr__(self, "_consumers", consumers)
        object.__setattr__(self, "_producer", producer)

    def consumers(self, tensor: Tensor) -> tuple[Node, ...]:
        """The calls that read `tensor`, in order."""
        consumers: dict[Tensor, list[Node]] = getattr(self, "_consumers")  # noqa: B009
        return tuple(consumers.get(tensor, ()))

    def producer(self, tensor: Tensor) -> Node | None:
        """The call that made `tensor`; None for an input of the model."""
        producer: dict[Tensor, Node] = getattr(self, "_producer")  # noqa: B009
        return producer.get(tensor)

    @property
    def output_tensors(self) -> tuple[Tensor, ...]:
        """The model's outputs, flattened."""
        return tuple(tensors(self.outputs))

    @property
    def input_tensors(self) -> tuple[Tensor, ...]:
        """The model's inputs, flattened."""
        return tuple(tensors(self.inputs))

    def calls(self, op: Any) -> tuple[Node, ...]:
        """Every call of one layer or operation: more than one where it is shared."""
        return tuple(node for node in self.nodes if node.op is op)

    @property
    def ops(self) -> dict[str, Any]:
        """Layers and operations by their unique name, each once, in order of first call."""
        return {node.name: node.op for node in self.nodes}


def tensors(structure: Any) -> Iterator[Tensor]:
    """The `Tensor`s in nested lists, tuples and dicts, in Keras's flattening order."""
    return (leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, Tensor))


def substitute(structure: Any, values: Mapping[Tensor, Any]) -> Any:
    """`structure` with each `Tensor` replaced by its entry in `values`."""
    return keras.tree.map_structure(
        lambda leaf: values[leaf] if isinstance(leaf, Tensor) else leaf, structure
    )


def is_graph_model(model: Any) -> bool:
    """Whether `model` is functional or Sequential, so that its calls can be listed."""
    return isinstance(model, (keras.Sequential, functional_class()))


def check_model(model: Any, role: str = "model") -> None:
    """Raises unless `model` is a built functional or Sequential model.

    Args:
        model: What the caller passed.
        role: What it is to the caller, for the message.

    Raises:
        UnsupportedModelError: Says what was expected, what was received and what to do.
    """
    if not isinstance(model, keras.Model):
        raise UnsupportedModelError(
            f"The {role} must be a functional or Sequential keras.Model. "
            f"Received: {type(model).__name__}."
        )
    if not is_graph_model(model):
        raise UnsupportedModelError(
            f"The {role} must be a functional or Sequential keras.Model, whose layers can be "
            f"listed. Received: {model.name!r}, a subclassed model of class "
            f"{type(model).__name__}. Rewrite its call() as keras.Model(inputs, outputs)."
        )
    if not model.built or not model.inputs:
        raise UnsupportedModelError(
            f"The {role} {model.name!r} has no weights yet because its input shape is unknown. "
            "Start it with keras.Input(shape) or call model.build(input_shape)."
        )


def trace(model: keras.Model) -> Graph:
    """Lists the calls of a functional or Sequential model, nested models opened up.

    Only the public configuration and `model.operations` are read; the model is not touched.

    Args:
        model: A built functional or Sequential model.

    Returns:
        The graph, whose nodes refer to the model's own layers.

    Raises:
        UnsupportedModelError: If the model is subclassed, unbuilt or no model.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> [(node.name, node.outputs[0].shape) for node in trace(model).nodes]
        [('d', (None, 2))]
    """
    check_model(model)
    nodes: list[Node] = []
    namer = _Namer()
    input_configs: dict[Tensor, dict[str, Any]] = {}
    functional = as_functional(model)
    values: dict[Tensor, Any] = {}
    bound: dict[str, Tensor] = {}
    for operation in functional.operations:
        if isinstance(operation, keras.layers.InputLayer):
            config = operation.get_config()
            tensor = Tensor(tuple(config["batch_shape"]), config["dtype"])
            input_configs[tensor] = config
            bound[operation.name] = tensor
            values[tensor] = keras.KerasTensor(tensor.shape, dtype=tensor.dtype)
    config = functional.get_config()
    outputs = _trace_scope(functional, config, bound, (), nodes, namer, values)
    inputs = _map_references(config["input_layers"], lambda ref: bound[ref[0]])
    return Graph(
        model.name,
        _as_declared(inputs, functional.input),
        input_configs,
        tuple(nodes),
        _as_declared(outputs, functional.output),
    )


def _as_declared(structure: Any, declared: Any) -> Any:
    """Undoes the list of one that configurations write for a single tensor."""
    if isinstance(structure, list) and not isinstance(declared, (list, tuple, dict)):
        return structure[0]
    return structure


class _Namer:
    """Gives each operation one unique name, its own where that is free."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._taken: set[str] = set()

    def __call__(self, op: Any, path: tuple[str, ...]) -> str:
        if id(op) not in self._names:
            name = op.name
            if name in self._taken:
                name = "_".join((*path, op.name))
            base, count = name, 1
            while name in self._taken:
                name, count = f"{base}_{count}", count + 1
            self._names[id(op)] = name
            self._taken.add(name)
        return self._names[id(op)]


def _trace_scope(
    model: keras.Model,
    config: dict[str, Any],
    bound: dict[str, Tensor],
    path: tuple[str, ...],
    nodes: list[Node],
    namer: _Namer,
    values: dict[Tensor, Any],
) -> Any:
    """Appends the calls of one functional model; returns its outputs as `Tensor`s.

    Its configuration, the dearest part of it all, is made once and handed on.
    """
    known = {(name, 0, 0): tensor for name, tensor in bound.items()}
    operations = {operation.name: operation for operation in model.operations}
    waiting = [
        (operations[layer["name"]], index, call)
        for layer in config["layers"]
        for index, call in enumerate(layer["inbound_nodes"])
    ]
    while waiting:
        blocked = []
        for op, index, call in waiting:
            if not all(reference in known for reference in _references(call)):
                blocked.append((op, index, call))
                continue
            args = tuple(_deserialize(call["args"], known))
            kwargs = dict(_deserialize(call["kwargs"], known))
            structure = _trace_call(op, args, kwargs, path, nodes, namer, values)
            for position, tensor in enumerate(tensors(structure)):
                known[op.name, index, position] = tensor
        if len(blocked) == len(waiting):
            raise UnsupportedModelError(
                f"The calls of {model.name!r} do not form a graph without loops: "
                f"{sorted({op.name for op, _, _ in blocked})} wait for each other."
            )
        waiting = blocked

    def output(reference: _Reference) -> Tensor:
        name, index, position = reference
        # Here, and here alone, Keras counts the call by which a nested model was made.
        made = isinstance(operations[name], functional_class())
        return known[name, index - made, position]

    return _map_references(config["output_layers"], output)


def _trace_call(
    op: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: tuple[str, ...],
    nodes: list[Node],
    namer: _Namer,
    values: dict[Tensor, Any],
) -> Any:
    if is_graph_model(op):
        inner = as_functional(op)
        config = inner.get_config()
        given = list(tensors(args)) or list(tensors(kwargs))
        layers: list[str] = []
        _map_references(config["input_layers"], lambda ref: layers.append(ref[0]))
        bound = dict(zip(layers, given, strict=False))
        return _trace_scope(inner, config, bound, (*path, op.name), nodes, namer, values)
    spec = op.compute_output_spec(
        *substitute(args, values), **substitute(_without_none(kwargs), values)
    )

    def record(value: Any) -> Tensor:
        tensor = Tensor(tuple(value.shape), keras.backend.standardize_dtype(value.dtype))
        values[tensor] = keras.KerasTensor(tensor.shape, dtype=tensor.dtype)
        return tensor

    structure = keras.tree.map_structure(record, spec)
    inputs = (*tensors(args), *tensors(kwargs))
    outputs = tuple(tensors(structure))
    nodes.append(Node(op, namer(op, path), args, kwargs, inputs, outputs, structure))
    return structure


def _without_none(kwargs: dict[str, Any]) -> dict[str, Any]:
    # Keras records `mask=None` for calls to layers whose call() does not take a mask.
    return {key: value for key, value in kwargs.items() if value is not None}


@functools.cache
def functional_class() -> type[keras.Model]:
    """The class of `keras.Model(inputs, outputs)`."""
    # It has no public name of its own. Keras 3.12 refuses a model without a layer.
    tensor = keras.Input((1,))
    return type(keras.Model(tensor, keras.layers.Identity()(tensor)))


def as_functional(model: keras.Model) -> keras.Model:
    """A functional view on the same layers: plain configuration, whatever the class."""
    if isinstance(model, keras.Sequential):
        # Not in lists, lest what is rebuilt return a list of one where this returns a tensor.
        (inputs,), (outputs,) = model.inputs, model.outputs
        return keras.Model(inputs, outputs, name=model.name)
    return keras.Model(model.input, model.output, name=model.name)


_Reference = tuple[str, int, int]


def _is_tensor_config(value: Any) -> bool:
    return isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"


def _references(value: Any) -> Iterator[_Reference]:
    if _is_tensor_config(value):
        name, node, position = value["config"]["keras_history"]
        yield name, node, position
    elif isinstance(value, dict):
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _references(item)


def _deserialize(value: Any, known: Mapping[_Reference, Tensor]) -> Any:
    """Call arguments from a configuration, with `Tensor`s for its tensor references."""
    if _is_tensor_config(value):
        return known[next(_references(value))]
    if isinstance(value, (list, tuple)):
        return type(value)(_deserialize(item, known) for item in value)
    if isinstance(value, dict):
        if "class_name" in value and "config" in value:
            return keras.saving.deserialize_keras_object(value)
        return {key: _deserialize(item, known) for key, item in value.items()}
    return value


def _map_references(structure: Any, function: Callable[[_Reference], Any]) -> Any:
    """Applies `function` to each [layer name, node, tensor] triple of a configuration."""
    if (
        isinstance(structure, (list, tuple))
        and len(structure) == 3
        and isinstance(structure[0], str)
        and isinstance(structure[1], int)
    ):
        return function((structure[0], structure[1], structure[2]))
    if isinstance(structure, dict):
        return {key: _map_references(item, function) for key, item in structure.items()}
    return [_map_references(item, function) for item in structure]
