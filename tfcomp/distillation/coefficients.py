"""What may change in the course of a training without tracing the step anew."""

from __future__ import annotations

from collections.abc import Iterable

import keras

from tfcomp.errors import TfcompError

STUDENT = "student"


class Coefficient:
    """A number that the compiled step reads from a variable.

    No attribute of a model that holds one is tracked: it is configuration, not a weight.

    Args:
        number: Its value.
        name: Name of the variable.

    Example:
        >>> weight = Coefficient(0.5, "weight")
        >>> weight.assign(0.25)
        >>> weight.number, float(weight.variable.value)
        (0.25, 0.25)
    """

    def __init__(self, number: float, name: str) -> None:
        self.number = float(number)
        self.variable = keras.Variable(self.number, trainable=False, dtype="float32", name=name)

    def assign(self, number: float) -> None:
        """Takes effect with the next step."""
        self.number = float(number)
        self.variable.assign(self.number)


class LossSelection:
    """Which losses train: those of the running stages, or all that belong to no stage.

    Changes take effect when the step is traced anew. `traced` is what it was traced with.

    Args:
        names: Names of the distillation losses; `"student"` is the student's own loss.

    Example:
        >>> selection = LossSelection(["hint", "distillation"])
        >>> selection.reserve(["hint"])
        >>> [selection.is_active(name) for name in ("student", "distillation", "hint")]
        [True, True, False]
        >>> selection.begin(["hint"])
        >>> [selection.is_active(name) for name in ("student", "distillation", "hint")]
        [False, False, True]
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = [*names, STUDENT]
        self._reserved: set[str] = set()
        self._running: set[str] = set()
        self.traced: frozenset[str] | None = None

    def reserve(self, names: Iterable[str]) -> None:
        """Keeps losses for a stage: without one that runs, they do not train.

        Raises:
            TfcompError: If there is no such loss.
        """
        names = set(names)
        for name in names - set(self.names):
            raise TfcompError(
                f"There is no loss {name!r} to have a stage: expected one of "
                f"{', '.join(map(repr, self.names))}, received {name!r}."
            )
        self._reserved |= names

    def begin(self, names: Iterable[str]) -> None:
        """Trains on these losses alone, with those of other stages that run."""
        self._running |= set(names)

    def end(self, names: Iterable[str]) -> None:
        """Ends the stage of these losses."""
        self._running -= set(names)

    def clear(self) -> None:
        """All losses train, as before any stage."""
        self._reserved.clear()
        self._running.clear()

    def is_active(self, name: str) -> bool:
        """Whether a loss trains now."""
        return name in self._running if self._running else name not in self._reserved

    def active(self) -> frozenset[str]:
        """The names of all losses that train now."""
        return frozenset(name for name in self.names if self.is_active(name))
