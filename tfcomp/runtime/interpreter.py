"""A `.tflite` file run on the maintained LiteRT interpreter, in the units of the Keras model."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter as LiteRTInterpreter
from ai_edge_litert.interpreter import OpResolverType

from tfcomp.errors import DamagedFileError, TfcompError

Array = npt.NDArray[Any]
Inputs = npt.ArrayLike | Sequence[npt.ArrayLike] | Mapping[str, npt.ArrayLike]

# Rows run at once where the file leaves the batch open; bounds the memory of large calls.
_ROWS = 64


class Interpreter:
    """Runs a `.tflite` file: `y = interpreter.run(x)`, with x and y in real units.

    A quantised input is made by q = round(x / scale) + zero_point, clipped to its dtype, and a
    quantised output read by y = scale · (q − zero_point), with the file's own parameters. Any
    number of rows may be given: a file of fixed batch is called repeatedly, one of open batch
    is resized.

    Args:
        path: The file.
        threads: Threads of the runtime.
        delegates: False runs the plain built-in kernels and keeps every intermediate tensor
            for `tensor`; True, the default, is what ships.

    Raises:
        TfcompError: If there is no such file, or the runtime does not know its ops.
        DamagedFileError: If it is empty, truncated, damaged or not a TFLite file.

    Example:
        >>> interpreter = Interpreter("model.tflite")  # doctest: +SKIP
        >>> interpreter.run(images).shape  # doctest: +SKIP
        (1000, 10)
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int = 1, delegates: bool = True
    ) -> None:
        self.path = pathlib.Path(path)
        self.threads = threads
        if threads < 1:
            raise TfcompError(f"`threads` must be 1 or more. Received: threads={threads}.")
        self._native = _start(self.path, threads, delegates)
        self._inputs, self._outputs = _border(self._native)
        self._allocated: dict[str, tuple[int, ...]] = {
            name: tuple(int(d) for d in detail["shape"]) for name, detail in self._inputs.items()
        }

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs as the file's signature has them, in the file's order."""
        return tuple(self._inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs as the file's signature has them; `output_2` before `output_10`."""
        return tuple(self._outputs)

    def input_shape(self, name: str) -> tuple[int | None, ...]:
        """Shape of one input, None where a dimension is open."""
        return _signature(self._inputs[name])

    def output_shape(self, name: str) -> tuple[int | None, ...]:
        """Shape of one output, None where a dimension is open."""
        return _signature(self._outputs[name])

    def output_index(self, name: str) -> int:
        """Number of an output's tensor in the file, as `TensorInfo.index`."""
        return int(self._outputs[name]["index"])

    @property
    def batch_size(self) -> int | None:
        """Rows per call that the file is fixed to; None if it is open."""
        shapes = [self.input_shape(name) for name in self._inputs]
        fixed = {shape[0] for shape in shapes if shape}
        return None if None in fixed or not fixed else fixed.pop()

    def run(self, x: Inputs, *, raw: bool = False) -> Any:
        """The file's outputs for `x`.

        Args:
            x: An array for a file of one input, a list in the order of `input_names`, or a dict
                by these names; all with the same number of rows in front.
            raw: Take and give the file's own integers instead of real units.

        Returns:
            One array, or a dict of arrays by `output_names` where the file has several outputs.

        Raises:
            TfcompError: If names, shapes or rows do not fit.
        """
        given = self._named(x)
        rows = self._rows(given)
        step = self.batch_size or min(rows, _ROWS)
        parts: dict[str, list[Array]] = {name: [] for name in self._outputs}
        for begin in range(0, rows, step):
            chunk = {name: value[begin : begin + step] for name, value in given.items()}
            kept = min(step, rows - begin)
            for name, value in self._call(chunk, step, raw).items():
                parts[name].append(value[:kept] if value.ndim and len(value) >= kept else value)
        result = {name: _joined(values) for name, values in parts.items()}
        return next(iter(result.values())) if len(result) == 1 else result

    def invoke(self) -> None:
        """One bare call on the inputs that are set, for timing."""
        self._native.invoke()

    def set_inputs(self, x: Mapping[str, Array], *, raw: bool = False) -> None:
        """Writes the inputs of one call, resizing open dimensions to fit."""
        shapes = {name: value.shape for name, value in x.items()}
        if shapes != self._allocated:
            for name, shape in shapes.items():
                self._native.resize_tensor_input(self._inputs[name]["index"], shape)
            self._prepared(self._native.allocate_tensors)
            self._allocated = shapes
        for name, value in x.items():
            detail = self._inputs[name]
            value = value.astype(detail["dtype"]) if raw else quantize(value, detail)
            self._native.set_tensor(detail["index"], np.ascontiguousarray(value))

    def random_inputs(self, seed: int = 0, rows: int = 1) -> dict[str, Array]:
        """Inputs of the right shape for timing, the same for the same seed.

        Floats are uniform in [0, 1), 8-bit and 16-bit integers cover their range, other
        integers are 0, which is an index that any table has.
        """
        if _open_sizes(self._native):
            raise TfcompError(
                f"{self.path.name}: an input of open size cannot be timed: expected fixed "
                "dimensions behind the batch. Convert a model with a fixed keras.Input shape."
            )
        rng = np.random.default_rng(seed)
        made: dict[str, Array] = {}
        for name, detail in self._inputs.items():
            shape = [rows if d is None else d for d in _signature(detail)]
            dtype = np.dtype(detail["dtype"])
            if dtype.kind == "f":
                made[name] = rng.random(shape).astype(dtype)
            elif dtype.kind in "iu" and dtype.itemsize <= 2:
                info = np.iinfo(dtype)
                made[name] = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
            else:
                made[name] = np.zeros(shape, dtype)
        return made

    def tensor(self, index: int) -> Array:
        """An intermediate tensor of the last call, dequantised if it has a scale.

        Args:
            index: Its number in the file, `TensorInfo.index`. Only an interpreter made with
                `delegates=False` keeps them.
        """
        details = {detail["index"]: detail for detail in self._native.get_tensor_details()}
        return dequantize(self._native.get_tensor(index), details[index])

    def _call(self, chunk: dict[str, Array], step: int, raw: bool) -> dict[str, Array]:
        fixed = self.batch_size
        if fixed is not None:
            # The last rows of a fixed batch are filled up by repeating the last one.
            chunk = {
                name: np.concatenate([v, np.repeat(v[-1:], step - len(v), axis=0)])
                if len(v) < step
                else v
                for name, v in chunk.items()
            }
        self.set_inputs(chunk, raw=raw)
        self._prepared(self._native.invoke)
        outputs = {}
        for name, detail in self._outputs.items():
            value = self._native.get_tensor(detail["index"])
            outputs[name] = value if raw else dequantize(value, detail)
        return outputs

    def _named(self, x: Inputs) -> dict[str, Array]:
        names = self.input_names
        if isinstance(x, Mapping):
            if set(x) != set(names):
                raise TfcompError(
                    f"{self.path.name}: expected inputs {sorted(names)}, received {sorted(x)}."
                )
            return {name: np.asarray(x[name]) for name in names}
        values = list(x) if isinstance(x, (list, tuple)) and len(names) > 1 else [x]
        if len(values) != len(names):
            raise TfcompError(
                f"{self.path.name}: expected {len(names)} inputs {list(names)}, "
                f"received {len(values)}. Pass a list in this order or a dict by these names."
            )
        arrays = [np.asarray(value) for value in cast("list[npt.ArrayLike]", values)]
        return dict(zip(names, arrays, strict=True))

    def _rows(self, given: dict[str, Array]) -> int:
        for name, value in given.items():
            expected = self.input_shape(name)
            fits = value.ndim == len(expected) and all(
                want is None or want == got
                for want, got in zip(expected[1:], value.shape[1:], strict=True)
            )
            if not fits:
                wanted = (None, *expected[1:])
                raise TfcompError(
                    f"{self.path.name}: input {name!r} expected shape {wanted}, "
                    f"received {value.shape}. The first dimension is the batch."
                )
        counts = {name: len(value) for name, value in given.items() if value.ndim}
        if len(set(counts.values())) > 1 or not all(counts.values()):
            raise TfcompError(
                f"{self.path.name}: expected the same number of rows, one or more, in every "
                f"input; received {counts}."
            )
        return next(iter(counts.values()), 1)

    def _prepared(self, action: Any) -> None:
        try:
            action()
        except (RuntimeError, ValueError) as error:
            raise _refused(self.path, error) from error


