"""What an inference costs in energy, estimated layer by layer."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError
from tfcomp.graph import Graph, Node, rebuild, trace
from tfcomp.profiling.macs import DYNAMIC, UncountedError, call_macs
from tfcomp.pruning.samples import all_inputs

_WORD = 16  # bits of a word and of a multiply-add that the costs are given for


@dataclasses.dataclass(frozen=True)
class EnergyCosts:
    """Energy of an access to one 16-bit word at each level, in multiply-adds of 16 bits.

    The defaults are those of Chen, Emer and Sze 2016, "Eyeriss: A Spatial Architecture for
    Energy-Efficient Dataflow for Convolutional Neural Networks" (ISCA), for 65 nm.

    Attributes:
        mac: One multiply-add.
        register_file: The file of registers of a processing element.
        array: From one processing element to another.
        buffer: The buffer on the chip.
        dram: Memory beside the chip.
        register_reuse: How often a word in the register file is used at most.
        array_reuse: To how many processing elements one word goes at most.
    """

    mac: float = 1.0
    register_file: float = 1.0
    array: float = 2.0
    buffer: float = 6.0
    dram: float = 200.0
    register_reuse: float = 16.0
    array_reuse: float = 14.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 1 if field.name.endswith("reuse") else 0
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value < least:
                raise TfcompError(
                    f"`{field.name}` must be a number of at least {least}. Received: {value!r}."
                )


def checked_costs(costs: Any) -> EnergyCosts:
    """Costs as they were passed, or those by default.

    Raises:
        TfcompError: If they are something else.
    """
    if costs is not None and not isinstance(costs, EnergyCosts):
        raise TfcompError(
            f"`costs` must be an EnergyCosts, EnergyCosts(dram=100) for one. Received: {costs!r}."
        )
    return costs or EnergyCosts()


@dataclasses.dataclass(frozen=True)
class LayerEnergy:
    """Energy of one layer, for one sample, in multiply-adds of 16 bits.

    Attributes:
        name: The layer's.
        macs: Multiply-adds, those by zero included.
        weights: Weights of its kernels.
        nonzero: How many of them are not zero.
        input_density: Share of its inputs that are not zero.
        mac: Energy of the multiply-adds that are done.
        register_file: Of the accesses to register files.
        array: Of words passed between processing elements.
        buffer: Of the accesses to the buffer.
        dram: Of the accesses to memory beside the chip.
    """

    name: str
    macs: int
    weights: int
    nonzero: int
    input_density: float
    mac: float
    register_file: float
    array: float
    buffer: float
    dram: float

    @property
    def total(self) -> float:
        """All together."""
        return self.mac + self.register_file + self.array + self.buffer + self.dram


@dataclasses.dataclass(frozen=True)
class Energy:
    """Energy of a model, for one sample, in multiply-adds of 16 bits.

    Attributes:
        layers: Of each layer with a kernel.
        skipped: For each layer whose energy is not estimated, the reason.
    """

    layers: tuple[LayerEnergy, ...]
    skipped: dict[str, str]

    @property
    def total(self) -> float:
        """Of all layers that are estimated."""
        return sum(layer.total for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {**dataclasses.asdict(self), "total": self.total}

    def __str__(self) -> str:
        lines = [f"energy {self.total:,.0f}, in multiply-adds of {_WORD} bits"]
        lines += [f"  {layer.total:>16,.0f}  {layer.name}" for layer in self.layers]
        lines += [f"  not estimated  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


KERNEL_LAYERS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
)
_ESTIMATED = (
    *KERNEL_LAYERS,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)


def estimate_energy(
    model: keras.Model,
    data: Any = None,
    *,
    weight_bits: int = _WORD,
    activation_bits: int = _WORD,
    costs: EnergyCosts | None = None,
) -> Energy:
    """Estimates the energy of an inference from multiply-adds and accesses to memory.

    A word that takes part in n multiply-adds is fetched a = 1 time from DRAM, b times from the
    buffer for that, passed to c processing elements each time, and used d times in each, where
    d = min(n, register_reuse), c = min(n/d, array_reuse) and b = n/(c·d). With the cost E of an
    access at each level:

        weight or input:  a·E_dram + a·b·E_buffer + a·b·c·E_array + a·b·c·d·E_rf
        output (sums):    (2a−1)·E_dram + 2a(b−1)·E_buffer + a·b·(c−1)·E_array + 2a·b·c(d−1)·E_rf

    Zeros are skipped: a multiply-add and its accesses to register files are done if weight and
    input are not zero, taken as independent; words that are zero are not moved at all. Accesses
    cost in proportion to their bits, a multiply-add in proportion to the product of both.

    Yang, Chen and Sze 2016, "Designing Energy-Efficient Convolutional Neural Networks using
    Energy-Aware Pruning", arXiv:1611.05128; the equations of accesses are those of Chen, Emer and
    Sze 2016 ("Eyeriss", ISCA). The papers search the factors a, b, c, d for each layer on a chip
    of given memories; here all that is fetched is fetched once, and the reuse in registers and
    in the array has fixed limits. Where zeros are has to be stored too, which is not counted.

    Args:
        model: A built functional or Sequential model.
        data: Inputs as the model takes them, a tuple (inputs, labels) of which labels are not
            used, or a batched `tf.data.Dataset` of either, to find the zeros among the inputs of
            each layer. Default None: none is zero.
        weight_bits: Bits of a weight. Default 16.
        activation_bits: Bits of an input or output. Default 16.
        costs: Of an access at each level, and the limits of reuse. Default `EnergyCosts()`.

    Returns:
        The energy of each convolution and dense layer, transposed and depthwise ones included.

    Raises:
        TfcompError: If bits are not positive, or the shape of a layer's input is not fixed.
        UnsupportedModelError: If the model is subclassed or not built.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="d")])
        >>> (layer,) = estimate_energy(model).layers
        >>> layer.macs, layer.mac, layer.dram  # 32 weights, 8 inputs and 4 outputs, once each
        (32, 32.0, 8800.0)
    """
    for name, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        if isinstance(bits, bool) or not isinstance(bits, int) or bits < 1:
            raise TfcompError(f"`{name}` must be a whole number of at least 1. Received: {bits!r}.")
    used = checked_costs(costs)
    graph = trace(model)
    names = [name for name, op in graph.ops.items() if isinstance(op, _ESTIMATED)]
    densities = dict.fromkeys(names, 1.0)
    if data is not None:
        arrays = all_inputs(data, graph, "estimate_energy")
        for name in names:
            inputs = layer_inputs(graph, name, arrays)
            size = sum(array.size for array in inputs)
            densities[name] = sum(int(np.count_nonzero(array)) for array in inputs) / size
    layers = tuple(
        _of_layer(graph, name, densities[name], (weight_bits, activation_bits), used)
        for name in names
    )
    skipped = {
        name: f"no rule for a {type(op).__name__}"
        for name, op in graph.ops.items()
        if name not in densities and any(len(w.shape) > 1 for w in getattr(op, "weights", ()))
    }
    return Energy(layers, skipped)


def layer_inputs(graph: Graph, name: str, arrays: Any) -> list[npt.NDArray[Any]]:
    """What a layer gets for its first argument in each of its calls, in inference."""
    seen: list[Any] = []

    def call(new_op: Any, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.name == name:
            seen.append(args[0] if args else kwargs["inputs"])
        return new_op(*args, **kwargs)

    copy = rebuild(graph, call=call)
    inner = keras.Model(copy.input, list(seen))
    found = inner.predict(arrays, batch_size=32, verbose=0)
    return [np.asarray(array) for array in (found if isinstance(found, list) else [found])]


def _of_layer(
    graph: Graph, name: str, density: float, bits: tuple[int, int], costs: EnergyCosts
) -> LayerEnergy:
    op = graph.ops[name]
    kernel = np.asarray(op.kernel)
    nonzero = int(np.count_nonzero(kernel))
    kept = nonzero / kernel.size
    weight, activation = (of / _WORD for of in bits)
    macs, levels = 0, np.zeros(4)
    for node in graph.calls(op):
        shapes = [tensor.shape for tensor in node.inputs]
        try:
            done = call_macs(op, shapes, node.outputs[0].shape)
            sizes = [_size(of) for of in (shapes[0], node.outputs[0].shape)]
        except UncountedError as error:
            hint = ": build the model with inputs of a fixed size" if str(error) == DYNAMIC else ""
            raise TfcompError(f"The energy of {name!r} cannot be told: {error}{hint}.") from error
        macs += done
        words = [kernel.size, *sizes]
        weights, inputs = (of * _accesses(done / of, costs) for of in words[:2])
        sums = words[2] * _sums(done / words[2], costs)
        skipping = np.array([kept * density, 1.0, 1.0, 1.0])
        levels += weight * weights * np.array([density, 1, 1, 1]) * kept
        levels += activation * inputs * np.array([kept, 1, 1, 1]) * density
        levels += activation * sums * skipping
    energies = levels * [costs.register_file, costs.array, costs.buffer, costs.dram]
    done_macs = macs * kept * density * weight * activation
    return LayerEnergy(
        name, macs, kernel.size, nonzero, density, costs.mac * done_macs, *map(float, energies)
    )


def _size(shape: tuple[int | None, ...]) -> int:
    """Elements of one sample."""
    dims = [dim for dim in shape[1:] if dim is not None]
    if len(dims) < len(shape) - 1:
        raise UncountedError(DYNAMIC)
    return math.prod(dims)


def _factors(uses: float, costs: EnergyCosts) -> tuple[float, float, float]:
    """b, c and d of a word that takes part in so many multiply-adds."""
    d = min(uses, costs.register_reuse)
    c = min(uses / d, costs.array_reuse)
    return uses / (c * d), c, d


def _accesses(uses: float, costs: EnergyCosts) -> npt.NDArray[np.float64]:
    """Accesses for one weight or input: register file, array, buffer, DRAM."""
    b, c, d = _factors(uses, costs)
    return np.array([b * c * d, b * c, b, 1.0])


def _sums(uses: float, costs: EnergyCosts) -> npt.NDArray[np.float64]:
    """The same for one output, summed up of so many products."""
    b, c, d = _factors(uses, costs)
    return np.array([2 * b * c * (d - 1), b * (c - 1), 2 * (b - 1), 1.0])
