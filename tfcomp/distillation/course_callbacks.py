"""The callbacks that `fit` of a course is given."""

from __future__ import annotations

from typing import Any

import keras

from tfcomp.errors import TfcompError

# Callbacks that save or write, so that a run may go on without them, or with others.
_ONLOOKERS = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.LambdaCallback,
    keras.callbacks.TensorBoard,
    keras.callbacks.TerminateOnNaN,
)


def callbacks_of(options: dict[str, Any]) -> list[keras.callbacks.Callback]:
    """The callbacks among the arguments of `fit`, which takes a single one as well."""
    given = options.get("callbacks") or []
    given = getattr(given, "callbacks", given)
    return list(given) if isinstance(given, (list, tuple)) else [given]


def check_checkpoints(options: dict[str, Any]) -> None:
    """Raises if one lesson's model would be written over another's."""
    if any(isinstance(one, keras.callbacks.ModelCheckpoint) for one in callbacks_of(options)):
        raise TfcompError(
            "ModelCheckpoint does not tell lessons apart: expected another way to keep models, "
            "received it. Pass directory=... to fit, which keeps the model of each lesson, or save "
            "the course in a callback of your own."
        )


def check_backups(options: dict[str, Any]) -> None:
    """Raises if one lesson might be restored from the backup of another."""
    if any(isinstance(one, keras.callbacks.BackupAndRestore) for one in callbacks_of(options)):
        raise TfcompError(
            "BackupAndRestore does not tell lessons apart: expected a `directory` that keeps the "
            "finished ones, received None. Pass directory=... to fit, or leave the callback out."
        )


def callback_names(options: dict[str, Any]) -> str:
    """The classes of the callbacks that may change what is learnt."""
    counted = [one for one in callbacks_of(options) if type(one) not in _ONLOOKERS]
    return ", ".join(type(callback).__qualname__ for callback in counted)
