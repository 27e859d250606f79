"""The 8-bit scheme of TFLite: which tensors are rounded, where, and what stays float.

The converter makes an integer op only of a float op whose inputs and outputs all have a range,
and it fuses convolution, BatchNormalization and ReLU into one op only if nothing stands between
them. So every float tensor gets a range, save those inside such a fused op, those that an op
hands through unchanged, and those whose range the runtime itself fixes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from tfcomp.errors import TfcompError
from tfcomp.graph import Graph, Node, Tensor
from tfcomp.graph.folding import batch_norm_pairs, is_keras_own

TARGETS = ("tflite", "edgetpu")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Weights by layer class: attribute, and the dimensions that keep a scale for each index.
_WEIGHTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "Conv1D": ("kernel", (-1,)),
    "Conv2D": ("kernel", (-1,)),
    "Conv2DTranspose": ("kernel", (-2,)),
    "DepthwiseConv1D": ("kernel", (-2, -1)),
    "DepthwiseConv2D": ("kernel", (-2, -1)),
    "Dense": ("kernel", (-1,)),
}
# The op gives out values that it was given, on the same grid.
_PASSES = _words(
    "MaxPooling1D MaxPooling2D AveragePooling1D AveragePooling2D GlobalMaxPooling1D "
    "GlobalMaxPooling2D Flatten Reshape Permute UpSampling1D UpSampling2D ZeroPadding1D "
    "ZeroPadding2D Cropping1D Cropping2D RepeatVector Dropout SpatialDropout1D "
    "SpatialDropout2D AlphaDropout GaussianNoise GaussianDropout ActivityRegularization "
    "Identity MaxPool AveragePool Transpose GetItem Squeeze ExpandDims Pad Split"
)
# The op has an integer kernel that puts its result on a grid of its own.
_OWN_GRID = _words(
    "Add Subtract Multiply Maximum Minimum Concatenate GlobalAveragePooling1D "
    "GlobalAveragePooling2D LeakyReLU PReLU Mean"
)
_RELUS = _words("relu relu6 bounded_relu")
_FUSES_WITH_RELU = _words("Add Subtract Multiply")
# Activations whose result lies on a grid that the TFLite runtime fixes.
_FIXED_RANGES = {
    "softmax": (0.0, 255.0 / 256.0),
    "sigmoid": (0.0, 255.0 / 256.0),
    "tanh": (-1.0, 127.0 / 128.0),
    # Not the runtime's but the converted form's own: ReLU6(x + 3) on 0 … 6, divided by 6.
    "hard_sigmoid": (0.0, 1.0),
}
# y = a·x + c per channel: converted to a depthwise convolution of 1×1.
AFFINE = _words("BatchNormalization Rescaling")
_OWN_GRID_ACTIVATIONS = _words("leaky_relu silu hard_silu gelu")
FUSED_ACTIVATIONS = frozenset(("linear", "relu", "relu6"))
_ACTIVATION_OPS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softmax": "softmax",
    "Silu": "silu",
    "HardSilu": "hard_silu",
    "HardSigmoid": "hard_sigmoid",
    "LeakyRelu": "leaky_relu",
}


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A layer that stays float, and why."""

    name: str
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What becomes of each tensor and each layer.

    Attributes:
        rounded: For each tensor to be rounded, the arguments of its `FakeQuantize`.
        weights: For each layer with weights to be rounded, the `axes` of its
            `FakeQuantizeWeights`.
        skipped: The layers that stay float.
    """

    rounded: Mapping[Tensor, dict[str, Any]]
    weights: Mapping[str, dict[str, tuple[int, ...]]]
    skipped: tuple[Skipped, ...]


def check_target(target: str) -> None:
    """Raises unless the scheme has a form for `target`."""
    if target not in TARGETS:
        raise TfcompError(f"Expected target to be one of {TARGETS}, received {target!r}.")


def activation_name(function: Any) -> str:
    """Keras's name of an activation function; "custom" for one that is not Keras's."""
    if function is None:
        return "linear"
    name = keras.activations.serialize(function)
    return name if isinstance(name, str) else "custom"


def has_integer_weights(op: Any) -> bool:
    """Whether the scheme rounds the weights of layers of this class."""
    return is_keras_own(op) and type(op).__name__ in _WEIGHTS


def has_fused_activation(op: Any) -> bool:
    """Whether the layer's own activation, if any, is one that TFLite does in the same op."""
    return activation_name(getattr(op, "activation", None)) in FUSED_ACTIVATIONS


def activation_of(node: Node) -> str | None:
    """Name of the activation function that a call applies and nothing else; None if none."""
    op = node.op
    if not is_keras_own(op):
        return None
    if node.kind == "Activation":
        return activation_name(op.activation)
    if node.kind == "ReLU":
        if op.threshold or (op.negative_slope and op.max_value is not None):
            return None
        if op.negative_slope:
            return "leaky_relu"
        return {None: "relu", 6.0: "relu6"}.get(op.max_value, "bounded_relu")
    if isinstance(op, keras.layers.Layer):
        names = {"Softmax": "softmax", "LeakyReLU": "leaky_relu", "ELU": "elu"}
        return names.get(node.kind)
    return _ACTIVATION_OPS.get(node.kind)


