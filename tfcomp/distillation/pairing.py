"""Which layer of the student learns from which layer of the teacher."""

from __future__ import annotations

import keras
import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.graph import Graph, Node, Tensor, check_model, is_graph_model, trace

# Random while training, so that a comparison would compare noise.
_RANDOM = {"Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout"}
_RANDOM |= {"GaussianNoise", "GaussianDropout"}


def layer_name(model: keras.Model, layer: str | int, role: str = "model") -> str:
    """The name of a layer given by name or by its index in `model.layers`.

    Args:
        model: A model.
        layer: A name, which is returned as it is, or an index, negative ones from the end.
        role: What the model is to the caller, for the message.

    Returns:
        The name.

    Raises:
        TfcompError: If there is no such index; lists the layers.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> layer_name(model, -1)
        'head'
    """
    if isinstance(layer, str):
        return layer
    layers = [one.name for one in model.layers]
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)):
        raise TfcompError(
            f"A layer of the {role} must be given by name or by index. Received: {layer!r}."
        )
    if not -len(layers) <= layer < len(layers):
        listed = ", ".join(f"{index}: {name}" for index, name in enumerate(layers))
        raise TfcompError(
            f"The {role} {model.name!r} has no layer {layer}: expected an index below "
            f"{len(layers)}, received {layer}. Its layers: {listed}."
        )
    return layers[int(layer)]


def feature_maps(model: keras.Model) -> dict[tuple[int, ...], list[str]]:
    """The layers that give maps of features, by resolution, in the order of the calls.

    A map has a batch axis, one to three axes of known size, and channels last. What has not yet
    passed a layer with a kernel is still the image, and what a random layer gives is noise: both
    are left out, as are layers that are called more than once or lie in a nested model.

    Args:
        model: A built functional or Sequential model.

    Returns:
        Names of layers by resolution, such as (8, 8).

    Raises:
        UnsupportedModelError: If the model cannot be walked.

    Example:
        >>> import keras
        >>> layers = [keras.layers.Conv2D(4, 3, name="a"), keras.layers.MaxPooling2D(2, name="b")]
        >>> feature_maps(keras.Sequential([keras.Input((8, 8, 1)), *layers]))
        {(6, 6): ['a'], (3, 3): ['b']}
    """
    graph = trace(model)
    found: dict[tuple[int, ...], list[str]] = {}
    for node in _own_calls(model, graph):
        shape = node.outputs[0].shape
        if len(shape) in (3, 4, 5) and None not in shape[1:]:
            found.setdefault(tuple(size or 0 for size in shape[1:-1]), []).append(node.name)
    return found


def pair_layers(teacher: keras.Model, student: keras.Model) -> list[tuple[str, str]]:
    """Pairs the last maps of each resolution that both models have, the deepest first.

    Args:
        teacher: A built functional or Sequential model.
        student: Likewise.

    Returns:
        (teacher's layer, student's layer) for each common resolution, the lowest first.

    Raises:
        TfcompError: If no resolution is common; lists the layers of both.

    Example:
        >>> import keras
        >>> def net(width):
        ...     layers = [keras.layers.Conv2D(width, 3, 2, name=f"conv{i}") for i in (1, 2)]
        ...     return keras.Sequential([keras.Input((15, 15, 1)), *layers])
        >>> pair_layers(net(16), net(4))
        [('conv2', 'conv2'), ('conv1', 'conv1')]
    """
    for model, role in ((teacher, "teacher"), (student, "student")):
        check_model(model, role)
        check_channels_last(model, role)
    of_teacher, of_student = feature_maps(teacher), feature_maps(student)
    common = [size for size in of_student if size in of_teacher]
    if not common:
        raise TfcompError(
            "No layers can be paired by themselves: expected feature maps of a resolution that "
            f"both models have, received {_listed(of_teacher)} in the teacher and "
            f"{_listed(of_student)} in the student. {_nested(teacher, student)}Name teacher_layer "
            "and student_layer."
        )
    # A resolution's last map stands deeper in the student the later it comes.
    order = list(of_student)
    common.sort(key=lambda size: (-int(np.prod(size)), order.index(size)), reverse=True)
    return [(of_teacher[size][-1], of_student[size][-1]) for size in common]


def embedding_layer(model: keras.Model, role: str = "model") -> str:
    """The layer whose output the model's last dense layer reads: its embedding of the input.

    Dropout in between is passed over. A model without a dense layer has no embedding.

    Args:
        model: A built functional or Sequential model.
        role: What the model is to the caller, for the message.

    Returns:
        The name of the layer.

    Raises:
        TfcompError: If there is no dense layer at the end or no layer of the model before it.

    Example:
        >>> import keras
        >>> layers = [keras.layers.Dense(8, name="embedding"), keras.layers.Dense(2)]
        >>> embedding_layer(keras.Sequential([keras.Input((4,)), *layers]))
        'embedding'
    """
    check_model(model, role)
    graph = trace(model)
    node: Node | None = graph.producer(graph.output_tensors[0])
    while node is not None and node.kind not in ("Dense", "EinsumDense") and len(node.inputs) == 1:
        node = graph.producer(node.inputs[0])
    source = graph.producer(node.inputs[0]) if node is not None and node.inputs else None
    while source is not None and source.kind in _RANDOM:
        source = graph.producer(source.inputs[0])
    own = [call.name for call in graph.nodes if any(call.op is one for one in model.layers)]
    if source is None or source.name not in own:
        raise TfcompError(
            f"The {role} {model.name!r} has no embedding: expected a last dense layer that reads "
            f"another layer of the model, received the layers {', '.join(own)}. Name "
            "teacher_layer and student_layer."
        )
    return source.name


def _own_calls(model: keras.Model, graph: Graph) -> list[Node]:
    """Calls of the model's own layers, made once, of one tensor that a kernel has made."""
    own = {id(layer) for layer in model.layers}
    learned: set[Tensor] = set()
    calls = []
    for node in graph.nodes:
        kernels = [w for w in getattr(node.op, "weights", ()) if len(w.shape) >= 2]
        if kernels or learned.intersection(node.inputs):
            learned.update(node.outputs)
            single = len(node.outputs) == 1 and len(graph.calls(node.op)) == 1
            if id(node.op) in own and single and node.kind not in _RANDOM:
                calls.append(node)
    return calls


def check_channels_last(model: keras.Model, role: str) -> None:
    """Raises `TfcompError` if a layer of the model has its channels first."""
    for node in trace(model).nodes:
        if getattr(node.op, "data_format", None) == "channels_first":
            raise TfcompError(
                f"Maps of features are compared with channels last: expected such a {role}, "
                f"received {model.name!r}, whose layer {node.name!r} has them first. Compare "
                "vectors (the layer behind the pooling) or responses."
            )


def _nested(*models: keras.Model) -> str:
    """What to do about layers that cannot be seen because they lie in nested models."""
    inner = [layer.name for model in models for layer in model.layers if is_graph_model(layer)]
    if not inner:
        return ""
    return (
        f"Layers inside of {', '.join(map(repr, inner))} are not looked at: make the model flat "
        "with model = tfcomp.graph.rebuild(model). "
    )


def _listed(maps: dict[tuple[int, ...], list[str]]) -> str:
    sizes = ("×".join(map(str, size)) + f" ({', '.join(names)})" for size, names in maps.items())
    return "; ".join(sizes) or "none"
