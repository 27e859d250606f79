"""A model's outputs and inner layers from one forward pass."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

import keras

from tfcomp.errors import TfcompError
from tfcomp.graph import (
    check_model,
    functional_class,
    is_graph_model,
    pre_activation,
    trace,
)

# Behind a layer's name: its values before the activation. Keras allows no slash in a name.
PRE_ACTIVATION = "/pre_activation"


@dataclasses.dataclass(frozen=True)
class Features:
    """What one forward pass gave: the model's outputs, and those of named layers."""

    outputs: Any
    layers: dict[str, Any]

    def detached(self) -> Features:
        """The same without gradients."""
        stop = keras.ops.stop_gradient
        return Features(
            keras.tree.map_structure(stop, self.outputs),
            {name: stop(tensor) for name, tensor in self.layers.items()},
        )


class FeatureExtractor:
    """Calls a model once and returns its outputs together with those of some layers.

    The weights are the model's own. Without layer names any callable model will do. This is
    no Keras object on purpose: an attribute of a `keras.Model` that holds one is not tracked,
    so that a teacher in it is neither trained nor counted.

    Args:
        model: A model; functional or Sequential where layers are named.
        layer_names: Names of layers of `model` itself, not of models nested in it. A name with
            `/pre_activation` behind it means the layer's values before its activation.
        role: What the model is to the caller, for messages.

    Raises:
        UnsupportedModelError: If layers are named and the model's layers cannot be listed.
        TfcompError: If a layer is unknown, or is called more than once.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="d")])
        >>> features = FeatureExtractor(model, ["d"], "student")(keras.ops.ones((2, 4)), True)
        >>> features.layers["d"].shape
        TensorShape([2, 3])
    """

    def __init__(self, model: keras.Model, layer_names: Iterable[str], role: str) -> None:
        self.model = model
        self._inner: keras.Model | None = None
        names = list(dict.fromkeys(layer_names))
        if names:
            layers = {name: _find(model, name, role) for name in names}
            self._inner = _multi_output(model, layers, role)

    def __call__(self, inputs: Any, training: bool) -> Features:
        if self._inner is None:
            return Features(self.model(inputs, training=training), {})
        features = self._inner(inputs, training=training)
        return Features(features["outputs"], features["layers"])

    def symbolic(self) -> Features | None:
        """The same with symbolic tensors, which have shapes; None for a subclassed model."""
        if self._inner is not None:
            outputs = self._inner.output
            return Features(outputs["outputs"], outputs["layers"])
        return Features(model_output(self.model), {}) if is_graph_model(self.model) else None


def model_input(model: keras.Model) -> Any:
    """The symbolic inputs of a functional or Sequential model, structured as it takes them."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def model_output(model: keras.Model) -> Any:
    """The symbolic outputs of a functional or Sequential model, structured as it gives them."""
    return model.outputs[0] if isinstance(model, keras.Sequential) else model.output


def _find(model: keras.Model, full_name: str, role: str) -> keras.Layer:
    name = full_name.removesuffix(PRE_ACTIVATION)
    try:
        check_model(model, role)
    except TfcompError as error:
        raise type(error)(f"Layer {name!r} cannot be reached. {error}") from None
    graph = trace(model)
    layers = {layer.name: layer for layer in model.layers}
    if name not in layers:
        raise TfcompError(
            f"The {role} {model.name!r} has no layer {name!r}. {_nearest(name, list(layers))}"
            f"{_nested_in(model, name)}"
        )
    layer = layers[name]
    calls = len(graph.calls(layer))
    if calls > 1:
        raise TfcompError(
            f"Layer {name!r} of the {role} {model.name!r} is ambiguous: expected a layer that is "
            f"called once, received one called {calls} times. Put "
            'keras.layers.Identity(name="...") behind the call you mean.'
        )
    return layer


def _multi_output(model: keras.Model, layers: dict[str, Any], role: str) -> keras.Model:
    if type(model).call not in [kind.call for kind in (functional_class(), keras.Sequential)]:
        raise TfcompError(
            f"Layers {list(layers)} of the {role} {model.name!r} cannot be reached: expected a "
            f"plain functional or Sequential model, received {type(model).__name__}, whose own "
            "call() would be passed over. Move its call() into keras.Model(inputs, outputs)."
        )

    calls, output = _calls(model)

    def with_layers(tensors: dict[str, Any]) -> keras.Model:
        outputs = {"outputs": output, "layers": tensors}
        name = f"{model.name}_features"
        return keras.Model(model_input(model), outputs, name=name, dtype=model.dtype_policy)

    try:
        inner = with_layers({name: calls[layer.name][1] for name, layer in layers.items()})
        same = len(trace(inner).nodes) == len(trace(model).nodes)
    except ValueError:
        same = False
    if not same:
        # layer.output is that of the layer's first call, be it in another model.
        raise TfcompError(
            f"Layers {list(layers)} of the {role} {model.name!r} are ambiguous: expected layers "
            "of this model alone, received one that was first called in another model. Copy "
            "the model with tfcomp.graph.rebuild(model)."
        )
    before = {name: layer for name, layer in layers.items() if name.endswith(PRE_ACTIVATION)}
    tensors = {name: calls[layer.name][1] for name, layer in layers.items() if name not in before}
    return with_layers(
        tensors | {name: pre_activation(one, *calls[one.name]) for name, one in before.items()}
    )


def _calls(model: keras.Model) -> tuple[dict[str, tuple[Any, Any]], Any]:
    """What each layer was called on and gave, by name, and the model's outputs."""
    if not isinstance(model, keras.Sequential):
        layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        return {one.name: (one.input, one.output) for one in layers}, model_output(model)
    # A Sequential that was loaded has called its layers each time that one was added, and
    # layer.output tells of the first time.
    calls, tensor = {}, model_input(model)
    for layer in model.layers:
        calls[layer.name] = (tensor, tensor := layer(tensor))
    return calls, tensor


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=len(known), cutoff=0.0)
    return f"Its layers, nearest first: {', '.join(near or known)}."


def _nested_in(model: keras.Model, name: str) -> str:
    for layer in model.layers:
        if is_graph_model(layer) and any(inner.name == name for inner in layer.layers):
            return (
                f" A layer of that name lies in the nested model {layer.name!r}: make the model "
                "flat with tfcomp.graph.rebuild(model)."
            )
    return ""
