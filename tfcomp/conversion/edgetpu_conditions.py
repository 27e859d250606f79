"""Conditions that the Edge TPU rules name: each is true if it is met or cannot be told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tfcomp.conversion.audit import OpInfo, TensorInfo

Condition = Callable[[OpInfo, Mapping[str, Any]], bool]


def sizes(tensor: TensorInfo) -> tuple[int, ...]:
    """The shape, 1 for each dynamic dimension."""
    return tuple(1 if d is None else d for d in tensor.shape)


def _no_fused_activation(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return op.options.get("fused_activation_function", "NONE") == "NONE"


def _constant_only_pads(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return not op.weights or (len(op.inputs) == 2 and all(t.all_zero for t in op.weights))


def _constant_weights(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    # The data of a TRANSPOSE_CONV comes behind its shape and weights, that of others in front.
    where = 2 if op.op == "TRANSPOSE_CONV" else 0
    return all(t.constant for i, t in enumerate(op.inputs) if i != where)


def _same_dilation(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return bool(op.options.get("dilation_w_factor", 1) == op.options.get("dilation_h_factor", 1))


def _default_weights_format(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return not op.options.get("weights_format", 0)


def _one_dimensional_output(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return math.prod(sizes(op.outputs[0])[:-1]) == 1


def _one_dimensional_input(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return math.prod(sizes(op.inputs[0])[:-1]) == 1


def _per_tensor_weights(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return all(t.scales <= 1 for t in op.weights if t.dtype != "int32")


def _axis_not_batch(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    axis = op.options.get("axis", 1)
    return bool(axis % max(1, len(op.outputs[0].shape)) != 0)


def _axes(op: OpInfo) -> set[int]:
    rank = max(1, len(op.inputs[0].shape))
    values = op.inputs[1].values if len(op.inputs) > 1 else None
    return {axis % rank for axis in values or ()}


def _axes_not_batch(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return 0 not in _axes(op)


def _reduced_depth_multiple(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    shape = sizes(op.inputs[0])
    return len(shape) - 1 not in _axes(op) or shape[-1] % rule["multiple"] == 0


def _paddings_not_batch(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    values = op.inputs[1].values if len(op.inputs) > 1 else None
    return values is None or not any(values[:2])


def _one_dimensional_alpha(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return len(op.inputs) < 2 or math.prod(sizes(op.inputs[1])[:-1]) == 1


def _elements_at_most(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return math.prod(sizes(op.inputs[0])) <= rule["elements"]


def _resize_at_most(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    before, after = sizes(op.inputs[0])[1:3], sizes(op.outputs[0])[1:3]
    return all(b <= rule["factor"] * a for a, b in zip(before, after, strict=False))


def _output_side_at_most(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return max(sizes(op.outputs[0])[1:3], default=1) <= rule["side"]


def _squeezes_leading_ones(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    before, after = sizes(op.inputs[0]), sizes(op.outputs[0])
    gone = len(before) - len(after)
    return gone >= 0 and before[gone:] == after and math.prod(before[:gone]) == 1


def _unit_strides(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    strides = op.inputs[3].values if len(op.inputs) > 3 else None
    return strides is None or all(stride == 1 for stride in strides)


def _option_is_zero(op: OpInfo, rule: Mapping[str, Any]) -> bool:
    return not any(op.options.get(name, 0) for name in rule["options"])


CONDITIONS: dict[str, Condition] = {
    "no_fused_activation": _no_fused_activation,
    "constant_only_pads": _constant_only_pads,
    "constant_weights": _constant_weights,
    "same_dilation": _same_dilation,
    "default_weights_format": _default_weights_format,
    "one_dimensional_output": _one_dimensional_output,
    "one_dimensional_input": _one_dimensional_input,
    "per_tensor_weights": _per_tensor_weights,
    "axis_not_batch": _axis_not_batch,
    "axes_not_batch": _axes_not_batch,
    "reduced_depth_multiple": _reduced_depth_multiple,
    "paddings_not_batch": _paddings_not_batch,
    "one_dimensional_alpha": _one_dimensional_alpha,
    "elements_at_most": _elements_at_most,
    "resize_at_most": _resize_at_most,
    "output_side_at_most": _output_side_at_most,
    "squeezes_leading_ones": _squeezes_leading_ones,
    "unit_strides": _unit_strides,
    "option_is_zero": _option_is_zero,
}
