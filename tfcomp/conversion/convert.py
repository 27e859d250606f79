"""`convert`: a Keras model to a `.tflite` file that is checked to be what was asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcomp import files
from tfcomp.conversion import lowering
from tfcomp.conversion.artifact import Artifact
from tfcomp.conversion.audit import Audit, OpInfo, TensorInfo, audit
from tfcomp.conversion.calibration import calibration_arrays
from tfcomp.conversion.edgetpu import COMPILER
from tfcomp.conversion.edgetpu_compiler import Compilation, compile_edgetpu
from tfcomp.errors import ConversionError, TfcompError
from tfcomp.graph import as_functional, check_model, rebuild, trace
from tfcomp.quantization import quantization_report, strip_quantization
from tfcomp.quantization.quantize_aware import is_quantize_aware, with_fixed_ranges

DTYPES = ("float32", "float16", "dynamic", "int8", "int16x8")
TARGETS = ("tflite", "edgetpu")
_IO_DTYPES = {"int8": ("float32", "int8", "uint8"), "int16x8": ("float32", "int16")}
# Weights of fewer elements than this the converter leaves float in dynamic-range files.
_DYNAMIC_MIN_ELEMENTS = 1024
_SHOWN_OPS = 8


@dataclasses.dataclass(frozen=True)
class _Request:
    dtype: str
    target: str
    io_dtype: str
    per_tensor_dense: bool
    allow_float_ops: bool


def convert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    target: str = "tflite",
    calibration: Any = None,
    io_dtype: str | None = None,
    allow_float_ops: bool = False,
) -> Artifact:
    """Converts a model, reads the file back, and refuses it if it is not what was asked for.

    The converter runs in a process of its own, since it can crash. Batches in the file are
    of 1: an open batch makes the converter add ops that compute shapes, and keep some others
    in float. The same model gives the same bytes.

    Args:
        model: A functional or Sequential model, quantisation-aware or not. It is not changed.
        path: The file to write. It appears whole and checked, or stays as it was.
        dtype: What the file computes with:
            "float32"; "float16": weights stored in half precision; "dynamic": weights of at
            least 1,024 elements in int8, activations float; "int8": all integer; "int16x8":
            weights int8, activations int16. Of a quantisation-aware model "int8" takes the
            ranges it has learnt; the others take its rounded weights.
        target: "tflite", or "edgetpu": "int8" only, with one scale per dense kernel.
        calibration: Examples to measure activation ranges with, for "int8" of a plain model and
            for "int16x8": an array, a list of arrays or a dict, examples in front; or an
            iterable of batches such as a `tf.data.Dataset`, of which inputs are taken, the
            first 1,024 examples at most.
        io_dtype: Type of the file's inputs and outputs: "float32", for "int8" also "int8" or
            "uint8", for "int16x8" also "int16". By default "float32"; "int8" for "edgetpu".
        allow_float_ops: Whether an "int8" or "int16x8" file may hold ops that compute in float.

    Returns:
        The file: its `.audit`, `.compare(model, images)`, `.benchmark()`.

    Raises:
        ConversionError: If the converter fails, or the file is not what was asked for; the
            offending ops are named.
        UnsupportedModelError: If the model is subclassed or unbuilt.
        TfcompError: If an argument is not as described or the file cannot be written.

    Example:
        >>> artifact = convert(qat, "model.tflite", dtype="int8")  # doctest: +SKIP
        >>> artifact.compare(qat, images).argmax_agreement  # doctest: +SKIP
        0.9996

    Jacob et al. 2017, arXiv:1712.05877; the format: https://ai.google.dev/edge/litert.
    """
    check_model(model)
    _check_path(path)
    model = _of_open_batch(as_functional(model))
    request = _checked(dtype, target, io_dtype, allow_float_ops, model)
    names = input_names(model)
    arrays = _calibration(model, names, request, calibration)
    exported = _export_form(model, request)
    with files.replacing(path) as temporary:
        with _work_folder() as folder:
            _write_request(folder, exported, names, request, arrays)
            _run_worker(folder, model)
            made = (folder / "model.tflite").read_bytes()
        # Outside of the work folder, whose errors are about another disk.
        temporary.write_bytes(made)
        _check(audit(temporary), request)
        compilation = _compiled(temporary, pathlib.Path(path)) if target == "edgetpu" else None
    return Artifact(path, compilation)


def _check_path(path: str | os.PathLike[str]) -> None:
    if pathlib.Path(path).suffix != ".tflite":
        raise TfcompError(
            f"Expected a path that ends in .tflite, received {os.fspath(path)!r}. "
            "Whatever is there is left as it is."
        )


def _of_open_batch(model: keras.Model) -> keras.Model:
    """The model itself, or a copy for batches of 1 where it was built for larger ones.

    A Sequential model without an Input keeps the size of the first batch that it was trained
    on; a file made of that would want as many rows at every run.
    """
    fixed = {tensor.shape[0] for tensor in model.inputs} - {None, 1}
    return rebuild(model, batch_size=1) if fixed else model


def _compiled(temporary: pathlib.Path, path: pathlib.Path) -> Compilation | None:
    """The real compiler's verdict, where it is installed; a refused file is not written."""
    if shutil.which(COMPILER) is None:
        return None
    return compile_edgetpu(temporary, path.with_name(f"{path.stem}_edgetpu.tflite"))


