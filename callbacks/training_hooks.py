"""Constraints in a chain, and the moment when every callback has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def unlink(variable: Any, constraint: Any) -> None:
    """Takes one constraint out of the chain that begins at `variable.constraint`.

    Each of tfcomp's holds the next as its attribute `constraint`. One that is not in the chain
    is no error.
    """
    holder = variable
    while holder.constraint is not constraint:
        holder = holder.constraint
        if getattr(holder, "constraint", None) is None:
            return
    holder.constraint = constraint.constraint


def without(variable: Any, kind: type) -> Any:
    """What is left of a variable's chain when all constraints of a class are taken out."""
    holder = variable
    while (found := getattr(holder, "constraint", None)) is not None:
        if isinstance(found, kind):
            holder.constraint = getattr(found, "constraint", None)
        else:
            holder = found
    return variable.constraint


def after_all_callbacks(history: Any, function: Callable[[], None]) -> None:
    """Calls `function` when the last callback has seen the end of training.

    `fit` appends History to the callbacks it is given, so that it is told last, and leaves it at
    `model.history`. Several functions are called in the order in which they were given.

    Args:
        history: That History, or None, which does nothing.
        function: Called once.
    """
    if history is None:
        return
    earlier = vars(history).get("on_train_end")

    def on_train_end(logs: dict[str, Any] | None = None) -> None:
        if earlier is None:
            del history.on_train_end  # the class's own again
        else:
            history.on_train_end = earlier
        history.on_train_end(logs)
        function()

    history.on_train_end = on_train_end
