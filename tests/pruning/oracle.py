"""What a smaller model has to compute, found without the code under test.

Which channels were removed is read off the values that the smaller model still holds; which inputs
of which consumers they reach is found by running the model: the removed channels are disturbed,
every consumer's output is replaced by noise, and an input that differs between the two runs is one
that a removed channel reaches. The masked model has zero weights there.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import layers

from tfcomp.graph import rebuild, removal, trace
from tfcomp.graph.trace import Node, Tensor, substitute
from tfcomp.pruning import Random, shrink

Array = npt.NDArray[Any]
Values = dict[Tensor, Any]

# Name of the kernel that reads, its input axis; name of the kernel that creates, its output axis.
KERNELS = {
    "Conv1D": ("kernel", 1, "kernel", 2),
    "Conv2D": ("kernel", 2, "kernel", 3),
    "Conv3D": ("kernel", 3, "kernel", 4),
    "Conv2DTranspose": ("kernel", 3, "kernel", 2),
    "Dense": ("kernel", 0, "kernel", 1),
    "SeparableConv2D": ("depthwise_kernel", 2, "pointwise_kernel", 3),
}
TOLERANCE = 1e-5
SCALE = 0.2


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Models made meanwhile compute in float64: deep ones magnify what float32 rounds off."""
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(policy)


# --- Random weights ---------------------------------------------------------------------------


