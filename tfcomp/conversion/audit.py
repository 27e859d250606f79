"""What a `.tflite` file really contains, read back from its flatbuffer.

Every fallback of the converter seen so far was silent: an op left in float, weights that were
not quantised, a batch that stayed dynamic. So nothing here trusts what was asked for; the file
is read, its bounds are checked, and what it holds is told op by op. No interpreter is started:
a damaged file cannot bring the process down.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import math
import os
import pathlib
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tfcomp.conversion.compatibility import Compatibility, compatibility
from tfcomp.errors import DamagedFileError, TfcompError
from tfcomp.profiling.render import bytes_text, plain, shape_text

FLOAT_DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
_IDENTIFIER = b"TFL3"
# Constants up to this many integers are kept: paddings, axes, sizes, which rules ask for.
_KEPT_VALUES = 64
_BITS = {"bool": 8, "float16": 16, "bfloat16": 16, "string": 0, "resource": 0, "variant": 0}


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


@dataclasses.dataclass(frozen=True)
class Audit:
    """What a `.tflite` file contains; printed, it is a readable table.

    Attributes:
        path: The file.
        nbytes: Its size.
        gzip_bytes: Its size after gzip at level 9.
        inputs: The model's input tensors.
        outputs: The model's output tensors, in the file's order.
        ops: The ops of all subgraphs, those of the model first.
        signature_tensors: Indices of the border tensors of every subgraph that can be called
            from outside, as (subgraph, tensor).
        min_runtime: The runtime version that the converter wrote into the file, or None.
        description: The file's own description.
    """

    path: pathlib.Path
    nbytes: int
    gzip_bytes: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    ops: tuple[OpInfo, ...]
    signature_tensors: frozenset[tuple[int, int]] = frozenset()
    min_runtime: str | None = None
    description: str = ""

    @property
    def op_counts(self) -> dict[str, int]:
        """How many of each op, the most frequent first."""
        return dict(collections.Counter(op.op for op in self.ops).most_common())

    @property
    def float_ops(self) -> tuple[OpInfo, ...]:
        """Ops that compute in floating point.

        An op counts if any of its activations is float. Not counted are QUANTIZE from, and
        DEQUANTIZE to, a float input or output of the model itself: they are its border. Nor is
        SHAPE, which reads no element.
        """
        return tuple(
            op
            for op in self.ops
            if op.op != "SHAPE"
            and any(t.is_float for t in op.activations)
            and not self._is_border(op)
        )

    @property
    def hybrid_ops(self) -> tuple[OpInfo, ...]:
        """Float ops whose weights are stored as integers: what dynamic-range files are made of."""
        return tuple(
            op
            for op in self.float_ops
            if op.op not in ("DEQUANTIZE", "QUANTIZE")
            and any(t.quantized and not t.is_float for t in op.weights)
        )

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Bytes of stored constants by dtype, those that several tensors share counted once."""
        seen: dict[tuple[int, int], TensorInfo] = {}
        for op in self.ops:
            for tensor in op.weights:
                key = (-1, tensor.buffer) if tensor.buffer >= 0 else (op.subgraph, tensor.index)
                seen.setdefault(key, tensor)
        totals: collections.Counter[str] = collections.Counter()
        for tensor in seen.values():
            totals[tensor.dtype] += tensor.nbytes
        return dict(totals.most_common())

    @property
    def macs(self) -> int | None:
        """Multiply-adds of one inference with a batch of 1.

        None where any op's is unknown, or where a subgraph that is run an unknown number of
        times, such as the body of a loop, has some.
        """
        counts = [None if op.subgraph and op.macs else op.macs for op in self.ops]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def dynamic_batch(self) -> bool:
        """Whether the first dimension of some input is left open."""
        return any(t.shape and t.shape[0] is None for t in self.inputs)

    @property
    def compatibility(self) -> Compatibility:
        """Which runtimes are known to run the file, and which are known not to."""
        return compatibility([(op.op, op.version) for op in self.ops], self.min_runtime)

    def to_dict(self) -> dict[str, Any]:
        """The whole audit as plain JSON types."""
        return {
            "path": str(self.path),
            "nbytes": self.nbytes,
            "gzip_bytes": self.gzip_bytes,
            "macs": self.macs,
            "min_runtime": self.min_runtime,
            "compatibility": self.compatibility.to_dict(),
            "weight_bytes": self.weight_bytes,
            "op_counts": self.op_counts,
            "float_ops": [op.label for op in self.float_ops],
            "inputs": [t.to_dict() for t in self.inputs],
            "outputs": [t.to_dict() for t in self.outputs],
            "ops": [op.to_dict() for op in self.ops],
        }

    def __rich__(self) -> RenderableType:
        return Group(self._summary(), self._ops_table())

    def __str__(self) -> str:
        return plain(self)

    def _is_border(self, op: OpInfo) -> bool:
        if op.op not in ("QUANTIZE", "DEQUANTIZE"):
            return False
        border = self.signature_tensors or {
            (0, t.index) for t in (*self.inputs, *self.outputs) if t.index >= 0
        }
        floats = [t for t in op.activations if t.is_float]
        return all((op.subgraph, t.index) in border for t in floats)

    def _summary(self) -> Text:
        weights = ", ".join(f"{name} {bytes_text(n)}" for name, n in self.weight_bytes.items())
        float_ops = collections.Counter(op.op for op in self.float_ops)
        counted = ", ".join(f"{count} {name}" for name, count in float_ops.most_common())
        macs = "unknown" if self.macs is None else f"{self.macs:,}"
        lines = [
            f"{self.path.name}: {bytes_text(self.nbytes)}, {bytes_text(self.gzip_bytes)} gzip, "
            f"{len(self.ops)} ops, {macs} MACs",
            "inputs: " + ", ".join(f"{t.name} {t}" for t in self.inputs),
            "outputs: " + ", ".join(f"{t.name} {t}" for t in self.outputs),
            f"stored: {weights or 'no constants'}",
            f"float ops: {counted or 'none'}",
            f"runs on: {self.compatibility}",
        ]
        return Text("\n".join(lines))

    def _ops_table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("#", "op", "ver", "in", "weights", "out", "MACs"):
            right = column in ("#", "ver", "MACs")
            table.add_column(column, justify="right" if right else "left", no_wrap=column == "op")
        for op in self.ops:
            main = next((t for t in op.inputs if not t.constant), None)
            weight = max(op.weights, key=lambda t: t.nbytes, default=None)
            table.add_row(
                str(op.index) if not op.subgraph else f"{op.subgraph}.{op.index}",
                op.op,
                str(op.version),
                str(main) if main else "",
                str(weight) if weight else "",
                str(op.outputs[0]) if op.outputs else "",
                "?" if op.macs is None else f"{op.macs:,}" if op.macs else "",
            )
        return table


