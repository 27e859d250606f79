"""Whether a network's outputs depend on its inputs at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcomp.errors import TfcompError
from tfcomp.pruning.masks import Mask
from tfcomp.pruning.sparsity import Kernel, find_kernels, student_of
from tfcomp.pruning.units import Filters


def is_cut_by(model: keras.Model, kernels: Sequence[Kernel], masks: Sequence[Mask]) -> bool:
    """Whether outputs depend on no input where masks leave kernels their weights, whatever these
    are, and would if nothing were removed. Kernels of other models do not count."""
    own = {id(variable) for variable in model.weights}
    masked = [pair for pair in zip(kernels, masks, strict=True) if id(pair[0].variable) in own]
    # While each filter has a weight each output depends on one of the inputs, and so on to the
    # front: nothing needs to be run.
    if not any(Filters().removed(kernel, mask).any() for kernel, mask in masked):
        return False
    before = [kernel.value().copy() for kernel, _ in masked]
    try:
        for kernel, mask in masked:
            kernel.variable.assign(mask.astype(np.float32))
        if dependence(model) > 0:
            return False
        for kernel, mask in masked:
            kernel.variable.assign(np.ones(mask.shape, np.float32))
        return dependence(model) > 0
    finally:
        for (kernel, _), value in zip(masked, before, strict=True):
            kernel.variable.assign(value)


def dependence(model: keras.Model) -> float:
    """Σ|∂R/∂x| with positive weights, of about 1 in sum for each output; 0 if it is not known.

    Every way through such a network adds to R, a random sum of outputs, so that none hides another.
    It is known where inputs are of a fixed shape and of floating-point numbers.
    """
    inputs = getattr(model, "inputs", None) or ()
    if not inputs or any(None in tuple(x.shape)[1:] or "float" not in x.dtype for x in inputs):
        return 0.0
    ones = ones_for(model)
    kernels = {id(kernel.variable): kernel for kernel in find_kernels(model, depthwise=True)[0]}
    rng = np.random.default_rng(0)
    with restored(model, trainable=True):
        for variable in model.weights:
            if keras.backend.is_float_dtype(variable.dtype):
                variable.assign(_positive(variable, kernels.get(id(variable))))
        with tf.GradientTape() as tape:
            tape.watch(ones)
            outputs = tf.nest.flatten(model(ones, training=False))
            total = tf.add_n(
                [
                    tf.reduce_sum(tf.cast(y, tf.float32) * rng.uniform(0.5, 1.5, y.shape[1:]))
                    for y in outputs
                ]
            )
        slopes = tape.gradient(total, ones, unconnected_gradients="zero")
    return float(sum(np.abs(np.asarray(slope)).sum() for slope in tf.nest.flatten(slopes)))


def _positive(variable: Any, kernel: Kernel | None) -> Any:
    value = np.abs(np.asarray(keras.ops.convert_to_numpy(variable), np.float64))
    if variable.name == "moving_mean":  # of trained networks: a ReLU behind it would be closed
        return np.zeros_like(value)
    if kernel is None:
        return value
    stays = value != 0
    return stays * (Filters().count(kernel) / max(stays.sum(), 1))


@contextlib.contextmanager
def restored(model: keras.Model, trainable: bool = False) -> Iterator[None]:
    """Puts back what running a model changes: statistics, states of random generators."""
    variables = list(model.variables if trainable else model.non_trainable_variables)
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def ones_for(model: keras.Model) -> Any:
    """Ones in the shape of the inputs, for `SynFlow`.

    Raises:
        TfcompError: If they have no fixed shape, or the model no inputs that are known.
    """

    def ones(tensor: Any) -> Any:
        shape = tuple(tensor.shape)[1:]
        if None in shape:
            raise TfcompError(
                f"SynFlow expects inputs of a fixed shape. Received: {(None, *shape)} in "
                f"{model.name!r}. Build the model with an Input of the size it will have."
            )
        return tf.ones((tensor.shape[0] or 1, *shape), tensor.dtype)

    network = student_of(model)
    if not getattr(network, "inputs", None):
        raise TfcompError(
            f"SynFlow expects a functional or Sequential model. Received: {model.name!r}, a "
            f"{type(model).__name__}."
        )
    inputs = [ones(tensor) for tensor in network.inputs]
    return inputs if len(inputs) > 1 else inputs[0]
