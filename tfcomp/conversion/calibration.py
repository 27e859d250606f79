"""Examples from which the converter measures the ranges of activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError

MAX_EXAMPLES = 1024


def calibration_arrays(
    given: Any, names: list[str], model: keras.Model
) -> dict[str, npt.NDArray[Any]]:
    """Inputs of a model as arrays by name, at most 1,024 examples.

    Args:
        given: An array, a list of arrays or a dict, examples in front; or an iterable of
            batches, each of which is what `model.fit` takes of a dataset.
        names: Names of the model's inputs, flattened.
        model: The model.

    Returns:
        For each name an array [examples, …] in the input's dtype.

    Raises:
        TfcompError: If there are no examples or they do not fit the model's inputs.
    """
    taken: list[list[npt.NDArray[Any]]] = []
    count = 0
    for batch in _batches(given, len(names)):
        taken.append(_flat(batch, names))
        count += len(taken[-1][0])
        if count >= MAX_EXAMPLES:
            break
    if not count:
        raise TfcompError("Expected calibration examples, received none. Pass at least one.")
    arrays = {}
    for index, (name, tensor) in enumerate(zip(names, model.inputs, strict=True)):
        values = np.concatenate([batch[index] for batch in taken])[:MAX_EXAMPLES]
        _check_shape(values.shape, tensor.shape, name)
        arrays[name] = values.astype(tensor.dtype)
    return arrays


def _batches(given: Any, inputs: int) -> Any:
    if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        raise TfcompError(
            "Expected calibration to be an array of examples, a dict or list of them, or a "
            f"dataset. Received: {given!r}."
        )
    if isinstance(given, Mapping) or _is_array(given):
        return [given]
    if isinstance(given, (list, tuple)) and len(given) == inputs and all(map(_is_array, given)):
        return [list(given)]
    return (keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in given)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _flat(batch: Any, names: list[str]) -> list[npt.NDArray[Any]]:
    if isinstance(batch, Mapping):
        missing = [name for name in names if name not in batch]
        if missing:
            raise TfcompError(
                f"Expected calibration data for inputs {names}, received {sorted(batch)}. "
                f"Add {missing}."
            )
        return [np.asarray(batch[name]) for name in names]
    values = [np.asarray(value) for value in (batch if len(names) > 1 else [batch])]
    if len(values) != len(names) or len({len(value) for value in values}) != 1:
        raise TfcompError(
            f"Expected calibration data of equal length for inputs {names}, received shapes "
            f"{[value.shape for value in values]}."
        )
    return values


def _check_shape(received: tuple[int, ...], expected: tuple[int | None, ...], name: str) -> None:
    fits = len(received) == len(expected) and all(
        want is None or want == got for want, got in zip(expected[1:], received[1:], strict=True)
    )
    if not fits:
        raise TfcompError(
            f"Expected calibration data of shape (examples, *{tuple(expected[1:])}) for input "
            f"{name!r}, received {received}."
        )
