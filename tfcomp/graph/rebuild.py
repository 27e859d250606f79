"""A new model from a traced one, some of its calls made differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcomp.errors import UnsupportedModelError
from tfcomp.graph.trace import Graph, Node, Tensor, substitute, trace

Clone = Callable[[str, Any], Any]
Call = Callable[[Any, Node, tuple[Any, ...], dict[str, Any]], Any]


def clone_op(op: Any, name: str | None = None, changes: Mapping[str, Any] | None = None) -> Any:
    """A fresh layer or operation of the same configuration, with weights not yet made.

    Args:
        op: A Keras layer or operation.
        name: Its name in the new model; that of `op` by default.
        changes: Entries of the configuration that are to be other than those of `op`.

    Returns:
        The copy.

    Raises:
        UnsupportedModelError: If the class does not say how to be made again.
    """
    try:
        config = op.get_config()
        if "activation" in config and callable(getattr(op, "activation", None)):
            # The function itself: only Keras's own can be made again from what is serialised.
            config["activation"] = op.activation
        config.update(changes or {})
        if name is not None and isinstance(op, keras.layers.Layer):
            config["name"] = name
        if isinstance(op, keras.layers.Lambda):
            copy = type(op).from_config(config, safe_mode=False)
            # The function itself, since its serialised form forgets the globals it uses.
            copy.function = op.function
            return copy
        return type(op).from_config(config)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"Layer {op.name!r} of class {type(op).__name__} cannot be copied: its get_config() "
            f"and from_config() do not agree ({str(error).splitlines()[0]}). "
            "Define get_config() so that from_config(get_config()) gives the same layer."
        ) from error


def rebuild(
    model: keras.Model | Graph,
    clone: Clone | None = None,
    call: Call | None = None,
    *,
    name: str | None = None,
    batch_size: int | None = None,
    copy_weights: bool = True,
) -> keras.Model:
    """Makes a new functional model by repeating the calls of `model` in order.

    The new model shares nothing with the old one. Nested models are opened up, so that the
    result is flat; a shared layer stays shared.

    Args:
        model: A functional or Sequential model, or its `Graph`.
        clone: `clone(name, op)` returns the layer that takes the place of `op`, or None for a
            plain copy. Asked once for each layer, however often that is called.
        call: `call(new_op, node, args, kwargs)` makes the call and returns what the old one
            would have; by default `new_op(*args, **kwargs)`.
        name: Name of the new model; that of `model` by default.
        batch_size: Fixed batch size of the new inputs; as in `model` by default.
        copy_weights: Whether plain copies and layers of the same weight shapes get the values
            of the layers whose place they take.

    Returns:
        The new model, uncompiled.

    Raises:
        UnsupportedModelError: If the model cannot be walked or a layer not be copied.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> copy = rebuild(model)
        >>> bool((copy.get_weights()[0] == model.get_weights()[0]).all())
        True
    """
    graph = model if isinstance(model, Graph) else trace(model)
    values: dict[Tensor, Any] = {}
    for tensor, config in graph.input_configs.items():
        shape = tuple(config["batch_shape"])
        if batch_size is not None:
            shape = (batch_size, *shape[1:])
        values[tensor] = keras.Input(
            batch_shape=shape,
            dtype=config["dtype"],
            sparse=config["sparse"],
            name=config["name"],
        )
    new_ops: dict[str, Any] = {}
    for node in graph.nodes:
        if node.name not in new_ops:
            made = clone(node.name, node.op) if clone else None
            new_ops[node.name] = clone_op(node.op, node.name) if made is None else made
        args, kwargs = substitute(node.args, values), substitute(node.kwargs, values)
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        new_op = new_ops[node.name]
        result = call(new_op, node, args, kwargs) if call else new_op(*args, **kwargs)
        made_tensors = keras.tree.flatten(result)
        values.update(zip(node.outputs, made_tensors, strict=True))
    rebuilt = keras.Model(
        substitute(graph.inputs, values),
        substitute(graph.outputs, values),
        name=name or graph.name,
    )
    if copy_weights:
        _copy_weights(graph, new_ops)
    return rebuilt


def _copy_weights(graph: Graph, new_ops: dict[str, Any]) -> None:
    for name, op in graph.ops.items():
        new_op = new_ops[name]
        if not isinstance(op, keras.layers.Layer) or not isinstance(new_op, keras.layers.Layer):
            continue
        old, new = op.get_weights(), new_op.get_weights()
        if [value.shape for value in old] == [value.shape for value in new]:
            new_op.set_weights(old)
            finalize(new_op)


def finalize(layer: keras.layers.Layer) -> None:
    """Makes a layer compute with the weights that it was given."""
    if isinstance(layer, keras.layers.Normalization):
        # What it computes with is derived from its weights, and only when told to.
        layer.finalize_state()
    elif isinstance(layer, keras.layers.Wrapper):
        finalize(layer.layer)
