"""Checks of the arguments that losses take."""

from __future__ import annotations

import math
from typing import Any, get_args

from tfcomp.errors import TfcompError


def weight(argument: str, value: Any, most: float = math.inf) -> float:
    """A number from 0 to `most` as a float; raises `TfcompError` otherwise.

    Args:
        argument: Its name in the constructor, for the message.
        value: What was given.
        most: The largest that is allowed.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and 0 <= value <= most):
        allowed = "a number ≥ 0" if most == math.inf else f"a number in [0, {most:g}]"
        raise TfcompError(f"`{argument}` must be {allowed}. Received: {value!r}.")
    return float(value)


def choice(argument: str, value: Any, choices: Any) -> Any:
    """The value if it is one of a `Literal`'s; raises `TfcompError` otherwise, which lists them.

    Args:
        argument: Its name in the constructor, for the message.
        value: What was given.
        choices: The `Literal`.
    """
    if value not in get_args(choices):
        listed = " or ".join(map(repr, get_args(choices)))
        raise TfcompError(f"`{argument}` must be {listed}. Received: {value!r}.")
    return value
