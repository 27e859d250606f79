"""The kernels of a model, and how many of their weights are zero."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcomp.errors import TfcompError


def values_of(variable: Any) -> np.ndarray[Any, Any]:
    """What a variable holds now, as an array that cannot be written to.

    Not copied where NumPy knows the type. Later changes do not show in it: TensorFlow gives the
    variable other memory while somebody looks at this one.
    """
    tensor = tf.convert_to_tensor(variable)
    try:
        found = np.asarray(memoryview(tensor))
    except ValueError:  # bfloat16 is no type of the buffer protocol
        found = np.asarray(keras.ops.convert_to_numpy(variable))
        found.flags.writeable = False
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """One kernel variable of a model.

    Attributes:
        name: The variable's path, `"model/conv/kernel"`; numbered where two are the same.
        variable: The model's own variable.
        input_axis: The axis that is summed over with the inputs; None in depthwise kernels.
        window_axes: How many of the first axes are places in a convolution's window.
    """

    name: str
    variable: Any
    input_axis: int | None = 0
    window_axes: int = 0

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.variable.shape))

    def value(self) -> np.ndarray[Any, Any]:
        """The weights as they are now, not to be written to."""
        return values_of(self.variable)

    def zeros(self) -> int:
        """How many of the weights are exactly zero now."""
        return self.size - int(np.count_nonzero(self.value()))


@dataclasses.dataclass(frozen=True)
class KernelSparsity:
    """Zeros of one kernel: `zeros` of its `size` weights."""

    name: str
    shape: tuple[int, ...]
    size: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, in [0, 1]."""
        return self.zeros / self.size if self.size else 0.0


def measure(kernels: Iterable[Kernel]) -> tuple[KernelSparsity, ...]:
    """The zeros that each kernel holds now."""
    return tuple(
        KernelSparsity(kernel.name, tuple(kernel.variable.shape), kernel.size, kernel.zeros())
        for kernel in kernels
    )


def total_sparsity(measured: Iterable[KernelSparsity]) -> float:
    """Zeros of all the kernels over the weights of all of them, in [0, 1]."""
    rows = tuple(measured)
    return sum(row.zeros for row in rows) / max(sum(row.size for row in rows), 1)


def find_kernels(
    model: keras.Model,
    *,
    skip: Iterable[Any] = (),
    depthwise: bool = False,
    first: bool = True,
    last: bool = True,
) -> tuple[tuple[Kernel, ...], dict[str, str]]:
    """The kernels of a model that weight pruning treats, and why it leaves the others.

    A kernel is a trainable variable of two or more axes that its layer calls `kernel` or
    `…_kernel`: those of Dense, Conv, EinsumDense, attention and recurrent layers, wherever
    in the model they are, shared ones once. Works on models of any kind that are built,
    subclassed ones included.

    Args:
        model: A built model.
        skip: Layers to spare, as objects or names; a nested model or a block spares all that
            is in it. The path of one variable works too.
        depthwise: Whether to take depthwise kernels as well. Default False: of their few
            weights every one matters, and papers on MobileNets spare them (Zhu and Gupta
            2017, arXiv:1710.01878).
        first: Whether to take the first kernel, in the order of `model.weights`. Default True.
        last: Whether to take the last kernel, in the same order. Default True.

    Returns:
        The kernels in the order of `model.weights`, and for each other weight the reason.

    Raises:
        TfcompError: If it is no model, or not built, or a layer in `skip` is not in it.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(2, name="a"), keras.layers.Dense(3)],
        ...     name="m")
        >>> kernels, skipped = find_kernels(model, skip=["a"])
        >>> len(kernels), skipped["m/a/kernel"], skipped["m/a/bias"]
        (1, 'spared by `skip`', 'not a kernel')
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise TfcompError(f"Expected a built keras.Model. Received: {_what(model)}.")
    holders = _Holders(model)
    trainable = {id(variable) for variable in model.trainable_variables}
    spared = holders.spared(skip, [variable.path for variable in model.weights])
    kernels: list[Kernel] = []
    skipped: dict[str, str] = {}
    at_first, at_last = end_kernels(model)
    for name, variable in _named(model.weights):
        reason = None
        if not _is_kernel(variable):
            reason = "not a kernel"
        elif id(variable) not in trainable:
            reason = "frozen: not among the model's trainable variables"
        elif id(variable) in spared or variable.path in spared:
            reason = "spared by `skip`"
        elif not depthwise and holders.is_depthwise(variable):
            reason = "depthwise: few weights, each of them needed; `depthwise=True` takes them"
        elif not first and variable is at_first:
            reason = "spared by `first=False`"
        elif not last and variable is at_last:
            reason = "spared by `last=False`"
        if reason is None:
            kernels.append(Kernel(name, variable, *holders.axes(variable)))
        else:
            skipped[name] = reason
    return tuple(kernels), skipped


def _what(model: Any) -> str:
    is_model = isinstance(model, keras.Model)
    return f"{model.name!r}, which is not built: call it first" if is_model else repr(model)


def student_of(model: keras.Model) -> keras.Model:
    """The network that is pruned: the student of a model that distils, otherwise the model."""
    student = getattr(model, "student", None)
    return student if isinstance(student, keras.Model) else model


def networks_of(model: keras.Model) -> list[keras.Model]:
    """What is pruned: the model, the student of one that distils, peers that learn together."""
    peers = getattr(model, "peers", ())
    peers = peers if isinstance(peers, (list, tuple)) else ()  # a user's model may have its own
    peers = [peer for peer in peers if isinstance(peer, keras.Model)]
    return [one for one in (student_of(model), *peers) if one is not model] or [model]


def end_kernels(model: keras.Model) -> tuple[Any, Any]:
    """The first and the last kernel of a model, in the order of `model.weights`; or None, None."""
    found = [variable for variable in model.weights if _is_kernel(variable)]
    return (found[0], found[-1]) if found else (None, None)


def _is_kernel(variable: Any) -> bool:
    return len(variable.shape) > 1 and f"_{variable.name}".endswith("_kernel")


def initializers(model: keras.Model) -> dict[int, Any]:
    """By the variable's id, what a kernel's layer fills it with, as its configuration says."""
    holders = _Holders(model)
    return {
        id(variable): found
        for variable in model.weights
        if _is_kernel(variable) and (found := holders.initializer(variable)) is not None
    }


def find_scales(model: keras.Model) -> list[Any]:
    """The trainable γ of all BatchNormalizations, wherever in the model they are, each once."""
    holders = _Holders(model)
    return [
        variable
        for variable in model.trainable_variables
        if variable.name == "gamma"
        and holders.is_held_by(variable, (keras.layers.BatchNormalization,))
    ]


_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


def _summed_axis(equation: str, rank: int) -> int:
    """The last axis of an einsum's second operand that its result does not have."""
    operands, result = equation.replace(" ", "").split("->")
    letters = operands.split(",")[1].replace("...", "")
    summed = [axis for axis, letter in enumerate(letters) if letter not in result]
    return summed[-1] if summed and len(letters) == rank else rank - 2


