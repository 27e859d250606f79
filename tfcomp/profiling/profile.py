"""Parameters, non-zeros, multiply-adds and bytes of a Keras model, layer by layer."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tfcomp.errors import TfcompError, UnsupportedModelError
from tfcomp.files import gzip_bytes
from tfcomp.graph import Graph, Tensor, is_graph_model, trace
from tfcomp.graph.trace import substitute, tensors
from tfcomp.profiling.macs import DYNAMIC, Shape, UncountedError, call_macs
from tfcomp.profiling.render import bytes_text, plain, shape_text

InputShape = Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Sequence[int]]


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """One layer of a model, all of its calls together.

    Attributes:
        name: Name of the layer, unique in the model.
        kind: Its class, `"Conv2D"`.
        output_shape: Shape of what its first call returns, None where a dimension is open.
        parameters: Elements of its weights, those that an earlier layer has, too, left out.
        nonzero_parameters: How many of these are not exactly zero.
        macs: Multiply-adds of all its calls for one sample; None where not counted.
        nbytes: Bytes of its weights in the dtype that they are kept in.
        calls: How often the model calls it.
        note: Why `macs` is None, else empty.
    """

    name: str
    kind: str
    output_shape: Shape | None
    parameters: int
    nonzero_parameters: int
    macs: int | None
    nbytes: int
    calls: int = 1
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        shape = None if self.output_shape is None else list(self.output_shape)
        return {**dataclasses.asdict(self), "output_shape": shape}


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a model costs; printed, it is a readable table.

    Attributes:
        name: Name of the model.
        layers: Its layers in the order of their first call.
        notes: What holds for the whole model, such as why no multiply-adds are given.
    """

    name: str
    layers: tuple[LayerProfile, ...]
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Elements of all weights, BatchNormalization's statistics among them."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def nonzero_parameters(self) -> int:
        """How many of these are not exactly zero."""
        return sum(layer.nonzero_parameters for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of parameters that are exactly zero."""
        return 1.0 - self.nonzero_parameters / self.parameters if self.parameters else 0.0

    @property
    def macs(self) -> int | None:
        """Multiply-adds for one sample; None where some layer's are not counted."""
        counts = [layer.macs for layer in self.layers]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def counted_macs(self) -> int:
        """Multiply-adds of the layers that are counted: a lower bound."""
        return sum(layer.macs or 0 for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in the dtypes that they are kept in."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def not_counted(self) -> dict[str, str]:
        """Layers without multiply-adds, and why."""
        return {layer.name: layer.note for layer in self.layers if layer.macs is None}

    def to_dict(self) -> dict[str, Any]:
        """The whole profile as plain JSON types."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "nonzero_parameters": self.nonzero_parameters,
            "sparsity": self.sparsity,
            "macs": self.macs,
            "counted_macs": self.counted_macs,
            "nbytes": self.nbytes,
            "notes": list(self.notes),
            "not_counted": self.not_counted,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def __rich__(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
        total = "?" if self.macs is None else f"{self.macs:,}"
        if self.macs is None and self.counted_macs:
            total = f"≥ {self.counted_macs:,}"
        table.add_column("layer", "total", no_wrap=True)
        table.add_column("kind")
        table.add_column("output")
        table.add_column("parameters", f"{self.parameters:,}", justify="right")
        table.add_column("non-zero", f"{self.nonzero_parameters:,}", justify="right")
        table.add_column("MACs", total, justify="right")
        table.add_column("bytes", bytes_text(self.nbytes), justify="right")
        for layer in self.layers:
            table.add_row(
                layer.name if layer.calls == 1 else f"{layer.name} (×{layer.calls})",
                layer.kind,
                "" if layer.output_shape is None else shape_text(layer.output_shape),
                f"{layer.parameters:,}" if layer.parameters else "",
                f"{layer.nonzero_parameters:,}" if layer.parameters else "",
                "?" if layer.macs is None else f"{layer.macs:,}" if layer.macs else "",
                bytes_text(layer.nbytes) if layer.nbytes else "",
            )
        lines = [*self.notes]
        if not self.notes:
            lines += [
                f"MACs of {name} not counted: {why}" for name, why in self.not_counted.items()
            ]
        notes = [Text(line) for line in lines]
        return Group(Text(self.name), table, *notes)

    def __str__(self) -> str:
        return plain(self)


@dataclasses.dataclass(frozen=True)
class FileSize:
    """Bytes of a file as it lies on disk and after gzip at level 9.

    Attributes:
        path: The file.
        nbytes: Bytes on disk.
        gzip_bytes: Bytes after gzip: zeros and repeated values shrink only here.
    """

    path: pathlib.Path
    nbytes: int
    gzip_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        raw, packed = bytes_text(self.nbytes), bytes_text(self.gzip_bytes)
        return f"{self.path.name}: {raw}, {packed} gzip"


def file_size(path: str | os.PathLike[str]) -> FileSize:
    """Raw and gzip bytes of a file, `.keras`, `.tflite` or any other.

    Raises:
        TfcompError: If it cannot be read.
    """
    file = pathlib.Path(path)
    try:
        return FileSize(file, file.stat().st_size, gzip_bytes(file))
    except OSError as error:
        raise TfcompError(f"Cannot read {file}: {error.strerror or error}.") from error


def profile(model: keras.Model, *, input_shape: InputShape | None = None) -> Profile:
    """Counts parameters, non-zeros, multiply-adds and bytes, layer by layer.

    Parameters and multiply-adds of a convolution with kernel D_K × D_K from M to N channels on
    an output of D_F × D_F: D_K² · M · N and D_K² · M · N · D_F²; `macs` gives the rules of the
    others. A shared layer's parameters count once, its multiply-adds at every call; nested
    models are opened up.

    Args:
        model: The model. Of a subclassed one, parameters alone are told, with a note.
        input_shape: Shape of one sample where the model leaves spatial dimensions open: a
            tuple, a list of tuples, or a dict by input name.

    Returns:
        The profile.

    Raises:
        UnsupportedModelError: If the model is not built, or no Keras model.
        TfcompError: If `input_shape` does not fit the model.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> costs = profile(model)
        >>> costs.parameters, costs.macs, costs.nbytes
        (112, 3888, 448)
    """
    if isinstance(model, keras.Model) and not is_graph_model(model):
        return _subclassed(model)
    graph = trace(model)
    shapes = _shapes(graph, input_shape)
    seen: set[int] = set()
    layers = []
    for name, op in graph.ops.items():
        calls = graph.calls(op)
        macs: int | None = 0
        note = ""
        try:
            macs = sum(
                call_macs(op, [shapes[t] for t in call.inputs], _first(call.outputs, shapes))
                for call in calls
            )
        except UncountedError as error:
            macs, note = None, str(error)
            if note == DYNAMIC:
                note += ": give `input_shape`"
        parameters, nonzero, nbytes = _weights(op, seen)
        layers.append(
            LayerProfile(
                name=name,
                kind=type(op).__name__,
                output_shape=_first(calls[0].outputs, shapes),
                parameters=parameters,
                nonzero_parameters=nonzero,
                macs=macs,
                nbytes=nbytes,
                calls=len(calls),
                note=note,
            )
        )
    return Profile(graph.name, tuple(layers))


def _first(outputs: Sequence[Tensor], shapes: Mapping[Tensor, Shape]) -> Shape:
    return shapes[outputs[0]] if outputs else ()


def _weights(op: Any, seen: set[int]) -> tuple[int, int, int]:
    """Elements, non-zero elements and bytes of the weights that were not seen before."""
    parameters = nonzero = nbytes = 0
    for variable in getattr(op, "weights", ()):
        if id(variable) in seen:
            continue
        seen.add(id(variable))
        count = math.prod(variable.shape)
        parameters += count
        nonzero += int(np.count_nonzero(variable.numpy()))
        nbytes += count * _item_bytes(variable.dtype)
    return parameters, nonzero, nbytes


def _item_bytes(dtype: str) -> int:
    bits = re.search(r"\d+", str(dtype))
    return -(-int(bits.group()) // 8) if bits else 1


def _subclassed(model: keras.Model) -> Profile:
    if not model.built:
        raise UnsupportedModelError(
            f"The model {model.name!r} has no weights yet: expected a built model. "
            "Call it once on data, or build(input_shape)."
        )
    note = (
        f"{type(model).__name__} is a subclassed model: its calls cannot be listed, so only "
        "parameters are told. Rewrite its call() as keras.Model(inputs, outputs) for the rest."
    )
    seen: set[int] = set()
    rows = [(layer.name, layer) for layer in model.layers]
    layers = [_parameters_only(name, op, seen) for name, op in rows]
    own = _parameters_only(model.name, model, seen)
    if own.parameters:
        layers.append(own)
    return Profile(model.name, tuple(layers), (note,))


def _parameters_only(name: str, op: Any, seen: set[int]) -> LayerProfile:
    parameters, nonzero, nbytes = _weights(op, seen)
    kind, why = type(op).__name__, "the model is subclassed"
    return LayerProfile(name, kind, None, parameters, nonzero, None, nbytes, note=why)


def _shapes(graph: Graph, input_shape: InputShape | None) -> dict[Tensor, Shape]:
    """The shape of every tensor, the open dimensions of the inputs filled in."""
    if input_shape is None:
        known = {tensor: tensor.shape for node in graph.nodes for tensor in node.outputs}
        return {**known, **{tensor: tensor.shape for tensor in graph.input_configs}}
    values = {
        tensor: keras.KerasTensor(shape, dtype=tensor.dtype)
        for tensor, shape in _input_shapes(graph, input_shape).items()
    }
    for node in graph.nodes:
        kwargs = {key: value for key, value in node.kwargs.items() if value is not None}
        try:
            spec = node.op.compute_output_spec(
                *substitute(node.args, values), **substitute(kwargs, values)
            )
        except ValueError as error:
            raise TfcompError(
                f"`input_shape` does not fit layer {node.name!r}: {str(error).splitlines()[0]}"
            ) from error
        values.update(zip(tensors(node.structure), keras.tree.flatten(spec), strict=True))
    return {tensor: tuple(value.shape) for tensor, value in values.items()}


def _input_shapes(graph: Graph, input_shape: InputShape) -> dict[Tensor, Shape]:
    inputs = graph.input_tensors
    names = {graph.input_configs[tensor]["name"]: tensor for tensor in inputs}
    wanted: Iterable[Any]
    if isinstance(input_shape, Mapping):
        if set(input_shape) != set(names):
            raise TfcompError(
                f"`input_shape`: expected the inputs {sorted(names)}, "
                f"received {sorted(input_shape)}."
            )
        wanted = [input_shape[name] for name in names]
    elif input_shape and all(isinstance(item, (list, tuple)) for item in input_shape):
        wanted = list(input_shape)
    else:
        wanted = [input_shape]
    shapes: dict[Tensor, Shape] = {}
    for tensor, shape in zip(inputs, wanted, strict=False):
        full = (tensor.shape[0], *shape)
        fits = len(full) == len(tensor.shape) and all(
            have is None or have == want for have, want in zip(tensor.shape, full, strict=True)
        )
        if not fits:
            raise TfcompError(
                f"`input_shape`: expected a shape that fits {tensor.shape[1:]}, "
                f"received {tuple(shape)}. Leave the batch out."
            )
        shapes[tensor] = full
    if len(shapes) != len(inputs) or len(list(wanted)) != len(inputs):
        raise TfcompError(
            f"`input_shape`: expected {len(inputs)} shapes for {list(names)}, "
            f"received {len(list(wanted))}."
        )
    return shapes