def _checked(
    dtype: str, target: str, io_dtype: str | None, allow_float_ops: bool, model: keras.Model
) -> _Request:
    if dtype not in DTYPES:
        raise TfcompError(f"Expected dtype to be one of {DTYPES}, received {dtype!r}.")
    if target.startswith("ethos"):
        raise TfcompError(f"Target {target!r} is not there yet: expected one of {TARGETS}.")
    if target not in TARGETS:
        raise TfcompError(f"Expected target to be one of {TARGETS}, received {target!r}.")
    if target == "edgetpu" and dtype != "int8":
        raise TfcompError(
            f'The Edge TPU computes in int8: expected dtype="int8" with target="edgetpu", '
            f"received {dtype!r}."
        )
    io = io_dtype or ("int8" if target == "edgetpu" else "float32")
    allowed = _IO_DTYPES.get(dtype, ("float32",))
    if io not in allowed:
        raise TfcompError(f"Expected io_dtype for {dtype!r} to be of {allowed}, received {io!r}.")
    learnt = lowering.dense_axes(model)
    if target == "edgetpu" and learnt - {()}:
        warnings.warn(
            "The Edge TPU takes one scale per dense kernel, and this model has learnt one per "
            'unit: make it with quantize_aware(model, target="edgetpu") for an equal file.',
            stacklevel=3,
        )
    per_tensor = target == "edgetpu" or () in learnt
    return _Request(dtype, target, io, per_tensor, allow_float_ops)


def _calibration(
    model: keras.Model, names: list[str], request: _Request, given: Any
) -> dict[str, Any] | None:
    """Input arrays by name, or None where ranges come from elsewhere."""
    qat = is_quantize_aware(model)
    learnt = request.dtype == "int8" and qat
    needed = request.dtype in ("int8", "int16x8") and not learnt
    if given is None:
        if needed and not qat:
            raise TfcompError(
                f"An {request.dtype} file of a model that is not quantisation-aware needs the "
                "ranges of its activations: pass calibration=<examples>, or train "
                "tfcomp.quantization.quantize_aware(model)."
            )
        if needed:
            raise TfcompError(
                "An int16x8 file needs ranges of 16 bits, which a quantisation-aware model of 8 "
                "bits has not learnt: pass calibration=<examples>."
            )
        return None
    if not needed:
        why = "a quantisation-aware model has its own ranges" if learnt else "it has no ranges"
        raise TfcompError(
            f"Expected calibration=None for this {request.dtype} file ({why}), received data. "
            "Leave it out" + (", or convert strip_quantization(model)." if learnt else ".")
        )
    return calibration_arrays(given, names, model)


def input_names(model: keras.Model) -> list[str]:
    """Names of the file's inputs, in the order in which Keras flattens them: the keys of a
    model that takes a dict, else the names of its input layers."""
    graph = trace(model)
    if isinstance(graph.inputs, Mapping):
        return sorted(graph.inputs)
    return [graph.input_configs[tensor]["name"] for tensor in graph.input_tensors]


def _export_form(model: keras.Model, request: _Request) -> keras.Model:
    if not is_quantize_aware(model):
        return lowering.in_float32(model)
    if request.dtype == "int8":
        return lowering.for_integers(with_fixed_ranges(model))
    return lowering.in_float32(strip_quantization(model))


@contextlib.contextmanager
def _work_folder() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix="tfcomp-") as folder:
        try:
            yield pathlib.Path(folder)
        except OSError as error:
            raise TfcompError(
                f"Cannot write temporary files to {tempfile.gettempdir()}: "
                f"{error.strerror or error}. Free space or set TMPDIR to another folder."
            ) from error


def _write_request(
    folder: pathlib.Path,
    model: keras.Model,
    names: list[str],
    request: _Request,
    arrays: dict[str, Any] | None,
) -> None:
    _save(model, names, folder / "model", request)
    if arrays is not None:
        np.savez(folder / "calibration.npz", **arrays)
    text = json.dumps(dataclasses.asdict(request))
    (folder / "request.json").write_text(text, encoding="utf-8")


