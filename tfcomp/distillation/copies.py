"""New optimizers and metrics like given ones, for models that must not share their state."""

from __future__ import annotations

from typing import Any

import keras

from tfcomp.errors import TfcompError


def copy_stateful(structure: Any) -> Any:
    """What is given to `compile`, with optimizers and metrics made anew.

    Names, functions and losses hold no state and are kept as they are.

    Args:
        structure: An optimizer, a metric or anything else, alone or in lists, tuples and dicts.

    Returns:
        The same structure; an optimizer has the learning rate now in force and no memory.

    Raises:
        TfcompError: If an optimizer or metric cannot be made from its configuration.

    Example:
        >>> import keras
        >>> given = {"optimizer": keras.optimizers.SGD(0.5), "metrics": ["accuracy"]}
        >>> made = copy_stateful(given)
        >>> made["optimizer"] is given["optimizer"], made["metrics"], made["optimizer"].momentum
        (False, ['accuracy'], 0.0)
    """
    if isinstance(structure, dict):
        return {key: copy_stateful(value) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return type(structure)(copy_stateful(value) for value in structure)
    if not isinstance(structure, (keras.optimizers.Optimizer, keras.metrics.Metric)):
        return structure
    try:
        return type(structure).from_config(structure.get_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise TfcompError(
            f"{structure.name!r} cannot be copied for another model: expected get_config() and "
            f"from_config() of {type(structure).__name__} to agree, received "
            f"{str(error).strip().splitlines()[0]!r}. Define them, or give it by its name."
        ) from error