def plan(graph: Graph, target: str = "tflite") -> Plan:
    """Lays the scheme over a graph whose weighted layers have fused activations only.

    Args:
        graph: The model's graph.
        target: "tflite", or "edgetpu" for one scale per Dense kernel instead of one for each
            of its output channels.

    Returns:
        The plan.
    """
    check_target(target)
    return _Planner(graph, target).plan()


class _Planner:
    def __init__(self, graph: Graph, target: str) -> None:
        self._graph = graph
        self._per_tensor = frozenset({"Dense"} if target == "edgetpu" else ())
        self._outputs = set(graph.output_tensors)
        self._folded = set(batch_norm_pairs(graph).values())
        self._reasons = {node: self._reason_to_skip(node) for node in graph.nodes}

    def plan(self) -> Plan:
        rounded: dict[Tensor, dict[str, Any]] = {}
        on_grid: set[Tensor] = set()
        for tensor in self._graph.input_tensors:
            if self._is_float(tensor) and self._wants_grid(tensor):
                rounded[tensor] = {}
                on_grid.add(tensor)
        for node in self._graph.nodes:
            for tensor in node.outputs:
                options = self._options(node, tensor, on_grid)
                if options is not None:
                    rounded[tensor] = options
                if options is not None or self._hands_on(node, on_grid):
                    on_grid.add(tensor)
        skipped = {
            node.name: Skipped(node.name, node.kind, reason)
            for node, reason in self._reasons.items()
            if reason
        }
        return Plan(rounded, self._weights(), tuple(skipped.values()))

    def _weights(self) -> dict[str, dict[str, tuple[int, ...]]]:
        weights = {}
        for node in self._graph.nodes:
            if node.kind in _WEIGHTS and not self._reasons[node]:
                name, axes = _WEIGHTS[node.kind]
                weights[node.name] = {name: () if node.kind in self._per_tensor else axes}
        return weights

    def _options(self, node: Node, tensor: Tensor, on_grid: set[Tensor]) -> dict[str, Any] | None:
        """Arguments of the FakeQuantize on an output; None if it is not to be rounded."""
        if not self._is_float(tensor) or self._hands_on(node, on_grid):
            return None
        if (self._reasons[node] or node.kind in _PASSES) and not self._wants_grid(tensor):
            return None
        activation = activation_of(node)
        if activation in _FIXED_RANGES:
            return {"fixed_range": _FIXED_RANGES[activation]}
        readers = self._graph.consumers(tensor)
        if len(readers) == 1 and tensor not in self._outputs and self._fuses(node, readers[0]):
            return None
        last = activation or activation_name(getattr(node.op, "activation", None))
        return {"non_negative": True} if last in _RELUS else {}

    def _fuses(self, node: Node, reader: Node) -> bool:
        """Whether the value between the two never exists in the integer file."""
        if self._reasons[node] or self._reasons[reader]:
            return False
        if reader in self._folded:
            return True
        if reader.kind == "Concatenate":
            # Its own range serves for all that it joins. What bounds a bounded ReLU in the
            # file is the range that follows it, which has to be its own.
            return activation_of(node) != "bounded_relu"
        if activation_of(reader) not in _RELUS:
            return False
        if node.kind in _WEIGHTS:
            return node.op.activation is keras.activations.linear
        if node.kind in AFFINE:
            return node in self._folded or len(node.outputs[0].shape) == 4
        return node.kind in _FUSES_WITH_RELU

    def _hands_on(self, node: Node, on_grid: set[Tensor]) -> bool:
        """Whether the outputs of a call are on the grid of its inputs."""
        return (
            node.kind in _PASSES
            and not self._reasons[node]
            and all(tensor in on_grid for tensor in node.inputs)
        )

    def _wants_grid(self, tensor: Tensor) -> bool:
        """Whether an integer op reads the tensor, be it through ops that hand values on."""
        return any(
            not self._reasons[node]
            and (node.kind not in _PASSES or any(map(self._wants_grid, node.outputs)))
            for node in self._graph.consumers(tensor)
        )

    @staticmethod
    def _is_float(tensor: Tensor) -> bool:
        return tensor.dtype.startswith(("float", "bfloat"))

    def _reason_to_skip(self, node: Node) -> str | None:
        if not is_keras_own(node.op):
            return "not a layer of Keras's own, so what it computes is not known"
        if not all(self._is_float(tensor) for tensor in (*node.inputs, *node.outputs)):
            return "its inputs or outputs are not float"
        if node.kind in _WEIGHTS:
            if getattr(node.op, "data_format", "channels_last") != "channels_last":
                return "channels_first: TFLite has channels last only"
            return None
        if node.kind in AFFINE:
            return None if node in self._folded else self._reason_affine(node)
        if node.kind in _PASSES or node.kind in _OWN_GRID:
            return None
        activation = activation_of(node)
        known = _OWN_GRID_ACTIVATIONS | FUSED_ACTIVATIONS | _RELUS
        if activation in _FIXED_RANGES or activation in known:
            return None
        return f"no integer form of {node.kind} in this scheme"

    @staticmethod
    def _reason_affine(node: Node) -> str | None:
        shape = node.outputs[0].shape
        if getattr(node.op, "axis", -1) not in (-1, len(shape) - 1):
            return "it is not over the last axis"
        if len(shape) < 2 or None in shape[1:]:
            return "no layer before it to be folded into, and its shape is not static"
        return None
