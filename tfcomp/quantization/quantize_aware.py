"""A model made quantisation-aware, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfcomp.errors import TfcompError
from tfcomp.graph import Graph, Node, Tensor, clone_op, folding, rebuild, trace
from tfcomp.graph.folding import is_keras_own
from tfcomp.quantization import tflite8
from tfcomp.quantization.layers import FakeQuantize, FakeQuantizeWeights


def quantize_aware(
    model: keras.Model,
    *,
    target: str = "tflite",
    fold_batch_norm: bool = False,
    momentum: float = 0.99,
    delay: int = 0,
    freeze_step: int | None = None,
) -> keras.Model:
    """Makes a model that computes, and trains, with the 8-bit arithmetic of TFLite.

    Weights are rounded per output channel to s·{−127 … 127}, s = max|w| / 127; activations per
    tensor to s·({0 … 255} − z), with ranges that are moving averages over the training batches.
    Gradients go straight through (Bengio et al. 2013, arXiv:1308.3432). After some training
    `tfcomp.convert(model, path, dtype="int8")` makes an integer file of it, with no other data.

    What the scheme has no integer form of stays float: `quantization_report` lists it.

    Args:
        model: A functional or Sequential model; nested ones are opened up. It is not changed.
        target: "tflite", or "edgetpu": one scale per Dense kernel instead of one per unit.
        fold_batch_norm: Whether BatchNormalization is folded into the layer before it first.
            Training steps are faster then, but no longer normalise: for a trained model only.
        momentum: Long-run weight of the past in the ranges of activations, in [0, 1).
        delay: Training batches in which activation ranges are only observed.
        freeze_step: Training batches after which activation ranges stay; None for never.

    Returns:
        A new functional model, uncompiled, with the same inputs, outputs, weights, and layer
        names. Weighted layers are wrapped in `FakeQuantizeWeights`; the rounding of
        activations is `FakeQuantize` layers between the others.

    Raises:
        UnsupportedModelError: If the model is subclassed or unbuilt.
        TfcompError: If an argument is not as described, or the model is already
            quantisation-aware.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> qat = quantize_aware(model)
        >>> [type(layer).__name__ for layer in qat.layers[1:]]
        ['FakeQuantize', 'FakeQuantizeWeights', 'FakeQuantize']

    Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2017, arXiv:1712.05877.
    """
    _check_arguments(momentum, delay, freeze_step)
    tflite8.check_target(target)
    if is_quantize_aware(model):
        raise TfcompError(
            f"Model {model.name!r} is quantisation-aware already. Train it on, or start from "
            "strip_quantization(model)."
        )
    graph = trace(_canonical(model, target, fold_batch_norm))
    plan = tflite8.plan(graph, target)
    observer = {"momentum": momentum, "delay": delay, "freeze_step": freeze_step}
    return _Rewriter(graph, plan, observer).model()


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """What of a model becomes integer, and what stays float.

    Attributes:
        integer: Names of the layers and operations that compute in integers.
        skipped: For each layer that stays float, the reason.
    """

    integer: tuple[str, ...]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists, dicts and strings."""
        return {"integer": list(self.integer), "skipped": self.skipped}

    def __str__(self) -> str:
        total = len(self.integer) + len(self.skipped)
        head = f"{len(self.integer)} of {total} layers become integer."
        return "\n".join([head, *(f"  {n} stays float: {why}" for n, why in self.skipped.items())])


def quantization_report(model: keras.Model, *, target: str = "tflite") -> QuantizationReport:
    """Lists what stays float in a model that `quantize_aware` made, or would make.

    Args:
        model: A functional or Sequential model, quantisation-aware or not.
        target: As in `quantize_aware`.

    Returns:
        The layers that become integer, and for each of the others the reason.

    Raises:
        UnsupportedModelError: If the model is subclassed or unbuilt.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.LayerNormalization(name="n")])
        >>> list(quantization_report(model).skipped)
        ['n']
    """
    plain = strip_quantization(model) if is_quantize_aware(model) else model
    graph = trace(_canonical(plain, target, False))
    skipped = {entry.name: entry.reason for entry in tflite8.plan(graph, target).skipped}
    return QuantizationReport(tuple(name for name in graph.ops if name not in skipped), skipped)


def is_quantize_aware(model: keras.Model) -> bool:
    """Whether the model has layers that round."""
    return any(
        isinstance(op, (FakeQuantize, FakeQuantizeWeights)) for op in trace(model).ops.values()
    )


def strip_quantization(model: keras.Model) -> keras.Model:
    """Takes the rounding out: a model of plain Keras layers only.

    Weights get the rounded values that the model computed with.

    Args:
        model: A model made by `quantize_aware`.

    Returns:
        A new float model, uncompiled.

    Raises:
        UnsupportedModelError: If the model is subclassed or unbuilt.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> [layer.name for layer in strip_quantization(quantize_aware(model)).layers[1:]]
        ['head']
    """
    return _unwrapped(model, keep_ranges=False)


def with_fixed_ranges(model: keras.Model) -> keras.Model:
    """The model for export: plain layers with rounded weights, activation ranges as constants.

    Args:
        model: A model made by `quantize_aware` and trained for at least a step.

    Returns:
        A new model in which each `FakeQuantize` has a `fixed_range`.

    Raises:
        TfcompError: If a range was never observed.
    """
    return _unwrapped(model, keep_ranges=True)


def _check_arguments(momentum: float, delay: int, freeze_step: int | None) -> None:
    if not 0.0 <= momentum < 1.0:
        raise TfcompError(f"Expected momentum in [0, 1), received {momentum}.")
    if delay < 0 or (freeze_step is not None and freeze_step <= delay):
        raise TfcompError(
            "Expected delay >= 0 and freeze_step None or greater than delay, received "
            f"delay={delay}, freeze_step={freeze_step}."
        )


