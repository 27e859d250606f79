"""What a caller's function says of a model, as a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcomp.errors import TfcompError


def finite_score(name: str, function: Callable[[keras.Model], Any], model: keras.Model) -> float:
    """`function(model)`, which has to be a finite number.

    Args:
        name: Of the argument that the function was given as, for the message.
        function: The caller's.
        model: Given to the function.

    Returns:
        The number.

    Raises:
        TfcompError: If it is none.
    """
    received = function(model)
    try:
        score = float(received)
    except (TypeError, ValueError):
        score = float("nan")
    if not np.isfinite(score):
        raise TfcompError(
            f"`{name}` must return a finite number for a model. Received: {received!r}."
        )
    return score