def _save(model: keras.Model, names: list[str], folder: pathlib.Path, request: _Request) -> None:
    """Writes a SavedModel with one signature, whose inputs are called `names`."""
    specs = []
    for name, tensor in zip(names, keras.tree.flatten(model.input), strict=True):
        batch, *shape = tensor.shape
        if request.target == "edgetpu" and None in shape:
            raise TfcompError(
                f"The Edge TPU needs a static shape: expected all dimensions of input {name!r} "
                f"after the batch to be known, received {tuple(shape)}. Rebuild the model with "
                "a fixed keras.Input shape."
            )
        specs.append(tf.TensorSpec((batch or 1, *shape), tensor.dtype, name=name))
    structure = model.input

    def serve(*flat: Any) -> Any:
        return model(keras.tree.pack_sequence_as(structure, list(flat)), training=False)

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", serve, input_signature=specs)
    with _errors_only(tf.get_logger()):
        archive.write_out(str(folder), verbose=False)


@contextlib.contextmanager
def _errors_only(logger: logging.Logger) -> Iterator[None]:
    """TensorFlow tells at INFO where a SavedModel was written, which is no business of users."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _run_worker(folder: pathlib.Path, model: keras.Model) -> None:
    script = pathlib.Path(__file__).with_name("worker.py")
    # Without a GPU, and by its file: importing the package would import Keras a second time.
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if result.returncode < 0:
        name = signal.Signals(-result.returncode).name
        raise ConversionError(
            f"TensorFlow's converter crashed ({name}) on this model; nothing was written. "
            f"{_suspects(model)}"
        )
    if result.returncode or not (folder / "model.tflite").exists():
        raise ConversionError(f"TensorFlow's converter refused the model: {_cause(result.stderr)}")


def _suspects(model: keras.Model) -> str:
    """Which layers a crash is likely to come from."""
    skipped = quantization_report(model).skipped
    if not skipped:
        return "Convert parts of the model to find the layer that it does not take."
    return f"Try without the layers that have no integer form: {', '.join(skipped)}."


def _cause(log: str) -> str:
    """The one line of the converter's output that says why."""
    unsupported = re.findall(r"^(?:TF Select|Custom) ops: (.+)$", log, re.MULTILINE)
    if unsupported:
        return f"TFLite has no op for {', '.join(dict.fromkeys(unsupported))}."
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(?:\w*Error|error):", line)]
    return (errors or lines or ["no message"])[-1][:400]


def _check(received: Audit, request: _Request) -> None:
    """Raises unless the file is what the request says."""
    _check_border(received, request)
    offenders = _offenders(received, request)
    if offenders and not request.allow_float_ops:
        shown = ", ".join(map(_named, offenders[:_SHOWN_OPS]))
        more = f" and {len(offenders) - _SHOWN_OPS} more" if len(offenders) > _SHOWN_OPS else ""
        raise ConversionError(
            f"Expected a file of dtype {request.dtype}; in the one received {len(offenders)} of "
            f"{len(received.ops)} ops are not: {shown}{more}. Nothing was written. Change these "
            "layers (tfcomp.quantization.quantization_report tells which stay float), or pass "
            "allow_float_ops=True."
        )


def _check_border(received: Audit, request: _Request) -> None:
    for tensor in (*received.inputs, *received.outputs):
        if tensor.dtype in ("int32", "int64", "bool", "string"):
            continue
        if tensor.dtype != request.io_dtype:
            raise ConversionError(
                f"Expected inputs and outputs of type {request.io_dtype}, received "
                f"{tensor.dtype} for {tensor.name!r}. Nothing was written."
            )


def _offenders(received: Audit, request: _Request) -> list[OpInfo]:
    """The ops that are not of the type asked for."""
    if request.dtype == "float32":
        return [op for op in received.ops if any(_is_compressed(t) for t in op.weights)]
    if request.dtype in ("float16", "dynamic"):
        least = _DYNAMIC_MIN_ELEMENTS if request.dtype == "dynamic" else 1
        return [
            op
            for op in received.ops
            if any(t.dtype == "float32" and (t.size or 0) >= least for t in op.weights)
        ]
    offenders = list(received.float_ops)
    wide = request.dtype == "int16x8"
    for op in received.ops:
        narrow = any(t.quantized and t.dtype in ("int8", "uint8") for t in op.activations)
        units = op.op == "FULLY_CONNECTED" and any(t.scales > 1 for t in op.weights)
        if (wide and narrow) or (request.per_tensor_dense and units):
            offenders.append(op)
    return offenders


def _is_compressed(tensor: TensorInfo) -> bool:
    return tensor.quantized or tensor.dtype == "float16"


def _named(op: OpInfo) -> str:
    return f"{op.label} ({op.outputs[0].name.split(';')[0]})" if op.outputs else op.label