def randomize(model: keras.Model, seed: int = 0) -> keras.Model:
    """Every weight and every BatchNormalization statistic, at a scale that keeps signals alive."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if "variance" in variable.path or "gamma" in variable.path:
            value = rng.uniform(0.5, 1.5, shape)
        elif "kernel" in variable.path:
            fan_in = np.prod(shape[:-2]) if "depthwise" in variable.path else np.prod(shape[:-1])
            value = rng.normal(size=shape) / np.sqrt(max(fan_in, 1)) * 1.5
        elif np.issubdtype(np.dtype(variable.dtype), np.floating):
            value = rng.normal(size=shape) * 0.5
        else:
            continue
        variable.assign(value.astype(variable.dtype))
    return model


def settle(
    model: keras.Model,
    arrays: Sequence[Array],
    seed: int = 0,
    reached: Mapping[str, Array] | None = None,
) -> keras.Model:
    """Random weights and statistics that suit what comes in, so that deep models stay alive.

    Layer by layer, on data: kernels are scaled until what they give has a random size of about 1,
    and statistics are those of the data, moved and stretched at random. BatchNormalization scales
    down to `SCALE`: nonlinearities that bend more magnify from layer to layer what is rounded off.

    Args:
        model: Its weights are set.
        arrays: The data, a batch of each input.
        seed: What all is drawn from.
        reached: Inputs that are going to be masked, by layer: the data are those of the masked
            model, whose signals would otherwise fade from layer to layer; and the weights there
            are small, lest those of the whole model grow without bounds.
    """
    randomize(model, seed)
    rng = np.random.default_rng((seed, 1))
    graph = trace(model)
    values: Values = dict(zip(graph.input_tensors, map(tf.constant, arrays), strict=True))
    for node in graph.nodes:
        given: Mapping[Tensor, Any] = values
        mask = (reached or {}).get(node.name)
        if mask is not None and getattr(node.op, "groups", 1) == 1:
            x = tf.where(mask, tf.zeros_like(values[node.inputs[0]]), values[node.inputs[0]])
            given = collections.ChainMap({node.inputs[0]: x}, values)
            _weaken(node.op, mask)
        if isinstance(node.op, layers.Layer) and node.op.weights:
            _settle_layer(node.op, given[node.inputs[0]], rng)
        values.update(zip(node.outputs, _call(node, given), strict=True))
    return model


def take_weights(model: keras.Model, other: keras.Model) -> keras.Model:
    """Gives `model` the weights of `other`, whatever precision each has."""
    model.set_weights(other.get_weights())
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            # What it computes with is derived from its weights, and only when told to.
            layer.finalize_state()
    return model


def settle_for(model: keras.Model, ratio: float, seed: int = 0) -> keras.Model:
    """`settle` for the cut of `shrink(model, ratio, Random(seed))`, which looks at no weights."""
    small, _ = shrink(randomize(model, seed), ratio, Random(seed))
    reached = reached_inputs(model, removed_of(model, small))
    return settle(model, pictures(model, batch=16, seed=seed + 2), seed, reached)


def _weaken(layer: Any, mask: Array) -> None:
    kernel, axis, _, _ = KERNELS[type(layer).__name__]
    variable = getattr(layer, kernel)
    value = np.array(variable)
    np.moveaxis(value, axis, 0)[mask] *= 0.3
    variable.assign(value)


def _settle_layer(layer: Any, x: Any, rng: np.random.Generator) -> None:
    if isinstance(layer, layers.BatchNormalization):
        _settle_statistics(layer.moving_mean, layer.moving_variance, x, layer.axis, rng)
        if layer.gamma is not None:
            layer.gamma.assign(SCALE * np.asarray(layer.gamma))
    elif isinstance(layer, layers.Normalization):
        (axis,) = layer.axis
        _settle_statistics(layer.adapt_mean, layer.adapt_variance, x, axis, rng)
        layer.finalize_state()
    elif type(layer).__name__ in (*KERNELS, "DepthwiseConv2D"):
        _settle_kernel(layer, x, rng)


def _settle_statistics(
    mean: Any, variance: Any, x: Any, axis: int, rng: np.random.Generator
) -> None:
    rows = np.moveaxis(np.asarray(x, np.float64), axis, -1).reshape(-1, x.shape[axis])
    spread = rows.var(axis=0)
    # A channel that is still on these data must not come out of its layer enormous on others.
    spread = np.maximum(spread, 0.1 * spread.mean() + 1e-6)
    mean.assign(rows.mean(axis=0) + 0.3 * np.sqrt(spread) * rng.normal(size=spread.shape))
    variance.assign(spread * rng.uniform(0.5, 1.5, spread.shape))


def _settle_kernel(layer: Any, x: Any, rng: np.random.Generator) -> None:
    activation, layer.activation = layer.activation, keras.activations.linear
    try:
        given = np.asarray(layer(x), np.float64)
    finally:
        layer.activation = activation
    factor = rng.uniform(0.7, 1.3) / max(np.sqrt(np.mean(given**2)), 1e-6)
    kernel = getattr(layer, KERNELS.get(type(layer).__name__, ("kernel",) * 3)[2])
    kernel.assign(np.asarray(kernel) * factor)


# --- Running a model --------------------------------------------------------------------------


def random_inputs(model: keras.Model, batch: int = 4, seed: int = 1) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(batch, *(size or 12 for size in tensor.shape[1:]))).astype(tensor.dtype)
        for tensor in model.inputs
    ]


def pictures(model: keras.Model, batch: int = 4, seed: int = 1) -> list[Array]:
    """Values from 0 to 255, unlike each other at every scale, as photographs are."""
    rng = np.random.default_rng(seed)
    made = []
    for tensor in model.inputs:
        height, width, channels = tensor.shape[1:]
        image = np.zeros((batch, height, width, channels))
        for places in (1, 3, 8, max(height, width)):
            coarse = rng.normal(size=(batch, places, places, channels))
            rows, columns = (np.arange(size) * places // size for size in (height, width))
            image += coarse[:, rows][:, :, columns]
        made.append(np.clip(127.5 + 45.0 * image, 0.0, 255.0).astype(tensor.dtype))
    return made


def outputs(model: keras.Model, arrays: Sequence[Array]) -> list[Array]:
    sequential = isinstance(model, keras.Sequential)
    given = arrays[0] if sequential else keras.tree.pack_sequence_as(model.input, list(arrays))
    result = model(given, training=False)
    return [np.asarray(value) for value in keras.tree.flatten(result)]


def _call(node: Node, values: Mapping[Tensor, Any]) -> list[Any]:
    kwargs = {key: value for key, value in node.kwargs.items() if value is not None}
    result = node.op(*substitute(node.args, values), **substitute(kwargs, values))
    flat: list[Any] = keras.tree.flatten(result)
    return flat


# --- The masked model -------------------------------------------------------------------------


def kept_channels(old: Any, new: Any, kind: str) -> list[int]:
    """Which output channels of `old` are those of `new`, by the values that they hold."""
    _, _, kernel, axis = KERNELS[kind]
    before, after = (
        np.moveaxis(np.asarray(getattr(layer, kernel)), axis, 0) for layer in (old, new)
    )
    rows, wanted = before.reshape(len(before), -1), after.reshape(len(after), -1)
    firsts = np.unique(wanted[:, 0])
    near = np.minimum(np.searchsorted(firsts, rows), len(firsts) - 1)
    found, _ = np.nonzero(equal := firsts[near] == rows)
    candidates: dict[int, set[int]] = {}
    for first, row in zip(near[equal].tolist(), found.tolist(), strict=True):
        candidates.setdefault(first, set()).add(row)
    kept = []
    for values, first in zip(wanted, np.searchsorted(firsts, wanted[:, 0]).tolist(), strict=True):
        # Those that hold the first value; of them, those that hold all.
        holders = [r for r in candidates.get(first, ()) if np.isin(values, rows[r]).all()]
        assert len(holders) == 1, "random values have to be distinct"
        kept.append(holders[0])
    return kept


def removed_of(model: keras.Model, small: keras.Model) -> dict[str, list[int]]:
    """Removed output channels by layer, where there are any."""
    removed = {}
    for name, op in trace(model).ops.items():
        kind = type(op).__name__
        if isinstance(op, layers.Layer) and kind in KERNELS:
            kept = kept_channels(op, small.get_layer(name), kind)
            gone = sorted(set(range(getattr(op, "filters", getattr(op, "units", 0)))) - set(kept))
            if gone:
                removed[name] = gone
    return removed


def reached_inputs(
    model: keras.Model, removed: dict[str, list[int]], batch: int = 48
) -> dict[str, Array]:
    """For each consumer the input channels that a removed channel reaches, as a mask.

    At the end of a network an image is one place. Behind a ReLU that is nearly always 0 every
    other disturbance goes unseen there: of 16 images one channel in some ten thousand did.
    """
    graph = trace(model)
    runs = []
    for disturbed in (False, True):
        values: Values = dict(
            zip(graph.input_tensors, map(tf.constant, random_inputs(model, batch)), strict=True)
        )
        seen: dict[int, Array] = {}
        for index, node in enumerate(graph.nodes):
            if not (isinstance(node.op, layers.Layer) and node.kind in KERNELS):
                values.update(zip(node.outputs, _call(node, values), strict=True))
                continue
            first = getattr(node.op, "data_format", None) == "channels_first"
            seen[index] = np.moveaxis(np.asarray(values[node.inputs[0]]), 1 if first else -1, -1)
            gone = removed.get(node.name, []) if disturbed else []
            noise = _noise(index, _output_shape(node, values), 1 if first else -1, gone)
            values[node.outputs[0]] = tf.constant(noise, node.outputs[0].dtype)
        runs.append((seen, [np.asarray(values[tensor]) for tensor in graph.output_tensors]))
    (calm, calm_out), (wild, wild_out) = runs
    for index, (a, b) in enumerate(zip(calm_out, wild_out, strict=True)):
        np.testing.assert_array_equal(a, b, f"a removed channel reaches output {index} directly")
    reached: dict[str, Array] = {}
    for index, given in calm.items():
        mask = (given != wild[index]).reshape(-1, given.shape[-1]).any(axis=0)
        known = reached.setdefault(graph.nodes[index].name, mask)
        assert (known == mask).all(), "calls of a shared layer differ"
    return reached


def _noise(seed: int, shape: tuple[int, ...], axis: int, gone: list[int]) -> Array:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=shape)
    if gone:
        place = np.moveaxis(noise, axis, 0)
        place[gone] = 30.0 * rng.normal(size=place[gone].shape)
    return noise


def _output_shape(node: Node, values: Values) -> tuple[int, ...]:
    shape = node.outputs[0].shape[1:]
    if None in shape:
        return tuple(_call(node, values)[0].shape)
    return (len(values[node.inputs[0]]), *(size for size in shape if size is not None))


def masked(model: keras.Model, removed: dict[str, list[int]]) -> keras.Model:
    """A copy of full size: the weights with which consumers read removed channels are zero."""
    copy = rebuild(model)
    ops = trace(model).ops
    for name, mask in reached_inputs(model, removed).items():
        kernel, axis, _, _ = KERNELS[type(ops[name]).__name__]
        if getattr(ops[name], "groups", 1) != 1:
            places = mask.reshape(ops[name].groups, -1)
            if places.shape[1] == 1:
                continue  # Depthwise: what is removed are its own channels too.
            assert (places == places[:1]).all(), f"groups of {name!r} lose different places"
            mask = places[0]
        variable = getattr(copy.get_layer(name), kernel)
        value = np.array(variable)
        np.moveaxis(value, axis, 0)[mask] = 0.0
        variable.assign(value)
    return copy


# --- Comparing --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A smaller model beside the masked one.

    Attributes:
        difference: The largest of any output, over the largest value of that output.
        alive: Whether outputs depend on the inputs and on what was removed.
    """

    difference: float
    alive: bool

    @property
    def equal(self) -> bool:
        return self.difference <= TOLERANCE