def audit(path: str | os.PathLike[str]) -> Audit:
    """Reads a `.tflite` file back: its ops, tensors, bytes and float islands.

    Args:
        path: The file.

    Returns:
        The audit. Ops of every subgraph are listed, the model's own first.

    Raises:
        TfcompError: If there is no such file or it cannot be read.
        DamagedFileError: If it is empty, truncated, damaged or not a TFLite file.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "half.tflite"
        >>> _ = path.write_bytes(b"not a model")
        >>> try:
        ...     audit(path)
        ... except DamagedFileError as error:
        ...     print("expected a TFLite file" in str(error))
        True
    """
    file = pathlib.Path(path)
    data = read_tflite(file)
    try:
        return _Reader(file, data).audit()
    except _DAMAGE as error:
        # Other errors come from inside the schema's readers and would tell a user nothing.
        reason = f" ({error})" if isinstance(error, _BoundsError) else ""
        raise _damaged(file, f"damaged or truncated contents{reason}") from error


def read_tflite(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file whose head says that it is TFLite.

    Raises:
        TfcompError: If there is no such file or it cannot be read.
        DamagedFileError: If it is empty or its identifier is not `TFL3`.
    """
    file = pathlib.Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TfcompError(f"Cannot read {file}: {error.strerror or error}.") from error
    if not data:
        raise _damaged(file, "an empty file")
    if len(data) < 8 or data[4:8] != _IDENTIFIER:
        raise _damaged(file, f"{len(data):,} bytes without that identifier")
    return data


def _damaged(file: pathlib.Path, received: str) -> DamagedFileError:
    return DamagedFileError(
        f"{file}: expected a TFLite file with identifier TFL3, received {received}. "
        "Convert or download it again."
    )


class _BoundsError(Exception):
    """A count, offset or index that points outside the file."""


# What the schema's generated readers raise on bytes that are not what they should be.
_DAMAGE = (
    _BoundsError,
    struct.error,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    AttributeError,
    MemoryError,
    AssertionError,
)


class _Reader:
    """Walks one flatbuffer, refusing counts that the file is too small to hold."""

    def __init__(self, path: pathlib.Path, data: bytes) -> None:
        self._path = path
        self._data = data
        self._model = schema.Model.GetRootAs(data, 0)
        # Each listed table takes at least its 4-byte offset, so this many cannot be exceeded
        # in a sound file; a damaged count ends here and not in an endless loop.
        self._budget = len(data) // 4

    def audit(self) -> Audit:
        if self._model.Version() != 3:
            raise _BoundsError(f"schema version {self._model.Version()}, not 3")
        self._buffers = [self._buffer(i) for i in self._range(self._model.BuffersLength())]
        self._codes = [self._code(i) for i in self._range(self._model.OperatorCodesLength())]
        count = self._model.SubgraphsLength()
        if count < 1:
            raise _BoundsError("no subgraph")
        graphs = [self._model.Subgraphs(i) for i in self._range(count)]
        tensors = [self._tensors(graph) for graph in graphs]
        ops = [
            op for number, graph in enumerate(graphs) for op in self._ops(number, graph, tensors)
        ]
        return Audit(
            path=self._path,
            nbytes=len(self._data),
            gzip_bytes=len(gzip.compress(self._data, compresslevel=9, mtime=0)),
            inputs=_pick(tensors[0], _ints(graphs[0], "Inputs")),
            outputs=_pick(tensors[0], _ints(graphs[0], "Outputs")),
            ops=tuple(ops),
            signature_tensors=self._border(graphs),
            min_runtime=self._metadata().get("min_runtime_version"),
            description=_text(self._model.Description()),
        )

    def _range(self, count: int) -> range:
        self._budget -= count
        if count < 0 or self._budget < 0:
            raise _BoundsError(f"a count of {count:,} that the file is too small for")
        return range(count)

    def _buffer(self, index: int) -> bytes | memoryview:
        buffer = self._model.Buffers(index)
        # Files above 2 GB keep their weights behind the flatbuffer and give offset and size.
        if buffer.Offset() > 1:
            begin, length = buffer.Offset(), buffer.Size()
            if begin + length > len(self._data):
                raise _BoundsError(f"buffer {index} ends behind the end of the file")
            return memoryview(self._data)[begin : begin + length]
        if buffer.DataLength() == 0:
            return b""
        return memoryview(buffer.DataAsNumpy())

    def _code(self, index: int) -> tuple[str, int]:
        code = self._model.OperatorCodes(index)
        # Ops numbered up to 127 are in the old field, later ones in the new.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = _OPS.get(number)
        if name is None:
            raise _BoundsError(f"op code {number}")
        if name == "CUSTOM":
            name = f"CUSTOM:{_text(code.CustomCode())}"
        return name, code.Version()

    def _tensors(self, graph: Any) -> list[TensorInfo]:
        return [
            self._tensor(index, graph.Tensors(index))
            for index in self._range(graph.TensorsLength())
        ]

    def _tensor(self, index: int, tensor: Any) -> TensorInfo:
        dtype = _DTYPES.get(tensor.Type())
        if dtype is None:
            raise _BoundsError(f"tensor type {tensor.Type()}")
        if not 0 <= tensor.Buffer() < len(self._buffers):
            raise _BoundsError(f"buffer {tensor.Buffer()} of {len(self._buffers)}")
        data = self._buffers[tensor.Buffer()]
        shape = _shape(tensor)
        scales, zeros = _quantization(tensor)
        constant = len(data) > 0
        one = tuple(1 if d is None else d for d in shape)
        return TensorInfo(
            name=_text(tensor.Name()),
            shape=shape,
            dtype=dtype,
            constant=constant,
            quantized=len(scales) > 0,
            scales=len(scales),
            nbytes=len(data) if constant else -(-math.prod(one) * _bits(dtype) // 8),
            index=index,
            scale=float(scales[0]) if len(scales) == 1 else None,
            zero_point=int(zeros[0]) if len(scales) == 1 and len(zeros) else None,
            values=_values(data, dtype) if constant else None,
            all_zero=constant and _all_zero(data, dtype, zeros),
            buffer=tensor.Buffer() if constant else -1,
        )

    def _ops(self, number: int, graph: Any, tensors: list[list[TensorInfo]]) -> list[OpInfo]:
        result = []
        for index in self._range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            code = operator.OpcodeIndex()
            if not 0 <= code < len(self._codes):
                raise _BoundsError(f"op code index {code} of {len(self._codes)}")
            name, version = self._codes[code]
            result.append(
                OpInfo(
                    index=index,
                    op=name,
                    version=version,
                    inputs=_pick(tensors[number], _ints(operator, "Inputs")),
                    outputs=_pick(tensors[number], _ints(operator, "Outputs")),
                    options=_options(operator),
                    subgraph=number,
                )
            )
        return result

    def _border(self, graphs: list[Any]) -> frozenset[tuple[int, int]]:
        called = {0}
        for index in self._range(self._model.SignatureDefsLength()):
            called.add(self._model.SignatureDefs(index).SubgraphIndex())
        return frozenset(
            (number, int(tensor))
            for number in called
            if number < len(graphs)
            for which in ("Inputs", "Outputs")
            for tensor in _ints(graphs[number], which)
        )

    def _metadata(self) -> dict[str, str]:
        found = {}
        for index in self._range(self._model.MetadataLength()):
            entry = self._model.Metadata(index)
            name = _text(entry.Name())
            if name == "min_runtime_version" and 0 <= entry.Buffer() < len(self._buffers):
                value = bytes(self._buffers[entry.Buffer()])
                found[name] = value.rstrip(b"\0").decode("ascii", "replace")
        return found


def _names(enum: type) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if isinstance(value, int)}


_OPS = _names(schema.BuiltinOperator)
_DTYPES = {number: name.lower() for number, name in _names(schema.TensorType).items()}
_OPTIONS = _names(schema.BuiltinOptions)
_ACTIVATIONS = _names(schema.ActivationFunctionType)
_PADDINGS = _names(schema.Padding)


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "replace")


def _ints(table: Any, field: str) -> list[int]:
    """An integer vector of a table, empty where it is absent."""
    if getattr(table, f"{field}Length")() == 0:
        return []
    values: list[int] = getattr(table, f"{field}AsNumpy")().tolist()
    return values


def _pick(tensors: list[TensorInfo], indices: list[int]) -> tuple[TensorInfo, ...]:
    for index in indices:
        if not -1 <= index < len(tensors):
            raise _BoundsError(f"tensor {index} of {len(tensors)}")
    return tuple(tensors[index] for index in indices if index >= 0)


def _shape(tensor: Any) -> tuple[int | None, ...]:
    # The signature keeps -1 for what was open at conversion, where `shape` says 1.
    dims = _ints(tensor, "ShapeSignature") or _ints(tensor, "Shape")
    if any(d < -1 for d in dims):
        raise _BoundsError(f"shape {dims}")
    return tuple(None if d == -1 else d for d in dims)


def _quantization(tensor: Any) -> tuple[list[float], list[int]]:
    quantization = tensor.Quantization()
    if quantization is None:
        return [], []
    scales = quantization.ScaleAsNumpy().tolist() if quantization.ScaleLength() else []
    zeros = quantization.ZeroPointAsNumpy().tolist() if quantization.ZeroPointLength() else []
    return scales, zeros


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.search(r"\d+", dtype)
    return int(found.group()) if found else 0


def _array(data: bytes | memoryview, dtype: str) -> np.ndarray[Any, Any] | None:
    if dtype not in ("int8", "uint8", "int16", "int32", "int64", "float16", "float32"):
        return None
    kind = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(data, kind) if len(data) % kind.itemsize == 0 else None


def _values(data: bytes | memoryview, dtype: str) -> tuple[int, ...] | None:
    array = _array(data, dtype) if dtype.startswith("int") else None
    if array is None or array.size > _KEPT_VALUES:
        return None
    return tuple(int(value) for value in array)


def _all_zero(data: bytes | memoryview, dtype: str, zeros: list[int]) -> bool:
    array = _array(data, dtype)
    return array is not None and bool(np.all(array == (zeros[0] if zeros else 0)))


def _options(operator: Any) -> dict[str, Any]:
    """Built-in options of an op, whatever its kind, through the schema's object classes."""
    name = _OPTIONS.get(operator.BuiltinOptionsType(), "NONE")
    table = operator.BuiltinOptions()
    reader = getattr(schema, name, None)
    if table is None or reader is None:
        return {}
    typed = reader()
    typed.Init(table.Bytes, table.Pos)
    found = {}
    for key, value in vars(getattr(schema, f"{name}T").InitFromObj(typed)).items():
        key = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
        found[key] = _option(key, value)
    return found


def _option(key: str, value: Any) -> Any:
    if key == "fused_activation_function":
        return _ACTIVATIONS.get(value, str(value))
    if key == "padding" and isinstance(value, int):
        return _PADDINGS.get(value, str(value))
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return _text(value)
    return value.item() if isinstance(value, np.generic) else value


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
