"""The cost that criteria look at: a loss of the caller's, of labels and a model's predictions."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import keras

from tfcomp.errors import TfcompError

Loss: TypeAlias = str | keras.losses.Loss | Callable[[Any, Any], Any]


def loss_function(loss: Any) -> Callable[[Any, Any], Any]:
    """A Keras loss, a function of labels and predictions, or the loss of a name.

    Raises:
        TfcompError: If it is none of them.
    """
    if isinstance(loss, (list, dict)):
        raise TfcompError(
            f"`loss` must be one cost. Received: {len(loss)} of them, one for each output. Pass a "
            "function of all labels and all predictions."
        )
    try:
        found = keras.losses.get(loss)
    except ValueError:
        found = None
    if not callable(found):
        raise TfcompError(
            "`loss` must be a keras loss, its name, or a function of labels and predictions. "
            f"Received: {loss if isinstance(loss, str) else type(loss).__name__!r}."
        )
    function: Callable[[Any, Any], Any] = found
    return function


def check_outputs(loss: Any, model: keras.Model, user: str) -> None:
    """Raises if a model has several outputs and the loss is for one: a function can take all."""
    outputs = keras.tree.flatten(getattr(model, "outputs", None) or [None])
    for_one = isinstance(loss, (str, keras.losses.Loss))
    if for_one and len(outputs) > 1:
        raise TfcompError(
            f"{user} expects one cost. Received: a loss for one output, and {len(outputs)} outputs "
            f"of {model.name!r}. Pass a function of all labels and all predictions as `loss`."
        )


@contextlib.contextmanager
def told(user: str) -> Iterator[None]:
    """Says in one line what the data did to the model or the loss, where they refuse them."""
    try:
        yield
    except TfcompError:
        raise
    except Exception as error:  # what a model and a loss may raise is not known
        raise TfcompError(
            f"{user} expects inputs that the model takes, and labels that the loss does. Received "
            f"data that they refuse: {_reason(str(error))}"
        ) from error


def _reason(text: str) -> str:
    """The line of a message that says what is wrong: first come places in code, if any."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places = [index for index, line in enumerate(lines) if line.startswith("File ")]
    if places:
        # Autograph shows the line of code after each place.
        lines = lines[places[-1] + (2 if lines[0].startswith("in user code") else 1) :]
    reasons = (re.sub(r"^\{\{.*?\}\} *", "", line) for line in lines if not line.startswith("[["))
    return next(reasons, "no reason given")