def compare(
    model: keras.Model, small: keras.Model, arrays: Sequence[Array] | None = None
) -> Comparison:
    """Runs both on `arrays`, random by default.

    Raises AssertionError where the smaller model has channels that the model has not.
    """
    removed = removed_of(model, small)
    assert removed, "nothing was removed: the comparison would say nothing"
    arrays = random_inputs(model) if arrays is None else arrays
    expected, received = outputs(masked(model, removed), arrays), outputs(small, arrays)
    full = outputs(model, arrays)
    for y in (*expected, *received):
        assert np.isfinite(y).all()
    differences = [
        float(np.abs(z - y).max() / np.abs(y).max())
        for y, z in zip(expected, received, strict=True)
    ]
    alive = all(np.ptp(y, axis=0).max() > 1e-3 * np.abs(y).max() for y in expected)
    alive &= any(np.abs(w - y).max() > 1e-3 for w, y in zip(full, expected, strict=True))
    return Comparison(max(differences), bool(alive))


def assert_equal_to_masked(
    model: keras.Model,
    small: keras.Model,
    alive: bool = True,
    arrays: Sequence[Array] | None = None,
) -> bool:
    """Raises AssertionError unless equal; returns whether the outputs depend on the inputs."""
    found = compare(model, small, arrays)
    assert found.equal, f"the outputs differ by {found.difference:.2e} of the largest"
    assert found.alive or not alive, "signals have died: the comparison would say little"
    return found.alive


