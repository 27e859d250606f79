"""Whether two trained networks are connected: the error along the line between their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.graph import rebuild, trace
from tfcomp.pruning.scores import finite_score


@dataclasses.dataclass(frozen=True)
class ErrorBarrier:
    """Errors along the line from one network to another.

    Attributes:
        positions: α from 0, the first network, to 1, the second.
        errors: What `error` gave at each.
    """

    positions: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def barrier(self) -> float:
        """max_α E(α) − (E(0) + E(1))/2: near 0 where the networks are connected."""
        return max(self.errors) - (self.errors[0] + self.errors[-1]) / 2

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {**dataclasses.asdict(self), "barrier": self.barrier}

    def plot(self, axes: Any = None) -> Any:
        """Draws the errors with matplotlib, the height of the barrier marked.

        Args:
            axes: Axes to draw on; new ones by default.

        Returns:
            The axes.
        """
        from matplotlib import pyplot

        if axes is None:
            axes = pyplot.figure(layout="constrained").subplots()
        axes.plot(self.positions, self.errors, marker="o", markersize=3)
        ends = (self.errors[0] + self.errors[-1]) / 2
        axes.axhline(ends, color="0.4", linestyle=":", label="mean of the ends")
        axes.set(xlabel="α, from the first network to the second", ylabel="error")
        axes.set_title(f"Error barrier {self.barrier:.4g}")
        axes.legend(frameon=False)
        return axes

    def __str__(self) -> str:
        rows = [f"{a:>6.3f}  {e:.4f}" for a, e in zip(self.positions, self.errors, strict=True)]
        return "\n".join([f"Error barrier: {self.barrier:.4f}", "     α  error", *rows])


def error_barrier(
    first: keras.Model,
    second: keras.Model,
    error: Callable[[keras.Model], float],
    points: int = 30,
) -> ErrorBarrier:
    """Errors of the networks W(α) = (1 − α)·W₁ + α·W₂, and the barrier between the two.

    All weights are interpolated, statistics of BatchNormalization among them; to estimate these
    anew, let `error` do it with the model that it is given.

    Frankle, Dziugaite, Roy and Carbin 2020, "Linear Mode Connectivity and the Lottery Ticket
    Hypothesis", arXiv:1912.05671, section 2, where both networks are copies of one, trained with
    different orders of the data, and a barrier below 2 % counts as none.

    Args:
        first: A built functional or Sequential model.
        second: One of the same architecture.
        error: `error(model)` gives the error, on test data for one. It may change the model.
        points: How many positions there are, both ends included; 3 or more. Default 30.

    Returns:
        The errors, in order.

    Raises:
        TfcompError: If the architectures differ, `points` is too small or an error not finite.

    Example:
        >>> a, b = (keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]) for _ in "ab")
        >>> a.set_weights([np.array([[-1.0]]), np.zeros(1)])
        >>> b.set_weights([np.array([[1.0]]), np.zeros(1)])
        >>> error_barrier(a, b, lambda m: 1 - abs(float(m.get_weights()[0][0, 0])), 3).barrier
        1.0
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 3:
        raise TfcompError(f"`points` must be a whole number of at least 3. Received: {points!r}.")
    ends = [first.get_weights(), second.get_weights()]
    shapes = [[weight.shape for weight in weights] for weights in ends]
    if shapes[0] != shapes[1]:
        raise TfcompError(
            f"error_barrier expects two models of one architecture. Received: {first.name!r} with "
            f"weights {_brief(shapes[0])}, {second.name!r} with {_brief(shapes[1])}."
        )
    errors = []
    positions = np.linspace(0.0, 1.0, points)
    for position in positions:
        model = rebuild(trace(first))
        model.set_weights([_between(a, b, position) for a, b in zip(*ends, strict=True)])
        errors.append(finite_score("error", error, model))
    return ErrorBarrier(tuple(map(float, positions)), tuple(errors))


def _between(first: Any, second: Any, position: float) -> Any:
    if not np.issubdtype(first.dtype, np.floating):
        return first
    return ((1 - position) * first + position * second).astype(first.dtype)


def _brief(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes[:3])) + (", …" if len(shapes) > 3 else "")