class _Holders:
    """Which layers hold a variable, and which layers hold those.

    Keras lists a layer's sublayers publicly for models only, so the attributes of layers are
    followed, as are the lists and dicts in them.
    """

    def __init__(self, model: keras.Model) -> None:
        self._layers: dict[int, Any] = {}
        self._variables: dict[int, dict[int, Any]] = {}
        self._sublayers: dict[int, set[int]] = {}
        waiting: list[Any] = [model]
        while waiting:
            layer = waiting.pop()
            if id(layer) in self._layers:
                continue
            self._layers[id(layer)] = layer
            held = list(_held(list(vars(layer).values())))
            sublayers = [item for item in held if isinstance(item, keras.layers.Layer)]
            self._variables[id(layer)] = {
                id(item): item for item in held if isinstance(item, keras.Variable)
            }
            self._sublayers[id(layer)] = {id(item) for item in sublayers}
            waiting.extend(sublayers)

    def is_depthwise(self, variable: Any) -> bool:
        """Whether a depthwise layer holds it, or a separable one as its depthwise part."""
        kinds = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
        return variable.name.startswith("depthwise") or self.is_held_by(variable, kinds)

    def axes(self, variable: Any) -> tuple[int | None, int]:
        """The axis of a kernel's inputs, and how many axes its window has."""
        rank = len(variable.shape)
        for key, layer in self._layers.items():
            if isinstance(layer, keras.layers.EinsumDense) and id(variable) in self._variables[key]:
                return _summed_axis(layer.equation, rank), 0
        if self.is_depthwise(variable):
            return None, rank - 2
        return rank - (1 if self.is_held_by(variable, _TRANSPOSED) else 2), rank - 2

    def initializer(self, variable: Any) -> Any:
        """The `kernel_initializer`, `depthwise_initializer` … of the layer that holds it."""
        part = variable.name.removesuffix("_kernel")
        for key, layer in self._layers.items():
            if id(variable) in self._variables[key]:
                return getattr(layer, f"{part}_initializer", None)
        return None

    def is_held_by(self, variable: Any, kinds: tuple[type, ...]) -> bool:
        """Whether a layer of one of these classes holds it itself."""
        return any(
            id(variable) in self._variables[key]
            for key, layer in self._layers.items()
            if isinstance(layer, kinds)
        )

    def spared(self, skip: Iterable[Any], paths: list[str]) -> set[Any]:
        """Ids of the variables in the layers of `skip`, and the paths among them."""
        if isinstance(skip, str):
            skip = (skip,)
        result: set[Any] = set()
        for wanted in skip:
            found = [
                key
                for key, layer in self._layers.items()
                if layer is wanted or (isinstance(wanted, str) and layer.name == wanted)
            ]
            if not found and wanted not in paths:
                raise TfcompError(self._unknown(wanted))
            if not found:
                result.add(wanted)
            for key in found:
                result |= self._below(key)
        return result

    def _below(self, key: int) -> set[int]:
        seen: set[int] = set()
        waiting = [key]
        while waiting:
            layer = waiting.pop()
            if layer not in seen:
                seen.add(layer)
                waiting.extend(self._sublayers[layer])
        return {variable for layer in seen for variable in self._variables[layer]}

    def _unknown(self, wanted: Any) -> str:
        names = sorted({layer.name for layer in self._layers.values()})
        name = wanted if isinstance(wanted, str) else getattr(wanted, "name", repr(wanted))
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"`skip` must name layers of the model. Received: {name!r}, which is not one.{hint}"


def _held(value: Any) -> Iterator[Any]:
    """The layers and variables in nested lists, tuples and dicts."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (keras.layers.Layer, keras.Variable)):
            yield item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _named(variables: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Each variable with its path; two models that are nested may hold equal paths."""
    count: dict[str, int] = {}
    for variable in variables:
        path = variable.path
        count[path] = count.get(path, 0) + 1
        yield path if count[path] == 1 else f"{path}#{count[path]}", variable
