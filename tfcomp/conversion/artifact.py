"""A converted file: what is in it, whether it computes what the Keras model does, how fast."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tfcomp.conversion.audit import Audit, TensorInfo, audit
from tfcomp.conversion.edgetpu import EdgeTpuReport, analyse
from tfcomp.conversion.edgetpu_compiler import Compilation
from tfcomp.errors import TfcompError
from tfcomp.graph import Node, rebuild
from tfcomp.profiling.render import plain
from tfcomp.runtime import Interpreter, Latency, latency

Array = npt.NDArray[Any]

# Rows that the Keras model is called on at once.
_ROWS = 64


@dataclasses.dataclass(frozen=True)
class OutputParity:
    """How one output of the file differs from the Keras model's.

    Attributes:
        name: Name of the output in the file.
        argmax_agreement: Fraction of positions whose largest entry along the last axis is the
            same; None where that axis has fewer than two entries.
        max_steps: Largest |difference| in quantisation steps of the output; None for a float
            output.
        mean_abs: Mean |difference|.
        max_abs: Largest |difference|.
        step: The quantisation step, None for a float output.
    """

    name: str
    argmax_agreement: float | None
    max_steps: float | None
    mean_abs: float
    max_abs: float
    step: float | None


@dataclasses.dataclass(frozen=True)
class LayerParity:
    """How one quantised tensor of the file differs from the Keras layer that it stands for.

    Attributes:
        layer: Name of the Keras layer.
        tensor: Name of the tensor in the file.
        max_steps: Largest |difference| in quantisation steps of the tensor.
        mean_steps: Mean |difference| in the same steps.
    """

    layer: str
    tensor: str
    max_steps: float
    mean_steps: float


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far a file is from its Keras model on given examples.

    Attributes:
        examples: Rows compared.
        outputs: One entry per output.
        layers: One entry per matched layer, in the file's order, where layers were asked for.
    """

    examples: int
    outputs: tuple[OutputParity, ...]
    layers: tuple[LayerParity, ...] = ()

    @property
    def argmax_agreement(self) -> float | None:
        """The worst output's; None where no output has classes."""
        return min(_present(o.argmax_agreement for o in self.outputs), default=None)

    @property
    def max_steps(self) -> float | None:
        """The worst output's; None where every output is float."""
        return max(_present(o.max_steps for o in self.outputs), default=None)

    @property
    def mean_abs(self) -> float:
        """The worst output's mean |difference|."""
        return max(o.mean_abs for o in self.outputs)

    @property
    def max_abs(self) -> float:
        """The worst output's largest |difference|."""
        return max(o.max_abs for o in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {
            "argmax_agreement": self.argmax_agreement,
            "max_steps": self.max_steps,
            "mean_abs": self.mean_abs,
            "max_abs": self.max_abs,
            **dataclasses.asdict(self),
        }

    def __rich__(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("output", "argmax agreement", "max steps", "mean |Δ|", "max |Δ|"):
            table.add_column(column, justify="left" if column == "output" else "right")
        for output in self.outputs:
            agreement, steps = output.argmax_agreement, output.max_steps
            table.add_row(
                output.name,
                "–" if agreement is None else f"{agreement:.4f}",
                "–" if steps is None else f"{steps:.2f}",
                f"{output.mean_abs:.3g}",
                f"{output.max_abs:.3g}",
            )
        title = Text(f"parity with Keras on {self.examples:,} examples")
        return Group(title, table, self._layer_table()) if self.layers else Group(title, table)

    def __str__(self) -> str:
        return plain(self)

    def _layer_table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("layer", "mean steps", "max steps"):
            table.add_column(column, justify="left" if column == "layer" else "right")
        for layer in self.layers:
            table.add_row(layer.layer, f"{layer.mean_steps:.2f}", f"{layer.max_steps:.2f}")
        return table


class Artifact:
    """A `.tflite` file on disk, read back once.

    Args:
        path: The file.
        compilation: What the Edge TPU compiler made of it, where it was called.

    Raises:
        TfcompError: If there is no such file.
        DamagedFileError: If it is empty, truncated, damaged or not a TFLite file.

    Example:
        >>> artifact = Artifact("model.tflite")  # doctest: +SKIP
        >>> artifact.compare(model, images).argmax_agreement  # doctest: +SKIP
        0.9996
    """

    def __init__(
        self, path: str | os.PathLike[str], compilation: Compilation | None = None
    ) -> None:
        self.path = pathlib.Path(path)
        self.audit: Audit = audit(self.path)
        self._compilation = compilation

    @property
    def edgetpu(self) -> Compilation | EdgeTpuReport:
        """What the Edge TPU maps: of the real compiler where it was called, else predicted."""
        return self._compilation or analyse(self.audit)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.audit.nbytes

    @property
    def gzip_bytes(self) -> int:
        """Size of the file after gzip at level 9."""
        return self.audit.gzip_bytes

    def run(self, x: Any, *, threads: int = 1) -> Any:
        """The file's outputs in real units for any number of rows, as `Interpreter.run` gives.

        Args:
            x: An array, a list in the file's input order, or a dict by its input names.
            threads: Threads of the runtime.
        """
        return Interpreter(self.path, threads=threads).run(x)

    def benchmark(self, threads: int = 1, *, runs: int = 100, warm_up: int = 10) -> Latency:
        """Median and 90th percentile latency; `runtime.latencies` compares several files."""
        return latency(self.path, threads=threads, runs=runs, warm_up=warm_up)

    def compare(self, model: keras.Model, x: Any, *, by_layer: bool = False) -> Parity:
        """Runs the Keras model and the file on the same examples and compares the outputs.

        Both get x in real units; a quantised input of the file is made with its own scale, a
        quantised output is read with it. A difference of d is d / scale steps, where the scale
        is that of the output, or of the tensor that a final DEQUANTIZE reads.

        Args:
            model: The model that the file was made of.
            x: Examples as the model takes them: an array, a list or a dict, rows in front.
            by_layer: Compare every quantised tensor, too, whose name says which layer's output
                it is. For this, the file is run on the plain built-in kernels.

        Returns:
            The parity.

        Raises:
            TfcompError: If there are no examples, they are of another shape than the file's
                inputs, or inputs or outputs of the two cannot be matched.
            UnsupportedModelError: If `by_layer` is asked for and the model cannot be walked.
        """
        interpreter = Interpreter(self.path)
        given = _for_file(interpreter, model, x)
        if not all(array.ndim and len(array) for array in given.values()):
            raise TfcompError("Expected one example or more to compare on, received none.")
        # The file first: it tells in one line where the examples are of another shape.
        received = interpreter.run(given)
        expected = _for_names(interpreter, model, _keras_outputs(model, x))
        if not isinstance(received, dict):
            received = {interpreter.output_names[0]: received}
        steps = self._output_steps(interpreter)
        outputs = tuple(
            _output_parity(name, expected[name], received[name], steps.get(name))
            for name in interpreter.output_names
        )
        layers = self._layer_parity(model, x, given) if by_layer else ()
        return Parity(len(next(iter(given.values()))), outputs, layers)

    def __repr__(self) -> str:
        return f"Artifact({str(self.path)!r})"

    def _output_steps(self, interpreter: Interpreter) -> dict[str, float | None]:
        producers = {
            tensor.index: op for op in self.audit.ops if op.subgraph == 0 for tensor in op.outputs
        }
        steps: dict[str, float | None] = {}
        tensors = {tensor.index: tensor for tensor in self.audit.outputs}
        for name in interpreter.output_names:
            tensor = tensors.get(interpreter.output_index(name))
            producer = producers.get(tensor.index) if tensor else None
            if tensor and producer and producer.op == "DEQUANTIZE":
                tensor = producer.inputs[0]
            steps[name] = tensor.scale if tensor else None
        return steps

    def _layer_parity(
        self, model: keras.Model, x: Any, given: dict[str, Array]
    ) -> tuple[LayerParity, ...]:
        layers = _layer_outputs(model, x)
        interpreter = Interpreter(self.path, delegates=False)
        tensors = self._quantized_activations()
        files = _tensor_values(interpreter, given, [tensor.index for tensor in tensors])
        found: dict[str, LayerParity] = {}
        for tensor in tensors:
            value = files[tensor.index]
            rivals = [
                _steps(name, tensor, layers[name] - value)
                for name in _named_in(tensor.name, layers)
                if layers[name].shape == value.shape
            ]
            if rivals:
                # Exporting may put a number behind a layer's name, as a second layer of that
                # name would have; of those that could be meant, the nearest is.
                best = min(rivals, key=lambda parity: parity.mean_steps)
                found.setdefault(best.layer, best)
        return tuple(found.values())

    def _quantized_activations(self) -> list[TensorInfo]:
        return [
            tensor
            for op in self.audit.ops
            if op.subgraph == 0
            for tensor in op.outputs
            if tensor.scale and not tensor.constant
        ]


def _present(values: Iterator[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _output_parity(name: str, expected: Array, received: Array, step: float | None) -> OutputParity:
    if expected.shape != received.shape:
        raise TfcompError(
            f"Output {name!r}: expected shape {expected.shape} as the Keras model gives, "
            f"received {received.shape} from the file. Was the file made of this model?"
        )
    difference = np.abs(expected.astype(np.float64) - received.astype(np.float64))
    agreement = None
    if expected.ndim > 1 and expected.shape[-1] > 1:
        agreement = float(np.mean(expected.argmax(-1) == received.argmax(-1)))
    largest = float(difference.max(initial=0.0))
    return OutputParity(
        name=name,
        argmax_agreement=agreement,
        max_steps=largest / step if step else None,
        mean_abs=float(difference.mean()) if difference.size else 0.0,
        max_abs=largest,
        step=step,
    )


def _steps(layer: str, tensor: TensorInfo, difference: Array) -> LayerParity:
    steps = np.abs(difference.astype(np.float64)) / (tensor.scale or 1.0)
    return LayerParity(layer, tensor.name, float(steps.max()), float(steps.mean()))


def _keras_outputs(model: keras.Model, x: Any) -> Any:
    """The model's outputs for all rows, without touching its compiled state."""
    return _in_chunks(lambda chunk: model(chunk, training=False), x)


def _in_chunks(function: Callable[[Any], Any], x: Any) -> Any:
    arrays = keras.tree.map_structure(np.asarray, x)
    rows = len(keras.tree.flatten(arrays)[0])
    results = []
    for begin in range(0, rows, _ROWS):
        chunk = keras.tree.map_structure(lambda a, b=begin: a[b : b + _ROWS], arrays)
        results.append(keras.tree.map_structure(keras.ops.convert_to_numpy, function(chunk)))
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *results)


def _for_file(interpreter: Interpreter, model: keras.Model, x: Any) -> dict[str, Array]:
    """The model's inputs under the names that the file has for them."""
    names = interpreter.input_names
    if isinstance(x, Mapping):
        given = {str(key): np.asarray(value) for key, value in x.items()}
    else:
        values = [np.asarray(value) for value in x] if len(names) > 1 else [np.asarray(x)]
        # A subclassed model has no list of inputs.
        own = [tensor.name for tensor in getattr(model, "inputs", None) or ()]
        if len(own) != len(values):
            own = list(names)
        given = dict(zip(own, values, strict=False))
    shapes = {name: interpreter.input_shape(name) for name in names}
    return _matched(names, shapes, given, f"Inputs of {interpreter.path.name}")


def _for_names(interpreter: Interpreter, model: keras.Model, outputs: Any) -> dict[str, Array]:
    """The model's outputs under the names that the file has for them."""
    names = interpreter.output_names
    if isinstance(outputs, Mapping):
        given = {str(key): value for key, value in outputs.items()}
    else:
        values = keras.tree.flatten(outputs)
        numbered = [f"output_{index}" for index in range(len(values))]
        own = list(getattr(model, "output_names", None) or [])
        fits = set(own) == set(names) and len(own) == len(values)
        given = dict(zip(own if fits else numbered, values, strict=True))
    shapes = {name: interpreter.output_shape(name) for name in names}
    return _matched(names, shapes, given, f"Outputs of {interpreter.path.name}")


def _matched(
    names: tuple[str, ...],
    shapes: dict[str, tuple[int | None, ...]],
    given: dict[str, Array],
    what: str,
) -> dict[str, Array]:
    """By name where all names are known, else by shape where that leaves no doubt."""
    if set(names) == set(given):
        return {name: given[name] for name in names}
    if len(names) == len(given) == 1:
        return {names[0]: next(iter(given.values()))}
    matched = {}
    for name in names:
        fitting = [key for key, value in given.items() if _fits(shapes[name], value.shape)]
        if len(fitting) != 1:
            break
        matched[name] = given[fitting[0]]
    if len(matched) != len(names) or len(names) != len(given):
        raise TfcompError(
            f"{what}: expected names {sorted(names)}, received {sorted(given)}, and shapes do "
            "not tell them apart. Pass a dict, or give the Keras model these names."
        )
    return matched


def _fits(shape: tuple[int | None, ...], received: tuple[int, ...]) -> bool:
    return len(shape) == len(received) and all(
        want is None or want == got for want, got in zip(shape[1:], received[1:], strict=True)
    )


def _layer_outputs(model: keras.Model, x: Any) -> dict[str, Array]:
    """Each layer's output on x by the layer's name; layers called more than once are left out."""
    made: dict[str, list[Any]] = {}

    def call(op: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = op(*args, **kwargs)
        made.setdefault(node.name, []).append(result)
        return result

    copy = rebuild(model, call=call)
    single = {
        name: results[0]
        for name, results in made.items()
        if len(results) == 1 and isinstance(results[0], keras.KerasTensor)
    }
    probe = keras.Model(copy.input, single)
    outputs: dict[str, Array] = _keras_outputs(probe, x)
    return outputs


def _tensor_values(
    interpreter: Interpreter, given: dict[str, Array], indices: list[int]
) -> dict[int, Array]:
    rows = len(next(iter(given.values())))
    step = interpreter.batch_size or _ROWS
    parts: dict[int, list[Array]] = {index: [] for index in indices}
    for begin in range(0, rows, step):
        interpreter.run({name: value[begin : begin + step] for name, value in given.items()})
        for index in indices:
            parts[index].append(interpreter.tensor(index).copy()[: rows - begin])
    return {
        index: np.concatenate(values) if values[0].ndim else values[0]
        for index, values in parts.items()
    }


def _named_in(tensor_name: str, layers: Mapping[str, Array]) -> list[str]:
    """The layers that a tensor's name may mean: `model_1/conv_1/Relu;…` means `conv`.

    A fused op carries the names of all its parts, the one whose value it is in front.
    """
    segments = re.split(r"[/:]", tensor_name.split(";")[0])
    return [
        name
        for name in layers
        if any(re.fullmatch(rf"{re.escape(name)}(_\d+)?", segment) for segment in segments)
    ]