# --- Faults -----------------------------------------------------------------------------------


@contextlib.contextmanager
def wrong_index(layer: Any, fault: str = "shifted") -> Iterator[list[tuple[int, ...]]]:
    """While it lasts, one weight of `layer` is cut at the wrong places.

    "shifted" keeps the neighbours of what is to be kept, "permuted" the right ones in another
    order. The list that is given holds the shape of the weight once that has been cut.
    """
    target = [np.array(weight) for weight in layer.get_weights()]
    right = removal.sliced
    planted: list[tuple[int, ...]] = []

    def wrong(value: Array, keep: dict[int, npt.NDArray[np.bool_]]) -> Array:
        result = right(value, keep)
        mine = any(value.shape == weight.shape and (value == weight).all() for weight in target)
        axis = min((axis for axis, marked in keep.items() if not marked.all()), default=None)
        if not mine or planted or axis is None:
            return result
        planted.append(value.shape)
        if fault == "permuted":
            return np.roll(result, 1, axis)
        # Other channels than those that were kept; the first would otherwise be the same.
        others = {a: k for a, k in keep.items() if a != axis}
        return np.compress(np.roll(keep[axis], 1), right(value, others), axis)

    with mock.patch.object(removal, "sliced", wrong):
        yield planted


def victims(model: keras.Model, small: keras.Model) -> list[str]:
    """Of the layers that were cut the one in the middle with a kernel, and that without."""
    cut: dict[bool, list[str]] = {True: [], False: []}
    for name, op in trace(model).ops.items():
        shapes = [tuple(weight.shape) for weight in getattr(op, "weights", ())]
        if shapes and shapes != [tuple(w.shape) for w in small.get_layer(name).weights]:
            cut[type(op).__name__ in KERNELS].append(name)
    return [names[len(names) // 2] for names in cut.values() if names]


def is_caught(model: keras.Model, ratio: float, seed: int, layer: str, fault: str) -> bool:
    """Whether `compare` tells a cut of that layer at the wrong places."""
    with wrong_index(model.get_layer(layer), fault) as planted:
        small, _ = shrink(model, ratio, Random(seed))
    assert planted, f"{layer!r} is not cut"
    try:
        return not compare(model, small, pictures(model)).equal
    except AssertionError:
        return True