def _canonical(model: keras.Model, target: str, fold: bool) -> keras.Model:
    """A copy of simple layers: foldings done, unfused activations and separable convs split."""
    if fold:
        model = folding.fold_batch_norm(model)
    elif target == "edgetpu":
        # One scale for a whole kernel is not kept by a later multiplication per unit.
        model = folding.fold_batch_norm(model, lambda node: node.kind == "Dense")
    graph = trace(model)
    split = {name: _split(name, op) for name, op in graph.ops.items()}

    def clone(name: str, op: Any) -> Any:
        return split[name]

    return rebuild(graph, clone)


def _split(name: str, op: Any) -> keras.Sequential | None:
    """The same layer as a chain of simpler ones, with the same weights in the same order."""
    if not is_keras_own(op):
        return None
    separable = type(op) is keras.layers.SeparableConv2D
    fused = tflite8.has_fused_activation(op)
    if not separable and (fused or not tflite8.has_integer_weights(op)):
        return None
    if separable:
        chain = list(_depthwise_and_pointwise(name, op))
    else:
        chain = [clone_op(op, name, {"activation": "linear"})]
    if fused:
        chain[-1].activation = op.activation
    else:
        chain.append(keras.layers.Activation(op.activation, name=f"{name}_activation"))
    return keras.Sequential(chain, name=f"{name}_split")


def _depthwise_and_pointwise(
    name: str, op: keras.layers.SeparableConv2D
) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    depthwise = keras.layers.DepthwiseConv2D(
        op.kernel_size,
        strides=op.strides,
        padding=op.padding,
        dilation_rate=op.dilation_rate,
        depth_multiplier=op.depth_multiplier,
        data_format=op.data_format,
        use_bias=False,
        depthwise_regularizer=op.depthwise_regularizer,
        depthwise_constraint=op.depthwise_constraint,
        dtype=op.dtype_policy,
        trainable=op.trainable,
        name=f"{name}_depthwise",
    )
    pointwise = keras.layers.Conv2D(
        op.filters,
        1,
        data_format=op.data_format,
        use_bias=op.use_bias,
        kernel_regularizer=op.pointwise_regularizer,
        bias_regularizer=op.bias_regularizer,
        kernel_constraint=op.pointwise_constraint,
        bias_constraint=op.bias_constraint,
        dtype=op.dtype_policy,
        trainable=op.trainable,
        name=name,
    )
    return depthwise, pointwise


class _Rewriter:
    """Wraps the layers of a graph and puts `FakeQuantize` where the plan says."""

    def __init__(self, graph: Graph, plan: tflite8.Plan, observer: dict[str, Any]) -> None:
        self._graph = graph
        self._plan = plan
        self._observer = observer
        self._names = set(graph.ops)
        self._inputs = set(graph.input_tensors)
        self._rounded_inputs: dict[int, Any] = {}

    def model(self) -> keras.Model:
        return rebuild(self._graph, self._clone, self._call)

    def _clone(self, name: str, op: Any) -> Any:
        axes = self._plan.weights.get(name)
        if axes is None:
            return None
        return FakeQuantizeWeights(clone_op(op, name), axes, dtype=op.dtype_policy)

    def _call(self, new_op: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [v for v in keras.tree.flatten((args, kwargs)) if _is_symbolic(v)]
        for tensor, value in zip(node.inputs, given, strict=True):
            if tensor in self._inputs and id(value) not in self._rounded_inputs:
                name = self._graph.input_configs[tensor]["name"]
                self._rounded_inputs[id(value)] = self._round(value, tensor, name)
        args, kwargs = keras.tree.map_structure(
            lambda value: self._rounded_inputs.get(id(value), value), (args, kwargs)
        )
        result = new_op(*args, **kwargs)
        flat = [
            self._round(value, tensor, node.name)
            for tensor, value in zip(node.outputs, keras.tree.flatten(result), strict=True)
        ]
        return keras.tree.pack_sequence_as(result, flat)

    def _round(self, value: Any, tensor: Tensor, name: str) -> Any:
        options = self._plan.rounded.get(tensor)
        if options is None:
            return value
        observer = {} if "fixed_range" in options else self._observer
        return FakeQuantize(**options, **observer, name=self._unique(f"{name}_range"))(value)

    def _unique(self, base: str) -> str:
        name, count = base, 1
        while name in self._names:
            name, count = f"{base}_{count}", count + 1
        self._names.add(name)
        return name


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _unwrapped(model: keras.Model, keep_ranges: bool) -> keras.Model:
    graph = trace(model)
    plain: dict[str, keras.layers.Layer] = {}

    def clone(name: str, op: Any) -> Any:
        if isinstance(op, FakeQuantizeWeights):
            plain[name] = clone_op(op.layer, name)
            return plain[name]
        if isinstance(op, FakeQuantize) and keep_ranges:
            if op.range is None:
                raise TfcompError(
                    f"The range of {name!r} was never observed: fit the quantisation-aware model "
                    f"{model.name!r} for more than {op.delay} batches first."
                )
            return FakeQuantize(op.num_bits, fixed_range=op.range, name=name)
        return None

    def call(new_op: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(node.op, FakeQuantize) and not keep_ranges:
            return args[0]
        return new_op(*args, **kwargs)

    result = rebuild(graph, clone, call)
    for name, layer in plain.items():
        wrapper = graph.ops[name]
        for attribute in wrapper.axes:
            getattr(layer, attribute).assign(wrapper.rounded(attribute))
    return result
