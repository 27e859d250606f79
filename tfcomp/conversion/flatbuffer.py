"""Reading a `.tflite` flatbuffer, no byte of which is trusted.

No interpreter is started, and every count, offset and index is checked against the file: a
damaged one cannot bring the process down.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import struct
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcomp.conversion.ops import OpInfo, TensorInfo
from tfcomp.errors import DamagedFileError, TfcompError

_IDENTIFIER = b"TFL3"


# Constants up to this many integers are kept: paddings, axes, sizes, which rules ask for.
_KEPT_VALUES = 64


_BITS = {"bool": 8, "float16": 16, "bfloat16": 16, "string": 0, "resource": 0, "variant": 0}


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


def read_contents(path: str | os.PathLike[str], data: bytes) -> dict[str, Any]:
    """Fields of an `Audit` from a file's bytes.

    Raises:
        DamagedFileError: If they are truncated or damaged.
    """
    try:
        return Reader(data).contents()
    except _DAMAGE as error:
        # Other errors come from inside the schema's readers and would tell a user nothing.
        reason = f" ({error})" if isinstance(error, BoundsError) else ""
        raise _damaged(pathlib.Path(path), f"damaged or truncated contents{reason}") from error


def _damaged(file: pathlib.Path, received: str) -> DamagedFileError:
    return DamagedFileError(
        f"{file}: expected a TFLite file with identifier TFL3, received {received}. "
        "Convert or download it again."
    )


class BoundsError(Exception):
    """A count, offset or index that points outside the file."""


# What the schema's generated readers raise on bytes that are not what they should be.
_DAMAGE = (
    BoundsError,
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


class Reader:
    """Walks one flatbuffer, refusing counts that the file is too small to hold."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._model = schema.Model.GetRootAs(data, 0)
        # Each listed table takes at least its 4-byte offset, so this many cannot be exceeded
        # in a sound file; a damaged count ends here and not in an endless loop.
        self._budget = len(data) // 4

    def contents(self) -> dict[str, Any]:
        """Fields of an `Audit` that the flatbuffer tells."""
        if self._model.Version() != 3:
            raise BoundsError(f"schema version {self._model.Version()}, not 3")
        self._buffers = [self._buffer(i) for i in self._range(self._model.BuffersLength())]
        self._codes = [self._code(i) for i in self._range(self._model.OperatorCodesLength())]
        count = self._model.SubgraphsLength()
        if count < 1:
            raise BoundsError("no subgraph")
        graphs = [self._model.Subgraphs(i) for i in self._range(count)]
        tensors = [self._tensors(graph) for graph in graphs]
        ops = [
            op for number, graph in enumerate(graphs) for op in self._ops(number, graph, tensors)
        ]
        return {
            "inputs": _pick(tensors[0], _ints(graphs[0], "Inputs")),
            "outputs": _pick(tensors[0], _ints(graphs[0], "Outputs")),
            "ops": tuple(ops),
            "signature_tensors": self._border(graphs),
            "min_runtime": self._metadata().get("min_runtime_version"),
            "description": _text(self._model.Description()),
        }

    def _range(self, count: int) -> range:
        self._budget -= count
        if count < 0 or self._budget < 0:
            raise BoundsError(f"a count of {count:,} that the file is too small for")
        return range(count)

    def _buffer(self, index: int) -> bytes | memoryview:
        buffer = self._model.Buffers(index)
        # Files above 2 GB keep their weights behind the flatbuffer and give offset and size.
        if buffer.Offset() > 1:
            begin, length = buffer.Offset(), buffer.Size()
            if begin + length > len(self._data):
                raise BoundsError(f"buffer {index} ends behind the end of the file")
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
            raise BoundsError(f"op code {number}")
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
            raise BoundsError(f"tensor type {tensor.Type()}")
        if not 0 <= tensor.Buffer() < len(self._buffers):
            raise BoundsError(f"buffer {tensor.Buffer()} of {len(self._buffers)}")
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
                raise BoundsError(f"op code index {code} of {len(self._codes)}")
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
            raise BoundsError(f"tensor {index} of {len(tensors)}")
    return tuple(tensors[index] for index in indices if index >= 0)


def _shape(tensor: Any) -> tuple[int | None, ...]:
    # The signature keeps -1 for what was open at conversion, where `shape` says 1.
    dims = _ints(tensor, "ShapeSignature") or _ints(tensor, "Shape")
    if any(d < -1 for d in dims):
        raise BoundsError(f"shape {dims}")
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
