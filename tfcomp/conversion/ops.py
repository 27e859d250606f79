"""The ops and tensors of a `.tflite` file, as values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tfcomp.profiling.render import shape_text

FLOAT_DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file.

    Attributes:
        name: Name in the file; often that of the Keras layer with a path around it.
        shape: Dimensions, None where one is dynamic; `()` for a scalar.
        dtype: `"int8"`, `"uint8"`, `"int16"`, `"int32"`, `"float32"`, `"float16"`, …
        constant: Whether the values are stored in the file (weights, bias, axes).
        quantized: Whether it has scales.
        scales: Number of scales: 0 float, 1 per tensor, more per channel.
        nbytes: Stored bytes of a constant; bytes of an activation for a batch of 1.
        index: Number of the tensor in its subgraph.
        scale: The scale of a per-tensor quantised tensor, else None.
        zero_point: Its zero point, else None.
        values: A short integer constant's values, flattened, else None.
        all_zero: Whether a constant is zero everywhere, in real units.
        buffer: Number of the buffer that holds a constant, -1 for an activation.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    constant: bool = False
    quantized: bool = False
    scales: int = 0
    nbytes: int = 0
    index: int = -1
    scale: float | None = None
    zero_point: int | None = None
    values: tuple[int, ...] | None = None
    all_zero: bool = False
    buffer: int = -1

    @property
    def is_float(self) -> bool:
        """Whether its elements are floating-point numbers."""
        return self.dtype in FLOAT_DTYPES

    @property
    def size(self) -> int | None:
        """Number of elements, None where a dimension is dynamic."""
        return None if None in self.shape else math.prod(d for d in self.shape if d is not None)

    def to_dict(self) -> dict[str, Any]:
        """The tensor as plain JSON types, without its values."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "constant": self.constant,
            "scales": self.scales,
            "nbytes": self.nbytes,
        }

    def __str__(self) -> str:
        return f"{self.dtype}{shape_text(self.shape)}"


@dataclasses.dataclass(frozen=True)
class OpInfo:
    """One op of the file.

    Attributes:
        index: Position in its subgraph, which is the order of execution.
        op: `"CONV_2D"`; a custom op is `"CUSTOM:<its name>"`.
        version: Version of the op, which a runtime must know.
        inputs: Its input tensors; those that are optional and absent are left out.
        outputs: Its output tensors.
        options: The op's built-in options by their schema names in snake_case
            (`fused_activation_function` by name, `padding` by name, the rest as stored).
        subgraph: Number of the subgraph; 0 is the model, others are bodies of control flow or
            further signatures.
    """

    index: int
    op: str
    version: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    subgraph: int = 0

    @property
    def activations(self) -> tuple[TensorInfo, ...]:
        """Inputs and outputs that are computed, not stored."""
        return tuple(t for t in (*self.inputs, *self.outputs) if not t.constant)

    @property
    def weights(self) -> tuple[TensorInfo, ...]:
        """Inputs that are stored in the file."""
        return tuple(t for t in self.inputs if t.constant)

    @property
    def macs(self) -> int | None:
        """Multiply-adds for a batch of 1; 0 for ops without weights or products, None if a
        dimension is not known."""
        return _macs(self)

    @property
    def label(self) -> str:
        """`"CONV_2D #3"`, as messages name it."""
        where = f" in subgraph {self.subgraph}" if self.subgraph else ""
        return f"{self.op} #{self.index}{where}"

    def to_dict(self) -> dict[str, Any]:
        """The op as plain JSON types."""
        return {
            "index": self.index,
            "subgraph": self.subgraph,
            "op": self.op,
            "version": self.version,
            "macs": self.macs,
            "inputs": [t.to_dict() for t in self.inputs],
            "outputs": [t.to_dict() for t in self.outputs],
        }


def _macs(op: OpInfo) -> int | None:
    rule = _MACS.get(op.op)
    if rule is None:
        return 0
    tensors = (*op.inputs, *op.outputs)
    if any(d is None for t in tensors for d in t.shape[1:]):
        return None
    try:
        return int(rule([_known(t) for t in op.inputs], _known(op.outputs[0])))
    except (IndexError, ValueError):
        return None


def _known(tensor: TensorInfo) -> tuple[int, ...]:
    return tuple(1 if d is None else d for d in tensor.shape)


_Shapes = list[tuple[int, ...]]


def _conv(inputs: _Shapes, output: tuple[int, ...]) -> int:
    # Weights are [out, height, width, in of the group].
    return math.prod(output) * math.prod(inputs[1][1:])


def _depthwise(inputs: _Shapes, output: tuple[int, ...]) -> int:
    return math.prod(output) * math.prod(inputs[1][1:3])


def _transposed(inputs: _Shapes, output: tuple[int, ...]) -> int:
    # Inputs are output shape, weights [out, height, width, in], data.
    return math.prod(inputs[2]) * math.prod(inputs[1][:3])


def _dense(inputs: _Shapes, output: tuple[int, ...]) -> int:
    return math.prod(output) * inputs[1][1]


def _conv_3d(inputs: _Shapes, output: tuple[int, ...]) -> int:
    # Weights are [depth, height, width, in, out].
    return math.prod(output) * math.prod(inputs[1][:4])


def _batch_matmul(inputs: _Shapes, output: tuple[int, ...]) -> int:
    return math.prod(inputs[0]) * output[-1]


def _lstm(inputs: _Shapes, output: tuple[int, ...]) -> int:
    # Every matrix, input or recurrent, is applied once per time step.
    steps = math.prod(inputs[0][:-1])
    return steps * sum(math.prod(shape) for shape in inputs[1:] if len(shape) == 2 and shape[0] > 1)


_MACS = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _dense,
    "CONV_3D": _conv_3d,
    "BATCH_MATMUL": _batch_matmul,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
}
