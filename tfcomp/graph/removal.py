"""Physical removal of channels: a smaller model with the weights that are left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import UnsupportedModelError
from tfcomp.graph.channels import weight_of
from tfcomp.graph.dependency import Dependencies, changed_entries, changed_weights, removal_mask
from tfcomp.graph.rebuild import clone_op, finalize, rebuild
from tfcomp.graph.trace import Node

Array = npt.NDArray[Any]


def remove_units(found: Dependencies, units: Iterable[int]) -> keras.Model:
    """A smaller model without the given units, its weights taken over.

    The result computes what the model computes when, for every removed channel, the weights of
    all consumers that read it are zero. It is an ordinary Keras model.

    Args:
        found: The dependencies of the model; that model is not changed.
        units: Numbers of the units to be removed. Each layer has to keep a channel.

    Returns:
        The smaller model, uncompiled, with nested models opened up.

    Raises:
        TfcompError: If a number is not that of a unit.
        UnsupportedModelError: If a layer would be left without a channel, or with a number of
            them that is to be avoided, or cannot be copied.

    Example:
        >>> import keras
        >>> from tfcomp.graph import dependencies
        >>> layers = [keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> small = remove_units(dependencies(model), [0, 1, 5])
        >>> [weight.shape for weight in small.get_weights()]
        [(4, 5), (5,), (5, 2), (2,)]
    """
    gone = removal_mask(found, units)
    for name, producer in found.producers.items():
        if gone[producer.units].all():
            raise UnsupportedModelError(
                f"Layer {name!r} must keep at least one of its {len(producer.units)} channels. "
                "Received: units that take all of them."
            )
    for units, number in found.avoided:
        if int((~gone[units]).sum()) == number:
            raise UnsupportedModelError(
                f"{number} channels of {len(units)} must not be left of a biased channels-first "
                f"layer of width {number}: Keras adds the bias along the wrong axis. Remove others."
            )
    entries = changed_entries(found, gone)
    cut = {key.layer for key, units in found.axes.items() if gone[units].any()}
    made: dict[str, Any] = {}

    def clone(name: str, op: Any) -> Any:
        changes = _unbuilt(op) | _array_initializers(op) if name in cut else {}
        for entry, value in entries.get(name, {}).items():
            changes[entry] = _without_build(value)
        made[name] = clone_op(op, name, changes)
        return made[name]

    def call(new_op: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node in found.bounds:
            args = (args[0], _moved(args[1], found.bounds[node], gone))
        return new_op(*args, **kwargs)

    small = rebuild(found.graph, clone, call)
    weights = changed_weights(found)
    for name, op in found.graph.ops.items():
        if isinstance(op, keras.layers.Layer):
            by_index = {
                _index(op, weight): {key.axis: ~gone[found.axes[key]] for key in keys}
                for weight, keys in weights.get(name, {}).items()
            }
            _take_over(name, op, made[name], by_index)
    return small


def sliced(value: Array, keep: dict[int, npt.NDArray[np.bool_]]) -> Array:
    """`value` with only those entries of each axis that `keep` marks."""
    for axis, marked in keep.items():
        value = np.compress(marked, value, axis)
    return value


def _moved(
    index: Any,
    bounds: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]],
    gone: npt.NDArray[np.bool_],
) -> tuple[Any, ...]:
    """The index of `x[...]` with the ends of one slice where they are among fewer channels."""
    position, *before = bounds
    start, stop = (int((~gone[units]).sum()) for units in before)
    items = list(index)
    items[position] = slice(start, stop)
    return tuple(items)


def _unbuilt(layer: keras.layers.Layer) -> dict[str, Any]:
    """Configurations of wrapped layers, without what belongs to the shapes that they had."""
    config = layer.get_config()
    # An activation is a function, which its serialised form may not give back.
    nested = {key: value for key, value in config.items() if _is_nested(value)}
    return {key: _without_build(v) for key, v in nested.items() if key != "activation"}


def _without_build(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("class_name") == "Constant" and _is_nested(value["config"]["value"]):
            # An array of the old shape cannot make the new weights.
            return keras.saving.serialize_keras_object(keras.initializers.Zeros())
        dropped = "build_config" if "class_name" in value else None
        return {key: _without_build(item) for key, item in value.items() if key != dropped}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_build(item) for item in value)
    return value


def _is_nested(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple))


def _array_initializers(layer: keras.layers.Layer) -> dict[str, str]:
    """Initialisers that hold an array of the old shape, and so cannot make the new weights."""
    found = {key: getattr(layer, key, None) for key in layer.get_config()}
    return {
        key: "zeros"
        for key, value in found.items()
        if isinstance(value, keras.initializers.Constant) and np.ndim(value.value)
    }


def _index(layer: keras.layers.Layer, weight: str) -> int:
    """The position of a weight, known as an attribute, in the layer's list of weights."""
    variable = weight_of(layer, weight)
    return next(i for i, other in enumerate(layer.weights) if other is variable)


def _take_over(
    name: str,
    old: keras.layers.Layer,
    new: keras.layers.Layer,
    keep: dict[int, dict[int, npt.NDArray[np.bool_]]],
) -> None:
    """Sets the weights of `new` to those of `old` that are kept."""
    if not any(not marked.all() for axes in keep.values() for marked in axes.values()):
        return
    values = [sliced(value, keep.get(i, {})) for i, value in enumerate(old.get_weights())]
    expected, received = [v.shape for v in values], [tuple(w.shape) for w in new.weights]
    if expected != received:
        raise UnsupportedModelError(
            f"Layer {name!r} ({type(old).__name__}) does not shrink as it should: expected weights "
            f"of shapes {expected}, received {received}. Spare it by its name."
        )
    new.set_weights(values)
    finalize(new)