def quantize(value: Array, detail: Mapping[str, Any]) -> Array:
    """q = round(x / scale) + zero_point, halves away from zero, clipped; floats pass."""
    dtype = np.dtype(detail["dtype"])
    scale, zero = detail["quantization"]
    if dtype.kind not in "iu" or not scale:
        return value.astype(dtype)
    scaled = value.astype(np.float32) / np.float32(scale)
    codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)) + zero
    info = np.iinfo(dtype)
    return np.clip(codes, info.min, info.max).astype(dtype)


def dequantize(value: Array, detail: Mapping[str, Any]) -> Array:
    """x = scale · (q − zero_point) in float32; what has no scale passes."""
    scale, zero = detail["quantization"]
    if np.dtype(detail["dtype"]).kind not in "iu" or not scale:
        return value
    return (value.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def _start(path: pathlib.Path, threads: int, delegates: bool) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TfcompError(f"Cannot read {path}: {error.strerror or error}.") from error
    if data[4:8] != b"TFL3":
        raise _broken(path, "an empty file" if not data else f"{len(data):,} other bytes")
    resolver = (
        OpResolverType.AUTO if delegates else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    try:
        # From bytes, not by path: the runtime then verifies the whole flatbuffer first.
        native = LiteRTInterpreter(
            model_content=data,
            num_threads=threads,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=not delegates,
        )
        # Where more than the batch is open, the placeholder of 1 may be too small to run on.
        if not _open_sizes(native):
            native.allocate_tensors()
    except (RuntimeError, ValueError, UnicodeDecodeError) as error:
        if "Flatbuffer" in str(error) or isinstance(error, UnicodeDecodeError):
            raise _broken(path, "damaged or truncated contents") from error
        raise _refused(path, error) from error
    return native


def _open_sizes(native: Any) -> bool:
    """Whether an input is open in other dimensions than the batch."""
    return any(None in _signature(detail)[1:] for detail in native.get_input_details())


def _broken(path: pathlib.Path, received: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path}: expected a TFLite file with identifier TFL3, received {received}. "
        "Convert or download it again."
    )


def _refused(path: pathlib.Path, error: Exception) -> TfcompError:
    reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
    return TfcompError(f"{path.name}: the runtime refuses to run this file: {reason.strip()}")


def _border(native: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs by the names of the file's only signature, else by tensor names."""
    inputs, outputs = native.get_input_details(), native.get_output_details()
    signatures = native.get_signature_list()
    if len(signatures) != 1:
        return _by_tensor_name(inputs), _by_tensor_name(outputs)
    runner = native.get_signature_runner(next(iter(signatures)))
    order = [detail["index"] for detail in inputs]
    named_inputs = runner.get_input_details().items()
    named_outputs = runner.get_output_details().items()
    return (
        dict(sorted(named_inputs, key=lambda item: order.index(item[1]["index"]))),
        dict(sorted(named_outputs, key=lambda item: _natural(item[0]))),
    )


def _by_tensor_name(details: list[dict[str, Any]]) -> dict[str, Any]:
    names = [detail["name"] for detail in details]
    return {
        name if names.count(name) == 1 else f"{name}#{detail['index']}": detail
        for name, detail in zip(names, details, strict=True)
    }


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _signature(detail: Mapping[str, Any]) -> tuple[int | None, ...]:
    dims = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return tuple(None if d == -1 else int(d) for d in dims)


def _joined(values: list[Array]) -> Array:
    if values[0].ndim:
        return np.concatenate(values)
    return np.stack(values) if len(values) > 1 else values[0]
