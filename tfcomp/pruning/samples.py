"""Data as criteria and estimates take it: arrays or data sets, with labels or without."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcomp.errors import TfcompError
from tfcomp.graph import Graph


def batches_of(data: Any, batch_size: int, user: str) -> Iterator[Any]:
    """Batches of whatever `data` holds: inputs, or tuples of inputs and labels.

    Args:
        data: A batched `tf.data.Dataset`, or a structure of arrays of one length.
        batch_size: Size of a batch where `data` is not a data set.
        user: Who asks for the data, for messages.

    Yields:
        What the data set holds, or a structure of slices.

    Raises:
        TfcompError: If `data` is neither, holds no samples, or numbers that are not finite.
    """
    empty = True
    for item in _items(data, batch_size, user):
        empty = False
        for leaf in keras.tree.flatten(item):
            _check_finite(leaf, user)
        yield item
    if empty:
        raise TfcompError(f"{user} expects data. Received: no batch.")


def labelled_batches(data: Any, batch_size: int, user: str) -> Iterator[tuple[Any, Any]]:
    """Inputs and labels, batch by batch.

    Args:
        data: As in `batches_of`, each batch a tuple of inputs and labels.
        batch_size: As in `batches_of`.
        user: Who asks for the data, for messages.

    Yields:
        Inputs and labels.

    Raises:
        TfcompError: If there are no samples, no labels, or weights of samples as well.
    """
    for item in batches_of(data, batch_size, user):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(item)
        if y is None or weight is not None:
            got = "inputs alone" if y is None else "sample weights too"
            raise TfcompError(f"{user} expects data of (inputs, labels). Received: {got}.")
        yield x, y


def _items(data: Any, batch_size: int, user: str) -> Iterator[Any]:
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise TfcompError(
                f"`data` must come to an end, for {user}. Received: a dataset that repeats for "
                "ever. Take some of it: data.take(10)."
            )
        yield from data
        return
    arrays = keras.tree.map_structure(_as_array, data)
    leaves = keras.tree.flatten(arrays)
    if leaves and not any(leaf.ndim for leaf in leaves):
        raise TfcompError(
            f"`data` must be arrays or a batched tf.data.Dataset, for {user}. Received: numbers in "
            f"a {type(data).__name__}. Write numpy.asarray(data)."
        )
    lengths = {len(leaf) if leaf.ndim else 0 for leaf in leaves}
    if len(lengths) != 1 or lengths == {0}:
        raise TfcompError(
            f"`data` must be arrays of one length, at least 1, or a batched tf.data.Dataset, for "
            f"{user}. Received: lengths {sorted(lengths)}."
        )
    for start in range(0, lengths.pop(), batch_size):
        part = slice(start, start + batch_size)
        yield keras.tree.map_structure(lambda leaf, part=part: leaf[part], arrays)


def inputs_of(item: Any, graph: Graph) -> Any:
    """The inputs of a batch, with labels or without; a list of as many as a model has is these."""
    if isinstance(item, list) and len(item) == len(graph.input_tensors) > 1:
        return item
    return keras.utils.unpack_x_y_sample_weight(item)[0]


def all_inputs(data: Any, graph: Graph, user: str) -> Any:
    """The inputs of all samples, as arrays in the structure that the model takes.

    Args:
        data: As in `batches_of`; labels are left out.
        graph: The calls of the model.
        user: Who asks for the data, for messages.

    Returns:
        One array for each input.

    Raises:
        TfcompError: If there are no samples, or the model does not take inputs of their shape.
    """
    found = [inputs_of(item, graph) for item in batches_of(data, sys.maxsize, user)]
    check_shapes(graph, found[0], user)
    return keras.tree.map_structure(
        lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *found
    )


def check_shapes(graph: Graph, x: Any, user: str) -> None:
    """Raises if a model does not take a batch of inputs, as far as their shapes tell."""
    expected = [len(tensor.shape) for tensor in graph.input_tensors]
    received = [len(leaf.shape) for leaf in keras.tree.flatten(x)]
    if sorted(expected) != sorted(received):
        raise TfcompError(
            f"{user} expects batches of inputs with {_listed(expected)} axes, "
            f"the batch included. Received: {_listed(received)}. A dataset must be batched; "
            "labels go with inputs as a tuple."
        )
    if len(expected) > 1:
        # Which array goes to which input is for the model to say.
        return
    sizes = tuple(graph.input_tensors[0].shape)[1:]
    got = tuple(keras.tree.flatten(x)[0].shape)[1:]
    if any(None not in pair and pair[0] != pair[1] for pair in zip(sizes, got, strict=True)):
        raise TfcompError(
            f"{user} expects inputs of shape {sizes}, without the batch. Received: {got}."
        )


def _check_finite(leaf: Any, user: str) -> None:
    if tf.as_dtype(leaf.dtype).is_floating:
        wrong = np.count_nonzero(~np.isfinite(np.asarray(leaf, np.float64)))
        if wrong:
            raise TfcompError(
                f"`data` must be finite numbers, for {user}. Received: {wrong} that are not, in "
                f"a batch of shape {tuple(leaf.shape)}."
            )


def _listed(ranks: list[int]) -> str:
    return " and ".join(map(str, ranks)) or "no"


def _as_array(value: Any) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TfcompError(f"`data` must hold arrays. Received: {type(value).__name__}.") from error
    if array.dtype == object:
        raise TfcompError(f"`data` must hold arrays. Received: {type(value).__name__}.")
    if array.dtype == np.float64:  # as `fit` does
        return array.astype(keras.config.floatx())
    return array
